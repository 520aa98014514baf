"""The loop: every batch of every stage once, in order, from wherever an interrupted run stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from idefics.errors import NumericsError
from idefics.training.meter import Meter
from idefics.training.optimizer import SplitOptimizer
from idefics.training.run_state import Place, resume_run, save_run
from idefics.training.stage import Stage

__all__ = ["Trainer"]


class Trainer:
    """Runs stages and keeps their state in a folder: `log.jsonl`, and what a killed run goes on from.

    A run that was killed at any moment and started again ends with the same bits as one that was not: batches are a function
    of stage and step, and the state holds parameters, optimizer, random numbers and place.

    Args:
        learner: everything that is trained.
        optimizer: of its parameters.
        folder: of the run; made if it is not there.
        autocast: dtype of matrix products; None for that of the parameters.
        clip: longest gradient, all parameters together.
        workers: processes that make batches; 0 makes them between steps.
        log_every: steps between lines of the log; a stage's last step has one, too.
        save_every: steps between saved states, likewise.
        report: told every line of the log.
    """

    def __init__(
        self,
        learner: nn.Module,
        optimizer: SplitOptimizer,
        folder: Path,
        *,
        autocast: torch.dtype | None = None,
        clip: float = 1.0,
        workers: int = 0,
        log_every: int = 50,
        save_every: int = 500,
        report: Callable[[Mapping[str, object]], None] | None = None,
    ) -> None:
        self.learner = learner
        self.optimizer = optimizer
        self.folder = folder
        self.autocast = autocast
        self.clip = clip
        self.workers = workers
        self.log_every = log_every
        self.save_every = save_every
        self.report = report

    def run(self, stages: Sequence[Stage[Any]]) -> None:
        """Runs what is left of the stages.

        Raises:
            CheckpointError: the run's state cannot be read or written.
            NumericsError: a gradient is NaN or infinite; the state before that step is not overwritten.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        place = resume_run(self.folder, self.learner, self.optimizer)
        for number in range(place.stage, len(stages)):
            self._run(stages[number], number, first=place.step if number == place.stage else 0)

    def _run(self, stage: Stage[Any], number: int, *, first: int) -> None:
        meter, began, steps = Meter(self.folder / "log.jsonl"), time.monotonic(), stage.schedule.steps
        for step, batch in enumerate(self._batches(stage, first), first):
            with self._precision():
                outcome = stage.learn(batch)
            torch.autograd.backward(outcome.loss)
            length = float(nn.utils.clip_grad_norm_(self.optimizer.parameters, self.clip))
            if not math.isfinite(length):
                raise NumericsError(
                    f"the gradient of step {step + 1} of stage {stage.name} is {length} long, so nothing is learned from it; "
                    f"the last saved state stays in {self.folder}: look at the batch of this step, or lower the rate"
                )
            self.optimizer.step(stage.schedule.rate(step))
            meter.add(outcome.parts, outcome.right)
            done = step + 1
            if done % self.log_every == 0 or done == steps:
                speed = stage.samples * (done - first) / (time.monotonic() - began)
                line = meter.flush(stage=stage.name, step=done, samples_per_second=round(speed, 1))
                if self.report is not None:
                    self.report(line)
            if done % self.save_every == 0 or done == steps:
                place = Place(number, done) if done < steps else Place(number + 1)
                save_run(self.folder, self.learner, self.optimizer, place)

    def _batches(self, stage: Stage[Any], first: int) -> DataLoader[Any]:
        # A generator of its own: the loader would draw from the one that the run goes on with.
        return DataLoader(
            stage.batches,
            batch_size=None,
            sampler=range(first, stage.schedule.steps),
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            generator=torch.Generator(),
        )

    def _precision(self) -> torch.autocast:
        device = self.optimizer.parameters[0].device.type
        return torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None)
