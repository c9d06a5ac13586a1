"""What every transform is made of: how it is called, how its arguments are checked, how its draws reach the pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from ..exceptions import RecipeError


class Transform(Protocol):
    """What every augmentation is: images (N, C, H, W) uint8 → uint8, a draw an image."""

    def __call__(self, images: Tensor, generator: Generator) -> Tensor: ...


# Arguments


def require(good: bool, transform: Any, name: str, want: str) -> None:
    """Raise RecipeError unless the argument `name` of `transform` is good; `want` says what it must be."""
    if not good:
        raise RecipeError(f"{type(transform).__name__}: {name} is {getattr(transform, name)!r}; it must be {want}")


def require_p(transform: Any) -> None:
    """Raise RecipeError unless `transform.p` is a probability."""
    require(between(transform.p, 0, 1), transform, "p", "a number between 0 and 1")


def require_range(transform: Any, name: str, low: float, high: float) -> None:
    """Raise RecipeError unless the argument `name` is a tuple (a, b) with low <= a <= b <= high."""
    value = getattr(transform, name)
    good = isinstance(value, tuple) and len(value) == 2 and all(between(v, low, high) for v in value) and value[0] <= value[1]
    require(good, transform, name, f"a pair (low, high) between {low} and {high}")


def is_number(value: object) -> bool:
    """Whether a value read from a file is a number; True and False aren't."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Whether a value read from a file is a whole number; True and False aren't."""
    return isinstance(value, int) and not isinstance(value, bool)


def between(value: Any, low: float, high: float) -> bool:
    """Whether a value read from a file is a number from `low` to `high`."""
    return is_number(value) and low <= value <= high


def is_fill(value: Any) -> bool:
    """Whether a value read from a file is a tuple of levels between 0 and 255."""
    return isinstance(value, tuple) and len(value) > 0 and all(between(v, 0, 255) for v in value)


# Draws


def uniform(limits: tuple[float, float], n: int, generator: Generator) -> Tensor:
    """Draw n numbers, uniform between two limits."""
    low, high = limits
    return low + (high - low) * torch.rand(n, generator=generator)


def happens(p: float, n: int, generator: Generator) -> Tensor:
    """Draw (n,) bool, True with probability p."""
    return torch.rand(n, generator=generator) < p


@dataclass(frozen=True)
class Chosen(ABC):
    """A transform that is made whole or not at all, of each image with probability `p`."""

    p: float = 0.5

    def __post_init__(self) -> None:
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return self.apply(images, happens(self.p, len(images), generator))

    @abstractmethod
    def apply(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Transform the images where chosen (N,) bool is True."""


# Pixels


def change(images: Tensor, where: Tensor, how: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Put how(images[rows], rows) in place of the rows where (N,) bool is True, and return the changed images.

    So what costs much is done only to the images that it changes.
    """
    rows = where.nonzero()[:, 0]
    if len(rows):
        images[rows] = how(images[rows], rows)
    return images


def to_uint8(values: Tensor) -> Tensor:
    """Round levels to the nearest of 0–255."""
    return values.round().clamp(0, 255).to(torch.uint8)


def across(values: Tensor, images: Tensor) -> Tensor:
    """Return values (N,) as float32 (N, 1, 1, 1) on the images' device."""
    return values.to(images.device, torch.float32)[:, None, None, None]


def reflect(index: Tensor, size: int) -> Tensor:
    """Reflect indices at the borders 0 and size - 1, the border itself not repeated."""
    period = max(2 * (size - 1), 1)
    index = index.remainder(period)
    return torch.where(index < size, index, period - index)


def select(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Return `torch.where(mask, yes, no)` of uint8 tensors; by arithmetic, which is several times as fast on a CPU."""
    chosen = mask.to(torch.uint8)
    return yes * chosen + no * (1 - chosen)


def inside(boxes: Tensor, images: Tensor) -> Tensor:
    """Return which pixels (N, 1, H, W) bool lie in boxes (N, 4) int64: top, left, height, width."""
    boxes = boxes.to(images.device)
    rows = torch.arange(images.shape[2], device=images.device) - boxes[:, :1]
    columns = torch.arange(images.shape[3], device=images.device) - boxes[:, 1:2]
    rows_in, columns_in = (rows >= 0) & (rows < boxes[:, 2:3]), (columns >= 0) & (columns < boxes[:, 3:])
    return rows_in[:, None, :, None] & columns_in[:, None, None, :]


def grey(images: Tensor) -> Tensor:
    """Return the luma (N, 1, H, W) int32 of RGB images, by Pillow's integer form of ITU-R 601; of one channel, itself."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().split(1, 1)
    luma: Tensor = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return luma


def require_colour(transform: Any, images: Tensor) -> None:
    """Raise RecipeError unless the images have one channel or three."""
    if images.shape[1] not in (1, 3):
        raise RecipeError(f"{type(transform).__name__}: images have {images.shape[1]} channels; it needs 3 (RGB) or 1: remove it")


def filling(transform: Any, images: Tensor) -> Tensor:
    """Return the levels `transform.fill`, rounded, as a tensor (1, C or 1, 1, 1) like the images.

    Raises RecipeError where fill is still "mean" or has another number of channels than the images.
    """
    name, channels, fill = type(transform).__name__, images.shape[1], transform.fill
    if fill == "mean":
        raise RecipeError(f"{name}: fill is 'mean' and no mean is known here; call bind(policy, mean) first")
    if len(fill) not in (1, channels):
        raise RecipeError(f"{name}: fill has {len(fill)} levels and the images {channels} channels; give one or {channels}")
    return torch.tensor(rounded(fill), dtype=images.dtype, device=images.device)[None, :, None, None]


def rounded(fill: Sequence[float]) -> tuple[int, ...]:
    """Return levels as whole numbers; half a level goes to the even neighbour."""
    return tuple(round(level) for level in fill)
