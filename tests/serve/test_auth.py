"""Keys: every route but the open ones is closed, and what is compared and kept is never the key itself. Without keys:
no page of another site can ask in this machine's name."""

import hmac
import re
from collections.abc import Iterator

import httpx
import pytest

from qkv.serve import auth
from qkv.serve.auth import OPEN, Auth, Tenant, is_own
from qkv.serve.options import Options
from tests.serve.conftest import Running, error, llama, post

KEYS = ("first-key-1234", "second-key-5678")


@pytest.fixture(scope="module")
def closed() -> Iterator[Running]:
    running = Running({"tiny": llama()}, keys=KEYS)
    yield running
    running.close()


def routes(running: Running) -> list[tuple[str, str]]:
    """(method, path) of all there are."""
    found: list[tuple[str, str]] = []

    def walk(routes: object) -> None:
        for route in routes:  # type: ignore[attr-defined]
            if hasattr(route, "methods") and hasattr(route, "path"):
                path = re.sub(r"\{\w+(:path)?\}", "x", route.path)
                found.extend((method, path) for method in route.methods or ())
            else:
                inner = getattr(route, "original_router", None) or getattr(route, "router", None) or route
                walk(inner.routes)

    walk(running.server.config.app.routes)  # type: ignore[union-attr]
    return found


WRONG = (None, "Bearer", "Bearer wrong-key", "Bearer first-key-123", "first-key-1234", "Basic first-key-1234")


@pytest.mark.parametrize("header", [*WRONG, "Bearer first-key-12345", "Bearer ünïcode"])
def test_every_route_wants_a_key(closed: Running, header: str | None) -> None:
    found = routes(closed)
    paths = {path for _, path in found}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/metrics", "/tokenize"} <= paths
    with httpx.Client(base_url=closed.url) as client:
        for method, path in found:
            headers = {} if header is None else {"authorization": header.encode()}
            response = client.request(method, path, headers=headers)
            if path in OPEN:
                assert response.status_code < 400 or response.status_code == 405
            elif method == "HEAD":
                assert response.status_code == 401
            else:
                assert error(response, 401)["code"] == "invalid_api_key"
        assert error(client.post("/no/such/route", json={}), 401)
    closed.healthy()


def test_each_key_opens(closed: Running) -> None:
    for key in KEYS:
        body = {"model": "tiny", "prompt": "one", "max_tokens": 1}
        response = post(closed.url, "/v1/completions", body, headers={"authorization": f"bearer {key}"})
        assert response.status_code == 200
    closed.healthy()
    assert not any(key in closed.lines.getvalue() for key in KEYS)
    assert {line.get("tenant") for line in closed.log() if line.get("path") == "/v1/completions"} >= {"key-1", "key-2"}


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    checker = Auth(lambda *_: None, Options(keys=KEYS))  # type: ignore[arg-type,return-value]
    found = checker._tenant(f"Bearer {KEYS[0]}")
    assert found is not None
    assert found.name == "key-1"
    assert [len(a) == len(b) == 32 for a, b in compared] == [True, True]  # all of them, and digests of one length


def test_salts_differ_by_tenant_and_by_wish() -> None:
    a, b = Tenant("key-1", b"a" * 32), Tenant("key-2", b"b" * 32)
    assert len({a.salt(), b.salt(), a.salt("x"), b.salt("x"), Tenant().salt()}) == 5
    assert a.salt("x") == a.salt("x")


OWN = ("", "127.0.0.1:8000", "127.0.0.2", "localhost", "LocalHost:80", "[::1]", "[::1]:8000", "qkv.localhost:1")


@pytest.mark.parametrize("host", [*OWN, "host.docker.internal:8000"])
def test_hosts_that_are_this_machine(host: str) -> None:
    assert is_own(host)


FOREIGN = ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "evil-localhost")


@pytest.mark.parametrize(
    "host", [*FOREIGN, "0.0.0.0:8000", "192.168.1.5", "[::1].evil.example", "127.0.0.1@evil", ":80"]
)
def test_hosts_that_are_not(host: str) -> None:
    assert not is_own(host)


def test_a_page_of_another_site_is_refused(served: Running, url: str, closed: Running) -> None:
    """Its name may mean 127.0.0.1 (DNS rebinding), and its Host then says so."""
    evil = {"host": "evil.example:8000"}
    body = {"model": "tiny", "prompt": "one", "max_tokens": 1}
    for path in ("/", "/look/state", "/v1/models", "/openapi.json", "/no/such/route"):
        assert error(httpx.get(url + path, headers=evil), 403)["code"] == "foreign_host"
    error(post(url, "/v1/completions", body, headers=evil), 403)
    assert post(url, "/v1/completions", body, headers={"host": f"localhost:{served.port}"}).status_code == 200
    known = post(closed.url, "/v1/completions", body, headers={**evil, **closed.headers})  # no page knows the key
    assert known.status_code == 200


def test_who_listens_to_others_may_be_called_anything() -> None:
    assert Auth(lambda *_: None, Options()).local  # type: ignore[arg-type,return-value]
    assert not Auth(lambda *_: None, Options(host="0.0.0.0")).local  # type: ignore[arg-type,return-value]
