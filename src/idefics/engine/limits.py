"""How much an engine takes on at once, and how large a cache the machine can hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from idefics.errors import InputError, OptionError
from idefics.model.base import VisionLanguageModel
from idefics.parallel.device_map import held_heads, layer_devices
from idefics.weights.byte_sizes import readable_bytes
from idefics.weights.memory import free_bytes

__all__ = ["Limits", "cache_blocks", "check_room", "token_bytes"]

SHARE = {"cpu": 0.5, "cuda": 0.85}
"""Of what is free, the part that the cache may take; the rest is for activations and, on the CPU, for other programs."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an engine may take on.

    Attributes:
        rows: answers computed together at most.
        tokens: computed in one pass at most; long prompts are read in pieces of it, so that others' answers go on.
        block: tokens of a block of the cache.
        cache_bytes: for keys and values; None takes a share of what is free when the first request comes.
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
        if self.tokens < self.rows:
            raise OptionError(f"tokens = {self.tokens} is below rows = {self.rows}: every answer needs one per pass")


def token_bytes(model: VisionLanguageModel) -> dict[torch.device, int]:
    """Bytes that one token's keys and values take on each device."""
    text, width = model.config.text_config, model.dtype.itemsize
    taken: dict[torch.device, int] = {}
    for device in layer_devices(model):
        taken[device] = taken.get(device, 0) + 2 * held_heads(model) * text.head_dim * width
    return taken


def cache_blocks(model: VisionLanguageModel, limits: Limits) -> int:
    """Blocks that fit, and never more than all rows at the model's full length need.

    Raises:
        OptionError: not even one block fits.
    """
    most = limits.rows * -(-model.config.text_config.max_position_embeddings // limits.block)
    for device, each in token_bytes(model).items():
        room = limits.cache_bytes
        if room is None:
            free = free_bytes(device)
            room = None if free is None else int(free * SHARE.get(device.type, 0.5))
        if room is not None:
            most = min(most, room // (each * limits.block))
        if most < 1:
            raise OptionError(
                f"{readable_bytes(room or 0)} for keys and values on {device} do not hold one block of {limits.block} tokens "
                f"({readable_bytes(each * limits.block)}); free memory, use a smaller dtype or raise cache_bytes"
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
