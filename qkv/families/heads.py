"""The heads that families share: how a config says them, and the kinds of checkpoints they make."""

from collections.abc import Callable
from dataclasses import replace

from qkv.families.config import Reader, read_labels, read_problem
from qkv.families.family import Architecture, Config, Row, pair
from qkv.spec import Activation, Classify, Head, LMHead, Picked, Span, States, Tag

Read = Callable[[Reader], Head]


def dropout_of(*keys: str, default: float = 0.1) -> Callable[[Reader], float]:
    """The first of these keys that the config says, where null leaves it to the next."""

    def read(config: Reader) -> float:
        said = [config.number(key, default=None, high=1.0) for key in keys]
        return next((value for value in said if value is not None), default)

    return read


def classify(
    *,
    dropout: Callable[[Reader], float],
    pick: Picked = "first",
    hidden: Activation | None = None,
    bias: bool = True,
    labels: int = 2,
) -> Read:
    """A classifier of whole sequences. `labels`: how many, where the config names none."""
    default = labels

    def read(config: Reader) -> Head:
        labels = read_labels(config, default)
        _read_cross_encoder(config)
        return Classify(labels, read_problem(config, labels), pick, hidden, bias, dropout(config))

    return read


IDENTITY = "torch.nn.modules.linear.Identity"


def _read_cross_encoder(config: Reader) -> None:
    """What sentence-transformers notes beside a classifier of pairs: its scores must be the numbers themselves."""
    said = config.section("sentence_transformers", allowed=("activation_fn", "version"))
    said.only("activation_fn", None, IDENTITY)
    config.only("sbert_ce_default_activation_function", None, IDENTITY)


def tag(*, dropout: Callable[[Reader], float]) -> Read:
    """A classifier of tokens."""
    return lambda config: Tag(read_labels(config), dropout=dropout(config))


def span(*, dropout: Callable[[Reader], float] = lambda _: 0.0) -> Read:
    """The first and last token of an answer."""
    return lambda config: Span(dropout(config))


def states(pooler: Activation | None = None) -> Read:
    """The bare model."""
    return lambda config: States(pooler)


def nested(rows: tuple[Row, ...], place: int) -> tuple[Row, ...]:
    """A head's rows where it is one of several."""
    return tuple(
        replace(row, ours=tuple(t.replace("head.", f"head.each.{place}.", 1) for t in row.targets)) for row in rows
    )


def say_dropout(head: Head) -> Config:
    """`classifier_dropout`."""
    return {"classifier_dropout": head.dropout} if isinstance(head, Classify | Tag) else {}


CLASSIFIER_DROPOUT = dropout_of("classifier_dropout")


def decoders(
    stem: str,
    *,
    lm: str | None = None,
    lm_head: str = "lm_head",
    tags: str | None = "score",
    dropout: Callable[[Reader], float] = CLASSIFIER_DROPOUT,
) -> tuple[Architecture, ...]:
    """The checkpoints of a decoder-only family. `lm`: the language model's name, if it isn't as usual; `tags`: what
    the token classifier's matrix is called (None: transformers has none), `dropout`: its dropout."""
    tagger = Architecture(
        f"{stem}ForTokenClassification",
        Tag,
        tag(dropout=dropout),
        rows=pair(tags or "", "head.out"),
        write=say_dropout,
    )
    return (
        Architecture(lm or f"{stem}ForCausalLM", LMHead, rows=(Row(f"{lm_head}.weight", "head.weight"),)),
        Architecture(
            f"{stem}ForSequenceClassification",
            Classify,
            classify(dropout=lambda _: 0.0, pick="last", bias=False),
            rows=(Row("score.weight", "head.out.weight"),),
        ),
        *([tagger] if tags else []),
        Architecture(f"{stem}Model", States, states(), bare=True),
    )
