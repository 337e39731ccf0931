"""The GGUF header: agreement with ggml's own package, and hardening row L20."""

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qkv.errors import CorruptFile, NotFound
from qkv.kernels.blocks import BLOCKS, TYPES
from qkv.load.gguf import read_gguf
from tests.load.hostile import confined

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def info(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def build(
    pairs: list[bytes], infos: list[bytes], data: int = 0, counts: tuple[int, int] | None = None, version: int = 3
) -> bytes:
    """A file of these parts with `data` zero bytes of tensors; `counts` lies about the number of tensors and pairs."""
    tensors, keys = counts or (len(infos), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(pairs + infos)
    return head + bytes(-len(head) % 32 + data)


TINY = build(
    [
        pair("general.architecture", STRING, text("llama")),
        pair("a.flag", BOOL, b"\1"),
        pair("a.tokens", ARRAY, array(STRING, 3, text("a") + text("é") + text(""))),
        pair("a.scores", ARRAY, array(F32, 2, struct.pack("<2f", 0.5, -1))),
        pair("general.alignment", U32, struct.pack("<I", 32)),
    ],
    [info("x", (2, 3)), info("y.weight", (32, 2), 8, 32)],
    data=32 + 68,
)


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def test_what_it_reads_is_what_the_gguf_package_wrote(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    values: dict[str, tuple[Callable[..., None], object]] = {
        "u8": (writer.add_uint8, 255), "i8": (writer.add_int8, -128), "u16": (writer.add_uint16, 65535),
        "i16": (writer.add_int16, -5), "u32": (writer.add_uint32, 2**32 - 1), "i32": (writer.add_int32, -(2**31)),
        "u64": (writer.add_uint64, 2**64 - 1), "i64": (writer.add_int64, -(2**63)), "f32": (writer.add_float32, 0.25),
        "f64": (writer.add_float64, 0.1), "yes": (writer.add_bool, True), "no": (writer.add_bool, False),
        "text": (writer.add_string, "Ġé∀x ∈ ℝ\0"), "words": (writer.add_array, ["a", "", "日本"]),
        "numbers": (writer.add_array, [-1, 2]), "floats": (writer.add_array, [0.5]),
        "flags": (writer.add_array, [True, False]),
    }  # fmt: skip
    for key, (add, value) in values.items():
        add(key, value)
    weights = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b.weight": np.arange(4, dtype=np.float16),
        "packed": gguf.quants.quantize(np.ones((2, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0),
    }
    for name, weight in weights.items():
        writer.add_tensor(name, weight, raw_dtype=gguf.GGMLQuantizationType.Q8_0 if name == "packed" else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = read_gguf(path)
    assert file.version == 3
    assert file.metadata == {"general.architecture": "llama", **{key: value for key, (_, value) in values.items()}}
    assert {type(file.metadata[key]) for key in ("yes", "no")} == {bool}
    assert {name: (t.shape, t.type) for name, t in file.tensors.items()} == {
        "a": ((2, 3), "F32"),
        "b.weight": ((4,), "F16"),
        "packed": ((2, 64), "Q8_0"),
    }
    raw = path.read_bytes()
    for name, tensor in file.tensors.items():
        assert raw[tensor.offset : tensor.offset + tensor.nbytes] == weights[name].tobytes()
    assert np.array_equal(file.read("a").numpy(), weights["a"])
    with pytest.raises(NotFound, match="nope"):
        file.read("nope")


def test_the_type_table_is_ggml_s() -> None:
    theirs = {t.name: (int(t), *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
    assert {b.name: (number, b.weights, b.nbytes) for number, b in TYPES.items() if b.name in theirs} == {
        name: entry for name, entry in theirs.items() if name in BLOCKS
    }
    assert set(theirs) - set(BLOCKS) <= {"Q8_1", "Q8_K"}


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_and_every_alignment(tmp_path: Path, version: int) -> None:
    for alignment in (1, 8, 64):
        key = pair("general.alignment", U32, struct.pack("<I", alignment))
        head = len(build([key], [info("x", (3,))]))
        file = read_gguf(write(tmp_path / "m", build([key], [info("x", (3,))], 64 + 12, version=version)))
        assert (file.version, file.alignment) == (version, alignment)
        assert file.data_start % alignment == 0
        assert file.data_start <= head + 64


HUGE = 2**63
BROKEN = {
    "empty": (b"", "0 bytes are too few"),
    "magic": (b"GGML" + TINY[4:], "not a GGUF file: it starts with b'GGML'"),
    "version 1": (build([], [], version=1), "version 1"),
    "version 4": (build([], [], version=4), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensor count": (build([], [], counts=(HUGE, 0)), f"{HUGE} items"),
    "metadata count": (build([], [], counts=(0, HUGE)), f"{HUGE} items"),
    "count one too many": (build([pair("a", BOOL, b"\1")], [], counts=(0, 2)), "metadata key 1 is empty"),
    "one tensor too many": (build([], [info("x", (1,))], 64, counts=(2, 0)), "name of tensor 1 is empty"),
    "key of 2^64-1 bytes": (
        build([struct.pack("<Q", 2**64 - 1) + bytes(40)], []),
        "metadata key 0 reaches past the end",
    ),
    "key of 65536 bytes": (build([pair("k" * 65536, BOOL, b"\1")], []), "key 0 is longer than 65535 bytes"),
    "key not UTF-8": (build([pair(b"\xff", BOOL, b"\1")], []), "key 0 is not UTF-8"),
    "same key twice": (build([pair("a", BOOL, b"\1")] * 2, []), "'a' occurs twice"),
    "string of 2^64-1 bytes": (
        build([pair("a", STRING, struct.pack("<Q", 2**64 - 1))], []),
        "'a' reaches past the end",
    ),
    "string past the end": (build([pair("a", STRING, struct.pack("<Q", 900))], []), "'a' reaches past the end"),
    "string not UTF-8": (build([pair("a", STRING, text(b"a\xc0"))], []), "'a' is not UTF-8"),
    "unknown value type": (build([pair("a", 13, bytes(8))], []), "'a' has the unknown value type 13"),
    "bool 7": (build([pair("a", BOOL, b"\7")], []), "'a' holds a bool that is neither 0 nor 1: 7"),
    "bool 7 in an array": (build([pair("a", ARRAY, array(BOOL, 2, b"\1\7"))], []), "neither 0 nor 1"),
    "array of 2^63 numbers": (build([pair("a", ARRAY, array(U64, HUGE))], []), f"'a': {HUGE} items"),
    "array of 2^61 numbers": (build([pair("a", ARRAY, array(U64, 2**61))], []), f"'a': {2**61} items"),
    "array of 2^63 strings": (build([pair("a", ARRAY, array(STRING, HUGE))], []), f"'a': {HUGE} items"),
    "array's string too long": (
        build([pair("a", ARRAY, array(STRING, 2, text("x") + struct.pack("<Q", 2**64 - 1)))], []),
        "'a', string 1",
    ),
    "array's string cut": (build([pair("a", ARRAY, array(STRING, 3, text("x" * 64)))], [])[:-3], "'a', string 1"),
    "array's string not UTF-8": (
        build([pair("a", ARRAY, array(STRING, 2, text("x") + text(b"\xff")))], []),
        "'a', string 1, is not UTF-8",
    ),
    "array of arrays": (build([pair("a", ARRAY, array(ARRAY, 1, array(U8, 1, b"\1")))], []), "array of arrays"),
    "array of an unknown type": (build([pair("a", ARRAY, array(99, 1, bytes(8)))], []), "value type 99"),
    "alignment 0": (build([pair("general.alignment", U32, bytes(4))], []), "power of two, not 0"),
    "alignment 3": (build([pair("general.alignment", U32, struct.pack("<I", 3))], []), "power of two, not 3"),
    "alignment true": (build([pair("general.alignment", BOOL, b"\1")], []), "power of two, not True"),
    "alignment text": (build([pair("general.alignment", STRING, text("32"))], []), "power of two, not '32'"),
    "9 dimensions": (build([], [info("x", (1,) * 9)], 64), "'x' has 9 dimensions"),
    "2^32-1 dimensions": (build([], [text("x") + b"\xff" * 4], 64), "4294967295 dimensions"),
    "dimensions overflow": (build([], [info("x", (2**32, 2**32))], 64), "impossible shape"),
    "dimension 2^63": (build([], [info("x", (HUGE,))], 64), "impossible shape"),
    "dimension 0": (build([], [info("x", (0, HUGE))], 64), "impossible shape"),
    "row not in blocks": (build([], [info("x", (33,), 8)], 128), "'x': rows of 33"),
    "unaligned": (build([], [info("x", (2,), 0, 4)], 64), "'x' starts at 4"),
    "past the end": (build([], [info("x", (17,))], 64), "'x' ends at byte"),
    "offset 2^64-32": (build([], [info("x", (1,), 0, 2**64 - 32)], 64), "'x' ends at byte"),
    "overlap": (build([], [info("x", (9,)), info("y", (1,), 0, 32)], 64), "'x' and 'y' overlap"),
    "same place": (build([], [info("x", (1,)), info("y", (1,))], 64), "'x' and 'y' overlap"),
    "unknown type": (build([], [info("x", (32,), 77)], 64), "'x' has type 77, which is unknown"),
    "removed type": (build([], [info("x", (32,), 4)], 64), "'x' has type 4, which was removed"),
    "same name twice": (build([], [info("x", (1,)), info("x", (1,), 0, 32)], 64), "'x' occurs twice"),
    "name not UTF-8": (build([], [text(b"\xff") + bytes(64)], 64), "name of tensor 0 is not UTF-8"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_header_is_named(tmp_path: Path, case: str) -> None:
    raw, message = BROKEN[case]
    path = write(tmp_path / "broken.gguf", raw)
    with pytest.raises(CorruptFile) as error, confined(tmp_path):
        read_gguf(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path, tmp_path / "nul\0"):
        with pytest.raises(NotFound, match=str(tmp_path)):
            read_gguf(path)


def test_a_header_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkv.load.gguf.MAX_HEADER", 64)
    with pytest.raises(CorruptFile, match="limit of 64 bytes for a header"):
        read_gguf(write(tmp_path / "m", TINY))


def only_corrupt(path: Path, raw: bytes) -> None:
    """A valid parse or CorruptFile; any other exception fails the test."""
    path.write_bytes(raw)
    try:
        file = read_gguf(path)
    except CorruptFile:
        return
    assert all(t.offset + t.nbytes <= len(raw) for t in file.tensors.values())


def test_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    with confined(tmp_path):
        for length in range(len(TINY)):
            path.write_bytes(TINY[:length])
            with pytest.raises(CorruptFile):
                read_gguf(path)
    assert len(read_gguf(write(path, TINY)).tensors) == 2


def test_every_bit_of_the_header_flipped(tmp_path: Path) -> None:
    path = tmp_path / "flipped.gguf"
    head = read_gguf(write(path, TINY)).data_start
    with confined(tmp_path, seconds=20):
        for at in range(head):
            for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
                only_corrupt(path, TINY[:at] + bytes([TINY[at] ^ mask]) + TINY[at + 1 :])


INTERESTING = st.one_of(
    st.binary(max_size=24),
    st.sampled_from([0, 1, 7, 31, 2**31 - 1, 2**32 - 1, 2**62, 2**63, 2**64 - 1]).map(lambda n: struct.pack("<Q", n)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(TINY)), st.integers(0, 16), INTERESTING), min_size=1, max_size=3))
def test_spliced(tmp_path: Path, edits: list[tuple[int, int, bytes]]) -> None:
    raw = TINY
    for at, removed, put in edits:
        raw = raw[:at] + put + raw[at + removed :]
    with confined(tmp_path):
        only_corrupt(tmp_path / "spliced.gguf", raw)


def test_a_vocabulary_is_read_fast(tmp_path: Path) -> None:
    words = b"".join(text(f"Ġtoken{i}") for i in range(100_000))
    path = write(tmp_path / "vocab.gguf", build([pair("tokens", ARRAY, array(STRING, 100_000, words))], []))
    with confined(tmp_path, seconds=3):
        file = read_gguf(path)
    tokens = file.metadata["tokens"]
    assert isinstance(tokens, list)
    assert (len(tokens), tokens[-1]) == (100_000, "Ġtoken99999")
