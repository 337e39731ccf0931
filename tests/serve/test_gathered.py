"""Several processes' metrics as one text, which Prometheus' own parser reads."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from qkv.serve.gathered import gather


def text(requests: int, running: int, times: list[float]) -> str:
    registry = CollectorRegistry()
    Counter("vllm:request_success", "Ended.", ["model_name"], registry=registry).labels("m").inc(requests)
    Gauge("vllm:num_requests_running", "Now.", ["model_name"], registry=registry).labels("m").set(running)
    seconds = Histogram("vllm:seconds", "Time.", ["model_name"], buckets=(1.0, 2.0), registry=registry)
    for time in times:
        seconds.labels("m").observe(time)
    return generate_latest(registry).decode()


def samples(of: str) -> dict[tuple[str, str, str], float]:
    return {
        (sample.name, sample.labels["replica"], sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(of)
        for sample in family.samples
    }


def test_each_replica_keeps_its_own_samples() -> None:
    found = gather({"0": text(3, 1, [0.5, 1.5]), "1": text(5, 0, [9.0])}).decode()
    values = samples(found)
    assert values["vllm:request_success_total", "0", ""] == 3
    assert values["vllm:request_success_total", "1", ""] == 5
    assert values["vllm:num_requests_running", "0", ""] == 1
    assert values["vllm:seconds_bucket", "0", "1.0"] == 1
    assert values["vllm:seconds_bucket", "0", "+Inf"] == values["vllm:seconds_count", "0", ""] == 2
    assert values["vllm:seconds_sum", "0", ""] == 2.0
    assert values["vllm:seconds_bucket", "1", "2.0"] == 0
    for kind in ("counter", "gauge", "histogram"):
        assert found.count(f"{kind}\n") >= 1


def test_a_metric_is_described_once() -> None:
    found = gather({str(i): text(i, i, [1.0]) for i in range(4)}).decode()
    assert found.count("# HELP vllm:request_success_total ") == 1
    assert found.count("# TYPE vllm:seconds histogram") == 1
    assert gather({}) == b""
