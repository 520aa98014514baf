"""Weights in fewer bits are refused with the name of their scheme, wherever that shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from idefics.config.presets import preset
from idefics.errors import ConfigError, Quantised
from idefics.plan.request import preset_named
from idefics.weights.load import load_config, load_model

Make = Callable[..., Path]
AWQ = {
    "bits": 4, "group_size": 128, "modules_to_not_convert": ["vision_model"], "quant_method": "awq", "version": "gemm",
    "zero_point": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"quantization_config": AWQ}, r"fewer bits by 'awq' \(bits = 4, group_size = 128, version = 'gemm'\), which this"),
        ({"quantization_config": {"bits": 4}}, r"by a scheme that it does not name \(bits = 4\), which this version does not"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}},
            r"by 'bitsandbytes' \(load_in_4bit = True\), which",
        ),
        ({"compression_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}, "'compressed-tensors'"),
        ({"quantization_config": "awq"}, "by a scheme that it does not name, which"),
        ({"quantization_config": {"quant_method": "x" * 10_000}}, "by 'xxxxx.{0,80}characters"),
    ],
)
@pytest.mark.parametrize("allow_unknown", [False, True])
def test_a_config_that_says_so(checkpoint: Make, values: dict[str, object], told: str, allow_unknown: bool) -> None:
    path = checkpoint() / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(Quantised, match=told):
        load_config(path.parent, allow_unknown=allow_unknown)


def test_a_config_that_says_nothing_by_it(checkpoint: Make) -> None:
    path = checkpoint() / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": None}))
    assert load_config(path.parent).model_type == "idefics2"


@pytest.mark.parametrize(
    ("tensors", "scheme"),
    [
        (("qweight", "qzeros", "scales"), "awq or gptq"),
        (("qweight", "qzeros", "scales", "g_idx"), "gptq"),
        (("weight_packed", "weight_scale", "weight_shape"), "compressed-tensors"),
        (("weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"), "bitsandbytes nf4"),
        (("weight", "SCB", "weight_format"), "bitsandbytes int8"),
        (("weight", "weight_scale_inv"), "fp8"),
    ],
)
def test_tensors_that_say_so(checkpoint: Make, tensors: tuple[str, ...], scheme: str) -> None:
    """The config is silent, as where it was edited."""
    path = checkpoint() / "model.safetensors"
    layer = "model.text_model.layers.0.mlp.up_proj"
    held = {name: value.clone() for name, value in load_file(path).items() if not name.startswith(layer)}
    held |= {f"{layer}.{name}": torch.zeros(4, dtype=torch.int32) for name in tensors}
    save_file(held, path, metadata={"format": "pt"})
    with pytest.raises(Quantised, match=rf"fewer bits by {scheme} \(model\.text_model\.layers\.0\.mlp\.up_proj\.\w"):
        load_model(path.parent)


@pytest.mark.parametrize(
    "name",
    [
        "HuggingFaceM4/idefics2-8b-AWQ", "idefics2-8b-base-AWQ", "idefics2-8b-chatty-AWQ", "x/idefics-9b-instruct-GPTQ-Int4",
        "idefics2-8b-bnb-4bit", "idefics2-8b-4bit", "idefics2-8b.Q4_K_M", "idefics2-8b-w4a16", "x/idefics2-8b-FP8",
    ],
)  # fmt: skip
def test_a_name_in_fewer_bits_is_not_the_model_in_sixteen(name: str) -> None:
    for asked in (preset, preset_named):
        with pytest.raises(Quantised, match=rf"{name} stores weights in fewer bits \(.+; idefics.* is the model in 16 bits"):
            asked(name)


def test_other_names_are_what_they_were() -> None:
    assert preset("HuggingFaceM4/idefics2-8b-chatty") == preset("idefics2-8b-base") == preset("idefics2-8b")
    with pytest.raises(ConfigError, match="no preset 'llava-AWQ'"):
        preset("llava-AWQ")
