"""One model over several devices, arranged from outside.

The model's code is written for one device. It takes part in three places: gated blocks, which may lie on another device than
the tower, bring its features to their own; attention reads its number of heads off the tensors, of which a process may hold a
part; and a model tells the devices of its layers and how many key-value heads are here, for which a cache must have room.
"""
