"""Is B better than A, and on which images? Two runs, or two sets of runs, that were asked about the same images.

An *arm* is one or several runs of one recipe, each of its own seed; `right` (K, N) bool says which of its K runs are right about
which of the N images. Both are samples: other images and other seeds would give another difference. With

    right[k, i] = the arm's mean + image i + run k + rest

the variance of B's mean minus A's has a part that shrinks with the images (image and rest) and one that shrinks with the runs
only. `difference` estimates each from the sums of squares of the two-way layout, and adds the normal quantile of the first and
Student's of the second in quadrature, since few runs show their own part badly. A percentile bootstrap over images and runs would
count the rest three times (Owen 2007, "The pigeonhole bootstrap", https://doi.org/10.1214/07-AOAS122). In simulated pairs of
arms (tests/test_comparison.py) the interval holds the true difference in 93 to 97 of 100; in up to 98 where runs of a recipe
differ by no more than independent errors let them.

Two runs of the *same* recipe fix and break hundreds of each other's images too. So fixed and broken images are shown beside that
churn, and one run an arm is judged with the deviation between runs that it can't show by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy  # its parts are loaded where they are first used: they take a second
from numpy.typing import NDArray

from .datasets import Dataset
from .evaluation import open_test
from .exceptions import RunError
from .mistakes import calibration, confusion_matrix, first_apart, nearly_all, same_images
from .runs import Predictions, Run

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TAIL = 0.025  # beyond each end of a 95 % interval
POWER = 0.8
HIGHEST = 8.0  # standard deviations: p = 1e-15 is as small as a p needs to be
LEAST_IMAGES = 20  # fewer are anecdotes
LEAST_RUNS = 3  # an arm: with fewer, relabelled runs are too few splits for a rate of false discoveries
USUAL_IMAGES = 10_000  # of the test sets that `run_deviation` is known from


@dataclass(frozen=True)
class Difference:
    """B's accuracy minus A's, as a fraction.

    low, high: its 95 % interval.  p: two-sided, of no difference.  smallest: the effect that this many images and runs tell with
    80 % power.  needed: how many images would tell the difference seen with 80 % power; None where no number would, because none
    was seen or because the runs alone vary too much.
    """

    value: float
    low: float
    high: float
    p: float
    smallest: float
    needed: int | None


@dataclass(frozen=True)
class Flips:
    """How many images B has right and A wrong (fixed), and the other way round (broken), on average over the pairs of runs.

    churn: how many of each two runs of the same recipe would give.  source: "seeds", measured between the runs of an arm, or
    "expected disagreement", see `churn`.
    """

    fixed: float
    broken: float
    churn: float
    source: Literal["seeds", "expected disagreement"]


@dataclass(frozen=True)
class Reliable:
    """How many images are fixed or broken in (nearly) all runs, see `reliably_fixed`, and which share of them chance would give.

    The shares are those of `false_discoveries`: None for fewer than three runs an arm, or where there are no such images.
    """

    fixed: int
    broken: int
    fixed_by_chance: float | None
    broken_by_chance: float | None


@dataclass(frozen=True)
class ClassChange:
    """How the accuracy on the `n` images of one true class changed.

    difference: None for n = 0.  holm: its p with Holm's correction for all classes.
    """

    name: str
    n: int
    difference: Difference | None
    holm: float | None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. Accuracies and rates are fractions; those of an arm are means over its runs.

    verdict: one line, about the recipes.  runs: how many of A and of B.  difference: of the recipes, as other images and seeds
    would show it.  checkpoints, mcnemar: of these two checkpoints, as other images would show it, by interval and by p of
    `mcnemar`; None with several runs an arm.  negative_flips: the share of all images that B breaks (Yan et al. 2021,
    https://arxiv.org/abs/2011.09161).  reliable: in nearly all runs.  unanimous: in all of them.  fixed, broken: the ids of the
    reliable ones, the surest first: by the change in the share of runs that are right, then by that of the mean margin.
    confusion: (C, C) float64, B's rates minus A's, row the true class, column the predicted one; NaN in the row of a class
    without images.  ece: expected calibration error of A and of B.
    """

    verdict: str
    split: str
    n: int
    runs: tuple[int, int]
    accuracy: tuple[float, float]
    difference: Difference
    checkpoints: Difference | None
    mcnemar: float | None
    flips: Flips
    negative_flips: float
    reliable: Reliable
    unanimous: Reliable
    fixed: tuple[str, ...]
    broken: tuple[str, ...]
    classes: tuple[ClassChange, ...]
    confusion: Floats
    ece: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return it all as JSON-ready values, None for NaN."""
        rates = [[None if math.isnan(rate) else rate for rate in row] for row in self.confusion.tolist()]
        return {**asdict(self), "confusion": rates}

    def _repr_html_(self) -> str:
        """Show it as a table in a notebook."""
        from .notebook import of_comparison

        return of_comparison(self)


def compare(a: Run | Sequence[Run], b: Run | Sequence[Run], data: Dataset | None = None) -> Comparison:
    """Compare two runs, or two sets of runs, on the test images; each run counts that its test was opened.

    data: what the runs were trained on; loaded again where it isn't given.
    Raises RunError, which says what differs, unless all runs have the same data, share held out and classes, and those of one arm
    the same recipe and different seeds; and for an arm without runs.
    """
    arms = [[arm] if isinstance(arm, Run) else list(arm) for arm in (a, b)]
    for name, arm in zip("AB", arms, strict=True):
        _check_arm(name, arm)
    first = arms[0][0]
    for run in (*arms[0], *arms[1]):
        _check_same_data(first, run)
    data = first.dataset() if data is None else data
    said_a, said_b = ([open_test(run, data) for run in arm] for arm in arms)
    return compare_predictions(said_a, said_b)


def compare_predictions(a: Sequence[Predictions], b: Sequence[Predictions]) -> Comparison:
    """Compare what the runs of two arms said of the same images, see `Comparison`.

    Raises RunError for an arm without runs, for no images, and unless all are of the same images in the same order and with the
    same labels and classes.
    """
    if not a or not b:
        raise RunError(f"the arm {'B' if a else 'A'} has no predictions; give those of at least one run an arm")
    same_images([*a, *b])
    right_a, right_b = _right(a), _right(b)
    labels, names = a[0].labels, a[0].classes
    single = len(a) == len(b) == 1
    change = recipe_difference(right_a, right_b)
    counted = flips(right_a, right_b)
    more = right_b.sum(0) * len(a) - right_a.sum(0) * len(b)  # the change in the share right, in whole numbers: equals stay equal
    margin = _mean_margins(a) - _mean_margins(b)
    return Comparison(
        verdict=verdict(change, len(labels), run_deviation(_error(right_a, right_b)) if min(len(a), len(b)) == 1 else None),
        split=a[0].split,
        n=len(labels),
        runs=(len(a), len(b)),
        accuracy=(float(right_a.mean()), float(right_b.mean())),
        difference=change,
        checkpoints=difference(right_a, right_b) if single else None,
        mcnemar=mcnemar(right_a[0], right_b[0]) if single else None,
        flips=counted,
        negative_flips=counted.broken / len(labels),
        reliable=_reliable(right_a, right_b, misses=1),
        unanimous=_reliable(right_a, right_b, misses=0),
        fixed=_ids(a[0].ids, reliably_fixed(right_a, right_b), more, margin),
        broken=_ids(a[0].ids, reliably_fixed(right_b, right_a), -more, -margin),
        classes=class_changes(right_a, right_b, labels, names),
        confusion=_rates(b) - _rates(a),
        ece=(_ece(a), _ece(b)),
    )


def verdict(change: Difference, n: int, assumed: float | None = None) -> str:
    """Return one line: "B is better", "B is worse", or "cannot tell" with the smallest effect told or the images needed.

    assumed: the deviation between runs that was taken for granted, where an arm has one run; the line says so.
    """
    if n < LEAST_IMAGES:
        return f"cannot tell: {n} images are too few for a conclusion; at least {LEAST_IMAGES} are needed"
    if change.low > 0 or change.high < 0:
        given = f", if seeds differ as little as is usual (a standard deviation of {100 * assumed:.2f} points)" if assumed else ""
        return f"B is {'better' if change.low > 0 else 'worse'}{given}"
    return f"cannot tell (smallest effect that could be told: {100 * change.smallest:.2f} points)"


# --- how large, and how sure


def recipe_difference(right_a: Bools, right_b: Bools, share: float = 1.0) -> Difference:
    """Return the `difference` of two recipes: a single run is taken to deviate by `run_deviation`.

    share: of all images that these are, as those of a class.
    """
    return difference(right_a, right_b, run_deviation(_error(right_a, right_b), share))


def run_deviation(error: float, share: float = 1.0) -> float:
    """Return the standard deviation, a fraction, that is taken for that between runs' true accuracies where an arm has one run.

    √(error / 2 / 10,000): the deviation on a test set of 10,000 images between runs that disagree on as many of them as they have
    wrong (see `churn`), independently of each other. 0.15 and 0.23 points for errors of 4.7 and 10.6 %, where 0.21 and 0.26 were
    measured (ResNet-18 on CIFAR-10, 5 runs; DeVries & Taylor 2017, https://arxiv.org/abs/1708.04552, table 1). The images show
    most of that themselves, so it is on the safe side there. Trained on a few hundred images, runs differ by several points: a
    verdict that rests on this figure names it. share: the error is that of so much of the 10,000.
    """
    return math.sqrt(error / 2 / (USUAL_IMAGES * share))


def difference(right_a: Bools, right_b: Bools, unseen: float = 0.0) -> Difference:
    """Return B's accuracy minus A's over the same N images, with its interval (see the top of this file).

    right_a: (Ka, N).  right_b: (Kb, N).  unseen: the standard deviation between runs, which an arm of one run can't show; with
    0 the interval of two single runs is about these checkpoints, and that of Agresti & Min 2005 (Statistics in Medicine 24,
    729–740): half an image more of each kind (fixed, broken, right in both, wrong in both), so that few images can't seem sure.
    Several runs get these too, with changes as small as the mean of coin-flips over them.
    """
    change = right_b.mean(0) - right_a.mean(0)
    n, arms = len(change) + 2, (right_a, right_b)
    centre = float(change.sum()) / n
    spread = (float((change**2).sum()) + sum(0.5 / len(right) for right in arms)) / n - centre**2  # of an image's change
    variance = _Variance(
        images=spread / n,
        unseen=unseen**2 * sum(len(right) == 1 for right in arms),
        runs=sum(_excess(right) / len(right) for right in arms if len(right) > 1),
        df=sum(len(right) - 1 for right in arms),
    )
    half = variance.reach(TAIL)
    return Difference(
        value=float(change.mean()),
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
        p=variance.p(abs(centre)),
        smallest=half + variance.reach(1 - POWER),
        needed=_needed(variance, abs(centre), n),
    )


def mcnemar(right_a: Bools, right_b: Bools) -> float:
    """Return p of the exact McNemar test (two-sided binomial) that two checkpoints (N,) are equally good.

    McNemar 1947, https://doi.org/10.1007/BF02295996. 1 where both are right about the same images. It isn't about recipes.
    """
    fixed, broken = int((right_b & ~right_a).sum()), int((right_a & ~right_b).sum())
    return float(scipy.stats.binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Return the p-values, in their order, adjusted by Holm's step-down method (1979, https://www.jstor.org/stable/4615733)."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)), 1)
    return [float(value) for value in adjusted]


def class_changes(right_a: Bools, right_b: Bools, labels: Integers, names: Sequence[str]) -> tuple[ClassChange, ...]:
    """Return the `recipe_difference` of each true class, in the order of the classes, with Holm's correction for all of them."""
    rows = [np.flatnonzero(labels == label) for label in range(len(names))]
    changes = [recipe_difference(right_a[:, i], right_b[:, i], len(i) / len(labels)) if len(i) else None for i in rows]
    corrected = iter(holm([change.p for change in changes if change]))
    return tuple(
        ClassChange(name, len(i), change, next(corrected) if change else None)
        for name, i, change in zip(names, rows, changes, strict=True)
    )


# --- which images


def flips(right_a: Bools, right_b: Bools) -> Flips:
    """Return how many images are fixed and broken, beside what `churn` alone would give."""
    a, b = right_a.mean(0), right_b.mean(0)
    expected, source = churn(right_a, right_b)
    return Flips(float(((1 - a) * b).sum()), float((a * (1 - b)).sum()), expected, source)


def churn(right_a: Bools, right_b: Bools) -> tuple[float, Literal["seeds", "expected disagreement"]]:
    """Return how many images one run has right and another of the same recipe wrong, and where that is known from.

    "seeds": the mean over all pairs of runs of an arm, then over the arms that have several. "expected disagreement": with one
    run each, from Jiang et al. 2022 (https://arxiv.org/abs/2106.13799): two runs disagree on about as many images as one has
    wrong, so at most half of them go each way; fewer where both are wrong in different ways.
    """
    measured = [_disagreement(right) for right in (right_a, right_b) if len(right) > 1]
    if measured:
        return sum(measured) / len(measured), "seeds"
    return _error(right_a, right_b) * right_a.shape[1] / 2, "expected disagreement"


def reliably_fixed(right_a: Bools, right_b: Bools, misses: int = 1) -> Bools:
    """Return which images (N,) nearly all runs of A have wrong and nearly all of B right: all but `misses` (`nearly_all`)."""
    few, many = len(right_a) - nearly_all(len(right_a), misses), nearly_all(len(right_b), misses)
    return np.asarray((right_a.sum(0) <= few) & (right_b.sum(0) >= many))


def false_discoveries(right_a: Bools, right_b: Bools, misses: int = 1) -> float | None:
    """Return which share of the images in `reliably_fixed` runs without a difference would give, at most 1.

    The number found if the runs' labels A and B are dealt out anew, on average over all other ways to do so, over the number
    found; exact, because an image's chance follows from how many runs have it right (hypergeometric). Images that are truly
    fixed add to it, since some deals are nearly the true one: it is on the safe side, and with `misses` = 1 and three runs an
    arm hardly below a half. None with fewer than three runs in an arm, or where no image is found.
    """
    runs_a, runs_b = len(right_a), len(right_b)
    found = int(reliably_fixed(right_a, right_b, misses).sum())
    if min(runs_a, runs_b) < LEAST_RUNS or not found:
        return None
    total = np.arange(runs_a + runs_b + 1)  # runs that have an image right; at most `few` of them may be dealt to A
    few = np.minimum(runs_a - nearly_all(runs_a, misses), total - nearly_all(runs_b, misses))
    chance = scipy.stats.hypergeom.cdf(few, runs_a + runs_b, total, runs_a)
    deals = math.comb(runs_a + runs_b, runs_a)
    others = float(chance[right_a.sum(0) + right_b.sum(0)].sum()) * deals - found
    return min(1.0, others / (deals - 1) / found)


# --- parts of the above


def _error(right_a: Bools, right_b: Bools) -> float:
    return 1 - float(right_a.mean() + right_b.mean()) / 2


@dataclass(frozen=True)
class _Variance:
    """That of a difference of means.

    images: shrinks with the images.  unseen: known, of single runs.  runs: estimated, with `df` degrees of freedom, which takes
    the runs of both arms to differ alike.
    """

    images: float
    unseen: float
    runs: float
    df: int

    def reach(self, tail: float) -> float:
        """Return what the difference is above its expectation with probability `tail`: the parts' quantiles in quadrature."""
        normal, student = scipy.special.ndtri(tail), scipy.special.stdtrit(max(self.df, 1), tail)
        return math.sqrt(normal**2 * (self.images + self.unseen) + student**2 * self.runs)

    def p(self, distance: float) -> float:
        """Return the two-sided p of a difference: twice the tail of which it is the `reach`."""
        highest = min(distance / math.sqrt(self.images + self.unseen), HIGHEST)  # as if the runs had no part
        if self.reach(scipy.special.ndtr(-highest)) <= distance:
            return 2 * float(scipy.special.ndtr(-highest))
        return 2 * float(
            scipy.special.ndtr(-scipy.optimize.brentq(lambda z: self.reach(scipy.special.ndtr(-z)) - distance, 0, highest))
        )


def _needed(variance: _Variance, distance: float, n: int) -> int | None:
    """With how many images, instead of n, `distance` would be the smallest effect; None if with no number."""

    def smallest(share: float) -> float:
        fewer = replace(variance, images=variance.images * share)
        return fewer.reach(TAIL) + fewer.reach(1 - POWER)

    if smallest(0) >= distance:
        return None
    # Squared, as if the runs had no part.
    alone = (scipy.special.ndtri(TAIL) + scipy.special.ndtri(1 - POWER)) ** 2 * variance.images
    return math.ceil(n / float(scipy.optimize.brentq(lambda share: smallest(share) - distance, 0, 2 * distance**2 / alone)))


def _excess(right: Bools) -> float:
    """The variance of the runs' accuracies beyond what follows from runs that err independently of each other."""
    runs, n = right.shape
    between = float(right.mean(1).var(ddof=1))
    share = right.mean(0)
    rest = (runs * float((share * (1 - share)).sum()) / (runs - 1) - n * between) / max(n - 1, 1)
    return max(0.0, float(between - rest / n))


def _disagreement(right: Bools) -> float:
    """How many images one run has right and another wrong, on average over the ordered pairs of runs."""
    runs, hits = len(right), right.sum(0)
    return float((hits * (runs - hits)).sum()) / (runs * (runs - 1))


def _reliable(right_a: Bools, right_b: Bools, misses: int) -> Reliable:
    return Reliable(
        int(reliably_fixed(right_a, right_b, misses).sum()),
        int(reliably_fixed(right_b, right_a, misses).sum()),
        false_discoveries(right_a, right_b, misses),
        false_discoveries(right_b, right_a, misses),
    )


def _ids(ids: Sequence[str], chosen: Bools, share: Integers, margin: Floats) -> tuple[str, ...]:
    """The chosen ids, the highest share first, then the highest margin."""
    order = np.lexsort((-margin, -share))
    return tuple(ids[i] for i in order if chosen[i])


def _right(arm: Sequence[Predictions]) -> Bools:
    return np.stack([p.predicted == p.labels for p in arm])


def _mean_margins(arm: Sequence[Predictions]) -> Floats:
    return np.asarray(np.mean([p.margins for p in arm], 0, dtype=np.float64))


def _rates(arm: Sequence[Predictions]) -> Floats:
    counts = np.mean([confusion_matrix(p) for p in arm], 0)
    totals = counts.sum(1, keepdims=True)
    return np.asarray(counts / np.where(totals, totals, np.nan))


def _ece(arm: Sequence[Predictions]) -> float:
    return sum(calibration(p).ece for p in arm) / len(arm)


# --- may these runs be compared?


def _check_arm(name: str, arm: Sequence[Run]) -> None:
    if not arm:
        raise RunError(f"the arm {name} has no runs; give at least one")
    first, seeds = arm[0], [run.info["seed"] for run in arm]
    for run in arm[1:]:
        recipes = first.info["recipe"], run.info["recipe"]
        keys = [key for key in sorted({*recipes[0], *recipes[1]}) if recipes[0].get(key) != recipes[1].get(key)]
        if keys:
            raise RunError(
                f"the runs of the arm {name} are of different recipes: {first.folder} and {run.folder} differ in "
                f"{', '.join(keys)}; give runs of one recipe as an arm, and another recipe as the other arm"
            )
        if run.left_out != first.left_out:
            raise RunError(
                f"the runs of the arm {name} are of different training images: {first.folder} was trained without "
                f"{len(first.left_out)} images, {run.folder} without {len(run.left_out)} or others; give them as two arms"
            )
    if len(set(seeds)) < len(seeds):
        raise RunError(
            f"the runs of the arm {name} have the seeds {', '.join(map(str, seeds))}: "
            "a seed that comes twice is no second sample; give one run a seed"
        )


def _check_same_data(first: Run, other: Run) -> None:
    was, now = first.info["data"], other.info["data"]
    if first.classes != other.classes:
        what = f"classes or the order of these: {first_apart(first.classes, other.classes)}"
    elif was.get("dev", 0.0) != now.get("dev", 0.0):
        what = f"share held out: {was.get('dev', 0.0)} and {now.get('dev', 0.0)}"
    elif was["hash"] != now["hash"]:
        what = f"data: {was['name']} and {now['name']}, of which the contents differ"
    else:
        return
    raise RunError(
        f"{first.folder} and {other.folder} can't be compared: they differ in their {what}; "
        "train both on the same data, split in the same way"
    )
