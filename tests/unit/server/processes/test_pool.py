"""What is done in processes of a pool ends: in time, within a memory, or with whoever waits for it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pool_work
from idefics.errors import InputError
from idefics.server.errors import Closing
from idefics.server.processes import pool as pool_module
from idefics.server.processes.child import Child
from idefics.server.processes.crew import Crew
from idefics.server.processes.pool import Killed, Pool
from idefics.server.processes.turns import Turns
from serving import wait_until

KILLED: list[str] = []


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool[Any, Any]]:
    made: Pool[Any, Any] = Pool("test", pool_work.made, size=1, seconds=60, memory=2**27, killed=KILLED.append)
    yield made
    made.close()


def run(pool: Pool[Any, Any], kind: str, given: object = None, *, seconds: float = 60.0) -> Any:
    return asyncio.run(pool.run((kind, given), seconds=seconds))


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_tasks_are_done_in_one_warm_process(pool: Pool[Any, Any]) -> None:
    first = run(pool, "who")
    assert first == run(pool, "who") != os.getpid()
    for given in (b"x" * 3_000_000, np.zeros((3, 400, 500), np.uint8), "text"):
        assert np.array_equal(run(pool, "echo", given), given)
    with pytest.raises(InputError, match=r"^no such thing$"):
        run(pool, "refuse")
    assert run(pool, "who") == first
    assert pool.processes == 1


@pytest.mark.parametrize(
    ("kind", "given", "reason"),
    [
        ("sleep", None, "time"),
        ("hold the interpreter", None, "time"),
        ("bytes", 2**28, "memory"),
        ("abort", None, "memory"),
        ("crash", None, "crash"),
        ("exit", None, "crash"),
    ],
)
def test_what_does_not_end_well_is_killed_and_replaced(pool: Pool[Any, Any], kind: str, given: Any, reason: str) -> None:
    before, began = run(pool, "who"), time.monotonic()
    KILLED.clear()
    with pytest.raises(Killed) as killed:
        run(pool, kind, given, seconds=0.2 if reason == "time" else 60)
    assert time.monotonic() - began < 20
    assert killed.value.reason == reason
    assert [reason] == KILLED
    assert gone(before)
    assert run(pool, "who") != before
    assert run(pool, "bytes", 2**25) == 2**25
    assert pool.healthy


def test_processor_time_is_what_a_task_takes_of_it(pool: Pool[Any, Any]) -> None:
    for kind, reason, seconds in (("hold the interpreter", "processor", 60.0), ("sleep", "time", 0.6)):
        before = run(pool, "who")
        with pytest.raises(Killed) as killed:
            asyncio.run(pool.run((kind, None), seconds=seconds, processor=0.1))
        assert killed.value.reason == reason
        assert gone(before)
    with pytest.raises(Killed):  # what was left of one task's time is not the next one's
        asyncio.run(pool.run(("hold the interpreter", None), seconds=60, processor=0.1))


async def left(work: Coroutine[Any, Any, Any], after: float) -> None:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_what_nobody_waits_for_is_killed(pool: Pool[Any, Any]) -> None:
    async def go() -> tuple[int, int]:
        before = await pool.run(("who", None), seconds=60)
        await left(pool.run(("sleep", None), seconds=60), after=0.1)
        return before, await asyncio.wait_for(pool.run(("who", None), seconds=60), 20)

    KILLED.clear()
    before, after = asyncio.run(go())
    assert before != after
    assert KILLED == ["left"]


def test_what_ends_soon_is_not_killed_though_nobody_waits(pool: Pool[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> tuple[int, int]:
        before = await pool.run(("who", None), seconds=60)
        for _ in range(5):
            await left(pool.run(("echo", b"x" * 1_000_000), seconds=60), after=0)
        return before, await pool.run(("who", None), seconds=60)

    monkeypatch.setattr(pool_module, "LEFT", 5.0)
    before, after = asyncio.run(go())
    assert before == after


def test_a_process_that_was_killed_from_outside_is_replaced(pool: Pool[Any, Any]) -> None:
    before = run(pool, "who")
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: gone(before))
    assert run(pool, "who") != before


def test_what_was_left_before_it_began_has_cost_no_process(pool: Pool[Any, Any]) -> None:
    async def go() -> tuple[int, int]:
        before = await pool.run(("who", None), seconds=60)
        waiting = threading.Event()
        pool._ready, ready = (lambda slot: (waiting.wait(20), ready(slot))[1]), pool._ready  # type: ignore[method-assign]
        try:
            task = asyncio.ensure_future(pool.run(("sleep", None), seconds=60))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(2 * pool_module.LEFT)
        finally:
            waiting.set()
            pool._ready = ready  # type: ignore[method-assign]
        return before, await pool.run(("who", None), seconds=60)

    KILLED.clear()
    before, after = asyncio.run(go())
    assert before == after
    assert KILLED == []


def test_a_reply_that_was_read_in_part_is_not_read_on(pool: Pool[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def partly(pipe: Connection) -> Any:
        pipe.recv_bytes()
        raise MemoryError

    before = run(pool, "who")
    with monkeypatch.context() as patched:
        patched.setattr(pool_module, "receive", partly)
        with pytest.raises(MemoryError):
            run(pool, "echo", b"x" * 100)
    assert gone(before)
    assert run(pool, "who") != before


def test_a_process_that_begins_while_the_pool_closes_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Pool[Any, Any] = Pool("test", pool_work.made, size=1, seconds=60, memory=2**27)
    began: list[Child] = []
    begin = made._begin

    def begin_late() -> Child:
        if began:
            made.close()
        began.append(begin())
        return began[-1]

    monkeypatch.setattr(made, "_begin", begin_late)
    with pytest.raises(Closing):
        run(made, "crash")
    assert [child.alive for child in began] == [False, False]


def test_work_that_was_not_begun_when_its_threads_left_is_refused() -> None:
    crew, held = Crew(1, "test"), threading.Event()

    async def go() -> None:
        first = asyncio.ensure_future(crew.do(held.wait))
        await asyncio.sleep(0)
        crew._turns.give()  # as a thread does whose work is done, before it looks for more
        second = asyncio.ensure_future(crew.do(int))
        await asyncio.sleep(0)
        crew.close()
        with pytest.raises(Closing):
            await second
        held.set()
        await first

    asyncio.run(go())


def test_logs_hold_no_lines_of_strangers(pool: Pool[Any, Any], capfd: pytest.CaptureFixture[str]) -> None:
    run(pool, "complain")
    assert capfd.readouterr() == ("", "")


def test_work_that_cannot_begin_is_unhealthy() -> None:
    made: Pool[Any, Any] = Pool("test", pool_work.broken, size=2, seconds=1, memory=2**27)
    try:
        for _ in range(pool_module.FAILURES):
            assert made.healthy
            with pytest.raises(Closing, match="no process to read this in"):
                run(made, "who")
        assert not made.healthy
    finally:
        made.close()


def test_processes_that_do_not_come_back_are_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Pool[Any, Any] = Pool("test", pool_work.made, size=1, seconds=0.1, memory=2**27)
    monkeypatch.setattr(pool_module, "LEAVING", -4.9)

    async def go() -> None:
        await made.run(("who", None), seconds=60)
        waiting = asyncio.ensure_future(made.run(("sleep", None), seconds=60))
        await asyncio.sleep(0.1)
        assert made.healthy
        await asyncio.sleep(0.4)
        assert not made.healthy
        made.close()
        with pytest.raises(Closing):
            await waiting
        with pytest.raises(Closing):
            await made.run(("who", None), seconds=60)

    asyncio.run(go())
    assert made.processes == 0


def test_a_busy_process_ends_though_its_server_was_killed() -> None:
    program = (
        "import asyncio, os, signal, pool_work",
        "from idefics.server.processes import pool",
        "pool.SPARE = 0.1",
        "signal.signal(signal.SIGALRM, signal.SIG_IGN)",  # which the processes that it begins inherit
        "made = pool.Pool('orphan', pool_work.made, size=1, seconds=1, memory=2**27)",
        "async def go():",
        "    print(await made.run(('who', None), seconds=60), flush=True)",
        "    asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGKILL)",
        "    await made.run(('hold the interpreter', None), seconds=0.5)",
        "asyncio.run(go())",  # at the top: what begins a process must not run this program once more
    )
    paths = os.pathsep.join([str(Path(pool_work.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    wait_until(lambda: gone(int(ended.stdout)), seconds=20)


def test_places_go_round_in_order_whoever_leaves() -> None:
    turns, order = Turns(1), []

    async def one(number: int) -> None:
        await turns.take()
        order.append(number)
        await asyncio.sleep(0)
        turns.give()

    async def go() -> None:
        await turns.take()
        tasks = [asyncio.ensure_future(one(number)) for number in range(6)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        turns.give()
        tasks[0].cancel()  # whose turn it is
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(turns.take(), 5)
        turns.give()

    asyncio.run(go())
    assert order == [2, 4, 5]
    asyncio.run(asyncio.wait_for(turns.take(), 5))  # in another event loop
