from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest

import idefics
from idefics.api import Idefics
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits
from idefics.server.app import create_app
from idefics.server.images.addresses import AddressRule
from idefics.server.link.engine_process import EngineProcess
from idefics.server.link.engine_thread import EngineThread
from idefics.server.model import ServedModel
from serving import embedded_engine, serving


@dataclass
class Served:
    """A running server with a model, and the model itself to compare with."""

    address: str
    model: Idefics


@contextmanager
def serving_model(model: Idefics) -> Iterator[Served]:
    engine = EngineThread(Engine(model.model, Limits(cache_bytes=2**26)), model.processor.tokenizer)
    app = create_app(ServedModel.of(model), engine, images=AddressRule(private=True))
    with serving(app) as address:
        yield Served(address, model)


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    engine = EngineProcess(partial(embedded_engine, Limits(cache_bytes=2**26)))
    with serving(create_app(engine.model, engine, images=AddressRule(private=True))) as address:
        yield Served(address, idefics.load())
