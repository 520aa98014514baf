"""What Prometheus reads at `/metrics`, under text-generation-inference's names where it has one."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from idefics.engine.state import EngineState

__all__ = ["Metrics"]

PAGE_SECONDS = 1.0
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
_BYTES = tuple(4**power * 1024 for power in range(9))
_HISTOGRAMS = {
    "tgi_request_duration": ("Seconds from a request's arrival to its end", _SECONDS),
    "tgi_request_validation_duration": ("Seconds that preparing a request took, fetching images included", _SECONDS),
    "tgi_request_queue_duration": ("Seconds from there until the engine began with the request", _SECONDS),
    "tgi_request_inference_duration": ("Seconds from there to the request's end", _SECONDS),
    "tgi_request_mean_time_per_token_duration": ("Seconds per generated token of a request", _SECONDS),
    "tgi_request_input_length": ("Tokens of a prompt, images included", _TOKENS),
    "tgi_request_max_new_tokens": ("New tokens that a request may have", _TOKENS),
    "tgi_request_generated_tokens": ("New tokens of a request", _TOKENS),
    "tgi_batch_inference_duration": ("Seconds of one step of the engine", _SECONDS),
    "idefics_time_to_first_token_seconds": ("Seconds from a request's arrival to its first token", _SECONDS),
    "idefics_time_between_tokens_seconds": ("Seconds between two tokens of an answer", _SECONDS),
    "idefics_request_images": ("Images of a request", (0, 1, 2, 4, 8, 16, 32, 64)),
    "idefics_request_image_bytes": ("Encoded bytes of a request's images", _BYTES),
}


class Metrics:
    """Counts one server's work.

    Args:
        state: of the engine.
        open_requests: how many requests are in the server.
        healthy: whether the engine gets on.
        prepares: whether what prepares requests does.
    """

    def __init__(
        self,
        state: Callable[[], EngineState],
        open_requests: Callable[[], int],
        healthy: Callable[[], bool],
        prepares: Callable[[], bool],
    ) -> None:
        self._registry = CollectorRegistry()
        self._histograms = {
            name: Histogram(name, told, buckets=buckets, registry=self._registry)
            for name, (told, buckets) in _HISTOGRAMS.items()
        }
        self._counts = _Counts(state, open_requests, healthy, prepares)
        self._registry.register(self._counts)
        self._page = (-PAGE_SECONDS, b"")  # and when it was made

    def observe(self, name: str, value: float) -> None:
        """Adds to a histogram."""
        self._histograms[name].observe(value)

    def count(self, name: str, label: str = "", *, by: int = 1) -> None:
        """Adds to a count; `label` tells kinds of it apart."""
        self._counts.add(name, label, by)

    def stepped(self, seconds: float, tokens: int) -> None:
        """Takes note of a step of the engine."""
        self.observe("tgi_batch_inference_duration", seconds)
        self.count("idefics_generated_tokens", by=tokens)

    def page(self) -> bytes:
        """Everything in Prometheus' text format, as of a second ago at most: a page takes milliseconds, and anyone may ask."""
        made, page = self._page
        if time.monotonic() - made >= PAGE_SECONDS:
            page = generate_latest(self._registry)
            self._page = time.monotonic(), page
        return page


class _Counts(Collector):
    """Counts, and gauges that are read off when they are asked for."""

    _PLAIN = {  # noqa: RUF012 - names that end without `_total`, as the original has them
        "tgi_request_count": ("Requests for generation", None),
        "tgi_request_success": ("Requests that were answered", None),
        "tgi_request_failure": ("Requests that were not, by the error's kind", "err"),
    }
    _TOTAL = {  # noqa: RUF012
        "idefics_finished_answers": ("Answers by why they ended", "reason"),
        "idefics_generated_tokens": ("Tokens generated", None),
        "idefics_image_bytes": ("Encoded bytes of all images received", None),
        "idefics_http_responses": ("Responses by status", "status"),
        "idefics_decoders_killed": ("Processes that decode images, killed or lost, by what for", "reason"),
        "idefics_compilers_killed": ("Processes that compile grammars, killed or lost, by what for", "reason"),
    }

    def __init__(
        self,
        state: Callable[[], EngineState],
        open_requests: Callable[[], int],
        healthy: Callable[[], bool],
        prepares: Callable[[], bool],
    ) -> None:
        self._state = state
        self._open_requests = open_requests
        self._healthy = healthy
        self._prepares = prepares
        self._lock = threading.Lock()
        self._values: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, label: str, by: int) -> None:
        assert name in self._PLAIN or name in self._TOTAL, name
        with self._lock:
            self._values[name, label] += by

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            values = dict(self._values)
        for kinds, family in ((self._PLAIN, UnknownMetricFamily), (self._TOTAL, CounterMetricFamily)):
            for name, (told, label) in kinds.items():
                metric = family(name, told, labels=[label] if label else [])
                found = {key: value for (of, key), value in values.items() if of == name}
                if not label:
                    metric.add_metric([], found.get("", 0))
                for key, value in found.items() if label else ():
                    metric.add_metric([key], value)
                yield metric
        yield from self._gauges()

    def _gauges(self) -> Iterator[Metric]:
        state = self._state()
        gauges = {
            "tgi_queue_size": ("Answers that wait for the engine", state.waiting),
            "tgi_batch_current_size": ("Answers computed together", state.running),
            "tgi_batch_current_max_tokens": (
                "Tokens that the running answers' blocks keep",
                state.blocks_held * state.block_tokens,
            ),
            "idefics_open_requests": ("Requests in the server, being prepared or answered", self._open_requests()),
            "idefics_kv_cache_blocks": ("Blocks of the cache of keys and values", state.blocks),
            "idefics_kv_cache_blocks_held": ("Blocks that running answers hold", state.blocks_held),
            "idefics_image_cache_bytes": ("Bytes of encoded images kept", state.image_bytes),
            "idefics_engine_healthy": ("1 while the engine gets on with its work", int(self._healthy())),
            "idefics_preparing_healthy": ("1 while what prepares requests comes back from it", int(self._prepares())),
        }
        counts = {
            "idefics_prefix_cache_tokens": ("Tokens of prompts that the engine began with", state.admitted_tokens),
            "idefics_prefix_cache_hit_tokens": ("Of them, those found computed", state.found_tokens),
            "idefics_interruptions": ("Answers interrupted for lack of blocks", state.interruptions),
            "idefics_image_cache_hits": ("Images that were found encoded", state.image_hits),
            "idefics_image_cache_misses": ("Images that had to be encoded", state.image_misses),
        }
        for name, (told, value) in gauges.items():
            yield GaugeMetricFamily(name, told, value=value)
        for name, (told, value) in counts.items():
            yield CounterMetricFamily(name, told, value=value)
