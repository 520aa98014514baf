"""How much an engine takes on at once, and how large a cache the machine can hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from idefics.config import Config
from idefics.errors import InputError, OptionError, OutOfMemory
from idefics.machine.byte_sizes import readable_bytes
from idefics.machine.memory import free_bytes
from idefics.model.base import VisionLanguageModel
from idefics.model.peaks import VISION_BYTES, encoded_bytes, encoding_bytes, prompt_bytes

__all__ = ["Limits", "Reserve", "cache_blocks", "cache_room", "check_room", "reserve", "token_bytes"]

SHARE = {"cpu": 0.5, "cuda": 0.85}
"""Of what is free, what the cache may take at most; the rest is for prompts that have caches of their own (beams, scores) and,
on the CPU, for activations and other programs."""

LEAST_SHARE = 1 / 8
"""Of a GPU's free memory, what the cache gets where the reserve would leave it less: short requests may yet fit."""

LOGIT_COPIES = 8
"""Of a pass's logits, in float32: the model's own, what filters and draws make of them, and the order they are sorted in."""

MARGIN = 2**29
"""Beside a twentieth of what is free: recordings of steps, workspaces of libraries, and gaps between tensors."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an engine may take on.

    Attributes:
        rows: answers computed together at most.
        tokens: computed in one pass at most; long prompts are read in pieces of it, so that others' answers go on.
        block: tokens of a block of the cache.
        cache_bytes: for keys and values; None takes, when the first request comes, what is free on a GPU but for what
            computing needs (`reserve`), at most 85 % of it, and half of what is free on a CPU.
        image_bytes: for encoded images that may be asked about again.
        graphs: whether steps of one token per answer have static shapes (`engine/graphs.py`); None: on CUDA. Elsewhere it
            only serves to test them.
    """

    rows: int = 64
    tokens: int = 2048
    block: int = 16
    cache_bytes: int | None = None
    image_bytes: int = 2**29
    graphs: bool | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "tokens", "block"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.cache_bytes is not None and self.cache_bytes < 1:
            raise OptionError(f"cache_bytes = {self.cache_bytes} keeps no keys and values; leave it out to take what is free")
        if self.image_bytes < 0:
            raise OptionError(f"image_bytes = {self.image_bytes} must not be negative")
        if self.tokens < self.rows:
            raise OptionError(f"tokens = {self.tokens} is below rows = {self.rows}: every answer needs one per pass")


def token_bytes(model: VisionLanguageModel) -> dict[torch.device, int]:
    """Bytes that one token's keys and values take on each device."""
    text, width = model.config.text_config, model.dtype.itemsize
    taken: dict[torch.device, int] = {}
    for device in model.layer_devices:
        taken[device] = taken.get(device, 0) + 2 * model.key_value_heads * text.head_dim * width
    return taken


@dataclass(frozen=True, kw_only=True)
class Reserve:
    """Bytes of a GPU that the cache leaves to everything else.

    Attributes:
        vision: while images are encoded (`model/peaks.py`).
        tokens: while a pass of `Limits.tokens` goes through the decoder after a past as long as can be, whose keys and values
            are gathered, and repeated where query heads share them.
        logits: of all rows.
        images: encoded ones that are kept, and those that all rows look at, side by side.
        margin: for what is not reckoned.
    """

    vision: int
    tokens: int
    logits: int
    images: int
    margin: int

    @property
    def total(self) -> int:
        """In all; a pass begins when its images are encoded."""
        return max(self.vision, self.tokens + self.logits) + self.images + self.margin


def reserve(config: Config, limits: Limits, *, free: int, width: int) -> Reserve:
    """What the cache leaves to everything else. Guesses make more logits than one per answer: those the margin has room for.

    Args:
        config: of the model, all of which is taken to be on the device.
        limits: what the engine takes on.
        free: bytes of the device, weights loaded.
        width: bytes of one activation.
    """
    text, vision = config.text_config, config.vision_config
    key_heads, heads = text.num_key_value_heads, text.num_attention_heads
    past = min(text.max_position_embeddings, free // (2 * text.num_hidden_layers * key_heads * text.head_dim * width))
    gathered = 2 * past * text.head_dim * (key_heads + (heads if heads > key_heads else 0)) * width
    mask = limits.tokens * past * (1 + width)
    looked_at = limits.rows * encoded_bytes(config, width=width)
    return Reserve(
        vision=max(VISION_BYTES, encoding_bytes(config, vision.patches_per_side**2, width=width)),
        tokens=limits.tokens * prompt_bytes(config, width=width) + gathered + mask,
        logits=LOGIT_COPIES * limits.rows * text.vocab_size * 4,
        images=max(limits.image_bytes, looked_at) + looked_at,
        margin=MARGIN + free // 20,
    )


def cache_room(config: Config, limits: Limits, *, device: torch.device, free: int, width: int) -> int:
    """Bytes for keys and values where nobody says how many.

    Args:
        config: of the model.
        limits: what the engine takes on.
        device: where; only on CUDA is anything reserved.
        free: bytes of it, weights loaded.
        width: bytes of one activation.
    """
    most = int(free * SHARE.get(device.type, 0.5))
    if device.type != "cuda":
        return most
    return min(most, max(free - reserve(config, limits, free=free, width=width).total, int(free * LEAST_SHARE)))


def cache_blocks(model: VisionLanguageModel, limits: Limits) -> int:
    """Blocks that fit, and never more than all rows at the model's full length need.

    Raises:
        OptionError: `cache_bytes` does not hold one block.
        OutOfMemory: nobody said how large the cache may be, and what is free does not hold one.
    """
    most = limits.rows * -(-model.config.text_config.max_position_embeddings // limits.block)
    for device, each in token_bytes(model).items():
        room, free = limits.cache_bytes, None
        if room is None:
            free = free_bytes(device)
            if free is not None:
                room = cache_room(model.config, limits, device=device, free=free, width=model.dtype.itemsize)
        if room is not None:
            most = min(most, room // (each * limits.block))
        if most < 1:
            told = (
                f"{readable_bytes(room or 0)} for keys and values on {device} do not hold one block of {limits.block} tokens "
                f"({readable_bytes(each * limits.block)})"
            )
            if free is None:
                raise OptionError(f"{told}; raise cache_bytes")
            raise OutOfMemory(
                f"{readable_bytes(free)} are free beside the weights: {told}; free memory, use a smaller dtype or more devices"
            )
    return most


def check_room(model: VisionLanguageModel, *, prompt: int, new: int, held: int | None = None) -> None:
    """Refuses what can never fit.

    Args:
        model: whose positions bound prompt and answer together.
        prompt: tokens, images included.
        new: tokens that may come after it.
        held: tokens that the cache holds in all; None where it is made to measure.

    Raises:
        InputError: prompt and answer do not fit; with the numbers.
    """
    positions = model.config.text_config.max_position_embeddings
    if prompt >= positions:
        raise InputError(
            f"a prompt of {prompt} tokens (images included) does not fit the model's {positions} positions; "
            "shorten it, use fewer images or turn splitting off"
        )
    if prompt + new > positions:
        raise InputError(
            f"a prompt of {prompt} tokens (images included) and {new} new ones exceed the model's {positions} "
            f"positions; ask for at most {positions - prompt} new tokens"
        )
    if held is not None and prompt + new > held:
        remedy = f"ask for at most {held - prompt} new tokens" if prompt < held else "shorten it, or give the cache more memory"
        raise InputError(
            f"a prompt of {prompt} tokens (images included) and {new} new ones exceed the cache of {held} tokens; {remedy}"
        )
