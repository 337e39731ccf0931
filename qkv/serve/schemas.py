"""What requests have in common: strict types, bounds on everything, and how an answer is drawn.

A field that this server doesn't know is a 400 that names it: ignored, it would be a wish that silently isn't met. Those
of `Harmless` are taken and change nothing: OpenAI's clients send them to be billed, stored or cached by.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_IDS = 1_048_576  # tokens of a prompt given as ids; the context is the real limit
MOST_PROMPTS = 64  # in one request
MOST_TEXTS = 2048  # to embed in one request, as OpenAI
MOST_N = 128  # the engine's own limit is lower (`Limits.most_n`)
MOST_LOGPROBS = 20
MOST_TOKENS = 2**31 - 1

Id = Annotated[int, Field(ge=0, lt=2**24)]
Ids = Annotated[list[Id], Field(fail_fast=True, min_length=1, max_length=MOST_IDS)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class Strict(BaseModel):
    """No field is converted (a "3" is no 3, a true no 1), none is unknown."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Harmless(Strict):
    """Fields of OpenAI's clients that change no answer."""

    user: Annotated[str, Field(max_length=1024)] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: Annotated[str, Field(max_length=64)] | None = None
    safety_identifier: Annotated[str, Field(max_length=1024)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=1024)] | None = None
    prompt_cache_retention: Annotated[str, Field(max_length=64)] | None = None


class StreamOptions(Strict):
    """include_usage: one last chunk says what was used; include_obfuscation is OpenAI's own and changes nothing."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Strict):
    """A schema that the answer must meet. `strict`: it always is met here."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Annotated[str, Field(max_length=4096)] | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Strict):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("response_format needs a json_schema exactly where its type is 'json_schema'")
        return self


class Structured(Strict):
    """vLLM's `structured_outputs`: one of what the answer must be."""

    json_: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    regex: Annotated[str, Field(min_length=1, max_length=65_536)] | None = None
    json_object: Literal[True] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Structured":
        if sum(value is not None for value in (self.json_, self.regex, self.json_object)) != 1:
            raise ValueError("structured_outputs takes exactly one of json, regex and json_object")
        return self


class Sampling(Harmless):
    """How an answer is drawn and where it ends: OpenAI's fields, and below them vLLM's."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_N)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=4)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,7})$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=1024),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    top_k: Annotated[int, Field(ge=-1, le=2**24)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    stop_token_ids: Annotated[list[Id], Field(fail_fast=True, max_length=128)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    structured_outputs: Structured | None = None

    @model_validator(mode="after")
    def _streamed(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream: true")
        return self

    @property
    def answers(self) -> int:
        """How many answers a prompt gets."""
        return 1 if self.n is None else self.n
