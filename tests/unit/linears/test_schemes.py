"""A scheme of fewer bits is one file (`eight_bits.py`): everything else serves it without knowing it."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from eight_bits import EightBits, Scheme
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fakes import tiny_model, write_tiny_checkpoint
from idefics.errors import CheckpointError, OptionError, TensorMismatch
from idefics.linears.packing import pack
from idefics.linears.sites import named_weights, restore, sites
from idefics.model.base import VisionLanguageModel
from idefics.parallel.device_map import unit_bytes
from idefics.parallel.tensor_parallel import parallelize
from idefics.weights.families import family_of
from idefics.weights.load import load_model
from idefics.weights.save import save_model

IDS = torch.tensor([[5, 6, 7, 8]])


@torch.no_grad()
def logits(model: VisionLanguageModel) -> Tensor:
    return model.logits(model(IDS, positions_BT=torch.arange(4)[None]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose decoder's layers are stored in 8 bits, all else as it was."""
    folder = write_tiny_checkpoint(tmp_path / "tiny", dtype=torch.bfloat16, std=0.1)
    model = load_model(folder)
    held = load_file(folder / "model.safetensors")
    for site in sites(model.text_model):
        for path, layer in zip(site.paths, site.layers, strict=True):
            published = family_of(model.config).table.published(f"text_model.{path}.weight").removesuffix(".weight")
            made = EightBits(copy.deepcopy(layer))
            held |= {f"{published}.{name}": tensor for name, tensor in made.named_buffers()}
            del held[f"{published}.weight"]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_it_is_loaded_from_its_own_tensors_each_in_its_dtype(folder: Path) -> None:
    model = load_model(folder, scheme=Scheme())
    stands = {path for site in sites(model) for paths, _ in site.stand_ins() for path in paths}
    assert stands
    assert all(path.startswith("text_model.layers.") for path in stands)
    assert {buffer.dtype for buffer in model.buffers()} == {torch.int8, torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16} == {model.dtype}
    expected = tiny_model(seed=0, dtype=torch.bfloat16)
    expected.load_state_dict({name: value.to(torch.bfloat16) for name, value in named_weights(model)})
    found, due = logits(model).float(), logits(expected).float()
    assert (found - due).norm() < 0.02 * due.norm()
    wide = load_model(folder, scheme=Scheme(), dtype=torch.float32)
    assert {buffer.dtype for buffer in wide.buffers()} == {torch.int8, torch.float32}
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}


def test_strictness_stays(folder: Path) -> None:
    with pytest.raises(TensorMismatch, match=r"missing: model\.text_model\.layers\.0.*extra: .*\.q"):
        load_model(folder)
    held = load_file(folder / "model.safetensors")
    name = "model.text_model.layers.0.self_attn.q_proj"
    save_file({**held, f"{name}.q": held[f"{name}.q"].int()}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TensorMismatch, match=rf"not that of its buffer: {name}\.q \(I32\)"):
        load_model(folder, scheme=Scheme())
    save_file({key: value for key, value in held.items() if key != f"{name}.scale"}, folder / "model.safetensors")
    with pytest.raises(TensorMismatch, match=rf"1 missing: {name}\.scale"):
        load_model(folder, scheme=Scheme())


def test_names_and_layers_come_back(folder: Path) -> None:
    model = load_model(folder, scheme=Scheme())
    plain = [name for name, _ in tiny_model().named_parameters()]
    named = {name: value.clone() for name, value in named_weights(model)}
    assert named.keys() == set(plain)
    restore(model)
    assert [name for name, _ in model.named_parameters()] == plain, "in the order of the files"
    assert all(torch.equal(value, named[name]) for name, value in model.named_parameters())
    assert all(site.is_plain for site in sites(model))


def test_bytes_are_those_of_the_files(folder: Path) -> None:
    model = load_model(folder, scheme=Scheme())
    assert sum(unit_bytes(model, torch.bfloat16).values()) == sum(
        v.nbytes for v in load_file(folder / "model.safetensors").values()
    )


def test_what_it_cannot_is_refused_in_its_sentence(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder, scheme=Scheme())
    with pytest.raises(CheckpointError, match="a quantised model cannot be saved; load the 16-bit checkpoint"):
        save_model(model, tmp_path / "out")
    for what, attempt in {
        "trained": model.train,
        "packed": lambda: pack(model),
        "copied": lambda: copy.deepcopy(model),
        "made a state dict": model.state_dict,
        "moved to cpu as torch.float16": model.half,
        "divided": lambda: parallelize(model, cast(DeviceMesh, SimpleNamespace(size=lambda: 2))),
    }.items():
        with pytest.raises(OptionError, match=f"a quantised model cannot be {what}; load the 16-bit checkpoint"):
            attempt()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}, "before anything has moved"


@torch.no_grad()
def test_it_is_divided_as_it_declares(folder: Path) -> None:
    """Every site's layers, cut as its split says: outputs side by side, or sums over inputs, are the whole's."""
    model = load_model(folder, scheme=Scheme())
    seen = set()
    for site in sites(model.text_model):
        split = site.linears.split
        assert split is not None
        for _, whole in site.stand_ins():
            seen.add(split)
            x = torch.randn(3, whole.in_features)
            inputs = x.chunk(2, dim=-1) if split == "rows" else (x, x)
            parts = []
            for rank, own in enumerate(inputs):
                share = EightBits(torch.nn.Linear(1, 1, bias=False))
                for name, dim in type(whole).cuts(split).items():
                    held = whole.get_buffer(name)
                    setattr(share, name, held if dim is None else held.chunk(2, dim)[rank])
                parts.append(share(own))
            made = sum(parts) if split == "rows" else torch.cat(parts, dim=-1)
            torch.testing.assert_close(made, whole(x))
    assert seen == {"heads", "columns", "rows"}
