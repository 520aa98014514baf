"""How good answers are, a file each."""
