"""A packed model computes what the plain one does, holds no second copy, comes back to the bit, and refuses the rest."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import gated
from fakes import IMAGE, tiny_config, tiny_idefics, tiny_model, write_tiny_checkpoint
from idefics.api import load
from idefics.errors import CheckpointError, OptionError, OutOfMemory
from idefics.linears import packed, packing
from idefics.linears.borrowed import borrows_memory
from idefics.linears.joined import JoinedLinear
from idefics.linears.packed import FEW_ROWS, PackedLinear, can_pack
from idefics.linears.packing import is_packed, pack, packing_pays, unpack
from idefics.linears.sites import named_weights
from idefics.model.layers.activation import ACTIVATIONS
from idefics.model.layers.decoupled import DecoupledLinear
from idefics.model.layers.linear import Block, Linears, SharedInput
from idefics.model.layers.mlp import MLP, GatedMLP
from idefics.weights.save import save_model

DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if can_pack(dtype)]
pytestmark = pytest.mark.skipif(not DTYPES, reason="this torch cannot pack here")


def close(found: torch.Tensor, expected: torch.Tensor, *, roundings: int = 4) -> None:
    eps = max(torch.finfo(found.dtype).eps, 1e-5)
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, atol=roundings * eps * scale, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3,), (2, 0), (2, 5), (67,)])
@pytest.mark.parametrize(("size", "out"), [(70, 37), (1, 3), (128, 64), (33, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_is_the_layer(dtype, shape, size, out, bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(size, out, bias=bias, dtype=dtype)
    x = torch.randn(*shape, size).to(dtype)
    with torch.no_grad():
        expected = layer(x)
        found = PackedLinear([layer])(x)
    assert found.shape == expected.shape
    close(found, expected)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if packed._ops(dtype).few_are_slow])
@torch.no_grad()
def test_a_row_alone_is_to_the_bit_what_it_is_beside_a_few(dtype):
    torch.manual_seed(0)
    layer = PackedLinear([torch.nn.Linear(1152, 4304, dtype=dtype)])
    assert layer.nbytes >= packed.LARGE_WEIGHT
    x = torch.randn(FEW_ROWS, 1152).to(dtype)
    together = layer(x)
    for rows in range(1, FEW_ROWS):
        assert torch.equal(layer(x[:rows]), together[:rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("kind", ["MLP", "GatedMLP"])
@torch.no_grad()
def test_blocks_with_any_activation(dtype, activation, kind):
    torch.manual_seed(0)
    block = MLP(24, 40, activation=activation) if kind == "MLP" else GatedMLP(24, 40, 32, activation=activation)
    block = block.to(dtype)
    x = torch.randn(5, 24).to(dtype)
    expected = block(x)
    close(pack(block)(x), expected)
    assert torch.equal(unpack(block)(x), expected)


class Head(Block):
    linears = (Linears(names=("head",)),)

    def __init__(self, size: int, base: int, added: int) -> None:
        super().__init__()
        self.head = DecoupledLinear(size, base, added)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("added", [0, 3])
@torch.no_grad()
def test_a_vocabulary_in_two_tables(dtype, added):
    holder = Head(24, 40, added).to(dtype)
    x = torch.randn(2, 24).to(dtype)
    expected = holder(x)
    close(pack(holder)(x), expected)
    assert isinstance(holder.head, PackedLinear)
    assert torch.equal(unpack(holder)(x), expected)


def idefics1(dtype: torch.dtype, **changes: Any) -> Any:
    return gated.tiny_model(dtype=dtype, seed=2, **changes)


MODELS = {
    "idefics2": lambda dtype: tiny_model(seed=2, std=0.1, dtype=dtype),
    "idefics2 tied": lambda dtype: tiny_model(replace(tiny_config(), tie_word_embeddings=True), seed=2, std=0.1, dtype=dtype),
    "idefics1": idefics1,
}


@pytest.mark.parametrize("reorder", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_packing_is_undone_to_the_bit(name, dtype, reorder):
    model = MODELS[name](dtype)
    before = {key: value.clone() for key, value in model.named_parameters()}
    pack(model, reorder=reorder)
    assert is_packed(model)
    if reorder:
        assert not any(type(module) is torch.nn.Linear for key, module in model.named_modules() if key != "lm_head")
    blocks = [module for module in model.modules() if isinstance(module, SharedInput)]
    kind = PackedLinear if reorder else JoinedLinear
    assert blocks
    assert all(type(block.joined) is kind and getattr(block, name) is None for block in blocks for name in block.shared.names)
    named = dict(named_weights(model))
    assert named.keys() == before.keys()
    assert all(torch.equal(named[key], value) for key, value in before.items())
    unpack(model)
    assert not is_packed(model)
    after = dict(model.named_parameters())
    assert list(after) == list(before), "the order of the files"
    assert all(torch.equal(after[key], value) and after[key].requires_grad for key, value in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["idefics2", "idefics1"])
@torch.no_grad()
def test_joined_layers_are_the_layers(name, dtype):
    """As a GPU has them; float16, which no CPU packs, included."""
    torch.manual_seed(0)
    model = MODELS[name](dtype)
    for block in [module for module in model.modules() if isinstance(module, SharedInput)]:
        x = torch.randn(3, getattr(block, block.shared.names[0]).in_features).to(dtype)
        expected = block.projections(x)
        found = pack(block, reorder=False).projections(x)
        assert isinstance(block.joined, JoinedLinear)
        for one, other in zip(found, expected, strict=True):
            close(one, other)
    with pytest.raises(OptionError, match="gradients"), torch.enable_grad():
        block.projections(x.requires_grad_())


@pytest.mark.parametrize("reorder", [True, False])
def test_greedy_tokens_are_the_same_in_float32(reorder):
    plain, packed_one = (tiny_idefics(std=0.3, seed=5) for _ in range(2))
    pack(packed_one.model, reorder=reorder)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (h, w, 3), generator=generator, dtype=torch.uint8).numpy() for h, w in [(60, 90), (80, 50)]]
    for prompts, rows in ([f"What {IMAGE} is"], [images[:1]]), (["Hello", f"{IMAGE}a{IMAGE}"], [[], images]):
        found, expected = (m.generate(prompts, rows, max_new_tokens=12, details=True) for m in (packed_one, plain))
        assert [a.token_ids for a in found] == [a.token_ids for a in expected]


@pytest.mark.parametrize("reorder", [True, False])
def test_what_only_plain_models_can_do_is_refused(reorder: bool, tmp_path: Path):
    model = pack(tiny_model(), reorder=reorder)
    with pytest.raises(CheckpointError, match="packed=False"):
        save_model(model, tmp_path)
    assert not list(tmp_path.iterdir())
    attempts = [
        lambda: model.train(),
        lambda: model.to(torch.bfloat16),
        lambda: model.to("meta"),
        lambda: model.state_dict(),
        lambda: model.load_state_dict({}),
        lambda: copy.deepcopy(model),
        lambda: pickle.dumps(model),
        lambda: model.requires_grad_(True)(torch.tensor([[5, 6]]), positions_BT=torch.tensor([[0, 1]])),
    ]
    for attempt in attempts:
        with pytest.raises(OptionError, match="packed"):
            attempt()
    assert model.to("cpu") is model.eval() is model.to(torch.float32)
    save_model(unpack(model), tmp_path)


def test_models_that_cannot_be_packed(monkeypatch: pytest.MonkeyPatch):
    mixed = tiny_model()
    mixed.lm_head.to("meta")
    with pytest.raises(OptionError, match="cpu, meta"):
        pack(mixed)
    with pytest.raises(OptionError, match="meta"):
        pack(tiny_model().to("meta"))
    monkeypatch.setattr(packing, "can_pack", lambda _: False)
    with pytest.raises(OptionError, match=r"packs no torch\.float32"):
        pack(tiny_model())


def test_an_operation_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch):
    find = packed._ops

    class Wrong:
        def __init__(self, dtype: torch.dtype) -> None:
            right = find(dtype)
            self.reorder = right.reorder
            self.product = lambda *args: right.product(*args) + 0.1

    def missing(_: torch.dtype) -> None:
        raise AttributeError("no such operation")

    for ops in (Wrong, missing):
        monkeypatch.setattr(packed, "_ops", ops)
        can_pack.cache_clear()
        assert not can_pack(torch.float32)
    can_pack.cache_clear()


def test_loading_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_tiny_checkpoint(tmp_path / "tiny", dtype=torch.bfloat16, std=0.1)
    assert is_packed(load(folder).model) == can_pack(torch.bfloat16)
    assert not is_packed(load(folder, dtype="float32").model), "too small to pay"
    asked = load(folder, packed=True)
    assert is_packed(asked.model)
    assert all(map(borrows_memory, load(folder, packed=False).model.parameters()))
    assert not any(map(borrows_memory, asked.model.parameters())), "the files are let go"
    monkeypatch.setattr(packing, "ENOUGH_PARAMETERS", 1)
    assert not is_packed(load(folder, packed=False).model)
    assert is_packed(load(folder, dtype="float32").model) == can_pack(torch.float32)
    assert not packing_pays(tiny_model().to("meta"))
    monkeypatch.setattr("idefics.weights.packing.free_bytes", lambda _: 1)
    monkeypatch.setattr("idefics.machine.memory.free_bytes", lambda *_, **__: 1)
    monkeypatch.setattr("idefics.weights.load.require_free_bytes", lambda *_, **__: None)
    assert not is_packed(load(folder).model), "no room: stays as it is"
    with pytest.raises(OutOfMemory, match="packing"):
        load(folder, packed=True)


@pytest.mark.parametrize("reorder", [True, False])
def test_nothing_that_is_packed_requires_gradients(reorder: bool) -> None:
    model = pack(tiny_idefics().model, reorder=reorder)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_the_memory_of_a_weight_is_where_products_read_it(dtype):
    layer = PackedLinear([torch.nn.Linear(64, 32, bias=False, dtype=dtype)])
    memory, x = layer.memory, torch.randn(3, 64).to(dtype)
    assert memory.nbytes >= 64 * 32 * dtype.itemsize
    assert layer(x).count_nonzero()
    memory.zero_()
    assert not layer(x).count_nonzero()
