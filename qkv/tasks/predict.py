"""What a model says about a text: its head decides whether that is labels, spans, an answer or a word for a mask."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from qkv import spec
from qkv.errors import InputError
from qkv.inputs.text import Tokenizer
from qkv.nn.stack import Transformer
from qkv.tasks.answer import answer
from qkv.tasks.classify import classify
from qkv.tasks.fill import fill
from qkv.tasks.tag import tag

Task = Callable[..., list[Any]]
_TASKS: dict[type[spec.Head], Task] = {spec.Classify: classify, spec.Tag: tag, spec.Span: answer, spec.MaskedLM: fill}
_VERBS: dict[type[spec.Head], str] = {  # the first that fits
    spec.LMHead: "generate continues a text with it",
    spec.States: "embed makes vectors with it",
    spec.Pool: "embed makes vectors with it",
    spec.Head: "call the model itself for what it computes",
}


def predict(
    model: Transformer,
    tokenizer: Tokenizer | None,
    text: str | Sequence[str],
    second: str | Sequence[str] | None = None,
    **options: Any,
) -> Any:
    """What the model's head says about a text: a `Classification`, `Tagged`, `Answered` or `Filled` (qkv.tasks.result);
    a list of texts gives a list of these, in its order.

    `second` is the other text of a pair, or the context of a question; beside a list one text for all, or a list too.
    `options` are the task's own: see `classify`, `tag`, `answer` and `fill`. InputError: a head with no such task, an
    option that the task doesn't know, and what each task says."""
    return apply(task_of(model), model, tokenizer, text, second, **options)


def apply(
    task: Task,
    model: Transformer,
    tokenizer: Tokenizer | None,
    text: str | Sequence[str],
    second: str | Sequence[str] | None = None,
    **options: Any,
) -> Any:
    """One of the four tasks on a text, or a list of them. Raises as `predict`."""
    if tokenizer is None:
        raise InputError("this model has no tokenizer, so it can't read a text; call it with ids")
    known = [p.name for p in inspect.signature(task).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise InputError(f"{task.__name__} has no option {option!r}; it has {', '.join(known)}")
    if isinstance(text, str):
        if second is not None and not isinstance(second, str):
            raise InputError("one text takes one second text, not a list")
        found = task(model, tokenizer, [(text,) if second is None else (text, second)], **options)
        return found[0]
    if not isinstance(text, Sequence):
        raise InputError(f"text must be a string or a list of strings, got {type(text).__name__}")
    texts = list(text)
    if isinstance(second, str):
        second = [second] * len(texts)
    if second is not None and not isinstance(second, Sequence):
        raise InputError(f"second must be a string or a list of strings, got {type(second).__name__}")
    if second is not None and len(second) != len(texts):
        raise InputError(f"there are {len(texts)} texts and {len(second)} second ones")
    pairs = [(one,) for one in texts] if second is None else list(zip(texts, second, strict=True))
    return task(model, tokenizer, pairs, **options)


def task_of(model: Transformer) -> Task:
    """The task that the model's head is for. InputError: none of these."""
    head = model.spec.head
    for one in (head, *(head.heads if isinstance(head, spec.Heads) else ())):
        for kind, task in _TASKS.items():
            if isinstance(one, kind) and (one is head or kind is spec.MaskedLM):
                return task
    verb = next(verb for kind, verb in _VERBS.items() if isinstance(head, kind))
    raise InputError(
        f"predict has nothing to ask a model whose head is {type(head).__name__}: {verb}. A head for labels is asked "
        "for in loading (new_head='classify', labels=[…]) and must be trained"
    )
