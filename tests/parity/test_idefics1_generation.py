"""The first generation: generated tokens equal the reference's.

The reference's beams fail for this family in every release from 4.57: ours are compared with the same search over the
reference's logits, each step computed whole, and in `tests/unit/weights/` with those of 4.40 itself.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import Pair, greedy_pair, pair

from gated import BOS, EDGES, FAKE, IMAGE, block, pictures, random_batch, reference_inputs, tiny_config
from idefics.engine.beam import beam_search
from idefics.engine.sampling_params import sampling_params
from idefics.model.idefics1 import Idefics1


@pytest.fixture(scope="module")
def models() -> Pair:
    return pair(tiny_config(), seed=3)


@pytest.mark.parametrize("seed", range(25))
def test_greedy_tokens_of_200_prompts(models: Pair, seed: int) -> None:
    theirs, ours = greedy_pair(models, reference_inputs(*random_batch(seed, 8)), max_new_tokens=12, do_sample=False)
    assert ours == theirs


def test_answers_that_forget_their_image_would_be_seen(models: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Idefics1, "sources_remain", False)
    theirs, ours = greedy_pair(models, reference_inputs(*random_batch(0, 8)), max_new_tokens=12, do_sample=False)
    assert ours != theirs


def test_answers_that_look_at_another_rows_image_would_be_seen(models: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Idefics1.sight
    monkeypatch.setattr(Idefics1, "sight", lambda self, images, source_BT: honest(self, images, source_BT.flip(1)))
    theirs, ours = greedy_pair(models, reference_inputs(*random_batch(0, 8)), max_new_tokens=12, do_sample=False)
    assert ours != theirs


@pytest.mark.parametrize("variant", [{"use_resampler": False, "alpha_type": "vector"}, {"additional_vocab_size": 0}], ids=str)
def test_greedy_tokens_of_other_variants(variant: dict[str, Any]) -> None:
    inputs = reference_inputs(*EDGES["mixed image counts"])
    theirs, ours = greedy_pair(pair(tiny_config(**variant), seed=6), inputs, max_new_tokens=12, do_sample=False)
    assert ours == theirs


def test_as_the_model_card_calls_it(models: Pair) -> None:
    rows = [[BOS, 5, *block(1), 6, 7], [BOS, *block(2), 8, *block(1), 9, 10, 11]]
    inputs = reference_inputs(rows, [pictures(1), pictures(3, seed=1)])
    theirs, ours = greedy_pair(models, inputs, max_length=40)
    banned = ours[1][0]
    exits = [next(token for token in ours[0][3:] if token != banned)]  # what the tokenizer's call gives: a list
    options: dict[str, Any] = {"eos_token_id": exits, "bad_words_ids": [[IMAGE], [FAKE], [banned]], "max_length": 40}
    assert ours == theirs
    theirs, ours = greedy_pair(models, inputs, **options)
    assert ours == theirs
    assert all(ids[-1] in exits or len(ids) == 40 - inputs["input_ids"].shape[1] for ids in ours)


class WholePasses:
    """A prompt as beam search wants it, with the logits of the reference, which computes everything anew at every step."""

    def __init__(self, reference: Any, inputs: dict[str, torch.Tensor], beams: int) -> None:
        self._reference, self._images = reference, inputs
        self._ids = inputs["input_ids"].repeat(beams, 1)
        self.prompt_ids = [inputs["input_ids"][0].tolist()]
        self.logits_RV = self._run()

    def _run(self) -> torch.Tensor:
        rows, new = len(self._ids), self._ids.shape[1] - len(self.prompt_ids[0])
        sees = self._images["image_attention_mask"]
        sees = torch.cat((sees, sees[:, -1:].expand(-1, new, -1)), dim=1).repeat(rows, 1, 1)
        pixels = self._images["pixel_values"].repeat(rows, 1, 1, 1, 1)
        with torch.inference_mode():
            logits: torch.Tensor = self._reference(input_ids=self._ids, pixel_values=pixels, image_attention_mask=sees).logits
        return logits[:, -1].float()

    def reorder(self, rows_R: torch.Tensor) -> None:
        self._ids = self._ids[rows_R]

    def step(self, tokens_R1: torch.Tensor) -> torch.Tensor:
        self._ids = torch.cat((self._ids, tokens_R1), dim=1)
        return self._run()


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "length_penalty": 2.0}], ids=str)
def test_beams(models: Pair, options: dict[str, Any]) -> None:
    for seed in range(4):
        rows, images = random_batch(seed, 1)
        inputs = reference_inputs(rows, images)
        params = sampling_params({}, {**options, "max_new_tokens": 8, "eos_token_id": 2, "n": 2})
        expected = beam_search(WholePasses(models.reference, inputs, params.num_beams), params, None, room=8)  # type: ignore[arg-type]
        found = models.ours.generate(**inputs, **options, max_new_tokens=8, eos_token_id=2, n=2, return_dict_in_generate=True)
        assert [c.token_ids for c in found.completions[0]] == [c.token_ids for c in expected]
        for ours, theirs in zip(found.completions[0], expected, strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=1e-4)
