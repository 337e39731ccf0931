"""Spans of answers: windows and their first and last tokens are those of transformers' run_qa."""

from pathlib import Path
from typing import Any

import pytest
import torch

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.train import recipe
from qkv.train.answering import Answer, AnswerSpan, answers_of
from tests.tasks.fakes import theirs, wordpiece
from tests.train.heads import collated, encoder, loaded

QUESTION = "Who lives in Paris?"
CONTEXT = "Paris is the capital of France, and Berlin that of Germany. Anna Smith lives in New York with Bob."


def said(text: str, at: int | None = None) -> dict[str, Any]:
    start = CONTEXT.index(text) if at is None else at
    return {"question": QUESTION, "context": CONTEXT, "answers": [{"text": text, "start": start}]}


def made(model: Any, length: int | None = None, **settings: Any) -> AnswerSpan:
    return AnswerSpan(recipe.AnswerSpan(kind="span", **settings), model.spec, model.tokenizer or wordpiece(), length)


def features(reader: Any, record: dict[str, Any], length: int, stride: int) -> list[tuple[list[int], int, int]]:
    """As transformers' run_qa.py, `prepare_train_features`."""
    encoding = reader(
        record["question"],
        record["context"],
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found = []
    for i, ids in enumerate(encoding["input_ids"]):
        offsets, sequence = encoding["offset_mapping"][i], encoding.sequence_ids(i)
        cls = ids.index(reader.cls_token_id)
        if not record["answers"]:
            found.append((ids, cls, cls))
            continue
        start = record["answers"][0]["start"]
        end = start + len(record["answers"][0]["text"])
        first = sequence.index(1)
        last = len(ids) - 1 - sequence[::-1].index(1)
        if not (offsets[first][0] <= start and offsets[last][1] >= end):
            found.append((ids, cls, cls))
            continue
        while first < len(offsets) and offsets[first][0] <= start:
            first += 1
        while offsets[last][1] >= end:
            last -= 1
        found.append((ids, first - 1, last + 1))
    return found


@pytest.mark.parametrize(("length", "stride"), [(200, 128), (40, 8), (36, 20), (30, 2)])
def test_windows_and_places_are_those_of_transformers(length: int, stride: int, tmp_path: Path) -> None:
    _, reader = theirs(tmp_path, wordpiece(), "QuestionAnswering")
    objective = made(encoder(spec.Span(), length=256), length, stride=stride)
    words = CONTEXT.replace(".", "").replace(",", "").split()
    records = [
        said(" ".join(words[i : i + n])) for i in range(8) for n in (1, 2) if " ".join(words[i : i + n]) in CONTEXT
    ]
    records += [
        said("ari"),
        said("Smith lives in New York with Bob."),
        {**said("Bob"), "answers": []},
    ]  # parts of words
    seen = set()
    for record in records:
        got = [(s["ids"].tolist(), *s["label"].tolist()) for s in objective.encode(record)]
        want = features(reader, record, length, stride)
        assert got == want
        seen |= {start == 0 for _, start, _ in got}
    assert seen == {True, False}
    assert objective.cut == (len(records) if length < 100 else 0)


def test_the_loss_is_that_of_transformers(tmp_path: Path) -> None:
    """One sample at a time, as its softmax goes over padding too."""
    reference, _ = theirs(tmp_path, wordpiece(), "QuestionAnswering")
    model = loaded(reference, tmp_path)
    objective = made(model, 40, stride=8)
    samples = [*objective.encode(said("Anna Smith")), *objective.encode(said("France"))]
    want = 0.0
    for sample in samples:
        ids, segments, label = (torch.tensor(sample[name].astype(int))[None] for name in ("ids", "segments", "label"))
        with torch.no_grad():
            out = reference(ids, token_type_ids=segments, start_positions=label[:, 0], end_positions=label[:, 1])
        want += float(out.loss)
    feed = collated(objective, samples)
    assert feed.targets == len(samples) > 3
    assert len({len(ids) for ids in feed.ids}) > 1
    assert float(objective.loss(model, feed).detach()) == pytest.approx(want, rel=1e-5)


def test_smoothing_shares_among_a_samples_own_tokens() -> None:
    model = encoder(spec.Span(), length=256)
    objective = made(model, smoothing=0.3)
    samples = [*objective.encode(said("Anna Smith")), *objective.encode({**said("Bob"), "question": "Who?"})]
    alone = sum(float(objective.loss(model, collated(objective, [one])).detach()) for one in samples)
    assert float(objective.loss(model, collated(objective, samples)).detach()) == pytest.approx(alone, rel=1e-5)
    (row,) = model([samples[0]["ids"].tolist()], segments=[samples[0]["segments"].tolist()])
    want = sum(
        torch.nn.functional.cross_entropy(row[:, i], torch.tensor(int(samples[0]["label"][i])), label_smoothing=0.3) / 2
        for i in range(2)
    )
    first = objective.loss(model, collated(objective, samples[:1]))
    assert float(first.detach()) == pytest.approx(float(want.detach()), rel=1e-5)


def test_answers() -> None:
    assert answers_of(said("Bob")) == [Answer("Bob", CONTEXT.index("Bob"))]
    assert answers_of({**said("Bob"), "impossible": True}) == []
    assert answers_of({"context": "x"}) == []
    (sample,) = made(encoder(spec.Span(), length=256)).encode(said("Anna Smith "))  # a space at its end
    ids = sample["ids"][sample["label"][0] : sample["label"][1] + 1].tolist()
    assert wordpiece().decode(ids) == "Anna Smith"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (said("Bob", 3), "'Bob' doesn't stand at character 3"),
        (said("Bob", -1), "doesn't stand at"),
        ({**said("Bob"), "answers": "Bob"}, r"answers must be a list of \{text, start\}"),
        ({**said("Bob"), "answers": [{"text": "Bob"}]}, r"an answer must be \{text, start\}"),
        ({**said("Bob"), "answers": [{"text": " ", "start": 5}]}, "an answer must be"),
        ({**said("Bob"), "context": ""}, "context must be a text"),
        ({"context": CONTEXT}, "question must be a text"),
    ],
)
def test_bad_records_say_what_is_wrong(record: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        made(encoder(spec.Span(), length=256)).encode(record)


def test_what_it_can_not_do() -> None:
    with pytest.raises(InputError, match="leave no room"):
        made(encoder(spec.Span()), 8, stride=1).encode(said("Bob"))
    with pytest.raises(InputError, match="a stride of 60"):
        made(encoder(spec.Span()), 40, stride=60).encode(said("Bob"))
    with pytest.raises(ConfigError, match="'truncate' makes no sense here"):
        made(encoder(spec.Span()), on_long="truncate")
    with pytest.raises(ConfigError, match="new_head = 'span'"):
        made(encoder(spec.States()))
