"""Is there a mark, a small patch that recurs in the images of one class, and does the model go by it?

Where to look is read off the pixels: a patch is a candidate if more of the class's images hold nearly the same one at the same
place than others do, and than hold one at most other places: what recurs all over is a background. A heatmap is one more
hypothesis, that the hottest of these places is the one. What a candidate does is measured by pasting it, at its place, on images
of other classes. The best is chosen on some of these and judged on the rest, so that it isn't the best by luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..heatmaps import upsample
from .evidence import Bools, Finding, Integers, found, nothing, paired, stands_out
from .objects import boxed
from .sensitivity import choice, surest
from .subject import Subject
from .transplants import Known, clear, lacking, strangers, without_place

Box = tuple[int, int, int, int]  # top, left, height, width

SEARCHED = 32  # pixels a side: larger images are searched at this size
SIDES = (1 / 8, 1 / 4)  # of a patch, of the side
STEP = 1 / 16  # between places, of the side
SEARCH_OWN, SEARCH_OTHERS = 100, 300  # images that are searched: of the class, and of all others
NEAR = 16.0  # levels, root mean square, up to which two patches are the same
RECURS = 0.05  # the gain, a share of the class's images, from which on a patch is a candidate
PART = 0.7  # of the best place's gain: from there on a neighbour belongs to the same mark
LARGEST = 1 / 2  # of the side: what is larger is no mark
MARK_TARGETS = 250  # of which 2 in 5 choose the candidate
SHAMS_CHOOSING, SHAMS_JUDGING = 2, 6


@dataclass(frozen=True)
class Candidate:
    """A patch: the pixels of the image at `row` in `box`.

    held: by which share of the class's other images.  elsewhere: by which of other classes'.  usual: the difference of these two
    at most places.
    """

    box: Box
    row: int
    held: float
    elsewhere: float
    usual: float = 0.0

    @property
    def gain(self) -> float:
        """How many more of the class's images hold it than one would expect, a share."""
        return self.held - self.elsewhere - self.usual


def marks(subject: Subject, random: np.random.Generator, known: Known, maps: NDArray[np.float32] | None) -> list[Finding]:
    """Return a finding a class: what share of other images its recurring patch draws to it, beyond patches of the same place.

    The shams are pieces of images that don't hold it, of the same class where there are enough. p is the larger of two: over the
    images, and of the patch among its shams. detail: box [top, left, height, width] in pixels; patch, its levels
    (height, width, 3) as lists; held, elsewhere, the share of the class's images and of others' that hold it. repairs: mistakes
    taken for the class that are right once the place is erased.
    """
    small, findings = _searched(subject), []
    for label in range(len(subject.classes)):
        targets = random.permutation(strangers(subject, label, random, MARK_TARGETS))
        note = lacking(subject, label, targets)
        if note or min(small.shape[2:]) < 8:
            findings.append(nothing("patch", "mark", label, note or "images of less than 8 pixels have no place for a mark"))
            continue
        candidates = _candidates(subject, label, small, maps, random)
        if not candidates:
            findings.append(nothing("patch", "mark", label, "no patch recurs in the images of the class"))
            continue
        findings.append(_judged(subject, label, targets, candidates, small, random))
        if clear(findings[-1]):
            known.cover(boxed(findings[-1].detail["box"], subject.size, subject.device))
    return findings


# --- the search


def _searched(subject: Subject) -> Tensor:
    """Return all images, at most SEARCHED pixels wide: (N, 3, h, w) float32 on the CPU, in levels."""
    height, width = (min(side, SEARCHED) for side in subject.size)
    parts = [
        F.interpolate(subject.images(rows).float(), (height, width), mode="area").cpu()
        for rows in subject.pieces(np.arange(len(subject)))
    ]
    return torch.cat(parts)


def _candidates(
    subject: Subject, label: int, small: Tensor, maps: NDArray[np.float32] | None, random: np.random.Generator
) -> list[Candidate]:
    """Return the patches of a class that recur the most, in boxes of the searched size."""
    own, others = np.flatnonzero(subject.labels == label), np.flatnonzero(subject.labels != label)
    own, others = choice(random, own, SEARCH_OWN), choice(random, others, SEARCH_OTHERS)
    by_side = [_recurring(small, own, others, side) for side in SIDES]
    candidates = [max(places, key=lambda place: place.gain) for places in by_side]
    candidates.append(_whole(by_side[0], candidates[0], small, own, others))
    if maps is not None:
        heat = np.maximum(upsample(maps[own].mean(0, keepdims=True), tuple(small.shape[2:]))[0], 0)
        candidates.append(max(by_side[0], key=lambda place: place.gain * float(heat[_window(place.box)].mean())))
    return [candidate for candidate in dict.fromkeys(candidates) if candidate.gain >= RECURS]


def _recurring(small: Tensor, own: Integers, others: Integers, share: float) -> list[Candidate]:
    """Return at each place of a grid the patch of a class that the most of its images nearly hold."""
    height, width = small.shape[2:]
    side, step = max(2, round(share * min(height, width))), max(1, round(STEP * min(height, width)))
    of_class, of_others = (_patches(small[rows], side, step) for rows in (own, others))  # (places, images, values)
    limit = NEAR * of_class.shape[2] ** 0.5
    near = torch.cdist(of_class, of_class) <= limit
    medoid = near.sum(2).argmax(1)
    held = (near.sum(2).amax(1) - 1) / max(1, len(own) - 1)  # itself doesn't count
    centre = of_class[torch.arange(len(of_class)), medoid][:, None]
    elsewhere = (torch.cdist(centre, of_others)[:, 0] <= limit).float().mean(1)
    places = product(range(0, height - side + 1, step), range(0, width - side + 1, step))
    usual = float((held - elsewhere).median())
    values = zip(places, medoid.tolist(), held.tolist(), elsewhere.tolist(), strict=True)
    return [Candidate((top, left, side, side), int(own[i]), a, b, usual) for (top, left), i, a, b in values]


def _patches(images: Tensor, side: int, step: int) -> Tensor:
    pieces = images.unfold(2, side, step).unfold(3, side, step)  # (N, C, rows, columns, side, side)
    return pieces.permute(2, 3, 0, 1, 4, 5).flatten(3).flatten(0, 1)


def _whole(places: Sequence[Candidate], best: Candidate, small: Tensor, own: Integers, others: Integers) -> Candidate:
    """Return the best patch with its neighbours that recur nearly as much: a mark may be larger than what was looked for."""
    top, left, bottom, right = best.box[0], best.box[1], best.box[0] + best.box[2], best.box[1] + best.box[3]
    parts = [place.box for place in places if place.gain >= PART * best.gain]
    grown = True
    while grown:  # take in what touches it, and what touches that
        touching = [b for b in parts if b[0] <= bottom and b[1] <= right and b[0] + b[2] >= top and b[1] + b[3] >= left]
        corners = (min(b[0] for b in touching), min(b[1] for b in touching))
        ends = (max(b[0] + b[2] for b in touching), max(b[1] + b[3] for b in touching))
        grown = (*corners, *ends) != (top, left, bottom, right)
        (top, left), (bottom, right) = corners, ends
    whole = replace(best, box=(top, left, bottom - top, right - left))
    if max(whole.box[2:]) > LARGEST * min(small.shape[2:]):
        return best
    held, elsewhere = (_holding(small, whole, rows) for rows in (own, others))
    return replace(whole, held=float((held.sum() - 1) / max(1, len(own) - 1)), elsewhere=float(elsewhere.mean()))


def _holding(small: Tensor, candidate: Candidate, rows: Integers) -> Bools:
    """Say which of the rows hold nearly the same patch at the same place, (B,)."""
    down, across = _window(candidate.box)
    apart = small[torch.from_numpy(rows), :, down, across] - small[candidate.row, :, down, across]
    near: Bools = (apart.square().mean((1, 2, 3)).sqrt() <= NEAR).numpy()
    return near


def _window(box: Box) -> tuple[slice, slice]:
    top, left, height, width = box
    return slice(top, top + height), slice(left, left + width)


# --- the judgement


def _judged(
    subject: Subject, label: int, targets: Integers, candidates: Sequence[Candidate], small: Tensor, random: np.random.Generator
) -> Finding:
    """Choose among the candidates on two fifths of the targets, and judge the chosen one on the others."""
    cut = 2 * len(targets) // 5
    gains = []
    for candidate in candidates:
        probe, shams = _pasted(subject, label, targets[:cut], candidate, small, random, SHAMS_CHOOSING)
        gains.append(probe.mean() - shams.mean())
    best = candidates[int(np.argmax(gains))]
    probe, shams = _pasted(subject, label, targets[cut:], best, small, random, SHAMS_JUDGING)
    effect = paired(probe, shams)
    effect = effect._replace(p=max(effect.p, stands_out(effect.rate, shams.mean(0))))
    box = _enlarged(best.box, small, subject)
    down, across = _window(box)
    rows = surest(subject.margins, targets[cut:][probe & ~shams.any(1)])
    patch = subject.images(np.array([best.row]))[0][:, down, across].permute(1, 2, 0).tolist()
    mended = without_place(subject, label, boxed(box, subject.size, subject.device), random)
    return found(
        "patch", "mark", label, effect, **mended, rows=rows, box=list(box), patch=patch, held=best.held, elsewhere=best.elsewhere
    )


def _pasted(
    subject: Subject, label: int, targets: Integers, candidate: Candidate, small: Tensor, random: np.random.Generator, shams: int
) -> tuple[Bools, Bools]:
    """Say which targets are taken for the class with the patch on them, (B,), and with each sham's, (B, K)."""
    own, others = np.flatnonzero(subject.labels == label), np.flatnonzero(subject.labels != label)
    free = [random.permutation(rows[~_holding(small, candidate, rows)]) for rows in (own, others)]
    pool = np.concatenate(free) if any(map(len, free)) else np.array([candidate.row])  # held by all, it tells nothing
    down, across = _window(_enlarged(candidate.box, small, subject))
    images, answers = subject.images(targets), []
    for donor in subject.images(np.array([candidate.row, *np.resize(pool, shams)])):
        marked = images.clone()
        marked[:, :, down, across] = donor[:, down, across]
        answers.append(subject.calls(marked) == label)
    return answers[0], np.stack(answers[1:], 1)


def _enlarged(box: Box, small: Tensor, subject: Subject) -> Box:
    """Return a box of the searched size in pixels of the images."""
    scales = [full / side for full, side in zip(subject.size, small.shape[2:], strict=True)]
    top, left, height, width = (round(value * scale) for value, scale in zip(box, scales * 2, strict=True))
    return top, left, height, width
