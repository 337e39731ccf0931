"""POST /tokenize and /detokenize, and GET /v1/models."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from qkv.errors import NotFound
from qkv.serve.chat import prompt_of
from qkv.serve.schemas_text import DetokenizeRequest, TokenizeRequest
from qkv.serve.served import Models, Served


def router(models: Models) -> APIRouter:
    """The routes over these models."""
    routes = APIRouter()
    since = int(time.time())

    @routes.post("/tokenize", summary="The ids of a text", response_model=None)
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        served = models.asked(body.model, request)
        ids, words = await asyncio.to_thread(_tokens, served, body, models.options.template_variables)
        models.note(request, prompt_tokens=len(ids))
        most = served.engine.limits.context
        return JSONResponse({"count": len(ids), "max_model_len": most, "tokens": ids, "token_strs": words})

    @routes.post("/detokenize", summary="The text of ids", response_model=None)
    async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
        served = models.asked(body.model, request)
        text = await asyncio.to_thread(served.tokenizer.decode, body.tokens, skip_special=False)
        return JSONResponse({"prompt": text})

    @routes.get("/v1/models", summary="The models served here", response_model=None)
    async def several() -> Response:
        return JSONResponse({"object": "list", "data": [_about(one, since) for one in models.served.values()]})

    @routes.get("/v1/models/{name:path}", summary="One of them", response_model=None)
    async def one(name: str) -> Response:
        if name not in models.served:
            raise NotFound(f"no model is named {name[:80]!r}: there is {', '.join(models.served)}")
        return JSONResponse(_about(models.served[name], since))

    return routes


def _tokens(served: Served, body: TokenizeRequest, variables: tuple[str, ...]) -> tuple[list[int], list[str] | None]:
    """Ids, and each as a text where they are asked for. A long text takes seconds: not for the event loop."""
    ids = _ids(served, body, variables)
    return ids, [served.words.text(id) for id in ids] if body.return_token_strs else None


def _ids(served: Served, body: TokenizeRequest, variables: tuple[str, ...]) -> list[int]:
    if body.messages is None:
        return served.encode([body.prompt or ""], special=body.add_special_tokens is not False)[0]
    answer = body.add_generation_prompt is not False
    return prompt_of(served, body.messages, body.tools or [], body.chat_template_kwargs, variables, answer=answer)


def _about(served: Served, since: int) -> dict[str, Any]:
    head = type(served.engine.model.spec.head).__name__
    about = {"id": served.name, "object": "model", "created": since, "owned_by": "qkv"}
    return {**about, "max_model_len": served.engine.limits.context, "head": head, "generates": served.engine.generates}
