"""Calls of functions in a model's text: found as it streams, in time linear in it, by JSON alone.

Nothing here runs what a model writes. A text that only looks like a call (no JSON, or a name that no tool has) stays
text.
"""

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Begin:
    """Call `index` begins: its id and the function's name, each said once."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Arguments:
    """Some more of call `index`'s arguments, a piece of JSON."""

    index: int
    text: str


Found = str | Begin | Arguments  # a str is text of the answer


class Parser(Protocol):
    """Text in as it comes, what it is out. All that `feed` and `finish` give is the same however the text is cut."""

    def feed(self, text: str) -> Iterator[Found]: ...
    def finish(self) -> Iterator[Found]: ...


class Plain:
    """Text is text: there are no tools."""

    def feed(self, text: str) -> Iterator[Found]:
        """The same."""
        yield text

    def finish(self) -> Iterator[Found]:
        """Nothing was held back."""
        yield from ()


class Auto:
    """Calls between tags, or an answer that is nothing but calls. `most`: of several only so many are given."""

    def __init__(self, names: Sequence[str], most: int | None = None) -> None:
        self.names, self.most = frozenset(names), most
        self._calls = 0
        self._spaces: list[str] = []  # before a tag these are none of the answer's
        self._held = ""  # the beginning of a tag, perhaps
        self._inside: list[str] | None = None  # what came after an opening tag: `_size` characters, `_tail` the last
        self._tail, self._size, self._rest = "", 0, ""
        self._bare: list[str] | None = None  # the whole answer so far, where it began as JSON
        self._begun = False

    def feed(self, text: str) -> Iterator[Found]:
        """What has become certain."""
        if not self._begun and text.strip():
            self._begun = True
            if text.lstrip()[0] in "{[":
                self._bare, self._spaces = self._spaces, []
        if self._bare is not None:
            self._bare.append(text)
            return
        while text:
            if self._inside is None:
                yield from self._outside(text)
                text = self._rest
            else:
                text, inside = self._until_close(text)
                if inside is not None:
                    yield from self._called(inside, f"{OPEN}{inside}{CLOSE}")

    def finish(self) -> Iterator[Found]:
        """The rest: a call whose closing tag never came is one too."""
        if self._bare is not None:
            whole = "".join(self._bare)
            yield from self._called(whole, whole)
        elif self._inside is not None:
            inside = "".join(self._inside)
            yield from self._called(inside, OPEN + inside)
        elif self._held or not self._calls:
            yield "".join(self._spaces) + self._held

    def _outside(self, text: str) -> Iterator[Found]:
        """Text up to an opening tag; `_rest` is what comes after it."""
        text, self._held, self._rest = self._held + text, "", ""
        at = text.find(OPEN)
        if at >= 0:
            self._inside, self._tail, self._size = [], "", 0
            text, self._rest = text[:at], text[at + len(OPEN) :]
        else:
            keep = next((n for n in range(min(len(OPEN) - 1, len(text)), 0, -1) if OPEN.startswith(text[-n:])), 0)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        sure = text.rstrip()
        if sure:
            yield "".join(self._spaces) + sure
        if sure or at >= 0:
            self._spaces = []
        if at < 0:
            self._spaces.append(text[len(sure) :])

    def _until_close(self, text: str) -> tuple[str, str | None]:
        """(what comes after the closing tag, what stood before it), or ("", None): it isn't there yet."""
        assert self._inside is not None
        tail = self._tail[1 - len(CLOSE) :]  # a tag may be cut anywhere
        at, size = (tail + text).find(CLOSE), self._size
        self._inside.append(text)
        if at < 0:
            self._tail, self._size = tail + text, size + len(text)
            return "", None
        at += size - len(tail)
        inside, self._inside = "".join(self._inside)[:at], None
        return text[at + len(CLOSE) - size :], inside

    def _called(self, inside: str, otherwise: str) -> Iterator[Found]:
        calls = _calls(inside, self.names)
        if calls is None:
            yield otherwise
            return
        for name, arguments in calls:
            if self._calls == self.most:
                return
            yield Begin(self._calls, new_id(), name)
            yield Arguments(self._calls, json.dumps(arguments, ensure_ascii=False))
            self._calls += 1


def _calls(text: str, names: frozenset[str]) -> list[tuple[str, dict[str, Any]]] | None:
    """The calls that a JSON text is, or None: it is none, or not of these tools."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict) or call.get("name") not in names:
            return None
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return None
        if not isinstance(arguments, dict):
            return None
        found.append((call["name"], arguments))
    return found or None


class Named:
    """The whole text is the arguments of one tool."""

    def __init__(self, name: str) -> None:
        self._name, self._begun = name, False

    def feed(self, text: str) -> Iterator[Found]:
        """Its arguments, as they come."""
        if not self._begun:
            self._begun = True
            yield Begin(0, new_id(), self._name)
        yield Arguments(0, text)

    def finish(self) -> Iterator[Found]:
        """Nothing was held back."""
        yield from ()


class Required:
    """The whole text is a list of calls, each {"name": …, "arguments": {…}} in this order, as its grammar says."""

    _HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')

    def __init__(self) -> None:
        self._calls, self._depth = -1, 0  # depth: of brackets, outside strings
        self._string = self._escaped = False
        self._head: list[str] = []

    def feed(self, text: str) -> Iterator[Found]:
        """Arguments as they come."""
        out: list[str] = []
        for character in text:
            before = self._depth
            self._step(character)
            if self._depth >= 3 or before >= 3:
                if before == 2:
                    yield self._begin()
                out.append(character)
                if self._depth == 2:
                    yield Arguments(self._calls, "".join(out))
                    out = []
            elif self._depth == 2:
                self._head.append(character)
        if out:
            yield Arguments(self._calls, "".join(out))

    def finish(self) -> Iterator[Found]:
        """Nothing was held back."""
        yield from ()

    def _begin(self) -> Begin:
        head = self._HEAD.fullmatch("".join(self._head))
        self._head = []
        self._calls += 1
        return Begin(self._calls, new_id(), json.loads(head[1]) if head else "")

    def _step(self, character: str) -> None:
        if self._string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._string = False
        elif character == '"':
            self._string = True
        elif character in "{[":
            self._depth += 1
            if self._depth == 2:
                self._head = []
        elif character in "}]":
            self._depth -= 1


def new_id() -> str:
    """A call's id, which its result names."""
    return f"call_{secrets.token_hex(12)}"
