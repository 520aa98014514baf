"""Linear layers replaced from outside for a purpose, named all the same, and given back.

`model/` is maths and declares which linear layers it has (`model/layers/linear.py`); `sites.py` is the one list of them. A
purpose is one file: a `StandIn` that computes in their place. Packing (`packing.py`) is one.
"""
