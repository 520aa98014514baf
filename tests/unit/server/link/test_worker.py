"""The engine's loop beside grammars that are compiled in a thread of their own."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fake_engine import FakeEngine
from fakes import tiny_processor
from idefics.engine.sampling_params import SamplingParams
from idefics.server.link.worker import Add, Failed, Report, Stop, Worker
from idefics.server.prepare.grammars import Grammar
from serving import wait_until


class Panic(BaseException):
    """As a library of Rust's raises, which is no `Exception`."""


def test_a_grammar_that_panics_is_refused_and_so_are_those_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def panics(*_: Any, **__: Any) -> Any:
        raise Panic("index out of bounds")

    failed: list[int] = []

    def tell(report: Report) -> None:
        failed.extend(number for number, outcome in report.outcomes if isinstance(outcome, Failed))

    processor = tiny_processor()
    worker = Worker(FakeEngine([5]), processor.tokenizer, tell)
    monkeypatch.setattr(worker._guides, "of", panics)
    running = threading.Thread(target=worker.run)
    running.start()
    for number in range(2):
        worker.post(
            Add(
                number=number,
                request_id=None,
                inputs=processor.inputs(["a"], [[]]),
                params=SamplingParams(),
                stop=(),
                inside=False,
                grammar=Grammar("regex", "a"),
                deadline=9e9,
            )
        )
    try:
        wait_until(lambda: failed == [0, 1], seconds=5)
    finally:
        worker.post(Stop())
        running.join()
