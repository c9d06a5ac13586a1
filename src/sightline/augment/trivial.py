"""TrivialAugment: one random operation an image, at a random strength."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .base import grey, require_colour


@dataclass(frozen=True)
class TrivialAugmentWide:
    """Apply one of 14 operations, at one of 31 levels of strength, all equally likely; it has no parameters.

    Müller and Hutter 2021 (https://arxiv.org/abs/2103.10158), the space "wide", equal pixel by pixel to the authors'
    code (https://github.com/automl/trivialaugment) with Pillow: nearest neighbour, black where nothing was. A level
    l of 0–30 is a share s = l / 30 of the widest strength:

        identity, autocontrast, equalize               no strength
        rotate                                         ±135 s degrees, cut to whole ones
        solarize, posterize                            from level 256 - 256 s on; to 8 - 6 s bits, both cut
        color, contrast, brightness, sharpness         a factor of 0.01 + 1.99 s
        shear_x, shear_y                               ±0.99 s
        translate_x, translate_y                       ±32 s pixels, cut to whole ones, at any image size

    Images have three channels or one. Albumentations has no equivalent.
    """

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        operations, levels, negative = (torch.randint(high, (len(images),), generator=generator) for high in (14, 31, 2))
        return self.apply(images, operations, levels, negative == 1)

    def apply(self, images: Tensor, operations: Tensor, levels: Tensor, negative: Tensor) -> Tensor:
        """Apply OPERATIONS[operations (N,)] at levels (N,) int64, 0–30; negative (N,) bool is where ± means minus."""
        require_colour(self, images)
        signed = torch.where(negative, -levels, levels)
        result = images.clone()
        for i, name in enumerate(OPERATIONS):
            rows = (operations == i).nonzero()[:, 0]
            if len(rows) and name in GEOMETRY:
                result[rows] = _moved(images[rows], _matrices(name, signed[rows].cpu(), *images.shape[2:]))
            elif len(rows):
                result[rows] = _recoloured(name, images[rows], levels[rows].cpu()[:, None, None, None])
        return result


GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (
    *("identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast", "brightness"),
    *("sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
)


def _recoloured(name: str, images: Tensor, level: Tensor) -> Tensor:
    """Return images (n, C, H, W) after an operation that leaves every pixel in its place; level (n, 1, 1, 1) is on the CPU."""
    factors = (0.01 + level.double() * 1.99 / 30).float().to(images.device)  # Apple's GPUs have no float64
    level = level.to(images.device)
    match name:
        case "identity":
            return images
        case "autocontrast":
            return _autocontrast(images)
        case "equalize":
            return _equalize(images)
        case "solarize":
            return torch.where(images >= 256 - level * 256 // 30, 255 - images, images)
        case "posterize":
            dropped = level * 6 // 30
            return (images >> dropped << dropped).to(torch.uint8)
    none = _degenerate(name, images)
    # Pillow's Image.blend: what a factor of 0 gives, the image at 1, and beyond; decimals cut off
    return (none + factors * (images - none)).clamp(0, 255).to(torch.uint8)


def _matrices(name: str, level: Tensor, height: int, width: int) -> Tensor:
    """Return what Pillow calls the data of an affine transform, (n, 6) float64, for signed levels (n,)."""
    one, zero = torch.ones(len(level), dtype=torch.float64), torch.zeros(len(level), dtype=torch.float64)
    shear, pixels = level * 0.99 / 30, (level.abs() * 32 // 30 * level.sign()).double()
    match name:
        case "shear_x":
            rows = (one, shear, zero, zero, one, zero)
        case "shear_y":
            rows = (one, zero, zero, shear, one, zero)
        case "translate_x":
            rows = (one, zero, pixels, zero, one, zero)
        case "translate_y":
            rows = (one, zero, zero, zero, one, pixels)
        case _:
            angle = -(level.abs() * 135 // 30 * level.sign()).double().deg2rad()
            cos, sin = angle.cos().round(decimals=15), angle.sin().round(decimals=15)
            x, y = width / 2, height / 2
            rows = (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
    return torch.stack(rows, 1)


def _moved(images: Tensor, matrices: Tensor) -> Tensor:
    """Pillow's affine transform: the nearest neighbour, found in 16.16 fixed-point numbers; black outside."""
    n, channels, height, width = images.shape
    a, b, c, d, e, f = matrices.T
    centre = torch.stack((a, b, c + (a + b) / 2, d, e, f + (d + e) / 2), 1)
    a, b, c, d, e, f = (centre * 65536 + 0.5).floor().long().to(images.device).T[:, :, None, None]
    x, y = torch.arange(width, device=images.device), torch.arange(height, device=images.device)[:, None]
    columns, rows = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    seen = ((columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)).view(n, 1, -1)
    index = (rows * width + columns).view(n, 1, -1) * seen
    found: Tensor = images.reshape(n, channels, -1).gather(2, index.expand(-1, channels, -1)) * seen
    return found.view(images.shape)


def _autocontrast(images: Tensor) -> Tensor:
    low, high = images.amin((2, 3)).cpu().double(), images.amax((2, 3)).cpu().double()
    # Pillow's table of 256 levels, by its operations in its order: 254.99… may come out, and is cut off to 254.
    scale, levels = torch.full_like(high, 255) / (high - low).clamp(min=1), torch.arange(256, dtype=torch.float64)
    table = (levels * scale[..., None] - (low * scale)[..., None]).clamp(0, 255).to(torch.uint8)
    table = torch.where((high > low)[..., None], table, levels.to(torch.uint8)).to(images.device)
    return table.gather(2, images.flatten(2).long()).view(images.shape)


def _equalize(images: Tensor) -> Tensor:
    n, channels = images.shape[:2]
    levels = images.reshape(n * channels, -1).long()
    counts = torch.zeros(n * channels, 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels))
    last = counts.gather(1, levels.amax(1, keepdim=True))
    steps = (levels.shape[1] - last) // 255
    table = (steps // 2 + counts.cumsum(1) - counts) // steps.clamp(min=1)
    done = table.clamp(max=255).gather(1, levels)
    return torch.where(steps > 0, done, levels).view(images.shape).to(torch.uint8)


def _degenerate(name: str, images: Tensor) -> Tensor:
    """Return what a factor of 0 makes of the images: int32, (n, C or 1, H or 1, W or 1)."""
    match name:
        case "color":
            return grey(images)
        case "contrast":
            light = grey(images)
            pixels = light[0].numel()
            return ((2 * light.long().sum((1, 2, 3), keepdim=True) + pixels) // (2 * pixels)).int()  # the mean, rounded
        case "brightness":
            return torch.zeros(1, dtype=torch.int32, device=images.device)
    smooth = images.int()
    if min(images.shape[2:]) >= 3:  # Pillow leaves the edges as they are
        weighted = smooth.unfold(2, 3, 1).unfold(3, 3, 1).sum((4, 5)) + 4 * smooth[:, :, 1:-1, 1:-1]
        smooth[:, :, 1:-1, 1:-1] = (2 * weighted + 13) // 26  # weighted / 13, rounded
    return smooth
