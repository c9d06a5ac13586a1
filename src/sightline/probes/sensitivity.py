"""Which changes that leave a picture what it is make the model change its mind: curves over their magnitude, beside a sham.

    step       for what moves the picture: a move by one pixel. Equal pixel energy, as below, would destroy the picture; this is
               the model's general unsteadiness
    shading    for what changes its light, colour or quality: uneven light, smooth over the image and alike in all channels, of
               the same root mean square change in that image
    scatter    for a hidden square: as many pixels hidden, but in small pieces all over the image, so that no part of the object
               is gone

Of each finding the rate is that of a reference magnitude, at which a person still sees the same picture. One-sided curves
(darker, brighter) are told apart; where no side differs from the other by its meaning each image's is drawn.

A mirror image costs a model that never saw one some of its sureness long before it costs it the answer. Of flips the rate is
therefore what the true class loses in probability.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..augment import Blur, CoarseDropout, ColorJitter, Grey, HorizontalFlip, Jpeg, Noise, Rotate, Scale, Shift
from .evidence import FEWEST, SHOWN, Bools, Finding, Floats, Integers, differing, found, nothing, paired, repairs
from .objects import objects, resized
from .subject import Subject

RIGHT, WRONG = 300, 150  # right and wrong images, at most, of which curves are made
COARSE = 4  # knots a side of uneven light
DIRECTIONS = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])  # rows, columns
PIECES = 32  # along each side: single pixels of a small image


@dataclass(frozen=True)
class Draws:
    """What is random in the changes of N images, drawn once: the same at every magnitude, so that curves are smooth.

    And where their objects are, if that is known: masks, (N, 1, H, W) bool or None.

    signs: (N,) 1 or −1.  directions, steps: (N, 2) int64, one of four.  noise: (N, C, H, W), standard normal.  light:
    (N, 1, H, W), smooth, of mean 0 and mean square 1.  places: (N, 2) in [0, 1).  order: (N, h, w), uniform in [0, 1): which of
    PIECES × PIECES goes first.
    """

    signs: Tensor
    directions: Tensor
    steps: Tensor
    noise: Tensor
    light: Tensor
    places: Tensor
    order: Tensor
    masks: Tensor | None = None

    @classmethod
    def of(cls, images: Tensor, generator: torch.Generator, masks: Tensor | None = None) -> Draws:
        """Draw for images (N, C, H, W)."""
        n, _, height, width = images.shape
        knots = torch.randn((n, 1, COARSE, COARSE), generator=generator)
        light = F.interpolate(knots, (height, width), mode="bilinear", align_corners=True)
        light = light - light.mean((2, 3), keepdim=True)
        directions, steps = (DIRECTIONS[torch.randint(4, (n,), generator=generator)] for _ in range(2))
        return cls(
            signs=torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1,
            directions=directions,
            steps=steps,
            noise=torch.randn(images.shape, generator=generator),
            light=(light / light.square().mean((2, 3), keepdim=True).sqrt()).to(images.device),
            places=torch.rand((n, 2), generator=generator),
            order=torch.rand((n, min(height, PIECES), min(width, PIECES)), generator=generator).to(images.device),
            masks=masks,
        )

    @classmethod
    def for_rows(cls, subject: Subject, rows: Integers, images: Tensor, generator: torch.Generator) -> Draws:
        """Draw for the images of a subject's rows."""
        return cls.of(images, generator, objects(subject, rows) if subject.masked else None)


Change = Callable[[Tensor, float, Draws, Subject], Tensor]  # images (N, C, H, W) uint8 and a magnitude → uint8


@dataclass(frozen=True)
class Curve:
    """A change over its magnitudes, the mildest first; `reference` is one of them.

    sham: "step", "shading" or "scatter", see above.  judged: by the "answers" that become wrong, or by the "probability" that the
    true class loses.
    """

    probe: str
    cause: str
    magnitudes: tuple[float, ...]
    reference: float
    change: Change
    sham: str = "shading"
    judged: Literal["answers", "probability"] = "answers"


def _full(images: Tensor, value: float) -> Tensor:
    return torch.full((len(images),), value)


def _flip(images: Tensor, magnitude: float, draws: Draws, subject: Subject) -> Tensor:
    return HorizontalFlip().apply(images, torch.ones(len(images), dtype=torch.bool))


def _shift(images: Tensor, magnitude: float, draws: Draws, subject: Subject) -> Tensor:
    pixels = torch.tensor([round(magnitude * side) for side in subject.size])
    return Shift().apply(images, draws.directions * pixels)


def _scale(images: Tensor, magnitude: float, draws: Draws, subject: Subject) -> Tensor:
    factors = _full(images, magnitude)
    return Scale().apply(images, factors) if draws.masks is None else resized(images, draws.masks, factors)


def _rotate(images: Tensor, magnitude: float, draws: Draws, subject: Subject) -> Tensor:
    return Rotate().apply(images, draws.signs * magnitude)


def _jitter(images: Tensor, which: int, value: Tensor) -> Tensor:
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(len(images), 1)
    factors[:, which] = value
    return ColorJitter().apply(images, factors)


def _brightness(images: Tensor, magnitude: float, draws: Draws, subject: Subject) -> Tensor:
    return _jitter(images, 0, _full(images, 1 + magnitude))


def _contrast(images: Tensor, magnitude: float, draws: Draws, subject: Subject) -> Tensor:
    return _jitter(images, 1, _full(images, 1 + magnitude))


def _hue(images: Tensor, magnitude: float, draws: Draws, subject: Subject) -> Tensor:
    return _jitter(images, 3, draws.signs * magnitude)


def _grey(images: Tensor, magnitude: float, draws: Draws, subject: Subject) -> Tensor:
    return Grey().apply(images, torch.ones(len(images), dtype=torch.bool))


def _blur(images: Tensor, magnitude: float, draws: Draws, subject: Subject) -> Tensor:
    return Blur().apply(images, _full(images, magnitude))


def _noise(images: Tensor, magnitude: float, draws: Draws, subject: Subject) -> Tensor:
    return Noise().apply(images, _full(images, magnitude), draws.noise)


def _jpeg(images: Tensor, magnitude: float, draws: Draws, subject: Subject) -> Tensor:
    return Jpeg().apply(images, _full(images, magnitude).long())


def _hide(images: Tensor, magnitude: float, draws: Draws, subject: Subject) -> Tensor:
    size = round(magnitude * min(subject.size))
    corners = (draws.places * (torch.tensor(subject.size) - size + 1)).long()
    return CoarseDropout(size, fill=_mean(subject)).apply(images, torch.ones(len(images), dtype=torch.bool), corners)


def _mean(subject: Subject) -> tuple[float, ...]:
    return tuple(subject.normalise.shift.flatten().tolist())


CURVES = (
    Curve("flip", "missing_flip", (1,), 1, _flip, "step", judged="probability"),
    Curve("shift", "position", (1 / 16, 1 / 8, 1 / 4), 1 / 8, _shift, "step"),  # of a side, in one of four directions
    Curve("smaller", "scale", (0.87, 0.75, 0.6), 0.75, _scale, "step"),  # the object alone, where the data know it
    Curve("larger", "scale", (1.15, 1.33, 1.6), 1.6, _scale, "step"),
    Curve("rotation", "rotation", (5, 10, 20, 30), 10, _rotate, "step"),  # degrees, either way
    Curve("darker", "lighting", (-0.15, -0.3, -0.45), -0.3, _brightness),  # added to a factor of 1
    Curve("brighter", "lighting", (0.15, 0.3, 0.45), 0.3, _brightness),
    Curve("less contrast", "lighting", (-0.15, -0.3, -0.45), -0.3, _contrast),
    Curve("more contrast", "lighting", (0.15, 0.3, 0.45), 0.3, _contrast),
    Curve("hue", "colour", (0.1, 0.25, 0.5), 0.1, _hue),  # turns of the colour circle, either way
    Curve("grey", "colour", (1,), 1, _grey),
    Curve("blur", "blur_noise", (0.5, 1, 1.5), 1, _blur),  # standard deviation in pixels
    Curve("noise", "blur_noise", (0.04, 0.08, 0.12), 0.04, _noise),  # standard deviation as a share of 255 levels
    Curve("jpeg", "blur_noise", (70, 40, 20), 40, _jpeg),  # quality
    Curve("occlusion", "occlusion", (1 / 4, 3 / 8, 1 / 2), 1 / 4, _hide, "scatter"),  # side of a square, of the image's
)


def sensitivity(subject: Subject, random: np.random.Generator, explained: Collection[int] = ()) -> list[Finding]:
    """Return a finding a curve of CURVES: the share of right images that the change makes wrong, beyond the sham's.

    Of a flip it is the probability that their class loses, on average. `repaired` and `repairs` are of the mistakes, at the
    reference magnitude; of the former the share of right answers that are lost is taken off. detail: magnitudes, the mildest
    first; breaks and sham, the shares of wrong answers at each; low, the lower end of the 95 % interval of their difference;
    knee, the mildest magnitude at which that is above 0, or None; reference; kind, of the sham; masks, whether the data know
    where the objects are.

    explained: classes with a shortcut. Their images break because that is disturbed, which is no reason to want the change:
    they are left out, as long as they aren't most of all.
    """
    own = subject.right & ~np.isin(subject.labels, list(explained))
    own = own if 2 * own.sum() >= subject.right.sum() else subject.right
    right, wrong = (choice(random, np.flatnonzero(which), n) for which, n in ((own, RIGHT), (~subject.right, WRONG)))
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    broken = _answers(subject, right, generator, all_magnitudes=True)
    mended = _answers(subject, wrong, generator, all_magnitudes=False)
    findings = [_finding(subject, curve, right, ~broken[curve.probe], wrong, mended[curve.probe]) for curve in CURVES]
    return [
        _by_probability(subject, finding, right) if curve.judged == "probability" and finding.n else finding
        for curve, finding in zip(CURVES, findings, strict=True)
    ]


def _by_probability(subject: Subject, finding: Finding, right: Integers) -> Finding:
    """Return what is found of flips with the probability that the true class loses in place of the share of wrong answers."""
    lost = np.concatenate([_lost(subject, rows) for rows in subject.pieces(right)])
    rows = right[np.argsort(lost[:, 1] - lost[:, 0], kind="stable")]
    return replace(finding, **differing(lost[:, 0], lost[:, 1])._asdict(), rows=tuple(int(row) for row in rows[:SHOWN]))


def _lost(subject: Subject, rows: Integers) -> Floats:
    """Return what the true class of rows (B,) loses in probability when mirrored, and on average when moved a pixel: (B, 2)."""
    images, labels = subject.images(rows), torch.from_numpy(subject.labels[rows])

    def sure(changed: Tensor) -> Tensor:
        return subject.ask(changed).softmax(1).gather(1, labels[:, None])[:, 0]

    steps = torch.stack([sure(Shift().apply(images, step.expand(len(rows), 2))) for step in DIRECTIONS]).mean(0)
    left = torch.stack([sure(images.flip(3)), steps], 1)
    lost: Floats = (sure(images)[:, None] - left).double().numpy()
    return lost


def choice(random: np.random.Generator, rows: Integers, limit: int) -> Integers:
    """Return at most `limit` of the rows, drawn at random, in their order."""
    return rows if len(rows) <= limit else np.sort(random.choice(rows, limit, replace=False))


def _answers(subject: Subject, rows: Integers, generator: torch.Generator, *, all_magnitudes: bool) -> dict[str, Bools]:
    """Ask about every change of the rows, and return by curve which answers are right: (N, magnitudes, 2), the sham's last."""
    parts: dict[str, list[Bools]] = {curve.probe: [] for curve in CURVES}
    for piece in subject.pieces(rows):
        images, labels = subject.images(piece), subject.labels[piece]
        draws = Draws.for_rows(subject, piece, images, generator)
        step = subject.calls(Shift().apply(images, draws.steps)) == labels
        for curve in CURVES:
            columns = []
            for magnitude in curve.magnitudes if all_magnitudes else (curve.reference,):
                changed = curve.change(images, magnitude, draws, subject)
                sham = (
                    step
                    if curve.sham == "step"
                    else subject.calls(_sham(curve, images, changed, magnitude, draws, subject)) == labels
                )
                columns.append(np.stack([subject.calls(changed) == labels, sham], 1))
            parts[curve.probe].append(np.stack(columns, 1))
    none = np.empty((0, 1, 2), bool)
    return {probe: np.concatenate(some) if some else none for probe, some in parts.items()}


def _sham(curve: Curve, images: Tensor, changed: Tensor, magnitude: float, draws: Draws, subject: Subject) -> Tensor:
    if curve.sham == "shading":
        return shaded(images, changed, draws.light)
    size = round(magnitude * min(subject.size))
    return scattered(images, size * size / (subject.size[0] * subject.size[1]), draws.order, _mean(subject))


def shaded(images: Tensor, changed: Tensor, light: Tensor) -> Tensor:
    """Return images under uneven light (N, 1, H, W) that changes each by the same root mean square as in `changed`."""
    before = images.float()
    energy = (changed.float() - before).square().mean((1, 2, 3), keepdim=True).sqrt()
    strength = energy
    for _ in range(3):  # what is cut off at black and white must be made up for
        result = (before + strength * light).round().clamp(0, 255)
        reached = (result - before).square().mean((1, 2, 3), keepdim=True).sqrt()
        strength = strength * (energy / reached.clamp(min=1e-3)).clamp(0.5, 2)
    return result.to(torch.uint8)


def scattered(images: Tensor, share: float, order: Tensor, fill: tuple[float, ...]) -> Tensor:
    """Return images (N, C, H, W) with a share of their pixels filled, in pieces; order (N, h, w), lowest first."""
    count = round(share * order[0].numel())
    first = order.flatten(1).argsort(1).argsort(1).view(order.shape) < count
    hidden = F.interpolate(first[:, None].float(), images.shape[2:], mode="nearest") > 0
    return torch.where(hidden, levels(fill, images), images)


def levels(fill: tuple[float, ...], images: Tensor) -> Tensor:
    """Return levels, one a channel, rounded, as a tensor that goes with images (N, C, H, W)."""
    return torch.tensor(fill, device=images.device).round().to(images.dtype)[:, None, None]


def _finding(subject: Subject, curve: Curve, right: Integers, broken: Bools, wrong: Integers, mended: Bools) -> Finding:
    """Judge a curve: broken (N, magnitudes, 2) of the right rows, mended (M, 1, 2) of the wrong ones."""
    if len(right) < FEWEST:
        return nothing(curve.probe, curve.cause, None, f"{len(right)} right images; at least {FEWEST} are needed")
    effects = [paired(broken[:, i, 0], broken[:, i, 1:]) for i in range(len(curve.magnitudes))]
    at = curve.magnitudes.index(curve.reference)
    shown = right[broken[:, at, 0] & ~broken[:, at, 1]]
    clear = [magnitude for magnitude, effect in zip(curve.magnitudes, effects, strict=True) if effect.low > 0]
    mends = repairs(wrong, mended[:, 0, 0], mended[:, 0, 1])
    if len(wrong):  # what makes a model say anything makes it say the right thing too, now and then
        mends["repaired"] -= max(0.0, effects[at].effect)
    return found(
        curve.probe,
        curve.cause,
        None,
        effects[at],
        **mends,
        rows=surest(subject.margins, shown),
        magnitudes=list(curve.magnitudes),
        breaks=[effect.rate for effect in effects],
        sham=[effect.sham for effect in effects],
        low=[float(effect.low) for effect in effects],
        knee=clear[0] if clear else None,
        reference=curve.reference,
        kind=curve.sham,
        masks=subject.masked,
    )


def surest(margins: Floats, rows: Integers) -> Integers:
    """Return rows, that of the surest answer first: where it breaks, it tells the most."""
    return rows[np.argsort(-margins[rows], kind="stable")]
