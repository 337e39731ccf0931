"""Each head's loss is the one that transformers trains it with."""

from typing import Any

import pytest
import torch
from torch import Tensor

from qkv import spec
from qkv.nn.head import IGNORED
from qkv.nn.stack import Transformer
from tests.families.reference import SEQUENCES, case

GIVEN = torch.Generator().manual_seed(3)
IDS = torch.tensor([SEQUENCES[2][:12], SEQUENCES[3][5:17], SEQUENCES[4][20:32]])  # [3, 12]


def outputs(model: Transformer) -> Any:
    """What the head gives for IDS, as one stream."""
    stream, batch = model.batch(IDS)
    return model.head(model.states(stream, batch), batch, model.table)


def expected(theirs: Any, **labels: Tensor) -> Tensor:
    with torch.no_grad():
        return theirs(input_ids=IDS, **labels).loss  # type: ignore[no-any-return]


def of_tokens(kinds: int) -> Tensor:
    """A label for each token, some of which have none."""
    labels = torch.randint(0, kinds, IDS.shape, generator=GIVEN)
    labels[:, ::4] = IGNORED
    return labels


def check(made: Any, given: Any, **theirs: Tensor) -> None:
    model: Transformer = made.ours
    loss = model.head.loss(outputs(model), given)
    torch.testing.assert_close(loss, expected(made.theirs, **theirs), atol=1e-4, rtol=0)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters())
    model.zero_grad()


MASKED = [
    ("bert", "tiny"),
    ("roberta", "tiny"),
    ("xlm-roberta", "tiny"),
    ("distilbert", "untied"),
    ("albert", "tiny"),
    ("electra", "ElectraForMaskedLM"),
    ("mpnet", "tiny"),
]
TAGS = [
    ("bert", "named tags"),
    ("distilbert", "DistilBertForTokenClassification"),
    ("llama", "LlamaForTokenClassification"),
    ("bloom", "BloomForTokenClassification"),
    ("gpt2", "GPT2ForTokenClassification"),
]
SPANS = [
    ("bert", "BertForQuestionAnswering"),
    ("roberta", "RobertaForQuestionAnswering"),
    ("distilbert", "DistilBertForQuestionAnswering"),
    ("mpnet", "MPNetForQuestionAnswering"),
]
CLASSIFIERS = [
    ("bert", "named labels"),
    ("bert", "BertForSequenceClassification"),
    ("bert", "BertForNextSentencePrediction"),
    ("roberta", "named labels"),
    ("electra", "named labels"),
    ("albert", "named labels"),
    ("llama", "LlamaForSequenceClassification"),
    ("gpt2", "GPT2ForSequenceClassification"),
]
ANY = [(name, "any labels") for name in ("bert", "roberta", "distilbert", "albert", "electra", "mpnet")]
QUANTITIES = [(name, "a quantity") for name in ("bert", "roberta", "distilbert", "albert", "electra", "mpnet")]


@pytest.mark.parametrize(("name", "variant"), MASKED)
def test_what_is_masked(name: str, variant: str) -> None:
    labels = of_tokens(97)
    check(case(name, variant), labels.flatten(), labels=labels)


@pytest.mark.parametrize(("name", "variant"), TAGS)
def test_tags(name: str, variant: str) -> None:
    labels = of_tokens(2)
    check(case(name, variant), labels.flatten(), labels=labels)


@pytest.mark.parametrize(("name", "variant"), CLASSIFIERS)
def test_one_of_several_labels(name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, labels = case(name, variant), torch.tensor([1, 0, 1])
    monkeypatch.setattr(made.theirs.config, "pad_token_id", 0)  # decoders look for the last token before it
    check(made, labels, labels=labels)


@pytest.mark.parametrize(("name", "variant"), ANY)
def test_any_of_several_labels(name: str, variant: str) -> None:
    made = case(name, variant)
    head = made.ours.spec.head
    assert isinstance(head, spec.Classify)
    labels = torch.randint(0, 2, (3, len(head.labels)), generator=GIVEN)
    check(made, labels, labels=labels.float())


@pytest.mark.parametrize(("name", "variant"), QUANTITIES)
def test_a_quantity(name: str, variant: str) -> None:
    labels = torch.tensor([0.5, -2.0, 1.25])
    check(case(name, variant), labels, labels=labels)


def test_several_quantities() -> None:
    labels = torch.tensor([[0.5, 1.0], [-2.0, 0.0], [1.25, -0.5]])
    check(case("bert", "two quantities"), labels, labels=labels)


@pytest.mark.parametrize(("name", "variant"), SPANS)
def test_answers_of_one_text_each(name: str, variant: str) -> None:
    made = case(name, variant)
    starts, ends = torch.tensor([2, 0, 7]), torch.tensor([4, 0, 11])
    wanted = expected(made.theirs, start_positions=starts, end_positions=ends)
    rows = made.ours(IDS.tolist())
    pairs = zip(rows, starts, ends, strict=True)
    losses = [made.ours.head.loss(row, torch.stack((a, b))) for row, a, b in pairs]
    torch.testing.assert_close(torch.stack(losses).mean(), wanted, atol=1e-4, rtol=0)


def test_replaced_tokens() -> None:
    labels = torch.randint(0, 2, IDS.shape, generator=GIVEN)
    check(case("electra", "tiny"), labels.flatten(), labels=labels)


def test_pre_training_on_both_tasks() -> None:
    masked, second = of_tokens(97), torch.tensor([1, 0, 0])
    given = (masked.flatten(), second)
    check(case("bert", "BertForPreTraining"), given, labels=masked, next_sentence_label=second)
    check(case("albert", "AlbertForPreTraining"), given, labels=masked, sentence_order_label=second)
