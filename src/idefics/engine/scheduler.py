"""Who is computed next, and with which blocks. No torch here: tested with random traces in milliseconds.

Answers that need one more token go first, so that a long prompt never stalls them; then prompts, the oldest first, in pieces
that fit what is left of the pass. If blocks run out, the youngest answer gives its own back and is computed again later, from
what it had already said: its tokens do not change. Only older ones interrupt younger ones, so all of them end.
"""

from __future__ import annotations

import time
from bisect import insort

from idefics.engine.blocks import BlockPool
from idefics.engine.sequences import AnswerInMaking, Slice

__all__ = ["Scheduler"]


class Scheduler:
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
        self.waiting: list[AnswerInMaking] = []  # by arrival
        self.running: list[AnswerInMaking] = []  # by arrival
        self.preemptions = 0
        self.admitted = self.found = 0  # tokens of admitted answers, and how many of them were in blocks already

    def add(self, answer: AnswerInMaking) -> None:
        """Takes in a new answer; the pool must be large enough for it alone."""
        assert self.pool.needed(answer.most) <= self.pool.blocks, "an answer that can never fit"
        insort(self.waiting, answer, key=lambda a: a.arrival)

    def remove(self, answer: AnswerInMaking) -> None:
        """Forgets an answer that ended, or that nobody wants any more, whatever state it is in."""
        if answer.done:
            return
        answer.done = True
        if answer in self.running:
            self.running.remove(answer)
            self._empty(answer)
        else:
            self.waiting.remove(answer)

    def plan(self) -> list[Slice]:
        """What the next pass computes; their blocks are held. Empty only if nothing waits or runs."""
        left = self.tokens
        slices: list[Slice] = []
        planned: set[int] = set()
        for decoding in (True, False):
            ready = [a for a in self.running if a.decoding is decoding]
            for place, answer in enumerate(ready):
                if decoding:  # guesses take what the others' newest tokens leave
                    answer.drafts = answer.drafts[: max(0, left - (len(ready) - place))]
                # Whoever was interrupted for the sake of an older one in this very pass is no longer running.
                if left and answer in self.running and self._grow(answer, left, planned):
                    slices.append(self._slice(answer, left))
                    planned.add(id(answer))
                    left -= len(slices[-1].ids)
        interrupted = self.preemptions
        for answer in list(self.waiting):
            if not left or len(self.running) >= self.rows or self.preemptions > interrupted:
                break
            if answer.waits:
                continue
            if not self._admit(answer, left):
                break
            slices.append(self._slice(answer, left))
            left -= len(slices[-1].ids)
        return slices

    def advance(self, piece: Slice, *, accepted: int = 0) -> None:
        """Takes note that a slice has been computed, and that so many of its drafts turned out right.

        The right drafts must have been appended to the answer's ids by now.
        """
        answer = piece.answer
        before, answer.computed = answer.computed // self.pool.size, piece.end + accepted
        full = answer.computed // self.pool.size
        for block, digest in zip(answer.blocks[before:full], answer.named(full, self.pool.size)[before:], strict=True):
            self.pool.name(block, digest)

    def _slice(self, answer: AnswerInMaking, left: int) -> Slice:
        known = answer.ids[answer.computed : answer.computed + left]
        drafts = answer.drafts[: left - len(known)] if answer.decoding else []
        return Slice(answer, answer.computed, (*known, *drafts), len(drafts))

    def _grow(self, answer: AnswerInMaking, left: int, planned: set[int]) -> bool:
        """Blocks for the answer's next tokens, taken from younger ones if need be; False if it has to wait for those."""
        if answer.drafts and not self._room(answer, left):
            answer.drafts = []  # a guess is not worth an interruption
        while not self._room(answer, left):
            younger = next((a for a in self.running[:0:-1] if a.arrival > answer.arrival and id(a) not in planned), None)
            if younger is None:
                return False
            self._interrupt(younger)
        self._take(answer, left)
        return True

    def _admit(self, answer: AnswerInMaking, left: int) -> bool:
        """Moves a waiting answer to the running ones if its next piece fits, without interrupting anyone."""
        size = self.pool.size
        digests = answer.named((len(answer.ids) - 1) // size, size)  # at least one token must be computed
        answer.blocks = self.pool.find(digests)
        answer.computed = len(answer.blocks) * size
        if not self._room(answer, left):
            self._empty(answer)
            return False
        self.admitted += len(answer.ids)
        self.found += answer.computed
        self._take(answer, left)
        if answer.planned is None:  # an interruption is part of computing it
            answer.planned = time.monotonic()
        self.waiting.remove(answer)
        insort(self.running, answer, key=lambda a: a.arrival)
        return True

    def _missing(self, answer: AnswerInMaking, left: int) -> int:
        tokens = answer.computed + min(left, len(answer.ids) - answer.computed + len(answer.drafts))
        return max(0, self.pool.needed(tokens) - len(answer.blocks))

    def _room(self, answer: AnswerInMaking, left: int) -> bool:
        return self._missing(answer, left) <= self.pool.free

    def _take(self, answer: AnswerInMaking, left: int) -> None:
        answer.blocks += self.pool.take(self._missing(answer, left))

    def _interrupt(self, answer: AnswerInMaking) -> None:
        self.preemptions += 1
        self.running.remove(answer)
        self._empty(answer)
        insort(self.waiting, answer, key=lambda a: a.arrival)

    def _empty(self, answer: AnswerInMaking) -> None:
        self.pool.release(answer.blocks)
        answer.blocks, answer.computed, answer.drafts = [], 0, []
