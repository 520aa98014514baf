"""What the machine has: memory, CPUs, how fast it can be at best."""
