"""The container and service files agree with the server and with one another. They are read here; no image is built."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_engine import FakeEngine
from idefics.cli import main
from serving import fake_app, script

ROOT = Path(__file__).parents[3]
PORT = 8080
DRAIN = 60


def dockerfile() -> dict[str, list[str]]:
    """Instructions of the last stage, each with its arguments."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    begin = max(index for index, line in enumerate(lines) if line.startswith("FROM"))
    found: dict[str, list[str]] = {}
    for line in lines[begin:]:
        name, _, rest = line.partition(" ")
        found.setdefault(name, []).append(rest)
    return found


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["idefics"])


def unit() -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(delimiters=("=",), strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "deploy/idefics.service", encoding="utf-8")
    return parser["Service"]


def kubernetes() -> tuple[dict[str, Any], dict[str, Any]]:
    every = {part["kind"]: part for part in yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text(encoding="utf-8"))}
    claim = every["PersistentVolumeClaim"]["metadata"]["name"]
    volumes = every["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "models", "persistentVolumeClaim": {"claimName": claim}} in volumes
    return every["Deployment"], every["Service"]


def pod() -> dict[str, Any]:
    return dict(kubernetes()[0]["spec"]["template"]["spec"])


def commands() -> Iterator[tuple[str, list[str]]]:
    """What each file runs, from `serve` on."""
    entry = json.loads(dockerfile()["ENTRYPOINT"][0])
    assert entry[:2] == ["idefics", "serve"]
    yield "Dockerfile", entry[2:]
    yield "compose.yaml", entry[2:] + compose()["command"]
    binary, serve, *rest = unit()["ExecStart"].split()
    assert (binary, serve) == ("/opt/idefics/bin/idefics", "serve")
    yield "idefics.service", rest
    yield "kubernetes.yaml", entry[2:] + pod()["containers"][0]["args"]


COMMANDS = dict(commands())


@pytest.fixture
def options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """All options of `idefics serve`, as its help tells them."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", capsys.readouterr().out))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_exists(name: str, options: set[str]) -> None:
    assert "--host" in options
    used = {word for word in COMMANDS[name] if word.startswith("--")}
    assert used
    assert used <= options
    assert COMMANDS[name][COMMANDS[name].index("--port") + 1] == str(PORT)


def test_all_name_one_port() -> None:
    assert dockerfile()["EXPOSE"] == [str(PORT)]
    assert f"'127.0.0.1', {PORT}," in dockerfile()["HEALTHCHECK"][0]
    assert compose()["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    container = pod()["containers"][0]
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    service = kubernetes()[1]["spec"]
    assert service["ports"][0]["targetPort"] == "http"
    assert service["selector"] == kubernetes()[0]["spec"]["template"]["metadata"]["labels"]


def test_probes_ask_a_route_that_is_there() -> None:
    paths = {route.path for route in fake_app(FakeEngine(script())).routes if hasattr(route, "path")}
    container = pod()["containers"][0]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert all(probe == {"path": "/health", "port": "http"} for probe in probes)
    assert "/health" in paths
    assert container["resources"]["requests"]["memory"]


def test_whoever_stops_the_server_waits_until_it_has_drained() -> None:
    for name in ("compose.yaml", "idefics.service", "kubernetes.yaml"):
        assert COMMANDS[name][COMMANDS[name].index("--drain") + 1] == str(DRAIN)
    # The server itself ends at most 5 seconds after the drain.
    assert int(compose()["stop_grace_period"].removesuffix("s")) > DRAIN + 5
    assert int(unit()["TimeoutStopSec"]) > DRAIN + 5
    command, seconds = pod()["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod()["terminationGracePeriodSeconds"] > int(seconds) + DRAIN + 5
    runs = [line for name in ("Dockerfile", "docs/serving.md") for line in (ROOT / name).read_text().splitlines()]
    told = [int(match[1]) for line in runs if "docker run" in line for match in re.finditer(r"--stop-timeout (\d+)", line)]
    assert len(told) == sum("docker run" in line for line in runs) > 0
    assert min(told) > DRAIN + 5


def test_the_container_asks_for_its_health_and_not_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, command = dockerfile()["HEALTHCHECK"][0].partition("CMD ")
    python, flag, code = json.loads(command)
    assert (python, flag) == ("python", "-c")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for status in (200, 503):
        with answering(status) as port:
            done = subprocess.run([sys.executable, "-c", code.replace(str(PORT), str(port))], check=False, timeout=60)
        assert (done.returncode == 0) == (status == 200)


@contextmanager
def answering(status: int) -> Iterator[int]:
    """The port of a server that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            del arguments

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def test_a_gpu_is_asked_for_and_its_kernels_have_a_place() -> None:
    service = yaml.safe_load((ROOT / "deploy/compose.gpu.yaml").read_text(encoding="utf-8"))["services"]["idefics"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert all(f"ARG {name}=" in text for name in service["build"]["args"])
    assert "gcc" in service["build"]["args"]["EXTRA"].split(), "Triton compiles its launchers"
    image = dockerfile()
    variables = dict(pair.split("=", 1) for pair in image["ENV"][0].split())
    assert variables["TRITON_CACHE_DIR"].startswith(image["VOLUME"][0] + "/")
    of_unit = dict(pair.split("=", 1) for pair in unit()["Environment"].split())
    assert of_unit["TRITON_CACHE_DIR"].startswith(of_unit["HF_HOME"] + "/")


def test_the_unit_hides_nothing_that_the_server_reads() -> None:
    assert "ProcSubset" not in unit(), "/proc/meminfo says how large the cache may be"


def test_the_unit_gives_up_on_what_cannot_work() -> None:
    parser = configparser.RawConfigParser(delimiters=("=",))
    parser.read(ROOT / "deploy/idefics.service", encoding="utf-8")
    tries, within = int(parser["Unit"]["StartLimitBurst"]), int(parser["Unit"]["StartLimitIntervalSec"])
    assert tries * int(unit()["RestartSec"]) < within, "or the limit is never reached"
    assert unit()["RestartPreventExitStatus"] == "2"


def test_nothing_runs_as_root_and_models_stay_where_they_can_be_written() -> None:
    image = dockerfile()
    assert image["USER"] == [str(pod()["securityContext"]["runAsUser"])] == ["10001"]
    home = dict(pair.split("=", 1) for pair in image["ENV"][0].split())["HF_HOME"]
    assert image["VOLUME"] == [home]
    assert compose()["volumes"] == [f"models:{home}"]
    assert {"name": "models", "mountPath": home} in pod()["containers"][0]["volumeMounts"]
    assert f"HF_HOME=/var/lib/{unit()['StateDirectory']}" in unit()["Environment"].split()
    assert unit()["DynamicUser"] == "yes"


def test_the_image_holds_what_its_build_copies() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    named = {name for line in copied for name in line.split()}
    assert named == kept
    assert all((ROOT / name).exists() for name in named)


def test_an_empty_key_in_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """compose.yaml hands over an empty one where there is none."""
    seen: dict[str, Any] = {}
    monkeypatch.setenv("IDEFICS_API_KEY", "")
    monkeypatch.setattr("idefics.server.app.create_app", lambda *_, **options: seen.update(options))
    monkeypatch.setattr("idefics.server.run.run", lambda _, at, **__: at.close())
    monkeypatch.setattr("idefics.server.logs.configure", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        main(["serve", "--port", "0"])
    assert end.value.code == 0
    assert not list(seen["api_keys"])
