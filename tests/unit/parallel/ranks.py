"""What each of several processes does and reports, and what one process alone does, for comparison."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from idefics.engine import streams
from idefics.engine.engine import Engine
from idefics.engine.prefill import Prefill
from idefics.engine.sampling_params import SamplingParams
from idefics.errors import OptionError
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel
from idefics.parallel import launch, load
from idefics.parallel.tensor_parallel import Shares
from idefics.weights.load import load_model

STEPS = 4


def inputs(family: str) -> ModelInputs:
    """Three prompts of unequal lengths, padded on the left: two images, none, one."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(6, 30, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[2, :2] = 0
    if family == "idefics":
        seen = torch.full_like(ids, -1)
        seen[0, 2:5], seen[0, 5:], seen[2, 4:] = 0, 1, 0
        images = tuple(torch.randn(3, 28, 28, generator=generator) for _ in range(3))
        return ModelInputs(input_ids_BT=ids, attention_mask_BT=mask, images_CHW=images, images_per_row=(2, 0, 1), seen_BT=seen)
    ids[0, 1:4] = ids[0, 5:8] = ids[2, 3:6] = 5
    images = tuple(torch.randn(3, 28, 14 * width, generator=generator) for width in (2, 3, 1))
    return ModelInputs(input_ids_BT=ids, attention_mask_BT=mask, images_CHW=images, images_per_row=(2, 0, 1))


@torch.inference_mode()
def logits(model: VisionLanguageModel) -> tuple[Tensor, list[list[int]], Prefill]:
    """Logits (1 + STEPS, B, V) after the prompts and each of the likeliest tokens; these tokens; the owner of the cache."""
    given = inputs(model.config.model_type)
    run = Prefill(model, given, rows=[0, 1, 2], rooms=[STEPS] * 3)
    steps, tokens = [run.logits_RV], []
    for _ in range(STEPS):
        best = steps[-1].argmax(-1)
        tokens.append(best.tolist())
        steps.append(run.step(best[:, None]))
    return torch.stack([step + 0 for step in steps]), tokens, run


def answers(model: VisionLanguageModel, **options: Any) -> list[list[int]]:
    """Ids of the engine's answers."""
    params = SamplingParams(max_new_tokens=2, **options)
    rows = Engine(model).generate(inputs(model.config.model_type), [params] * 3)
    return [list(answer.token_ids) for row in rows for answer in row]


def alone(folder: Path) -> dict[str, Any]:
    """One process's results, for comparison."""
    model = load_model(folder)
    found, tokens, _ = logits(model)
    return {"logits": found, "tokens": tokens, "beams": answers(model, num_beams=2)}


def _divided(folder: Path, n: int) -> dict[str, Any]:
    model = load.load_tensor_parallel(folder, n, device="cpu")
    found, tokens, run = logits(model)
    local = {name: value.to_local() if hasattr(value, "to_local") else value for name, value in model.named_parameters()}
    return {
        "logits": found,
        "plain": type(found) is Tensor,
        "tokens": tokens,
        "beams": answers(model, num_beams=2),
        "drawn": [answers(model, do_sample=True, temperature=3.0, n=2) for _ in range(2)],
        "seeded": answers(model, do_sample=True, temperature=3.0, seed=3),
        "names": [name for name, _ in model.named_parameters()],
        "whole": {name: tuple(value.shape) for name, value in model.named_parameters()},
        "held": {name: tuple(value.shape) for name, value in local.items()},
        "cache": {tuple(buffer.shape) for buffer in (*run._cache._keys, *run._cache._values)},
    }


def _summed_by_nobody(model: VisionLanguageModel) -> None:
    """Breaks one row-wise product: each process goes on with its own part of the sum."""
    module = model.get_submodule("text_model.layers.1.self_attn.o_proj")
    module._forward_hooks.clear()
    module.register_forward_hook(lambda _module, _inputs, output: output.to_local())


def _mutations(folder: Path, n: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is found where one thing is wrong."""
    found: dict[str, Any] = {}
    model = load.load_tensor_parallel(folder, n, device="cpu")
    _summed_by_nobody(model)
    found["not summed"] = logits(model)[0]
    own = Shares.share
    with monkeypatch.context() as patch:
        # Keys and values (16 x 32) of the other half's heads.
        patch.setattr(Shares, "share", lambda self, p, t: own(self, p, t.roll(8, 0) if t.shape == (16, 32) else t))
        found["wrong heads"] = logits(load.load_tensor_parallel(folder, n, device="cpu"))[0]
    with monkeypatch.context() as patch:
        # The embedding has the same shape, and is whole.
        moved = lambda p, t: t.roll(1, 0) if t.shape == (37, 32) and isinstance(p, DTensor) else t  # noqa: E731
        patch.setattr(Shares, "share", lambda self, p, t: own(self, p, moved(p, t)))
        found["wrong rows of the head"] = logits(load.load_tensor_parallel(folder, n, device="cpu"))[0]
    model = load.load_tensor_parallel(folder, n, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(VisionLanguageModel, "key_value_heads", model.config.text_config.num_key_value_heads)
        try:
            logits(model)
        except RuntimeError as error:
            found["a cache for all heads"] = str(error)
    with monkeypatch.context() as patch:
        patch.setattr(streams, "agreed_seed", lambda _model: None)
        found["seeds of one's own"] = answers(model, do_sample=True, temperature=3.0, n=2)
    return found


def _anonymous() -> int:
    """Bytes of memory of this process's own, mapped files not counted."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _memory(folder: Path, n: int) -> dict[str, int]:
    """Bytes that loading adds, at its peak and in the end."""
    before, peak = _anonymous(), 0

    def look(done: int, total: int) -> None:  # noqa: ARG001
        nonlocal peak
        peak = max(peak, _anonymous())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # its weights are zeros, which loading tells
        model = load.load_tensor_parallel(folder, n, dtype=torch.float32, device="cpu", progress=look)
    kept = sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in model.parameters())
    return {"peak": peak - before, "kept": kept}


def _refused(call: Callable[[], Any]) -> str:
    try:
        call()
    except OptionError as error:
        return str(error)
    return "was not refused"


def _command(*arguments: str | Path) -> tuple[int, str, str]:
    from idefics.cli import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            return int(end.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("the command line did not exit")


def work(rank: int, n: int, port: int, folder: Path) -> None:
    """Reports, as `<n>-<rank>.pt` in the folder, what this process finds."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)
    }  # fmt: skip
    report: dict[str, Any] = {name: _divided(folder / name, n) for name in ("idefics2", "tied", "idefics")}
    report["memory"] = _memory(folder / "large", n)
    if n == 2:
        with pytest.MonkeyPatch.context() as monkeypatch:
            report["mutations"] = _mutations(folder / "idefics2", n, monkeypatch)
    report["another number"] = _refused(lambda: launch.init(n + 1, device="cpu"))
    report["with a map"] = _refused(
        lambda: load.load_placed(
            folder / "tied", dtype=None, device=None, device_map="auto", backend="sdpa", progress=None, tensor_parallel=n
        )
    )
    report["a GPU by number"] = _refused(lambda: launch.init(n, device="cuda:1"))
    report["seeds"] = [launch.agreed_seed(load.load_tensor_parallel(folder / "tied", n, device="cpu")) for _ in range(2)]
    whole = load_model(folder / "tied")
    report["seeds of a whole model"] = [torch.manual_seed(seed) and launch.agreed_seed(whole) for seed in (3, 3, 4)]
    words = ["generate", "-m", folder / "checkpoint", "--max-new-tokens", "4", "--device", "cpu", "--tensor-parallel", n]
    report["answer"] = _command(*words, "Hm?", "-i", folder / "plain.png") if n == 2 else None
    report["mistake"] = _command(*words, "Hm?", "-i", folder / "nowhere.png")
    report["stdin"] = _command(*words, "-")
    launch.leave()
    launch.leave()
    report["left"] = not torch.distributed.is_initialized()
    torch.save(report, folder / f"{n}-{rank}.pt")
