"""What a pass takes at its widest moment, from a config alone: by it images are grouped, caches leave room and plans reckon.

Images go through the tower packed, without padding, in groups of at most `VISION_BYTES` (a larger image alone). Of each patch
there are then, at the widest moment, the larger of

    the tower's MLP             2 x hidden + 2 x inner            residual, normed input, inner before and after act
    the modality projection     hidden + 3 x text inner           features, gate, up, and act(gate) times up (Idefics2)

and beside it lie its pixels, in float32 and in the model's dtype. Where the decoder looks at images apart from the text, an
image's keys and values for all its blocks are made from the group, too. Of each token of a prompt there are
2 x hidden + 3 x inner of the decoder, the same way. Scores of attention are not counted: towers and prompts are attended to by
fused kernels or by blocks, which hold a few of them at a time (`layers/attention.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from idefics.config import Config

__all__ = ["VISION_BYTES", "encoded_bytes", "encoding_bytes", "groups", "prompt_bytes"]

VISION_BYTES = 918_500_000
"""Of images that are encoded together: two of 980 x 980 for Idefics2-8B in 16 bits, 10,000 patches of it in all."""


def encoding_bytes(config: Config, patches: int, *, width: int) -> int:
    """What an image takes while it is encoded.

    Args:
        config: of the model.
        patches: of the image.
        width: bytes of one activation.

    >>> from idefics.config.presets import preset
    >>> VISION_BYTES // encoding_bytes(preset("idefics2-8b"), 1, width=2)
    10000
    """
    vision = config.vision_config
    pixels = vision.num_channels * vision.patch_size**2 * (4 + width)
    return patches * (config.values_per_patch * width + pixels) + config.values_per_image * width


def encoded_bytes(config: Config, *, width: int) -> int:
    """What is kept of an encoded image: its latents, or the keys and values of the blocks that look at it."""
    return (config.values_per_image or config.latents * config.text_config.hidden_size) * width


def prompt_bytes(config: Config, *, width: int) -> int:
    """What a token of a prompt takes while it is computed."""
    return (2 * config.text_config.hidden_size + 3 * config.text_config.intermediate_size) * width


def groups(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Consecutive (first, last) ranges whose sizes sum to at most `VISION_BYTES`, or hold one item.

    >>> list(groups([VISION_BYTES // 2, VISION_BYTES // 2, VISION_BYTES * 3, 1]))
    [(0, 2), (2, 3), (3, 4)]
    """
    first = total = 0
    for index, size in enumerate(sizes):
        if index > first and total + size > VISION_BYTES:
            yield first, index
            first, total = index, 0
        total += size
    if sizes:
        yield first, len(sizes)
