"""Measures against scikit-learn, scipy, seqeval, sacrebleu and figures worked out by hand."""

import math
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import InputError
from qkv.train import metrics

PAIRS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=40)
FLOATS = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=40)
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-PER"]


@given(PAIRS)
@pytest.mark.filterwarnings("ignore")
def test_labels_as_in_sklearn(pairs: list[tuple[str, str]]) -> None:
    from sklearn import metrics as theirs

    truth, found = (list(side) for side in zip(*pairs, strict=True))
    assert metrics.accuracy(truth, found) == pytest.approx(theirs.accuracy_score(truth, found))
    assert metrics.f1(truth, found, "macro") == pytest.approx(
        theirs.f1_score(truth, found, average="macro", zero_division=0)
    )
    assert metrics.f1(truth, found, "micro") == pytest.approx(
        theirs.f1_score(truth, found, average="micro", zero_division=0)
    )
    binary = theirs.f1_score([t == "a" for t in truth], [f == "a" for f in found], zero_division=0)
    assert metrics.f1(truth, found, "binary", "a") == pytest.approx(binary)
    assert metrics.matthews(truth, found) == pytest.approx(theirs.matthews_corrcoef(truth, found), abs=1e-12)


@given(st.lists(st.tuples(st.sets(st.integers(0, 2)), st.sets(st.integers(0, 2))), min_size=1, max_size=20))
def test_sets_of_labels_as_in_sklearn(pairs: list[tuple[set[int], set[int]]]) -> None:
    from sklearn.metrics import f1_score

    truth, found = ([[i in one for i in range(3)] for one in side] for side in zip(*pairs, strict=True))
    want = f1_score(np.array(truth), np.array(found), average="micro", zero_division=0)
    got = metrics.f1_of_sets([list(a) for a, _ in pairs], [list(b) for _, b in pairs])
    assert got == pytest.approx(want)


@given(FLOATS)
def test_correlations_as_in_scipy(pairs: list[tuple[int, int]]) -> None:
    from scipy import stats

    a, b = (list(map(float, side)) for side in zip(*pairs, strict=True))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert metrics.pearson(a, b) == metrics.spearman(a, b) == 0.0
        return
    assert metrics.pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-9)
    assert metrics.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert metrics._ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert metrics.mean_squared_error([1, 2], [1, 4]) == 2.0


@given(st.lists(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=8), min_size=1))
@pytest.mark.filterwarnings("ignore")
def test_spans_as_in_seqeval(texts: list[list[tuple[str, str]]]) -> None:
    from seqeval.metrics import f1_score, precision_score, recall_score

    truth, found = ([[pair[i] for pair in text] for text in texts] for i in range(2))
    assert metrics.span_f1(truth, found) == pytest.approx(
        {
            "span_precision": precision_score(truth, found, zero_division=0),
            "span_recall": recall_score(truth, found, zero_division=0),
            "span_f1": f1_score(truth, found, zero_division=0),
        }
    )


def test_spans_by_hand() -> None:
    """Two spans are there; one is found, and a third that is too short."""
    truth = [["B-PER", "I-PER", "O", "B-LOC"]]
    found = [["B-PER", "O", "O", "B-LOC"]]
    assert metrics.span_f1(truth, found) == {"span_precision": 0.5, "span_recall": 0.5, "span_f1": 0.5}
    with pytest.raises(InputError, match="text 0 has 4 tags and 1 predicted"):
        metrics.span_f1(truth, [["O"]])


def test_texts_as_their_libraries_say() -> None:
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    right = ["The cat sat on the mat.", "A dog barked at night!"]
    found = ["The cat sat on a mat.", "The dog barks at night."]
    bleu, chrf = metrics.bleu(right, found), metrics.chrf(right, found)
    assert bleu.value == pytest.approx(sacrebleu.corpus_bleu(found, [right]).score)
    assert chrf.value == pytest.approx(sacrebleu.corpus_chrf(found, [right]).score)
    assert "tok:13a" in bleu.signature
    assert "version:" in chrf.signature
    scorer = RougeScorer(["rougeL"])
    want = np.mean([scorer.score(a, b)["rougeL"].fmeasure for a, b in zip(right, found, strict=True)])
    assert metrics.rouge(right, found)["rougeL"] == pytest.approx(want)
    # the cat sat on the mat / the cat sat on a mat: 5 of 6 words
    assert metrics.rouge(right[:1], found[:1])["rouge1"] == pytest.approx(5 / 6)
    assert metrics.bleu(right, right).value == pytest.approx(100)


def test_likelihoods() -> None:
    assert metrics.perplexity(math.log(8) * 10, 10) == pytest.approx(8)
    assert metrics.bits_per_byte(math.log(2) * 30, 10) == pytest.approx(3)
    assert metrics.perplexity(1e9, 1) == math.inf
    assert metrics.better("loss") == metrics.better("perplexity") == "min"
    assert metrics.better("accuracy") == "max"


@pytest.mark.parametrize("count", [metrics.accuracy, metrics.matthews, metrics.pearson, metrics.span_f1, metrics.bleu])
def test_nothing_to_count(count: Any) -> None:
    with pytest.raises(InputError, match="as many"):
        count([], [])
    with pytest.raises(InputError, match="1 right ones and 2"):
        count(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("module", "count", "package"),
    [
        ("seqeval", metrics.span_f1, "seqeval"),
        ("sacrebleu", metrics.bleu, "sacrebleu"),
        ("rouge_score.rouge_scorer", metrics.rouge, "rouge-score"),
    ],
)
def test_a_missing_library_is_named(module: str, count: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{package}: pip install 'qkv\[train\]'"):
        count(["O"], ["O"])
    names = {"seqeval": "span_f1", "sacrebleu": "chrf", "rouge-score": "rougeL"}
    with pytest.raises(InputError, match=rf"{package}: pip"):
        metrics.check_installed(["loss", names[package]])
    metrics.check_installed(["loss", *(name for own, name in names.items() if own != package)])
