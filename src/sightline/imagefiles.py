"""Image files that belong to no data set, of any size and in any folder → arrays of the size that a run takes."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .datasets import IMAGE_SUFFIXES, read_image
from .exceptions import DataError


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files among `paths` and, sorted, the image files in its folders at any depth; hidden ones are left out."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
            found += sorted(file for file in inside if not any(p.startswith(".") for p in file.relative_to(path).parts))
        else:
            found.append(path)
    return found


def spread(files: Sequence[Path], n: int) -> list[Path]:
    """Return `n` of the files, or all, evenly spread over them."""
    return [files[i * len(files) // n] for i in range(n)] if len(files) > n else list(files)


def original(path: Path) -> NDArray[np.uint8]:
    """Return an image file as `datasets.load` reads it, (H, W, 3), at its own size. Raises DataError if it can't be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = read_image(path, None)
    if isinstance(image, DataError):
        raise DataError(f"{readable(path)} cannot be read as an image; give a PNG, JPEG, WebP, BMP or GIF file")
    return image


def cut_out(image_HWC: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return an image at another size: resized, the centre cut out, as `datasets.load` does."""
    return np.array(ImageOps.fit(Image.fromarray(image_HWC), (width, height), Image.Resampling.BICUBIC))


def read_images(paths: Sequence[Path], height: int, width: int) -> tuple[list[Path], NDArray[np.uint8], list[Path]]:
    """Return the files that can be read, their images (N, height, width, 3), and the files that can't."""
    good, images, bad = list[Path](), list[NDArray[np.uint8]](), list[Path]()
    for path in paths:
        try:
            images.append(cut_out(original(path), height, width))
        except DataError:
            bad.append(path)
        else:
            good.append(path)
    return good, np.array(images), bad


def readable(path: Path) -> str:
    """Return a path as text that can be written and printed: a file's name may hold any bytes."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", os.fsencode(path).decode("utf-8", "replace"))
