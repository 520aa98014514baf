"""Loads a checkpoint onto one device or several: the plan, the weights straight to their places, the hooks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from idefics.errors import OptionError
from idefics.machine.progress import Progress
from idefics.model.base import VisionLanguageModel
from idefics.model.layers.attention import Backend
from idefics.parallel.device_map import plan_devices, spread, usable
from idefics.parallel.launch import init
from idefics.weights.families import build_on_meta, family_of
from idefics.weights.filling import stored_dtype
from idefics.weights.load import load_config, load_model, unasked_dtype
from idefics.weights.placement import Device
from idefics.weights.shards import Shards

__all__ = ["load_placed", "load_tensor_parallel"]


def load_placed(
    folder: Path,
    *,
    dtype: torch.dtype | None,
    device: Device | None,
    device_map: str | Mapping[str, Any] | None,
    backend: Backend,
    progress: Progress | None,
    tensor_parallel: int | None = None,
    allow_unknown: bool = False,
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
        tensor_parallel: processes, started by `torchrun`, over which every layer is divided; `device` is a kind then.
        allow_unknown: let keys of `config.json` pass that ask for something nobody here knows.

    Raises:
        OptionError: `device` and `device_map` are both given, a map does not fit the model, or the model or the processes
            do not fit `tensor_parallel`.
        OutOfMemory: the devices are too small.
    """
    # One process is no division, unless torchrun started more, which is a contradiction to be told.
    if tensor_parallel is not None and (tensor_parallel, os.environ.get("WORLD_SIZE", "1")) != (1, "1"):
        if device_map is not None:
            raise OptionError(
                f"device_map={device_map} puts layers one after the other and tensor_parallel={tensor_parallel} divides each; "
                "give one"
            )
        return load_tensor_parallel(
            folder,
            tensor_parallel,
            dtype=dtype,
            device=device,
            backend=backend,
            progress=progress,
            allow_unknown=allow_unknown,
        )
    if device is not None and device_map is not None:
        raise OptionError(f"device={device} and device_map={device_map} contradict each other; give one")
    if isinstance(device_map, str) and device_map != "auto":
        device, device_map = device_map, None
    if device_map == "auto":
        count = torch.cuda.device_count()
        free = [torch.cuda.mem_get_info(index)[0] for index in range(count)]
        devices: list[tuple[Device, int]] = [(f"cuda:{i}", usable(each, devices=count)) for i, each in enumerate(free)]
        if len(devices) <= 1:
            device, device_map = "cuda" if devices else "cpu", None
        else:
            config = load_config(folder, allow_unknown=allow_unknown)
            planned = dtype if dtype is not None else unasked_dtype(config, stored_dtype(Shards(folder).entries.values()))
            device_map = plan_devices(config, devices, dtype=planned)
    if device_map is None:
        where = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
        return load_model(folder, dtype=dtype, device=where, backend=backend, progress=progress, allow_unknown=allow_unknown)
    assert not isinstance(device_map, str)
    ours = _our_names(folder, device_map, allow_unknown=allow_unknown)
    model = load_model(folder, dtype=dtype, device=ours, backend=backend, progress=progress, allow_unknown=allow_unknown)
    spread(model, ours)
    return model


def load_tensor_parallel(
    folder: Path,
    n: int,
    *,
    dtype: torch.dtype | None = None,
    device: Device | None = None,
    backend: Backend = "auto",
    progress: Progress | None = None,
    allow_unknown: bool = False,
) -> VisionLanguageModel:
    """Loads this process's part of a model that `n` processes compute together (see `parallel/tensor_parallel.py`).

    Of each mapped tensor only the rows or columns that stay here are read and copied. All processes must then make the
    same calls with the same inputs.

    Args:
        folder: the checkpoint.
        n: processes, started by `torchrun`.
        dtype: of the weights; None takes the stored one.
        device: `"cpu"` or `"cuda"`; None takes GPUs if there are any.
        backend: attention implementation.
        progress: told (bytes gone through, bytes in all).
        allow_unknown: as in `load_placed`.

    Raises:
        OptionError: this is not one of `n` processes, or the model's heads cannot be dealt out to so many.
    """
    mesh = init(n, device=device)
    # Not at the top: DTensor takes as long to import as half of torch, and only divided models need it.
    from idefics.parallel.tensor_parallel import Shares

    own = torch.device("cpu") if mesh.device_type == "cpu" else torch.device("cuda", torch.cuda.current_device())
    return load_model(
        folder, dtype=dtype, device=own, backend=backend, progress=progress, division=Shares(mesh), allow_unknown=allow_unknown
    )


def _our_names(folder: Path, device_map: Mapping[str, Any], *, allow_unknown: bool) -> dict[str, Any]:
    """A map in our prefixes. The published names put `model.` before some parts: `"model"` stands for all of those.

    Raises:
        OptionError: a part is named twice, as published and as ours, with different places.
    """
    ours: dict[str, Any] = {}
    if "model" in device_map:
        config = load_config(folder, allow_unknown=allow_unknown)
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
