"""The hub: a stand-in server on 127.0.0.1, and caches built by hand in the documented layout."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from qkv.errors import CorruptFile, NotFound, UnsafeFile
from qkv.load.folder import INDEX
from qkv.load.hub import HubRef, cached_hub, fetch_hub
from tests.load.fake_hub import COMMIT, CONFIG, PLAIN, SHARDED, SHARDS, WEIGHTS, FakeHub, etag

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def online(hub: FakeHub, tmp_path: Path):
    """Runs lines of Python in a process of its own, for the library reads its environment when it is imported."""
    own = ("HF_", "TRANSFORMERS_", "HUGGINGFACE_", "http", "HTTP", "ALL_PROXY", "all_proxy")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "QKV_CACHE": str(tmp_path / "qkv"),
        "NO_PROXY": "127.0.0.1",
    }
    head = """
        import sys
        from pathlib import Path
        from qkv.errors import *
        from qkv.load.hub import *

        opened = []
        sys.addaudithook(lambda event, _: opened.append(event) if event.startswith("socket.") else None)

        def get(ref, **more):
            repo, _, file = ref.partition(":")
            repo, _, revision = repo.partition("@")
            return fetch_hub(HubRef(repo, revision or "main", file or None), **more)

        def fails(ref, kind):
            try:
                get(ref)
            except kind as error:
                return str(error)
            raise AssertionError("no error")
    """

    def run(code: str, **more: str) -> str:
        lines = textwrap.dedent(head) + textwrap.dedent(code)
        command = [sys.executable, "-c", lines]
        where = {"cwd": ROOT, "env": {**environment, **more}}
        done = subprocess.run(command, **where, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        run.stderr = done.stderr
        return done.stdout

    return run


def snapshot(tmp_path: Path, repo: str = "org/plain") -> Path:
    return tmp_path / "hf/hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_model_is_downloaded_resolved_to_a_commit_and_then_found_without_the_hub(hub, online, tmp_path: Path) -> None:
    extra = {"pytorch_model.bin": b"pickle", "modeling_x.py": b"code", "onnx/model.onnx": b"x", "train.json": b"{}"}
    hub.repos["org/plain"] = PLAIN | extra
    out = online("""
        model = get("org/plain", config_only=True)
        print(model.kind, model.commit, sorted(p.name for p in model.path.iterdir()))
        model = get("org/plain")
        print(model.kind, model.path, sorted(p.name for p in model.path.iterdir()), model.how)
        print(get("org/plain").how)
    """).splitlines()
    assert out[0] == f"folder {COMMIT} ['config.json', 'tokenizer.json']"
    assert out[1] == f"folder {snapshot(tmp_path)} ['config.json', 'model.safetensors', 'tokenizer.json'] from the hub"
    assert out[2] == "cached"
    assert sorted(hub.served) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert "downloading org/plain: " in online.stderr
    assert "Fetching" not in online.stderr, "the library's own bars are off"

    asked = len(hub.asked)
    assert online(f"print(get('org/plain@{COMMIT}').how, opened)") == "cached; checked before []\n"
    assert online("print(get('org/plain').how, opened)", HF_HUB_OFFLINE="1") == "cached; HF_HUB_OFFLINE is set []\n"
    out = online("print(fails('org/absent', NotFound), opened)", HF_HUB_OFFLINE="1")
    assert str(tmp_path / "hf/hub/models--org--absent/refs/main") in out
    assert out.strip().endswith("[]")
    assert len(hub.asked) == asked

    hub.shutdown()
    hub.server_close()
    assert "could not be reached" in online("print(get('org/plain').how)")
    assert "could not be reached" in online("print(fails('org/absent', NotFound))")


def test_shards_follow_the_index_and_a_missing_one_is_told(hub, online, tmp_path: Path) -> None:
    hub.repos["org/shards"] = SHARDED | {"model.fp16.safetensors": b"x"}
    hub.repos["org/torn"] = {name: content for name, content in SHARDED.items() if name != SHARDS[1]}
    evil = json.dumps({"weight_map": {"a": "../../../x.safetensors"}}).encode()
    hub.repos["org/evil"] = SHARDED | {INDEX: evil}
    hub.repos["org/old"] = {"config.json": CONFIG, "pytorch_model.bin": b"pickle"}
    out = online("""
        print(sorted(p.name for p in get("org/shards").path.iterdir()))
        print(fails("org/torn", NotFound))
        print(fails("org/evil", UnsafeFile))
        print(fails("org/old", UnsafeFile))
    """).splitlines()
    assert out[0] == str(sorted(SHARDED))
    assert SHARDS[1] in out[1]
    assert "../../../x.safetensors" in out[2]
    assert "pytorch_model.bin" in out[3]
    assert "pytorch_model.bin" not in hub.served
    assert not any("x.safetensors" in path for path in hub.asked)


def test_a_sentence_transformers_repository_comes_with_its_modules(hub, online, tmp_path: Path) -> None:
    about = {"modules.json": b"[]", "1_Pooling/config.json": b"{}", "sentence_bert_config.json": b"{}"}
    hub.repos["org/sentence"] = {**PLAIN, **about, "2_Dense/model.safetensors": WEIGHTS, "data_config.json": b"[]"}
    out = online("""
        print(get("org/sentence", config_only=True).how, get("org/sentence").how, get("org/sentence").how)
    """).split()
    found = snapshot(tmp_path, "org/sentence")
    files = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    assert files == {"config.json", "tokenizer.json", "model.safetensors", *about}
    assert out[-1] == "cached"
    offline = online("print(get('org/sentence').path)", HF_HUB_OFFLINE="1")
    assert offline.strip() == str(found)


def test_gguf_repositories(hub, online, tmp_path: Path) -> None:
    hub.repos["org/one"] = {"a.Q4_0.gguf": WEIGHTS, "README.md": b""}
    hub.repos["org/two"] = {"a.Q4_0.gguf": WEIGHTS, "a.Q8_0.gguf": WEIGHTS, "config.json": CONFIG}
    out = online("""
        print(get("org/one", config_only=True))
        print(fails("org/two", NotFound))
        print(fails("org/two:a.Q2_K.gguf", NotFound))
        print(get("org/two:a.Q8_0.gguf"))
    """).splitlines()
    assert "kind='gguf'" in out[0]
    assert str(snapshot(tmp_path, "org/one") / "a.Q4_0.gguf") in out[0]
    assert "a.Q4_0.gguf, a.Q8_0.gguf" in out[1]
    assert "no a.Q2_K.gguf there" in out[2]
    assert names(snapshot(tmp_path, "org/two")) == {"a.Q8_0.gguf"}
    assert str(snapshot(tmp_path, "org/two") / "a.Q8_0.gguf") in out[3]


def test_a_damaged_file_is_set_aside_and_fetched_again_once(hub, online, tmp_path: Path) -> None:
    hub.repos |= {"org/once": PLAIN, "org/twice": PLAIN, "org/small": PLAIN}
    hub.spoil = {"model.safetensors": 1}
    assert "from the hub" in online("print(get('org/once').how)")
    assert (snapshot(tmp_path, "org/once") / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.served.count("model.safetensors") == 2
    assert not list((tmp_path / "hf").rglob("*.damaged"))

    hub.spoil = {"model.safetensors": 2}
    out = online("print(fails('org/twice', CorruptFile))")
    assert "has sha256" in out
    assert "also after a second download" in out
    assert "model.safetensors" not in names(snapshot(tmp_path, "org/twice"))

    hub.spoil = {"config.json": 1}
    online("get('org/small')")
    assert (snapshot(tmp_path, "org/small") / "config.json").read_bytes() == CONFIG


def test_a_copy_damaged_since_it_was_checked_is_noticed_and_fetched_again(hub, online, tmp_path: Path) -> None:
    hub.repos["org/plain"] = PLAIN
    online("get('org/plain')")
    weights = snapshot(tmp_path) / "model.safetensors"
    blob = weights.resolve()
    for damaged in (WEIGHTS[:-5], bytes([1]) + WEIGHTS[1:]):
        blob.write_bytes(damaged)
        assert "from the hub" in online(f"print(get('org/plain@{COMMIT}').how)")
        assert weights.read_bytes() == WEIGHTS
    partial = blob.with_name(blob.name + ".incomplete")
    partial.write_bytes(b"garbage")  # which versions of the library before 1.0 go on from
    weights.unlink()
    blob.unlink()
    online("get('org/plain')")
    assert weights.read_bytes() == WEIGHTS


def test_refusals_say_what_to_do(hub, online) -> None:
    hub.repos["org/plain"] = PLAIN
    hub.refusals = {"org/gated": (403, "GatedRepo"), "org/private": (401, ""), "org/busy": (503, "")}
    out = online("""
        for ref in ("org/absent", "org/plain@v9", "org/gated", "org/private", "org/busy"):
            print(fails(ref, NotFound))
    """).splitlines()
    for line, says in zip(out, ("there is no", "'v9'", "accept its terms", "HF_TOKEN", "HTTP 503"), strict=True):
        assert says in line


def build(tmp_path: Path, files: dict[str, bytes], ref: str = "main", repo: str = "org/plain") -> Path:
    """A cache as the hub's library leaves it."""
    folder = snapshot(tmp_path, repo)
    for name, content in files.items():
        blob = folder.parents[1] / "blobs" / etag(name, content)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(os.path.relpath(blob, (folder / name).parent))
    pointer = folder.parents[1] / "refs" / ref
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.write_text(COMMIT)
    return folder


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "qkv"))


pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.usefixtures("offline")
def test_what_another_program_downloaded_is_used_after_one_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build(tmp_path, PLAIN, ref="refs/pr/1")
    hashed: list[int] = []
    real = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *a, **k: hashed.append(1) or real(*a, **k))
    ref = HubRef("org/plain", "refs/pr/1")
    assert fetch_hub(ref).path == folder
    assert len(hashed) == 1
    assert fetch_hub(ref).commit == COMMIT
    assert fetch_hub(HubRef("org/plain", COMMIT)).path == folder
    assert len(hashed) == 1, "checked once, then known by size, time and inode"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damage_that_cannot_be_mended_offline_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    folder = build(tmp_path, PLAIN)
    content = PLAIN[name]
    (folder / name).resolve().write_bytes(content[:-1] + b"?")
    with pytest.raises(CorruptFile, match="HF_HUB_OFFLINE is set") as caught:
        fetch_hub(HubRef("org/plain"))
    assert str(folder / name) in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_an_incomplete_copy_names_what_is_missing_and_where(tmp_path: Path) -> None:
    folder = build(tmp_path, {name: content for name, content in SHARDED.items() if name != SHARDS[0]})
    with pytest.raises(NotFound, match=f"no {SHARDS[0]} there") as caught:
        fetch_hub(HubRef("org/plain"))
    assert str(folder) in str(caught.value)
    assert fetch_hub(HubRef("org/plain"), config_only=True).path == folder
    with pytest.raises(NotFound, match=r"no x\.gguf there"):
        fetch_hub(HubRef("org/plain", file="x.gguf"))
    with pytest.raises(NotFound, match="nothing in .*" + "1" * 40):
        fetch_hub(HubRef("org/plain", "1" * 40))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("content", ["", "../../elsewhere"])
def test_a_branch_that_points_nowhere_is_an_error(tmp_path: Path, content: str) -> None:
    folder = build(tmp_path, PLAIN)
    (folder.parents[1] / "refs/main").write_text(content)
    with pytest.raises(CorruptFile, match=r"refs/main .* is no commit"):
        fetch_hub(HubRef("org/plain"))


@pytest.mark.usefixtures("offline")
def test_a_cached_pickle_is_refused(tmp_path: Path) -> None:
    build(tmp_path, {"config.json": CONFIG, "pytorch_model.bin": b"pickle"})
    with pytest.raises(UnsafeFile, match="convert it to safetensors"):
        fetch_hub(HubRef("org/plain"))


@pytest.mark.usefixtures("offline")
def test_a_read_only_cache_of_ours_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "file"))
    folder = build(tmp_path, PLAIN)
    assert fetch_hub(HubRef("org/plain")).path == folder


@pytest.mark.usefixtures("offline")
def test_what_the_hubs_cache_holds_is_listed(tmp_path: Path) -> None:
    assert cached_hub() == []
    folder = build(tmp_path, PLAIN)
    size = sum(len(content) for content in PLAIN.values())
    assert cached_hub() == [(f"org/plain@{COMMIT}", folder, size)]
