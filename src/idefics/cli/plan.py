"""`idefics plan`: what a request will take, before anything is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from idefics.assets import EMBEDDED_NAME
from idefics.cli.images import reference
from idefics.cli.options import ImageOptions
from idefics.cli.streams import as_text
from idefics.cli.terminal import say
from idefics.config.keys import shown
from idefics.errors import ImageError, OptionError, OutOfMemory
from idefics.machine.byte_sizes import byte_size
from idefics.plan import (
    ASSUMED_TEXT_TOKENS,
    PRECISIONS,
    MemoryPlan,
    Plan,
    Precision,
    Share,
    Subject,
    make_plan,
    make_shares,
    subject,
)

__all__ = ["plan"]

GIB = 2**30
Cut = tuple[Share, ...] | str
"""What each GPU holds, or why the weights cannot be cut."""


def plan(
    model: Annotated[
        str | None, Argument(help="Preset, Hub id that names one, or folder; left out: the embedded model.", show_default=False)
    ] = None,
    *,
    image: Annotated[
        list[str] | None, Option("--image", "-i", help="WIDTHxHEIGHT, file or URL; repeatable.", show_default=False)
    ] = None,
    images: ImageOptions,
    text: Annotated[
        str | None, Option("--text", help="The question; counted exactly if MODEL is a folder.", show_default=False)
    ] = None,
    text_tokens: Annotated[int | None, Option("--text-tokens", help="Its tokens, if you know.", show_default=False)] = None,
    new_tokens: Annotated[int, Option("--max-new-tokens", help="Length of the answer.")] = 512,
    batch: Annotated[int, Option("--batch", help="Requests at once.")] = 1,
    dtype: Annotated[str | None, Option("--dtype", help="Show this one only.", show_default=False)] = None,
    memory: Annotated[
        str | None, Option("--memory", help="What there is, e.g. 24GiB; left out: what is free here.", show_default=False)
    ] = None,
    gpus: Annotated[
        str | None,
        Option("--gpus", help="Cut the model over GPUs: 4x80 is four of 80 GiB, 4x80GB of 80 GB.", show_default=False),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell image tokens, prompt tokens and memory per dtype, and whether it fits; works offline and loads nothing.

    Example: idefics plan HuggingFaceM4/idefics2-8b --image 1920x1080 --split --memory 24GiB
    """
    if text is not None and text_tokens is not None:
        raise OptionError("--text and --text-tokens contradict each other; give one")
    precisions = _precisions(dtype)
    if memory is not None and gpus is not None:
        raise OptionError("--memory and --gpus contradict each other; give one")
    sizes = None if gpus is None else _gpus(gpus)
    available = None if memory is None else (byte_size(memory, name="--memory"), "given")
    if sizes is not None:
        available = (sum(sizes), f"on {len(sizes)} GPUs")
    planned_for = subject(EMBEDDED_NAME if model is None else model)
    if planned_for.unknown:
        say(f"warning: planned as if the files did not say {shown(planned_for.unknown)}")
    text = None if text is None else as_text(text, "--text")
    counted, how = _text(planned_for, text, text_tokens, images=len(image or ()))
    made = make_plan(
        planned_for.config,
        [_size(one) for one in image or ()],
        seen_by=planned_for.images,
        split=images.split,
        max_image_size=images.max_image_size,
        image_size=images.image_size,
        text_tokens=counted,
        new_tokens=new_tokens,
        batch=batch,
        precisions=precisions,
    )
    if available is None:
        available = _detected()
    cuts = {} if sizes is None else {row.precision.name: _shares(planned_for, sizes, row) for row in made.memory}
    if as_json:
        print(json.dumps(_record(planned_for, made, available, cuts) | ({"gpus": _gpu_record(cuts)} if cuts else {})))
    else:
        _show(planned_for, made, available, how, cuts)
        _show_cuts(cuts)


def _gpus(given: str) -> list[int]:
    count, cross, size = re.sub("[X\u00d7]", "x", given).partition("x")
    if not cross or not count.isdecimal() or int(count) < 1:
        raise OptionError(f"--gpus {given!r} is not a number of GPUs and the memory of each, such as 4x80 (GiB) or 4x80GB")
    bare = re.fullmatch(r"\d+(\.\d+)?", size) is not None
    return [byte_size(f"{size}GiB" if bare else size, name="the memory of each in --gpus")] * int(count)


def _shares(planned_for: Subject, sizes: list[int], memory: MemoryPlan) -> Cut:
    try:
        return make_shares(planned_for.config, sizes, memory)
    except OutOfMemory as error:
        return str(error)


def _fits(row: MemoryPlan, available: tuple[int, str] | None, cut: Cut | None) -> bool | None:
    """None where nobody knows what there is. Each of several GPUs must hold its own share: room on another is no help."""
    if cut is not None:
        return not isinstance(cut, str) and all(share.fits for share in cut)
    return None if available is None else row.total <= available[0]


def _gpu_record(cuts: Mapping[str, Cut]) -> dict[str, Any]:
    return {
        name: cut if isinstance(cut, str) else [{**vars(share), "free": share.free, "fits": share.fits} for share in cut]
        for name, cut in cuts.items()
    }


def _show_cuts(cuts: Mapping[str, Cut]) -> None:
    from rich.console import Console

    console = Console()
    for name, cut in cuts.items():
        lines = [f"{name}: {cut}"] if isinstance(cut, str) else [f"{name}, as --device-map auto cuts it:"]
        for index, share in enumerate(() if isinstance(cut, str) else cut):
            held = (
                f"{share.weights / GIB:.1f} GiB of weights, {(share.kv_cache + share.activations) / GIB:.1f} of the request, "
            )
            held += f"{share.free / GIB:.1f} free" if share.fits else f"{-share.free / GIB:.1f} MISSING"
            lines.append(f"  cuda:{index}  {share.first} to {share.last}: {held}")
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _precisions(dtype: str | None) -> tuple[Precision, ...]:
    if dtype is None:
        return PRECISIONS
    chosen = tuple(precision for precision in PRECISIONS if dtype in precision.dtypes)
    if not chosen:
        known = ", ".join(name for precision in PRECISIONS for name in precision.dtypes)
        raise OptionError(f"--dtype {dtype!r} is not one of {known}")
    return chosen


def _size(image: str) -> tuple[int, int]:
    pixels = re.fullmatch(r"(\d+)[xX\u00d7](\d+)", image)
    if pixels and not Path(image).exists():
        return int(pixels[1]), int(pixels[2])
    from idefics.processor.fetch import load_image

    try:
        opened = load_image(reference(image))  # upright, as those see it whose tokens depend on its sides
    except ImageError as error:
        raise ImageError(f"{error}; give a file, a URL, or a size such as 1920x1080") from None
    return opened.width, opened.height


def _text(planned_for: Subject, text: str | None, tokens: int | None, *, images: int) -> tuple[int, str]:
    """Tokens of the text, and how they are known."""
    if tokens is not None:
        return tokens, "given"
    if text is None:
        return ASSUMED_TEXT_TOKENS, "assumed"
    counted = planned_for.text_tokens(text, images=images)
    if counted is not None:
        return counted, "counted"
    return 8 + -(-len(text.encode()) // 3), "estimated"


def _detected() -> tuple[int, str] | None:
    import torch

    from idefics.machine.memory import free_bytes

    if torch.cuda.is_available():
        free = [free_bytes(torch.device("cuda", index)) or 0 for index in range(torch.cuda.device_count())]
        return sum(free), f"free on {len(free)} GPU{'s' * (len(free) > 1)}"
    ram = free_bytes(torch.device("cpu"))
    return None if ram is None else (ram, "free RAM")


def _show(
    planned_for: Subject,
    made: Plan,
    available: tuple[int, str] | None,
    how: str,
    cuts: Mapping[str, Cut],
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    source = f"folder {planned_for.folder}" if planned_for.folder else "preset, nothing downloaded"
    parts = ", ".join(f"{part} {_count(count)}" for part, count in made.parameters.items())
    total = sum(made.parameters.values())
    console.print(
        f"{planned_for.name} ({source}): {_count(total)} parameters ({parts})", highlight=False, markup=False, soft_wrap=True
    )
    tokens = Table("image", "seen as", "patches", "tokens", box=None, pad_edge=False)
    for image in made.images:
        seen = ", ".join(f"{w}x{h}" for w, h in image.seen)
        tokens.add_row(f"{image.width}x{image.height}", seen, str(image.patches), str(image.tokens))
    if made.images:
        console.print(tokens)
    console.print(
        f"image tokens {made.image_tokens} ({made.framed_tokens} with the tokens around images), "
        f"text {made.text_tokens} ({how}): prompt {made.prompt_tokens}, and {made.new_tokens} new; batch {made.batch}",
        highlight=False,
        soft_wrap=True,
    )
    if not made.fits_positions:
        console.print(f"does not fit the model's {made.positions} positions", style="red", highlight=False)
    table = Table("GiB", "weights", "KV cache", "vision", "prompt", "total at peak", "fits", box=None, pad_edge=False)
    for column in table.columns[1:6]:
        column.justify = "right"
    for row in made.memory:
        fits = {None: "?", True: "yes", False: "no"}[_fits(row, available, cuts.get(row.precision.name))]
        values = (row.weights, row.kv_cache, row.vision, row.prompt, row.total)
        table.add_row(row.precision.name, *(f"{value / GIB:.2f}" for value in values), fits)
    console.print(table)
    if available is not None:
        console.print(f"memory: {available[0] / GIB:.1f} GiB {available[1]}", highlight=False)


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e8 else f"{parameters / 1e6:.2f} M"


def _record(planned_for: Subject, made: Plan, available: tuple[int, str] | None, cuts: Mapping[str, Cut]) -> dict[str, Any]:
    return {
        "model": planned_for.name,
        "parameters": dict(made.parameters),
        "images": [{**vars(image), "seen": [list(size) for size in image.seen]} for image in made.images],
        "tokens": {
            "image": made.image_tokens,
            "framed": made.framed_tokens,
            "text": made.text_tokens,
            "prompt": made.prompt_tokens,
            "new": made.new_tokens,
        },
        "batch": made.batch,
        "fits_positions": made.fits_positions,
        "available_bytes": None if available is None else available[0],
        "bytes": {
            row.precision.name: {
                "weights": row.weights,
                "kv_cache": row.kv_cache,
                "vision": row.vision,
                "prompt": row.prompt,
                "total": row.total,
                "fits": _fits(row, available, cuts.get(row.precision.name)),
            }
            for row in made.memory
        },
    }
