"""A plan's step: each row's logits are what the whole text gives, wherever its pages are."""

import pytest
import torch

from qkv.errors import InputError
from qkv.generate.step import Reader
from qkv.serve.pages import Pages
from qkv.serve.runner import Runner
from qkv.serve.scheduler import Scheduler
from qkv.serve.sequence import Sequence
from tests.serve.driving import PAGE, model


@pytest.mark.parametrize("kind", ["packed", "float32", "window"])
def test_rows_are_what_whole_texts_give(kind: str) -> None:
    runner, scheduler = Runner(model(kind), 32, PAGE), Scheduler(Pages(32, PAGE), budget=24, most_running=8)
    prompts = [list(range(i, i + 10 * (i + 1))) for i in range(4)]
    for i, prompt in enumerate(prompts):
        scheduler.add(Sequence(i, prompt, limit=4))
    found: dict[int, list[torch.Tensor]] = {i: [] for i in range(4)}
    while (plan := scheduler.plan()) is not None:
        wanted = [row.count if row.sequence.id % 2 else int(row.last) for row in plan.rows]
        logits = runner.step(plan, wanted)
        assert [len(one) for one in logits] == wanted
        scheduler.advance(plan)
        for row, one in zip(plan.rows, logits, strict=True):
            found[row.sequence.id] += list(one)
            if row.last:
                scheduler.finish(row.sequence)
    for i, prompt in enumerate(prompts):
        count = len(prompt)
        expected = Reader(model(kind))([prompt], model(kind).new_cache(), [count if i % 2 else 1], [count])
        torch.testing.assert_close(torch.stack(found[i]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pages", [2**40, 2**60])
def test_more_memory_than_there_is(pages: int) -> None:
    with pytest.raises(InputError, match=r"cache: no memory for .* pages of 16 tokens; ask for less"):
        Runner(model(), pages, PAGE)


def test_a_step_can_be_done_again() -> None:
    runner, scheduler = Runner(model(), 32, PAGE), Scheduler(Pages(32, PAGE))
    scheduler.add(Sequence(0, [1, 2, 3], limit=4))
    scheduler.add(Sequence(1, [4, 5], limit=4))
    plan = scheduler.plan()
    assert plan is not None
    first = runner.step(plan, [1, 1])
    again = runner.step(plan, [1, 1])
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_a_source_is_read_before_its_rows() -> None:
    made = model("pair")
    runner, scheduler = Runner(made, 32, PAGE), Scheduler(Pages(32, PAGE))
    sources = [[5, 6, 7] * 8, [9, 8]]
    for i, source in enumerate(sources):
        scheduler.add(Sequence(i, [0], limit=4, source=source))
    plan = scheduler.plan()
    assert plan is not None
    logits = runner.step(plan, [1, 1])
    for row, one in zip(plan.rows, logits, strict=True):
        with torch.no_grad():
            expected = made([sources[row.sequence.id]], [[0]])[0]
        torch.testing.assert_close(one, expected, atol=1e-4, rtol=0)
