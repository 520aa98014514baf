"""`idefics init`: a checkpoint with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from idefics.cli.loading import bar
from idefics.config.presets import preset, preset_names
from idefics.machine.byte_sizes import byte_size

__all__ = ["init"]


def init(
    preset_name: Annotated[str, Argument(metavar="PRESET", help=f"One of {', '.join(preset_names())}.", show_default=False)],
    out: Annotated[Path, Argument(help="Folder to write; new or empty.", show_default=False)],
    *,
    seed: Annotated[int, Option("--seed", help="Of the weights.")] = 0,
    dtype: Annotated[
        str | None, Option("--dtype", help="float32, bfloat16 or float16; left out: the preset's.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        Path | None, Option("--tokenizer", help="Folder to take the tokenizer from.", show_default=False)
    ] = None,
    max_shard_size: Annotated[str, Option("--max-shard-size", help="Of one weight file.")] = "5GB",
) -> None:
    """Write a random-weight checkpoint of a preset, in the published layout, and print its folder.

    Without --tokenizer it carries the embedded model's small tokenizer, padded to the preset's vocabulary.
    """
    preset(preset_name)  # refuses before torch is loaded
    limit = byte_size(max_shard_size, name="--max-shard-size")
    from idefics.weights.create import create_checkpoint

    with bar("writing") as progress:
        create_checkpoint(
            preset_name, out, seed=seed, dtype=dtype, tokenizer=tokenizer, max_shard_bytes=limit, progress=progress
        )
    print(out)
