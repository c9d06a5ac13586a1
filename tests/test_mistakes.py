"""Every figure is compared with SciPy or with a literal loop over the images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from sightline import mistakes
from sightline.exceptions import RunError
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
