"""Labels of texts: losses are transformers', and a label that isn't known is said."""

from pathlib import Path
from typing import Any

import pytest
import torch

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.train import recipe
from qkv.train.classify import ClassifyTexts, labels_of
from tests.tasks.fakes import theirs, wordpiece
from tests.train.heads import collated, encoder, loaded, loss_of

RECORDS = [
    {"text": "Paris is the capital of France.", "label": "good"},
    {"text": "Who lives there?", "second": "Anna Smith.", "label": "bad"},
    {"text": "unbelievable", "label": "good"},
]


def made(model: Any, length: int | None = None, **settings: Any) -> ClassifyTexts:
    said = recipe.ClassifyTexts(kind="classify", **settings)
    return ClassifyTexts(said, model.spec, model.tokenizer or wordpiece(), length)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("single", ["good", "bad", "good"]),
        ("multi", [["good", "bad"], [], "bad"]),
        ("regression", [[0.5, -1], [2, 3.25], ["1e-3", 0]]),
    ],
)
def test_the_loss_is_that_of_transformers(problem: Any, labels: list[Any], tmp_path: Path) -> None:
    kinds = {
        "single": "single_label_classification",
        "multi": "multi_label_classification",
        "regression": "regression",
    }
    reference, reader = theirs(
        tmp_path, wordpiece(), "SequenceClassification", ("bad", "good"), problem_type=kinds[problem]
    )
    model = loaded(reference, tmp_path)
    objective = made(model, problem=problem)
    records = [{**record, "label": label} for record, label in zip(RECORDS, labels, strict=True)]
    texts = [record["text"] for record in records], [record.get("second", "") for record in records]
    want = 0.0
    for first, second, label in zip(*texts, labels, strict=True):
        right: Any = {
            "single": lambda label: [["bad", "good"].index(label)],
            "multi": lambda label: [[float(name in label) for name in ("bad", "good")]],
            "regression": lambda label: [[float(x) for x in label]],
        }[problem](label)
        inputs = reader(first, second or None, return_tensors="pt")
        want += float(reference(**inputs, labels=torch.tensor(right)).loss.detach())
    feed = collated(objective, [s for record in records for s in objective.encode(record)])
    assert feed.targets == 3
    assert feed.tokens == sum(map(len, feed.ids))
    assert float(objective.loss(model, feed).detach()) == pytest.approx(want, rel=1e-5)


def test_smoothing_is_torchs() -> None:
    model = encoder(spec.Classify(("bad", "good")))
    objective = made(model, smoothing=0.2)
    samples = [s for record in RECORDS for s in objective.encode(record)]
    feed = collated(objective, samples)
    out = torch.stack(model(feed.ids, segments=feed.segments))
    want = torch.nn.functional.cross_entropy(out, torch.tensor([1, 0, 1]), label_smoothing=0.2, reduction="sum")
    assert float(objective.loss(model, feed).detach()) == pytest.approx(float(want.detach()))


def test_one_batch_is_the_sum_of_its_samples() -> None:
    model = encoder(spec.Classify(("bad", "good")))
    objective = made(model)
    whole = loss_of(objective, model, *RECORDS)
    assert float(whole.detach()) == pytest.approx(sum(float(loss_of(objective, model, r).detach()) for r in RECORDS))


@pytest.mark.parametrize(
    ("problem", "labels", "want"),
    [
        ("single", ["b", "a", "b", None], ("a", "b")),
        ("single", [10, 9, "2"], ("2", "9", "10")),  # whole numbers by their value
        ("single", [True, False], ("False", "True")),
        ("multi", [["b", "c"], "a", []], ("a", "b", "c")),
        ("regression", [0.5, "1.5"], ("score",)),
        ("regression", [[0.5, 1], [2, 3]], ("score_1", "score_2")),
    ],
)
def test_labels_come_from_the_data(problem: Any, labels: list[Any], want: tuple[str, ...]) -> None:
    settings = recipe.ClassifyTexts(kind="classify", problem=problem)
    assert labels_of([{"text": "x", "label": label} for label in labels], settings) == want


def test_labels_that_the_recipe_says() -> None:
    said = recipe.ClassifyTexts(kind="classify", labels=("z", "a"))
    assert labels_of([{"label": "q"}], said) == ("z", "a")
    with pytest.raises(InputError, match="no record has a label"):
        labels_of([{"text": "x"}], recipe.ClassifyTexts(kind="classify"))


@pytest.mark.parametrize(
    ("problem", "record", "why"),
    [
        ("single", {"text": "x", "label": "ugly"}, "'ugly' is none of the head's: bad, good"),
        ("single", {"text": "x"}, "label must be a name, got None"),
        ("single", {"text": "x", "label": ["good"]}, "label must be a name, got"),
        ("single", {"text": "x", "label": 0.5}, "label must be a name, got 0.5"),
        ("single", {"text": " ", "label": "good"}, "text must be a text"),
        ("single", {"text": "x", "second": 3, "label": "good"}, "second must be a text, got 3"),
        ("multi", {"text": "x", "label": ["good", 1.5]}, "a name or a list of them"),
        ("regression", {"text": "x", "label": "much"}, "a finite number"),
        ("regression", {"text": "x", "label": [1e39, 0]}, "a finite number"),
        ("regression", {"text": "x", "label": [float("nan"), 0]}, "a finite number"),
        ("regression", {"text": "x", "label": 1.0}, "label has 1 numbers, and the head 2"),
    ],
)
def test_bad_records_say_what_is_wrong(problem: Any, record: dict[str, Any], why: str) -> None:
    model = encoder(spec.Classify(("bad", "good"), problem=problem))
    with pytest.raises(InputError, match=why):
        made(model, problem=problem).encode(record)


def test_models_that_it_can_not_train() -> None:
    with pytest.raises(
        ConfigError, match=r"trains a Classify head, and the model's is States: .*new_head = 'classify'"
    ):
        made(encoder(spec.States()))
    model = encoder(spec.Classify(("bad", "good")))
    with pytest.raises(ConfigError, match=r"problem is 'multi', and the model's head is for 'single'"):
        made(model, problem="multi")
    with pytest.raises(ConfigError, match=r"labels are good, bad, and the model's head has bad, good"):
        made(model, labels=("good", "bad"))
    with pytest.raises(ConfigError, match="smoothing"):
        made(encoder(spec.Classify(("a",), problem="regression")), problem="regression", smoothing=0.1)


def test_long_texts_are_what_on_long_says() -> None:
    model = encoder(spec.Classify(("bad", "good")))
    long = {"text": "Paris is the capital of France and Berlin that of Germany", "label": "bad"}
    with pytest.raises(InputError, match=r"the most is 12 \(batch.length\).*objective.on_long"):
        made(model, 12).encode(long)
    for way, samples, cut, dropped in (("truncate", 1, 1, 0), ("drop", 0, 0, 1)):
        objective = made(model, 12, on_long=way)
        assert len(objective.encode(long)) == samples
        assert (objective.cut, objective.dropped) == (cut, dropped)
    parts = made(model, 12, on_long="window").encode(long)
    assert len(parts) > 1
    assert all(len(part["ids"]) <= 12 and part["label"].tolist() == [0] for part in parts)
