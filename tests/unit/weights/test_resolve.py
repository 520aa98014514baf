from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from idefics.assets import EMBEDDED_NAME
from idefics.errors import CheckpointNotFound, OptionError
from idefics.weights import files
from idefics.weights.files import WANTED, resolve


def _hub_error(kind: type[Exception], message: str = "no\nsecond line") -> Exception:
    error = kind.__new__(kind)  # the constructors differ between versions of the client
    Exception.__init__(error, message)
    return error


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands for the Hub: `raise` is raised, the call is kept in `called`."""
    state: dict[str, Any] = {"raise": None, "called": None}

    def download(model: str, **options: Any) -> str:
        state["called"] = {"model": model, **options}
        if state["raise"] is not None:
            raise state["raise"]
        return "/downloaded"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return state


def test_a_folder_is_taken_as_it_is(tmp_path: Path, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name")
    assert resolve("./owner") == Path("owner")
    assert hub["called"] is None


@pytest.mark.parametrize(
    "model", ["./models/x", "/models/x", "~/nowhere/x", "../x", "models/x/", "a/b/c", "a\\b", Path("a/b"), Path("ab")]
)
def test_a_mistyped_path_is_not_looked_up(
    hub: dict[str, Any], model: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what lies beside the project is not known
    with pytest.raises(CheckpointNotFound, match=r"there is no folder .*; a Hub id has the form owner/name"):
        resolve(model)
    assert hub["called"] is None


@pytest.mark.parametrize("model", ["owner/na me", "-x/y", "a..b/c", "https:model"])
def test_neither_path_nor_id(hub: dict[str, Any], model: str) -> None:
    with pytest.raises(CheckpointNotFound, match="neither a folder here nor a Hub id"):
        resolve(model)
    assert hub["called"] is None


def test_nothing() -> None:
    with pytest.raises(CheckpointNotFound, match="no model was named"):
        resolve("")


def test_a_file_and_a_revision_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointNotFound, match="is a file; give the folder it lies in"):
        resolve(tmp_path / "model.safetensors")
    assert resolve(tmp_path, revision="main") == tmp_path, "what everything has"
    with pytest.raises(OptionError, match=r"revision = 'v2' was given, but .* is a local folder"):
        resolve(tmp_path, revision="v2")


def test_options_reach_the_hub_and_only_what_is_needed_is_fetched(hub: dict[str, Any], tmp_path: Path) -> None:
    assert resolve("owner/name", revision="v1", cache_dir=tmp_path, token="t", progress=False) == Path("/downloaded")
    called = hub["called"]
    assert (called["model"], called["revision"], called["cache_dir"], called["token"]) == ("owner/name", "v1", tmp_path, "t")
    assert called["local_files_only"] is False
    assert called["allow_patterns"] == list(WANTED)
    published = [
        "config.json",
        "model-00001-of-00007.safetensors",
        "tokenizer.model",
        "chat_template.jinja",
        "model.safetensors.index.json",
    ]
    unwanted = ["pytorch_model.bin", "x.pt", "consolidated.pth", "onnx/model.safetensors", "README.md", "a.gguf", "run.py"]
    kept = huggingface_hub.utils.filter_repo_objects(
        published + unwanted, allow_patterns=called["allow_patterns"], ignore_patterns=called["ignore_patterns"]
    )
    assert list(kept) == published


def test_the_bar_can_be_silenced(hub: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    resolve("owner/name", progress=False)
    for _ in hub["called"]["tqdm_class"](range(3)):
        pass
    assert capsys.readouterr() == ("", "")
    resolve("owner/name")
    assert "tqdm_class" not in hub["called"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError, "owner/name at revision v1 is gated .* https://huggingface.co/owner/name, then log in .*token"),
        (errors.RevisionNotFoundError, "owner/name has no revision 'v1' on the Hub"),
        (errors.RepositoryNotFoundError, "owner/name is neither a folder here nor a model on the Hub; check the spelling"),
        (
            errors.LocalEntryNotFoundError,
            "not in the cache and the Hub cannot be reached; .*idefics download owner/name.*folder's path",
        ),
        (errors.HfHubHTTPError, "the Hub refused owner/name at revision v1: no; to work without a network"),
        (ConnectionError, "downloading owner/name at revision v1 failed: no; run again"),
    ],
)
def test_errors_of_the_hub_become_one_line(hub: dict[str, Any], error: type[Exception], message: str) -> None:
    hub["raise"] = _hub_error(error)
    with pytest.raises(CheckpointNotFound, match=message) as caught:
        resolve("owner/name", revision="v1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_offline_uses_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    # The client itself, no network: an empty cache, then one that holds a snapshot.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "variable")
    options = {"cache_dir": tmp_path, "offline": how == "argument"}
    with pytest.raises(
        CheckpointNotFound, match=r"owner/name is not in the cache, .*\(offline\); .*idefics download owner/name"
    ):
        resolve("owner/name", **options)
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    assert resolve("owner/name", **options).resolve() == snapshot.resolve()


def test_the_embedded_model_by_none_or_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "EMBEDDED", tmp_path / "shipped")
    with pytest.raises(CheckpointNotFound, match="lacks the embedded model"):
        resolve(None)
    (tmp_path / "shipped").mkdir()
    assert resolve(None) == resolve(EMBEDDED_NAME) == tmp_path / "shipped"
    assert resolve(None, revision="main") == tmp_path / "shipped"
    for options, message in (({"revision": "v2"}, "the embedded model has none"), ({"to": tmp_path}, "is no download")):
        with pytest.raises(OptionError, match=message):
            resolve(None, **options)
    (tmp_path / EMBEDDED_NAME).mkdir()
    assert resolve(EMBEDDED_NAME) == Path(EMBEDDED_NAME), "a folder here goes first"
    with pytest.raises(OptionError, match="is a local folder already"):
        resolve(EMBEDDED_NAME, to=tmp_path / "x")


def test_a_user_that_is_not_there() -> None:
    with pytest.raises(CheckpointNotFound, match="no such user"):
        resolve("~nobody-of-this-name/model")
