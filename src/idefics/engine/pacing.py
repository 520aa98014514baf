"""How long answers in the middle of a word wait for others' images: for one group of them in each pass.

The scheduler knows no images: it plans prompts as far as a pass has room. Of what it planned, tokens from the first on whose
image would be one too many are left for the next pass, for which they are simply planned again, in their blocks: what was not
computed is not taken note of. The oldest prompts come first in every plan, so each pass brings the oldest on. What is left
out has had its share of the pass, which nobody else gets: younger prompts without images wait behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

from idefics.engine.intake import Piece
from idefics.engine.runner import Runner
from idefics.model import peaks

__all__ = ["paced"]

CPU_PART = 8
"""On a CPU a group is smaller by this: a photo takes seconds there, and gains nothing from others beside it."""


def paced(slices: Sequence[Piece], runner: Runner) -> list[Piece]:
    """What of a plan to compute now: all of it, or, where answers go on, what needs no more than one group of new images.

    Args:
        slices: the plan; in its order images are encoded.
        runner: knows which images are encoded.
    """
    lacking = [list(runner.lacking(piece)) for piece in slices]
    if not any(piece.answer.decoding and not missing for piece, missing in zip(slices, lacking, strict=True)):
        return list(slices)
    room = peaks.VISION_BYTES // (CPU_PART if runner.model.device.type == "cpu" else 1)
    taken: set[bytes] = set()
    due = []
    for piece, missing in zip(slices, lacking, strict=True):
        end = len(piece.ids)
        for place, picture in missing:
            if picture.digest in taken:
                continue
            size = runner.model.encoding_bytes(picture.pixels())
            if taken and size > room:
                end, room = place, 0
                break
            taken.add(picture.digest)
            room -= size
        if end == len(piece.ids):
            due.append(piece)
        elif end:  # guesses draw on what the newest token draws on, so they are not cut off from it
            due.append(Piece(piece.answer, piece.start, piece.ids[:end], 0))
    return due
