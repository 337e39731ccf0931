"""The description of the API is true, and whatever it allows (and much that it doesn't) is answered without a 500."""

import json
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error

from tests.serve.conftest import Running


def test_it_describes_every_route(url: str) -> None:
    found = httpx.get(f"{url}/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/health"} <= set(found["paths"])
    chat = found["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = found["components"]["schemas"][chat["$ref"].rsplit("/", 1)[1]]["properties"]
    assert {"messages", "model", "tools", "temperature"} <= set(fields)
    assert "schema" in found["components"]["schemas"]["JsonSchema"]["properties"]


def test_nothing_comes_from_elsewhere(url: str) -> None:
    """No page of FastAPI's own, which would load its parts from a content network."""
    for path in ("/docs", "/redoc"):
        assert httpx.get(url + path).status_code == 404


@pytest.mark.slow
def test_no_request_gives_a_500(served: Running, url: str) -> None:
    found = httpx.get(f"{url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(found)
    schema.config.update(base_url=url)
    many = hypothesis.settings(
        max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
    )
    for result in schema.get_all_operations():
        operation = result.ok()

        @many
        @hypothesis.given(case=operation.as_strategy())
        def check(case: Any) -> None:
            body = case.body if isinstance(case.body, dict) else None
            if body is not None and "model" in body:
                case.body = (
                    {**body, "model": "tiny", "max_tokens": 2} if "max_tokens" in body else {**body, "model": "tiny"}
                )
            case.call_and_validate(checks=[not_a_server_error], timeout=60)

        check()
    failed = [line for line in served.log() if line.get("status", 0) >= 500]
    assert not failed, json.dumps(failed[:3])
