"""What the native step needs of a cache and a model: what doesn't fit is an error, or torch's."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from qkv.errors import InputError
from qkv.nn.batch import Batch
from qkv.nn.cache import Cache, Contiguous
from qkv.nn.lower import NotServed
from qkv.nn.native_step import NativeStep
from qkv.nn.packed import Packed
from qkv.nn.stack import Transformer
from tests.generate.tiny import tiny


def one(step: NativeStep, cache: Cache) -> torch.Tensor:
    batch = Batch([1], cache.starts([1]), torch.device("cpu"))
    return step([1], batch, cache, [0])


def used() -> tuple[NativeStep, Cache, list[Contiguous]]:
    """A step that has run once, its cache, and the storages of that."""
    model = tiny()
    step, cache = NativeStep(model), model.new_cache()
    one(step, cache)
    storages = [storage for storage in cache.layers if isinstance(storage, Contiguous)]
    assert len(storages) == len(cache.layers)
    return step, cache, storages


def test_a_cache_of_another_shape() -> None:
    step, cache, storages = used()
    for storage in storages:
        assert storage.k is not None
        storage.k = storage.v = storage.k[..., :2].contiguous()
    with pytest.raises(InputError, match="make it with the model's own new_cache"):
        one(step, cache)


def test_a_cache_of_other_layers() -> None:
    model = tiny()
    cache = Cache([*model.new_cache().layers, Contiguous()])
    with pytest.raises(InputError, match="layers for a model of"):
        one(NativeStep(model), cache)


def test_a_cache_that_is_not_as_it_was_made() -> None:
    step, cache, storages = used()
    for storage in storages:
        assert storage.k is not None
        storage.k = storage.k.transpose(0, 2).contiguous().transpose(0, 2)
    with pytest.raises(InputError, match="not as new_cache makes them"):
        one(step, cache)


def test_a_storage_that_does_something_else_is_for_torch() -> None:
    class Other(Contiguous):
        """Anybody's."""

    model = tiny()
    cache = Cache([Other() for _ in model.new_cache().layers])
    assert NativeStep(model).refuses(Batch([1], [0], torch.device("cpu")), cache) is not None


def larger_table(model: Transformer) -> None:
    tokens = model.last.embed.tokens
    tokens.weight = nn.Parameter(torch.cat((tokens.weight, tokens.weight)).detach())


def other_dropout(model: Transformer) -> None:
    model.last.blocks[0].dropout = nn.Tanh()


class Wrapped(nn.Parameter):
    """As quantizers and sharded tensors wrap them."""


def other_parameter(model: Transformer) -> None:
    tokens = model.last.embed.tokens
    tokens.weight = Wrapped(tokens.weight.detach())


@pytest.mark.parametrize("change", [larger_table, other_dropout, other_parameter])
def test_what_is_not_the_spec_is_for_torch(change: Callable[[Transformer], None]) -> None:
    model = deepcopy(tiny())
    NativeStep(model)
    change(model)
    with pytest.raises(NotServed):
        NativeStep(model)


def test_hooks_on_all_modules() -> None:
    hook = register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(NotServed, match="hooks on all modules"):
            NativeStep(tiny())
    finally:
        hook.remove()


def test_a_packed_product_of_what_is_not_on_the_processor() -> None:
    packed = Packed(torch.zeros(4, 20, dtype=torch.uint8), "Q4_1")
    assert nn.functional.linear(torch.empty(2, 32, device="meta"), packed).is_meta  # type: ignore[arg-type]
