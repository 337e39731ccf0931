"""A part of your own: one value, one class, and everything else works with it. (What CONTRIBUTING.md promises.)"""

import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from qkv import spec
from qkv.errors import ConfigError
from qkv.look.record import record
from qkv.nn.attend import Keys
from qkv.nn.batch import Batch
from qkv.nn.cache import Cache, Contiguous
from qkv.nn.mask import Causal
from qkv.nn.parts import implements
from qkv.nn.position import Relative
from qkv.nn.stack import Transformer
from qkv.specfile import from_toml, to_toml
from tests.tiny import tiny, tiny_spec


@dataclass(frozen=True)
class Decay(spec.Relative):
    """−rate · distance on every score."""

    rate: float = 0.5


@implements(Decay)
class DecayBias(Relative):
    def __init__(self, position: Decay, heads: int, head_dim: int) -> None:
        super().__init__()
        self.rate = position.rate

    def bias(self, batch: Batch, keys: Tensor) -> Tensor:
        distance = keys[:, None, :] - batch.grid_positions[:, :, None]
        return -self.rate * distance.abs()[:, None].float()


@dataclass(frozen=True)
class Comb(spec.Mask):
    """The query's own key and every `step`-th before it."""

    step: int = 2


@implements(Comb)
class CombMask(Causal):
    spec: Comb

    def allows(self, queries: Tensor, keys: Tensor) -> Tensor:
        return super().allows(queries, keys) & ((queries - keys) % self.spec.step == 0)

    def plainly(self, start: int, length: int) -> None:
        return None


class Backwards(Contiguous):
    """The newest key first: any order will do, as long as the positions say so."""

    def extend(self, k: Tensor, v: Tensor, batch: Batch) -> Keys:
        keys = super().extend(k, v, batch)
        return Keys(keys.k.flip(2), keys.v.flip(2), lambda: keys.positions().flip(1), "backwards", in_order=False)


TEXTS = [[1, 2, 3, 4, 5, 6], [9, 8, 7], [5, 5, 5, 5]]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def in_pieces(model: Transformer, cache: Cache) -> list[Tensor]:
    pieces = [model([text[cut] for text in TEXTS], cache=cache) for cut in (slice(0, 1), slice(1, 2), slice(2, None))]
    return [torch.cat(parts) for parts in zip(*pieces, strict=True)]


@pytest.mark.parametrize(
    "mixer",
    [
        spec.Attention(4, 2, position=Decay(0.3)),
        spec.Attention(4, 2, mask=Comb(3)),
        spec.Attention(4, 2, position=Decay(0.3), mask=Comb(2), softcap=5.0),
    ],
    ids=repr,
)
def test_a_scheme_or_a_mask_of_ones_own(mixer: spec.Attention) -> None:
    """Builds, batches, caches, trains, is recorded, and is written as TOML."""
    model = tiny(mixer, layers=1)
    assert from_toml(to_toml(model.spec)) == model.spec
    alone = [model([text])[0] for text in TEXTS]
    torch.testing.assert_close(model(TEXTS), alone, **CLOSE)
    torch.testing.assert_close(in_pieces(model, model.new_cache()), [x.detach() for x in alone], **CLOSE)
    torch.cat(alone).square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    with record(model) as tape:
        model(TEXTS[:1])
    ago = torch.arange(6)[:, None] - torch.arange(6)
    allowed = (ago >= 0) & (ago % (mixer.mask.step if isinstance(mixer.mask, Comb) else 1) == 0)
    assert torch.equal(tape.attention[0] > 0, allowed.expand(4, 6, 6))


def test_a_bias_of_ones_own_is_what_is_added() -> None:
    plain, biased = (tiny(spec.Attention(1, 1, position=p), layers=1) for p in (None, Decay(0.3)))
    biased.load_state_dict(plain.state_dict())
    with record(plain) as before, record(biased) as after:
        plain(TEXTS[:1]), biased(TEXTS[:1])
    decay = torch.exp(-0.3 * (torch.arange(6)[:, None] - torch.arange(6)))
    expected = before.attention[0][0] * decay
    torch.testing.assert_close(after.attention[0][0], expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize(
    "mixer",
    [
        spec.Attention(4, 2, position=spec.Rotary()),
        spec.Attention(4, 2, position=spec.Alibi()),
        spec.Attention(4, 2, position=spec.RelativeBias(8, 6), mask=spec.Window(2)),
    ],
    ids=repr,
)
def test_a_storage_of_ones_own(mixer: spec.Attention) -> None:
    """And beside another one, with which its layers share no mask or bias."""
    model = tiny(mixer)
    for storages in ([Backwards(), Backwards()], [Backwards(), Contiguous()]):
        seen = in_pieces(model, Cache(storages))
        torch.testing.assert_close(seen, [model([text])[0].detach() for text in TEXTS], **CLOSE)


def test_a_value_without_a_class_is_named() -> None:
    @dataclass(frozen=True)
    class Nobodys(spec.Mixer):
        pass

    with pytest.raises(ConfigError, match=r"no module implements Nobodys.*@qkv\.nn\.parts\.implements"):
        Transformer(tiny_spec(Nobodys()))


def test_build_knows_every_part_whatever_was_imported() -> None:
    code = "from qkv import spec; from qkv.nn.parts import build; build(spec.LMHead(), 9, 4, 4); build(spec.RMS(), 4)"
    subprocess.run([sys.executable, "-c", code], check=True)
