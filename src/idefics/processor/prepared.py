"""Images that are ready for a prompt: opened, split and resized, before or apart from the prompt they are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from idefics.errors import InputError
from idefics.inputs import Levels
from idefics.machine.cpus import in_parallel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LevelMaker", "PreparedImage", "prepared", "prepared_of"]


@dataclass(frozen=True)
class PreparedImage:
    """One image as a processor's prompts take it: `parts` are itself, or its sub-images in reading order, whole last."""

    parts: tuple[Levels, ...]


class LevelMaker(Protocol):
    """What splits and resizes images; see `ImageProcessor`."""

    @property
    def level_values(self) -> NDArray[np.float32]:
        """The pixel of each level, per channel."""
        ...

    def levels(self, images: Sequence[Image.Image], *, workers: int | None = None) -> list[NDArray[np.uint8]]:
        """The bytes of every sub-image."""
        ...


def prepared(
    rows: Sequence[Sequence[Any]],
    open_image: Callable[[Any], Image.Image],
    maker: LevelMaker,
    *,
    parts: int,
    workers: int | None = None,
) -> list[list[PreparedImage]]:
    """Every image of every row prepared, in several threads; those that are already stay as they are.

    Args:
        rows: images, prepared or anything that `open_image` takes.
        open_image: decodes one.
        maker: splits and resizes.
        parts: sub-images that one image becomes.
        workers: threads at most; None for as many as there are usable CPUs.

    Raises:
        ImageError: an image cannot be used.
        InputError: an image was prepared with another splitting.
    """
    given = [image for row in rows for image in row]
    for image in given:
        if isinstance(image, PreparedImage) and len(image.parts) != parts:
            raise InputError(
                f"an image was prepared as {len(image.parts)} sub-image(s), the prompt has tokens for {parts}; "
                "prepare images with the processor that makes the prompt"
            )
    # One image may stand in several places; decoding is not for two threads at once.
    sources = list({id(image): image for image in given if not isinstance(image, PreparedImage)}.values())
    opened = in_parallel(open_image, sources, workers=workers)
    made = prepared_of(maker.levels(opened, workers=workers), maker).parts
    ready = {id(source): PreparedImage(made[parts * i : parts * (i + 1)]) for i, source in enumerate(sources)}
    return [[image if isinstance(image, PreparedImage) else ready[id(image)] for image in row] for row in rows]


def prepared_of(levels: Sequence[NDArray[np.uint8]], maker: LevelMaker) -> PreparedImage:
    """The image whose sub-images' bytes `maker` has made, here or elsewhere."""
    import torch

    values_CG = torch.from_numpy(maker.level_values)
    return PreparedImage(tuple(Levels(levels_CHW=torch.from_numpy(one), values_CG=values_CG) for one in levels))
