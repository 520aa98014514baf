"""Packed images in one kernel, as far as a CPU can tell: the kernel's place is taken by its definition."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from idefics.model.layers import attention as attentions
from idefics.model.layers import varlen
from idefics.model.layers.attention import segmented_attention
from idefics.model.layers.shortcut import Shortcut

LENGTHS, KEYS = [3, 1, 7, 7], [5, 2, 7, 1]


def definition(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_starts: torch.Tensor, k_starts: torch.Tensor, max_q: int, max_k: int
) -> torch.Tensor:
    """What torch's documentation says of `varlen_attn`."""
    assert q_starts.dtype == k_starts.dtype == torch.int32
    assert q.shape[1] == k.shape[1] == v.shape[1], "heads are not shared here"
    q_lengths, k_lengths = q_starts.diff().tolist(), k_starts.diff().tolist()
    assert (max(q_lengths), max(k_lengths)) == (max_q, max_k)
    return segmented_attention(q, k, v, q_lengths=q_lengths, k_lengths=k_lengths, backend="reference")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Segments of each call that reached the kernel."""
    calls: list[int] = []

    def kernel(*given: Any) -> torch.Tensor:
        calls.append(len(given[3]) - 1)
        return definition(*given)

    monkeypatch.setattr(attentions, "fits_varlen", lambda _: True)
    monkeypatch.setattr(varlen, "_kernel", lambda: kernel)
    monkeypatch.setattr(varlen, "VARLEN", Shortcut("one kernel", "sizes are taken one by one"))
    yield calls
    varlen._starts.cache_clear()


def packed(heads: int, groups: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(sum(LENGTHS), heads, 8, generator=generator)
    return [q, *(torch.randn(sum(KEYS), groups, 8, generator=generator) for _ in range(2))]


@pytest.mark.parametrize(("heads", "groups"), [(3, 3), (4, 2)])
def test_one_kernel_is_size_by_size(taken: list[int], heads: int, groups: int) -> None:
    given = packed(heads, groups)
    found = segmented_attention(*given, q_lengths=LENGTHS, k_lengths=KEYS, backend="auto")
    assert taken == [4]
    expected = segmented_attention(*given, q_lengths=LENGTHS, k_lengths=KEYS, backend="sdpa")
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_equal_sizes_are_a_batch(taken: list[int]) -> None:
    x = torch.randn(6, 2, 8)
    segmented_attention(x, x, x, q_lengths=[3, 3], k_lengths=[3, 3], backend="auto")
    assert taken == []


def test_where_segments_begin_may_be_used_in_training(taken: list[int]) -> None:
    given = packed(2, 2)
    with torch.inference_mode():
        segmented_attention(*given, q_lengths=LENGTHS, k_lengths=KEYS, backend="auto")
    given[0].requires_grad_()
    segmented_attention(*given, q_lengths=LENGTHS, k_lengths=KEYS, backend="auto").sum().backward()  # type: ignore[no-untyped-call]
    assert taken == [4, 4]
    assert not varlen._starts(tuple(LENGTHS), torch.device("cpu")).is_inference()


def test_a_failure_falls_back(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise ImportError("cannot import name 'varlen_attn'")

    monkeypatch.setattr(varlen, "_kernel", missing)
    given = packed(4, 2)
    expected = segmented_attention(*given, q_lengths=LENGTHS, k_lengths=KEYS, backend="sdpa")
    with pytest.warns(UserWarning, match="one kernel failed .*; from now on sizes are taken one by one"):
        found = segmented_attention(*given, q_lengths=LENGTHS, k_lengths=KEYS, backend="auto")
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(segmented_attention(*given, q_lengths=LENGTHS, k_lengths=KEYS, backend="auto"), found)
    assert taken == []


def test_torch_takes_what_we_give() -> None:
    kernel = varlen._kernel()
    inspect.signature(kernel).bind(*range(7))
    q = torch.empty(5, 2, 72, device="meta", dtype=torch.bfloat16)
    starts = torch.empty(3, device="meta", dtype=torch.int32)
    assert kernel(q, q, q, starts, starts, 3, 3).shape == q.shape


def test_a_cpu_takes_it_never() -> None:
    assert not varlen.fits_varlen(torch.empty(3, 2, 64, dtype=torch.bfloat16))
