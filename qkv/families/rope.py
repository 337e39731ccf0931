"""Rotary settings in a config.json, in both ways of writing them: `rope_theta` + `rope_scaling`, and (transformers 5)
`rope_parameters`. Source: transformers' modeling_rope_utils."""

import math
from collections.abc import Mapping
from typing import Any

from qkv.errors import ConfigError
from qkv.families.config import Reader
from qkv.spec import DynamicNTKScaling, LinearScaling, Llama3Scaling, NTKScaling, Rotary, Scaling, Yarn


def read_rotary(
    config: Reader,
    head_dim: int,
    context: int,
    *,
    theta: str = "rope_theta",
    part: str | None = None,
    turned: float = 1.0,
) -> Rotary:
    """The position of a config with one rotary setting for all layers. `theta`, `part`: the older keys of the base and
    of the fraction of each head that turns (None: all of it always does, in this family); `turned`: its default."""
    defaults = {"rope_theta": config.number(theta, default=10000.0, low=1.0)}
    if part is not None:
        defaults["partial_rotary_factor"] = config.number(part, default=turned, high=1.0)
    said = config.section("rope_scaling", "rope_parameters")
    return rotary(defaults | said.config, config.where, head_dim, context, partly=part is not None)


def rotary(settings: Mapping[str, Any], where: str, head_dim: int, context: int, *, partly: bool = False) -> Rotary:
    """One dictionary of `rope_parameters` → the spec's value. `partly`: the family can turn a part of each head.
    ConfigError: an unknown type or key."""
    reader = Reader(settings, f"{where} rope")
    base = reader.number("rope_theta", low=1.0)
    if not partly:
        reader.only("partial_rotary_factor", 1.0)
    dims = int(head_dim * reader.number("partial_rotary_factor", default=1.0, high=1.0))
    kind = reader.get("rope_type", "type", default="default")
    scaling = _scaling(reader, kind, context)
    unknown = settings.keys() - reader.taken
    if unknown:
        raise ConfigError(f"{where} rope: qkv doesn't understand {', '.join(sorted(unknown))} (rope_type {kind!r})")
    return Rotary(base=base, dims=None if dims == head_dim else dims, scaling=scaling)


def _scaling(reader: Reader, kind: object, context: int) -> Scaling | None:
    if kind == "default":
        return None
    factor = reader.number("factor", low=1e-3)
    if kind == "linear":
        return LinearScaling(factor)
    if kind == "dynamic":
        reader.only("original_max_position_embeddings", context, None)
        return DynamicNTKScaling(factor, length=context)
    length = reader.whole("original_max_position_embeddings", default=context)
    if kind == "llama3":
        low, high = reader.number("low_freq_factor"), reader.number("high_freq_factor")
        return Llama3Scaling(factor, low=low, high=high, length=length)
    if kind == "yarn":
        return Yarn(
            factor,
            length=length,
            fast=reader.number("beta_fast", default=32.0),
            slow=reader.number("beta_slow", default=1.0),
            attention=_attention_factor(reader, factor),
            truncate=reader.flag("truncate", default=True),
        )
    raise reader.wrong("rope_type", f"must be default, linear, dynamic, llama3 or yarn, got {kind!r}")


def _attention_factor(reader: Reader, factor: float) -> float | None:
    said = reader.number("attention_factor", default=None)
    over, under = reader.number("mscale", default=None), reader.number("mscale_all_dim", default=None)
    if said is None and over and under and factor > 1:
        return float((0.1 * over * math.log(factor) + 1) / (0.1 * under * math.log(factor) + 1))
    return None if said is None else float(said)


def write_rotary(
    position: object, head_dim: int, *, theta: str = "rope_theta", part: str | None = None
) -> dict[str, Any]:
    """The spec's value → base, part and `rope_scaling` under the keys that every version of transformers reads."""
    if not isinstance(position, Rotary):
        raise ConfigError(f"position {type(position).__name__} can't be written as rotary settings of this family")
    out: dict[str, Any] = {theta: position.base, "rope_scaling": write_scaling(position)}
    if part is not None:
        out[part] = _fraction(position.dims or head_dim, head_dim)
    return out


def _fraction(dims: int, head_dim: int) -> float:
    """dims / head_dim, such that int(head_dim · fraction), as transformers has it, is dims again."""
    fraction = dims / head_dim
    return fraction if int(head_dim * fraction) == dims else math.nextafter(fraction, 1)


def write_scaling(position: Rotary) -> dict[str, Any] | None:
    """`rope_scaling`; None where nothing is scaled."""
    match position.scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicNTKScaling(factor):  # its length is the config's max_position_embeddings
            return {"rope_type": "dynamic", "factor": factor}
        case Llama3Scaling(factor, low, high, length):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
        case Yarn(factor, length, fast, slow, attention, truncate):
            yarn = {"beta_fast": fast, "beta_slow": slow, "attention_factor": attention, "truncate": truncate}
            return {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": length,
                **{k: v for k, v in yarn.items() if v is not None},
            }
        case NTKScaling(factor):
            d = f"{position.dims or 'head_dim'}"
            raise ConfigError(
                f"NTKScaling has no name in a config.json, but it is only another base: Rotary(base={position.base:g} *"
                f" {factor:g} ** ({d} / ({d} - 2))) is the same and can be saved"
            )
        case other:
            raise ConfigError(f"scaling {type(other).__name__} can't be written as rope settings")
