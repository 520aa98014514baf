"""Choosing tokens: rows together are rows alone, a row is what its definition says, and draws follow their probabilities."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from asking import chosen
from idefics.engine.sampling import Choice, Draw, Sampler, ban, choose, cut_tails, pick
from idefics.engine.sampling_params import SamplingParams
from idefics.errors import NumericsError

OFF = float("-inf")


def cut(logits: list[float], p: SamplingParams) -> set[int]:
    """The tokens that temperature and cuts leave, one after the other and in double precision."""
    left = {i: value / p.temperature for i, value in enumerate(logits) if value != OFF}

    def probabilities() -> dict[int, float]:
        values = torch.tensor(list(left.values()), dtype=torch.float64).softmax(0)
        return dict(zip(left, values.tolist(), strict=True))

    if p.top_k is not None:
        best = sorted(left, key=lambda i: -left[i])[: p.top_k]
        left = {i: left[i] for i in best}
    if p.top_p is not None:
        total, kept = 0.0, []
        for i, probability in sorted(probabilities().items(), key=lambda item: -item[1]):
            if total < p.top_p:
                kept.append(i)
            total += probability
        left = {i: left[i] for i in kept}
    if p.min_p is not None:
        found = probabilities()
        left = {i: left[i] for i in left if found[i] >= p.min_p * max(found.values())}
    if p.typical_p is not None:
        found = probabilities()
        logs = {i: float(torch.tensor(q, dtype=torch.float64).log()) for i, q in found.items()}
        entropy = -sum(found[i] * logs[i] for i in left)
        total, kept = 0.0, []
        for i in sorted(left, key=lambda i: abs(-logs[i] - entropy)):
            if total < p.typical_p:
                kept.append(i)
            total += found[i]
        left = {i: left[i] for i in kept}
    return set(left)


def random_params(rng: random.Random) -> SamplingParams:
    def maybe(value: float) -> float | None:
        return value if rng.random() < 0.5 else None

    k = rng.randint(1, 40)
    return SamplingParams(
        do_sample=True,
        temperature=rng.choice((0.3, 1.0, 1.7)),
        top_k=k if rng.random() < 0.5 else None,
        top_p=maybe(rng.uniform(0.05, 0.99)),
        min_p=maybe(rng.uniform(0.001, 0.3)),
        typical_p=maybe(rng.uniform(0.05, 0.99)),
    )


def test_cuts_leave_what_their_definition_leaves() -> None:
    rng = random.Random(0)
    for seed in range(60):
        params = [random_params(rng) for _ in range(5)]
        logits_RV = 3 * torch.randn(5, 30, generator=torch.Generator().manual_seed(seed))
        logits_RV[0, :4] = OFF
        left_RV = torch.isfinite(cut_tails(logits_RV, params))
        for row, (p, logits_V) in enumerate(zip(params, logits_RV.tolist(), strict=True)):
            assert set(left_RV[row].nonzero()[:, 0].tolist()) == cut(logits_V, p), (seed, row, p)


@pytest.mark.parametrize("answer", [[], [3], [3, 4, 5]])
def test_rows_chosen_together_are_those_chosen_alone(answer: list[int]) -> None:
    logits_RV = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    logits_RV[:, 2] = 9.0

    def only_odd(logits_V: Tensor, prompt: object, answer: object) -> Tensor:
        del prompt, answer
        return logits_V.masked_fill(torch.arange(12) % 2 == 0, OFF)

    every = [
        (SamplingParams(), None),
        (SamplingParams(bad_words_ids=((2,), (7,))), None),
        (SamplingParams(bad_words_ids=((2, 3),), no_repeat_ngram_size=2), None),
        (SamplingParams(min_new_tokens=2, eos_token_id=(2,)), None),
        (SamplingParams(do_sample=True, temperature=3.0, seed=3), None),
        (SamplingParams(do_sample=True, temperature=9.0, top_k=5, top_p=0.9, typical_p=0.95, seed=4, logprobs=3), None),
        (SamplingParams(repetition_penalty=3.0, logprobs=2), None),
        (SamplingParams(), only_odd),
        (SamplingParams(do_sample=True, min_p=0.01, temperature=9.0, seed=5), only_odd),
    ]
    together = choose(
        [(Sampler(p, [1, 2], guide=guide), logits_V, answer) for (p, guide), logits_V in zip(every, logits_RV, strict=True)]
    )
    for (p, guide), logits_V, found in zip(every, logits_RV, together, strict=True):
        alone = chosen(Sampler(p, [1, 2], guide=guide), logits_V, answer)
        assert found == alone
        assert alone.logprob == pytest.approx(float(logits_V.log_softmax(-1)[alone.token]), abs=1e-6)
        assert len(alone.top) == (p.logprobs or 0)
        assert guide is None or alone.token % 2 == 1


def test_alternatives_are_the_models_own() -> None:
    logits_V = torch.randn(12, generator=torch.Generator().manual_seed(2))
    best = logits_V.topk(3).indices.tolist()
    found = chosen(Sampler(SamplingParams(logprobs=3, bad_words_ids=((best[0],),)), [1]), logits_V)
    assert (found.token, [token for token, _ in found.top]) == (best[1], best)
    assert found.logprob == dict(found.top)[found.token], "one number, wherever it is told"


def test_draws_follow_their_probabilities() -> None:
    logits_RV = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()[None]
    p = SamplingParams(do_sample=True)
    counts = Counter(int(pick(logits_RV, logits_RV, [Draw(p, (i + 0.5) / 800)])[0, 0]) for i in range(800))
    assert counts == {0: 400, 1: 200, 2: 100, 3: 100}


@pytest.mark.parametrize("at", [0.0, 1 - 2**-53, 1.0])
def test_what_is_forbidden_is_never_drawn(at: float) -> None:
    for seed in range(50):
        logits_RV = 5 * torch.randn(3, 40, generator=torch.Generator().manual_seed(seed))
        allowed_RV = logits_RV.clone()
        ban(allowed_RV, [range(seed % 39), range(1, 40), (39,)])
        token_R, _, good_R = pick(logits_RV, allowed_RV, [Draw(SamplingParams(do_sample=True, top_k=7), at)] * 3).T
        assert good_R.tolist() == [1.0] * 3
        assert torch.isfinite(allowed_RV.gather(1, token_R.long()[:, None])).all()
        assert token_R[1] == 0


def test_a_seed_draws_the_same_again_and_streams_differ() -> None:
    logits_V = torch.zeros(1_000)

    def drawn(seed: int, stream: int) -> list[int]:
        sampler = Sampler(SamplingParams(do_sample=True, seed=seed), [1], stream=stream)
        return [chosen(sampler, logits_V).token for _ in range(8)]

    assert drawn(1, 0) == drawn(1, 0)
    assert len({tuple(drawn(seed, stream)) for seed in (1, 2) for stream in (0, 1)}) == 4
    assert len(set(drawn(1, 0))) > 4


def test_a_guide_that_fails_concerns_itself_alone() -> None:
    def broken(*_: object) -> Tensor:
        raise NumericsError("too complex")

    samplers = [Sampler(SamplingParams(), [1], guide=broken), Sampler(SamplingParams(), [1])]
    bad, good = choose([(sampler, torch.zeros(4), []) for sampler in samplers])
    assert "too complex" in str(bad)
    assert isinstance(good, Choice)


def test_the_models_own_logits_are_not_changed() -> None:
    logits_V = torch.randn(12, generator=torch.Generator().manual_seed(0))
    before = logits_V.clone()
    params = SamplingParams(repetition_penalty=2.0, frequency_penalty=1.0, bad_words_ids=((2,),), do_sample=True, top_k=3)
    chosen(Sampler(params, [1, 2]), logits_V, [3, 3])
    assert torch.equal(logits_V, before)


def test_greedy_is_the_likeliest_at_any_temperature() -> None:
    logits_V = torch.randn(12, generator=torch.Generator().manual_seed(0))
    for p in (SamplingParams(), replace(SamplingParams(), temperature=0.1)):
        assert chosen(Sampler(p, [1]), logits_V).token == int(logits_V.argmax())


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-45, 1e-320])
def test_the_coldest_temperatures_leave_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([1.0, 30.0, -3.0, 29.99])
    for seed in range(20):
        params = SamplingParams(do_sample=True, temperature=temperature, seed=seed)
        assert chosen(Sampler(params, []), logits, []).token == 1


@pytest.mark.parametrize("temperature", [1e30, 1e39, 1e308])
def test_the_hottest_temperatures_draw_all_but_what_is_forbidden(temperature: float) -> None:
    logits = torch.tensor([1.0, 30.0, -3.0, 29.0])
    tokens = {
        chosen(
            Sampler(SamplingParams(do_sample=True, temperature=temperature, bad_words_ids=((1,),), seed=s), []), logits, []
        ).token
        for s in range(60)
    }
    assert tokens == {0, 2, 3}


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_no_number_is_named_not_decoded(value: str) -> None:
    sampler = Sampler(SamplingParams(), [1])
    with pytest.raises(NumericsError, match="NaN or infinite"):
        chosen(sampler, torch.tensor([0.0, float(value), 1.0]), [])


def test_everything_forbidden_is_said() -> None:
    params = SamplingParams(bad_words_ids=((0,), (1,)))
    with pytest.raises(NumericsError, match="every token is forbidden"):
        chosen(Sampler(params, [5]), torch.tensor([0.0, 1.0]), [])


def test_penalties_count_the_answer() -> None:
    logits = torch.tensor([3.0, 2.9, 0.0])
    plain = chosen(Sampler(SamplingParams(), [0]), logits, [0, 0])
    punished = chosen(Sampler(SamplingParams(frequency_penalty=0.1), [0]), logits, [0, 0])
    once = chosen(Sampler(SamplingParams(presence_penalty=0.05), [0]), logits, [0, 0])
    assert (plain.token, punished.token, once.token) == (0, 1, 0)


def test_a_row_that_is_no_number_concerns_itself_alone() -> None:
    logits_RV = torch.zeros(3, 4)
    logits_RV[1, 2] = float("nan")
    samplers = [
        Sampler(SamplingParams(), [1]),
        Sampler(SamplingParams(), [1]),
        Sampler(SamplingParams(bad_words_ids=((0,), (1,), (2,), (3,))), [1]),
    ]
    good, bad, banned = choose([(sampler, logits_V, []) for sampler, logits_V in zip(samplers, logits_RV, strict=True)])
    assert isinstance(good, Choice)
    assert "NaN or infinite" in str(bad)
    assert "every token is forbidden" in str(banned)
