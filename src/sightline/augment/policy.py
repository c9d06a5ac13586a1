"""Policies, which are sequences of transforms: applied, timed, bound to a data set, written down and read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields, replace
from typing import Any

import torch
from torch import Generator, Tensor

from ..exceptions import DataError, RecipeError, nearest
from .base import Transform
from .colour import ColorJitter, Grey
from .erasing import CoarseDropout, RandomErasing
from .geometry import HorizontalFlip, RandomCrop, Rotate, Scale, Shift, VerticalFlip
from .mixing import CutMix, MixUp
from .persample import PerSample
from .quality import Blur, Jpeg, Noise
from .remedies import Backdrop, Erase, Frame, Recombine, Restyle, Stamp, Tint
from .trivial import TrivialAugmentWide

# Those that leave channels last in memory, as they are stored, and are fast there; the others are faster on planes.
AS_STORED = (RandomCrop, Shift, HorizontalFlip, VerticalFlip, CoarseDropout, RandomErasing)


def augment(
    policy: Sequence[Transform], images: Tensor, generator: Generator, ids: Tensor | None = None, epoch: int = 0
) -> Tensor:
    """Apply the transforms of `policy` in order to a batch (N, C, H, W) uint8.

    ids (N,) int64, each image's place in the training set, and the epoch are for flips that alternate; without ids they
    are drawn. Raises DataError for any other batch, and RecipeError for MixUp and CutMix, which mix labels too.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(f"augment: images are {images.dtype} {tuple(images.shape)}; give a uint8 batch (N, C, H, W)")
    for transform in policy:
        if not isinstance(transform, AS_STORED):
            images = images.contiguous()
        if isinstance(transform, HorizontalFlip) and transform.alternating and ids is not None:
            images = transform.apply(images, transform.turn(ids, epoch))
        else:
            images = transform(images, generator)
    return images


def look(policy: Sequence[Transform], images: Tensor, generator: Generator) -> Tensor:
    """Apply `policy` as `augment` does, and MixUp and CutMix too, for pictures: the labels that they mix are dropped."""
    for transform in policy:
        images = _apply(transform, images, generator)
    return images


def _apply(transform: Transform, images: Tensor, generator: Generator) -> Tensor:
    if isinstance(transform, (MixUp, CutMix)):
        return transform.mix(images, generator)[0]
    return transform(images, generator)


def rates(policy: Sequence[Transform], images: Tensor, generator: Generator) -> list[tuple[str, float]]:
    """Run `policy` on a batch (N, C, H, W) uint8 and return each transform's name and its rate in images a second."""
    result = []
    for transform in policy:
        _apply(transform, images[:1], generator)  # the first call may import Albumentations or compile a kernel
        start = time.perf_counter()
        images = _apply(transform, images, generator)
        images.flatten()[:1].tolist()  # a device runs behind: reading one value waits for it
        result.append(
            (
                transform.name if isinstance(transform, PerSample) else type(transform).__name__,
                len(images) / (time.perf_counter() - start),
            )
        )
    return result


def bind(policy: Sequence[Transform], mean: Sequence[float]) -> tuple[Transform, ...]:
    """Return `policy` with every fill of "mean" replaced by `mean`, one value a channel on the 0–1 scale."""
    fill = tuple(255 * float(m) for m in mean)
    return tuple(
        replace(t, fill=fill) if isinstance(t, (CoarseDropout, RandomErasing, Erase)) and t.fill == "mean" else t for t in policy
    )


EXAMPLE = 'write [{"transform": "RandomCrop", "padding": 4}]'
TRANSFORMS: dict[str, type[Any]] = {
    t.__name__: t
    for t in (
        *(RandomCrop, Shift, Scale, Rotate, HorizontalFlip, VerticalFlip, CoarseDropout, RandomErasing),
        *(Stamp, Erase, Frame, Tint, Backdrop, Restyle, Recombine),
        *(ColorJitter, Grey, Blur, Noise, Jpeg, TrivialAugmentWide, MixUp, CutMix, PerSample),
    )
}


def to_dicts(policy: Sequence[Transform]) -> list[dict[str, Any]]:
    """Return the policy as JSON-ready dictionaries, None left out: [{"transform": "RandomCrop", "padding": 4}, …]."""
    return [
        {"transform": type(t).__name__, **{k: v for k, v in asdict(t).items() if v is not None}}  # type: ignore[call-overload]
        for t in policy
    ]


def from_dicts(items: Sequence[dict[str, Any]]) -> tuple[Transform, ...]:
    """Inverse of `to_dicts`. Raises RecipeError for an unknown transform or argument, or a wrong or missing value."""
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise RecipeError(f"augment: {items!r} is no list of transforms; {EXAMPLE}")
    return tuple(_from_dict(item) for item in items)


def _from_dict(item: dict[str, Any]) -> Transform:
    if not isinstance(item, dict) or "transform" not in item:
        raise RecipeError(f"augment: {item!r} is no transform; {EXAMPLE}")
    name = item["transform"]
    if not isinstance(name, str) or name not in TRANSFORMS:
        raise RecipeError(f"augment: unknown transform {name!r}: {nearest(str(name), TRANSFORMS)}")
    # JSON has no tuples
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in item.items() if k != "transform"}
    known = fields(TRANSFORMS[name])
    for argument in arguments:
        if argument not in [f.name for f in known]:
            raise RecipeError(f"{name}: unknown argument {argument!r}: {nearest(str(argument), [f.name for f in known])}")
    for f in known:
        if f.default is MISSING and f.name not in arguments:
            raise RecipeError(f"{name}: the argument '{f.name}' is missing; add it")
    transform: Transform = TRANSFORMS[name](**arguments)
    return transform
