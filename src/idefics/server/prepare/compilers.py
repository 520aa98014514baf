"""Where grammars of strangers are tried: in processes that can be killed.

What llguidance compiles cannot be sent to another process, so the engine compiles again what was compiled here within the
bounds, which honest grammars are in milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from idefics.processor.tokenizer import Tokenizer
from idefics.server.errors import ClientGone, Invalid, Overloaded, ServerError
from idefics.server.limits import ServerLimits
from idefics.server.prepare.grammars import Grammar, Vocabulary, not_valid
from idefics.server.processes.heap import bytes_in_use
from idefics.server.processes.pool import Killed, Pool
from idefics.server.processes.turns import Turns

__all__ = ["Compilers"]

KEPT = 256  # grammars that are known to be cheap, and as many that are known not to be
REFUSED_SECONDS = 600.0  # for which a refusal is remembered
PATIENCE = 4  # seconds that may go by for each of processor time
_Task = tuple[Grammar, tuple[int, ...]]
Known = TypeVar("Known")


class Compilers:
    """The processes.

    Args:
        tokenizer: of the model.
        ends: ids that usually end its answers.
        limits: of the server: how many there are, and what a grammar may cost them.
        killed: told why whenever one is killed, in any thread.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        ends: Sequence[int],
        limits: ServerLimits,
        killed: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self._limits = limits
        self._cheap: dict[_Task, None] = {}
        self._refused: dict[_Task, tuple[float, str]] = {}  # when, and what was told
        self._lines: WeakValueDictionary[_Task, Turns] = WeakValueDictionary()
        self._pool: Pool[_Task, int] = Pool(
            "compiler",
            partial(_made, tokenizer.backend.to_str(), tuple(ends)),
            size=limits.compilers,
            seconds=limits.grammar_seconds * PATIENCE,
            memory=limits.grammar_memory,
            killed=killed,
        )

    async def check(self, grammar: Grammar, ends: Sequence[int]) -> None:
        """Compiles a grammar, and what may come first in an answer, unless that was done not long ago.

        Equal ones that come together are compiled once; the others wait for that in no other's way.

        Args:
            grammar: of an answer.
            ends: ids that end it.

        Raises:
            Invalid: it is not valid, or costs more than it may; says which bound.
            Overloaded: the machine did so much else that this cannot be told.
            Closing: there is no process to compile it in.
        """
        limits, task = self._limits, (grammar, tuple(ends))
        if len(grammar.source) > limits.grammar_characters:
            raise not_valid(f"{len(grammar.source)} characters are over the limit of {limits.grammar_characters}")
        line = self._lines.setdefault(task, Turns(1))
        await line.take()
        try:
            if not self._known(task):
                await self._try(task)
        finally:
            line.give()

    def _known(self, task: _Task) -> bool:
        """Whether a grammar is known to be cheap.

        Raises:
            Invalid: it is known not to be.
        """
        when, told = self._refused.get(task, (-REFUSED_SECONDS, ""))
        if time.monotonic() - when < REFUSED_SECONDS:
            raise Invalid(told, param="grammar")
        return task in self._cheap

    async def _try(self, task: _Task) -> None:
        limits = self._limits
        try:
            held = await self._pool.run(task, seconds=PATIENCE * limits.grammar_seconds, processor=limits.grammar_seconds)
            if held > limits.grammar_held:
                raise not_valid(f"compiled it takes {held} bytes, over the limit of {limits.grammar_held}; make it simpler")
        except Killed as killed:
            error = self._killed(killed)
        except Invalid as invalid:
            error = invalid
        else:
            _keep(self._cheap, task, None)
            return
        if isinstance(error, Invalid):
            _keep(self._refused, task, (time.monotonic(), str(error)))
        raise error from None

    @property
    def healthy(self) -> bool:
        """Whether grammars can be compiled."""
        return self._pool.healthy

    def warm(self) -> None:
        """Begins all processes; does not wait for them."""
        self._pool.warm()

    def close(self) -> None:
        """Ends all processes."""
        self._pool.close()

    def _killed(self, killed: Killed) -> ServerError:
        seconds = self._limits.grammar_seconds
        if killed.reason == "left":
            return ClientGone("nobody waits for the answer any more")
        if killed.reason == "time":
            return Overloaded(f"the machine is too busy to compile this grammar in {PATIENCE * seconds:g} s; try again later")
        if killed.reason == "processor":
            return not_valid(f"it took over {seconds:g} s to compile; make it simpler")
        if killed.reason == "memory":
            return not_valid(f"it took more than {self._limits.grammar_memory} bytes of memory to compile; make it simpler")
        return not_valid("it ended its compiler; make it simpler")


def _keep(kept: dict[_Task, Known], task: _Task, value: Known) -> None:
    """Puts in what was learnt of a grammar, and takes out the oldest if there are too many."""
    kept.pop(task, None)
    if len(kept) == KEPT:
        del kept[next(iter(kept))]
    kept[task] = value


def _made(tokenizer: str, ends: tuple[int, ...]) -> Callable[[_Task], int]:
    """What a process begins with."""
    vocabulary = Vocabulary(tokenizer)
    if ends:
        vocabulary.ending(ends)
    return partial(_tried, vocabulary)


def _tried(vocabulary: Vocabulary, task: _Task) -> int:
    """Bytes that a grammar takes once it is compiled."""
    grammar, ends = task
    if ends:
        vocabulary.ending(ends)  # which is no grammar's own
    before = bytes_in_use()
    matcher = vocabulary.compiled(grammar, ends)
    allowed = matcher.compute_logit_bias()
    if matcher.is_error():
        raise not_valid(f"no answer can follow it: {matcher.get_error()}")
    if not any(allowed):
        raise not_valid("no answer can follow it")
    return bytes_in_use() - before
