"""Options are understood, or refused by name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from idefics.engine.options import ABSENT, ALIASES, OPTIONS
from idefics.engine.sampling_params import SamplingParams, sampling_params, unknown_defaults
from idefics.errors import OptionError

PUBLISHED = {
    "bad_words_ids": [[32000], [32001]],
    "bos_token_id": 1,
    "eos_token_id": [2, 32002],
    "pad_token_id": 0,
    "transformers_version": "4.40.0",
}


def test_the_published_file_is_obeyed() -> None:
    params = sampling_params(PUBLISHED, {})
    assert params.eos_token_id == (2, 32002)
    assert params.bad_words_ids == ((32000,), (32001,))
    assert not params.do_sample
    assert unknown_defaults(PUBLISHED) == []


def test_a_call_overrides_the_file() -> None:
    params = sampling_params({"max_length": 20, "repetition_penalty": 1.2}, {"max_new_tokens": 5, "eos_token_id": 7})
    assert (params.max_new_tokens, params.max_length, params.repetition_penalty) == (5, None, 1.2)
    assert params.eos_token_id == (7,)


def test_a_nested_eos_list_as_the_first_idefics_card_passes_it() -> None:
    assert sampling_params({}, {"eos_token_id": [[32002]]}).eos_token_id == (32002,)


def test_sampling_is_implied_by_a_sampling_option_of_the_call_but_not_of_the_file() -> None:
    assert sampling_params({}, {"top_p": 0.9}).do_sample
    assert not sampling_params({"temperature": 0.7, "top_p": 0.9}, {}).do_sample
    params = sampling_params({"temperature": 0.7}, {"do_sample": True})
    assert params.temperature == 0.7


def test_a_seed_alone_does_not_make_a_greedy_answer_random() -> None:
    assert not sampling_params({}, {"seed": 3}).do_sample
    assert sampling_params({}, {"seed": 3, "do_sample": False}).seed == 3


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False},
        {"temperature": 0, "top_p": 0, "num_beams": 1, "do_sample": False},
        {"temperature": 0.0, "top_p": None, "num_beams": 1, "do_sample": False, "use_cache": True},
        {"temperature": 1.0, "do_sample": False},
        {"temperature": 0, "top_p": 0.9, "top_k": 40},
        {"temperature": 0},
        {"output_attentions": False, "output_scores": False, "synced_gpus": False, "renormalize_logits": False},
        {"logits_processor": [], "guidance_scale": 1.0, "penalty_alpha": 0, "num_beam_groups": 1, "assistant_model": None},
        {name: value for name, option in OPTIONS.items() for value in option.neutral},
    ],
)
def test_neutral_values_ask_for_nothing(options: dict[str, object]) -> None:
    assert sampling_params({}, options) == SamplingParams()
    assert sampling_params({"do_sample": False, "temperature": 0.7}, options) == SamplingParams()


def test_neutral_values_leave_a_checkpoint_that_draws_drawing() -> None:
    kept = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    params = sampling_params(kept, {"top_p": 1.0, "num_beams": 1, "use_cache": True})
    assert (params.do_sample, params.temperature, params.top_p) == (True, 0.7, None)
    assert sampling_params(kept, {"temperature": 0}) == SamplingParams()


def test_a_temperature_above_0_asks_to_draw_even_where_it_changes_nothing() -> None:
    assert sampling_params({}, {"temperature": 1.0}).do_sample
    assert sampling_params({}, {"temperature": 1.0, "do_sample": False}) == SamplingParams()


def test_values_of_numpy_and_torch_are_values() -> None:
    params = sampling_params(
        {},
        {
            "max_new_tokens": np.int64(5),
            "temperature": np.float32(0.5),
            "do_sample": np.bool_(True),
            "top_k": torch.tensor(7),
            "eos_token_id": np.array([2, 3]),
            "bad_words_ids": [torch.tensor([4, 5]), [np.int32(6)]],
            "n": np.uint8(2),
        },
    )
    expected = SamplingParams(
        max_new_tokens=5, temperature=0.5, do_sample=True, top_k=7, eos_token_id=(2, 3), bad_words_ids=((4, 5), (6,)), n=2
    )
    assert params == expected
    assert {type(value) for value in (params.max_new_tokens, params.do_sample, params.top_k)} == {int, bool}
    with pytest.raises(OptionError, match="max_new_tokens must be a whole number"):
        sampling_params({}, {"max_new_tokens": np.float64(2.5)})
    with pytest.raises(OptionError, match="max_new_tokens must be a whole number"):
        sampling_params({}, {"max_new_tokens": np.bool_(True)})


def test_the_table_has_every_field_in_order() -> None:
    assert list(OPTIONS) == [field.name for field in dataclasses.fields(SamplingParams)]
    assert not {*OPTIONS, *ALIASES} & {*ABSENT}
    for field in dataclasses.fields(SamplingParams):
        neutral = OPTIONS[field.name].neutral
        assert field.default is None or not neutral or field.default in neutral, field.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, r"unknown generation option 'temprature'; did you mean 'temperature'\?"),
        ({"watermark": True}, "unknown generation option 'watermark'"),
        ({"do_sample": False, "temperature": 0.5}, "temperature=0.5 contradicts do_sample=False"),
        ({"max_new_tokens": 3, "max_length": 9}, "max_new_tokens=3 and max_length=9 contradict"),
        ({"temperature": -0.5}, "temperature must be at least 0 and finite"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"temperature": float("inf")}, "temperature must be at least 0 and finite"),
        ({"top_p": 1.5}, "top_p must be from 0 to 1, not 1.5"),
        ({"top_k": 2.5}, "top_k must be a whole number, not 2.5"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"num_beams": 10**9}, "num_beams must be from 1 to 10000"),
        ({"n": 10**9}, "n must be from 1 to 10000"),
        ({"best_of": 10**9}, "best_of must be from 1 to 10000"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, not True"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "min_new_tokens=9 is above max_new_tokens=3"),
        ({"num_beams": 2, "do_sample": True}, "num_beams=2 contradicts do_sample=True"),
        ({"num_beams": 2, "temperature": 0.5}, "num_beams=2 contradicts do_sample=True"),
        ({"num_beams": 2, "n": 3}, "n=3 is above num_beams=2"),
        ({"num_beams": 2, "logprobs": 3}, "num_beams=2 contradicts logprobs=3"),
        ({"n": 2}, "2 greedy answers would be the same"),
        ({"n": 3, "best_of": 2}, "best_of=2 is below n=3"),
        ({"stop": ""}, "stop must be non-empty strings"),
        ({"bad_words_ids": [[]]}, "bad_words_ids must be non-empty"),
        ({"eos_token_id": 5, "bad_words_ids": [[5]]}, "bans the only eos_token_id 5"),
        ({"do_sample": "yes"}, "do_sample must be true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id or several, not '</s>'"),
        ({"eos_token_id": 2.5}, "eos_token_id must be a token id or several, not 2.5"),
        ({"bad_words_ids": 5}, "bad_words_ids must be sequences of token ids, not 5"),
        ({"stop": 5}, "stop must be a text or several, not 5"),
        ({"num_beams": "3"}, "num_beams must be a whole number, not '3'"),
        ({"temperature": 0, "do_sample": True}, "temperature=0 contradicts do_sample=True"),
        ({"do_sample": False, "top_k": 40}, "top_k=40 contradicts do_sample=False"),
        ({"length_penalty": float("nan")}, "length_penalty must be finite"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be above 0 and finite"),
        ({"best_of": 3, "temperature": 0}, "3 greedy answers would be the same"),
        ({"output_scores": True}, r"output_scores=True is not offered here \(per-step scores .*\); transformers offers it"),
        ({"stopping_criteria": [print]}, "stopping_criteria=.* is not offered here"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0 is not offered here; transformers offers it"),
        ({"xyz": 1}, "unknown generation option 'xyz'; there are max_new_tokens, .*prompt_lookup_num_tokens"),
    ],
)
def test_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        sampling_params({}, options)


def test_max_length_counts_the_prompt() -> None:
    params = sampling_params({}, {"max_length": 10})
    assert params.new_tokens(7, positions=99) == 3
    assert sampling_params({}, {}).new_tokens(90, positions=99) == 9, "a limit that nobody set gives way"
    with pytest.raises(OptionError, match="max_length=10 leaves no room after a prompt of 10 tokens"):
        params.new_tokens(10, positions=99)


def test_a_file_that_asks_for_what_is_unknown_is_seen() -> None:
    assert unknown_defaults({"penalty_alpha": 0.6, "use_cache": True, "guidance_scale": None}) == ["penalty_alpha"]


def test_no_torch_is_needed() -> None:
    assert SamplingParams(n=2, do_sample=True).candidates == 2
