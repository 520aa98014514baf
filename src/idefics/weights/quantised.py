"""Checkpoints in fewer bits, told by their config or by their tensors, and refused until a scheme reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from idefics.config.rules import brief
from idefics.errors import Quantised

__all__ = ["refuse_config", "refuse_tensors"]

REMEDY = "which this version does not read; give the checkpoint in 16 or 32 bits that it was made from"

# Ends of tensor names, the telling ones first.
_MARKS = {
    ".g_idx": "gptq",
    ".qweight": "awq or gptq",
    ".weight_packed": "compressed-tensors",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes nf4",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes fp4",
    ".SCB": "bitsandbytes int8",
    ".weight_scale_inv": "fp8",
    ".weight_scale": "compressed-tensors",
}
_TOLD = ("bits", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "group_size", "version", "format", "fmt")


def refuse_config(raw: Mapping[str, Any]) -> None:
    """Refuses the content of a `config.json` that says how its weights were quantised.

    Raises:
        Quantised: with the scheme, as the config calls it.
    """
    for key in ("quantization_config", "compression_config"):
        found = raw.get(key)
        if not found:
            continue
        facts = found if isinstance(found, dict) else {}
        scheme = facts.get("quant_method")
        told = ", ".join(f"{name} = {brief(facts[name])}" for name in _TOLD if facts.get(name) not in (None, False))
        raise Quantised(
            f"config.{key}: weights are stored in fewer bits by "
            f"{brief(scheme) if scheme else 'a scheme that it does not name'}{f' ({told})' if told else ''}, {REMEDY}"
        )


def refuse_tensors(folder: Path, names: Iterable[str]) -> None:
    """Refuses files whose tensors are those of a scheme.

    Args:
        folder: named in the error.
        names: of all tensors, as published.

    Raises:
        Quantised: with the scheme and a tensor that shows it.
    """
    names = list(names)
    for mark, scheme in _MARKS.items():
        shown = next((name for name in names if name.endswith(mark)), None)
        if shown is not None:
            raise Quantised(f"{folder}: weights are stored in fewer bits by {scheme} ({shown}), {REMEDY}")
