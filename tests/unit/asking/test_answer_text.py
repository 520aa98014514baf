"""The text of answers, token by token and whole, and where stop strings end it."""

from __future__ import annotations

import random

import pytest

from fakes import tiny_tokenizer
from idefics.asking.text import AnswerText, StopWatch, stop_checks, text_of
from idefics.engine.request import Completion, FinishReason
from idefics.engine.sampling_params import SamplingParams

TOKENIZER = tiny_tokenizer()


def completion(ids: list[int], finish: FinishReason) -> Completion:
    return Completion(token_ids=tuple(ids), logprobs=(), top=(), score=0.0, finish=finish)


@pytest.mark.parametrize("finish", ["eos", "stop", "length"])
def test_pieces_are_the_whole(finish: FinishReason) -> None:
    draw = random.Random(0)
    for _ in range(50):
        ids = [draw.randrange(3, 360) for _ in range(12)]
        stop = [TOKENIZER.decode(ids[4:6])] if draw.random() < 0.5 and TOKENIZER.decode(ids[4:6]) else []
        text = AnswerText(TOKENIZER, stop=stop)
        pieces = [text.push([token], finish if place == 11 else None) for place, token in enumerate(ids)]
        assert "".join(pieces) == text_of(TOKENIZER, completion(ids, finish), stop)


def test_an_ordinary_token_that_ends_an_answer_is_no_text() -> None:
    ids = TOKENIZER.encode("one two", add_special_tokens=False)
    assert text_of(TOKENIZER, completion(ids, "length"), []) == "one two"
    assert text_of(TOKENIZER, completion(ids, "eos"), []) == TOKENIZER.decode(ids[:-1])


def test_stops_of_several_answers_and_of_beams() -> None:
    assert stop_checks(TOKENIZER, SamplingParams(), prompts=2) is None
    drawn = stop_checks(TOKENIZER, SamplingParams(stop=("two",), do_sample=True, n=3), prompts=2)
    assert drawn is not None
    assert len(drawn) == 6
    assert all(isinstance(check, StopWatch) for check in drawn)
    ids = TOKENIZER.encode("one two three", add_special_tokens=False)
    first = next(end for end in range(1, len(ids) + 1) if "two" in TOKENIZER.decode(ids[:end]))
    said = [drawn[0](ids[:end]) for end in range(1, len(ids) + 1)]
    assert said.index(True) + 1 == first
    assert not drawn[1](ids[:1]), "each answer has its own"
    beams = stop_checks(TOKENIZER, SamplingParams(stop=("two",), num_beams=2), prompts=2)
    assert beams is not None
    assert len(beams) == 2
    assert [beams[0](ids[:end]) for end in (first, 1, len(ids))] == [True, False, True], "in any order"
