from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from idefics.errors import ImageCountError, TemplateError
from idefics.processor.messages import fill_images, normalise


def content(parts: Any) -> tuple[Any, list[Any]]:
    messages, images = normalise([{"role": "user", "content": parts}])
    return messages[0]["content"], images


def test_forms_of_text() -> None:
    text = [{"type": "text", "text": "Hi"}]
    assert content("Hi") == content(["Hi"]) == content(text) == (text, [])
    assert content("")[0] == [{"type": "text", "text": ""}]


def test_forms_of_images() -> None:
    path = Path("a.png")
    parts = [
        {"type": "image"},
        {"type": "image", "image": path}, {"type": "image", "url": "https://x/y"}, {"type": "image", "path": "b"},
        {"type": "image", "base64": "AA=="}, {"type": "image_url", "image_url": {"url": "data:,", "detail": "high"}},
        {"type": "image_url", "image_url": "https://z"}, {"type": "image", "text": None},
        {"type": "text", "text": "t", "image": None},
    ]  # fmt: skip
    normal, images = content(parts)
    assert normal == [{"type": "image"}] * 8 + [{"type": "text", "text": "t"}]
    assert images == [None, path, "https://x/y", "b", "AA==", "data:,", "https://z", None]


def test_other_keys_reach_the_template_and_the_input_stays_whole() -> None:
    message = {"role": "tool", "content": "x", "name": "n", "calls": [{"a": (1, 2.5, None, True)}]}
    before = {**message}
    normal, _ = normalise([message])
    assert normal[0]["name"] == "n"
    assert normal[0]["calls"] == [{"a": [1, 2.5, None, True]}]
    assert message == before


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("Hi", "list"), ({"role": "user"}, "list"), (3, "list"), ([], "empty"), (["Hi"], r"messages\[0\] must be a mapping"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], r"messages\[1\] has no 'role'"),
        ([{"role": "user"}], r"\[0\] has no 'content'"),
        ([{"role": 3, "content": "a"}], r"messages\[0\]\['role'\]"), ([{"role": "", "content": "a"}], "role"),
        ([{"role": "u", "content": []}], r"\['content'\] must be"), ([{"role": "u", "content": 5}], r"\['content'\].*not 5"),
        ([{"role": "u", "content": [{"type": "video"}]}], r"\['content'\]\[0\]\['type'\].*'video'"),
        ([{"role": "u", "content": ["a", {"text": "b"}]}], r"\['content'\]\[1\]\['type'\].*None"),
        ([{"role": "u", "content": [{"type": "text"}]}], r"\[0\]\['text'\]"),
        ([{"role": "u", "content": [3]}], r"\['content'\]\[0\]"),
        ([{"role": "u", "content": [{"type": "image", "img": "a"}]}], r"unknown key\(s\): 'img'"),
        ([{"role": "u", "content": [{"type": "image", "url": "a", "path": "b"}]}], "2 times: 'url', 'path'"),
        ([{"role": "u", "content": [{"type": "image_url", "image_url": {}}]}], "image_url"),
        ([{"role": "u", "content": "a", "extra": object()}], r"\['extra'\] must be plain data"),
    ],
)  # fmt: skip
def test_errors_name_the_message_and_the_key(messages: Any, words: str) -> None:
    with pytest.raises(TemplateError, match=words):
        normalise(messages)


def test_images_given_apart_fill_the_empty_places() -> None:
    assert fill_images([None, "a", None], ["x", "y"]) == ["x", "a", "y"]
    assert fill_images([], []) == []
    with pytest.raises(ImageCountError, match=r"2 image placeholder.*1 image"):
        fill_images([None, "a", None], ["x"])


def test_keys_that_say_nothing_are_left_out_and_deep_ones_are_no_data() -> None:
    part = {"type": "text", "text": "a", "annotations": [], "index": 0, "cache_control": {"type": "ephemeral"}}
    plain, _ = normalise([{"role": "user", "content": [part]}])
    assert plain == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    deep: list[object] = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(TemplateError, match="more than 100 deep"):
        normalise([{"role": "user", "content": "a", "extra": deep}])
