"""Where the object is: crop, flip, shift, scale, rotate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..exceptions import RecipeError
from .base import (
    Chosen,
    between,
    change,
    filling,
    happens,
    is_fill,
    is_whole,
    reflect,
    require,
    require_p,
    require_range,
    select,
    to_uint8,
    uniform,
)


@dataclass(frozen=True)
class RandomCrop:
    """Pad by `padding` pixels on every side, then cut out a window of the old size, all places equally likely.

    The padding is a reflection that doesn't repeat the edge, or `fill`: one level for all channels or one a channel,
    0–255. `size` (height, width) says for which images a policy was written: a batch of any other size is refused.
    """

    padding: int = 4
    fill: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        # The bound is beyond any image; beyond int64 no offset could be drawn.
        require(is_whole(self.padding) and 0 <= self.padding <= 65535, self, "padding", "a whole number between 0 and 65535")
        require(self.fill is None or is_fill(self.fill), self, "fill", "None or a tuple of levels between 0 and 255")
        sized = isinstance(self.size, tuple) and len(self.size) == 2 and all(is_whole(s) and s > 0 for s in self.size)
        require(self.size is None or sized, self, "size", "None or (height, width)")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        offsets = torch.randint(0, 2 * self.padding + 1, (len(images), 2), generator=generator)
        return self.apply(images, offsets)

    def apply(self, images: Tensor, offsets: Tensor) -> Tensor:
        """Cut the window whose top-left corner in the padded image is offsets (N, 2), rows then columns.

        Raises RecipeError where the images are not of `size`, or too small to be reflected by `padding`.
        """
        height, width = images.shape[2:]
        if self.size not in (None, (height, width)):
            raise RecipeError(f"RandomCrop: made for images of {self.size}, these are {(height, width)}; change size")
        if self.fill is None and self.padding >= min(height, width):
            raise RecipeError(f"RandomCrop: padding {self.padding} needs larger images than {height}×{width}; lower it")
        return _window(images, offsets - self.padding, None if self.fill is None else filling(self, images))


@dataclass(frozen=True)
class Shift:
    """With probability `p`, move the image by whole pixels, all places up to `limit` equally likely on each axis.

    `limit` is in the `unit` "fraction" (of the height and of the width, 0–1) or "pixels" (a whole number). What comes
    into view is a reflection that doesn't repeat the edge, or `fill`: levels, 0–255, one for all channels or one each.
    A fraction is drawn uniformly and its pixels are cut to a whole number towards zero.

    In Albumentations 2: Affine(translate_percent or translate_px, border_mode=4 or 0); equal to the last bit.
    """

    limit: float = 0.125
    unit: Literal["fraction", "pixels"] = "fraction"
    fill: tuple[float, ...] | None = None
    p: float = 0.5

    def __post_init__(self) -> None:
        require(self.unit in ("fraction", "pixels"), self, "unit", "'fraction' or 'pixels'")
        if self.unit == "fraction":
            require(between(self.limit, 0, 1), self, "limit", "a fraction between 0 and 1")
        else:
            require(is_whole(self.limit) and between(self.limit, 0, 65535), self, "limit", "a whole number between 0 and 65535")
        require(self.fill is None or is_fill(self.fill), self, "fill", "None or a tuple of levels between 0 and 255")
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, _, height, width = images.shape
        moves = happens(self.p, n, generator)
        if self.unit == "pixels":
            offsets = torch.randint(-int(self.limit), int(self.limit) + 1, (n, 2), generator=generator)
        else:
            fractions = uniform((-self.limit, self.limit), 2 * n, generator).view(n, 2)
            offsets = (fractions * torch.tensor([height, width])).long()
        return self.apply(images, offsets * moves[:, None])

    def apply(self, images: Tensor, offsets: Tensor) -> Tensor:
        """Move the content by offsets (N, 2) int64 pixels, down and to the right."""
        return _window(images, -offsets, None if self.fill is None else filling(self, images))


@dataclass(frozen=True)
class Scale:
    """With probability `p`, enlarge about the centre by a factor drawn uniformly from the pair `factor`; < 1 shrinks.

    Bilinear; what comes into view is a reflection that doesn't repeat the edge.

    In Albumentations 2: Affine(scale=factor, keep_ratio=True, border_mode=4). OpenCV 5 is at most 1 level apart;
    before it, positions were rounded to 1/32 pixel.
    """

    factor: tuple[float, float] = (0.8, 1.25)
    p: float = 0.5

    def __post_init__(self) -> None:
        require_range(self, "factor", 0.01, 100)
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n = len(images)
        return self.apply(images, torch.where(happens(self.p, n, generator), uniform(self.factor, n, generator), 1.0))

    def apply(self, images: Tensor, factors: Tensor) -> Tensor:
        """Enlarge by factors (N,); 1 leaves an image as it is."""
        return _warp(images, torch.eye(2) / factors.cpu()[:, None, None])


@dataclass(frozen=True)
class Rotate:
    """With probability `p`, turn about the centre by an angle drawn uniformly between -`limit` and `limit` degrees.

    Bilinear; what comes into view is a reflection that doesn't repeat the edge. Positive angles are anticlockwise.

    In Albumentations 2: Rotate(limit, border_mode=4) or Affine(rotate, border_mode=4). OpenCV 5 is at most 1 level
    apart; before it, positions were rounded to 1/32 pixel.
    """

    limit: float = 15.0
    p: float = 0.5

    def __post_init__(self) -> None:
        require(between(self.limit, 0, 360), self, "limit", "an angle between 0 and 360 degrees")
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n = len(images)
        return self.apply(images, happens(self.p, n, generator) * uniform((-self.limit, self.limit), n, generator))

    def apply(self, images: Tensor, degrees: Tensor) -> Tensor:
        """Turn anticlockwise by degrees (N,); 0 leaves an image as it is."""
        angle = degrees.cpu().deg2rad()
        rows = (torch.stack((angle.cos(), -angle.sin()), 1), torch.stack((angle.sin(), angle.cos()), 1))
        return _warp(images, torch.stack(rows, 1))


@dataclass(frozen=True)
class HorizontalFlip(Chosen):
    """Mirror left and right with probability `p`.

    `alternating` takes the chance out of it (p must be 0.5): where `augment` is told the images' ids and the epoch,
    each image is mirrored in every other epoch, half of them in the first, so that two epochs show both sides of
    every image (Jordan 2024, https://arxiv.org/abs/2404.00498). Where it isn't told, it draws.
    """

    alternating: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.alternating, bool), self, "alternating", "true or false")
        require(not self.alternating or self.p == 0.5, self, "p", "0.5 where flips alternate")

    def apply(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Mirror the images where chosen (N,) bool is True."""
        return _flipped(images, chosen, 3)

    def turn(self, ids: Tensor, epoch: int) -> Tensor:
        """Return which images (N,) bool are mirrored in `epoch` where flips alternate; ids (N,) int64 are the images'."""
        # The top bit of Knuth's multiplicative hash: no table, the same on every machine, and it halves any run of ids.
        return (((ids * 2654435761 >> 31) + epoch) & 1).bool()


@dataclass(frozen=True)
class VerticalFlip(Chosen):
    """Mirror top and bottom with probability `p`. In Albumentations: VerticalFlip; equal to the last bit."""

    def apply(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Mirror the images where chosen (N,) bool is True."""
        return _flipped(images, chosen, 2)


def _flipped(images: Tensor, chosen: Tensor, axis: int) -> Tensor:
    """Mirror the chosen ones, brought together and put in order again: on a CPU faster than to choose between pixels."""
    last = images.is_contiguous(memory_format=torch.channels_last)  # as it lies in memory, so that an image is one piece
    pieces = images.permute(0, 2, 3, 1) if last else images
    order = torch.cat((chosen.nonzero(), (~chosen).nonzero()))[:, 0]
    ordered = pieces.index_select(0, order.to(images.device))
    those = ordered[: int(chosen.sum())]
    # torch has a fast way for pixels of three bytes, if it is told that they are pixels.
    those.copy_(those.permute(0, 3, 1, 2).flip(axis).permute(0, 2, 3, 1) if last else those.flip(axis))
    result = ordered.index_select(0, order.argsort().to(images.device))
    return result.permute(0, 3, 1, 2) if last else result


def _window(images: Tensor, corners: Tensor, fill: Tensor | None) -> Tensor:
    """Cut windows of the images' own size with the top-left corners (N, 2); beyond the edge is `fill`, or a reflection."""
    if fill is None and images.is_contiguous(memory_format=torch.channels_last):  # then it stays so: rows are longer
        return _reflected(images.permute(0, 2, 3, 1)[:, None], corners)[:, 0].permute(0, 3, 1, 2)
    cut = _reflected(images.contiguous()[..., None], corners)[..., 0]
    if fill is None:
        return cut
    height, width = images.shape[2:]
    rows, columns = (torch.arange(n) + corners[:, i : i + 1] for i, n in enumerate((height, width)))
    seen = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    return select(seen[:, None].to(images.device), cut, fill)


def _reflected(planes: Tensor, corners: Tensor) -> Tensor:
    """Cut windows with the top-left corners (N, 2) from planes (N, P, H, W, D) of pixels of D bytes that lie together."""
    n, count, height, width, depth = planes.shape
    device, (down, reach) = planes.device, corners.abs().amax(0).tolist() if n else (0, 0)
    beyond = reflect(torch.cat((torch.arange(-reach, 0), torch.arange(width, width + reach))), width).to(device)
    sides = planes.index_select(3, beyond)
    wide = torch.cat((sides[..., :reach, :], planes, sides[..., reach:, :]), 3)
    # A row of a window is `width` pixels that lie together in memory. To copy each from where it starts is many times as
    # fast as to gather its pixels, on a CPU.
    places = reflect(torch.arange(-down, height + down), height).unfold(0, height, 1).contiguous()  # of each corner's rows
    rows = places.index_select(0, corners[:, 0] + down).to(device)
    first = torch.arange(n * count, device=device).view(n, count, 1) * height + rows[:, None]
    starts = (first * wide.shape[3] + (corners[:, 1].to(device) + reach)[:, None, None]) * depth
    row = width * depth
    runs = wide.view(-1).as_strided((max(wide.numel() - row + 1, 0), row), (1, 1))
    return runs.index_select(0, starts.view(-1)).view(planes.shape)


def _warp(images: Tensor, sources: Tensor) -> Tensor:
    """Resample: the pixel at (x, y) from the centre becomes what was at sources (N, 2, 2) @ (x, y), bilinearly."""
    height, width = images.shape[2:]
    half = torch.tensor([max(width - 1, 1), max(height - 1, 1)], device=images.device) / 2
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)

    def resample(some: Tensor, rows: Tensor) -> Tensor:
        grid = places @ sources[rows].to(some.device).transpose(1, 2)[:, None] / half
        # With aligned corners a reflection is about the middle of the edge pixels: it doesn't repeat the edge.
        return to_uint8(F.grid_sample(some.float(), grid, padding_mode="reflection", align_corners=True))

    return change(images.clone(), (sources != torch.eye(2)).any(2).any(1), resample)
