"""GET /metrics for Prometheus, under vLLM's names, so that its dashboards work. The label `model_name` is only ever
that of a model that is served, whatever clients ask for."""

from collections.abc import Iterator, Mapping

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from qkv.serve.engine import Engine
from qkv.serve.state import Finished, State

LABELS = ["model_name"]
_LONG = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
GAUGES = {
    "num_requests_running": ("Sequences that are read or answered now.", lambda s: s.running),
    "num_requests_waiting": ("Sequences in the queue.", lambda s: s.waiting),
    "kv_cache_usage_perc": ("Part of the cache's pages that is in use; 1 is all.", lambda s: s.usage),
}
COUNTERS = {
    "num_preemptions": (
        "Sequences that lost their pages to an older one and were read again.",
        lambda s: s.preemptions,
    ),
    "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", lambda s: s.prefix_queries),
    "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", lambda s: s.prefix_hits),
    "prompt_tokens": ("Prompt tokens read.", lambda s: s.prompt_tokens),
    "generation_tokens": ("Tokens generated.", lambda s: s.generated_tokens),
}


class Engines(Collector):
    """What engines count themselves, read when it is asked for."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = engines

    def collect(self) -> Iterator[Metric]:
        """Each gauge and counter, of every model."""
        states = {name: engine.state() for name, engine in self.engines.items()}
        for name, (words, read) in GAUGES.items():
            yield _fill(GaugeMetricFamily(f"vllm:{name}", words, labels=LABELS), states, read)
        for name, (words, read) in COUNTERS.items():
            yield _fill(CounterMetricFamily(f"vllm:{name}", words, labels=LABELS), states, read)
        done = CounterMetricFamily(
            "vllm:request_success", "Requests that ended, by how.", labels=[*LABELS, "finished_reason"]
        )
        for name, state in states.items():
            for reason, count in state.finished.items():
                done.add_metric([name, reason], count)
        yield done


def _fill(family: GaugeMetricFamily | CounterMetricFamily, states: Mapping[str, State], read: object) -> Metric:
    assert callable(read)
    for name, state in states.items():
        family.add_metric([name], read(state))
    return family


class Metrics:
    """All there is to scrape of these engines."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(Engines(engines))
        self._first = self._histogram("time_to_first_token_seconds", "From a request to its first token.", _LONG)
        self._between = self._histogram("inter_token_latency_seconds", "Between an answer's tokens.", _SHORT)
        self._whole = self._histogram("e2e_request_latency_seconds", "From a request to its end.", _LONG)
        self._queued = self._histogram("request_queue_time_seconds", "In the queue.", _LONG)
        self._prefill = self._histogram("request_prefill_time_seconds", "Reading the prompt.", _LONG)
        self._decode = self._histogram("request_decode_time_seconds", "From the first token to the last.", _LONG)
        for name, engine in engines.items():
            for each in (self._first, self._between, self._whole, self._queued, self._prefill, self._decode):
                each.labels(name)
            engine.watch(lambda finished, name=name: self.observe(name, finished))  # type: ignore[misc]

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"vllm:{name}", words, LABELS, buckets=buckets, registry=self.registry)

    def observe(self, name: str, finished: Finished) -> None:
        """A request has ended. (In the engine's thread: the library locks.)"""
        self._whole.labels(name).observe(finished.total)
        self._queued.labels(name).observe(finished.queued)
        if finished.first is not None:
            self._first.labels(name).observe(finished.first)
            self._prefill.labels(name).observe(finished.prefill)
            self._decode.labels(name).observe(finished.decode)
        between = self._between.labels(name)
        for gap in finished.gaps:
            between.observe(gap)

    def router(self) -> APIRouter:
        """GET /metrics."""
        routes = APIRouter()

        @routes.get("/metrics", summary="For Prometheus", response_model=None)
        def metrics() -> Response:
            return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

        return routes
