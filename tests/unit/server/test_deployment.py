"""The container and service files agree with the server and with one another. They are read here; no image is built."""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Iterator
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
    deployment, service = yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text(encoding="utf-8"))
    return deployment, service


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
    assert f":{PORT}/health" in dockerfile()["HEALTHCHECK"][0]
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
    assert pod()["terminationGracePeriodSeconds"] > DRAIN + 5


def test_nothing_runs_as_root_and_models_stay_where_they_can_be_written() -> None:
    image = dockerfile()
    assert image["USER"] == [str(pod()["securityContext"]["runAsUser"])] == ["10001"]
    home = dict(pair.split("=", 1) for pair in image["ENV"][0].split())["HF_HOME"]
    assert image["VOLUME"] == [home]
    assert compose()["volumes"] == [f"models:{home}"]
    assert {"name": "models", "mountPath": home} in pod()["containers"][0]["volumeMounts"]
    assert unit()["Environment"] == f"HF_HOME=/var/lib/{unit()['StateDirectory']}"
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
