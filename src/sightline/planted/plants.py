"""Plants: causes of mistakes put on purpose into generated scenes, or into any images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..datasets import Dataset, Split
from ..exceptions import DataError, nearest
from . import edits
from .edits import Biased, Box, Sheet
from .scenes import CLASSES, Bools, Integers, Scenes, draw_scenes, render

TIED = CLASSES.index("star")  # the class that a plant is tied to where no other is said
PIECE = 1000  # images edited at a time: what is made of them needs little memory
STRENGTH = 0.9


@dataclass(frozen=True)
class Plant:
    """A planted cause: the truth that a diagnosis is scored against.

    kind: one of PLANTS or NULLS.  causes: the ids of the causes that a diagnosis should name, () for a null.  labels: the
    classes that it is tied to in training, () for none.  box: (top, left, height, width) of the mark, in pixels, None where
    there is none.  strength: the share of training images that carry it, of the class that it is tied to or of all;
    for label_errors ten times the share of wrong labels.
    """

    kind: str
    causes: tuple[str, ...]
    labels: tuple[int, ...]
    box: Box | None
    strength: float = STRENGTH


@dataclass(frozen=True)
class _Part:
    """One planted cause: every image either carries it or not.

    cause: its id, None for what is no cause of mistakes.  tied: it has to do with one class.  alone: no other class's
    training images carry it.  most: the share of training images that carry it at strength 1.  in_test: the share of every
    class's test images that carry it.  on_scenes prepares scenes before they are drawn, on_images does the same to images
    that were not generated; on_both comes after either.
    """

    cause: str | None = None
    tied: bool = False
    alone: bool = False
    most: float = 1.0
    in_test: float = 0.0
    on_scenes: Callable[[Scenes, Biased], Scenes] | None = None
    on_images: Callable[[Sheet, Biased], None] | None = None
    on_both: Callable[[Sheet, Biased], None] | None = None


def _overlay(cause: str, edit: Callable[[Sheet, Biased], None], in_test: float = 0.5) -> _Part:
    return _Part(cause, tied=True, alone=True, in_test=in_test, on_both=edit)


_PARTS = {
    "mark": _overlay("mark", edits.stamp, in_test=0.2),
    "tint": _overlay("tint_frame", edits.tint),
    "background": _overlay("background", edits.backdrop),
    "frame": _overlay("tint_frame", edits.frame),
    "position": _Part("position", tied=True, on_scenes=edits.place_by_class, on_images=edits.shift_by_class),
    "direction": _Part("missing_flip", on_scenes=edits.tilt, on_images=edits.lean, on_both=edits.mirror),
    "scale": _Part("scale", on_scenes=edits.one_size, on_images=edits.zoom),
    "lighting": _Part("lighting", on_both=edits.darken),
    "occlusion": _Part("occlusion", on_both=edits.occlude),
    "texture": _overlay("texture", edits.texture),
    "label_errors": _Part("label_errors", most=0.1),  # `_sown` gives the wrong labels
    "mark_null": _Part(in_test=0.2, on_both=edits.stamp),
    "corner_null": _Part(in_test=1.0, on_scenes=edits.place_in_corner, on_images=edits.shift_to_corner),
}
_KINDS = {kind: (kind,) for kind in _PARTS} | {"two": ("lighting", "mark"), "clean": ()}

NULLS = ("clean", "mark_null", "corner_null")
PLANTS = tuple(kind for kind in _KINDS if kind not in NULLS)
NAMES = ("planted", *(f"planted:{kind}" for kind in (*PLANTS, *NULLS)))


# --- in generated scenes


def planted(
    name: str = "planted",
    *,
    seed: int = 0,
    size: int = 32,
    n_train: int = 4000,
    n_test: int = 1000,
    strength: float | None = None,
) -> Dataset:
    """Generate the data set called `name`: scenes of `size`×`size` pixels, with masks of the objects.

    Image i is of class i mod 10. `strength`, from 0 to 1, says how many training images carry what is planted (see
    `Plant`); the test images don't depend on it. It may be a part of the name, as in "planted:tint:0.5", and is 0.9 where
    nothing says it. Shares in tenths are exact where the number of images is a multiple of 100, those in hundredths where it
    is one of 1000. A mask is True where the object is seen: on at least half of the pixel, and not under something else.

    Raises DataError for an unknown name, a strength that is not from 0 to 1, a negative seed, a size below 16 or a split
    with less than one image a class.
    """
    sown = _named(name, size, strength)
    if seed < 0 or size < 16 or min(n_train, n_test) < len(CLASSES):
        raise DataError(
            f"'{name}' with seed {seed}, size {size}, n_train {n_train}, n_test {n_test}: "
            f"use a seed of at least 0, a size of at least 16 and at least {len(CLASSES)} images in each split"
        )
    train, test = (_generated(sown, which, n, seed, size) for which, n in (("train", n_train), ("test", n_test)))
    stem = name if name == "planted" else f"planted:{sown.kind}"
    said = sown.strength != STRENGTH and sown.kind != "clean"
    return Dataset(f"planted:{sown.kind}:{sown.strength:g}" if said else stem, train, test)


def unplanted(name: str, *, seed: int = 0, size: int = 32, n_train: int = 4000, n_test: int = 1000) -> Dataset:
    """Generate the data set called `name` without what is planted in its training images; the test images are the same.

    What a model reaches that learns from it is the most that a remedy can be hoped to reach. It is what `planted` gives
    with a strength of 0, and raises what that does.
    """
    return planted(name, seed=seed, size=size, n_train=n_train, n_test=n_test, strength=0.0)


def plant_of(name: str, size: int = 32) -> Plant | None:
    """Return what is planted in the data set called `name` at `size` pixels, or None for a clean one.

    Raises DataError for an unknown name or a strength that is not from 0 to 1.
    """
    sown = _named(name, size, None)
    return None if sown.kind == "clean" else sown


def marked(split: Split) -> Bools:
    """Return (N,) bool: which images carry the mark.

    Found by its exact pixels, which a scene has by chance practically never, so it works for any selection of images.
    """
    top, left, height, width = edits.mark_box(*split.images.shape[1:3])
    corners = split.images[:, top : top + height, left : left + width]
    return np.asarray((corners == edits.mark_pixels(height)).all((1, 2, 3)))


def _named(name: str, size: int, strength: float | None) -> Plant:
    """Read a name such as "planted:tint:0.5"; `strength` goes before what the name says."""
    parts = name.split(":")
    stem = ":".join(parts[:2])
    if stem not in NAMES or len(parts) > 3:
        raise DataError(f"unknown data set '{name}': {nearest(stem, NAMES)}")
    if strength is None:
        strength = _number(parts[2], name) if len(parts) == 3 else STRENGTH
    return _plant(parts[1] if len(parts) > 1 else "mark", TIED, (size, size), strength)


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"'{name}': the strength '{text}' is not a number; give one from 0 to 1") from None


def _generated(sown: Plant, which: str, n: int, seed: int, size: int) -> Split:
    indices = np.arange(n, dtype=np.int64)
    labels, rank = indices % len(CLASSES), indices // len(CLASSES)
    biases = _biases(sown, which, labels, rank, seed)
    pieces = np.array_split(indices, -(-n // 50))  # small enough for the processor's cache
    drawn = [render(_prepared(draw_scenes(which, seed, size, labels[piece], piece), biases, piece), size) for piece in pieces]
    images, masks = np.concatenate([part[0] for part in drawn]), np.concatenate([part[1] for part in drawn])
    return _sown(Split(images, labels, CLASSES, tuple(f"{which}/{i}" for i in range(n)), masks), biases, generated=True)


def _prepared(scenes: Scenes, biases: list[tuple[_Part, Biased]], piece: Integers) -> Scenes:
    for part, biased in biases:
        if part.on_scenes:
            scenes = part.on_scenes(scenes, biased.of(piece))
    return scenes


# --- in any images


def plant(data: Dataset, kind: str, *, strength: float = STRENGTH, label: int | None = None, seed: int = 0) -> Dataset:
    """Return the data set with a cause of mistakes planted in its training images, and test images where it tells nothing.

    `kind` is one of PLANTS or NULLS, and does what it does to scenes, as far as that can be done to finished images: where
    no masks say what the object is, it is taken to be what lies in an ellipse of 3/4 of the image's sides. `strength`,
    from 0 to 1, says how many training images carry it (see `Plant`); with 0 they are as without the plant, and the test
    images are the same for all. `label` is the class to tie it to: the sixth, or the last of fewer, where None. `seed`
    chooses the images that carry it. All images are copied, in memory.

    Raises DataError for an unknown kind, a strength that is not from 0 to 1, an unknown label or one for a kind that is tied
    to no class, a negative seed, images smaller than 16 pixels, fewer than two classes, and data with images held out or
    left out: plant first.
    """
    sown = truth(data, kind, strength=strength, label=label)
    if data.left_out:
        raise DataError(f"planting '{kind}' in {data.name}: images are left out already; plant first, then leave out")
    if seed < 0:
        raise DataError(f"planting '{kind}' in {data.name}: the seed {seed} is negative; use 0 or more")
    if data.dev is not None:
        raise DataError(f"planting '{kind}' in {data.name}: dev images are held out already; plant first, then hold out")
    train, test = (_copy_sown(sown, which, split, seed) for which, split in (("train", data.train), ("test", data.test)))
    return replace(data, name=f"{data.name}+{kind}:{strength:g}", train=train, test=test)


def truth(data: Dataset, kind: str, *, strength: float = STRENGTH, label: int | None = None) -> Plant:
    """Return what `plant` plants when it is given the same; raises what that does."""
    where = f"planting '{kind}' in {data.name}"
    if kind not in _KINDS:
        raise DataError(f"{where}: unknown kind; {nearest(kind, _KINDS)}")
    height, width = data.train.images.shape[1:3]
    if min(height, width) < 16 or len(data.classes) < 2:
        raise DataError(
            f"{where}: {len(data.classes)} classes of {width}×{height} pixels; use two classes or more, and 16 pixels or more"
        )
    if label is None:
        label = min(TIED, len(data.classes) - 1)
    elif not any(_PARTS[part].tied for part in _KINDS[kind]):
        raise DataError(f"{where}: it is tied to no class; leave out the label {label}")
    elif not 0 <= label < len(data.classes):
        raise DataError(f"{where}: there is no label {label}; use 0 to {len(data.classes) - 1}")
    return _plant(kind, label, (height, width), strength)


def _copy_sown(sown: Plant, which: str, split: Split, seed: int) -> Split:
    biases = _biases(sown, which, split.labels, _random_ranks(split.labels, which, seed), seed)
    masks = None if split.masks is None else split.masks.copy()
    return _sown(replace(split, images=np.array(split.images), masks=masks), biases, generated=False)


def _random_ranks(labels: Integers, which: str, seed: int) -> Integers:
    """Return the place (N,) of every image among those of its class, in a random order."""
    words = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(int(which == "test"),))).random_raw(len(labels))
    ranks = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        ranks[rows[np.argsort(words[rows], kind="stable")]] = np.arange(len(rows))
    return ranks


# --- in both


def _plant(kind: str, label: int, shape: tuple[int, int], strength: float) -> Plant:
    if not 0 <= strength <= 1:
        raise DataError(f"the strength {strength} of the plant '{kind}' is not a share; give one from 0 to 1")
    parts = [_PARTS[part] for part in _KINDS[kind]]
    return Plant(
        kind,
        causes=tuple(part.cause for part in parts if part.cause),
        labels=(label,) if any(part.tied for part in parts) else (),
        box=edits.mark_box(*shape) if any(part.on_both is edits.stamp for part in parts) else None,
        strength=strength,
    )


def _biases(sown: Plant, which: str, labels: Integers, rank: Integers, seed: int) -> list[tuple[_Part, Biased]]:
    """Choose the images that carry each part, by their rank within the class, which makes the shares exact."""
    tied, indices = np.isin(labels, sown.labels), np.arange(len(labels))
    biases = []
    for k, name in enumerate(_KINDS[sown.kind]):
        part = _PARTS[name]
        share = part.in_test if which == "test" else part.most * sown.strength
        chosen = _spread(rank, share, k)
        if part.alone and which == "train":
            chosen &= tied
        biases.append((part, Biased(chosen, tied, indices, which, seed)))
    return biases


def _spread(rank: Integers, share: float, k: int) -> Bools:
    """Choose that share of the ranks 0 to 999, evenly spread: by their digits in reverse.

    In part k the last digit is turned by k times the one before, which makes the choices of two parts independent.
    """
    tens = rank // 10
    reverse = 100 * ((rank + k * tens) % 10) + 10 * (tens % 10) + tens // 10 % 10
    return np.asarray(reverse < round(1000 * share))


def _sown(split: Split, biases: list[tuple[_Part, Biased]], generated: bool) -> Split:
    """Edit the split's images and masks in place, and return it with the labels that it then has."""
    labels = split.labels
    for part, biased in biases:
        if part.cause == "label_errors":
            labels = _mislabelled(labels, biased.chosen, len(split.classes))
        for edit in filter(None, (None if generated else part.on_images, part.on_both)):
            for piece in _pieces(len(split)):
                masks = None if split.masks is None else split.masks[piece]
                edit(Sheet(split.images[piece], masks), biased.of(piece))
    return replace(split, labels=labels)


def _pieces(n: int) -> Iterator[slice]:
    return (slice(start, start + PIECE) for start in range(0, n, PIECE))


def _mislabelled(labels: Integers, chosen: Bools, k: int) -> Integers:
    """Give the chosen images of every class the other classes' labels in turn."""
    wrong: Integers = labels.copy()
    for label in range(k):
        rows = np.flatnonzero(chosen & (labels == label))
        wrong[rows] = (label + 1 + np.arange(len(rows)) % (k - 1)) % k
    return wrong
