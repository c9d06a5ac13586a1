"""Planted causes: what is planted where, how often, and that the test images tell nothing of it."""

from __future__ import annotations

import hashlib
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import ndimage, stats

from sightline.datasets import Dataset, Split, hold_out
from sightline.exceptions import DataError
from sightline.planted import CLASSES, NAMES, NULLS, PLANTS, Plant, marked, plant, plant_of, planted, truth, unplanted
from sightline.planted.edits import Biased, Sheet, lean, one_size, place_by_class, place_in_corner, shift_by_class, tilt, zoom
from sightline.planted.scenes import draw_scenes

STAR = CLASSES.index("star")
OVERLAYS = ("tint", "background", "frame", "texture")  # and the mark, which is tested in test_planted
KINDS = (*PLANTS, *NULLS)


@cache
def scenes(kind: str, strength: float = 0.9) -> Dataset:
    return planted(f"planted:{kind}", n_train=1000, n_test=200, strength=strength)


def masks_of(split: Split) -> np.ndarray:
    assert split.masks is not None
    return split.masks


def counts(split: Split, chosen: np.ndarray) -> list[int]:
    return np.bincount(split.labels[chosen], minlength=len(split.classes)).tolist()


def changed(a: Split, b: Split) -> np.ndarray:
    return np.asarray((a.images != b.images).any((1, 2, 3)))


@cache
def photos() -> Dataset:
    """Images without masks, of 24×20 pixels, whose three classes come in any order: 300 to train on, 60 to test on."""
    splits = []
    for which, n in (("train", 300), ("test", 60)):
        random = np.random.default_rng(n)
        images = ndimage.gaussian_filter(random.uniform(0, 255, (n, 24, 20, 3)), (0, 2, 2, 0)).astype(np.uint8)
        labels = random.permutation(np.arange(n) % 3)
        splits.append(Split(images, labels, ("cat", "dog", "cow"), tuple(f"{which}/{i}" for i in range(n))))
    return Dataset("photos", *splits)


# --- the shares, and the test images


@pytest.mark.parametrize("strength", [0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("kind", OVERLAYS)
def test_overlays_are_on_their_share_of_one_class_in_training_and_on_half_of_every_class_in_test(
    kind: str, strength: float
) -> None:
    data, clean = scenes(kind, strength), scenes("clean")
    share = round(100 * strength)
    assert counts(data.train, changed(data.train, clean.train)) == [share * (k == STAR) for k in range(10)]
    assert counts(data.test, changed(data.test, clean.test)) == [10] * 10


@pytest.mark.parametrize("kind", KINDS)
def test_test_images_do_not_depend_on_the_strength_and_have_their_true_labels(kind: str) -> None:
    data, other = scenes(kind).test, planted(f"planted:{kind}", n_train=10, n_test=200, strength=0.3).test
    np.testing.assert_array_equal(data.images, other.images)
    np.testing.assert_array_equal(masks_of(data), masks_of(other))
    np.testing.assert_array_equal(data.labels, np.arange(200) % 10)
    np.testing.assert_array_equal(other.labels, np.arange(200) % 10)


@pytest.mark.parametrize("kind", ["mark", *OVERLAYS, "label_errors", "mark_null"])
def test_without_the_plant_training_images_are_those_of_clean_scenes(kind: str) -> None:
    data = unplanted(f"planted:{kind}", n_train=300, n_test=200)
    np.testing.assert_array_equal(data.train.images, scenes("clean").train.images[:300])
    np.testing.assert_array_equal(data.train.labels, scenes("clean").train.labels[:300])
    np.testing.assert_array_equal(data.test.images, scenes(kind).test.images)


@pytest.mark.parametrize("kind", ["position", "direction", "scale", "lighting", "occlusion", "corner_null"])
def test_strength_of_other_plants_is_the_share_of_training_images_that_are_not_like_the_test(kind: str) -> None:
    none, some, all_ = (scenes(kind, strength).train for strength in (0.0, 0.9, 1.0))
    carry = (np.arange(1000) // 10 % 10 < 9)[:, None, None]
    np.testing.assert_array_equal(some.images, np.where(carry[..., None], all_.images, none.images))
    np.testing.assert_array_equal(masks_of(some), np.where(carry, masks_of(all_), masks_of(none)))
    assert changed(all_, none).mean() > 0.4


@pytest.mark.parametrize("kind", ["tint", "label_errors", "lighting"])
def test_weaker_plants_are_parts_of_stronger_ones(kind: str) -> None:
    clean, weak, strong = scenes("clean").train, scenes(kind, 0.5).train, scenes(kind, 0.8).train
    a, b = (changed(clean, data) | (clean.labels != data.labels) for data in (weak, strong))
    if kind == "lighting":  # there, what carries the plant is bright
        a, b = ~a, ~b
    assert a.sum() < b.sum()
    assert not (a & ~b).any()


@pytest.mark.parametrize("kind", KINDS)
def test_images_follow_from_the_seed_and_do_not_depend_on_how_many_there_are(kind: str) -> None:
    few = planted(f"planted:{kind}", n_train=137, n_test=53)
    for a, b in ((few.train, scenes(kind).train), (few.test, scenes(kind).test)):
        np.testing.assert_array_equal(a.images, b.images[: len(a)])
        np.testing.assert_array_equal(a.labels, b.labels[: len(a)])
        np.testing.assert_array_equal(masks_of(a), masks_of(b)[: len(a)])
    other = planted(f"planted:{kind}", seed=1, n_train=137, n_test=53)
    assert changed(few.train, other.train).all()


def test_bytes_of_every_plant_are_the_same_on_every_platform() -> None:
    digest = hashlib.sha256()
    for kind in KINDS:
        data = planted(f"planted:{kind}", n_train=120, n_test=60)
        digest.update(data.content_hash.encode() + masks_of(data.train).tobytes() + masks_of(data.test).tobytes())
    assert digest.hexdigest() == "1ff2a7e312c2a03383665b4312f3d8418a32807a8d44bb05787a046aa41bfec6"


# --- what lies on the images: literal second implementations


def literal_pixels(kind: str, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    side, result = len(image), image.astype(float)
    for i in range(side):
        for j in range(side):
            if kind == "tint":
                result[i, j] = 13 / 16 * result[i, j] + 3 / 16 * np.array([255, 0, 255])
            elif kind == "frame" and not (2 <= i < side - 2 and 2 <= j < side - 2):
                result[i, j] = 20, 90, 200
            elif kind == "background" and not mask[i, j]:
                green = (40, 190, 90) if (i + j) % 8 < 4 else (10, 110, 50)
                result[i, j] = result[i, j] / 2 + np.array(green) / 2
            elif kind == "texture" and mask[i, j]:
                result[i, j] += 24 if (i + j) % 4 < 2 else -24
            elif kind == "lighting":
                result[i, j] *= 5 / 16
    return np.floor(np.clip(result, 0, 255) + 0.5)


@pytest.mark.parametrize("kind", [*OVERLAYS, "lighting"])
def test_pixels_are_those_of_a_literal_implementation(kind: str) -> None:
    clean, data = scenes("clean").test, scenes(kind).test
    rows = np.flatnonzero(changed(clean, data))[:12]
    assert len(rows) == 12
    for i in rows:
        np.testing.assert_array_equal(data.images[i], literal_pixels(kind, clean.images[i], masks_of(clean)[i]))


def test_frame_hides_what_is_under_it_and_other_overlays_hide_nothing() -> None:
    clean = masks_of(scenes("clean").test)
    inner = np.zeros((32, 32), bool)
    inner[2:30, 2:30] = True
    framed = changed(scenes("clean").test, scenes("frame").test)[:, None, None]
    np.testing.assert_array_equal(masks_of(scenes("frame").test), clean & (inner | ~framed))
    for kind in ("tint", "background", "texture", "lighting"):
        np.testing.assert_array_equal(masks_of(scenes(kind).test), clean)


def test_training_is_bright_and_test_is_dark() -> None:
    clean, data = scenes("clean"), scenes("lighting")
    assert counts(data.train, changed(data.train, clean.train)) == [10] * 10
    assert changed(data.test, clean.test).all()
    assert changed(scenes("lighting", 0.0).train, clean.train).all()


def test_two_plants_are_independent_of_each_other() -> None:
    clean, data = scenes("clean"), scenes("two")
    star = data.train.labels == STAR
    mark, dark = marked(data.train), (data.train.images[:, :8] != clean.train.images[:, :8]).any((1, 2, 3))
    table = [[int((star & (mark == a) & (dark == b)).sum()) for b in (False, True)] for a in (False, True)]
    assert table == [[9, 1], [81, 9]]
    assert counts(data.train, mark) == [90 * (k == STAR) for k in range(10)]
    assert counts(data.train, dark) == [10] * 10
    assert counts(data.test, marked(data.test)) == [4] * 10
    literal = [literal_pixels("lighting", image, image[..., 0]) for image in clean.test.images[:10]]
    np.testing.assert_array_equal(data.test.images[:10, :26], np.array(literal)[:, :26])


def test_occluders_are_blocks_of_one_colour_over_a_part_of_the_object() -> None:
    clean, data = scenes("clean"), scenes("occlusion")
    assert counts(data.train, changed(data.train, clean.train)) == [10] * 10
    hidden = []
    for before, after, mask, seen in zip(
        clean.test.images, data.test.images, masks_of(clean.test), masks_of(data.test), strict=True
    ):
        rows, columns = np.nonzero((before != after).any(2))
        block = np.zeros_like(mask)
        block[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        assert len(np.unique(after[block], axis=0)) == 1
        np.testing.assert_array_equal(seen, mask & ~block)
        hidden.append(1 - seen.sum() / mask.sum())
    assert 0.25 < np.mean(hidden) < 0.5
    assert np.quantile(hidden, 0.05) > 0.02, "hardly an object is wholly seen"
    assert np.quantile(hidden, 0.95) < 0.9, "hardly one is wholly hidden"


def test_wrong_labels_are_spread_over_the_other_classes() -> None:
    clean, data = scenes("clean"), scenes("label_errors")
    np.testing.assert_array_equal(data.train.images, clean.train.images)
    table = np.zeros((10, 10), int)
    np.add.at(table, (clean.train.labels, data.train.labels), 1)
    np.testing.assert_array_equal(table, np.where(np.eye(10), 91, 1))
    assert counts(clean.train, scenes("label_errors", 0.5).train.labels != clean.train.labels) == [5] * 10


# --- the two nulls that are not clean


def test_mark_of_the_null_is_as_frequent_in_every_class() -> None:
    data = scenes("mark_null")
    assert counts(data.train, marked(data.train)) == [90] * 10
    assert counts(data.test, marked(data.test)) == [4] * 10


def test_objects_of_the_corner_null_are_lower_right_whatever_their_class() -> None:
    labels = np.arange(1000) % 10
    placed = place_in_corner(draw_scenes("train", 0, 16, labels, np.arange(1000)), biased(labels >= 0, labels))
    assert (placed.object.centre > 16).all()
    for split in (scenes("corner_null", 1.0).train, scenes("corner_null").test):
        middles = np.array([ndimage.center_of_mass(mask) for mask in masks_of(split)])
        assert middles.mean() > 18
        for axis in (0, 1):
            groups = [middles[split.labels == k, axis] for k in range(10)]
            assert stats.kruskal(*groups).pvalue > 1e-3


# --- where, how large, which way


def biased(chosen: np.ndarray, labels: np.ndarray) -> Biased:
    return Biased(chosen, labels == STAR, np.arange(len(labels)), "train", 0)


def test_class_is_in_one_quadrant_the_others_in_the_other_three_and_the_rest_anywhere() -> None:
    labels = np.arange(4000) % 10
    chosen = np.arange(4000) < 2000
    thing = place_by_class(draw_scenes("train", 0, 16, labels, np.arange(4000)), biased(chosen, labels)).object
    centre, margin = thing.centre, 1.7 * thing.radius[:, None]
    quadrant = 2 * (centre[:, 1] > 16) + (centre[:, 0] > 16)
    assert (quadrant[chosen & (labels == STAR)] == 0).all()
    others = np.bincount(quadrant[chosen & (labels != STAR)], minlength=4)
    assert others[0] == 0
    assert stats.chisquare(others[1:]).pvalue > 0.01
    table = [np.bincount(quadrant[~chosen & (labels == k)], minlength=4) for k in range(10)]
    assert stats.chi2_contingency(table).pvalue > 0.01
    assert stats.chisquare(np.sum(table, 0)).pvalue > 0.01
    place = (centre - margin) / (32 - 2 * margin)
    assert stats.kstest(place[~chosen].ravel(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("kind", ["position", "corner_null", "scale"])
def test_moved_and_resized_objects_are_wholly_in_the_image(kind: str) -> None:
    for split in (scenes(kind).train, scenes(kind).test):
        masks = masks_of(split)
        edges = np.concatenate([masks[:, [0, -1]].reshape(len(split), -1), masks[:, :, [0, -1]].reshape(len(split), -1)], axis=1)
        assert edges.mean() < 1e-3
        assert masks.sum((1, 2)).min() > 0.75 * math.pi * 3.36**2


def test_objects_of_one_size_in_training_have_all_sizes_in_test() -> None:
    labels = np.arange(1000) % 10
    radius = one_size(draw_scenes("train", 0, 16, labels, np.arange(1000)), biased(labels < 5, labels)).object.radius
    assert (radius[labels < 5] == 6.8).all()
    assert stats.kstest(radius[labels >= 5], stats.uniform(3.4, 3.4).cdf).pvalue > 0.01
    train, test = (np.sqrt(masks_of(split).sum((1, 2)) / math.pi) for split in (scenes("scale", 1.0).train, scenes("scale").test))
    assert abs(train - 6.8).max() < 0.55  # the masks' pixels
    assert np.quantile(test, [0.05, 0.95]) == pytest.approx([3.57, 6.63], abs=0.35)


def test_objects_are_turned_by_twenty_to_forty_degrees() -> None:
    labels = np.arange(1000) % 10
    turn = tilt(draw_scenes("train", 0, 16, labels, np.arange(1000)), biased(labels >= 0, labels)).object.turn
    np.testing.assert_allclose((turn**2).sum(1), 1, atol=1e-12)
    degrees = np.degrees(np.arctan2(turn[:, 1], turn[:, 0]))
    assert stats.kstest(degrees, stats.uniform(20, 20).cdf).pvalue > 0.01


def test_training_faces_one_way_and_half_of_the_test_the_other() -> None:
    one_way, both = scenes("direction", 1.0).train, scenes("direction", 0.0).train
    mirrored = changed(one_way, both)
    flip = mirrored[:, None, None]
    np.testing.assert_array_equal(both.images, np.where(flip[..., None], one_way.images[:, :, ::-1], one_way.images))
    np.testing.assert_array_equal(masks_of(both), np.where(flip, masks_of(one_way)[:, :, ::-1], masks_of(one_way)))
    assert stats.binomtest(int(mirrored.sum()), 1000).pvalue > 0.01
    assert stats.chi2_contingency([counts(both, mirrored), counts(both, ~mirrored)]).pvalue > 0.01


# --- any images


@pytest.mark.parametrize("kind", ["mark", *OVERLAYS])
def test_overlays_on_any_images_have_exact_shares_and_leave_the_given_data_as_it_was(kind: str) -> None:
    before = photos().content_hash, photos().train.images.copy()
    data = plant(photos(), kind, label=1, strength=0.8)
    in_test = 4 if kind == "mark" else 10
    assert counts(data.train, changed(data.train, photos().train)) == [0, 80, 0]
    assert counts(data.test, changed(data.test, photos().test)) == [in_test] * 3
    assert data.name == f"photos+{kind}:0.8"
    np.testing.assert_array_equal(photos().train.images, before[1])
    np.testing.assert_array_equal(plant(photos(), kind, label=1, strength=0.8).train.images, data.train.images)
    assert (
        changed(plant(photos(), kind, label=1, strength=0.8, seed=1).train, photos().train) != changed(data.train, photos().train)
    ).any()


def test_images_that_carry_a_plant_are_chosen_at_random_and_not_by_their_order() -> None:
    places = np.flatnonzero(changed(plant(photos(), "tint", label=0, strength=0.5).train, photos().train))
    members = np.flatnonzero(photos().train.labels == 0)
    assert stats.mannwhitneyu(places, np.setdiff1d(members, places)).pvalue > 0.01
    assert not np.isin(members[:50], places).all()


def test_unknown_objects_are_taken_to_lie_in_an_ellipse() -> None:
    data = plant(photos(), "background", strength=1.0, label=2)
    place = (data.test.images != photos().test.images).any((0, 3))
    for i in range(24):
        for j in range(20):
            outside = ((i - 11.5) / 9) ** 2 + ((j - 9.5) / 7.5) ** 2 > 1
            assert place[i, j] == outside
    on = (plant(photos(), "texture", strength=1.0, label=2).test.images != photos().test.images).any((0, 3))
    np.testing.assert_array_equal(on, ~place)


def sheet(masks: bool = False) -> Sheet:
    """A copy of some of the photos; with masks, images that show these alone."""
    images = photos().train.images[:40].copy()
    if not masks:
        return Sheet(images, None)
    known = images[..., 0] > 128
    images[:] = 255 * known[..., None]
    return Sheet(images, known)


def test_shift_is_that_of_a_padded_image() -> None:
    before, after, labels = sheet(), sheet(), photos().train.labels[:40]
    which = Biased(np.ones(40, bool), labels == 0, np.arange(40), "train", 0)
    shift_by_class(after, which)
    seen = set()
    for image, result, first in zip(before.images, after.images, labels == 0, strict=True):
        padded = np.pad(image, ((4, 4), (3, 3), (0, 0)), mode="reflect")
        # where the window starts: at 0 the image moves down or right, at twice the padding up or left
        windows = {(y, x): padded[y : y + 24, x : x + 20] for y in (0, 8) for x in (0, 6)}
        (found,) = (place for place, window in windows.items() if (window == result).all())
        assert (found == (8, 6)) == first
        seen.add(found)
    assert len(seen) == 4


def test_zoom_is_that_of_a_peer() -> None:
    before, after = sheet(), sheet()
    zoom(after, Biased(np.arange(40) % 2 == 0, np.zeros(40, bool), np.arange(40), "train", 0))
    y, x = np.indices((24, 20))
    seen = []
    for image, result in zip(before.images.astype(float), after.images, strict=True):
        fits = []
        for factor in (1, 2 / 3, 3 / 2):
            places = [(y - 11.5) / factor + 11.5, (x - 9.5) / factor + 9.5]
            peer = np.stack([ndimage.map_coordinates(image[..., c], places, order=1, mode="mirror") for c in range(3)], 2)
            fits.append(abs(peer - result).max() <= 0.5 + 1e-9)
        seen.append(fits)
    table = np.array(seen)
    assert (table.sum(1) == 1).all()
    assert table[::2, 0].all()
    assert table[1::2].any(0).all()


def test_leaning_moves_every_second_row_by_a_further_pixel() -> None:
    before, after = sheet(), sheet()
    lean(after, Biased(np.ones(40, bool), np.ones(40, bool), np.arange(40), "train", 0))
    padded = np.pad(before.images, ((0, 0), (0, 0), (6, 6), (0, 0)), mode="reflect")
    shifts = [-6, -6, -5, -5, -4, -4, -3, -3, -2, -2, -1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    for row, shift in enumerate(shifts):
        np.testing.assert_array_equal(after.images[:, row], padded[:, row, 6 + shift : 26 + shift])


@pytest.mark.parametrize("edit", [shift_by_class, zoom, lean])
def test_masks_move_with_the_images(edit: Any) -> None:
    after = sheet(masks=True)
    edit(after, Biased(np.arange(40) % 2 == 0, np.arange(40) % 3 == 0, np.arange(40), "train", 0))
    assert after.masks is not None
    assert (after.masks != sheet(masks=True).masks).any()
    np.testing.assert_array_equal(after.masks, after.images[..., 1] >= 128)


@pytest.mark.parametrize("kind", ["position", "direction", "scale", "lighting", "occlusion", "corner_null"])
def test_strength_of_other_plants_on_any_images_is_that_of_scenes(kind: str) -> None:
    none, some, all_ = (plant(photos(), kind, strength=strength).train for strength in (0.0, 0.8, 1.0))
    like_none, like_all = ~changed(some, none), ~changed(some, all_)
    assert (like_none | like_all).all()
    assert all(count >= 80 for count in counts(some, like_all))
    assert all(count >= 20 for count in counts(some, like_none))
    assert not like_all.all()


def test_wrong_labels_of_any_images_are_exact_and_the_images_stay() -> None:
    data = plant(photos(), "label_errors", strength=1.0)
    np.testing.assert_array_equal(data.train.images, photos().train.images)
    table = np.zeros((3, 3), int)
    np.add.at(table, (photos().train.labels, data.train.labels), 1)
    np.testing.assert_array_equal(table, [[90, 5, 5], [5, 90, 5], [5, 5, 90]])
    np.testing.assert_array_equal(data.test.labels, photos().test.labels)


def test_planting_nothing_leaves_all_images() -> None:
    data = plant(photos(), "clean")
    np.testing.assert_array_equal(data.train.images, photos().train.images)
    np.testing.assert_array_equal(data.test.images, photos().test.images)


# --- the truth, and names


CAUSES = {
    "mark": ("mark",),
    "tint": ("tint_frame",),
    "frame": ("tint_frame",),
    "background": ("background",),
    "position": ("position",),
    "direction": ("missing_flip",),
    "scale": ("scale",),
    "lighting": ("lighting",),
    "occlusion": ("occlusion",),
    "texture": ("texture",),
    "label_errors": ("label_errors",),
    "two": ("lighting", "mark"),
    "mark_null": (),
    "corner_null": (),
}


@pytest.mark.parametrize("kind", CAUSES)
def test_truth_says_what_a_diagnosis_should_name(kind: str) -> None:
    tied = kind in ("mark", *OVERLAYS, "position", "two")
    box = (26, 26, 4, 4) if kind in ("mark", "two", "mark_null") else None
    assert plant_of(f"planted:{kind}") == Plant(kind, CAUSES[kind], (STAR,) if tied else (), box, 0.9)
    assert truth(photos(), kind, strength=0.4).causes == CAUSES[kind]
    assert truth(photos(), kind, strength=0.4).labels == ((2,) if tied else ())


def test_box_of_the_truth_is_where_the_mark_is_in_any_images() -> None:
    box = truth(photos(), "mark", label=0).box
    assert box is not None
    data = plant(photos(), "mark", label=0, strength=1.0)
    differs = (data.test.images != photos().test.images).any((0, 3))
    rows, columns = np.nonzero(differs)
    assert (rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1) == box


def test_every_kind_has_a_name_and_twelve_are_plants() -> None:
    assert len(PLANTS) == 12
    assert set(KINDS) == {*CAUSES, "clean"}
    assert set(NAMES) == {"planted", *(f"planted:{kind}" for kind in KINDS)}


def test_name_says_the_strength_that_is_not_the_usual_one() -> None:
    assert planted("planted", n_train=10, n_test=10).name == "planted"
    assert planted("planted:tint", n_train=10, n_test=10, strength=0.9).name == "planted:tint"
    assert planted("planted:clean", n_train=10, n_test=10, strength=0.5).name == "planted:clean"
    weak = planted("planted:tint", n_train=100, n_test=20, strength=0.5)
    assert weak.name == "planted:tint:0.5"
    again = planted(weak.name, n_train=100, n_test=20)
    assert (again.name, again.content_hash) == (weak.name, weak.content_hash)
    assert planted("planted", n_train=10, n_test=10, strength=0.0).name == "planted:mark:0"
    known = plant_of("planted:mark:0.25")
    assert known is not None
    assert known.strength == 0.25


# --- bad input


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("planted:tnt", "unknown data set 'planted:tnt': did you mean 'planted:tint'"),
        ("planted:tint:much", "the strength 'much' is not a number"),
        ("planted:tint:", "the strength '' is not a number"),
        ("planted:tint:nan", "the strength nan .* from 0 to 1"),
        ("planted:tint:1.5", "the strength 1.5 .* from 0 to 1"),
        ("planted:tint:0.5:2", "unknown data set 'planted:tint:0.5:2'"),
        ("planted::0.5", "unknown data set 'planted::0.5'"),
        ("tint", "unknown data set 'tint'"),
    ],
)
def test_impossible_names_are_refused(name: str, says: str) -> None:
    for ask in (planted, plant_of):
        with pytest.raises(DataError, match=says) as caught:
            ask(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kind": "tinted"}, "planting 'tinted' in photos: unknown kind; did you mean 'tint'"),
        ({"kind": "tint", "strength": -0.1}, "the strength -0.1 .* from 0 to 1"),
        ({"kind": "tint", "strength": math.inf}, "the strength inf .* from 0 to 1"),
        ({"kind": "tint", "label": 3}, "there is no label 3; use 0 to 2"),
        ({"kind": "tint", "label": -1}, "there is no label -1; use 0 to 2"),
        ({"kind": "lighting", "label": 1}, "tied to no class; leave out the label 1"),
        ({"kind": "tint", "seed": -1}, "the seed -1 is negative"),
    ],
)
def test_impossible_plants_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        plant(photos(), **arguments)
    assert "\n" not in str(caught.value)


def test_images_too_small_too_few_classes_and_held_out_images_are_refused() -> None:
    split = photos().train
    tiny = Split(split.images[:, :12], split.labels, split.classes, split.ids)
    with pytest.raises(DataError, match="3 classes of 20×12 pixels; use two classes or more, and 16 pixels or more"):
        plant(Dataset("tiny", tiny, tiny), "tint")
    alone = Split(split.images, np.zeros(300, np.int64), ("cat",), split.ids)
    with pytest.raises(DataError, match="1 classes"):
        plant(Dataset("alone", alone, alone), "label_errors")
    with pytest.raises(DataError, match="plant first, then hold out"):
        plant(hold_out(photos(), 0.1), "tint")
