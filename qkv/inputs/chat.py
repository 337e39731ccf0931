"""Which control tokens of a rendered chat are the template's own, and which only look so because a user typed them.

A rendered template is one string, in which `<|im_end|>` by the template and `<|im_end|>` by a user look alike. So a
break, a character that Unicode sets aside for internal use, is put inside every special string that comes from the
messages before the template runs. What still reads as a special string afterwards is the template's.

What this can't see: a template that puts its own text around a user's string to form a token, as
`'<|' + message.role + '|>'` does on purpose. There a role is as powerful as a control token.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tokenizers import AddedToken, Tokenizer, models

from qkv.errors import InputError
from qkv.inputs.backend import check_text

# Unicode, section 23.7: U+FDD0..U+FDEF are noncharacters, "intended for process-internal use".
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Marked:
    """Template variables, and the two characters that stand in their strings: inside a token, or before a short one."""

    variables: dict[str, Any]
    inside: str
    before: str

    def restore(self, rendered: str) -> str:
        """The marks as they were, where `tojson`, `urlencode` or Python's repr have written them as escapes."""
        for mark in (self.inside, self.before):
            rendered = re.sub("|".join(map(re.escape, _escapes(mark))), mark, rendered, flags=re.IGNORECASE)
        return rendered

    def remove(self, restored: str) -> str:
        """The text without marks."""
        return restored.replace(self.inside, "").replace(self.before, "")


class Controls:
    """The added tokens of a tokenizer: `mark` finds the user's, `split` cuts a rendered text at the others."""

    def __init__(self, added: Mapping[int, AddedToken]) -> None:
        self._ids = {token.content: id for id, token in added.items()}
        self.ids = {token.content: id for id, token in added.items() if token.special}
        self._find = finder(added.values())
        special = sorted({_lower(content) for content in self.ids})  # a template may change the case
        self._find_typed = finder([AddedToken(content, normalized=False) for content in special])
        self._first = {content[0] for content in special}
        # Only pieces with punctuation: a word like "system" may well be the beginning of a token, and is no threat.
        self._starts = {s[:n] for s in special for n in range(1, len(s)) if not s[:n].isalnum()}
        self._ends = {s[n:] for s in special for n in range(1, len(s)) if not s[n:].isalnum()}
        self._longest = max(map(len, special), default=0)

    def mark(self, variables: Mapping[str, Any], template: str) -> Marked:
        """JSON-ready variables with a mark in every special string.

        Raises InputError for what a template can't get: types that JSON doesn't have, invalid Unicode.
        """
        plain = {name: _plain(value, name) for name, value in variables.items()}
        text = (json.dumps(plain, ensure_ascii=False) + template).lower()
        free = [c for c in _NONCHARACTERS if not any(form in text for form in (c, *_escapes(c)))]
        if len(free) < 2:
            raise InputError("the messages use Unicode's noncharacters, U+FDD0 to U+FDEF; take them out")
        marked = Marked({}, *free[:2])
        for name, value in plain.items():
            marked.variables[name] = self._mark(value, name, marked)
        return marked

    def _mark(self, value: Any, key: str, marked: Marked) -> Any:
        if isinstance(value, str):
            compared = key in ("role", "type") and _NAME.fullmatch(value)  # templates compare these with words
            return value if compared else self._mark_text(self._mark_ends(value, marked), marked)
        if isinstance(value, dict):
            return {self._mark_text(k, marked): self._mark(item, k, marked) for k, item in value.items()}
        if isinstance(value, list):
            return [self._mark(item, key, marked) for item in value]
        return value

    def _mark_text(self, text: str, marked: Marked) -> str:
        """Break every special string; again, until none is left that overlapped with another."""
        lower = _lower(text)
        while not self._first.isdisjoint(lower):
            places = []
            for start, end, _ in self._find_typed(lower):
                if end - start > 1:
                    places.append((start + 1, marked.inside))
                elif lower[start - 1 : start] != marked.before:
                    places.append((start, marked.before))
            if not places:
                break
            text = _insert(text, places)
            lower = _lower(text)
        return text

    def _mark_ends(self, text: str, marked: Marked) -> str:
        """A token may also begin in one string and end in the next one."""
        inner = text.strip()
        first, last = len(text) - len(text.lstrip()), len(text.rstrip())
        places = set()
        for n in range(1, min(self._longest, len(inner) + 1)):
            if inner[-n:].lower() in self._starts:
                places.add((last - n + 1, marked.inside))
            if inner[:n].lower() in self._ends:
                places.add((first + n - 1, marked.inside))
        return _insert(text, sorted(places))

    def split(self, restored: str, marked: Marked) -> list[int | str]:
        """A rendered and restored text as added tokens (ids) and the texts between them, in order.

        Special tokens among these are the template's. Others, such as `<think>`, are tokens whoever wrote them.
        """
        parts: list[int | str] = []
        at = 0
        for start, end, content in self._find(restored):
            if len(content) == 1 and restored.endswith(marked.before, 0, restored.index(content, start)):
                continue
            parts += [marked.remove(restored[at:start]), self._ids[content]]
            at = end
        return [part for part in (*parts, marked.remove(restored[at:])) if part != ""]


def finder(tokens: Iterable[AddedToken]) -> Callable[[str], list[tuple[int, int, str]]]:
    """Finds added tokens as the library does: start, end (with the spaces that a token claims), and the token."""
    raw = Tokenizer(models.BPE())  # an empty vocabulary: nothing but the added tokens comes out
    raw.add_tokens(list(tokens))

    def find(text: str) -> list[tuple[int, int, str]]:
        encoding = raw.encode(text, add_special_tokens=False)
        return [(*span, str(raw.id_to_token(id))) for span, id in zip(encoding.offsets, encoding.ids, strict=True)]

    return find


def _lower(text: str) -> str:
    """Lower case, with every character in its place."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def _insert(text: str, places: Iterable[tuple[int, str]]) -> str:
    pieces, start = [], 0
    for place, mark in places:
        pieces += [text[start:place], mark]
        start = place
    return "".join([*pieces, text[start:]])


def _escapes(character: str) -> tuple[str, str]:
    return f"\\u{ord(character):04x}", quote(character).lower()


def _plain(value: Any, where: str) -> Any:
    """A copy out of JSON's own types."""
    if isinstance(value, str):
        check_text(value)
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    try:
        if isinstance(value, Mapping):
            return {_key(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    except RecursionError:
        raise InputError(f"{where.split('[')[0].split('.')[0]} is nested too deeply") from None
    raise InputError(f"{where} is a {type(value).__name__}; a chat template gets strings, numbers, lists and dicts")


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise InputError(f"{where} has the key {key!r}; keys are strings")
    check_text(key)
    return key
