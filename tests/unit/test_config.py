from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from idefics.config import DTYPES, Idefics1Config, Idefics2Config
from idefics.config.json_files import read_json
from idefics.config.presets import preset, preset_names
from idefics.errors import CheckpointError, CheckpointNotFound, ConfigError
from idefics.weights.families import read_config

ORACLE_4_40 = Path(__file__).parent / "weights" / "oracle_4_40" / "checkpoint" / "config.json"
# As on the Hub in 2024: only what differs from the class defaults of 4.40.
PUBLISHED: dict[str, Any] = {
    "architectures": ["Idefics2ForConditionalGeneration"],
    "image_token_id": 32001,
    "model_type": "idefics2",
    "perceiver_config": {"model_type": "idefics2"},
    "text_config": {
        "max_position_embeddings": 32768, "model_type": "mistral", "pad_token_id": 0, "rms_norm_eps": 1e-05,
        "vocab_size": 32003,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0",
    "use_cache": True,
    "vision_config": {
        "hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "model_type": "idefics2",
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
    },
}  # fmt: skip
SMALL: dict[str, Any] = {
    "vision_config": dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=84, patch_size=14,
    ),
    "perceiver_config": dict(
        resampler_n_latents=4, resampler_depth=2, resampler_n_heads=4, resampler_head_dim=6, num_key_value_heads=2,
    ),
    "text_config": dict(
        vocab_size=50, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-4, rope_theta=5000.0,
    ),
    "image_token_id": 7,
}  # fmt: skip


def _with(section: str | None, **values: Any) -> dict[str, Any]:
    raw = json.loads(json.dumps(SMALL))
    (raw if section is None else raw[section]).update(values)
    return raw


def test_the_published_config_is_the_preset() -> None:
    assert Idefics2Config.from_dict(PUBLISHED) == preset("idefics2-8b")


def test_a_config_written_by_4_40() -> None:
    config = Idefics2Config.from_dict(read_json(ORACLE_4_40))
    assert asdict(config.vision_config) == {
        "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_channels": 3,
        "image_size": 56, "patch_size": 14, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    }  # fmt: skip
    # 4.40's perceiver has no sizes of its own: it takes the text's.
    assert asdict(config.perceiver_config) == {
        "hidden_act": "silu", "resampler_n_latents": 3, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 6,
        "num_key_value_heads": 1, "hidden_size": 16, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    text = config.text_config
    assert (text.head_dim, text.rope_theta, text.sliding_window, text.rms_norm_eps) == (4, 10000.0, 4096, 1e-6)
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (1, 2, 0)
    assert (config.image_token_id, config.tie_word_embeddings, config.dtype) == (5, False, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 64])
def test_a_config_written_by_transformers_5(tmp_path: Path, dtype: str, window: int | None) -> None:
    import transformers

    raw = _with(
        "text_config",
        model_type="mistral",
        sliding_window=window,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    raw["perceiver_config"].update(hidden_size=32, rms_norm_eps=1e-3)
    transformers.Idefics2Config(**raw, dtype=dtype, tie_word_embeddings=True).save_pretrained(tmp_path)
    written = read_json(tmp_path / "config.json")
    assert "rope_theta" not in written["text_config"]
    assert "dtype" in written
    config = Idefics2Config.from_dict(written)
    assert (config.dtype, config.tie_word_embeddings, config.image_token_id) == (dtype, True, 7)
    assert (config.text_config.rope_theta, config.text_config.sliding_window) == (5000.0, window)
    assert (config.perceiver_config.hidden_size, config.perceiver_config.rms_norm_eps) == (32, 1e-3)
    assert config.vision_config.num_hidden_layers == 2


@pytest.mark.parametrize(
    "raw",
    [{}, {"text_config": {"model_type": "mistral"}}, {"text_config": {"vocab_size": 32003}, "perceiver_config": {}}, PUBLISHED],
)
def test_keys_left_out_take_the_defaults_of_the_format(raw: dict[str, Any]) -> None:
    import transformers

    ours, theirs = (
        Idefics2Config.from_dict({"image_token_id": 5, **raw}),
        transformers.Idefics2Config(**{"image_token_id": 5, **raw}),
    )
    for name in ("vision_config", "text_config"):
        for key, value in asdict(getattr(ours, name)).items():
            section = getattr(theirs, name)
            assert value == (section.rope_parameters["rope_theta"] if key == "rope_theta" else getattr(section, key)), (
                name,
                key,
            )
    for key in (
        "resampler_n_latents",
        "resampler_depth",
        "resampler_n_heads",
        "resampler_head_dim",
        "num_key_value_heads",
        "hidden_act",
    ):
        assert getattr(ours.perceiver_config, key) == getattr(theirs.perceiver_config, key)


@pytest.mark.parametrize("name", preset_names())
def test_round_trip(name: str) -> None:
    config = preset(name)
    written = json.loads(json.dumps(config.to_dict()))
    assert read_config(written) == config
    other = replace(config, tie_word_embeddings=True, dtype="float16")
    assert read_config(other.to_dict()) == other


@pytest.mark.parametrize("name", preset_names())
def test_transformers_reads_what_we_write(tmp_path: Path, name: str) -> None:
    import transformers

    config = preset(name)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "again")
    assert read_config(read_json(tmp_path / "again" / "config.json")) == config


@pytest.mark.parametrize("section", [None, "vision_config", "perceiver_config", "text_config"])
def test_unknown_keys_are_refused_by_name(section: str | None) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"{section or 'config'} has key\(s\) .* cannot honour: attention_sinks = 4; remove .*allow_unknown_config",
    ):
        Idefics2Config.from_dict(_with(section, attention_sinks=4))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("text_config", {"attention_dropout": 0.1}, "text_config.attention_dropout = 0.1 is not supported; only 0 is"),
        ("text_config", {"rope_scaling": {"type": "linear"}}, "text_config.rope_scaling"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn"}}, "only rope_type 'default' is supported"),
        ("text_config", {"model_type": "llama"}, "text_config.model_type = 'llama'; Idefics2's decoder is 'mistral'"),
        ("text_config", {"hidden_size": 33}, "hidden_size = 33 is not a multiple of num_attention_heads = 4"),
        ("text_config", {"num_key_value_heads": 3}, "text_config: 4 query heads are not a multiple of 3"),
        ("text_config", {"num_hidden_layers": 0}, "text_config.num_hidden_layers must be a positive whole number, not 0"),
        ("text_config", {"num_hidden_layers": None}, "text_config.num_hidden_layers must not be null"),
        ("text_config", {"rms_norm_eps": -1}, "text_config.rms_norm_eps must be a positive number, not -1"),
        ("text_config", {"head_dim": 7}, "text_config.head_dim = 7 must be even"),
        ("vision_config", {"hidden_size": 17}, "vision_config.hidden_size = 17 is not a multiple"),
        ("vision_config", {"image_size": 13}, "vision_config.image_size = 13 is below patch_size = 14"),
        ("vision_config", {"hidden_act": "swish"}, "vision_config.hidden_act = 'swish' is not one of silu, "),
        ("perceiver_config", {"qk_layer_norms_perceiver": True}, "perceiver_config.qk_layer_norms_perceiver = True"),
        ("perceiver_config", {"resampler_n_heads": 3}, "perceiver_config: 3 query heads"),
        (None, {"image_token_id": 50}, "image_token_id = 50 is outside the vocabulary of 50"),
        (None, {"torch_dtype": "float64"}, "dtype = 'float64' is not one of float32, float16, bfloat16"),
        (None, {"text_config": 3}, "text_config must be an object, not 3"),
    ],
)
def test_values_that_cannot_be_honoured(section: str | None, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Idefics2Config.from_dict(_with(section, **values))


def test_a_perceiver_of_another_size_is_that_of_the_text() -> None:
    # transformers 5 writes its class default, 4096, where the file it read said nothing.
    config = Idefics2Config.from_dict(_with("perceiver_config", hidden_size=4096, rms_norm_eps=1e-6))
    assert (config.perceiver_config.hidden_size, config.perceiver_config.rms_norm_eps) == (32, 1e-4)


def test_presets() -> None:
    assert preset("HuggingFaceM4/idefics2-8b-chatty") == preset("idefics2-8b")
    with pytest.raises(ConfigError, match=r"no preset 'idefics9'; there are idefics-80b, .*, tiny-random-idefics2"):
        preset("idefics9")


def test_files_that_are_no_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointNotFound, match=r"does not exist; a checkpoint folder has a config\.json"):
        read_json(path)
    for content, message in (("{", "is not valid JSON"), ("[]", "holds a JSON list, not an object")):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid JSON"):
        read_json(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(path)


def test_values_of_the_wrong_kind() -> None:
    for section, values in (
        (None, {"image_token_id": "5"}),
        (None, {"tie_word_embeddings": 1}),
        ("text_config", {"sliding_window": 0}),
    ):
        with pytest.raises(ConfigError, match=f"{next(iter(values))} must be "):
            Idefics2Config.from_dict(_with(section, **values))


@pytest.mark.parametrize("value", [None, "abc", -1.0, True, float("nan"), float("inf")])
def test_gates_that_begin_at_no_number(value: object) -> None:
    with pytest.raises(ConfigError, match="alphas_initializer_range must be a number from 0"):
        Idefics1Config.from_dict({"alphas_initializer_range": value})
    assert Idefics1Config.from_dict({"alphas_initializer_range": 1}).alphas_initializer_range == 1


def test_a_flat_file_has_no_text_config() -> None:
    with pytest.raises(ConfigError, match="text_config"):
        Idefics1Config.from_dict({"text_config": {"hidden_size": 64}})


@pytest.mark.parametrize("added", [0, 1])
def test_a_model_of_text_has_no_image_token(added: int) -> None:
    config = Idefics1Config.from_dict({"additional_vocab_size": added})
    with pytest.raises(ConfigError, match=f"additional_vocab_size = {added}: .* no image token"):
        _ = config.image_token_id
    assert Idefics1Config.from_dict({"additional_vocab_size": 2}).image_token_id == 32001


def test_resamplers_and_squares() -> None:
    eight, nine = preset("idefics2-8b"), preset("idefics-9b")
    assert (eight.resampler_layers, eight.square_side, nine.resampler_layers, nine.square_side) == (3, None, 6, 224)
    # 257 features and 257 latents: only one of the two has a resampler.
    raw = {"perceiver_config": {"resampler_n_latents": 257}, "vision_config": {"patch_size": 14}}
    without, with_one = (Idefics1Config.from_dict({**raw, "use_resampler": used}) for used in (False, True))
    assert (without.latents, without.resampler_layers) == (257, 0)
    assert (with_one.latents, with_one.resampler_layers) == (257, 6)


@pytest.mark.parametrize("used", [True, False])
def test_what_the_resamplers_part_says_of_its_use_is_not_read(used: bool) -> None:
    config = Idefics1Config.from_dict({"use_resampler": True, "perceiver_config": {"use_resampler": used}})
    assert config.use_resampler
    assert config.to_dict()["perceiver_config"]["use_resampler"] is True


@pytest.mark.parametrize("section", [None, "vision_config", "perceiver_config", "text_config"])
@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}])
def test_an_unknown_key_that_asks_for_nothing_stops_nobody(section: str | None, value: object) -> None:
    config = Idefics2Config.from_dict(_with(section, some_new_key=value))
    assert config == Idefics2Config.from_dict(SMALL)
    assert config.unknown == {}


@pytest.mark.parametrize("section", [None, "vision_config", "perceiver_config", "text_config"])
def test_an_unknown_key_is_taken_where_that_is_asked_for_and_told(section: str | None) -> None:
    raw = _with(section, attention_sinks=4)
    config = Idefics2Config.from_dict(raw, allow_unknown=True)
    assert config == Idefics2Config.from_dict(SMALL)
    assert config.unknown == {f"{section or 'config'}.attention_sinks": 4}
    assert replace(config, dtype="float16").unknown == config.unknown
    assert "attention_sinks" not in json.dumps(config.to_dict())


def test_the_first_generation_knows_the_same_rule() -> None:
    assert Idefics1Config.from_dict({"new": None}) == Idefics1Config.from_dict({})
    assert Idefics1Config.from_dict({"vision_config": {"new": 3}}, allow_unknown=True).unknown == {"vision_config.new": 3}
    with pytest.raises(ConfigError, match="cannot honour: new = 3"):
        Idefics1Config.from_dict({"new": 3})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "vision_embed_dim", 768),
        ("perceiver_config", "initializer_factor", 2.0),
        ("text_config", "use_resampler", True),
        ("vision_config", "rope_scaling", {"type": "linear"}),
    ],
)
def test_a_key_of_one_part_says_something_in_another(section: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{section} has key.* {key} = "):
        Idefics2Config.from_dict(_with(section, **{key: value}))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *(("text_config", "rope_theta", value) for value in (3, NAN, INF, -INF, 0, -1, True, "10000", 1e30, None)),
        *(("text_config", "rms_norm_eps", value) for value in (NAN, INF, 3, True)),
        ("vision_config", "layer_norm_eps", NAN),
        ("perceiver_config", "rms_norm_eps", 5.0),
        ("text_config", "num_hidden_layers", 10**9),
        ("text_config", "num_hidden_layers", 10**5000),
        ("vision_config", "num_hidden_layers", 10**9),
        ("perceiver_config", "resampler_depth", 10**9),
        ("text_config", "hidden_size", 2**40),
        ("text_config", "intermediate_size", 10**12),
        ("text_config", "vocab_size", 10**12),
        ("text_config", "head_dim", 2**40),
        ("text_config", "max_position_embeddings", 10**30),
        ("text_config", "sliding_window", 10**30),
        ("text_config", "bos_token_id", "1"),
        ("text_config", "eos_token_id", [2, 1.5]),
        ("text_config", "pad_token_id", 2**70),
        ("vision_config", "image_size", 10**9),
        ("vision_config", "num_channels", 10**6),
        ("perceiver_config", "resampler_n_latents", 10**9),
        ("text_config", "hidden_size", "x" * 10**6),
        (None, "image_token_id", 10**30),
        (None, "tie_word_embeddings", 10**30),
        (None, "dtype", {"a": 1}),
    ],
    ids=lambda value: str(value)[:24] if not isinstance(value, int) or value < 10**40 else "huge",
)
def test_numbers_beyond_sense_are_refused_before_anything_is_built(section: str | None, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}") as refused:
        Idefics2Config.from_dict(_with(section) | {key: value} if section is None else _spoiled(section, key, value))
    assert len(str(refused.value)) < 300


def _spoiled(section: str, key: str, value: Any) -> dict[str, Any]:
    return {**SMALL, section: {**SMALL[section], key: value}}


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "default", "rope_theta": 10000.0}, r"rope_theta = 5000\.0 contradicts .*rope_theta = 10000\.0"),
        ({"rope_theta": 5000.0, "factor": 8.0}, r"rope_parameters has key\(s\) .* factor = 8\.0"),
        ({"rope_theta": 5000.0, "partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0\.5 is not supported"),
    ],
)
def test_rotary_positions_that_contradict(rope: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Idefics2Config.from_dict(_with("text_config", rope_parameters=rope))


def test_rotary_positions_said_twice_alike() -> None:
    raw = _with("text_config", rope_parameters={"rope_theta": 5000.0, "rope_type": "default", "partial_rotary_factor": 1.0})
    assert Idefics2Config.from_dict(raw) == Idefics2Config.from_dict(SMALL)
    with pytest.raises(ConfigError, match="rope_theta = nan"):
        Idefics2Config.from_dict(_spoiled("text_config", "rope_parameters", {"rope_theta": NAN}))
    first = {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}
    assert Idefics1Config.from_dict(first).text_config.rope_theta == 500.0
    with pytest.raises(ConfigError, match="contradicts"):
        Idefics1Config.from_dict({**first, "rope_theta": 10000.0})


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "[" * 200 + "]" * 200 + "}", '{"a": ' + "1" * 10_000 + "}", '{"a": 1'],
    ids=["lists", "objects", "200", "digits", "cut"],
)
def test_json_that_goes_too_deep_or_too_far(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="is not valid JSON"):
        read_json(path)


def test_every_field_that_a_file_sets_has_a_rule() -> None:
    from dataclasses import fields

    from idefics.config import FlamingoConfig, PerceiverConfig, TextConfig, VisionConfig
    from idefics.config.rules import ruled

    for part in (FlamingoConfig, PerceiverConfig, TextConfig, VisionConfig):
        assert set(ruled(part)) == {field.name for field in fields(part)}
    for whole in (Idefics1Config, Idefics2Config):
        parts = {"vision_config", "perceiver_config", "text_config", "model_type", "unknown"}
        assert set(ruled(whole)) == {field.name for field in fields(whole)} - parts
