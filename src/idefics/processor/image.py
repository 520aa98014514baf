"""Pixels for the model: split, resize, rescale, normalise, pad, equal to the reference's Pillow backend.

Letters: B rows, N images, C channels, H x W pixels, P all pixels of one image, G the 256 levels of a byte.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from idefics.config.json_files import write_json
from idefics.config.keys import Keys, asks_for_nothing
from idefics.config.rules import brief, check, flag, number
from idefics.errors import ConfigError, ImageError, InputError, OptionError
from idefics.machine.cpus import in_parallel, usable_cpus
from idefics.processor.batch import BatchFeature
from idefics.processor.call_options import check_left_over, plain
from idefics.processor.described import Described
from idefics.processor.fetch import open_image
from idefics.processor.modes import named, to_rgb
from idefics.processor.resizing import resized
from idefics.processor.settings import INERT, check_options, image_settings_of
from idefics.processor.sizes import Box, check_size, processed_sizes, resized_size, sub_image_boxes, with_longest_edge

__all__ = ["ImageProcessor", "Pixels", "pad_images"]

Pixels = NDArray[np.float32]

_ONE_THREAD = 2**20
"""Pixels in all from which threads save more than they cost."""

_FIXED: dict[str, tuple[Any, ...]] = {
    "data_format": (None, "channels_first"),
    "do_center_crop": (None, False),
    "model_input_names": (["pixel_values"], ["pixel_values", "pixel_attention_mask"], None),
}


@dataclass(frozen=True, kw_only=True)
class ImageProcessor(Described):
    """How images become pixels, with the field names of the published `preprocessor_config.json`.

    Called on its own it takes the image processor's route of the reference: alpha on white, EXIF ignored. Behind a
    processor, images come through `load_image` and are upright RGB already.

    Attributes:
        do_convert_rgb: convert other modes to RGB; without it they are refused.
        do_resize: resize to `size`.
        size: `shortest_edge` and `longest_edge`, or a fixed `height` and `width`, in pixels.
        resample: Pillow's number of the filter (2 is bilinear); always with antialias.
        do_rescale: multiply levels 0..255 by `rescale_factor`.
        rescale_factor: 1/255 brings them to 0..1.
        do_normalize: subtract `image_mean` and divide by `image_std`.
        image_mean: one value per channel.
        image_std: one value per channel.
        do_pad: pad images of a batch to the largest with zeros and return their mask.
        do_image_splitting: see each image five times: its quarters and the whole.
    """

    do_convert_rgb: bool = flag(True)
    do_resize: bool = flag(True)
    size: Mapping[str, int] = field(default_factory=lambda: {"shortest_edge": 378, "longest_edge": 980})
    resample: int = 2
    do_rescale: bool = flag(True)
    rescale_factor: float = number(1 / 255, most=2.0**32, or_least=True)
    do_normalize: bool = flag(True)
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    image_std: Sequence[float] = (0.5, 0.5, 0.5)
    do_pad: bool = flag(True)
    do_image_splitting: bool = flag(False)

    def __post_init__(self) -> None:
        for option in fields(self):
            object.__setattr__(self, option.name, plain(getattr(self, option.name)))
        try:
            check(type(self), "", vars(self))
        except ConfigError as error:
            raise OptionError(str(error)) from None
        object.__setattr__(self, "size", check_size(self.size))
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            channels = _three_numbers(value)
            if channels is None or (name == "image_std" and 0 in channels):
                raise OptionError(f"{name} = {value!r} must be three numbers, one per colour, and no deviation zero")
            object.__setattr__(self, name, channels)
        try:
            if isinstance(self.resample, bool):
                raise TypeError
            object.__setattr__(self, "resample", int(Image.Resampling(self.resample)))
        except (TypeError, ValueError):
            raise OptionError(f"resample = {self.resample!r} is not one of Pillow's filters 0..5") from None

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
        known = {f.name for f in fields(cls)}
        for key, value in raw.items():
            if key in _FIXED and value not in _FIXED[key]:
                raise ConfigError(f"{where}: {key} = {brief(value)} is not supported; only {_FIXED[key][1]!r} is")
        beside = {key: value for key, value in raw.items() if key not in known | INERT | set(_FIXED)}
        unknown = {key: value for key, value in beside.items() if not asks_for_nothing(value)}
        (keys or Keys(allow_unknown=False)).admit(where, unknown)
        try:
            return cls(**{key: value for key, value in raw.items() if key in known and value is not None})
        except (OptionError, TypeError) as error:
            raise ConfigError(f"{where}: {error}") from None

    @classmethod
    def from_folder(cls, folder: Path, *, keys: Keys | None = None, **overrides: Any) -> Self:
        """Reads a checkpoint folder of either era; `overrides` are fields to change, None keeps the file's.
        `keys` as in `from_dict`.

        Raises:
            CheckpointNotFound: neither `preprocessor_config.json` nor a `processor_config.json` with an image processor.
            ConfigError: a file cannot be honoured, or is another family's.
            OptionError: an override is unknown or unusable.
        """
        check_options(overrides, (field.name for field in fields(cls)), what="image")
        section, where = image_settings_of(folder, family="Idefics2")
        given = {name: value for name, value in overrides.items() if value is not None}
        return dataclasses.replace(cls.from_dict(section, where=where, keys=keys), **given)

    def to_dict(self) -> dict[str, Any]:
        """The content of a `preprocessor_config.json` that every transformers since 4.40 reads."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values.update(size=dict(self.size), image_mean=list(self.image_mean), image_std=list(self.image_std))
        return {**values, "image_processor_type": "Idefics2ImageProcessor", "processor_class": "Idefics2Processor"}

    @property
    def option_names(self) -> tuple[str, ...]:
        """Settings that a call may change for itself."""
        return tuple(option.name for option in fields(self))

    @property
    def model_input_names(self) -> list[str]:
        """What calls return."""
        return ["pixel_values", "pixel_attention_mask"]

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

    def with_options(self, **options: Any) -> Self:
        """This processor with a call's own settings; None keeps its own.

        Raises:
            OptionError: an unusable value, or an option that there is not and that would change something.
        """
        there = self.option_names
        check_left_over("images", {k: v for k, v in options.items() if k not in there}, there=there)
        changes = {name: value for name, value in options.items() if name in there and value is not None}
        return dataclasses.replace(self, **changes) if changes else self

    def adjusted(self, *, max_image_size: int | None = None, split: bool | None = None) -> Self:
        """This processor with another longest edge in pixels, or with or without splitting; None keeps its own.

        Raises:
            OptionError: an unusable value.
        """
        size = None if max_image_size is None else with_longest_edge(self.size, max_image_size)
        return self.with_options(size=size, do_image_splitting=split)

    def sized(self, image_size: int) -> Self:
        """Refuses: images keep their shapes.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            f"image_size = {image_size!r}: this model's images keep their shapes; max_image_size bounds their longest edge"
        )

    def processed_sizes(self, width: int, height: int) -> list[tuple[int, int]]:
        """(width, height) of every sub-image that an image of these sides becomes, as the model sees it."""
        if not self.do_resize:
            boxes = sub_image_boxes(width, height, do_image_splitting=self.do_image_splitting)
            return [(right - left, bottom - top) for left, top, right, bottom in boxes]
        return processed_sizes(width, height, size=self.size, do_image_splitting=self.do_image_splitting)

    def levels(self, images: Sequence[Image.Image], *, workers: int | None = None) -> list[NDArray[np.uint8]]:
        """Every image split and resized, each in its own size, in the bytes that `level_values` turns into pixels.

        Args:
            images: of any mode; alpha goes on white, so use `load_image` for the processor's route.
            workers: threads at most; None for as many as there are usable CPUs.

        Returns:
            uint8 arrays (C, H, W): one per image, or five when splitting (top-left, top-right, bottom-left,
            bottom-right, whole).

        Raises:
            ImageError: an image has no pixels, is too small to split, or is not RGB while `do_convert_rgb` is off.
        """
        parts = [part for image in images for part in self._parts(image)]
        work = [(right - left) * (bottom - top) for _, (left, top, right, bottom) in parts]
        longest_first = sorted(range(len(parts)), key=work.__getitem__, reverse=True)
        threads = 1 if sum(work) < _ONE_THREAD else usable_cpus() if workers is None else workers
        spare = max(1, threads // max(1, len(parts)))
        made = in_parallel(lambda index: (index, self._levels(*parts[index], threads=spare)), longest_first, workers=threads)
        return [levels_CHW for _, levels_CHW in sorted(made, key=lambda pair: pair[0])]

    @property
    def level_values(self) -> Pixels:
        """What each of the 256 levels becomes in each channel (C, G), rounded in the order the reference rounds."""
        level = np.arange(256)
        values = (level * self.rescale_factor if self.do_rescale else level).astype(np.float32)
        if not self.do_normalize:
            return np.stack([values] * 3)
        mean_C1, std_C1 = (np.array(one, dtype=np.float32)[:, None] for one in (self.image_mean, self.image_std))
        return (values - mean_C1) / std_C1

    def pixels(self, images: Sequence[Image.Image]) -> list[Pixels]:
        """Every image's pixels as the model takes them, each in its own size: float32 (C, H, W); see `levels`."""
        values_CG = self.level_values
        return [_through(values_CG, levels_CHW) for levels_CHW in self.levels(images)]

    def preprocess(self, images: Any, *, return_tensors: str | None = None, **options: Any) -> BatchFeature:
        """The reference's image processor used alone: alpha on white, EXIF orientation ignored.

        Args:
            images: one image, a list of them, or a list per row; anything `open_image` takes.
            return_tensors: `"pt"`, `"np"` or None for numpy.
            options: settings for this call, such as `size` and `do_image_splitting`.

        Returns:
            `pixel_values` (B, N, C, H, W) float32 and, if `do_pad`, `pixel_attention_mask` (B, N, H, W) int64.

        Raises:
            ImageError: an image cannot be used.
            OptionError: as `with_options`.
        """
        rows = images if isinstance(images, list | tuple) else [images]
        if not any(isinstance(row, list | tuple) for row in rows):
            rows = [rows]
        worker = self.with_options(**options)
        return worker.batch([worker.pixels([open_image(image) for image in row]) for row in rows], return_tensors)

    __call__ = preprocess

    def batch(self, rows: Sequence[Sequence[Pixels]], return_tensors: str | None = None) -> BatchFeature:
        """Pads rows of pixels to one array; see `__call__` for what comes back. Empty without any image."""
        if not any(len(row) for row in rows):
            return BatchFeature()
        if not self.do_pad and len({image.shape for row in rows for image in row} | {len(row) for row in rows}) != 2:
            raise InputError("with do_pad = False all images must come out in one size and all rows with as many images")
        pixels_BNCHW, mask_BNHW = pad_images(rows)
        out = BatchFeature(pixel_values=pixels_BNCHW)
        if self.do_pad:
            out["pixel_attention_mask"] = mask_BNHW
        if return_tensors == "pt":
            import torch

            out.update({key: torch.from_numpy(value) for key, value in out.items()})
        elif return_tensors not in (None, "np"):
            raise OptionError(f"return_tensors = {return_tensors!r} is not one of 'pt', 'np', None")
        return out

    def _parts(self, image: Image.Image) -> list[tuple[Image.Image, Box]]:
        if not isinstance(image, Image.Image):
            raise ImageError(f"a Pillow image is due, not {type(image).__name__}; load_image() makes one")
        with named(image):
            if image.mode != "RGB" and not self.do_convert_rgb:
                raise ImageError(f"the image is of mode {image.mode} and do_convert_rgb is off; convert it to RGB")
            rgb = to_rgb(image, alpha="white")
            rgb.load()  # a file that is not decoded yet must not be by two threads
            return [(rgb, box) for box in sub_image_boxes(*rgb.size, do_image_splitting=self.do_image_splitting)]

    def _levels(self, image: Image.Image, box: Box, *, threads: int) -> NDArray[np.uint8]:
        if box != (0, 0, *image.size):
            image = image.crop(box)  # resize(box=...) would let pixels beyond the cut in
        size = resized_size(*image.size, self.size) if self.do_resize else image.size
        if size != image.size:
            image = resized(image, size, Image.Resampling(self.resample), threads=threads)
        levels_CP = np.empty((3, image.height * image.width), dtype=np.uint8)
        for levels_P, channel in zip(levels_CP, "RGB", strict=True):  # three times as fast as transposing (H, W, C)
            levels_P[:] = np.frombuffer(image.tobytes("raw", channel), dtype=np.uint8)
        return levels_CP.reshape(3, image.height, image.width)


def _three_numbers(value: Any) -> tuple[float, ...] | None:
    """One number per colour, or the same for all; None if it is neither."""
    listed = [value] * 3 if isinstance(value, int | float) else value
    if not isinstance(listed, Sequence) or len(listed) != 3:
        return None
    plainly = all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in map(plain, listed)
    )
    return tuple(float(one) for one in listed) if plainly else None


def _through(values_CG: Pixels, levels_CHW: NDArray[np.uint8]) -> Pixels:
    pixels_CHW = np.empty(levels_CHW.shape, dtype=np.float32)
    for values_G, levels_HW, out_HW in zip(values_CG, levels_CHW, pixels_CHW, strict=True):
        values_G.take(levels_HW, out=out_HW, mode="clip")  # nothing to clip, but "raise" copies once more
    return pixels_CHW


def pad_images(rows: Sequence[Sequence[Pixels]]) -> tuple[Pixels, NDArray[np.int64]]:
    """Rows of images, padded with zeros at the right and bottom and with empty images at the end.

    Args:
        rows: at least one image in all; rows may be empty.

    Returns:
        pixels (B, N, C, H, W) float32 and their mask (B, N, H, W) int64, 1 where a pixel is real.
    """
    shapes = [image.shape for row in rows for image in row]
    channels, height, width = shapes[0][0], max(s[1] for s in shapes), max(s[2] for s in shapes)
    shape_BN = (len(rows), max(len(row) for row in rows))
    pixels_BNCHW = np.zeros((*shape_BN, channels, height, width), dtype=np.float32)
    mask_BNHW = np.zeros((*shape_BN, height, width), dtype=np.int64)
    for b, row in enumerate(rows):
        for n, image in enumerate(row):
            _, h, w = image.shape
            pixels_BNCHW[b, n, :, :h, :w] = image
            mask_BNHW[b, n, :h, :w] = 1
    return pixels_BNCHW, mask_BNHW
