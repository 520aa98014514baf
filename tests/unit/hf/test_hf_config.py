"""`Idefics2Config` as the reference spells it, here and through the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fakes import tiny_config
from idefics import Idefics2Config, IdeficsConfig
from idefics.config import Idefics2Config as Plain
from idefics.config import PerceiverConfig, VisionConfig
from idefics.config.presets import preset
from idefics.errors import CheckpointNotFound, ConfigError, OptionError

PARTS: dict[str, Any] = {
    "vision_config": {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 3, "image_size": 98, "patch_size": 14},
    "perceiver_config": {"resampler_n_latents": 8, "resampler_n_heads": 4, "num_key_value_heads": 2},
    "text_config": {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0},
    "image_token_id": 9,
}


def test_keywords_are_keys_of_config_json() -> None:
    config = Idefics2Config(**PARTS)
    assert config.text_config.head_dim == 8
    assert config.perceiver_config.hidden_size == 32
    assert config.vision_config.patches_per_side == 7
    assert config == Idefics2Config(**PARTS)
    assert config != Idefics2Config(**{**PARTS, "image_token_id": 8})
    assert isinstance(config, Plain)


def test_parts_may_be_configs() -> None:
    made = Idefics2Config(**PARTS)
    again = Idefics2Config(
        vision_config=made.vision_config, perceiver_config=made.perceiver_config, text_config=made.text_config, image_token_id=9
    )
    assert again == made
    assert isinstance(again.vision_config, VisionConfig)
    assert isinstance(again.perceiver_config, PerceiverConfig)


def test_without_keywords_it_is_the_references_default() -> None:
    config = Idefics2Config()
    assert (config.text_config.vocab_size, config.text_config.max_position_embeddings) == (32003, 32768)
    assert (config.text_config.rms_norm_eps, config.text_config.pad_token_id) == (1e-5, 0)
    assert (config.image_token_id, config.perceiver_config.resampler_n_latents) == (32001, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_token_id": 64}, "image_token_id = 64 is outside the vocabulary of 64"),
        ({"vison_config": {"patch_size": 14}}, "does not know and so cannot honour: vison_config"),
        ({"vision_config": {"hidden_size": 25}}, "hidden_size = 25 is not a multiple of num_attention_heads"),
        ({"text_config": {**PARTS["text_config"], "rope_scaling": {"type": "linear"}}}, "rope_scaling"),
        ({"text_config": [1]}, "text_config must be an object"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_honoured(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Idefics2Config(**{**PARTS, **change})


def test_folders_both_ways(tmp_path: Path) -> None:
    config = Idefics2Config.of(tiny_config())
    config.save_pretrained(tmp_path / "new" / "folder")
    assert Idefics2Config.from_pretrained(tmp_path / "new" / "folder") == config
    assert Idefics2Config.of(config) is config
    with pytest.raises(OptionError, match=r"Idefics2Config\.from_pretrained does not know vision_config"):
        Idefics2Config.from_pretrained(tmp_path / "new" / "folder", vision_config={})
    with pytest.raises(CheckpointNotFound):
        Idefics2Config.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["idefics2-8b", "idefics2-nano", "tiny-random-idefics2"])
def test_round_trip_through_the_reference(tmp_path: Path, name: str) -> None:
    import transformers

    config = Idefics2Config.of(preset(name))
    config.save_pretrained(tmp_path / "ours")
    theirs = transformers.Idefics2Config.from_pretrained(tmp_path / "ours")
    ours = json.loads((tmp_path / "ours" / "config.json").read_text())
    for part in ("vision_config", "perceiver_config", "text_config"):
        read = getattr(theirs, part).to_dict()
        different = {key: (value, read.get(key)) for key, value in ours[part].items() if key != "rope_theta"}
        assert {key: pair for key, pair in different.items() if pair[0] != pair[1]} == {}, part
    theirs.save_pretrained(tmp_path / "theirs")
    assert Idefics2Config.from_pretrained(tmp_path / "theirs") == config


def test_sizes_of_the_first_generation_stand_at_the_top() -> None:
    given = {
        "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2,
        "hidden_act": "gelu", "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 500.0, "bos_token_id": 3,
        "eos_token_id": 4, "pad_token_id": 5,
    }  # fmt: skip
    config = IdeficsConfig(additional_vocab_size=2, **given)
    assert {name: getattr(config, name) for name in given} == given
    for name in given:
        with pytest.raises(AttributeError):
            setattr(config, name, 1)
    assert IdeficsConfig(**config.to_dict()) == config
