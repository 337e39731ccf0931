"""A conversation with a model: its messages, and a cache that keeps what both have said, so that each turn reads only
what is new."""

from collections.abc import Generator
from typing import Any

from qkv.errors import InputError, TokenizerError
from qkv.generate.generate import generate
from qkv.generate.result import Generation, Piece
from qkv.generate.speculate import guesser_for
from qkv.model import Model
from qkv.nn.cache import Cache


class Talk:
    """`messages`: as a chat template takes them. `generations`: one an answer that was finished. `draft`: a smaller
    model that guesses ahead.

    InputError: the draft doesn't suit the model. TokenizerError: the model has no tokenizer or template. TemplateError:
    the template takes no system prompt."""

    def __init__(
        self, model: Model, settings: dict[str, Any], system: str | None = None, draft: Model | None = None
    ) -> None:
        if model.tokenizer is None:
            raise TokenizerError("this model has no tokenizer, so it can't chat")
        self.model, self.tokenizer = model, model.tokenizer
        self.settings = model.settings(**{"beams": 1, **settings})  # a search's text is known only at its end
        self.guesser = None if draft is None else model.drafted_by(draft)
        guesser_for(self.settings, self.guesser)
        self.generations: list[Generation] = []
        self.start(system)

    def start(self, system: str | None) -> None:
        """Begin anew, with this system prompt."""
        opening = [{"role": "system", "content": system}] if system else []
        self.tokenizer.chat([*opening, {"role": "user", "content": "?"}])  # what the template refuses, it refuses now
        self.messages: list[dict[str, str]] = opening
        self._cache, self._held = self.model.new_cache(), list[int]()

    @property
    def system(self) -> str | None:
        """The system prompt."""
        first = self.messages[0] if self.messages else {"role": ""}
        return first["content"] if first["role"] == "system" else None

    def ask(self, text: str) -> Generator[Piece]:
        """The answer, piece by piece. Closed early, what was said so far is the answer, and nothing is no turn at all.

        InputError, before anything is computed: the conversation has become too long for the model."""
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = self.tokenizer.chat(messages)
        cache = self._cache_for(ids)
        pieces = generate(
            self.model, self.tokenizer, ids, self.settings, stream=True, cache=cache, guesser=self.guesser
        )
        said, finished = "", False
        try:
            for piece in pieces:
                said += piece
                if piece.generation is not None:
                    finished = True
                    self.generations.append(piece.generation)
                    self._cache, self._held = cache, (ids + piece.generation.tokens)[: cache.lengths[0]]
                yield piece
        finally:
            if said or finished:
                self.messages = [*messages, {"role": "assistant", "content": said}]

    def _cache_for(self, ids: list[int]) -> Cache:
        """The cache of the turns before, if this prompt goes on from exactly what it holds; else an empty one.

        It is given away: an answer that is broken off leaves it half written, and it is not used again."""
        cache, held = self._cache, self._held
        self._cache, self._held = self.model.new_cache(), []
        return cache if ids[: len(held)] == held and len(held) < len(ids) else self._cache

    def to_dict(self) -> dict[str, Any]:
        """The conversation as JSON takes it."""
        source = self.model.source
        made = [generation.to_dict() for generation in self.generations]
        about = {"model": source.origin if source else None, "settings": self.settings.describe()}
        return {**about, "messages": self.messages, "generations": made, "notes": list(self.model.notes)}

    def save(self, path: str) -> None:
        """Write the conversation as JSON. InputError: the file is there already, or can't be written."""
        import json

        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(self.to_dict(), file, indent=2, ensure_ascii=False)
        except FileExistsError:
            raise InputError(f"{path} is there already; give another name") from None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
