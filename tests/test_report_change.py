"""What the page says of a comparison is counted again by hand, and read back from its figures."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from types import SimpleNamespace
from typing import Any

import jinja2
import numpy as np
import pytest
from numpy.typing import NDArray

from sightline import figures
from sightline.comparison import Comparison, compare_predictions
from sightline.reporting import words
from sightline.reporting.change import change_of
from sightline.runs import Predictions

HOSTILE = "</script><img src=x onerror=alert(1)>"
CLASSES = ("cat", HOSTILE, "few", "none of these")
COUNTS = (300, 200, 7, 0)
SVG = "{http://www.w3.org/2000/svg}"


def predictions(said: NDArray[np.int64], labels: NDArray[np.int64], classes: Sequence[str]) -> Predictions:
    logits = np.full((len(said), len(classes)), -1.0, np.float32)
    logits[np.arange(len(said)), said] = 2.0
    return Predictions.from_logits(logits, labels, tuple(map(str, range(len(said)))), tuple(classes), "test")


def arms(counts: Sequence[int], classes: Sequence[str], errors: tuple[float, float], runs: int = 3) -> list[list[Predictions]]:
    """Runs that err at random; an answer that is wrong is another class with images."""
    random, k = np.random.default_rng(0), max(2, sum(count > 0 for count in counts))
    labels = np.repeat(np.arange(len(counts)), counts)
    drawn = []
    for error in errors:
        wrong = [random.random(len(labels)) < error for _ in range(runs)]
        others = [np.minimum((labels + random.integers(1, k, len(labels))) % k, len(classes) - 1) for _ in range(runs)]
        drawn.append([predictions(np.where(w, o, labels), labels, classes) for w, o in zip(wrong, others, strict=True)])
    return drawn


@pytest.fixture(scope="module")
def both() -> list[list[Predictions]]:
    return arms(COUNTS, CLASSES, (0.3, 0.15))


@pytest.fixture(scope="module")
def comparison(both: list[list[Predictions]]) -> Comparison:
    return compare_predictions(*both)


def right(run: Predictions) -> NDArray[np.bool_]:
    return run.predicted == run.labels


def points_of(text: str) -> float:
    return float(text.replace("−", "-"))


def element(svg: str, name: str) -> ET.Element:
    return next(e for e in ET.fromstring(svg).iter() if e.get("id") == name)


def path_of(svg: str, name: str) -> NDArray[np.float64]:
    """The corners of the first line or bar in an element."""
    found = element(svg, name)
    path = found if found.get("d") else next(e for e in found.iter(f"{SVG}path") if e.get("d"))
    return np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path.attrib["d"]), float)


def marker_of(svg: str, name: str) -> tuple[float, float]:
    mark = next(element(svg, name).iter(f"{SVG}use"))
    return float(mark.attrib["x"]), float(mark.attrib["y"])


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter(f"{SVG}text")]


def render(template: str, **values: Any) -> str:
    loader = jinja2.PackageLoader("sightline")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["percent"] = words.percent
    return environment.get_template(template).render(page=SimpleNamespace(**values))


class Reader(HTMLParser):
    """Tags, ids and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for key, value in attributes if key == "id" and value]
        assert not any(key.startswith("on") for key, _ in attributes)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_words_of_differences() -> None:
    assert [words.points(value) for value in (0.0123, -0.0123, 0.0004, -0.0004, 1)] == ["+1.2", "−1.2", "0.0", "0.0", "+100.0"]
    assert words.points(-0.0004, 2) == "−0.04"
    assert words.span(-0.1, 0.2, 0) == "−10 to +20"
    assert [words.chance("p", value) for value in (0.0009, 0.001, 0.0123, 1.0)] == [
        "p < 0.001",
        "p = 0.001",
        "p = 0.012",
        "p = 1",
    ]


def test_answer_comes_with_its_interval(comparison: Comparison, both: list[list[Predictions]]) -> None:
    change, difference = change_of(comparison, ("a", "b")), comparison.difference
    a, b = (float(np.mean([right(run).mean() for run in arm])) for arm in both)
    assert change.verdict == "B is better."
    assert change.difference == f"+{100 * (b - a):.2f} points"
    assert change.interval == f"95 % interval +{100 * difference.low:.2f} to +{100 * difference.high:.2f}"
    facts = dict(change.facts)
    assert facts["Test accuracy of A"] == f"{100 * a:.2f} %" and facts["Test accuracy of B"] == f"{100 * b:.2f} %"
    assert facts["Calibration error, A → B"] == " → ".join(f"{100 * ece:.1f} %" for ece in comparison.ece)
    assert facts["Runs"] == "A: 3 runs, B: 3 runs" and facts["Images"] == "507"
    assert not any("McNemar" in key or "checkpoints" in key for key in facts)  # these are of single runs


def test_fixed_and_broken_stand_beside_churn(comparison: Comparison, both: list[list[Predictions]]) -> None:
    pairs = [(right(a), right(b)) for a, b in product(*both)]
    fixed, broken = (np.mean([(~one & other).sum() for one, other in some]) for some in (pairs, [p[::-1] for p in pairs]))
    same = [[(right(a) & ~right(b)).sum() for a, b in product(arm, arm) if a is not b] for arm in both]
    churn = np.mean([np.mean(some) for some in same])
    change = change_of(comparison, ("a", "b"))
    assert f"fixes {fixed:,.0f} images and breaks {broken:,.0f}" in change.flips
    assert f"about {churn:,.0f} of the other’s (measured between the seeds" in change.flips
    assert dict(change.facts)["Negative flips (B breaks)"] == f"{100 * broken / 507:.2f} %"
    widths = [np.ptp(path_of(change.flips_figure, f"flips-{key}")[:, 0]) for key in ("fixed", "broken")]
    start = path_of(change.flips_figure, "flips-fixed")[:, 0].min()
    widths.append(path_of(change.flips_figure, "flips-churn")[0, 0] - start)
    np.testing.assert_allclose(np.array(widths) / widths[0], np.array([fixed, broken, churn]) / fixed, rtol=1e-4)
    assert {f"fixed {fixed:,.0f}", f"broken {broken:,.0f}"} <= set(texts(change.flips_figure))


def test_reliable_images_come_with_what_chance_gives(comparison: Comparison, both: list[list[Predictions]]) -> None:
    nearly, every = change_of(comparison, ("a", "b")).reliable
    hits = [np.sum([right(run) for run in arm], 0) for arm in both]
    assert nearly.fixed == f"{int(((hits[0] <= 1) & (hits[1] >= 2)).sum()):,}"
    assert every.fixed == f"{int(((hits[0] == 0) & (hits[1] == 3)).sum()):,}"
    assert every.broken == f"{int(((hits[0] == 3) & (hits[1] == 0)).sum()):,}"
    assert comparison.reliable.fixed_by_chance is not None
    assert nearly.fixed_by_chance == f"{100 * comparison.reliable.fixed_by_chance:.0f} %"
    two = replace(comparison.reliable, fixed=3, broken=0, fixed_by_chance=None, broken_by_chance=None)
    row = change_of(replace(comparison, runs=(2, 2), reliable=two), ("a", "b")).reliable[0]
    assert row.fixed_by_chance == "unknown: fewer than three runs an arm" and row.broken_by_chance == "–"


def test_classes_are_counted_and_told_apart_by_holm(comparison: Comparison, both: list[list[Predictions]]) -> None:
    rows = change_of(comparison, ("a", "b")).classes
    labels = both[0][0].labels
    assert [(row.name, row.n) for row in rows] == list(zip(CLASSES, COUNTS, strict=True))
    for label in range(3):
        a, b = (float(np.mean([right(run)[labels == label].mean() for run in arm])) for arm in both)
        assert points_of(rows[label].change) == pytest.approx(100 * (b - a), abs=0.05)
    assert [row.sign for row in rows] == ["▲ better", "▲ better", "too few to say", ""]
    assert rows[3].change == "no images"
    p = [row.difference.p for row in comparison.classes if row.difference]
    for row, own in zip(rows, p, strict=False):  # of three classes; here the order of the p is that of the steps
        steps = [min(1.0, (3 - k) * value) for k, value in enumerate(sorted(p))]
        holm = max(steps[: sorted(p).index(own) + 1])
        assert row.p == ("p < 0.001" if holm < 0.001 else f"p = {holm:.2g}")
    assert change_of(comparison, ("a", "b")).classes_note == "2 of 3 classes can be told to have changed (Holm’s p at most 0.05)."


def test_worse_classes_are_called_worse(both: list[list[Predictions]]) -> None:
    change = change_of(compare_predictions(both[1], both[0]), ("a", "b"))
    assert change.verdict == "B is worse." and change.classes[0].sign == "▼ worse"


def test_forest_plot_puts_changes_and_intervals_to_scale(comparison: Comparison) -> None:
    svg = figures.class_changes(comparison.classes)
    known = sorted((c for c in comparison.classes if c.difference), key=lambda c: -(c.difference.value if c.difference else 0))
    drawn, expected = [], []
    for y, change in enumerate(known):
        assert change.difference is not None
        drawn += [marker_of(svg, f"class-changes-change-{y}")[0], *path_of(svg, f"class-changes-interval-{y}")[:, 0]]
        expected += [change.difference.value, change.difference.low, change.difference.high]
    slope, start = np.polyfit(expected, drawn, 1)
    assert slope > 0
    np.testing.assert_allclose(drawn, slope * np.array(expected) + start, atol=1e-3)
    names = [text for text in texts(svg) if text.startswith(("cat", "few", "</scr"))]
    assert names == [
        (c.name if len(c.name) <= 24 else c.name[:23] + "…") + " (n = 7: too few to say)" * (c.n == 7) for c in known
    ]


def test_forest_plot_of_many_classes_draws_those_that_changed_the_most_and_have_images() -> None:
    counts = [30] * 60 + [5] * 140
    comparison = compare_predictions(*arms(counts, [f"c{i}" for i in range(200)], (0.3, 0.2)))
    change = change_of(comparison, ("a", "b"))
    drawn = [text for text in texts(change.classes_figure) if text.startswith("c") and text[1:].isdigit()]
    values = {c.name: abs(c.difference.value) for c in comparison.classes if c.difference and c.n >= 20}
    assert len(drawn) == 40 and min(values[name] for name in drawn) >= sorted(values.values())[-40]
    assert change.classes_note.startswith("Drawn are the 40 of 200 classes") and len(change.classes) == 200
    assert not [text for text in texts(change.confusion_figure) if re.fullmatch(r"c\d+", text)]  # too many to be read
    assert len(render("change.html", change=change)) < 300_000


def rates(arm: list[Predictions], k: int) -> NDArray[np.float64]:
    counts = np.zeros((k, k))
    for run in arm:
        for true, predicted in zip(run.labels, run.predicted, strict=True):
            counts[true, predicted] += 1 / len(arm)
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(1, keepdims=True)


def test_confusions_that_changed_are_numbers_in_cells(comparison: Comparison, both: list[list[Predictions]]) -> None:
    svg = change_of(comparison, ("a", "b")).confusion_figure
    change = 100 * (rates(both[1], 4) - rates(both[0], 4))
    expected = [f"{v:+.1f}" if abs(v) < 9.95 else f"{v:+.0f}" for v in change.ravel() if np.isfinite(v) and v != 0]
    numbers = [text.replace("−", "-") for text in texts(svg) if re.fullmatch(r"[+−][\d.]+", text)]
    assert sorted(numbers) == sorted(expected) and len(numbers) >= 6
    assert "nan" not in svg.lower()


def test_map_of_changes_is_centred_at_zero() -> None:
    svg = figures.confusion_change(np.array([[0.2, -0.2, 0], [-0.1, 0.1, 0], [np.nan] * 3]), ("a", "b", "c"))
    fills = [re.search(r"fill: (#\w+)", e.attrib["style"]) for e in element(svg, "confusion-change-cells").iter(f"{SVG}path")]
    colours = [fill[1].upper() for fill in fills if fill]
    assert len(colours) == 6  # those of the class without images are left out, and hatched
    assert "pattern" in svg
    levels = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours], float)
    orange, blue = (np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], float) for colour in (figures.ORANGE, figures.BLUE))
    half = [(255 + colour) / 2 for colour in (blue, orange)]
    np.testing.assert_allclose(levels, [orange, blue, [255] * 3, half[0], half[1], [255] * 3], atol=2)


def test_pairs_are_ordered_by_images(comparison: Comparison, both: list[list[Predictions]]) -> None:
    change = rates(both[1], 4) - rates(both[0], 4)
    moved = {
        (CLASSES[i], CLASSES[j]): (change[i, j] * COUNTS[i], 100 * change[i, j])
        for i in range(3)
        for j in range(4)
        if i != j and change[i, j]
    }
    pairs = change_of(comparison, ("a", "b")).pairs
    assert len(pairs) == len(moved) >= 4
    sizes = [abs(moved[pair.true, pair.predicted][0]) for pair in pairs]
    assert sizes == pytest.approx(sorted(sizes, reverse=True))
    for pair in pairs:
        value = moved[pair.true, pair.predicted][1]
        assert points_of(pair.change) == pytest.approx(value, abs=0.05)
        assert pair.sign == ("too few to say" if pair.true == "few" else "▲ more often" if value > 0 else "▼ less often")


def test_single_runs_are_also_compared_as_checkpoints(both: list[list[Predictions]]) -> None:
    a, b = both[0][0], both[1][0]
    comparison = compare_predictions([a], [b])
    change, facts = change_of(comparison, ("a", "b")), dict(change_of(comparison, ("a", "b")).facts)
    assert comparison.checkpoints is not None
    low, high = comparison.checkpoints.low, comparison.checkpoints.high
    gain = 100 * (right(b).mean() - right(a).mean())
    assert facts["As two checkpoints only"] == f"{gain:+.2f} points, {100 * low:+.2f} to {100 * high:+.2f}"
    assert facts["No difference, McNemar"] == "p < 0.001" and facts["Runs"] == "A: 1 run, B: 1 run"
    assert change.reliable == () and "Train further seeds" in change.reliable_note
    assert "expected from the error alone" in change.flips


def test_few_images_say_nothing() -> None:
    comparison = compare_predictions(*arms((4, 3), ("a", "b"), (0.9, 0.0)))
    change = change_of(comparison, ("a", "b"))
    assert change.verdict.startswith("Cannot tell: 7 images are too few") and change.smallest == "n = 7: too few to say."
    assert {row.sign for row in change.classes} == {"too few to say"}


def test_what_it_would_take_to_tell_is_said(comparison: Comparison) -> None:
    assert "needed" not in change_of(comparison, ("a", "b")).smallest  # it is told already
    for needed, words_ in ((12_345, "12,345 images would be needed; these are 507."), (None, "the runs vary too much")):
        unsure = replace(comparison, difference=replace(comparison.difference, low=-0.01, smallest=0.0234, needed=needed))
        said = change_of(unsure, ("a", "b")).smallest
        assert words_ in said and "2.34 points" in said


def test_nothing_changed_and_one_class() -> None:
    same = arms((40,), ("only",), (0.0, 0.0))
    with np.errstate(invalid="ignore"):  # the margin over no other class
        change = change_of(compare_predictions(*same), ("a", "b"))
    assert change.pairs == () and change.difference == "0.00 points"
    assert "No confusion changed" in render("change.html", change=change)


def test_section_is_text_and_whole(comparison: Comparison) -> None:
    change = change_of(comparison, (HOSTILE, "b"))
    assert change == change_of(comparison, (HOSTILE, "b"))
    page = Reader(render("change.html", change=change))
    assert {"script", "img", "image"}.isdisjoint(page.tags)
    assert page.texts.count(HOSTILE) >= 3  # the run's name, a class's row, its confusions
    assert len(page.ids) == len(set(page.ids)) > 50
    assert Reader(render("change.html", change=None)).tags == []
