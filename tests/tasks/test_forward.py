"""Texts reach the model in batches, each once, with its segments; answers come back to their texts."""

import pytest
import torch
from torch import nn

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.encoded import Encoded
from qkv.nn.stack import Transformer
from qkv.tasks.forward import check_count, check_labels, head_of, name, outputs, pieces_of, single
from tests.tasks.fakes import Fake, bert, wordpiece


def encoded(ids: list[int], segment: int = 0) -> Encoded:
    return Encoded(ids, [segment] * len(ids), [None] * len(ids), [None] * len(ids), [None] * len(ids))


def test_each_input_is_read_once_whatever_the_budget() -> None:
    inputs = [encoded([i] * n, i % 2) for i, n in enumerate([5, 1, 9, 3, 9, 2])]
    for budget in (1, 10, 1000):
        fake = Fake(bert(spec.Tag(("A", "B")), 50), lambda ids, kinds: torch.tensor([ids, kinds], dtype=torch.bfloat16))
        found = dict(outputs(fake, inputs, budget=budget))  # type: ignore[arg-type]
        assert sorted(fake.seen) == sorted((one.ids, one.segments) for one in inputs)
        assert [found[i].tolist() for i in range(6)] == [[one.ids, one.segments] for one in inputs]
        assert {out.dtype for out in found.values()} == {torch.float32}


def test_segments_are_given_only_to_models_that_know_them() -> None:
    fake = Fake(bert(spec.Tag(("A",)), 50, segments=0), lambda ids, kinds: torch.tensor(kinds))
    assert dict(outputs(fake, [encoded([3], 1)]))[0].tolist() == [0]  # type: ignore[arg-type]
    with pytest.raises(InputError, match="marks tokens as of segment 2, and this model knows 2"):
        list(outputs(Fake(bert(spec.Tag(("A",)), 50), fake.compute), [encoded([3], 2)]))  # type: ignore[arg-type]


def test_numbers_that_are_not_finite_are_no_answer() -> None:
    fake = Fake(bert(spec.Tag(("A",)), 50), lambda ids, _: torch.full((len(ids), 1), torch.nan))
    with pytest.raises(InputError, match="not finite: the weights hold NaN or infinity"):
        list(outputs(fake, [encoded([3])]))  # type: ignore[arg-type]


def test_one_of_several_heads() -> None:
    fake = Fake(bert(spec.Tag(("A",)), 50), lambda ids, _: (torch.tensor(ids), torch.tensor([0])))
    assert dict(outputs(fake, [encoded([3]), encoded([4, 5])], head=0))[1].tolist() == [4, 5]  # type: ignore[arg-type]


def test_no_dropout_in_training_mode() -> None:
    model = Transformer(bert(spec.Tag(("A", "B"), dropout=0.5), 50)).train()
    one, two = (next(outputs(model, [encoded([3, 4, 5])]))[1] for _ in range(2))
    assert torch.equal(one, two)
    assert all(module.training for module in model.modules())
    assert not one.requires_grad
    assert isinstance(model.head.dropout, nn.Dropout)


def test_texts_without_tokens_are_named() -> None:
    tokenizer = wordpiece()
    assert [len(pair) for pair in pieces_of(tokenizer, [("a", "b"), ("c",)])] == [2, 1]
    for text in ("", " \n", "\u200b\u200d"):
        with pytest.raises(InputError, match=r"the text: .* has no token"):
            pieces_of(tokenizer, [(text,)])
        with pytest.raises(InputError, match=r"texts\[1\]: .* has no token"):
            pieces_of(tokenizer, [("a", "b"), ("a", text)])
    assert (name(3, "ab"), name(0, "a")) == ("texts[3]", "the text")


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InputError, match="tagging takes one text, without a second"):
        single([("a",), ("a", "b")], "tagging")
    with pytest.raises(ConfigError, match="the head has 2 labels and computes 3 scores"):
        check_labels(("A", "B"), torch.zeros(5, 3))
    for wrong in (0, -1, 2.0, True, "3"):
        with pytest.raises(InputError, match="top must be a whole number from 1, got"):
            check_count("top", wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="this needs a Span head; the model's is Tag"):
        head_of(Transformer(bert(spec.Tag(("A",)), 50)), spec.Span)
