"""Heatmaps as pictures: raw signed maps over their images, in NumPy only."""

from __future__ import annotations

import matplotlib
import numpy as np
from numpy.typing import NDArray

from ..exceptions import DataError, RecipeError, nearest

COLORMAPS = ("viridis", "cividis", "inferno", "magma", "plasma")  # perceptually uniform


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
    if images_NHWC.dtype != np.uint8 or images_NHWC.shape[3:] != (3,) or len(images_NHWC) != len(raw):
        found = f"{images_NHWC.dtype} of shape {images_NHWC.shape}"
        raise DataError(f"overlays need images ({len(raw)}, H, W, 3) uint8, not {found}: pass the original images")
    if colormap not in COLORMAPS:
        raise RecipeError(f"unknown colour map '{colormap}': {nearest(colormap, COLORMAPS)}")
    if not 0 <= weight <= 1:
        raise RecipeError(f"no image can have weight {weight}: choose one from 0 (map only) to 1 (image only)")
    maps = raw if raw.ndim == 4 else raw[:, None]
    heat = upsample(np.maximum(maps, 0), images_NHWC.shape[1:3])
    peak = heat.max((1, 2, 3), keepdims=True)
    colour = matplotlib.colormaps[colormap](heat / np.where(peak > 0, peak, 1))[..., :3]
    images = images_NHWC[:, None].astype(np.float32)
    blend = np.where(no_evidence(maps)[..., None, None, None], images, weight * images + (1 - weight) * 255 * colour)
    pictures: NDArray[np.uint8] = blend.round().astype(np.uint8)
    return pictures if raw.ndim == 4 else pictures[:, 0]


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
