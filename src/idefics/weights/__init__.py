"""Checkpoints to models and back: where the files are, what their names mean, loading, saving, counting.

`files` finds a checkpoint's folder (downloading it if needed), `shards` says what tensors lie in it, `idefics2` holds the
table of their names, `families` picks the table for a `model_type`; `load` and `save` put these together.
"""
