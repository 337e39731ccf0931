"""POST /v1/chat/completions."""

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from qkv.errors import InputError
from qkv.serve import tools
from qkv.serve.ask import Ask
from qkv.serve.calls import Begin, Found
from qkv.serve.errors import Refused
from qkv.serve.events import Ended, Piece, Scored
from qkv.serve.schemas_chat import ChatRequest, Message, Messages, Tool
from qkv.serve.served import Models, Served, grammar_of, salt
from qkv.serve.stream import Answers, Total, answered
from qkv.serve.words import finite
from qkv.strict_json import parse_json


def router(models: Models) -> APIRouter:
    """The route over these models."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", summary="Answer a conversation", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        served = models.asked(body.model, request)
        ask = await asyncio.to_thread(_ask, served, body, request, models.options.template_variables)
        reply = ChatReply(served, body)
        return await answered(reply, Answers(served.engine, [ask], request, models.options), body.stream)

    return routes


def _ask(served: Served, body: ChatRequest, request: Request, variables: Sequence[str]) -> Ask:
    """The messages as ids, the wishes as settings. It takes milliseconds: not for the event loop."""
    served.check_generates()
    scored: bool | int = (body.top_logprobs or True) if body.logprobs else False
    if scored:
        _ = served.words  # made once, which takes a while for a large vocabulary
    return Ask(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        prompt=tuple(prompt_of(served, body.messages, tools.offered(body), body.chat_template_kwargs, variables)),
        settings=served.settings_of(body, body.limit, scored),
        n=body.answers,
        salt=salt(request, body.cache_salt),
        tenant=request.state.tenant.name,
        grammar=tools.grammar_of(body) or grammar_of(body.response_format, body.structured_outputs),
    )


# --- messages -------------------------------------------------------------------------------------------------------


def prompt_of(
    served: Served,
    messages: Messages,
    offered: Sequence[Tool],
    kwargs: dict[str, Any] | None,
    variables: Sequence[str],
    *,
    answer: bool = True,
) -> list[int]:
    """The ids of a conversation by the model's chat template. `answer`: up to where the assistant's begins.

    InputError: a template variable that isn't allowed, tools for a template without them; Refused: more messages than
    tokens fit, or longer ones (`check_length`); and as `Tokenizer.chat`."""
    for name in kwargs or ():
        if name not in variables:
            known = ", ".join(variables) or "none"
            raise InputError(f"chat_template_kwargs may not set {name[:80]!r}; it may set: {known}")
    if len(messages) > (most := served.engine.limits.context):  # each has a token at least
        why = f"messages: {len(messages):,} can't fit into a context of {most:,} tokens"
        raise Refused(400, why, code="context_length_exceeded", param="messages")
    given: dict[str, Any] = {"tools": [tool.model_dump(exclude_none=True) for tool in offered]} if offered else {}
    if offered and not _takes_tools(served.tokenizer.chat_templates):
        raise InputError(f"tools: the chat template of {served.name!r} has no place for them")
    turns = [_plain(message, i) for i, message in enumerate(messages)]
    served.check_length("messages", (json.dumps(one, ensure_ascii=False) for one in [*turns, *given.get("tools", ())]))
    return served.tokenizer.chat(turns, add_generation_prompt=answer, **given, **(kwargs or {}))


def _takes_tools(templates: dict[str, str]) -> bool:
    return "tool_use" in templates or bool(re.search(r"\btools\b", templates.get("default", "")))


def _plain(message: Message, i: int) -> dict[str, Any]:
    """A message as templates expect it: text in one piece, arguments as a dict, a developer as the system."""
    out: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    content = message.content
    out["content"] = "\n".join(p.text for p in content) if isinstance(content, list) else content or ""
    for name in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, name) is not None:
            out[name] = getattr(message, name)
    if message.tool_calls is not None:
        calls = []
        for j, call in enumerate(message.tool_calls):
            where = f"messages[{i}].tool_calls[{j}].function.arguments"
            raw = call.function.arguments.encode("utf-8", "surrogatepass") or b"{}"
            arguments = parse_json(raw, where=where, error=InputError)
            calls.append(
                {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
            )
        out["tool_calls"] = calls
    return out


# --- answers --------------------------------------------------------------------------------------------------------


class ChatReply:
    """The answer as the API has it: in one piece or in chunks, from the same events by the same parser."""

    def __init__(self, served: Served, body: ChatRequest) -> None:
        self.served, self.body = served, body
        self.parsers = [tools.parser_of(body) for _ in range(body.answers)]
        self.called = [False] * body.answers
        self.total = Total()
        self.created = int(time.time())

    def _frame(self, kind: str, id: str) -> dict[str, Any]:
        base = {"id": id, "object": kind, "created": self.created, "model": self.served.name}
        return {**base, "system_fingerprint": self.served.fingerprint}

    def _reason(self, event: Ended) -> str:
        """What cut an answer short counts more than a call in it, which may be cut too."""
        if event.reason == "stop" and self.called[event.index]:
            return "tool_calls"
        return event.reason

    def _found(self, event: Piece | Ended) -> list[Found]:
        parser = self.parsers[event.index]
        found = parser.feed(event.text) if isinstance(event, Piece) else parser.finish()
        out = [one for one in found if one != ""]
        self.called[event.index] |= any(isinstance(one, Begin) for one in out)
        return out

    def _logprobs(self, tokens: Sequence[Scored]) -> dict[str, Any] | None:
        if not self.body.logprobs:
            return None
        return {"content": [self._scored(token) for token in tokens], "refusal": None}

    def _scored(self, token: Scored) -> dict[str, Any]:
        top = sorted(token.top.items(), key=lambda pair: -pair[1])[: self.body.top_logprobs or 0]
        return {**self._word(token.token, token.logprob), "top_logprobs": [self._word(*pair) for pair in top]}

    def _word(self, id: int, logprob: float | None) -> dict[str, Any]:
        words = self.served.words
        return {"token": words.text(id), "logprob": finite(logprob), "bytes": list(words.raw(id))}

    # --- in one piece

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """The whole answer."""
        texts: list[list[str]] = [[] for _ in self.parsers]
        calls: list[list[dict[str, Any]]] = [[] for _ in self.parsers]
        tokens: list[list[Scored]] = [[] for _ in self.parsers]
        reasons: dict[int, str] = {}
        async for got in answers:
            event = got.event
            self.total.add(event)
            if not isinstance(event, Piece | Ended):
                continue
            for found in self._found(event):
                _collect(found, texts[event.index], calls[event.index])
            if isinstance(event, Piece):
                tokens[event.index] += event.tokens
            else:
                reasons[event.index] = self._reason(event)
        answers.note(self.total)
        choices = [
            self._choice(i, "".join(texts[i]), calls[i], tokens[i], reasons[i]) for i in range(len(self.parsers))
        ]
        return {**self._frame("chat.completion", answers.asks[0].id), "choices": choices, "usage": self.total.usage()}

    def _choice(self, i: int, text: str, calls: list[Any], tokens: list[Scored], reason: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            for call in calls:
                call["function"]["arguments"] = "".join(call["function"]["arguments"])
            message |= {"content": text or None, "tool_calls": calls}
        return {"index": i, "message": message, "logprobs": self._logprobs(tokens), "finish_reason": reason}

    # --- in chunks

    async def chunks(self, answers: Answers) -> AsyncGenerator[dict[str, Any]]:
        """The answer as it comes: the role first, why it ended last, and what it used where that is asked for."""
        frame = self._frame("chat.completion.chunk", answers.asks[0].id)
        told = bool(self.body.stream_options and self.body.stream_options.include_usage)
        extra: dict[str, Any] = {"usage": None} if told else {}

        def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            return {**frame, "choices": [choice], **extra}

        for i in range(len(self.parsers)):
            yield chunk(i, {"role": "assistant", "content": ""})
        async for got in answers:
            event = got.event
            self.total.add(event)
            if not isinstance(event, Piece | Ended):
                continue
            deltas = [_delta(found) for found in self._found(event)]
            scored = self._logprobs(event.tokens) if isinstance(event, Piece) else None
            if scored and scored["content"] and not deltas:
                deltas = [{"content": ""}]
            for delta in deltas:
                yield chunk(event.index, delta, scored)
                scored = None
            if isinstance(event, Ended):
                yield chunk(event.index, {}, None, self._reason(event))
        answers.note(self.total)
        if told:
            yield {**frame, "choices": [], "usage": self.total.usage()}


def _delta(found: Found) -> dict[str, Any]:
    if isinstance(found, str):
        return {"content": found}
    if isinstance(found, Begin):
        call = {"index": found.index, "id": found.id, "type": "function"}
        return {"tool_calls": [{**call, "function": {"name": found.name, "arguments": ""}}]}
    return {"tool_calls": [{"index": found.index, "function": {"arguments": found.text}}]}


def _collect(found: Found, texts: list[str], calls: list[dict[str, Any]]) -> None:
    if isinstance(found, str):
        texts.append(found)
    elif isinstance(found, Begin):
        function = {"name": found.name, "arguments": list[str]()}
        calls.append({"id": found.id, "type": "function", "function": function})
    else:
        calls[found.index]["function"]["arguments"].append(found.text)
