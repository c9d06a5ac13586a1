"""Where the objects lie, and what is done with them: exchanged, moved, laid over another background, given another surface."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..augment import Blur
from ..heatmaps import upsample
from .evidence import Floats, Integers
from .subject import Subject

CENTRE = 3 / 8  # half axes of the ellipse where an object is taken to lie, of the image's sides
SURROUNDINGS = 1 / 8  # of the side: how far away the pixels are that a removed object is filled from, as a standard deviation
SWATCH = 1 / 4  # of the side: of the piece of an object's surface that is laid on others


def objects(subject: Subject, rows: Integers) -> Tensor:
    """Return where the objects of the rows lie, (B, 1, H, W) bool: as the data know it, else an ellipse in the centre.

    Heatmaps aren't asked: those of a model that looks at the background would call that the object.
    """
    if subject.split.masks is not None:
        return torch.from_numpy(subject.split.masks[rows]).to(subject.device)[:, None]
    y, x = (((torch.arange(side) + 0.5) / side - 0.5) / CENTRE for side in subject.size)
    ellipse = (y[:, None] ** 2 + x**2 <= 1).to(subject.device)
    return ellipse.expand(len(rows), 1, *ellipse.shape)


def centres(subject: Subject, maps: NDArray[np.float32] | None) -> Floats:
    """Return where the objects' centres of mass lie, (N, 2): rows and columns in pixels, NaN where nothing tells.

    By the data's masks, else by what is above zero in maps (N, h, w).
    """
    if subject.split.masks is not None:
        weights: NDArray[np.float32] = subject.split.masks.astype(np.float32)
    elif maps is not None:
        weights = np.maximum(upsample(maps, subject.size), 0)
    else:
        return np.full((len(subject), 2), np.nan)
    total = weights.sum((1, 2), dtype=np.float64)
    down, across = (
        weights.sum(axis, dtype=np.float64) @ np.arange(side) for axis, side in zip((2, 1), subject.size, strict=True)
    )
    whole = np.where(total > 0, total, np.nan)
    return np.stack([down / whole, across / whole], 1)


def without(images: Tensor, masks: Tensor) -> Tensor:
    """Return images (N, C, H, W) uint8 with what is in masks (N, 1, H, W) bool filled from around it, smoothly."""
    sigma = torch.full((len(images),), SURROUNDINGS * min(images.shape[2:]))
    kept = (~masks).to(torch.uint8)
    # Blurred image by blurred mask: the mean of the pixels that are left, the nearest weighing the most.
    left, weight = (Blur().apply(some, sigma).float() for some in (images * kept, 255 * kept))
    mean = images.float().mean((2, 3), keepdim=True)
    filled = torch.where(weight > 1, 255 * left / weight.clamp(min=1), mean).round().clamp(0, 255).to(torch.uint8)
    return torch.where(masks, filled, images)


def resized(images: Tensor, masks: Tensor, factors: Tensor) -> Tensor:
    """Return images (N, C, H, W) whose objects, in masks (N, 1, H, W) bool, are enlarged by factors (N,), and nothing else.

    About their centres of mass, bilinearly; what is uncovered is filled from around it.
    """
    shape = masks.float()
    where = [
        2
        * (shape.sum((1, other)) * (torch.arange(side, device=shape.device) + 0.5)).sum(1)
        / shape.sum((1, 2, 3)).clamp(min=1)
        / side
        - 1
        for other, side in ((2, shape.shape[3]), (3, shape.shape[2]))
    ]  # across and down, from -1 to 1
    inverse = 1 / factors.to(shape)
    fixed = torch.stack(where, 1) * (1 - inverse)[:, None]
    places = torch.cat([torch.eye(2).to(shape) * inverse[:, None, None], fixed[:, :, None]], 2)
    grid = F.affine_grid(places, list(images.shape), align_corners=False)
    cut, cover = (F.grid_sample(some, grid, align_corners=False) for some in (images * shape, shape))
    # At its edge an object is mixed with the black around it, as much as it covers less than all of the pixel.
    whole = (cut / cover.clamp(min=1e-3)).round().clamp(0, 255).to(torch.uint8)
    return torch.where(cover > 0.5, whole, without(images, masks))


def swatches(images: Tensor, masks: Tensor) -> Tensor:
    """Return of each image the square, a quarter of the side, that lies the most inside its mask: (N, C, s, s) uint8."""
    side = max(2, round(SWATCH * min(images.shape[2:])))
    best = F.avg_pool2d(masks.float(), side, 1).flatten(1).argmax(1)
    columns = images.shape[3] - side + 1
    corners = zip((best // columns).tolist(), (best % columns).tolist(), strict=True)
    return torch.stack([image[:, i : i + side, j : j + side] for image, (i, j) in zip(images, corners, strict=True)])


def surfaced(images: Tensor, masks: Tensor, surfaces: Tensor, dose: float = 1.0) -> Tensor:
    """Return images whose objects keep place, outline and mean colour, and have another surface: surfaces (N, C, s, s), tiled.

    dose: times its relief, what it differs by from its own mean.
    """
    height, width = images.shape[2:]
    side = surfaces.shape[2]
    relief = dose * (surfaces.float() - surfaces.float().mean((2, 3), keepdim=True))
    relief = relief.repeat(1, 1, -(-height // side), -(-width // side))[:, :, :height, :width]
    inside = masks.float()
    colour = (images * inside).sum((2, 3), keepdim=True) / inside.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(masks, (colour + relief).round().clamp(0, 255).to(torch.uint8), images)


def shuffled(images: Tensor, cells: int, generator: torch.Generator) -> Tensor:
    """Return images cut into cells × cells pieces, in random order: the surfaces stay, the shapes are gone.

    What doesn't fit into whole cells, at the right and the bottom, stays in its place.
    """
    n, channels, height, width = images.shape
    down, across = height // cells, width // cells
    part = images[:, :, : down * cells, : across * cells]
    pieces = part.reshape(n, channels, cells, down, cells, across).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand((n, cells * cells), generator=generator).argsort(1).to(images.device)
    mixed = pieces[torch.arange(n, device=images.device)[:, None], order]
    mixed = mixed.view(n, cells, cells, channels, down, across).permute(0, 3, 1, 4, 2, 5)
    result = images.clone()
    result[:, :, : down * cells, : across * cells] = mixed.reshape(part.shape)
    return result


def boxed(box: tuple[int, int, int, int], size: tuple[int, int], device: torch.device) -> Tensor:
    """Return which pixels (H, W) bool lie in a box: top, left, height, width."""
    top, left, height, width = box
    inside = torch.zeros(size, dtype=torch.bool, device=device)
    inside[top : top + height, left : left + width] = True
    return inside


def bordered(width: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Return which pixels (H, W) bool lie at most `width` pixels from the border."""
    border = torch.ones(size, dtype=torch.bool, device=device)
    border[width : size[0] - width, width : size[1] - width] = False
    return border
