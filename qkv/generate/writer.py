"""One answer as it is written: from logits to a token, from tokens to text, and when it ends."""

from collections.abc import Sequence

from torch import Tensor

from qkv.generate.request import Request
from qkv.generate.result import FinishReason
from qkv.generate.sample import Choice, Sampler


class Writer:
    """Writes the answer to a request. `text`: what of it can be shown; `sampler`: how many tokens it has."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.text = request.text()
        self.sampler = Sampler(request.settings, len(request.prompt), request.limit)

    def write(self, logits: Tensor, ids: Sequence[int]) -> tuple[Choice, str, FinishReason | None]:
        """logits [V] behind ids → the token that comes next, the text that it releases, and why the answer ends, if it
        does. Raises as `Sampler.choose`, and then nothing has changed."""
        choice = self.sampler.choose(logits, ids)
        full = self.sampler.made == self.request.limit
        if choice.token in self.request.settings.ends:
            return choice, self.text.finish(), "length" if full and self.request.settings.forced_last else "stop"
        text = self.text.push(choice.token)
        if not self.text.stopped and full:
            text += self.text.finish()
            return choice, text, "stop" if self.text.stopped else "length"
        return choice, text, "stop" if self.text.stopped else None
