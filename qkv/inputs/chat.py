"""Which control tokens of a rendered chat are the template's own, and which only look so because a user typed them.

A rendered template is one string, in which `<|im_end|>` by the template and `<|im_end|>` by a user look alike. So a
break, a character that Unicode sets aside for internal use, is put inside every special string that comes from the
messages before the template runs. What still reads as a special string afterwards is the template's.

What this can't see: a template that puts its own text around a user's string to form a token, as
`'<|' + message.role + '|>'` does on purpose. There a role is as powerful as a control token.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tokenizers import AddedToken

from qkv.errors import InputError
from qkv.inputs.backend import check_text

# Unicode, section 23.7: U+FDD0..U+FDEF are noncharacters, "intended for process-internal use".
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
# White_Space as Rust's regex crate has it; str.strip() would also take U+001C to U+001F.
_SPACES = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
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
        self.ids = {token.content: id for id, token in added.items() if token.special}
        self._typed = re.compile(_any_of(self.ids), re.IGNORECASE)  # a template may change the case
        long = [content.lower() for content in self.ids if len(content) > 1]
        # Only pieces with punctuation: a word like "system" may well be the beginning of a token, and is no threat.
        self._starts = {s[:n] for s in long for n in range(1, len(s)) if not s[:n].isalnum()}
        self._ends = {s[n:] for s in long for n in range(1, len(s)) if not s[n:].isalnum()}
        self._longest = max(map(len, long), default=0)
        # Other added tokens are the encoder's to find, unless one hides a special token. Those marked `normalized` have
        # their turn after the others.
        cutting = {id: token for id, token in added.items() if token.special or _overlaps(token.content, self.ids)}
        self._turns = [_Cut({id: t for id, t in cutting.items() if t.normalized == turn}) for turn in (False, True)]

    def mark(self, variables: Mapping[str, Any], template: str) -> Marked:
        """JSON-ready variables with a mark in every special string.

        Raises InputError for what a template can't get: types that JSON doesn't have, invalid Unicode.
        """
        plain = {name: _plain(value, name) for name, value in variables.items()}
        text = json.dumps(plain, ensure_ascii=False) + template
        lower = text.lower()
        free = [c for c in _NONCHARACTERS if not any(form in lower for form in (c, *_escapes(c)))]
        if len(free) < 2:
            raise InputError("the messages use Unicode's noncharacters, U+FDD0 to U+FDEF; take them out")
        marked = Marked({}, *free[:2])
        for name, value in plain.items():
            marked.variables[name] = self._mark(value, name, marked)
        return marked

    def _mark(self, value: Any, key: str, marked: Marked) -> Any:
        if isinstance(value, str):
            compared = key in ("role", "type") and _NAME.fullmatch(value)  # templates compare these with words
            return value if compared else self._mark_text(value, marked, ends=True)
        if isinstance(value, dict):
            return {self._mark_text(k, marked): self._mark(item, k, marked) for k, item in value.items()}
        if isinstance(value, list):
            return [self._mark(item, key, marked) for item in value]
        return value

    def _mark_text(self, text: str, marked: Marked, ends: bool = False) -> str:
        places: set[tuple[int, str]] = set()
        for match in self._typed.finditer(text):
            short = len(match[0]) == 1
            places.add((match.start(), marked.before) if short else (match.start() + 1, marked.inside))
        inner = text.strip()
        first, last = len(text) - len(text.lstrip()), len(text.rstrip())
        # A token may also begin in one string and end in the next one.
        for n in range(1, min(self._longest, len(inner) + 1) if ends else 0):
            if inner[-n:].lower() in self._starts:
                places.add((last - n + 1, marked.inside))
            if inner[:n].lower() in self._ends:
                places.add((first + n - 1, marked.inside))
        pieces, start = [], 0
        for place, mark in sorted(places):
            pieces += [text[start:place], mark]
            start = place
        return "".join([*pieces, text[start:]])

    def split(self, restored: str, marked: Marked) -> list[int | str]:
        """A rendered and restored text as the template's control tokens (ids) and the texts between, in order."""
        parts: list[int | str] = [restored]
        for cut in self._turns:
            parts = [piece for part in parts for piece in (cut(part) if isinstance(part, str) else [part])]
        parts = [marked.remove(part) if isinstance(part, str) else part for part in parts]
        return [part for part in parts if part != ""]


class _Cut:
    """Finds added tokens as the tokenizers library does: the leftmost longest, with the spaces that a token claims."""

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        self._tokens = sorted(tokens.items(), key=lambda item: len(item[1].content), reverse=True)
        self._pattern = re.compile("|".join(_pattern(token) for _, token in self._tokens) or "(?!)")

    def __call__(self, text: str) -> list[int | str]:
        parts: list[int | str] = []
        start = 0
        while match := self._pattern.search(text, start):
            id, token = self._tokens[(match.lastindex or 0) - 1]
            before, start = text[start : match.start()], match.end()
            parts += [before.rstrip(_SPACES) if token.lstrip else before, id]
            while token.rstrip and start < len(text) and text[start] in _SPACES:
                start += 1
        return [*parts, text[start:]]


def _pattern(token: AddedToken) -> str:
    content = re.escape(token.content)
    if len(token.content) == 1:
        content = f"(?<![{_NONCHARACTERS[0]}-{_NONCHARACTERS[-1]}]){content}"
    return rf"(?<!\w)({content})(?!\w)" if token.single_word else f"({content})"


def _any_of(strings: Collection[str]) -> str:
    return "|".join(map(re.escape, sorted(strings, key=len, reverse=True))) or "(?!)"


def _overlaps(content: str, special: Collection[str]) -> bool:
    """Whether finding `content` in a text can hide a special token there."""
    return any(s in content or any(s.startswith(content[n:]) for n in range(1, len(content))) for s in special)


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
