"""What is hidden: holes of a fixed size, and rectangles of random size and shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from ..exceptions import RecipeError
from .base import filling, happens, inside, is_fill, is_whole, require, require_p, require_range, select, uniform


@dataclass(frozen=True)
class CoarseDropout:
    """With probability `p`, fill one `size`×`size` hole, wholly inside the image, all places equally likely.

    `fill` is a tuple of levels, 0–255, one for all channels or one a channel, or "mean": the training images' mean,
    which `bind` puts in its place.
    """

    size: int = 16
    p: float = 0.5
    fill: tuple[float, ...] | Literal["mean"] = "mean"

    def __post_init__(self) -> None:
        require(is_whole(self.size) and self.size >= 1, self, "size", "a whole number of at least 1")
        require_p(self)
        require(self.fill == "mean" or is_fill(self.fill), self, "fill", "'mean' or a tuple of levels between 0 and 255")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, _, height, width = images.shape
        if self.size > min(height, width):
            raise RecipeError(f"CoarseDropout: a hole of size {self.size} is larger than {height}×{width} images; lower it")
        chosen = happens(self.p, n, generator)
        top = (torch.rand(n, generator=generator) * (height - self.size + 1)).long()
        left = (torch.rand(n, generator=generator) * (width - self.size + 1)).long()
        return self.apply(images, chosen, torch.stack((top, left), 1))

    def apply(self, images: Tensor, chosen: Tensor, corners: Tensor) -> Tensor:
        """Fill the hole with the top-left corner corners (N, 2), rows then columns, where chosen (N,) bool is True.

        Raises RecipeError where `fill` is still "mean" or has another number of channels than the images.
        """
        sides = (self.size * chosen)[:, None].expand(-1, 2)
        return _filled(images, torch.cat((corners, sides), 1), filling(self, images))


@dataclass(frozen=True)
class RandomErasing:
    """With probability `p`, fill one rectangle, wholly inside the image, all places equally likely.

    Its share of the image is drawn uniformly from the pair `area`, its width / height from the pair `ratio`; the upper
    end of `area` is lowered to where every ratio fits in. `fill` is as in CoarseDropout. After Zhong et al. 2017
    (https://arxiv.org/abs/1708.04896), with the draws of Albumentations 2, where it is Erasing(scale=area, ratio, fill).
    """

    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: tuple[float, ...] | Literal["mean"] = "mean"
    p: float = 0.5

    def __post_init__(self) -> None:
        require_range(self, "area", 0, 1)
        require_range(self, "ratio", 0.001, 1000)
        require(self.fill == "mean" or is_fill(self.fill), self, "fill", "'mean' or a tuple of levels between 0 and 255")
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, _, height, width = images.shape
        low, high = (share * height * width for share in self.area)
        high = min(high, self.ratio[0] * height**2, width**2 / self.ratio[1])
        if low > high:
            raise RecipeError(f"RandomErasing: an area of {self.area[0]} with a ratio in {self.ratio} is too large; lower it")
        erased = happens(self.p, n, generator)
        areas, ratios = uniform((low, high), n, generator), uniform(self.ratio, n, generator)
        sides = torch.stack(((areas / ratios).sqrt(), (areas * ratios).sqrt()), 1).round().long()
        room = torch.tensor([height, width]) - sides + 1
        corners = (torch.rand((n, 2), generator=generator) * room).long()
        return self.apply(images, torch.cat((corners, sides * erased[:, None]), 1))

    def apply(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Fill boxes (N, 4) int64: top, left, height, width in pixels; a height or width of 0 leaves an image as it is."""
        return _filled(images, boxes, filling(self, images))


def _filled(images: Tensor, boxes: Tensor, levels: Tensor) -> Tensor:
    """Put the levels (1, C or 1, 1, 1) into boxes (N, 4) int64: top, left, height, width."""
    if not images.is_contiguous(memory_format=torch.channels_last):
        return select(inside(boxes, images), levels, images)
    # A plane an image, where the channels of a pixel are columns: what is as long as a row is computed many times as fast.
    n, channels, height, width = images.shape
    plane = images.permute(0, 2, 3, 1).reshape(n, 1, height, width * channels)
    row = levels.expand(1, channels, 1, width).permute(0, 2, 3, 1).reshape(1, 1, 1, width * channels)
    boxes = boxes * torch.tensor([1, channels, 1, channels])
    return select(inside(boxes, plane), row, plane).view(n, height, width, channels).permute(0, 3, 1, 2)
