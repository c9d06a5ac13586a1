"""Predictions → mistakes: the highest losses, what is confused with what, accuracy a class, calibration. NumPy only."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .exceptions import RunError
from .runs import Predictions, write_json, writing

COLUMNS = ("id", "true", "predicted", "confidence", "probability_true", "loss", "margin")  # of a table of mistakes


class Accuracy(NamedTuple):
    """`correct` of `n` images. accuracy: the fraction, None without images. low, high: Wilson's 95 % interval."""

    correct: int
    n: int
    accuracy: float | None
    low: float
    high: float


class Confusion(NamedTuple):
    """`count` images of class `true` were called `predicted`: `share` of that true class's images."""

    true: str
    predicted: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    share: float


@dataclass(frozen=True)
class Calibration:
    """How far the confidences may be believed, in B bins of equal width over 0–1.

    ece: expected calibration error, a fraction.  counts: (B,) int64.  confidence, accuracy: (B,) float64, the means of
    each bin, NaN where it is empty.
    """

    ece: float
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def confidences(predictions: Predictions) -> NDArray[np.float64]:
    """Return the probability of the predicted class, (N,)."""
    return predictions.probabilities[np.arange(len(predictions)), predictions.predicted].astype(np.float64)


def top_losses(predictions: Predictions, n: int | None = None) -> NDArray[np.int64]:
    """Return the indices of the `n` images (or all) with the highest loss, highest first, whether right or not."""
    return np.argsort(-predictions.losses, kind="stable")[:n]


def top_mistakes(predictions: Predictions, n: int | None = None) -> NDArray[np.int64]:
    """Return the indices of the `n` misclassified images (or all of them) with the highest loss, highest first."""
    order = top_losses(predictions)
    wrong: NDArray[np.int64] = order[predictions.predicted[order] != predictions.labels[order]]
    return wrong[:n]


def confusion_matrix(predictions: Predictions) -> NDArray[np.int64]:
    """Return counts (K, K): row the true class, column the predicted one."""
    k = len(predictions.classes)
    return np.bincount(predictions.labels * k + predictions.predicted, minlength=k * k).reshape(k, k)


def most_confused(predictions: Predictions, n: int | None = 10) -> list[Confusion]:
    """Return the `n` most frequent pairs of a true class and another that it was taken for, most frequent first."""
    matrix = confusion_matrix(predictions)
    totals, names = matrix.sum(1), predictions.classes
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[: np.count_nonzero(matrix)][:n]
    pairs = zip(*np.unravel_index(order, matrix.shape), strict=True)
    return [Confusion(names[i], names[j], int(matrix[i, j]), float(matrix[i, j] / totals[i])) for i, j in pairs]


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion; (0, 1) for n = 0, where nothing is known.

    E. B. Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953, without continuity correction.
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def newcombe(successes: tuple[int, int], n: tuple[int, int], confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the difference of two independent proportions, the first minus the second.

    R. G. Newcombe 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I, method 10: from the two
    Wilson intervals. (-1, 1) where either n is 0.
    """
    if not all(n):
        return -1.0, 1.0
    p, q = successes[0] / n[0], successes[1] / n[1]
    (low_p, high_p), (low_q, high_q) = (wilson(k, m, confidence) for k, m in zip(successes, n, strict=True))
    return p - q - ((p - low_p) ** 2 + (high_q - q) ** 2) ** 0.5, p - q + ((high_p - p) ** 2 + (q - low_q) ** 2) ** 0.5


def accuracy(predictions: Predictions) -> Accuracy:
    """Return the accuracy over all images."""
    return _accuracy(int((predictions.predicted == predictions.labels).sum()), len(predictions))


def per_class(predictions: Predictions) -> dict[str, Accuracy]:
    """Return the accuracy of each true class, in the order of the classes."""
    matrix = confusion_matrix(predictions)
    counts = zip(predictions.classes, matrix.diagonal().tolist(), matrix.sum(1).tolist(), strict=True)
    return {name: _accuracy(correct, n) for name, correct, n in counts}


def _accuracy(correct: int, n: int) -> Accuracy:
    return Accuracy(correct, n, correct / n if n else None, *wilson(correct, n))


def calibration(predictions: Predictions, bins: int = 15) -> Calibration:
    """Return the reliability of the confidences and their expected calibration error.

    Guo et al. 2017 (https://arxiv.org/abs/1706.04599), equations 1 to 5: bin m holds the confidences in
    ((m − 1)/bins, m/bins].
    """
    confidence = confidences(predictions)
    correct = predictions.predicted == predictions.labels
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = np.where(counts, counts, np.nan)
    sure = np.bincount(place, confidence, bins) / filled
    right = np.bincount(place, correct, bins) / filled
    ece = float(np.nansum(counts * np.abs(sure - right)) / max(len(predictions), 1))
    return Calibration(ece, counts, sure, right)


def table(predictions: Predictions, n: int | None = None) -> list[dict[str, Any]]:
    """Return one row a mistake, highest loss first, with the keys of `COLUMNS`; loss in nats, margin in logits."""
    p = predictions
    chosen = top_mistakes(p, n)
    columns = (
        [p.ids[i] for i in chosen],
        [p.classes[label] for label in p.labels[chosen]],
        [p.classes[label] for label in p.predicted[chosen]],
        confidences(p)[chosen].tolist(),
        p.probabilities[chosen, p.labels[chosen]].tolist(),
        p.losses[chosen].tolist(),
        p.margins[chosen].tolist(),
    )
    return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the rows of `table` as .csv, .json or .parquet. Raises RunError for any other ending or an unwritable place."""
    if path.suffix == ".json":
        write_json(path, rows)
    elif path.suffix == ".csv":
        with writing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        with writing(path) as part:
            pq.write_table(pa.table({key: [row[key] for row in rows] for key in COLUMNS}), part)
    else:
        raise RunError(f"cannot write a table as '{path.name}'; end its name with .csv, .json or .parquet")
