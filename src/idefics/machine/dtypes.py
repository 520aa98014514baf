"""Names of dtypes as files and people write them, without torch's prefix; importing this loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["dtype_name", "dtype_named"]


def dtype_name(dtype: torch.dtype) -> str:
    """What a dtype is called.

    >>> import torch
    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The dtype of a name, which must be one of torch's.

    >>> dtype_named("float16")
    torch.float16
    """
    import torch

    found: torch.dtype = getattr(torch, name)
    return found
