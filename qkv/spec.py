"""What a model is: a tree of small frozen values, without torch.

    Model(vocab=49152, dim=576, decoder=Stack(Block(
        mixer=Attention(heads=9, kv_heads=3, position=Rotary(base=1e5), mask=Causal()),
        mlp=Gated(1536, "silu"), norm=RMS(1e-5), place="pre"), layers=30, norm=RMS(1e-5)), head=LMHead(tied=True))

A variation is another value of a part, never a flag that several places test. `qkv.nn` holds the module that each value
stands for, `qkv.count` what each costs. A part of your own is a frozen dataclass that inherits one of the kinds below;
saving, loading and diffing (`qkv.specfile`) then know it by its class name.
"""

from collections.abc import Iterator
from dataclasses import field
from typing import Literal

from qkv.part import Part as Part
from qkv.part import number, part

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "relu2", "tanh"]
Place = Literal["pre", "post", "sandwich", "parallel"]
Problem = Literal["single", "multi", "regression"]
Picked = Literal["first", "last"]
Pooling = Literal["cls", "mean", "max", "last"]


# --- positions: what tells a token where it stands ------------------------------------------------------------------


@part
class Added(Part):
    """A position that is added to the token's vector. None in its place: order comes from the mask alone, or from
    the attention's own position (NoPE, arXiv 2305.19466)."""


@part
class Relative(Part):
    """A position that acts inside attention: it turns q and k, or biases their scores."""


@part
class Learned(Added):
    """One trained vector a position (GPT-2, BERT). `offset` rows come first that no token uses (BART, RoBERTa)."""

    length: int = number(1, 2**24)
    offset: int = number(0, 1024, default=0)


@part
class Sinusoidal(Added):
    """sin and cos of pos / base^(2i/dim) (Vaswani et al. 2017, §3.5): in turn, or all sines first (`halves`)."""

    base: float = number(1.0 + 1e-9, 1e12, default=10000.0)
    halves: bool = False


@part
class Scaling(Part):
    """How rotary frequencies are stretched beyond the trained length."""

    factor: float = number(1e-3, 1e4)


@part
class LinearScaling(Scaling):
    """Every frequency / factor: position interpolation (arXiv 2306.15595)."""


@part
class NTKScaling(Scaling):
    """A larger base: base · factor^(d/(d−2)) ("NTK-aware", bloc97 2023). The same at every length."""


@part
class DynamicNTKScaling(Scaling):
    """NTK whose base grows with the sequence past `length` tokens, as transformers' `rope_type: dynamic`.

    Keys cached before that point were turned by another base, so it has one answer only up to `length` with a cache."""

    length: int = number(1, 2**30, default=2048)


@part
class Yarn(Scaling):
    """Slow frequencies interpolated, fast ones kept, a ramp between (YaRN, arXiv 2309.00071, §3.2–3.4).

    `attention` multiplies cos and sin; None: 0.1·ln(factor) + 1, as the paper proposes."""

    length: int = number(1, 2**30, default=4096)
    fast: float = number(1e-6, 1e6, default=32.0)
    slow: float = number(1e-6, 1e6, default=1.0)
    attention: float | None = number(1e-6, 1e6, default=None)
    truncate: bool = True


@part
class Llama3Scaling(Scaling):
    """Wavelengths above length/low divided by factor, below length/high kept, smoothed between (Llama 3.1)."""

    low: float = number(1e-6, 1e6, default=1.0)
    high: float = number(1e-6, 1e6, default=4.0)
    length: int = number(1, 2**30, default=8192)

    def check(self) -> None:
        if self.high <= self.low:
            raise self.wrong("high", f"must be above low ({self.low}), got {self.high}")


@part
class Rotary(Relative):
    """q and k turned by angle pos·base^(−2i/dims), so scores see only m − n (RoFormer, arXiv 2104.09864).

    `dims`: how many of the head's dimensions turn (None: all). `interleaved`: pairs (2i, 2i+1), not (i, i+dims/2)."""

    base: float = number(1.0 + 1e-9, 1e12, default=10000.0)
    dims: int | None = number(2, 2**16, default=None)
    interleaved: bool = False
    scaling: Scaling | None = None

    def check(self) -> None:
        if self.dims is not None and self.dims % 2:
            raise self.wrong("dims", f"must be even, got {self.dims}")


@part
class Alibi(Relative):
    """slope_h · (key position − query position) added to the scores (ALiBi, arXiv 2108.12409)."""


@part
class RelativeBias(Relative):
    """A trained number for each head and bucket of distance (T5, arXiv 1910.10683, §2.1)."""

    buckets: int = number(4, 2**16, default=32)
    distance: int = number(2, 2**24, default=128)
    both_ways: bool = False

    def check(self) -> None:
        exact = self.buckets // (4 if self.both_ways else 2)
        if self.distance <= exact:
            raise self.wrong("distance", f"must be above the {exact} that have buckets of their own")


# --- masks: which keys a query may see ------------------------------------------------------------------------------


@part
class Mask(Part):
    """A rule on the positions of query and key."""


@part
class Full(Mask):
    """Every key of the sequence."""


@part
class Causal(Mask):
    """Keys at or before the query."""


@part
class Window(Mask):
    """The query's own and the size − 1 keys before it (Mistral, arXiv 2310.06825; Longformer's local part)."""

    size: int = number(1, 2**30)


# --- norms, MLPs ----------------------------------------------------------------------------------------------------


@part
class Norm(Part):
    """Puts each token's vector on one scale."""

    eps: float = number(1e-12, 1.0, default=1e-5)


@part
class LayerNorm(Norm):
    """(x − mean) / √(var + eps) · w + b (arXiv 1607.06450)."""

    bias: bool = True


@part
class RMS(Norm):
    """x / √(mean x² + eps) · w (arXiv 1910.07467); `one_plus`: · (1 + w), as Gemma stores it."""

    one_plus: bool = False


@part
class MLP(Part):
    """What each token does alone. `width`: hidden units; `dropout`: of them."""

    width: int = number(1, 2**24)
    activation: Activation = "gelu"
    bias: bool = False
    dropout: float = number(0.0, 1.0, default=0.0)


@part
class Plain(MLP):
    """W₂ σ(W₁ x)."""


@part
class Gated(MLP):
    """W_down (σ(W_gate x) ⊙ W_up x) (GLU variants, arXiv 2002.05202)."""


# --- mixers, blocks, stacks -----------------------------------------------------------------------------------------


@part
class Mixer(Part):
    """Where tokens of a sequence meet."""


@part
class Attention(Mixer):
    """softmax(q kᵀ · scale) v. kv_heads = heads: multi-head; 1: multi-query (arXiv 1911.02150); between: grouped
    (arXiv 2305.13245). head_dim None: dim / heads. scale None: 1/√head_dim. `qk_norm` acts on each head's q and k;
    `softcap` c turns scores s into c·tanh(s/c)."""

    heads: int = number(1, 2**16)
    kv_heads: int = number(1, 2**16)
    head_dim: int | None = number(1, 2**16, default=None)
    position: Relative | None = None
    mask: Mask = field(default_factory=Causal)
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Norm | None = None
    scale: float | None = number(1e-9, 1e9, default=None)
    softcap: float | None = number(1e-6, 1e9, default=None)
    dropout: float = number(0.0, 1.0, default=0.0)

    def check(self) -> None:
        if self.heads % self.kv_heads:
            raise self.wrong("kv_heads", f"must divide heads ({self.heads}), got {self.kv_heads}")

    def head_width(self, dim: int) -> int:
        """Numbers a head: head_dim, or dim / heads."""
        return self.head_dim if self.head_dim is not None else dim // self.heads


@part
class Block(Part):
    """A mixer and an MLP, each beside a residual path. `place` of the norm: before ("pre"), after the sum ("post"),
    both sides of each part ("sandwich"), or before both parts, which then run side by side ("parallel"). `cross`:
    attention over the encoder's states between the two (Vaswani et al. 2017, §3.2.3)."""

    mixer: Mixer
    mlp: MLP
    norm: Norm
    place: Place = "pre"
    dropout: float = number(0.0, 1.0, default=0.0)
    cross: Attention | None = None

    def check(self) -> None:
        if self.cross is None:
            return
        if self.place not in ("pre", "post"):
            raise self.wrong("place", f"must be 'pre' or 'post' beside cross-attention, got {self.place!r}")
        if not isinstance(self.cross.mask, Full) or self.cross.position is not None:
            raise self.cross.wrong("mask", "must be Full, and position None: the encoder's states are another sequence")


@part
class Embed(Part):
    """Token vectors: · scale, + segment, + position, norm, dropout. `segments`: kinds of tokens that have a vector each
    (BERT's sentences A and B; 0: none). `width`: all of that is so wide, and a matrix brings it to the model's dim
    (factorised, ALBERT, arXiv 1909.11942, §3.1; None: dim itself, and no matrix)."""

    position: Added | None = None
    scale: float = number(1e-9, 1e9, default=1.0)
    norm: Norm | None = None
    dropout: float = number(0.0, 1.0, default=0.0)
    segments: int = number(0, 1024, default=0)
    width: int | None = number(1, 2**20, default=None)


@part
class Stack(Part):
    """`layers` blocks, the given ones in turn: one block means all alike, (local, local, full) a repeating pattern.

    `shared`: each given block's weights serve in all its turns (ALBERT). `position`: one scheme for all layers, the
    blocks having none of their own (T5's bias)."""

    blocks: tuple[Block, ...]
    layers: int = number(1, 4096)
    norm: Norm | None = None
    embed: Embed = field(default_factory=Embed)
    position: Relative | None = None
    shared: bool = False

    def check(self) -> None:
        if len(self.blocks) > self.layers:
            raise self.wrong("blocks", f"has {len(self.blocks)} blocks for {self.layers} layers")
        if self.position is None:
            return
        heads = {(b.mixer.heads, b.mixer.head_dim) if isinstance(b.mixer, Attention) else None for b in self.blocks}
        own = [b for b in self.blocks if isinstance(b.mixer, Attention) and b.mixer.position is not None]
        if own or len(heads) > 1 or None in heads:
            raise self.wrong("position", "serves all layers: their attention must be alike, without one of its own")

    def __iter__(self) -> Iterator[Block]:
        return (self.blocks[i % len(self.blocks)] for i in range(self.layers))

    @property
    def built(self) -> int:
        """Blocks with weights of their own."""
        return len(self.blocks) if self.shared else self.layers


# --- heads ----------------------------------------------------------------------------------------------------------


@part
class Head(Part):
    """What is read off the last states."""


@part
class LMHead(Head):
    """Logits over the vocabulary. `tied`: with the embedding's matrix (arXiv 1608.05859); `softcap` as in Attention;
    `scale`: of the states before (T5's dim^−½)."""

    tied: bool = True
    bias: bool = False
    softcap: float | None = number(1e-6, 1e9, default=None)
    scale: float = number(1e-9, 1e9, default=1.0)


@part
class MaskedLM(Head):
    """Logits of what is masked: norm(σ(W x)), then as LMHead with a bias (BERT, arXiv 1810.04805, §3.1)."""

    norm: Norm
    activation: Activation = "gelu"
    tied: bool = True


@part
class States(Head):
    """The states themselves. `pooler`: beside them the checkpoint has a layer σ(W x) for the first token (BERT's),
    which is kept (None: it has none)."""

    pooler: Activation | None = None


@part
class Pool(Head):
    """One vector a sequence: the first or last state, the mean or the maximum of all (Sentence-BERT, arXiv 1908.10084,
    §3), of length 1 if `normalize`. `pooler` as in States."""

    how: Pooling = "mean"
    normalize: bool = False
    pooler: Activation | None = None


@part
class Classify(Head):
    """A score for each label from the state of one token: W₂ σ(W₁ x) (`hidden` None: W x). `problem`: one label is
    right, or any number of them, or the scores are quantities. `bias`: of the last matrix."""

    labels: tuple[str, ...]
    problem: Problem = "single"
    pick: Picked = "first"
    hidden: Activation | None = None
    bias: bool = True
    dropout: float = number(0.0, 1.0, default=0.0)

    def check(self) -> None:
        check_labels(self, self.labels)


@part
class Tag(Head):
    """A score for each label and token."""

    labels: tuple[str, ...]
    bias: bool = True
    dropout: float = number(0.0, 1.0, default=0.0)

    def check(self) -> None:
        check_labels(self, self.labels)


@part
class Span(Head):
    """For each token the scores of being an answer's first and its last (BERT, §4.2)."""

    dropout: float = number(0.0, 1.0, default=0.0)


@part
class Replaced(Head):
    """One score a token: was it replaced? w·σ(W x) (ELECTRA, arXiv 2003.10555, §2)."""

    activation: Activation = "gelu"


@part
class Heads(Head):
    """Several heads on the same states, each giving its own (BERT's pre-training: masked LM and next sentence)."""

    heads: tuple[Head, ...]


def check_labels(head: Head, labels: tuple[str, ...]) -> None:
    """ConfigError: no label, or one twice."""
    if not labels or len(set(labels)) < len(labels):
        raise head.wrong("labels", f"must be different names, at least one, got {labels!r:.80}")


# --- models ---------------------------------------------------------------------------------------------------------


@part
class Model(Part):
    """A whole model: a decoder, an encoder, or both, the decoder's blocks then having `cross`.

    `context`: tokens it was trained on at a time (None: not said). `family`: the Hugging Face model_type whose names
    and config it is saved under ("": none, it can't be saved for others). `start`: the token that a decoder beside an
    encoder begins with. `one_table`: these two share their token vectors."""

    vocab: int = number(1, 2**24)
    dim: int = number(1, 2**20)
    decoder: Stack | None = None
    encoder: Stack | None = None
    head: Head = field(default_factory=LMHead)
    context: int | None = number(1, 2**30, default=None)
    family: str = ""
    start: int | None = number(0, 2**24, default=None)
    one_table: bool = True

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The encoder, the decoder, in this order, where they are there."""
        return tuple(stack for stack in (self.encoder, self.decoder) if stack is not None)

    @property
    def last(self) -> Stack:
        """The stack that the head reads."""
        return self.stacks[-1]

    @property
    def width(self) -> int:
        """Numbers in a token's row of the table."""
        return self.last.embed.width or self.dim

    def check(self) -> None:
        if not self.stacks:
            raise self.wrong("decoder", "or encoder must be there")
        crossing = {block.cross is not None for stack in self.stacks[-1:] for block in stack.blocks}
        if crossing != {len(self.stacks) == 2} or any(b.cross for b in self.stacks[0].blocks if len(self.stacks) == 2):
            raise self.wrong("decoder", "must have blocks with cross-attention exactly where there is an encoder")
        if len({stack.embed.width for stack in self.stacks}) > 1 and self.one_table:
            raise self.wrong("one_table", "needs embeddings of one width")
        if isinstance(self.head, LMHead) and self.head.tied and self.width != self.dim:
            raise self.head.wrong(
                "tied", f"must be false: the table's rows are {self.width} wide, the states {self.dim}"
            )
        for block in (block for stack in self.stacks for block in stack.blocks):
            for mixer in (block.mixer, block.cross):
                if isinstance(mixer, Attention):
                    self._check_attention(mixer)

    def _check_attention(self, mixer: Attention) -> None:
        if mixer.head_dim is None and self.dim % mixer.heads:
            raise mixer.wrong("heads", f"must divide dim ({self.dim}), got {mixer.heads}")
        width = mixer.head_width(self.dim)
        if isinstance(mixer.position, Rotary) and (mixer.position.dims or width) > width:
            raise mixer.position.wrong("dims", f"must be at most the head's {width}, got {mixer.position.dims}")
        if isinstance(mixer.position, Rotary) and (mixer.position.dims or width) % 2:
            raise mixer.position.wrong("dims", f"is the head's {width} here and must be even")
