"""Text and images to model inputs, and ids back to text; imports no model code."""
