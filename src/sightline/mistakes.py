"""Predictions → mistakes: the highest losses, what is confused with what, accuracy a class, calibration, kinds of mistakes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .exceptions import DataError, RunError
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


# --- mistakes by kind, over several runs

KINDS = ("right", "coin-flip", "label-suspect", "ambiguous", "outlier", "unexplained")
NEIGHBOURS = 10
PAIR_Q = 0.05  # share of false pairs among those called ambiguous
FENCE = 3.0  # quartile ranges above the upper quartile: Tukey's "far out"


@dataclass(frozen=True)
class Kinds:
    """What kind of mistake each of N images is, over K runs of one recipe.

    kinds: (N,) of KINDS, the first that applies.  wrong: (N,) int64, how many runs are wrong about it.  taken_for: (N,) int64,
    the class that most of the wrong runs see, or its label where none is wrong.  suspected: (N,) int64, what `confident_classes`
    sees.  pairs: of classes, from `ambiguous_pairs`.
    """

    kinds: NDArray[np.str_]
    wrong: NDArray[np.int64]
    taken_for: NDArray[np.int64]
    suspected: NDArray[np.int64]
    pairs: tuple[tuple[int, int], ...]

    @property
    def stable(self) -> NDArray[np.bool_]:
        """Return which images are wrong in nearly all runs, whatever their kind (N,)."""
        return np.asarray((self.kinds != "right") & (self.kinds != "coin-flip"))

    @property
    def counts(self) -> dict[str, int]:
        """How many images are of each kind."""
        return {kind: int((self.kinds == kind).sum()) for kind in KINDS}


def kinds(predictions: Sequence[Predictions], features: NDArray[Any] | None = None, neighbours: int = NEIGHBOURS) -> Kinds:
    """Sort the mistakes of K runs of one recipe by what they may come from.

    right            no run is wrong
    coin-flip        some runs are wrong, but not nearly all (`nearly_all`): another seed may repair it
    label-suspect    `confident_classes` sees another class; with `features`, more neighbours carry that one than the label, too
    ambiguous        its label and what it is taken for are a pair of `ambiguous_pairs`
    outlier          with `features`: even its nearest neighbour is far, by FENCE of the distances of all images
    unexplained      the rest

    predictions: of images that no run was trained on: confident learning needs that.  features: (N, D), such as a model's pooled
    features of the same images; the `neighbours` nearest by cosine are asked. One run shows no coin-flips: all its mistakes
    count as stable. Raises RunError where the predictions are not of the same images, DataError for features that don't fit.
    """
    same_images(predictions)
    labels = predictions[0].labels
    wrong = np.sum([p.predicted != labels for p in predictions], 0)
    stable = wrong >= nearly_all(len(predictions))
    probabilities = np.asarray(np.mean([p.probabilities for p in predictions], 0, dtype=np.float64))
    taken_for = np.where(wrong > 0, _wrong_votes(predictions, probabilities).argmax(1), labels)
    suspected = confident_classes(labels, probabilities)
    pairs = ambiguous_pairs(labels, taken_for, stable, len(predictions[0].classes))
    suspect, outlier = suspected != labels, np.zeros(len(labels), bool)
    if features is not None:
        agree, outlier = _neighbours_say(labels, suspected, features, neighbours)
        suspect &= agree
    confused = np.zeros((len(predictions[0].classes),) * 2, bool)
    for i, j in pairs:
        confused[i, j] = confused[j, i] = True
    found = np.select([wrong == 0, ~stable, suspect, confused[labels, taken_for], outlier], KINDS[:-1], KINDS[-1])
    return Kinds(found, wrong, taken_for, suspected, pairs)


def nearly_all(runs: int, misses: int = 1) -> int:
    """Return how many of the runs nearly all are: all but `misses` of three or more, but every one of two, or the only one."""
    return runs - misses if runs > 2 else runs


def confident_classes(labels: NDArray[np.int64], probabilities: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the class (N,) that confident learning takes each image for; its label where it is confident of none.

    Northcutt, Jiang & Chuang 2021 (https://arxiv.org/abs/1911.00068), equation 1: the most probable of the classes whose
    probability is at least that class's threshold, its mean over the images labelled so. Those that differ from the label are
    the off-diagonal of the confident joint: suspects.  probabilities: (N, C), of a model that hasn't seen the images.
    """
    hot = labels[:, None] == np.arange(probabilities.shape[1])
    counts = hot.sum(0)
    sums = (probabilities * hot).sum(0, dtype=np.float64)
    thresholds = np.where(counts, sums / np.maximum(counts, 1), np.inf)  # of a class without images nothing is known
    sure = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where(sure.max(1) >= 0, sure.argmax(1), labels)


def ambiguous_pairs(
    labels: NDArray[np.int64], taken_for: NDArray[np.int64], mistakes: NDArray[np.bool_], classes: int
) -> tuple[tuple[int, int], ...]:
    """Return the pairs of classes (i < j) that are confused both ways more often than chance would.

    By chance a mistake falls on another class in proportion to that class's images. A pair's p is the larger of the binomial
    ones of its two directions, since both are claimed; pairs are chosen by Benjamini & Hochberg's q ≤ PAIR_Q (1995,
    https://doi.org/10.1111/j.2517-6161.1995.tb02031.x). labels, taken_for, mistakes: (N,); classes: how many there are. With
    fewer than three classes there is no other pair to stand out from, so none is returned.
    """
    from scipy.special import bdtrc

    counts = np.bincount(labels, minlength=classes)
    if np.count_nonzero(counts) < 3:
        return ()
    matrix = np.bincount(labels[mistakes] * classes + taken_for[mistakes], minlength=classes**2).reshape(classes, classes)
    chance = counts / (len(labels) - counts)[:, None]  # the diagonal is not used
    p = bdtrc(matrix - 1, matrix.sum(1, keepdims=True), np.minimum(chance, 1))  # of so many confusions or more
    rows, columns = np.triu_indices(classes, 1)
    q = false_discovery_rates(np.maximum(p, p.T)[rows, columns])
    return tuple((int(i), int(j)) for i, j in zip(rows[q <= PAIR_Q], columns[q <= PAIR_Q], strict=True))


def false_discovery_rates(p: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return Benjamini & Hochberg's q-values (N,) of p-values (N,).

    As scipy.stats.false_discovery_control, which takes a second to import.
    """
    order = np.argsort(-p)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1))
    return q


def nearest_neighbours(features: NDArray[Any], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each image's `k` nearest others by cosine distance, nearest first: indices (N, k) and distances (N, k).

    features: (N, D) with N > k; a row of zeros is at distance 1 from all. Exact, in float32, a block of rows at a time.
    """
    rows = features.astype(np.float32)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    n, block = len(unit), max(1, 2**24 // len(unit))  # at most 64 MiB of distances
    near, far = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    for start in range(0, n, block):
        distances = 1 - unit[start : start + block] @ unit.T
        these = np.arange(len(distances))
        distances[these, start + these] = np.inf  # nobody is a neighbour of their own
        chosen = np.argpartition(distances, k - 1, 1)[:, :k]
        order = np.take_along_axis(distances, chosen, 1).argsort(1, kind="stable")
        near[start : start + block] = np.take_along_axis(chosen, order, 1)
        far[start : start + block] = np.take_along_axis(distances, near[start : start + block], 1)
    return near, far


def same_images(predictions: Sequence[Predictions]) -> None:
    """Raise RunError unless all predictions are of the same images (at least one) in one order, with equal labels and classes."""
    if not predictions or not len(predictions[0]):
        raise RunError("there are no predictions to work with; give those of at least one run, of at least one image")
    first = predictions[0]
    for number, other in enumerate(predictions[1:], 2):
        if other.classes != first.classes:
            what = f"their classes or the order of these: {first_apart(first.classes, other.classes)}"
        elif other.split != first.split:
            what = f"what they are of: '{first.split}' and '{other.split}'"
        elif other.ids != first.ids:
            what = f"their images or the order of these: {first_apart(first.ids, other.ids)}"
        elif (other.labels != first.labels).any():
            what = f"their labels, first of '{first.ids[int(np.flatnonzero(other.labels != first.labels)[0])]}'"
        else:
            continue
        raise RunError(f"predictions 1 and {number} differ in {what}; use runs on the same data, split in the same way")


def first_apart(names: Sequence[str], others: Sequence[str]) -> str:
    """Say where two lists of names, which are not equal, first differ."""
    pairs = enumerate(zip_longest(names, others))
    return next(f"{name!r} and {other!r} at place {i}" for i, (name, other) in pairs if name != other)


def _neighbours_say(
    labels: NDArray[np.int64], suspected: NDArray[np.int64], features: NDArray[Any], k: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether more of an image's neighbours carry the suspected class than its label; whether even the nearest is far (N,)."""
    near, distances = nearest_neighbours(_fitting(features, len(labels), k), k)
    around = labels[near]
    agree = (around == suspected[:, None]).sum(1) > (around == labels[:, None]).sum(1)
    low, high = np.quantile(distances[:, 0], (0.25, 0.75))
    return agree, distances[:, 0] > high + FENCE * (high - low)


def _wrong_votes(predictions: Sequence[Predictions], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many runs see each wrong class (N, C); less than half a vote goes by probability, to decide between equals."""
    votes, n = probabilities / 2, np.arange(len(probabilities))
    for p in predictions:
        votes[n, p.predicted] += 1
    votes[n, predictions[0].labels] = -1
    return votes


def _fitting(features: NDArray[Any], n: int, neighbours: int) -> NDArray[Any]:
    if features.ndim != 2 or len(features) != n:
        raise DataError(f"features of shape {features.shape} don't fit {n} images; give one row an image, in the same order")
    if not np.isfinite(features).all():
        raise DataError("the features hold values that are not finite; look for a layer before the overflow, or use float32")
    if not 1 <= neighbours < n:
        raise DataError(f"{n} images have no {neighbours} neighbours each; give more images, or neighbours=1 to {n - 1}")
    return features
