"""Learning: stages, their schedules and losses, the optimizer, the loop, and a run's state on disk."""
