"""JSON objects in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idefics.config.whole_files import read_whole
from idefics.errors import CheckpointError, CheckpointNotFound, ConfigError

__all__ = ["MAX_DEPTH", "parse_json", "read_json", "write_json"]

MAX_DEPTH = 64
"""Objects and lists inside one another; no file of a checkpoint has ten."""


def parse_json(text: str | bytes) -> Any:
    """Any JSON value, of bounded depth; UTF-8 if given as bytes.

    Raises:
        ValueError: it is no JSON (`json.JSONDecodeError`, `UnicodeDecodeError`), or too deep or with too long a number.
    """
    try:
        value = json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"it is nested deeper than the limit of {MAX_DEPTH}") from None
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
            if isinstance(child, dict | list)
        ]
        if not level:
            return value
    raise ValueError(f"it is nested deeper than the limit of {MAX_DEPTH}")


def read_json(path: Path) -> dict[str, Any]:
    """Reads one JSON object.

    Raises:
        CheckpointNotFound: no such file.
        CheckpointError: the file cannot be read.
        ConfigError: the file is not a JSON object.
    """
    try:
        raw = parse_json(read_whole(path))
    except FileNotFoundError:
        raise CheckpointNotFound(f"{path} does not exist; a checkpoint folder has a {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a JSON {type(raw).__name__}, not an object")
    return raw


def write_json(path: Path, content: Mapping[str, Any], *, sort_keys: bool = False) -> None:
    """Writes one JSON object for people to read; `read_json` is its inverse."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=sort_keys) + "\n", encoding="utf-8")
