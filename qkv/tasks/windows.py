"""Long texts: read in windows that overlap, never cut in silence. Windows are ranges over a text's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from qkv import spec
from qkv.errors import InputError
from qkv.inputs.encoded import Encoded, Frame, Pieces

_OVERLAP = 128  # tokens, or half a window where that is less: what BERT's own run_squad.py took (doc_stride)


@dataclass(frozen=True)
class Limit:
    """How many tokens a window may have, special ones included (None: any number), and by whose word."""

    size: int | None
    why: str
    stride: int | None = None

    def stride_in(self, room: int, what: str) -> int:
        """Tokens that two windows share, where each has room for so many. InputError: they would never move on."""
        stride = min(_OVERLAP, room // 2) if self.stride is None else self.stride
        if stride >= room:
            raise InputError(
                f"{what}: a stride of {stride} needs windows of more than that, and here {room} tokens fit"
            )
        return stride


@dataclass(frozen=True)
class Window:
    """One input for the model, and which tokens of the text that was too long it holds."""

    encoded: Encoded
    tokens: range


def limit(model: spec.Model, window: int | None = None, stride: int | None = None) -> Limit:
    """What a model can read at a time: its learned positions, and the context that it was trained on.

    `window` asks for less, `stride` for an overlap. InputError: either is no such number."""
    found = [(model.context, "the context that this model was trained on")] if model.context is not None else []
    for stack in model.stacks:
        if isinstance(stack.embed.position, spec.Learned):
            found.append((stack.embed.position.length, "this model's learned positions"))
    size, why = min(found, default=(None, "no limit"))
    for name, value, least in (("window", window, 1), ("stride", stride, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise InputError(f"{name} must be a whole number of tokens from {least}, got {value!r}")
    if window is not None:
        if size is not None and window > size:
            raise InputError(f"window is {window} tokens; the most is {size}: {why}")
        size, why = window, "the window asked for"
    if stride is not None and size is not None and stride >= size:
        raise InputError(f"stride is {stride}, and a window {size} tokens ({why}): it must be less than a window")
    return Limit(size, why, stride)


def cut(length: int, room: int, stride: int) -> list[range]:
    """0..length in ranges of `room`, the last perhaps shorter, each sharing `stride` tokens with the one before."""
    starts = range(0, max(length - stride, 1), room - stride)
    return [range(start, min(start + room, length)) for start in starts]


def windows(frame: Frame, texts: Sequence[Pieces], over: int, limit: Limit, what: str) -> list[Window]:
    """One text or two as the model reads them: whole if they fit, else in windows over text `over`, the other one being
    in each. `what`: their name in errors. InputError: the other text leaves no room, or no more than the stride."""
    rest = frame.added + sum(len(text) for i, text in enumerate(texts) if i != over)
    length = len(texts[over])
    if limit.size is None or rest + length <= limit.size:
        return [Window(frame.join(*texts), range(length))]
    room = limit.size - rest
    if room < 1:
        raise InputError(
            f"{what}: {rest - frame.added} tokens and {frame.added} special ones leave no room for the rest in "
            f"{limit.size} ({limit.why}); shorten it"
        )
    return [Window(_framed(frame, texts, over, w), w) for w in cut(length, room, limit.stride_in(room, what))]


def truncate(frame: Frame, texts: Sequence[Pieces], limit: Limit) -> Encoded:
    """The beginning of one text or two as far as it fits, the longer one of two losing tokens first (so transformers'
    "longest_first")."""
    lengths = [len(text) for text in texts]
    room = sum(lengths) if limit.size is None else limit.size - frame.added
    if room < len(texts):
        raise InputError(
            f"a window of {limit.size} ({limit.why}) has no room for text beside {frame.added} special tokens"
        )
    if len(texts) == 1:
        return frame.join(texts[0][:room])
    if sum(lengths) > room:
        short = min(lengths)
        keep = short if short <= room // 2 else room // 2
        lengths = [keep, room - keep] if lengths[0] <= lengths[1] else [room - keep, keep]
    return frame.join(*(text[:length] for text, length in zip(texts, lengths, strict=True)))


def _framed(frame: Frame, texts: Sequence[Pieces], over: int, window: range) -> Encoded:
    return frame.join(*(t[window.start : window.stop] if i == over else t for i, t in enumerate(texts)))


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The same characters without spaces at either end."""
    inner = text[start:end]
    left = len(inner) - len(inner.lstrip())
    return (start + left, start + len(inner.rstrip())) if inner.strip() else (end, end)
