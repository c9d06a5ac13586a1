"""Comparisons: formulas against literal second ones and enumerations, intervals against simulated pairs of known difference."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit

from sightline import comparison, mistakes
from sightline.comparison import (
    Comparison,
    class_changes,
    compare,
    compare_predictions,
    difference,
    false_discoveries,
    flips,
    holm,
    mcnemar,
    recipe_difference,
    reliably_fixed,
    run_deviation,
    verdict,
)
from sightline.exceptions import RunError
from sightline.runs import Predictions, Run

Bools = NDArray[np.bool_]
CLASSES = ("cat", "dog", "owl", "yak")


# --- simulated arms, of which the true difference is known


LEVEL, DIFFICULTY, TASTE = 4.0, 2.5, 1.0  # log-odds: of a usual image; between images; between an image's odds in A and in B
POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(101)


def expected_accuracy(level: float, run_sd: float = 0.0) -> float:
    """The mean of expit(level + all that is normal), by Gauss and Hermite's quadrature."""
    deviation = math.sqrt(DIFFICULTY**2 + TASTE**2 + run_sd**2)
    return float((WEIGHTS * expit(level + deviation * POINTS)).sum() / WEIGHTS.sum())


def true_difference(better: float, run_sd: float = 0.0, parts: Sequence[float] = (0.0, 0.0)) -> float:
    """That of two arms of `simulate`, over all images; over all runs, or of those with these parts of their own."""
    half = better / 2
    return expected_accuracy(LEVEL + half + parts[1], run_sd) - expected_accuracy(LEVEL - half + parts[0], run_sd)


def simulate(
    random: np.random.Generator, n: int, runs: int, better: float, run_sd: float, taste: float = TASTE
) -> tuple[Bools, Bools, NDArray[np.float64]]:
    """Two arms (runs, n) with common difficulties of the images, and the runs' own parts of the log-odds (2, runs)."""
    images = LEVEL + DIFFICULTY * random.standard_normal(n)
    arms, parts = [], run_sd * random.standard_normal((2, runs))
    for shift, part in zip((-better / 2, better / 2), parts, strict=True):
        odds = images + shift + taste * random.standard_normal(n) + part[:, None]
        arms.append(random.random((runs, n)) < expit(odds))
    return arms[0], arms[1], parts


def log_odds(points: float) -> float:
    """What a deviation of the accuracy in points is in log-odds, near LEVEL."""
    return points / 100 / ((expected_accuracy(LEVEL + 0.01) - expected_accuracy(LEVEL)) / 0.01)


@pytest.mark.parametrize(
    ("runs", "run_points", "least", "most"),
    [
        *((runs, points, 0.93, 0.97) for runs in (3, 5) for points in (0.5, 1.5)),
        *((runs, 0.0, 0.93, 0.98) for runs in (2, 3, 5)),  # on the safe side: a part of the runs below none can't be seen
        (2, 1.5, 0.91, 0.97),  # one degree of freedom an arm is hardly an estimate
    ],
)
def test_the_interval_of_several_runs_holds_the_true_difference_in_95_of_100_pairs(
    runs: int, run_points: float, least: float, most: float
) -> None:
    """1,000 images let independent runs differ by 0.7 points; run_points is the deviation that they have beyond that."""
    random, run_sd, better = np.random.default_rng(runs), log_odds(run_points), log_odds(1.0)
    truth = true_difference(better, run_sd)
    found = [difference(*simulate(random, 1000, runs, better, run_sd)[:2]) for _ in range(600)]
    assert least <= np.mean([change.low <= truth <= change.high for change in found]) <= most


@pytest.mark.parametrize("run_points", [0.0, 1.0])
def test_the_interval_of_two_checkpoints_holds_their_true_difference_in_95_of_100_pairs(run_points: float) -> None:
    random, held = np.random.default_rng(1), []
    for _ in range(1000):
        a, b, parts = simulate(random, 1000, 1, log_odds(1.0), log_odds(run_points))
        change = difference(a, b)
        truth = true_difference(log_odds(1.0), parts=parts[:, 0])
        held.append(change.low <= truth <= change.high)
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.parametrize(("runs", "run_points"), [(1, 0.0), (1, 0.2), (3, 0.0), (3, 0.1)])
def test_two_arms_of_one_recipe_cannot_be_told_apart(runs: int, run_points: float) -> None:
    """10,000 images, and runs as far apart as they are known to be; single ones even further."""
    random, said = np.random.default_rng(2), []
    for _ in range(300):
        a, b, _ = simulate(random, 10_000, runs, 0.0, log_odds(run_points), taste=0.0)
        said.append(verdict(recipe_difference(a, b), 10_000))
    assert np.mean([line.startswith("cannot tell (smallest effect") for line in said]) >= 0.95


@pytest.mark.parametrize("runs", [1, 5])
def test_the_smallest_effect_is_told_in_80_of_100_pairs(runs: int) -> None:
    random = np.random.default_rng(3)
    smallest = np.mean([difference(*simulate(random, 1000, runs, 0.0, 0.0)[:2]).smallest for _ in range(50)])
    better = brentq(lambda shift: true_difference(shift) - smallest, 0, 5)
    found = [difference(*simulate(random, 1000, runs, better, 0.0)[:2]) for _ in range(600)]
    assert np.mean([change.low > 0 for change in found]) == pytest.approx(0.8, abs=0.05)


# --- formulas


def some_arms(runs_a: int, runs_b: int, n: int = 60, seed: int = 0) -> tuple[Bools, Bools]:
    """Arms with images of all difficulties, some of which are better in B."""
    random = np.random.default_rng([runs_a, runs_b, seed])
    share = random.beta(0.6, 0.4, n)
    better = np.where(random.random(n) < 0.2, 1.0, share)
    return random.random((runs_a, n)) < share, random.random((runs_b, n)) < better


def test_one_run_each_gets_agresti_and_mins_interval() -> None:
    a, b = some_arms(1, 1)
    n, fixed, broken = 60 + 2, int((b & ~a).sum()) + 0.5, int((a & ~b).sum()) + 0.5
    deviation = math.sqrt(fixed + broken - (fixed - broken) ** 2 / n) / n
    found = difference(a, b)
    assert found.value == pytest.approx((fixed - broken) / 60)
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, (fixed - broken) / n, deviation))
    assert found.p == pytest.approx(2 * stats.norm.sf((fixed - broken) / n / deviation))
    assert found.smallest == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * deviation)


def test_runs_that_agree_on_everything_still_leave_room_for_doubt() -> None:
    right = np.ones((1, 30), bool)
    found = difference(right, right)
    assert found.low < -0.04 < 0.04 < found.high
    assert (found.value, found.p, found.needed) == (0, 1, None)


@pytest.mark.parametrize(("runs_a", "runs_b"), [(2, 2), (3, 5)])
def test_the_variance_is_that_of_a_literal_two_way_layout(runs_a: int, runs_b: int) -> None:
    arms = some_arms(runs_a, runs_b, seed=4)
    arms[0][0, :25] = False  # a run of its own, so that the runs' part isn't cut off at zero
    n, part = 60, 0.0
    for right in arms:
        runs, grand, rest = len(right), right.mean(), 0.0
        for k in range(runs):
            for i in range(n):
                rest += (right[k, i] - right[k].mean() - right[:, i].mean() + grand) ** 2
        between = sum((right[k].mean() - grand) ** 2 for k in range(runs)) / (runs - 1)
        part += max(0.0, between - rest / ((runs - 1) * (n - 1)) / n) / runs
    assert part > 0
    half = math.sqrt((1 / runs_a + 1 / runs_b) / 4)  # of the two more images
    changes = [*(arms[1].mean(0) - arms[0].mean(0)), half, -half]
    images, centre = float(np.var(changes)) / (n + 2), float(np.mean(changes))

    def reach(tail: float) -> float:
        return math.hypot(stats.norm.isf(tail) * images**0.5, stats.t.isf(tail, runs_a + runs_b - 2) * part**0.5)

    found = difference(*arms)
    assert (found.low, found.high) == pytest.approx((centre - reach(0.025), min(1, centre + reach(0.025))))
    assert found.smallest == pytest.approx(reach(0.025) + reach(0.2))
    assert reach(found.p / 2) == pytest.approx(abs(centre))


def test_as_many_images_as_needed_tell_the_difference_seen() -> None:
    a, b = some_arms(1, 1, n=400, seed=1)
    unseen = 0.01
    needed = difference(a, b, unseen).needed
    assert needed is not None
    more = [np.resize(right, (1, needed)) for right in (a, b)]
    assert difference(more[0], more[1], unseen).smallest == pytest.approx(difference(a, b).value, rel=0.05)
    assert difference(a, b, 0.1).needed is None  # runs that differ so much hide it whatever the images


@pytest.mark.parametrize("error", [0.05, 0.2])
def test_the_run_deviation_is_that_of_runs_that_disagree_on_as_many_images_as_are_wrong(error: float) -> None:
    """Images that are right in half of the runs, twice as many as are wrong, are such; the number right is then binomial."""
    assert run_deviation(error) == pytest.approx(stats.binom(2 * error * 10_000, 0.5).std() / 10_000)
    assert run_deviation(error, 0.1) == pytest.approx(stats.binom(2 * error * 1000, 0.5).std() / 1000)


def test_a_single_run_deviates_by_what_is_known_of_others() -> None:
    a, b = some_arms(1, 1)
    narrow, wide = difference(a, b), recipe_difference(a, b)
    assert (wide.high - wide.low) ** 2 - (narrow.high - narrow.low) ** 2 == pytest.approx(
        (2 * 1.959964) ** 2 * 2 * run_deviation(1 - (a.mean() + b.mean()) / 2) ** 2, rel=1e-5
    )


@pytest.mark.parametrize("seed", range(3))
def test_mcnemar_counts_the_tails_of_a_fair_coin(seed: int) -> None:
    a, b = some_arms(1, 1, seed=seed)
    fixed, broken = int((b[0] & ~a[0]).sum()), int((a[0] & ~b[0]).sum())
    n = fixed + broken
    tail = sum(math.comb(n, k) for k in range(min(fixed, broken) + 1)) / 2**n
    assert mcnemar(a[0], b[0]) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(a[0], a[0]) == 1.0


def test_holms_correction_is_that_of_a_literal_loop() -> None:
    random = np.random.default_rng(0)
    for p in ([], [0.04], [0.01, 0.01, 0.9], *(random.random(n) ** 4 for n in (2, 5, 12))):
        ranked, expected, largest = sorted(range(len(p)), key=lambda i: p[i]), [0.0] * len(p), 0.0
        for rank, i in enumerate(ranked):
            largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
            expected[i] = largest
        assert holm(list(p)) == pytest.approx(expected)


# --- which images


@pytest.mark.parametrize(("runs_a", "runs_b"), [(1, 1), (2, 3), (1, 4)])
def test_fixed_and_broken_are_means_over_pairs_of_runs(runs_a: int, runs_b: int) -> None:
    a, b = some_arms(runs_a, runs_b)
    pairs = list(itertools.product(range(runs_a), range(runs_b)))
    found = flips(a, b)
    assert found.fixed == pytest.approx(np.mean([sum(not x and y for x, y in zip(a[i], b[j], strict=True)) for i, j in pairs]))
    assert found.broken == pytest.approx(np.mean([sum(x and not y for x, y in zip(a[i], b[j], strict=True)) for i, j in pairs]))
    within = []
    for arm in (a, b):
        ordered = list(itertools.permutations(range(len(arm)), 2))
        if ordered:
            within.append(np.mean([sum(x and not y for x, y in zip(arm[i], arm[j], strict=True)) for i, j in ordered]))
    if within:
        assert (found.churn, found.source) == (pytest.approx(np.mean(within)), "seeds")
    else:
        wrong = (a.size + b.size - a.sum() - b.sum()) / 2
        assert (found.churn, found.source) == (pytest.approx(wrong / 2), "expected disagreement")


@pytest.mark.parametrize(("runs_a", "runs_b"), [(1, 1), (2, 2), (3, 3), (3, 5)])
@pytest.mark.parametrize("misses", [0, 1])
def test_reliably_fixed_images_are_wrong_in_nearly_all_of_a_and_right_in_nearly_all_of_b(
    runs_a: int, runs_b: int, misses: int
) -> None:
    a, b = some_arms(runs_a, runs_b)
    allowed = [misses if runs > 2 else 0 for runs in (runs_a, runs_b)]  # one miss of two would be any image
    expected = []
    for i in range(60):
        expected.append(sum(a[:, i]) <= allowed[0] and sum(~b[:, i]) <= allowed[1])
    assert reliably_fixed(a, b, misses).tolist() == expected
    assert 0 < sum(expected) < 60


@pytest.mark.parametrize(("runs_a", "runs_b"), [(3, 3), (4, 3), (3, 5), (4, 4)])
@pytest.mark.parametrize("misses", [0, 1])
def test_false_discoveries_are_those_of_all_ways_to_deal_out_the_labels(runs_a: int, runs_b: int, misses: int) -> None:
    a, b = some_arms(runs_a, runs_b)
    runs = np.concatenate([a, b])
    found, counts = reliably_fixed(a, b, misses).sum(), []
    for dealt in itertools.combinations(range(runs_a + runs_b), runs_a):
        rest = [k for k in range(runs_a + runs_b) if k not in dealt]
        if dealt != tuple(range(runs_a)):
            counts.append(reliably_fixed(runs[list(dealt)], runs[rest], misses).sum())
    assert false_discoveries(a, b, misses) == pytest.approx(min(1.0, np.mean(counts) / found))


@pytest.mark.parametrize("misses", [0, 1])
def test_all_discoveries_between_runs_of_one_recipe_are_false(misses: int) -> None:
    random, rates = np.random.default_rng(5), []
    for _ in range(30):
        a, b, _ = simulate(random, 5000, 4, 0.0, 0.0, taste=0.0)
        rates.append(false_discoveries(a, b, misses))
    assert np.mean([1.0 if rate is None else rate for rate in rates]) > 0.8  # cut off at 1, so a little below on average


def test_images_that_are_truly_fixed_are_few_false_discoveries() -> None:
    a, b, _ = simulate(np.random.default_rng(6), 2000, 5, 0.0, 0.0, taste=0.0)
    a[:, :100], b[:, :100] = False, True
    for misses, most in ((0, 0.02), (1, 0.2)):
        rate = false_discoveries(a, b, misses)
        assert rate is not None and rate < most


def test_false_discoveries_need_three_runs_an_arm_and_something_found() -> None:
    assert false_discoveries(*some_arms(2, 5)) is None
    assert false_discoveries(np.ones((3, 50), bool), np.ones((3, 50), bool)) is None


def test_the_change_of_a_class_is_that_of_its_images_alone() -> None:
    a, b = some_arms(3, 3, n=300)
    labels = np.random.default_rng(0).integers(0, 3, 300)
    found = class_changes(a, b, labels, CLASSES)
    for label in range(3):
        rows = labels == label
        assert (found[label].name, found[label].n) == (CLASSES[label], rows.sum())
        assert found[label].difference == difference(a[:, rows], b[:, rows])
    assert [change.holm for change in found[:3]] == holm([change.difference.p for change in found[:3] if change.difference])
    assert found[3] == comparison.ClassChange("yak", 0, None, None)


# --- predictions


def said(right: Bools, labels: NDArray[np.int64], seed: int = 0, split: str = "test") -> Predictions:
    """Predictions that are right where `right` (N,) says so."""
    n = len(labels)
    logits = np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)
    logits[np.arange(n), np.where(right, labels, (labels + 1) % 4)] += 8
    return Predictions.from_logits(logits, labels, [f"{split}/{i}" for i in range(n)], CLASSES, split)


def both(runs_a: int, runs_b: int, n: int = 200) -> tuple[list[Predictions], list[Predictions]]:
    a, b = some_arms(runs_a, runs_b, n)
    labels = np.arange(n) % 3
    return [said(row, labels, k) for k, row in enumerate(a)], [said(row, labels, 9 + k) for k, row in enumerate(b)]


def test_a_comparison_of_predictions_holds_what_its_parts_say() -> None:
    a, b = both(3, 4)
    right_a, right_b = some_arms(3, 4, 200)
    found = compare_predictions(a, b)
    assert (found.n, found.runs, found.split) == (200, (3, 4), "test")
    assert found.accuracy == pytest.approx((right_a.mean(), right_b.mean()))
    assert found.difference == difference(right_a, right_b)
    assert found.flips == flips(right_a, right_b)
    assert found.negative_flips == pytest.approx(found.flips.broken / 200)
    assert found.classes == class_changes(right_a, right_b, a[0].labels, CLASSES)
    for one, misses in ((found.reliable, 1), (found.unanimous, 0)):
        assert one == comparison.Reliable(
            int(reliably_fixed(right_a, right_b, misses).sum()),
            int(reliably_fixed(right_b, right_a, misses).sum()),
            false_discoveries(right_a, right_b, misses),
            false_discoveries(right_b, right_a, misses),
        )
    assert found.ece == pytest.approx(tuple(np.mean([mistakes.calibration(p).ece for p in arm]) for arm in (a, b)))
    assert found.checkpoints is None and found.mcnemar is None


def test_two_checkpoints_are_also_judged_by_themselves() -> None:
    a, b = both(1, 1)
    right_a, right_b = some_arms(1, 1, 200)
    found = compare_predictions(a, b)
    assert found.checkpoints == difference(right_a, right_b)
    assert found.mcnemar == mcnemar(right_a[0], right_b[0])
    assert found.difference == recipe_difference(right_a, right_b) != found.checkpoints


def test_the_change_of_the_confusion_matrix_is_in_rates() -> None:
    a, b = both(2, 2)
    found = compare_predictions(a, b).confusion
    for true, predicted in itertools.product(range(3), range(4)):
        rates = [np.mean([p.predicted[p.labels == true] == predicted for p in arm]) for arm in (a, b)]
        assert found[true, predicted] == pytest.approx(rates[1] - rates[0], abs=1e-12)
    assert np.isnan(found[3]).all()


@pytest.mark.parametrize("runs", [1, 3])
def test_fixed_and_broken_ids_come_the_surest_first(runs: int) -> None:
    a, b = both(runs, runs)
    found = compare_predictions(a, b)
    for ids, before, after in ((found.fixed, a, b), (found.broken, b, a)):
        keys = []
        for name in ids:
            i = a[0].ids.index(name)
            share = sum(p.predicted[i] == p.labels[i] for p in after) - sum(p.predicted[i] == p.labels[i] for p in before)
            keys.append((share, sum(float(p.margins[i]) for p in before) - sum(float(p.margins[i]) for p in after)))
        assert keys == sorted(keys, reverse=True)
        assert len(keys) > 2
    assert (len(found.fixed), len(found.broken)) == (found.reliable.fixed, found.reliable.broken)


def test_b_against_a_says_the_opposite() -> None:
    labels = np.arange(500) % 4
    better = [said(np.random.default_rng(k).random(500) < 0.95, labels) for k in range(3)]
    worse = [said(np.random.default_rng(9 + k).random(500) < 0.8, labels) for k in range(3)]
    there, back = compare_predictions(worse, better), compare_predictions(better, worse)
    assert (there.verdict, back.verdict) == ("B is better", "B is worse")
    assert back.difference.value == pytest.approx(-there.difference.value)
    assert (back.fixed, back.broken) == (there.broken, there.fixed)


@pytest.mark.parametrize(("runs_a", "runs_b"), [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_a_verdict_of_single_runs_names_what_it_takes_for_granted(runs_a: int, runs_b: int) -> None:
    labels = np.arange(500) % 4
    worse = [said(np.random.default_rng(k).random(500) < 0.6, labels) for k in range(runs_a)]
    better = [said(np.random.default_rng(9 + k).random(500) < 0.9, labels) for k in range(runs_b)]
    error = 1 - (np.mean([p.predicted == p.labels for p in worse]) + np.mean([p.predicted == p.labels for p in better])) / 2
    given = f", if seeds differ as little as is usual (a standard deviation of {100 * (error / 20_000) ** 0.5:.2f} points)"
    assert compare_predictions(worse, better).verdict == "B is better" + given * (1 in (runs_a, runs_b))
    assert compare_predictions(better, worse).verdict == "B is worse" + given * (1 in (runs_a, runs_b))


def test_a_verdict_that_cannot_be_given_says_what_could_be_told_or_is_needed() -> None:
    a, b = both(1, 1, 19)
    assert compare_predictions(a, b).verdict == "cannot tell: 19 images are too few for a conclusion; at least 20 are needed"
    a, _ = both(1, 1, 400)
    found = compare_predictions(a, a)
    points = 100 * found.difference.smallest
    assert found.verdict == f"cannot tell (smallest effect that could be told: {points:.2f} points)"


@pytest.mark.parametrize(("runs", "n"), [(1, 1), (1, 200), (3, 200)])
def test_a_comparison_becomes_json(runs: int, n: int) -> None:
    found = compare_predictions(*both(runs, runs, n))
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["difference"]["low"] == found.difference.low
    assert read["confusion"][3] == [None] * 4
    assert read["fixed"] == list(found.fixed)
    assert read["classes"][0]["name"] == "cat" and read["classes"][3]["difference"] is None
    assert set(read) == set(Comparison.__dataclass_fields__)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": tuple(f"test/{i}" for i in range(1, 201))}, "images or the order of these: 'test/0' and 'test/1' at place 0"),
        ({"classes": ("cat", "owl", "dog", "yak")}, "classes or the order of these: 'dog' and 'owl' at place 1"),
        ({"classes": CLASSES[:3]}, "'yak' and None at place 3"),
        ({"split": "dev"}, "what they are of: 'test' and 'dev'"),
        ({"labels": np.append((np.arange(199) % 3), 3)}, "labels, first of 'test/199'"),
    ],
)
def test_predictions_of_other_images_are_refused_with_what_differs(changed: dict[str, Any], message: str) -> None:
    a, b = both(2, 2)
    with pytest.raises(RunError, match=message) as caught:
        compare_predictions(a, [b[0], replace(b[1], **changed)])
    assert str(caught.value).startswith("predictions 1 and 4 differ in") and "\n" not in str(caught.value)


def test_an_arm_without_predictions_and_predictions_without_images_are_refused() -> None:
    a, _ = both(1, 1)
    with pytest.raises(RunError, match="the arm B has no predictions"):
        compare_predictions(a, [])
    with pytest.raises(RunError, match="the arm A has no predictions"):
        compare_predictions([], a)
    none = said(np.zeros(0, bool), np.zeros(0, np.int64))
    with pytest.raises(RunError, match="at least one image"):
        compare_predictions([none], [none])


# --- runs


def a_run(name: str, *, seed: int = 0, recipe: str = "quick", epochs: int = 3, **data: Any) -> Run:
    described = {"name": "blobs", "hash": "h1", "dev": 0.1, "classes": list(CLASSES), **data}
    return Run(Path(name), {"data": described, "seed": seed, "recipe": {"name": recipe, "epochs": epochs}})


class Data:
    """Stands for the data set of the runs."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The runs whose test set was opened, and on which data; run number k says what row k of its arm does."""
    a, b = both(2, 2)
    answers = {f"a{k}": p for k, p in enumerate(a)} | {f"b{k}": p for k, p in enumerate(b)}
    calls: list[tuple[str, Any]] = []

    def open_test(run: Run, data: Any) -> Predictions:
        calls.append((run.folder.name, data))
        return answers[run.folder.name]

    monkeypatch.setattr(comparison, "open_test", open_test)
    monkeypatch.setattr(Run, "dataset", lambda run: "loaded")
    return calls


def test_runs_are_compared_on_the_test_images(opened: list[tuple[str, Any]]) -> None:
    data: Any = Data()
    arms = [[a_run(f"{arm}{k}", seed=k, recipe=arm) for k in range(2)] for arm in "ab"]
    assert compare(*arms, data).to_dict() == compare_predictions(*both(2, 2)).to_dict()
    assert opened == [(name, data) for name in ("a0", "a1", "b0", "b1")]


def test_a_run_alone_is_an_arm_and_its_data_are_loaded(opened: list[tuple[str, Any]]) -> None:
    a, b = both(2, 2)
    assert compare(a_run("a0"), [a_run("b1")]).to_dict() == compare_predictions(a[:1], b[1:]).to_dict()
    assert opened == [("a0", "loaded"), ("b1", "loaded")]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [a_run("b0")], "the arm A has no runs"),
        (a_run("a0"), [], "the arm B has no runs"),
        (a_run("a0"), a_run("b0", hash="h2"), "a0 and b0 can't be compared.*data: blobs and blobs, of which the contents differ"),
        (a_run("a0"), a_run("b0", dev=0.2, hash="h2"), "a0 and b0.*share held out: 0.1 and 0.2"),
        (a_run("a0"), a_run("b0", classes=["cat", "owl", "dog", "yak"]), "order of these: 'dog' and 'owl' at place 1"),
        ([a_run("a0"), a_run("a1", seed=1, epochs=4)], a_run("b0"), "arm A.*different recipes: a0 and a1 differ in epochs"),
        (a_run("a0"), [a_run("b0"), a_run("b1", seed=1, recipe="other")], "arm B.*b0 and b1 differ in name"),
        ([a_run("a0", seed=7), a_run("a1", seed=7)], a_run("b0"), "the arm A have the seeds 7, 7"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused_before_any_test_is_opened(
    a: Run | Sequence[Run], b: Run | Sequence[Run], message: str, opened: list[tuple[str, Any]]
) -> None:
    with pytest.raises(RunError, match=message) as caught:
        compare(a, b)
    assert opened == [] and "\n" not in str(caught.value)
