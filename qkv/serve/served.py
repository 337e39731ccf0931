"""What all routes share: the models by name, and how a request's wishes become an engine's."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from starlette.requests import Request

from qkv.errors import InputError, NotFound
from qkv.generate.limits import check_ids
from qkv.generate.settings import Settings
from qkv.inputs.text import Tokenizer
from qkv.serve.ask import Grammar
from qkv.serve.engine import Engine
from qkv.serve.errors import Refused
from qkv.serve.events import Stopped
from qkv.serve.options import Options
from qkv.serve.schemas import ResponseFormat, Sampling, Structured
from qkv.serve.words import Words

LONGEST = 64  # characters a token, in the mean of a text: no real one comes near
# The API's name and Settings' where one value is passed on as it is.
_SAME = (
    *("top_p", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("ignore_eos", "min_tokens"),
)


class Served:
    """One model and what the routes know of it beside its engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name = engine, engine.name

    @property
    def tokenizer(self) -> Tokenizer:
        """InputError: it has none."""
        if self.engine.model.tokenizer is None:
            raise InputError(f"the model {self.name!r} has no tokenizer, so it takes ids alone")
        return self.engine.model.tokenizer

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Each text's ids, as `Tokenizer.encode`. The empty text beside them is for others: a single one is encoded
        under the interpreter's lock (tokenizers 0.23), and a long one would hold up every answer."""
        return self.tokenizer.encode_batch([*texts, ""], special=special)[:-1]

    def check_length(self, field: str, texts: Iterable[str]) -> None:
        """Refused: a prompt of these texts is far too long."""
        check_length(field, texts, self.engine.limits.source or self.engine.limits.context)

    @cached_property
    def words(self) -> Words:
        """Its tokens as texts."""
        return Words(self.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: the same for the same name, kind and type of weights."""
        what = f"{self.name} {self.engine.model.dtype} {self.engine.model.spec!r}"
        return "fp_" + hashlib.blake2b(what.encode(), digest_size=5).hexdigest()

    @cached_property
    def settings(self) -> Settings:
        """What a request that wishes nothing gets: the engine's, drawn at temperature 1 where generation_config.json
        doesn't say (as the API's documentation has it)."""
        said = self.engine.settings()
        drawn = {} if said.source("temperature") != "default" else {"temperature": 1.0}
        found = said.replace(**drawn)
        return dataclasses.replace(
            found, sources={**found.sources, "temperature": "default"} if drawn else found.sources
        )

    def settings_of(self, body: Sampling, limit: int | None, logprobs: bool | int) -> Settings:
        """A request's settings. InputError: a wrong value, or a stop text for a model without a tokenizer."""
        changes: dict[str, Any] = {name: value for name in _SAME if (value := getattr(body, name)) is not None}
        changes |= {"logprobs": logprobs, **({} if limit is None else {"max_tokens": limit})}
        if body.temperature is not None:
            changes["temperature"] = float(body.temperature)
        if body.top_k is not None:
            changes["top_k"] = max(body.top_k, 0)  # vLLM's −1: from all
        if body.stop is not None:
            changes["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
        if body.stop_token_ids:
            check_ids("stop_token_ids", body.stop_token_ids, self.engine.limits.vocab)
            own = () if body.ignore_eos else self.settings.stop_tokens  # what a request names itself isn't ignored
            changes |= {"stop_tokens": tuple(dict.fromkeys((*own, *body.stop_token_ids))), "ignore_eos": False}
        if body.logit_bias:
            changes["logit_bias"] = {int(id): float(bias) for id, bias in body.logit_bias.items()}
            check_ids("logit_bias", [*changes["logit_bias"]], self.engine.limits.vocab)
        if changes.get("temperature", self.settings.temperature) == 0:
            changes = {name: value for name, value in changes.items() if name not in ("top_p", "top_k", "min_p")}
        if changes.get("temperature") == 0:  # greedy: what the file says of drawing is not asked for
            changes |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        return self.settings.replace(**changes)

    def check_generates(self) -> None:
        """InputError: it makes vectors or labels."""
        if not self.engine.generates:
            head = type(self.engine.model.spec.head).__name__
            raise InputError(f"model: {self.name!r} (its head is {head}) doesn't generate; see /v1/models")


class Models:
    """The models by name. `options` are the server's."""

    def __init__(self, engines: Mapping[str, Engine], options: Options) -> None:
        self.engines, self.options = engines, options
        self.served = {name: Served(engine) for name, engine in engines.items()}

    def find(self, name: str | None) -> Served:
        """The model of this name; the only one where no name is asked for. NotFound: there is none. Stopped: it isn't
        ready to answer."""
        if name is None and len(self.served) == 1:
            name = next(iter(self.served))
        if name not in self.served:
            known = ", ".join(self.served)
            asked = "this server has several models; name one" if name is None else f"no model is named {name[:80]!r}"
            raise NotFound(f"{asked}: there is {known}")
        found = self.served[name]
        if not found.engine.ready:
            raise Stopped(f"the model {name!r} is still starting; try again in a moment")
        return found

    def asked(self, name: str | None, request: Request) -> Served:
        """`find`, and say in the request's line of the log which one it was."""
        served = self.find(name)
        self.note(request, model=served.name)
        return served

    def note(self, request: Request, **fields: Any) -> None:
        """Add to the request's line in the log."""
        request.state.record.update(fields)


def grammar_of(format: ResponseFormat | None, structured: Structured | None) -> Grammar | None:
    """What an answer must be. InputError: the schema is no JSON for it."""
    if structured is not None:
        if structured.regex is not None:
            return Grammar("regex", structured.regex)
        if structured.json_ is not None:
            return Grammar("json_schema", json.dumps(structured.json_))
        return Grammar("json_object")
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return Grammar("json_object")
    assert format.json_schema is not None
    schema = format.json_schema.schema_
    if schema is None:
        return Grammar("json_object")
    return Grammar("json_schema", json.dumps(schema))


def salt(request: Request, asked: str | None) -> str:
    """What this request's prompt may share cached keys under."""
    found: str = request.state.tenant.salt(asked or "")
    return found


def lasts(options: Options, what: str) -> Refused:
    """A request that took all its time."""
    return Refused(
        504, f"{what} took more than the {options.request_seconds:g} seconds a request may take", code="timeout"
    )


def check_length(field: str, texts: Iterable[str], tokens: int | None) -> None:
    """Refused: these texts are so long that they can't be so few tokens. They aren't even cut into them, which takes a
    second for a megabyte or two. None: nothing limits them."""
    found = sum(map(len, texts))
    if tokens is not None and found > LONGEST * tokens:
        why = f"{field}: {found:,} characters are far more than the {tokens:,} tokens that there is room for"
        raise Refused(400, why, code="context_length_exceeded", param=field)
