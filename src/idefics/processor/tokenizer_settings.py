"""The settings of a tokenizer folder: the small files of several eras as one, each value that is read held against its kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idefics.config.json_files import read_json
from idefics.config.rules import brief
from idefics.errors import ConfigError

__all__ = ["NAMED", "added_tokens", "text_of", "tokenizer_settings"]

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
"""Special tokens that have a name."""

_ID_DIGITS = 10  # no vocabulary needs more
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class _Kind:
    """What a setting's values are, in words, and what says whether one is."""

    words: str
    holds: Callable[[Any], bool]


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, and of `special_tokens_map.json` what it leaves open. Empty where there is neither.

    Raises:
        ConfigError: a value that is read is of the wrong kind; names file, key and value.
    """
    config = _checked(folder / "tokenizer_config.json", _SETTINGS)
    for name, value in _checked(folder / "special_tokens_map.json", _MAP).items():
        if config.get(name) is None:  # files of 2023 say null here and the token there
            config[name] = value
    return config


def added_tokens(folder: Path) -> dict[str, int]:
    """`added_tokens.json`, tokens with their ids; empty where there is none.

    Raises:
        ConfigError: an id is none.
    """
    path = folder / "added_tokens.json"
    found = read_json(path) if path.is_file() else {}
    for token, token_id in found.items():
        if not _is_whole(token_id) or token_id < 0:
            raise ConfigError(f"{path}: {brief(token)} must have an id, a whole number from 0, not {brief(token_id)}")
    return found


def text_of(token: Any) -> str:
    """The text of a special token, which is written as a text or as an object that has it.

    Raises:
        ConfigError: it is neither.
    """
    found = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(found, str):
        raise ConfigError(f"a special token must be a text or have a 'content', not {brief(token)}")
    return found


def _checked(path: Path, kinds: Mapping[str, _Kind]) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    for key, kind in kinds.items():
        value = found.get(key)
        if value is not None and not kind.holds(value):
            raise ConfigError(f"{path}: {key} must be {kind.words}, not {brief(value)}")
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_limit(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value) and value >= 1


def _is_token(value: Any) -> bool:
    return isinstance(value.get("content") if isinstance(value, Mapping) else value, str)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list | Mapping) and all(map(_is_token, value.values() if isinstance(value, Mapping) else value))


def _are_described(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        key.isdecimal()
        and len(key) <= _ID_DIGITS
        and isinstance(entry, Mapping)
        and _is_token(entry)
        and all(isinstance(entry.get(flag, False), bool) for flag in _FLAGS)
        for key, entry in value.items()
    )


_TOKEN = _Kind("a text or an object with a 'content'", _is_token)
_TOKENS = _Kind("a list of tokens, or tokens by name", _are_tokens)
_TRUTH = _Kind("true or false", lambda value: isinstance(value, bool))
_TEXT = _Kind("a text", lambda value: isinstance(value, str))
_SIDE = _Kind("'left' or 'right'", lambda value: value in ("left", "right"))
_MAP: Mapping[str, _Kind] = {**dict.fromkeys(NAMED, _TOKEN), "additional_special_tokens": _TOKENS}
_SETTINGS: Mapping[str, _Kind] = {
    **_MAP,
    "extra_special_tokens": _TOKENS,
    "added_tokens_decoder": _Kind("an object of ids, each with a 'content' and what is true of it", _are_described),
    "tokenizer_class": _TEXT,
    "padding_side": _SIDE,
    "truncation_side": _SIDE,
    "model_max_length": _Kind("a number of tokens from 1", _is_limit),
    "clean_up_tokenization_spaces": _TRUTH,
    "add_bos_token": _TRUTH,
    "add_eos_token": _TRUTH,
}
