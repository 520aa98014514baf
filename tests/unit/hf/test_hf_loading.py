"""`from_pretrained`, `save_pretrained` and the Auto classes: what is read, what is written back, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import idefics
from fakes import tiny_config
from idefics import (
    AutoModelForImageTextToText,
    AutoModelForVision2Seq,
    AutoProcessor,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessor,
    Idefics2Processor,
)
from idefics.errors import CheckpointNotFound, ConfigError, OptionError
from idefics.hf import hub


def _answer(model: Idefics2ForConditionalGeneration, processor: Idefics2Processor, picture: Image.Image) -> list[int]:
    inputs = processor(text="<image>In the", images=picture, return_tensors="pt")
    ids: list[int] = model.generate(**inputs, max_new_tokens=5)[0].tolist()
    return ids


def test_saved_and_loaded_again_is_the_same(
    tmp_path: Path, model: Idefics2ForConditionalGeneration, processor: Idefics2Processor, pictures: list[Image.Image]
) -> None:
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = AutoModelForImageTextToText.from_pretrained(str(tmp_path))
    for (name, saved), (other, loaded) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(saved, loaded), name
    assert again.config == model.config
    assert again.generation_config == model.generation_config
    assert not again.training
    spoken = AutoProcessor.from_pretrained(tmp_path)
    assert spoken.chat_template == processor.chat_template
    assert spoken.image_processor == processor.image_processor
    assert _answer(again, spoken, pictures[0]) == _answer(model, processor, pictures[0])


def test_a_model_is_saved_over_the_files_it_was_read_from(tmp_path: Path, tiny_checkpoint: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "own")
    model = AutoModelForVision2Seq.from_pretrained(tmp_path / "own")
    before = {name: value.clone() for name, value in model.named_parameters()}
    model.save_pretrained(tmp_path / "own")
    again = AutoModelForVision2Seq.from_pretrained(tmp_path / "own")
    assert all(torch.equal(before[name], value) for name, value in again.named_parameters())


@pytest.mark.parametrize("size", ["many", "-5", 0, "5XB", "0.1"])
def test_shard_sizes_are_checked(tmp_path: Path, model: Idefics2ForConditionalGeneration, size: Any) -> None:
    with pytest.raises(OptionError, match="of the form '5GB'"):
        model.save_pretrained(tmp_path, max_shard_size=size)
    assert not any(tmp_path.iterdir())


def test_a_model_made_from_a_config(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny_config()
    made = Idefics2ForConditionalGeneration(config)
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    assert made.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=3, min_new_tokens=3).shape == (1, 6)
    made.save_pretrained(tmp_path)
    assert Idefics2ForConditionalGeneration.from_pretrained(tmp_path).config == made.config
    assert isinstance(made.config, Idefics2Config)
    assert made.get_input_embeddings().weight.shape == made.get_output_embeddings().weight.shape


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, torch.float32),
        ({"torch_dtype": "auto"}, torch.float32),
        ({"torch_dtype": torch.float16}, torch.float16),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "float16"}, torch.float16),
        ({"dtype": "bfloat16", "torch_dtype": torch.bfloat16}, torch.bfloat16),
    ],
    ids=str,
)
def test_dtypes(tiny_checkpoint: Path, options: dict[str, Any], expected: torch.dtype) -> None:
    model = AutoModelForVision2Seq.from_pretrained(tiny_checkpoint, **options)
    assert {p.dtype for p in model.parameters()} == {expected}
    assert model.dtype == expected
    assert model.config.dtype == str(expected).removeprefix("torch.")


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
def test_attention_implementations_agree(
    tiny_checkpoint: Path, processor: Idefics2Processor, model: Idefics2ForConditionalGeneration,
    pictures: list[Image.Image], attention: str,
) -> None:  # fmt: skip
    inputs = processor(text=["<image>In", "no"], images=[pictures[:1], []], padding=True, return_tensors="pt")
    real = inputs.attention_mask.bool()
    for name in ("_attn_implementation", "attn_implementation"):
        other = AutoModelForVision2Seq.from_pretrained(tiny_checkpoint, **{name: attention})
        with torch.inference_mode():
            torch.testing.assert_close(other(**inputs).logits[real], model(**inputs).logits[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "device_map",
    [
        "cpu",
        "auto",
        torch.device("cpu"),
        {"": "cpu"},
        {"model": "cpu", "lm_head": "cpu"},
        {"model": "cpu", "": "cpu"},
        {"model.vision_model": "cpu", "model.connector": "cpu", "model.text_model": "cpu", "lm_head": torch.device("cpu")},
        {"model.text_model.layers.0": "cpu", "": "cpu"},
    ],
    ids=str,
)
def test_device_maps_of_a_machine_without_gpu(
    tiny_checkpoint: Path, model: Idefics2ForConditionalGeneration, processor: Idefics2Processor,
    pictures: list[Image.Image], device_map: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    placed = AutoModelForVision2Seq.from_pretrained(tiny_checkpoint, device_map=device_map)
    assert placed.device == torch.device("cpu")
    assert _answer(placed, processor, pictures[0]) == _answer(model, processor, pictures[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="these devices exist here")
@pytest.mark.parametrize("device_map", [0, "cuda:0", {"": 0}, {"": "cuda:1"}, {"": "disk"}], ids=str)
def test_devices_that_are_not_there(tiny_checkpoint: Path, device_map: Any) -> None:
    with pytest.raises(OptionError, match="device"):
        AutoModelForVision2Seq.from_pretrained(tiny_checkpoint, device_map=device_map)


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"model.vision_modle": "cpu", "": "cpu"}, "parts that the model does not have: vision_modle"),
        ({"model": "cpu"}, "does not say where lm_head.weight goes"),
        ({"model.vision_model": "cpu", "vision_model": "meta", "": "cpu"}, "puts vision_model on"),
        ("balanced", "device 'balanced' is none that torch knows"),
    ],
    ids=str,
)
def test_device_maps_that_do_not_fit(tiny_checkpoint: Path, device_map: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        AutoModelForVision2Seq.from_pretrained(tiny_checkpoint, device_map=device_map)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization_config": object()}, "quantization_config=.* is not offered here .quantised checkpoints are not read"),
        ({"load_in_4bit": True, "max_memory": {}}, "load_in_4bit=True is not offered here"),
        ({"tourch_dtype": "auto"}, "does not know tourch_dtype; there are attn_implementation, .*torch_dtype"),
        ({"attn_implementation": {"text_config": "eager"}}, "is not one of eager, sdpa"),
        ({"torch_dtype": "int8"}, "dtype 'int8' is not one of auto, float32"),
        ({"torch_dtype": "float16", "dtype": "bfloat16"}, r"torch_dtype=torch\.float16 and dtype=torch\.bfloat16 contradict"),
        ({"_attn_implementation": "paged"}, "attn_implementation='paged' is not one of eager, sdpa, flash_attention_2"),
        ({"_attn_implementation": "sdpa", "attn_implementation": "eager"}, "contradict each other"),
        ({"revision": "v2"}, "is a local folder"),
        ({"token": "a", "use_auth_token": "b"}, "contradict each other"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_that_are_refused(tiny_checkpoint: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        AutoModelForVision2Seq.from_pretrained(tiny_checkpoint, **options)


def test_options_that_say_what_is_so_anyway(tiny_checkpoint: Path) -> None:
    usual = {"low_cpu_mem_usage": True, "trust_remote_code": True, "use_safetensors": True, "local_files_only": True}
    off = {"quantization_config": None, "load_in_4bit": False, "revision": "main", "token": None, "cache_dir": None}
    off |= {"config": None, "force_download": False, "subfolder": "", "offload_folder": None, "output_loading_info": False}
    assert AutoModelForVision2Seq.from_pretrained(tiny_checkpoint, **usual, **off).dtype == torch.float32
    assert AutoProcessor.from_pretrained(tiny_checkpoint, use_fast=False).image_seq_len == 4


def test_auto_classes_take_what_the_checkpoint_says(tiny_checkpoint: Path) -> None:
    assert type(AutoProcessor.from_pretrained(tiny_checkpoint)) is Idefics2Processor
    for auto in (AutoModelForVision2Seq, AutoModelForImageTextToText):
        assert type(auto.from_pretrained(tiny_checkpoint)) is Idefics2ForConditionalGeneration
    assert isinstance(Idefics2ImageProcessor.from_pretrained(tiny_checkpoint), Idefics2ImageProcessor)


def test_a_folder_that_holds_a_processor_only(tmp_path: Path, processor: Idefics2Processor) -> None:
    processor.save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is Idefics2Processor
    with pytest.raises(CheckpointNotFound, match=r"config\.json does not exist"):
        AutoModelForVision2Seq.from_pretrained(tmp_path)


def test_checkpoints_that_no_class_reads(tmp_path: Path) -> None:
    for auto in (AutoProcessor, AutoModelForVision2Seq):
        with pytest.raises(CheckpointNotFound, match="there is no folder"):
            auto.from_pretrained(tmp_path / "nothing")
        with pytest.raises(CheckpointNotFound, match=r"config\.json does not exist"):
            auto.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    for auto in (AutoProcessor, AutoModelForVision2Seq):
        with pytest.raises(
            ConfigError, match=r"model_type = 'llava' is no model of this package; it has 'idefics2', 'idefics'"
        ):
            auto.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        AutoProcessor.from_pretrained(tmp_path)


def test_only_a_model_downloads_weights(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def resolve(model: Any, **options: Any) -> Path:
        asked.append({"model": str(model), **options})
        return tiny_checkpoint

    monkeypatch.setattr(hub, "resolve", resolve)
    hub_options = {"revision": "main", "token": False, "local_files_only": True, "cache_dir": "here"}
    AutoProcessor.from_pretrained("owner/name", **hub_options)
    first = asked[0]
    assert first == {
        "model": "owner/name", "revision": "main", "token": False, "offline": True, "cache_dir": "here", "weights": False,
    }  # fmt: skip
    Idefics2Config.from_pretrained("owner/name")
    Idefics2ImageProcessor.from_pretrained("owner/name")
    assert not any(one["weights"] for one in asked)
    AutoModelForVision2Seq.from_pretrained("owner/name")
    assert asked[-1]["weights"]


def test_the_package_offers_the_names_of_the_cards() -> None:
    for name in ("AutoProcessor", "AutoModelForVision2Seq", "Idefics2Config", "load_image"):
        assert getattr(idefics, name).__module__.startswith("idefics.")


@pytest.mark.parametrize(
    "options", [{"safe_serialization": True, "is_main_process": True}, {"push_to_hub": False, "variant": None}]
)
def test_saving_takes_what_is_so_anyway(
    tmp_path: Path, model: Idefics2ForConditionalGeneration, options: dict[str, Any]
) -> None:
    model.save_pretrained(tmp_path, **options)
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize("options", [{"push_to_hub": True}, {"safe_serialization": False}, {"state_dict": {}}, {"max_size": 3}])
def test_saving_refuses_what_it_would_not_do(
    tmp_path: Path, model: Idefics2ForConditionalGeneration, options: dict[str, Any]
) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        model.save_pretrained(tmp_path, **options)
    assert not any(tmp_path.iterdir())


def test_a_processor_takes_what_is_meant_for_its_model(tiny_checkpoint: Path, processor: Idefics2Processor) -> None:
    loaded = AutoProcessor.from_pretrained(
        tiny_checkpoint, torch_dtype=torch.float16, device_map="auto", revision="main", quantization_config=None
    )
    assert loaded.image_processor == processor.image_processor
    with pytest.raises(OptionError, match=r"unknown image option.*: sizes; there are do_convert_rgb, .*size"):
        AutoProcessor.from_pretrained(tiny_checkpoint, sizes={})


def test_generation_settings_are_attributes_that_last(tmp_path: Path, tiny_checkpoint: Path) -> None:
    model = AutoModelForVision2Seq.from_pretrained(tiny_checkpoint)
    settings = model.generation_config
    assert settings.eos_token_id == settings["eos_token_id"]
    assert settings.max_new_tokens is None
    settings.max_new_tokens = 3
    settings.eos_token_id = []
    ids = torch.tensor([[1, 5]])
    assert model.generate(ids).shape == (1, 5)
    model.save_pretrained(tmp_path)
    assert AutoModelForVision2Seq.from_pretrained(tmp_path).generation_config == settings
    settings.update(max_new_tokens=np.int64(3), temperature=torch.tensor(0.5), bad_words_ids=np.array([[4]]))
    model.save_pretrained(tmp_path / "arrays")
    assert AutoModelForVision2Seq.from_pretrained(tmp_path / "arrays").generation_config["bad_words_ids"] == [[4]]
    model.generation_config = {"max_new_tokens": 2, "eos_token_id": None}
    assert model.generate(ids).shape == (1, 4)
    for name, value, message in (
        ("temprature", 0.5, "did you mean 'temperature'"),
        ("max_new_tokens", 0, "at least 1"),
        ("penalty_alpha", 0.6, "penalty_alpha=0.6 is not offered here"),
    ):
        with pytest.raises(OptionError, match=message):
            setattr(model.generation_config, name, value)
    with pytest.raises(AttributeError, match="no generation option 'temprature'; there are max_new_tokens, "):
        _ = model.generation_config.temprature
