from __future__ import annotations

import pytest

from idefics.errors import OptionError
from idefics.machine.byte_sizes import byte_size, readable_bytes


def test_readable_bytes() -> None:
    assert [readable_bytes(n) for n in (0, 1023, 1024, 5 * 2**20, 3 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 MiB",
        "3072.0 GiB",
    ]


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * 2**30), ("5GB", 5 * 10**9), ("1k", 1024), (" 7 ", 7), ("7B", 7), ("1.5 MiB", 3 * 2**19)]
)
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text, name="--memory") == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "1XB", "nan", "0", "1e99", "7iB", "9999999999GB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(OptionError, match="--memory"):
        byte_size(text, name="--memory")
