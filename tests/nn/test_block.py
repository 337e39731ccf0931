"""Each place of the norms is its equation, written out."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from qkv import spec
from qkv.errors import InputError
from qkv.nn import attention, mlp, norm  # noqa: F401  (importing registers their parts)
from qkv.nn.batch import Batch
from qkv.nn.block import CROSSING, PLACES
from qkv.nn.cache import Contiguous, Stream
from qkv.nn.fixed import Memory
from qkv.nn.parts import build

Equation = Callable[[Any, Callable[[Tensor], Tensor], Tensor], Tensor]  # the block, its mixer, x


def post(b: Any, mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    h = b.mixer_norm(x + mix(x))
    return b.mlp_norm(h + b.mlp(h))


def pre(b: Any, mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    h = x + mix(b.mixer_norm(x))
    return h + b.mlp(b.mlp_norm(h))


def sandwich(b: Any, mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    h = x + b.mixer_after(mix(b.mixer_norm(x)))
    return h + b.mlp_after(b.mlp(b.mlp_norm(h)))


def parallel(b: Any, mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return x + mix(b.mixer_norm(x)) + b.mlp(b.mlp_norm(x))


EQUATIONS: dict[str, Equation] = {"post": post, "pre": pre, "sandwich": sandwich, "parallel": parallel}


def made(place: Any, dropout: float = 0.0) -> Any:
    block = build(spec.Block(spec.Attention(2, 2), spec.Plain(12), spec.LayerNorm(), place, dropout), 8)
    for weight in block.parameters():
        torch.nn.init.normal_(weight)  # each norm another
    return block


@pytest.mark.parametrize("place", get_args(spec.Place))
def test_the_equation(place: str) -> None:
    block, x, batch = made(place), torch.randn(5, 8), Batch([2, 3], [0, 0], torch.device("cpu"))
    expected = EQUATIONS[place](block, lambda y: block.mixer(y, batch, Stream()), x)
    torch.testing.assert_close(block(x, batch, Stream()), expected)


def crossing(
    b: Any, mix: Callable[[Tensor], Tensor], look: Callable[[Tensor], Tensor], x: Tensor, place: str
) -> Tensor:
    parts = ((mix, b.mixer_norm), (look, b.cross_norm), (b.mlp, b.mlp_norm))
    for part, own in parts:
        x = own(x + part(x)) if place == "post" else x + part(own(x))
    return x


@pytest.mark.parametrize("place", CROSSING)
def test_the_equation_with_cross_attention(place: str) -> None:
    cross = spec.Attention(2, 1, mask=spec.Full())
    block = build(spec.Block(spec.Attention(2, 2), spec.Plain(12), spec.LayerNorm(), place, cross=cross), 8)  # type: ignore[arg-type]
    for weight in block.parameters():
        torch.nn.init.normal_(weight)
    x, batch = torch.randn(5, 8), Batch([2, 3], [0, 0], torch.device("cpu"))
    memory = Memory(torch.randn(6, 8), Batch([4, 2], [0, 0], torch.device("cpu")))
    fixed = block.cross.remember(memory.states, memory.batch)
    expected = crossing(
        block, lambda y: block.mixer(y, batch, Stream()), lambda y: block.cross(y, batch, fixed), x, place
    )
    torch.testing.assert_close(block(x, batch, block.passing(memory)), expected)
    torch.testing.assert_close(block(x, batch, block.new_storage(9, memory)), expected)
    with pytest.raises(InputError, match="give `memory`"):
        block.passing()


def test_there_is_a_class_for_each_place() -> None:
    assert set(PLACES) == set(get_args(spec.Place)) == set(EQUATIONS)


@pytest.mark.parametrize("place", get_args(spec.Place))
def test_dropout_is_on_both_branches_and_only_in_training(place: str) -> None:
    block, x, batch = made(place, dropout=1.0), torch.randn(5, 8), Batch([5], [0], torch.device("cpu"))
    expected = block.mlp_norm(block.mixer_norm(x)) if place == "post" else x
    torch.testing.assert_close(block.train()(x, batch, Stream()), expected)
    mixed = EQUATIONS[place](block, lambda y: block.mixer(y, batch, Stream()), x)
    torch.testing.assert_close(block.eval()(x, batch, Stream()), mixed)


def test_a_block_asks_its_mixer_for_a_storage() -> None:
    assert isinstance(made("pre").new_storage(None), Contiguous)
