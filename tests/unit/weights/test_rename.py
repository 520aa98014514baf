from __future__ import annotations

import pytest
from tiny_models import TINY

from idefics.config import CONFIGS
from idefics.hf import auto
from idefics.processor.families import PROCESSORS
from idefics.weights.families import FAMILIES, build_on_meta
from idefics.weights.idefics2 import TABLE
from idefics.weights.rename import RenameTable


def test_every_parameter_has_one_published_name_and_back() -> None:
    ours = [name for name, _ in build_on_meta(TINY).named_parameters()]
    published = [TABLE.published(name) for name in ours]
    assert len(set(published)) == len(ours)
    assert [TABLE.ours(name) for name in published] == ours
    assert all(name in ("lm_head.weight",) or name.startswith("model.") for name in published)


def test_no_row_is_without_a_parameter() -> None:
    parameters = {name for name, _ in build_on_meta(TINY).named_parameters()}
    for target in TABLE._ours.values():
        if target is not None:
            row = target.replace("{layer}", "0")
            assert any(name == row or name.startswith(f"{row}.") for name in parameters), row


def test_a_row_names_a_module_whatever_its_tensors_are_called() -> None:
    for end in ("weight", "qweight", "scales", "weight.quant_state.bitsandbytes__nf4", "lora_A.0.weight"):
        name = f"model.text_model.layers.11.self_attn.q_proj.{end}"
        assert TABLE.ours(name) == f"text_model.layers.11.self_attn.q_proj.{end}"
        assert TABLE.published(f"text_model.layers.11.self_attn.q_proj.{end}") == name


def test_names_of_layers_beyond_nine() -> None:
    name = "model.vision_model.encoder.layers.26.self_attn.out_proj.bias"
    assert TABLE.ours(name) == "vision_model.encoder.layers.26.self_attn.out_proj.bias"
    assert TABLE.published("vision_model.encoder.layers.26.self_attn.out_proj.bias") == name


def test_buffers_of_older_files_are_dropped_on_purpose() -> None:
    for name in ("model.vision_model.embeddings.position_ids", "model.text_model.layers.3.self_attn.rotary_emb.inv_freq"):
        assert TABLE.knows(name)
        assert TABLE.ours(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "model.text_model.layers.0.self_attn.qkv_proj.weight",
        "model.text_model.rotary_emb.inv_freq.weight",
        "lm_heads.weight",
        "model.text_model.layers.x.input_layernorm.weight",
        "text_model.norm.weight",
    ],
)
def test_unknown_names_are_unknown(name: str) -> None:
    assert not TABLE.knows(name)
    with pytest.raises(KeyError):
        TABLE.ours(name)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a.{q,k}": "x.{q,k}", "a.q": "y"}, "two rows begin with a.q"),
        ({"a": "x", "b": "x"}, "two rows end in x"),
        ({"a.{layer}.w": "x"}, "different placeholders"),
        ({"a.{q,k}": "x.{k,q}"}, "different alternatives"),
    ],
)
def test_a_table_that_cannot_be_inverted_is_refused(rows: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RenameTable(rows)


def test_families_are_keyed_by_their_own_model_type() -> None:
    for model_type, config in CONFIGS.items():
        assert config.model_type == model_type
    assert CONFIGS.keys() == FAMILIES.keys() == PROCESSORS.keys() == auto._MODELS.keys() == auto._PROCESSORS.keys()
