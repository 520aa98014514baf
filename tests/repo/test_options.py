"""The table of options in the docs, and on every surface, is the table in the code."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_type_hints

from idefics.cli.generate import generate
from idefics.cli.options import SamplingOptions
from idefics.engine.options import ALIASES, OPTIONS, Option
from idefics.engine.sampling_params import SamplingParams
from idefics.server.openai.schemas import ChatCompletionRequest, CompletionRequest
from idefics.server.tgi.schemas import Parameters
from repo.repository import ROOT


def table() -> list[str]:
    """As docs/reference/options.md shows it."""
    head = ["option", "values", "asks for nothing", "other names", "command", "`/generate`", "`/v1`"]
    rows = [head, ["---"] * len(head), *map(_row, OPTIONS.values())]
    return [f"| {' | '.join(row)} |" for row in rows]


def _row(option: Option) -> list[str]:
    names = [option.command, option.tgi, option.openai]
    values = f"{option.kind.words}{', ' if option.rule else ''}{option.rule}"
    neutral = ", ".join(f"`{value}`" for value in option.neutral if value != ())
    return [
        f"`{option.name}`",
        values,
        neutral,
        ", ".join(f"`{alias}`" for alias in option.aliases),
        *("" if name is None else f"`{name}`" for name in names),
    ]


def test_the_docs_show_the_table() -> None:
    shown = (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in shown if line.startswith("|")] == table()


def test_the_command_has_what_the_table_says() -> None:
    hints = {**get_type_hints(SamplingOptions, include_extras=True), **get_type_hints(generate, include_extras=True)}

    def flag(hint: Any) -> str:
        return str(get_args(hint)[1].param_decls[0] if get_args(hint)[1].param_decls else get_args(hint)[1].default)

    offered = {name: flag(hints[name]) for name in (*(f.name for f in dataclasses.fields(SamplingOptions)), "n")}
    assert offered == {option.name: option.command for option in OPTIONS.values() if option.command is not None}


def test_the_server_has_what_the_table_says() -> None:
    tgi = {option.tgi for option in OPTIONS.values()} - {None}
    assert tgi <= {*Parameters.model_fields}
    openai = {option.openai for option in OPTIONS.values()} - {None}
    fields = {*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields}
    assert openai <= fields
    for option in OPTIONS.values():  # an option of this name that the table forgets
        for name in (option.name, *(alias for alias, of in ALIASES.items() if of == option.name)):
            assert name not in Parameters.model_fields or option.tgi == name, name
            assert name not in fields or option.openai == name, name


def test_python_has_what_the_table_says() -> None:
    assert [field.name for field in dataclasses.fields(SamplingParams)] == [*OPTIONS]
