from __future__ import annotations

from collections.abc import Iterator

import pytest

from browser.chromium import MISSING, Browser, Tab, chromium, command
from contract.conftest import served
from fake_engine import FakeEngine
from serving import fake_app, script, serving

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


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a server without a model; a file that needs another has a fixture of this name."""
    with serving(fake_app(FakeEngine(script()))) as address:
        yield address


@pytest.fixture
def page(tab: Tab, address: str) -> Tab:
    tab.open(f"{address}/playground")
    return tab
