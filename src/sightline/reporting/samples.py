"""What the model was trained on: images a class, and some of them as the augmentation shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .pictures import encoded, joined, tile_of, uri

if TYPE_CHECKING:
    from ..augment import Transform
    from ..datasets import Dataset

SHOWN = 10  # classes
VERSIONS = 3  # of each image, augmented
SIDE = 96  # pixels that an image may have
SHOWN_SIDE = 64  # pixels that smaller ones take on the screen, about
GAP = 2


@dataclass(frozen=True)
class DataSheet:
    """columns: names of the splits.  rows: a class and how many images it has in each.  policy: a transform a line.

    uri: of a picture: a line of training images, one a class, above as many augmented versions as `VERSIONS`.  width, height: of
    it, as shown.  pixels: they are the images' own.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    policy: tuple[str, ...]
    uri: str
    alt: str
    width: int
    height: int
    pixels: bool


def data_sheet(data: Dataset, policy: Sequence[Transform], seed: int = 0) -> DataSheet:
    """Return the sheet of a data set and what `policy` makes of it."""
    splits = {"train": data.train, **({"dev": data.dev} if data.dev is not None else {}), "test": data.test}
    counts = [np.bincount(split.labels, minlength=len(data.classes)) for split in splits.values()]
    lines, labels = _versions(data, policy, seed)
    tile = tile_of(lines[0], SIDE)
    picture = joined(lines.reshape(-1, *lines.shape[2:]), tile, lines.shape[1], GAP)
    larger = max(1, SHOWN_SIDE // max(tile))
    names = ", ".join(data.classes[label] for label in labels)
    alt = f"One training image each of {names}; below each, {VERSIONS} versions of it as augmented for training"
    exact = max(tile) == max(data.train.images.shape[1:3])
    rows = tuple((name, tuple(int(count[i]) for count in counts)) for i, name in enumerate(data.classes))
    file, shown = encoded(picture, 0 if exact else 80), (larger * picture.width, larger * picture.height)
    return DataSheet(tuple(splits), rows, tuple(map(repr, policy)), uri(file), alt, *shown, exact)


def _versions(data: Dataset, policy: Sequence[Transform], seed: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Return (1 + VERSIONS, classes, H, W, 3): training images and their augmented versions, and the images' labels."""
    from torch import Generator

    from ..augment import bind, look
    from ..models import to_device

    labels, first = np.unique(data.train.labels, return_index=True)
    before = data.train.images[first[:SHOWN]]
    batch = to_device(np.tile(before, (VERSIONS, 1, 1, 1)))  # one batch: a policy draws anew for each image of it
    after = look(bind(policy, data.normalisation[0]), batch, Generator().manual_seed(seed)).permute(0, 2, 3, 1).numpy()
    return np.concatenate((before[None], after.reshape(VERSIONS, *before.shape))), labels[:SHOWN].tolist()
