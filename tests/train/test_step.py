"""One step: the same gradients however its batch is cut, the same numbers at each try."""

import copy

import pytest
import torch

from qkv.nn.stack import Transformer
from qkv.train import optim
from qkv.train.faults import NotFinite
from qkv.train.learner import Learner
from qkv.train.objective import Feed
from qkv.train.parallel import ALONE
from qkv.train.recipe import Train
from qkv.train.step import Stepper, fold
from tests.train.test_learner import MODEL, Next


class Ragged(Next):
    """Each next token of sequences of any lengths."""

    def loss(self, model, feed):
        return sum(
            torch.nn.functional.cross_entropy(out[:-1], row[1:], reduction="sum")
            for out, row in zip(model(feed.ids), feed.ids, strict=True)
        )


def feed(rows):
    return Feed(rows, None, targets=sum(len(row) - 1 for row in rows), tokens=sum(map(len, rows)))


def rows(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 11, (int(torch.randint(2, 9, (), generator=draw)),), generator=draw) for _ in range(count)]


def stepper(model, **train):
    learner = Learner(model, Ragged())
    said = Train.model_validate({"steps": 9, "lr": 1e-2, **train})
    return Stepper(learner, learner, optim.make(model, said), said, seed=3, world=ALONE)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Transformer(MODEL).eval()


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_a_batch_in_parts_has_the_same_gradients(model, parts):
    all_rows = rows(8)
    one = stepper(model, clip=None)
    whole = one.gradients([feed(all_rows)], 0)
    wanted = grads(model)
    size = 8 // parts
    cut = one.gradients([feed(all_rows[i : i + size]) for i in range(0, 8, size)], 0)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (cut.tokens, cut.targets) == (whole.tokens, whole.targets)
    for name, grad in grads(model).items():
        assert torch.allclose(grad, wanted[name], rtol=0, atol=1e-6), name


def test_dropout_is_of_the_seed_and_the_step(model):
    one = stepper(model.train(), clip=None)
    first, again, other = (one.gradients([feed(rows(4))], step).loss for step in (0, 0, 1))
    assert first == again != other


def test_gradients_are_clipped_and_their_norm_is_told(model):
    one = stepper(model, clip=0.01)
    found = one.gradients([feed(rows(4))], 0)
    total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert found.norm > 0.01
    assert total.item() == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_touches_nothing(model):
    one = stepper(model)
    with torch.no_grad():
        model.decoder.blocks[0].mixer_norm.weight.fill_(float("inf"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NotFinite, match="the loss is nan"):
        one.gradients([feed(rows(2))], 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_stopping_computes_nothing(model):
    found = stepper(model).gradients([feed(rows(2))], 0, stop=True)
    assert found.stop
    assert all(p.grad is None for p in model.parameters())


def test_seeds_are_far_apart():
    assert len({fold(a, b, c) for a in range(5) for b in range(5) for c in range(5)}) == 125
    assert fold(1, 0, 0) == fold(1, 0, 0) < 2**63
