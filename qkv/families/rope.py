"""Rotary settings in a config.json, in both ways of writing them: `rope_theta` + `rope_scaling`, and (transformers 5)
`rope_parameters`. Source: transformers' modeling_rope_utils."""

import math
from typing import Any

from qkv.errors import ConfigError
from qkv.families.config import Reader
from qkv.spec import DynamicNTKScaling, LinearScaling, Llama3Scaling, NTKScaling, Rotary, Scaling, Yarn


def read_rotary(
    reader: Reader, head_dim: int, context: int, *, base: float = 10000.0, part: float = 1.0, interleaved: bool = False
) -> Rotary:
    """The position of a config with one rotary setting for all layers. `base` and `part`: the family's defaults."""
    theta = reader.number("rope_theta", "rotary_emb_base", default=None, low=1.0)
    portion = reader.number("partial_rotary_factor", "rotary_pct", default=None, high=1.0)
    reader.only("rope_interleaved", interleaved)
    settings = dict(reader.get("rope_parameters", default=None) or reader.get("rope_scaling", default=None) or {})
    reader.taken.update(("rope_parameters", "rope_scaling"))
    settings.setdefault("rope_theta", base if theta is None else theta)
    settings.setdefault("partial_rotary_factor", part if portion is None else portion)
    return rotary(settings, reader.where, head_dim, context, interleaved)


def rotary(settings: dict[str, Any], where: str, head_dim: int, context: int, interleaved: bool = False) -> Rotary:
    """One dictionary of `rope_parameters` → the spec's value. ConfigError: an unknown type or key."""
    reader = Reader(settings, f"{where} rope")
    base = reader.number("rope_theta", low=1.0)
    dims = int(head_dim * reader.number("partial_rotary_factor", default=1.0, high=1.0))
    kind = reader.get("rope_type", "type", default="default")
    scaling = _scaling(reader, kind, context)
    unknown = settings.keys() - reader.taken
    if unknown:
        raise ConfigError(f"{where} rope: qkv doesn't understand {', '.join(sorted(unknown))} (rope_type {kind!r})")
    return Rotary(base=base, dims=None if dims == head_dim else dims, interleaved=interleaved, scaling=scaling)


def _scaling(reader: Reader, kind: object, context: int) -> Scaling | None:
    if kind == "default":
        return None
    factor = reader.number("factor", low=1e-3)
    if kind == "linear":
        return LinearScaling(factor)
    if kind == "dynamic":
        reader.only("original_max_position_embeddings", context)
        return DynamicNTKScaling(factor, length=context)
    length = reader.whole("original_max_position_embeddings", default=context)
    if kind == "llama3":
        low, high = reader.number("low_freq_factor"), reader.number("high_freq_factor")
        return Llama3Scaling(factor, low=low, high=high, length=length)
    if kind == "yarn":
        return Yarn(
            factor,
            length=length,
            fast=reader.number("beta_fast", default=None) or 32.0,
            slow=reader.number("beta_slow", default=None) or 1.0,
            attention=_attention_factor(reader, factor),
            truncate=reader.flag("truncate", default=True),
        )
    raise reader.wrong("rope_type", f"must be default, linear, dynamic, llama3 or yarn, got {kind!r}")


def _attention_factor(reader: Reader, factor: float) -> float | None:
    said = reader.number("attention_factor", default=None)
    over, under = reader.number("mscale", default=None), reader.number("mscale_all_dim", default=None)
    if said is None and over and under and factor > 1:
        return float((0.1 * over * math.log(factor) + 1) / (0.1 * under * math.log(factor) + 1))
    return said if said is None else float(said)


def write_rotary(position: object, head_dim: int, context: int | None) -> dict[str, Any]:
    """The spec's value → `rope_theta` and `rope_scaling`, which every version of transformers reads."""
    if not isinstance(position, Rotary):
        raise ConfigError(f"position {type(position).__name__} can't be written as rotary settings of this family")
    dims = position.dims or head_dim
    out: dict[str, Any] = {"rope_theta": position.base, "rope_scaling": None}
    if dims != head_dim:
        out["partial_rotary_factor"] = dims / head_dim
    match position.scaling:
        case None:
            pass
        case LinearScaling(factor):
            out["rope_scaling"] = {"rope_type": "linear", "factor": factor}
        case NTKScaling(factor):  # another base is all that it is
            out["rope_theta"] = position.base * factor ** (dims / (dims - 2))
        case DynamicNTKScaling(factor, length):
            if length != context:
                raise ConfigError(f"dynamic NTK's length ({length}) must be the context ({context}) to be written")
            out["rope_scaling"] = {"rope_type": "dynamic", "factor": factor}
        case Llama3Scaling(factor, low, high, length):
            out["rope_scaling"] = {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
        case Yarn(factor, length, fast, slow, attention, truncate):
            yarn = {"beta_fast": fast, "beta_slow": slow, "attention_factor": attention, "truncate": truncate}
            out["rope_scaling"] = {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": length,
                **{k: v for k, v in yarn.items() if v is not None},
            }
        case other:
            raise ConfigError(f"scaling {type(other).__name__} can't be written as rope settings")
    return out
