"""The one value that goes from a processor (or a data set) to a model.

Letters used in names, here and in every file below: B rows (prompts), T tokens, N images, C channels, H x W pixels,
P patches, L latents, D hidden size, V vocabulary, G the 256 levels of a byte.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Levels", "ModelInputs", "image_digest", "pixels_of"]


@dataclass(frozen=True, kw_only=True)
class Levels:
    """An image in bytes, as Pillow has it, and the pixel that each level stands for.

    Rescaling and normalisation are a function of one byte, so they wait until a model takes the image (`pixels_of`): up to
    then it is a quarter of its size, to resize, to move and to compare. The pixels are those of float arithmetic to the bit.

    Attributes:
        levels_CHW: uint8.
        values_CG: floating, (C, 256): the normalised pixel of every level, per channel.
    """

    levels_CHW: torch.Tensor
    values_CG: torch.Tensor

    def __post_init__(self) -> None:
        assert str(self.levels_CHW.dtype) == "torch.uint8", f"levels are bytes, not {self.levels_CHW.dtype}"
        assert self.values_CG.shape == (len(self.levels_CHW), 256), "a value per channel and level is due"

    @property
    def shape(self) -> torch.Size:
        """(C, H, W), as of a tensor of pixels."""
        return self.levels_CHW.shape

    @cached_property
    def digest(self) -> bytes:
        """As `image_digest` has it: made once, by whoever asks first, so that it can be made before an engine asks."""
        return _digest(self.levels_CHW, self.values_CG)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Levels:
        """The same image on `device`, whose pixels will be in `dtype`."""
        return Levels(levels_CHW=self.levels_CHW.to(device=device), values_CG=self.values_CG.to(device=device, dtype=dtype))

    def pixels(self) -> torch.Tensor:
        """Normalised pixels (C, H, W) in the dtype of `values_CG`."""
        import torch

        pixels_CHW = self.values_CG.new_empty(self.shape)
        indices_CP = self.levels_CHW.flatten(1).int()
        for values_G, indices_P, out_P in zip(self.values_CG, indices_CP, pixels_CHW.flatten(1), strict=True):
            torch.index_select(values_G, 0, indices_P, out=out_P)
        return pixels_CHW


def image_digest(image: torch.Tensor | Levels) -> bytes:
    """A name for what an image shows: equal for equal pixels in one form, and practically never for others."""
    return image.digest if isinstance(image, Levels) else _digest(image)


def _digest(*parts: torch.Tensor) -> bytes:
    import torch

    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
        digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


def pixels_of(image: torch.Tensor | Levels, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Normalised pixels (C, H, W) of an image in either form, in `dtype`; None keeps its own."""
    if isinstance(image, Levels):
        return image.to(dtype=dtype).pixels()
    return image.to(dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """A batch of prompts and their images, without padded pixels.

    Attributes:
        input_ids_BT: int64, padded with any id where `attention_mask_BT` is 0.
        attention_mask_BT: int64, 1 for tokens, 0 for padding (left or right, never inside).
        images_CHW: every image (sub-images count as images), each in its own size, as `Levels` or as normalised pixels;
            all prompts' images in reading order; `images_per_row` says where each prompt's begin.
        images_per_row: images of each prompt; sums to `len(images_CHW)`.
        seen_BT: int64; for models whose tokens look at images apart from the text: which of its row's images each token
            sees, from 0, or -1 for none. None for models whose images stand among the tokens.
        interpolated: whether images may have other sizes than a tower of fixed positions was made for, which are then
            interpolated; models refuse them otherwise.
    """

    input_ids_BT: torch.Tensor
    attention_mask_BT: torch.Tensor
    images_CHW: tuple[torch.Tensor | Levels, ...] = ()
    images_per_row: tuple[int, ...] = ()
    seen_BT: torch.Tensor | None = None
    interpolated: bool = False

    def __post_init__(self) -> None:
        assert self.input_ids_BT.shape == self.attention_mask_BT.shape, "ids and mask differ in shape"
        assert self.seen_BT is None or self.seen_BT.shape == self.input_ids_BT.shape, "ids and seen images differ in shape"
        assert sum(self.images_per_row) == len(self.images_CHW), "images_per_row does not add up"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ModelInputs:
        """The same inputs on `device`, pixels (and only pixels) in `dtype`."""
        return replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device=device),
            attention_mask_BT=self.attention_mask_BT.to(device=device),
            images_CHW=tuple(image.to(device=device, dtype=dtype) for image in self.images_CHW),
            seen_BT=None if self.seen_BT is None else self.seen_BT.to(device=device),
        )

    def row(self, row: int) -> ModelInputs:
        """One prompt of the batch, with its images; padding stays."""
        first = sum(self.images_per_row[:row])
        count = self.images_per_row[row] if self.images_per_row else 0
        return ModelInputs(
            input_ids_BT=self.input_ids_BT[row : row + 1],
            attention_mask_BT=self.attention_mask_BT[row : row + 1],
            images_CHW=self.images_CHW[first : first + count],
            images_per_row=(count,),
            seen_BT=None if self.seen_BT is None else self.seen_BT[row : row + 1],
            interpolated=self.interpolated,
        )
