"""A prompt and its settings, checked, as a model's decoder will go on from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qkv.errors import InputError
from qkv.generate.limits import check_generates, check_ids, check_prompt, check_source, room
from qkv.generate.settings import Settings
from qkv.generate.stop import Decoder, Text
from qkv.nn.stack import Transformer

MakeDecoder = Callable[[Sequence[int]], Decoder]


@dataclass(frozen=True)
class Request:
    """`prompt`: what the decoder begins with; `source`: what the encoder beside it reads (empty: there is none);
    `limit`: new tokens that there may be; `decoder`: makes, for what stands before a text, what turns ids into it."""

    index: int
    source: list[int]
    prompt: list[int]
    limit: int
    settings: Settings
    decoder: MakeDecoder | None

    def text(self) -> Text:
        """A new answer's text. An encoder–decoder's is a text of its own, a decoder's goes on from the prompt."""
        before = [] if self.source else self.prompt
        return Text(self.decoder(before) if self.decoder is not None else None, self.settings.stop)


def requests(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Settings],
    decoder: MakeDecoder | None = None,
    room_in_cache: int | None = None,
) -> list[Request]:
    """One for each prompt (ids). InputError: the model doesn't generate; a prompt or its settings don't suit it."""
    check_generates(model.spec)
    made = []
    for i, (prompt, wish) in enumerate(zip(prompts, settings, strict=True)):
        check_prompt(i, prompt, wish, model.spec)
        if wish.stop and decoder is None:
            raise InputError("stop texts need a tokenizer; without one give stop_tokens")
        source, begin = list[int](), list(prompt)
        if model.spec.encoder is not None:
            check_source(model.spec, i, len(prompt), wish)
            source, begin = begin, [start(model, wish)]
        elif wish.start is not None and wish.source("start") == "given":
            raise InputError("start is for an encoder–decoder: this model goes on from the prompt itself")
        if wish.forced_first is not None and len(begin) > 1 and wish.source("forced_first") == "given":
            raise InputError(f"forced_first changes nothing behind prompt {i}, which has {len(begin)} tokens and not 1")
        made.append(Request(i, source, begin, room(model.spec, i, len(begin), wish, room_in_cache), wish, decoder))
    return made


def start(model: Transformer, settings: Settings) -> int:
    """The token that an encoder–decoder's answer begins behind. InputError: nobody says, or it isn't there."""
    token = settings.start if settings.start is not None else model.spec.start
    if token is None:
        raise InputError("neither config nor generation_config says which token an answer begins behind: give start")
    check_ids("start", (token,), model.spec.vocab)
    return token
