"""What an engine takes, before it is taken."""

from pathlib import Path

import pytest
import torch

from qkv.errors import InputError
from qkv.nn.paged import bytes_a_page
from qkv.serve import memory
from qkv.serve.memory import parse_cache, plan_memory, size
from tests.serve.driving import model


@pytest.mark.parametrize(
    ("said", "means"),
    [
        (4096, (4096, "tokens")),
        ("4096", (4096, "tokens")),
        ("256MB", (256 * 10**6, "bytes")),
        ("256 mb", (256 * 10**6, "bytes")),
        ("1GiB", (2**30, "bytes")),
        ("512KiB", (2**19, "bytes")),
        ("100B", (100, "bytes")),
        (" 7 ", (7, "tokens")),
    ],
)
def test_sizes(said: int | str, means: tuple[int, str]) -> None:
    assert parse_cache(said) == means


@pytest.mark.parametrize("said", ["", "MB", "1.5GB", "-4", "4096 tokens", "1TB", "9" * 40, True, None, 1.5, "٣٤٥"])
def test_what_is_no_size(said: object) -> None:
    with pytest.raises(InputError, match="cache: give tokens"):
        parse_cache(said)  # type: ignore[arg-type]


def test_a_plan_is_what_is_then_taken() -> None:
    made = model("float32")
    plan = plan_memory(made, cache=1000)
    assert (plan.pages, plan.page, plan.tokens) == (63, 16, 1008)
    cache = made.new_paged_cache(plan.pages, plan.page)
    assert plan.cache_bytes == cache.nbytes
    assert plan.weights == sum(weight.nbytes for weight in made.parameters())
    assert plan.context == 256
    assert plan.longest == 256
    assert plan.sequences == pytest.approx(1008 / 256)
    text = "\n".join(plan.lines())
    assert "1,008 tokens in 63 pages of 16" in text
    assert "3.9 sequences of 256 tokens" in text


def test_bytes_are_rounded_down_to_pages() -> None:
    made = model("float32")
    a_page = bytes_a_page(made, 16)
    assert plan_memory(made, cache=f"{10 * a_page + 1}B").pages == 10


def test_the_default_is_what_all_need_but_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("float32")
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**12)
    assert plan_memory(made, most_running=5).pages == 5 * 256 // 16
    monkeypatch.setattr(memory, "free_memory", lambda device: 40 * bytes_a_page(made, 16))
    assert plan_memory(made).pages == 10
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    assert plan_memory(made, most_running=5).pages == 80
    assert not any(line.startswith("free") for line in plan_memory(made).lines())
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match="a quarter of the free memory is less than 2 pages"):
        plan_memory(made)


def test_a_model_without_a_context() -> None:
    plan = plan_memory(model("pair"), cache=320)
    assert plan.context is None
    assert plan.longest == 320
    assert "states no context" in "\n".join(plan.lines())


def test_a_cache_that_is_too_small() -> None:
    with pytest.raises(InputError, match=r"cache: 16 is less than 2 pages of 16 tokens, which take .*: give more"):
        plan_memory(model("float32"), cache=16)


def test_a_model_that_does_not_generate_needs_none() -> None:
    plan = plan_memory(model("float32"), generates=False)
    assert (plan.pages, plan.tokens, plan.cache_bytes, plan.longest, plan.sequences) == (0, 0, 0, 0, 0.0)
    assert len(plan.lines()) == 2


def test_free_memory_is_what_the_system_and_the_container_leave(tmp_path: Path) -> None:
    found = memory.free_memory(torch.device("cpu"))
    assert found is not None
    assert 10**6 < found < 10**15
    assert memory._left_of_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("500\n")
    assert memory._left_of_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("2000\n")
    assert memory._left_of_container(tmp_path) == 1500


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 KB"), (2.5e12, "2500.0 GB")])
def test_sizes_for_a_person(count: float, text: str) -> None:
    assert size(int(count)) == text
