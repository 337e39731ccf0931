"""What families share, said once: the config keys and tensor names of everything built like LLaMA, and patterns of
layers that are not all alike."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from qkv.errors import ConfigError
from qkv.families.config import ACTIVATION_NAMES, ACTIVATIONS, Reader
from qkv.families.family import Row, pair
from qkv.families.rope import read_rotary, write_rotary
from qkv.spec import RMS, Attention, Block, Causal, Embed, Gated, LMHead, Model, Part, Rotary, Stack, Window

P = TypeVar("P", bound=Part)


def must_be(value: object, kind: type[P], model: Model) -> P:
    """`value`, which must be of this kind. ConfigError: the family's config has no words for another."""
    if not isinstance(value, kind):
        raise ConfigError(f"a {model.family} config can't say {type(value).__name__}, only {kind.__name__}")
    return value


def softcap_of(model: Model) -> float | None:
    """The cap on the logits, where there are logits."""
    return model.head.softcap if isinstance(model.head, LMHead) else None


# --- patterns -------------------------------------------------------------------------------------------------------

SLIDING, FULL = "sliding_attention", "full_attention"


def layer_types(config: Reader, default: Sequence[str]) -> Sequence[str]:
    """`layer_types`: for each layer whether its attention slides. Older configs leave it to the family's `default`."""
    said = config.get("layer_types", default=None)
    if said is None:
        return default
    if not isinstance(said, list) or len(said) != len(default) or any(kind not in (SLIDING, FULL) for kind in said):
        raise config.wrong("layer_types", f"must say {SLIDING!r} or {FULL!r} for each of {len(default)} layers")
    return said


def by_type(types: Sequence[str], sliding: Block, full: Block) -> tuple[Block, ...]:
    """The pattern of blocks that these layer types come to."""
    return pattern([sliding if kind == SLIDING else full for kind in types])


def pattern(layers: list[Block]) -> tuple[Block, ...]:
    """The fewest blocks that give these layers when repeated in turn."""
    period = next(p for p in range(1, len(layers) + 1) if layers[p:] == layers[:-p])
    return tuple(layers[:period])


def sliding(config: Reader, types: Sequence[str], default: int | None) -> int:
    """`sliding_window`, which must be there if any layer slides (else any number does)."""
    size = config.whole("sliding_window", default=default, null=None)
    if size is None and SLIDING in types:
        raise config.wrong("sliding_window", "is null, but layers slide")
    return size or 1


def write_sliding(model: Model) -> dict[str, Any]:
    """`layer_types` and `sliding_window` (null where no layer slides)."""
    masks = [must_be(block.mixer, Attention, model).mask for block in model.last]
    sizes = {mask.size for mask in masks if isinstance(mask, Window)}
    if len(sizes) > 1:
        raise ConfigError(f"a {model.family} config can't say windows of several sizes: {sorted(sizes)}")
    return {
        "layer_types": [SLIDING if isinstance(mask, Window) else FULL for mask in masks],
        "sliding_window": sizes.pop() if sizes else None,
    }


# --- LLaMA's config keys --------------------------------------------------------------------------------------------


def read_attention(
    config: Reader,
    context: int,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    bias: bool | None = None,
    position: Rotary | None = None,
) -> Attention:
    """Causal attention with one rotary setting for all layers (or this `position`). `kv_heads` and `head_dim`: where
    the config says none (None: as many as heads; dim / heads). `bias`: on q, k and v alone (None: `attention_bias`
    says, for the output too)."""
    dim, heads = config.whole("hidden_size"), config.whole("num_attention_heads")
    width = config.whole("head_dim", default=head_dim, null=None) or divided(config, dim, heads)
    everywhere = config.flag("attention_bias", default=False) if bias is None else False
    return Attention(
        heads=heads,
        kv_heads=config.whole("num_key_value_heads", default=kv_heads, null=None) or heads,
        head_dim=None if width * heads == dim else width,
        position=position or read_rotary(config, width, context),
        mask=Causal(),
        qkv_bias=everywhere or bool(bias),
        out_bias=everywhere,
        dropout=config.number("attention_dropout", default=0.0, high=1.0),
    )


def divided(config: Reader, dim: int, heads: int) -> int:
    """dim / heads."""
    if dim % heads:
        raise config.wrong("num_attention_heads", f"must divide hidden_size ({dim}), got {heads}")
    return dim // heads


def read_gated(
    config: Reader,
    key: str = "hidden_act",
    default: str = "silu",
    *,
    bias: bool = False,
    options: Mapping[str, str] = ACTIVATIONS,
) -> Gated:
    """The gated MLP. `key`: where the activation is said."""
    return Gated(config.whole("intermediate_size"), config.choice(key, options=options, default=default), bias=bias)


def read_context(config: Reader, default: int) -> int:
    """`max_position_embeddings`."""
    return config.whole("max_position_embeddings", default=default)  # type: ignore[no-any-return]


def read_rms(config: Reader, *, one_plus: bool = False) -> RMS:
    """`rms_norm_eps`."""
    return RMS(config.number("rms_norm_eps", default=1e-6), one_plus=one_plus)


def read_model(
    config: Reader,
    blocks: tuple[Block, ...],
    context: int,
    *,
    tied: bool,
    embed: Embed | None = None,
    softcap: float | None = None,
) -> Model:
    """The whole of a LLaMA-like model around its blocks. `tied`: where the config doesn't say."""
    return Model(
        vocab=config.whole("vocab_size"),
        dim=config.whole("hidden_size"),
        decoder=Stack(blocks, layers=config.layers("num_hidden_layers"), norm=blocks[0].norm, embed=embed or Embed()),
        head=LMHead(tied=config.flag("tie_word_embeddings", default=tied), softcap=softcap),
        context=context,
    )


def write_model(model: Model, *, activation: str = "hidden_act", bias: bool = True) -> dict[str, Any]:
    """All of the above, undone. `activation`: its key; `bias`: whether there is an `attention_bias`."""
    block = model.last.blocks[0]
    mixer, mlp = must_be(block.mixer, Attention, model), must_be(block.mlp, Gated, model)
    return {
        "vocab_size": model.vocab,
        "hidden_size": model.dim,
        "num_hidden_layers": model.last.layers,
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.kv_heads,
        "head_dim": mixer.head_width(model.dim),
        "intermediate_size": mlp.width,
        activation: ACTIVATION_NAMES[mlp.activation],
        "max_position_embeddings": model.context,
        "rms_norm_eps": block.norm.eps,
        "attention_dropout": mixer.dropout,
        **({"attention_bias": mixer.out_bias} if bias else {}),
        **write_rotary(mixer.position, mixer.head_width(model.dim)),
    }


# --- LLaMA's tensor names -------------------------------------------------------------------------------------------

LAYER = "model.layers.{i}."
BLOCK = "decoder.blocks.{i}."


# All but the norms around the MLP, whose names mean different places in different families.
ROWS: tuple[Row, ...] = (
    Row("model.embed_tokens.weight", "decoder.embed.tokens.weight"),
    Row(LAYER + "input_layernorm.weight", BLOCK + "mixer_norm.weight"),
    *pair(LAYER + "self_attn.q_proj", BLOCK + "mixer.q"),
    *pair(LAYER + "self_attn.k_proj", BLOCK + "mixer.k"),
    *pair(LAYER + "self_attn.v_proj", BLOCK + "mixer.v"),
    *pair(LAYER + "self_attn.o_proj", BLOCK + "mixer.out"),
    Row(LAYER + "self_attn.q_norm.weight", BLOCK + "mixer.q_norm.weight"),
    Row(LAYER + "self_attn.k_norm.weight", BLOCK + "mixer.k_norm.weight"),
    *pair(LAYER + "mlp.gate_proj", BLOCK + "mlp.gate"),
    *pair(LAYER + "mlp.up_proj", BLOCK + "mlp.up"),
    *pair(LAYER + "mlp.down_proj", BLOCK + "mlp.down"),
    Row("model.norm.weight", "decoder.norm.weight"),
)
PRE_ROWS = (*ROWS, Row(LAYER + "post_attention_layernorm.weight", BLOCK + "mlp_norm.weight"))
SANDWICH_ROWS = (
    *ROWS,
    Row(LAYER + "post_attention_layernorm.weight", BLOCK + "mixer_after.weight"),
    Row(LAYER + "pre_feedforward_layernorm.weight", BLOCK + "mlp_norm.weight"),
    Row(LAYER + "post_feedforward_layernorm.weight", BLOCK + "mlp_after.weight"),
)
FREQUENCIES = (LAYER + "self_attn.rotary_emb.inv_freq",)  # what older files keep of them is computed here
