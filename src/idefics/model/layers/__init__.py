"""Blocks that more than one part of a model is made of."""
