"""Rows S7, S8 of bad inputs: bodies and headers that are no request, or too large. (Too slow: test_protocol.)"""

import httpx
import pytest

from tests.serve.conftest import Running, error, request

BODIES = [
    (b"", 400),
    (b"[]", 400),
    (b"1", 400),
    (b'"text"', 400),
    (b"null", 400),
    (b"{", 400),
    (b"[" * 100_000, 400),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
    (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', 400),
    (b'{"model": "tiny", "prompt": "x", "temperature": Infinity}', 400),
    (b'{"model": "tiny", "prompt": "x", "temperature": 1e999}', 400),
    (b'{"model": "tiny", "prompt": "x", "prompt": "y"}', 400),
    (b'{"model": "tiny", "prompt": "\xff\xfe"}', 400),
    (b'\xef\xbb\xbf{"model": "tiny", "prompt": "x"}', 400),
    (b'{"model": "tiny", "prompt": "' + b"x" * 10_000_000 + b'"}', 413),
    (b'{"model": "tiny", "prompt": "x", "max_tokens": 1' + b"0" * 10_000 + b"}", 400),
    (b"--x\r\nContent-Disposition: form-data\r\n\r\n", 400),
]


@pytest.mark.parametrize(("body", "status"), BODIES, ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize"])
def test_bodies_that_are_no_request(served: Running, path: str, body: bytes, status: int) -> None:
    head = {"content-type": "application/json"}
    error(httpx.post(served.url + path, content=body, headers=head, timeout=30), status)


def test_after_all_bodies(url: str) -> None:
    """`url` looks at the server when it is done."""


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_a_form_of_another_site_is_refused(url: str, kind: str) -> None:
    head = {"content-type": kind} if kind else {}
    found = httpx.post(f"{url}/v1/completions", content=b'{"model": "tiny", "prompt": "x"}', headers=head)
    error(found, 415)


def test_a_large_body_is_not_read(served: Running, url: str) -> None:
    answer = served.send(request("/v1/completions", "Content-Length: 1000000000", body=b"{" + b" " * 1000))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = served.send(request("/v1/completions", "Transfer-Encoding: chunked", body=chunk * 100))
    assert answer.startswith(b"HTTP/1.1 413") or answer == b""  # reset by the close while it still sends


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n" + b"X-Long: " + b"x" * 1_000_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(10_000)) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\0" * 1000,
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA\0B: y\r\n\r\n",
    ],
    ids=lambda raw: repr(raw)[:30],
)
def test_headers_that_are_none_or_too_many(served: Running, url: str, raw: bytes) -> None:
    answer = served.send(raw, wait=3)
    assert answer == b"" or answer.split()[1] in (b"400", b"431"), answer[:200]
