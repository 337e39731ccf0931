"""The cache stands where the platform and the user want it."""

import sys
from pathlib import Path

import pytest

from qkv.paths import cache_root


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"QKV_CACHE": "/q", "XDG_CACHE_HOME": "/x"}, "linux", "/q"),
        ({"XDG_CACHE_HOME": "/x"}, "linux", "/x/qkv"),
        ({}, "linux", "/home/me/.cache/qkv"),
        ({}, "darwin", "/home/me/Library/Caches/qkv"),
        ({"LOCALAPPDATA": "/local"}, "win32", "/local/qkv/cache"),
    ],
)
def test_where_the_cache_is(
    environment: dict[str, str], platform: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("QKV_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**environment, "HOME": "/home/me"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_root() == Path(expected)
