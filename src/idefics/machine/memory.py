"""How much memory there is, and its end told as what to do about it."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from idefics.errors import OutOfMemory
from idefics.machine.byte_sizes import readable_bytes

__all__ = ["Promised", "explain_out_of_memory", "free_bytes", "let_go", "promise", "promised_bytes", "require_free_bytes"]

# torch raises plain RuntimeErrors where the CPU's memory ends.
_SIGNS = ("out of memory", "not enough memory", "allocate memory", "bad allocation", "std::bad_alloc")


@contextmanager
def explain_out_of_memory(doing: str, *, reduce: str) -> Iterator[None]:
    """Turns every way in which torch and Python run out of memory into `OutOfMemory`.

    Args:
        doing: what was going on, with its size, e.g. `"loading x as float32 (33.6 GiB)"`.
        reduce: what the user can do.

    Raises:
        OutOfMemory: with both, and the first line of what the machine said.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        said = str(error)
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(sign in said.lower() for sign in _SIGNS):
            raise
        said = f" ({said.splitlines()[0]})" if said else ""
        raise OutOfMemory(f"out of memory while {doing}{said}; {reduce}") from error


def free_bytes(device: torch.device, *, swap: bool = False) -> int | None:
    """Bytes that can still be allocated on a device; None where the machine does not tell.

    On Linux's CPU: what the kernel says is available, within the limit of the control group, without what weights of this
    process that wait to be packed will take. Where /proc/meminfo is hidden, as in some sandboxes, pages that nothing uses at
    all.

    Args:
        device: where.
        swap: whether the CPU's swap counts: as a way to hold what somebody insists on, not as room for what is read again and
            again, such as a cache.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept  # torch holds on to what was freed, and gives it out first
    if device.type != "cpu":
        return None
    told = (_available(Path("/proc/meminfo"), swap=swap), _group_limit(Path("/sys/fs/cgroup")))
    free = min((found for found in told if found is not None), default=None)
    return None if free is None else max(0, free - promised_bytes())


class Promised(Protocol):
    """Something that will take memory later, and that nobody else may be given until then."""

    @property
    def missing(self) -> int:
        """Bytes that it still will take."""
        ...


_PROMISED: WeakSet[Promised] = WeakSet()
_COUNTING = threading.Lock()


def promise(later: Promised) -> None:
    """Keeps memory for it out of what `free_bytes` tells, for as long as it lives."""
    with _COUNTING:
        _PROMISED.add(later)


def promised_bytes() -> int:
    """Bytes of memory that are spoken for in this process."""
    with _COUNTING:
        promised = list(_PROMISED)
    return sum(later.missing for later in promised)


def _available(meminfo: Path, *, swap: bool) -> int | None:
    try:
        lines = (line.split() for line in meminfo.read_text(encoding="ascii").splitlines())
        kilobytes = {line[0]: int(line[1]) for line in lines}
        return 1024 * (kilobytes["MemAvailable:"] + (kilobytes.get("SwapFree:", 0) if swap else 0))
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not this kind of system
        return None


def _group_limit(group: Path) -> int | None:
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0)))
    except (OSError, ValueError):
        return None  # no limit ("max"), or not this kind of control group


def let_go(mapped: Tensor) -> None:
    """Gives the memory of a contiguous view of a mapped file back, whole pages of it; reading it again would read the file.

    What was written to it is lost. Systems that know no such request keep the pages until the file is unmapped.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None or sys.platform != "linux":
        return
    start = -(-mapped.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (mapped.data_ptr() + mapped.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if size > 0:
        ctypes.CDLL(None, use_errno=True).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)


def require_free_bytes(needed: int, doing: str, *, reduce: str) -> None:
    """Refuses up front what the CPU's memory and swap cannot hold: a system that overcommits kills the process instead.

    Raises:
        OutOfMemory: with what is needed and what there is.
    """
    free = free_bytes(torch.device("cpu"), swap=True)
    if free is not None and needed > free:
        raise OutOfMemory(f"{doing} needs {readable_bytes(needed)} of memory, {readable_bytes(free)} are free; {reduce}")
