from __future__ import annotations

from pathlib import Path

import pytest

import mistral_tokenizer
from idefics.processor.idefics2 import Idefics2Processor
from idefics.processor.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def folder() -> Path:
    """A processor folder as published in 2024; do not write to it."""
    return mistral_tokenizer.checkpoint()


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture
def processor(folder: Path) -> Idefics2Processor:
    return Idefics2Processor.from_folder(folder, size={"shortest_edge": 28, "longest_edge": 56}, image_seq_len=3)
