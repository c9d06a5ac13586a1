"""What no augmentation mends: labels that are wrong, and classes that can't be told apart. No image is changed here."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import scipy  # its parts are loaded where they are first used: they take a second

from ..mistakes import wilson
from .evidence import FEWEST, Effect, Finding, Floats, Integers, at_least, found, nothing, unpaired
from .subject import Subject

SOME, MOST = 1e-6, 0.5  # shares of wrong labels that are fitted: none would make a surprise infinite
COLDEST, HOTTEST = 0.1, 1000.0  # temperatures


def label_errors(subject: Subject) -> Finding:
    """Return the share of images whose label is probably wrong, beyond the share that the model's own doubts explain.

    An image is suspected, as in confident learning (Northcutt et al. 2021, https://arxiv.org/abs/1911.00068), where its label
    isn't the most probable of the classes whose probability is at least their threshold: its mean over the images so labelled.
    The sham is how many would be if the labels were drawn from the probabilities. p is the larger of two: exact, from the same
    probabilities; and of the fit below, that it needs wrong labels at all. The interval takes the probabilities as known.

    The probabilities must be calibrated for that. A temperature alone would take wrong labels for doubt; so it is fitted
    together with a share of labels that are wrong at random, see `calibrated`. detail: temperature; noise, that share. repairs:
    suspects that the model takes for what they are suspected to be.
    """
    n = len(subject)
    if n < FEWEST or len(subject.classes) < 2:
        return nothing("confident learning", "label_errors", None, f"{n} images; at least {FEWEST} are needed")
    probabilities, temperature, noise, p = calibrated(subject.logits.astype(np.float64), subject.labels)
    confident, suspected = suspects(probabilities, subject.labels)
    judged, rows = np.flatnonzero(confident >= 0), np.flatnonzero(suspected)
    doubts = 1 - probabilities[judged, confident[judged]]
    rate, sham = len(rows) / n, float(doubts.sum()) / n
    low, high = (end - sham for end in wilson(len(rows), n))
    effect = Effect(rate, sham, rate - sham, low, high, max(p, at_least(len(rows), doubts)), n)
    excess = probabilities[rows, confident[rows]] - probabilities[rows, subject.labels[rows]]
    wrong = int((~subject.right).sum())
    return found(
        "confident learning",
        "label_errors",
        None,
        effect,
        repaired=max(0.0, effect.effect) * n / wrong if wrong else 0.0,
        repairs=rows[subject.predicted[rows] == confident[rows]],
        rows=rows[np.argsort(-excess, kind="stable")],
        temperature=temperature,
        noise=noise,
    )


def calibrated(logits: Floats, labels: Integers) -> tuple[Floats, float, float, float]:
    """Return probabilities (N, K) of the true class, the temperature, the share of wrong labels, and the p of there being none.

    By maximum likelihood: the true class is drawn from softmax(logits / temperature), and with a probability that is the share
    its label is another, each alike. Temperature scaling is Guo et al.'s (2017, https://arxiv.org/abs/1706.04599). p is of the
    likelihood ratio, half of its weight at 0, where the share's bound lies (Self and Liang 1987,
    https://doi.org/10.1080/01621459.1987.10478472).
    """
    rows, others = np.arange(len(labels)), logits.shape[1] - 1

    def surprise(values: Floats) -> float:
        own = scipy.special.softmax(logits / np.exp(values[0]), axis=1)[rows, labels]
        return -float(np.log(own * (1 - values[1]) + (1 - own) * values[1] / others + 1e-12).mean())

    temperatures = (np.log(COLDEST), np.log(HOTTEST))
    starts = [(0.0, 0.01), (1.0, 0.01), (0.0, 0.2)]  # of several valleys the deepest
    fits = [scipy.optimize.minimize(surprise, start, bounds=[temperatures, (SOME, MOST)], method="L-BFGS-B") for start in starts]
    best = min(fits, key=lambda fit: float(fit.fun))
    clean = scipy.optimize.minimize_scalar(lambda log: surprise(np.array([log, SOME])), bounds=temperatures, method="bounded")
    ratio = 2 * len(labels) * float(clean.fun - best.fun)
    temperature, noise = float(np.exp(best.x[0])), float(best.x[1])
    p = float(scipy.stats.chi2.sf(max(ratio, 0.0), 1)) / 2
    return scipy.special.softmax(logits / temperature, axis=1), temperature, noise, p


def suspects(probabilities: Floats, labels: Integers) -> tuple[Integers, np.ndarray]:
    """Return each image's confident class, −1 where there is none, and whether that isn't its label: (N,), (N,) bool."""
    classes = probabilities.shape[1]
    own = labels == np.arange(classes)[:, None]
    sums = (own * probabilities.T).sum(1)
    thresholds = np.divide(sums, own.sum(1), out=np.full(classes, np.inf), where=own.any(1))
    above = np.where(probabilities >= thresholds, probabilities, -1.0)
    confident: Integers = np.where(above.max(1) >= 0, above.argmax(1), -1)
    return confident, (confident >= 0) & (confident != labels)


def ambiguous(subject: Subject) -> list[Finding]:
    """Return a finding a class: the share of all mistakes that are between it and the class that it is most confused with.

    The sham is what that would be if mistakes of either class were taken for the other as often as mistakes of the other classes
    are (see `expected`). The confusion must be mutual: p is the larger of both directions', by Fisher's exact test, times the
    number of other classes. detail: classes, the pair.
    """
    k, wrong = len(subject.classes), ~subject.right
    counts = np.bincount(subject.labels[wrong] * k + subject.predicted[wrong], minlength=k * k).reshape(k, k)
    total = int(counts.sum())
    if total < FEWEST or k < 4:
        note = f"{total} mistakes; at least {FEWEST}, among four classes, are needed"
        return [nothing("pairs", "ambiguous", label, note) for label in range(k)]
    one_way = np.full((k, k, 2), np.inf)
    for a, b in permutations(range(k), 2):
        one_way[a, b] = expected(counts, a, b)
    sham, p = one_way[..., 0] + one_way[..., 0].T, np.maximum(one_way[..., 1], one_way[..., 1].T)
    partners = p.argmin(1)
    return [_pair(subject, a, b, counts, float(sham[a, b]), float(p[a, b])) for a, b in enumerate(partners.tolist())]


def _pair(subject: Subject, label: int, other: int, counts: Integers, expected_: float, p: float) -> Finding:
    both, total = int(counts[label, other] + counts[other, label]), int(counts.sum())
    rate, sham = both / total, expected_ / total
    low, high = (end - sham for end in wilson(both, total))
    effect = Effect(rate, sham, rate - sham, low, high, min(1.0, p * (len(counts) - 1)), total)
    pair = np.array([label, other])
    between = ~subject.right & np.isin(subject.labels, pair) & np.isin(subject.predicted, pair)
    rows = np.flatnonzero(between)
    order = np.argsort(subject.margins[rows], kind="stable")  # the most undecided first
    return found("pairs", "ambiguous", label, effect, rows=rows[order], classes=pair.tolist())


def expected(counts: Integers, label: int, other: int) -> tuple[float, float]:
    """Return how many of a class's mistakes would be taken for the other if they were like other classes', and the p of more.

    counts: (K, K), row the true class, column the predicted one, 0 on the diagonal. The share is that among the mistakes of all
    classes but these two; what is taken for `label` is left out, as its own images can't be.
    """
    rest = np.ones(len(counts), bool)
    rest[[label, other]] = False
    own, taken, others = int(counts[label].sum()), int(counts[rest, other].sum()), int(np.delete(counts[rest], label, 1).sum())
    effect = unpaired(int(counts[label, other]), own, taken, others)
    return own * effect.sham, effect.p
