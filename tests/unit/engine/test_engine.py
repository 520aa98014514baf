"""The engine: order, ends, candidates, seeds, limits."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from fakes import tiny_idefics
from idefics.api import Idefics
from idefics.engine.prefill import left_aligned
from idefics.engine.request import Event, Token
from idefics.engine.sampling_params import SamplingParams
from idefics.engine.static_cache import StaticKVCache
from idefics.engine.streams import Streams
from idefics.errors import InputError
from idefics.inputs import ModelInputs
from idefics.model.logits import positions


@pytest.fixture(scope="module")
def tiny() -> Idefics:
    return tiny_idefics(std=0.3)


def _inputs(*rows: list[int]) -> ModelInputs:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ModelInputs(input_ids_BT=ids, attention_mask_BT=mask, images_per_row=(0,) * len(rows))


def test_rows_stop_on_their_own_terms(tiny: Idefics) -> None:
    inputs = _inputs([1, 70, 80], [1, 90])
    free = [c[0].token_ids for c in tiny.engine.generate(inputs, [SamplingParams(max_new_tokens=8)] * 2)]
    end = free[0][3]
    params = [SamplingParams(max_new_tokens=8, eos_token_id=(end,)), SamplingParams(max_new_tokens=3)]
    first, second = (row[0] for row in tiny.engine.generate(inputs, params))
    assert first.token_ids == free[0][: free[0].index(end) + 1]
    assert first.finish == "eos"
    assert second.token_ids == free[1][:3]
    assert second.finish == "length"


def test_stream_is_generate_token_by_token(tiny: Idefics) -> None:
    inputs = _inputs([1, 70, 80], [1, 90])
    params = [SamplingParams(max_new_tokens=4), SamplingParams(max_new_tokens=6)]
    tokens = list(tiny.engine.stream(inputs, params))
    assert [token.row for token in tokens] == [0, 1] * 4 + [1, 1]
    whole = tiny.engine.generate(inputs, params)
    for row in range(2):
        mine: list[Token] = [token for token in tokens if token.row == row]
        assert tuple(token.id for token in mine) == whole[row][0].token_ids
        assert [token.finish for token in mine[:-1]] == [None] * (len(mine) - 1)


def test_a_seed_decides_and_candidates_differ(tiny: Idefics) -> None:
    inputs = _inputs([1, 70, 80])
    params = SamplingParams(max_new_tokens=8, do_sample=True, temperature=2.0, seed=5, n=3)
    once, again = (tiny.engine.generate(inputs, [params])[0] for _ in range(2))
    assert once == again
    assert len({c.token_ids for c in once}) > 1
    other = tiny.engine.generate(inputs, [SamplingParams(max_new_tokens=8, do_sample=True, temperature=2.0, seed=6)])[0]
    assert other[0].token_ids != once[0].token_ids


def test_random_numbers_of_prompts_never_meet(tiny: Idefics) -> None:
    """Whatever number of answers each prompt has: every one draws from a stream of its own."""
    taken: list[int] = []

    class Engine:
        model = tiny.model
        lock = nullcontext()

        def add(self, _: ModelInputs, params: SamplingParams, *, stops: object, stream: int) -> int:  # noqa: ARG002
            taken.extend(range(stream, stream + params.candidates))
            return len(taken)

        def unfinished(self, _: int) -> bool:
            return False

        def cancel(self, _: int) -> list[Event]:
            return []

    params = SamplingParams(do_sample=True, n=1_500, seed=1)
    assert not list(Streams().stream(Engine(), _inputs([1, 5], [1, 6]), [params] * 2, None))  # type: ignore[arg-type]
    assert len(set(taken)) == len(taken) == 3_000


def test_best_of_keeps_the_likeliest(tiny: Idefics) -> None:
    inputs = _inputs([1, 70, 80])
    drawn = tiny.engine.generate(inputs, [SamplingParams(max_new_tokens=5, do_sample=True, temperature=3.0, seed=1, n=6)])[0]
    best = tiny.engine.generate(
        inputs, [SamplingParams(max_new_tokens=5, do_sample=True, temperature=3.0, seed=1, n=2, best_of=6)]
    )[0]
    assert [c.token_ids for c in best] == [c.token_ids for c in sorted(drawn, key=lambda c: -c.score)[:2]]


def test_logprobs_are_the_models_own(tiny: Idefics) -> None:
    inputs = _inputs([1, 70, 80])
    params = SamplingParams(max_new_tokens=3, do_sample=True, temperature=5.0, top_k=50, seed=0, logprobs=2)
    answer = tiny.engine.generate(inputs, [params])[0][0]
    ids = torch.tensor([[1, 70, 80, *answer.token_ids]])
    with torch.inference_mode():
        hidden = tiny.model(ids, positions_BT=torch.arange(ids.shape[1])[None])
        logprobs = tiny.model.logits(hidden).float().log_softmax(-1)[0, 2:-1]
    expected = logprobs.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=1e-4)
    assert [top[0][0] for top in answer.top] == logprobs.argmax(-1).tolist()
    assert all(len(top) == 2 for top in answer.top)


def test_limits_name_their_numbers(tiny: Idefics) -> None:
    limit = tiny.model.config.text_config.max_position_embeddings
    with pytest.raises(InputError, match=rf"3 tokens .* and {limit} new ones exceed .* {limit} .* at most {limit - 3} new"):
        tiny.engine.generate(_inputs([1, 70, 80]), [SamplingParams(max_new_tokens=limit)])
    with pytest.raises(InputError, match=f"{limit} tokens .* does not fit the model's {limit} positions"):
        tiny.engine.generate(_inputs([70] * limit), [SamplingParams(max_new_tokens=1)])


def test_ids_outside_the_vocabulary_are_refused(tiny: Idefics) -> None:
    size = tiny.model.config.text_config.vocab_size
    with pytest.raises(InputError, match=f"token id {size} is outside the model's vocabulary of {size}"):
        tiny.engine.generate(_inputs([1, size]), [SamplingParams(max_new_tokens=1)])
    with pytest.raises(InputError, match="token id -100 is outside"):
        tiny.engine.generate(_inputs([1, -100]), [SamplingParams(max_new_tokens=1)])


def test_image_tokens_without_their_image_are_refused(tiny: Idefics) -> None:
    image = tiny.model.config.image_token_id
    with pytest.raises(InputError, match=r"prompt 2 holds 2 image token\(s\) but its 0 image\(s\) of 4 latents need 0"):
        tiny.engine.generate(_inputs([1, 5, 6], [1, image, image]), [SamplingParams(max_new_tokens=1)] * 2)


def test_padding_between_tokens_is_refused_and_right_padding_moves_left() -> None:
    ids, mask = torch.tensor([[1, 7, 8, 0], [1, 9, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    seen = torch.tensor([[-1, 0, 1, 5], [0, 0, 5, 5]])
    left = left_aligned(ModelInputs(input_ids_BT=ids, attention_mask_BT=mask, seen_BT=seen))
    assert left.input_ids_BT.tolist() == [[0, 1, 7, 8], [0, 0, 1, 9]]
    assert positions(left.attention_mask_BT).tolist() == [[0, 0, 1, 2], [0, 0, 0, 1]]
    assert left.seen_BT is not None
    assert left.seen_BT.tolist() == [[-1, -1, 0, 1], [-1, -1, 0, 0]]
    with pytest.raises(InputError, match="attention_mask of prompt 1 has padding between tokens"):
        left_aligned(ModelInputs(input_ids_BT=ids[:1], attention_mask_BT=torch.tensor([[1, 0, 1, 0]])))
    with pytest.raises(InputError, match="prompt 2 is empty"):
        left_aligned(ModelInputs(input_ids_BT=ids, attention_mask_BT=torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]])))


def test_cache_rows_are_copied_and_forgotten(tiny: Idefics) -> None:
    config = tiny.model.config.text_config
    cache = StaticKVCache(config, rows=2, capacity=4, dtype=torch.float32, devices=[torch.device("cpu")] * 2)
    new = torch.arange(2 * 2 * 3 * 8.0).reshape(2, 2, 3, 8)
    for layer in range(2):
        cache.append(layer, new, -new)
    cache.advance(3)
    cache.select(torch.tensor([1, 1, 0]))
    keys, values = cache.append(0, torch.zeros(3, 2, 1, 8), torch.zeros(3, 2, 1, 8))
    assert torch.equal(keys[:, :, :3], new[[1, 1, 0]])
    assert torch.equal(values[:, :, :3], -new[[1, 1, 0]])
    cache.truncate(1)
    assert cache.length == 1
    with pytest.raises(AssertionError, match="5 tokens in a cache for 4"):
        cache.append(0, torch.zeros(3, 2, 4, 8), torch.zeros(3, 2, 4, 8))
