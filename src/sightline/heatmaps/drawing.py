"""Heatmaps as pictures: raw signed maps over their images (NumPy), and sheets of titled pictures (Pillow)."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..exceptions import DataError, RecipeError, nearest

COLORMAPS = ("viridis", "cividis", "inferno", "magma", "plasma")  # perceptually uniform
FOR, AGAINST = (213, 94, 0), (0, 114, 178)  # of Okabe and Ito: orange and blue, which any kind of colour vision can tell apart
GAP, TEXT = 8, 13  # pixels of a sheet: between pictures, and the height of letters


def no_evidence(raw: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which maps (…, h, w) argue for their class nowhere, so that a ReLU leaves nothing to draw: (…) bool."""
    nothing: NDArray[np.bool_] = raw.max((-2, -1)) <= 0
    return nothing


def overlay(
    raw: NDArray[np.float32], images_NHWC: NDArray[np.uint8], weight: float = 0.725, colormap: str = "inferno"
) -> NDArray[np.uint8]:
    """Blend maps over their images: raw (N, h, w) → (N, H, W, 3) uint8, raw (N, T, h, w) → (N, T, H, W, 3).

    Each pixel is weight × image + (1 − weight) × colour: `weight` is the image's, as `image_weight` in
    pytorch-grad-cam, whose final division by the brightest pixel is left out. The colour is that of max(raw, 0),
    upsampled, divided by the largest value among *all maps of the image*: maps of one image can be compared with each
    other, those of different images cannot. Pass raw[:, t] to draw each map on its own scale. A map without evidence
    (see `no_evidence`) leaves the image as it is.

    images_NHWC: (N, H, W, 3) uint8. colormap: one of `COLORMAPS`.

    Raises DataError for images of another form or number, RecipeError for an unknown colour map or weight.
    """
    _check(raw, images_NHWC, weight)
    if colormap not in COLORMAPS:
        raise RecipeError(f"unknown colour map '{colormap}': {nearest(colormap, COLORMAPS)}")
    maps = raw if raw.ndim == 4 else raw[:, None]
    heat = upsample(np.maximum(maps, 0), images_NHWC.shape[1:3])
    colour = matplotlib.colormaps[colormap](heat / _peak(heat), bytes=True)[..., :3]
    images = images_NHWC[:, None].astype(np.float32)
    blend = np.where(no_evidence(maps)[..., None, None, None], images, weight * images + np.float32(1 - weight) * colour)
    pictures: NDArray[np.uint8] = blend.round().astype(np.uint8)
    return pictures if raw.ndim == 4 else pictures[:, 0]


def diverging(raw: NDArray[np.float32], images_NHWC: NDArray[np.uint8], weight: float = 0.3) -> NDArray[np.uint8]:
    """Draw signed maps, such as margins, over their images: orange where they are above zero, blue where below.

    raw (N, h, w) → (N, H, W, 3) uint8, raw (N, T, h, w) → (N, T, H, W, 3); images_NHWC: (N, H, W, 3) uint8.

    The colour's opacity grows with the value's size, from 0 where the map is zero, so that places that argue for neither
    side keep the image, to 1 − weight at the largest |value| among *all maps of the image*: `weight` is what is left of
    the image there.

    Raises DataError for images of another form or number, RecipeError for a weight outside of 0 to 1.
    """
    _check(raw, images_NHWC, weight)
    heat = upsample(raw if raw.ndim == 4 else raw[:, None], images_NHWC.shape[1:3])[..., None]
    opacity = (1 - weight) * np.abs(heat) / _peak(np.abs(heat))
    hue = np.where(heat > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    blend = (1 - opacity) * images_NHWC[:, None] + opacity * hue
    pictures: NDArray[np.uint8] = blend.round().astype(np.uint8)
    return pictures if raw.ndim == 4 else pictures[:, 0]


def pictures(
    raw: NDArray[np.float32],
    images_NHWC: NDArray[np.uint8],
    signed: Sequence[bool],
    weight: float = 0.725,
    colormap: str = "inferno",
) -> NDArray[np.uint8]:
    """Draw raw (N, T, h, w) over images (N, H, W, 3) uint8, map t by `diverging` if signed[t], else by `overlay`.

    The maps of each kind share one scale an image; `weight` and `colormap` are those of `overlay`. Returns (N, T, H, W, 3) uint8.
    """
    drawn = np.empty((*raw.shape[:2], *images_NHWC.shape[1:]), np.uint8)
    kind = np.array(signed, bool)
    if not kind.all():
        drawn[:, ~kind] = overlay(raw[:, ~kind], images_NHWC, weight, colormap)
    if kind.any():
        drawn[:, kind] = diverging(raw[:, kind], images_NHWC)
    return drawn


def sheet(rows: Sequence[Sequence[NDArray[np.uint8]]], titles: Sequence[Sequence[str]], side: int = 192) -> bytes:
    """Lay out pictures (H, W, 3) uint8 of any size in rows, each above its title: a PNG.

    Each picture's longer side becomes about `side` pixels: small ones are enlarged by a whole number, so that their
    pixels stay pixels, large ones are scaled down. A title is one line, cut short where it is wider than its column.
    """
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), TEXT)
    drawn = [[fitted(picture, side) for picture in row] for row in rows]
    column = max(picture.shape[1] for row in drawn for picture in row) + GAP
    heights = [max(len(picture) for picture in row) + TEXT + 2 * GAP for row in drawn]
    size = (GAP + column * max(map(len, drawn)), GAP + sum(heights))
    paper = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(paper)
    top = GAP
    for row, words, height in zip(drawn, titles, heights, strict=True):
        for i, (picture, text) in enumerate(zip(row, words, strict=True)):
            paper.paste(Image.fromarray(picture), (GAP + i * column, top))
            place = (GAP + i * column, top + height - TEXT - int(1.5 * GAP))
            pen.text(place, _cut(text, font, column - GAP), fill="black", font=font)
        top += height
    file = io.BytesIO()
    paper.save(file, "PNG")
    return file.getvalue()


def fitted(picture_HWC: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) uint8 as `sheet` shows it: its longer side about `side` pixels."""
    picture = Image.fromarray(picture_HWC)
    longest = max(picture.size)
    if longest > side:
        return np.array(ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS))
    return np.array(ImageOps.scale(picture, max(1, side // longest), Image.Resampling.NEAREST))


def upsample(maps: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """Resize maps (…, h, w) to size (H, W), bilinearly: F.interpolate(…, mode="bilinear", align_corners=False)."""
    rows, columns = (_hat(old, new) for old, new in zip(maps.shape[-2:], size, strict=True))
    resized: NDArray[np.float32] = rows @ maps @ columns.T
    return resized


def _hat(old: int, new: int) -> NDArray[np.float32]:
    """Weights (new, old) of linear interpolation between the cells' centres, constant beyond the outermost ones."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    weights: NDArray[np.float32] = np.maximum(1 - np.abs(centres[:, None] - np.arange(old)), 0).astype(np.float32)
    return weights


def _check(raw: NDArray[np.float32], images_NHWC: NDArray[np.uint8], weight: float) -> None:
    if images_NHWC.dtype != np.uint8 or images_NHWC.shape[3:] != (3,) or len(images_NHWC) != len(raw):
        found = f"{images_NHWC.dtype} of shape {images_NHWC.shape}"
        raise DataError(f"overlays need images ({len(raw)}, H, W, 3) uint8, not {found}: pass the original images")
    if not 0 <= weight <= 1:
        raise RecipeError(f"no image can have weight {weight}: choose one from 0 (map only) to 1 (image only)")


def _peak(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest value of each image's maps, (N, 1, …), or 1 where that is zero: to divide by."""
    peak: NDArray[np.float32] = heat.max(tuple(range(1, heat.ndim)), keepdims=True)
    return np.where(peak > 0, peak, np.float32(1))


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return what of `text` fits `width` pixels, with control characters, which have no width, as question marks."""
    line = "".join("?" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"
