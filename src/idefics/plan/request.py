"""What a request will take, before anything is loaded: image tokens, prompt tokens, and memory per dtype.

Everything follows from a model's config, which a preset's name is enough for; nothing is downloaded or allocated. The
memory that a request needs at its peak is

    weights + KV cache + max(vision, prompt)

- *weights*: every parameter at the dtype's width (a tied head once).
- *KV cache*: 2 x layers x key-value heads x head size, for each of `batch x (prompt + new tokens)`; with cross-attention
  also 2 x gated blocks x latents x hidden size for each image.
- *vision* and *prompt*: the widest moments of the tower and of the decoder, as `model/peaks.py` has them; images go through
  the tower in groups of at most `VISION_BYTES`.

What the framework itself takes (a CUDA context is about 0.5 GiB, buffers of the CPU's matrix products some 70 MiB) is not
counted: images of 490, 686 and 980 pixels through the true widths in float32 raised a process's peak by 284, 484 and 901
MiB, where 212, 415 and 847 are planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from idefics.asking.question import turn
from idefics.config import Config
from idefics.config.keys import Keys
from idefics.config.presets import preset, preset_names
from idefics.config.whole_files import expanded
from idefics.errors import CheckpointNotFound, ConfigError, OptionError
from idefics.machine.dtypes import dtype_named
from idefics.processor.base import Images
from idefics.processor.families import load_processor, processor_class

__all__ = [
    "ASSUMED_TEXT_TOKENS", "PRECISIONS", "ImagePlan", "MemoryPlan", "Plan", "Precision", "Subject", "make_plan",
    "preset_named", "published_images", "subject",
]  # fmt: skip

ASSUMED_TEXT_TOKENS = 32
"""A short question and the chat template around it, where neither the text nor its length is known."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How numbers are kept.

    Attributes:
        name: shown to people.
        dtype: torch's name of what activations and the cache are in.
        bytes: of one activation, key or value.
        weight_bits: of one parameter. Quantised weights will differ from `bytes` here.
        dtypes: names that select it.
    """

    name: str
    dtype: str
    bytes: int
    weight_bits: int
    dtypes: tuple[str, ...]


PRECISIONS = (
    Precision(name="float32", dtype="float32", bytes=4, weight_bits=32, dtypes=("float32", "fp32")),
    Precision(
        name="bfloat16 / float16", dtype="bfloat16", bytes=2, weight_bits=16, dtypes=("bfloat16", "bf16", "float16", "fp16")
    ),
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is planned for.

    Attributes:
        name: as the user calls it.
        config: its sizes.
        images: how it sees them.
        folder: where its files are; None for a preset.
        unknown: keys of its files that ask for what nobody here knows, with their values.
    """

    name: str
    config: Config
    images: Images
    folder: Path | None
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def text_tokens(self, text: str, *, images: int) -> int | None:
        """Tokens of a question after images, chat template included, those of the images not; None for a preset."""
        if self.folder is None:
            return None
        processor = load_processor(self.folder, keys=Keys(allow_unknown=True))
        chat = processor.chat_template is not None
        prompt = processor.chat_prompt([turn("user", text, images)]) if chat else processor.image_token * images + text
        ids = processor.tokenizer.encode(processor.expand(prompt))
        return sum(i not in (processor.image_token_id, processor.fake_image_token_id) for i in ids)


@dataclass(frozen=True, kw_only=True)
class ImagePlan:
    """One image.

    Attributes:
        width: as given, in pixels.
        height: as given.
        seen: (width, height) of every sub-image as the model sees it.
        patch_counts: of each.
        tokens: positions that its latents fill.
    """

    width: int
    height: int
    seen: tuple[tuple[int, int], ...]
    patch_counts: tuple[int, ...]
    tokens: int

    @property
    def patches(self) -> int:
        """Of all sub-images."""
        return sum(self.patch_counts)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes at one precision; see the head of this file for what is counted.

    `image_cache` is the part of `kv_cache` that gated blocks keep of images.
    """

    precision: Precision
    weights: int
    kv_cache: int
    image_cache: int
    vision: int
    prompt: int

    @property
    def total(self) -> int:
        """At the peak: the images are done when the prompt is run."""
        return self.weights + self.kv_cache + max(self.vision, self.prompt)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a batch of equal requests takes.

    Attributes:
        images: of one request.
        parameters: of each part of the model.
        image_tokens: positions that latents fill, in one request.
        framed_tokens: those and the fake tokens around them; neighbouring images share one.
        text_tokens: the rest of the prompt.
        new_tokens: of the answer.
        batch: requests at once.
        positions: that the model has.
        memory: at each precision.
    """

    images: tuple[ImagePlan, ...]
    parameters: Mapping[str, int]
    image_tokens: int
    framed_tokens: int
    text_tokens: int
    new_tokens: int
    batch: int
    positions: int
    memory: tuple[MemoryPlan, ...]

    @property
    def prompt_tokens(self) -> int:
        """Of one request."""
        return self.framed_tokens + self.text_tokens

    @property
    def fits_positions(self) -> bool:
        """Whether prompt and answer fit the positions that the model has."""
        return self.prompt_tokens + self.new_tokens <= self.positions


def subject(model: str | Path) -> Subject:
    """What a name stands for, without any network: a local folder, the embedded model, a preset, or a Hub id of either kind.

    A Hub id that names a preset is that preset; another must be in the Hub's cache.

    Raises:
        CheckpointNotFound: none of these.
        ConfigError: a folder's config cannot be honoured.
    """
    folder = expanded(model)
    if folder.is_dir():
        return _checkpoint(str(model), folder)
    from idefics.assets import EMBEDDED, EMBEDDED_NAME
    from idefics.weights.files import resolve

    config = preset_named(str(model))
    if config is not None and not (model == EMBEDDED_NAME and EMBEDDED.is_dir()):
        return Subject(name=str(model), config=config, images=published_images(config), folder=None)
    try:
        return _checkpoint(str(model), resolve(model, offline=True))
    except CheckpointNotFound as error:
        raise CheckpointNotFound(
            f"{model} is no preset ({', '.join(preset_names())}), no folder and not in the Hub's cache; "
            "give one of these, or download it first (`idefics download`)"
        ) from error


def preset_named(model: str) -> Config | None:
    """The preset that a name or a Hub id stands for; None if there is none, or if it is written as a path.

    >>> preset_named("./runs/idefics2-8b") is None
    True
    """
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model:
        return None
    try:
        return preset(model)
    except ConfigError:
        return None


def published_images(config: Config) -> Images:
    """How models of this size see images, by the settings that they are published with."""
    return processor_class(config.model_type).images_for(config)


def _checkpoint(name: str, folder: Path) -> Subject:
    from idefics.weights.load import load_config

    keys = Keys(allow_unknown=True)  # to plan for it is not to use it; the command warns
    config, images = load_config(folder, allow_unknown=True), load_processor(folder, keys=keys).image_processor
    return Subject(name=name, config=config, images=images, folder=folder, unknown={**config.unknown, **keys.passed})


def make_plan(
    config: Config,
    images: Sequence[tuple[int, int]] = (),
    *,
    seen_by: Images | None = None,
    split: bool | None = None,
    max_image_size: int | None = None,
    image_size: int | None = None,
    text_tokens: int = ASSUMED_TEXT_TOKENS,
    new_tokens: int = 512,
    batch: int = 1,
    precisions: Sequence[Precision] = PRECISIONS,
) -> Plan:
    """Plans a batch of equal requests.

    Args:
        config: of the model.
        images: (width, height) of each image of one request.
        seen_by: how images are seen; None takes `published_images(config)`.
        split: instead of how `seen_by` does it.
        max_image_size: longest edge in pixels, likewise.
        image_size: side of the squares of the first generation, likewise.
        text_tokens: of the question and the chat template around it.
        new_tokens: of the answer.
        batch: requests at once.
        precisions: to compare.

    Raises:
        OptionError: a number is out of range.
        ImageError: an image is too small to be split.

    >>> from idefics.config.presets import preset
    >>> plan = make_plan(preset("idefics2-8b"), [(1920, 1080)] * 2, split=True)
    >>> plan.image_tokens, plan.framed_tokens
    (640, 651)
    """
    for name, value, least in (("text_tokens", text_tokens, 0), ("new_tokens", new_tokens, 0), ("batch", batch, 1)):
        if value < least:
            raise OptionError(f"{name} must be at least {least}, not {value}")
    for width, height in images:
        if width < 1 or height < 1:
            raise OptionError(f"an image of {width}x{height} pixels has no pixels")
    eyes = (seen_by or published_images(config)).adjusted(max_image_size=max_image_size, split=split)
    if image_size is not None:
        eyes = eyes.sized(image_size)
    each = processor_class(config.model_type).tokens_of(config)
    planned = tuple(_image(config, eyes, width, height, each=each) for width, height in images)
    # Every sub-image stands between fake tokens, and neighbours share one.
    framed = sum(image.tokens + len(image.seen) for image in planned) + (1 if planned else 0)
    plan = Plan(
        images=planned,
        parameters=_parameters(config),
        image_tokens=sum(image.tokens for image in planned),
        framed_tokens=framed,
        text_tokens=text_tokens,
        new_tokens=new_tokens,
        batch=batch,
        positions=config.text_config.max_position_embeddings,
        memory=(),
    )
    return replace(plan, memory=tuple(_memory(config, plan, precision) for precision in precisions))


def _image(config: Config, eyes: Images, width: int, height: int, *, each: int) -> ImagePlan:
    patch = config.vision_config.patch_size
    seen = eyes.processed_sizes(width, height)
    return ImagePlan(
        width=width,
        height=height,
        seen=tuple(seen),
        patch_counts=tuple((w // patch) * (h // patch) for w, h in seen),
        tokens=each * len(seen),
    )


@cache  # a server plans at every key that is pressed
def _parameters(config: Config) -> Mapping[str, int]:
    from idefics.weights.footprint import parameter_counts

    return MappingProxyType(parameter_counts(config))


def _memory(config: Config, plan: Plan, precision: Precision) -> MemoryPlan:
    from idefics.model.peaks import VISION_BYTES, encoding_bytes, prompt_bytes
    from idefics.weights.footprint import kv_bytes_per_token

    every = [encoding_bytes(config, count, width=precision.bytes) for image in plan.images for count in image.patch_counts]
    tokens = plan.batch * (plan.prompt_tokens + plan.new_tokens)
    image_cache = plan.batch * len(every) * config.values_per_image * precision.bytes
    return MemoryPlan(
        precision=precision,
        weights=sum(plan.parameters.values()) * precision.weight_bits // 8,
        kv_cache=tokens * kv_bytes_per_token(config, dtype_named(precision.dtype)) + image_cache,
        image_cache=image_cache,
        # Groups are filled up to the limit; a larger image goes alone.
        vision=min(plan.batch * sum(every), max(VISION_BYTES, *every)) if every else 0,
        prompt=plan.batch * plan.prompt_tokens * prompt_bytes(config, width=precision.bytes),
    )
