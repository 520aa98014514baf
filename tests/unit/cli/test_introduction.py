"""What the embedded model knows, told to people and not to programs."""

from __future__ import annotations

import sys

import pytest

from idefics.assets import EMBEDDED_NAME, KNOWLEDGE
from idefics.cli.terminal import introduce
from repo.repository import README, ROOT


@pytest.mark.parametrize("piped", [(), ("stdout",), ("stderr",), ("stdout", "stderr")])
def test_only_a_terminal_is_told(
    piped: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda here=name not in piped: here)
    introduce(EMBEDDED_NAME)
    assert capsys.readouterr() == ("", "" if piped else f"{KNOWLEDGE}\n")
    introduce("HuggingFaceM4/idefics2-8b")
    assert capsys.readouterr() == ("", "")


def test_pages_say_the_same() -> None:
    for page in (README, ROOT / "docs" / "model-card.md"):
        assert KNOWLEDGE in page.read_text(encoding="utf-8"), page
