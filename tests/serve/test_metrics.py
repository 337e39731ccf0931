"""Numbers for Prometheus: vLLM's names, and what a request adds to them."""

from typing import Any

import httpx

from qkv.serve.metrics import COUNTERS, GAUGES, Metrics
from qkv.serve.state import Finished
from tests.serve.conftest import post

HISTOGRAMS = ("time_to_first_token", "inter_token_latency", "e2e_request_latency")
TIMES = ("request_queue_time", "request_prefill_time", "request_decode_time")


def read(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_names(url: str) -> None:
    answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = read(answer.text)
    for name in GAUGES:
        assert f'vllm:{name}{{model_name="tiny"}}' in found
    for name in COUNTERS:
        assert f'vllm:{name}_total{{model_name="tiny"}}' in found
    for name in (*HISTOGRAMS, *TIMES):
        assert f'vllm:{name}_seconds_count{{model_name="tiny"}}' in found
    for reason in ("stop", "length"):
        assert f'vllm:request_success_total{{finished_reason="{reason}",model_name="tiny"}}' in found


def test_a_request_is_counted(url: str) -> None:
    before = read(httpx.get(f"{url}/metrics").text)
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True, "n": 2}
    assert post(url, "/v1/completions", body).status_code == 200
    after = read(httpx.get(f"{url}/metrics").text)

    def more(name: str, label: str = "") -> float:
        key = f'vllm:{name}{{{label}model_name="tiny"}}'
        return after[key] - before[key]

    assert more("prompt_tokens_total") == 3
    assert more("generation_tokens_total") == 8
    assert more("request_success_total", 'finished_reason="length",') == 1
    assert more("e2e_request_latency_seconds_count") == 1
    assert more("inter_token_latency_seconds_count") == 6
    assert 0 < more("time_to_first_token_seconds_sum") <= more("e2e_request_latency_seconds_sum")


def test_a_request_without_a_token() -> None:
    metrics = Metrics({})
    none: dict[str, Any] = {"first": None, "prefill": 0.0, "decode": 0.0, "gaps": (), "error": None}
    metrics.observe("m", Finished("i", "", 1, 0, 0, 1, "cancelled", arrived=0.0, queued=0.1, total=0.2, **none))
    samples = {s.name: s.value for family in metrics.registry.collect() for s in family.samples if "_count" in s.name}
    assert samples["vllm:e2e_request_latency_seconds_count"] == 1
    assert "vllm:time_to_first_token_seconds_count" not in samples
