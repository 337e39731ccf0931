"""Constrained decoding: which tokens may come next, so that the answer is what its grammar says.

llguidance (https://github.com/guidance-ai/llguidance) makes an automaton of a JSON schema or a regular expression and
says for each of its states which tokens of the vocabulary keep it alive. A schema comes from outside, so it is compiled
beside the engine's thread, within a time and llguidance's own limits; what was compiled is kept, in memory alone.
"""

import json
import queue
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from qkv.errors import InputError
from qkv.inputs.text import Tokenizer
from qkv.serve.ask import Grammar
from qkv.serve.scheduler import Full

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    from llguidance._lib import JsonCompileOptions
    from numpy.typing import NDArray

K = TypeVar("K", bound=Hashable)
WORKERS, KEPT = 2, 64
REHEARSED = 4  # tokens of an answer, in which a grammar that is too large shows it
PATIENCE = 10  # times the time that one may take: so long a grammar waits for others to be compiled
# Beside what JSON allows: never so much of it that an answer is nothing else.
JSON: "JsonCompileOptions" = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}", "lenient": False}
# A token's mask then takes at most some 10 ms, and a grammar's automaton some 50 MB.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 250_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 25_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class Guide:
    """Holds one answer to a grammar: a processor of scores, told of each token by `advance`. `done`: there can be no
    more. `ends`: the tokens that may come where the grammar lets the answer end."""

    def __init__(self, matcher: "LLMatcher", vocab: int, ends: Sequence[int]) -> None:
        self._matcher, self._vocab, self._ends = matcher, vocab, list(ends)

    @property
    def done(self) -> bool:
        """Is the answer whole, with nothing that could follow?"""
        return bool(self._matcher.is_stopped())

    def __call__(self, scores: Tensor, ids: Sequence[int]) -> Tensor:
        """scores [V] with −∞ for what the grammar doesn't allow next. InputError: it has become too complex."""
        bits = _bits(self._matcher)
        if self._matcher.is_error():
            raise InputError(f"grammar: too complex behind {len(ids)} tokens: {_first(self._matcher.get_error())}")
        allowed = bits[: self._vocab].astype(np.bool_)
        if bits[self._vocab]:
            allowed[self._ends] = True
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -torch.inf)

    def advance(self, token: int) -> None:
        """A token that it allowed was chosen. InputError: it didn't."""
        if not self._matcher.consume_token(token):
            raise InputError(f"grammar: it doesn't take token {token}: {_first(self._matcher.get_error())}")


class Compiled:
    """A grammar that answers can be held to."""

    def __init__(self, matcher: "LLMatcher", vocab: int) -> None:
        self._matcher, self._vocab = matcher, vocab

    def guide(self, ends: Sequence[int]) -> Guide:
        """For one more answer."""
        return Guide(self._matcher.deep_copy(), self._vocab, ends)


class Compiler:
    """Compiles grammars for the ids of a tokenizer below `vocab`. In any thread, and in several."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab
        self._lock = threading.Lock()
        self._table: LLTokenizer | None = None

    def check(self, grammar: Grammar) -> None:
        """InputError: it is wrong, or asks for what llguidance doesn't do. It takes no vocabulary, so it is quick."""
        from llguidance import LLMatcher

        wrong, said = LLMatcher.validate_grammar_with_warnings(_written(grammar), limits=_limits())
        if wrong:
            raise _refused(grammar, said[0])

    def compile(self, grammar: Grammar) -> Compiled:
        """InputError: as `check`, or it is too large, or nothing is as it says."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self.prepare(), _written(grammar), log_level=0, limits=_limits())
        tried = matcher.deep_copy()
        for _ in range(REHEARSED):
            if (token := int(_bits(tried).argmax())) == self._vocab:
                break
            tried.consume_token(token)
        if tried.is_error():
            raise _refused(grammar, tried.get_error() or "it is too large")
        return Compiled(matcher, self._vocab)

    def prepare(self) -> "LLTokenizer":
        """The vocabulary as bytes, made at the first use. InputError: it can't be."""
        from llguidance import LLTokenizer

        with self._lock:
            if self._table is None:
                try:
                    self._table = LLTokenizer(self._with_all_ids(), n_vocab=self._vocab + 1, eos_token=self._vocab)
                except ValueError as error:
                    raise InputError(f"this model's tokenizer can't be held to one: {_first(str(error))}") from None
            return self._table

    def _with_all_ids(self) -> str:
        """tokenizer.json with a special token for each id that has none, and one behind all ids that says "it may end
        here": which tokens end an answer is each request's own."""
        held = json.loads(self._tokenizer.to_json())
        there = {token["id"] for token in held["added_tokens"]}
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        missing = (id for id in range(self._vocab + 1) if id not in there and not _has(self._tokenizer, id))
        held["added_tokens"] += [{"id": id, "content": f"<|no token {id}|>", **plain} for id in missing]
        return json.dumps({**held, "padding": None, "truncation": None})


class _Task:
    def __init__(self, grammar: Grammar) -> None:
        self.grammar, self.asked, self.wanted = grammar, perf_counter(), True
        self.began: float | None = None
        self.result: Compiled | InputError | None = None


class Guides(Generic[K]):
    """Compiles grammars in threads of its own, for the one thread that calls this: `begin` with a key, and later it is
    among what is `done`. A grammar may take `seconds`; a thread that takes longer is lost to others until it is
    through. InputError and Full are given as results."""

    def __init__(self, tokenizer: Tokenizer | None, vocab: int, seconds: float) -> None:
        self._seconds, self._compiler = seconds, Compiler(tokenizer, vocab) if tokenizer is not None else None
        self._kept: OrderedDict[Grammar, Compiled] = OrderedDict()
        self._tasks: dict[K, _Task] = {}
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def busy(self) -> bool:
        """Is there any that isn't done?"""
        return bool(self._tasks)

    def begin(self, key: K, grammar: Grammar) -> None:
        """Compile this one, or find it among those that were."""
        running = (task for task in self._tasks.values() if task.grammar == grammar)
        task = next(running, None)
        if task is None:
            task = _Task(grammar)
            task.result = self._kept.get(grammar)
            if task.result is None:
                self._start()
                self._queue.put(task)
        self._tasks[key] = task

    def done(self) -> list[tuple[K, Compiled | InputError | Full]]:
        """Those that are compiled, wrong or too late since the last call."""
        found = [(key, result) for key, task in self._tasks.items() if (result := self._result(task)) is not None]
        for key, result in found:
            task = self._tasks.pop(key)
            task.wanted = False
            if isinstance(result, Compiled):
                self._kept[task.grammar] = result
                self._kept.move_to_end(task.grammar)
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return found

    def forget(self, key: K) -> None:
        """It waits no longer. What nobody waits for is not compiled, if it has not begun: it would hold others up."""
        task = self._tasks.pop(key, None)
        if task is not None:
            task.wanted = task in self._tasks.values()

    def close(self) -> None:
        """Let the threads end."""
        for _ in self._threads:
            self._queue.put(None)
        self._threads = []

    def _result(self, task: _Task) -> Compiled | InputError | Full | None:
        now, began = perf_counter(), task.began  # once: its thread may be changing it
        if task.result is not None:
            return task.result
        if began is not None and now - began > self._seconds:
            return InputError(f"grammar: it takes more than {self._seconds:g} s to compile; give a simpler one")
        if began is None and now - task.asked > PATIENCE * self._seconds:
            return Full("too many grammars wait to be compiled; try again later")
        return None

    def _start(self) -> None:
        if len(self._threads) < WORKERS:
            thread = threading.Thread(target=self._work, name="qkv grammars", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        assert self._compiler is not None
        while (task := self._queue.get()) is not None:
            if not task.wanted:
                continue
            try:
                task.began = perf_counter()
                self._compiler.check(task.grammar)
                task.began = None  # a vocabulary is none of its business
                self._compiler.prepare()
                task.began = perf_counter()
                task.result = self._compiler.compile(task.grammar)
            except InputError as error:
                task.result = error
            except BaseException as error:  # a panic of llguidance is no Exception, and others need this thread
                task.result = InputError(f"grammar: it can't be compiled here: {type(error).__name__}: {error}")


def _written(grammar: Grammar) -> str:
    """As llguidance takes it. InputError: it is no JSON, or no object."""
    from llguidance import LLMatcher

    schema = grammar.source if grammar.kind == "json_schema" else '{"type": "object"}'
    try:
        if grammar.kind == "regex":
            return LLMatcher.grammar_from_regex(grammar.source)
        return LLMatcher.grammar_from_json_schema(schema, overrides=JSON)
    except ValueError as error:
        raise _refused(grammar, str(error)) from None


def _refused(grammar: Grammar, why: str) -> InputError:
    if "NoExtension" in why:
        why = "no text is as it says"
    return InputError(f"grammar: this {grammar.kind} can't be compiled: {_first(why)}")


def _limits() -> "LLParserLimits":
    from llguidance import LLParserLimits

    return LLParserLimits(**LIMITS)


def _bits(matcher: "LLMatcher") -> "NDArray[np.uint8]":
    """For each id whether it may come next, and for the one behind all whether the text may end."""
    return np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")


def _has(tokenizer: Tokenizer, id: int) -> bool:
    try:
        tokenizer.token(id)
    except InputError:
        return False
    return True


def _first(message: str) -> str:
    """What an error says, on one line and without llguidance's own state."""
    lines = [line.strip() for line in message.split("<state>")[0].replace("<non-verbose/>", "").splitlines()]
    text = " ".join(line for line in lines if line and line.strip("^ "))
    return text if len(text) <= 300 else f"{text[:150]} … {text[-150:]}"
