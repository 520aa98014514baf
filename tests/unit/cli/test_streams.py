"""No traceback, ever: streams that are closed, full, left, or hold what is no text; terminals and homes that are missing."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import idefics
from idefics.api import Idefics
from idefics.cli import COMMANDS, main, streams
from idefics.cli.loading import open_model
from idefics.cli.options import ImageOptions, ModelOptions
from idefics.errors import InputError
from idefics.weights.files import EMBEDDED

HELPS = [["--help"], ["--version"], [], *([name, "--help"] for name in COMMANDS)]
ANSWERS = [
    ["generate", "What is this?", "--max-new-tokens", "3"],
    ["generate", "What is this?", "--max-new-tokens", "3", "--json"],
    ["generate", "What is this?", "--max-new-tokens", "3", "--n", "2", "--temperature", "1"],
    ["info"], ["info", "--json"], ["plan"], ["plan", "--json"], ["plan", "--gpus", "2x80"],
]  # fmt: skip
COMMAND_LINES = pytest.mark.parametrize("words", HELPS + ANSWERS, ids=lambda words: " ".join(words) or "nothing")


_embedded = functools.cache(idefics.load)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded model is loaded once for all cases; those that name a folder, or how to load, do load."""

    def opened(model: ModelOptions, images: ImageOptions, **more: Any) -> Idefics:
        return _embedded() if model == ModelOptions() else open_model(model, images, **more)

    for command in ("generate", "chat"):
        monkeypatch.setattr(f"idefics.cli.{command}.open_model", opened)


@contextlib.contextmanager
def _full() -> Iterator[Any]:
    with Path("/dev/full").open("w", encoding="utf-8", buffering=1) as stream:
        yield stream
        _drop(stream)


@contextlib.contextmanager
def _left() -> Iterator[Any]:
    """A pipe whose reader went away."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        yield stream
        _drop(stream)


@contextlib.contextmanager
def _closed() -> Iterator[Any]:
    yield None


def _drop(stream: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@COMMAND_LINES
def test_a_full_stdout_is_told(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with _full() as stream:
        monkeypatch.setattr("sys.stdout", stream)
        code = _run(words)
    told = capsys.readouterr().err
    assert code in (1, 2)
    assert told.startswith("error: ")
    assert "No space left on device" in told
    assert told.count("\n") == 1


@COMMAND_LINES
def test_whoever_read_went_away(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with _left() as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert _run(words) == 141
    assert capsys.readouterr().err == ""


@COMMAND_LINES
def test_a_closed_stdout_is_told(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with _closed() as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert _run(words) == 1
    assert capsys.readouterr().err == "error: stdout cannot be written: it is closed\n"


def test_a_closed_stderr_stops_nobody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert _run(["info", "--json"]) == 0
    assert _run(["generate", ""]) == 1
    sys.stderr.close()
    assert json.loads(capsys.readouterr().out.splitlines()[0])["model"] == "idefics2-nano"


@pytest.mark.parametrize(
    ("words", "given", "said"),
    [
        (["generate", "\udcff\udcfe"], "", "the question is not UTF-8 text"),
        (["generate", "-"], "a \udcff b", "the question from stdin is not UTF-8 text"),
        (["generate", "Hm?", "--stop", "\udcff"], "", "--stop is not UTF-8 text"),
        (["plan", "--text", "\udcff"], "", "--text is not UTF-8 text"),
        (["chat"], "What \udcff?\n", "the question is not UTF-8 text"),
        (["generate", "-"], None, "the question should come from stdin, which is closed"),
        (["chat"], None, "stdin, a line each, and it is closed"),
        (["generate", "x", "--image", "~nobody-of-that-name/x.png"], "", "~nobody-of-that-name/x.png does not exist"),
        (["generate", "x", "-m", "~nobody-of-that-name/x"], "", "no such user"),
        (["chat"], "/load ~nobody-of-that-name/x.json\n", "cannot be read"),
        (["chat"], "/load a\0b.json\n", "is no conversation"),
        (["chat"], "/save a\0b.json\n", "cannot be written: embedded null byte"),
        (["generate", "x", "--device-map", "{" * 3 + '"a":' * 100_000], "", "--device-map is not valid JSON"),
    ],
)
def test_words_that_are_no_text_and_names_of_nothing(run: Any, words: list[str], given: Any, said: str) -> None:
    ran = run(*words, stdin=given if given is not None else None)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: ")
    assert said in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("words", [["generate", "-"], ["chat"]])
def test_a_stdin_without_end_is_left(run: Any, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(streams, "MAX_STDIN", 1000)
    ran = run(*words, stdin=io.StringIO("\0" * 10_000))
    assert (ran.code, ran.out) == (1, "")
    assert "is longer than the limit of 1000 characters" in ran.err


def test_bytes_that_the_locale_could_not_read_are_text_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert streams.as_text("\u00e9?", "it") == "\u00e9?"
    assert streams.as_text("caf\udcc3\udca9?", "it") == "caf\u00e9?"  # as LC_ALL=C decodes it
    with pytest.raises(InputError, match="it is not UTF-8"):
        streams.as_text("\udcc3?", "it")
    monkeypatch.undo()


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("a\nb"), RecursionError("deep"), MemoryError(), OSError(5, "I/O")])
def test_our_own_faults_are_one_line_and_a_traceback_only_where_asked_for(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("idefics.cli.info._find", fail)
    ran = run("info")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith("error: ")
    assert isinstance(error, OSError) or "--debug" in ran.err
    with pytest.raises(type(error)):
        main(["info", "--debug"])


@pytest.mark.parametrize("at", ["idefics.cli.info._find", "idefics.cli.info.json.dumps", "idefics.cli._load"])
def test_ctrl_c(run: Any, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(at, stop)
    ran = run("info", "--json")
    assert (ran.code, ran.out) == (130, "")
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("columns", ["0", "1", "2", "7"])
@pytest.mark.parametrize("words", [["--help"], ["generate", "--help"], ["generate", "--no-such"], ["info"], ["plan"]])
def test_a_terminal_too_narrow(run: Any, monkeypatch: pytest.MonkeyPatch, columns: str, words: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERMINAL_WIDTH", columns)
    assert run(*words).code == (2 if "--no-such" in words else 0)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def _no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe{}")


READ = ["config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
        "special_tokens_map.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"]  # fmt: skip


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("make", [_pipe, _endless, _nested, _no_text], ids=["pipe", "zero", "nested", "no text"])
def test_every_file_of_a_checkpoint(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path], None]
) -> None:
    if name == "chat_template.jinja" and make is _nested:
        pytest.skip("any text is a template")
    monkeypatch.setattr("idefics.config.whole_files.PATIENCE", 0.05)
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder, copy_function=os.symlink)  # one of them becomes a file of its own
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    ran = run("generate", "-m", folder, "What?", "--max-new-tokens", "1")
    assert "Traceback" not in ran.err
    assert "fault of idefics" not in ran.err
    assert ran.code == 0 or (ran.err.startswith("error: ") and ran.err.count("\n") == 1 and str(folder) in ran.err)


@pytest.mark.parametrize("make", [_pipe, _endless, _nested, _no_text], ids=["pipe", "zero", "nested", "no text"])
def test_files_of_examples_and_talks(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    monkeypatch.setattr("idefics.config.whole_files.PATIENCE", 0.05)
    path = tmp_path / "shots.json"
    make(path)
    ran = run("generate", "--shots", path, "What?")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert str(path) in ran.err
    ran = run("chat", stdin=f"/load {path}\n")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert str(path) in ran.err


def test_closed_from_the_start_and_no_home() -> None:
    """Descriptors that are closed before Python begins, in a process of its own: the one case that needs it."""
    script = 'exec "$0" -m idefics generate - <&- >&-'
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(streams.__file__).parents[2]), "LC_ALL": "C"}
    ran = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, text=True, timeout=60, env=environment)
    assert (ran.returncode, ran.stderr) == (1, "error: the question should come from stdin, which is closed\n")


def test_ctrl_c_while_the_command_line_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    from idefics.__main__ import run

    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("idefics.cli.main", stop)
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 130
