"""What `show` and `diff` describe, and that the published configs are the published models."""

from pathlib import Path

import pytest

import qkv
from qkv import count, spec
from qkv.cli.known import FOLDER, SHORT, names, sketch
from qkv.errors import ConfigError, NotFound
from qkv.load.sentence import Sentence, write
from qkv.specfile import to_toml
from tests.sentences import DIM, bert

SIZES = {  # parameters, as published (safetensors' metadata on the hub, or the papers)
    "albert-base-v2": 11_221_680,
    "bart-base": 139_420_416,
    "bart-large-cnn": 406_290_432 + 50_264,  # and the bias of its head, which is no parameter in transformers
    "bart-large-mnli": 407_344_131,
    "bert-base-uncased": 109_514_298,
    "bert-large-uncased": 335_174_458,
    "bloom-560m": 559_214_592,
    "distilbert-base-uncased": 66_985_530,
    "electra-small-discriminator": 13_549_057,
    "flan-t5-base": 247_577_856,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-1b": 999_885_952,
    "gpt2": 124_439_808,
    "llama-2-70b": 68_976_648_192,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "mbart-large-cc25": 610_851_840 + 250_027,  # as transformers counts this config; so Pegasus
    "mistral-7b": 7_241_732_096,
    "mpnet-base": 109_518_527,
    "opus-mt-en-de": 74_410_496 + 58_101 - 2 * 512 * 512,  # the tables of sines are computed here
    "pegasus-xsum": 569_748_480 + 96_103 - 2 * 512 * 1024,
    "pythia-160m": 162_322_944,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "roberta-base": 124_697_433,
    "smollm2-135m": 134_515_008,
    "starcoder": 15_517_456_384,
    "t5-base": 222_903_552,
    "t5-small": 60_506_624,
    "xlm-roberta-base": 278_295_186,
}


def test_every_published_config_has_its_published_size() -> None:
    assert {name: count.parameters(sketch(name).spec) for name in names()} == SIZES


def test_a_published_config_says_that_it_has_no_weights() -> None:
    found = sketch("GPT2")
    assert (found.ref, found.spec.family) == ("gpt2", "gpt2")
    assert found.origin == "gpt2 = the published config of openai-community/gpt2, no weights"


def test_a_folder_that_pools_is_described_as_it_is_loaded(tmp_path: Path) -> None:
    write(bert(tmp_path), Sentence(spec.Pool(how="cls", normalize=True)), DIM)
    described = sketch(str(tmp_path)).spec
    assert described.head == spec.Pool(how="cls", normalize=True, pooler="tanh")
    assert described == qkv.load(tmp_path).spec


@pytest.mark.parametrize(("short", "name"), SHORT.items())
def test_a_family_s_name_is_its_best_known_model(short: str, name: str) -> None:
    assert sketch(short).ref == sketch(name).ref == name
    assert sketch(short.upper()).spec == sketch(name).spec
    assert short not in names()


def test_a_path_wins_over_a_well_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text((FOLDER / "llama-2-7b.json").read_text())
    assert sketch("gpt2").spec == sketch("llama-2-7b").spec
    assert sketch("gpt2/config.json").spec == sketch("llama-2-7b").spec


def test_a_spec_in_toml_is_a_model_too(tmp_path: Path) -> None:
    model = sketch("smollm2-135m").spec
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(model), encoding="utf-8")
    assert sketch(str(path)).spec == model


WRONG = [
    ("missing.toml", None, NotFound, "missing.toml: No such file"),
    ("bytes.toml", b"\xff", ConfigError, "bytes.toml: not UTF-8 (byte 0)"),
    ("broken.toml", b"kind = ", ConfigError, "broken.toml: a spec is not valid TOML"),
    ("part.toml", b'kind = "RMS"', ConfigError, "part.toml: holds a RMS, not a whole Model"),
]


@pytest.mark.parametrize(("name", "content", "error", "message"), WRONG)
def test_wrong_toml_is_named(
    tmp_path: Path, name: str, content: bytes | None, error: type[Exception], message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error) as raised:
        sketch(str(path))
    assert message in str(raised.value)


def test_a_typo_gets_the_nearest_names() -> None:
    with pytest.raises(NotFound, match="near it, `show` and `diff` know llama-2-7b, llama-2-70b"):
        sketch("lama-2-7b")
    with pytest.raises(
        NotFound, match=r"`show` and `diff` know albert-base-v2, .*, starcoder, .*, xlm-roberta-base too"
    ):
        sketch("nonsense")
    with pytest.raises(NotFound) as error:
        sketch("./gpt2")
    assert "know" not in str(error.value)
