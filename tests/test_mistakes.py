"""Every figure is compared with SciPy or with a literal loop over the images."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import binomtest, false_discovery_control

from sightline import mistakes
from sightline.exceptions import DataError, RunError
from sightline.runs import Predictions

CLASSES = ("cat", "dog", "owl", "yak")


def make(n: int = 400, seed: int = 0) -> Predictions:
    """Predictions of `n` images; no image is of the class "yak"."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 4)).astype(np.float32) * 2
    logits[np.arange(n), labels] += 2
    return Predictions.from_logits(logits, labels, [f"test/{i}" for i in range(n)], CLASSES, "test")


@pytest.mark.parametrize("n", [1, 2, 7, 100, 10_000])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_interval_is_scipys(n: int, confidence: float) -> None:
    for successes in {0, 1, n // 3, n - 1, n}:
        expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
        assert mistakes.wilson(successes, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_nothing_is_known_without_images() -> None:
    assert mistakes.wilson(0, 0) == (0.0, 1.0)
    assert mistakes.per_class(make())["yak"] == mistakes.Accuracy(0, 0, None, 0.0, 1.0)


def test_confusion_matrix_counts_pairs() -> None:
    predictions = make()
    expected = np.zeros((4, 4), int)
    for true, predicted in zip(predictions.labels, predictions.predicted, strict=True):
        expected[true, predicted] += 1
    np.testing.assert_array_equal(mistakes.confusion_matrix(predictions), expected)


def test_accuracy_a_class_counts_that_class_only() -> None:
    predictions = make()
    for i, name in enumerate(CLASSES[:3]):
        hits = [predictions.predicted[j] == i for j in range(len(predictions)) if predictions.labels[j] == i]
        interval = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
        expected = (sum(hits), len(hits), sum(hits) / len(hits), interval.low, interval.high)
        assert mistakes.per_class(predictions)[name] == pytest.approx(expected)


def test_accuracy_is_over_all_images() -> None:
    predictions = make()
    hits = sum(a == b for a, b in zip(predictions.labels, predictions.predicted, strict=True))
    assert mistakes.accuracy(predictions)[:3] == (hits, 400, hits / 400)


def test_most_confused_pairs_come_most_frequent_first_with_their_share() -> None:
    predictions = make()
    pairs: dict[tuple[int, int], int] = {}
    for true, predicted in zip(predictions.labels.tolist(), predictions.predicted.tolist(), strict=True):
        if true != predicted:
            pairs[true, predicted] = pairs.get((true, predicted), 0) + 1
    expected = [
        (CLASSES[i], CLASSES[j], count, count / int((predictions.labels == i).sum()))
        for (i, j), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    ]
    assert mistakes.most_confused(predictions, None) == expected
    assert mistakes.most_confused(predictions, 3) == expected[:3]


def test_top_losses_are_of_all_images_and_top_mistakes_of_wrong_ones() -> None:
    predictions = make()
    order = sorted(range(400), key=lambda i: -predictions.losses[i])
    wrong = [i for i in order if predictions.predicted[i] != predictions.labels[i]]
    assert mistakes.top_losses(predictions, 150).tolist() == order[:150]
    assert mistakes.top_mistakes(predictions).tolist() == wrong
    assert mistakes.top_mistakes(predictions, 5).tolist() == wrong[:5]
    assert order[: len(wrong)] != wrong  # some right answers cost more than some wrong ones: the two lists differ


def test_calibration_is_that_of_a_literal_loop() -> None:
    predictions, bins = make(), 15
    found = mistakes.calibration(predictions, bins)
    expected = 0.0
    for m in range(bins):
        members = [i for i in range(400) if m / bins < float(predictions.probabilities[i].max()) <= (m + 1) / bins]
        assert found.counts[m] == len(members)
        if not members:
            assert np.isnan(found.accuracy[m]) and np.isnan(found.confidence[m])
            continue
        right = sum(predictions.predicted[i] == predictions.labels[i] for i in members) / len(members)
        sure = sum(float(predictions.probabilities[i].max()) for i in members) / len(members)
        assert (found.accuracy[m], found.confidence[m]) == pytest.approx((right, sure))
        expected += len(members) / 400 * abs(right - sure)
    assert found.ece == pytest.approx(expected)


def test_a_model_that_is_always_right_and_sure_is_calibrated() -> None:
    labels = np.array([0, 1, 2])
    predictions = Predictions.from_logits(np.eye(4, dtype=np.float32)[labels] * 200, labels, "abc", CLASSES, "test")
    assert mistakes.calibration(predictions).ece == 0
    assert mistakes.calibration(predictions).counts[-1] == 3
    assert mistakes.table(predictions) == [] and mistakes.most_confused(predictions) == []


def test_table_has_one_row_a_mistake_by_name() -> None:
    logits = np.array([[2, 1, 0, 0], [0, 3, 0, 0], [0, 0, 5, 0]], np.float32)
    predictions = Predictions.from_logits(logits, np.array([1, 1, 0]), ("a", "b", "c"), CLASSES, "test")
    owl, cat = mistakes.table(predictions)
    softmax = np.exp(logits[2]) / np.exp(logits[2]).sum()
    assert owl == {
        "id": "c",
        "true": "cat",
        "predicted": "owl",
        "confidence": pytest.approx(softmax[2]),
        "probability_true": pytest.approx(softmax[0]),
        "loss": pytest.approx(-np.log(softmax[0])),
        "margin": pytest.approx(5),
    }
    assert tuple(owl) == mistakes.COLUMNS
    assert (cat["id"], cat["true"], cat["predicted"], cat["margin"]) == ("a", "dog", "cat", pytest.approx(1))


@pytest.mark.parametrize("n", [0, 5])
def test_written_tables_read_back_the_same(tmp_path: Path, n: int) -> None:
    rows = mistakes.table(make(), n)
    for ending in ("csv", "json", "parquet"):
        mistakes.write_table(rows, tmp_path / f"table.{ending}")
    assert json.loads((tmp_path / "table.json").read_text()) == rows
    assert pq.read_table(tmp_path / "table.parquet").to_pylist() == rows
    with (tmp_path / "table.csv").open(newline="") as file:
        found = [[row[:3], [float(value) for value in row[3:]]] for row in list(csv.reader(file))[1:]]
    assert found == [[list(row.values())[:3], list(row.values())[3:]] for row in rows]


def test_a_table_of_an_unknown_kind_is_an_error_that_names_the_kinds(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"table\.xlsx.*\.csv, \.json or \.parquet"):
        mistakes.write_table([], tmp_path / "table.xlsx")
    assert not list(tmp_path.iterdir())


def test_newcombe_gives_the_published_example() -> None:
    """Newcombe 1998, table II, method 10: 56 of 70 against 48 of 80."""
    np.testing.assert_allclose(mistakes.newcombe((56, 48), (70, 80)), (0.0524, 0.3339), atol=5e-5)
    np.testing.assert_allclose(mistakes.newcombe((48, 56), (80, 70)), (-0.3339, -0.0524), atol=5e-5)
    assert mistakes.newcombe((0, 3), (0, 5)) == (-1.0, 1.0)


# --- mistakes by kind


def seeds_of(runs: int, n: int = 300, seed: int = 0) -> list[Predictions]:
    """Runs that agree on most images; the classes 0 and 1 look alike; the first 12 labels are wrong."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 4, n)
    alike = np.where((truth < 2) & (random.random(n) < 0.4), 1 - truth, truth)
    centre = 3.0 * np.eye(4)[alike] + 1.2 * random.normal(size=(n, 4))
    labels = np.where(np.arange(n) < 12, (truth + 2) % 4, truth)
    logits = [(centre + 0.5 * random.normal(size=(n, 4))).astype(np.float32) for _ in range(runs)]
    return [Predictions.from_logits(z, labels, [f"dev/{i}" for i in range(n)], CLASSES, "dev") for z in logits]


def features_of(predictions: Predictions, seed: int = 0) -> np.ndarray:
    """Features (N, 6) that lie by predicted class; the last 5 images lie alone."""
    random = np.random.default_rng(seed)
    features = np.eye(6)[predictions.predicted] + 0.1 * random.normal(size=(len(predictions), 6))
    features[-5:] = -2 * np.eye(6)[:5] - 0.5
    return features


def literal_confident_class(label: int, row: np.ndarray, thresholds: list[float]) -> int:
    sure = [(float(p), -j) for j, p in enumerate(row) if p >= thresholds[j]]
    return -max(sure)[1] if sure else label


def literal_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> list[float]:
    own = [[float(row[j]) for row, label in zip(probabilities, labels, strict=True) if label == j] for j in range(4)]
    return [sum(values) / len(values) if values else np.inf for values in own]


def literal_pairs(labels: np.ndarray, taken_for: np.ndarray, stable: np.ndarray) -> set[tuple[int, int]]:
    p = {}
    for i, j in itertools.combinations(range(4), 2):
        ways = []
        for a, b in ((i, j), (j, i)):
            targets = [t for y, t, s in zip(labels, taken_for, stable, strict=True) if s and y == a]
            chance = sum(labels == b) / sum(labels != a)
            ways.append(binomtest(targets.count(b), len(targets), chance, "greater").pvalue if targets else 1.0)
        p[i, j] = max(ways)
    ranked, chosen = sorted(p, key=lambda pair: p[pair]), set()
    for rank, pair in enumerate(ranked, 1):  # Benjamini & Hochberg: all up to the last that is small enough
        if p[pair] <= mistakes.PAIR_Q * rank / len(ranked):
            chosen = set(ranked[:rank])
    return chosen


@pytest.mark.parametrize("runs", [1, 2, 5])
@pytest.mark.parametrize("with_features", [False, True])
def test_kinds_of_mistakes_are_those_of_a_literal_loop(runs: int, with_features: bool) -> None:
    predictions = seeds_of(runs)
    labels, n, k = predictions[0].labels, 300, 7
    features = features_of(predictions[0]) if with_features else None
    found = mistakes.kinds(predictions, features, neighbours=k)

    mean = np.mean([p.probabilities.astype(float) for p in predictions], 0)
    thresholds = literal_thresholds(labels, mean)
    wrong = [sum(int(p.predicted[i] != labels[i]) for p in predictions) for i in range(n)]
    least = runs - 1 if runs > 2 else runs
    taken_for = np.array(labels)
    for i in range(n):
        votes = Counter(int(p.predicted[i]) for p in predictions if p.predicted[i] != labels[i])
        if votes:
            taken_for[i] = max(votes, key=lambda j: (votes[j], mean[i, j]))
    pairs = literal_pairs(labels, taken_for, np.array(wrong) >= least)
    distances = cdist(features, features, "cosine") if features is not None else None
    nearest = [sorted(row[j] for j in range(n) if j != i)[0] for i, row in enumerate(distances)] if with_features else []
    for i in range(n):
        suspected = literal_confident_class(int(labels[i]), mean[i], thresholds)
        suspect, outlier = suspected != labels[i], False
        if distances is not None:
            near = sorted((j for j in range(n) if j != i), key=lambda j: distances[i, j])[:k]
            around = [int(labels[j]) for j in near]
            suspect = suspect and around.count(suspected) > around.count(int(labels[i]))
            low, high = np.percentile(nearest, [25, 75])
            outlier = nearest[i] > high + 3 * (high - low)
        if wrong[i] == 0:
            expected = "right"
        elif wrong[i] < least:
            expected = "coin-flip"
        elif suspect:
            expected = "label-suspect"
        elif tuple(sorted((int(labels[i]), int(taken_for[i])))) in pairs:
            expected = "ambiguous"
        else:
            expected = "outlier" if outlier else "unexplained"
        assert (found.kinds[i], found.suspected[i]) == (expected, suspected), i
    assert found.wrong.tolist() == wrong
    assert found.taken_for.tolist() == taken_for.tolist()
    assert set(found.pairs) == pairs == {(0, 1)}
    assert found.stable.tolist() == [count >= least for count in wrong]
    assert found.counts == {kind: found.kinds.tolist().count(kind) for kind in mistakes.KINDS}
    assert sum(found.counts[kind] > 0 for kind in mistakes.KINDS) >= 4


def test_wrong_labels_are_the_suspects() -> None:
    """Sure and right runs, 12 labels of 300 wrong: those and no others."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, 300)
    labels = np.where(np.arange(300) < 12, (truth + 1) % 4, truth)
    logits = (6 * np.eye(4)[truth] + 0.3 * random.normal(size=(300, 4))).astype(np.float32)
    predictions = Predictions.from_logits(logits, labels, [f"dev/{i}" for i in range(300)], CLASSES, "dev")
    for features in (None, features_of(predictions)):
        assert np.flatnonzero(mistakes.kinds([predictions] * 3, features).kinds == "label-suspect").tolist() == list(range(12))


def test_neighbours_that_carry_the_label_acquit_it() -> None:
    predictions = seeds_of(3)
    alone = mistakes.kinds(predictions).kinds == "label-suspect"
    by_label = np.eye(4)[predictions[0].labels] + 0.01 * np.random.default_rng(0).normal(size=(300, 4))
    assert alone.sum() >= 10
    assert not (mistakes.kinds(predictions, by_label).kinds == "label-suspect").any()


def test_images_that_lie_alone_are_outliers_unless_something_else_explains_them() -> None:
    random = np.random.default_rng(1)
    labels = np.arange(200) % 4
    seen = np.where(np.arange(200) < 190, labels, (labels + 1) % 4)
    logits = (np.eye(4)[seen] + 0.1 * random.normal(size=(200, 4))).astype(np.float32)
    logits[190:] *= 0.1  # not sure enough to accuse the label
    predictions = Predictions.from_logits(logits, labels, [f"dev/{i}" for i in range(200)], CLASSES, "dev")
    features = 5 * np.eye(8)[labels] + random.normal(size=(200, 8)) * 0.2
    features[195:] = -np.eye(8)[:5]
    found = mistakes.kinds([predictions], features).kinds
    assert found[195:].tolist() == ["outlier"] * 5
    assert found[190:195].tolist() == ["unexplained"] * 5


def test_mistakes_at_random_make_no_pair_ambiguous() -> None:
    named = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        labels = random.choice(5, 500, p=[0.5, 0.2, 0.1, 0.1, 0.1])  # classes of unequal size draw unequal mistakes
        mistaken = random.random(500) < 0.3
        others = random.permutation(labels)
        for i in np.flatnonzero(mistaken):
            others[i] = random.choice(labels[labels != labels[i]])
        named += bool(mistakes.ambiguous_pairs(labels, others, mistaken, 5))
    assert named <= 5


def test_two_classes_are_no_ambiguous_pair() -> None:
    labels = np.arange(100) % 2
    assert mistakes.ambiguous_pairs(labels, 1 - labels, np.arange(100) < 60, 2) == ()
    assert mistakes.ambiguous_pairs(labels, 1 - labels, np.arange(100) < 60, 4) == ()


@pytest.mark.parametrize("n", [57, 4200])  # in one block, and in two
def test_nearest_neighbours_are_those_of_a_full_sort(n: int) -> None:
    features = np.random.default_rng(0).normal(size=(n, 5))
    near, distances = mistakes.nearest_neighbours(features, 4)
    for i in (0, 7, n - 2, n - 1):
        expected = cdist(features[i : i + 1], features, "cosine")[0]
        expected[i] = np.inf
        assert near[i].tolist() == expected.argsort(kind="stable")[:4].tolist()
        np.testing.assert_allclose(distances[i], np.sort(expected)[:4], atol=1e-6)


def test_features_without_a_direction_are_at_distance_1_from_all() -> None:
    features = np.eye(5)
    features[2] = 0
    near, distances = mistakes.nearest_neighbours(features, 4)
    assert (distances[2] == 1).all() and sorted(near[2]) == [0, 1, 3, 4]


def test_confident_classes_are_cleanlabs() -> None:
    count = pytest.importorskip("cleanlab.count", reason="cleanlab is optional: pip install cleanlab")
    predictions = seeds_of(1)[0]
    labels, probabilities = predictions.labels, predictions.probabilities.astype(np.float64)
    found = mistakes.confident_classes(labels, probabilities)
    thresholds = np.array(literal_thresholds(labels, probabilities))
    np.testing.assert_allclose(count.get_confident_thresholds(labels, probabilities), thresholds)
    sure = probabilities.argmax(1) == np.where(probabilities >= thresholds, probabilities, -1).argmax(1)
    # Where the most probable class is not confident, cleanlab takes it nonetheless if two others are; the paper doesn't.
    assert sure.mean() > 0.8
    _, suspects = count.compute_confident_joint(labels, probabilities, calibrate=False, return_indices_of_off_diagonals=True)
    assert {i for i in suspects if sure[i]} == set(np.flatnonzero((found != labels) & sure).tolist())
    assert len(suspects) > 10


@pytest.mark.parametrize(
    ("features", "neighbours", "message"),
    [
        (np.ones((299, 4)), 10, r"shape \(299, 4\) don't fit 300 images"),
        (np.ones(300), 10, r"shape \(300,\) don't fit 300 images"),
        (np.full((300, 4), np.nan), 10, "not finite"),
        (np.ones((300, 4)), 300, "300 images have no 300 neighbours"),
        (np.ones((300, 4)), 0, "300 images have no 0 neighbours"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: np.ndarray, neighbours: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        mistakes.kinds(seeds_of(2), features, neighbours)


def test_kinds_of_no_runs_or_of_different_images_are_refused() -> None:
    with pytest.raises(RunError, match="no predictions"):
        mistakes.kinds([])
    with pytest.raises(RunError, match="predictions 1 and 2 differ in their images"):
        mistakes.kinds([seeds_of(1)[0], seeds_of(1, 200)[0]])


@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_false_discovery_rates_are_scipys(n: int) -> None:
    p = np.round(np.random.default_rng(n).uniform(size=n) ** 3, 2)  # with ties and zeros
    expected = false_discovery_control(p) if n else p
    np.testing.assert_allclose(mistakes.false_discovery_rates(p), expected, rtol=1e-12)
