"""What a folder holds: which weights are taken, and nothing executed or reached outside."""

import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import CorruptFile, NotFound, UnsafeFile
from qkv.load.folder import (
    INDEX,
    check_member,
    choose_weights,
    folder_files,
    inside,
    sentence_names,
    shard_names,
)


def fill(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def model(folder: Path, *names: str) -> Path:
    return fill(folder, **{"config.json": "{}"}, **dict.fromkeys(names, b""))


def sharded(folder: Path, *shards: str) -> Path:
    index = json.dumps({"weight_map": {f"w{i}": shard for i, shard in enumerate(shards)}})
    return fill(folder, **{"config.json": "{}", INDEX: index})


def test_a_plain_folder_is_listed_whole(tmp_path: Path) -> None:
    root = model(tmp_path / "m", "model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json")
    files = folder_files(root)
    assert (files.config, files.generation_config) == (root / "config.json", root / "generation_config.json")
    assert files.weights == (root / "model.safetensors",)
    assert files.index is None
    assert files.tokenizer == {name: root / name for name in ("tokenizer.json", "chat_template.jinja")}
    assert files.notes == ()


def test_safetensors_win_over_pickles_and_every_file_left_aside_is_told(tmp_path: Path) -> None:
    others = ("pytorch_model.bin", "consolidated.safetensors", "tf_model.h5", "modeling_x.py", "q4.gguf")
    files = folder_files(model(tmp_path, "model.safetensors", *others))
    assert files.weights == (tmp_path / "model.safetensors",)
    told = " ".join(files.notes)
    assert all(name in told for name in others)


def test_a_pickle_alone_is_refused_and_never_opened(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (canary,))

    folder = fill(tmp_path / "m", **{"config.json": "{}", "pytorch_model.bin": pickle.dumps(Trap())})
    with pytest.raises(UnsafeFile, match=r"pytorch_model\.bin.*convert it to safetensors"):
        folder_files(folder)
    assert not canary.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert canary.exists(), "the trap works"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "nothing"),
        (["README.md"], "no weights"),
        (["flax_model.msgpack", "tf_model.h5"], "qkv reads .safetensors and .gguf"),
        (["a.safetensors", "b.safetensors"], "2 candidates"),
        (["a.Q4_0.gguf", "a.Q8_0.gguf"], r"2 candidates.*org/name:FILE\.gguf"),
        (["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], "llama-gguf-split --merge"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], f"{INDEX} is missing"),
        (["onnx/model.safetensors"], "no weights"),
        (["adapter_model.safetensors"], "no weights"),
    ],
)
def test_no_single_choice_of_weights_is_an_error_with_the_way_out(names: list[str], says: str) -> None:
    with pytest.raises(NotFound, match=says):
        choose_weights(names, where="here")


@pytest.mark.parametrize(
    ("names", "kind", "chosen"),
    [
        (["model.safetensors", INDEX], "safetensors", "model.safetensors"),
        ([INDEX, "model-00001-of-00001.safetensors"], "safetensors", INDEX),
        (["model.fp16.safetensors", "pytorch_model.bin"], "safetensors", "model.fp16.safetensors"),
        (["x.Q4_0.gguf", "pytorch_model.bin"], "gguf", "x.Q4_0.gguf"),
    ],
)
def test_the_choice_of_weights(names: list[str], kind: str, chosen: str) -> None:
    choice = choose_weights(names, where="here")
    assert (choice.kind, choice.name) == (kind, chosen)


def test_shards_are_listed_once_each_and_missing_ones_by_name(tmp_path: Path) -> None:
    a, b = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    root = fill(sharded(tmp_path, b, a, b), **{a: b""})
    assert shard_names(root / INDEX) == (a, b)
    with pytest.raises(NotFound, match=f"1 of 2 weight files missing: {b}"):
        folder_files(root)
    fill(root, **{b: b""})
    files = folder_files(root)
    assert (files.weights, files.index, files.notes) == ((root / a, root / b), root / INDEX, ())


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/passwd", "a\\..\\b.safetensors", "a\0.safetensors", "%2e%2e/x.safetensors", "", "C:x",
     "a/../../x.safetensors", "a\n.safetensors"],
)  # fmt: skip
def test_a_shard_name_that_leaves_the_folder_is_refused_before_any_open(tmp_path: Path, name: str) -> None:
    fill(tmp_path, **{"x.safetensors": b""})
    with pytest.raises(UnsafeFile, match="not a plain path"):
        folder_files(sharded(tmp_path / "m", name))


@given(st.text(max_size=20))
def test_a_name_that_passes_stays_inside(name: str) -> None:
    try:
        check_member(name, where="x")
    except UnsafeFile:
        return
    assert os.path.normpath(os.path.join("/some/dir", name)).startswith("/some/dir")


@pytest.mark.parametrize("weight_map", [None, {}, [], {"w": 3}])
def test_a_broken_index_is_corrupt(tmp_path: Path, weight_map: object) -> None:
    fill(model(tmp_path), **{INDEX: json.dumps({"weight_map": weight_map})})
    with pytest.raises(CorruptFile, match="weight_map"):
        folder_files(tmp_path)


def test_an_index_may_name_only_safetensors(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFile, match=r"x\.bin"):
        folder_files(fill(sharded(tmp_path, "x.bin"), **{"x.bin": b""}))


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(tmp_path: Path) -> None:
    outside = fill(tmp_path, secret=b"") / "secret"
    root = model(tmp_path / "m", "real.safetensors")
    (root / "model.safetensors").symlink_to(outside)
    with pytest.raises(UnsafeFile, match=r"link to .*secret"):
        folder_files(root)
    (root / "model.safetensors").unlink()
    (root / "model.safetensors").symlink_to("real.safetensors")
    assert folder_files(root).weights == (root / "model.safetensors",)


def test_the_hub_caches_own_blobs_may_be_linked(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    snapshot = fill(repo / "snapshots" / ("0" * 40))
    fill(repo / "blobs", aa=b"")
    fill(tmp_path / "blobs", bb=b"")
    fill(repo / "refs", cc=b"")
    for blob, allowed in ((repo / "blobs/aa", True), (tmp_path / "blobs/bb", True), (repo / "refs/cc", False)):
        link = snapshot / blob.name
        link.symlink_to(os.path.relpath(blob, snapshot))
        if allowed:
            assert inside(snapshot, blob.name) == link
        else:
            with pytest.raises(UnsafeFile):
                inside(snapshot, blob.name)


def test_a_lone_safetensors_needs_its_config_beside_it(tmp_path: Path) -> None:
    lone = fill(tmp_path, **{"my.safetensors": b""}) / "my.safetensors"
    with pytest.raises(NotFound, match=r"my\.safetensors needs it beside it"):
        folder_files(lone)
    model(tmp_path, "other.safetensors")
    assert folder_files(lone).weights == (lone,)


def test_one_shard_or_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    shard = model(tmp_path / "s", "model-00001-of-00002.safetensors") / "model-00001-of-00002.safetensors"
    with pytest.raises(NotFound, match="give its folder"):
        folder_files(shard)
    with pytest.raises(NotFound, match="this is an adapter"):
        folder_files(fill(tmp_path / "a", **{"adapter_config.json": "{}"}))
    with pytest.raises(NotFound, match="the folder is empty"):
        folder_files(fill(tmp_path / "e"))


def test_config_only_needs_no_weights(tmp_path: Path) -> None:
    files = folder_files(model(tmp_path, "tokenizer.json"), config_only=True)
    assert files.weights == ()
    assert list(files.tokenizer) == ["tokenizer.json"]


def test_what_sentence_transformers_puts_around_a_model() -> None:
    small = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
    modules = ("1_Pooling/config.json", "2_Dense/config.json")
    others = ("config.json", "README.md", "data_config.json", "2_Dense/model.safetensors", "a/b/config.json")
    assert sentence_names([*others, *modules, *small]) == (*small, *modules)
    assert sentence_names([*others, *modules]) == ()
