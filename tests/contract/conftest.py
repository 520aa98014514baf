from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

import idefics
from idefics.api import Idefics
from idefics.engine.limits import Limits
from idefics.server.addresses import AddressRule
from idefics.server.app import create_app
from idefics.server.model import ServedEngine, ServedModel
from idefics.server.service import Service
from serving import serving


@dataclass
class Served:
    """A running server with a model, and the model itself to compare with."""

    address: str
    model: Idefics
    service: Service


@contextmanager
def serving_model(model: Idefics) -> Iterator[Served]:
    engine = ServedEngine(model.model, Limits(cache_bytes=2**26))
    app = create_app(ServedModel.of(model), engine, images=AddressRule(private=True))
    with serving(app) as address:
        yield Served(address, model, app.state.service)


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    with serving_model(idefics.load()) as served:
        yield served
