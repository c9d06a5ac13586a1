"""The sheet of the data: counts, and pictures of what the augmentation makes of them."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from sightline import datasets
from sightline.augment import HorizontalFlip
from sightline.reporting.samples import GAP, VERSIONS, data_sheet


def data(pixels: int = 20, n: int = 30) -> datasets.Dataset:
    random = np.random.default_rng(0)
    splits = [
        datasets.Split(
            random.integers(0, 256, (n, pixels, pixels + 4, 3), dtype=np.uint8),
            labels,
            ("a", "b", "none", "d"),
            tuple(map(str, range(n))),
        )
        for labels in (random.choice([0, 1, 3], n), random.choice([0, 3], n))
    ]
    return datasets.Dataset("some", *splits)


def tile(picture: np.ndarray, row: int, column: int, shape: tuple[int, ...]) -> np.ndarray:
    top, left = row * (shape[0] + GAP), column * (shape[1] + GAP)
    return picture[top : top + shape[0], left : left + shape[1]]


def test_pictures_are_a_training_image_a_class_and_what_the_policy_makes_of_it() -> None:
    some = data()
    sheet = data_sheet(some, (HorizontalFlip(p=1.0),))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.uri.split(",")[1]))).convert("RGB"))
    for column, label in enumerate((0, 1, 3)):
        image = some.train.images[some.train.labels.tolist().index(label)]
        np.testing.assert_array_equal(tile(picture, 0, column, image.shape), image)
        for row in range(1, 1 + VERSIONS):
            np.testing.assert_array_equal(tile(picture, row, column, image.shape), image[:, ::-1])
    assert sheet.pixels and (sheet.width % picture.shape[1], sheet.height % picture.shape[0]) == (0, 0)
    assert "of a, b, d;" in sheet.alt and sheet.policy == ("HorizontalFlip(p=1.0, alternating=False)",)


def test_counts_are_those_of_each_split_with_classes_of_no_image() -> None:
    some = datasets.hold_out(data(n=200), 0.2)
    assert some.dev is not None
    sheet = data_sheet(some, ())
    assert sheet.columns == ("train", "dev", "test")
    for label, (name, counts) in enumerate(sheet.rows):
        assert name == some.classes[label]
        assert counts == tuple(split.labels.tolist().count(label) for split in (some.train, some.dev, some.test))
    assert sheet.rows[2][1] == (0, 0, 0)


def test_large_images_are_made_smaller() -> None:
    sheet = data_sheet(data(pixels=300), ())
    picture = Image.open(io.BytesIO(base64.b64decode(sheet.uri.split(",")[1])))
    assert not sheet.pixels and picture.size == (sheet.width, sheet.height) == (3 * 96 + 2 * GAP, 4 * 95 + 3 * GAP)
