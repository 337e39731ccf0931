"""The module that is stepped: precision, forgetting of activations, blocks."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from qkv import spec
from qkv.nn.stack import Transformer
from qkv.train.learner import Learner, blocks, checkpoint_activations, compile_blocks
from qkv.train.objective import Feed, Objective

CAUSAL = spec.Attention(2, 2, mask=spec.Causal())
MODEL = spec.Model(
    vocab=11,
    dim=8,
    decoder=spec.Stack((spec.Block(CAUSAL, spec.Plain(16, "gelu"), spec.RMS(), dropout=0.5),), layers=3),
    head=spec.LMHead(tied=True),
)


class Next(Objective):
    """Each next token."""

    fields = ("ids",)

    def __init__(self):
        self.seen = None

    def encode(self, record):
        raise NotImplementedError

    def collate(self, samples, draw):
        raise NotImplementedError

    def loss(self, model, feed):
        out = model(feed.ids)
        self.seen = out.dtype
        return F.cross_entropy(out[:, :-1].flatten(0, 1).float(), feed.labels.flatten(), reduction="sum")


def learner(dtype="float32"):
    torch.manual_seed(0)
    return Learner(Transformer(MODEL), Next(), dtype)


def feed():
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    return Feed(ids, ids[:, 1:], targets=6, tokens=8)


def gradients(one):
    torch.manual_seed(1)
    loss = one(feed())
    loss.backward()
    return loss, {name: p.grad for name, p in one.model.named_parameters()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_products_in_a_dtype_weights_and_loss_in_float32(dtype):
    one = learner(dtype)
    loss, grads = gradients(one)
    assert loss.dtype == torch.float32
    assert {g.dtype for g in grads.values()} == {torch.float32}
    assert one.objective.seen == getattr(torch, dtype)
    assert torch.allclose(loss, gradients(learner())[0], rtol=2e-2)


def test_forgotten_activations_give_the_same_gradients_dropout_included():
    plain, forgetful = learner(), learner()
    checkpoint_activations(forgetful.model)
    (loss, wanted), (again, found) = gradients(plain), gradients(forgetful)
    assert torch.equal(loss, again)
    for name, grad in wanted.items():
        assert torch.equal(grad, found[name]), name


def test_blocks_are_found_in_both_stacks():
    model = learner().model
    assert len(blocks(model)) == 3
    full = spec.Attention(2, 2, mask=spec.Full())
    encoder = spec.Stack((spec.Block(full, spec.Plain(16, "gelu"), spec.RMS()),), layers=2)
    both = spec.Block(CAUSAL, spec.Plain(16, "gelu"), spec.RMS(), cross=full)
    model = Transformer(
        spec.Model(vocab=11, dim=8, encoder=encoder, decoder=spec.Stack((both,), layers=3), head=spec.LMHead(tied=True))
    )
    assert len(blocks(model)) == 5


def test_compiled_blocks_have_the_same_gradients_at_any_length(monkeypatch):
    # the graphs alone: kernels take most of the time, and are torch's own
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = learner(), learner()
    compile_blocks(compiled.model)
    for length in (3, 7):
        own = Feed(ids := torch.arange(2 * length).view(2, length) % 11, ids[:, 1:], targets=1, tokens=2 * length)
        for one in (plain, compiled):
            one.eval().zero_grad()
            one(own).backward()
        for (name, p), q in zip(plain.model.named_parameters(), compiled.model.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, atol=1e-6), name
