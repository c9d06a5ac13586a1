"""Two images in one: MixUp and CutMix, which mix labels too.

`mix(images, generator)` returns the mixed images (N, C, H, W) uint8, each one's partner (N,) int64, a place in the
batch, and its own share (N,) float32 in the result. The loss is

    share · CE(logits, labels) + (1 - share) · CE(logits, labels[partner])

image by image, averaged. Neither can be called like the other transforms: `augment`, which knows no labels, refuses
them. Albumentations has no equivalent: its MixUp takes reference images, and mixes no labels of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Generator, Tensor

from ..exceptions import RecipeError
from .base import across, between, happens, inside, require, require_p, select, to_uint8


@dataclass(frozen=True)
class _Mixing:
    """What both have: with probability `p`, a share drawn from Beta(alpha, alpha)."""

    alpha: float
    p: float = 1.0

    def __post_init__(self) -> None:
        require(between(self.alpha, 0.001, 1000), self, "alpha", "a number between 0.001 and 1000")
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        raise RecipeError(f"{type(self).__name__}: it mixes labels too; call its mix where the loss is computed")

    def _draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw a partner (N,) int64, each image being one's partner, and a share (N,) float32, 1 where nothing is mixed."""
        partner, mixed = torch.randperm(n, generator=generator), happens(self.p, n, generator)
        # By the inverse distribution function: torch's own draws from Beta take no generator.
        uniform = torch.rand(n, dtype=torch.float64, generator=generator)
        share = torch.from_numpy(betaincinv(self.alpha, self.alpha, uniform.numpy())).float()
        return partner, torch.where(mixed, share, 1.0)


@dataclass(frozen=True)
class MixUp(_Mixing):
    """With probability `p`, the weighted mean of two images; the weight is drawn from Beta(alpha, alpha).

    Zhang et al. 2018, https://arxiv.org/abs/1710.09412; here with a weight an image.
    """

    alpha: float = 0.2

    def mix(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return mixed images (N, C, H, W), partner (N,) int64 and share (N,) float32, both on the CPU."""
        partner, share = self._draw(len(images), generator)
        return self.apply(images, partner, share), partner, share

    def apply(self, images: Tensor, partner: Tensor, share: Tensor) -> Tensor:
        """Return share (N,) · images + (1 - share) · images[partner (N,)], rounded to whole levels."""
        own = across(share, images)
        return to_uint8(own * images + (1 - own) * images[partner.to(images.device)])


@dataclass(frozen=True)
class CutMix(_Mixing):
    """With probability `p`, a rectangle of one image pasted over the other, at the same place.

    Yun et al. 2019, https://arxiv.org/abs/1905.04899: 1 - the rectangle's share of the area is drawn from
    Beta(alpha, alpha), its centre is uniform over the image, what sticks out is cut off, and the share returned is that
    of the pixels kept. Here with a rectangle an image.
    """

    alpha: float = 1.0

    def mix(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return mixed images (N, C, H, W), partner (N,) int64 and share (N,) float32, both on the CPU."""
        n, size = len(images), torch.tensor(images.shape[2:])
        partner, kept = self._draw(n, generator)
        half = ((1 - kept[:, None]).sqrt() * size).long() // 2
        centre = (torch.rand((n, 2), generator=generator) * size).long()
        start, stop = (centre - half).clamp(min=0), torch.minimum(centre + half, size)
        boxes = torch.cat((start, stop - start), 1)
        share = 1 - boxes[:, 2:].prod(1) / size.prod()
        return self.apply(images, partner, boxes), partner, share

    def apply(self, images: Tensor, partner: Tensor, boxes: Tensor) -> Tensor:
        """Paste from images[partner (N,)] the boxes (N, 4) int64: top, left, height, width."""
        return select(inside(boxes, images), images[partner.to(images.device)], images)
