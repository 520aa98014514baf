"""The kernels that are chosen on a GPU, each against the definition in float32 on the CPU."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from idefics.model.layers import paged_attention as paged
from idefics.model.layers import varlen
from idefics.model.layers.attention import attention, segmented_attention

TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference: numbers of a normal distribution, averaged with weights that sum to 1; two roundings on the way."""

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALVES)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_near(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    torch.testing.assert_close(found.float().cpu(), expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 72, 80, 96, 128])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (8, 2)])
def test_packed_images_of_odd_sizes(device: torch.device, dtype: torch.dtype, size: int, heads: int, groups: int) -> None:
    lengths, keys = [1, 21 * 25, 3, 17 * 11, 17 * 11, 99], [65, 21 * 25, 3, 17 * 11, 1, 100]
    for q_lengths, k_lengths in ((lengths, lengths), ([16] * len(keys), keys)):
        q = random(sum(q_lengths), heads, size, seed=1).to(dtype)
        k, v = (random(sum(k_lengths), groups, size, seed=seed).to(dtype) for seed in (2, 3))
        wide = [x.float() for x in (q, k, v)]
        expected = segmented_attention(*wide, q_lengths=q_lengths, k_lengths=k_lengths, backend="sdpa")
        moved = [x.to(device) for x in (q, k, v)]
        for backend in ("auto", "sdpa"):
            found = segmented_attention(*moved, q_lengths=q_lengths, k_lengths=k_lengths, backend=backend)  # type: ignore[arg-type]
            assert_near(found, expected, dtype)


@pytest.mark.cuda_only
@pytest.mark.parametrize("dtype", HALVES)
def test_packed_images_take_one_kernel(device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    q = random(12, 2, 72, seed=1).to(device, dtype)
    assert varlen.fits_varlen(q), "this GPU or this torch has no such kernel: everything goes size by size"
    taken = []
    kernel = varlen._kernel()
    monkeypatch.setattr(varlen, "_kernel", lambda: lambda *given: taken.append(1) or kernel(*given))
    segmented_attention(q, q, q, q_lengths=[5, 7], k_lengths=[5, 7], backend="auto")
    assert taken == [1]
    assert varlen.VARLEN.open


@pytest.mark.parametrize("dtype", HALVES)
def test_packed_images_have_gradients(device: torch.device, dtype: torch.dtype) -> None:
    lengths = [5, 300, 17]
    grads = []
    for where, kind in ((torch.device("cpu"), torch.float32), (device, dtype)):
        q, k, v = (random(sum(lengths), 4, 72, seed=s).to(dtype).to(where, kind).requires_grad_() for s in range(3))
        out = segmented_attention(q, k, v, q_lengths=lengths, k_lengths=lengths, backend="auto")
        (out.float() * random(*out.shape, seed=9).to(where)).sum().backward()
        grads.append([x.grad for x in (q, k, v)])
    for expected, found in zip(*grads, strict=True):
        assert expected is not None
        assert found is not None
        torch.testing.assert_close(found.float().cpu(), expected, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "keys", "causal", "masked"), [(1, 517, False, True), (300, 300, True, False), (77, 400, False, True)]
)
def test_heads_that_share_keys(
    device: torch.device, dtype: torch.dtype, queries: int, keys: int, causal: bool, masked: bool
) -> None:
    q = random(2, 8, queries, 128, seed=1).to(dtype)
    k, v = (random(2, 2, keys, 128, seed=seed).to(dtype) for seed in (2, 3))
    mask = None
    if masked:
        mask = torch.arange(keys)[None, None] <= (keys - queries + torch.arange(queries))[None, :, None]
        mask = mask.expand(2, -1, -1).clone()
        mask[1, :, :100] = False
    expected = attention(q.float(), k.float(), v.float(), mask_BTS=mask, causal=causal, backend="reference")
    moved = None if mask is None else mask.to(device)
    found = attention(q.to(device), k.to(device), v.to(device), mask_BTS=moved, causal=causal, backend="auto")
    assert_near(found, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 100, 4096])
@pytest.mark.parametrize(("heads", "groups", "size", "block", "newest"), [
    (32, 8, 128, 16, [0, 1, 15, 16, 700, 4999, 4095, 63]),
    (32, 8, 128, 16, [4999]),
    (32, 32, 128, 16, [600, 3]),
    (4, 2, 64, 16, [17] * 70),
    (6, 2, 24, 4, [9, 0]),
    (4, 2, 8, 16, [30, 5, 300]),
    (4, 4, 72, 16, [77]),
    (8, 2, 96, 16, [500, 1]),
])  # fmt: skip
def test_blocks_are_read_in_place(
    device: torch.device,
    dtype: torch.dtype,
    window: int | None,
    heads: int,
    groups: int,
    size: int,
    block: int,
    newest: list[int],
) -> None:
    generator = torch.Generator().manual_seed(len(newest))
    most = max(newest) // block + 1
    count = len(newest) * most + 1
    keys, values = (torch.randn(count, groups, block, size, generator=generator).to(dtype) for _ in range(2))
    given = dict(
        q_RHK=torch.randn(len(newest), heads, size, generator=generator).to(dtype), keys_NGZK=keys, values_NGZK=values,
        table_RM=torch.randperm(count, generator=generator)[: len(newest) * most].view(len(newest), most),
        newest_R=torch.tensor(newest),
    )  # fmt: skip
    wide = {name: x.float() if x.is_floating_point() else x for name, x in given.items()}
    expected = paged.gathered_attention(**wide, window=window, backend="reference")
    found = paged.paged_attention(**{name: x.to(device) for name, x in given.items()}, window=window, backend="auto")
    assert_near(found, expected, dtype)
    assert paged.PAGED.open, "the kernel was given up before this test, so blocks were gathered"


@pytest.mark.cuda_only
def test_the_kernel_can_be_had() -> None:
    assert paged._has_triton(), "triton is missing: blocks are gathered"
    compilers = [os.environ.get("CC"), shutil.which("gcc"), shutil.which("clang")]
    assert any(compilers), "triton starts kernels through a C compiler, and there is none: blocks are gathered"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    assert header.is_file(), f"triton compiles against {header}, and there is none: blocks are gathered"
