"""A packed weight: a matrix in blocks of a few bits, that stands where a parameter stood.

N  rows (outputs)    K  columns (inputs)    M  rows of x

The model does not know of it: `F.linear` and `F.embedding` with a `Packed` for a weight come here (torch's
`__torch_function__`), so `Linear`, `Embedding` and a tied head work as they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkv.kernels.blocks import BLOCKS
from qkv.kernels.dequantize import dequantize
from qkv.kernels.native import TYPES, Native, native
from qkv.kernels.ops import packed_linear

FEW = 4  # rows of x up to which reading the packed bytes is the work; beyond, the multiplying is
_SERVED = (torch.float32, torch.bfloat16)
_TILE = 1 << 19  # weights that are unpacked at a time for many rows: 1 to 2 MiB, which stay in a core's cache


class Packed(nn.Module):
    """W [N, K] as uint8 [N, bytes of a row], in one of ggml's types. `dtype`: what rows of it come as.

    ValueError: bytes that can't be rows of such blocks."""

    like: Tensor
    blocks: Tensor

    def __init__(self, blocks: Tensor, kind: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        block = BLOCKS[kind]
        if blocks.dtype != torch.uint8 or blocks.ndim != 2 or blocks.shape[1] % block.nbytes:
            raise ValueError(f"{kind} needs uint8 rows of {block.nbytes}-byte blocks, got {list(blocks.shape)}")
        self.kind, self.K = kind, blocks.shape[1] // block.nbytes * block.weights
        self.register_buffer("blocks", blocks.contiguous())
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=blocks.device), persistent=False)
        self._find()

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.blocks.shape[0], self.K))

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        return self.blocks.device

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes

    def numel(self) -> int:
        """Weights, N · K."""
        return self.blocks.shape[0] * self.K

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.blocks.shape[0]}×{self.K}"

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W, plain: [N, K]."""
        return dequantize(self.blocks.view(-1), self.kind, tuple(self.shape), dtype)

    def reference(self, x: Tensor) -> Tensor:
        """The equation: x [..., K] → x Wᵀ [..., N], in float32; a gradient flows to x."""
        return F.linear(x.float(), self.dequantize()).to(x.dtype)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] → x Wᵀ + b [..., N], by the path for so many rows."""
        M = x.numel() // self.K
        if self._library is None or not _served(x):
            y = self.reference(x)
        elif torch.compiler.is_compiling():
            y = packed_linear(x, self.blocks, self.kind)
        elif M <= FEW and x.shape[-1] == self.K:
            y = self._product(x, M)
            y = y if y.dtype is x.dtype else y.to(x.dtype)
        else:
            y = self._tiles(self._library, x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1).to(x.dtype)
        return y if bias is None else y + bias

    def _tiles(self, library: Native, x: Tensor) -> Tensor:
        """x [M, K] → [M, N]: some rows of W at a time as plain numbers, that torch multiplies."""
        N, K = self.shape
        many = max(16, _TILE // K // 16 * 16)
        x = x.to(torch.bfloat16) if _bfloat16_is_fast() else x.float()
        room, out = x.new_empty(min(many, N), K), x.new_empty(len(x), N)
        for start in range(0, N, many):
            blocks = self.blocks[start : start + many]
            tile = library.rows(blocks, self.kind, K, None, room[: len(blocks)])
            out[:, start : start + many] = x @ tile.T
        return out

    def embedding(self, ids: Tensor) -> Tensor:
        """The rows of these ids [...], plain: [..., K]. IndexError: an id that isn't there."""
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.blocks):
            raise IndexError(f"an id is outside the table of {len(self.blocks)} rows")
        if self._library is None or self.dtype not in _SERVED:
            chosen = self.blocks[ids.reshape(-1)]
            rows = dequantize(chosen.view(-1), self.kind, (len(chosen), self.K), self.dtype)
        else:
            index = ids.reshape(-1).to(torch.int64).contiguous()
            rows = self._library.rows(self.blocks, self.kind, self.K, index, self.like.new_empty(len(index), self.K))
        return rows.view(*ids.shape, self.K)

    def _find(self) -> None:
        """The native library, where it can serve, and its product with this matrix."""
        here = self.kind in TYPES and self.blocks.device.type == "cpu"
        self._library = native() if here else None
        self._product: Callable[[Tensor, int], Tensor] = self._unserved
        if self._library is not None:
            self._product = partial(
                self._library.linear, TYPES[self.kind], self.blocks.data_ptr(), self.blocks.shape[0], self.K
            )

    def _unserved(self, x: Tensor, M: int) -> Tensor:
        return self.reference(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Packed":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._find()  # the bytes have moved
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Packed":
        memo[id(self)] = copy = Packed(self.blocks.clone(), self.kind, self.dtype)
        return copy

    def __reduce__(self) -> Any:
        return Packed, (self.blocks, self.kind, self.dtype)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """What torch's functions do with one: `F.linear` and `F.embedding`; TypeError for any other."""
        if func is F.linear and not kwargs:
            return args[1].linear(args[0], *args[2:])
        if func is F.embedding:
            return args[1].embedding(args[0])
        name = getattr(func, "__name__", func)
        raise TypeError(f"{name} can't take a packed weight: give it what its .dequantize() makes")


def _served(x: Tensor) -> bool:
    """Whether the native library takes it: its dtypes, and no gradient asked for."""
    return x.dtype in _SERVED and not (x.requires_grad and torch.is_grad_enabled())


def _bfloat16_is_fast() -> bool:
    return torch.cpu._is_avx512_bf16_supported()


def named_weights(model: nn.Module) -> Mapping[str, Tensor | Packed]:
    """A model's parameters by name, packed ones among them under the names that they had as parameters."""
    return dict(_weights(model))


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor | Packed]]:
    yield from model.named_parameters()
    for name, module in model.named_modules():
        if isinstance(module, Packed):
            yield name, module


def plain(weight: Tensor | Packed) -> Tensor:
    """A weight as a plain tensor, without its history."""
    return weight.dequantize() if isinstance(weight, Packed) else weight.detach()
