"""Errors on their way from one process to another."""

from __future__ import annotations

import pytest

from idefics.errors import IdeficsError, ImageCountError, ImageError, InputError
from idefics.server.processes.messages import sendable


class Odd(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


def test_what_can_be_sent_goes_as_it_is() -> None:
    meant, unmeant = ImageError("no image"), ValueError("a mistake")
    assert sendable(meant) is meant
    assert sendable(unmeant) is unmeant
    assert "ValueError" in unmeant.__notes__[0] or "NoneType" in unmeant.__notes__[0]


@pytest.mark.parametrize("where", ["prompt 2"])
def test_a_client_s_mistake_stays_one(where: str) -> None:
    error = ImageCountError(placeholders=2, images=1, where=where)
    sent = sendable(error)
    assert type(sent) is InputError, "422, not 424"
    assert str(sent) == str(error)


def test_a_mistake_of_ours_is_no_error_that_clients_are_told() -> None:
    sent = sendable(Odd(code=3))
    assert type(sent) is RuntimeError, "500, and logged"
    assert not isinstance(sent, IdeficsError)
    assert str(sent) == "Odd: code 3"
    assert sent.__notes__
