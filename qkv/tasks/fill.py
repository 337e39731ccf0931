"""The likeliest tokens for the masks of a text."""

from qkv import spec
from qkv.errors import InputError
from qkv.inputs.encoded import Pieces
from qkv.inputs.text import Tokenizer
from qkv.nn.stack import Transformer
from qkv.tasks.forward import Texts, check_count, name, outputs, single
from qkv.tasks.result import Filled, Filling
from qkv.tasks.windows import limit

_LOGITS = 2**25  # numbers a batch: each token has one for every other token of the vocabulary


def fill(model: Transformer, tokenizer: Tokenizer, texts: Texts, *, top: int = 5) -> list[Filled]:
    """The `top` likeliest tokens for each mask by a `MaskedLM` head (or by that one of `Heads`).

    The text says where: "Paris is the [MASK] of France", or <mask>, as this model's tokenizer writes it. Several masks
    are filled each by itself. InputError: another head, no mask, a text longer than the model can read."""
    head = masked_head(model)
    check_count("top", top)
    most = limit(model.spec)
    frame = tokenizer.frame(1)
    pieces = [tokenizer.masked_pieces(text) for (text,) in single(texts, "filling in")]
    inputs = [frame.join(one) for one in pieces]
    for i, (own, encoded) in enumerate(zip(pieces, inputs, strict=True)):
        if tokenizer.mask not in own.ids:
            raise InputError(
                f"{name(i, texts)} has no mask: write {tokenizer.token(tokenizer.mask or 0)} where a word is missing"
            )
        if most.size is not None and len(encoded) > most.size:
            raise InputError(f"{name(i, texts)} has {len(encoded)} tokens; the most is {most.size}: {most.why}")
    found: dict[int, Filled] = {}
    for row, logits in outputs(model, inputs, budget=max(1, _LOGITS // model.spec.vocab), head=head):
        text, own = texts[row][0], pieces[row]
        masks = [i for i, id in enumerate(own.ids) if id == tokenizer.mask]
        places = [inputs[row].places(0)[i] for i in masks]
        scores, ids = logits[places].softmax(-1)[:, : tokenizer.vocab_size].topk(min(top, tokenizer.vocab_size))
        fillings = [
            tuple(_filling(tokenizer, text, own, i, *pair) for pair in zip(*rows, strict=True))
            for i, *rows in zip(masks, ids.tolist(), scores.tolist(), strict=True)
        ]
        found[row] = Filled(text, tuple(fillings))
    return [found[i] for i in range(len(texts))]


def masked_head(model: Transformer) -> int | None:
    """Which of several heads is the MaskedLM; None: it is the only head. InputError: there is none."""
    head = model.spec.head
    if isinstance(head, spec.MaskedLM):
        return None
    for i, one in enumerate(head.heads if isinstance(head, spec.Heads) else ()):
        if isinstance(one, spec.MaskedLM):
            return i
    raise InputError(f"filling in needs a MaskedLM head; the model's is {type(head).__name__}")


def _filling(tokenizer: Tokenizer, text: str, pieces: Pieces, place: int, id: int, score: float) -> Filling:
    token = tokenizer.decode([id], skip_special=False)
    start, end = pieces.offsets[place]
    mask = text[start:end]
    left = text[:start] + mask[: len(mask) - len(mask.lstrip())]  # a mask may have claimed the space before it
    right = mask[len(mask.rstrip()) :] + text[end:]
    stream = tokenizer.stream(skip_special=False, context=pieces.ids[:place])
    added = stream.push(id) or stream.finish()
    if place and added and not added[0].isspace():  # it goes on with the word before ("##ing"), or needs no space
        return Filling(token, id, score, text[: pieces.offsets[place - 1][1]] + added + right)
    whole = token.lstrip() if not left or left[-1].isspace() else token
    return Filling(token, id, score, left + whole + right)
