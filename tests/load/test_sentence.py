"""What a sentence-transformers folder says, in every spelling of its library, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkv import spec
from qkv.errors import ConfigError, CorruptFile, NotFound, QkvError, UnsafeFile
from qkv.load.sentence import Sentence, read, write
from tests.sentences import DIM, TEXTS, bert, sentence_folder, theirs

OLD = "sentence_transformers.models."
PIPELINE = [
    {"idx": 0, "name": "0", "path": "", "type": f"{OLD}Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{OLD}Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{OLD}Normalize"},
]
MEAN = {"word_embedding_dimension": DIM, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def put(folder: Path, **files: Any) -> Path:
    """An old folder (as of 2021), with these of its files changed; None leaves one out."""
    names = {
        "modules": "modules.json",
        "pooling": "1_Pooling/config.json",
        "normalize": "2_Normalize/config.json",
        "bert": "sentence_bert_config.json",
        "about": "config_sentence_transformers.json",
        "tokenizer": "tokenizer_config.json",
        "config": "config.json",
    }
    usual = {"modules": PIPELINE, "pooling": MEAN, "bert": {"max_seq_length": 24, "do_lower_case": False}}
    for key, content in {**usual, **files}.items():
        if content is not None:
            path = folder / names[key]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_an_old_folder(tmp_path: Path) -> None:
    assert read(put(tmp_path), DIM) == Sentence(spec.Pool(how="mean", normalize=True), length=24)


def test_without_modules_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert read(put(tmp_path, modules=None)) is None


@pytest.mark.parametrize(("theirs", "ours"), [("mean", "mean"), ("cls", "cls"), ("max", "max"), ("lasttoken", "last")])
@pytest.mark.parametrize("normalize", [True, False])
def test_what_the_library_writes_today(tmp_path: Path, theirs: str, ours: Any, normalize: bool) -> None:
    options = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}
    folder = sentence_folder(tmp_path, theirs, normalize, similarity_fn_name="dot", **options)
    expected = spec.Pool(how=ours, normalize=normalize)
    assert read(folder, DIM) == Sentence(expected, 48, False, options["prompts"], "query", "dot")


@pytest.mark.parametrize(
    ("pooling", "how"),
    [
        ({}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["max"]}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_max_tokens": True, "include_prompt": True}, "max"),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, "cls"),  # the new spelling has the say
    ],
)
def test_every_spelling_of_a_pooling(tmp_path: Path, pooling: dict[str, Any], how: str) -> None:
    found = read(put(tmp_path, pooling=pooling))
    assert found is not None
    assert found.head.how == how


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"bert": {"max_seq_length": 7}, "tokenizer": {"model_max_length": 5}}, 7),
        ({"bert": {"max_seq_length": None}, "tokenizer": {"model_max_length": 5}}, 5),
        ({"bert": {}, "tokenizer": {"model_max_length": 99}, "config": {"max_position_embeddings": 64}}, 64),
        ({"bert": {}, "tokenizer": {"model_max_length": 10**30}, "config": {"max_position_embeddings": -1}}, None),
        ({"bert": None}, None),
    ],
)
def test_how_long_a_text_may_be(tmp_path: Path, files: dict[str, Any], expected: int | None) -> None:
    found = read(put(tmp_path, **files))
    assert found is not None
    assert found.length == expected


def test_the_other_names_of_the_model_config(tmp_path: Path) -> None:
    put(tmp_path, bert=None)
    (tmp_path / "sentence_roberta_config.json").write_text('{"max_seq_length": 9, "do_lower_case": true}')
    found = read(tmp_path)
    assert found is not None
    assert (found.length, found.lower) == (9, True)


def module(number: int, **changes: Any) -> list[dict[str, Any]]:
    return [{**entry, **changes} if i == number else entry for i, entry in enumerate(PIPELINE)]


DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": f"{OLD}Dense"}
REFUSED = {
    "a Dense layer": ({"modules": [*PIPELINE[:2], DENSE]}, r"module 2.*models\.Dense.*Transformer, Pooling and"),
    "code of the folder": ({"modules": module(0, type="modeling_x.Transformer")}, r"module 0.*modeling_x"),
    "a name like a known one": ({"modules": module(1, type="evil.models.Pooling")}, r"module 1.*evil"),
    "another order": ({"modules": [PIPELINE[0], PIPELINE[2], PIPELINE[1]]}, "Transformer, Normalize, Pooling"),
    "no pooling": ({"modules": PIPELINE[:1]}, "the modules are Transformer;"),
    "two poolings": ({"modules": [PIPELINE[0], PIPELINE[1], PIPELINE[1]]}, "Transformer, Pooling, Pooling"),
    "nothing": ({"modules": []}, "the modules are none"),
    "no list": ({"modules": {}}, "must be a JSON list"),
    "no object": ({"modules": ["x"]}, "module 0 must be an object"),
    "a module's unknown key": ({"modules": module(1, revision="x")}, "'revision' is unknown"),
    "arguments": ({"modules": module(0, kwargs=["task"])}, "'kwargs' is"),
    "no type": ({"modules": [{"path": ""}]}, "'type' is missing"),
    "a number for a path": ({"modules": module(1, path=1)}, "'path' must be a text"),
    "a nested Transformer": ({"modules": module(0, path="0_Transformer")}, "lies in '0_Transformer'"),
    "two modes": ({"pooling": {**MEAN, "pooling_mode_cls_token": True}}, r"'pooling_mode' is 'cls, mean'"),
    "two new modes": ({"pooling": {"pooling_mode": ["cls", "max"]}}, r"'pooling_mode' is 'cls, max'"),
    "weighted": ({"pooling": {"pooling_mode_weightedmean_tokens": True}}, "weightedmean.*mean, lasttoken"),
    "by the root": ({"pooling": {"pooling_mode_mean_sqrt_len_tokens": True}}, "mean_sqrt_len_tokens"),
    "no mode": ({"pooling": {"pooling_mode": 3}}, "'pooling_mode' is 3"),
    "without the prompt": ({"pooling": {**MEAN, "include_prompt": False}}, "'include_prompt' is False"),
    "another width": ({"pooling": {**MEAN, "word_embedding_dimension": 5}}, f"is 5, and the model's states have {DIM}"),
    "a pooling's unknown key": ({"pooling": {**MEAN, "prefix": 1}}, "'prefix' is unknown"),
    "norms of tokens": ({"normalize": {"module_input_name": "token_embeddings"}}, "module_input_name"),
    "another task": ({"bert": {"transformer_task": "text-generation"}}, "transformer_task"),
    "images": ({"bert": {"modality_config": {"image": {}}}}, "modality_config"),
    "arguments of classes": ({"bert": {"model_args": {"trust_remote_code": True}}}, "model_args"),
    "a model's unknown key": ({"bert": {"max_length": 5}}, "'max_length' is unknown"),
    "a length of nothing": ({"bert": {"max_seq_length": 0}}, "max_seq_length"),
    "another kind of model": ({"about": {"model_type": "SparseEncoder"}}, "'model_type' is 'SparseEncoder'"),
    "cut vectors": ({"about": {"truncate_dim": 8}}, "'truncate_dim' is 8"),
    "an unknown similarity": ({"about": {"similarity_fn_name": "maxsim"}}, "similarity_fn_name"),
    "prompts": ({"about": {"prompts": ["x"]}}, "'prompts' must map"),
    "a default that is none": (
        {"about": {"prompts": {"a": ""}, "default_prompt_name": "b"}},
        "'b'; the prompts are: a",
    ),
    "an unknown key": ({"about": {"novel": 1}}, "'novel' is unknown"),
}


@pytest.mark.parametrize(("files", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_part_is_named(tmp_path: Path, files: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, CorruptFile), match=says) as caught:
        read(put(tmp_path, **files), DIM)
    assert str(tmp_path) in str(caught.value)
    if isinstance(caught.value, ConfigError):
        assert "Without modules.json the Transformer alone is loaded" in str(caught.value)


@pytest.mark.parametrize("path", ["../x", "/etc", "a\\..\\b", "1_Pooling/../../x", "%2e%2e/x", "a\0b"])
def test_a_module_outside_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UnsafeFile, match="plain path"):
        read(put(tmp_path, modules=module(1, path=path)))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "model", pooling=None)
    put(tmp_path / "outside")
    (folder / "1_Pooling").symlink_to(tmp_path / "outside/1_Pooling")
    with pytest.raises(UnsafeFile, match="a link to"):
        read(folder)
    (folder / "modules.json").rename(tmp_path / "modules.json")
    (folder / "modules.json").symlink_to(tmp_path / "modules.json")
    with pytest.raises(UnsafeFile, match=r"modules.json is a link to"):
        read(folder)


def test_a_pooling_that_is_not_there_is_never_made_up(tmp_path: Path) -> None:
    put(tmp_path)
    (tmp_path / "1_Pooling/config.json").unlink()
    with pytest.raises(NotFound, match=r"1_Pooling/config.json"):
        read(tmp_path)


@pytest.mark.parametrize("file", ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"])
def test_a_cut_file_is_an_error_of_ours(tmp_path: Path, file: str) -> None:
    put(tmp_path)
    whole = (tmp_path / file).read_bytes()
    for length in range(len(whole)):
        (tmp_path / file).write_bytes(whole[:length])
        with pytest.raises(QkvError, match=file):
            read(tmp_path)


@pytest.mark.parametrize("how", ["mean", "cls", "max", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_written_is_read_again(tmp_path: Path, how: Any, normalize: bool) -> None:
    head = spec.Pool(how=how, normalize=normalize)
    for sentence in (
        Sentence(head),
        Sentence(head, 7, True, {"query": "q: ", "passage": "p: "}, "passage", "euclidean"),
    ):
        write(tmp_path, sentence, DIM)
        assert read(tmp_path, DIM) == sentence


def test_sentence_transformers_does_as_what_is_written_says(tmp_path: Path) -> None:
    """The pooling of random states by both libraries; prompts, length and similarity as it understands them."""
    from sentence_transformers import SentenceTransformer

    written = Sentence(spec.Pool(how="max"), 9, False, {"query": "query: "}, "query", "dot")
    folder = bert(tmp_path / "model")
    write(folder, written, DIM)
    made = SentenceTransformer(str(folder), device="cpu")
    assert (made.max_seq_length, made.default_prompt_name, made.similarity_fn_name) == (9, "query", "dot")
    assert made.prompts["query"] == "query: "
    states = made.encode(TEXTS, output_value="token_embeddings", prompt="")
    np.testing.assert_allclose(made.encode(TEXTS, prompt=""), [s.amax(0) for s in states], atol=1e-6)
    write(folder, replace(written, head=spec.Pool(how="cls", normalize=True)), DIM)
    expected = np.stack([s[0] / s[0].norm() for s in states])
    np.testing.assert_allclose(theirs(folder, TEXTS, prompt=""), expected, atol=1e-6)


def test_importing_this_needs_no_torch() -> None:
    code = "import sys, qkv.load.sentence; print({'torch', 'numpy', 'tokenizers'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
