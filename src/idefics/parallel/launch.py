"""The processes that compute one model together: who they are, as `torchrun` tells them, and what they must agree on."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from typing import Self

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from idefics.errors import OptionError
from idefics.model.arrangement import Arrangement
from idefics.model.base import VisionLanguageModel
from idefics.weights.placement import Device

__all__ = ["Divided", "agreed_least", "agreed_seed", "init", "leave"]


@dataclass(frozen=True, kw_only=True)
class Divided(Arrangement):
    """Every layer is divided over processes.

    Attributes:
        mesh: those processes.
    """

    mesh: DeviceMesh

    @classmethod
    def over(cls, mesh: DeviceMesh) -> Self:
        """What a model is that is divided over these processes."""
        return cls(
            kind="divided",
            cannot=frozenset({"saved", "packed", "divided"}),
            remedy=f"each of {mesh.size()} processes holds a part; load it whole",
            processes=mesh.size(),
            mesh=mesh,
        )


def init(n: int, *, device: Device | None = None) -> DeviceMesh:
    """Meets the other processes that `torchrun` started; a second call meets the same ones again.

    The processes part at exit, after errors too; `leave` does it earlier.

    Args:
        n: processes, all of one model.
        device: `"cpu"` (over gloo) or `"cuda"` (over nccl, each process on the GPU of its local rank); None takes GPUs if
            there are any.

    Raises:
        OptionError: this process was started alone or among another number, or a process cannot have its device.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise OptionError(f"tensor_parallel = {n!r}; a model is divided over 1 process or more")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise OptionError(
            f"tensor_parallel = {n} needs {n} process(es) that know of each other, and this one was started alone; start it "
            f"with: torchrun --nproc-per-node {n} -m idefics generate --tensor-parallel {n} ..."
        )
    started = int(os.environ["WORLD_SIZE"])
    if started != n:
        raise OptionError(
            f"tensor_parallel = {n}, but torchrun started {started} process(es); give it --nproc-per-node {n}, or ask for "
            f"tensor_parallel = {started}"
        )
    place = _own_device(device)
    if not distributed.is_initialized():
        if place.type == "cuda":
            torch.cuda.set_device(place)
            distributed.init_process_group("nccl", device_id=place)
        else:
            distributed.init_process_group("gloo")
        atexit.register(leave)
    return init_device_mesh(place.type, (n,), mesh_dim_names=("tensor",))


def leave() -> None:
    """Parts from the other processes; nothing if there are none."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def agreed_least(model: VisionLanguageModel, number: int) -> int:
    """The least of the numbers that the processes which compute this model bring; `number` where one computes it alone."""
    mesh = _mesh(model)
    if mesh is None:
        return number
    least = torch.tensor([number], device=mesh.device_type)
    distributed.all_reduce(least, op=distributed.ReduceOp.MIN, group=mesh.get_group())
    return int(least)


def agreed_seed(model: VisionLanguageModel) -> int:
    """A seed from torch's global generator, the first process's in all that compute this model: they must draw alike."""
    mesh = _mesh(model)
    seed = torch.randint(2**62, (1,), device="cpu")  # whatever the default device
    if mesh is None:
        return int(seed)
    seed = seed.to(mesh.device_type)
    distributed.broadcast(seed, group=mesh.get_group(), group_src=0)
    return int(seed)


def _mesh(model: VisionLanguageModel) -> DeviceMesh | None:
    """The processes that a model is divided over; None where it is whole."""
    return next((done.mesh for done in model.arrangements if isinstance(done, Divided)), None)


def _own_device(device: Device | None) -> torch.device:
    kind = str(device) if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cpu", "cuda"):
        raise OptionError(
            f"device = {device} and tensor_parallel contradict each other: each process takes the GPU of its local rank; "
            "give cpu, cuda or nothing"
        )
    if kind == "cpu":
        return torch.device("cpu")
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= there:
        raise OptionError(f"there is no GPU for process {local + 1} of this machine, which has {there}; start {there} or fewer")
    return torch.device("cuda", local)
