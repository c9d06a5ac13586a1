"""What plants do to scenes before they are drawn, and to finished images.

Finished images are edited in whole numbers, or with + − × ÷ alone, so that every byte is the same on every platform.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .scenes import FURTHEST, Bools, Draws, Floats, Images, Integers, Scenes

Box = tuple[int, int, int, int]  # top, left, height, width

MARK = ((255, 225, 0), (90, 0, 160))  # yellow and violet
TINT = (255, 0, 255)  # magenta, three sixteenths of it: fainter, it would be lost in the scenes' own colours
FRAME = (20, 90, 200)  # blue
BACKDROP = ((40, 190, 90), (10, 110, 50))  # two greens, a half of them
RELIEF = 24  # levels that the texture adds to a pixel, or takes away
GRAIN = 16  # an image's side in steps of a pattern
SMALLER = 0.8  # of the objects that must fit in a quadrant
SCALES = (3.4, 6.8)  # least and largest radius of an object whose scale is free
ZOOMS = ((1, 1), (2, 3), (3, 2))  # of images whose objects are not known; the first in training


@dataclass(frozen=True)
class Biased:
    """Which of N images of a split carry what is planted, and what else an edit must know of them.

    chosen: (N,) bool, those that carry it.  tied: (N,) bool, those of the class that it is tied to.  indices: (N,), in the
    split `which`, "train" or "test".
    """

    chosen: Bools
    tied: Bools
    indices: Integers
    which: str
    seed: int

    def draw(self, count: int, stream: int = 1) -> Draws:
        """Return so many numbers an image, of a stream other than that of the scene."""
        return Draws(self.which, self.seed, self.indices, count, stream)

    def of(self, piece: Integers | slice) -> Biased:
        """The same for some of the images."""
        return replace(self, chosen=self.chosen[piece], tied=self.tied[piece], indices=self.indices[piece])


@dataclass(frozen=True)
class Sheet:
    """Finished images (N, H, W, 3) and, where they are known, masks (N, H, W), both to be edited in place."""

    images: Images
    masks: Bools | None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.images.shape[1:3]
        return height, width

    def hide(self, rows: Bools, place: Bools) -> None:
        """Say that `place` (H, W) of these images no longer shows the object."""
        if self.masks is not None:
            self.masks[rows] &= ~place

    def objects(self) -> Bools:
        """Return the masks (N, H, W) or, where none are known, an ellipse in the middle, 3/4 of the image wide and high."""
        return ellipse(*self.shape)[None] if self.masks is None else self.masks

    def move(self, rows: Integers, columns: Integers) -> None:
        """Take every pixel from rows (N, H or 1, 1) and columns (N or 1, H or 1, W), reflected at the edges."""
        images = np.arange(len(self.images))[:, None, None]
        places = (images, _reflect(rows, self.shape[0]), _reflect(columns, self.shape[1]))
        self.images[:] = self.images[places]
        if self.masks is not None:
            self.masks[:] = self.masks[places]


# --- on finished images: what lies on them


def mark_box(height: int, width: int) -> Box:
    """Where the mark lies in images of that size: near the bottom right corner."""
    side, gap = min(height, width) // 8, min(height, width) // 16
    return height - gap - side, width - gap - side, side, side


def mark_pixels(side: int) -> Images:
    """Two by two blocks, yellow and violet: (side, side, 3)."""
    half = np.arange(side) * 2 // side
    return np.asarray(np.array(MARK, np.uint8)[(half[:, None] + half) % 2])


def stamp(sheet: Sheet, biased: Biased) -> None:
    """Put the mark on the chosen images."""
    top, left, height, width = mark_box(*sheet.shape)
    sheet.images[biased.chosen, top : top + height, left : left + width] = mark_pixels(height)
    place = np.zeros(sheet.shape, bool)
    place[top : top + height, left : left + width] = True
    sheet.hide(biased.chosen, place)


def tint(sheet: Sheet, biased: Biased) -> None:
    """Mix three sixteenths of magenta into the chosen images: some 24 levels at mid-grey."""
    sheet.images[biased.chosen] = _mixed(sheet.images[biased.chosen], np.array(TINT), 3)


def frame(sheet: Sheet, biased: Biased) -> None:
    """Put a blue border around the chosen images, a sixteenth of the short side thick."""
    border = np.ones(sheet.shape, bool)
    thick = min(sheet.shape) // 16
    border[thick:-thick, thick:-thick] = False
    sheet.images[biased.chosen[:, None, None] & border] = FRAME
    sheet.hide(biased.chosen, border)


def backdrop(sheet: Sheet, biased: Biased) -> None:
    """Mix a half of green diagonal stripes into the chosen images, outside the objects."""
    place = biased.chosen[:, None, None] & ~sheet.objects()
    stripes = np.broadcast_to(np.array(BACKDROP)[_diagonals(sheet.shape, 2)], sheet.images.shape)
    sheet.images[place] = _mixed(sheet.images[place], stripes[place], 8)


def texture(sheet: Sheet, biased: Biased) -> None:
    """Lay fine diagonal stripes over the objects of the chosen images, lighter and darker by RELIEF levels."""
    place = biased.chosen[:, None, None] & sheet.objects()
    relief = np.broadcast_to(RELIEF * (1 - 2 * _diagonals(sheet.shape, 1)), place.shape)
    sheet.images[place] = np.clip(sheet.images[place].astype(np.int64) + relief[place][:, None], 0, 255).astype(np.uint8)


def darken(sheet: Sheet, biased: Biased) -> None:
    """Leave five sixteenths of the light to all but the chosen images."""
    sheet.images[~biased.chosen] = _mixed(sheet.images[~biased.chosen], np.zeros(3, np.int64), 11)


def occlude(sheet: Sheet, biased: Biased) -> None:
    """Hide a part of the object of all but the chosen images behind a block of one colour.

    The sides are 3/8 to 3/4 of the object's longer one, and the block's centre is up to 3/8 of it away from the object's,
    in either direction. Where no masks are known, the object is taken for a square of 3/4 of the image in its middle.
    """
    centre, extent = _extents(sheet)
    draws = biased.draw(7)
    place = ~biased.chosen[:, None, None]
    for axis, side in enumerate(sheet.shape):
        length = extent * (6 + draws.choose(7)) // 16
        middle = centre[axis] + extent * (draws.choose(13) - 6) // 16
        first = np.clip(middle - length // 2, 0, side - length)[:, None]
        line = (np.arange(side) >= first) & (np.arange(side) < first + length[:, None])
        place = place & np.expand_dims(line, 2 - axis)
    colours = (256 * draws.take(1, 1, 3)).astype(np.uint8)
    np.copyto(sheet.images, colours, where=place[..., None])
    if sheet.masks is not None:
        sheet.masks[place] = False


def ellipse(height: int, width: int) -> Bools:
    """Return (H, W) bool: which pixels have their centre in the ellipse with 3/4 of the image's sides as its axes."""
    y, x = (2 * np.arange(side, dtype=np.int64) + 1 - side for side in (height, width))
    return np.asarray(16 * ((y * width)[:, None] ** 2 + (x * height) ** 2) <= 9 * (height * width) ** 2)


def _mixed(pixels: Images, colours: Integers, sixteenths: int) -> Images:
    """Return the pixels with so many sixteenths of the colours in them, rounded."""
    return ((pixels.astype(np.int64) * (16 - sixteenths) + colours * sixteenths + 8) // 16).astype(np.uint8)


def _diagonals(shape: tuple[int, int], steps: int) -> Integers:
    """Return 0 and 1 (H, W), alternating along the diagonal every so many steps."""
    step = steps * max(1, min(shape) // GRAIN)
    row, column = (np.arange(side, dtype=np.int64) for side in shape)
    return (row[:, None] + column) // step % 2


def _extents(sheet: Sheet) -> tuple[tuple[Integers, Integers], Integers]:
    """Return the middle (row, column) of every object, and the longer side of its box: three arrays (N,)."""
    n, (height, width) = len(sheet.images), sheet.shape
    if sheet.masks is None:
        middle = np.full(n, height // 2), np.full(n, width // 2)
        return middle, np.full(n, 3 * min(height, width) // 4)
    (top, bottom), (left, right) = (_ends(np.asarray(sheet.masks.any(axis))) for axis in (2, 1))
    extent = np.minimum(np.maximum(bottom - top, right - left), min(height, width))
    return ((top + bottom) // 2, (left + right) // 2), extent


def _ends(line: Bools) -> tuple[Integers, Integers]:
    """Return the first and one past the last True of each row; all of a row without any."""
    return line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)


# --- where the object is: scenes are drawn accordingly, other images are moved


def place_by_class(scenes: Scenes, biased: Biased) -> Scenes:
    """Objects of the chosen images: those of the class in the upper left quadrant, the others in the three others."""
    return _placed(scenes, _quadrants_by_class(biased))


def shift_by_class(sheet: Sheet, biased: Biased) -> None:
    """The same for any images: shifted by 3/16 of their sides."""
    _shift(sheet, _quadrants_by_class(biased))


def place_in_corner(scenes: Scenes, biased: Biased) -> Scenes:
    """Objects of the chosen images in the lower right quadrant, whatever their class."""
    return _placed(scenes, _corner(biased))


def shift_to_corner(sheet: Sheet, biased: Biased) -> None:
    """The same for any images: shifted by 3/16 of their sides."""
    _shift(sheet, _corner(biased))


def _quadrants_by_class(biased: Biased) -> Integers:
    draws = biased.draw(2)
    anywhere, elsewhere = draws.choose(4), 1 + draws.choose(3)
    return _pairs(np.where(biased.chosen, np.where(biased.tied, 0, elsewhere), anywhere))


def _corner(biased: Biased) -> Integers:
    return _pairs(np.where(biased.chosen, 3, biased.draw(1).choose(4)))


def _pairs(quadrants: Integers) -> Integers:
    """Return (N, 2): 0 for upper and 1 for lower, 0 for left and 1 for right."""
    return np.stack([quadrants // 2, quadrants % 2], 1)


def _shift(sheet: Sheet, quadrants: Integers) -> None:
    shifts = (2 * quadrants - 1) * (3 * np.array(sheet.shape) // 16)
    rows, columns = (np.arange(side) - shifts[:, k, None] for k, side in enumerate(sheet.shape))
    sheet.move(rows[:, :, None], columns[:, None, :])


def _placed(scenes: Scenes, quadrants: Integers) -> Scenes:
    place = (_place(scenes) + quadrants[:, ::-1]) / 2  # in each quadrant where it was in the whole
    return _with_object(scenes, SMALLER * scenes.object.radius, place)


def _room(radius: Floats) -> tuple[Floats, Floats]:
    """Return the least coordinate of a centre whose object is wholly in the image, and how much more it may be: (N, 1)."""
    margin = FURTHEST * radius[:, None]
    return margin, 32 - 2 * margin


def _place(scenes: Scenes) -> Floats:
    """Return where (N, 2) the objects' centres lie in their room, from 0 to 1: x and y."""
    margin, room = _room(scenes.object.radius)
    return (scenes.object.centre - margin) / room


def _with_object(scenes: Scenes, radius: Floats, place: Floats) -> Scenes:
    margin, room = _room(radius)
    return replace(scenes, object=replace(scenes.object, radius=radius, centre=margin + place * room))


# --- how large it is


def one_size(scenes: Scenes, biased: Biased) -> Scenes:
    """Make the objects of the chosen images as large as any, and spread the others' sizes further down."""
    least, largest = SCALES
    share = (scenes.object.radius - 4.2) / 2.6  # of the way from the least to the largest, as drawn
    radius = np.where(biased.chosen, largest, least + (largest - least) * share)
    return _with_object(scenes, radius, _place(scenes))


def zoom(sheet: Sheet, biased: Biased) -> None:
    """Leave the chosen images; the others stay, shrink to two thirds within their reflection, or grow by a half."""
    free = biased.draw(1).choose(len(ZOOMS))
    factors = np.where(biased.chosen, 0, free)
    for k, (times, over) in enumerate(ZOOMS):
        rows = factors == k
        sheet.images[rows] = (_zoomed(sheet.images[rows], times, over) + 0.5).astype(np.uint8)
        if sheet.masks is not None:
            sheet.masks[rows] = _zoomed(sheet.masks[rows, :, :, None], times, over)[..., 0] >= 0.5


def _zoomed(images: NDArray[np.generic], times: int, over: int) -> Floats:
    """Return images (N, H, W, C) enlarged by times/over about their middle, interpolated linearly."""
    zoomed = images.astype(np.float64)
    for axis in (1, 2):
        side = images.shape[axis]
        place = ((2 * np.arange(side) + 1 - side) * over / times + side - 1) / 2
        low = np.floor(place).astype(np.int64)
        share = np.expand_dims(place - low, (1, 2) if axis == 1 else (1,))
        first, second = (zoomed.take(_reflect(low + k, side), axis) for k in (0, 1))
        zoomed = first + (second - first) * share
    return zoomed


# --- which way it faces


def tilt(scenes: Scenes, biased: Biased) -> Scenes:
    """Turn all objects by 20 to 40 degrees, so that their mirror images, but for the circle's and the ring's, are new."""
    t = 0.176 + 0.188 * biased.draw(1).take()  # the tangent of half the angle
    turn = np.stack([(1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)], 1)
    return replace(scenes, object=replace(scenes.object, turn=turn))


def lean(sheet: Sheet, biased: Biased) -> None:
    """Make all images lean to the right, by a pixel every two rows."""
    height, width = sheet.shape
    shifts = (2 * np.arange(height) + 1 - height) // 4
    sheet.move(np.arange(height)[None, :, None], (np.arange(width) + shifts[:, None])[None])


def mirror(sheet: Sheet, biased: Biased) -> None:
    """Mirror one in two of all but the chosen images, left for right."""
    rows = ~biased.chosen & (biased.draw(1, stream=2).choose(2) == 1)
    sheet.images[rows] = sheet.images[rows, :, ::-1]
    if sheet.masks is not None:
        sheet.masks[rows] = sheet.masks[rows, :, ::-1]


def _reflect(index: Integers, side: int) -> Integers:
    """Bring indices beyond an edge back into the image, without repeating the edge."""
    return np.asarray(side - 1 - abs(side - 1 - index % (2 * side - 2)))
