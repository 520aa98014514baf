"""Every linear layer is declared once, and what was done to a model is known without looking at it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from fakes import tiny_model
from idefics.config.presets import preset
from idefics.errors import OptionError
from idefics.linears.packed import can_pack
from idefics.linears.packing import is_packed, pack, unpack
from idefics.linears.sites import sites
from idefics.model.base import VisionLanguageModel
from idefics.parallel.launch import Divided
from idefics.parallel.tensor_parallel import parallelize
from idefics.weights.families import build_on_meta

NAMES = ["tiny-random-idefics2", "tiny-random-idefics"]


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_layer_is_at_one_site(name: str) -> None:
    model = build_on_meta(preset(name))
    found = [path for site in sites(model) for path in site.paths]
    linear = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert len(found) == len(set(found))
    assert set(found) == {path for path in linear if not path.endswith("additional_fc")}
    assert all(site.is_plain and not site.stand_ins() for site in sites(model))
    head = next(site for site in sites(model) if site.paths == ("lm_head",))
    assert (head.tied, head.linears.split) == (model.config.tie_word_embeddings, "vocabulary")
    held = {key for site in sites(model) for key in site.parameters}
    assert held == {f"{path}.{key}" for path in found for key, _ in model.get_submodule(path).named_parameters()}


def test_a_layer_that_no_block_declares_is_named() -> None:
    model = tiny_model()
    model.text_model.layers[0].mlp.extra = nn.Linear(3, 4)
    with pytest.raises(TypeError, match=r"no block declares the linear layer 'text_model\.layers\.0\.mlp\.extra'"):
        pack(model, reorder=False)


def refuses(model: VisionLanguageModel, *what: str) -> None:
    for ability in ("trained", "saved", "packed", "divided"):
        refusal = model.refusal(ability)
        assert (refusal is not None) == (ability in what), ability
        assert refusal is None or f"cannot be {ability}; " in refusal


@pytest.mark.parametrize("reorder", [True, False] if can_pack(torch.float32) else [False])
def test_whoever_arranges_a_model_says_so(reorder: bool) -> None:
    model = tiny_model()
    assert not model.arrangements
    refuses(model)
    pack(pack(model, reorder=reorder), reorder=reorder)
    assert [done.kind for done in model.arrangements] == ["packed"]
    refuses(model, "trained", "saved", "divided")
    with pytest.raises(OptionError, match=r"a packed model cannot be trained; load the model with packed=False, or unpack it"):
        model.train()
    assert not any(module.training for module in model.modules()), "refused before anything has changed"
    with pytest.raises(OptionError, match="a packed model cannot be divided"):
        parallelize(model, cast(DeviceMesh, SimpleNamespace(size=lambda: 2)))
    assert not unpack(model).arrangements
    assert not is_packed(model)
    refuses(model)
    assert model.train().training


def test_a_divided_model_holds_its_part_of_the_heads_and_is_not_packed() -> None:
    model = tiny_model()
    whole = model.key_value_heads
    assert (whole, model.is_divided) == (model.config.text_config.num_key_value_heads, False)
    model.arrangements = (Divided.over(cast(DeviceMesh, SimpleNamespace(size=lambda: 2))),)
    assert (model.key_value_heads, model.is_divided) == (whole // 2, True)
    refuses(model, "saved", "packed", "divided")
    with pytest.raises(OptionError, match="a divided model cannot be packed; each of 2 processes holds a part; load it whole"):
        pack(model)


@pytest.mark.parametrize("first", [True, False])
def test_a_model_moves_to_where_it_is_and_nowhere_else(first: bool) -> None:
    model = pack(tiny_model(), reorder=False)
    assert model.to("cpu", torch.float32) is model
    part = model if first else model.text_model.layers[0].self_attn.joined
    with pytest.raises(OptionError, match=r"a packed model cannot be moved to cpu as torch\.float64; load the model with"):
        part.double()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}, "before anything has moved"
