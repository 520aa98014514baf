"""What a check says."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from idefics.model.nearness import disagreements, distance

__all__ = ["Check", "inapplicable", "judge", "judge_logits", "number"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One invariant and whether it holds.

    Attributes:
        name: of the invariant, as a statement that should be true.
        passed: whether it is.
        measured: what was found, with its unit where it has one.
        allowed: what would have passed.
        explanation: what was compared; after a failure, what is wrong and what it would do to answers.
    """

    name: str
    passed: bool
    measured: str
    allowed: str
    explanation: str


def judge(name: str, measured: float, allowed: float, *, holds: str, broken: str) -> Check:
    """The check that a distance stays within what is allowed."""
    passed = measured <= allowed and math.isfinite(measured)
    return Check(
        name=name,
        passed=passed,
        measured=number(measured),
        allowed=f"<= {number(allowed)}",
        explanation=holds if passed else f"{broken} ({holds})",
    )


def judge_logits(name: str, expected_XV: Tensor, found_XV: Tensor, *, allowed: float, holds: str, broken: str) -> Check:
    """The check that logits are near those expected, and choose no other token where these are clear."""
    measured = distance(found_XV, expected_XV)
    flips = disagreements(found_XV, expected_XV, allowed=allowed) if measured < math.inf else 0
    if flips:
        measured, broken = math.inf, f"{broken}: {flips} position(s) choose another token"
    return judge(name, measured, allowed, holds=holds, broken=broken)


def inapplicable(name: str, reason: str) -> Check:
    """A check of something that this model does not have."""
    return Check(name=name, passed=True, measured="none", allowed="-", explanation=reason)


def number(value: float) -> str:
    """Two digits, and nothing but 0 for zero."""
    return "0" if value == 0 else f"{value:.1e}"
