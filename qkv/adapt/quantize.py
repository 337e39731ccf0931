"""Quantizing a model's matrices to 8 or 4 bits, from outside: `Packed` weights stand where parameters stood.

An embedding, a linear layer and a head's matrix are read by torch's `F.embedding` and `F.linear`, which is all that a
packed weight can serve; what a part reads in other ways (tables of positions) stays plain.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qkv.adapt.pack import GROUP, LARGEST, one_thread, pack
from qkv.errors import InputError, WeightError
from qkv.kernels.dequantize import dequantize
from qkv.load.scheme import SCHEMES
from qkv.nn.head import LMHead, MaskedLM
from qkv.nn.packed import Packed, named_weights
from qkv.nn.stack import Transformer

TABLES = "int8"  # in 4 bits SmolLM2's tokens are 8 % off, and its perplexity 7 % higher
_VOCABULARY = (nn.Embedding, LMHead, MaskedLM)
_SERVED = (nn.Linear, *_VOCABULARY)  # their `weight` is multiplied, or looked up by row
_ROWS = 1 << 20  # weights that are compared at a time


@dataclass(frozen=True)
class Matrix:
    """What became of one matrix: its sizes in bytes, and ‖W′ − W‖ / ‖W‖."""

    name: str
    shape: tuple[int, int]
    to: str
    before: int
    after: int
    error: float


@dataclass(frozen=True)
class Quantized:
    """What `quantize` did. `plain`: the matrices that stay as they are, and why. `before`, `after`: the bytes of all of
    the model's weights."""

    to: str
    packed: tuple[Matrix, ...]
    plain: Mapping[str, str]
    before: int
    after: int

    @property
    def notes(self) -> tuple[str, ...]:
        """That in sentences."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.plain.items():
            reasons.setdefault(reason, []).append(name)
        mean, worst = sum(m.error for m in self.packed) / len(self.packed), max(self.packed, key=lambda m: m.error)
        kinds = Counter(matrix.to for matrix in self.packed)
        said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        done = (
            f"{len(self.packed)} matrices are packed ({said}): ‖W′ − W‖ / ‖W‖ is {mean:.2%} on average, at most"
            f" {worst.error:.2%} ({worst.name})"
        )
        return (done, *(f"plain, as {reason}: {', '.join(names)}" for reason, names in reasons.items()))


def quantize(
    model: Transformer,
    to: str = "int4",
    group: int = GROUP,
    selection: Callable[[str], bool] | None = None,
    over: Callable[[Sequence[str]], Iterable[str]] = iter,
    tables: str = TABLES,
) -> Quantized:
    """Pack a model's matrices, in place: `to` "int8" (Q8_0: a scale for 32 weights) or "int4" (Q4_1: a scale and a
    minimum), each rounded to the nearest step. Rows that are no multiple of 32 stay plain, as does a matrix with
    numbers beyond 65,504, which 16-bit minima don't reach. `tables`: the same for the vocabulary's matrices (of
    tokens, and a head's), whose rows are few numbers that all of a text hangs on.

    `selection`: which of the model's weights, by name (None: all). `over` gives their names back one by one, under a
    progress bar say. What is packed can't be trained any more; a gradient still flows through it.
    InputError: another scheme or group, nothing that could be packed, or a weight that is packed already. WeightError:
    NaN or infinities, and the tensor that holds them. Nothing has been changed then."""
    for scheme in (to, tables):
        check(scheme, group)
    weights = named_weights(model)
    selected = {name: weight for name, weight in weights.items() if selection is None or selection(name)}
    _none_packed(selected)
    fitting, plain = _sorted_out(model, {name: x for name, x in selected.items() if isinstance(x, Tensor)})
    if not fitting:
        why = "; ".join(f"{name}: {reason}" for name, reason in [*plain.items()][:4]) or "no matrix is selected"
        raise InputError(f"there is nothing to quantize ({why})")
    before = sum(weight.nbytes for weight in weights.values())
    done = tuple(_replace(of := fitting[name], name, tables if _of_vocabulary(of) else to) for name in over([*fitting]))
    return Quantized(to, done, plain, before, before - sum(matrix.before - matrix.after for matrix in done))


def check(to: str, group: int) -> None:
    """Raises InputError for a scheme or a group that there isn't."""
    if to not in SCHEMES:
        raise InputError(f"quantize to {to!r}: it is not one of {', '.join(SCHEMES)}")
    if group != GROUP:
        raise InputError(
            f"a group of {group} weights: the kernels hold groups of {GROUP} and no other; give {GROUP}, or nothing"
        )


def _none_packed(weights: Mapping[str, Tensor | Packed]) -> None:
    packed = {name: weight.kind for name, weight in weights.items() if isinstance(weight, Packed)}
    if packed:
        name, kind = next(iter(packed.items()))
        raise InputError(
            f"{len(packed)} weights are packed already ({name} is {kind}): load the model with dtype='float32' first,"
            " or select others"
        )


def _sorted_out(model: Transformer, weights: Mapping[str, Tensor]) -> tuple[dict[str, list[nn.Module]], dict[str, str]]:
    """The matrices that can be packed, with the modules that hold them, and why each of the others can't."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        if isinstance(module, _SERVED) and isinstance(module.weight, nn.Parameter):
            owners.setdefault(id(module.weight), []).append(module)
    fitting, plain = {}, {}
    for name, weight in weights.items():
        if weight.ndim < 2:
            continue
        reason = _unfit(name, weight) if id(weight) in owners else "it isn't read by a product or by row"
        if reason:
            plain[name] = reason
        else:
            fitting[name] = owners[id(weight)]
    return fitting, plain


def _unfit(name: str, weight: Tensor) -> str:
    """Why this matrix can't be packed; nothing: it can. WeightError: it holds NaN or infinities."""
    if weight.shape[1] % GROUP or not weight.numel():
        return f"rows of {weight.shape[1]} are no multiple of {GROUP}"
    low, high = (float(x) for x in torch.aminmax(weight.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise WeightError(f"{name} holds NaN or infinities, so it can't be quantized; `qkv verify` counts them")
    return f"16 bits hold no number beyond {LARGEST:,.0f}" if max(-low, high) > LARGEST else ""


def _of_vocabulary(owners: Sequence[nn.Module]) -> bool:
    """Whether a weight has a row for each token."""
    return any(isinstance(owner, _VOCABULARY) for owner in owners)


def _replace(owners: list[nn.Module], name: str, to: str) -> Matrix:
    """Pack the weight of these modules, which is one."""
    weight = owners[0].get_parameter("weight")
    kind = SCHEMES[to]
    blocks = pack(weight, kind)
    packed = Packed(blocks, kind, weight.dtype)
    for owner in owners:
        del owner.weight
        owner.weight = packed
    N, K = weight.shape
    return Matrix(name, (N, K), to, weight.nbytes, blocks.nbytes, relative_error(weight.detach(), blocks, kind))


def relative_error(weight: Tensor, blocks: Tensor, kind: str) -> float:
    """‖W′ − W‖ / ‖W‖ of a matrix [N, K] and the blocks [N, bytes of a row] made of it; 0 where both are zero."""
    off = size = 0.0
    rows = max(1, _ROWS // weight.shape[1])
    with one_thread():
        for x, of in zip(torch.split(weight, rows), torch.split(blocks, rows), strict=True):
            near = dequantize(of.reshape(-1), kind, tuple(x.shape))
            off += float(near.sub_(x).square_().sum(dtype=torch.float64))
            size += float(x.float().square().sum(dtype=torch.float64))
    return math.sqrt(off / size) if size else math.sqrt(off)
