"""Products of 16-bit weights in float32, a block at a time."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from idefics.linears import packed
from idefics.linears.packed import PackedLinear, can_pack
from idefics.machine.arithmetic import multiplies
from idefics.model.layers import widened
from idefics.model.layers.widened import pays, wide_linear
from idefics.model.vision_encoder import PatchEmbedding


@pytest.fixture
def float_only(monkeypatch: pytest.MonkeyPatch):
    """A processor that multiplies in float32 only."""
    found = {dtype: dtype == torch.float32 for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    for module in (packed, widened):
        monkeypatch.setattr(module, "multiplies", found.__getitem__)
    for cached in (can_pack, packed._ops):
        cached.cache_clear()
    yield
    for cached in (can_pack, packed._ops):
        cached.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (2, 3)])
@pytest.mark.parametrize("block", [1, 50, 2**20])
@pytest.mark.parametrize("activation", [None, F.silu])
@torch.no_grad()
def test_it_is_rounded_once(monkeypatch: pytest.MonkeyPatch, dtype, shape, block, activation):
    monkeypatch.setattr(widened, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator).to(dtype) for size in ((*shape, 20), (13, 20), (13,)))
    exact = F.linear(x.double(), weight.double(), bias.double())
    exact = exact if activation is None else activation(exact)
    found = wide_linear(x, weight, bias, activation=activation)
    assert found.dtype == dtype
    assert found.shape == (*shape, 13)
    # A row alone is rounded before the activation, too.
    roundings = 1 if activation is not None and x.shape[:-1].numel() == 1 else 0.5
    torch.testing.assert_close(
        found.double(), exact, rtol=roundings * torch.finfo(dtype).eps, atol=1e-2 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("float_only")
@torch.no_grad()
def test_what_cannot_be_reordered_is_widened_and_given_back(dtype: torch.dtype):
    assert can_pack(dtype)
    layer = torch.nn.Linear(40, 24, dtype=dtype)
    weight, x = layer.weight.detach().clone(), torch.randn(3, 40).to(dtype)
    expected = wide_linear(x, weight, layer.bias)
    made = PackedLinear([layer])
    assert torch.equal(made(x), expected)
    assert torch.equal(made.restore()[0].weight, weight)


@pytest.mark.usefixtures("float_only")
def test_patches_are_widened_where_nobody_learns(monkeypatch: pytest.MonkeyPatch):
    from fakes import tiny_config

    config = tiny_config().vision_config
    embedding = PatchEmbedding(config, bias=True).to(torch.bfloat16)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter)
    patches = torch.randn(5, embedding.weight[0].numel()).bfloat16()
    learned = embedding(patches)
    learned.sum().backward()
    assert embedding.weight.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(embedding(patches), learned.detach(), rtol=0.02, atol=0.1)
        assert pays(patches)
        assert not pays(patches.float())
        monkeypatch.setattr("idefics.model.vision_encoder.wide_linear", lambda *_: "widened")
        assert embedding(patches) == "widened"


def test_it_is_known_what_this_processor_multiplies():
    assert multiplies(torch.float32)
    assert multiplies(torch.bfloat16) in (True, False)
