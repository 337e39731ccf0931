"""The bodies of the routes that take texts: completions, embeddings, rerank, tokenize, detokenize."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qkv.serve.schemas import (
    MOST_IDS,
    MOST_LOGPROBS,
    MOST_N,
    MOST_PROMPTS,
    MOST_TEXTS,
    Harmless,
    Id,
    Ids,
    Name,
    ResponseFormat,
    Sampling,
    Strict,
    Text,
)
from qkv.serve.schemas_chat import Messages, Tool

Prompts = (
    Text
    | Ids
    | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MOST_PROMPTS)]
    | Annotated[list[Ids], Field(fail_fast=True, min_length=1, max_length=MOST_PROMPTS)]
)
Inputs = (
    Text
    | Ids
    | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MOST_TEXTS)]
    | Annotated[list[Ids], Field(fail_fast=True, min_length=1, max_length=MOST_TEXTS)]
)


class CompletionRequest(Sampling):
    """POST /v1/completions. `logprobs`: so many of the likeliest tokens at each place; `echo`: the prompt first."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_N)] | None = None
    suffix: Literal[""] | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _fits(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != self.answers:
            raise ValueError("best_of must be what n is: every answer that is drawn is given")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens must be at least 1, or 0 with echo: true")
        if self.max_tokens == 0 and self.answers > 1:
            raise ValueError("n must be 1 where max_tokens is 0: nothing is drawn")
        if self.structured_outputs is not None and self.response_format is not None:
            raise ValueError("structured_outputs and response_format both say what the answer must be: give one")
        return self


class EmbeddingRequest(Harmless):
    """POST /v1/embeddings. `dimensions`: the first so many numbers, brought to length 1 again."""

    model: Name
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**20)] | None = None


class Document(Strict):
    """A text to rank."""

    text: Text


class RerankRequest(Harmless):
    """POST /v1/rerank, as Jina and Cohere have it."""

    model: Name
    query: Text
    documents: Annotated[list[Text | Document], Field(fail_fast=True, min_length=1, max_length=MOST_TEXTS)]
    top_n: Annotated[int, Field(ge=1, le=MOST_TEXTS)] | None = None
    return_documents: bool | None = None


class TokenizeRequest(Strict):
    """POST /tokenize: the ids of a text, or of messages in the model's own format."""

    model: Name | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=128)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=16)] | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        chat = (self.tools, self.add_generation_prompt, self.chat_template_kwargs)
        if self.messages is None and any(value is not None for value in chat):
            raise ValueError("tools, add_generation_prompt and chat_template_kwargs are for messages")
        if self.messages is not None and self.add_special_tokens is not None:
            raise ValueError("add_special_tokens is for a prompt: a chat template puts in its own")
        return self


class DetokenizeRequest(Strict):
    """POST /detokenize."""

    model: Name | None = None
    tokens: Annotated[list[Id], Field(fail_fast=True, max_length=MOST_IDS)]
