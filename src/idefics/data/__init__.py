"""Training data: what a model learns from, and the drawings that need no download."""
