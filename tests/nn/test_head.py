"""Each head against its equation."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qkv import spec
from qkv.errors import ConfigError
from qkv.nn import head, norm  # noqa: F401  (importing registers their parts)
from qkv.nn.batch import Batch
from qkv.nn.head import IGNORED, POOLINGS
from qkv.nn.parts import build

X, TABLE = torch.randn(5, 8), torch.randn(7, 8)
BATCH = Batch([2, 3], [0, 0], torch.device("cpu"))
LABELS = ("a", "b", "c")


def made(value: spec.Head, width: int = 8) -> torch.nn.Module:
    part = build(value, 7, 8, width).eval()
    for weight in part.parameters():
        torch.nn.init.normal_(weight)
    return part


# --- language models ------------------------------------------------------------------------------------------------


def test_tied_to_the_embedding() -> None:
    part = made(spec.LMHead())
    assert not list(part.parameters())
    torch.testing.assert_close(part(X, BATCH, TABLE), X @ TABLE.T)


@pytest.mark.parametrize("tied", [True, False])
def test_matrix_and_bias_of_its_own(tied: bool) -> None:
    part = made(spec.LMHead(tied=tied, bias=True))
    torch.testing.assert_close(part(X, BATCH, TABLE), X @ (TABLE if tied else part.weight).T + part.bias)


def test_soft_cap_and_scale() -> None:
    capped = made(spec.LMHead(softcap=2.0, scale=0.5))(X * 100, BATCH, TABLE)
    torch.testing.assert_close(capped, 2 * torch.tanh(X * 50 @ TABLE.T / 2))
    assert capped.abs().max() <= 2


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_masked(tied: bool) -> None:
    part, table = made(spec.MaskedLM(spec.LayerNorm(), "relu", tied), width=4), torch.randn(7, 4)
    expected = part.norm(F.relu(part.dense(X))) @ (table if tied else part.weight).T + part.bias
    torch.testing.assert_close(part(X, BATCH, table), expected)


@pytest.mark.parametrize("value", [spec.LMHead(False, True, 2.0, 0.5), spec.MaskedLM(spec.LayerNorm())])
def test_the_last_product_apart(value: spec.Head) -> None:
    part = made(value)
    product = part.product(X, TABLE)
    assert torch.equal(product.logits(), part(X, BATCH, TABLE))
    some = torch.tensor([3, 0])
    torch.testing.assert_close(part.product(X[some], TABLE).logits(), product.logits()[some])


# --- each token -----------------------------------------------------------------------------------------------------


def test_tags_spans_and_replaced_tokens() -> None:
    tags, span, replaced = made(spec.Tag(LABELS)), made(spec.Span()), made(spec.Replaced("relu"))
    torch.testing.assert_close(tags(X, BATCH, TABLE), X @ tags.out.weight.T + tags.out.bias)
    torch.testing.assert_close(span(X, BATCH, TABLE), X @ span.out.weight.T + span.out.bias)
    hidden = F.relu(replaced.dense(X))
    torch.testing.assert_close(replaced(X, BATCH, TABLE), hidden @ replaced.out.weight[0] + replaced.out.bias)


def test_states_are_what_they_are_and_the_pooler_is_beside_them() -> None:
    part = made(spec.States(pooler="tanh"))
    assert part(X, BATCH, TABLE) is X
    torch.testing.assert_close(part.pooler(X, BATCH), torch.tanh(part.pooler.dense(X[[0, 2]])))


# --- each sequence --------------------------------------------------------------------------------------------------

POOLED = {
    "cls": lambda rows: rows[0],
    "last": lambda rows: rows[-1],
    "mean": lambda rows: rows.mean(0),
    "max": lambda rows: rows.max(0).values,
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("how", POOLINGS)
def test_one_vector_a_sequence(how: spec.Pooling, normalize: bool) -> None:
    expected = torch.stack([POOLED[how](rows) for rows in X.split([2, 3])])
    if normalize:
        expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(made(spec.Pool(how=how, normalize=normalize))(X, BATCH, TABLE), expected)


def test_a_mean_of_doubles_is_no_float() -> None:
    x = X.double() + 1e-9 * torch.arange(X.numel()).view_as(X)
    expected = torch.stack([rows.mean(0) for rows in x.split([2, 3])])
    torch.testing.assert_close(made(spec.Pool())(x, BATCH, TABLE), expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("pick", ["first", "last"])
@pytest.mark.parametrize("hidden", [None, "tanh"])
def test_a_score_for_each_label(pick: spec.Picked, hidden: spec.Activation | None) -> None:
    part = made(spec.Classify(LABELS, pick=pick, hidden=hidden, bias=False))
    states = X[[0, 2] if pick == "first" else [1, 4]]
    states = torch.tanh(part.hidden(states)) if hidden else states
    torch.testing.assert_close(part(states.new_tensor(X.tolist()), BATCH, TABLE), states @ part.out.weight.T)


def test_several_heads_on_the_same_states() -> None:
    part = made(spec.Heads((spec.Tag(LABELS), spec.Classify(LABELS))))
    tags, labels = part(X, BATCH, TABLE)
    torch.testing.assert_close(tags, part.each[0](X, BATCH, TABLE))
    torch.testing.assert_close(labels, part.each[1](X, BATCH, TABLE))
    rows = part.rows((tags, labels), BATCH)
    assert [[tuple(x.shape) for x in each] for each in rows] == [[(2, 3), (3, 3)], [(3,), (3,)]]
    equal = Batch([2, 2], [0, 0], torch.device("cpu"))
    assert [tuple(x.shape) for x in part.grid((tags[:4], labels), equal)] == [(2, 2, 3), (2, 3)]


def test_labels_differ_and_are_there() -> None:
    for labels in ((), ("a", "a")):
        with pytest.raises(ConfigError, match=r"(Classify|Tag)\.labels must be"):
            spec.Tag(labels)


# --- losses ---------------------------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    scores, labels = torch.randn(4, 3), torch.tensor([0, IGNORED, 2, 1])
    expected = -torch.log_softmax(scores, -1)[[0, 2, 3], [0, 2, 1]].mean()
    torch.testing.assert_close(made(spec.Tag(LABELS)).loss(scores, labels), expected)
    torch.testing.assert_close(made(spec.LMHead()).loss(scores, labels), expected)

    one = made(spec.Classify(LABELS)).loss(scores, labels.clamp(min=0))
    torch.testing.assert_close(one, -torch.log_softmax(scores, -1)[range(4), [0, 0, 2, 1]].mean())
    several = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    p = torch.sigmoid(scores)
    expected = -torch.where(several.bool(), p.log(), (1 - p).log()).mean()
    torch.testing.assert_close(made(spec.Classify(LABELS, "multi")).loss(scores, several), expected)
    regression = made(spec.Classify(("score",), "regression")).loss(scores[:, :1], torch.ones(4))
    torch.testing.assert_close(regression, (scores[:, 0] - 1).square().mean())

    span = made(spec.Span()).loss(scores[:, :2], torch.tensor([1, 3]))
    starts, ends = (torch.log_softmax(column, 0) for column in scores[:, :2].T)
    torch.testing.assert_close(span, -(starts[1] + ends[3]) / 2)
    replaced = made(spec.Replaced()).loss(scores[:, 0], torch.tensor([1, 0, 0, 1]))
    p = torch.sigmoid(scores[:, 0])
    torch.testing.assert_close(replaced, -torch.stack((p[0], 1 - p[1], 1 - p[2], p[3])).log().mean())


def test_the_loss_of_several_is_their_sum() -> None:
    part = made(spec.Heads((spec.Tag(LABELS), spec.Classify(LABELS))))
    out = part(X, BATCH, TABLE)
    labels: tuple[Tensor, Tensor] = (torch.tensor([0, 1, 2, 0, 1]), torch.tensor([1, 2]))
    expected = part.each[0].loss(out[0], labels[0]) + part.each[1].loss(out[1], labels[1])
    torch.testing.assert_close(part.loss(out, labels), expected)
