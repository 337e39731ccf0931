"""Answers that are as a grammar says, whatever the model would say; and grammars that are refused, soon."""

import json
import re
import threading
import time
from functools import cache
from typing import Any

import pytest
import torch
from llguidance import LLMatcher

from qkv.errors import InputError
from qkv.serve import guide
from qkv.serve.ask import Grammar
from qkv.serve.engine import Engine
from qkv.serve.guide import Compiled, Compiler, Guide, Guides
from qkv.serve.scheduler import Full
from tests.serve.conftest import llama, tokenizer
from tests.serve.driving import submit, waited
from tests.tiny import text_to_text

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@cache
def compiler(rows: int = 7) -> Compiler:
    """For an embedding with rows that no token has."""
    return Compiler(tokenizer(), tokenizer().vocab_size + rows)


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", value if isinstance(value, str) else json.dumps(value))


def drawn(held: Guide, ends: list[int], seed: int, most: int = 400) -> tuple[list[int], bool]:
    """Tokens of a model that knows nothing → they, and whether there came an end."""
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    vocab = tokenizer().vocab_size + 7
    while not held.done and len(tokens) < most:
        scores = held(torch.randn(vocab, generator=generator), tokens)
        token = int(scores.argmax())
        assert torch.isfinite(scores[token])
        if token in ends:
            return tokens, True
        held.advance(token)
        tokens.append(token)
    return tokens, held.done


@pytest.mark.parametrize("seed", range(5))
def test_what_a_schema_says(seed: int) -> None:
    words = tokenizer()
    tokens, whole = drawn(compiler().compile(schema(PERSON)).guide(words.eos), list(words.eos), seed)
    assert whole
    found = json.loads(words.decode(tokens))
    assert set(found) == {"name", "age", "tags"}
    assert len(found["name"]) <= 8
    assert 0 <= found["age"] <= 150
    assert set(found["tags"]) <= {"a", "b"}


@pytest.mark.parametrize("seed", range(3))
def test_what_an_expression_says(seed: int) -> None:
    words = tokenizer()
    pattern = r"(ab|c)+[0-9]{2,3}é?"
    tokens, whole = drawn(compiler().compile(Grammar("regex", pattern)).guide(words.eos), list(words.eos), seed)
    assert whole
    assert re.fullmatch(pattern, words.decode(tokens))


def test_any_object() -> None:
    held = compiler().compile(Grammar("json_object")).guide([])
    scores = held(torch.zeros(tokenizer().vocab_size + 7), [])
    allowed = [tokenizer().token(int(i)) for i in torch.isfinite(scores).nonzero()[:, 0]]
    assert allowed
    assert all(token.startswith("{") for token in allowed)


def test_an_end_is_allowed_where_the_grammar_may_end_and_only_there() -> None:
    """The request's own ends, not the tokenizer's."""
    ends = [3, 9]
    held = compiler().compile(Grammar("regex", "a+")).guide(ends)
    zeros = torch.zeros(tokenizer().vocab_size + 7)
    assert torch.isneginf(held(zeros, [])[ends]).all()
    a = tokenizer().id("a")
    assert a is not None
    held.advance(a)
    assert torch.isfinite(held(zeros, [a])[ends]).all()
    assert not held.done
    assert not torch.isfinite(held(zeros, [a])[list(tokenizer().eos)]).any()


def test_scores_are_left_as_they_were_and_rows_without_a_token_never_come() -> None:
    vocab = tokenizer().vocab_size
    held = compiler().compile(Grammar("regex", "(.|\n)*")).guide([])
    scores = torch.zeros(vocab + 7)
    found = held(scores, [])
    assert torch.isneginf(found[vocab:]).all()
    assert torch.isneginf(found[list(tokenizer().specials.values())]).all()
    assert torch.isfinite(scores).all()


def test_guides_of_one_grammar_are_apart() -> None:
    compiled = compiler().compile(Grammar("regex", "ab"))
    one, other = compiled.guide([]), compiled.guide([])
    a = tokenizer().id("a")
    assert a is not None
    one.advance(a)
    zeros = torch.zeros(tokenizer().vocab_size + 7)
    assert torch.isfinite(other(zeros, [])[a])
    assert not torch.isfinite(one(zeros, [a])[a])
    with pytest.raises(InputError, match="doesn't take token"):
        one.advance(a)


WRONG = {
    "nesting": ('{"type":"array","items":' * 10_000 + "{}" + "}" * 10_000, "recursion limit"),
    "a cycle": ({"$ref": "#"}, "no text is as it says"),
    "a longer cycle": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "no text is as it says",
    ),
    "a reference to nowhere": ({"$ref": "#/$defs/a"}, ""),
    "looking behind": ({"type": "string", "pattern": "(?<=x)"}, "look-around"),
    "parentheses": ({"type": "string", "pattern": "(" * 30_000 + ")" * 30_000}, ""),
    "a type": ({"type": "objct"}, "Invalid type: objct"),
    "no JSON": ('{"type":', "EOF"),
    "no object": ("[1]", "object"),
    "NaN": ('{"maximum": NaN}', ""),
    "a key that isn't done": ({"not": {}}, 'Unimplemented keys: ."not".'),
    "a key that isn't done, though asked to pass over it": ({"x-guidance": {"lenient": True}, "not": {}}, "not"),
    "nothing to choose from": ({"enum": []}, "Unsatisfiable"),
    "half a character": ('{"const": "\ud800"}', ""),
    "a product": (
        {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in range(4)]} for i in range(12)]},
        "too large",
    ),
    "many nested repetitions": ({"type": "string", "pattern": "^((((a{100}){100}){100}){100})$"}, ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name: str) -> None:
    source, message = WRONG[name]
    compiler().prepare()
    began = time.thread_time()  # whatever else the machine has to do
    with pytest.raises(InputError, match=rf"^grammar: this json_schema can't be compiled: .*{message}") as error:
        compiler().compile(schema(source))
    assert time.thread_time() - began < 1
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "pattern", ["(?<=x)", "(" * 30_000 + ")" * 30_000, "a{1000000}", "[", "*", "(?P<n>a)(?P=n)", "\ud800"]
)
def test_expressions_that_are_refused(pattern: str) -> None:
    with pytest.raises(InputError, match=r"^grammar: this regex can't be compiled"):
        compiler().compile(Grammar("regex", pattern))


@pytest.mark.parametrize(
    "value",
    [
        {"type": "string", "pattern": "(a+)+$"},
        {"type": "string", "maxLength": 10**9},
        {"enum": [f"value {i}" for i in range(2000)]},
        {"$defs": {"a": {"type": "object", "properties": {"next": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/a"},
    ],
)
def test_what_looks_dangerous_and_is_harmless(value: Any) -> None:
    began = time.perf_counter()
    held = compiler().compile(schema(value)).guide([])
    drawn(held, [], 0, most=50)
    assert time.perf_counter() - began < 5


def test_a_tokenizer_that_can_not_be_held_to_a_grammar() -> None:
    words = text_to_text().tokenizer
    assert words is not None
    with pytest.raises(InputError, match="this model's tokenizer can't be held to one"):
        Compiler(words, 97).compile(Grammar("regex", "a"))


# ---------------------------------------------------------------- compiling beside the loop


def done(guides: Guides[str], seconds: float = 20.0) -> dict[str, Any]:
    end, found = time.monotonic() + seconds, dict[str, Any]()
    while guides.busy:
        found.update(guides.done())
        assert time.monotonic() < end
        time.sleep(0.002)
    return found


@pytest.fixture
def guides() -> Any:
    made: Guides[str] = Guides(tokenizer(), tokenizer().vocab_size + 7, 5.0)
    made._compiler = compiler()
    yield made
    made.close()


def test_keys_get_their_results(guides: Guides[str]) -> None:
    assert not guides.busy
    guides.begin("a", Grammar("regex", "a+"))
    guides.begin("b", Grammar("regex", "("))
    guides.begin("c", Grammar("regex", "a+"))
    found = done(guides)
    assert isinstance(found["a"], Compiled)
    assert found["c"] is found["a"], "compiled once"
    assert isinstance(found["b"], InputError)
    guides.begin("d", Grammar("regex", "a+"))
    assert done(guides)["d"] is found["a"], "and kept"


def test_only_some_are_kept(guides: Guides[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide, "KEPT", 2)
    for name in "abc":
        guides.begin(name, Grammar("regex", name))
        done(guides)
    guides.begin("b", Grammar("regex", "b"))
    done(guides)
    assert [grammar.source for grammar in guides._kept] == ["c", "b"]


def test_one_that_takes_too_long_is_refused_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Guides[str] = Guides(tokenizer(), tokenizer().vocab_size + 7, 0.2)
    made._compiler = compiler()
    compiler().prepare()
    hold, compile_one = threading.Event(), Compiler.compile

    def slow(self: Compiler, grammar: Grammar) -> Compiled:
        if grammar.source.startswith("slow"):
            hold.wait(20)
        return compile_one(self, grammar)

    monkeypatch.setattr(Compiler, "compile", slow)
    made.begin("slow", Grammar("regex", "slow"))
    made.begin("fast", Grammar("regex", "fast"))
    found = done(made)
    assert "more than 0.2 s" in str(found["slow"])
    assert isinstance(found["fast"], Compiled)
    made.begin("slow 2", Grammar("regex", "slow2"))
    made.begin("queued", Grammar("regex", "queued"))
    found = done(made)
    assert isinstance(found["slow 2"], InputError)
    assert isinstance(found["queued"], Full), "no thread was left for it, which is not its fault"
    hold.set()
    time.sleep(0.3)
    made.begin("queued", Grammar("regex", "queued"))
    assert isinstance(done(made)["queued"], Compiled)
    made.close()


def test_what_is_forgotten_gives_nothing(guides: Guides[str]) -> None:
    guides.begin("a", Grammar("regex", "a"))
    guides.forget("a")
    guides.forget("b")
    assert not guides.busy
    assert guides.done() == []


def test_what_nobody_waits_for_is_not_compiled(guides: Guides[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what was forgotten nor what has waited too long: those who come then would wait for nothing."""
    hold, begun = threading.Event(), list[str]()

    def slow(self: Compiler, grammar: Grammar) -> None:
        begun.append(grammar.source)
        if grammar.source.startswith("slow"):
            hold.wait(20)

    monkeypatch.setattr(Compiler, "check", slow)
    for key in ("slow 1", "slow 2"):
        guides.begin(key, Grammar("regex", key))
    for key in ("gone", "late", "shared", "shared too"):
        guides.begin(key, Grammar("regex", key.split()[0]))
    guides.forget("gone")
    guides.forget("shared")
    guides._tasks["late"].asked -= guide.PATIENCE * 5.0
    assert [key for key, _ in guides.done()] == ["late"]
    hold.set()
    found = done(guides)
    assert isinstance(found["shared too"], Compiled)
    assert sorted(begun) == ["shared", "slow 1", "slow 2"]


def test_a_time_that_another_thread_takes_back_is_looked_at_once(guides: Guides[str]) -> None:
    class Changing(guide._Task):
        times = iter([1.0, None, None])
        began = property(lambda self: next(self.times), lambda self, value: None)

    task = Changing(Grammar("regex", "a"))
    assert isinstance(guides._result(task), InputError)
    assert guides._result(task) is None


class Panic(BaseException):
    """As those of Rust are."""


@pytest.mark.parametrize("kind", [RuntimeError, Panic])
def test_what_breaks_is_an_error_of_its_request(
    guides: Guides[str], monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def broken(*what: Any, **more: Any) -> Any:
        raise kind("the library has changed")

    with monkeypatch.context() as patch:
        patch.setattr(LLMatcher, "validate_grammar_with_warnings", broken)
        for key in "abc":
            guides.begin(key, Grammar("regex", f"{key} never compiled before"))
        assert all("the library has changed" in str(error) for error in done(guides).values())
    guides.begin("a", Grammar("regex", "compiled then"))
    assert isinstance(done(guides)["a"], Compiled)


# ---------------------------------------------------------------- in an engine


@pytest.fixture(scope="module")
def chatty() -> Any:
    made = Engine(llama(), name="llama", cache=2048, seed=0, grammar_seconds=10)
    made.start()
    yield made
    made.close()


@pytest.mark.parametrize("temperature", [0, 1])
def test_answers_of_an_engine(chatty: Engine, temperature: float) -> None:
    prompt = chatty.model.tokenizer.encode("a person")  # type: ignore[union-attr]
    settings = chatty.settings(max_tokens=400, temperature=temperature, top_k=0)
    value = {**PERSON, "properties": {**PERSON["properties"], "name": {"enum": ["Ann", "Bo"]}}}  # type: ignore[dict-item]
    told = submit(chatty, f"{temperature}", prompt, settings, n=2, grammar=schema(value))
    free = submit(chatty, "free", prompt, chatty.settings(max_tokens=20))
    waited(told, free)
    for i in range(2):
        assert told.reason(i) == "stop"
        assert set(json.loads(told.text(i))) == {"name", "age", "tags"}
    if temperature:
        assert told.text(0) != told.text(1)
    assert free.tokens() == chatty.model.generate(list(prompt), max_tokens=20).tokens


def test_a_wrong_grammar_is_the_first_thing_that_is_told(chatty: Engine) -> None:
    began = time.perf_counter()
    told = submit(chatty, "wrong", [1, 2], grammar=schema({"type": "objct"}))
    waited(told)
    assert time.perf_counter() - began < 3
    assert told.failed is not None
    assert [told.failed] == told.events
    assert told.failed.status == 400
    assert "Invalid type: objct" in str(told.failed.error)


def test_a_request_can_be_cancelled_while_its_grammar_compiles(chatty: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, check = threading.Event(), Compiler.check

    def slow(self: Compiler, grammar: Grammar) -> None:
        hold.wait(20)
        check(self, grammar)

    monkeypatch.setattr(Compiler, "check", slow)
    told = submit(chatty, "cancelled", [1, 2], grammar=Grammar("regex", "cancelled"), n=2)
    time.sleep(0.05)
    chatty.cancel("cancelled")
    waited(told)
    hold.set()
    assert [told.reason(i) for i in range(2)] == ["cancelled"] * 2
    assert len(told.events) == 2


def test_a_grammar_needs_a_tokenizer() -> None:
    bare = llama()
    bare.tokenizer = None
    made = Engine(bare, name="bare", cache=640)
    made.start()
    with pytest.raises(InputError, match="no tokenizer"):
        submit(made, "a", [1, 2], grammar=Grammar("json_object"))
    told = submit(made, "b", [1, 2])
    waited(told)
    assert len([event for event in told.events if hasattr(event, "text")]) == 8, "without text a piece a token"
    made.close()
