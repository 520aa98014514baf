"""Where grammars of strangers are tried: in processes that can be killed.

What llguidance compiles cannot be sent to another process, so the engine compiles again what was compiled here within the
bounds, which honest grammars are in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from idefics.processor.tokenizer import Tokenizer
from idefics.server.errors import ClientGone, Invalid
from idefics.server.limits import ServerLimits
from idefics.server.prepare.grammars import Grammar, Vocabulary, not_valid
from idefics.server.processes.pool import Killed, Pool

__all__ = ["Compilers"]

KEPT = 256  # grammars that are known to be cheap
_Task = tuple[Grammar, tuple[int, ...]]


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
        self._pool: Pool[_Task, None] = Pool(
            "compiler",
            partial(_made, tokenizer.backend.to_str(), tuple(ends)),
            size=limits.compilers,
            seconds=limits.grammar_seconds,
            memory=limits.grammar_memory,
            killed=killed,
        )

    async def check(self, grammar: Grammar, ends: Sequence[int]) -> None:
        """Compiles a grammar, and what may come first in an answer, unless that was done not long ago.

        Args:
            grammar: of an answer.
            ends: ids that end it.

        Raises:
            Invalid: it is not valid, or costs more than it may; says which bound.
            Closing: there is no process to compile it in.
        """
        limits, task = self._limits, (grammar, tuple(ends))
        if len(grammar.source) > limits.grammar_characters:
            raise not_valid(f"{len(grammar.source)} characters are over the limit of {limits.grammar_characters}")
        if task in self._cheap:
            return
        try:
            await self._pool.run(task, seconds=limits.grammar_seconds)
        except Killed as killed:
            raise self._refused(killed) from None
        if len(self._cheap) == KEPT:
            del self._cheap[next(iter(self._cheap))]  # the oldest
        self._cheap[task] = None

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

    def _refused(self, killed: Killed) -> Invalid | ClientGone:
        if killed.reason == "left":
            return ClientGone("nobody waits for the answer any more")
        if killed.reason == "time":
            return not_valid(f"it took over {self._limits.grammar_seconds:g} s to compile; make it simpler")
        if killed.reason == "memory":
            return not_valid(f"it took more than {self._limits.grammar_memory} bytes of memory to compile; make it simpler")
        return not_valid("it ended its compiler; make it simpler")


def _made(tokenizer: str, ends: tuple[int, ...]) -> Callable[[_Task], None]:
    """What a process begins with."""
    vocabulary = Vocabulary(tokenizer)
    if ends:
        vocabulary.ending(ends)
    return partial(_tried, vocabulary)


def _tried(vocabulary: Vocabulary, task: _Task) -> None:
    matcher = vocabulary.compiled(*task)
    allowed = matcher.compute_logit_bias()
    if matcher.is_error():
        raise not_valid(f"no answer can follow it: {matcher.get_error()}")
    if not any(allowed):
        raise not_valid("no answer can follow it")
