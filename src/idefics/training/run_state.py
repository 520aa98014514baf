"""A run on disk: everything that its next step depends on, so that a run that was killed goes on as if it had not been."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from idefics.errors import CheckpointError
from idefics.training.optimizer import SplitOptimizer

__all__ = ["Place", "resume_run", "save_run"]

_NAME = "resume.pt"


@dataclass(frozen=True)
class Place:
    """Where a run stands: `step` steps of stage number `stage` are done, and all stages before it."""

    stage: int = 0
    step: int = 0


def save_run(folder: Path, learner: nn.Module, optimizer: SplitOptimizer, place: Place) -> None:
    """Writes a run's state; whoever is killed meanwhile leaves the state that was there before.

    Args:
        folder: of the run.
        learner: everything that is trained.
        optimizer: trains it.
        place: what is done.

    Raises:
        CheckpointError: it cannot be written, as on a full disk; the state that was there before stays.
    """
    on_gpus = any(parameter.is_cuda for parameter in optimizer.parameters)
    state = {
        "learner": learner.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_gpus": torch.cuda.get_rng_state_all() if on_gpus else [],
        "stage": place.stage,
        "step": place.step,
    }
    path, part = folder / _NAME, folder / f".{_NAME}.part"
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        kept = "; the state before it stays" if path.exists() else ""
        raise CheckpointError(f"the run's state cannot be saved to {path}: {error}{kept}") from error


def resume_run(folder: Path, learner: nn.Module, optimizer: SplitOptimizer) -> Place:
    """Takes up a run's state, if there is one.

    Args:
        folder: of the run.
        learner: made as it was when the run began.
        optimizer: likewise.

    Returns:
        Where to go on; the beginning where nothing was saved.

    Raises:
        CheckpointError: the file is damaged, or of another run.
    """
    path = folder / _NAME
    if not path.exists():
        return Place()
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")  # a GPU would hold everything twice
        learner.load_state_dict(saved["learner"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        torch.cuda.set_rng_state_all(saved["random_gpus"])
        return Place(stage=saved["stage"], step=saved["step"])
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is damaged, or the state of another run ({why}); remove it to begin anew, or train into another folder"
        ) from error
