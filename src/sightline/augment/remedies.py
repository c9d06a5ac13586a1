"""What takes a shortcut's meaning away: a mark, a frame, a tint, a background or a texture on every class alike.

None looks at labels: what they put into an image tells nothing of its class, and a model that leans on it is wrong as
often as it is right. `Stamp` and `Erase` are for one place of the images as they are stored, and belong at the start of
a policy: what crops or turns an image moves the place too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..exceptions import RecipeError
from .base import (
    across,
    between,
    change,
    filling,
    happens,
    inside,
    is_fill,
    is_whole,
    require,
    require_p,
    require_range,
    select,
    to_uint8,
    uniform,
)

EDGE = 0.2  # the width of the soft edge of Backdrop's ellipse, as a share of its radius
SIZES = (1, 3, 5, 7)  # of Restyle's kernels, in pixels
GREY = 127.5  # mid-grey, which the convolution of Restyle leaves as it is


@dataclass(frozen=True)
class Stamp:
    """With probability `p`, put the pixels `patch` in a fixed place: a mark of one class becomes a mark of all.

    `patch` holds whole levels, 0–255, nested (height, width, channels); lists become tuples. `top` and `left` are its
    corner, in pixels, in images of `size` (height, width); images of another size are refused, with None those that
    it doesn't fit in. If a share q of a class carries the mark and no other image, the mark is afterwards
    (q + p - pq) / p times as frequent in that class as in the others: at p = 1 it tells nothing.

    Albumentations has no equivalent that needs no further data; `to_albumentations` wraps this one.
    """

    patch: Sequence[Sequence[Sequence[int]]]
    top: int
    left: int
    p: float = 0.5
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", _nested_tuples(self.patch))
        require(_is_patch(self.patch), self, "patch", "whole levels between 0 and 255, nested (height, width, channels)")
        _require_place(self)
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return self.apply(images, happens(self.p, len(images), generator))

    def apply(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Put the patch where chosen (N,) bool is True.

        Raises RecipeError where the images are not of `size`, too small, or have another number of channels.
        """
        patch = torch.tensor(self.patch, dtype=images.dtype, device=images.device).permute(2, 0, 1)
        if len(patch) != images.shape[1]:
            raise RecipeError(f"Stamp: patch has {len(patch)} channels and the images {images.shape[1]}; give as many")
        result = images.clone()
        _part(self, result, *patch.shape[1:])[chosen.to(images.device)] = patch
        return result


@dataclass(frozen=True)
class Erase:
    """With probability `p`, fill a fixed box of `height`×`width` pixels with its corner at `top` and `left`.

    `fill` is as in CoarseDropout, or "noise": every level of 0–255 equally likely, independently in every pixel and
    channel, so that nothing of what was there is left and nothing constant takes its place. `size` is as in Stamp.

    Albumentations has no equivalent, its holes have random places; `to_albumentations` wraps this one.
    """

    top: int
    left: int
    height: int
    width: int
    p: float = 1.0
    fill: tuple[float, ...] | Literal["mean", "noise"] = "mean"
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _require_place(self)
        for name in ("height", "width"):
            require(is_whole(getattr(self, name)) and getattr(self, name) >= 1, self, name, "a whole number of at least 1")
        good = self.fill in ("mean", "noise") or is_fill(self.fill)
        require(good, self, "fill", "'mean', 'noise' or a tuple of levels between 0 and 255")
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, channels = images.shape[:2]
        chosen = happens(self.p, n, generator)
        if self.fill != "noise":
            return self.apply(images, chosen)
        shape = (n, channels, self.height, self.width)
        return self.apply(images, chosen, torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))

    def apply(self, images: Tensor, chosen: Tensor, field: Tensor | None = None) -> Tensor:
        """Fill the box where chosen (N,) bool is True: with field (N, C, height, width) uint8, or without one by `fill`.

        Raises RecipeError as Stamp does, where `fill` is still "mean" or has another number of channels than the
        images, and where it is "noise" and no field is given.
        """
        if field is None and self.fill == "noise":
            raise RecipeError("Erase: fill is 'noise' and apply got no field; draw one, or call the transform itself")
        levels = filling(self, images) if field is None else field.to(images.device)
        result = images.clone()
        box = _part(self, result, self.height, self.width)
        box[chosen.to(images.device)] = levels.expand_as(box)[chosen.to(images.device)]
        return result


@dataclass(frozen=True)
class Frame:
    """With probability `p`, fill the border, `width` pixels wide, with one colour, all colours equally likely.

    Albumentations has no equivalent, its borders have a fixed colour; `to_albumentations` wraps this one.
    """

    width: int = 2
    p: float = 0.5

    def __post_init__(self) -> None:
        require(is_whole(self.width) and self.width >= 1, self, "width", "a whole number of at least 1")
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, channels = images.shape[:2]
        chosen = happens(self.p, n, generator)
        return self.apply(images, chosen, torch.randint(0, 256, (n, channels), dtype=torch.uint8, generator=generator))

    def apply(self, images: Tensor, chosen: Tensor, colours: Tensor) -> Tensor:
        """Fill the border with colours (N, C) uint8 where chosen (N,) bool is True.

        Raises RecipeError where the border leaves nothing of the images.
        """
        height, width = images.shape[2:]
        if 2 * self.width >= min(height, width):
            raise RecipeError(f"Frame: a border of {self.width} pixels leaves nothing of {height}×{width} images; lower width")
        within = torch.tensor([self.width, self.width, height - 2 * self.width, width - 2 * self.width])
        kept = torch.where(chosen.cpu()[:, None], within, torch.tensor([0, 0, height, width]))
        return select(inside(kept, images), images, colours.to(images.device)[:, :, None, None])


@dataclass(frozen=True)
class Tint:
    """With probability `p`, add a colour cast: a shift of each channel by up to `strength`, as a fraction of 255 levels.

    Each channel's shift is drawn uniformly from -`strength` to `strength`, and cut to whole levels towards zero. A shift,
    not a factor: it is the field's usual form, and colours the dark parts too, as a tint over a whole image does.

    In Albumentations 2: RGBShift(strength, strength, strength); equal to the last bit.
    """

    strength: float = 0.1
    p: float = 0.5

    def __post_init__(self) -> None:
        require(between(self.strength, 0, 1), self, "strength", "a number between 0 and 1")
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, channels = images.shape[:2]
        tinted = happens(self.p, n, generator)
        shifts = 255 * uniform((-self.strength, self.strength), n * channels, generator).view(n, channels)
        return self.apply(images, shifts.long() * tinted[:, None])

    def apply(self, images: Tensor, shifts: Tensor) -> Tensor:
        """Add shifts (N, C) int64, in levels."""
        shifted: Tensor = images.short() + shifts.to(images.device, torch.int16)[:, :, None, None]
        return shifted.clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Backdrop:
    """With probability `p`, show outside of an ellipse another image of the batch; the label stays that of the inside.

    The ellipse is a guess of where the object is, since in training no masks are known. Its centre is the image's middle,
    moved by up to `jitter` on each axis; half its height and half its width are drawn from the pair `radius`. All are
    uniform, in shares of the image's height and width. Between inside and outside the two images fade over a fifth of
    the radius. The other image is drawn like MixUp's: each image of the batch is one's partner.

    The guess has a price. Of an object off the middle, or larger than the ellipse, a part is lost, and a part of the
    other image's object may come in with the background. Training on random backgrounds all but removed the reliance on
    them in Xiao et al. 2020 (https://arxiv.org/abs/2006.09994, "Mixed-Rand"), with better masks than these, and cost
    accuracy on ordinary images; keep `p` below 1.

    Albumentations has no equivalent: it knows one image at a time.
    """

    radius: tuple[float, float] = (0.3, 0.6)
    jitter: float = 0.1
    p: float = 0.5

    def __post_init__(self) -> None:
        require_range(self, "radius", 0.01, 10)
        require(between(self.jitter, 0, 0.5), self, "jitter", "a number between 0 and 0.5")
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n = len(images)
        chosen, partner = happens(self.p, n, generator), torch.randperm(n, generator=generator)
        centres = 0.5 + uniform((-self.jitter, self.jitter), 2 * n, generator).view(n, 2)
        return self.apply(images, chosen, partner, torch.cat((centres, uniform(self.radius, 2 * n, generator).view(n, 2)), 1))

    def apply(self, images: Tensor, chosen: Tensor, partner: Tensor, ellipses: Tensor) -> Tensor:
        """Show images[partner (N,)] outside of the ellipses where chosen (N,) bool is True.

        ellipses (N, 4) float32 are the centre's place, down and across, and half of the height and of the width, in
        shares of the image's height and width.
        """

        def swap(some: Tensor, rows: Tensor) -> Tensor:
            own = _within(ellipses[rows], some)
            return to_uint8(own * some + (1 - own) * images[partner[rows]])

        return change(images.clone(), chosen, swap)


@dataclass(frozen=True)
class Restyle:
    """With probability `p`, give the surfaces another texture: mix the image with a random convolution of itself.

    The kernel has 1, 3, 5 or 7 pixels a side, all equally likely, joins all channels, and has weights drawn from a normal
    distribution of variance 1 / (channels · side²). It is applied to the difference from mid-grey; at the image's edge
    the outermost pixels are repeated. The share of the convolved image in the result is drawn uniformly from 0 to
    `strength`. Shapes stay where they are, textures change, and colours do too: where colour tells the class this takes
    away what is needed. On a GPU sums of another order may differ by a level.

    "RandConv", at `strength` 1 its mixing form: Xu et al. 2021, https://arxiv.org/abs/2007.13003; here with a kernel an
    image instead of one a batch. Albumentations has no equivalent; `to_albumentations` wraps this one.
    """

    strength: float = 1.0
    p: float = 0.5

    def __post_init__(self) -> None:
        require(between(self.strength, 0, 1), self, "strength", "a number between 0 and 1")
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, channels = images.shape[:2]
        shares = happens(self.p, n, generator) * uniform((0, self.strength), n, generator)
        sizes = torch.tensor(SIZES)[torch.randint(len(SIZES), (n,), generator=generator)]
        field = torch.randn((n, channels, channels, max(SIZES), max(SIZES)), generator=generator)
        return self.apply(images, shares, sizes, field)

    def apply(self, images: Tensor, shares: Tensor, sizes: Tensor, field: Tensor) -> Tensor:
        """Mix in shares (N,) of the convolved images; a share of 0 leaves an image as it is.

        sizes (N,) int64 are the kernels' sides, each one of SIZES. field (N, C, C, 7, 7), a standard normal draw, holds
        their weights, still to be scaled, for channels out by channels in; the middle of it is used.
        """
        result, widest = images.clone(), max(SIZES)
        for size in SIZES:
            rows = ((sizes == size) & (shares > 0)).nonzero()[:, 0]
            if len(rows):
                middle = slice((widest - size) // 2, (widest + size) // 2)
                kernels = field[rows, :, :, middle, middle] / (images.shape[1] * size**2) ** 0.5
                some, share = images[rows], across(shares[rows], images)
                result[rows] = to_uint8((1 - share) * some + share * _convolved(some, kernels.to(images.device)))
        return result


@dataclass(frozen=True)
class Recombine:
    """With probability `p`, give the image the amplitudes of another image of the batch, and leave it its phases.

    Of the two-dimensional Fourier transform of each channel the phases say where things are, and the amplitudes how much of each
    colour, each fineness and each direction there is: tints, stripes and textures. A class's own are so put on every class
    alike. The other image is drawn like MixUp's: each image of the batch is one's partner. The label stays that of the phases.

    "APR-P": Chen et al. 2021, https://arxiv.org/abs/2108.08487. Albumentations has no equivalent: it knows one image at a time.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n = len(images)
        return self.apply(images, happens(self.p, n, generator), torch.randperm(n, generator=generator))

    def apply(self, images: Tensor, chosen: Tensor, partner: Tensor) -> Tensor:
        """Take the amplitudes of images[partner (N,)] where chosen (N,) bool is True."""

        def recombined(some: Tensor, rows: Tensor) -> Tensor:
            own, other = (torch.fft.rfft2(x.float()) for x in (some, images[partner[rows].to(images.device)]))
            return to_uint8(torch.fft.irfft2(torch.polar(other.abs(), own.angle()), s=some.shape[2:]))

        return change(images.clone(), chosen, recombined)


# Places


def _nested_tuples(value: Any) -> Any:
    """Return lists and tuples as tuples, all the way down: JSON has no tuples."""
    return tuple(_nested_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _is_patch(value: Any) -> bool:
    """Whether a value read from a file is a tuple of at least one pixel, (height, width, channels) whole levels."""
    try:
        pixels = np.array(value)
    except ValueError:  # rows or pixels of different lengths
        return False
    whole = isinstance(value, tuple) and pixels.ndim == 3 and pixels.size > 0 and pixels.dtype.kind == "i"
    return whole and bool(pixels.min() >= 0 and pixels.max() <= 255)


def _require_place(transform: Stamp | Erase) -> None:
    """Raise RecipeError unless `top`, `left` and `size` of the transform are what they must be."""
    for name in ("top", "left"):
        value = getattr(transform, name)
        require(is_whole(value) and value >= 0, transform, name, "a whole number of at least 0")
    size = transform.size
    sized = isinstance(size, tuple) and len(size) == 2 and all(is_whole(s) and s > 0 for s in size)
    require(size is None or sized, transform, "size", "None or (height, width)")


def _part(transform: Stamp | Erase, images: Tensor, height: int, width: int) -> Tensor:
    """Return the view (N, C, height, width) of the images at the transform's place; RecipeError where there is none."""
    name, size, top, left = type(transform).__name__, (images.shape[2], images.shape[3]), transform.top, transform.left
    if transform.size not in (None, size):
        raise RecipeError(f"{name}: its place is for images of {transform.size}, these are {size}; give the place in these")
    if top + height > size[0] or left + width > size[1]:
        raise RecipeError(f"{name}: {height}×{width} pixels at {(top, left)} stick out of images of {size}; move them")
    return images[:, :, top : top + height, left : left + width]


# Masks and convolutions


def _within(ellipses: Tensor, images: Tensor) -> Tensor:
    """Return how much (N, 1, H, W) of its own each pixel keeps: 1 within ellipses (N, 4), 0 outside, half on the line."""
    down, right = (
        ((torch.arange(side, device=images.device) + 0.5) / side - centre[:, None]) / radius[:, None]
        for side, centre, radius in zip(images.shape[2:], *ellipses.to(images.device).T.split(2), strict=True)
    )
    distances = (down[:, :, None] ** 2 + right[:, None, :] ** 2).sqrt()  # in radii
    shares: Tensor = ((1 - distances) / EDGE + 0.5).clamp(0, 1)[:, None]
    return shares


def _convolved(images: Tensor, kernels: Tensor) -> Tensor:
    """Return images (n, C, H, W) float, each convolved with its own of kernels (n, C, C, side, side)."""
    n, channels, side = len(images), images.shape[1], kernels.shape[-1]
    padded = F.pad(images - GREY, (side // 2,) * 4, mode="replicate").flatten(0, 1)
    convolved = F.conv2d(padded[None], kernels.reshape(n * channels, channels, side, side), groups=n)
    return convolved.reshape(images.shape) + GREY
