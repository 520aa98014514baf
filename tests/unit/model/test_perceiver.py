"""A packed resampler takes the context through all layers' keys and values in one product, of a weight nothing else sees."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fakes import tiny_model
from idefics.config import PerceiverConfig
from idefics.errors import OptionError
from idefics.linears import packing
from idefics.linears.folded import Folded
from idefics.linears.joined import JoinedLinear
from idefics.linears.packed import can_pack
from idefics.linears.packing import pack, unpack
from idefics.linears.sites import named_weights
from idefics.model.layers.norm import normalised
from idefics.model.perceiver import PerceiverResampler
from idefics.weights.save import save_model

DEPTH, SIZE = 3, 256
REORDERS = [pytest.param(True, marks=pytest.mark.skipif(not can_pack(torch.bfloat16), reason="cannot pack here")), False]
LENGTHS = [(61,), (40, 40, 40), (1, 90, 33, 7)]


def resampler(dtype: torch.dtype = torch.float32, *, seed: int = 0) -> PerceiverResampler:
    """Whose norms of the context scale each channel by its own factor, as trained ones do."""
    torch.manual_seed(seed)
    config = PerceiverConfig(
        resampler_n_latents=8, resampler_depth=DEPTH, resampler_n_heads=4, resampler_head_dim=16, num_key_value_heads=2,
        hidden_size=SIZE, rms_norm_eps=1e-5,
    )  # fmt: skip
    made = PerceiverResampler(config, "sdpa")
    torch.nn.init.normal_(made.latents)
    for layer in made.layers:
        layer.input_context_norm.weight.data.uniform_(0.1, 3.0)
    return made.to(dtype).eval()


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("reorder", REORDERS)
@pytest.mark.parametrize("lengths", LENGTHS)
@torch.no_grad()
def test_one_product_is_the_layers_products(lengths: tuple[int, ...], reorder: bool):
    model = resampler()
    context_PD = torch.randn(sum(lengths), SIZE) * 7
    expected = model(context_PD, lengths)
    assert off(pack(model, reorder=reorder)(context_PD, lengths), expected) < 1e-5
    assert torch.equal(unpack(model)(context_PD, lengths), expected)


@torch.no_grad()
def test_layers_that_change_places_are_noticed(monkeypatch: pytest.MonkeyPatch):
    model = resampler()
    context_PD = torch.randn(61, SIZE)
    expected = model(context_PD, [61])
    monkeypatch.setattr(packing, "Folded", lambda joined, scales_D: Folded(joined, scales_D[::-1]))
    assert off(pack(model, reorder=False)(context_PD, [61]), expected) > 1e-2


@pytest.mark.parametrize("reorder", REORDERS)
@torch.no_grad()
def test_rounding_costs_no_more_than_in_the_layers(reorder: bool):
    """In bfloat16 a folded weight is rounded where a scaled context is, and once: keys and values are as near to float32."""
    plain, exact = resampler(torch.bfloat16), resampler(torch.bfloat16).float()
    unit_PD = normalised(torch.randn(500, SIZE).bfloat16(), eps=1e-5)
    folded = pack(copy.deepcopy(plain), reorder=reorder)._contexts(unit_PD)
    for one, other, found_PC in zip(plain.layers, exact.layers, folded, strict=True):
        expected = torch.cat(other.self_attn.projections(other.input_context_norm.weight * unit_PD.float()), dim=-1)
        by_layer = torch.cat(one.self_attn.projections(one.input_context_norm.weight * unit_PD), dim=-1)
        assert 0 < off(torch.cat(found_PC, dim=-1), expected) < 1.1 * off(by_layer, expected)


@pytest.mark.parametrize("reorder", REORDERS)
def test_the_context_is_multiplied_once(reorder: bool, monkeypatch: pytest.MonkeyPatch):
    """Whenever the layers were packed; what inference mode has made is of use outside of it, and gradients are refused."""
    model, rows = resampler(), []
    product = JoinedLinear.forward
    monkeypatch.setattr(JoinedLinear, "forward", lambda self, x: rows.append(x.shape[-2]) or product(self, x))
    context_PD = torch.randn(61, SIZE)
    with torch.inference_mode():
        pack(model.layers[:2], reorder=reorder)
        first = model(context_PD, [61])
        assert rows.count(61) == 2, "one layer is plain"
        pack(model, reorder=reorder)
        rows.clear()
        second = model(context_PD, [61])
    assert rows.count(61) == 1
    assert off(second, first) < 1e-5
    with torch.no_grad():
        assert torch.equal(model(context_PD, [61]), second)
    with pytest.raises(OptionError, match="gradients"):
        model(context_PD.requires_grad_(), [61])


@pytest.mark.parametrize("reorder", REORDERS)
def test_nothing_sees_the_folded_weight_and_unpacking_drops_it(reorder: bool, tmp_path: Path):
    model = tiny_model(seed=2, std=0.1)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    count = len(list(pack(model, reorder=reorder).modules()))
    pooling = model.connector.perceiver_resampler
    with torch.inference_mode():
        pooling(torch.randn(9, pooling.latents.shape[1]), [9])
    weight = weakref.ref(pooling.contexts._product._weight)
    assert len(list(model.modules())) == count
    assert all(torch.equal(value, before.pop(name)) for name, value in named_weights(model))
    assert not before
    unpack(model)
    gc.collect()
    assert weight() is None
    save_model(copy.deepcopy(model).train(), tmp_path)
