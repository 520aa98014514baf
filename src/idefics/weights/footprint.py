"""How large a model is, from its config alone; nothing is allocated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from idefics.config import Config
from idefics.weights.families import build_on_meta, family_of

__all__ = ["kv_bytes_per_token", "main_dtype", "parameter_counts", "tensor_bytes"]


def parameter_counts(config: Config) -> dict[str, int]:
    """Parameters of each part, in order; a tied head counts none.

    >>> from idefics.config.presets import preset
    >>> sum(parameter_counts(preset("idefics2-8b")).values())
    8402768112
    """
    parts = family_of(config).parts
    counts = dict.fromkeys(parts, 0)
    for name, parameter in build_on_meta(config).named_parameters():
        counts[next(part for part, prefix in parts.items() if name.startswith(prefix + "."))] += parameter.numel()
    return counts


def kv_bytes_per_token(config: Config, dtype: torch.dtype) -> int:
    """Bytes that one token of one row takes in the cache of keys and values, over all layers.

    >>> from idefics.config.presets import preset
    >>> kv_bytes_per_token(preset("idefics2-8b"), torch.bfloat16)
    131072
    """
    text = config.text_config
    return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * dtype.itemsize


def tensor_bytes(tensor: Tensor, dtype: torch.dtype) -> int:
    """Bytes of a parameter that is loaded in a dtype, or of a buffer, which keeps its own."""
    return tensor.numel() * (dtype if isinstance(tensor, nn.Parameter) else tensor.dtype).itemsize


def main_dtype(tensors: Iterable[tuple[torch.dtype, int]]) -> torch.dtype:
    """The dtype that most of the bytes are in, of tensors given by dtype and bytes.

    >>> main_dtype([(torch.float32, 8), (torch.bfloat16, 64), (torch.float32, 8)])
    torch.bfloat16
    """
    totals: Counter[torch.dtype] = Counter()
    for dtype, size in tensors:
        totals[dtype] += size
    return totals.most_common(1)[0][0]
