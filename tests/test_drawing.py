"""Overlays and sheets, against literal NumPy and torch, pixel by pixel."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from sightline.exceptions import DataError, RecipeError
from sightline.heatmaps import no_evidence, overlay, upsample
from sightline.heatmaps.drawing import AGAINST, FOR, GAP, diverging, fitted, pictures, sheet


def random_maps(n: int, t: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Maps (n, t, 4, 4) and images (n, 8, 8, 3)."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, t, 4, 4)).astype(np.float32), rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def enlarged(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """One map (4, 4) at 8×8, by torch."""
    larger: NDArray[np.float32] = F.interpolate(torch.tensor(raw)[None, None], (8, 8), mode="bilinear")[0, 0].numpy()
    return larger


@pytest.mark.parametrize(("old", "new"), [((8, 8), (32, 32)), ((3, 5), (7, 16)), ((4, 4), (4, 4)), ((1, 6), (9, 4))])
def test_upsample_equals_torchs_bilinear(old: tuple[int, int], new: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *old, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps, new, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(upsample(maps.numpy(), new), expected, rtol=0, atol=1e-5)


def test_overlay_pixels_equal_a_literal_computation() -> None:
    """Two maps an image on the image's common scale; weight is the image's."""
    raw, images = random_maps(3, 2)
    raw[1, 0] = -1  # argues for its class nowhere: the image stays as it is
    for weight, colormap in ((0.725, "viridis"), (0.3, "inferno")):
        drawn = overlay(raw, images, weight, colormap)
        assert drawn.dtype == np.uint8
        for n in range(3):
            heats = [enlarged(np.maximum(raw[n, t], 0)) for t in range(2)]
            peak = max(heat.max() for heat in heats)
            for t, i, j in np.ndindex(2, 8, 8):
                colour = 255 * np.array(matplotlib.colormaps[colormap](heats[t][i, j] / peak)[:3])
                expected = weight * images[n, i, j] + (1 - weight) * colour
                if (n, t) == (1, 0):
                    expected = images[n, i, j]
                assert np.abs(drawn[n, t, i, j] - expected).max() <= 1.5  # rounding, and a step of 1/256 in colour
    assert no_evidence(raw).tolist() == [[False, False], [True, False], [False, False]]


def test_overlay_of_one_map_has_its_own_scale() -> None:
    raw = np.stack((np.eye(4), 100 * np.eye(4)))[None].astype(np.float32)
    images = np.full((1, 8, 8, 3), 100, np.uint8)
    faint, strong = overlay(raw[:, 0], images), overlay(raw[:, 1], images)
    np.testing.assert_array_equal(faint, strong)
    together = overlay(raw, images)
    np.testing.assert_array_equal(together[:, 1], strong)
    np.testing.assert_array_equal(together[:, 0], overlay(0.01 * raw, images)[:, 0])
    assert (together[:, 0] != faint).any()


def test_no_images_have_no_overlays() -> None:
    raw, images = np.zeros((0, 2, 8, 8), np.float32), np.zeros((0, 32, 32, 3), np.uint8)
    for draw in (overlay, diverging):
        assert draw(raw, images).shape == (0, 2, 32, 32, 3)


def test_diverging_pixels_equal_a_literal_computation() -> None:
    """Orange above zero, blue below, as opaque as the value is large among all maps of the image."""
    raw, images = random_maps(2, 3)
    drawn = diverging(raw, images, 0.4)
    assert drawn.dtype == np.uint8
    for n in range(2):
        heats = [enlarged(raw[n, t]) for t in range(3)]
        peak = max(abs(float(value)) for heat in heats for value in heat.flat)
        for t, i, j in np.ndindex(3, 8, 8):
            value = float(heats[t][i, j])
            opacity = 0.6 * abs(value) / peak
            hue = np.array((213, 94, 0) if value > 0 else (0, 114, 178))
            expected = (1 - opacity) * images[n, i, j] + opacity * hue
            assert np.abs(drawn[n, t, i, j] - expected).max() <= 0.51


def test_diverging_keeps_the_image_where_the_map_is_zero_and_swaps_colours_with_the_sign() -> None:
    images = random_maps(1, 1)[1]
    np.testing.assert_array_equal(diverging(np.zeros((1, 4, 4), np.float32), images)[0], images[0])
    half = np.zeros((1, 8, 8), np.float32)
    half[0, :, :4], half[0, :, 5:] = -2, 2
    drawn = diverging(half, images, 0)[0]
    assert (drawn[:, :4] == AGAINST).all() and (drawn[:, 5:] == FOR).all()
    np.testing.assert_array_equal(drawn[:, 4], images[0, :, 4])
    opposite = diverging(-half, images, 0)[0]
    assert (opposite[:, :4] == FOR).all() and (opposite[:, 5:] == AGAINST).all()


def test_pictures_draw_each_kind_of_map_on_the_scale_of_its_kind() -> None:
    raw, images = random_maps(2, 4)
    raw[:, 3] *= 50
    drawn = pictures(raw, images, (False, True, False, True), 0.5)
    np.testing.assert_array_equal(drawn[:, [0, 2]], overlay(raw[:, [0, 2]], images, 0.5))
    np.testing.assert_array_equal(drawn[:, [1, 3]], diverging(raw[:, [1, 3]], images))
    np.testing.assert_array_equal(pictures(raw, images, [True] * 4), diverging(raw, images))
    np.testing.assert_array_equal(pictures(raw, images, [False] * 4), overlay(raw, images))


def test_bad_overlays_are_refused() -> None:
    raw, images = np.ones((2, 4, 4), np.float32), np.zeros((2, 8, 8, 3), np.uint8)
    for draw in (overlay, diverging):
        with pytest.raises(DataError, match=r"images \(2, H, W, 3\) uint8, not float64"):
            draw(raw, images / 255)
        with pytest.raises(DataError, match=r"shape \(1, 8, 8, 3\)"):
            draw(raw, images[:1])
        with pytest.raises(RecipeError, match=r"weight 72\.5"):
            draw(raw, images, weight=72.5)
    with pytest.raises(RecipeError, match="did you mean 'viridis'"):
        overlay(raw, images, colormap="virdis")


def plain(shade: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), (shade, 0, 255 - shade), np.uint8)


def pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_sheet_shows_every_picture_in_its_row_and_column_above_black_on_white() -> None:
    rows = [[plain(10, 4, 4), plain(60, 400, 200)], [plain(110, 8, 16)]]
    shown = pixels(sheet(rows, [["cat.png", "猫 قطة"], ["dog\n\x1b[31m.png"]], side=64))
    assert shown.shape[1] == GAP + 2 * (64 + GAP)
    places = {shade: np.argwhere((shown == (shade, 0, 255 - shade)).all(-1)) for shade in (10, 60, 110)}
    for shade, (height, width), column in ((10, (64, 64), 0), (60, (64, 32), 1), (110, (32, 64), 0)):
        (top, left), (bottom, right) = places[shade].min(0), places[shade].max(0)
        assert (bottom - top + 1, right - left + 1, left) == (height, width, GAP + column * (64 + GAP))
        under = shown[bottom + 1 : bottom + 1 + 24, left : left + 64]
        assert len(places[shade]) == height * width and (under.min(2) < 60).any()
    assert places[110][:, 0].min() > places[10][:, 0].max()


def test_a_long_title_is_cut_to_its_column() -> None:
    shown = pixels(sheet([[plain(10, 64, 64), plain(20, 64, 64)]], [["x" * 500, ""]], side=64))
    gap = shown[:, GAP + 64 : GAP + 64 + GAP]
    assert (gap == 255).all()
    assert (shown[GAP + 64 :, GAP : GAP + 64] < 60).any()


def test_small_pictures_are_enlarged_by_whole_pixels_and_large_ones_scaled_down() -> None:
    small = random_maps(1, 1)[1][0]
    np.testing.assert_array_equal(fitted(small, 30), small.repeat(3, 0).repeat(3, 1))
    assert fitted(plain(7, 100, 50), 30).shape == (30, 15, 3)
    again = fitted(fitted(small, 30), 30)
    np.testing.assert_array_equal(again, fitted(small, 30))
