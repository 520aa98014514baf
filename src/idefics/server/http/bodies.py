"""What all bodies have in common: they are bounded before they are read, and their texts can be written in UTF-8."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from idefics.server.errors import Invalid, TooDeep

__all__ = ["Body", "Messages", "Nullable", "Strict", "Texts", "parsed"]

VALUES = 100_000
"""Commas and opening brackets of a body at most: a chat that fills 32,000 tokens with shortest messages has half as many."""
DEPTH = 100
"""Of lists and objects within each other, far above what anybody writes and far below where Python's recursion ends."""
KEYS = 100
"""Of an object whose keys are named by the API."""

# What is wrong with a list is told of its first item that is wrong: a million errors take minutes to collect.
Texts = Annotated[list[str], Field(fail_fast=True)]
Messages = Annotated[list[dict[str, Any]], Field(fail_fast=True)]


def parsed(data: bytes) -> Any:
    """The JSON of a body.

    A thread would not help: the parser lets nobody else run. So the number of values is bounded before it begins, by what
    every value but the first needs.

    Raises:
        TooDeep: its lists and objects stand too deep within each other.
        Invalid: it is none, or holds too many values.
    """
    commas, brackets = data.count(b","), data.count(b"[") + data.count(b"{")
    if commas + brackets > VALUES:
        told = f"the body has {commas + brackets} commas and opening brackets, over the limit of {VALUES}; send a shorter one"
        raise Invalid(told)
    try:
        content = json.loads(data)
    except RecursionError:
        content = None
    except ValueError as error:
        raise Invalid(f"the body is not valid JSON: {error}") from None
    else:
        if brackets <= DEPTH or not _is_deep(content):
            return content
    raise TooDeep(f"the body's lists and objects stand more than {DEPTH} deep within each other; send a flatter one")


def _is_deep(content: Any) -> bool:
    """Whether lists and objects stand more than `DEPTH` deep within each other; without recursion."""
    level = [content]
    for _ in range(DEPTH + 1):
        inner = [value for value in level if isinstance(value, dict | list)]
        if not inner:
            return False
        level = [item for value in inner for item in (value.values() if isinstance(value, dict) else value)]
    return True


class Strict(BaseModel):
    """An object of known keys. Nothing is converted: a text is no number, and neither is `true`."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if len(given) > KEYS:
            raise ValueError(f"{len(given)} keys are over the limit of {KEYS}; leave out those that the API does not name")
        if cls.model_config.get("extra") != "forbid":
            return given
        # What the API does not know is refused where it says something; null, false, 0 and what is empty ask for nothing.
        return {key: value for key, value in given.items() if value or key in cls.model_fields}


class Nullable(Strict):
    """An object in which null means: left out."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if value is not None}


class Body(Strict):
    """A JSON body. Half a surrogate pair, which JSON can write and no text can hold, is refused."""

    @model_validator(mode="before")
    @classmethod
    def _check_texts(cls, given: Any) -> Any:
        left = [given]
        while left:
            value = left.pop()
            if isinstance(value, str):
                if not _writable(value):
                    raise ValueError("a text holds half a surrogate pair, which is no character")
            elif isinstance(value, dict):
                left += [*value, *value.values()]
            elif isinstance(value, list):
                left += value
        return given


def _writable(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
