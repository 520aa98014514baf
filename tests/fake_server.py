"""`run` in a process of its own, over a fake engine, for tests that stop it: `python -m fake_server OPTIONS`.

Its options are a JSON object: `limits` of the server; of the engine `words` to say, `step_seconds`, `held` and `fails`, and
whether it works in a `thread`; `files` that the server's process may open; `request_seconds` for a request to come; and for
https `tls`, the files of a certificate and its key.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any


class FakeServer:
    """A running process, where it listens, and what it logs."""

    def __init__(self, process: subprocess.Popen[str], scheme: str) -> None:
        self.process = process
        self.lines: list[str] = []
        assert process.stdout is not None
        self.port = int(process.stdout.readline())
        self.address = f"{scheme}://127.0.0.1:{self.port}"
        self._reading = threading.Thread(target=lambda: self.lines.extend(process.stderr or ()), daemon=True)
        self._reading.start()

    def log(self) -> list[dict[str, Any]]:
        """All that it logged; once it has ended."""
        self._reading.join(timeout=10)
        return [json.loads(line) for line in self.lines]


@contextmanager
def fake_server(**options: Any) -> Iterator[FakeServer]:
    command = [sys.executable, "-m", "fake_server", json.dumps(options)]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, "PYTHONPATH": path})
    server = FakeServer(process, "https" if "tls" in options else "http")
    try:
        yield server
    finally:
        process.kill()
        process.wait()
        server.log()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def fake_engine(options: dict[str, Any]) -> tuple[Any, Any]:
    """What the engine's process begins with."""
    from fake_engine import FakeEngine
    from idefics.server.logs import configure
    from serving import script, tiny_model

    configure()
    engine = FakeEngine(script("the red image " * options.get("words", 30)), step_seconds=options.get("step_seconds", 0.0))
    if options.get("held"):
        engine.hold.clear()
    if options.get("fails"):
        engine.fail_step = RuntimeError("a bug")
    return tiny_model(), engine


def main() -> None:
    from idefics.server.app import create_app
    from idefics.server.http import connections
    from idefics.server.images.addresses import AddressRule
    from idefics.server.limits import ServerLimits
    from idefics.server.link.engine_process import EngineProcess
    from idefics.server.logs import configure
    from idefics.server.run import bound, run, tls_context
    from serving import fake_app

    options = json.loads(sys.argv[1])
    if "files" in options:
        resource.setrlimit(resource.RLIMIT_NOFILE, tuple(options["files"]))
    connections.REQUEST_SECONDS = options.get("request_seconds", connections.REQUEST_SECONDS)
    tls = tls_context(*map(Path, options["tls"])) if "tls" in options else None
    configure()
    limits = ServerLimits(**options.get("limits", {}))
    if options.get("thread"):
        _, engine = fake_engine(options)
        app = fake_app(engine, limits=limits)
    else:
        from fake_server import fake_engine as importable  # not of `__main__`, which another process is not

        process = EngineProcess(partial(importable, options))
        app = create_app(process.model, process, limits=limits, images=AddressRule(private=True))
    at = bound("127.0.0.1", 0)
    raise SystemExit(run(app, at, tls=tls, listening=lambda port: print(port, flush=True)))


if __name__ == "__main__":
    main()
