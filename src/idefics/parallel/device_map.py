"""Layers on several devices, one after the other: who goes where, and moving the hidden states between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from idefics.config import Config
from idefics.errors import OptionError, OutOfMemory
from idefics.machine.byte_sizes import readable_bytes
from idefics.machine.dtypes import dtype_name
from idefics.model.base import VisionLanguageModel
from idefics.model.decoder import Angles, Decoder
from idefics.model.gated_cross_attention import Routes, View
from idefics.weights.families import build_on_meta
from idefics.weights.footprint import tensor_bytes
from idefics.weights.placement import Device, DeviceMap, Placement

__all__ = ["plan_devices", "spread", "unit_bytes", "usable"]


def usable(free: int, *, devices: int) -> int:
    """Bytes of a device's free memory that weights may take where a map is made by itself.

    Of several devices a tenth stays free for the cache and activations; the plan fills all alike, so most have more. One
    device takes all there is or cannot hold the model.

    >>> usable(100, devices=4), usable(100, devices=1)
    (90, 100)
    """
    return free * 9 // 10 if devices > 1 else free


def plan_devices(
    config_or_model: Config | VisionLanguageModel, devices: Sequence[tuple[Device, int]], *, dtype: torch.dtype
) -> dict[str, torch.device]:
    """Cuts a model into consecutive pieces, one per device, so that the fullest device is as little full as can be.

    The order is that of the computation: vision tower, connector, embedding, decoder layers, norm, head. A tied head goes
    where the embedding is.

    Args:
        config_or_model: what to place; of a model only the shapes are looked at.
        devices: with the bytes that weights may take on each. Leave room for the cache (`kv_bytes_per_token`) and
            for activations.
        dtype: that the weights will be in.

    Returns:
        A device map for `load_model(device=...)` and `spread`.

    Raises:
        OutOfMemory: it does not fit; with all the numbers.

    >>> from idefics.config.presets import preset
    >>> gpus = [("cuda:0", 9 * 2**30), ("cuda:1", 9 * 2**30)]
    >>> plan = plan_devices(preset("idefics2-8b"), gpus, dtype=torch.bfloat16)
    >>> plan["vision_model"], plan["text_model.layers.31"]
    (device(type='cuda', index=0), device(type='cuda', index=1))
    """
    if not devices:
        raise OptionError("no devices were given to put the model on")
    model = config_or_model if isinstance(config_or_model, nn.Module) else build_on_meta(config_or_model)
    sizes = unit_bytes(model, dtype)
    places = [torch.device(device) for device, _ in devices]
    room = [max(0, free) for _, free in devices]
    if _cut(list(sizes.values()), room) is None:
        offered = ", ".join(f"{place} {readable_bytes(free)}" for place, free in zip(places, room, strict=True))
        largest = max(sizes, key=lambda unit: sizes[unit])
        raise OutOfMemory(
            f"the weights need {readable_bytes(sum(sizes.values()))} as {dtype_name(dtype)} "
            f"(the largest piece, {largest}, {readable_bytes(sizes[largest])}) and do not fit in what is free: {offered}; "
            "use a 16-bit dtype, more devices, or leave less room for other things"
        )
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if _cut(list(sizes.values()), [int(free * middle) for free in room]) is None:
            low = middle
        else:
            high = middle
    # At high == 1.0 the limits are the exact ones that were found to suffice.
    cut = _cut(list(sizes.values()), [int(free * high) for free in room])
    assert cut is not None
    plan = {unit: places[index] for unit, index in zip(sizes, cut, strict=True)}
    for unit, source in _ties(model).items():
        plan[unit] = plan[source]
    return plan


def spread(model: VisionLanguageModel, device_map: DeviceMap) -> list[RemovableHandle]:
    """Makes a model whose parts lie on several devices run: each part first moves what it is given to its own device.

    Inputs may be on any device; hidden states come out on the device of the last norm, logits on the head's.

    Args:
        model: loaded with the same map. Weights are not moved here.
        device_map: prefixes of our module names to devices (see `Placement`).

    Returns:
        Handles whose `remove()` undoes it.

    Raises:
        OptionError: the map does not fit the model, or cuts through one of the units that `plan_devices` places.
    """
    placement = Placement(device_map)
    placement.check(name for name, _ in model.named_parameters(remove_duplicate=False))
    units = dict(_units(model))
    handles = []
    mover = _Mover()
    for unit, module in units.items():
        places = {placement.of(f"{unit}.{name}") for name, _ in module.named_parameters()}
        if len(places) > 1:
            found = ", ".join(sorted(map(str, places)))
            raise OptionError(f"the device map cuts through {unit}, which must be on one device, not on {found}")
    ties = _ties(model)
    for unit, module in units.items():
        # The parameter of a tied head is the embedding's, wherever the map would have the head.
        handles.append(mover.before(module, placement.of(ties.get(unit, unit))))
    embedding = next(unit for unit, module in units.items() if isinstance(module, nn.Embedding))
    # Ids, positions and latents meet before the first layer runs, so they must meet on one device.
    handles.append(mover.before(model, placement.of(embedding)))
    return handles


def _units(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What is placed as a whole, in the order of the computation: every part, and a decoder's own parts and layers."""
    for name, part in model.named_children():
        if not isinstance(part, Decoder):
            yield name, part
            continue
        yield from ((f"{name}.{unit}", module) for unit, module in part.in_order())


def unit_bytes(config_or_model: Config | VisionLanguageModel, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of everything that is placed as a whole, in the order of the computation; a tied head takes none.

    Args:
        config_or_model: of a model only shapes and dtypes are looked at.
        dtype: that parameters will be in.
    """
    model = config_or_model if isinstance(config_or_model, nn.Module) else build_on_meta(config_or_model)
    counted: set[int] = set()
    sizes = {}
    for unit, module in _units(model):
        held = [*module.parameters(), *module.buffers()]
        own = {id(tensor): tensor_bytes(tensor, dtype) for tensor in held if id(tensor) not in counted}
        counted |= own.keys()
        sizes[unit] = sum(own.values())
    return sizes


def _ties(model: nn.Module) -> dict[str, str]:
    """Units whose parameters all belong to an earlier unit."""
    first: dict[int, str] = {}
    ties = {}
    for unit, module in _units(model):
        owners = {first.setdefault(id(parameter), unit) for parameter in module.parameters()}
        if owners and unit not in owners:
            ties[unit] = owners.pop()
    return ties


def _cut(sizes: Sequence[int], room: Sequence[int]) -> list[int] | None:
    """Consecutive pieces within these limits, filled from the front: the index of each piece's device, None if impossible."""
    cut, device, used = [], 0, 0
    for size in sizes:
        while used + size > room[device]:
            device, used = device + 1, 0
            if device == len(room):
                return None
        used += size
        cut.append(device)
    return cut


Shared = Angles | Routes | View
"""What a pass shares between its layers."""


class _Mover:
    """Forward pre-hooks that move arguments; what a pass shares is copied once per device, not once per layer."""

    def __init__(self) -> None:
        self._copies: WeakKeyDictionary[Shared, dict[torch.device, Shared]] = WeakKeyDictionary()

    def before(self, module: nn.Module, device: torch.device) -> RemovableHandle:
        """Moves every argument of `module` to `device` from now on."""

        def move(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return tuple(self._moved(a, device) for a in args), {name: self._moved(a, device) for name, a in kwargs.items()}

        return module.register_forward_pre_hook(move, with_kwargs=True)

    def _moved(self, argument: Any, device: torch.device) -> Any:
        if isinstance(argument, Tensor):
            return argument.to(device)
        if not isinstance(argument, Shared):
            return argument
        # Weakly: once the pass is over, they are not kept alive here.
        copies = self._copies.setdefault(argument, {})
        if device not in copies:
            values = {field.name: getattr(argument, field.name) for field in fields(argument)}
            copies[device] = replace(argument, **{name: self._moved(value, device) for name, value in values.items()})
        return copies[device]
