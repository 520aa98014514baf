"""From the options of a command to a model, with a progress bar where somebody watches."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from idefics.cli.options import ImageOptions, ModelOptions
from idefics.cli.terminal import one_line, say
from idefics.errors import OptionError
from idefics.machine.progress import Progress

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
    with _collector_resting():
        import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    from idefics.api import load

    with _warnings_told(), bar("loading") as progress, memory_explained("loading the model"):
        return load(
            options.model,
            revision=options.revision,
            cache_dir=options.cache_dir,
            token=options.token,
            offline=options.offline,
            dtype=options.dtype,
            device=options.device,
            device_map=options.placement(),
            tensor_parallel=tensor_parallel,
            max_image_size=images.max_image_size,
            image_size=images.image_size,
            split=images.split,
            allow_unknown_config=options.allow_unknown_config,
            progress=progress,
        )


@contextmanager
def _collector_resting() -> Iterator[None]:
    """Else Python looks through the same lasting objects again and again while torch is imported: a tenth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
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
def bar(doing: str) -> Iterator[Progress | None]:
    """A progress bar on stderr from the first word of progress on, gone when done; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich
    from rich.console import Console

    columns: list[Any] = [
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.DownloadColumn(binary_units=True),
        rich.TimeRemainingColumn(),
    ]
    shown = rich.Progress(*columns, console=Console(stderr=True), transient=True)
    task = shown.add_task(doing, total=None)

    def tell(done: int, total: int) -> None:
        shown.start()  # not before: a download that comes first has bars of its own
        shown.update(task, completed=done, total=total)

    try:
        yield tell
    finally:
        shown.stop()


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
