"""Generated tokens equal the reference's."""

from __future__ import annotations

import pytest
import torch
from oracle import FAKE, IMAGE, Pair, batch, greedy_pair, pair, random_prompt, tiny_config


@pytest.fixture(scope="module")
def models() -> Pair:
    return pair(tiny_config(sliding_window=None), seed=3)


@pytest.mark.parametrize("seed", range(25))
def test_greedy_tokens_of_200_prompts(models: Pair, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prompts = [random_prompt(generator) for _ in range(8)]
    inputs = batch([ids for ids, _ in prompts], [images for _, images in prompts])
    theirs, ours = greedy_pair(models, inputs, max_new_tokens=12, do_sample=False)
    assert ours == theirs


def test_a_shifted_position_would_be_seen(models: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from idefics.model import decoder

    honest = decoder.rotary_angles
    monkeypatch.setattr(decoder, "rotary_angles", lambda places, **sizes: honest(places + (places > 5), **sizes))
    generator = torch.Generator().manual_seed(0)
    prompts = [random_prompt(generator) for _ in range(8)]
    inputs = batch([ids for ids, _ in prompts], [images for _, images in prompts])
    theirs, ours = greedy_pair(models, inputs, max_new_tokens=12, do_sample=False)
    assert ours != theirs


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[IMAGE], [FAKE], [5, 9], [17]]},
        {"min_new_tokens": 6},
        {"max_length": 200},
        {"num_beams": 3},
        {"num_beams": 4, "length_penalty": 2.0},
        {"num_beams": 3, "length_penalty": -0.5, "early_stopping": True},
        {"num_beams": 2, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_options_equal_the_reference(models: Pair, options: dict[str, object]) -> None:
    generator = torch.Generator().manual_seed(11)
    for _ in range(6):
        ids, images = random_prompt(generator, most=2)
        if "max_length" in options:
            options = {"max_length": len(ids) + 5}
        limit = {} if "max_length" in options else {"max_new_tokens": 14}
        theirs, ours = greedy_pair(models, batch([ids], [images]), do_sample=False, **limit, **options)
        assert ours == theirs


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"typical_p": 0.7},
        {"min_p": 0.1},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=lambda options: "-".join(options),
)
def test_sampling_keeps_the_tokens_that_the_reference_keeps(options: dict[str, float]) -> None:
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as theirs

    from idefics.engine.sampling import cut_tails
    from idefics.engine.sampling_params import sampling_params

    makers = {
        "temperature": theirs.TemperatureLogitsWarper,
        "top_k": theirs.TopKLogitsWarper,
        "top_p": theirs.TopPLogitsWarper,
        "min_p": theirs.MinPLogitsWarper,
        "typical_p": theirs.TypicalLogitsWarper,
    }
    warp = LogitsProcessorList([makers[name](value) for name, value in options.items()])
    for seed in range(50):
        logits = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * 3
        expected = warp(torch.zeros(1, 1, dtype=torch.long), logits[None].clone())[0].softmax(-1)
        got = cut_tails(logits[None], [sampling_params({}, options)])[0].softmax(-1)
        torch.testing.assert_close(got, expected)
