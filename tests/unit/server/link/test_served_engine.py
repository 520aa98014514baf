"""What the server asks of the engine beyond tokens."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from asking import chosen
from fakes import tiny_idefics
from idefics.api import Idefics
from idefics.engine import scoring
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits
from idefics.engine.sampling import Sampler
from idefics.engine.sampling_params import SamplingParams
from idefics.engine.scoring import score_continuations, score_prompt
from idefics.engine.state import EngineState
from idefics.linears.packing import pack
from idefics.server.model import ServedModel, spare_a_core


@pytest.fixture(scope="module")
def tiny() -> Idefics:
    return tiny_idefics(std=0.3)


def test_a_prompts_log_probabilities_are_those_of_its_continuations(tiny: Idefics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "AT_ONCE", 3)
    inputs = tiny.processor.inputs(["<image>the red image is blue"], [[Image.new("RGB", (30, 50), (9, 200, 30))]])
    ids = inputs.input_ids_BT[0].tolist()
    scores = score_prompt(tiny.model, inputs)
    assert len(scores) == len(ids) - 1
    begun = tiny.processor.inputs(["<image>the"], [[Image.new("RGB", (30, 50), (9, 200, 30))]])
    ((after, _),) = score_continuations(tiny.model, begun, [ids])
    torch.testing.assert_close(torch.tensor(scores[-len(after) :]), torch.tensor(after), rtol=1e-4, atol=1e-4)


def test_a_prompt_of_one_token_has_none(tiny: Idefics) -> None:
    assert score_prompt(tiny.model, tiny.processor.inputs([""], [[]])) == []


@pytest.mark.parametrize(
    ("threads", "cpus", "small", "packs", "left"),
    [
        (4, 4, 10**9, False, 3),
        (1, 1, 10**9, False, 1),
        (2, 8, 10**9, False, 2),
        (4, 4, 10, False, None),
        (4, 4, 10**9, True, None),
    ],
)
def test_a_small_model_leaves_a_core(
    monkeypatch: pytest.MonkeyPatch, threads: int, cpus: int, small: int, packs: bool, left: int | None
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr("idefics.server.model.usable_cpus", lambda: cpus)
    monkeypatch.setattr("idefics.linears.packing.ENOUGH_PARAMETERS", small)
    model = tiny_idefics().model
    spare_a_core(pack(model, reorder=False) if packs else model)
    assert chosen == ([] if left is None else [left])


def test_a_guide_comes_last() -> None:
    def only_five(logits_V: torch.Tensor, prompt: object, answer: object) -> torch.Tensor:
        del prompt, answer
        return logits_V.masked_fill(torch.arange(len(logits_V)) != 5, float("-inf"))

    sampler = Sampler(SamplingParams(), [1], guide=only_five)
    logits_V = torch.zeros(9)
    logits_V[3] = 4.0
    assert chosen(sampler, logits_V).token == 5
    assert chosen(Sampler(SamplingParams(), [1]), logits_V).token == 3


def test_the_state_is_what_the_engine_holds(tiny: Idefics) -> None:
    engine = Engine(tiny.model, Limits(cache_bytes=2**20))
    assert engine.state() == EngineState(), "nothing is made for being looked at"
    inputs = tiny.processor.inputs(["<image>the red"], [[Image.new("RGB", (30, 50))]])
    number = engine.add(inputs, SamplingParams(max_new_tokens=9))
    assert engine.state().waiting == 1
    engine.step()
    state = engine.state()
    assert (state.waiting, state.running) == (0, 1)
    assert state.blocks_held > 0
    assert state.image_bytes > 0
    assert (state.admitted_tokens, state.found_tokens) == (inputs.input_ids_BT.shape[1], 0)
    engine.cancel(number)
    assert (engine.state().running, engine.state().blocks_held) == (0, 0)


def test_facts_of_a_model(tiny: Idefics) -> None:
    facts = ServedModel.of(tiny)
    assert (facts.name, facts.positions, facts.dtype, facts.device) == ("tiny", 512, "float32", "cpu")
    assert facts.defaults == tiny.defaults
    assert ServedModel.of(tiny, speculate=3).defaults == {**tiny.defaults, "prompt_lookup_num_tokens": 3}
