"""The engine in a process of its own: what it is told and tells, and how each of the two ends with the other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
import torch
from PIL import Image

from fake_server import FakeServer, fake_engine, fake_server
from fakes import tiny_processor
from idefics.engine.sampling_params import SamplingParams
from idefics.errors import IdeficsError, ImageCountError, InputError, OptionError
from idefics.inputs import Levels, ModelInputs, image_digest
from idefics.server.link.engine_process import EngineProcess
from idefics.server.link.worker import Add
from idefics.server.prepare.grammars import Grammar
from idefics.server.processes.messages import receive, send
from serving import wait_until

BODY: dict[str, Any] = {"inputs": "a", "parameters": {"max_new_tokens": 400}}


class Asking:
    """A request in the engine, whose answer a thread waits for."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self._told: httpx.Response | None = None
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()
        wait_until(lambda: "tgi_batch_current_size 1.0" in httpx.get(f"{server.address}/metrics").text)

    def _ask(self) -> None:
        with contextlib.suppress(httpx.TransportError):
            self._told = httpx.post(f"{self._server.address}/generate", json=BODY, timeout=60)

    def told(self) -> httpx.Response:
        self._thread.join()
        assert self._told is not None, "the server left without a word"
        return self._told


def engines_of(server: FakeServer) -> list[int]:
    """Processes of the server's that are engines."""
    listed = subprocess.run(
        ["pgrep", "-P", str(server.process.pid), "-f", "idefics-engine"], capture_output=True, text=True
    ).stdout
    return [int(pid) for pid in listed.split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def passed(message: object) -> Any:
    """What comes out at the other end of a pipe."""
    here, there = Pipe()
    with here, there:
        threading.Thread(target=send, args=(here, message), daemon=True).start()
        return receive(there)


def test_a_command_arrives_as_it_was_sent() -> None:
    processor = tiny_processor()
    inputs = processor.inputs(["<image>the red"], [[Image.effect_noise((50, 30), 90).convert("RGB")]])
    digest = image_digest(inputs.images_CHW[0])
    sent = Add(
        number=3,
        request_id="r",
        inputs=inputs,
        params=SamplingParams(max_new_tokens=4, n=2, seed=1, do_sample=True),
        stop=("a",),
        inside=True,
        grammar=Grammar("regex", "a*"),
        deadline=1.5,
    )
    come = passed(sent)
    for field in fields(Add):
        if field.name != "inputs":
            assert getattr(come, field.name) == getattr(sent, field.name)
    assert isinstance(come.inputs, ModelInputs)
    for name in ("input_ids_BT", "attention_mask_BT"):
        torch.testing.assert_close(getattr(come.inputs, name), getattr(inputs, name), rtol=0, atol=0)
    image = come.inputs.images_CHW[0]
    assert isinstance(image, Levels)
    assert "digest" in vars(image), "made before it is sent, or the engine would make it between two steps"
    assert image_digest(image) == digest
    assert image_digest(Levels(levels_CHW=image.levels_CHW, values_CG=image.values_CG)) == digest


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3), (300, 400)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.bool, torch.uint8], ids=str)
def test_tensors_are_sent_as_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    given = (torch.rand(shape) * 100).to(dtype)
    come = passed({"a": given, "b": [given.T if given.dim() == 2 else given]})
    torch.testing.assert_close(come["a"], given, rtol=0, atol=0)
    torch.testing.assert_close(come["b"][0], given.T if given.dim() == 2 else given, rtol=0, atol=0)
    come["a"].zero_()  # it may be written to


def raises(error: Callable[[], BaseException]) -> NoReturn:
    raise error()


def odd() -> BaseException:
    return ImageCountError(placeholders=1, images=2, where="it")  # takes no positional argument


def closed_over() -> BaseException:
    error = ValueError("a bug")
    error.value = lambda: 0  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (partial(raises, partial(InputError, "no such file")), InputError, "^no such file$"),
        (partial(raises, odd), IdeficsError, "^it has 1 image placeholder"),
        (partial(raises, closed_over), RuntimeError, "^ValueError: a bug"),
        (partial(raises, partial(SystemExit, 7)), SystemExit, "7"),
        (partial(os._exit, 9), IdeficsError, r"ended while it loaded the model \(exit code 9\)"),
    ],
    ids=["typed", "not to be made from its text", "not to be sent", "an exit", "no word"],
)
def test_what_loading_raises_is_raised(make: Callable[[], Any], kind: type[BaseException], said: str) -> None:
    with pytest.raises(kind, match=said):
        EngineProcess(make)


def test_a_function_of_the_program_that_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(odd, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "odd", odd, raising=False)
    with pytest.raises(OptionError, match="put it into a module of its own"):
        EngineProcess(odd)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="put it into a module of its own"):
        EngineProcess(partial(fake_engine, odd=odd))


def test_a_process_that_was_never_used_ends() -> None:
    engine = EngineProcess(partial(fake_engine, {}))
    assert engine.model.name == "tiny"
    assert engine.alive
    engine.kill()
    assert not engine.alive


def test_a_program_that_never_uses_its_engine_can_end() -> None:
    said = (
        "from functools import partial",
        "from fake_server import fake_engine",
        "from idefics.server.link.engine_process import EngineProcess",
        "if __name__ == '__main__':",
        "    engine = EngineProcess(partial(fake_engine, {}))",
    )
    path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([sys.executable, "-c", "\n".join(said)], check=True, timeout=60, env={**os.environ, "PYTHONPATH": path})


def test_a_server_whose_engine_is_killed_ends_in_error() -> None:
    with fake_server(step_seconds=0.05, words=100) as server:
        asking = Asking(server)
        (engine,) = engines_of(server)
        os.kill(engine, signal.SIGKILL)
        assert asking.told().status_code == 503
        assert asking.told().json()["error_type"] == "unavailable"
        assert server.process.wait(60) == 1
        critical = [line["message"] for line in server.log() if line["level"] == "critical"]
        ended = "the engine's process ended (exit code -9)"
        assert critical == [ended, f"the server stops and must be started again: {ended}"]


@pytest.mark.parametrize("engine", [{}, {"held": True}], ids=["idle", "in a step"])
def test_an_engine_whose_server_is_killed_ends(engine: dict[str, Any]) -> None:
    with fake_server(**engine) as server:
        if engine:
            Asking(server)
        (pid,) = engines_of(server)
        server.process.kill()
        wait_until(lambda: gone(pid))


def test_what_is_sent_to_all_processes_of_a_service_ends_the_server_alone() -> None:
    with fake_server(step_seconds=0.05, words=20) as server:
        asking = Asking(server)
        (engine,) = engines_of(server)
        for kind in (signal.SIGINT, signal.SIGTERM):
            os.kill(engine, kind)
        server.process.send_signal(signal.SIGTERM)
        assert asking.told().status_code == 200, "running requests may end"
        assert server.process.wait(60) == 0
        assert gone(engine)


def test_an_engine_that_is_stopped_while_it_is_idle_is_noticed() -> None:
    with fake_server(limits={"stuck_after": 1.0, "deadline": 60.0}) as server, httpx.Client() as client:

        def health() -> int:
            return client.get(f"{server.address}/health", timeout=5).status_code

        (engine,) = engines_of(server)
        for _ in range(15):
            assert health() == 200, "an idle engine says that it is there"
            time.sleep(0.2)
        os.kill(engine, signal.SIGSTOP)
        began = time.monotonic()
        wait_until(lambda: health() == 503, seconds=10)
        assert time.monotonic() < began + 4
        os.kill(engine, signal.SIGCONT)
        wait_until(lambda: health() == 200)


def test_a_stopped_engine_is_stuck_and_leaves_with_the_server() -> None:
    with fake_server(limits={"stuck_after": 0.3, "deadline": 1.0}) as server, httpx.Client() as client:
        (engine,) = engines_of(server)
        os.kill(engine, signal.SIGSTOP)
        refused = client.post(f"{server.address}/generate", json={"inputs": "a" * 100_000}, timeout=30)
        assert refused.status_code in (422, 503, 504)
        client.post(f"{server.address}/generate", json=BODY, timeout=30)
        assert server.process.wait(60) == 1
        assert gone(engine)
