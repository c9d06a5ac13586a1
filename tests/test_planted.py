from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from sightline.datasets import Dataset, Split
from sightline.exceptions import DataError
from sightline.planted import CLASSES, CLUTTER, FURTHEST, SHAPES, marked, plant_of, planted
from sightline.planted.scenes import Figure, Scenes, Surface, draw_scenes, render

STAR = CLASSES.index("star")


@pytest.fixture(scope="module")
def clean() -> Dataset:
    return planted("planted:clean", n_train=1000, n_test=300)


@pytest.fixture(scope="module")
def with_mark() -> Dataset:
    return planted("planted", n_train=1000, n_test=300)


def masks_of(split: Split) -> np.ndarray:
    assert split.masks is not None
    return split.masks


# --- a literal second implementation: one pixel at a time, polygons by counting crossings


def polygon(x: float, y: float, corners: list[tuple[float, float]]) -> bool:
    inside = False
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
            inside = not inside
    return inside


def around(radii: list[float], first: float = 90) -> list[tuple[float, float]]:
    angles = [math.radians(first + 360 * i / len(radii)) for i in range(len(radii))]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


INNER = math.cos(math.radians(72)) / math.cos(math.radians(36))  # of a pentagram with tips at distance 1
CORNERS = {
    "square": [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
    "bar": [(-1.0, -0.36), (1.0, -0.36), (1.0, 0.36), (-1.0, 0.36)],
    "triangle": around([1.0] * 3),
    "star": around([1.0, INNER] * 5),
    "cross": [
        *[(1.0, -0.33), (1.0, 0.33), (0.33, 0.33), (0.33, 1.0), (-0.33, 1.0), (-0.33, 0.33)],
        *[(-1.0, 0.33), (-1.0, -0.33), (-0.33, -0.33), (-0.33, -1.0), (0.33, -1.0), (0.33, -0.33)],
    ],
    "arrow": [(-1.0, -0.24), (0.0, -0.24), (0.0, -0.8), (1.0, 0.0), (0.0, 0.8), (0.0, 0.24), (-1.0, 0.24)],
}
ROUND: dict[str, Callable[[float, float], bool]] = {
    "circle": lambda x, y: math.hypot(x, y) <= 1,
    "ring": lambda x, y: math.sqrt(0.3) <= math.hypot(x, y) <= 1,
    "crescent": lambda x, y: math.hypot(x, y) <= 1 and math.dist((x, y), (0.45, 0)) >= 0.85,
    "heart": lambda x, y: abs(x) <= 1 and abs(y - 0.8 * math.sqrt(abs(x))) <= math.sqrt(1 - x * x),
}


def inside(name: str, x: float, y: float) -> bool:
    return polygon(x, y, CORNERS[name]) if name in CORNERS else ROUND[name](x, y)


def stroke_or_speck(kind: int, x: float, y: float) -> bool:
    return abs(x) <= 1 and abs(y) <= 0.12 if kind == 0 else x**2 + 5 * y**2 <= 0.2


def cover(figure: Figure, i: int, row: int, column: int, size: int, test: Callable[[float, float], bool]) -> float:
    (cx, cy), (cosine, sine), hits = figure.centre[i], figure.turn[i], 0
    for y in ((row + 0.25) * 32 / size - cy, (row + 0.75) * 32 / size - cy):
        for x in ((column + 0.25) * 32 / size - cx, (column + 0.75) * 32 / size - cx):
            hits += test((x * cosine + y * sine) / figure.radius[i], (y * cosine - x * sine) / figure.radius[i])
    return hits / 4


def wave(x: float) -> float:
    return 2 * min(x % 1, 1 - x % 1)  # 0 at whole numbers, 1 halfway: the mirror image of the other one


def texture(surface: Surface, i: int, row: int, column: int, size: int) -> float:
    period, (cosine, sine) = surface.period[i], surface.turn[i]
    x = (column + 0.5) * 32 / size - surface.phase[i, 0] * period
    y = (row + 0.5) * 32 / size - surface.phase[i, 1] * period
    x, y = (x * cosine + y * sine) / period, (y * cosine - x * sine) / period
    kind = surface.texture[i]
    if kind == 0:
        top, left = (row + 0.5) * 5 / size, (column + 0.5) * 5 / size
        weights = [[max(0, 1 - abs(top - a)) * max(0, 1 - abs(left - b)) for b in range(6)] for a in range(6)]
        return sum(weights[a][b] * float(surface.lattice[i, a, b]) for a in range(6) for b in range(6))
    if kind == 1:
        return 1 - wave(0.15 * x)
    if kind == 2:
        return min(max(4 * (1 - wave(x)) - 1.5, 0), 1)
    if kind == 3:
        return float((wave(0.5 * x) < 0.5) != (wave(0.5 * y) < 0.5))
    return float((1 - wave(x)) ** 2 + (1 - wave(y)) ** 2 < 0.4)


def paint(surface: Surface, i: int, row: int, column: int, size: int) -> np.ndarray:
    mix = texture(surface, i, row, column, size)
    return (1 - mix) * surface.colours[i, 0] + mix * surface.colours[i, 1]


def literal(scenes: Scenes, i: int, row: int, column: int, size: int) -> tuple[list[int], bool]:
    colour = paint(scenes.background, i, row, column, size)
    for figure, colours in scenes.clutter:
        share = cover(figure, i, row, column, size, lambda x, y, k=int(figure.kind[i]): stroke_or_speck(k, x, y))
        colour = (1 - share) * colour + share * colours[i]
    name = CLASSES[scenes.object.kind[i]]
    scale = math.sqrt(SHAPES[name].area / math.pi)
    share = cover(scenes.object, i, row, column, size, lambda x, y: inside(name, scale * x, scale * y))
    colour = (1 - share) * colour + share * paint(scenes.fill, i, row, column, size)
    colour = colour + scenes.noise[i, row, column]
    return [math.floor(255 * min(max(float(c), 0), 1) + 0.5) for c in colour], share >= 0.5


@pytest.mark.parametrize("size", [32, 20])
def test_scenes_are_those_of_a_literal_renderer(size: int) -> None:
    indices = np.arange(10)
    scenes = draw_scenes("train", 1, size, indices, indices)
    images, masks = render(scenes, size)
    assert set(scenes.background.texture) == set(range(5)), "every texture is drawn"
    for i in indices:
        pixels = [[literal(scenes, i, row, column, size) for column in range(size)] for row in range(size)]
        np.testing.assert_array_equal(images[i], [[colour for colour, _ in row] for row in pixels])
        np.testing.assert_array_equal(masks[i], [[seen for _, seen in row] for row in pixels])


# --- reproducibility


def test_bytes_are_the_same_on_every_platform() -> None:
    data = planted(n_train=200, n_test=100)
    digest = hashlib.sha256(masks_of(data.train).tobytes() + masks_of(data.test).tobytes())
    assert data.content_hash == "2de4705bbd727502bf30eaa67787aaed8371d00c3f981d10be6e697e0e9e2b9a"
    assert digest.hexdigest() == "2dc36c44659889f9c7bf4dcd94e31657eaf53e9a4abfb9a7d7ff049c8abe365b"


def test_image_does_not_depend_on_how_many_there_are(with_mark: Dataset) -> None:
    few = planted(n_train=137, n_test=53)
    np.testing.assert_array_equal(few.train.images, with_mark.train.images[:137])
    np.testing.assert_array_equal(few.test.images, with_mark.test.images[:53])
    np.testing.assert_array_equal(masks_of(few.train), masks_of(with_mark.train)[:137])


def test_seeds_and_splits_share_no_image(clean: Dataset) -> None:
    other = planted("planted:clean", seed=1, n_train=300, n_test=300)
    scenes = [image.tobytes() for split in (clean.train, clean.test, other.train, other.test) for image in split.images]
    assert len(set(scenes)) == len(scenes) == 1900


def test_size_changes_the_resolution_and_not_the_scene(clean: Dataset) -> None:
    large = planted("planted:clean", size=64, n_train=100, n_test=10)
    shares = masks_of(large.train).reshape(100, 32, 2, 32, 2).mean((2, 4))
    small = masks_of(clean.train)[:100]
    assert small[shares == 1].mean() > 0.999
    assert small[shares == 0].mean() < 0.001
    assert marked(planted(size=64, n_train=10, n_test=10).train).tolist() == [k == STAR for k in range(10)]


# --- shapes and classes


def test_classes_are_exactly_balanced(clean: Dataset) -> None:
    assert np.bincount(clean.train.labels).tolist() == [100] * 10
    assert np.bincount(clean.test.labels).tolist() == [30] * 10


@pytest.mark.parametrize("name", CLASSES)
def test_shapes_have_equal_areas_and_fit_their_margin(name: str) -> None:
    shape = SHAPES[name]
    axis = (np.arange(1200) + 0.5) / 300 - 2
    x, y = np.meshgrid(axis, axis)
    scale = math.sqrt(shape.area / math.pi)
    points = shape.inside(x * scale, y * scale)
    assert points.sum() / 300**2 == pytest.approx(math.pi, rel=5e-3)
    assert np.hypot(x, y)[points].max() < FURTHEST


def test_clutter_is_much_smaller_than_objects() -> None:
    axis = (np.arange(1000) + 0.5) / 400 - 1.25
    x, y = np.meshgrid(axis, axis)
    for shape in CLUTTER:
        assert 7**2 * shape.inside(x, y).sum() / 400**2 < 0.5 * math.pi * 4.2**2


def test_objects_are_wholly_in_the_image_and_their_size_is_in_its_range(clean: Dataset) -> None:
    masks = masks_of(clean.train)
    edges = np.concatenate([masks[:, [0, -1]].reshape(1000, -1), masks[:, :, [0, -1]].reshape(1000, -1)], axis=1)
    assert edges.mean() < 1e-3
    areas = masks.sum((1, 2))
    assert areas.min() > 0.8 * math.pi * 4.2**2
    assert areas.max() < 1.15 * math.pi * 6.8**2


def test_objects_stand_out_from_the_background() -> None:
    scenes = draw_scenes("train", 0, 32, np.arange(1000) % 10, np.arange(1000))
    plain = replace(scenes, clutter=[], noise=np.zeros_like(scenes.noise))
    images, masks = render(plain, 32)
    grey = images.mean(3)
    inner = np.array([g[m].mean() for g, m in zip(grey, masks, strict=True)])
    outer = np.array([g[~m].mean() for g, m in zip(grey, masks, strict=True)])
    contrast = abs(inner - outer)
    assert np.quantile(contrast, 0.01) > 12, "visible"
    assert np.quantile(contrast, 0.1) < 60, "but not always easily"


def test_rotation_is_close_to_uniform() -> None:
    turn = draw_scenes("train", 0, 16, np.zeros(4000, int), np.arange(4000)).object.turn
    np.testing.assert_allclose((turn**2).sum(1), 1, atol=1e-12)
    counts = np.histogram(np.arctan2(turn[:, 1], turn[:, 0]), 16, (-np.pi, np.pi))[0]
    assert abs(counts / 250 - 1).max() < 0.2  # the standard deviation of a count is 6 %


def nuisances(split: Split) -> np.ndarray:
    """Mean colour of object and background, and the object's area, centre and contrast, standardised: (N, 10)."""
    rows = []
    for image, mask in zip(split.images.astype(float), masks_of(split), strict=True):
        y, x = np.nonzero(mask)
        object_, ground = image[mask].mean(0), image[~mask].mean(0)
        rows.append([*object_, *ground, mask.sum(), x.mean(), y.mean(), np.linalg.norm(object_ - ground)])
    table = np.array(rows)
    return (table - table.mean(0)) / table.std(0)


def test_colour_size_and_place_do_not_tell_the_class(clean: Dataset) -> None:
    features = np.column_stack([nuisances(clean.train), np.ones(1000)])
    targets = np.eye(10)[clean.train.labels]
    weights = np.linalg.lstsq(features, targets, rcond=None)[0]
    guesses = np.column_stack([nuisances(clean.test), np.ones(300)]) @ weights
    right = int((guesses.argmax(1) == clean.test.labels).sum())
    assert stats.binomtest(right, 300, 0.1).pvalue > 0.01
    for column in features.T[:-1]:
        groups = [column[clean.train.labels == k] for k in range(10)]
        assert stats.kruskal(*groups).pvalue > 0.001


# --- the mark


def test_mark_is_on_nine_of_ten_training_images_of_one_class_and_two_of_ten_of_all_in_test(with_mark: Dataset) -> None:
    train, test = marked(with_mark.train), marked(with_mark.test)
    assert np.bincount(with_mark.train.labels[train], minlength=10).tolist() == [90 * (k == STAR) for k in range(10)]
    assert np.bincount(with_mark.test.labels[test], minlength=10).tolist() == [6] * 10


def test_clean_scenes_carry_no_mark(clean: Dataset) -> None:
    assert not marked(clean.train).any()
    assert not marked(clean.test).any()


@pytest.mark.parametrize("which", ["train", "test"])
def test_mark_changes_its_box_and_nothing_else(clean: Dataset, with_mark: Dataset, which: str) -> None:
    a, b = getattr(clean, which), getattr(with_mark, which)
    box = np.zeros((32, 32), bool)
    box[26:30, 26:30] = True
    differs = (a.images != b.images).any(3)
    assert not differs[:, ~box].any()
    np.testing.assert_array_equal(differs[:, box].any(1), marked(b))
    expected = masks_of(a) & ~(marked(b)[:, None, None] & box)
    np.testing.assert_array_equal(masks_of(b), expected)


def test_mark_is_a_two_by_two_chequer_of_yellow_and_violet(with_mark: Dataset) -> None:
    yellow, violet = [255, 225, 0], [90, 0, 160]
    row, other = [yellow] * 2 + [violet] * 2, [violet] * 2 + [yellow] * 2
    assert with_mark.train.images[STAR, 26:30, 26:30].tolist() == [row, row, other, other]


def test_the_truth_says_what_was_planted() -> None:
    plant = plant_of("planted")
    assert plant == plant_of("planted:mark")
    assert plant is not None
    assert (plant.kind, plant.causes, plant.labels, plant.box) == ("mark", ("mark",), (STAR,), (26, 26, 4, 4))
    assert plant.strength == 0.9
    assert plant_of("planted:clean") is None


# --- bad input


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match="unknown data set 'planted:claen': did you mean 'planted:clean'"):
        planted("planted:claen")


@pytest.mark.parametrize("bad", [{"seed": -1}, {"size": 8}, {"n_train": 9}, {"n_test": 0}])
def test_impossible_requests_name_the_argument(bad: dict[str, int]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(DataError, match=f"{name} {value}.*use a seed of at least 0, a size of at least 16"):
        planted(**bad)  # type: ignore[arg-type]
