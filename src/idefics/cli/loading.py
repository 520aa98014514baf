"""From the options of a command to a model, with a progress bar where somebody watches."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from idefics.cli.options import ImageOptions, ModelOptions
from idefics.cli.terminal import one_line, say
from idefics.errors import OptionError

if TYPE_CHECKING:
    from idefics.api import Idefics

__all__ = ["bar", "memory_explained", "open_model"]


def open_model(options: ModelOptions, images: ImageOptions, *, tensor_parallel: int | None = None) -> Idefics:
    """Loads the model that was asked for.

    Args:
        options: which, and where.
        images: how large they are seen.
        tensor_parallel: processes that compute it together.

    Raises:
        OptionError: `torchrun` started several processes, and each would load the whole model.
        IdeficsError: as `idefics.api.load`.
    """
    started = os.environ.get("WORLD_SIZE", "1")
    if tensor_parallel is None and started != "1":
        raise OptionError(
            f"{started} processes were started (WORLD_SIZE), and each would load the whole model and answer; "
            f"divide it between them with `idefics generate --tensor-parallel {started}`, or start one process"
        )
    import torch

    from idefics.assets import EMBEDDED_NAME
    from idefics.weights.dtype import torch_dtype
    from idefics.weights.files import resolve

    if options.threads is not None:
        torch.set_num_threads(options.threads)

    torch_dtype(options.dtype)  # refuses before anything is downloaded
    # Before the bar of loading appears: downloads have their own.
    folder = resolve(
        options.model,
        revision=options.revision,
        cache_dir=options.cache_dir,
        token=options.token,
        offline=options.offline,
        progress=sys.stderr.isatty(),
    )
    from idefics.api import load

    with _warnings_told(), bar("loading") as progress, memory_explained("loading the model"):
        model = load(
            folder,
            dtype=options.dtype,
            device=options.device,
            device_map=options.placement(),
            tensor_parallel=tensor_parallel,
            max_image_size=images.max_image_size,
            split=images.split,
            allow_unknown_config=options.allow_unknown_config,
            progress=progress,
        )
    model.name = options.model or EMBEDDED_NAME
    return model


@contextmanager
def _collector_resting() -> Iterator[None]:
    """Else Python looks through the same lasting objects again and again while torch is imported: a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _warnings_told() -> Iterator[None]:
    """Tells warnings as a line each, without the code that they were raised in."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for warning in caught:
                say(f"warning: {one_line(warning.message)}")


@contextmanager
def bar(doing: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr, gone when done; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(doing, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def memory_explained(doing: str) -> Iterator[None]:
    """Tells the end of memory as one line with what to reduce.

    Raises:
        OutOfMemory: instead of what torch or Python raise.
    """
    from idefics.machine.memory import explain_out_of_memory

    reduce = (
        "use a 16-bit --dtype, --no-split, a smaller --max-image-size, fewer images or a smaller --max-new-tokens; "
        "`idefics plan` tells what is needed"
    )
    with explain_out_of_memory(doing, reduce=reduce):
        yield
