"""Options: who may listen where, and with which keys."""

import dataclasses
from typing import Any

import pytest

from qkv.errors import InputError
from qkv.serve.options import Options, is_loopback, keys_from


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", ""])
def test_wider_than_this_machine_needs_a_key(host: str) -> None:
    with pytest.raises(InputError, match="QKV_API_KEY"):
        Options(host=host).check_open("QKV_API_KEY")
    Options(host=host, keys=("a-long-enough-key",)).check_open("QKV_API_KEY")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_this_machine_needs_none(host: str) -> None:
    assert is_loopback(host)
    Options(host=host).check_open("QKV_API_KEY")


def test_the_default_is_this_machine() -> None:
    assert Options().host == "127.0.0.1"


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys_from("QKV_TEST_KEY") == ()
    monkeypatch.setenv("QKV_TEST_KEY", " first-key-1, second-key\nfirst-key-1 ")
    assert keys_from("QKV_TEST_KEY") == ("first-key-1", "second-key")
    for empty in ("", " ", ",", " ,\n"):
        monkeypatch.setenv("QKV_TEST_KEY", empty)
        with pytest.raises(InputError, match="holds no key"):
            keys_from("QKV_TEST_KEY")


@pytest.mark.parametrize("key", ["short", "with space in", "naïve-naïve", ""])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(InputError, match="API key"):
        Options(keys=(key,))


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(Options(keys=("secret-key",)))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"port": -1}, {"port": 65536}, {"max_body": 0}, {"body_seconds": 0}, {"grace": -1}, {"most_connections": 0}),
        {"request_seconds": float("nan")},
        *({name: float("inf")} for name in ("grace", "header_seconds", "request_seconds", "health_seconds")),
    ],
)
def test_wrong_values_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        dataclasses.replace(Options(), **wrong)
