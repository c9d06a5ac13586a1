"""Figures are read back: the marks and texts in an SVG, the pixels of a PNG."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sightline import figures
from sightline.augment import HorizontalFlip, RandomCrop
from sightline.datasets import Dataset
from sightline.exceptions import RunError
from sightline.mistakes import Accuracy, Calibration
from sightline.schedule import RangeTest, combine, suggest

HOSTILE = '</script><img src=x onerror=alert(1)> "$\\frac$" 😀 قطة 猫'
TEXT = "{http://www.w3.org/2000/svg}text"


def history(epochs: int) -> list[dict[str, float]]:
    keys = ("lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
    return [{"epoch": i + 1, **{key: (i + j) / 10 for j, key in enumerate(keys)}} for i in range(epochs)]


def sweep() -> RangeTest:
    rates = np.geomspace(1e-5, 10, 100)
    return suggest(rates, 2 - 1.5 / (1 + np.exp(-np.log(rates) - 5)))


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(TEXT)]


DRAWINGS: dict[str, Callable[[], str]] = {
    "loss": lambda: figures.curves(history(3))["loss"],
    "one epoch": lambda: figures.curves(history(1))["accuracy"],
    "rate": lambda: figures.curves(history(3))["rate"],
    "confusion": lambda: figures.confusion(np.array([[3, 1], [0, 4]]), ("cat", HOSTILE)),
    "many": lambda: figures.confusion(np.eye(200, dtype=np.int64), [str(i) for i in range(200)]),
    "classes": lambda: figures.class_accuracy({HOSTILE: Accuracy(1, 2, 0.5, 0.1, 0.9), "b": Accuracy(0, 0, None, 0, 1)}),
    "reliability": lambda: figures.reliability(
        Calibration(0.1, np.array([0, 2]), np.array([np.nan, 0.8]), np.array([np.nan, 0.5]))
    ),
    "range": lambda: figures.range_test([sweep()] * 3),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_same_input_gives_the_same_well_formed_svg(name: str) -> None:
    before = dict(matplotlib.rcParams)
    svg = DRAWINGS[name]()
    assert svg == DRAWINGS[name]()
    assert dict(matplotlib.rcParams) == before
    root = ET.fromstring(svg)
    assert not [e for e in root.iter() if e.tag.endswith(("script", "style", "metadata", "a"))]
    ET.fromstring(figures.standalone(svg).encode())


def test_ids_are_unique_over_figures_and_every_reference_resolves() -> None:
    page = "".join(draw() for name, draw in DRAWINGS.items() if name not in ("many", "one epoch"))
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 50
    references = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    assert references and set(references) <= set(ids)


def test_hostile_names_are_texts() -> None:
    for name in ("confusion", "classes"):
        assert any(text.startswith("</script><img src=x") for text in texts(DRAWINGS[name]()))


def test_long_names_are_cut_short() -> None:
    svg = figures.confusion(np.array([[3, 1], [0, 4]]), ("c" * 25, "d" * 24))
    assert {"c" * 23 + "…", "d" * 24} <= set(texts(svg))


def test_figures_follow_the_colour_of_the_page() -> None:
    svg = figures.curves(history(3))["loss"]
    assert "currentColor" in svg and figures.INK not in svg and "DejaVu" not in svg
    assert "prefers-color-scheme:dark" in figures.standalone(svg)


def test_confusion_matrix_prints_the_counts_that_are_not_zero() -> None:
    svg = figures.confusion(np.array([[31, 12], [0, 45]]), ("cat", "dog"))
    assert sorted(text for text in texts(svg) if text.isdigit()) == ["12", "31", "45"]
    assert not [text for text in texts(DRAWINGS["many"]()) if text.isdigit()]


def test_classes_go_from_the_lowest_accuracy_to_unknown() -> None:
    values = {"a": 0.9, "b": None, "c": 0.2, "d": 0.5}
    svg = figures.class_accuracy({name: Accuracy(0, 9, value, 0, 1) for name, value in values.items()})
    assert [text for text in texts(svg) if text in values] == ["c", "d", "a", "b"]
    only_worst = figures.class_accuracy({name: Accuracy(0, 9, value, 0, 1) for name, value in values.items()}, worst=2)
    assert [text for text in texts(only_worst) if text in values] == ["c", "d"]


def shifted(*factors: float) -> list[RangeTest]:
    """The sweep, its rates multiplied: so are its suggestions."""
    return [suggest(sweep().lrs * factor, sweep().losses) for factor in factors]


def test_range_test_names_the_median_of_its_suggestions_and_their_spread() -> None:
    test = sweep()
    assert test.steepest and test.valley and test.peak
    drawn = texts(figures.range_test(shifted(1, 0.5, 4)))
    assert {f"{name} {getattr(test, name):.2e} ± 0.6" for name in ("steepest", "valley", "peak")} <= set(drawn)


def test_range_test_of_a_single_sweep_claims_no_spread() -> None:
    test = sweep()
    drawn = texts(figures.range_test([test]))
    assert {f"steepest {test.steepest:.2e}", f"valley {test.valley:.2e}", f"peak {test.peak:.2e}"} <= set(drawn)


def test_range_test_draws_each_spread_as_a_band_around_its_median() -> None:
    test, svg = sweep(), figures.range_test(shifted(1, 0.5, 4))
    left, right = np.array(re.findall(r'"M ([\d.]+) [^"z]*\sL ([\d.]+) [^"]*z\s"[^>]*opacity: 0.12', svg), float).T
    lines = dict(
        re.findall(r'"M ([\d.]+) [\d.]+ \sL \1 [\d.]+ \s"[^>]*stroke: (#009e73|#d55e00|currentColor); stroke-width: 1.4', svg)
    )
    at = {colour: float(x) for x, colour in lines.items()}
    medians = np.array([at["#009e73"], at["#d55e00"], at["currentColor"]])
    rates = np.log10(np.array([test.steepest, test.valley, test.peak], float))
    decade = np.ptp(medians) / np.ptp(rates)
    np.testing.assert_allclose(np.abs(medians - left), decade * np.log10(4), rtol=1e-4)
    np.testing.assert_allclose(np.abs(medians - right), decade * np.log10(4), rtol=1e-4)


def test_range_test_says_what_speaks_against_its_peak() -> None:
    tests = shifted(1, 0.5, 4)
    first, *rest = combine(tests).doubts
    drawn = " ".join(texts(figures.range_test(tests)))
    assert f"Unsure: {first}" in drawn and all(doubt in drawn for doubt in rest)
    rising = [suggest(test.lrs, test.losses + np.geomspace(1e-4, 10, 100)) for test in shifted(1, 1, 1)]
    assert "Unsure" not in " ".join(texts(figures.range_test(rising)))


def test_range_test_without_a_descent_is_drawn_without_suggestions() -> None:
    flat = suggest(np.geomspace(1e-5, 1, 20), np.ones(20))
    assert flat.valley is None
    assert not [text for text in texts(figures.range_test([flat])) if "valley" in text]


def colours(png: bytes) -> set[tuple[int, ...]]:
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    found, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(colour) for colour, count in zip(found.tolist(), counts, strict=True) if count > 2000}


def plain(*shades: int) -> NDArray[np.uint8]:
    """One 8×8 image of (shade, 0, 255 − shade) a shade."""
    images = np.zeros((len(shades), 8, 8, 3), np.uint8)
    images[..., 0] = np.array(shades)[:, None, None]
    images[..., 2] = 255 - images[..., 0]
    return images


def test_sheet_of_samples_shows_each_image_above_its_augmented_versions() -> None:
    before, after = plain(10, 20), plain(30, 40, 50, 60).reshape(2, 2, 8, 8, 3)
    png = figures.samples(before, after, ["cat", "dog"])
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    for column, shades in ((0, (10, 30, 50)), (1, (20, 40, 60))):
        x = pixels.shape[1] * (2 * column + 1) // 4
        down = [tuple(pixel) for pixel in pixels[:, x].tolist()]
        order = [s for s in dict.fromkeys(p[0] for p in down if p[1] == 0 and p[0] + p[2] == 255) if s in range(10, 70, 10)]
        assert order == list(shades)


def test_samples_of_a_data_set_are_one_image_a_class_and_its_augmented_versions(blobs: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "samples.png"
    figures.write_samples(blobs, (HorizontalFlip(1.0),), path, versions=1)
    first = [int(np.flatnonzero(blobs.train.labels == label)[0]) for label in range(3)]
    before = blobs.train.images[first]
    assert path.read_bytes() == figures.samples(before, before[None, :, :, ::-1], ["left", "middle", "right"])


def test_samples_are_drawn_anew_for_each_version(blobs: Dataset, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        figures.write_samples(blobs, (RandomCrop(4),), path, seed=seed)
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()


def test_written_range_test_is_the_figure_as_a_file(tmp_path: Path) -> None:
    figures.write_range_test([sweep()], tmp_path / "lr.svg")
    assert (tmp_path / "lr.svg").read_text(encoding="utf-8") == figures.standalone(figures.range_test([sweep()]))


def test_a_figure_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lr.svg").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*lr\.svg"):
        figures.write_range_test([sweep()], tmp_path / "lr.svg")
