"""One model over several devices, arranged from outside.

The model's code is written for one device. It takes part in two places: gated blocks, which may lie on another device than the
tower, bring its features to their own; and attention reads its number of heads off the tensors, of which a process may hold
a part.
"""
