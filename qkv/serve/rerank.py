"""POST /v1/rerank: how well each document answers a query, by a model that reads both together."""

import math
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from qkv import spec
from qkv.errors import InputError
from qkv.model import Model
from qkv.serve.embeddings import AT_ONCE, in_turns
from qkv.serve.schemas_text import RerankRequest
from qkv.serve.served import Models, Served, check_length
from qkv.tasks.classify import classify
from qkv.tasks.windows import limit


def router(models: Models) -> APIRouter:
    """The route over these models."""
    routes = APIRouter()

    @routes.post("/v1/rerank", summary="Order documents by a query", response_model=None)
    async def rerank(body: RerankRequest, request: Request) -> Response:
        served = models.asked(body.model, request)
        _check(served)
        texts = [document if isinstance(document, str) else document.text for document in body.documents]
        pairs = [(body.query, text) for text in texts]
        for i, pair in enumerate(pairs):
            check_length(f"documents[{i}]", pair, limit(served.engine.model.spec).size)
        works = [_scores(pairs[i : i + AT_ONCE], i) for i in range(0, len(pairs), AT_ONCE)]
        scores = [score for part in await in_turns(served, works, request, models.options) for score in part]
        models.note(request, inputs=len(scores))
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top_n]
        results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in order]
        if body.return_documents:
            for result in results:
                result["document"] = {"text": texts[result["index"]]}
        return JSONResponse({"model": served.name, "results": results})

    return routes


def _check(served: Served) -> None:
    head = served.engine.model.spec.head
    if not isinstance(head, spec.Classify) or len(head.labels) != 1:
        raise InputError(f"model: {served.name!r} doesn't score pairs (that takes a Classify head of one label)")
    if head.problem == "single":
        raise InputError(f"model: {served.name!r} chooses among labels and has one, so every score is 1")


def _scores(pairs: list[tuple[str, str]], first: int) -> Callable[[Model], list[float]]:
    """Each pair's logit as a probability, as sentence-transformers' CrossEncoder does with one label. (With "multi" it
    is one already.)"""

    def work(model: Model) -> list[float]:
        assert model.tokenizer is not None
        try:
            found = classify(model, model.tokenizer, pairs)
        except InputError as error:
            raise InputError(f"documents: {error}") from error
        return [one.score if one.problem == "multi" else _sigmoid(one.score) for one in found]

    return work


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
