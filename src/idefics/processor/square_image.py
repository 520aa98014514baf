"""Pixels for the first IDEFICS: every image a square of one size, bicubic, in CLIP's colours.

Letters: N images, C channels, H x W pixels (S x S once square).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from PIL import Image

from idefics.config.json_files import write_json
from idefics.config.keys import Keys, asks_for_nothing
from idefics.config.rules import brief
from idefics.errors import ConfigError, ImageError, InputError, OptionError
from idefics.processor.call_options import check_left_over, plain
from idefics.processor.described import Described
from idefics.processor.fetch import open_image
from idefics.processor.image import ImageProcessor
from idefics.processor.settings import INERT, check_options, image_settings_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["CLIP_MEAN", "CLIP_STD", "SquareImageProcessor"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# What transformers 5 spells out and earlier releases always did; anything else would be pixels of another kind.
_FIXED: dict[str, tuple[Any, ...]] = {
    "do_convert_rgb": (True, None),
    "do_normalize": (True, None),
    "do_rescale": (True, None),
    "do_resize": (True, None),
    "image_num_channels": (3, None),
    "resample": (3, None),
    "rescale_factor": (1 / 255, None),
}
_NAMES = ("model_input_names", "data_format")


@dataclass(frozen=True, kw_only=True)
class SquareImageProcessor(Described):
    """How images become squares, with the field names of the published `preprocessor_config.json`.

    Images of other modes become RGB with alpha on white; EXIF orientation is ignored, of URLs too, as by the reference.

    Attributes:
        image_size: the side in pixels.
        image_mean: one value per channel; CLIP's where a file gives none.
        image_std: likewise.
    """

    image_num_channels: ClassVar[int] = 3

    image_size: int = 224
    image_mean: Sequence[float] = CLIP_MEAN
    image_std: Sequence[float] = CLIP_STD
    _squares: ImageProcessor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        side = plain(self.image_size)
        if isinstance(side, bool) or not isinstance(side, int) or side < 1:
            raise OptionError(f"image_size = {side!r} must be a positive whole number of pixels")
        squares = ImageProcessor(
            size={"height": side, "width": side},
            resample=int(Image.Resampling.BICUBIC),
            image_mean=self.image_mean,
            image_std=self.image_std,
        )
        for name, value in (
            ("_squares", squares),
            ("image_size", side),
            ("image_mean", squares.image_mean),
            ("image_std", squares.image_std),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, where: str = "image processor", keys: Keys | None = None) -> Self:
        """Reads a `preprocessor_config.json`, or the `image_processor` section of a transformers 5 `processor_config.json`.

        Args:
            raw: its content.
            where: it stands, as errors say it.
            keys: lets unknown ones pass, or does not; None does not.

        Raises:
            ConfigError: an unknown key that may matter, or a value that cannot be honoured.
        """
        for key, value in raw.items():
            if key in _FIXED and value not in _FIXED[key]:
                raise ConfigError(f"{where}: {key} = {brief(value)}; this family's models are made for {_FIXED[key][0]!r}")
        known = {*_options(cls), *_FIXED, *INERT, *_NAMES, "size"}
        unknown = {key: value for key, value in raw.items() if key not in known and not asks_for_nothing(value)}
        (keys or Keys(allow_unknown=False)).admit(where, unknown)
        given = {key: raw[key] for key in _options(cls) if raw.get(key) is not None}
        size = raw.get("size")
        if size is not None:
            side = given.setdefault("image_size", size.get("height") if isinstance(size, Mapping) else None)
            if side is None or size != {"height": side, "width": side}:
                raise ConfigError(f"{where}: size = {size!r} is not the square of image_size = {side!r}")
        try:
            return cls(**given)
        except (OptionError, TypeError) as error:
            raise ConfigError(f"{where}: {error}") from None

    @classmethod
    def from_folder(cls, folder: Path, *, keys: Keys | None = None, **overrides: Any) -> Self:
        """Reads a checkpoint folder of any era; `overrides` are fields to change, None keeps the file's.
        `keys` as in `from_dict`.

        Raises:
            CheckpointNotFound: neither `preprocessor_config.json` nor a `processor_config.json` with an image processor.
            ConfigError: a file cannot be honoured, or is another family's.
            OptionError: an override is unknown or unusable.
        """
        check_options(overrides, _options(cls), what="image")
        given = {name: value for name, value in overrides.items() if value is not None}
        section, where = image_settings_of(folder, family="Idefics")
        return dataclasses.replace(cls.from_dict(section, where=where, keys=keys), **given)

    def to_dict(self) -> dict[str, Any]:
        """The content of a `preprocessor_config.json` that transformers 4.40 and 5 read."""
        return {
            "image_mean": list(self.image_mean),
            "image_num_channels": self.image_num_channels,
            "image_processor_type": "IdeficsImageProcessor",
            "image_size": self.image_size,
            "image_std": list(self.image_std),
            "processor_class": "IdeficsProcessor",
        }

    def processed_sizes(self, width: int, height: int) -> list[tuple[int, int]]:
        """(width, height) of what the model sees of an image of these sides: always one square.

        Raises:
            ImageError: no such image.
        """
        if width < 1 or height < 1:
            raise ImageError(f"the image has no pixels ({width}x{height})")
        return [(self.image_size, self.image_size)]

    def adjusted(self, *, max_image_size: int | None = None, split: bool | None = None) -> Self:
        """This very processor, which has nothing to adjust.

        Raises:
            OptionError: another size than its own, or splitting, is asked for.
        """
        if max_image_size is not None:
            raise OptionError(
                f"max_image_size = {max_image_size!r}: this model's images are always squares of "
                f"{self.image_size}x{self.image_size} pixels; leave the option out, or give image_size at loading"
            )
        if split:
            raise OptionError("split: this model's images are never split; leave the option out")
        return self

    def sized(self, image_size: int) -> Self:
        """This processor with squares of another side.

        Raises:
            OptionError: the side is no positive whole number.
        """
        return dataclasses.replace(self, image_size=image_size)

    @property
    def level_values(self) -> NDArray[np.float32]:
        """What each of the 256 levels becomes in each channel; see `ImageProcessor`."""
        return self._squares.level_values

    def levels(self, images: Sequence[Image.Image], *, workers: int | None = None) -> list[NDArray[np.uint8]]:
        """Every image as a square of bytes (C, S, S); see `ImageProcessor`."""
        return self._squares.levels(images, workers=workers)

    @property
    def option_names(self) -> tuple[str, ...]:
        """Settings that a call may name; those that cannot be changed, too."""
        return (*_options(type(self)), "size", *_FIXED)

    @property
    def model_input_names(self) -> list[str]:
        """What the processor of texts and images calls the pixels."""
        return ["pixel_values"]

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> list[str]:
        """Writes `preprocessor_config.json`, and returns its path.

        Raises:
            OptionError: an option that asks for more than that.
        """
        check_left_over("save_pretrained", options, there=("save_directory",))
        path = Path(save_directory) / "preprocessor_config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.to_dict())
        return [str(path)]

    def preprocess(
        self,
        images: Any,
        *,
        transform: Callable[[Image.Image], Any] | None = None,
        return_tensors: str | None = "pt",
        **options: Any,
    ) -> Any:
        """Pixels (N, C, S, S) float32 of one image or a list of them.

        Args:
            images: anything `open_image` takes.
            transform: makes a tensor of each Pillow image instead, as in training, all of one shape.
            return_tensors: `"pt"` or None for a tensor, `"np"` for an array.
            options: settings for this call: `image_size` (or the square `size`), `image_mean`, `image_std`.

        Raises:
            ImageError: an image cannot be used.
            InputError: `transform` gives no tensors (C, H, W), or tensors of several shapes.
            OptionError: an unusable option, or one that `transform` leaves without effect.
        """
        import torch

        if return_tensors not in ("pt", "np", None):
            raise OptionError(f"return_tensors = {return_tensors!r} is not one of 'pt', 'np', None")
        changes = self._changes(options)
        opened = [open_image(image) for image in (images if isinstance(images, list | tuple) else [images])]
        if transform is not None:
            if changes:
                raise OptionError(f"{', '.join(changes)}: no effect beside a transform, which makes the pixels")
            pixels = _stacked([_transformed(transform(image), self.image_num_channels) for image in opened], self.image_size)
        else:
            worker = dataclasses.replace(self, **changes) if changes else self
            pixels = _stacked([torch.from_numpy(made) for made in worker._squares.pixels(opened)], worker.image_size)
        return pixels.numpy() if return_tensors == "np" else pixels

    __call__ = preprocess

    def _changes(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The settings among a call's options that are not the processor's own."""
        given = {name: value for name, value in options.items() if value is not None}
        if "size" in given:
            given.setdefault("image_size", _square(given.pop("size")))
        there = _options(type(self))
        left = {name: value for name, value in given.items() if name not in there}
        check_left_over("images", left, there=(*there, "size", "transform"), neutral=_FIXED)
        return {name: value for name, value in given.items() if name in there}

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """A Pillow image of a URL, or a list of them of a list; in its own mode and orientation, as it comes.

        Raises:
            ImageError: one cannot be fetched; names it.
        """
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(one) for one in image_url_or_urls]
        return open_image(image_url_or_urls)


def _square(size: Any) -> Any:
    """The side of a square that is given as the reference of today gives it."""
    sides = {plain(side) for side in size.values()} if isinstance(size, Mapping) and set(size) == {"height", "width"} else set()
    if len(sides) != 1:
        raise OptionError(f"size = {size!r} is no square {{'height': ..., 'width': ...}}, as which this model sees all images")
    return sides.pop()


def _options(cls: type[SquareImageProcessor]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls) if f.init)


def _transformed(made: Any, channels: int) -> torch.Tensor:
    import torch

    try:
        pixels_CHW = torch.as_tensor(made)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"transform gives a {type(made).__name__}, not a tensor of pixels: {error}") from None
    if pixels_CHW.ndim != 3 or len(pixels_CHW) != channels or not pixels_CHW.numel():
        raise InputError(f"transform gives a tensor of shape {tuple(pixels_CHW.shape)}; ({channels}, height, width) is due")
    return pixels_CHW


def _stacked(images: list[torch.Tensor], side: int) -> torch.Tensor:
    import torch

    if not images:
        return torch.zeros(0, SquareImageProcessor.image_num_channels, side, side)
    if len({image.shape for image in images}) > 1:
        shapes = ", ".join(str(tuple(image.shape)) for image in images)
        raise InputError(f"transform gives tensors of several shapes: {shapes}; all images of a prompt need one")
    return torch.stack(images)
