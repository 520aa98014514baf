"""Checkpoints of the first generation: names both ways, shards, what does not fit, both eras of configs, beginnings."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import invariants
from gated import BOS, block, model_inputs, pictures, random_batch, tiny_config, tiny_model, tiny_raw
from idefics.config import Idefics1Config
from idefics.config.presets import preset
from idefics.errors import ConfigError
from idefics.hf.modeling import IdeficsForVisionText2Text
from idefics.weights.families import build_on_meta
from idefics.weights.footprint import parameter_counts
from idefics.weights.idefics1 import TABLE
from idefics.weights.init import initialize, starts
from idefics.weights.load import load_config, load_model
from idefics.weights.match import TensorsDiffer
from idefics.weights.save import save_model

ORACLE = Path(__file__).parent / "oracle_4_40" / "idefics"
VARIANTS: list[dict[str, Any]] = [
    {},
    {"use_resampler": False, "qk_layer_norms": False, "alpha_type": "vector", "additional_vocab_size": 0},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_names_both_ways(changes: dict[str, Any]) -> None:
    ours = [name for name, _ in build_on_meta(tiny_config(**changes)).named_parameters()]
    invariants.assert_rename_is_bijective(TABLE, [TABLE.published(name) for name in ours], ours)


def test_no_row_is_without_a_parameter() -> None:
    parameters = [name for name, _ in build_on_meta(tiny_config()).named_parameters()]
    unused = {
        target for target in TABLE._ours.values() if target is not None and not any(_fits(target, name) for name in parameters)
    }
    assert not unused


def _fits(row: str, name: str) -> bool:
    pattern, parts = row.split("."), name.split(".")
    return len(pattern) <= len(parts) and all(a in (b, "{layer}") for a, b in zip(pattern, parts, strict=False))


@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_what_is_saved_is_loaded(tmp_path: Path, changes: dict[str, Any], max_shard_bytes: int) -> None:
    model, inputs = tiny_model(**changes), model_inputs(*random_batch(1, 3))
    save_model(model, tmp_path, max_shard_bytes=max_shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (max_shard_bytes < 10**9)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(invariants.logits_of(loaded, inputs), invariants.logits_of(model, inputs))


def test_a_tied_head_is_two_pairs_of_tables(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    save_model(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert not any(name.startswith("lm_head") for name in stored)
    loaded: Any = load_model(tmp_path)
    assert loaded.lm_head.weight is loaded.text_model.embed_tokens.weight
    assert loaded.lm_head.additional_fc.weight is loaded.text_model.embed_tokens.additional_embedding.weight


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.gated_cross_attn_layers.1.alpha_dense"], tensors["lm_head.additional_fc.weight"]
    tensors["model.gated_cross_attn_layers.2.alpha_dense"] = torch.ones(1)
    tensors["model.perceiver_resampler.latents"] = torch.ones(6, 24)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # old files have it, no model needs it
    tensors["model.gated_cross_attn_layers.0.cross_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(TensorsDiffer) as caught:
        load_model(tmp_path)
    assert set(caught.value.missing) == {"model.gated_cross_attn_layers.1.alpha_dense", "lm_head.additional_fc.weight"}
    assert caught.value.extra == ("model.gated_cross_attn_layers.2.alpha_dense",)
    assert caught.value.misshapen == {"model.perceiver_resampler.latents": ((6, 24), (5, 24))}


def test_gates_of_the_other_kind_do_not_fit(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "alpha_type": "vector"}))
    with pytest.raises(TensorsDiffer, match=r"alpha_cross_attn is \(1,\), due \(1, 1, 32\)"):
        load_model(tmp_path)


def test_what_4_40_answered() -> None:
    """A sharded checkpoint of the release that these models came with, its logits, loss, greedy tokens and beams."""
    model = IdeficsForVisionText2Text.from_pretrained(ORACLE / "checkpoint")
    expected = load_file(ORACLE / "expected.safetensors")
    inputs = {name: expected[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_attention_mask")}
    real = inputs["attention_mask"].bool()
    with torch.inference_mode():
        out = model(**inputs, labels=expected["labels"])
    torch.testing.assert_close(out.logits[real], expected["logits"][real], atol=1e-4, rtol=0)
    torch.testing.assert_close(out.loss, expected["loss"], atol=1e-5, rtol=1e-5)
    used = inputs["image_attention_mask"].any(1)
    torch.testing.assert_close(out.image_hidden_states[used], expected["image_hidden_states"][used], atol=1e-5, rtol=1e-5)
    options: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": 2, "pad_token_id": 0, "bad_words_ids": [[30], [31]]}
    assert torch.equal(model.generate(**inputs, **options), expected["greedy"])
    assert torch.equal(model.generate(**inputs, **options, num_beams=3), expected["beams"])


def test_what_4_40_wrote_is_read_and_written(tmp_path: Path) -> None:
    config = load_config(ORACLE / "checkpoint")
    assert isinstance(config, Idefics1Config)
    assert (config.text_config.vocab_size, config.additional_vocab_size, config.cross_layers) == (33, 3, 2)
    assert (config.vision_config.hidden_size, config.vision_config.patch_size) == (8, 14), "the file leaves out what is usual"
    assert (config.latents, config.alpha_type, config.qk_layer_norms) == (3, "vector", True)
    save_model(load_model(ORACLE / "checkpoint"), tmp_path)
    assert load_config(tmp_path) == config


@pytest.mark.parametrize("whole", ["to_dict", "to_diff_dict"])
def test_what_5_23_writes_is_read(whole: str) -> None:
    import transformers

    theirs = transformers.IdeficsConfig(**tiny_raw())
    assert Idefics1Config.from_dict(getattr(theirs, whole)()) == tiny_config()
    back = transformers.IdeficsConfig(**tiny_config().to_dict())
    assert back.to_dict() == theirs.to_dict() | {"architectures": ["IdeficsForVisionText2Text"]} | _dtypes(back)


def _dtypes(config: Any) -> dict[str, Any]:
    found = config.to_dict()
    return {name: found[name] for name in ("dtype", "torch_dtype") if name in found}


INERT_4_40 = {
    "add_cross_attention": False, "bad_words_ids": None, "chunk_size_feed_forward": 0, "diversity_penalty": 0.0,
    "do_sample": False, "finetuning_task": None, "freeze_lm_head": False, "freeze_text_layers": True,
    "freeze_text_module_exceptions": [], "freeze_vision_layers": True, "freeze_vision_module_exceptions": [],
    "id2label": {"0": "LABEL_0"}, "initializer_range": 0.02, "is_decoder": False, "length_penalty": 1.0, "max_length": 20,
    "num_beams": 1, "output_attentions": False, "prefix": None, "pruned_heads": {}, "return_dict": True, "top_k": 50,
    "torchscript": False, "transformers_version": "4.40.2", "typical_p": 1.0, "use_bfloat16": False, "use_cache": True,
    "dropout": 0.0,
}  # fmt: skip


def test_what_4_40_writes_beside_changes_nothing() -> None:
    parts = {part: {**tiny_raw()[part], **INERT_4_40} for part in ("vision_config", "perceiver_config")}
    assert Idefics1Config.from_dict({**tiny_raw(), **INERT_4_40, **parts}) == tiny_config()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "config has key.* cannot honour: surprise"),
        ({"vision_config": {"vision_tower": 1}}, "vision_config has key.* cannot honour: vision_tower"),
        ({"perceiver_config": {"depth": 1}}, "perceiver_config has key.* cannot honour: depth"),
        ({"cross_layer_interval": 3}, "num_hidden_layers = 4 is not a multiple of cross_layer_interval = 3"),
        ({"cross_layer_interval": True}, "cross_layer_interval must be a positive whole number, not True"),
        ({"alpha_type": "matrix"}, "alpha_type = 'matrix' is not one of float, vector"),
        ({"additional_vocab_size": -1}, "additional_vocab_size must be a whole number"),
        ({"vocab_size": True}, "vocab_size must be a positive whole number, not True"),
        ({"dropout": 0.1}, r"dropout = 0.1 is not supported"),
        ({"use_resampler": 1}, "use_resampler must be true or false"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_configs_that_cannot_be_honoured(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Idefics1Config.from_dict({**tiny_raw(), **change})


def test_the_towers_width_goes_by_either_name() -> None:
    raw = tiny_raw()
    raw["vision_config"]["hidden_size"] = raw["vision_config"].pop("embed_dim")
    assert Idefics1Config.from_dict(raw) == tiny_config()


def test_every_parameter_has_a_beginning() -> None:
    for name in ("idefics-9b", "idefics-80b-instruct", "tiny-random-idefics"):
        model = build_on_meta(preset(name))
        assert set(starts(model)) == {name for name, _ in model.named_parameters(remove_duplicate=False)}


def test_gates_begin_as_their_config_says() -> None:
    for kind, mean in (("zeros", 0.0), ("ones", 1.0)):
        model: Any = tiny_model(alpha_initializer=kind)
        assert {block.alpha_dense.item() for block in model.text_model.gated_cross_attn_layers} == {mean}
    drawn: Any = tiny_model(alpha_initializer="gaussian", alphas_initializer_range=0.5, alpha_type="vector")
    blocks = drawn.text_model.gated_cross_attn_layers
    gates = torch.cat([gate.flatten() for b in blocks for gate in (b.alpha_dense, b.alpha_cross_attn)])
    assert 0.35 < gates.std() < 0.65
    assert gates.unique().numel() == 4 * 32, "no two gates begin alike"
    again: Any = tiny_model(alpha_initializer="gaussian", alphas_initializer_range=0.5, alpha_type="vector")
    initialize(again, seed=0, std=0.01)
    assert torch.equal(again.text_model.gated_cross_attn_layers[0].alpha_dense, blocks[0].alpha_dense)


def test_the_published_sizes() -> None:
    counts = parameter_counts(preset("idefics-9b"))
    assert round(sum(counts.values()) / 1e9, 2) == 8.93
    assert sum(parameter_counts(preset("idefics-80b")).values()) > 79e9


def test_a_blind_beginning_answers_like_a_text_model() -> None:
    model = tiny_model(alpha_initializer="zeros")
    row = [BOS, *block(1), 5, 6]
    logits = [invariants.logits_of(model, model_inputs([row], [pictures(1, seed=seed)])) for seed in (1, 2)]
    assert torch.equal(*logits)


def test_numbers_that_float16_cannot_hold(tmp_path: Path) -> None:
    save_model(tiny_model(dtype=torch.float16), tmp_path)
    with pytest.warns(UserWarning, match="stored as float16, in which .* overflow; loaded as bfloat16 instead"):
        model = load_model(tmp_path)
    assert (model.dtype, model.config.dtype) == (torch.bfloat16, "bfloat16")
    with pytest.warns(UserWarning, match="overflow in float16"):
        assert load_model(tmp_path, dtype=torch.float16).dtype == torch.float16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(tmp_path, dtype=torch.float32).dtype == torch.float32
