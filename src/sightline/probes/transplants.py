"""What draws a class: a frame or a tint of its images is put on others, beside the same of images that it can't be in.

What one probe has found is kept out of the later ones, so that a mark isn't found again as a piece of the background or as a
need for flips: see `Known`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .evidence import FEWEST, Bools, Effect, Finding, Floats, Integers, found, nothing, paired, repairs
from .objects import bordered, objects
from .sensitivity import choice, surest
from .subject import Subject

TARGETS = 150  # images of other classes that something of a class is put on, at most; of each class where there are up to ten
DONORS = 5  # images of a class without which nothing of it is put on others
SURE, CLEAR = 0.01, 0.1  # p and effect from which on a find is kept out of what later probes carry over
RING = 1 / 16  # the width of a frame, of the side
TINTS = 3  # shams of a tint
DOSE = 2.0  # times its tint is put on images: what a faint one does is seen by a stronger one first


@dataclass
class Known:
    """What is found already. place: (H, W) bool, where marks and frames lie.  tints: (K, 3), of the classes, in levels.

    labels: the classes that have a shortcut, of whatever kind.
    """

    place: Tensor
    tints: Tensor
    labels: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, subject: Subject) -> Known:
        """Nothing is known at first."""
        size, device = subject.size, subject.device
        return cls(torch.zeros(size, dtype=torch.bool, device=device), torch.zeros((len(subject.classes), 3), device=device))

    def cover(self, place: Tensor) -> None:
        """Keep a place (H, W) bool, of all images, out of later probes."""
        self.place = self.place | place

    def kept(self, images: Tensor, changed: Tensor) -> Tensor:
        """Return changed images with the known place as it was."""
        return torch.where(self.place, images, changed)

    def retinted(self, images: Tensor, labels: Integers, others: Integers) -> Tensor:
        """Return images of the classes labels (N,) with the tints of the classes others (N,)."""
        was, now = (self.tints[torch.from_numpy(some).to(images.device)] for some in (labels, others))
        return shifted_levels(images, now - was)


def clear(finding: Finding) -> bool:
    """Say whether a find is to be kept out of later probes."""
    return finding.p <= SURE and finding.effect >= CLEAR


def budget(subject: Subject, limit: int) -> int:
    """Return how many images a class are asked about: with more than ten classes fewer, so that all together stay the same."""
    return max(FEWEST, 10 * limit // max(10, len(subject.classes)))


def strangers(subject: Subject, label: int, random: np.random.Generator, limit: int = TARGETS) -> Integers:
    """Return rows of images that neither are of a class nor are taken for it."""
    rows = np.flatnonzero((subject.labels != label) & (subject.predicted != label))
    return choice(random, rows, budget(subject, limit))


def drawn_from(random: np.random.Generator, rows: Integers, n: int) -> Integers:
    """Return n of the rows, each as often as the others as nearly as can be, in random order."""
    return random.permutation(np.resize(random.permutation(rows), n))


def lacking(subject: Subject, label: int, targets: Integers) -> str:
    """Say why nothing can be said of a class, or nothing if something can."""
    own = int((subject.labels == label).sum())
    if own < DONORS:
        return f"{own} images of the class; at least {DONORS} are needed"
    if len(targets) < FEWEST:
        return f"{len(targets)} images of other classes; at least {FEWEST} are needed"
    return ""


Changed = Callable[[Integers], Tensor]  # donors (B,) → the targets (B, C, H, W) with something of these


def exchanged(
    subject: Subject,
    label: int,
    targets: Integers,
    change: Changed,
    random: np.random.Generator,
    *,
    among: Bools | None = None,
    shams: int = 2,
) -> tuple[Effect, Integers]:
    """Put something of a class's images on the targets, beside the same of other classes' images, each another donor.

    among: (N,), which images may be donors; all if not given. Returns the effect on how many are then taken for the class, and
    the rows that are so under the probe alone.
    """
    given = np.full(len(subject), True) if among is None else among
    own, others = (np.flatnonzero(given & some) for some in (subject.labels == label, subject.labels != label))
    probe = subject.calls(change(drawn_from(random, own, len(targets)))) == label
    sham = [subject.calls(change(drawn_from(random, others, len(targets)))) == label for _ in range(shams)]
    return effect_of(subject, targets, probe, sham)


def effect_of(subject: Subject, targets: Integers, probe: Bools, shams: Sequence[Bools]) -> tuple[Effect, Integers]:
    """Return the effect of a probe beyond its shams, each (N,), and the targets that it alone changes, the surest first."""
    stacked = np.stack(shams, 1)
    return paired(probe, stacked), surest(subject.margins, targets[probe & ~stacked.any(1)])


def frames(subject: Subject, random: np.random.Generator, known: Known) -> list[Finding]:
    """Return a finding a class: what share of other images its images' borders draw to it, beyond other classes' borders.

    detail: form "frame", width in pixels. repairs: mistakes taken for the class that are right with another class's border.
    """
    width = max(1, round(RING * min(subject.size)))
    ring, findings = bordered(width, subject.size, subject.device), []
    for label in range(len(subject.classes)):
        targets = strangers(subject, label, random)
        if note := lacking(subject, label, targets):
            findings.append(nothing("frame", "tint_frame", label, note))
            continue
        free, images = ring & ~known.place, subject.images(targets)

        def change(donors: Integers, free: Tensor = free, images: Tensor = images) -> Tensor:
            return torch.where(free, subject.images(donors), images)

        effect, rows = exchanged(subject, label, targets, change, random)
        mended = without_place(subject, label, free, random)
        findings.append(found("frame", "tint_frame", label, effect, **mended, rows=rows, form="frame", width=width))
        if clear(findings[-1]):
            known.cover(ring)
    return findings


def without_place(subject: Subject, label: int, place: Tensor, random: np.random.Generator) -> dict[str, Any]:
    """Return `repaired` and `repairs`: mistakes taken for a class, with another class's pixels at a place (H, W) bool.

    The sham is the place seen in the image's middle: a box goes to the opposite side; a ring, which is its own mirror image,
    is compared with the images as they are.
    """
    wrong = choice(random, np.flatnonzero(~subject.right & (subject.predicted == label)), budget(subject, TARGETS))
    if not len(wrong):
        return {}
    images, others = subject.images(wrong), np.flatnonzero(subject.labels != label)
    donors, opposite = subject.images(drawn_from(random, others, len(wrong))), place.flip(0, 1)
    right = [subject.calls(torch.where(where, donors, images)) == subject.labels[wrong] for where in (place, opposite & ~place)]
    return repairs(wrong, *right)


def tints(subject: Subject, random: np.random.Generator, known: Known) -> list[Finding]:
    """Return a finding a class: what share of other images twice a class's tint draws to it, beyond other colours.

    A class's tint is what the mean colours of the images that the model learned from differ by from those of other classes, see
    `_tint`. The shams have the length of what is put on, in levels, and random directions. detail: form "tint", levels (3,), of
    the tint once.
    """
    means, findings = _means(subject.learned), list[Finding]()
    labels = subject.learned.labels
    for label in range(len(subject.classes)):
        targets = strangers(subject, label, random)
        if note := lacking(subject, label, targets):
            findings.append(nothing("tint", "tint_frame", label, note))
            continue
        if (labels == label).sum() < DONORS:
            findings.append(nothing("tint", "tint_frame", label, f"fewer than {DONORS} images of the class to learn from"))
            continue
        tint, images = _tint(means, labels, label), subject.images(targets)
        turned = random.normal(size=(TINTS, len(targets), 3))
        turned *= DOSE * np.linalg.norm(tint) / np.linalg.norm(turned, axis=2, keepdims=True)
        shams = [subject.calls(shifted_levels(images, torch.from_numpy(turn))) == label for turn in turned]
        colour = torch.from_numpy(tint)
        effect, rows = effect_of(subject, targets, subject.calls(shifted_levels(images, DOSE * colour)) == label, shams)
        mended = _untinted(subject, label, colour, random)
        findings.append(found("tint", "tint_frame", label, effect, **mended, rows=rows, form="tint", levels=tint.tolist()))
        if clear(findings[-1]):
            known.tints[label] = colour.float().to(subject.device)
    return findings


def shifted_levels(images: Tensor, levels: Tensor) -> Tensor:
    """Add levels (C,) or (N, C) to images (N, C, H, W) uint8."""
    return (images + levels.to(images.device, torch.float32)[..., None, None]).round().clamp(0, 255).to(torch.uint8)


def _means(subject: Subject) -> Floats:
    """Return the mean colours of all images, inside and outside of their objects: (N, 2, 3), in levels."""
    parts = []
    for rows in subject.pieces(np.arange(len(subject))):
        images, inside = subject.images(rows).float(), objects(subject, rows)
        masks = torch.stack([inside, ~inside], 1).float()
        sums = (images[:, None] * masks).sum((3, 4)) / masks.sum((3, 4)).clamp(min=1)
        parts.append(sums.cpu().double().numpy())
    return np.concatenate(parts)


def _tint(means: Floats, labels: Integers, label: int) -> Floats:
    """Return the tint (3,) of a class: by what its colours differ from other classes', outside of its objects and inside too.

    So it is what differs outside, times its share that the difference inside has in the same direction: what lies over the
    whole frame does so, a class's background doesn't.
    """
    others = [means[labels == k].mean(0) for k in np.unique(labels) if k != label]
    inside, outside = means[labels == label].mean(0) - np.median(others, 0)  # one of these may have a tint as well
    share = (inside @ outside) / max(float(outside @ outside), 1e-9)
    tint: Floats = outside * np.clip(share, 0, 1)
    return tint


def _untinted(subject: Subject, label: int, tint: Tensor, random: np.random.Generator) -> dict[str, Any]:
    """Return `repaired` and `repairs`: mistakes taken for a class, with its tint taken away; the sham adds it once more."""
    wrong = choice(random, np.flatnonzero(~subject.right & (subject.predicted == label)), budget(subject, TARGETS))
    images = subject.images(wrong)
    right = [subject.calls(shifted_levels(images, levels)) == subject.labels[wrong] for levels in (-tint, tint)]
    return repairs(wrong, *right)
