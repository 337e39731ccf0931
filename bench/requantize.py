"""A GGUF file's matrices packed in another of ggml's types, as a file that qkv and llama.cpp load."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import quantize

from bench.kquants import K_TYPES, Bytes, Floats
from qkv.load.gguf import GgufFile, read_gguf

TYPES = ("Q4_0", "Q4_1", "Q8_0", *K_TYPES)
INSTEAD = "Q8_0"  # of a K type, where a row doesn't divide by its 256 weights


def pack(weight: Floats, kind: str) -> Bytes:
    """[N, K] → uint8 [N, bytes of a row]."""
    if kind in K_TYPES:
        return K_TYPES[kind](weight.reshape(-1, 256)).reshape(len(weight), -1)
    packed: Bytes = quantize(weight, GGMLQuantizationType[kind])
    return packed


def kind_for(shape: tuple[int, ...], kind: str) -> str:
    """The type that a matrix of this shape gets."""
    return INSTEAD if kind in K_TYPES and shape[-1] % 256 else kind


def requantize(file: GgufFile, kind: str, to: Path) -> Path:
    """Every matrix of `file` in `kind` (the embedding too), vectors as they are; metadata unchanged."""
    reader = GGUFReader(file.path)
    writer = GGUFWriter(to, str(file.metadata["general.architecture"]))
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue  # the writer's own
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for name, tensor in file.tensors.items():
        weight = file.read(name).numpy().astype(np.float32)
        if len(tensor.shape) == 2:
            chosen = kind_for(tensor.shape, kind)
            writer.add_tensor(name, pack(weight, chosen), raw_dtype=GGMLQuantizationType[chosen])
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


def matrices(path: Path) -> str:
    """What a file's matrices are, in words: "30 Q4_K, 181 Q8_0"."""
    kinds = [tensor.type for tensor in read_gguf(path).tensors.values() if len(tensor.shape) == 2]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
