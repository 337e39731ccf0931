"""A model's step written down for the native library: each part that is known says its operations.

T  tokens in a step    V  vocabulary

The model does not know of it; its own forward is what this must agree with. A part that is not written down here, a
hook, or a wrapped part (an adapter, a recorder) leaves the whole step to torch, with the reason."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.errors import InputError
from qkv.kernels.plan import FLOATS, Buffer, Matrix, Norm, Plan, Turn
from qkv.nn.attention import Attention
from qkv.nn.batch import Batch
from qkv.nn.block import Parallel, PostNorm, PreNorm, Sandwich
from qkv.nn.cache import Cache, Contiguous
from qkv.nn.embed import Embed
from qkv.nn.head import LMHead
from qkv.nn.linear import Embedding, Linear
from qkv.nn.mask import Causal, Window
from qkv.nn.mlp import ACTIVATIONS, Gated, Plain
from qkv.nn.norm import LayerNorm, RMSNorm
from qkv.nn.packed import Packed
from qkv.nn.paged import Paged
from qkv.nn.position import Alibi, Learned, Relative, Rotary
from qkv.nn.stack import Transformer

SCALINGS = (
    type(None),
    spec.LinearScaling,
    spec.NTKScaling,
    spec.Yarn,
    spec.Llama3Scaling,
)  # the batch is nothing to them
LEAST_ANGLES = 256  # positions that rotary angles are made for at a time


class NotServed(Exception):
    """The native step can't do this model; why."""


class Written:
    """A plan for steps of up to `rows` tokens."""

    def __init__(self, library: Any, model: Transformer, rows: int) -> None:
        self.plan, self.spec, self.dtype = Plan(library, rows), model.spec, model.dtype
        self.attentions: list[tuple[int, Tensor]] = []
        self.kept: dict[int, Tensor | None] = defaultdict(lambda: None)  # whose keys the plan knows, by layer
        self.turns: dict[tuple[Any, int], tuple[Rotary, list[int]]] = {}
        self.slots, self.angles, self.all_packed = 0, 0, True  # slots: that these hold
        self.window: int | None = None  # the shortest: within it, it hides nothing
        self.rooms: dict[tuple[str, int], Buffer] = {}
        stack = model.last
        self.x = self.room("x", model.spec.dim)
        self._embed(stack.embed)
        for layer in stack.in_turn():
            _silent(layer.dropout)
            _silent(layer.mlp.dropout)
            _part(layer, BLOCKS)(self, layer)
        self._head(model, _norm(stack.norm))

    def room(self, name: str, width: int) -> Buffer:
        """A buffer that all layers share."""
        if (name, width) not in self.rooms:
            self.rooms[name, width] = self.plan.buffer(width)
        return self.rooms[name, width]

    def matrix(self, weight: Tensor | Packed) -> Matrix:
        """A weight [N, K], packed or plain."""
        if isinstance(weight, Packed):
            if weight.tiled:
                return Matrix.tiles(weight.kind, weight.held, weight.N, weight.K)
            raise NotServed(f"{weight.kind} weights have no native product")
        if weight.dtype not in FLOATS or weight.device.type != "cpu":
            raise NotServed(f"{str(weight.dtype).removeprefix('torch.')} weights on {weight.device.type}")
        self.all_packed = False
        return Matrix.plain(weight)

    def linear(self, part: nn.Module, out: Buffer) -> tuple[Matrix, Tensor | None, Buffer]:
        """A matrix with its bias, and where its product goes."""
        if type(part) is not Linear:
            raise NotServed(f"{type(part).__name__} in the place of Linear")
        return self.matrix(part.weight), part.bias, out

    def reach(self, positions: int) -> None:
        """Angles for so many positions."""
        if positions <= self.angles or not self.turns:
            return
        self.angles = max(LEAST_ANGLES, 1 << (positions - 1).bit_length())
        batch = Batch([self.angles], [0], torch.device("cpu"))
        for rotary, numbers in self.turns.values():
            cos, sin = (table[:, 0].contiguous() for table in rotary.table(batch, torch.float32))
            for number in numbers:
                self.plan.turn(number, Turn(cos, sin, rotary.spec.interleaved))

    def run(
        self, ids: Sequence[int], batch: Batch, cache: Cache, picked: Sequence[int], prompts: Sequence[int] | None
    ) -> Tensor:
        if self.positions is not None:
            self.positions.check(batch)
        self.reach(max(batch.ends))
        pages = cache.tables(batch)
        self._keep(batch, cache, paged=pages is not None)
        logits = torch.empty(len(picked), self.spec.vocab)
        self.plan.place(self.head, logits)
        self.plan.run(ids, batch.lengths, batch.starts, picked, pages, prompts)
        return logits

    def _keep(self, batch: Batch, cache: Cache, paged: bool) -> None:
        """Tells the plan where keys and values go, in each layer where that has changed."""
        fits = (paged or any(batch.starts)) and max(batch.ends) <= self.slots
        if len(cache.layers) != len(self.attentions):
            raise InputError(f"a cache of {len(cache.layers)} layers for a model of {len(self.attentions)}")
        slots, self.slots = self.slots, 0  # a step that fails here leaves nothing to rely on
        for i, storage in enumerate(cache.layers):
            assert isinstance(storage, Contiguous | Paged)
            if not (fits and storage.k is self.kept[i]):
                number, like = self.attentions[i]
                keys, values = storage.room(like, batch)
                slots = _fitting(keys, values, like, None if paged else batch)
                self.kept[i] = keys
                self.plan.keep(number, keys, values)
        self.slots = slots

    def _embed(self, embed: nn.Module) -> None:
        if type(embed) is not Embed or type(embed.tokens) is not Embedding or embed.segment is not None:
            raise NotServed("its embedding")
        if type(embed.project) is not nn.Identity:
            raise NotServed("an embedding with a projection")
        if type(embed.position) not in (Learned, type(None)):
            raise NotServed(f"the position {type(embed.position).__name__}")
        self.positions: Learned | None = embed.position
        rows = None if self.positions is None else self.positions.weight[self.positions.offset :]
        scale = float(torch.tensor(embed.scale, dtype=self.dtype))
        table = self.matrix(embed.tokens.weight)
        if self.spec.vocab != table.N:
            raise NotServed(f"a table of {table.N} rows for a vocabulary of {self.spec.vocab}")
        _silent(embed.dropout)
        self.plan.embed(table, self.x, scale=scale, positions=rows)
        self.all_packed = True  # only rows of the table are read
        norm = _norm(embed.norm)
        if norm is not None:
            self.plan.norm(self.x, norm, self.x)

    def _head(self, model: Transformer, norm: Norm | None) -> None:
        head = model.head
        if type(head) is not LMHead:
            raise NotServed(f"the head {type(head).__name__}")
        matrix = self.matrix(model.table if head.weight is None else head.weight)
        if self.spec.vocab != matrix.N:
            raise NotServed(f"a head of {matrix.N} rows for a vocabulary of {self.spec.vocab}")
        out = Buffer(matrix.N, torch.empty(0))  # each step's own
        self.head = self.plan.linear(
            self.x, [(matrix, head.bias, out)], norm=norm, scale=head.scale, softcap=head.softcap, picked=True
        )


def _fitting(keys: Tensor, values: Tensor, like: Tensor, batch: Batch | None) -> int:
    """The slots of a cache's tensors for a sequence, which the library takes as they are; `batch`: of those sequences
    (None: any may have any page). InputError: they are another model's."""
    rows, slots, G, D = keys.shape[0], keys.shape[2], like.shape[1], like.shape[2]
    B, end = (rows, slots) if batch is None else (len(batch.lengths), max(batch.ends))
    if keys.shape != values.shape or keys.shape[:2] != (B, G) or keys.shape[3] != D or slots < end:
        raise InputError(
            f"this cache holds keys {list(keys.shape)}; this model needs [{B}, {G}, {end} or more, {D}]: make it with"
            " the model's own new_cache"
        )
    if not (keys.is_contiguous() and values.is_contiguous() and keys.dtype == values.dtype):
        raise InputError("this cache's tensors are not as new_cache makes them")
    return slots if batch is not None else rows * slots


# --- parts -----------------------------------------------------------------------------------------------------------


def _part(part: nn.Module, known: dict[type, Callable[..., None]]) -> Callable[..., None]:
    if type(part) not in known:  # a subclass may do something else
        raise NotServed(f"the part {type(part).__name__}")
    return known[type(part)]


def _norm(norm: nn.Module) -> Norm | None:
    if type(norm) is RMSNorm:
        return Norm("rms", norm.weight.detach().float() + norm.one_plus, None, norm.eps)
    if type(norm) is LayerNorm:
        return Norm("layer", norm.weight, norm.bias, norm.eps)
    if type(norm) is nn.Identity:
        return None
    raise NotServed(f"the norm {type(norm).__name__}")


def _silent(dropout: nn.Module) -> None:
    if type(dropout) not in (nn.Dropout, nn.Identity):
        raise NotServed(f"{type(dropout).__name__} in the place of dropout")


def _surely(norm: Norm | None) -> Norm:
    if norm is None:
        raise NotServed("a block without a norm")
    return norm


def _attention(
    to: Written, part: Attention, x: Buffer, norm: Norm | None, out: Buffer, residual: Buffer | None
) -> None:
    H, G, D = part.heads, part.kv_heads, part.head_dim
    if type(part.mask) not in (Causal, Window) or "allows" in vars(part.mask):
        raise NotServed(f"the mask {type(part.mask).__name__}")
    if (size := part.mask.keeps()) is not None:
        to.window = min(size, to.window or size)
    q, k, v, mixed = (to.room(name, n * D) for name, n in (("q", H), ("k", G), ("v", G), ("mixed", H)))
    to.plan.linear(x, [to.linear(part.q, q), to.linear(part.k, k), to.linear(part.v, v)], norm=norm)
    position, slopes = part.position, None
    if type(position) is Alibi:
        slopes = torch.tensor(position.slopes(H))
    elif type(position) not in (Rotary, Relative):
        raise NotServed(f"the position {type(position).__name__}")
    elif isinstance(position, Rotary) and type(position.spec.scaling) not in SCALINGS:
        said = type(position.spec.scaling).__name__
        raise NotServed("dynamic NTK scaling" if said == "DynamicNTKScaling" else f"the scaling {said}")
    norms = (_norm(part.q_norm), _norm(part.k_norm))
    if len({(norm.kind, norm.eps) if norm else None for norm in norms}) > 1:
        raise NotServed("queries and keys with different norms")
    number = to.plan.attend(
        q, k, v, mixed, heads=H, kv_heads=G, scale=part.scale, softcap=part.spec.softcap, slopes=slopes,
        norms=(norms[0], norms[1]) if norms[0] is not None and norms[1] is not None else None,
    )  # fmt: skip
    to.attentions.append((number, torch.empty(0, G, D, dtype=to.dtype)))
    if type(position) is Rotary:
        to.turns.setdefault((position.spec, position.dims), (position, []))[1].append(number)
    to.plan.linear(mixed, [to.linear(part.out, out)], residual=residual)


def _activation(part: Plain | Gated) -> str:
    if part.activation is not ACTIVATIONS[part.spec.activation]:
        raise NotServed("an activation that was replaced")
    return part.spec.activation


def _plain(to: Written, part: Plain, x: Buffer, norm: Norm | None, out: Buffer, residual: Buffer | None) -> None:
    up = to.linear(part.up, to.room("up", part.up.out_features))
    to.plan.linear(x, [up], norm=norm, activation=_activation(part))
    to.plan.linear(up[2], [to.linear(part.down, out)], residual=residual)


def _gated(to: Written, part: Gated, x: Buffer, norm: Norm | None, out: Buffer, residual: Buffer | None) -> None:
    gate = to.linear(part.gate, to.room("gate", part.gate.out_features))
    up = to.linear(part.up, to.room("up", part.up.out_features))
    to.plan.linear(x, [gate, up], norm=norm, activation=_activation(part), gated=True)
    to.plan.linear(gate[2], [to.linear(part.down, out)], residual=residual)


MIXERS: dict[type, Callable[..., None]] = {Attention: _attention}
MLPS: dict[type, Callable[..., None]] = {Plain: _plain, Gated: _gated}


def _pre(to: Written, block: PreNorm) -> None:
    x = to.x
    _part(block.mixer, MIXERS)(to, block.mixer, x, _norm(block.mixer_norm), x, x)
    _part(block.mlp, MLPS)(to, block.mlp, x, _norm(block.mlp_norm), x, x)


def _post(to: Written, block: PostNorm) -> None:
    x, y = to.x, to.room("y", to.x.width)
    _part(block.mixer, MIXERS)(to, block.mixer, x, None, y, x)
    to.plan.norm(y, _surely(_norm(block.mixer_norm)), x)
    _part(block.mlp, MLPS)(to, block.mlp, x, None, y, x)
    to.plan.norm(y, _surely(_norm(block.mlp_norm)), x)


def _sandwich(to: Written, block: Sandwich) -> None:
    x, y = to.x, to.room("y", to.x.width)
    _part(block.mixer, MIXERS)(to, block.mixer, x, _norm(block.mixer_norm), y, None)
    to.plan.norm(y, _surely(_norm(block.mixer_after)), x, residual=x)
    _part(block.mlp, MLPS)(to, block.mlp, x, _norm(block.mlp_norm), y, None)
    to.plan.norm(y, _surely(_norm(block.mlp_after)), x, residual=x)


def _parallel(to: Written, block: Parallel) -> None:
    x, y = to.x, to.room("y", to.x.width)
    _part(block.mixer, MIXERS)(to, block.mixer, x, _norm(block.mixer_norm), y, x)
    _part(block.mlp, MLPS)(to, block.mlp, x, _norm(block.mlp_norm), x, y)


BLOCKS: dict[type, Callable[..., None]] = {
    PreNorm: _pre, PostNorm: _post, Sandwich: _sandwich, Parallel: _parallel,
}  # fmt: skip
