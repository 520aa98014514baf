"""A short form of benchmarks/load_test.py: every accepted request is answered right, and nothing of them is left."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

import idefics
from idefics.engine.limits import Limits
from idefics.server.app import create_app
from idefics.server.images.addresses import AddressRule
from idefics.server.limits import ServerLimits
from idefics.server.link.engine_process import EngineProcess
from serving import embedded_engine, serving

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("load_test", BENCHMARKS / "load_test.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "load_test", module)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("measure", None)


def test_a_hundred_requests_sixteen_at_once(load_test: ModuleType) -> None:
    # float32: in bfloat16 two nearly equal logits may change places with the size of the batch.
    model = idefics.load(dtype="float32")
    # A cache too small for sixteen: some answers are interrupted and computed again.
    engine = EngineProcess(partial(embedded_engine, Limits(cache_bytes=2**21, rows=16, tokens=256), dtype="float32"))
    app = create_app(engine.model, engine, limits=ServerLimits(image_seconds=5), images=AddressRule(private=True))
    with serving(app) as address:
        load, _ = load_test.loaded(address, model, requests=100, at_once=16)
        left = load_test.left_over(address)
    assert not load.tally.wrong
    assert sum(load.tally.outcomes.values()) == 100
    assert {"whole", "streamed", "chat", "chat streamed", "left", "bad image"} <= set(load.tally.outcomes)
    assert not any(left.values()), left
    state = app.state.service.bridge.state
    assert state.admitted_tokens > 0
    assert (state.waiting, state.running, state.blocks_held) == (0, 0, 0)
    assert not engine.alive
