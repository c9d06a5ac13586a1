"""Does the model go by what surrounds an object, by where it is, or by its surface, more than by its shape?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..augment import Shift
from .evidence import FEWEST, Bools, Effect, Finding, Floats, Integers, by_normal, found, nothing, paired, repairs, stands_out
from .objects import centres, objects, shuffled, surfaced, swatches, without
from .sensitivity import choice, surest
from .subject import Subject
from .transplants import DONORS, TARGETS, Known, budget, clear, drawn_from, exchanged, lacking, strangers

OWN = 100  # right images of a class, at most
DRAWS = 4  # of a background or a place for each of a class's images, of its own class's and of others'
DOSE = 2.0  # times the relief of its surface is put on objects: what a faint one does is seen by a stronger one first
CELLS = 4  # along each side, of a picture that is shuffled


# --- backgrounds


def backgrounds(subject: Subject, random: np.random.Generator, known: Known) -> list[Finding]:
    """Return two findings a class.

    background: the share of other images that a background of the class draws to it, beyond backgrounds of other classes.
    background kept: the share of the class's right images that are wrong before a background of another class, beyond other
    backgrounds of its own class, DRAWS of each. A background is an image without its object, filled from around it. detail:
    masks, whether the data know where the objects are. repairs of the first: mistakes taken for the class that are right before
    a background of their own class and not before another of the class.
    """
    classes = range(len(subject.classes))
    drawn = [_drawn_by_background(subject, label, random, known) for label in classes]
    # A background that draws others to its class would break them: that speaks for its class, not for theirs.
    drawing = [finding.label for finding in drawn if clear(finding)]
    kept = [_kept_by_background(subject, label, drawing, random, known) for label in classes]
    return [finding for both in zip(drawn, kept, strict=True) for finding in both]


def _drawn_by_background(subject: Subject, label: int, random: np.random.Generator, known: Known) -> Finding:
    targets = strangers(subject, label, random)
    if note := lacking(subject, label, targets):
        return nothing("background", "background", label, note)
    effect, rows = exchanged(subject, label, targets, lambda donors: before(subject, targets, donors, known), random)
    return found(
        "background", "background", label, effect, rows=rows, **_at_home(subject, label, random, known), masks=subject.masked
    )


def _kept_by_background(
    subject: Subject, label: int, drawing: Sequence[int | None], random: np.random.Generator, known: Known
) -> Finding:
    right = choice(random, np.flatnonzero(subject.right & (subject.labels == label)), budget(subject, OWN))
    others = np.flatnonzero((subject.labels != label) & ~np.isin(subject.labels, [k for k in drawing if k is not None]))
    if len(right) < FEWEST or len(others) < DONORS:
        return nothing("background kept", "background", label, f"{len(right)} right images; at least {FEWEST} are needed")

    def broken(behind: Callable[[], Integers]) -> Bools:
        return _often(lambda: subject.calls(before(subject, right, behind(), known)) != label)

    elsewhere, at_home = broken(lambda: drawn_from(random, others, len(right))), broken(lambda: _alike(subject, right, random))
    return _kept("background kept", "background", label, subject, right, elsewhere, at_home, masks=subject.masked)


def _often(once: Callable[[], Bools]) -> Bools:
    """Return what happened to each image in each of DRAWS draws, (B, DRAWS)."""
    return np.stack([once() for _ in range(DRAWS)], 1)


def _kept(
    name: str, cause: str, label: int, subject: Subject, right: Integers, elsewhere: Bools, at_home: Bools, **detail: Any
) -> Finding:
    """Judge by what right images of a class, (B,), are wrong more often than by what their class has too, (B, DRAWS) each."""
    rows = surest(subject.margins, right[elsewhere.mean(1) > at_home.mean(1)])
    return found(name, cause, label, paired(elsewhere, at_home), rows=rows, **detail)


def _at_home(subject: Subject, label: int, random: np.random.Generator, known: Known) -> dict[str, Any]:
    """Return `repaired` and `repairs`: mistakes taken for a class, before a background of their own; the sham is of the class."""
    wrong = choice(random, np.flatnonzero(~subject.right & (subject.predicted == label)), budget(subject, TARGETS))
    own = np.flatnonzero(subject.labels == label)
    donors = (_alike(subject, wrong, random), drawn_from(random, own, len(wrong)))
    return repairs(wrong, *(subject.calls(before(subject, wrong, some, known)) == subject.labels[wrong] for some in donors))


def before(subject: Subject, rows: Integers, donors: Integers, known: Known) -> Tensor:
    """Return the objects of rows (B,) before the backgrounds of donors (B,).

    Known places stay as they are, and known tints too.
    """
    images, behind = subject.images(rows), without(subject.images(donors), objects(subject, donors))
    behind = known.retinted(behind, subject.labels[donors], subject.labels[rows])
    return known.kept(images, torch.where(objects(subject, rows), images, behind))


def _alike(subject: Subject, rows: Integers, random: np.random.Generator) -> Integers:
    """Return for each row another of its class, at random; itself where there is none."""
    result = rows.copy()
    for i, row in enumerate(rows):
        own = np.flatnonzero(subject.labels == subject.labels[row])
        result[i] = random.choice(own[own != row]) if len(own) > 1 else row
    alike: Integers = result
    return alike


# --- places


def positions(subject: Subject, random: np.random.Generator, known: Known, maps: NDArray[np.float32] | None) -> list[Finding]:
    """Return two findings a class.

    place: the share of other images that are taken for the class once their object is moved to where one of the class's lies,
    beyond moves to where other classes' lie. place kept: the share of the class's right images that are wrong once moved to
    where another class's lie, beyond moves to where others of its own lie, DRAWS of each. Where a class has no place of its
    own, both moves are the same. detail: place, the class's mean row and column in pixels.
    """
    at, findings = centres(subject, maps), []
    for label in range(len(subject.classes)):
        findings += [_drawn_by_place(subject, label, at, random, known), _kept_by_place(subject, label, at, random, known)]
    return findings


def _drawn_by_place(subject: Subject, label: int, at: Floats, random: np.random.Generator, known: Known) -> Finding:
    seen = ~np.isnan(at[:, 0])
    targets = strangers(subject, label, random)
    targets = targets[seen[targets]]
    if note := lacking(subject, label, targets) or _unseen(subject, label, seen):
        return nothing("place", "position", label, note)
    effect, rows = exchanged(
        subject, label, targets, lambda donors: _moved_to(subject, targets, at, donors, known), random, among=seen
    )
    place = at[seen & (subject.labels == label)].mean(0).tolist()
    return found("place", "position", label, effect, rows=rows, place=place, masks=subject.masked)


def _kept_by_place(subject: Subject, label: int, at: Floats, random: np.random.Generator, known: Known) -> Finding:
    seen, own = ~np.isnan(at[:, 0]), subject.labels == label
    right = choice(random, np.flatnonzero(subject.right & own & seen), budget(subject, OWN))
    if len(right) < FEWEST:
        return nothing("place kept", "position", label, f"{len(right)} right images of the class; at least {FEWEST} are needed")
    if note := _unseen(subject, label, seen):
        return nothing("place kept", "position", label, note)

    def broken(among: Bools) -> Bools:
        places = np.flatnonzero(among & seen)
        return _often(
            lambda: subject.calls(_moved_to(subject, right, at, drawn_from(random, places, len(right)), known)) != label
        )

    return _kept("place kept", "position", label, subject, right, broken(~own), broken(own), masks=subject.masked)


def _unseen(subject: Subject, label: int, seen: Bools) -> str:
    """Say why no place can be taken of a class's images or of others', or nothing if it can."""
    own = subject.labels == label
    few = min(int((seen & own).sum()), int((seen & ~own).sum()))
    return "" if few >= DONORS else f"where the objects are is known of {few} images; at least {DONORS} are needed"


def _moved_to(subject: Subject, rows: Integers, at: Floats, donors: Integers, known: Known) -> Tensor:
    """Return the images of rows (B,) with their objects where those of donors (B,) lie. Known places stay as they are."""
    return known.kept(subject.images(rows), moved(subject, rows, at[donors] - at[rows]))


def moved(subject: Subject, rows: Integers, moves: Floats) -> Tensor:
    """Return images of rows (B,) with their objects moved by moves (B, 2), rows and columns, rounded to whole pixels.

    Where the data know the objects, these alone move, and leave what is around them; else the whole image does.
    """
    images, offsets = subject.images(rows), torch.from_numpy(moves).round().long()
    everything = Shift().apply(images, offsets)
    if not subject.masked:
        return everything
    masks = objects(subject, rows)
    there = Shift(fill=(0,)).apply(masks.to(torch.uint8), offsets) > 0
    return torch.where(there, everything, without(images, masks))


# --- surfaces


def textures(subject: Subject, random: np.random.Generator, known: Known) -> list[Finding]:
    """Return two findings a class.

    texture: the share of other images that are taken for the class once their object has the surface of one of its objects,
    with twice its relief, beyond surfaces of other classes; outline, place and mean colour stay. shuffle: how well the class is
    still told from others in pictures of shuffled pieces, its hits minus false alarms, beyond the mean of the other classes
    (hits alone would indict the class that a model says where it sees nothing), see `among_classes`.
    """
    rows = np.concatenate(
        [
            choice(random, np.flatnonzero(subject.right & (subject.labels == label)), budget(subject, OWN))
            for label in range(len(subject.classes))
        ]
    )
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    called = np.concatenate([subject.calls(shuffled(subject.images(some), CELLS, generator)) for some in subject.pieces(rows)])
    findings = []
    for label in range(len(subject.classes)):
        findings += [_drawn_by_texture(subject, label, random), _told_by_texture(subject, label, rows, called, known)]
    return findings


def _drawn_by_texture(subject: Subject, label: int, random: np.random.Generator) -> Finding:
    targets = strangers(subject, label, random)
    if note := lacking(subject, label, targets):
        return nothing("texture", "texture", label, note)
    images, masks = subject.images(targets), objects(subject, targets)

    def change(donors: Integers) -> Tensor:
        return surfaced(images, masks, swatches(subject.images(donors), objects(subject, donors)), DOSE)

    effect, drawn = exchanged(subject, label, targets, change, random)
    return found("texture", "texture", label, effect, rows=drawn)


def _told_by_texture(subject: Subject, label: int, rows: Integers, called: Integers, known: Known) -> Finding:
    """Judge shuffled pictures of right images: rows (M,), and what they are taken for."""
    if label in known.labels:
        return nothing("shuffle", "texture", label, "another shortcut of the class is known, and may outlast the shuffling")
    true, n = subject.labels[rows], len(subject.classes)
    counts = np.bincount(true, minlength=n)
    if counts[label] < FEWEST or (counts >= FEWEST).sum() < 3:
        return nothing("shuffle", "texture", label, f"{counts[label]} right images of the class; at least {FEWEST} are needed")
    scores, variances = np.array([told_apart(true == k, called == k) for k in np.flatnonzero(counts >= FEWEST)]).T
    own = np.flatnonzero(counts >= FEWEST) == label
    others = int((~own).sum())
    rate, sham = float(scores[own][0]), float(scores[~own].mean())
    spread = float(np.sqrt(variances[own][0] + variances[~own].sum() / others**2))
    effect = among_classes(by_normal(rate, sham, spread, int(counts[label])), scores[~own])
    return found("shuffle", "texture", label, effect, rows=surest(subject.margins, rows[(true == label) & (called == label)]))


def told_apart(true: Bools, called: Bools) -> tuple[float, float]:
    """Return hits minus false alarms and the variance of that.

    true, called: (M,), which pictures are of the class, and which are taken for it. Youden's J (W. J. Youden 1950, "Index for
    rating diagnostic tests"). The variance is with one success and one
    failure added to either group (Agresti and Caffo 2000, https://doi.org/10.2307/2685779).
    """
    score, variance = 0.0, 0.0
    for sign, group in ((1, called[true]), (-1, called[~true])):
        share = (group.sum() + 1) / (len(group) + 2)
        score += sign * float(group.mean())
        variance += float(share * (1 - share) / (len(group) + 2))
    return score, variance


def among_classes(effect: Effect, others: Floats) -> Effect:
    """Return the effect of one class beyond the mean of others (K,) with a p that knows that classes differ anyway.

    It is the larger of that over the images and that of the class among the classes.
    """
    return effect._replace(p=max(effect.p, stands_out(effect.rate, others)))
