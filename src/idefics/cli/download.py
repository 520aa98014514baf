"""`idefics download`: a model from the Hub, to the cache or to a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from idefics.config.whole_files import expanded
from idefics.errors import CheckpointNotFound

__all__ = ["download"]


def download(
    model: Annotated[str, Argument(help="Hub id, for example HuggingFaceM4/idefics2-8b.", show_default=False)],
    *,
    to: Annotated[
        Path | None, Option("--to", help="Folder for the files, instead of the Hub's cache.", show_default=False)
    ] = None,
    revision: Annotated[str | None, Option("--revision", help="Branch, tag or commit.", show_default=False)] = None,
    cache_dir: Annotated[
        Path | None, Option("--cache-dir", help="The cache; left out: the Hub's own folder.", show_default=False)
    ] = None,
    token: Annotated[str | None, Option("--token", help="For gated or private models.", show_default=False)] = None,
) -> None:
    """Fetch a model from the Hugging Face Hub and print the folder it is in.

    Config, tokenizer and safetensors only; an interrupted download goes on where it stopped.
    """
    if expanded(model).exists():
        raise CheckpointNotFound(f"{model} is here already; download takes a Hub id (owner/name)")
    from idefics.weights.files import resolve

    print(resolve(model, revision=revision, cache_dir=cache_dir, token=token, to=to, progress=sys.stderr.isatty()))
