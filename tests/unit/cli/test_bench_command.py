"""`idefics bench`: a line per kind of work, or one JSON object."""

from __future__ import annotations

import json
from typing import Any

import pytest

from idefics.bench import bench

NAMES = (
    "prepare an image",
    "encode an image",
    "read 8 tokens",
    "write 3 tokens",
    "write 3 tokens, 2 answers",
    "first token of a first turn",
    "first token of a second turn",
    "2 requests with an image",
)


def test_the_command(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []

    def once(*arguments: Any, **options: Any) -> Any:
        """Measures when it is first asked; how it is told does not need new numbers."""
        measured[:] = measured or [bench(*arguments, **options)]
        return measured[0]

    words = ("bench", "--image", "60x40", "--prompt", "8", "--tokens", "3", "--together", "2", "--rounds", "1")
    with monkeypatch.context() as patched:
        patched.setattr("idefics.bench.bench", once)
        printed = run(*words)
        found = json.loads(run(*words, "--json").out)
    assert printed.code == 0
    lines = printed.out.splitlines()
    assert lines[0].startswith("idefics2-nano, bfloat16, cpu: memory ")
    assert [line[: len(name)] for line, name in zip(lines[1:], NAMES, strict=True)] == list(NAMES)
    assert [work["name"] for work in found["work"]] == list(NAMES)
    for bad, message in ((("--image", "wide"), "is not a size such as 1280x960"), (("--tokens", "1"), "tokens is too small")):
        refused = run("bench", *bad)
        assert refused.code == 1
        assert message in refused.err
