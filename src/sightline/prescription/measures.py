"""What is measured of a net, or of several of one recipe: the cause's probe again, the images held back, all other probes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..datasets import Dataset
from ..diagnosis import LEAST, Cause, least_of
from ..mistakes import confusion_matrix
from ..probes import Finding, Subject, probe
from ..runs import Predictions, Run
from .plan import Interval

SHARES = ("label_errors", "ambiguous")  # causes whose findings are shares of what is wrong, not effects of an intervention


@dataclass(frozen=True)
class Standing:
    """Where nets of one recipe stand with a cause, on dev images; means over the nets.

    effect: what the cause's probe finds beyond its sham.  group: the accuracy on the cause's images that were held back, None
    where there are none.  right: which of the N images of the classes that the cause isn't tied to each of the K nets is right
    about, (K, N). Dev has the shortcuts of the training images: who no longer takes one must lose there on its class.
    worst_class: the lowest accuracy of those classes.
    """

    effect: Interval
    group: float | None
    right: NDArray[np.bool_]
    worst_class: float


def held_back(name: str) -> bool:
    """Whether the image of this id is in the half that edits are judged on: by a hash, the same on every machine."""
    return bool(hashlib.sha256(f"held back: {name}".encode()).digest()[0] & 1)


def probes_of(cause: Cause) -> str:
    """The name in `probes.PROBES` under which the cause's probe is made."""
    match cause.id:
        case _ if cause.probe == "field":
            return "field"
        case "mark" | "background" | "texture" | "ambiguous":
            return cause.id
        case "tint_frame":
            return cause.probe  # "frame" or "tint"
        case "position" if cause.probe != "shift":
            return "position"
        case "label_errors":
            return "labels"
    return "sensitivity"


def standing(
    nets: Sequence[Run],
    data: Dataset,
    cause: Cause,
    group: Sequence[str],
    *,
    field: NDArray[np.uint8] | None = None,
    device: str | None = None,
) -> Standing:
    """Measure `nets` on the dev images of `data`, and on those of them with the ids in `group`.

    field: images from where the model is used, see `probes.probe`.
    """
    findings = [probe(Subject.of(net, data, device=device), field=field, only=[probes_of(cause)]) for net in nets]
    predictions = [net.predictions for net in nets]
    labels = predictions[0].labels
    right, others = np.stack([p.predicted == labels for p in predictions]), ~np.isin(labels, cause.classes)
    return Standing(
        effect_of(findings, cause),
        float(right_on(predictions, group).mean()) if group else None,
        right[:, others] if others.any() else right,
        min((float(right[:, labels == label].mean()) for label in np.unique(labels[others])), default=float(right.mean())),
    )


def effect_of(findings: Sequence[Sequence[Finding]], cause: Cause) -> Interval:
    """Return what the cause's own probe found, of the classes that the cause is tied to, in each net's findings."""
    own = [f for one in findings for f in one if (f.probe, f.cause) == (cause.probe, cause.id)]
    return _average([f for f in own if not cause.classes or f.label in cause.classes])


def collateral(before: Sequence[Sequence[Finding]], after: Sequence[Sequence[Finding]], cause: Cause) -> list[Finding]:
    """Return the first findings `after` of the probes that find more than `before`, `cause`'s own left out.

    before, after: each net's findings. More is what a cause would need to be declared, beyond an interval that is widened for
    the number of probes and classes compared, and more in each net after than in each before: nets of one recipe differ.
    """
    first = [f for f in after[0] if f.cause in LEAST and f.cause not in SHARES and f.cause != cause.id]
    more = []
    for finding in first:
        then, now = _same(before, finding), _same(after, finding)
        change = _average(now).minus(_average(then))
        everywhere = min(f.effect for f in now) > max((f.effect for f in then), default=0.0)
        if everywhere and change.value >= least_of(finding) and change.widened(len(first)).low > 0:
            more.append(finding)
    return more


def right_on(predictions: Sequence[Predictions], ids: Sequence[str]) -> NDArray[np.bool_]:
    """Return which of the images with these ids each net is right about, (K, N)."""
    rows = {name: row for row, name in enumerate(predictions[0].ids)}
    chosen = [rows[name] for name in ids]
    return np.stack([(p.predicted == p.labels)[chosen] for p in predictions])


def worst_class(predictions: Sequence[Predictions]) -> tuple[str, float]:
    """Return the class with the lowest mean accuracy, and that accuracy."""
    counts = np.sum([confusion_matrix(p) for p in predictions], 0)
    with np.errstate(invalid="ignore"):  # a class without images has no accuracy
        accuracies = counts.diagonal() / counts.sum(1)
    worst = int(np.nanargmin(accuracies))
    return predictions[0].classes[worst], float(accuracies[worst])


def _same(findings: Sequence[Sequence[Finding]], wanted: Finding) -> list[Finding]:
    key = wanted.probe, wanted.cause, wanted.label
    return [f for one in findings for f in one if (f.probe, f.cause, f.label) == key]


def _average(findings: Sequence[Finding]) -> Interval:
    """The mean effect; its interval is as wide as one net's is on average.

    Nets of one recipe are probed on the same images, so much of the chance in these doesn't average out. To let none of it do
    so makes up for the nets' own chance, which one net can't show.
    """
    if not findings:
        return Interval(0.0, -1.0, 1.0)
    return Interval(*(float(np.mean([getattr(f, name) for f in findings])) for name in ("effect", "low", "high")))
