"""Answers of a given form while they are written: at every step, only what can still lead there is allowed."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import torch
from llguidance import LLMatcher
from torch import Tensor

from idefics.engine.history import BANNED
from idefics.engine.upload import moved, uploaded
from idefics.processor.tokenizer import Tokenizer
from idefics.server.prepare.grammars import Grammar, Vocabulary, not_valid

__all__ = ["Guide", "Guides"]

KEPT = 16  # grammars that were read and may be asked for again
SECONDS = 5.0
"""Of processor time, that an answer may take to follow its grammar: others wait meanwhile. Honest ones take 0.1 ms a token."""


class Guide:
    """One answer's filter; keeps where in the grammar the answer stands, and what following it has cost.

    Args:
        matcher: at the grammar's beginning.
        ends: ids that end an answer.
    """

    def __init__(self, matcher: LLMatcher, ends: Sequence[int]) -> None:
        self._matcher = matcher
        self._ends = list(ends)
        self._taken: list[int] = []
        self._seconds = 0.0

    def __call__(self, logits_V: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Forbids what cannot lead to an answer of the grammar.

        Raises:
            Invalid: the grammar has become too complex to go on.
        """
        del prompt
        began = time.thread_time()
        self._follow(list(answer))
        stopped = self._matcher.is_stopped()
        bias = None if stopped else self._matcher.compute_logit_bias()
        if self._matcher.is_error():
            raise not_valid(f"the answer cannot follow it any further: {self._matcher.get_error()}")
        self._seconds += time.thread_time() - began
        if self._seconds > SECONDS:
            raise not_valid(f"following it took over {SECONDS:g} s of an answer's time; make it simpler")
        if bias is None:
            ends = uploaded(self._ends, logits_V.device)
            return torch.full_like(logits_V, BANNED).index_copy_(0, ends, logits_V[ends])
        off_X = (torch.frombuffer(bytearray(bias), dtype=torch.uint8) == 0)[: len(logits_V)]
        logits_V[: len(off_X)].masked_fill_(moved(off_X, logits_V.device), BANNED)
        logits_V[len(off_X) :] = BANNED  # rows of the head that are no token's
        return logits_V

    def _follow(self, answer: list[int]) -> None:
        """Brings the matcher to the end of the answer, of which it has usually taken all but the last token."""
        taken = self._taken
        if answer[: len(taken)] != taken:
            same = next((i for i, (a, b) in enumerate(zip(taken, answer, strict=False)) if a != b), len(answer))
            self._matcher.rollback(len(taken) - same)
            del taken[same:]
        new = answer[len(taken) :]
        if new:
            self._matcher.consume_tokens(new)
            taken += new


class Guides:
    """Makes guides for one tokenizer, from any thread; its vocabulary is read when the first is asked for.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: Vocabulary | None = None
        self._read: dict[tuple[Grammar, tuple[int, ...]], LLMatcher] = {}
        self._lock = threading.Lock()
        self._compiling = threading.Lock()

    def of(self, grammar: Grammar, *, answers: int, ends: Sequence[int]) -> list[Guide]:
        """A guide per answer. A grammar that was not proven cheap (`Compilers.check`) may take for ever.

        Args:
            grammar: of all of them.
            answers: how many.
            ends: ids that end an answer.

        Raises:
            Invalid: the grammar is not valid or too complex, or answers could never end.
        """
        found = self.known(grammar, answers=answers, ends=ends)
        if found is not None:
            return found
        with self._compiling:  # others that are known need not wait for it
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._tokenizer.backend.to_str())
            matcher = self._vocabulary.compiled(grammar, ends)
        with self._lock:
            if len(self._read) == KEPT:
                del self._read[next(iter(self._read))]  # the oldest
            self._read[grammar, tuple(ends)] = matcher
        return [Guide(matcher.deep_copy(), ends) for _ in range(answers)]

    def known(self, grammar: Grammar, *, answers: int, ends: Sequence[int]) -> list[Guide] | None:
        """As `of`, of a grammar that was asked for not long ago; None of others."""
        with self._lock:
            matcher = self._read.get((grammar, tuple(ends)))
        return None if matcher is None else [Guide(matcher.deep_copy(), ends) for _ in range(answers)]
