"""The arguments that every `from_pretrained` shares, and the folder they lead to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idefics.errors import OptionError
from idefics.weights.files import resolve

__all__ = ["folder_of", "refuse"]

_HUB = ("revision", "cache_dir", "token", "use_auth_token", "local_files_only")
# Accepted because scripts pass them, and true of this package at the value given here whatever they say.
_ALWAYS_SO = {"trust_remote_code": False, "use_safetensors": True, "low_cpu_mem_usage": True, "use_fast": True}


def folder_of(model: str | Path, options: dict[str, Any]) -> Path:
    """The local folder of a checkpoint; takes the Hub's arguments out of `options`.

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
        token=hub.get("token") or hub.get("use_auth_token"),
        offline=bool(hub.get("local_files_only", False)),
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
