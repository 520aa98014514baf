"""Where each part of a model goes: one device, or a map from the front of a parameter's name to a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch

from idefics.errors import OptionError

__all__ = ["Device", "DeviceMap", "Placement"]

Device: TypeAlias = str | torch.device
DeviceMap: TypeAlias = Mapping[str, Device]


class Placement:
    """Answers where a name goes; in a map, the longest prefix that ends at a dot decides, `""` covers the rest.

    Args:
        device: one device, or a map such as `{"vision_model": "cuda:0", "text_model.layers.0": "cuda:1", "": "cpu"}`.

    Raises:
        OptionError: a device is unknown to torch, or not available on this machine.

    >>> placement = Placement({"text_model": "meta", "": "cpu"})
    >>> placement.of("text_model.norm.weight"), placement.of("lm_head.weight")
    (device(type='meta'), device(type='cpu'))
    """

    def __init__(self, device: Device | DeviceMap) -> None:
        whole = device if isinstance(device, Mapping) else {"": device}
        self._devices = {prefix: _available(place) for prefix, place in whole.items()}

    def of(self, name: str) -> torch.device:
        """Where a parameter or module goes.

        Raises:
            OptionError: the map does not say.
        """
        prefix = name
        while prefix not in self._devices:
            if not prefix:
                raise OptionError(f'the device map does not say where {name} goes; add an entry for it, or "" for all the rest')
            prefix = prefix.rpartition(".")[0]
        return self._devices[prefix]

    def check(self, names: Iterable[str]) -> None:
        """Refuses a map that misses a name, or that holds a prefix of none of them (a typing error).

        Raises:
            OptionError: either.
        """
        known = {""}
        for name in names:
            self.of(name)
            while name:
                known.add(name)
                name = name.rpartition(".")[0]
        unknown = sorted(set(self._devices) - known)
        if unknown:
            raise OptionError(f"the device map names parts that the model does not have: {', '.join(unknown)}")


def _available(device: Device) -> torch.device:
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"device {device!r} is none that torch knows: {_first_line(error)}") from None
    try:
        return torch.empty(0, device=place).device  # which has an index where `place` may have none
    except torch.OutOfMemoryError:
        return place
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"device {str(device)!r} cannot be used on this machine: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
