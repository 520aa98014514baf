"""Applications on a socket of this machine, for tests that want a real client, and images to fetch."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image

import idefics
from fake_engine import FakeEngine
from fakes import generation_defaults, tiny_config, tiny_processor
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits
from idefics.server.app import create_app
from idefics.server.images.addresses import AddressRule
from idefics.server.images.decoders import Decoders
from idefics.server.limits import ServerLimits
from idefics.server.link.engine_thread import EngineThread
from idefics.server.model import ServedModel


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The application's address while it is served from a thread."""
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive(), seconds=30)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive(), "the server does not stop"


def wait_until(holds: Callable[[], bool], *, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came about"
        time.sleep(0.005)


def fake_app(
    engine: FakeEngine, *, limits: ServerLimits | None = None, private: bool = True, chats: bool = True, **options: Any
) -> Any:
    """The application over a fake engine and the tiny processor; without chats that of a base model."""
    model = tiny_model(chats=chats)
    link = EngineThread(engine, model.processor.tokenizer)
    options = {"decoders": shared_decoders(), **options}
    return create_app(model, link, limits=limits, images=AddressRule(private=private), **options)


def tiny_model(*, chats: bool = True) -> ServedModel:
    processor = tiny_processor(end_of_utterance=chats)
    return ServedModel(
        name="tiny",
        config=tiny_config(end_of_utterance=chats),
        processor=processor,
        defaults=generation_defaults(processor),
        positions=512,
        longest_image=72,
        dtype="float32",
        device="cpu",
    )


def embedded_engine(limits: Limits, dtype: str | None = None) -> tuple[ServedModel, Engine]:
    """What the process of an `EngineProcess` makes."""
    model = idefics.load(dtype=dtype)
    return ServedModel.of(model), Engine(model.model, limits)


@functools.cache
def shared_decoders() -> Decoders:
    """Processes that decode images for all tests of a process, as each begins in a quarter of a second."""
    return Decoders(ServerLimits())


def script(text: str = " the red image") -> list[int]:
    """Ids that the tiny tokenizer decodes to a text."""
    return tiny_processor().tokenizer.encode(text.removeprefix(" "), add_special_tokens=False)


def png(width: int = 40, height: int = 30, color: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), color).save(out, "PNG")
    return out.getvalue()


def data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine and its key, made in a folder; skips the test where nothing can make one."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate for this test, is not here")
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subject = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*made, *subject], check=True, capture_output=True)
    return cert, key


Reply = tuple[int, dict[str, str], bytes]


@contextmanager
def image_host(replies: dict[str, Reply | float]) -> Iterator[str]:
    """A host of images: path to reply; a number is a reply that takes so many seconds to begin."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply = replies.get(self.path, (404, {}, b""))
            if isinstance(reply, float):
                time.sleep(reply)
                reply = (200, {}, png())
            status, headers, body = reply
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # the client has had enough

        def log_message(self, *arguments: Any) -> None:
            del arguments

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
