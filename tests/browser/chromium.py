"""Headless Chromium over its DevTools protocol: real keys, clicks, drops and pastes, and everything the page asked and said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "chrome")
MISSING = f"no browser is here ({', '.join(COMMANDS)}): install Debian's package chromium to run this test"
OPTIONS = (
    "--headless=new", "--remote-debugging-port=0", "--no-first-run", "--disable-background-networking", "--disable-gpu",
    "--disable-dev-shm-usage", "--disable-component-update", "--no-proxy-server", "--hide-scrollbars",
)  # fmt: skip
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowRight": 39}
CTRL, SHIFT = 2, 8  # of the protocol's modifiers


def command() -> str | None:
    return next(filter(None, map(shutil.which, COMMANDS)), None)


class Wire:
    """One connection of the protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._last = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        self._connection.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(timeout=30))
            if message.get("id") == self._last:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            if "method" in message:
                self.events.append(message)


class Tab(Wire):
    """A page."""

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && document.querySelector('#model')?.textContent !== ''")

    def run(self, expression: str) -> Any:
        """The value of JavaScript; promises are waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, *, seconds: float = 15.0) -> None:
        """Waits for JavaScript to be true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({expression})"):
            assert time.monotonic() < end, f"never true: {expression}\n{self.run('document.body.innerText')}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """What can be read there, of all that match."""
        return str(self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText).join('\\n')"))

    def click(self, selector: str) -> None:
        """Presses the mouse where the element is."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{found}.scrollIntoView({{block: 'center'}})")
        x, y = self.run(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({found}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def unfold(self) -> None:
        """Opens the settings and the plan."""
        self.click("#more summary")
        self.until("document.querySelector('#more').open")

    def press(self, key: str, *, ctrl: bool = False, shift: bool = False) -> None:
        held = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"Enter": "\r", " ": " "}.get(key) if not ctrl else None
        modifiers = CTRL * ctrl + SHIFT * shift
        self.call("Input.dispatchKeyEvent", type="keyDown", modifiers=modifiers, **held, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **held)

    def type(self, text: str) -> None:
        """Writes where the focus is."""
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, *files: Path) -> None:
        """Gives files to a file field, as its dialog would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve()) for file in files])

    def drop(self, *files: Path) -> None:
        """Drags files over the page and lets them go."""
        data = {"items": [], "files": [str(file.resolve()) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)

    def said(self) -> list[str]:
        """Errors in the console, and what nobody caught."""
        self.run("0")  # events before it have arrived
        wrong = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                wrong.append(str(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                wrong.append(str(params["args"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                wrong.append(str(params["entry"]))
        return wrong

    def requests(self) -> list[dict[str, Any]]:
        """What the page asked of any server."""
        self.run("0")
        sent = (event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent")
        return [{"id": each["requestId"], **each["request"]} for each in sent]

    def body(self, path: str) -> dict[str, Any]:
        """The last body that was posted to a path."""
        sent = [each for each in self.requests() if each["url"].endswith(path) and each["method"] == "POST"][-1]
        return dict(json.loads(self.call("Network.getRequestPostData", requestId=sent["id"])["postData"]))


class Browser:
    """A running Chromium."""

    def __init__(self, host: str, wire: Wire) -> None:
        self._host = host
        self._wire = wire

    @contextmanager
    def tab(self, *, width: int = 1280, height: int = 860) -> Iterator[Tab]:
        """A page that shares nothing with others."""
        context = self._wire.call("Target.createBrowserContext")["browserContextId"]
        target = self._wire.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        try:
            with _connected(f"ws://{self._host}/devtools/page/{target}") as connection:
                tab = Tab(connection)
                for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
                    tab.call(f"{domain}.enable")
                tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
                tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
                yield tab
        finally:
            self._wire.call("Target.disposeBrowserContext", browserContextId=context)


@contextmanager
def chromium(executable: str) -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []  # as root Chromium starts only without
        process = subprocess.Popen(
            [executable, *OPTIONS, *root, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            host, path = _address(Path(profile) / "DevToolsActivePort", process)
            with _connected(f"ws://{host}{path}") as connection:
                yield Browser(host, Wire(connection))
        finally:
            process.terminate()
            process.wait(20)


def _connected(address: str) -> connect:
    return connect(address, max_size=None, compression=None, proxy=None)


def _address(told: Path, process: subprocess.Popen[bytes]) -> tuple[str, str]:
    end = time.monotonic() + 60
    while not (told.exists() and told.read_text().count("\n")):
        assert process.poll() is None, "the browser does not start"
        assert time.monotonic() < end, "the browser does not tell its address"
        time.sleep(0.05)
    port, path = told.read_text().split()
    return f"127.0.0.1:{port}", path
