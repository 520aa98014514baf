"""The arguments that every `from_pretrained` shares, and the folder they lead to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from idefics.errors import OptionError
from idefics.weights.files import resolve

__all__ = ["byte_size", "folder_of", "one_of", "refuse"]

_HUB = ("revision", "cache_dir", "token", "use_auth_token", "local_files_only")
# Accepted because scripts pass them, and true of this package at the value given here whatever they say.
_ALWAYS_SO = {"trust_remote_code": False, "use_safetensors": True, "low_cpu_mem_usage": True, "use_fast": True}


T = TypeVar("T")

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def folder_of(model: str | Path, options: dict[str, Any], *, weights: bool = True) -> Path:
    """The local folder of a checkpoint; takes the Hub's arguments out of `options`.

    Args:
        model: a folder or Hub id.
        options: of a `from_pretrained`.
        weights: whether they are needed; they are not downloaded otherwise.

    Raises:
        CheckpointNotFound: no such folder, id or revision, or no network.
    """
    hub = {name: options.pop(name) for name in _HUB if name in options}
    for name in _ALWAYS_SO:
        options.pop(name, None)
    return resolve(
        model,
        revision=hub.get("revision"),
        cache_dir=hub.get("cache_dir"),
        token=one_of("token", hub.get("token"), "use_auth_token", hub.get("use_auth_token")),
        offline=bool(hub.get("local_files_only", False)),
        weights=weights,
    )


def refuse(what: str, options: Mapping[str, Any], *, later: Mapping[str, str] | None = None) -> None:
    """Raises an `OptionError` that names every option left over.

    Args:
        what: who was called.
        options: what nobody took.
        later: advice for options that people will try.
    """
    if options:
        advice = "; ".join(f"{name}: {text}" for name, text in (later or {}).items() if name in options)
        raise OptionError(f"{what} does not know {', '.join(sorted(options))}" + (f" ({advice})" if advice else ""))


def one_of(name: str, value: T | None, other_name: str, other: T | None) -> T | None:
    """The one that was given of two names for the same option.

    Raises:
        OptionError: both were, and they differ.
    """
    if value is not None and other is not None and value != other:
        raise OptionError(f"{name}={value} and {other_name}={other} contradict each other; give one")
    return other if value is None else value


def byte_size(size: int | str) -> int:
    """Bytes as a number or as the reference writes them.

    Raises:
        OptionError: neither.

    >>> byte_size("5GB"), byte_size("1 MiB"), byte_size(300)
    (5000000000, 1048576, 300)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?B)?", str(size).strip().upper())
    found = 0 if match is None else int(float(match[1]) * _UNITS[match[2] or ""])
    if found < 1:
        raise OptionError(f"a size of {size!r} is neither a number of bytes above 0 nor of the form '5GB'")
    return found
