"""What a model writes for records (translations, continuations), greedily, and what that is worth."""

from collections.abc import Sequence
from typing import Any

from qkv.generate.generate import generate
from qkv.generate.settings import Settings
from qkv.tasks.batches import by_length
from qkv.tasks.windows import limit
from qkv.train import metrics
from qkv.train.predictions import Asked, Predicted, Shown

MORE = 50  # tokens that a translation may have beyond its source (arXiv 1706.03762, §6.1)
CONTINUED = 32  # tokens read, and written, to show what a language model says

ROUGE = ("rouge1", "rouge2", "rougeL")


def translated(asked: Asked) -> Predicted:
    """Greedy, from the very tokens of training, at most `MORE` longer than the source."""
    sources = [own[0]["ids"].tolist() for own in asked.samples]
    said = _generated(asked, sources, MORE, longer=True)
    truth: list[str] = asked.column("target")
    values: dict[str, float] = {}
    notes = {}
    for name, count in (("bleu", metrics.bleu), ("chrf", metrics.chrf)):
        if name in asked.metrics:
            values[name], notes[name] = count(truth, said)
    if set(ROUGE) & set(asked.metrics):
        values |= metrics.rouge(truth, said)
    rows = zip(asked.column("source"), truth, said, strict=True)
    return Predicted(values, [Shown(*row) for row in rows], notes)


def continued(asked: Asked) -> Predicted:
    """What a language model says after a text's beginning, or to a text that has an answer."""
    tokenizer = asked.objective.tokenizer
    shown = []
    for placed in asked.records:
        text, right = placed.record["text"], placed.record.get("answer")
        if right is None:
            ids = tokenizer.encode(text, special=False)
            half = min(len(ids) // 2, CONTINUED)
            text, right = tokenizer.decode(ids[:half]), tokenizer.decode(ids[half : half + CONTINUED])
        ids = tokenizer.encode(text)
        if ids:
            shown.append(Shown(text, right, _generated(asked, [ids], CONTINUED)[0]))
    return Predicted({}, shown)


def _generated(asked: Asked, prompts: Sequence[list[int]], more: int, *, longer: bool = False) -> list[str]:
    """Greedy answers in batches of like lengths, of at most `more` tokens (`longer`: than the longest prompt)."""
    tokenizer = asked.objective.tokenizer
    said = dict(getattr(asked.model, "generation", {}))
    texts = [""] * len(prompts)
    most = limit(asked.model.spec).size
    for rows in by_length([len(ids) for ids in prompts], asked.budget):
        wanted = more + longer * max(len(prompts[row]) for row in rows)
        wanted = wanted if most is None or not longer else min(wanted, most - 1)
        settings = Settings.of(said, eos=tokenizer.eos, temperature=0.0, beams=1, max_tokens=wanted)
        found: Any = generate(asked.model, tokenizer, [prompts[row] for row in rows], settings)
        for row, one in zip(rows, found, strict=True):
            texts[row] = one.text
    return texts
