"""GET /metrics over several processes: what each of them exposes, with a label that tells them apart."""

from collections.abc import Callable, Iterator, Mapping

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


class Gathered(Collector):
    """{replica: its metrics as text} as the metrics of one."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts

    def collect(self) -> Iterator[Metric]:
        """Each metric once, with the samples of all."""
        found: dict[str, Metric] = {}
        for replica, text in self.texts.items():
            for one in text_string_to_metric_families(text):
                whole = found.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                whole.samples += [sample._replace(labels={**sample.labels, LABEL: replica}) for sample in one.samples]
        yield from found.values()


def gather(texts: Mapping[str, str]) -> bytes:
    """The text that tells of all of them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Gathered(texts))
    return generate_latest(registry)


def of_all(reports: Callable[[], Mapping[str, str]]) -> APIRouter:
    """GET /metrics of whoever reports."""
    routes = APIRouter()

    @routes.get("/metrics", summary="For Prometheus, of all replicas", response_model=None)
    def metrics() -> Response:
        return Response(gather(reports()), media_type=CONTENT_TYPE_LATEST)

    return routes
