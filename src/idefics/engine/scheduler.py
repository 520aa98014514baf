"""Who is computed next, and with which blocks. No torch here: tested with random traces in milliseconds.

A pass keeps one token for each answer that needs no more than that, so that a long prompt never stalls them. The others go by
age, to prompts in pieces that fit, and to guesses. So do blocks: whoever finds none takes those of the youngest answer, which
is computed again later, from what it had already said: its tokens do not change. Only older ones interrupt younger ones, and
nobody joins while one that runs stands still: the oldest goes on in every pass, so all of them end.
"""

from __future__ import annotations

import time
from bisect import insort
from typing import Generic

from idefics.engine.blocks import BlockPool
from idefics.engine.sequences import AnswerInMaking, Slice, StateT

__all__ = ["Scheduler"]


class Scheduler(Generic[StateT]):
    """Waiting and running answers over one pool of blocks.

    Args:
        pool: the cache's blocks.
        tokens: computed in one pass at most; at least `rows`, so that every running answer can go on.
        rows: answers that run together at most.
    """

    def __init__(self, pool: BlockPool, *, tokens: int, rows: int) -> None:
        assert tokens >= rows > 0, f"{tokens} tokens for {rows} rows"
        self.pool = pool
        self.tokens = tokens
        self.rows = rows
        self.waiting: list[AnswerInMaking[StateT]] = []  # by arrival
        self.running: list[AnswerInMaking[StateT]] = []  # by arrival
        self.preemptions = 0
        self.admitted = self.found = 0  # tokens of admitted answers, and how many of them were in blocks already

    def add(self, answer: AnswerInMaking[StateT]) -> None:
        """Takes in a new answer; the pool must be large enough for it alone."""
        assert self.pool.needed(answer.most) <= self.pool.blocks, "an answer that can never fit"
        insort(self.waiting, answer, key=lambda a: a.arrival)

    def remove(self, answer: AnswerInMaking[StateT]) -> None:
        """Forgets an answer that ended, or that nobody wants any more, whatever state it is in."""
        if answer.done:
            return
        answer.done = True
        if answer in self.running:
            self.running.remove(answer)
            self._empty(answer)
        else:
            self.waiting.remove(answer)

    def plan(self) -> list[Slice[StateT]]:
        """What the next pass computes; their blocks are held. Empty only if nothing waits or runs."""
        left = self.tokens
        slices: list[Slice[StateT]] = []
        before = len(self.running)
        kept = sum(answer.decoding for answer in self.running)  # a token for each that decodes, until its turn comes
        for answer in self.running:  # whoever is interrupted leaves at the end of this list, and has had no turn
            kept -= answer.decoding
            if count := self._grow(answer, left - kept):
                slices.append(self._slice(answer, count))
                left -= count
        if len(slices) < before:  # what is free is for those that stand still
            return slices
        for answer in list(self.waiting):
            if not left or len(self.running) >= self.rows:
                break
            if answer.waits:
                continue
            if not self._admit(answer, left):
                break
            slices.append(self._slice(answer, left))
            left -= len(slices[-1].ids)
        return slices

    def advance(self, piece: Slice[StateT], *, accepted: int = 0) -> None:
        """Takes note that a slice has been computed, and that so many of its drafts turned out right.

        The right drafts must have been appended to the answer's ids by now.
        """
        answer = piece.answer
        before, answer.computed = answer.computed // self.pool.size, piece.end + accepted
        full = answer.computed // self.pool.size
        for block, digest in zip(answer.blocks[before:full], answer.named(full, self.pool.size)[before:], strict=True):
            self.pool.name(block, digest)

    def prove(self, piece: Slice[StateT], *, accepted: int) -> None:
        """Takes note that a token was chosen after a slice, so many of its drafts having turned out right.

        Logits that are numbers prove everything that was looked at for them; nobody looked at guesses that were wrong.
        """
        pool, blocks, computed = self.pool, piece.answer.blocks, piece.answer.computed
        if piece.start and pool.doubts(blocks[(piece.start - 1) // pool.size]):
            pool.trust(blocks[: computed // pool.size if piece.drafts else pool.needed(computed)])
        if accepted < piece.drafts:
            pool.doubt(blocks[computed // pool.size :])

    def _slice(self, answer: AnswerInMaking[StateT], count: int) -> Slice[StateT]:
        known = answer.ids[answer.computed : answer.computed + count]
        drafts = answer.drafts[: count - len(known)]
        return Slice(answer, answer.computed, (*known, *drafts), len(drafts))

    def _grow(self, answer: AnswerInMaking[StateT], most: int) -> int:
        """How many of its next tokens, guesses included, a running answer now has blocks for.

        For the first one younger answers are interrupted if need be, the youngest first. More than what is free it does not
        get; the youngest gets all that it needs or nothing, for from it the blocks would soon be taken again.
        """
        known = len(answer.ids) - answer.computed
        needed, most = min(most, known), min(most, known + len(answer.drafts))
        while needed and not self._room(answer) and answer is not self.running[-1]:
            self._interrupt(self.running[-1])
        room = self._room(answer)
        if answer is self.running[-1] and room < needed:
            return 0
        return self._take(answer, min(most, room))

    def _admit(self, answer: AnswerInMaking[StateT], left: int) -> bool:
        """Moves a waiting answer to the running ones if its next piece fits, without interrupting anyone."""
        size = self.pool.size
        digests = answer.named((len(answer.ids) - 1) // size, size)  # at least one token must be computed
        answer.blocks = self.pool.find(digests)
        answer.computed = len(answer.blocks) * size
        count = min(left, len(answer.ids) - answer.computed)
        if self._room(answer) < count:
            self._empty(answer)
            return False
        self.admitted += len(answer.ids)
        self.found += answer.computed
        self._take(answer, count)
        if answer.planned is None:  # an interruption is part of computing it
            answer.planned = time.monotonic()
        self.waiting.remove(answer)
        insort(self.running, answer, key=lambda a: a.arrival)
        return True

    def _room(self, answer: AnswerInMaking[StateT]) -> int:
        """Tokens to come that its own blocks and all free ones would keep."""
        return (len(answer.blocks) + self.pool.free) * self.pool.size - answer.computed

    def _take(self, answer: AnswerInMaking[StateT], count: int) -> int:
        missing = self.pool.needed(answer.computed + count) - len(answer.blocks)
        answer.blocks += self.pool.take(max(0, missing))
        return count

    def _interrupt(self, answer: AnswerInMaking[StateT]) -> None:
        self.preemptions += 1
        self.running.remove(answer)
        self._empty(answer)
        insort(self.waiting, answer, key=lambda a: a.arrival)

    def _empty(self, answer: AnswerInMaking[StateT]) -> None:
        self.pool.release(answer.blocks)
        answer.blocks, answer.computed, answer.drafts = [], 0, []
