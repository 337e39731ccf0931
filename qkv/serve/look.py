"""What the page looks into, as JSON: a text's tokens, the attention of every head over them, the engines' state.

    GET  /look/models                             what there is to look into
    POST /look/tokens     {text}                  pieces, ids, and which bytes of the text they are
    POST /look/attention  {text}                  of each head a small map, and where it looks on average
    POST /look/attention  {text, layer, head}     that head's weights, in whole numbers of 1/10,000
    GET  /look/state                              the engines' state now

A recorded pass is one of the engine's calls, between its steps. One runs at a time, and the next waits as long as the
last one took, so that others keep at least half of the engine.
"""

import asyncio
import dataclasses
import json
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from qkv.errors import InputError
from qkv.inputs.text import Tokenizer
from qkv.model import Model
from qkv.serve.engine import Engine
from qkv.serve.maps import MOST_BYTES, MOST_TOKENS, Maps, most_tokens, one_head, parts, recorded, size_of, summary
from qkv.serve.scheduler import Full
from qkv.serve.served import Models, Served

MOST_TEXT = 50_000  # characters
MOST_WAITING = 8

Part = Literal["encoder", "decoder", "cross"]
Text = Annotated[str, Field(max_length=MOST_TEXT)]


class _Ask(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, max_length=256)


class TokensAsk(_Ask):
    """A text to cut. chat: as a user's message, in the model's chat template."""

    text: Text
    chat: bool = False


class AttentionAsk(_Ask):
    """What to read (text or ids), and what to see of it: all heads, or one. target: what the decoder of an
    encoder–decoder has answered so far. part: None is the first that the model has."""

    text: Text | None = None
    ids: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = Field(None, max_length=MOST_TOKENS)
    target: Text = ""
    part: Part | None = None
    layer: int | None = Field(None, ge=0)
    head: int | None = Field(None, ge=0)


def router(models: Models) -> APIRouter:
    """The routes above, over these models."""
    made, recordings = APIRouter(prefix="/look"), Recordings()

    @made.get("/models")
    def several() -> list[dict[str, Any]]:
        return [about(engine) for engine in models.engines.values()]

    @made.get("/state")
    def state() -> list[dict[str, Any]]:
        found = [engine.state() for engine in models.engines.values()]
        return [{field.name: _plain(getattr(one, field.name)) for field in dataclasses.fields(one)} for one in found]

    @made.post("/tokens")
    def tokens(ask: TokensAsk) -> Response:
        words = models.find(ask.model).tokenizer
        return _json(in_chat(words, ask.text) if ask.chat else in_text(words, ask.text))

    @made.post("/attention")
    async def attention(ask: AttentionAsk) -> Response:
        served = models.find(ask.model)
        _part(served.engine.model, ask)
        ids, target = await to_thread.run_sync(_ids, served, ask)
        found = await recordings.of(served.engine, ids, target)
        return await to_thread.run_sync(_answer, served.engine, ask, found, ids, target)

    return made


class Recordings:
    """What was recorded last, so that the next head of the same text costs no pass. Of one event loop."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[tuple[str, tuple[int, ...], tuple[int, ...]], Maps] = OrderedDict()
        self._gate, self._waiting = asyncio.Semaphore(1), 0

    async def of(self, engine: Engine, ids: list[int], target: list[int]) -> Maps:
        """The maps of these ids. Full: too many wait; InputError: too many ids; and what the engine raises."""
        _check_length(engine.model, ids, target)
        key = (engine.name, tuple(ids), tuple(target))
        if key not in self._kept:
            if self._waiting >= MOST_WAITING:
                raise Full("too many texts wait to be looked into; try again in a moment")
            self._waiting += 1
            try:
                await self._gate.acquire()
            finally:
                self._waiting -= 1
            await self._pass(engine, key)
        self._kept.move_to_end(key)
        return self._kept[key]

    async def _pass(self, engine: Engine, key: tuple[str, tuple[int, ...], tuple[int, ...]]) -> None:
        """The pass itself, by whom has the gate; it opens again when it has been shut for twice as long."""
        began = time.monotonic()
        try:
            if key not in self._kept:  # nobody before has recorded it
                work = partial(recorded, ids=list(key[1]), target=list(key[2]))
                self._kept[key] = await asyncio.wrap_future(engine.call(work))
        finally:
            asyncio.get_running_loop().call_later(time.monotonic() - began, self._gate.release)
        while len(self._kept) > 1 and sum(map(size_of, self._kept.values())) > self._most:
            self._kept.popitem(last=False)


# ---------------------------------------------------------------- answers


def about(engine: Engine) -> dict[str, Any]:
    """What the page can do with a model."""
    model, tokenizer = engine.model, engine.model.tokenizer
    return {
        "name": engine.name,
        "family": model.spec.family,
        "generates": engine.generates,
        "chat": engine.generates and tokenizer is not None and bool(tokenizer.chat_templates),
        "tokenizer": tokenizer is not None,
        "vocab": model.spec.vocab,
        "dim": model.spec.dim,
        "context": model.spec.context,
        "parts": {
            part: {"layers": len(mixers), "heads": mixers[0].heads} for part, mixers in parts(model.spec).items()
        },
        "most_tokens": most_tokens(model.spec),
    }


def in_text(tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """A text's tokens, with those that the tokenizer puts around it. Places are bytes of its UTF-8."""
    found = tokenizer.encode_with_offsets(text)
    at = [0]
    for character in text:
        at.append(at[-1] + len(character.encode()))
    tokens = []
    for id, offset in zip(found.ids, found.offsets, strict=True):
        token = tokenizer.token(id)
        if offset is None:
            tokens.append({"id": id, "token": token, "text": token, "start": None, "end": None, "special": True})
        else:
            start, end = offset
            place = {"start": at[start], "end": at[end], "special": False}
            tokens.append({"id": id, "token": token, "text": text[start:end], **place})
    return {"tokens": tokens, "characters": len(text), "bytes": at[-1], "vocab": tokenizer.vocab_size}


def in_chat(tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """The tokens of a user's message, in the model's template. TokenizerError: it has none."""
    tokens = _named(tokenizer, tokenizer.chat([{"role": "user", "content": text}]))
    extra = {"start": None, "end": None}
    size = {"characters": len(text), "bytes": len(text.encode()), "vocab": tokenizer.vocab_size}
    return {"tokens": [{**token, **extra} for token in tokens], **size}


def _named(tokenizer: Tokenizer | None, ids: Sequence[int]) -> list[dict[str, Any]]:
    """Of each id its token and the text that it adds: "" where a character is not complete yet."""
    if tokenizer is None:
        return [{"id": id, "token": str(id), "text": str(id), "special": False} for id in ids]
    decoder, specials = tokenizer.stream(skip_special=False), set(tokenizer.specials.values())
    return [{"id": id, "token": tokenizer.token(id), "text": decoder.push(id), "special": id in specials} for id in ids]


def _answer(engine: Engine, ask: AttentionAsk, found: Maps, ids: list[int], target: list[int]) -> Response:
    model, part = engine.model, _part(engine.model, ask)
    layers, base = found[part], {"model": engine.name, "part": part, "parts": list(found)}
    if ask.layer is not None and ask.head is not None:
        mixer = parts(model.spec)[part][ask.layer]
        one = one_head(layers[ask.layer][ask.head], mixer, model.spec.dim)
        return _json({**base, "layer": ask.layer, "head": ask.head, **one})
    queries, keys = _named(model.tokenizer, ids), _named(model.tokenizer, target)
    sides = {"encoder": (queries, queries), "decoder": (keys or queries, keys or queries), "cross": (keys, queries)}
    rows, columns = sides[part]
    own = None if part == "cross" else [token["id"] for token in rows]
    return _json({**base, "queries": rows, "keys": columns, "layers": [summary(layer, own) for layer in layers]})


# ---------------------------------------------------------------- what goes in


def _part(model: Model, ask: AttentionAsk) -> str:
    """The part that is asked for. InputError: there is no such part, layer or head."""
    there = parts(model.spec)
    if not there:
        raise InputError("this model has no attention to look at")
    part = next(iter(there)) if ask.part is None else str(ask.part)
    if part not in there:
        raise InputError(f"part: this model has no {part!r}, it has: {', '.join(there)}")
    if (ask.layer is None) != (ask.head is None):
        raise InputError("layer and head go together; leave out both for a summary of all heads")
    if ask.layer is not None and ask.layer >= len(there[part]):
        raise InputError(f"layer: must be below {len(there[part])}, got {ask.layer}")
    if ask.layer is not None and ask.head is not None and ask.head >= there[part][ask.layer].heads:
        raise InputError(f"head: must be below {there[part][ask.layer].heads}, got {ask.head}")
    return part


def _check_length(model: Model, ids: list[int], target: list[int]) -> None:
    longest, most = max(len(ids), len(target)), most_tokens(model.spec)
    if longest > most:
        raise InputError(f"text: {longest} tokens are too many to look into at once; this model's limit is {most}")


def _ids(served: Served, ask: AttentionAsk) -> tuple[list[int], list[int]]:
    model = served.engine.model
    if (ask.text is None) == (ask.ids is None):
        raise InputError("text: give either a text or ids")
    ids = ask.ids if ask.text is None else served.tokenizer.encode(ask.text)
    if not ids:
        raise InputError("text: it is empty, there is nothing to look at")
    if model.encoder is None or model.decoder is None:
        return ids, []
    if model.spec.start is None:
        raise InputError("target: this model names no token that its decoder begins with")
    return ids, [model.spec.start, *(served.tokenizer.encode(ask.target, special=False) if ask.target else [])]


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _json(body: Any) -> Response:
    return Response(json.dumps(body, ensure_ascii=False, separators=(",", ":")), media_type="application/json")
