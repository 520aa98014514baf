"""Half a surrogate pair is an `InputError`, wherever text goes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes import tiny_idefics
from idefics.api import Idefics
from idefics.errors import InputError

PICTURE = Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def tiny() -> Idefics:
    return tiny_idefics()


def user(**message: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "hi", **message}]


WAYS: dict[str, Callable[[Idefics, str], Any]] = {
    "prompt": lambda m, half: m.generate(half),
    "raw prompt": lambda m, half: m.generate(half, raw=True),
    "prompt with an image": lambda m, half: m.generate(f"<image>{half}", PICTURE),
    "one of several prompts": lambda m, half: m.generate(["hi", half]),
    "stream": lambda m, half: list(m.stream(half)),
    "chat": lambda m, half: m.chat(user(content=half)),
    "chat in parts": lambda m, half: m.chat(user(content=[{"type": "text", "text": half}])),
    "bare part": lambda m, half: m.chat(user(content=[half])),
    "role": lambda m, half: m.chat(user(role=half)),
    "extra": lambda m, half: m.chat(user(name=half)),
    "stream of a chat": lambda m, half: list(m.stream_chat(user(content=half))),
    "stop": lambda m, half: m.generate("hi", stop=half),
    "score": lambda m, half: m.score(half, [" a"]),
    "continuation": lambda m, half: m.score("hi", [half]),
    "processor": lambda m, half: m.processor(text=half),
    "template": lambda m, half: m.processor.apply_chat_template(user(content=half)),
    "tokenizer": lambda m, half: m.processor.tokenizer(half),
    "token": lambda m, half: m.processor.tokenizer.convert_tokens_to_ids(half),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("half", [f"a{chr(code)}b" for code in (0xD83D, 0xDE00, 0xDCFF, 0xDFFF)], ids=ascii)
def test_half_a_pair_is_refused(tiny: Idefics, way: str, half: str) -> None:
    with pytest.raises(InputError, match=r"half a surrogate pair|whole characters"):
        WAYS[way](tiny, half)
