"""What is counted of requests, and where their time went."""

from __future__ import annotations

import threading

import httpx
import pytest

from fake_engine import FakeEngine
from idefics.engine.state import EngineState
from idefics.server import metrics as metrics_module
from idefics.server.limits import ServerLimits
from idefics.server.metrics import Metrics
from serving import data_url, fake_app, image_host, png, script, serving, wait_until

LONG = script("the red image " * 30)


def test_metrics() -> None:
    with serving(fake_app(FakeEngine(script()))) as address, httpx.Client() as client:
        client.post(f"{address}/generate", json={"inputs": f"![]({data_url(png())})a"})
        client.post(f"{address}/generate", json={"inputs": ""})
        client.post(f"{address}/generate", json={"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "("}}})
        page = client.get(f"{address}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(values["tgi_request_count"]) == 2
    assert float(values["tgi_request_success"]) == 1
    assert float(values['tgi_request_failure{err="validation"}']) == 1
    assert float(values['idefics_finished_answers_total{reason="eos"}']) == 1
    assert float(values["idefics_generated_tokens_total"]) == 4
    assert float(values["idefics_time_to_first_token_seconds_count"]) == 1
    assert float(values["idefics_time_between_tokens_seconds_count"]) == 3
    assert float(values["idefics_image_bytes_total"]) == len(png())
    assert {"tgi_queue_size", "tgi_batch_current_size", "idefics_kv_cache_blocks", "idefics_image_cache_hits_total"} <= {
        *values
    }


def test_a_page_is_made_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(EngineState, lambda: 0, lambda: True, lambda: True)
    first = metrics.page()
    metrics.count("tgi_request_count")
    assert metrics.page() is first
    monkeypatch.setattr(metrics_module, "PAGE_SECONDS", 0.0)
    assert b"tgi_request_count 1.0" in metrics.page()


def counts(address: str) -> dict[str, float]:
    page = httpx.get(f"{address}/metrics").text
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in page.splitlines() if line[0] != "#")}


def test_the_wait_for_a_place_in_the_engine_is_the_queues() -> None:
    engine = FakeEngine(script("the red image " * 9), step_seconds=0.05, rows=1)
    engine.hold.clear()
    app = fake_app(engine)
    with serving(app) as address:
        queued: list[int] = []

        def ask() -> None:
            response = httpx.post(f"{address}/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 20}}, timeout=60)
            queued.append(int(response.headers["x-queue-time"]))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: app.state.service.open == 2)
        engine.hold.set()
        for thread in threads:
            thread.join()
        assert max(queued) >= 0.8 * 20 * 50, "the second waits for all of the first's steps"
        assert counts(address)["tgi_request_queue_duration_sum"] >= 0.8


def test_whose_time_is_over_is_not_counted_as_gone() -> None:
    with (
        image_host({"/slow": 15.0}) as host,
        serving(fake_app(FakeEngine(script()), limits=ServerLimits(deadline=0.1))) as address,
    ):
        late = httpx.post(f"{address}/generate", json={"inputs": f"![]({host}/slow)a"}, timeout=60)
        assert late.status_code == 504
        wait_until(lambda: 'tgi_request_failure{err="timeout"}' in counts(address))
        assert 'tgi_request_failure{err="cancelled"}' not in counts(address)


@pytest.mark.parametrize("streams", [False, True])
def test_what_ends_with_another_prompt_ends_for_its_reason(streams: bool) -> None:
    app = fake_app(FakeEngine(LONG, step_seconds=0.05))
    with image_host({}) as host, serving(app) as address:
        body = {"prompt": ["a", f"![]({host}/none)b"], "max_tokens": 400, "stream": streams}
        assert httpx.post(f"{address}/v1/completions", json=body, timeout=60).status_code == 400
        wait_until(lambda: app.state.service.open == 0)
        wait_until(lambda: counts(address).get('tgi_request_failure{err="validation"}') == 2)
        assert counts(address)["tgi_request_success"] == 0
