"""A decoder's step as a list of operations for the native library (`step.h`): products, attention, norms.

T  rows in a step    B  sequences    H, G  query and key/value heads    D  head_dim    N, K  outputs and inputs

A plan knows no model: `qkv.nn.lower` writes it from a model's parts. It holds the room for a step's activations and
whatever its operations point to, so that nothing it reads can go away.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qkv.kernels.native import TYPES, Native

PARTS = 3
FLOATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}  # ggml's numbers for plain matrices
ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "relu2": 5, "tanh": 6}
NORMS = {None: 0, "rms": 1, "layer": 2}
LINEAR, ATTEND, NORM, EMBED = range(4)

_pointer, _whole, _number, _float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class _Part(ctypes.Structure):
    _fields_ = [("w", _pointer), ("bias", _pointer), ("out", _pointer), ("N", _whole), ("type", _number),
                ("activation", _number)]  # fmt: skip


class _Op(ctypes.Structure):
    _fields_ = [
        ("kind", _number), ("parts", _number),
        ("in_", _pointer), ("residual", _pointer), ("norm_w", _pointer), ("norm_b", _pointer), ("K", _whole),
        ("norm", _number), ("gated", _number), ("eps", _float), ("scale", _float), ("softcap", _float),
        ("picked", _number), ("part", _Part * PARTS),
        ("q", _pointer), ("k", _pointer), ("v", _pointer), ("out", _pointer), ("cos", _pointer), ("sin", _pointer),
        ("slopes", _pointer), ("q_norm", _pointer), ("q_bias", _pointer), ("k_norm", _pointer), ("k_bias", _pointer),
        ("keys", _pointer), ("values", _pointer), ("slots", _whole), ("heads", _number), ("kv_heads", _number),
        ("D", _number), ("turned", _number), ("interleaved", _number), ("cache", _number),
        ("qk_norm", _number), ("qk_eps", _float),
    ]  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = [("ops", _pointer), ("count", _whole), ("rows", _whole), ("sequences", _whole), ("picks", _whole),
                ("lengths", _pointer), ("starts", _pointer), ("prompts", _pointer), ("ids", _pointer),
                ("picked", _pointer), ("threads", _whole), ("pages", _pointer), ("most_pages", _whole)]  # fmt: skip


@dataclass(frozen=True)
class Matrix:
    """W [N, K] where it lies: packed tiles, or plain rows. `holds` keeps it there."""

    address: int
    type: int
    N: int
    K: int
    holds: Any = field(repr=False)

    @classmethod
    def tiles(cls, kind: str, held: Tensor, N: int, K: int) -> "Matrix":
        """One whose bytes are `Native.pack`'s."""
        return cls(held.data_ptr(), TYPES[kind], N, K, held)

    @classmethod
    def plain(cls, weight: Tensor) -> "Matrix":
        """One of float32, float16 or bfloat16. KeyError: another dtype."""
        weight = weight.detach().contiguous()
        return cls(weight.data_ptr(), FLOATS[weight.dtype], weight.shape[0], weight.shape[1], weight)


@dataclass(frozen=True)
class Norm:
    """A norm of a vector: `kind` of NORMS, weight [K] and bias [K] in float32."""

    kind: str
    weight: Tensor
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Turn:
    """Rotary angles: cos and sin [positions, dims], sin with its sign; pairs side by side, or in two halves."""

    cos: Tensor
    sin: Tensor
    interleaved: bool


@dataclass
class Buffer:
    """Room for one vector of `width` float32 a row."""

    width: int
    at: Tensor


class Plan:
    """Operations in order, over buffers of `rows` rows. Write it once, then run it for each step."""

    def __init__(self, library: Native, rows: int) -> None:
        self.library, self.rows = library, rows
        self._run = library.library.qkv_step
        self._run.argtypes = [_pointer]
        if (size := library.library.qkv_size_of_op()) != ctypes.sizeof(_Op):
            raise RuntimeError(f"the native library's operations take {size} bytes, not {ctypes.sizeof(_Op)}")
        self._ops: list[_Op] = []
        self._holds: list[Any] = []
        self._table: Any = None

    def buffer(self, width: int) -> Buffer:
        """New room for a vector a row."""
        return Buffer(width, torch.empty(self.rows, width))

    def embed(self, table: Matrix, out: Buffer, *, scale: float = 1.0, positions: Tensor | None = None) -> None:
        """out = table[id] · scale, + positions[position] (float32 [most, K])."""
        op = _Op(kind=EMBED, K=table.K, scale=scale, residual=self._floats(positions))
        self._holds.append(table)
        op.part[0] = _Part(table.address, None, self._at(out.at), table.K, table.type, 0)
        self._ops.append(op)

    def linear(
        self,
        x: Buffer,
        outs: Sequence[tuple[Matrix, Tensor | None, Buffer]],
        *,
        norm: Norm | None = None,
        residual: Buffer | None = None,
        activation: str | None = None,
        gated: bool = False,
        scale: float = 1.0,
        softcap: float | None = None,
        picked: bool = False,
    ) -> int:
        """out = residual + act(W norm(x) · scale + b), for each (W, b, out) of up to three that read the same x.

        `gated`: of two, act(first) ⊙ second into the first's buffer. `softcap`: c·tanh(y/c). `picked`: only the rows
        that a step asks for; the buffers of `outs` hold these. Gives the operation's number, for `place`."""
        op = _Op(kind=LINEAR, parts=len(outs), in_=self._at(x.at), K=x.width, gated=gated, scale=scale,
                 softcap=softcap or 0.0, picked=picked)  # fmt: skip
        self._norm(op, norm)
        op.residual = self._at(residual.at) if residual is not None else None
        for i, (matrix, bias, out) in enumerate(outs):
            assert (x.width, out.width) == (matrix.K, matrix.N), "a product of other sizes than its buffers"
            assert residual is None or residual.width == matrix.N, "a sum of other sizes than its buffers"
            self._holds.append(matrix)
            act = ACTIVATIONS[activation] if i == 0 or not gated else 0
            op.part[i] = _Part(matrix.address, self._floats(bias), self._at(out.at), matrix.N, matrix.type, act)
        self._ops.append(op)
        return len(self._ops) - 1

    def place(self, number: int, out: Tensor) -> None:
        """Where the next step is to put the first product of an operation [rows, N]."""
        self._of(number).part[0].out = out.data_ptr()

    def norm(self, x: Buffer, norm: Norm, out: Buffer, *, residual: Buffer | None = None) -> None:
        """out = norm(x), or residual + norm(x)."""
        op = _Op(kind=NORM, in_=self._at(x.at), K=x.width)
        self._norm(op, norm)
        op.residual = self._at(residual.at) if residual is not None else None
        op.part[0] = _Part(None, None, self._at(out.at), x.width, 0, 0)
        self._ops.append(op)

    def attend(
        self,
        q: Buffer,
        k: Buffer,
        v: Buffer,
        out: Buffer,
        *,
        heads: int,
        kv_heads: int,
        scale: float,
        softcap: float | None,
        slopes: Tensor | None,
        norms: tuple[Norm, Norm] | None,
    ) -> int:
        """softmax(q kᵀ · scale) v of each row over its sequence's keys so far, its own among them, which are kept
        first. Gives the operation's number, for `keep` and `turn`."""
        op = _Op(kind=ATTEND, q=self._at(q.at), k=self._at(k.at), v=self._at(v.at), out=self._at(out.at), heads=heads,
                 kv_heads=kv_heads, D=q.width // heads, scale=scale, softcap=softcap or 0.0,
                 slopes=self._floats(slopes))  # fmt: skip
        if norms is not None:
            mine, keys = norms
            op.qk_norm, op.qk_eps = NORMS[mine.kind], mine.eps
            op.q_norm, op.q_bias = self._floats(mine.weight), self._floats(mine.bias)
            op.k_norm, op.k_bias = self._floats(keys.weight), self._floats(keys.bias)
        self._ops.append(op)
        return len(self._ops) - 1

    def turn(self, number: int, turn: Turn) -> None:
        """The angles of an attention (again, when there are more positions)."""
        op = self._of(number)
        op.cos, op.sin = self._at(turn.cos), self._at(turn.sin)
        op.turned, op.interleaved = turn.cos.shape[-1], turn.interleaved

    def keep(self, number: int, keys: Tensor, values: Tensor) -> None:
        """Where an attention keeps its keys and values: [B, G, slots, D], position p in slot p; or of all pages
        [pages, G, size, D], size a multiple of 16."""
        op = self._of(number)
        op.keys, op.values, op.slots = keys.data_ptr(), values.data_ptr(), keys.shape[2]
        op.cache = FLOATS[keys.dtype]

    def run(
        self,
        ids: Sequence[int],
        lengths: Sequence[int],
        starts: Sequence[int],
        picked: Sequence[int],
        pages: Tensor | None = None,
        prompts: Sequence[int] | None = None,
    ) -> None:
        """One step: `lengths[b]` new rows of each sequence, from position `starts[b]`. `pages` (int64 [B, most]), where
        keys are kept in pages, in all attentions: those of each sequence, position p in slot p mod size of its page
        p // size. `prompts[b]`: how many of the rows, the first ones, are a prompt's (None: none), which have products
        and an attention of their own where the library has some. Nobody checks the ids, nor the pages."""
        if self._table is None:
            self._table = (_Op * len(self._ops))(*self._ops)
        T, B, P = len(ids), len(lengths), len(picked)
        numbers = (_whole * (3 * B + T + P))(*lengths, *starts, *(prompts or [0] * B), *ids, *picked)
        at = ctypes.addressof(numbers)
        step = _Step(ctypes.addressof(self._table), len(self._table), T, B, P, at, at + 8 * B, at + 16 * B,
                     at + 24 * B, at + 24 * B + 8 * T, torch.get_num_threads(), *_table(pages))  # fmt: skip
        if self._run(ctypes.byref(step)):
            raise MemoryError(f"no memory for a step of {T} tokens")

    def _of(self, number: int) -> Any:
        return self._ops[number] if self._table is None else self._table[number]

    def _norm(self, op: Any, norm: Norm | None) -> None:
        if norm is not None:
            op.norm, op.eps = NORMS[norm.kind], norm.eps
            op.norm_w, op.norm_b = self._floats(norm.weight), self._floats(norm.bias)

    def _floats(self, x: Tensor | None) -> int | None:
        return None if x is None else self._at(x.detach().float().contiguous())

    def _at(self, x: Tensor) -> int:
        """Where a tensor lies, which then stays."""
        self._holds.append(x)
        return x.data_ptr()


def _table(pages: Tensor | None) -> tuple[int | None, int]:
    if pages is None:
        return None, 0
    assert (pages.dtype, pages.ndim, pages.is_contiguous()) == (torch.int64, 2, True), "another table than [B, most]"
    return pages.data_ptr(), pages.shape[1]
