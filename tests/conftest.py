from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.hasplugin("timeout"):  # a machine for tests/gpu has little installed, and the setting is strict
        parser.addini("timeout", "seconds that a test may take; nobody looks without pytest-timeout")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of a few hundred kilobytes with random weights; do not write to it."""
    from fakes import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), std=0.2)
