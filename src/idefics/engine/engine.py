"""Continues prompts: prefill once, then one token per answer and step, all prompts of a call together.

This engine takes a batch and finishes it. Requests that join and leave at any step come with the scheduler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from idefics.engine.beam import beam_search
from idefics.engine.prefill import Prefill
from idefics.engine.request import Completion, FinishReason, StopCheck, Token
from idefics.engine.sampling import Sampler
from idefics.engine.sampling_params import SamplingParams
from idefics.errors import OptionError
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel
from idefics.parallel.launch import agreed_seed

__all__ = ["Engine"]


class Engine:
    """Generates with one model.

    Args:
        model: in eval mode, on the device(s) where it shall run.
    """

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model

    @torch.inference_mode()
    def stream(
        self, inputs: ModelInputs, params: Sequence[SamplingParams], stops: Sequence[StopCheck] | None = None
    ) -> Iterator[Token]:
        """Yields tokens as they are chosen, step by step; within a step, in order of prompts and candidates.

        Args:
            inputs: the prompts; padding on either side.
            params: one per prompt; beam search cannot be streamed.
            stops: one per answer (prompts in order, each `params.candidates` times).

        Raises:
            InputError: prompts and images do not match, or prompt and answer exceed the model's positions.
            OptionError: an id to be banned does not exist.
            NumericsError: NaN or infinite logits.
        """
        assert all(p.num_beams == 1 for p in params), "beams have no tokens before the end"
        if any(p.do_sample and p.seed is None for p in params):
            seed = agreed_seed(self.model)  # processes that compute one model must draw the same tokens
            params = [replace(p, seed=seed) if p.seed is None else p for p in params]
        answers = [
            Answer(row, candidate, p, stream=row * 1_000 + candidate)
            for row, p in enumerate(params)
            for candidate in range(p.candidates)
        ]
        self._check_ids(params)
        rooms = self._rooms(inputs, params)
        prefill = Prefill(self.model, inputs, rows=[a.row for a in answers], rooms=rooms)
        for answer in answers:
            answer.sampler = Sampler(answer.params, prefill.prompt_ids[answer.row], stream=answer.stream)
            answer.room = rooms[answer.row]
        logits_RV = prefill.logits_RV
        live = list(range(len(answers)))
        pad = torch.zeros(len(answers), 1, dtype=torch.int64, device=logits_RV.device)
        while True:
            for index in list(live):
                token = answers[index].next(logits_RV[index], None if stops is None else stops[index])
                pad[index] = token.id
                if token.finish is not None:
                    live.remove(index)
                yield token
            if not live:
                return
            logits_RV = prefill.step(pad)

    def generate(
        self, inputs: ModelInputs, params: Sequence[SamplingParams], stops: Sequence[StopCheck] | None = None
    ) -> list[list[Completion]]:
        """Whole answers: `params[i].n` per prompt, best first where they compete.

        Raises:
            InputError, NumericsError: as `stream`.
        """
        if any(p.num_beams > 1 for p in params):
            assert all(p.num_beams > 1 for p in params), "one call searches with beams or without"
            return [self._beams(inputs.row(row), p, None if stops is None else stops[row]) for row, p in enumerate(params)]
        tokens: list[list[list[Token]]] = [[[] for _ in range(p.candidates)] for p in params]
        for token in self.stream(inputs, params, stops):
            tokens[token.row][token.candidate].append(token)
        completed = [[Completion.of(answer) for answer in row] for row in tokens]
        return [
            sorted(row, key=lambda c: -c.score)[: p.n] if p.best_of is not None else row
            for row, p in zip(completed, params, strict=True)
        ]

    @torch.inference_mode()
    def _beams(self, prompt: ModelInputs, params: SamplingParams, stop: StopCheck | None) -> list[Completion]:
        self._check_ids([params])
        rooms = self._rooms(prompt, [params])
        prefill = Prefill(self.model, prompt, rows=[0] * params.num_beams, rooms=rooms)
        return beam_search(prefill, params, stop, room=rooms[0])

    def _check_ids(self, params: Sequence[SamplingParams]) -> None:
        """Refuses ids that would be banned and do not exist."""
        size = self.model.config.text_config.vocab_size
        for p in params:
            banned = [("bad_words_ids", i) for word in p.bad_words_ids for i in word]
            banned += [("eos_token_id", i) for i in p.eos_token_id if p.min_new_tokens]
            for name, token_id in banned:
                if not 0 <= token_id < size:
                    raise OptionError(f"{name} names {token_id}, which is outside the model's vocabulary of {size}")

    def _rooms(self, inputs: ModelInputs, params: Sequence[SamplingParams]) -> list[int]:
        """New tokens of each prompt at most."""
        positions = self.model.config.text_config.max_position_embeddings
        lengths = inputs.attention_mask_BT.sum(1).tolist()
        return [p.new_tokens(length, positions=positions) for p, length in zip(params, lengths, strict=True)]


class Answer:
    """One answer in the making."""

    sampler: Sampler
    room: int

    def __init__(self, row: int, candidate: int, params: SamplingParams, *, stream: int) -> None:
        self.row = row
        self.candidate = candidate
        self.params = params
        self.stream = stream
        self.ids: list[int] = []

    def next(self, logits_V: Tensor, stop: StopCheck | None) -> Token:
        """Chooses this answer's next token and says whether it is the last."""
        choice = self.sampler.choose(logits_V, self.ids)
        self.ids.append(choice.token)
        finish: FinishReason | None = None
        if choice.token in self.params.eos_token_id:
            finish = "eos"
        elif stop is not None and stop(self.ids):
            finish = "stop"
        elif len(self.ids) >= self.room:
            finish = "length"
        return Token(
            row=self.row, candidate=self.candidate, id=choice.token, logprob=choice.logprob, top=choice.top, finish=finish
        )
