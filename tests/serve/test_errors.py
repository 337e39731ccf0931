"""Errors as clients see them: the right status, the field, and nothing of the server."""

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from qkv.errors import InputError, NotFound, TemplateError
from qkv.serve import errors
from qkv.serve.ask import ContextExceeded
from qkv.serve.errors import Refused, envelope, param_of, respond, told
from qkv.serve.events import Stopped
from qkv.serve.scheduler import Full
from qkv.serve.schemas_text import CompletionRequest


@pytest.mark.parametrize(
    ("error", "status", "param", "code"),
    [
        (InputError("temperature must be a number"), 400, "temperature", None),
        (InputError("the text has a lone surrogate"), 400, None, None),
        (InputError("grammar: no such"), 400, "response_format", None),
        (ContextExceeded(600, 10, 512), 400, None, "context_length_exceeded"),
        (NotFound("no model is named x"), 404, "model", "model_not_found"),
        (Full("32 wait"), 429, None, "queue_full"),
        (Stopped("closing"), 503, None, "unavailable"),
        (Refused(413, "large", code="body_too_large"), 413, None, "body_too_large"),
        (RuntimeError("/root/secret.py 0x7f00deadbeef"), 500, None, None),
        (MemoryError(), 500, None, None),
    ],
)
def test_status_field_and_code(error: BaseException, status: int, param: str | None, code: str | None) -> None:
    found = told(error)
    assert (found[0], *found[2:]) == (status, param, code)
    assert respond(error).status_code == status


def test_what_nobody_expected_says_nothing() -> None:
    message = told(RuntimeError("/root/secret.py, line 3: 0x7f00deadbeef"))[1]
    assert "secret" not in message
    assert "0x" not in message


def test_a_template_s_failure_has_neither_path_nor_address() -> None:
    error = TemplateError("the chat template failed, line 3: <object at 0x7f00deadbeef> in /usr/lib/python3/x.py")
    message = told(error)[1]
    assert message == "the chat template failed, line 3: <object at …> in …"


def test_too_long_names_both_numbers() -> None:
    message = told(ContextExceeded(600, 10, 512))[1]
    assert "600" in message
    assert "512" in message


def test_retry_after() -> None:
    assert respond(Full("x")).headers["retry-after"] == respond(Stopped("x")).headers["retry-after"] == "1"
    assert "retry-after" not in respond(InputError("x")).headers


def test_messages_are_bounded_and_valid_unicode() -> None:
    found = envelope(400, "\ud800" + "x" * 5000)["error"]["message"]
    assert len(found) <= 600
    found.encode()


@pytest.mark.parametrize(
    ("message", "param"),
    [("top_p must be", "top_p"), ("messages[3]: x", "messages[3]"), ("this is", None), ("n must be", "n"), ("", None)],
)
def test_param(message: str, param: str | None) -> None:
    assert param_of(message) == param


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"n": 0}, "n", "n: "),
        ({"n": True}, "n", "n: "),
        ({"prompt": [[1, -1]]}, "prompt[0][1]", "greater than or equal to 0"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"best_of": 3}, None, "best_of must be what n is"),
        ({"sufix": "x"}, "sufix", "'sufix' is not a field"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "match"),
    ],
)
def test_a_wrong_field_is_named(body: dict[str, object], param: str | None, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"model": "m", "prompt": "x", **body})
    error = RequestValidationError(caught.value.errors())
    message, found = errors._explain(error.errors())
    assert (found or "").startswith(param or "")
    assert (found is None) == (param is None)
    assert says in message
