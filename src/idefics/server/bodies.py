"""What all bodies have in common: their texts can be written in UTF-8."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, model_validator

__all__ = ["Body"]

_HALF = re.compile("[\ud800-\udfff]")


class Body(BaseModel):
    """A JSON body. Half a surrogate pair, which JSON can write and no text can hold, is refused."""

    @model_validator(mode="before")
    @classmethod
    def _check_texts(cls, given: Any) -> Any:
        left = [given]
        while left:
            value = left.pop()
            if isinstance(value, str):
                if _HALF.search(value):
                    raise ValueError("a text holds half a surrogate pair, which is no character")
            elif isinstance(value, dict):
                left += [*value, *value.values()]
            elif isinstance(value, list):
                left += value
        return given
