"""How a folder's weights are packed, as its config.json says it (`quantization_config`). No torch.

A matrix of N outputs and K inputs is a uint8 tensor [N, bytes of a row] under its usual name: whole blocks of 32
weights in ggml's layout (`qkv.kernels.dequantize`), Q8_0 for int8 and Q4_1 for int4. Its rows are outputs in every
family, in GPT-2's too, whose plain checkpoints hold [K, N].
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from qkv.errors import ConfigError, InputError, WeightError
from qkv.kernels.blocks import BLOCKS

GROUP = 32  # weights that share a scale: what the kernels hold
SCHEMES = {"int8": "Q8_0", "int4": "Q4_1"}  # and their blocks
KEY = "quantization_config"
_BITS = {"int8": 8, "int4": 4}
_METHOD, _PLAIN = "qkv", "plain"
_NAMES = {kind: name for name, kind in SCHEMES.items()}
_KEYS = ("quant_method", "scheme", "bits", "group_size", "exceptions")


class Stored(Protocol):
    """What a safetensors header says of a tensor."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Scheme:
    """Every matrix is packed as `name` (of SCHEMES), but for the `exceptions`: tensors that are packed as another or
    are "plain". What is no matrix is always plain."""

    name: str
    exceptions: Mapping[str, str] = field(default_factory=dict)

    def kind(self, tensor: str, dims: int) -> str | None:
        """The type of a tensor's blocks; None: it is plain."""
        return SCHEMES.get(self.exceptions.get(tensor, self.name)) if dims > 1 else None

    @property
    def words(self) -> str:
        """It in a few words."""
        return f"{self.name} in groups of {GROUP}"

    def config(self) -> dict[str, Any]:
        """What config.json says of it."""
        exceptions = dict(sorted(self.exceptions.items()))
        values = (_METHOD, self.name, _BITS[self.name], GROUP, exceptions)
        return dict(zip(_KEYS, values, strict=True))


def scheme_of(kinds: Mapping[str, str], plain: Iterable[str]) -> Scheme:
    """The scheme of tensors with blocks of these kinds beside matrices that are plain. InputError: kinds that no scheme
    has."""
    others = sorted(set(kinds.values()) - _NAMES.keys())
    if others:
        raise InputError(
            f"this model holds {', '.join(others)} blocks, and a folder keeps only {' and '.join(_NAMES)} packed: save"
            " it with dequantize=True, or load it with dtype='float32' and quantize that"
        )
    name = _NAMES[Counter(kinds.values()).most_common(1)[0][0]]
    packed = {tensor: _NAMES[kind] for tensor, kind in kinds.items() if _NAMES[kind] != name}
    return Scheme(name, {**packed, **dict.fromkeys(plain, _PLAIN)})


def read_scheme(said: object, where: str) -> Scheme | None:
    """The value of `quantization_config` (null: nothing is packed). ConfigError: one of another tool, or anything in it
    that isn't known."""
    if said is None:
        return None
    if not isinstance(said, Mapping):
        raise ConfigError(f"{where}: {KEY} must be an object, got {said!r:.80}")
    method = said.get("quant_method")
    if method != _METHOD:
        raise ConfigError(
            f"{where}: {KEY} is of the method {method!r:.40}, which qkv doesn't read. It reads its own ({_METHOD!r}, as"
            " `qkv quantize` writes it) and GGUF: `qkv quantize` the checkpoint that this one was made of, or take a"
            " GGUF file of the same model"
        )
    if said.keys() != set(_KEYS):
        wrong = ", ".join(sorted(map(str, said.keys() ^ set(_KEYS))))
        raise ConfigError(f"{where}: {KEY} must have {', '.join(_KEYS)} and nothing else; see {wrong}")
    name, exceptions = said["scheme"], said["exceptions"]
    if not isinstance(name, str) or name not in SCHEMES:
        raise ConfigError(f"{where}: {KEY} has the scheme {name!r:.40}, which is not one of {', '.join(SCHEMES)}")
    for key, must in (("bits", _BITS[name]), ("group_size", GROUP)):
        if said[key] != must or not isinstance(said[key], int):
            raise ConfigError(f"{where}: {KEY} says {key} = {said[key]!r:.40}, and {name} has {must}")
    if not isinstance(exceptions, Mapping) or not all(_is_known(value) for value in exceptions.values()):
        known = ", ".join([*SCHEMES, _PLAIN])
        raise ConfigError(f"{where}: {KEY}: exceptions must map tensors to {known}, got {exceptions!r:.80}")
    return Scheme(name, dict(exceptions))


def _is_known(value: object) -> bool:
    return isinstance(value, str) and (value in SCHEMES or value == _PLAIN)


def packed_kinds(where: str, tensors: Mapping[str, Stored], scheme: Scheme | None) -> dict[str, str]:
    """The type of the blocks of each tensor that is packed. WeightError: what is stored is not what the scheme says."""
    if scheme is None:
        stray = [name for name, tensor in tensors.items() if tensor.dtype == "U8" and len(tensor.shape) == 2]
        if stray:
            raise WeightError(
                f"{where}: {_some(stray)} hold bytes, as packed weights do, and config.json has no {KEY} that says how"
            )
        return {}
    kinds = {name: scheme.kind(name, len(tensor.shape)) for name, tensor in tensors.items()}
    absent = sorted(scheme.exceptions.keys() - tensors.keys())
    if absent:
        raise WeightError(f"{where}: {KEY} makes exceptions of {_some(absent)}, and no tensor has that name")
    if not any(kinds.values()):
        raise WeightError(f"{where}: config.json has a {KEY}, and no tensor is packed")
    for name, tensor in tensors.items():
        _check(f"{where}: {name}", tensor, kinds[name])
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _check(where: str, tensor: Stored, kind: str | None) -> None:
    """Raises WeightError unless the tensor's dtype and shape are those of such blocks, or of a plain tensor."""
    if kind is None:
        if tensor.dtype == "U8":
            raise WeightError(f"{where} holds bytes, and by the config's {KEY} it is plain")
        return
    if tensor.dtype != "U8":
        raise WeightError(f"{where} is stored as {tensor.dtype}; by the config's {KEY} it is {_NAMES[kind]}, in bytes")
    nbytes = BLOCKS[kind].nbytes
    if len(tensor.shape) != 2 or tensor.shape[1] % nbytes:
        raise WeightError(
            f"{where} has the shape {list(tensor.shape)}; {_NAMES[kind]} needs rows of {nbytes}-byte blocks ({kind})"
        )


def _some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
