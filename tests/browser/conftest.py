from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

import idefics
from browser.chromium import MISSING, Browser, Tab, chromium, command
from contract.conftest import Served, served, serving_model
from fake_engine import FakeEngine
from idefics.assets import EMBEDDED
from serving import fake_app, script, serving

__all__ = ["served"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = command()
    if executable is None:
        pytest.skip(MISSING)
    with chromium(executable) as browser:
        yield browser


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The embedded model served as a base model: it has no chat template, and its tokenizer no end of utterances."""
    folder = tmp_path_factory.mktemp("base") / "idefics2-base"
    shutil.copytree(EMBEDDED, folder)
    (folder / "chat_template.jinja").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8").replace("<end_of_utterance>", "<reserved>"))
        content.pop("chat_template", None)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    model = idefics.load(folder)
    assert model.processor.chat_template is None
    with serving_model(model) as served:
        yield served


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    with browser.tab() as tab:
        yield tab


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a server without a model; a file that needs another has a fixture of this name."""
    with serving(fake_app(FakeEngine(script()))) as address:
        yield address


@pytest.fixture
def page(tab: Tab, address: str) -> Tab:
    tab.open(f"{address}/playground")
    return tab
