"""JSON objects in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idefics.errors import CheckpointError, CheckpointNotFound, ConfigError

__all__ = ["read_json", "write_json"]


def read_json(path: Path) -> dict[str, Any]:
    """Reads one JSON object.

    Raises:
        CheckpointNotFound: no such file.
        CheckpointError: the file cannot be read.
        ConfigError: the file is not a JSON object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointNotFound(f"{path} does not exist; a checkpoint folder has a {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a JSON {type(raw).__name__}, not an object")
    return raw


def write_json(path: Path, content: Mapping[str, Any], *, sort_keys: bool = False) -> None:
    """Writes one JSON object for people to read; `read_json` is its inverse."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=sort_keys) + "\n", encoding="utf-8")
