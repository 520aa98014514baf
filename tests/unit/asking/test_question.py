"""From a question to a prompt, with chats and without."""

from __future__ import annotations

from typing import Any

import pytest

from fakes import tiny_processor
from idefics.asking.question import prompt_of, turn
from idefics.errors import ImageCountError, InputError, TemplateError

CHAT, BASE = tiny_processor(), tiny_processor(end_of_utterance=False)


def test_turns() -> None:
    assert turn("user", "a", 2)["content"] == [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "a"}]
    assert turn("assistant", "b") == {"role": "assistant", "content": [{"type": "text", "text": "b"}]}
    assert turn("user", "a", ["x.png"])["content"][0] == {"type": "image", "image": "x.png"}


def test_questions_and_prompts() -> None:
    asked = "User:<image>a<end_of_utterance>\nAssistant:"
    assert prompt_of(CHAT, "a", images=1) == prompt_of(CHAT, "a", images=1, chat=True) == asked
    assert prompt_of(CHAT, "a", images=1, chat=False) == prompt_of(BASE, "a", images=1) == "<image>a"
    assert prompt_of(CHAT, "b<image>a", images=1) == "b<image>a"


@pytest.mark.parametrize(
    ("text", "images", "chat", "error"),
    [
        ("<image>", 2, None, ImageCountError),
        ("<image>", 1, True, InputError),
        (5, 0, None, InputError),
    ],
)
def test_prompts_that_cannot_be(text: Any, images: int, chat: bool | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        prompt_of(CHAT, text, images=images, chat=chat)
    with pytest.raises(TemplateError):
        prompt_of(BASE, "a", images=0, chat=True)
