"""`idefics verify`: a self-test against silently wrong output."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

from idefics.cli.loading import memory_explained, open_model
from idefics.cli.options import ImageOptions, ModelOptions
from idefics.cli.terminal import status
from idefics.config.keys import shown
from idefics.machine.dtypes import dtype_name

if TYPE_CHECKING:
    from idefics.selftest import Check

__all__ = ["verify"]


def verify(
    checkpoint: Annotated[
        str | None, Argument(metavar="[MODEL]", help="Folder or Hub id; left out: the embedded model.", show_default=False)
    ] = None,
    *,
    model: ModelOptions,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Test a model for silently wrong output: a table, and exit code 1 if anything is wrong.

    Works on any checkpoint. Needs the memory of the weights and little more; an 8B takes seconds on a GPU.

    Example: idefics verify HuggingFaceM4/idefics2-8b --dtype bfloat16
    """
    model = model.naming(checkpoint)
    loaded = open_model(model, ImageOptions())
    from idefics.selftest import verify as run

    with status("testing") as progress, memory_explained("testing the model"):
        checks = run(loaded, progress=progress)
    failed = [check for check in checks if not check.passed]
    unknown = loaded.unknown
    dtype = dtype_name(loaded.model.dtype)
    if as_json:
        rows = [dataclasses.asdict(check) for check in checks]
        report = {"model": loaded.name, "dtype": dtype, "passed": not failed, "checks": rows}
        print(json.dumps(report | ({"unknown_config": dict(unknown)} if unknown else {}), ensure_ascii=False))
    else:
        _print_table(checks, title=f"{loaded.name}, {dtype}")
        names = ": " + "; ".join(check.name for check in failed) if failed else ""
        if unknown:
            print(f"the files ask for what nobody here knows, and no check can tell whether it matters: {shown(unknown)}")
        print(f"{len(checks) - len(failed)} of {len(checks)} checks passed{', FAILED' if failed else ''}{names}")
    if failed:
        raise Exit(1)


def _print_table(checks: Sequence[Check], *, title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", pad_edge=False)
    for heading in ("", "check", "measured", "allowed", "what was compared"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        mark = Text("ok", style="green") if check.passed else Text("FAIL", style="bold red")
        # Text, not markup: tokens such as [INST] in a message are no tags.
        table.add_row(mark, *map(Text, (check.name, check.measured, check.allowed, check.explanation)))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
