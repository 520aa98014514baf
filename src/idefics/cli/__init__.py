"""The command line. One file per command, imported when it is used: `idefics --help` loads no torch.

Exit codes: 0 done, 1 an error (one line on stderr), 2 the command line was not understood, 130 stopped with Ctrl-C,
141 whoever read our output went away.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from idefics.cli.streams import prepare_streams, told

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "generate": ("idefics.cli.generate:generate", "Ask a question about images; the answer goes to stdout."),
    "bench": ("idefics.cli.bench:bench", "Measure how fast a model is here."),
    "chat": ("idefics.cli.chat:chat", "Talk about images, turn by turn."),
    "demo": ("idefics.cli.demo:demo", "Answer questions about the images that ship with the package."),
    "download": ("idefics.cli.download:download", "Fetch a model from the Hugging Face Hub."),
    "info": ("idefics.cli.info:info", "Show what a model is: parameters, files, tokenizer, image settings."),
    "init": ("idefics.cli.init:init", "Write a checkpoint with random weights."),
    "plan": ("idefics.cli.plan:plan", "Tell what a request will take, before anything is loaded."),
    "serve": ("idefics.cli.serve:serve", "Serve a model over HTTP: text-generation-inference's API and OpenAI's."),
    "verify": ("idefics.cli.verify:verify", "Test a model for silently wrong output."),
}
"""Name to (module:function, one line of help)."""

DEBUG = "--debug"


class Commands(TyperGroup):
    """The commands by name. Help shows stand-ins; the one that is run is imported then."""

    debug = False

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Reads the program's own options; help and version are printed here, to a stdout that may be gone."""
        with nullcontext() if self.debug else told():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; its help is printed here."""
        with nullcontext() if self.debug else told():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replaces the stand-in of the command that was asked for by the command."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        if name not in COMMANDS:
            return name, stand_in, rest
        return name, _load(name), rest


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line and exits.

    Args:
        arguments: without the program's name; None takes the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    prepare_streams()
    end = given.index("--") if "--" in given else len(given)
    commands: Any = typer.main.get_command(_application())
    commands.debug = DEBUG in given[:end]
    commands.main([word for word in given[:end] if word != DEBUG] + given[end:], prog_name="idefics")


def _application() -> typer.Typer:
    application = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")
    application.callback(help="Ask the IDEFICS family of open vision-language models about images.")(_program)
    for name, (_, help_line) in COMMANDS.items():
        application.command(name, help=help_line)(_stand_in)
    return application


def _stand_in() -> None:
    raise AssertionError("a stand-in was run")


def _show_version(asked: bool) -> None:
    if asked:
        from idefics import __version__

        print(__version__)
        raise typer.Exit


def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show where an error came from; works after a command, too.")] = False,
) -> None:
    # Both have done their work: one as it was read, the other is taken out of the arguments wherever it stands.
    del version, debug


def _load(name: str) -> Any:
    module, _, function = COMMANDS[name][0].partition(":")
    from idefics.cli.options import spread

    single = typer.Typer(add_completion=False, rich_markup_mode="rich")
    single.command(name)(spread(getattr(import_module(module), function)))
    return typer.main.get_command(single)
