"""What `idefics serve` refuses before it loads anything."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from idefics.cli import main


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tls-cert", "nowhere.pem"], "--tls-cert and --tls-key go together"),
        (["--tls-cert", "nowhere.pem", "--tls-key", "nowhere.pem"], "certificate nowhere.pem and key nowhere.pem cannot"),
        (["--tls-cert", __file__, "--tls-key", __file__], "give a PEM certificate and its key"),
        (["--log-level", "loud"], "is not one of debug, info"),
        (["a", "--model", "b"], "are both given; give one"),
        (["--deadline", "0"], "deadline = 0.0 must be above 0"),
        (["--drain", "nan"], "drain = nan must be a finite number"),
        (["--drain", "inf"], "drain = inf must be a finite number"),
        (["--max-body-mb", "nan"], "--max-body-mb nan is no size"),
        (["--max-image-mb", "inf"], "--max-image-mb inf is no size"),
        (["--image-cache-mb", "inf"], "--image-cache-mb inf is no size"),
        (["--cache-gb", "nan"], "--cache-gb nan is no size"),
        (["--cache-gb", "0"], "--cache-gb 0 keeps no keys and values"),
        (["--cache-gb", "-1"], "--cache-gb -1 keeps no keys and values"),
        (["--api-key", ""], "API key 1 of 1 is empty"),
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


def test_the_key_of_the_environment_is_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut at its blank it would be two keys, each of which is easier to guess."""
    monkeypatch.setenv("IDEFICS_API_KEY", "open sesame")
    with pytest.raises(SystemExit) as end:
        main(["serve"])
    assert end.value.code == 1
    assert "API key 1 of 1, of 11 characters, holds blanks" in capsys.readouterr().err


def test_a_cache_that_holds_no_block_is_told_before_anybody_asks(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serve", "-m", str(tiny_checkpoint), "--port", "0", "--cache-gb", "0.000001"])
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert "1000 B for keys and values on cpu do not hold one block of 16 tokens" in told
    assert "raise cache_bytes" in told
