"""Rules of single values: what a field of a config may hold, stated once, where the field is declared.

A field made by one of these functions carries its rule; `check` holds values against the rules of a class. The limits are
far above any model there is: what is beyond them is a damaged or hostile file, and is refused before anything is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields
from typing import Any

from idefics.errors import ConfigError

__all__ = ["brief", "check", "flag", "ids", "number", "one_of", "ruled", "whole"]

Rule = Callable[[str, Any], None]
"""Refuses a value, calling it by the name given.

Raises:
    ConfigError: names the value and what it should be.
"""
_RULE = "rule"


def whole(default: Any = MISSING, *, most: int, least: int = 1, or_null: bool = False) -> Any:
    """A field that holds a whole number between two limits, both included, or, if so said, null."""
    kind = "a positive whole number" if least == 1 else f"a whole number from {least}"

    def rule(name: str, value: Any) -> None:
        if value is None and or_null:
            return
        _not_null(name, value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} must be {kind}{' or null' * or_null}, not {brief(value)}")
        if value > most:
            raise ConfigError(f"{name} = {brief(value)} is over the limit of {most}; no model has so many")

    return _ruled(default, rule)


def number(default: Any = MISSING, *, least: float = 0.0, most: float, or_least: bool = False) -> Any:
    """A field that holds a finite number above `least` (or at it, with `or_least`) and up to `most`."""
    kind = f"a number from {least:g}" if or_least else "a positive number"

    def rule(name: str, value: Any) -> None:
        if not or_least:
            _not_null(name, value)
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not (0 <= value < math.inf if or_least else 0 < value < math.inf):
            raise ConfigError(f"{name} must be {kind}, not {brief(value)}")
        if not least <= value <= most:
            raise ConfigError(f"{name} = {brief(value)} is not between {least:g} and {most:g}, the limits of what makes sense")

    return _ruled(default, rule)


def flag(default: Any = MISSING) -> Any:
    """A field that holds true or false."""

    def rule(name: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be true or false, not {brief(value)}")

    return _ruled(default, rule)


def one_of(default: str, choices: Sequence[str]) -> Any:
    """A field that holds one of some names."""

    def rule(name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(f"{name} = {brief(value)} is not one of {', '.join(choices)}")

    return _ruled(default, rule)


def ids(default: Any, *, several: bool = False) -> Any:
    """A field that holds the id of a token, null or, if so said, a list of ids. Old files say -1 for none."""

    def rule(name: str, value: Any) -> None:
        for one in value if several and isinstance(value, list) else [value]:
            if one is not None and (isinstance(one, bool) or not isinstance(one, int) or not -1 <= one < 2**31):
                raise ConfigError(f"{name} must be the id of a token{' or a list of them' * several}, not {brief(value)}")

    return _ruled(default, rule)


def check(cls: type[Any], name: str, values: Mapping[str, Any]) -> None:
    """Holds values against the rules of a class's fields.

    Args:
        cls: a dataclass.
        name: how errors call what has these values; empty where a field's own name says enough.
        values: by field.

    Raises:
        ConfigError: the first that breaks its rule.
    """
    for one in fields(cls):
        if one.name in values and _RULE in one.metadata:
            one.metadata[_RULE](f"{name}.{one.name}" if name else one.name, values[one.name])


def ruled(cls: type[Any]) -> list[str]:
    """The fields of a class that hold single values, each with its rule."""
    return [one.name for one in fields(cls) if _RULE in one.metadata]


def brief(value: Any) -> str:
    """A value as a message shows it, however large it is."""
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # more digits than Python writes, or too deep
        return f"a value of type {type(value).__name__}"
    return shown if len(shown) <= 80 else f"{shown[:60]}... ({len(shown)} characters)"


def _ruled(default: Any, rule: Rule) -> Any:
    return field(metadata={_RULE: rule}) if default is MISSING else field(default=default, metadata={_RULE: rule})


def _not_null(name: str, value: Any) -> None:
    if value is None:
        raise ConfigError(f"{name} must not be null")
