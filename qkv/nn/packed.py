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
from qkv.kernels.native import TYPES, native, shape_of
from qkv.kernels.ops import packed_linear

_PLAIN = (torch.float32, torch.bfloat16)  # what the native library makes of rows


class Packed(nn.Module):
    """W [N, K] as uint8 [N, bytes of a row], in one of ggml's types. `dtype`: what rows of it come as.

    ValueError: bytes that can't be rows of such blocks."""

    like: Tensor
    held: Tensor

    def __init__(self, blocks: Tensor, kind: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        block = BLOCKS[kind]
        if blocks.dtype != torch.uint8 or blocks.ndim != 2 or blocks.shape[1] % block.nbytes:
            raise ValueError(f"{kind} needs uint8 rows of {block.nbytes}-byte blocks, got {list(blocks.shape)}")
        self.kind, (self.N, self.K) = kind, shape_of(kind, blocks)
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=blocks.device), persistent=False)
        self.register_buffer("held", None, persistent=False)
        self._hold(blocks)

    @property
    def blocks(self) -> Tensor:
        """uint8 [N, bytes of a row], as in the file."""
        return self.held if self._library is None else self._library.unpack(self.kind, self.held, self.N)

    @property
    def tiled(self) -> bool:
        """Whether `held` is the native library's form of it."""
        return self._library is not None

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.N, self.K))

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        return self.held.device

    @property
    def nbytes(self) -> int:
        return self.held.nbytes

    def numel(self) -> int:
        """Weights, N · K."""
        return self.N * self.K

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.N}×{self.K}"

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W, plain: [N, K]."""
        return dequantize(self.blocks.view(-1), self.kind, tuple(self.shape), dtype)

    def reference(self, x: Tensor) -> Tensor:
        """The equation: x [..., K] → x Wᵀ [..., N], in float32; a gradient flows to x."""
        return F.linear(x.float(), self.dequantize()).to(x.dtype)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] → x Wᵀ + b [..., N]."""
        wants_gradient = x.requires_grad and torch.is_grad_enabled()
        if self._library is None or x.shape[-1] != self.K or wants_gradient or x.device.type != "cpu":
            y = self.reference(x)
        elif torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter):
            y = packed_linear(x, self.held, self.kind, self.N)
        else:
            y = self._product(x, x.numel() // self.K)
            y = y if y.dtype is x.dtype else y.to(x.dtype)
        return y if bias is None else y + bias

    def embedding(self, ids: Tensor) -> Tensor:
        """The rows of these ids [...], plain: [..., K]. IndexError: an id that isn't there."""
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.N:
            raise IndexError(f"an id is outside the table of {self.N} rows")
        if self._library is None or self.dtype not in _PLAIN or ids.device.type != "cpu":
            chosen = self.blocks[ids.reshape(-1)]
            rows = dequantize(chosen.view(-1), self.kind, (len(chosen), self.K), self.dtype)
        else:
            index = ids.reshape(-1).to(torch.int64).contiguous()
            rows = self._library.rows(self.kind, self.held, self.K, index, self.like.new_empty(len(index), self.K))
        return rows.view(*ids.shape, self.K)

    def _hold(self, blocks: Tensor) -> None:
        """Keep the blocks: as the native library's tiles, where it can serve, with its product for this matrix."""
        here = self.kind in TYPES and blocks.device.type == "cpu"
        self._library = native() if here else None
        self._product: Callable[[Tensor, int], Tensor] = self._unserved
        if self._library is None:
            self.held = blocks.contiguous()
            return
        self.held = self._library.pack(self.kind, blocks)
        self._product = partial(self._library.linear, TYPES[self.kind], self.held.data_ptr(), self.N, self.K)

    def _unserved(self, x: Tensor, M: int) -> Tensor:
        return self.reference(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Packed":
        self.like = fn(self.like)
        self._hold(fn(self.blocks))  # tiles are for this processor only
        return self

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "blocks"] = self.blocks

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        _, strict, missing, unexpected, errors = rest
        blocks = state.get(prefix + "blocks")
        if strict:
            unexpected += [key for key in state if key.startswith(prefix) and key != prefix + "blocks"]
        if blocks is None:
            missing.append(prefix + "blocks")
        elif blocks.dtype != torch.uint8 or blocks.shape != self.blocks.shape:
            errors.append(f"{prefix}blocks: expected uint8 {list(self.blocks.shape)}, got {list(blocks.shape)}")
        else:
            self._hold(blocks.to(self.device, copy=self._library is None))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Packed":
        memo[id(self)] = copy = Packed(self.blocks, self.kind, self.dtype)
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
