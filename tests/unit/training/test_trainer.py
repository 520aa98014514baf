"""Training learns, and a run that is killed and started again ends with the same bits as one that was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from idefics.data.collate import Batch, collate
from idefics.data.sources.drawings import DrawnSamples
from idefics.errors import CheckpointError, NumericsError
from idefics.training.loss import answer_loss
from idefics.training.optimizer import SplitOptimizer
from idefics.training.run_state import Place, resume_run, save_run
from idefics.training.schedule import Schedule
from idefics.training.stage import Outcome, Stage
from idefics.training.trainer import Trainer
from learning import tiny_learner

FIRST, SECOND = 7, 5  # steps of two stages


class Killed(BaseException):
    """Nothing of the trainer may catch it, as nothing catches SIGKILL."""


class Numbers(Dataset[Tensor]):
    """Batches of random numbers."""

    def __getitem__(self, step: int) -> Tensor:
        return torch.randn(4, 6, generator=torch.Generator().manual_seed(step))


class Learner(nn.Module):
    """Matrices, a bias and dropout: both optimizers have something to remember, and random numbers are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, batch: Tensor) -> Outcome:
        hidden = batch
        for layer in self.layers:
            hidden = F.dropout(layer(hidden).relu(), 0.3)
        loss = (hidden - batch).square().mean()
        return Outcome(loss, {"square": loss.item()}, [("guess", True), ("guess", False)])


def made() -> tuple[nn.Module, SplitOptimizer]:
    torch.manual_seed(0)
    learner = nn.Sequential(Learner())
    return learner, SplitOptimizer(learner.named_parameters(), matrices_faster=3.0)


def run(folder: Path, *, kill_at: int | None = None) -> dict[str, Tensor]:
    """Trains both stages, or is killed while the batch `kill_at` of both is learned; the parameters at the end."""
    learner, optimizer = made()
    left = [kill_at]

    def learn(batch: Tensor) -> Outcome:
        if left[0] is not None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
        outcome: Outcome = learner(batch)
        return outcome

    stages = [
        Stage(name, Schedule(peak=0.1, steps=steps, warmup=2, decay=3), Numbers(), learn, samples=4)
        for name, steps in (("first", FIRST), ("second", SECOND))
    ]
    Trainer(learner, optimizer, folder, log_every=4, save_every=3).run(stages)
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return run(tmp_path_factory.mktemp("whole"))


def same(found: dict[str, Tensor], due: dict[str, Tensor]) -> bool:
    return found.keys() == due.keys() and all(torch.equal(found[name], due[name]) for name in due)


def test_training_changes_everything(uninterrupted: dict[str, Tensor]) -> None:
    before = made()[0].state_dict()
    assert not any(torch.equal(before[name], uninterrupted[name]) for name in before)


@pytest.mark.parametrize("kill_at", range(FIRST + SECOND))
def test_killed_at_any_step(tmp_path: Path, uninterrupted: dict[str, Tensor], kill_at: int) -> None:
    with pytest.raises(Killed):
        run(tmp_path, kill_at=kill_at)
    assert same(run(tmp_path), uninterrupted)


def test_killed_again_and_again(tmp_path: Path, uninterrupted: dict[str, Tensor]) -> None:
    for kill_at in (4, 5, 2, 4, 1):
        with pytest.raises(Killed):
            run(tmp_path, kill_at=kill_at)
    assert same(run(tmp_path), uninterrupted)


def writing(half: Callable[[], None], *, after: int) -> Callable[..., None]:
    """`torch.save` that writes `after` states whole, and half of the next before `half` happens."""
    save, saved = torch.save, [0]

    def broken(state: Any, file: Any) -> None:
        if saved[0] == after:
            file.write(b"PK\x03\x04 half a state")
            half()
        saved[0] += 1
        save(state, file)

    return broken


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_killed_while_the_state_is_written(
    tmp_path: Path, uninterrupted: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    def kill() -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", writing(kill, after=after))
        with pytest.raises(Killed):
            run(tmp_path)
    assert same(run(tmp_path), uninterrupted)


def test_a_full_disk_keeps_the_last_state(
    tmp_path: Path, uninterrupted: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", writing(full, after=2))
        with pytest.raises(CheckpointError, match=r"No space left.*the state before it stays"):
            run(tmp_path)
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part"))
    assert same(run(tmp_path), uninterrupted)


def test_a_finished_run_is_not_run_again(tmp_path: Path, uninterrupted: dict[str, Tensor]) -> None:
    run(tmp_path)
    assert same(run(tmp_path, kill_at=0), uninterrupted)


@pytest.mark.parametrize("content", [b"", b"no state", None])
def test_a_state_that_is_none_of_this_run(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "resume.pt"
    if content is None:
        torch.save({"learner": {"other": torch.zeros(1)}, "optimizer": [], "random": None, "stage": 0, "step": 0}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"resume\.pt is damaged, or the state of another run .*; remove it"):
        run(tmp_path)


def test_a_state_from_a_gpu_is_read_on_the_cpu_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied into what is there; on the GPU everything would be held twice."""
    run(tmp_path)
    load, places = torch.load, []
    monkeypatch.setattr(
        torch, "load", lambda *args, **options: places.append(options["map_location"]) or load(*args, **options)
    )
    run(tmp_path)
    assert places == ["cpu"]


def test_random_numbers_of_gpus_go_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, restored = [torch.arange(16, dtype=torch.uint8)], []
    learner, optimizer = made()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_rng_state_all", lambda: state)
        patch.setattr(optimizer, "parameters", [SimpleNamespace(is_cuda=True)])
        save_run(tmp_path, learner, optimizer, Place(0, 1))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored.extend)
    assert resume_run(tmp_path, *made()) == Place(0, 1)
    assert torch.equal(restored[0], state[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_teaches_nothing(tmp_path: Path, bad: float) -> None:
    learner, optimizer = made()
    steps = []

    def learn(batch: Tensor) -> Outcome:
        steps.append(1)
        outcome: Outcome = learner(batch)
        return Outcome(outcome.loss * (bad if len(steps) == 3 else 1.0), outcome.parts)

    stage = Stage("first", Schedule(peak=0.1, steps=9), Numbers(), learn, samples=4)
    with pytest.raises(NumericsError, match=r"gradient of step 3 of stage first is (nan|inf) long"):
        Trainer(learner, optimizer, tmp_path, save_every=1).run([stage])
    assert all(tensor.isfinite().all() for tensor in learner.state_dict().values())
    assert resume_run(tmp_path, *made()) == Place(0, 2)


def test_the_log(tmp_path: Path) -> None:
    run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [("first", 4), ("first", 7), ("second", 4), ("second", 5)]
    assert all(line["%guess"] == 50.0 and line["square"] > 0 and line["samples_per_second"] > 0 for line in lines)


class Drawn(Dataset[Batch]):
    """The same four drawings at every step, read by the processor of a model."""

    def __init__(self, family: str) -> None:
        samples = DrawnSamples(seed=1, turns=1)
        self.batch = collate([samples[number] for number in range(4)], tiny_learner(family)[1])

    def __getitem__(self, step: int) -> Batch:
        return self.batch


@pytest.mark.parametrize("family", ["idefics2", "idefics"])
def test_a_tiny_model_learns_drawings(tmp_path: Path, family: str) -> None:
    model = tiny_learner(family)[0].train()
    optimizer = SplitOptimizer(model.named_parameters(), matrices_faster=5.0)
    losses: list[float] = []

    def learn(batch: Batch) -> Outcome:
        loss = answer_loss(model, batch)
        losses.append(loss.item())
        return Outcome(loss, {"answers": loss.item()})

    batches = Drawn(family)
    Trainer(model, optimizer, tmp_path).run([Stage("answers", Schedule(peak=0.02, steps=12, warmup=2), batches, learn, 4)])
    assert losses[0] > 4
    assert losses[-1] < 0.6 * losses[0]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", ["idefics2", "idefics"])
def test_the_loss_is_that_of_each_sample_alone(family: str) -> None:
    """Padding adds nothing, questions teach nothing, and gradients reach the tower."""
    model, processor = tiny_learner(family)
    samples = [DrawnSamples(seed=2, turns=turns)[turns] for turns in (1, 3)]
    together = collate(samples, processor)
    loss = answer_loss(model, together)
    weighed = 0.0
    for sample in samples:
        batch = collate([sample], processor)
        logits_TV = logits_of(model, batch)[0]
        ids = batch.inputs.input_ids_BT[0].tolist()
        for place, answer in enumerate(batch.answers_BT[0].tolist()):
            if answer >= 0:
                weighed -= float(logits_TV[place - 1].log_softmax(-1)[ids[place]])
    assert loss.item() == pytest.approx(weighed / together.learned, rel=1e-5)
    torch.autograd.backward(loss)
    patches = [parameter.grad for name, parameter in model.named_parameters() if "patch_embedding" in name]
    assert patches
    assert all(grad is not None and grad.any() for grad in patches)


@torch.no_grad()
def logits_of(model: Any, batch: Batch) -> Tensor:
    positions_BT = torch.arange(batch.inputs.input_ids_BT.shape[1])[None]
    logits: Tensor = model.logits(model(batch.inputs.input_ids_BT, positions_BT=positions_BT, seen=model.see(batch.inputs)))
    return logits
