"""Loads a checkpoint onto one device or several: the plan, the weights straight to their places, the hooks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from idefics.errors import OptionError
from idefics.model.layers.attention import Backend
from idefics.parallel.device_map import plan_devices, spread
from idefics.weights.families import Model
from idefics.weights.load import Progress, load_config, load_model
from idefics.weights.placement import Device

__all__ = ["load_placed"]


def load_placed(
    folder: Path,
    *,
    dtype: torch.dtype | None,
    device: Device | None,
    device_map: str | Mapping[str, Any] | None,
    backend: Backend,
    progress: Progress | None,
) -> Model:
    """Loads a model where it shall run.

    Args:
        folder: the checkpoint.
        dtype: of the weights; None keeps the stored one.
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
        devices: list[tuple[Device, int]] = [(f"cuda:{i}", torch.cuda.mem_get_info(i)[0]) for i in range(count)]
        if len(devices) <= 1:
            device, device_map = "cuda" if devices else "cpu", None
        else:
            config = load_config(folder)
            device_map = plan_devices(config, devices, dtype=dtype or getattr(torch, config.dtype))
    if device_map is None:
        where = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
        return load_model(folder, dtype=dtype, device=where, backend=backend, progress=progress)
    assert not isinstance(device_map, str)
    ours = {name.removeprefix("model."): place for name, place in device_map.items()}
    model = load_model(folder, dtype=dtype, device=ours, backend=backend, progress=progress)
    spread(model, ours)
    return model
