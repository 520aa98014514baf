"""Names of dtypes, as files, people and torch spell them."""

from __future__ import annotations

import torch

from idefics.config import DTYPES
from idefics.errors import OptionError
from idefics.machine.dtypes import dtype_name, dtype_named

__all__ = ["torch_dtype"]

_SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16", "float": "float32"}


def torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by name or as it is; None and `"auto"` mean the stored one.

    Raises:
        OptionError: not one of float32, float16, bfloat16.
    """
    if dtype is None or dtype == "auto":
        return None
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype_name(dtype)
    name = _SHORT.get(name, name)
    if name not in DTYPES:
        raise OptionError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}")
    return dtype_named(name)
