"""Tokens and memory of a request before anything is loaded, on one device and cut over several."""

from idefics.plan.gpus import Share, make_shares
from idefics.plan.request import (
    ASSUMED_TEXT_TOKENS,
    PRECISIONS,
    ImagePlan,
    MemoryPlan,
    Plan,
    Precision,
    Subject,
    make_plan,
    preset_named,
    published_images,
    subject,
)

__all__ = [
    "ASSUMED_TEXT_TOKENS", "PRECISIONS", "ImagePlan", "MemoryPlan", "Plan", "Precision", "Share", "Subject", "make_plan",
    "make_shares", "preset_named", "published_images", "subject",
]  # fmt: skip
