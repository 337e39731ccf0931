"""Curves: what is drawn is what the log says."""

import html
import json
import math
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.train import curve
from qkv.train.curve import Series
from qkv.train.log import History


def history(steps: int = 50) -> History:
    lines: list[dict[str, Any]] = [{"step": i, "loss": 8 / i, "lr": 1e-3} for i in range(1, steps + 1)]
    lines[2]["loss"] = "nan"
    return History(steps=lines, evaluations=[{"step": 25, "values": {"loss": 0.5, "f1": 0.25}}])


def drawn(svg: str) -> ElementTree.Element:
    (found,) = re.findall(r"<svg.*</svg>", svg, re.DOTALL)
    return ElementTree.fromstring(found.replace(" hidden>", ">"))


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in element.attrib["points"].split())]


def test_series_of_a_log() -> None:
    train, valid = curve.losses(history())
    assert (train.name, valid.name) == ("train", "valid")
    assert len(train.points) == 49  # one was no number
    assert train.points[0] == (1, 8.0)
    assert list(valid.points) == [(25, 0.5)]
    assert list(curve.of_evaluations(history(), "bleu", "x").points) == []
    assert curve.losses(History()) == []


def test_a_line_is_its_points() -> None:
    tree = drawn(curve.svg("t", [Series("a", [(0, 1.0), (10, 3.0), (20, 2.0)])], 720, 300))
    (line,) = tree.iter("polyline")
    assert points(line) == [(56.0, 274.0), (382.0, 10.0), (708.0, 142.0)]
    assert len(list(tree.iter("circle"))) == 3


def test_a_logarithmic_axis() -> None:
    tree = drawn(curve.svg("t", [Series("a", [(0, 1.0), (1, 10.0), (2, 100.0)])], may_log=True))
    (line,) = tree.iter("polyline")
    (_, first), (_, middle), (_, last) = points(line)
    assert first - middle == pytest.approx(middle - last)
    assert "(logarithmic)" in curve.svg("t", [Series("a", [(0, 1.0), (1, 6.0)])], may_log=True)
    assert "(logarithmic)" not in curve.svg("t", [Series("a", [(0, 1.0), (1, 4.0)])], may_log=True)


def test_values_for_the_read_out_and_escaping() -> None:
    svg = curve.svg("<t>", [Series('"><script>', [(1, 2.0), (2, 3.0)])])
    assert "<script>" not in svg
    (data,) = re.findall(r'data-series="([^"]*)"', svg)
    (one,) = json.loads(html.unescape(data))
    assert one["name"] == '"><script>'
    assert [p[:2] for p in one["points"]] == [[1, 2.0], [2, 3.0]]
    assert curve.svg("t", [Series("none", [])]) == ""


FINITE = st.floats(-1e9, 1e9)


@given(st.lists(st.tuples(st.integers(0, 10**6), FINITE), min_size=1, max_size=30), st.booleans())
def test_anything_can_be_drawn_inside_its_frame(values: list[tuple[int, float]], may_log: bool) -> None:
    tree = drawn(curve.svg("t", [Series("a", sorted(values))], 720, 300, may_log))
    for line in tree.iter("polyline"):
        assert all(55.9 <= x <= 708.1 and 9.9 <= y <= 274.1 for x, y in points(line))
    texts = list(tree.iter("text"))
    assert len(texts) <= 20
    for text in texts:
        assert 0 <= float(text.attrib["x"]) <= 720
        assert math.isfinite(float(text.attrib["y"]))


@given(st.lists(st.tuples(FINITE, FINITE), max_size=50), st.integers(1, 60))
def test_thin_is_means_of_neighbours(values: list[tuple[float, float]], most: int) -> None:
    found = curve.thin(values, most)
    assert len(found) <= most
    if len(values) <= most:
        assert found == values


def test_short() -> None:
    said = [curve.short(x) for x in (0, 0.5, 1234, 2_500_000, 3e9, 0.00003, -1500)]
    assert said == ["0", "0.5", "1.234k", "2.5M", "3G", "3e-05", "-1.5k"]


def test_a_png(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    assert curve.png(history(), path, "a $name_") is None
    image = matplotlib.image.imread(path)
    assert image.shape[:2] == (540, 960)
    assert image[..., :3].std() > 0.01
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_why_there_is_no_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "loss.png"
    assert "no loss yet" in (curve.png(History(), path, "t") or "")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'qkv[plot]'" in (curve.png(history(), path, "t") or "")
    assert not path.exists()
