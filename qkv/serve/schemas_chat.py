"""The body of /v1/chat/completions, and of /tokenize for messages."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qkv.serve.schemas import MOST_LOGPROBS, MOST_TOKENS, ResponseFormat, Sampling, Strict

MOST_MESSAGES = 16_384  # each has a token at least: the context is the real limit
MOST_TOOLS = 128
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Part(Strict):
    """A piece of a message: text. (Pictures and sounds are refused by `type`; nothing is ever fetched.)"""

    type: Literal["text"]
    text: str


class FunctionCall(Strict):
    """A call that an answer made: `arguments` is JSON as text. (`parsed_arguments` are the same, as OpenAI's client
    leaves them there.)"""

    name: FunctionName
    arguments: str
    parsed_arguments: Any = None


class ToolCall(Strict):
    """A call with the id that its result names."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Annotated[int, Field(ge=0, le=1024)] | None = (
        None  # of streamed deltas, which clients send back as they came
    )


class Message(Strict):
    """One turn. The last five are what answers carry and clients send back: `parsed` is the content once more, as
    OpenAI's client reads it, and the others must be empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(fail_fast=True, min_length=1, max_length=1024)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, min_length=1, max_length=MOST_TOOLS)] | None = None
    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    reasoning_content: str | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    parsed: Any = None

    @model_validator(mode="after")
    def _whole(self) -> "Message":
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(f"content is missing in a message by the {self.role}")
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("tool_calls are the assistant's")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id belongs to the messages by a tool, and to each of them")
        return self


Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES)]


class Function(Strict):
    """What can be called: `parameters` is a JSON schema of an object."""

    name: FunctionName
    description: Annotated[str, Field(max_length=16_384)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _of_an_object(self) -> "Function":
        if (self.parameters or {}).get("type", "object") != "object":
            raise ValueError(f"parameters of {self.name!r} must be a schema of type 'object'")
        return self


class Tool(Strict):
    """A function that the model may ask for. It is never run here."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    """A tool by name."""

    name: FunctionName


class NamedTool(Strict):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=16)] | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "ChatRequest":
        if self.max_tokens == 0:
            raise ValueError("max_tokens must be at least 1")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are two names of one limit: give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.structured_outputs is not None and self.response_format is not None:
            raise ValueError("structured_outputs and response_format both say what the answer must be: give one")
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("tools has a name twice")
        if not names and self.tool_choice not in (None, "none"):
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is not among the tools")
        formed = self.structured_outputs or (self.response_format and self.response_format.type != "text")
        if names and self.tool_choice != "none" and formed:
            raise ValueError(
                "response_format and tools can't both shape an answer: say tool_choice 'none', or leave one out"
            )

    @property
    def limit(self) -> int | None:
        """max_tokens by either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
