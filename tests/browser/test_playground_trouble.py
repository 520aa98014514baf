"""The playground when answers take long, servers go away, keys are asked for, and requests are taken elsewhere."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from browser.chromium import Tab
from contract.conftest import Served
from fake_engine import FakeEngine
from idefics.assets import DEMO
from idefics.server.limits import ServerLimits
from serving import fake_app, png, script, serving, wait_until

LONG = script("the red image " * 30)
STATUS = "document.querySelector('#status').textContent"
COPIED = "navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }"


def ask(page: Tab, question: str) -> None:
    page.click("#text")
    page.type(question)
    page.press("Enter", ctrl=True)


@contextmanager
def cable(address: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """A way to a server that can be cut, all of it at once."""
    host, port = address.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    ends = [listener]

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                target.sendall(data)
        cut_one(target)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection((host, int(port)))
                ends.extend((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    def cut_one(end: socket.socket) -> None:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

    def cut() -> None:
        for end in ends:
            cut_one(end)
            end.close()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", cut
    finally:
        cut()


def picture(folder: Path) -> Path:
    file = folder / "red.png"
    file.write_bytes(png())
    return file


def test_an_answer_is_stopped_by_button_and_by_key(tab: Tab) -> None:
    engine = FakeEngine(LONG, step_seconds=0.03)
    with serving(fake_app(engine)) as address:
        tab.open(f"{address}/playground")
        for number, stop in enumerate((lambda: tab.click("#stop"), lambda: tab.press("Escape")), 1):
            ask(tab, "Go on")
            tab.until("document.querySelector('.assistant:last-child .text')?.textContent.length > 20")
            assert tab.run("document.querySelector('#send').disabled")
            stop()
            tab.until(f"{STATUS} === 'Stopped'")
            wait_until(lambda count=number: len(engine.cancelled) == count)
            said = tab.text(".assistant:last-child .text")
            assert said.startswith("the red image the")
            assert len(said) < 300
            assert tab.text(".assistant:last-child small") == "stopped"
        assert [m["role"] for m in tab.body("/v1/chat/completions")["messages"]] == ["user", "assistant", "user"]
        assert tab.run("document.querySelector('#stop').hidden")
        tab.click("#clear")
        assert tab.text("#turns") == ""


def test_a_server_that_is_gone_is_told(tab: Tab) -> None:
    with serving(fake_app(FakeEngine(LONG, step_seconds=0.05))) as address, cable(address) as (through, cut):
        tab.open(f"{through}/playground")
        ask(tab, "Go on")
        tab.until("document.querySelector('.assistant .text')?.textContent.length > 20")
        cut()
        tab.until("document.querySelector('.assistant .problem')")
        assert tab.text(".assistant .text").startswith("the red image"), "what came stays"
        tab.click(".assistant button")
        tab.until("document.querySelector('.assistant .problem')?.textContent.includes('cannot be reached')")
        assert tab.run(STATUS) == "Not answered"


def test_failures_of_the_model_and_crowds_are_told(tab: Tab) -> None:
    engine = FakeEngine(LONG)
    engine.fail_request = RuntimeError("broken")
    with serving(fake_app(engine)) as address:
        tab.open(f"{address}/playground")
        ask(tab, "Go on")
        tab.until("document.querySelector('.assistant .problem')")
        assert "RuntimeError" in tab.text(".assistant .problem")
        engine.fail_request = None
        tab.click(".assistant button")
        tab.until(f"{STATUS} === 'Answered'")
        assert tab.text(".assistant .problem") == ""


def test_a_key_is_asked_for_and_kept_out_of_what_is_copied(tab: Tab) -> None:
    with serving(fake_app(FakeEngine(script()), api_keys=["open-sesame"])) as address:
        tab.call("Page.navigate", url=f"{address}/playground")
        tab.until("document.querySelector('#key')?.open")
        tab.type("wrong")
        tab.press("Enter")
        tab.until("document.querySelector('#key-told').textContent.includes('does not know')")
        tab.until("document.querySelector('#key')?.open")
        tab.type("open-sesame")
        tab.press("Enter")
        tab.until("document.querySelector('#model').textContent.startsWith('tiny')")
        ask(tab, "Go on")
        tab.until(f"{STATUS} === 'Answered'")
        tab.run(COPIED)
        for name in ("curl", "Python"):
            tab.click(f"[aria-label='Copy as {name}']")
            tab.until(f"window.copied.includes('IDEFICS_API_KEY') && {STATUS}.includes('{name}')")
            assert "sesame" not in tab.run("window.copied")


def test_a_body_over_the_limit_is_told_before_it_is_sent(tab: Tab, tmp_path: Path) -> None:
    with serving(fake_app(FakeEngine(script()), limits=ServerLimits(body_bytes=300))) as address:
        tab.open(f"{address}/playground")
        tab.drop(picture(tmp_path))
        tab.until("document.querySelector('#pictures canvas')")
        tab.until("document.querySelector('#weight.problem')?.textContent.endsWith('of 300 B')")
        ask(tab, "What is this?")
        tab.until("document.querySelector('#problem').textContent.includes(\"over the server's limit of 300\")")
        assert tab.run("document.querySelector('#text').value") == "What is this?", "nothing is lost"
        assert tab.run("document.querySelectorAll('#pictures canvas').length") == 1
        assert tab.text("#turns") == ""
        tab.click("#pictures button")
        tab.press("Enter", ctrl=True)
        tab.until(f"{STATUS} === 'Answered'")


def test_copied_requests_do_what_the_page_did(tab: Tab, served: Served) -> None:
    tab.open(f"{served.address}/playground")
    tab.choose("#files", DEMO / "thing.png")
    tab.until("document.querySelector('#pictures canvas')")
    ask(tab, "What is \"this\"?\nIt's '''new''' \\ é 🙂")
    tab.until(f"{STATUS} === 'Answered'")
    answer = tab.text(".assistant .text")
    sent = tab.body("/v1/chat/completions")
    tab.run(COPIED)
    tab.click("[aria-label='Copy as curl']")
    tab.until("window.copied?.startsWith('curl')")
    curl = tab.run("window.copied")
    assert json.loads(curl.split("<<'JSON'\n")[1].removesuffix("\nJSON\n")) == sent
    tab.click("[aria-label='Copy as Python']")
    tab.until("window.copied?.includes('import')")
    python = tab.run("window.copied")
    environment = {**os.environ, "NO_PROXY": "*"}
    streamed = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=30, env=environment, check=True)
    events = [json.loads(line[6:]) for line in streamed.stdout.splitlines() if line.startswith("data: {")]
    assert "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"]) == answer
    ran = subprocess.run(
        [sys.executable, "-c", python], capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    assert ran.stdout == f"{answer}\n"


def test_where_pages_may_not_copy_the_text_is_shown_to_copy(tab: Tab) -> None:
    with serving(fake_app(FakeEngine(script()))) as address:
        tab.open(f"{address}/playground")
        ask(tab, "Go on")
        tab.until(f"{STATUS} === 'Answered'")
        tab.run("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
        tab.click("[aria-label='Copy as curl']")
        tab.until("document.querySelector('#code').open")
        assert tab.run("getSelection().toString() || document.activeElement.value").startswith("curl")
        tab.press("Escape")
        tab.until("!document.querySelector('#code').open")
