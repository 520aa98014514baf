"""Ways to break a model, each with the checks of the self-test that must see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from idefics.api import Idefics
from idefics.selftest.checks import Check
from idefics.selftest.subject import Subject

Mutation = Callable[[Idefics, pytest.MonkeyPatch], None]
Cases = list[tuple[Mutation, Callable[[Subject], Check]]]


def registry() -> tuple[Cases, Callable[..., Callable[[Mutation], Mutation]]]:
    """A list of cases, and a decorator that adds a mutation to it with the checks that must see it."""
    cases: Cases = []

    def caught_by(*checks: Callable[[Subject], Check]) -> Callable[[Mutation], Mutation]:
        def register(mutation: Mutation) -> Mutation:
            cases.extend((mutation, check) for check in checks)
            return mutation

        return register

    return cases, caught_by
