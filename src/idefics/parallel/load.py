"""Loads a checkpoint onto one device or several: the plan, the weights straight to their places, the hooks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from idefics.errors import OptionError
from idefics.model.base import VisionLanguageModel
from idefics.model.layers.attention import Backend
from idefics.parallel.device_map import plan_devices, spread
from idefics.weights.families import build_on_meta, family_of
from idefics.weights.load import Progress, load_config, load_model, stored_dtype
from idefics.weights.placement import Device
from idefics.weights.shards import Shards

__all__ = ["load_placed"]


def load_placed(
    folder: Path,
    *,
    dtype: torch.dtype | None,
    device: Device | None,
    device_map: str | Mapping[str, Any] | None,
    backend: Backend,
    progress: Progress | None,
) -> VisionLanguageModel:
    """Loads a model where it shall run.

    Args:
        folder: the checkpoint.
        dtype: of the weights; None takes the stored one.
        device: one device for everything; None takes the first GPU if there is one.
        device_map: `"auto"` plans over all GPUs (or takes the CPU where there is none); another name is a device for
            everything; a mapping says where each part goes, by our parameter prefixes or the published ones.
        backend: attention implementation.
        progress: told (bytes read, bytes in all).

    Raises:
        OptionError: `device` and `device_map` are both given, or a map does not fit the model.
        OutOfMemory: the devices are too small.
    """
    if device is not None and device_map is not None:
        raise OptionError(f"device={device} and device_map={device_map} contradict each other; give one")
    if isinstance(device_map, str) and device_map != "auto":
        device, device_map = device_map, None
    if device_map == "auto":
        count = torch.cuda.device_count()
        # A tenth stays free for the cache and activations; the plan fills all devices alike, so most have more.
        devices: list[tuple[Device, int]] = [(f"cuda:{i}", torch.cuda.mem_get_info(i)[0] * 9 // 10) for i in range(count)]
        if len(devices) <= 1:
            device, device_map = "cuda" if devices else "cpu", None
        else:
            config = load_config(folder)
            device_map = plan_devices(config, devices, dtype=dtype or stored_dtype(Shards(folder).entries.values()))
    if device_map is None:
        where = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
        return load_model(folder, dtype=dtype, device=where, backend=backend, progress=progress)
    assert not isinstance(device_map, str)
    ours = _our_names(folder, device_map)
    model = load_model(folder, dtype=dtype, device=ours, backend=backend, progress=progress)
    spread(model, ours)
    return model


def _our_names(folder: Path, device_map: Mapping[str, Any]) -> dict[str, Any]:
    """A map in our prefixes. The published names put `model.` before some parts: `"model"` stands for all of those.

    Raises:
        OptionError: a part is named twice, as published and as ours, with different places.
    """
    ours: dict[str, Any] = {}
    if "model" in device_map:
        config = load_config(folder)
        published = family_of(config).table.published
        names = [name for name, _ in build_on_meta(config).named_parameters()]
        ours = {name.partition(".")[0]: device_map["model"] for name in names if published(name).startswith("model.")}
    named: dict[str, Any] = {}
    for name, place in device_map.items():
        part = name.removeprefix("model.")
        if named.setdefault(part, place) != place:
            raise OptionError(
                f"the device map puts {part} on {named[part]} and on {place}; name it once, with model. or without"
            )
    return ours | {name: place for name, place in named.items() if name != "model"}
