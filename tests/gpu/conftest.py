"""Every path that only a GPU takes, against its reference on the CPU; one command, under eight minutes.

    PYTHONPATH=src python3 -m pytest tests/gpu

`IDEFICS_REHEARSE=1` runs what can be run without a GPU on the CPU: it tests the tests.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():  # of what else is installed there; pytest would make them errors, and nothing would run
    warnings.simplefilter("ignore")
    import torch

HERE = Path(__file__).parent
REHEARSAL = os.environ.get("IDEFICS_REHEARSE") == "1" and not torch.cuda.is_available()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda_only: asks something of CUDA itself, so it cannot be rehearsed on the CPU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        # Libraries on that machine may warn of what does not concern us; a path of ours that was given up does.
        item.add_marker(pytest.mark.filterwarnings("default"))
        item.add_marker(pytest.mark.filterwarnings("error:.*from now on:UserWarning"))
        if not torch.cuda.is_available() and (not REHEARSAL or item.get_closest_marker("cuda_only")):
            reason = "no CUDA device: torch.cuda.is_available() is False"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; in a rehearsal, the CPU."""
    return torch.device("cpu" if REHEARSAL else "cuda:0")
