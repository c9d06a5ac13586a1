"""How the light falls: brightness, contrast, saturation, hue, and no colour at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .base import Chosen, across, between, change, grey, happens, require, require_colour, require_p, to_uint8, uniform


@dataclass(frozen=True)
class ColorJitter:
    """With probability `p`, change brightness, contrast, saturation and hue, in random order.

    The factors of the first three are drawn uniformly from max(0, 1 - value) to 1 + value, the turn of the hue from
    -`hue` to `hue`, in turns of the colour circle (0.5 is the opposite colour). Images have three channels or one; one
    channel has no saturation and no hue. Formulas: torchvision's (a mix with black, with the mean grey level, with the
    grey image; HSV), each result rounded to whole levels.

    In Albumentations 2: ColorJitter with the same values, which cuts decimals off instead of rounding and counts hues
    in steps of 2 degrees: at most 1 level apart for brightness, contrast and saturation, at most 13 for hue.
    RandomBrightnessContrast(0, c) there is ColorJitter(c, 0, 0, 0) here.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    p: float = 0.5

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            require(between(getattr(self, name), 0, 100), self, name, "a number between 0 and 100")
        require(between(self.hue, 0, 0.5), self, "hue", "a number between 0 and 0.5")
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n = len(images)
        limits = [(max(0.0, 1 - v), 1 + v) for v in (self.brightness, self.contrast, self.saturation)]
        changed = happens(self.p, n, generator)[:, None]
        factors = torch.stack([uniform(pair, n, generator) for pair in (*limits, (-self.hue, self.hue))], 1)
        orders = torch.rand((n, 4), generator=generator).argsort(1)
        return self.apply(images, torch.where(changed, factors, torch.tensor(NEUTRAL)), orders)

    def apply(self, images: Tensor, factors: Tensor, orders: Tensor | None = None) -> Tensor:
        """Apply factors (N, 4): of brightness, contrast, saturation, and the turn of the hue; (1, 1, 1, 0) changes nothing.

        orders (N, 4) int64 are permutations of 0–3, which comes first; None is the order of `factors`.
        """
        require_colour(self, images)
        if orders is None:
            orders = torch.arange(4, device=factors.device).expand(len(images), 4)
        result = images.clone()
        for step in orders.T:
            for i, adjust in enumerate((_brightness, _contrast, _saturation, _hue)):
                _adjust(result, (step == i) & (factors[:, i] != NEUTRAL[i]), adjust, factors[:, i])
        return result


@dataclass(frozen=True)
class Grey(Chosen):
    """With probability `p`, put the luma (ITU-R 601) in place of every channel. Images have three channels or one.

    In Albumentations 2: ToGray(method="weighted_average"), whose constants have a bit less: at most 1 level apart.
    """

    def apply(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Make the images grey where chosen (N,) bool is True."""
        require_colour(self, images)
        return change(images.clone(), chosen, lambda some, _: grey(some).to(torch.uint8).expand_as(some))


NEUTRAL = (1.0, 1.0, 1.0, 0.0)


def _adjust(images: Tensor, where: Tensor, adjust: Callable[[Tensor, Tensor], Tensor], factors: Tensor) -> None:
    change(images, where, lambda some, rows: to_uint8(adjust(some, across(factors[rows], some))))


def _brightness(images: Tensor, factors: Tensor) -> Tensor:
    return images * factors


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    mean = grey(images).float().mean((1, 2, 3), keepdim=True)
    return images * factors + mean * (1 - factors)


def _saturation(images: Tensor, factors: Tensor) -> Tensor:
    return images * factors + grey(images) * (1 - factors)


def _hue(images: Tensor, turns: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    value, low = images.amax(1, keepdim=True).float(), images.amin(1, keepdim=True).float()
    chroma = value - low
    red, green, blue = images.float().split(1, 1)
    apart = chroma.clamp(min=1)  # levels are whole: where it is less than 1 it is 0, and there is no hue to turn
    sixths = torch.where(value == green, (blue - red) / apart + 2, (red - green) / apart + 4)
    sixths = torch.where(value == red, (green - blue) / apart, sixths) + 6 * turns
    # Back from HSV: https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative
    k = (sixths + torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None]).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
