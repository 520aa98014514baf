"""`idefics bench`: how fast a model is here, and how far from what the machine can do."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Annotated

from typer import Argument, Option

from idefics.cli.loading import memory_explained, open_model
from idefics.cli.options import ImageOptions, ModelOptions
from idefics.cli.terminal import status
from idefics.errors import OptionError
from idefics.machine.dtypes import dtype_name

__all__ = ["bench"]


def bench(
    checkpoint: Annotated[
        str | None, Argument(metavar="[MODEL]", help="Folder or Hub id; left out: the embedded model.", show_default=False)
    ] = None,
    *,
    model: ModelOptions,
    images: ImageOptions,
    image: Annotated[str, Option(metavar="WxH", help="Size of the pictures.")] = "1280x960",
    prompt: Annotated[int, Option(help="Tokens of text that are read.")] = 256,
    tokens: Annotated[int, Option(help="Tokens that are written per answer.")] = 32,
    together: Annotated[int, Option(help="Requests at once.")] = 16,
    rounds: Annotated[int, Option(help="Repetitions of everything; the median counts.")] = 5,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Measure a model on this machine: images, prompts, answers, turns, many requests at once.

    Pictures are drawn; nothing is downloaded but the model. Beside each time stands what part of the machine's own limit is
    reached, measured just before.

    Example: idefics bench HuggingFaceM4/idefics2-8b --dtype bfloat16 --rounds 3
    """
    model = model.naming(checkpoint)
    sides = re.fullmatch(r"(\d+)[xX×](\d+)", image)
    if sides is None:
        raise OptionError(f"--image {image!r} is not a size such as 1280x960")
    loaded = open_model(model, images)
    from idefics.bench import bench as run

    with status("measuring") as progress, memory_explained("measuring the model"):
        reached, done = run(
            loaded,
            image=(int(sides[1]), int(sides[2])),
            prompt=prompt,
            tokens=tokens,
            together=together,
            rounds=rounds,
            progress=progress,
        )
    dtype = dtype_name(loaded.model.dtype)
    if as_json:
        rows = [dataclasses.asdict(work) for work in done]
        print(json.dumps({"model": loaded.name, "dtype": dtype, "ceilings": dataclasses.asdict(reached), "work": rows}))
        return
    print(
        f"{loaded.name}, {dtype}, {loaded.model.device}: memory {reached.bytes_per_second / 1e9:.0f} GB/s, "
        f"products {reached.operations_per_second[dtype] / 1e12:.2f} TFLOP/s"
    )
    for work in done:
        limit = "" if work.limit is None else f"{100 * work.limit / work.seconds:5.0f} % of the limit"
        print(f"{work.name:36} {1000 * work.seconds:10.1f} ms {work.rate:10.1f} {work.unit}/s  {limit}".rstrip())
