"""A plan's step on the model: which tokens of which sequences it reads, and the logits that are wanted of each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qkv.errors import InputError
from qkv.generate.step import Reader
from qkv.model import Model
from qkv.nn.modes import evaluating
from qkv.serve.plan import Plan
from qkv.serve.sequence import Sequence as Text


class Runner:
    """Does plans, on pages of its own: `pages` of `size` tokens, whose memory is taken here. InputError: there is not
    so much."""

    def __init__(self, model: Model, pages: int, size: int) -> None:
        self.model = model
        try:
            self.cache = model.new_paged_cache(pages, size)
        except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
            raise InputError(f"cache: no memory for {pages:,} pages of {size} tokens; ask for less") from error
        self.reader = Reader(model)

    def step(self, plan: Plan, wanted: Sequence[int]) -> list[Tensor]:
        """Read the rows' tokens → for each row the logits [wanted, V] after the last of them. What a step that raised
        has left in the pages is what it will be again: the same plan, or any row of it, can be done after it. Copies
        that are done are taken off the plan: a row, or another copy, has written to where they came from."""
        self.cache.copy(plan.copies)
        plan.copies = []
        for text in plan.sources:
            self._encode(text)
        tables, held = [row.sequence.pages for row in plan.rows], [row.start for row in plan.rows]
        if self.model.encoder is None:
            self.cache.place(tables, held)
        else:
            sources = [row.sequence.source_pages for row in plan.rows]
            self.cache.place(tables, held, sources, [len(row.sequence.source) for row in plan.rows])
        prompts = [row.of_prompt for row in plan.rows]
        logits = self.reader([row.tokens for row in plan.rows], self.cache, wanted, prompts)
        return list(torch.split(logits, list(wanted)))

    @torch.no_grad()
    def _encode(self, text: Text) -> None:
        """What an encoder makes of a source; alone, so that it is the same whatever else there is to read."""
        with evaluating(self.model):
            self.cache.remember(self.model.encode([list(text.source)]), [text.source_pages])
