"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from importlib.util import find_spec

import pytest

import idefics

OPTIONAL = {"idefics.model.layers.paged_kernel": "triton"}
"""Modules that import what need not be installed, and are imported by nobody who has not looked for it."""

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(idefics.__path__, "idefics.")
    if module.name not in OPTIONAL or find_spec(OPTIONAL[module.name]) is not None
)


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    examples = sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert examples >= 10


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    assert failed == 0
