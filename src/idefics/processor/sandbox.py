"""A sandbox in which a template can neither reach out nor go on for ever: its steps, sizes and time are bounded.

Templates come with checkpoints, and jinja's own sandbox only keeps them from our objects: `'a' * 10**10`, a list that
doubles itself, or loops within loops would take the machine. So what could grow is weighed before it is made: operators,
literals, joins, calls and the few filters that chat templates use; loops and calls are counted against the clock.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

__all__ = ["MAX_SECONDS", "MAX_STEPS", "MAX_TEXT", "BoundedSandbox", "bounded", "watched"]

MAX_STEPS = 500_000
"""Rounds of loops, calls and operations of one rendering; a chat of a thousand messages takes some ten thousand."""
MAX_TEXT = 4 * 2**20
"""Characters of a prompt, or of anything on its way to one: more than the longest context holds."""
MAX_MADE = 64 * MAX_TEXT
"""Characters of everything that one rendering makes, one after the other."""
MAX_SECONDS = 5.0
MAX_NUMBER = 10_000
"""Largest number that a filter takes, and bits of a number that an operator makes."""

_FILTERS = frozenset(
    """
    abs capitalize count d default dictsort e escape first float indent int items join last length list lower map max min
    reject rejectattr replace reverse round safe select selectattr sort string title tojson trim truncate unique upper
    wordcount
    """.split()  # noqa: SIM905 (names, not code)
)
_WIDENING = frozenset(("center", "encode", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill"))
"""Methods of texts that make much of little."""


class _Budget:
    def __init__(self) -> None:
        self.steps = MAX_STEPS
        self.made = MAX_MADE
        self.until = time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise SecurityError(f"it takes more steps than the limit of {MAX_STEPS}; does it loop?")
        if time.monotonic() > self.until:
            raise SecurityError(f"it takes longer than the limit of {MAX_SECONDS:g} s; does it loop?")

    def check(self, size: int) -> None:
        if size > MAX_TEXT:
            raise SecurityError(f"it makes more than the limit of {MAX_TEXT} characters or items")

    def make(self, size: int) -> None:
        self.check(size)
        self.made -= size
        if self.made < 0:
            raise SecurityError(f"it makes more than the limit of {MAX_MADE} characters or items, one after the other")


_BUDGET: ContextVar[_Budget] = ContextVar("budget of the template that is rendered")


@contextmanager
def bounded() -> Iterator[None]:
    """Renderings within share one new budget."""
    token = _BUDGET.set(_Budget())
    try:
        yield
    finally:
        _BUDGET.reset(token)


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, with the bounds of this file; templates render within `bounded()`."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=_built, **options)  # the optimizer would compute constants, however large
        self.filters = {name: watched(name, self.filters[name]) for name in _FILTERS}
        self.filters.update(_counted=_counted, _built=_built, _joined=_concat)
        self.globals = {"range": self.globals["range"], "namespace": _Namespace, "dict": dict}
        self.concat = _concat  # type: ignore[method-assign]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Weighed().visit(tree)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operation on two values, weighed before it is done."""
        budget = _BUDGET.get()
        budget.step()
        if operator == "%" and isinstance(left, str):
            raise SecurityError("it formats texts with %, which makes much of little; join them with ~")
        if operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(times, int):
                    budget.make(_weight(one) * max(times, 0))
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            budget.make(_weight(left) + _weight(right))
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(1, right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_NUMBER:
                raise SecurityError(f"it makes a number of more than the limit of {MAX_NUMBER} bits")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **options: Any) -> Any:  # noqa: N805 (jinja's own way)
        """A call, counted; what is made of texts is weighed before."""
        budget = _BUDGET.get()
        budget.step()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            budget.make(max(len(owner), _grown(name, owner, [*args, *options.values()])))
        elif isinstance(__obj, type):
            budget.make(sum(map(_weight, (*args, *options.values()))))
        return super().call(__context, __obj, *args, **options)

    def wrap_str_format(self, value: Any) -> None:
        """Nothing: `str.format` is refused like any method that makes much of little."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute: no methods of numbers, nor those of texts that widen them."""
        if isinstance(obj, int | float) or (isinstance(obj, str) and attr in _WIDENING):
            return False
        return super().is_safe_attribute(obj, attr, value)


class _Namespace(Namespace):
    """Variables that outlive a loop; they hold plain values only, whose weight is known."""

    def __setitem__(self, name: str, value: Any) -> None:
        _weight(value)
        super().__setitem__(name, value)


class _Weighed(NodeTransformer):
    """Puts a count into every loop and a scale under everything that is put together."""

    def visit(self, node: nodes.Node, *args: Any, **options: Any) -> nodes.Node:
        """The node as it shall be compiled, after all within it."""
        self.generic_visit(node, *args, **options)
        if isinstance(node, nodes.For):
            node.iter = _through("_counted", node.iter)
        elif isinstance(node, nodes.Concat):
            return _through("_joined", nodes.List(node.nodes, lineno=node.lineno))
        elif isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
            return _through("_built", node)
        return node


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    budget = _BUDGET.get()
    for value in values:
        budget.step()
        yield value


def _built(value: Any) -> Any:
    _BUDGET.get().make(_weight(value))
    return value


def _concat(pieces: Iterable[Any]) -> str:
    """Pieces as one text: what a template writes, and what `~` joins."""
    budget, texts = _BUDGET.get(), []
    size = 0
    for piece in pieces:
        _weight(piece)
        text = str(piece)
        size += len(text)
        if size > MAX_TEXT:
            budget.make(size)
        texts.append(text)
    budget.make(size)
    return "".join(texts)


def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is counted, whose numbers are small, and whose work is weighed before it is done."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # some are given jinja's context before the value

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        budget = _BUDGET.get()
        budget.step()
        value, given = args[first], [*args[first + 1 :], *options.values()]
        if isinstance(value, Iterator):
            value = list(_counted(value))
            args = (*args[:first], value, *args[first + 1 :])
        for one in given:
            if isinstance(one, int) and abs(one) > MAX_NUMBER:
                raise SecurityError(f"it gives the filter {name!r} a number over the limit of {MAX_NUMBER}")
        budget.check(_grown(name, value, given))
        made = function(*args, **options)
        budget.make(len(made) if isinstance(made, str) else 0)
        return made

    return call


def _grown(name: str, value: Any, given: Sequence[Any]) -> int:
    """Characters that a filter or method makes of a value at most; those that make less of it are not weighed."""
    if name == "replace":
        old, new = [*map(str, given), "", ""][:2]
        text = str(value) if isinstance(value, int | float) else value
        return len(text) + (text.count(old) + 1) * len(new) if isinstance(text, str) else 0
    if name == "join":
        pieces, between = (given[0], value) if isinstance(value, str) and given else (value, given[0] if given else "")
        return _weight(pieces) + (len(pieces) if isinstance(pieces, Sized) else 1) * _weight(between)
    if name == "indent" and isinstance(value, str):
        wide = given[0] if given else 4
        return len(value) + (value.count("\n") + 1) * (wide if isinstance(wide, int) else _weight(wide))
    if name == "tojson":
        return _weight(value) * (1 + sum(one if isinstance(one, int) else _weight(one) for one in given))
    return _weight(value) if name == "string" else 0


def _weight(value: Any) -> int:
    """Characters that a value takes when it is written, roughly, however often it holds the same thing.

    Raises:
        SecurityError: more than `MAX_TEXT`; or a namespace within something.
    """
    total, left = 0, [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            total += len(one)
        elif isinstance(one, Mapping):
            left += [*one.keys(), *one.values()]
            total += 4 * len(one)
        elif isinstance(one, list | tuple | set | frozenset):
            left += one
            total += 2 * len(one)
        elif isinstance(one, Namespace):
            raise SecurityError("it puts a namespace into something; namespaces hold plain values")
        total += 1
        if total + len(left) > MAX_TEXT:
            raise SecurityError(f"it makes more than the limit of {MAX_TEXT} characters or items")
    return total
