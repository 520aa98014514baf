"""What every processor of texts or images can say of itself: its settings, as a dict, as JSON, as a file."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

__all__ = ["Described"]


class Described(ABC):
    """Settings that can be written out."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The settings, as plain data."""

    def to_json_string(self) -> str:
        """The settings as JSON, sorted by name."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Writes `to_json_string` to a file."""
        Path(json_file_path).write_text(self.to_json_string(), encoding="utf-8")
