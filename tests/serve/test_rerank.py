"""Documents in the order of their scores, which are those of the model itself."""

import math
from collections.abc import Iterator

import pytest

import qkv
from qkv import spec
from tests.serve.conftest import Running, bert, error, post


@pytest.fixture(scope="module")
def pairs() -> Iterator[tuple[Running, qkv.Model]]:
    model = bert(spec.Classify(("score",), "regression"))
    running = Running({"pairs": model})
    yield running, model
    running.close()


DOCUMENTS = ["the quick fox", "a b c", "brown brown", "日本 naive"]


def test_scores_and_order(pairs: tuple[Running, qkv.Model]) -> None:
    running, model = pairs
    body = {"model": "pairs", "query": "fox", "documents": [*DOCUMENTS[:2], *({"text": d} for d in DOCUMENTS[2:])]}
    found = post(running.url, "/v1/rerank", {**body, "return_documents": True}).json()["results"]
    expected = [1 / (1 + math.exp(-one.score)) for one in model.predict(["fox"] * 4, DOCUMENTS)]
    assert [one["index"] for one in found] == sorted(range(4), key=lambda i: -expected[i])
    for one in found:
        assert one["relevance_score"] == pytest.approx(expected[one["index"]], abs=1e-5)
        assert one["document"] == {"text": DOCUMENTS[one["index"]]}
    top = post(running.url, "/v1/rerank", {**body, "top_n": 2}).json()["results"]
    assert top == [{"index": one["index"], "relevance_score": one["relevance_score"]} for one in found[:2]]
    running.healthy()


def test_many_documents_in_turns(pairs: tuple[Running, qkv.Model]) -> None:
    running, _ = pairs
    body = {"model": "pairs", "query": "fox", "documents": ["x", "fox fox"] * 50}
    found = post(running.url, "/v1/rerank", body).json()["results"]
    assert sorted(one["index"] for one in found) == list(range(100))


def test_heads_of_one_label() -> None:
    models = {kind: bert(spec.Classify(("score",), kind)) for kind in ("regression", "multi", "single")}
    running = Running(models)
    body = {"query": "fox", "documents": DOCUMENTS}
    scores = [post(running.url, "/v1/rerank", {"model": m, **body}).json()["results"] for m in ("regression", "multi")]
    for one, other in zip(*scores, strict=True):
        assert one["index"] == other["index"]
        assert one["relevance_score"] == pytest.approx(other["relevance_score"], abs=1e-6)
    assert "every score is 1" in error(post(running.url, "/v1/rerank", {"model": "single", **body}), 400)["message"]
    running.close()


def test_what_is_refused(pairs: tuple[Running, qkv.Model], served: Running) -> None:
    running, _ = pairs
    long = {"model": "pairs", "query": "fox", "documents": ["x", "fox " * 60]}
    assert "documents" in error(post(running.url, "/v1/rerank", long), 400)["message"]
    for name in ("tiny", "vectors"):
        body = {"model": name, "query": "fox", "documents": ["x"]}
        assert "score pairs" in error(post(served.url, "/v1/rerank", body), 400)["message"]
