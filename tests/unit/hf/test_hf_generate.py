"""`generate`: the reference's arguments, streamers, stop strings, and what is refused, by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from idefics import Idefics2ForConditionalGeneration, Idefics2Processor
from idefics.errors import InputError, OptionError


@pytest.fixture
def one(processor: Idefics2Processor, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    return dict(processor(text="<image>what is it", images=pictures[0], return_tensors="pt"))


@pytest.fixture
def several(processor: Idefics2Processor, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    texts = ["<image>In the <image>it is", "no", "yes<image>"]
    rows = [pictures[:2], [], pictures[2:]]
    return dict(processor(text=texts, images=rows, padding=True, return_tensors="pt"))


LETTERS = {"bad_words_ids": [[i] for i in range(3, 260)]}  # no bytes, so that every token is whole characters


class Listener:
    """A streamer as the reference defines one: an object with `put` and `end`."""

    def __init__(self) -> None:
        self.got: list[torch.Tensor] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        assert not self.ended
        self.got.append(value)

    def end(self) -> None:
        self.ended += 1


def test_a_batch_is_prompts_and_answers(
    model: Idefics2ForConditionalGeneration, processor: Idefics2Processor, several: dict[str, torch.Tensor],
    pictures: list[Image.Image],
) -> None:  # fmt: skip
    width = several["input_ids"].shape[1]
    out = model.generate(**several, max_new_tokens=6)
    assert out.shape[0] == 3
    assert out.shape[1] <= width + 6
    assert torch.equal(out[:, :width] * several["attention_mask"], several["input_ids"] * several["attention_mask"])
    alone = processor(text="yes<image>", images=[pictures[2]], return_tensors="pt")
    single = model.generate(**alone, max_new_tokens=6)[0, alone.input_ids.shape[1] :].tolist()
    assert out[2, width:].tolist()[: len(single)] == single
    assert len(processor.batch_decode(out, skip_special_tokens=True)) == 3


def test_right_padding_gives_the_same_answers(
    model: Idefics2ForConditionalGeneration, processor: Idefics2Processor, several: dict[str, torch.Tensor],
    pictures: list[Image.Image],
) -> None:  # fmt: skip
    texts = ["<image>In the <image>it is", "no", "yes<image>"]
    rows = [pictures[:2], [], pictures[2:]]
    right = processor(text=texts, images=rows, padding=True, padding_side="right", return_tensors="pt")
    assert torch.equal(model.generate(**right, max_new_tokens=5), model.generate(**several, max_new_tokens=5))


def test_options_reach_the_engine(model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor]) -> None:
    width = one["input_ids"].shape[1]
    greedy = model.generate(**one, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert greedy.shape == (1, width + 5)
    assert torch.equal(model.generate(**one, max_length=width + 5, min_new_tokens=5, use_cache=True), greedy)
    banned = int(greedy[0, width])
    assert int(model.generate(**one, max_new_tokens=1, bad_words_ids=[[banned]])[0, width]) != banned
    ended = model.generate(**one, max_new_tokens=5, eos_token_id=[banned, 2])
    assert ended[0, width:].tolist() == [banned]
    sampled = model.generate(**one, max_new_tokens=5, do_sample=True, temperature=3.0, num_return_sequences=3, seed=0)
    assert sampled.shape[0] == 3
    assert torch.equal(
        sampled, model.generate(**one, max_new_tokens=5, do_sample=True, temperature=3.0, num_return_sequences=3, seed=0)
    )
    beams = model.generate(**one, max_new_tokens=4, num_beams=3, num_return_sequences=2)
    assert beams.shape[0] == 2


def test_sampling_takes_the_fifty_likeliest_unless_told_otherwise(
    model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    honest = type(model.engine).generate

    def spy(self: Any, inputs: Any, params: Any, stops: Any = None) -> Any:
        seen.append(params[0].top_k)
        return honest(self, inputs, params, stops)

    monkeypatch.setattr(type(model.engine), "generate", spy)
    model.generate(**one, max_new_tokens=1, do_sample=True)
    model.generate(**one, max_new_tokens=1, do_sample=True, top_k=5)
    model.generate(**one, max_new_tokens=1, do_sample=True, top_k=0)
    model.generate(**one, max_new_tokens=1)
    assert seen == [50, 5, None, None]


@pytest.mark.parametrize("form", ["mapping", "object"])
def test_a_generation_config_goes_over_the_checkpoints(
    model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor], form: str
) -> None:
    values = {"max_new_tokens": 4, "min_new_tokens": 4, "temperature": None, "transformers_version": "4.40.0"}
    config = values if form == "mapping" else SimpleNamespace(to_dict=lambda: values)
    width = one["input_ids"].shape[1]
    assert model.generate(**one, generation_config=config).shape[1] == width + 4
    assert model.generate(**one, generation_config=config, max_new_tokens=6, min_new_tokens=6).shape[1] == width + 6
    out = model.generate(**one, generation_config={**values, "return_dict_in_generate": True})
    assert out.sequences.shape[1] == width + 4
    assert "max_new_tokens" not in model.generation_config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temprature": 0.5}, "unknown generation option 'temprature'; did you mean"),
        ({"output_scores": True}, "logprobs=k reports"),
        (5, "generation_config must be a mapping, not int"),
    ],
)
def test_a_generation_config_that_cannot_be_honoured(
    model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor], config: Any, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        model.generate(**one, generation_config=config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 3}, "unknown generation option 'max_tokens'; did you mean"),
        ({"logits_processor": [print]}, "logits_processor=.* is not offered here"),
        ({"stopping_criteria": [object()]}, "stopping_criteria=.* is not offered here .*there are stop"),
        ({"output_scores": True}, "output_scores=True is not offered here .per-step scores .*; transformers offers it"),
        ({"output_logits": True, "logits_processor": [1]}, "output_logits=True is not offered here"),
        (
            {"penalty_alpha": 0.6, "top_k": 4},
            "penalty_alpha=0.6 is not offered here; transformers offers it",
        ),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": 0.5, "do_sample": False}, "temperature=0.5 contradicts do_sample=False"),
        ({"num_beams": 2, "num_return_sequences": 3}, "n=3 is above num_beams=2"),
        ({"num_return_sequences": 2}, "2 greedy answers would be the same"),
        ({"stop_strings": ["x"]}, "stop_strings needs tokenizer=processor.tokenizer"),
        ({"max_length": 3}, "max_length=3 leaves no room after a prompt of"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_not_offered_is_refused_by_name(
    model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        model.generate(**one, **{"max_new_tokens": 2, **options} if "max_length" not in options else options)


def test_what_is_off_is_not_refused(model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor]) -> None:
    off = {"output_scores": False, "logits_processor": [], "stopping_criteria": None, "top_p": 1.0, "typical_p": 1.0}
    assert torch.equal(model.generate(**one, max_new_tokens=3, **off), model.generate(**one, max_new_tokens=3))


def test_prompts_that_cannot_be_run(model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InputError, match="exceed the model's 512 positions; ask for at most"):
        model.generate(**one, max_new_tokens=600)
    with pytest.raises(InputError, match="token id 9999 is outside the model's vocabulary"):
        model.generate(torch.tensor([[1, 9999]]), max_new_tokens=1)


def test_a_streamer_hears_the_prompt_and_every_token(
    model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor]
) -> None:
    listener = Listener()
    out = model.generate(**one, max_new_tokens=5, streamer=listener)
    assert listener.ended == 1
    assert listener.got[0].shape == one["input_ids"].shape
    assert all(value.shape == (1,) for value in listener.got[1:])
    assert torch.cat([value.flatten() for value in listener.got]).tolist() == out[0].tolist()
    assert torch.equal(out, model.generate(**one, max_new_tokens=5))


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_streamer_takes_one_answer(
    model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor], options: dict[str, Any]
) -> None:
    with pytest.raises(OptionError, match="a streamer takes one prompt and one answer"):
        model.generate(**one, max_new_tokens=2, streamer=Listener(), **options)


def test_a_streamer_takes_one_prompt(model: Idefics2ForConditionalGeneration, several: dict[str, torch.Tensor]) -> None:
    with pytest.raises(OptionError, match="a streamer takes one prompt"):
        model.generate(**several, max_new_tokens=2, streamer=Listener())


@pytest.mark.parametrize("streamed", [False, True])
def test_stop_strings_end_each_answer(
    model: Idefics2ForConditionalGeneration, processor: Idefics2Processor, one: dict[str, torch.Tensor], streamed: bool
) -> None:
    width = one["input_ids"].shape[1]
    options = {"do_sample": True, "temperature": 2.0, "seed": 3, "max_new_tokens": 12, **LETTERS}
    whole = model.generate(**one, **options)[0, width:]
    text = processor.decode(whole, skip_special_tokens=True)
    stop = text[4:6]
    stopped = model.generate(
        **one, **options, stop_strings=[stop], tokenizer=processor.tokenizer, streamer=Listener() if streamed else None
    )[0, width:]
    assert stopped.tolist() == whole[: len(stopped)].tolist()
    assert len(stopped) < len(whole)
    assert stop in processor.decode(stopped, skip_special_tokens=True)
    assert stop not in processor.decode(stopped[:-1], skip_special_tokens=True)


def test_stop_strings_end_beams(
    model: Idefics2ForConditionalGeneration, processor: Idefics2Processor, one: dict[str, torch.Tensor]
) -> None:
    width = one["input_ids"].shape[1]
    options = {"max_new_tokens": 8, "num_beams": 2, **LETTERS}
    assert model.generate(**one, **options).shape[1] == width + 8
    anything = [chr(code) for code in range(33, 127)]  # whichever beam wins, it ends where something can be read
    out = model.generate(**one, **options, stop_strings=anything, tokenizer=processor.tokenizer)[0, width:]
    assert any(stop in processor.decode(out, skip_special_tokens=True) for stop in anything)
    assert not any(stop in processor.decode(out[:-1], skip_special_tokens=True) for stop in anything)


def test_return_dict_in_generate(model: Idefics2ForConditionalGeneration, several: dict[str, torch.Tensor]) -> None:
    out = model.generate(**several, max_new_tokens=4, logprobs=2, return_dict_in_generate=True)
    assert torch.equal(out.sequences, model.generate(**several, max_new_tokens=4))
    assert out["sequences"] is out.sequences is out[0]
    assert out.sequences_scores.shape == (3,)
    width = several["input_ids"].shape[1]
    for row, (completion,) in enumerate(out.completions):
        assert out.sequences[row, width : width + len(completion.token_ids)].tolist() == list(completion.token_ids)
        assert completion.score == pytest.approx(sum(completion.logprobs) / len(completion.logprobs))
        assert out.sequences_scores[row].item() == pytest.approx(completion.score, rel=1e-5)
        assert all(len(top) == 2 for top in completion.top)
        assert completion.finish in ("eos", "length")


def test_rows_that_end_early_are_filled_with_the_pad_token(
    model: Idefics2ForConditionalGeneration, several: dict[str, torch.Tensor]
) -> None:
    width = several["input_ids"].shape[1]
    free = model.generate(**several, max_new_tokens=4)
    end = int(free[0, width])
    out = model.generate(**several, max_new_tokens=4, eos_token_id=end, pad_token_id=9)
    assert out[0, width:].tolist() in ([end, *[9] * (out.shape[1] - width - 1)], [end])


def test_the_global_seed_is_obeyed_and_goes_on(
    model: Idefics2ForConditionalGeneration, several: dict[str, torch.Tensor]
) -> None:
    options: dict[str, Any] = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 5, "num_return_sequences": 2}
    torch.manual_seed(3)
    first, second = (model.generate(**several, **options) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    again = [model.generate(**several, **options) for _ in range(2)]
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first[0], first[1]), "answers to one prompt are drawn apart"


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False},
        {"temperature": 1.0, "do_sample": np.bool_(False), "synced_gpus": False, "output_attentions": False},
        {"generation_config": {"temperature": 0, "output_scores": False, "num_beams": 1}, "use_cache": True},
    ],
)
def test_neutral_options_are_greedy(
    model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor], options: dict[str, Any]
) -> None:
    plain = model.generate(**one, max_new_tokens=3)
    assert torch.equal(model.generate(**one, max_new_tokens=np.int64(3), **options), plain)
