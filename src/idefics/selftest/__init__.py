"""A self-test against silently wrong output, for any checkpoint: trained or random, tiny or 8B.

Nothing is compared with another program. Every check states something that must hold between two computations of the
same model (alone and in a batch, with a cache and without), or between the files of one checkpoint.
"""

from idefics.selftest.checks import Check
from idefics.selftest.run import CHECKS, verify

__all__ = ["CHECKS", "Check", "verify"]
