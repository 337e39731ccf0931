"""The model card of a run: README.md with the metadata that the Hugging Face hub reads, and what a user must know."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkv import spec
from qkv.train import curve, recipe
from qkv.train.log import History
from qkv.train.screen import duration
from qkv.write import write_text

_TASKS = {
    "causal": "text-generation",
    "prefix": "text-generation",
    "masked": "fill-mask",
    "classify": "text-classification",
    "tag": "token-classification",
    "span": "question-answering",
    "contrast": "sentence-similarity",
}
_CLASSES: dict[type[spec.Head], str] = {
    spec.LMHead: "AutoModelForCausalLM",
    spec.MaskedLM: "AutoModelForMaskedLM",
    spec.Classify: "AutoModelForSequenceClassification",
    spec.Tag: "AutoModelForTokenClassification",
    spec.Span: "AutoModelForQuestionAnswering",
    spec.Heads: "AutoModelForPreTraining",
}
_LIMITS = {
    "classify": "It answers with one of its labels whatever it is given: a text of another kind gets one too.",
    "tag": "It knows the tags below and no others.",
    "span": "It finds answers that stand in the text, word for word.",
    "contrast": "Distances between its vectors mean something for texts like those that it learned from.",
}


@dataclass(frozen=True)
class About:
    """What a run made, for its page and its card.

    finals: metrics of the weights that were kept, by split ("valid", "test"); records: how many each split had;
    best_step: the step whose weights were kept (None: the last); commit: of the model that the run began with;
    transformers: whether the folder is one that transformers reads."""

    spec: spec.Model
    parameters: int
    trained: int
    finals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    records: Mapping[str, int] = field(default_factory=dict)
    best_step: int | None = None
    commit: str | None = None
    transformers: bool = True


def write(folder: Path, run: recipe.Recipe, about: About, history: History) -> Path:
    """README.md in the run's folder. OSError: it can't be written."""
    path = folder / "README.md"
    parts = [_front(run, about), _what(run, about), _how(run, about, history), _figures(folder, about)]
    parts += [_use(run, about), _limits(run)]
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def shape(model: spec.Model) -> str:
    """A model in a line: "decoder, 12 blocks, width 384, 6 heads, vocabulary 8,192"."""
    kind = "encoder–decoder" if model.encoder and model.decoder else "decoder" if model.decoder else "encoder"
    blocks = " + ".join(str(stack.layers) for stack in model.stacks)
    mixer = model.stacks[0].blocks[0].mixer
    heads = f", {mixer.heads} heads" if isinstance(mixer, spec.Attention) else ""
    return f"{kind}, {blocks} blocks, width {model.dim}{heads}, vocabulary {model.vocab:,}"


def count(parameters: int) -> str:
    """12.2 M, 345 K."""
    return f"{parameters / 1e6:,.1f} M" if parameters >= 1e6 else f"{parameters / 1e3:,.1f} K"


def files(found: recipe.Files) -> list[str]:
    """The names of a recipe's data files."""
    several = found if isinstance(found, tuple) else (found,)
    return [one.path if isinstance(one, recipe.File) else one for one in several]


def settings(run: recipe.Recipe, history: History) -> Iterator[tuple[str, str]]:
    """How a run was done, as names and values."""
    train, batch = run.train, run.batch
    yield "objective", run.objective.kind + _with_smoothing(run.objective.smoothing)
    size = f"{batch.sequences} sequence(s)" if batch.sequences else f"{batch.tokens:,} tokens at most"
    yield "batch", size + (f" × {batch.accumulate}" if batch.accumulate > 1 else "")
    if batch.length:
        yield "length", f"{batch.length:,} tokens" + (f", packed ({batch.packing})" if batch.packing != "none" else "")
    rates = f"learning rate {train.lr:g}" + (f" (matrices {train.muon_lr:g})" if train.optimizer == "muon" else "")
    yield "optimizer", f"{train.optimizer}, {rates}, weight decay {train.weight_decay:g}"
    yield "schedule", f"{train.schedule.kind}, warm-up {train.schedule.warmup:g}"
    yield "products in", train.dtype
    yield "seed", str(run.seed)
    if history.steps:
        yield "steps", f"{history.steps[-1]['step']:,}"
        yield "tokens", f"{history.tokens:,}"
        yield "time", duration(history.seconds)
    if history.runs:
        machine, versions = history.runs[-1].get("machine", {}), history.runs[-1].get("versions", {})
        yield "machine", f"{machine.get('gpu', machine.get('processor'))}, {machine.get('threads')} threads"
        yield "with", ", ".join(f"{name} {version}" for name, version in versions.items())


def _with_smoothing(smoothing: float) -> str:
    return f", label smoothing {smoothing:g}" if smoothing else ""


# --- the parts of the card ------------------------------------------------------------------------------------------


def _front(run: recipe.Recipe, about: About) -> str:
    """Metadata as YAML; its texts are JSON's, which YAML reads."""
    lines = ["# license: yours to say", "library_name: qkv", "tags: [qkv]"]
    if run.objective.kind in _TASKS:
        lines.append(f"pipeline_tag: {_TASKS[run.objective.kind]}")
    if run.model.origin:
        lines.append(f"base_model: {_text(run.model.origin)}")
    if run.data.format == "hub":
        lines.append(f"datasets: [{', '.join(_text(name.partition(':')[0]) for name in files(run.data.train))}]")
    if named := sorted({name for values in about.finals.values() for name in values}):
        lines.append(f"metrics: [{', '.join(map(_text, named))}]")
        lines += _index(run, about)
    return "\n".join(["---", *lines, "---"])


def _index(run: recipe.Recipe, about: About) -> Iterator[str]:
    """The hub's list of results."""
    yield f"model-index:\n- name: {_text(run.name)}\n  results:"
    for split, values in about.finals.items():
        where = getattr(run.data, split, ()) or run.data.train
        task = _TASKS.get(run.objective.kind, run.objective.kind)
        yield f"  - task: {{type: {_text(task)}}}"
        name = ", ".join(Path(one).name for one in files(where))
        yield f"    dataset: {{name: {_text(name)}, type: {_text(name)}, split: {_text(split)}}}"
        yield "    metrics:"
        yield from (f"    - {{type: {_text(m)}, value: {json.dumps(_finite(v))}}}" for m, v in values.items())


def _what(run: recipe.Recipe, about: About) -> str:
    base = f"fine-tuned from `{run.model.origin}`" if run.model.origin else "trained from scratch"
    base += f" (commit `{about.commit}`)" if about.commit else ""
    numbers = f"{count(about.parameters)} parameters"
    if about.trained != about.parameters:
        numbers += f", {count(about.trained)} of them trained"
    records = ", ".join(f"{number:,} {split}" for split, number in about.records.items())
    return "\n".join(
        [
            f"# {_cell(run.name)}\n",
            f"{numbers}: {shape(about.spec)}; {base} with qkv.\n",
            f"Data: {', '.join(f'`{name}`' for name in files(run.data.train))}"
            + (f" (records: {records})." if records else "."),
        ]
    )


def _how(run: recipe.Recipe, about: About, history: History) -> str:
    rows = list(settings(run, history))
    if about.best_step is not None:
        rows.append(("weights kept", f"those of step {about.best_step:,}, the best"))
    return "## How it was trained\n\n" + _table(("setting", "value"), rows)


def _figures(folder: Path, about: About) -> str:
    parts = []
    if about.finals:
        names = list(dict.fromkeys(name for values in about.finals.values() for name in values))
        rows = [
            (name, *(f"{values[name]:.4f}" if name in values else "" for values in about.finals.values()))
            for name in names
        ]
        parts.append(_table(("metric", *about.finals), rows))
    if (folder / curve.PNG).exists():
        parts.append(f"![The loss over steps]({curve.PNG})")
    return "\n\n".join(["## Figures", *parts]) if parts else ""


def _use(run: recipe.Recipe, about: About) -> str:
    here, kind = "THIS_FOLDER", run.objective.kind
    verb = {"classify": "predict", "tag": "predict", "span": "predict", "masked": "predict", "contrast": "embed"}
    said = {"span": '--context "…" "…"', "masked": '"… [MASK] …"'}.get(kind, '"…"')
    parts = ["## Use", f"```sh\nqkv {verb.get(kind, 'generate')} -m {here} {said}\n```"]
    if about.transformers:
        name = _class(about.spec)
        parts.append(
            f"```python\nfrom transformers import AutoTokenizer, {name}\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{here}")\nmodel = {name}.from_pretrained("{here}")\n```'
        )
    else:
        parts.append("It is no architecture of transformers': qkv reads it.")
    return "\n\n".join(parts)


def _limits(run: recipe.Recipe) -> str:
    own = _LIMITS.get(run.objective.kind, "What it writes may be wrong, and may repeat what is wrong in its data.")
    rest = "The figures above are all that was measured: on other texts it has not been tried, nor for its biases. "
    return (
        f"## Limits\n\n{own} {rest}The licences of the data, and of the base model if there is one, bind its use too."
    )


def _class(model: spec.Model) -> str:
    both = model.encoder is not None and model.decoder is not None
    return "AutoModelForSeq2SeqLM" if both else _CLASSES.get(type(model.head), "AutoModel")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """A text that Markdown shows as it is."""
    text = " ".join(text.split())
    return "".join("\\" + c if c in "\\|*_`<[" else c for c in text)


def _finite(value: float) -> Any:
    return value if value == value and abs(value) != float("inf") else str(value)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
