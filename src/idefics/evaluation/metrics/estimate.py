"""A mean over questions, and how far another draw of as many questions would be from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import sqrt

from idefics.errors import InputError

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """What a sample of questions says about all questions of their kind.

    Attributes:
        mean: of the scores.
        error: standard error of the mean; 0 where all scores are alike, which says nothing of questions not asked.
        count: scores.
    """

    mean: float
    error: float
    count: int


def estimate(scores: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """The mean and its standard error, clustered: scores that share a picture are not independent.

    The error is the root of the sum over clusters of (sum of deviations)^2, divided by the number of scores. Of clusters of one
    score each, right or wrong, it is the binomial sqrt(p (1 - p) / n).

    Args:
        scores: at least one.
        clusters: what each score shares with others, such as its picture.

    Raises:
        InputError: there are no scores.

    >>> estimate([1.0, 1.0, 0.0, 0.0], ["a", "b", "c", "d"])
    Estimate(mean=0.5, error=0.25, count=4)
    """
    if not scores:
        raise InputError("there are no scores to take the mean of")
    mean = sum(scores) / len(scores)
    deviations: defaultdict[Hashable, float] = defaultdict(float)
    for score, cluster in zip(scores, clusters, strict=True):
        deviations[cluster] += score - mean
    return Estimate(mean, sqrt(sum(deviation**2 for deviation in deviations.values())) / len(scores), len(scores))
