"""Does one trivial number of an image tell its class? A shortcut that lies in the data, whether or not the model takes it."""

from __future__ import annotations

import numpy as np
import scipy  # its parts are loaded where they are first used: they take a second
from numpy.typing import NDArray

from .evidence import FEWEST, Effect, Finding, Floats, Integers, found, nothing
from .subject import Subject

PERMUTATIONS = 499
CORNER = 1 / 8  # of the side
BORDER = 1 / 16
DIFFERS = 40  # levels from which on a pixel isn't of the border's colour
SUPPORTS = {"colour": "tint_frame", "border": "tint_frame", "corners": "mark", "size": "scale", "sharpness": "blur_noise"}


def features(subject: Subject, random: np.random.Generator) -> list[Finding]:
    """Return a finding a kind of feature and class, called "feature:KIND": how well it tells the class from all others.

    rate is the area under the ROC curve, the larger of either direction and the largest of the kind's features; sham is what
    that is on average where the labels are shuffled. p is against the largest of all classes in each shuffle (499 of them), so
    that it is corrected for classes and features already. They speak for no cause alone. detail: feature, its name; supports,
    the cause that it fits.
    """
    findings = []
    for kind, columns in _features(subject).items():
        names, values = list(columns), np.stack(list(columns.values()), 1)
        findings += _judged(subject, kind, names, values, random)
    return findings


def areas(ranks: Floats, labels: Integers, classes: int) -> Floats:
    """Return the area under the ROC curve of each class against all others, by each feature: (K, F), NaN without images.

    ranks: (N, F), of the features, ties by their mean. Mann and Whitney's U over the number of pairs; it is folded: 0.5 to 1.
    """
    own = labels == np.arange(classes)[:, None]
    counts = own.sum(1)[:, None].astype(np.float64)
    pairs = counts * (len(labels) - counts)
    above = own @ ranks - counts * (counts + 1) / 2
    area = np.divide(above, pairs, out=np.full(above.shape, np.nan), where=pairs > 0)
    folded: Floats = np.maximum(area, 1 - area)
    return folded


def _judged(subject: Subject, kind: str, names: list[str], values: Floats, random: np.random.Generator) -> list[Finding]:
    probe, classes = f"feature:{kind}", len(subject.classes)
    counts = np.bincount(subject.labels, minlength=classes)
    if len(subject) < 2 * FEWEST or (counts > 0).sum() < 2:
        return [
            nothing(probe, "data", label, f"{len(subject)} images; at least {2 * FEWEST} are needed") for label in range(classes)
        ]
    ranks = scipy.stats.rankdata(values, axis=0)
    measured = areas(ranks, subject.labels, classes)
    by_chance = np.stack([areas(ranks, random.permutation(subject.labels), classes).max(1) for _ in range(PERMUTATIONS)])
    largest = np.nanmax(by_chance, 1)
    findings = []
    for label in range(classes):
        if not counts[label]:
            findings.append(nothing(probe, "data", label, "no images of the class"))
            continue
        best = int(measured[label].argmax())
        rate, sham = float(measured[label, best]), float(by_chance[:, label].mean())
        half = 1.96 * deviation(rate, int(counts[label]), len(subject) - int(counts[label]))
        p = float((1 + (largest >= rate).sum()) / (1 + PERMUTATIONS))
        effect = Effect(rate, sham, rate - sham, rate - sham - half, rate - sham + half, p, len(subject))
        findings.append(found(probe, "data", label, effect, feature=names[best], supports=SUPPORTS[kind]))
    return findings


def deviation(area: float, positive: int, negative: int) -> float:
    """Return the standard error of an area under the ROC curve (Hanley and McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747)."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positive - 1) * (q1 - area**2) + (negative - 1) * (q2 - area**2)
    return float(np.sqrt(max(0.0, variance) / (positive * negative)))


def _features(subject: Subject) -> dict[str, dict[str, Floats]]:
    """Return the features of all images, by kind and name: (N,) each."""
    parts = [_of(subject.split.images[rows]) for rows in subject.pieces(np.arange(len(subject)))]
    return {
        kind: {name: np.concatenate([part[kind][name] for part in parts]) for name in columns}
        for kind, columns in parts[0].items()
    }


def _of(images_NHWC: NDArray[np.uint8]) -> dict[str, dict[str, Floats]]:
    images = images_NHWC.astype(np.float64)
    height, width = images.shape[1:3]
    border, corner = max(1, round(BORDER * min(height, width))), max(1, round(CORNER * min(height, width)))
    edge = np.ones((height, width), bool)
    edge[border : height - border, border : width - border] = False
    around = images[:, edge].mean(1)
    ends = {
        "top": slice(None, corner),
        "bottom": slice(-corner, None),
        "left": slice(None, corner),
        "right": slice(-corner, None),
    }
    corners = {
        f"{down} {across} {channel}": images[:, ends[down], ends[across], i].mean((1, 2))
        for down in ("top", "bottom")
        for across in ("left", "right")
        for i, channel in enumerate(("red", "green", "blue"))
    }
    steps = abs(np.diff(images, axis=1)).mean((1, 2, 3)) + abs(np.diff(images, axis=2)).mean((1, 2, 3))
    return {
        "colour": _channels(images.mean((1, 2))),
        "border": _channels(around),
        "corners": corners,
        "size": {"share of pixels unlike the border": (abs(images - around[:, None, None]).max(3) > DIFFERS).mean((1, 2))},
        "sharpness": {"mean step between neighbours": steps},
    }


def _channels(means: Floats) -> dict[str, Floats]:
    return {channel: means[:, i] for i, channel in enumerate(("red", "green", "blue"))}
