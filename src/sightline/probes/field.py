"""What sets images from where a model is used apart from those that it is judged on, and what that costs; no labels needed.

The field's images are taken for a mixture: a share of them is like the dev images, another is like these made darker, another
like these with a part hidden, and so on. The shares are those whose mixture comes nearest to the field in the histograms of some
eighty simple numbers of an image (`descriptors`). What a change costs is known from the dev images, which have labels: the
accuracy that it takes from them. A share times that is what the field loses by it.

The sham is a field that is none: dev images drawn again. By it a change is allowed a share only where it brings dev images
nearer to the field than any change brings them to a sham, but for one sham in ten. And the mixture must explain most of what sets
the field apart: there is more between heaven and earth than the changes tried, and the nearest of them would be blamed for it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded where they are first used: they take a second
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..models import to_device
from .evidence import FEWEST, Bools, Effect, Finding, Floats, Integers, found, nothing, stands_out
from .sensitivity import CURVES, Curve, Draws, choice, surest
from .subject import Subject

IMAGES = 1000  # of dev and of the field, at most
LEAST_IMAGES = 5 * FEWEST  # of either
SHAMS, RESAMPLES = 60, 100
ALLOWED = 0.9  # of the shams, in which no change gets a share
EXPLAINED = 2 / 3  # of the distance to the field, beyond the shams', from which on the mixture is believed
TOGETHER = 100.0  # the weight of "the shares are 1 together" beside the histograms' distance
TINY = 1e-6  # on the diagonal, for versions that hardly differ
BINS = 5  # of a histogram, of equally many images each
COMPONENTS = 100  # of all bins together, at most
RIDGE = 0.1  # of the components' mean variance: the last ones would be noise
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles of the light
DIRECTIONS = 8  # of a half circle
GRID = 4  # cells a side, of what is measured by place
BLOCK = 8  # pixels a side that JPEG compresses together
FURTHER = {  # magnitudes beyond a curve's: in the field a picture may be worse than what a person calls the same
    "darker": (-0.6, -0.75),
    "brighter": (0.7,),
    "less contrast": (-0.65,),
    "rotation": (60, 90),
    "blur": (2.5,),
    "noise": (0.2,),
    "jpeg": (8,),
    "occlusion": (5 / 8,),
}


class Change(NamedTuple):
    """A change of dev images that may make them look like the field's."""

    curve: Curve
    magnitude: float


CHANGES = tuple(Change(curve, value) for curve in CURVES for value in (*curve.magnitudes, *FURTHER.get(curve.probe, ())))
CAUSES = tuple(dict.fromkeys(curve.cause for curve in CURVES))


def field(subject: Subject, images: NDArray[np.uint8], random: np.random.Generator) -> list[Finding]:
    """Return a finding a cause of CAUSES, called "field": the share of accuracy that the field loses by it, beyond the sham's.

    images: (M, H, W, 3), the field's, as large as the subject's. rate: the share of the field that looks like each of the cause's
    changes, times the accuracy that this takes from the dev images, summed. The interval is twice the spread over dev and field
    resampled. p is the larger of two: of how much nearer the best of the cause's changes brings dev images to the field, among
    what the best of all does to the shams; and of the effect against its spread.
    rows: right images that the costliest change makes wrong. detail: share, of the field; change and magnitude, the costliest;
    knee, reference, that magnitude, for what is prescribed; alike, the share of the field that looks like dev.
    """
    rows = choice(random, np.arange(len(subject)), IMAGES)
    pictures = images[choice(random, np.arange(len(images)), IMAGES)]
    if min(len(rows), len(pictures)) < LEAST_IMAGES:
        note = f"{len(rows)} dev images and {len(pictures)} of the field; at least {LEAST_IMAGES} of each are needed"
        return [nothing("field", cause, None, note) for cause in CAUSES]
    numbers, right = _changed(subject, rows, random)
    there = torch.cat([descriptors(to_device(pictures[i], subject.device)) for i in subject.pieces(np.arange(len(pictures)))])
    versions, wanted = _seen(numbers, there.numpy())
    cost = right[:, 0].mean() - right.mean(0)

    shams = [_drawn(versions, versions[0], len(there), random) for _ in range(SHAMS)]
    pull = np.stack([pulls(*sham) for sham in shams])
    spread = pull.std(0) + 1e-12
    by_chance = (pull[:, 1:] / spread[1:]).max(1)
    penalties = np.append(0.0, np.quantile(by_chance, ALLOWED) * spread[1:])
    histograms, aim = versions.mean(1, dtype=np.float64).T, wanted.mean(0, dtype=np.float64)
    drawn = [_drawn(versions, wanted, len(there), random) for _ in range(RESAMPLES)]
    shares = chosen(histograms, aim, penalties)
    of_shams, of_drawn = (np.stack([chosen(*some, penalties) for some in several]) for several in (shams, drawn))
    explained = _explained((histograms, aim), shares, shams, of_shams)
    if explained is not None and explained < EXPLAINED:
        note = f"the changes tried explain {max(explained, 0.0):.0%} of what sets the field apart: it is something else"
        return [nothing("field", cause, None, note) for cause in CAUSES]
    nearer = pulls(histograms, aim) / spread
    return [
        _finding(
            subject,
            cause,
            rows[right[:, 0]],
            right[right[:, 0]],
            shares,
            np.where(_of(cause), cost, 0.0),
            of_shams,
            of_drawn,
            p=stands_out(float(nearer[_of(cause)].max()), by_chance),
            there=len(there),
        )
        for cause in CAUSES
    ]


def mixture(histograms: Floats, wanted: Floats, penalties: Floats) -> Floats:
    """Return the shares (K,), at least 0 and 1 together, whose mixture of histograms (B, K) is nearest to `wanted` (B,).

    The least of |histograms @ shares − wanted|² + 2 · penalties @ shares, penalties (K,), by Lawson and Hanson's non-negative
    least squares (1974, "Solving Least Squares Problems") on the normal equations.
    """
    count = histograms.shape[1]
    gram = histograms.T @ histograms + TOGETHER + TINY * np.eye(count)
    root = np.linalg.cholesky(gram)
    aim = scipy.linalg.solve_triangular(root, histograms.T @ wanted + TOGETHER - penalties, lower=True)
    shares, _ = scipy.optimize.nnls(root.T, aim)
    return np.asarray(shares / shares.sum())


def chosen(histograms: Floats, wanted: Floats, penalties: Floats) -> Floats:
    """Return the shares (K,) of `mixture`, fitted again without penalties among the first version and those that got a share.

    The penalties decide what takes part; they would also make every share too small.
    """
    part = mixture(histograms, wanted, penalties) > 0
    part[0] = True
    shares = np.zeros(len(part))
    shares[part] = mixture(histograms[:, part], wanted, np.zeros(int(part.sum())))
    return shares


def distance(histograms: Floats, wanted: Floats, shares: Floats) -> float:
    """Return the square of how far the mixture of histograms (B, K) by shares (K,) is from `wanted` (B,)."""
    return float(((histograms @ shares - wanted) ** 2).sum())


def pulls(histograms: Floats, wanted: Floats) -> Floats:
    """Return how fast each version (K,) would bring the first one nearer to `wanted`, taken in its place; see `mixture`.

    Where no version's penalty is below that, the mixture is the first version alone (the condition of Karush, Kuhn and Tucker).
    """
    return np.asarray((histograms - histograms[:, :1]).T @ (wanted - histograms[:, 0]))


def descriptors(images: Tensor) -> Tensor:
    """Return simple numbers of images (B, 3, H, W) uint8: (B, D) float64 on the CPU.

    Of the light its mean, spread and quantiles; colour; how much the light changes from pixel to pixel, down and across, at
    three scales, and in which directions; flat pixels; noise; JPEG's blocks; light and change by place.
    """
    x = images.float() / 255
    red, green, blue = x.unbind(1)
    light = x.mean(1)
    numbers = [light.mean((1, 2)), light.std((1, 2)), *torch.quantile(light.flatten(1), torch.tensor(LEVELS).to(light), dim=1)]
    numbers += [(a - b).mean((1, 2)) for a, b in ((red, green), (green, blue), (blue, red))]
    numbers += [(x.amax(1) - x.amin(1)).mean((1, 2)), (red - green).std((1, 2)), (green - blue).std((1, 2))]
    for scale in (1, 2, 4):
        numbers += _changes(F.avg_pool2d(light[:, None], scale)[:, 0])
    down, across = _steps(light)
    change = down.abs() + across.abs()
    numbers += [(change < 2 / 255).float().mean((1, 2)), _noise(light), _blocks(light)]
    for by_place in (light, change):
        numbers += F.adaptive_avg_pool2d(by_place[:, None], GRID).flatten(1).unbind(1)
    return torch.stack(numbers, 1).cpu().double()


def _steps(light: Tensor) -> tuple[Tensor, Tensor]:
    """How the light (B, H, W) changes down and across, (B, H − 1, W − 1) each."""
    return light[:, 1:, :-1] - light[:, :-1, :-1], light[:, :-1, 1:] - light[:, :-1, :-1]


def _changes(light: Tensor) -> list[Tensor]:
    """How much the light changes down and across, and the share of that in each of DIRECTIONS directions, (B,) each."""
    down, across = _steps(light)
    size, angle = torch.hypot(down, across), torch.atan2(down, across) / torch.pi % 1
    which, total = (angle * DIRECTIONS).long().clamp(max=DIRECTIONS - 1), size.sum((1, 2)) + 1e-6
    shares = [(size * (which == i)).sum((1, 2)) / total for i in range(DIRECTIONS)]
    return [down.abs().mean((1, 2)), across.abs().mean((1, 2)), *shares]


def _noise(light: Tensor) -> Tensor:
    """The median of what a pixel differs by from the mean of its neighbours, (B,)."""
    around = (light[:, :-2, 1:-1] + light[:, 2:, 1:-1] + light[:, 1:-1, :-2] + light[:, 1:-1, 2:]) / 4
    return (light[:, 1:-1, 1:-1] - around).abs().flatten(1).median(1).values


def _blocks(light: Tensor) -> Tensor:
    """How much more the light changes from block to block than within, (B,)."""
    across = (light[:, :, 1:] - light[:, :, :-1]).abs().mean(1)
    at_edge = torch.arange(1, light.shape[2], device=light.device) % BLOCK == 0
    if not at_edge.any():  # an image of one block
        return torch.zeros_like(across[:, 0])
    return across[:, at_edge].mean(1) - across[:, ~at_edge].mean(1)


def _changed(subject: Subject, rows: Integers, random: np.random.Generator) -> tuple[Floats, Bools]:
    """Return descriptors (K, N, D) of the rows as they are and under each of CHANGES, and which are called right then (N, K)."""
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    numbers, right = [], []
    for piece in subject.pieces(rows):
        images, labels = subject.images(piece), subject.labels[piece]
        draws = Draws.of(images, generator)  # whole pictures are described, so whole pictures are changed
        versions = [images, *(change.curve.change(images, change.magnitude, draws, subject) for change in CHANGES)]
        numbers.append(torch.stack([descriptors(version) for version in versions]).numpy())
        right.append(np.stack([subject.calls(version) == labels for version in versions], 1))
    return np.concatenate(numbers, 1), np.concatenate(right)


def _seen(numbers: Floats, there: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what the mixture is fitted in, of the versions (K, N, C) and of the field (M, C): main components of all bins.

    numbers: (K, N, D), the first version the images as they are.  there: (M, D). Bins of numbers that go together would count
    many times; the main components of dev and field together, each over its spread, count once each.
    """
    edges = np.quantile(np.concatenate([numbers[0], there]), np.arange(1, BINS) / BINS, axis=0)
    own, others = binned(numbers[0], edges), binned(there, edges)
    values, vectors = np.linalg.eigh(np.cov(np.concatenate([own, others]), rowvar=False))
    count = min(COMPONENTS, (len(own) + len(others)) // 8)
    scaled = vectors[:, -count:] / np.sqrt(values[-count:] + RIDGE * values[-count:].mean())
    rotation = scaled.astype(np.float32)
    return np.stack([binned(version, edges) @ rotation for version in numbers]), others @ rotation


def binned(values: Floats, edges: Floats) -> NDArray[np.float32]:
    """Say for each image which bin each of its numbers falls in: values (N, D), edges (E, D) → (N, D × (E + 1)), 0 or 1."""
    where = (values[:, None] >= edges).sum(1)
    return np.asarray(where[:, :, None] == np.arange(len(edges) + 1), np.float32).reshape(len(values), -1)


def _drawn(
    versions: NDArray[np.float32], field_: NDArray[np.float32], there: int, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return histograms (C, K) of the dev images drawn again, and (C,) of `there` images drawn from `field_` (M, C)."""
    own, other = (
        random.multinomial(n, np.full(total, 1 / total)) / n
        for n, total in ((versions.shape[1], versions.shape[1]), (there, len(field_)))
    )
    return np.tensordot(versions, own, (1, 0)).T, other @ field_


def _explained(
    field_: tuple[Floats, Floats], shares: Floats, shams: list[tuple[Floats, Floats]], of_shams: Floats
) -> float | None:
    """Return how much of what sets the field apart a mixture takes away, beyond what is left of shams; None where nothing does.

    field_, shams: histograms and what they are to come near, see `mixture`.  shares: (K,), of_shams: (S, K).
    """
    alone = np.eye(len(shares))[0]
    apart = distance(*field_, alone)
    if apart <= np.quantile([distance(*sham, alone) for sham in shams], ALLOWED):
        return None
    left = float(np.mean([distance(*sham, own) for sham, own in zip(shams, of_shams, strict=True)]))
    return (apart - distance(*field_, shares)) / max(apart - left, 1e-12)


def _of(cause: str) -> Bools:
    """Which versions are a cause's, (K,); the first version is the images as they are."""
    return np.array([False, *(change.curve.cause == cause for change in CHANGES)])


def _finding(
    subject: Subject,
    cause: str,
    rows: Integers,
    right: Bools,
    shares: Floats,
    cost: Floats,
    of_shams: Floats,
    of_drawn: Floats,
    *,
    p: float,
    there: int,
) -> Finding:
    """Judge a cause.

    rows: (R,), right images, and which stay right under each version (R, K).  shares: of the versions, (K,), of the shams and of
    the resamples (S, K).  cost: of the cause's own versions, 0 for the others.
    """
    rate, sham, spread = float(shares @ cost), float((of_shams @ cost).mean()), float((of_drawn @ cost).std())
    effect, half = rate - sham, 1.96 * spread
    p = max(p, float(scipy.stats.norm.sf(effect / spread))) if effect > 0 and spread > 0 else 1.0
    costliest = int((shares * cost).argmax()) or int(_of(cause).argmax())
    change = CHANGES[costliest - 1]
    return found(
        "field",
        cause,
        None,
        Effect(rate, sham, effect, max(-1.0, effect - half), min(1.0, effect + half), p, there),
        rows=surest(subject.margins, rows[~right[:, costliest]]),
        share=float(shares[_of(cause)].sum()),
        change=change.curve.probe,
        magnitude=change.magnitude,
        knee=change.magnitude,
        reference=change.magnitude,
        alike=float(shares[0]),
    )
