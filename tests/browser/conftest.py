from __future__ import annotations

from collections.abc import Iterator

import pytest

from browser.chromium import MISSING, Browser, Tab, chromium, command
from contract.conftest import served

__all__ = ["served"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = command()
    if executable is None:
        pytest.skip(MISSING)
    with chromium(executable) as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    with browser.tab() as tab:
        yield tab
