"""Weights on their way to a GPU, what they take there, and the embedded model's answers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import idefics
from fakes import tiny_config, tiny_model
from idefics.assets import DEMO
from idefics.config import Idefics2Config
from idefics.config.presets import preset
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits
from idefics.engine.sampling_params import SamplingParams
from idefics.inputs import ModelInputs
from idefics.weights.families import build_on_meta
from idefics.weights.init import initialize
from idefics.weights.load import load_model
from idefics.weights.save import save_model

pictures = pytest.mark.skipif(find_spec("PIL") is None, reason="Pillow is not installed: no pictures can be read")


def test_a_checkpoint_arrives_whole(device: torch.device, tmp_path: Path) -> None:
    expected = tiny_model(tiny_config(), seed=1)
    save_model(expected, tmp_path)
    found = load_model(tmp_path, device=device)
    for (name, here), (other, there) in zip(expected.named_parameters(), found.named_parameters(), strict=True):
        assert name == other
        assert there.device.type == device.type
        assert torch.equal(there.cpu(), here)


@pictures
def test_a_gpu_is_taken_if_there_is_one(device: torch.device, tiny_checkpoint: Path) -> None:
    assert idefics.load(tiny_checkpoint, device=device).model.device.type == device.type
    assert idefics.load(tiny_checkpoint).model.device.type == device.type, "a GPU is taken if there is one"


@pictures
def test_a_device_map_of_one_device(device: torch.device, tiny_checkpoint: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 48, 3), dtype=np.uint8)
    options: dict[str, Any] = dict(max_new_tokens=8, do_sample=False)
    expected = idefics.load(tiny_checkpoint, device="cpu", dtype="float32").generate("What?", image, **options)
    for given in ({"": str(device)}, "auto"):
        spread = idefics.load(tiny_checkpoint, device_map=given, dtype="float32")
        assert spread.generate("What?", image, **options) == expected


@pictures
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_embedded_model_answers(device: torch.device, dtype: str) -> None:
    from PIL import Image

    from embedded import messages

    model = idefics.load(device=device, dtype=dtype)
    right = asked = 0
    for talk in json.loads((DEMO / "questions.json").read_text()):
        pictures = [Image.open(DEMO / name) for name in talk["images"]]
        said: list[str] = []
        for turn in talk["turns"]:
            questions = [earlier["question"] for earlier in talk["turns"][: len(said) + 1]]
            said.append(model.chat(messages(pictures, questions, said), do_sample=False, max_new_tokens=64))
            asked += 1
            right += said[-1].strip().lower().rstrip(".") == turn["answer"].strip().lower().rstrip(".")
    assert asked >= 5
    assert right >= asked - (dtype == "bfloat16"), f"{right} of {asked} answers are right"  # one tie may fall the other way


def narrow_8b(layers: int, tower_layers: int) -> Idefics2Config:
    """Idefics2-8B with fewer layers, each of its true size."""
    raw = preset("idefics2-8b").to_dict()
    raw["text_config"] |= {"num_hidden_layers": layers}
    raw["vision_config"] |= {"num_hidden_layers": tower_layers}
    return Idefics2Config.from_dict(raw)


@pytest.mark.cuda_only
def test_peak_memory_is_that_of_the_weights(device: torch.device) -> None:
    """At most 1.05 times the weights beside the cache that was asked for: one image of 490 x 490, 32 new tokens.

    The true model is twice as large and takes four times the patches; what is not weights grows with these.
    """
    config = narrow_8b(12, 4)
    model = build_on_meta(config).to(torch.bfloat16).to_empty(device=device).eval()
    initialize(model, seed=0)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    cache = 2**26
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    engine = Engine(model, Limits(rows=4, tokens=512, cache_bytes=cache, image_bytes=2**24))
    ids = torch.tensor([[1, *[config.image_token_id] * 64, *range(100, 130)]])
    inputs = ModelInputs(
        input_ids_BT=ids,
        attention_mask_BT=torch.ones_like(ids),
        images_CHW=(torch.randn(3, 490, 490, dtype=torch.float16),),
        images_per_row=(1,),
    )
    list(engine.stream(inputs, [SamplingParams(max_new_tokens=32)]))
    peak = torch.cuda.max_memory_allocated() - cache
    assert peak <= 1.05 * weights, f"{peak / 2**20:.0f} MiB for weights of {weights / 2**20:.0f} MiB"
