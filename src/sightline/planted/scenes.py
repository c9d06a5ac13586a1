"""Scenes: what is random in them, and how they are drawn.

Lengths are in 32nds of the image's side: pixels, at the default size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]
Images = NDArray[np.uint8]


# --- shapes


@dataclass(frozen=True)
class Shape:
    """`inside(x, y)` says which points are in the shape, whose `area` scales it to that of the unit disc."""

    inside: Callable[[Floats, Floats], Bools]
    area: float


def _triangle(x: Floats, y: Floats) -> Bools:
    return (y >= -0.5) & (0.8660254037844386 * abs(x) + 0.5 * y <= 0.5)


def _star(x: Floats, y: Floats) -> Bools:
    """A pentagram is what lies inside at least four of the five lines that join its tips."""
    a, b = 0.9510565162951535 * x, 0.5877852522924731 * x
    c, d = 0.30901699437494745 * y, 0.8090169943749475 * y
    heights = (y, c + a, c - a, b - d, -b - d)
    lines = sum((h <= 0.30901699437494745).astype(np.int8) for h in heights)
    return np.asarray(lines >= 4)


def _heart(x: Floats, y: Floats) -> Bools:
    """A disc sheared upwards by 0.8 √|x|, which keeps its area."""
    a = y - 0.8 * np.sqrt(abs(x))
    return x * x + a * a <= 1


def _arrow(x: Floats, y: Floats) -> Bools:
    return ((x >= -1) & (x <= 0) & (abs(y) <= 0.24)) | ((x >= 0) & (abs(y) <= 0.8 * (1 - x)))


SHAPES = {
    "circle": Shape(lambda x, y: x * x + y * y <= 1, np.pi),
    "ring": Shape(lambda x, y: abs(x * x + y * y - 0.65) <= 0.35, 2.1991),
    "square": Shape(lambda x, y: np.maximum(abs(x), abs(y)) <= 1, 4),
    "bar": Shape(lambda x, y: (abs(x) <= 1) & (abs(y) <= 0.36), 1.44),
    "triangle": Shape(_triangle, 1.2990),
    "star": Shape(_star, 1.1226),
    "cross": Shape(lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.33) & (np.maximum(abs(x), abs(y)) <= 1), 2.2044),
    "crescent": Shape(lambda x, y: (x * x + y * y <= 1) & ((x - 0.45) * (x - 0.45) + y * y >= 0.7225), 1.3081),
    "heart": Shape(_heart, np.pi),
    "arrow": Shape(_arrow, 1.28),
}
CLASSES = tuple(SHAPES)
CLUTTER = (  # the area of the unit disc leaves these as small as they are
    Shape(lambda x, y: (abs(x) <= 1) & (abs(y) <= 0.12), np.pi),  # a stroke
    Shape(lambda x, y: x * x + 5 * y * y <= 0.2, np.pi),  # a speck
)
FURTHEST = 1.7  # no shape reaches further from its centre, in radii of the disc of equal area


# --- scenes


@dataclass(frozen=True)
class Surface:
    """What fills an area: `texture` (N,) picks between two `colours` (N, 2, 3) at every point."""

    texture: Integers
    turn: Floats  # (N, 2): cosine and sine
    period: Floats  # (N,)
    phase: Floats  # (N, 2)
    lattice: Floats  # (N, 6, 6), what clouds are interpolated from
    colours: Floats


@dataclass(frozen=True)
class Figure:
    """Where a shape lies: one of several, each scaled to the area of a disc."""

    kind: Integers  # (N,): which shape
    centre: Floats  # (N, 2): x and y
    radius: Floats  # (N,): of the disc of equal area
    turn: Floats  # (N, 2): cosine and sine


@dataclass(frozen=True)
class Scenes:
    """All that is random in N scenes. Some causes are planted by an edit of these arrays."""

    background: Surface
    clutter: list[tuple[Figure, Floats]]  # with colours (N, 3)
    object: Figure
    fill: Surface
    noise: Floats  # (N, H, W), added to all channels


class Draws:
    """Numbers in [0, 1) for N images, taken in a fixed order from a stream an image (and `purpose`)."""

    def __init__(self, which: str, seed: int, indices: Integers, count: int, *purpose: int) -> None:
        streams = [np.random.SeedSequence(seed, spawn_key=(int(which == "test"), int(i), *purpose)) for i in indices]
        words = np.stack([np.random.PCG64(stream).random_raw(count) for stream in streams])
        self._numbers: Floats = (words >> np.uint64(11)) * 2.0**-53
        self._taken = 0

    def take(self, *shape: int) -> Floats:
        """Return the next numbers as (N, *shape)."""
        first, self._taken = self._taken, self._taken + int(np.prod(shape))
        return self._numbers[:, first : self._taken].reshape(-1, *shape)

    def choose(self, count: int) -> Integers:
        """Return (N,) integers from 0 to count - 1."""
        return (self.take() * count).astype(np.int64)

    def turn(self) -> Floats:
        """Return cosine and sine of a random angle, (N, 2).

        With t = tan(angle / 2) both are rational in t. The cubic is tan(πu/4) to 2 %, so the angle is close to uniform.
        """
        u, quarter = self.take(), self.choose(4)
        t = u * (0.785 + 0.215 * u * u)
        cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        turned = np.stack([cosine, sine, -cosine, -sine, cosine], 1)
        rows = np.arange(len(u))
        return np.stack([turned[rows, quarter], turned[rows, quarter + 1]], 1)

    def surface(self, level: Floats, spread: float) -> Surface:
        """Draw two colours of grey levels about `level` (N,), up to `spread` away from it, and how they mix."""
        levels = level[:, None, None] + spread * (2 * self.take(2, 1) - 1)
        tints = 0.3 * (self.take(1, 3) - 0.5) + 0.2 * (self.take(2, 3) - 0.5)
        return Surface(
            texture=self.choose(len(TEXTURES)),
            turn=self.turn(),
            period=5 + 9 * self.take(),
            phase=self.take(2),
            lattice=self.take(6, 6),
            colours=levels + tints,
        )


def draw_scenes(which: str, seed: int, size: int, labels: Integers, indices: Integers) -> Scenes:
    """Draw the scenes of these labels and indices. The order of the draws is part of the data: another gives others."""
    draws = Draws(which, seed, indices, 150 + size * size)
    level = 0.2 + 0.6 * draws.take()
    background = draws.surface(level, 0.15)
    clutter = []
    for _ in range(4):
        figure = Figure(draws.choose(len(CLUTTER)), 32 * draws.take(2), 3 + 4 * draws.take(), draws.turn())
        clutter.append((figure, 0.1 + 0.8 * draws.take(3)))
    radius = 4.2 + 2.6 * draws.take()
    margin = FURTHEST * radius[:, None]
    centre = margin + draws.take(2) * (32 - 2 * margin)  # the whole object is in the image
    thing = Figure(labels, centre, radius, draws.turn())
    contrast = 0.25 + 0.3 * draws.take()  # an object is lighter than a dark background and darker than a light one
    fill = draws.surface(np.where(level < 0.5, level + contrast, level - contrast), 0.1)
    strength = 0.3 * draws.take(1, 1)
    return Scenes(background, clutter, thing, fill, strength * (draws.take(size, size) - 0.5))


# --- drawing


def _wave(x: Floats) -> Floats:
    """A triangle wave of period 1 between 0 and 1."""
    return abs(2 * (x - np.floor(x)) - 1)


def _clouds(lattice: Floats, x: Floats, y: Floats) -> Floats:
    """Interpolate the lattice bilinearly over the image, whatever the turn of x and y."""
    side = x.shape[1]
    place = (np.arange(side) + 0.5) * 5 / side
    low = place.astype(np.int64)
    share = place - low
    rows = lattice[:, low] + (lattice[:, low + 1] - lattice[:, low]) * share[:, None]
    mix: Floats = rows[:, :, low] + (rows[:, :, low + 1] - rows[:, :, low]) * share
    return mix


def _blend(lattice: Floats, x: Floats, y: Floats) -> Floats:
    return _wave(0.15 * x)


def _stripes(lattice: Floats, x: Floats, y: Floats) -> Floats:
    return np.minimum(np.maximum(4 * _wave(x) - 1.5, 0), 1)


def _checks(lattice: Floats, x: Floats, y: Floats) -> Floats:
    return ((_wave(0.5 * x) > 0.5) ^ (_wave(0.5 * y) > 0.5)).astype(np.float64)


def _dots(lattice: Floats, x: Floats, y: Floats) -> Floats:
    a, b = _wave(x), _wave(y)
    return (a * a + b * b < 0.4).astype(np.float64)


TEXTURES: tuple[Callable[[Floats, Floats, Floats], Floats], ...] = (_clouds, _blend, _stripes, _checks, _dots)


def _turned(turn: Floats, centre: Floats, unit: Floats, side: int) -> tuple[Floats, Floats]:
    """Return x and y (N, side, side) of a grid of points, seen from `centre` along `turn` in multiples of `unit`."""
    grid = (np.arange(side) + 0.5) * (32 / side)
    along, across = (grid - centre[:, k, None] for k in (0, 1))
    cosine, sine = turn[:, :1] / unit[:, None], turn[:, 1:] / unit[:, None]
    x = (cosine * along)[:, None, :] + (sine * across)[:, :, None]
    y = (cosine * across)[:, :, None] - (sine * along)[:, None, :]
    return x, y


def _paint(surface: Surface, side: int) -> Floats:
    """Return the colours (N, side, side, 3) of a surface that fills the image."""
    x, y = _turned(surface.turn, surface.phase * surface.period[:, None], surface.period, side)
    mix = np.empty_like(x)
    for k, texture in enumerate(TEXTURES):
        rows = surface.texture == k
        mix[rows] = texture(surface.lattice[rows], x[rows], y[rows])
    first, second = surface.colours[:, None, None, 0], surface.colours[:, None, None, 1]
    return first + (second - first) * mix[..., None]


def _cover(figure: Figure, shapes: tuple[Shape, ...], side: int) -> Floats:
    """Return the share (N, side, side) of every pixel that is inside its image's shape, by 2×2 points a pixel."""
    share = np.empty((len(figure.kind), side, side))
    for k, shape in enumerate(shapes):
        rows = figure.kind == k
        unit = figure.radius[rows] / np.sqrt(shape.area / np.pi)
        points = shape.inside(*_turned(figure.turn[rows], figure.centre[rows], unit, 2 * side))
        share[rows] = sum(points[:, i::2, j::2].astype(np.int64) for i in range(2) for j in range(2)) / 4
    return share


def render(scenes: Scenes, size: int) -> tuple[Images, Bools]:
    """Draw the scenes: images (N, size, size, 3) and masks (N, size, size)."""
    canvas = _paint(scenes.background, size)
    for figure, colours in scenes.clutter:
        canvas += _cover(figure, CLUTTER, size)[..., None] * (colours[:, None, None] - canvas)
    share = _cover(scenes.object, tuple(SHAPES.values()), size)
    canvas += share[..., None] * (_paint(scenes.fill, size) - canvas)
    canvas += scenes.noise[..., None]
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8), share >= 0.5
