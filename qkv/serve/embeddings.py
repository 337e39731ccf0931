"""POST /v1/embeddings: texts or ids to vectors."""

import asyncio
import base64
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import torch
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray

from qkv import spec
from qkv.errors import InputError
from qkv.model import Model
from qkv.nn.modes import evaluating
from qkv.serve.completions import ids_of
from qkv.serve.errors import Gone, Refused, param_of
from qkv.serve.options import Options
from qkv.serve.schemas_text import EmbeddingRequest
from qkv.serve.served import Models, Served, check_length, lasts
from qkv.tasks.embed import TooLong, embed
from qkv.tasks.windows import limit

AT_ONCE = 32  # texts between two turns of the engine, so that others get theirs
T = TypeVar("T")


def router(models: Models) -> APIRouter:
    """The route over these models."""
    routes = APIRouter()

    @routes.post("/v1/embeddings", summary="Turn texts into vectors", response_model=None)
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        served = models.asked(body.model, request)
        _check(served, body)
        vectors, tokens = await _vectors(served, body, request, models.options)
        models.note(request, prompt_tokens=tokens, inputs=len(vectors))
        shown = [_shown(vector, body.encoding_format or "float") for vector in _shortened(vectors, body.dimensions)]
        data = [{"object": "embedding", "index": i, "embedding": one} for i, one in enumerate(shown)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": usage})

    return routes


def _check(served: Served, body: EmbeddingRequest) -> None:
    model = served.engine.model
    if not isinstance(model.spec.head, spec.Pool):
        head = type(model.spec.head).__name__
        raise InputError(f"model: {served.name!r} (its head is {head}) makes no vector of a text; see /v1/models")
    if body.dimensions is not None and body.dimensions > model.spec.dim:
        raise InputError(f"dimensions must be at most {model.spec.dim}, got {body.dimensions}")


async def _vectors(
    served: Served, body: EmbeddingRequest, request: Request, options: Options
) -> tuple[NDArray[np.float32], int]:
    """A vector a text, and the tokens that were read."""
    given = body.input
    if isinstance(given, str) or isinstance(given[0], str):
        texts = [given] if isinstance(given, str) else list(given)
        for i, text in enumerate(texts):
            check_length(f"input[{i}]", [text], limit(served.engine.model.spec).size)
        works = [_of_texts(texts[i : i + AT_ONCE], i) for i in range(0, len(texts), AT_ONCE)]
    else:
        rows = ids_of(served, given, "input")
        works = [_of_ids(rows[i : i + AT_ONCE]) for i in range(0, len(rows), AT_ONCE)]
    found = await in_turns(served, works, request, options)
    return np.concatenate([vectors for vectors, _ in found]), sum(tokens for _, tokens in found)


Vectors = tuple[NDArray[np.float32], int]


def _of_texts(texts: Sequence[Any], first: int) -> Callable[[Model], Vectors]:
    def work(model: Model) -> Vectors:
        name = lambda i: f"input[{first + i}]"  # noqa: E731
        try:
            found = embed(model, model.tokenizer, texts, model.sentence, name=name)
        except TooLong as error:
            raise _too_long(error.what) from error
        return found.vectors, found.tokens

    return work


def _of_ids(rows: list[list[int]]) -> Callable[[Model], Vectors]:
    """Ids as they are: a client that sends them has put in the special ones that it wants."""

    def work(model: Model) -> Vectors:
        most = limit(model.spec)
        for row in rows:
            if most.size is not None and len(row) > most.size:
                raise _too_long(f"input has {len(row)} tokens, and {most.size} are read ({most.why})")
        with torch.inference_mode(), evaluating(model):
            vectors = np.stack([model([row])[0].float().cpu().numpy() for row in rows])
        return vectors, sum(map(len, rows))

    return work


def _too_long(what: str) -> Refused:
    return Refused(400, what, code="context_length_exceeded", param=param_of(what))


async def in_turns(
    served: Served, works: Sequence[Callable[[Model], T]], request: Request, options: Options
) -> list[T]:
    """Each piece of work between two steps of the engine, one after the other, and no more once the client has gone."""
    done: list[T] = []
    try:
        async with asyncio.timeout(options.request_seconds):
            for work in works:
                if await request.is_disconnected():
                    raise Gone
                future: Future[T] = served.engine.call(work)
                try:
                    done.append(await asyncio.wrap_future(future))
                finally:
                    future.cancel()
    except TimeoutError:
        raise lasts(options, "reading the texts") from None
    return done


def _shortened(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The first so many numbers of each, of length 1 again."""
    if dimensions is None:
        return vectors
    short = vectors[:, :dimensions]
    length = np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)
    return np.asarray(short / length, np.float32)


def _shown(vector: NDArray[np.float32], form: str) -> list[float] | str:
    if form == "float":
        return [float(x) for x in vector]
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode()
