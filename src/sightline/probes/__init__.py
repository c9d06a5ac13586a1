"""Interventions on a model's input, each beside a sham: what it goes by, and which mistakes that explains.

evidence      what a probe finds, and the statistics of it
subject       a model and the images that it is asked about
sensitivity   curves over the magnitude of every change that leaves a picture what it is
deletion      may heatmaps be believed here?
objects       where objects lie, and what is done with them
transplants   a class's frame or tint, put on other images
marks         a class's recurring patch, put on other images
scenes        backgrounds, places and surfaces
features      trivial numbers that tell a class, without the model
labels        wrong labels, and classes that can't be told apart
field         what sets images from where the model is used apart
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..exceptions import DataError, RecipeError, SightlineError, nearest
from .deletion import deletion
from .evidence import Finding
from .features import features
from .field import field as in_the_field
from .labels import ambiguous, label_errors
from .marks import marks
from .scenes import backgrounds, positions, textures
from .sensitivity import sensitivity
from .subject import Subject
from .transplants import Known, clear, frames, tints

__all__ = ["PROBES", "Finding", "Subject", "probe"]

# In this order: what one has found is kept out of the later ones.
PROBES = (
    "deletion",
    "mark",
    "frame",
    "tint",
    "background",
    "position",
    "texture",
    "sensitivity",
    "features",
    "labels",
    "ambiguous",
    "field",
)
SHORTCUTS = ("mark", "tint_frame", "background", "position", "texture")  # causes that are a class's own
LOOKING = ("deletion", "mark", "position")  # these use heatmaps


def probe(
    subject: Subject,
    *,
    seed: int = 0,
    maps: NDArray[np.float32] | None = None,
    field: NDArray[np.uint8] | None = None,
    only: Sequence[str] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Finding]:
    """Return the findings of all probes, or of those named in `only` (of PROBES), in a fixed order and number.

    Every probe and class is there, also what found nothing: corrections for many tests need them all. maps: heatmaps
    (N, h, w) of the predicted classes; made where they are needed and not given.  field: images (M, H, W, 3) uint8 from where the
    model is used, without labels; where there are none, the probe "field" isn't made. The same seed gives the same findings,
    whatever `only` leaves out, except that what a left-out probe would have found isn't kept out of later ones.
    `on_progress(done, total)` counts probes.

    Raises RecipeError for an unknown probe, DataError for maps that don't fit.
    """
    chosen = [name for name in (PROBES if only is None else only) if name != "field" or field is not None]
    for name in chosen:
        if name not in PROBES:
            raise RecipeError(f"unknown probe '{name}': {nearest(name, PROBES)}")
    if maps is not None and (maps.ndim != 3 or len(maps) != len(subject) or not np.isfinite(maps).all()):
        raise DataError(
            f"{len(subject)} images need as many finite maps (N, h, w), not {maps.shape}; leave them out to have them made"
        )
    if field is not None and field.shape[1:] != subject.split.images.shape[1:]:
        raise DataError(
            f"images from the field have the shape {field.shape[1:]}, not {subject.split.images.shape[1:]}; resize them"
        )
    if maps is None and not set(LOOKING).isdisjoint(chosen):
        maps = _heatmaps(subject)
    known, findings = Known.of(subject), list[Finding]()
    for done, name in enumerate(name for name in PROBES if name in chosen):
        on_progress(done, len(chosen))
        new = _made(name, subject, np.random.default_rng((seed, zlib.crc32(name.encode()))), known, maps, field)
        known.labels.update(f.label for f in new if f.label is not None and f.cause in SHORTCUTS and clear(f))
        findings += new
    on_progress(len(chosen), len(chosen))
    return findings


def _made(
    name: str,
    subject: Subject,
    random: np.random.Generator,
    known: Known,
    maps: NDArray[np.float32] | None,
    field: NDArray[np.uint8] | None,
) -> list[Finding]:
    """Make one probe."""
    match name:
        case "deletion":
            return deletion(subject, random, maps)
        case "mark":
            return marks(subject, random, known, maps)
        case "frame":
            return frames(subject, random, known)
        case "tint":
            return tints(subject, random, known)
        case "background":
            return backgrounds(subject, random, known)
        case "position":
            return positions(subject, random, known, maps)
        case "texture":
            return textures(subject, random, known)
        case "sensitivity":
            return sensitivity(subject, random, known.labels)
        case "features":
            return features(subject, random)
        case "labels":
            return [label_errors(subject)]
        case "field" if field is not None:
            return in_the_field(subject, field, random)
    return ambiguous(subject)


def _heatmaps(subject: Subject) -> NDArray[np.float32] | None:
    """Return the subject's heatmaps, or None for a model that has none: heatmaps only propose, everything else goes on."""
    try:
        return subject.heatmaps()
    except SightlineError:
        return None
