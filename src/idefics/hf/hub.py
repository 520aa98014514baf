"""The arguments that every `from_pretrained` shares, and the folder they lead to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from idefics.errors import OptionError
from idefics.hf.elsewhere import asks_for_nothing, not_offered
from idefics.weights.files import resolve

__all__ = ["HUB", "folder_of", "left_over", "one_of"]

HUB = ("revision", "cache_dir", "token", "use_auth_token", "local_files_only")
"""What leads to a checkpoint's files."""
# Scripts pass these, and no value of them could change anything: no remote code is ever run, only safetensors are read,
# never into a second copy, a download that broke off goes on by itself, and there is one tokenizer.
_MOOT = (
    "trust_remote_code",
    "use_safetensors",
    "low_cpu_mem_usage",
    "use_fast",
    "resume_download",
    "weights_only",
    "_fast_init",
)


T = TypeVar("T")


def folder_of(model: str | Path, options: dict[str, Any], *, weights: bool = True) -> Path:
    """The local folder of a checkpoint; takes the Hub's arguments out of `options`.

    Args:
        model: a folder or Hub id.
        options: of a `from_pretrained`.
        weights: whether they are needed; they are not downloaded otherwise.

    Raises:
        CheckpointNotFound: no such folder, id or revision, or no network.
    """
    hub = {name: options.pop(name) for name in HUB if name in options}
    for name in _MOOT:
        options.pop(name, None)
    return resolve(
        model,
        revision=hub.get("revision"),
        cache_dir=hub.get("cache_dir"),
        token=one_of("token", hub.get("token"), "use_auth_token", hub.get("use_auth_token")),
        offline=bool(hub.get("local_files_only", False)),
        weights=weights,
    )


def left_over(what: str, options: Mapping[str, Any], *, there: Iterable[str]) -> None:
    """Refuses every option that nobody took, unless it asks for nothing.

    Args:
        what: who was called.
        options: what nobody took.
        there: options that there are.

    Raises:
        NotOffered: one of the reference's that is not offered.
        OptionError: an unknown one.
    """
    asking = {name: value for name, value in options.items() if not asks_for_nothing(name, value)}
    for name, value in asking.items():
        not_offered(name, value)
    if asking:
        raise OptionError(f"{what} does not know {', '.join(sorted(asking))}; there are {', '.join(sorted(there))}")


def one_of(name: str, value: T | None, other_name: str, other: T | None) -> T | None:
    """The one that was given of two names for the same option.

    Raises:
        OptionError: both were, and they differ.
    """
    if value is not None and other is not None and value != other:
        raise OptionError(f"{name}={value} and {other_name}={other} contradict each other; give one")
    return other if value is None else value
