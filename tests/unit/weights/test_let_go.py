"""Pages of mapped files go back to the system once their weights are packed, and come back if they are read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from idefics.machine.memory import let_go

SIZE = 2**24


def resident() -> int:
    """Bytes of files that are mapped here and in memory."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["RssFile"].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is resident")
def test_pages_are_given_back_and_read_again(tmp_path: Path) -> None:
    values = torch.arange(SIZE // 4, dtype=torch.int32)
    (tmp_path / "weights").write_bytes(values.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "weights"), shared=False, size=SIZE // 4, dtype=torch.int32)
    part = mapped[1000:-1000]
    assert int(part.sum()) == int(values[1000:-1000].sum())
    before = resident()
    let_go(part)
    assert before - resident() > SIZE * 0.9
    assert torch.equal(mapped, values)


def test_what_is_smaller_than_a_page_stays() -> None:
    few = torch.arange(10)
    let_go(few)
    assert torch.equal(few, torch.arange(10))
