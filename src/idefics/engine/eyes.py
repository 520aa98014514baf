"""The images of requests: told apart by what they show, encoded once, and what tokens draw on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics.engine.image_cache import Encoded, ImageCache
from idefics.errors import NumericsError
from idefics.inputs import Levels, ModelInputs, image_digest
from idefics.model.base import VisionLanguageModel

__all__ = ["ImageEncoder", "Picture", "Source", "pictures", "side_by_side"]


@dataclass(eq=False)
class Picture:
    """One image of a request, its digest, and what the model makes of it once it is needed, instead of the image."""

    image: Tensor | Levels | None
    digest: bytes
    encoded: Encoded | None = None

    def pixels(self) -> Tensor | Levels:
        """What is to be encoded."""
        assert self.image is not None, "an image that is encoded already"
        return self.image

    def keep(self, encoded: Encoded) -> None:
        """Takes what the model made of it, as long as the request lasts, whatever is kept for others."""
        self.encoded, self.image = encoded, None


@dataclass(frozen=True, eq=False)
class Source:
    """What a request's tokens draw on.

    Attributes:
        pictures: the request's images.
        drawn: of each prompt token the source, as `VisionLanguageModel.sources` counts them.
        remains: of every token after the prompt.
    """

    pictures: Sequence[Picture]
    drawn: Sequence[int]
    remains: int

    def of(self, start: int, tokens: int) -> list[int]:
        """Sources of consecutive tokens."""
        prompt = list(self.drawn[start : start + tokens])
        return prompt + [self.remains] * (tokens - len(prompt))


def pictures(inputs: ModelInputs) -> list[Picture]:
    """The images of a prompt; equal ones are one."""
    found: dict[bytes, Picture] = {}
    every = []
    for image in inputs.images_CHW:
        digest = image_digest(image)
        every.append(found.setdefault(digest, Picture(image, digest)))
    return every


class ImageEncoder:
    """A model's eyes, and what they saw last.

    Args:
        model: in eval mode.
        images: encoded ones.
    """

    def __init__(self, model: VisionLanguageModel, images: ImageCache) -> None:
        self.model = model
        self.images = images

    def encoded(self, inputs: ModelInputs) -> Encoded | None:
        """`VisionLanguageModel.project` of prompts' images, each encoded once; None if there are none."""
        shown = pictures(inputs)
        self.encode(shown)
        return side_by_side(shown) if shown else None

    def encode(self, wanted: Sequence[Picture]) -> None:
        """Makes sure that these images are encoded; those that are not go through the model in groups.

        Raises:
            NumericsError: what one of them encodes to is no number; the good ones of its group are encoded all the same.
        """
        missing: dict[bytes, list[Picture]] = {}
        for picture in wanted:
            known = self.images.get(picture.digest) if picture.encoded is None else None
            if known is not None:
                picture.keep(known)
            if picture.encoded is None:
                missing.setdefault(picture.digest, []).append(picture)
        every = list(missing.items())
        for first, last in self.model.groups([alike[0].pixels() for _, alike in every]):
            self._encode(every[first:last])

    def _encode(self, group: Sequence[tuple[bytes, list[Picture]]]) -> None:
        """Encodes images that go through the model together, by digest."""
        latents_NLD = self.model.encode_images([alike[0].pixels() for _, alike in group])
        # Of the latents, which are the same in all processes of a divided model; a GPU is waited for once.
        good = latents_NLD.isfinite().flatten(1).all(1).tolist()
        projected = self.model.project(latents_NLD)
        for index, (digest, alike) in enumerate(group):
            if not good[index]:
                continue
            # Copies: a view would keep the whole group alive as long as any of its images.
            encoded = tuple(part[index : index + 1].clone() for part in projected)
            self.images.put(digest, encoded)
            for picture in alike:
                picture.keep(encoded)
        if not all(good):
            raise NumericsError(
                f"{good.count(False)} image(s) of {len(good)} encode to NaN or infinite values: their pixels or the weights "
                "hold such values, or the dtype overflows; `idefics verify` tells which"
            )


def side_by_side(shown: Sequence[Picture]) -> Encoded:
    """Encoded images as one."""
    parts = zip(*(picture.encoded for picture in shown if picture.encoded is not None), strict=True)
    return tuple(part[0] if len(part) == 1 else torch.cat(part) for part in parts)
