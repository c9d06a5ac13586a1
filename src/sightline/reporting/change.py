"""A comparison of two runs, or of two sets of runs, as the page says it: what changed, and whether it can be told from chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .. import figures
from ..comparison import LEAST_IMAGES, ClassChange, Comparison, Reliable
from .words import chance, percent, points, span

ALPHA = 0.05
DRAWN = 40  # classes in the figure
PAIRS = 10  # confusions in the table
SOURCES = {"seeds": "measured between the seeds of an arm", "expected disagreement": "expected from the error alone"}
NO_SEEDS = (
    "With one run an arm nobody can say which images are reliably fixed or broken: two runs of one recipe differ as well. "
    "Train further seeds of both recipes."
)


class ReliableRow(NamedTuple):
    """How many images changed in so many of the seeds, and which share of these chance alone would give, in words."""

    how: str
    fixed: str
    fixed_by_chance: str
    broken: str
    broken_by_chance: str


class ClassRow(NamedTuple):
    """How a class changed, in points.  sign: "▲ better", "▼ worse", "too few to say", or "" where it can't be told."""

    name: str
    n: int
    change: str
    interval: str
    p: str
    sign: str


class Pair(NamedTuple):
    """How much more often a true class of n images is taken for another, in points of the true class."""

    true: str
    predicted: str
    n: int
    change: str
    sign: str


@dataclass(frozen=True)
class Change:
    """What the section "What changed" says. names: of A and B.  facts: key and value.  Figures are SVG text, "" for none."""

    names: tuple[str, str]
    verdict: str
    difference: str
    interval: str
    smallest: str
    facts: tuple[tuple[str, str], ...]
    flips: str
    flips_figure: str
    flips_label: str
    reliable: tuple[ReliableRow, ...]
    reliable_note: str
    classes: tuple[ClassRow, ...]
    classes_figure: str
    classes_note: str
    confusion_figure: str
    pairs: tuple[Pair, ...]


def change_of(comparison: Comparison, names: tuple[str, str]) -> Change:
    """Return what the page says of a comparison. names: what A and B are called."""
    difference, flips = comparison.difference, comparison.flips
    return Change(
        names=names,
        verdict=f"{comparison.verdict[0].upper()}{comparison.verdict[1:]}.",
        difference=f"{points(difference.value, 2)} points",
        interval=f"95 % interval {span(difference.low, difference.high, 2)}",
        smallest=_smallest(comparison),
        facts=_facts(comparison),
        flips=_flips(comparison),
        flips_figure=figures.flips(flips.fixed, flips.broken, flips.churn),
        flips_label=f"Fixed {flips.fixed:,.0f}, broken {flips.broken:,.0f}; two runs of one recipe: {flips.churn:,.0f} of each",
        reliable=_reliable(comparison),
        reliable_note="" if min(comparison.runs) > 1 else NO_SEEDS,
        classes=tuple(map(_class, comparison.classes)),
        classes_figure=_classes_figure(comparison),
        classes_note=_classes_note(comparison),
        confusion_figure=figures.confusion_change(comparison.confusion, [change.name for change in comparison.classes]),
        pairs=_pairs(comparison),
    )


def _smallest(comparison: Comparison) -> str:
    """What these images and runs could tell, and what it would take to tell more."""
    if comparison.n < LEAST_IMAGES:
        return f"n = {comparison.n}: too few to say."
    difference = comparison.difference
    said = f"The smallest difference that could be told here is {100 * difference.smallest:.2f} points (with a power of 80 %)."
    if difference.low <= 0 <= difference.high:
        needed = difference.needed
        return said + (
            " No number of images would tell the one seen: the runs vary too much."
            if needed is None
            else f" To tell the one seen, {needed:,} images would be needed; these are {comparison.n:,}."
        )
    return said


def _facts(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    accuracies = [percent(accuracy, 2) for accuracy in comparison.accuracy]
    counts = [f"{count} run{'s' * (count > 1)}" for count in comparison.runs]
    alone = comparison.checkpoints
    return (
        *((f"{comparison.split.capitalize()} accuracy of {arm}", value) for arm, value in zip("AB", accuracies, strict=True)),
        ("Images", f"{comparison.n:,}"),
        ("Runs", f"A: {counts[0]}, B: {counts[1]}"),
        ("No difference between the recipes", chance("p", comparison.difference.p)),
        *([("As two checkpoints only", f"{points(alone.value, 2)} points, {span(alone.low, alone.high, 2)}")] if alone else []),
        *([("No difference, McNemar", chance("p", comparison.mcnemar))] if comparison.mcnemar is not None else []),
        ("Calibration error, A → B", " → ".join(percent(value) for value in comparison.ece)),
        ("Negative flips (B breaks)", percent(comparison.negative_flips, 2)),
    )


def _flips(comparison: Comparison) -> str:
    found = comparison.flips
    return (
        f"B fixes {found.fixed:,.0f} images and breaks {found.broken:,.0f}. To compare: of two runs of one and the same "
        f"recipe each fixes and breaks about {found.churn:,.0f} of the other’s ({SOURCES[found.source]})."
    )


def _reliable(comparison: Comparison) -> tuple[ReliableRow, ...]:
    if min(comparison.runs) < 2:
        return ()

    def row(how: str, found: Reliable) -> ReliableRow:
        fixed, broken = _by_chance(found.fixed, found.fixed_by_chance), _by_chance(found.broken, found.broken_by_chance)
        return ReliableRow(how, f"{found.fixed:,}", fixed, f"{found.broken:,}", broken)

    return row("nearly all seeds", comparison.reliable), row("all seeds", comparison.unanimous)


def _by_chance(found: int, share: float | None) -> str:
    if share is not None:
        return percent(share, 0)
    return "unknown: fewer than three runs an arm" if found else "–"


def _class(change: ClassChange) -> ClassRow:
    difference = change.difference
    if difference is None or change.holm is None:
        return ClassRow(change.name, change.n, "no images", "", "", "")
    if change.n < LEAST_IMAGES:
        sign = "too few to say"
    else:
        sign = ("▲ better" if difference.value > 0 else "▼ worse") * (change.holm <= ALPHA)
    changed, interval = points(difference.value), span(difference.low, difference.high)
    return ClassRow(change.name, change.n, changed, interval, chance("p", change.holm), sign)


def _classes_figure(comparison: Comparison) -> str:
    """The forest plot; "" where no class has images."""
    if all(change.difference is None for change in comparison.classes):
        return ""
    return figures.class_changes(comparison.classes, DRAWN, LEAST_IMAGES, ALPHA)


def _classes_note(comparison: Comparison) -> str:
    count = sum(change.difference is not None for change in comparison.classes)
    told = sum(bool(_class(change).sign.endswith(("better", "worse"))) for change in comparison.classes)
    shown = (
        f"Drawn are the {DRAWN} of {count:,} classes that changed the most, those of less than {LEAST_IMAGES} images only where "
        "there is room. "
    ) * (count > DRAWN)
    return f"{shown}{told or 'None'} of {count:,} classes can be told to have changed (Holm’s p at most {ALPHA})."


def _pairs(comparison: Comparison) -> tuple[Pair, ...]:
    """The confusions of which the number of images changed the most."""
    classes, change = comparison.classes, np.nan_to_num(np.array(comparison.confusion, np.float64))
    np.fill_diagonal(change, 0.0)
    images = np.round(np.abs(change) * np.array([[row.n] for row in classes]), 6)  # rounded: equals stay equal
    order = np.argsort(-images, axis=None, kind="stable")[: min(PAIRS, np.count_nonzero(images))]
    cells = [divmod(int(cell), len(classes)) for cell in order]
    return tuple(_pair(classes[i], classes[j].name, float(change[i, j])) for i, j in cells)


def _pair(true: ClassChange, predicted: str, change: float) -> Pair:
    sign = "▲ more often" if change > 0 else "▼ less often"
    return Pair(true.name, predicted, true.n, points(change), sign if true.n >= LEAST_IMAGES else "too few to say")
