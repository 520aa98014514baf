"""One answer in the making, as the scheduler sees it. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from idefics.engine.blocks import block_digest

__all__ = ["AnswerInMaking", "Slice", "StateT"]

StateT = TypeVar("StateT")


@dataclass(eq=False, kw_only=True)
class AnswerInMaking(Generic[StateT]):
    """Tokens known so far, and how far they are computed.

    Attributes:
        request: its number.
        candidate: which of its answers.
        state: what the scheduler does not look at.
        ids: prompt and answer so far.
        said: the answer alone; `say` appends to both.
        prompt: tokens of the prompt.
        drawn: of each prompt token, the digest of the image it draws on, or None.
        drawn_after: likewise of every token after the prompt.
        leader: the same request's first answer, whose prompt is computed first; None for itself.
        most: tokens that prompt and answer may become.
        computed: tokens whose keys and values are in `blocks`.
        blocks: of the pool, in order.
        drafts: guesses at what comes after `ids`, to be checked in one pass.
        planned: `time.monotonic` when it first got a place in a pass; None while it waits for that.
        done: ended, in whatever way.
    """

    request: int
    candidate: int = 0
    state: StateT
    ids: list[int]
    said: list[int] = field(default_factory=list)
    prompt: int
    drawn: Sequence[bytes | None]
    drawn_after: bytes | None = None
    leader: AnswerInMaking[StateT] | None = None
    most: int
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    planned: float | None = None
    done: bool = False
    digests: list[bytes] = field(default_factory=list)

    @property
    def arrival(self) -> tuple[int, int]:
        """Order in which the engine serves: requests are numbered as they come."""
        return self.request, self.candidate

    @property
    def decoding(self) -> bool:
        """Whether only the newest token is left to compute."""
        return self.computed == len(self.ids) - 1 and len(self.ids) > self.prompt

    @property
    def waits(self) -> bool:
        """Whether the prompt is about to be computed by the request's first answer, to be shared."""
        leader = self.leader
        return leader is not None and not leader.done and leader.computed < leader.prompt

    def say(self, token: int) -> None:
        """Appends a token to the answer."""
        self.ids.append(token)
        self.said.append(token)

    def named(self, blocks: int, size: int) -> list[bytes]:
        """Digests of the first `blocks` blocks of size `size`; they must be full of known tokens."""
        for first in range(len(self.digests) * size, blocks * size, size):
            end = first + size
            drawn = [*self.drawn[first:end], *[self.drawn_after] * (end - max(first, self.prompt))]
            before = self.digests[-1] if self.digests else b""
            self.digests.append(block_digest(before, self.ids[first:end], drawn))
        return self.digests[:blocks]


@dataclass(frozen=True, eq=False)
class Slice(Generic[StateT]):
    """What one pass computes of one answer.

    Attributes:
        answer: whose tokens.
        start: the first, counted from the prompt's beginning.
        ids: the tokens, drafts included.
        drafts: how many of them are guesses.
    """

    answer: AnswerInMaking[StateT]
    start: int
    ids: tuple[int, ...]
    drafts: int

    @property
    def end(self) -> int:
        """Just past the last known token."""
        return self.start + len(self.ids) - self.drafts

    def written(self, size: int) -> list[int]:
        """Blocks of size `size` that the pass writes to."""
        return self.answer.blocks[self.start // size : (self.start + len(self.ids) - 1) // size + 1]

    @property
    def chooses(self) -> bool:
        """Whether the pass ends with the newest token, so that the next one can be chosen."""
        return self.end == len(self.answer.ids)
