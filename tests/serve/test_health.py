"""Health: a step loop that turns is healthy; one that starts, hangs or has died is not."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from qkv.serve.health import state_of
from tests.serve.conftest import Running, error, llama, post, until


@pytest.mark.parametrize(
    ("engine", "state"),
    [
        ({}, "ok"),
        ({"ready": False}, "starting"),
        ({"ready": False, "alive": False}, "starting"),
        ({"beat": 31.0}, "stalled"),
        ({"alive": False}, "dead"),
        ({"failure": RuntimeError()}, "dead"),
        ({"failure": RuntimeError(), "ready": False}, "dead"),
    ],
)
def test_state(engine: dict[str, Any], state: str) -> None:
    given = {"ready": True, "alive": True, "failure": None, "beat": 0.1, **engine}
    assert state_of(SimpleNamespace(heartbeat=lambda: given["beat"], **given), 30.0) == state  # type: ignore[arg-type]


@pytest.fixture
def fragile() -> Iterator[Running]:
    running = Running({"tiny": llama()}, health_seconds=0.7)
    yield running
    running.close()


def test_a_loop_that_hangs_is_seen(fragile: Running) -> None:
    import threading

    release = threading.Event()
    fragile.engine.call(lambda model: release.wait(20))
    until(lambda: httpx.get(f"{fragile.url}/health").status_code == 503)
    assert httpx.get(f"{fragile.url}/health").json() == {"status": "stalled"}
    release.set()
    until(lambda: httpx.get(f"{fragile.url}/health").status_code == 200)
    fragile.healthy()


def test_a_loop_that_has_died_is_seen(fragile: Running) -> None:
    def die(model: object) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        fragile.engine.call(die).result(10)
    until(lambda: not fragile.engine.alive)
    assert httpx.get(f"{fragile.url}/health").json() == {"status": "dead"}
    body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
    assert error(post(fragile.url, "/v1/completions", body), 503)["code"] == "unavailable"
