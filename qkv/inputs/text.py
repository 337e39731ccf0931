"""Text to ids and back: the `tokenizers` library, with qkv's promises about special tokens, streaming and chats."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from qkv.errors import InputError, TokenizerError
from qkv.inputs import folder, template
from qkv.inputs.backend import Backend, check_text, native
from qkv.inputs.chat import Controls, Marked, finder
from qkv.inputs.encoded import Encoded, Frame, Pieces
from qkv.inputs.stream import StreamDecoder

Token = int | str  # an id, or the token itself


class Tokenizer:
    """Encodes, decodes, streams and formats chats.

    A special token (`<|im_end|>`, `[SEP]`, …) never comes out of a text: what a user types is text. Special tokens are
    added by the tokenizer itself (`special=True`) and by a chat template, and by nothing else.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer | Backend,
        *,
        bos: Token | None = None,
        eos: Token | Sequence[Token] | None = None,
        pad: Token | None = None,
        unk: Token | None = None,
        sep: Token | None = None,
        cls: Token | None = None,
        mask: Token | None = None,
        chat_template: str | Mapping[str, str] | None = None,
        size: int | None = None,
    ) -> None:
        """Take over a `tokenizers.Tokenizer` and say which of its tokens are what.

        `eos` may be several (the first is the template's `eos_token`); all of these become special tokens.
        `chat_template` is one, or several by name ("default", "tool_use" …). `size`: the largest id + 1, if known.
        """
        raw = backend.raw if isinstance(backend, Backend) else backend
        ends = [] if eos is None else [eos] if isinstance(eos, (int, str)) else list(eos)
        given = {"bos": bos, "unk": unk, "sep": sep, "pad": pad, "cls": cls, "mask": mask}
        ids = {name: _find(raw, token, name) for name, token in given.items() if token is not None}
        self.eos = tuple(dict.fromkeys(_find(raw, token, "eos") for token in ends))
        self.bos, self.pad, self.unk = ids.get("bos"), ids.get("pad"), ids.get("unk")
        self.cls, self.sep, self.mask = ids.get("cls"), ids.get("sep"), ids.get("mask")
        _make_special(raw, [*ids.values(), *self.eos])
        self._backend = backend if isinstance(backend, Backend) else Backend(raw)
        self._raw, self._size = raw, size
        self._controls = Controls(raw.get_added_tokens_decoder())
        if self.eos:
            ids["eos"] = self.eos[0]
        named = {name: ids.get(name.removesuffix("_token")) for name in folder.NAMES}
        self._names = {name: self.token(id) for name, id in named.items() if id is not None}
        templates = {"default": chat_template} if isinstance(chat_template, str) else dict(chat_template or {})
        self.chat_templates: dict[str, str] = templates

    @classmethod
    def from_folder(cls, path: str | Path, *, trust: bool = False) -> "Tokenizer":
        """Read `tokenizer.json` and its companions from a folder in Hugging Face layout.

        A file whose regular expressions (or other parts) aren't known to be harmless encodes in a separate process
        under a time limit; `trust=True` runs it here, without one. Raises NotFound, TokenizerError.
        """
        read = folder.read(Path(path), trust)
        names = {name.removesuffix("_token"): token for name, token in read.names.items()}
        return cls(read.backend, chat_template=read.templates, size=read.size, **names)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> "Tokenizer":
        """Build the tokenizer that a GGUF file's metadata describes (`tokenizer.*`; arrays are lists)."""
        from qkv.inputs.gguf_tokenizer import build

        return cls(**build(metadata))

    # ---------------------------------------------------------------- vocabulary

    @cached_property
    def vocab_size(self) -> int:
        """The largest id + 1."""
        return self._size if self._size is not None else max(self._raw.get_vocab().values(), default=-1) + 1

    @property
    def specials(self) -> dict[str, int]:
        """Every special token's id."""
        return dict(self._controls.ids)

    def id(self, token: str) -> int | None:
        """A token's id, or None where there is no such token."""
        found: int | None = self._raw.token_to_id(token)
        return found

    def token(self, id: int) -> str:
        """An id's token. Raises InputError where the id has none."""
        token: str | None = self._raw.id_to_token(id) if 0 <= id < 2**32 else None
        if token is None:
            raise InputError(f"no token has the id {id}; ids are 0 to {self.vocab_size - 1}")
        return token

    def same_ids(self, other: "Tokenizer") -> bool:
        """Has each id the same token in both?"""
        return bool(self._raw.get_vocab() == other._raw.get_vocab())

    def check_rows(self, rows: int) -> None:
        """Raise TokenizerError where an id has no row in an embedding of `rows`. Rows without an id are padding."""
        if self.vocab_size > rows:
            token = self.token(self.vocab_size - 1)
            raise TokenizerError(
                f"the tokenizer has ids up to {self.vocab_size - 1} ({token!r}) and the embedding {rows} rows: they "
                "don't belong together, or the embedding was not resized when tokens were added"
            )

    # ---------------------------------------------------------------- text

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text. `special` adds what this tokenizer puts around one (BOS, [CLS] and [SEP], nothing …).

        Raises InputError for what isn't valid Unicode, TokenizerError for a character that it has no token for.
        """
        return self._backend.encode([text], add=special)[0]

    def encode_batch(self, texts: Iterable[str], *, special: bool = True) -> list[list[int]]:
        """`encode` for many texts at once, in parallel threads."""
        if isinstance(texts, str):
            raise InputError("encode_batch takes a list of texts; encode takes one")
        return self._backend.encode(list(texts), add=special)

    def encode_with_offsets(self, text: str, second: str | None = None) -> Encoded:
        """A text, or two, framed as the tokenizer does ([CLS] a [SEP] b [SEP] …): beside the ids the token types, and
        where in which text each token comes from. Raises as `encode`."""
        texts = [text] if second is None else [text, second]
        return self.frame(len(texts)).join(*self.pieces(texts))

    def pieces(self, texts: Iterable[str], *, middle: bool = False) -> list[Pieces]:
        """The tokens of each text and where they come from, without special ones. `frame` puts these around. `middle`:
        other text came before, so no first word gets the space that SentencePiece's kind puts before it."""
        return self._backend.pieces(list(texts), middle=middle)

    def frame(self, texts: int = 1) -> Frame:
        """What this tokenizer puts around one text, or around two."""
        return self._backend.frame if texts == 1 else self._backend.pair_frame

    def masked_pieces(self, text: str) -> Pieces:
        """As `pieces`, but where the text says this tokenizer's mask token ([MASK], <mask>), it is meant: the one
        special token that is read from a text, for what asks to fill it in. TokenizerError: there is none."""
        if self.mask is None:
            raise TokenizerError("this tokenizer has no mask token, so there is nothing that a model could fill in")
        check_text(text)
        masks, at, spans = [], 0, []
        for start, end, _ in finder([self._raw.get_added_tokens_decoder()[self.mask]])(text):
            masks.append((start, Pieces([self.mask], [(0, end - start)], [0])))
            spans.append((at, start))
            at = end
        spans = [(start, end) for start, end in [*spans, (at, len(text))] if start < end]
        texts = [text[start:end] for start, end in spans]
        first = sum(start == 0 for start, _ in spans)
        found = [*self._backend.pieces(texts[:first]), *self._backend.pieces(texts[first:], middle=True)]
        places = [(start, pieces) for (start, _), pieces in zip(spans, found, strict=True)]
        return Pieces.join(sorted([*places, *masks], key=lambda part: part[0]))

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids. Raises InputError for an id that no token has."""
        ids = [*ids]
        for id in set(ids):
            self.token(id)
        with native("the tokenizer can't decode these ids"):
            text: str = self._raw.decode(ids, skip_special_tokens=skip_special)
        return text

    def stream(self, *, skip_special: bool = True, context: Iterable[int] = ()) -> StreamDecoder:
        """A decoder for ids that come one by one.

        `context` is what came before them, such as the prompt, for decoders that treat a text's first token
        otherwise: SentencePiece's kind drops its leading space.
        """
        hidden = frozenset(self._controls.ids.values()) if skip_special else frozenset[int]()
        token: Callable[[int], str | None] = lambda id: None if id in hidden else self.token(id)  # noqa: E731
        state = None if self._raw.decoder is None else json.loads(self._raw.decoder.__getstate__())
        decoder = StreamDecoder(state, token)
        decoder.push(context)
        return decoder

    # ---------------------------------------------------------------- chat

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> list[int]:
        """The ids of a conversation in the model's own format, without BOS or EOS but those of the template.

        `messages` are `{"role": …, "content": …}`; `template` names one of several; `variables` go to the template.
        Special-token strings in all of these are text. Raises TokenizerError where the model has no template,
        TemplateError where it fails or refuses the messages, InputError for messages it can't be given.
        """
        given = {"messages": messages, "tools": tools, "documents": documents, **variables}
        rendered, marked = self._render(given, add_generation_prompt, template)
        parts = self._controls.split(rendered, marked)
        texts = [part for part in parts if isinstance(part, str)]
        opening = 1 if parts and isinstance(parts[0], str) else 0
        encoded = self._backend.encode(texts[:opening]) + self._backend.encode(texts[opening:], middle=True)
        pieces = iter(encoded)
        return [id for part in parts for id in (next(pieces) if isinstance(part, str) else [part])]

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text that `chat` encodes. Encoding it again is not the same: a user's special strings would count."""
        given = {"messages": messages, "tools": tools, "documents": documents, **variables}
        rendered, marked = self._render(given, add_generation_prompt, template)
        return marked.remove(rendered)

    def _render(self, given: dict[str, Any], add_generation_prompt: bool, name: str | None) -> tuple[str, Marked]:
        source = self._template(name, bool(given["tools"]))
        given["messages"] = _messages(given["messages"])
        marked = self._controls.mark(given, source)
        variables = {**self._names, **marked.variables, "add_generation_prompt": add_generation_prompt}
        return marked.restore(template.render(source, variables)), marked

    def _template(self, name: str | None, tools: bool) -> str:
        if not self.chat_templates:
            raise TokenizerError(
                "this model has no chat template. Continue plain text instead (`qkv generate` without --chat), or give "
                "the Tokenizer a chat_template"
            )
        if name is None:
            name = "tool_use" if tools and "tool_use" in self.chat_templates else "default"
        if name not in self.chat_templates:
            raise TokenizerError(f"no chat template is named {name!r}; there are: {', '.join(self.chat_templates)}")
        return self.chat_templates[name]

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        return self._raw.to_str()

    def save(self, path: str | Path, *, segments: bool = False) -> None:
        """Write the folder that `from_folder` and transformers' AutoTokenizer read. It keeps only the first `eos`.

        `segments`: the model reads token types, so transformers must get them; without it they all count as 0 there."""
        folder.write(Path(path), self._backend.json(), self._names, self.chat_templates, segments)


def _find(raw: tokenizers.Tokenizer, token: Token, role: str) -> int:
    id = token if isinstance(token, int) else raw.token_to_id(token)
    if id is None or id < 0 or raw.id_to_token(id) is None:
        raise TokenizerError(f"the {role} token is {token!r}, which the vocabulary doesn't have")
    return id


def _make_special(raw: tokenizers.Tokenizer, ids: Iterable[int]) -> None:
    added = raw.get_added_tokens_decoder()
    plain = [raw.id_to_token(id) for id in dict.fromkeys(ids) if id not in added or not added[id].special]
    with native("a special token can't be added"):
        raw.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in plain])


def _messages(messages: object) -> list[dict[str, Any]]:
    """Messages with a role and something to say. A key whose value is None is as good as absent (so transformers)."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise InputError("messages is a list of at least one {'role': …, 'content': …}")
    checked = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"messages[{i}] is not a dict with a role")
        checked.append({key: value for key, value in message.items() if value is not None})
        if message["role"] in ("user", "system") and "content" not in checked[-1]:
            raise InputError(f"messages[{i}], by the {message['role']}, has no content")
    return checked
