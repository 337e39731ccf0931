"""POST /v1/completions: texts or ids go on, with the prompt before them (`echo`) and log-probabilities in the shape of
the older API, which lm-eval reads."""

import asyncio
import codecs
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from qkv.errors import InputError
from qkv.serve.ask import Ask
from qkv.serve.events import Ended, Piece, Prompt, Scored
from qkv.serve.schemas_text import CompletionRequest
from qkv.serve.served import Models, Served, grammar_of, salt
from qkv.serve.stream import Answers, Total, answered
from qkv.serve.words import LEAST, Words, finite

MAX_TOKENS = 16  # where the client names no number, as the API has it


def router(models: Models) -> APIRouter:
    """The route over these models."""
    routes = APIRouter()

    @routes.post("/v1/completions", summary="Continue a text", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        served = models.asked(body.model, request)
        prompts, asks = await asyncio.to_thread(_asks, served, body, request)
        reply = CompletionReply(served, body, prompts)
        return await answered(reply, Answers(served.engine, asks, request, models.options), body.stream)

    return routes


def _asks(served: Served, body: CompletionRequest, request: Request) -> tuple[list[list[int]], list[Ask]]:
    """The prompts as ids, and one ask for each."""
    served.check_generates()
    prompts = ids_of(served, body.prompt, "prompt")
    if body.logprobs is not None:
        if served.engine.model.tokenizer is None:
            raise InputError(f"logprobs: they are told by tokens' texts, and {served.name!r} has no tokenizer")
        _ = served.words  # made once, which takes a while for a large vocabulary
    limit = MAX_TOKENS if body.max_tokens is None else body.max_tokens
    scored: bool | int = False if body.logprobs is None else body.logprobs or True
    settings = served.settings_of(body, max(limit, 1), scored)
    id = f"cmpl-{secrets.token_hex(12)}"
    shared: dict[str, Any] = {
        "settings": settings,
        "n": body.answers if limit else 0,
        "salt": salt(request, body.cache_salt),
        "tenant": request.state.tenant.name,
        "grammar": grammar_of(body.response_format, body.structured_outputs),
        "echo_logprobs": (body.logprobs or 0) if body.echo and (body.logprobs is not None or not limit) else None,
    }
    return prompts, [Ask(id=f"{id}-{i}" if i else id, prompt=tuple(ids), **shared) for i, ids in enumerate(prompts)]


def ids_of(served: Served, given: str | Sequence[Any], field: str) -> list[list[int]]:
    """One text, ids, several texts or several lists of ids, as lists of ids. InputError: one beyond the vocabulary;
    Refused: as `check_length`."""
    given = [given] if isinstance(given, str) else given
    if isinstance(given[0], str):
        for text in given:
            served.check_length(field, [text])
        return served.encode(given)
    rows = [list(given)] if isinstance(given[0], int) else [list(row) for row in given]
    vocab = served.engine.model.spec.vocab
    for row in rows:
        if max(row) >= vocab:
            raise InputError(f"{field}: token id {max(row)} is outside the vocabulary of {vocab}")
    return rows


class Legacy:
    """Log-probabilities in the older shape, of one answer. `text_offset`: the character that a token begins at, counted
    on over an answer's chunks; the parts of a character begin at the same."""

    def __init__(self, words: Words, most: int) -> None:
        self.words, self.most, self.at = words, most, 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def shape(self, tokens: Sequence[Scored]) -> dict[str, Any]:
        """Four lists, an entry a token. Of two tokens with the same text the likelier is told."""
        offsets = []
        for token in tokens:
            offsets.append(self.at)
            self.at += len(self._utf8.decode(self.words.shown(token.token)))
        return {
            "tokens": [self.words.text(token.token) for token in tokens],
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": offsets,
        }

    def _top(self, token: Scored) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        best = sorted(token.top.items(), key=lambda pair: -pair[1])[: self.most]
        told: dict[str, float] = {}
        for id, logprob in [*best, (token.token, token.logprob)]:
            told.setdefault(self.words.text(id), max(logprob, LEAST))
        return told


class CompletionReply:
    """The answers as the API has them: answer j of prompt i is choice i · n + j."""

    def __init__(self, served: Served, body: CompletionRequest, prompts: Sequence[list[int]]) -> None:
        self.served, self.body = served, body
        self.each = body.answers if asked(body) else 1
        self.count = len(prompts) * self.each
        self.echo = self._texts(prompts) if body.echo else [""] * len(prompts)
        self.legacy: list[Legacy] | None = None
        if body.logprobs is not None:
            self.legacy = [Legacy(served.words, body.logprobs) for _ in range(self.count)]
        self.total = Total()
        about = {"model": served.name, "system_fingerprint": served.fingerprint}
        self.frame: dict[str, Any] = {"created": int(time.time()), **about}

    def _texts(self, prompts: Sequence[list[int]]) -> list[str]:
        """The prompts as they came, or what their ids are."""
        given = [self.body.prompt] if isinstance(self.body.prompt, str) else self.body.prompt
        tokenizer = self.served.engine.model.tokenizer
        return [text for text in given if isinstance(text, str)] or [
            "" if tokenizer is None else tokenizer.decode(ids) for ids in prompts
        ]

    def _choice(self, i: int, text: str, tokens: Sequence[Scored] | None, reason: str | None) -> dict[str, Any]:
        told = None if self.legacy is None or tokens is None else self.legacy[i].shape(tokens)
        return {"index": i, "text": text, "logprobs": told, "finish_reason": reason}

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """All answers, whole."""
        texts = [[self.echo[i // self.each]] for i in range(self.count)]
        tokens: list[list[Scored]] = [[] for _ in range(self.count)]
        reasons = ["stop"] * self.count
        async for got in answers:
            event = got.event
            self.total.add(event)
            if isinstance(event, Prompt):
                for i in self._own(got.ask):
                    tokens[i] += event.tokens
            elif isinstance(event, Piece):
                texts[got.ask * self.each + event.index].append(event.text)
                tokens[got.ask * self.each + event.index] += event.tokens
            elif isinstance(event, Ended):
                reasons[got.ask * self.each + event.index] = event.reason
        answers.note(self.total)
        choices = [self._choice(i, "".join(texts[i]), tokens[i], reasons[i]) for i in range(self.count)]
        frame = {"id": answers.asks[0].id, "object": "text_completion", **self.frame}
        return {**frame, "choices": choices, "usage": self.total.usage()}

    def _own(self, ask: int) -> range:
        return range(ask * self.each, (ask + 1) * self.each)

    async def chunks(self, answers: Answers) -> AsyncGenerator[dict[str, Any]]:
        """The answers as they come; the prompt first where it is echoed, why each ended last."""
        told = bool(self.body.stream_options and self.body.stream_options.include_usage)
        frame = {"id": answers.asks[0].id, "object": "text_completion", **self.frame}
        extra: dict[str, Any] = {"usage": None} if told else {}
        scores_prompt = answers.asks[0].echo_logprobs is not None
        if self.body.echo and not scores_prompt:
            for i in range(self.count):
                yield {**frame, "choices": [self._choice(i, self.echo[i // self.each], None, None)], **extra}
        async for got in answers:
            event = got.event
            self.total.add(event)
            for choice in self._told(got.ask, event):
                yield {**frame, "choices": [choice], **extra}
        answers.note(self.total)
        if told:
            yield {**frame, "choices": [], "usage": self.total.usage()}

    def _told(self, ask: int, event: Any) -> list[dict[str, Any]]:
        if isinstance(event, Prompt):
            return [self._choice(i, self.echo[ask], event.tokens, None) for i in self._own(ask)]
        if isinstance(event, Piece) and (event.text or self.legacy is not None):
            return [self._choice(ask * self.each + event.index, event.text, event.tokens, None)]
        if isinstance(event, Ended):
            return [self._choice(ask * self.each + event.index, "", None, event.reason)]
        return []


def asked(body: CompletionRequest) -> bool:
    """Is an answer asked for, and not just the prompt's scores?"""
    return body.max_tokens != 0
