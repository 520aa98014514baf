from __future__ import annotations

import pytest
import torch

from idefics.machine.arithmetic import multiplies
from idefics.model.layers import attention as layers_attention
from idefics.model.layers.attention import attention, causal_mask, fastest, segmented_attention

CPU = torch.device("cpu")


def heads(rows, queries, keys, *, q_heads=4, kv_heads=2, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, q_heads, queries, size), (rows, kv_heads, keys, size), (rows, kv_heads, keys, size))
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def spelled_out(q, k, v, mask_BTS):
    """One query, one head, one row at a time."""
    out = torch.empty_like(q)
    groups = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                seen = mask_BTS[b % len(mask_BTS), t]
                keys, values = k[b, h // groups][seen], v[b, h // groups][seen]
                out[b, h, t] = (keys @ q[b, h, t] / q.shape[-1] ** 0.5).softmax(0) @ values
    return out


MASKS = {
    "window": causal_mask(queries=7, past=0, window=3, key_mask_BS=None, device=CPU),
    "padding": causal_mask(
        queries=7, past=0, window=None, key_mask_BS=torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7]).bool(), device=CPU
    ),
    "window and padding": causal_mask(
        queries=7, past=0, window=4, key_mask_BS=torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]]).bool(), device=CPU
    ),
}


@pytest.mark.parametrize("backend", ["sdpa", "reference", "blocked"])
@pytest.mark.parametrize("q_heads", [2, 4, 6])
@pytest.mark.parametrize("mask", [None, *MASKS])
def test_attention_is_its_definition(backend, q_heads, mask):
    q, k, v = heads(2, 7, 7, q_heads=q_heads)
    full = torch.ones(1, 7, 7, dtype=torch.bool)
    with torch.no_grad():
        found = attention(q, k, v, mask_BTS=MASKS.get(mask), causal=False, backend=backend)
        torch.testing.assert_close(found, spelled_out(q, k, v, full if mask is None else MASKS[mask]))


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("q_heads", [2, 6])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_one_query_of_heads_that_share_keys(backend, dtype, q_heads, masked):
    q, k, v = (x.to(dtype) for x in heads(3, 1, 9, q_heads=q_heads))
    q = q.transpose(0, 1).contiguous().transpose(0, 1)  # as a cache hands them over
    mask = torch.arange(9) <= torch.tensor([2, 5, 8])[:, None, None] if masked else torch.ones(1, 1, 9, dtype=torch.bool)
    expected = spelled_out(q.float(), k.float(), v.float(), mask)
    found = attention(q, k, v, mask_BTS=mask if masked else None, causal=False, backend=backend)
    assert found.dtype == dtype
    tolerance = {} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(found.float(), expected, **tolerance)


@pytest.mark.parametrize("backend", ["sdpa", "reference", "blocked"])
def test_causal_is_the_triangle(backend):
    q, k, v = heads(2, 6, 6)
    triangle = torch.ones(1, 6, 6, dtype=torch.bool).tril()
    flagged = attention(q, k, v, mask_BTS=None, causal=True, backend=backend)
    torch.testing.assert_close(flagged, attention(q, k, v, mask_BTS=triangle, causal=False, backend=backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", [None, *MASKS])
def test_backends_agree(dtype, mask):
    q, k, v = (x.detach().to(dtype) for x in heads(2, 7, 7))
    found, expected = (
        attention(q, k, v, mask_BTS=MASKS.get(mask), causal=False, backend=backend) for backend in ("sdpa", "reference")
    )
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected, atol=4 * torch.finfo(dtype).eps, rtol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("mask", [None, *MASKS])
def test_gradients_agree(mask):
    gradients = []
    for backend in ("sdpa", "reference"):
        inputs = heads(2, 7, 7)
        out = attention(*inputs, mask_BTS=MASKS.get(mask), causal=mask is None, backend=backend)
        out.square().sum().backward()
        gradients.append([x.grad for x in inputs])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "reference", "blocked"])
@pytest.mark.parametrize("lengths", [[5], [3, 3, 3], [1, 4, 4, 2], [4, 1, 4], [2, 3, 3, 3, 1, 1]])
def test_segments_of_unequal_lengths_are_each_alone(backend, lengths):
    extra = 2  # keys beyond the queries, as latents' own
    q_lengths, k_lengths = lengths, [n + extra for n in lengths]
    q, k, v = (x.detach()[0].transpose(0, 1) for x in heads(1, sum(q_lengths), sum(k_lengths)))
    found = segmented_attention(q, k, v, q_lengths=q_lengths, k_lengths=k_lengths, backend=backend)
    alone = [
        attention(
            *(x.transpose(0, 1)[None] for x in parts), mask_BTS=None, causal=False, backend=backend
        )[0].transpose(0, 1)
        for parts in zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True)
    ]  # fmt: skip
    torch.testing.assert_close(found, torch.cat(alone))


def test_gradients_of_segments_agree():
    gradients = []
    for backend in ("sdpa", "reference"):
        inputs = heads(1, 9, 9)
        packed = [x[0].transpose(0, 1) for x in inputs]
        segmented_attention(*packed, q_lengths=[4, 4, 1], k_lengths=[4, 4, 1], backend=backend).square().sum().backward()
        gradients.append([x.grad for x in inputs])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_no_mask_where_the_flag_says_the_same():
    assert causal_mask(queries=5, past=0, window=None, key_mask_BS=None, device=CPU) is None
    assert causal_mask(queries=1, past=9, window=None, key_mask_BS=None, device=CPU) is None
    assert causal_mask(queries=5, past=0, window=5, key_mask_BS=None, device=CPU) is None
    assert causal_mask(queries=2, past=3, window=None, key_mask_BS=None, device=CPU) is not None
    assert causal_mask(queries=1, past=5, window=5, key_mask_BS=None, device=CPU) is not None


@pytest.mark.parametrize("past", [0, 1, 4])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("padded", [False, True])
def test_mask_is_its_definition(past, window, padded):
    queries = 4
    keys = past + queries
    key_mask = torch.tensor([[False, False, *[True] * (keys - 2)], [True] * keys]) if padded else None
    mask = causal_mask(queries=queries, past=past, window=window, key_mask_BS=key_mask, device=CPU)
    if mask is None:
        mask = torch.ones(1, queries, keys, dtype=torch.bool).tril(past)
    for row in range(len(mask)):
        for t in range(queries):
            for s in range(keys):
                at = past + t
                seen = s <= at and (window is None or at - s < window) and (key_mask is None or bool(key_mask[row, s]))
                assert bool(mask[row, t, s]) == (seen or s == at)


@pytest.mark.parametrize("backend", ["sdpa", "reference", "blocked"])
def test_padding_queries_are_not_nan(backend):
    q, k, v = heads(2, 7, 7)
    assert torch.isfinite(attention(q, k, v, mask_BTS=MASKS["window and padding"], causal=False, backend=backend)).all()


@pytest.fixture(params=[False, True], ids=["whole", "in blocks"])
def small_blocks(request, monkeypatch):
    """The blocked backend's two ways, at sizes that both would otherwise take for small."""
    if request.param:
        monkeypatch.setattr(layers_attention, "SCORES_AT_ONCE", 0)
        monkeypatch.setattr(layers_attention, "BLOCK_ROWS", 5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("q_heads", [2, 14])
@pytest.mark.parametrize("queries", [0, 1, 7])
@pytest.mark.parametrize("mask", [None, "causal", *MASKS])
def test_blocks_are_the_reference(dtype, q_heads, queries, mask):
    """Odd sizes, heads that share keys, no query, one query; keys strided as a cache's are."""
    q, k, v = (x.detach().to(dtype) for x in heads(2, queries, 7, q_heads=q_heads))
    k, v = (torch.cat((x, x), dim=2)[:, :, :7] for x in (k, v))
    chosen, causal = MASKS[mask][:, 7 - queries :] if mask in MASKS else None, mask == "causal"
    if causal:
        k, v = k[:, :, :queries], v[:, :, :queries]
    found, expected = (
        attention(q, k, v, mask_BTS=chosen, causal=causal, backend=backend) for backend in ("blocked", "reference")
    )
    assert found.dtype == dtype
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=4 * torch.finfo(dtype).eps, rtol=4 * torch.finfo(dtype).eps)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("mask", [None, *MASKS])
def test_gradients_of_blocks_agree(mask):
    gradients = []
    for backend in ("blocked", "reference"):
        inputs = heads(2, 7, 7)
        out = attention(*inputs, mask_BTS=MASKS.get(mask), causal=mask is None, backend=backend)
        out.square().sum().backward()
        gradients.append([x.grad for x in inputs])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_segments(dtype):
    q, k, v = (x.detach()[0].transpose(0, 1).to(dtype) for x in heads(1, 20, 25))
    lengths = {"q_lengths": [13, 1, 6], "k_lengths": [15, 3, 7]}
    found, expected = (segmented_attention(q, k, v, **lengths, backend=backend) for backend in ("blocked", "reference"))
    torch.testing.assert_close(found, expected, atol=4 * torch.finfo(dtype).eps, rtol=4 * torch.finfo(dtype).eps)


def test_rounding_of_long_rows():
    """In 16 bits as near to float64 as the reference is, over as many keys as a large image has."""
    q, k, v = (x.detach().bfloat16() for x in heads(1, 600, 3000, q_heads=2))
    exact = attention(q.double(), k.double(), v.double(), mask_BTS=None, causal=False, backend="reference")
    errors = {
        backend: (attention(q, k, v, mask_BTS=None, causal=False, backend=backend).double() - exact).abs().max()
        for backend in ("blocked", "reference")
    }
    assert errors["blocked"] <= 2 * errors["reference"]


def test_what_auto_takes():
    q, k, _ = (x.detach() for x in heads(1, 7, 7))
    low = "sdpa" if layers_attention._has_amx() or not multiplies(torch.bfloat16) else "blocked"
    assert fastest(q.bfloat16(), k.bfloat16()) == low
    assert fastest(q, k) == "sdpa"
    assert fastest(q[:, :, :1], k) == "blocked"
    few, many = (torch.empty(1, 2, keys, 100, dtype=torch.bfloat16) for keys in (500, 501))
    assert (few.numel(), fastest(few[:, :, :1], few)) == (layers_attention.FEW_KEYS, "sdpa")
    assert fastest(many[:, :, :1], many) == low
    assert fastest(q.bfloat16().requires_grad_(), k.bfloat16()) == "sdpa"
    assert fastest(q.to("meta"), k.to("meta")) == "sdpa"
    found, expected = (attention(q, k, k, mask_BTS=None, causal=False, backend=b) for b in ("auto", "reference"))
    torch.testing.assert_close(found, expected)
