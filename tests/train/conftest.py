"""A folder with a tiny recipe's data."""

import pytest

from tests.train.tiny import write


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Samples that are made of it are kept in it."""
    monkeypatch.setattr("qkv.train.prepare.cache_root", lambda: tmp_path / "cache")
    write(tmp_path)
    return tmp_path
