"""Pictures for the page: images of one size joined in a grid, as data: URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = (128, 128, 128)  # of a picture that is missing


def tile_of(images_NHWC: NDArray[np.uint8], side: int) -> tuple[int, int]:
    """Return the width and height at which images are shown: their longer side at most `side` pixels, never enlarged."""
    height, width = images_NHWC.shape[1:3]
    scale = min(1.0, side / max(height, width))
    return max(1, round(scale * width)), max(1, round(scale * height))


def joined(pictures: Iterable[NDArray[np.uint8] | None], tile: tuple[int, int], columns: int, gap: int = 0) -> Image:
    """Join pictures (H, W, 3) uint8 row by row, each made `tile` large; None is grey, and a gap between them transparent."""
    from PIL import Image

    cells = list(pictures)
    (width, height), columns = tile, min(columns, len(cells))
    size = (columns * (width + gap) - gap, -(-len(cells) // columns) * (height + gap) - gap)
    paper = Image.new("RGBA", size) if gap else Image.new("RGB", size, GREY)
    for k, cell in enumerate(cells):
        picture = Image.new("RGB", tile, GREY) if cell is None else Image.fromarray(np.ascontiguousarray(cell))
        scaled = picture if picture.size == tile else picture.resize(tile, Image.Resampling.LANCZOS, reducing_gap=3.0)
        paper.paste(scaled, (k % columns * (width + gap), k // columns * (height + gap)))
    return paper


def encoded(picture: Image, quality: int = 0) -> bytes:
    """Return a picture as WebP, without loss where `quality` is 0: then every pixel is its own, in less than a PNG takes."""
    file = io.BytesIO()
    if quality:
        picture.save(file, "WEBP", quality=quality)
    else:
        picture.save(file, "WEBP", lossless=True, quality=60)  # of the search for a small file, not of the picture
    return file.getvalue()


def uri(file: bytes) -> str:
    """Return what `encoded` returned as a data: URI."""
    return f"data:image/webp;base64,{base64.b64encode(file).decode()}"
