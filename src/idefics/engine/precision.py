"""In which precision answers are computed: the model's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

__all__ = ["own_precision"]


@contextmanager
def own_precision() -> Iterator[None]:
    """Computes in the model's own dtype, also where the caller stands in `torch.autocast`.

    What an engine keeps, keys, values and images, is read by later calls, which may stand in none or in another one.
    """
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
