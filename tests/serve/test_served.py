"""Models by name, and wishes as settings."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from qkv.errors import InputError, NotFound
from qkv.inputs.text import Tokenizer
from qkv.serve.ask import Grammar
from qkv.serve.engine import Engine
from qkv.serve.errors import Refused
from qkv.serve.events import Stopped
from qkv.serve.options import Options
from qkv.serve.schemas import ResponseFormat, Sampling, Structured
from qkv.serve.served import LONGEST, Models, Served, check_length, grammar_of, lasts
from tests.serve.conftest import llama


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(llama(), name="tiny", cache=512)


def test_models_by_name(engine: Engine) -> None:
    ready: Any = SimpleNamespace(name="a", ready=True)
    models = Models({"a": ready, "b": engine}, Options())
    assert models.find("a").engine is ready
    with pytest.raises(Stopped, match="starting"):
        models.find("b")
    with pytest.raises(NotFound, match="'c'"):
        models.find("c")
    with pytest.raises(NotFound, match="name one"):
        models.find(None)
    assert Models({"a": ready}, Options()).find(None).name == "a"


def test_settings_of_a_generation_config(engine: Engine) -> None:
    served = Served(engine)
    assert served.settings.temperature == 1.0
    assert served.settings_of(Sampling(model="m"), None, False).temperature == 1.0
    model = llama()
    model.generation = {**model.generation, "do_sample": True, "temperature": 0.3, "top_k": 7, "max_new_tokens": 9}
    own = Served(Engine(model, name="own", cache=512))
    found = own.settings_of(Sampling(model="m"), None, False)
    assert (found.temperature, found.top_k, found.max_tokens) == (0.3, 7, 9)
    greedy = own.settings_of(Sampling(model="m", temperature=0), 3, 2)
    assert (greedy.temperature, greedy.top_k, greedy.max_tokens, greedy.logprobs) == (0.0, 0, 3, 2)


def test_a_search_of_the_config_is_not_done(engine: Engine) -> None:
    model = llama()
    model.generation = {**model.generation, "num_beams": 4, "early_stopping": True}
    assert Served(Engine(model, name="beams", cache=512)).settings.beams == 1


def test_a_bias_beyond_the_vocabulary(engine: Engine) -> None:
    with pytest.raises(InputError, match="logit_bias"):
        Served(engine).settings_of(Sampling(model="m", logit_bias={"9999": 1.0}), 1, False)


def test_stop_tokens_of_a_request_are_not_ignored(engine: Engine) -> None:
    """`ignore_eos` is about the model's own."""
    served = Served(engine)
    own = served.settings.stop_tokens
    assert own
    for ignore, ends in ((None, (*own, 7)), (False, (*own, 7)), (True, (7,))):
        found = served.settings_of(Sampling(model="m", stop_token_ids=[7, 7], ignore_eos=ignore), 1, False)
        assert found.ends == ends
    assert served.settings_of(Sampling(model="m", ignore_eos=True), 1, False).ends == ()
    with pytest.raises(InputError, match="stop_token_ids"):
        served.settings_of(Sampling(model="m", stop_token_ids=[9999]), 1, False)


def test_texts_are_encoded_as_each_alone(engine: Engine) -> None:
    served = Served(engine)
    texts = ["One two", "", "<s>Ünï"]
    assert served.encode(texts) == [served.tokenizer.encode(text) for text in texts]
    assert served.encode(texts[:1], special=False) == [served.tokenizer.encode(texts[0], special=False)]


def test_one_text_is_not_encoded_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """tokenizers lets other threads run only while it encodes several."""
    seen, real = [], Tokenizer.encode_batch

    def encode_batch(self: Tokenizer, texts: list[str], **more: Any) -> Any:
        seen.append(len(texts))
        return real(self, texts, **more)

    monkeypatch.setattr(Tokenizer, "encode_batch", encode_batch)
    Served(engine).encode(["one"])
    assert seen == [2]


def test_far_too_long_is_refused_before_it_is_cut(engine: Engine) -> None:
    served = Served(engine)
    most = LONGEST * engine.limits.context
    served.check_length("prompt", ["x" * (most - 1), "x"])
    with pytest.raises(Refused, match=r"prompt: .* characters") as caught:
        served.check_length("prompt", ["x" * most, "x"])
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    check_length("input", ["x" * 10**6], None)


def test_without_a_tokenizer() -> None:
    model = llama()
    model.tokenizer = None
    served = Served(Engine(model, name="ids", cache=512))
    with pytest.raises(InputError, match="no tokenizer"):
        _ = served.tokenizer


def test_grammars() -> None:
    schema = ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": 1}}})
    assert grammar_of(schema, None) == Grammar("json_schema", '{"a": 1}')
    assert grammar_of(ResponseFormat(type="json_object"), None) == Grammar("json_object")
    assert grammar_of(ResponseFormat(type="text"), None) is grammar_of(None, None) is None
    assert grammar_of(None, Structured(regex="a+")) == Grammar("regex", "a+")
    assert grammar_of(None, Structured(json_object=True)) == Grammar("json_object")
    assert grammar_of(None, Structured.model_validate({"json": {}})) == Grammar("json_schema", "{}")
    bare = ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"name": "x"}})
    assert grammar_of(bare, None) == Grammar("json_object")


def test_fingerprint_and_time(engine: Engine) -> None:
    assert Served(engine).fingerprint.startswith("fp_")
    assert lasts(dataclasses.replace(Options(), request_seconds=3), "it").status == 504
