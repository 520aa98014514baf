"""Answers are computed in the model's own dtype, also inside `torch.autocast`."""

from __future__ import annotations

import pytest
import torch

from asking import prompt
from idefics.engine.engine import Engine
from idefics.engine.sampling_params import SamplingParams
from idefics.model.base import VisionLanguageModel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_autocast_around_the_call_changes_nothing(model: VisionLanguageModel, dtype: torch.dtype) -> None:
    inputs = prompt(model, 1, images=2)

    def answered(engine: Engine) -> list[object]:
        greedy, beams = SamplingParams(max_new_tokens=4), SamplingParams(max_new_tokens=4, num_beams=2)
        return [
            engine.generate(inputs, [greedy]),
            engine.generate(inputs, [beams]),
            engine.score(inputs, [[*inputs.input_ids_BT[0].tolist(), 5]]),
            engine.score_prompt(inputs),
        ]

    plain = answered(Engine(model))
    with torch.autocast("cpu", dtype=dtype):
        assert answered(Engine(model)) == plain
