"""Weights are arranged at the first use of their part: once, whoever comes first, to the bits of arranging all at once."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fakes import tiny_model, write_tiny_checkpoint
from idefics.api import load
from idefics.linears import packed
from idefics.linears.borrowed import borrows_memory
from idefics.linears.packed import PackedLinear, can_pack
from idefics.linears.packing import finish_packing, pack, unpack
from idefics.linears.sites import named_weights
from idefics.linears.waiting import Scratch
from idefics.machine import memory
from idefics.machine.memory import free_bytes, promised_bytes
from idefics.model.base import VisionLanguageModel

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch cannot pack here")

IDS = torch.tensor([[5, 6, 7]])
PLACES = torch.arange(3)[None]


def waiting(model: torch.nn.Module) -> set[str]:
    """Children of a model some of whose layers still wait."""
    return {
        path.partition(".")[0]
        for path, module in model.named_modules()
        if isinstance(module, PackedLinear) and module._waiting is not None
    }


@torch.inference_mode()
def logits(model: VisionLanguageModel) -> torch.Tensor:
    return model.logits(model(IDS, positions_BT=PLACES))


@pytest.fixture
def mapped(tmp_path: Path) -> Callable[[], VisionLanguageModel]:
    folder = write_tiny_checkpoint(tmp_path / "tiny", std=0.1)
    return lambda: load(folder, packed=True).model


@pytest.fixture
def reordered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every weight that is brought into order, slowly enough for others to come between."""
    done: list[int] = []
    find = packed._ops

    class Watched:
        def __init__(self, dtype: torch.dtype) -> None:
            self.right = find(dtype)
            self.product, self.few_are_slow = self.right.product, self.right.few_are_slow

        def reorder(self, weight: torch.Tensor) -> torch.Tensor:
            done.append(weight.nbytes)
            time.sleep(0.001)
            return self.right.reorder(weight)

    monkeypatch.setattr(packed, "_ops", Watched)
    return done


def test_what_is_not_used_is_not_arranged(mapped: Callable[[], VisionLanguageModel]) -> None:
    model = mapped()
    assert waiting(model) == {"vision_model", "connector", "text_model", "lm_head"}
    logits(model)
    assert waiting(model) == {"vision_model", "connector"}
    with torch.inference_mode():
        model.encode_images([torch.zeros(3, 28, 28)])
    assert not waiting(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_use_gives_the_bits_of_arranging_all_at_once(dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip("this torch cannot pack it here")
    model, other = (pack(tiny_model(seed=3, std=0.2, dtype=dtype)) for _ in range(2))
    finish_packing(other)
    assert not waiting(other)
    assert torch.equal(logits(model), logits(other))
    assert torch.equal(logits(model), logits(other)), "the second time, too"
    assert torch.equal(model.logits(model(IDS, positions_BT=PLACES)), logits(other)), "and outside inference mode"


def test_threads_that_come_first_together_arrange_once(reordered: list[int]) -> None:
    expected = logits(finish_packing(pack(tiny_model(seed=3, std=0.2))))
    once = sum(reordered)
    for _ in range(5):
        reordered.clear()
        model, gate = pack(tiny_model(seed=3, std=0.2)), threading.Barrier(4)

        def ask(model: VisionLanguageModel = model, gate: threading.Barrier = gate) -> torch.Tensor:
            gate.wait()
            return logits(model)

        with ThreadPoolExecutor(4) as threads:
            found = [asked.result() for asked in [threads.submit(ask) for _ in range(4)]]
        finish_packing(model)
        assert all(torch.equal(each, expected) for each in found)
        assert sum(reordered) == once


def test_memory_that_ends_can_be_found_later(reordered: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = pack(tiny_model(seed=3, std=0.2)), logits(pack(tiny_model(seed=3, std=0.2)))
    total = len(reordered)
    reordered.clear()
    right = Scratch.joined

    def ends(scratch: Scratch, rows: list[torch.Tensor]) -> torch.Tensor:
        if len(reordered) == 3:
            raise RuntimeError("not enough memory")
        return right(scratch, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Scratch, "joined", ends)
        with pytest.raises(RuntimeError, match="memory"):
            logits(model)
    assert "text_model" in waiting(model)
    assert torch.equal(logits(model), expected)
    assert len(reordered) == total, "what was arranged stayed so"


@pytest.mark.parametrize("used", ["not", "in part", "whole"])
def test_unpacking_gives_the_same_weights_whatever_was_used(mapped: Callable[[], VisionLanguageModel], used: str) -> None:
    model = mapped()
    plain = {name: value.clone() for name, value in named_weights(finish_packing(mapped()))}
    if used != "not":
        logits(model)
    if used == "whole":
        finish_packing(model)
    named = dict(named_weights(model))
    assert named.keys() == plain.keys()
    assert all(torch.equal(named[name], value) for name, value in plain.items())
    del named
    unpack(model)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in plain.items())
    assert not any(value.is_inference() or borrows_memory(value) for value in after.values())
    loss = model.logits(model(IDS, positions_BT=PLACES)).float().sum()
    loss.backward()
    assert after["lm_head.weight"].grad is not None


def test_others_are_not_promised_the_memory_that_waits(
    mapped: Callable[[], VisionLanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache, or another model, that took what packing needs would end the process at the first question."""
    gc.collect()
    monkeypatch.setattr(memory, "_available", lambda *_, **__: 10**12)
    monkeypatch.setattr(memory, "_group_limit", lambda _: None)
    before = promised_bytes()
    model = mapped()
    inside = sum(module.nbytes for module in model.modules() if isinstance(module, PackedLinear))
    assert promised_bytes() - before == inside > 0
    assert free_bytes(torch.device("cpu")) == 10**12 - before - inside
    finish_packing(model)
    assert free_bytes(torch.device("cpu")) == 10**12 - before
    model = mapped()
    del model
    assert promised_bytes() == before, "a model that is dropped waits for nothing"
    pack(tiny_model())
    assert promised_bytes() == before, "what has memory of its own gives back as much"


def test_weights_are_let_go_one_after_the_other(tmp_path: Path, reordered: list[int]) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny", std=0.1)
    told: list[tuple[int, int]] = []
    model = load(folder, packed=False).model
    pack(model, let_go=lambda weight: told.append((weight.nbytes, len(reordered))))
    plain = sum(weight.nbytes for weight in model.parameters())
    assert sum(size for size, _ in told) >= plain > 0, "what stays plain has been copied"
    assert not reordered
    told.clear()
    logits(finish_packing(model))
    assert sum(size for size, _ in told) == sum(reordered)
    for number in range(len(reordered)):
        assert sum(size for size, after in told if after <= number + 1) == sum(reordered[: number + 1])


def test_matrices_are_put_together_in_the_same_memory() -> None:
    scratch = Scratch()
    one, two, three = torch.randn(4, 5), torch.randn(2, 5), torch.randn(3, 7).bfloat16()
    assert scratch.joined([one]) is one
    found = scratch.joined([one, two])
    assert torch.equal(found, torch.cat([one, two]))
    again = scratch.joined([three, three])
    assert torch.equal(again, torch.cat([three, three]))
    assert again.data_ptr() == found.data_ptr()
