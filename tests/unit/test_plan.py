"""What is planned, against the published facts (MODELS.md, PERFORMANCE.md) and against what the code really does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fakes import tiny_config, tiny_idefics, tiny_processor
from idefics.config.presets import preset
from idefics.engine.static_cache import StaticKVCache
from idefics.errors import CheckpointNotFound, ImageError, OptionError, OutOfMemory
from idefics.model.peaks import VISION_BYTES
from idefics.plan import PRECISIONS, make_plan, make_shares, published_images, subject

EIGHT = preset("idefics2-8b")


def test_importing_it_loads_no_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import idefics.plan, sys; assert 'torch' not in sys.modules"], check=True, timeout=60
    )


@pytest.mark.parametrize(
    ("count", "split", "tokens", "framed"),
    [(0, True, 0, 0), (1, False, 64, 66), (1, True, 320, 326), (2, False, 128, 131), (2, True, 640, 651)],
)
def test_tokens(count: int, split: bool, tokens: int, framed: int) -> None:
    plan = make_plan(EIGHT, [(1920, 1080)] * count, split=split, text_tokens=10)
    assert (plan.image_tokens, plan.framed_tokens, plan.prompt_tokens) == (tokens, framed, framed + 10)


def test_the_published_facts_of_idefics2_8b() -> None:
    plan = make_plan(EIGHT, [(1920, 1080)], text_tokens=0, new_tokens=1)
    assert round(sum(plan.parameters.values()) / 1e9, 2) == 8.40
    full, half = plan.memory
    assert round(half.weights / 1e9, 1) == 16.8
    assert full.weights == 2 * half.weights
    assert half.kv_cache == (326 + 1) * 128 * 1024
    # Split is what the 8B's preprocessor_config.json says.
    assert plan.images[0].seen == ((960, 540),) * 4 + ((980, 551),)
    assert plan.images[0].patches == 4 * 68 * 38 + 70 * 39
    assert half.total == half.weights + half.kv_cache + max(half.vision, half.prompt)


def test_what_grows_with_what() -> None:
    one = make_plan(EIGHT, [(980, 980)], split=False).memory[1]
    many = make_plan(EIGHT, [(980, 980)], split=False, batch=4).memory[1]
    small = make_plan(EIGHT, [(980, 980)], split=False, max_image_size=490).memory[1]
    assert (many.weights, many.kv_cache, many.prompt) == (one.weights, 4 * one.kv_cache, 4 * one.prompt)
    assert 2 * one.vision < many.vision == VISION_BYTES < 4 * one.vision
    assert small.vision * 4 == one.vision
    # 4900 patches; the projection to the text's inner size is the widest moment.
    assert one.vision == 4900 * ((1152 + 3 * 14336) * 2 + 588 * (4 + 2))


def test_settings_of_the_presets() -> None:
    def settings(name: str) -> dict[str, Any]:
        return published_images(preset(name)).to_dict()

    assert settings("idefics2-8b")["size"] == {"shortest_edge": 378, "longest_edge": 980}
    nano = settings("idefics2-nano")
    assert (nano["size"], nano["do_image_splitting"]) == ({"shortest_edge": 84, "longest_edge": 168}, False)
    assert settings("idefics-80b")["image_size"] == 224


@pytest.mark.parametrize("name", ["idefics-9b", "idefics-80b"])
def test_the_published_facts_of_the_first_generation(name: str) -> None:
    config = preset(name)
    plan = make_plan(config, [(1920, 1080)] * 3, text_tokens=10, new_tokens=5)
    assert round(sum(plan.parameters.values()) / 1e9) == {"idefics-9b": 9, "idefics-80b": 80}[name]
    assert [image.seen for image in plan.images] == [((224, 224),)] * 3
    assert (plan.image_tokens, plan.framed_tokens, plan.prompt_tokens) == (3, 7, 17)
    text, blocks = config.text_config, config.text_config.num_hidden_layers // 4
    cached = (17 + 5) * 2 * text.num_hidden_layers * text.hidden_size + 3 * 2 * blocks * 64 * text.hidden_size
    assert plan.memory[1].kv_cache == 2 * cached
    with pytest.raises(OptionError, match="split"):
        make_plan(config, [(640, 480)], split=True)


def test_cutting_the_80b_over_gpus() -> None:
    config = preset("idefics-80b-instruct")
    full, half = make_plan(config).memory
    shares = make_shares(config, [80 * 2**30] * 4, half)
    assert (shares[0].first, shares[-1].last) == ("vision_model", "lm_head")
    total = sum(make_plan(config).parameters.values())
    assert sum(share.weights for share in shares) == 2 * total
    assert max(share.weights for share in shares) < 1.1 * min(share.weights for share in shares)
    assert all(share.weights + share.kv_cache + share.activations + share.free == 80 * 2**30 for share in shares)
    with pytest.raises(OutOfMemory, match="float32"):
        make_shares(config, [80 * 2**30] * 4, full)


@pytest.mark.parametrize("name", ["idefics2-8b", "idefics-9b"])
def test_each_gpu_needs_room_for_its_own_part_of_a_request(name: str) -> None:
    config = preset(name)
    half = make_plan(config, [(640, 480)] * 2, batch=8).memory[1]
    shares = make_shares(config, [24 * 2**30] * 2, half)
    assert abs(sum(share.kv_cache for share in shares) - half.kv_cache) <= len(shares)
    assert all(0 < share.kv_cache < half.kv_cache for share in shares)
    assert [share.activations for share in shares] == [max(half.vision, half.prompt), half.prompt]
    # Together they have room for twice the request's cache, and yet each lacks some of its own.
    large = make_plan(config, batch=40, new_tokens=1000).memory[1]
    tight = [large.weights // 2 + large.kv_cache * 2 // 5] * 2
    assert not all(share.fits for share in make_shares(config, tight, large))


def test_a_tenth_stays_free_on_several_gpus_and_nothing_on_one() -> None:
    half = make_plan(EIGHT).memory[1]
    weights = half.weights
    assert len(make_shares(EIGHT, [weights], half)) == 1
    with pytest.raises(OutOfMemory):
        make_shares(EIGHT, [weights - 1], half)
    with pytest.raises(OutOfMemory):
        make_shares(EIGHT, [weights, 1], half)


def test_the_cache_is_as_large_as_planned() -> None:
    config = tiny_config()
    plan = make_plan(config, new_tokens=7, batch=3, text_tokens=5)
    import torch

    cache = StaticKVCache(config.text_config, rows=3, capacity=12, dtype=torch.float32, devices=[torch.device("cpu")] * 2)
    assert sum(t.nbytes for t in (*cache._keys, *cache._values)) == plan.memory[0].kv_cache


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_tokens_are_those_of_the_processor(count: int, split: bool) -> None:
    from PIL import Image

    model = tiny_idefics()
    image = Image.effect_noise((130, 70), 50)
    inputs = model.processor.adjusted(split=split).inputs(["<image>" * count], [[image] * count])
    plan = make_plan(model.model.config, [(130, 70)] * count, seen_by=model.processor.image_processor, split=split)
    assert plan.framed_tokens + 1 == inputs.input_ids_BT.shape[1]  # and <s>
    seen = [tuple(image_CHW.shape[:0:-1]) for image_CHW in inputs.images_CHW]
    assert [size for planned in plan.images for size in planned.seen] == seen


def test_subjects(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert subject("HuggingFaceM4/idefics2-8b-base").config == EIGHT
    here = subject(tiny_checkpoint)
    assert here.folder == tiny_checkpoint
    assert here.images.to_dict()["size"] == {"shortest_edge": 24, "longest_edge": 72}
    processor = tiny_processor()
    chat = processor.inputs(
        ["User:<image><image>What is it?<end_of_utterance>\nAssistant:"], [[Image.new("RGB", (40, 40))] * 2]
    )
    framed = make_plan(here.config, [(40, 40)] * 2, seen_by=here.images).framed_tokens
    assert here.text_tokens("What is it?", images=2) == chat.input_ids_BT.shape[1] - framed
    assert subject("idefics2-8b").text_tokens("What is it?", images=2) is None
    for name in (str(tmp_path / "idefics2-8b"), "./idefics2-8b", "nobody/nothing"):
        with pytest.raises(CheckpointNotFound):
            subject(name)


def test_refusals() -> None:
    for wrong in ({"batch": 0}, {"new_tokens": -1}, {"text_tokens": -1}, {"max_image_size": 0}):
        with pytest.raises(OptionError):
            make_plan(EIGHT, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        make_plan(EIGHT, [(1, 1)], split=True)
    assert [p.dtype for p in PRECISIONS] == ["float32", "bfloat16"]
