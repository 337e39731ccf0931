"""`qkv serve`: names, keys, a dry run. (What it serves: tests/serve; the process itself: test_hardening_ends there.)"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from qkv.cli.serve import names_of
from qkv.errors import InputError
from qkv.serve import replicas
from qkv.serve.scheduler import BUDGET, MOST_RUNNING, MOST_WAITING
from tests.cli.conftest import Command


def test_a_dry_run_says_what_it_would_take(command: Command, folder: Path) -> None:
    ran = command("serve", folder, "--dry-run", "--cache", "4096", "--json")
    assert ran.code == 0
    about = ran.json["models"]["tiny"]
    assert (about["tokens"], about["page"]) == (4096, 16)
    assert about["weights"] > 0
    assert about["cache"] == about["pages"] * about["page_bytes"]
    limits = ran.json["limits"]
    assert (limits["host"], limits["keys"]) == ("127.0.0.1", 0)
    sizes = [limits[name] for name in ("budget", "most_running", "most_waiting")]
    assert sizes == [BUDGET, MOST_RUNNING, MOST_WAITING], "which the command says again, to be quick with --help"
    text = command("serve", folder, f"other={folder}", "--dry-run", "--cache", "1MB").out
    assert "tiny\n" in text
    assert "other\n" in text
    assert "999.4 KB: 3,904 tokens in 244 pages" in text
    assert "max_body" in text


def test_a_dry_run_tells_no_key(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEYS", "secret-key-1,secret-key-2")
    ran = command("serve", folder, "--dry-run", "--api-key-env", "MY_KEYS", "--json")
    assert ran.json["limits"]["keys"] == 2
    assert "secret" not in ran.out + ran.err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
def test_wider_than_this_machine_needs_a_key(command: Command, folder: Path, host: str) -> None:
    ran = command("serve", folder, "--host", host, "--dry-run", "--json")
    assert ran.code == 1
    assert "QKV_API_KEY" in ran.json["error"]["message"]


def test_a_dry_run_refuses_what_an_engine_would(command: Command, folder: Path) -> None:
    ran = command("serve", folder, "--dry-run", "--budget", 10)
    assert ran.code == 1
    assert "a step of 10 tokens for 64 sequences" in ran.err
    ran = command("serve", folder, "--dry-run", "--grace", "inf")
    assert ran.code == 1
    assert "grace at least 0 seconds and finite" in ran.err


def test_a_cache_that_is_none(command: Command, folder: Path) -> None:
    for wrong in ("x", "0", "-1", "16"):
        assert command("serve", folder, "--dry-run", f"--cache={wrong}").code == 1


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(command: Command, tmp_path: Path) -> None:
    from qkv.serve.options import Options
    from qkv.serve.run import bind

    with bind(Options(port=0)) as taken:
        ran = command("serve", tmp_path / "no-such-model", "--port", taken.getsockname()[1])
    assert ran.code == 1
    assert "can't listen" in ran.err
    assert json.loads(ran.err.splitlines()[0])["step"] == "imports"


def test_names(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (tmp_path / "words.gguf").touch()
    refs = ["smollm2", "org/name@main", str(folder), f"chat={folder}", str(tmp_path / "words.gguf")]
    assert list(names_of(refs)) == ["smollm2", "org/name@main", "my-model", "chat", "words"]
    assert names_of(["pypi:a==1.0"]) == {"pypi:a==1.0": "pypi:a==1.0"}
    with pytest.raises(InputError, match="other="):
        names_of([str(folder), f"my-model={folder}"])


def test_replicas_are_told_as_json_too(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, int]] = []
    monkeypatch.setattr(replicas, "plan_of", lambda wanted, *more: SimpleNamespace(name=next(iter(wanted))))
    monkeypatch.setattr(replicas, "serve_replicas", lambda plan, count: started.append((plan.name, count)) or 0)
    ran = command("serve", folder, "--replicas", 2, "--port", 8123, "--json")
    assert ran.code == 0
    assert ran.json == {"url": "http://127.0.0.1:8123", "models": [{"name": "tiny"}], "replicas": 2}
    assert started == [("tiny", 2)]


def test_replicas_are_of_one_model(command: Command, folder: Path) -> None:
    ran = command("serve", folder, f"other={folder}", "--replicas", 2)
    assert ran.code == 1
    assert "one model" in ran.err
