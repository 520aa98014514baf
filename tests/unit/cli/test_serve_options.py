"""What `idefics serve` refuses before it loads anything."""

from __future__ import annotations

import importlib.util

import pytest

from idefics.cli import main


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tls-cert", "nowhere.pem"], "--tls-cert and --tls-key go together"),
        (["--tls-cert", "nowhere.pem", "--tls-key", "nowhere.pem"], "nowhere.pem does not exist"),
        (["--log-level", "loud"], "is not one of debug, info"),
        (["a", "--model", "b"], "are both given; give one"),
        (["--deadline", "0"], "deadline = 0.0 must be above 0"),
        (["--host", "203.0.113.1"], "cannot be listened at"),
        (["--host", "no such host"], "cannot be listened at"),
        (["--allow-image-host", "."], "is no host, address or network"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serve", *options])
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(SystemExit):
        main(["serve"])
    assert "serving needs uvicorn: pip install 'idefics[server]'" in capsys.readouterr().err
