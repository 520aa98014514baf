"""What an engine holds, for whoever watches it. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idefics.engine.scheduler import Scheduler

if TYPE_CHECKING:
    from idefics.engine.image_cache import ImageCache

__all__ = ["EngineState"]


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """What the engine holds at a moment.

    Attributes:
        waiting: answers whose prompt is not computed yet, or that were interrupted.
        running: answers computed together.
        blocks: of the cache.
        blocks_held: by running answers; others may still be found again but are free.
        block_tokens: that one block keeps.
        admitted_tokens: of prompts, those computed again after an interruption included, so far.
        found_tokens: of them, those whose keys and values were still there.
        interruptions: of answers for lack of blocks, so far.
        image_hits: images that were found encoded, so far.
        image_misses: images that were not, so far.
        image_bytes: of encoded images kept.
    """

    waiting: int = 0
    running: int = 0
    blocks: int = 0
    blocks_held: int = 0
    block_tokens: int = 0
    admitted_tokens: int = 0
    found_tokens: int = 0
    interruptions: int = 0
    image_hits: int = 0
    image_misses: int = 0
    image_bytes: int = 0

    @classmethod
    def of(cls, scheduler: Scheduler[Any], images: ImageCache) -> EngineState:
        """The state of an engine's parts."""
        pool = scheduler.pool
        return cls(
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            blocks=pool.blocks,
            blocks_held=pool.blocks - pool.free,
            block_tokens=pool.size,
            admitted_tokens=scheduler.admitted,
            found_tokens=scheduler.found,
            interruptions=scheduler.preemptions,
            image_hits=images.hits,
            image_misses=images.misses,
            image_bytes=images.bytes,
        )
