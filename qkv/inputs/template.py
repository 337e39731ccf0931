"""Chat templates, rendered in a worker process under a time, memory and size limit (`qkv.inputs.sandbox`)."""

from collections.abc import Mapping
from typing import Any

from qkv.errors import TemplateError
from qkv.inputs.worker import Worker, WorkerError

MAX_TEMPLATE = 2**20  # characters; the longest known ones have some 30,000
SECONDS = 3.0  # a real template takes milliseconds

_worker = Worker("qkv.inputs.sandbox")


def warm() -> None:
    """Start the worker and return at once: it is ready by the time the model is."""
    _worker.warm()


def render(template: str, variables: Mapping[str, Any], *, seconds: float = SECONDS) -> str:
    """The text of a chat template over JSON values.

    Raises TemplateError, with the template's line, where the template is wrong, refuses the messages
    (`raise_exception`), prints a name that isn't there, reaches for something forbidden, or takes more than `seconds`
    or its share of memory. There is no fallback template: a prompt in another format is a silent wrong answer.
    """
    if len(template) > MAX_TEMPLATE:
        raise TemplateError(f"the chat template has {len(template):,} characters; the limit is {MAX_TEMPLATE:,}")
    try:
        answer = _worker.call({"template": template, "variables": variables}, seconds)
    except WorkerError as error:
        raise TemplateError(f"the chat template was stopped: {error}") from None
    if "failed" in answer:
        line = f", line {answer['line']}" if answer["line"] else ""
        raise TemplateError(f"the chat template failed{line}: {answer['failed']}")
    text: str = answer["text"]
    return text
