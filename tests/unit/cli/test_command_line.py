"""The frame around the commands: help, exit codes, errors in one line, shared options."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Annotated, Any

import pytest
import typer

from idefics.cli import COMMANDS
from idefics.cli.options import ImageOptions, SamplingOptions, spread
from idefics.cli.streams import told
from idefics.cli.terminal import write
from idefics.engine.sampling_params import SamplingParams
from idefics.errors import ConfigError


def test_help_imports_no_torch() -> None:
    script = (
        "import sys\nfrom idefics.cli import main\n"
        "try:\n main(['--help'])\nexcept SystemExit as end:\n assert not end.code, end.code\n"
        "heavy = {'torch', 'numpy', 'PIL', 'transformers', 'huggingface_hub', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for name, (_, line) in COMMANDS.items():
        assert name in done.stdout
        assert line.split(";")[0].split()[0] in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(run: Any, name: str) -> None:
    ran = run(name, "--help")
    assert ran.code == 0
    assert "Usage: idefics" in ran.out


def test_version(run: Any) -> None:
    from idefics import __version__

    assert run("--version").out.strip() == __version__


@pytest.mark.parametrize(
    "words",
    [["bogus"], ["generate"], ["generate", "--bogus", "x"], ["generate", "x", "--seed", "word"], ["init", "idefics2-nano"]],
)
def test_a_command_line_that_is_not_understood_exits_with_2(run: Any, words: list[str]) -> None:
    ran = run(*words)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err


def test_errors_are_one_line_unless_debugging(run: Any) -> None:
    ran = run("generate", "--image", "nowhere.png", "what?")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "error: nowhere.png does not exist: no such image file\n"
    from idefics.cli import main

    for words in (["--debug", "generate"], ["generate", "--debug"]):
        with pytest.raises(Exception, match=r"nowhere\.png"):
            main([*words, "--image", "nowhere.png", "what?"])


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: BaseException) -> int:
        def command() -> None:
            raise error

        with pytest.raises(typer.Exit) as ended, told():
            command()
        return ended.value.exit_code

    assert fails(ConfigError("two\nlines")) == 1
    assert capsys.readouterr().err == "error: two lines\n"
    assert fails(KeyboardInterrupt()) == 130


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = "from idefics.cli import main; import idefics.cli.download as d, sys\nmain(['generate', '--help'])"
    piped = subprocess.run(
        f'"{sys.executable}" -c "{script}" | true', shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert piped.stderr == ""


def test_a_terminal_is_spared_control_characters(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = "a\x1b[2Jb\x9b1m\tc\n"
    write(said)
    assert capsys.readouterr().out == said
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    write(said)
    assert capsys.readouterr().out == "a[2Jb1m\tc\n"


def test_options_of_a_dataclass_become_options_of_the_command() -> None:
    seen: list[Any] = []

    def command(word: Annotated[str, typer.Argument()], *, images: ImageOptions, loud: bool = False) -> None:
        seen.append((word, images, loud))

    spread_out = spread(command)
    assert list(inspect.signature(spread_out).parameters) == ["word", "split", "max_image_size", "image_size", "loud"]
    spread_out(word="a", split=True, max_image_size=None, image_size=None, loud=True)
    assert seen == [("a", ImageOptions(split=True), True)]


def test_sampling_options_are_those_of_the_engine() -> None:
    assert set(vars(SamplingOptions())) <= set(vars(SamplingParams()))
    assert SamplingOptions(temperature=0, stop=[], seed=3).given() == {"temperature": 0, "seed": 3}
