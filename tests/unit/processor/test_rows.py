from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from idefics.errors import ImageCountError, InputError
from idefics.processor.rows import arrange, unswap

A, J, K = (Image.new("RGB", (1, 1)) for _ in range(3))
URL = "https://example.org/a.png"


def rows(text: Any, images: Any = None) -> Any:
    return arrange(*unswap(text, images), placeholder="<image>")


@pytest.mark.parametrize(
    ("text", "images", "texts", "rows_of_images"),
    [
        ("a", None, ["a"], [[]]), (["a", "b"], None, ["a", "b"], [[], []]), ("a<image>", A, ["a<image>"], [[A]]),
        ("<image><image>", [A, J], ["<image><image>"], [[A, J]]),
        ("<image><image>", [[A, J]], ["<image><image>"], [[A, J]]),
        (["<image>", "x", "<image><image>"], [A, J, K], ["<image>", "x", "<image><image>"], [[A], [], [J, K]]),
        (["x", "<image>"], [[], [A]], ["x", "<image>"], [[], [A]]),
        (["x", "<image>"], [None, (A,)], ["x", "<image>"], [[], [A]]),
        (("<image>",), "photo.png", ["<image>"], [["photo.png"]]), ("<image>", Path("p"), ["<image>"], [[Path("p")]]),
        (None, A, None, [[A]]), (None, [A, J], None, [[A, J]]), (None, [[A], [J]], None, [[A], [J]]),
        (None, URL, None, [[URL]]),
        # the order of transformers 5, by position
        (A, "<image>", ["<image>"], [[A]]), ([[A], []], ["<image>", "x"], ["<image>", "x"], [[A], []]),
        (URL, "<image>", ["<image>"], [[URL]]),
        (A, None, None, [[A]]), ([[A], [J]], None, None, [[A], [J]]),
        # a prompt that begins with a URL is a prompt
        ("https://a.org <image>", "photo.png", ["https://a.org <image>"], [["photo.png"]]), (URL, None, [URL], [[]]),
        # the form of the first IDEFICS
        ([["User:", A, "Who?", URL]], None, ["User:<image>Who?<image>"], [[A, URL]]),
        ([["a"], [J, "b"]], None, ["a", "<image>b"], [[], [J]]),
        (["User:", A], None, ["User:<image>"], [[A]]),
    ],
)  # fmt: skip
def test_forms(text: Any, images: Any, texts: Any, rows_of_images: Any) -> None:
    assert rows(text, images) == (texts, rows_of_images)


@pytest.mark.parametrize(
    ("text", "images", "placeholders", "given", "where"),
    [
        ("<image>", None, 1, 0, "the prompt"), ("a", A, 0, 1, "the prompt"), ("<image>", [A, J], 1, 2, "the prompt"),
        (["<image>", "<image>"], [[A], [J, K]], 1, 2, r"text\[1\]"), (["<image>", "x"], [[], [A]], 1, 0, r"text\[0\]"),
        (["<image>", "<image>"], [A], 2, 1, "the batch of 2 texts"), (["<image>", "<image>"], A, 2, 1, "the batch of 2 texts"),
        (["<image>", "x<image>"], None, 1, 0, r"text\[0\]"),
    ],
)  # fmt: skip
def test_counts_that_differ_name_both(text: Any, images: Any, placeholders: int, given: int, where: str) -> None:
    with pytest.raises(ImageCountError, match=rf"^{where} has {placeholders} image placeholder.*but {given} image") as caught:
        rows(text, images)
    assert (caught.value.placeholders, caught.value.images) == (placeholders, given)


@pytest.mark.parametrize(
    ("text", "images", "words"),
    [
        (None, None, "give a text"), ([], None, "an empty list"), (3, None, "type int"), (["a", 3], None, "type list"),
        (["a", "b"], [[A]], "2 text.*1 rows"), (["a", "b"], [[A], J], r"images\[1\]"), ([["a", A]], [A], "both"),
        ([["a<image>", A]], None, "carries the images themselves"), ([["a", 3, A]], None, r"text\[0\]\[1\]"),
        ({"a": 1}, None, "type dict"),
    ],
)  # fmt: skip
def test_wrong_kinds(text: Any, images: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        rows(text, images)
