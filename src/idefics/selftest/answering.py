"""Checks of the way that answers take: the engine, its packed passes, its blocks that are shared and found again.

What is expected comes from whole prompts alone, without any cache (`Subject.runs`); `vision.swapped_images` looks at what
the decoder is given there. On a GPU, steps in which every answer gets one token are recordings, here as for users.

Letters: V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from idefics.engine.intake import answers_of
from idefics.engine.limits import Limits, token_bytes
from idefics.engine.runner import Runner
from idefics.engine.sampling_params import SamplingParams
from idefics.engine.sequences import Slice
from idefics.inputs import ModelInputs
from idefics.model.nearness import distance
from idefics.selftest.checks import Check, inapplicable, judge, judge_logits, number
from idefics.selftest.dictation import BLOCK, Dictated, dictate, engine_for
from idefics.selftest.subject import TEXTS, TURN, Subject

__all__ = ["answers_equal_full", "paged_window_respected", "requests_apart", "second_turn_equals_full"]


def answers_equal_full(subject: Subject) -> Check:
    """Requests with no image, one and two, and one like the last but for its images, answered together."""
    first, _ = subject.answered
    return _compare(
        subject,
        "answers together equal a full forward of each",
        first,
        slice(0, TURN + 1),
        holds="logits of four requests with none to two images, answered together in small blocks and pieces, and each whole",
        broken="answers are not what the model says: blocks, positions, masks or images of the engine are mixed up",
    )


def second_turn_equals_full(subject: Subject) -> Check:
    """What a first turn left in blocks is found again, all of it, and the second turn is as if all were computed anew."""
    name = "a second turn goes on where the first ended"
    first, second = subject.answered
    lengths = [run.prompt + TURN for run in subject.asked_runs]
    due = sum(length // BLOCK * BLOCK for length in lengths)
    if second.found != due:
        return Check(
            name=name,
            passed=False,
            measured=f"{second.found} tokens found",
            allowed=f"{due}",
            explanation=f"blocks of {first.tokens} tokens are not found again as they were written",
        )
    return _compare(
        subject,
        name,
        second,
        slice(TURN + 1, None),
        holds=f"logits of four second turns, {second.found} of {second.tokens} tokens found in blocks, and each whole",
        broken="what is found in blocks is not what was written there",
    )


def requests_apart(subject: Subject) -> Check:
    """What a request answers is the same to the bit whatever picture another one beside it shows."""
    other = subject.inputs([TEXTS[1]], [[subject.pictures[2]]])
    heard = [_beside(subject, neighbour) for neighbour in (subject.row(1), other)]
    return judge(
        "requests do not hear each other",
        distance(heard[1], heard[0]),
        subject.least,
        holds="logits of a request without image, beside one picture of a size and another",
        broken="a request hears what others in the same pass see",
    )


def paged_window_respected(subject: Subject) -> Check:
    """As `decoding.window_respected`, over blocks: for a newest token by itself, and for two tokens of a prompt."""
    name, text = "answers keep the sliding window", subject.config.text_config
    window = text.sliding_window
    if window is None or window + 5 > text.max_position_embeddings:
        return inapplicable(name, "no window: every token sees all before it")
    outside, inside = 0.0, math.inf
    for tokens in (1, 2) if text.num_hidden_layers > 1 else (1,):
        planted = PlantedBlocks(subject, past=window + 3, tokens=tokens)
        oldest = planted.past - window + 1
        quiet = planted.answer(None)
        outside = max(outside, *(distance(planted.answer(key), quiet) for key in (0, oldest - 1)))
        if window > 1:  # a window of 1 holds the token itself
            inside = min(inside, distance(planted.answer(oldest), quiet))
    passed = outside <= subject.least < inside
    return Check(
        name=name,
        passed=passed,
        measured=f"outside {number(outside)}, inside {number(inside)}",
        allowed=f"outside <= {number(subject.least)} < inside",
        explanation=f"one loud key in blocks, just outside and just inside a window of {window}"
        + ("" if passed else "; long prompts are answered with the wrong reach"),
    )


class PlantedBlocks:
    """New tokens after a past of silent keys with at most one loud value: all of the past is one block, but for that one.

    Args:
        subject: the model.
        past: tokens before the new ones.
        tokens: new ones.
    """

    SILENT, LOUD, OWN = 0, 1, 2

    def __init__(self, subject: Subject, *, past: int, tokens: int) -> None:
        self.past = past
        room = (self.OWN + 3) * BLOCK * max(token_bytes(subject.model).values())
        limits = Limits(rows=1, tokens=tokens, block=BLOCK, cache_bytes=room, graphs=subject.graphs)
        self._runner = Runner(subject.model, limits)
        ids_1T = torch.full((1, past + tokens), subject.new_ids[0])
        inputs = ModelInputs(input_ids_BT=ids_1T, attention_mask_BT=torch.ones_like(ids_1T))
        params = SamplingParams(max_new_tokens=1)
        (self._answer,) = answers_of(
            subject.model, inputs, params, number=0, held=past + tokens + 1, stops=None, guides=None, deadline=None, stream=0
        )
        self._tokens = tokens

    def answer(self, loud: int | None) -> Tensor:
        """Logits (1, V) after the newest token, with one loud value in the past or none."""
        last = (self.past + self._tokens - 1) // BLOCK
        table = [self.SILENT] * (self.past // BLOCK)
        table += range(self.OWN, self.OWN + last + 1 - len(table))
        cache = self._runner.cache
        cache.wipe(range(self.OWN + 3))
        if loud is not None:
            if table[loud // BLOCK] == self.SILENT:
                table[loud // BLOCK] = self.LOUD
            for values in cache.values:
                values[table[loud // BLOCK], :, loud % BLOCK] = 1000.0  # even one part in thousands is heard
        self._answer.blocks = table
        (logits_1V,) = self._runner.run([Slice(self._answer, self.past, tuple(self._answer.ids[self.past :]), 0)])
        return logits_1V


def _beside(subject: Subject, neighbour: ModelInputs) -> Tensor:
    """What a prompt without image answers from, beside another one in an engine that has seen nothing before."""
    prompts = neighbour, subject.row(0)
    lengths = [prompt.input_ids_BT.shape[1] + len(subject.new_ids) for prompt in prompts]
    return dictate(engine_for(subject.model, lengths, graphs=subject.graphs), prompts, subject.new_ids[:TURN]).logits[1]


def _compare(subject: Subject, name: str, found: Dictated, of: slice, *, holds: str, broken: str) -> Check:
    """Dictated answers beside the same places of the prompts whole and alone."""
    runs = subject.asked_runs
    expected = [subject.model.logits(run.hidden_TD[run.prompt - 1 :])[of] for run in runs]
    return judge_logits(
        name,
        torch.cat(expected),
        torch.cat(found.logits),
        allowed=subject.allowed,
        holds=holds,
        broken=broken,
    )
