"""Work that can be killed: a few warm processes that do one task at a time, each within a time and a memory.

What strangers send is worked on here where a library may take for ever, or gigabytes, over a few bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from idefics.server.errors import Closing
from idefics.server.processes.child import LEAVING, Child
from idefics.server.processes.crew import Crew
from idefics.server.processes.messages import receive, send, sendable

__all__ = ["Killed", "Pool"]

log = logging.getLogger(__name__)
Task = TypeVar("Task")
Reply = TypeVar("Reply")
Reason = Literal["processor", "time", "memory", "left", "crash"]

STARTING = 60.0  # seconds in which a process must have begun, on a machine that does much else
LEFT = 0.2  # seconds that a task has to end in once nobody waits for it: most do, and a new process costs as much
SPARE = 5.0  # seconds after its time is over in which this process should have ended a task; else its own alarm does
FAILURES = 3  # starts in a row that fail, after which the work counts as impossible
# One thread each, and one heap for it: the processes are the threads, and reserves for more count as memory.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}


class Killed(Exception):
    """A task was ended before it was done.

    Attributes:
        reason: its processor time was over, or its time, it needed more memory, nobody waited for it any more, or its process
            ended by itself.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Pool(Generic[Task, Reply]):
    """A few processes of one kind. They begin when they are first needed, or with `warm`, and are replaced when killed.

    Args:
        role: what they are called.
        make: called in each of them once; returns what does a task. A function of a module, or a `partial` of one.
        size: processes at most.
        seconds: that a task may take at most.
        memory: bytes that a task may take on top of what an idle process has. (Where the system does not bound memory
            by process, as macOS, only the time is bounded.)
        killed: told why whenever one is killed, in any thread.
    """

    def __init__(
        self,
        role: str,
        make: Callable[[], Callable[[Task], Reply]],
        *,
        size: int,
        seconds: float,
        memory: int,
        killed: Callable[[Reason], None] = lambda _reason: None,
    ) -> None:
        self._seconds = seconds
        self._killed = killed
        self._begin = partial(Child, role, partial(_serve, make, memory), _ENVIRONMENT)
        self._crew = Crew(size, role)
        self._idle: list[_Slot] = [_Slot() for _ in range(size)]  # the last one is taken first: few are few processes
        self._slots = tuple(self._idle)
        self._failures = 0
        self._closed = False

    async def run(self, task: Task, *, seconds: float, processor: float = 0.0) -> Reply:
        """Does a task in the first process that is free.

        Args:
            task: sent there.
            seconds: that it may take, from when it is begun.
            processor: seconds of processor time that it may take, which do not depend on what else the machine does;
                0: any.

        Raises:
            Killed: it took longer, or more memory, or crashed.
            Closing: no process can be had.
            Exception: what the task raised.
        """
        loop, job = asyncio.get_running_loop(), _Job(seconds, processor)

        def left() -> None:
            loop.call_later(LEFT, job.kill, "left")

        return await self._crew.do(partial(self._do, job, task), left=left)

    def warm(self) -> None:
        """Begins all processes; does not wait for them."""
        for slot in self._slots:
            if slot.child is None:
                with contextlib.suppress(OSError):  # the first task tells
                    slot.child = self._begin()

    @property
    def healthy(self) -> bool:
        """Whether tasks can be done: processes can be had, and come back."""
        return self._failures < FAILURES and not self._crew.busy_for(self._seconds + LEAVING + SPARE)

    @property
    def processes(self) -> int:
        """How many there are."""
        return sum(slot.child is not None and slot.child.alive for slot in self._slots)

    def close(self) -> None:
        """Ends all processes, in the middle of what they do."""
        self._closed = True
        for slot in self._slots:
            if slot.child is not None:
                slot.child.kill()
        self._crew.close()
        for slot in self._slots:
            if slot.child is not None:
                slot.child.code()

    def _do(self, job: _Job, task: Task) -> Reply:
        """In a thread of the pool: gives a task to a process and waits for it."""
        slot = self._idle.pop()
        try:
            reply: Reply = self._asked(slot, job, task)
            return reply
        except Killed:
            if self._closed:
                raise Closing("the server is stopping") from None
            raise
        finally:
            self._idle.append(slot)

    def _asked(self, slot: _Slot, job: _Job, task: Task) -> Any:
        child = self._ready(slot)
        job.begin(child)
        try:
            send(child.pipe, (job.seconds + SPARE, job.processor, task))
            if not child.pipe.poll(job.seconds):
                job.kill("time")
            kind, said = receive(child.pipe)
        except (EOFError, OSError):
            raise self._ended(slot, child, job.killed_by) from None
        except BaseException:  # memory that ends, say: what is left of the reply must not be read as the next one
            self._ended(slot, child, job.killed_by or "crash")
            raise
        if not job.end():  # ended in the very moment in which it was done
            raise self._ended(slot, child, job.killed_by)
        if kind in ("memory", "crash"):
            raise self._ended(slot, child, kind)
        if kind == "raised":
            raise said
        return said

    def _ready(self, slot: _Slot) -> Child:
        """The slot's process, once it has begun."""
        if slot.child is not None and slot.ready and slot.child.alive:
            return slot.child
        if slot.child is None or slot.ready or not slot.child.alive:
            self._begin_in(slot)
        child = slot.child
        assert child is not None
        try:
            said = receive(child.pipe) if child.pipe.poll(STARTING) else TimeoutError(f"nothing came in {STARTING:g} s")
        except (EOFError, OSError):
            said = EOFError(f"it ended (exit code {child.code()})")
        if said is not None:
            child.kill()
            child.code()
            slot.child = None
            raise self._impossible(said)
        slot.ready, self._failures = True, 0
        return child

    def _begin_in(self, slot: _Slot) -> None:
        slot.child, slot.ready = None, False
        try:
            slot.child = self._begin()
        except OSError as error:
            raise self._impossible(error) from None
        if self._closed:  # looked at last: `close` ends all that it finds, and may have looked before
            slot.child.kill()
            slot.child.code()
            raise Closing("the server is stopping")

    def _impossible(self, error: BaseException) -> Closing:
        self._failures += 1
        log.error("a process for requests' content could not begin", exc_info=error)
        return Closing("the server has no process to read this in; try again later")

    def _ended(self, slot: _Slot, child: Child, reason: Reason | None) -> Killed:
        """Why a process ended, which may not be quite over; another one begins."""
        child.kill()
        code = child.code()
        killed = Killed(reason or _REASONS.get(code, "crash"))
        if not self._closed:
            self._killed(killed.reason)
            with contextlib.suppress(Closing):
                self._begin_in(slot)
        return killed


# A memory that cannot be had aborts what is not Python; a system that has none left kills.
_REASONS: dict[int | None, Reason] = {
    -signal.SIGPROF: "processor",
    -signal.SIGALRM: "time",
    -signal.SIGABRT: "memory",
    -signal.SIGKILL: "memory",
}


class _Slot:
    """A place for a process, which begins when it is needed."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.ready = False


class _Job:
    """A task on its way, which any thread may end.

    Attributes:
        seconds: that it may take.
        processor: seconds of processor time likewise; 0: any.
        killed_by: why it was ended, if it was.
    """

    def __init__(self, seconds: float, processor: float) -> None:
        self.seconds = seconds
        self.processor = processor
        self.killed_by: Reason | None = None
        self._child: Child | None = None
        self._over = False
        self._lock = threading.Lock()

    def begin(self, child: Child) -> None:
        """From here on the process is the task's.

        Raises:
            Killed: it was ended before.
        """
        with self._lock:
            if self.killed_by is not None:
                raise Killed(self.killed_by)
            self._child = child

    def end(self) -> bool:
        """From here on the process is not the task's any more; False if it has been killed."""
        with self._lock:
            self._over = True
            return self.killed_by is None

    def kill(self, reason: Reason) -> None:
        """Ends it, if it is not over."""
        with self._lock:
            if self._over or self.killed_by is not None:
                return
            self.killed_by = reason
            if self._child is not None:
                self._child.kill()


_ALARMS = {signal.ITIMER_REAL: signal.SIGALRM, signal.ITIMER_PROF: signal.SIGPROF}


def _serve(make: Callable[[], Callable[[Any], Any]], memory: int, pipe: Connection) -> None:
    """What a process of the pool does."""
    try:
        with Path(os.devnull).open("w") as nothing:
            for stream in (1, 2):  # where C libraries complain of what strangers send; logs have a form
                os.dup2(nothing.fileno(), stream)
        for alarm in _ALARMS.values():
            signal.signal(alarm, signal.SIG_DFL)  # whatever the program that this server is part of makes of it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALARMS.values())
        work = make()
        _bound(memory)
    except BaseException as error:
        send(pipe, sendable(error))
        return
    send(pipe, None)
    with contextlib.suppress(EOFError, OSError):  # the server is no more
        while True:
            seconds, processor, task = receive(pipe)
            # Not Python's to handle: they end a process that never comes back to Python, and has lost its server besides.
            signal.setitimer(signal.ITIMER_REAL, seconds)
            signal.setitimer(signal.ITIMER_PROF, processor)
            try:
                said: tuple[str, Any] = ("done", work(task))
            except MemoryError:
                said = ("memory", None)
            except Exception as error:  # whatever it is, it is the task's, and told to whoever gave it
                said = ("raised", sendable(error))
            except BaseException:  # an exit, which would be the server's, or a library's panic: nothing more is sure here
                said = ("crash", None)
            del task
            for clock in _ALARMS:
                signal.setitimer(clock, 0)
            send(pipe, said)
            del said


def _bound(memory: int) -> None:
    """Bounds this process's memory to what it has and so much more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
