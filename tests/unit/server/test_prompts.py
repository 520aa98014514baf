"""Images in markdown, found in linear time."""

from __future__ import annotations

import time

import pytest

from fakes import tiny_processor
from idefics.errors import InputError, TemplateError
from idefics.server.prompts import prompt_of_markdown, prompt_of_messages


@pytest.mark.parametrize(
    ("text", "expected", "references"),
    [
        ("![](http://a.b/c)What?", "<image>What?", ("http://a.b/c",)),
        ("User:![](a)![](b)x", "User:<image><image>x", ("a", "b")),
        ("x![](data:image/png;base64,AA==)y", "x<image>y", ("data:image/png;base64,AA==",)),
        ("no ![alt](x) and ![] (y)", "no ![alt](x) and ![] (y)", ()),
        ("![](never closed", "![](never closed", ()),
        ("![]( spaced )", "<image>", ("spaced",)),
        ("", "", ()),
    ],
)
def test_markdown(text: str, expected: str, references: tuple[str, ...]) -> None:
    prompt = prompt_of_markdown(text, tiny_processor())
    assert (prompt.text, prompt.references) == (expected, references)
    assert prompt.written("<image>").replace(" ", "") == text.replace(" ", "")


def test_many_beginnings_without_an_end_take_no_time() -> None:
    began = time.monotonic()
    prompt_of_markdown("![](" * 1_000_000, tiny_processor())
    prompt_of_markdown("![](x)" * 300_000, tiny_processor())
    assert time.monotonic() - began < 3


def test_messages() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "u"}}, {"type": "text", "text": "a ![](v) b"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "why?"}]
    prompt = prompt_of_messages(chat, tiny_processor())
    assert prompt.text == (
        "User:<image>a <image> b<end_of_utterance>\nAssistant: yes<end_of_utterance>\nUser: why?<end_of_utterance>\nAssistant:"
    )
    assert prompt.references == ("u", "v")


def test_unusable_messages() -> None:
    with pytest.raises(InputError, match="stands for an image"):
        prompt_of_messages([{"role": "user", "content": "<image>"}], tiny_processor())
    with pytest.raises(TemplateError, match="tools are not supported"):
        prompt_of_messages([{"role": "user", "content": "x", "tool_call_id": "1"}], tiny_processor())
