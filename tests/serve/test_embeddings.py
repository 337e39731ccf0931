"""Vectors: those of the model itself, from texts and ids, in either form."""

import base64
from typing import Any

import numpy as np
import pytest

import qkv
from qkv.serve.embeddings import AT_ONCE
from tests.sentences import DIM, LONG, TEXTS
from tests.serve.conftest import error, post


def vectors(url: str, given: Any, **more: Any) -> Any:
    found = post(url, "/v1/embeddings", {"model": "vectors", "input": given, **more})
    assert found.status_code == 200, found.text
    data = found.json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return np.array([one["embedding"] for one in data], np.float32)


def test_texts(url: str, sentence_model: qkv.Model) -> None:
    texts = [text for text in TEXTS if text]
    np.testing.assert_allclose(vectors(url, texts), sentence_model.embed(texts), atol=1e-6)
    np.testing.assert_allclose(vectors(url, texts[0]), sentence_model.embed(texts[:1]), atol=1e-6)


def test_many_texts_in_turns(url: str, sentence_model: qkv.Model) -> None:
    texts = [f"fox {i}" for i in range(3 * AT_ONCE + 1)]
    np.testing.assert_allclose(vectors(url, texts), sentence_model.embed(texts), atol=1e-5)


def test_ids(url: str, sentence_model: qkv.Model) -> None:
    words = sentence_model.tokenizer
    assert words is not None
    ids = [words.encode(text) for text in ("the fox", "x")]
    expected = sentence_model.embed(["the fox", "x"])
    np.testing.assert_allclose(vectors(url, ids), expected, atol=1e-6)
    np.testing.assert_allclose(vectors(url, ids[0]), expected[:1], atol=1e-6)


def test_base64_is_the_same_numbers(url: str) -> None:
    found = post(url, "/v1/embeddings", {"model": "vectors", "input": "x", "encoding_format": "base64"}).json()
    numbers = np.frombuffer(base64.b64decode(found["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(numbers, vectors(url, "x")[0])


def test_fewer_dimensions(url: str) -> None:
    whole, short = vectors(url, ["x", "the fox"]), vectors(url, ["x", "the fox"], dimensions=5)
    cut = whole[:, :5]
    np.testing.assert_allclose(short, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(vectors(url, "x", dimensions=DIM)[0].round(5), whole[0].round(5))


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": LONG}, "input[0]"),
        ({"input": ["x", LONG]}, "input[1]"),
        ({"input": [[5] * 49]}, "input"),
        ({"input": [5000]}, "input"),
        ({"dimensions": DIM + 1}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"input": ["x"] * 2049}, "input"),
    ],
)
def test_what_is_refused(url: str, more: dict[str, Any], param: str) -> None:
    found = error(post(url, "/v1/embeddings", {"model": "vectors", "input": "x", **more}), 400)
    assert found["param"] == param
    assert (found["code"] == "context_length_exceeded") == ("tokens" in found["message"])
