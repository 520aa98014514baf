"""Images in markdown, found in linear time."""

from __future__ import annotations

import copy
import time

import pytest

from fakes import tiny_processor
from idefics.errors import InputError, TemplateError
from idefics.server.prepare.prompts import Prompt, prompt_of_markdown, prompt_of_messages


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
    prompt = prompt_of_markdown(text, tiny_processor(), images=64)
    assert (prompt.text, prompt.references) == (expected, references)
    assert prompt.written("<image>").replace(" ", "") == text.replace(" ", "")


def test_many_beginnings_without_an_end_take_no_time() -> None:
    began = time.process_time()
    prompt_of_markdown("![](" * 1_000_000, tiny_processor(), images=64)
    prompt_of_markdown("![](x)" * 300_000, tiny_processor(), images=300_000)
    assert time.process_time() - began < 3


def test_messages() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "u"}}, {"type": "text", "text": "a ![](v) b"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "why?"}]
    prompt = prompt_of_messages(chat, tiny_processor(), images=64)
    assert prompt.text == (
        "User:<image>a <image> b<end_of_utterance>\nAssistant: yes<end_of_utterance>\nUser: why?<end_of_utterance>\nAssistant:"
    )
    assert prompt.references == ("u", "v")


def test_too_many_images_are_counted_not_collected() -> None:
    with pytest.raises(InputError, match="3 images in one request are over the limit of 2"):
        prompt_of_markdown("![](x)" * 3, tiny_processor(), images=2)
    turns = [{"role": "user", "content": "![](x)![](y)"}, {"role": "user", "content": [{"type": "image", "url": "z"}]}]
    with pytest.raises(InputError, match="3 images in one request are over the limit of 2"):
        prompt_of_messages(turns, tiny_processor(), images=2)
    with pytest.raises(InputError, match="3 images in one request are over the limit of 2"):
        prompt_of_messages([turns[1], turns[0]], tiny_processor(), images=2)


@pytest.mark.parametrize("token", ["<image>", "<fake_token_around_image>", "</s>", "<end_of_utterance>"])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_tokens_come_by_no_way(token: str, role: str) -> None:
    halves = [{"type": "text", "text": token[:4]}, {"type": "text", "text": token[4:]}]
    for content in (token, halves, f"![](u){token}"):
        prompt = prompt_of_messages([{"role": role, "content": content}], tiny_processor(), images=64)
        assert token in prompt.written("<image>")
        assert prompt.text.count(token) == {"<image>": len(prompt.references), "<end_of_utterance>": 1}.get(token, 0)
    with pytest.raises(TemplateError, match="must be one of system, developer, user, assistant"):
        prompt_of_messages([{"role": token, "content": "a"}], tiny_processor(), images=64)


def test_a_template_that_writes_images_of_its_own_is_refused() -> None:
    processor = copy.copy(tiny_processor())
    processor.chat_template = "<image>{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}"
    with pytest.raises(TemplateError, match="writes <image> 1 times for 0 images"):
        prompt_of_messages([{"role": "user", "content": "a"}], processor, images=64)


def test_what_the_assistant_said_asks_for_no_image_and_ends_no_chat() -> None:
    halves = [{"type": "text", "text": text} for text in ("an <ima", "ge> or <fake_token_around_image>")]
    turns = [
        {"role": "user", "content": "![](u)a"},
        {"role": "assistant", "content": "![](https://a.b/c.png)"},
        {"role": "assistant", "content": halves},
    ]
    prompt = prompt_of_messages(turns, tiny_processor(), images=1)
    assert prompt.references == ("u",)
    assert "Assistant: ![](https://a.b/c.png)<end_of_utterance>" in prompt.text
    assert "Assistant: an <image> or <fake_token_around_image><end_of_utterance>" in prompt.written("<image>")
    assert prompt.text.count("<image>") == 1


def test_a_prompt_with_other_images_than_it_tells_cannot_be_written() -> None:
    with pytest.raises(InputError, match="2 <image> for 1 images"):
        Prompt("<image><image>", ("a",)).written("<image>")


def test_unusable_messages() -> None:
    with pytest.raises(InputError, match="stands for an image"):
        prompt_of_markdown("<image>", tiny_processor(), images=64)
    with pytest.raises(TemplateError, match="tools are not supported"):
        prompt_of_messages([{"role": "user", "content": "x", "tool_call_id": "1"}], tiny_processor(), images=64)
