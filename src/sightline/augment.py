"""Augmentation policies: value objects that transform whole batches on the device.

A transform is a frozen dataclass, called with a uint8 batch (N, C, H, W) and a `torch.Generator` on the CPU, from
which it draws one set of parameters an image; it returns a new uint8 batch of the same shape on the batch's device.
Random numbers are always drawn on the CPU, so that a policy does the same to the same images on every device.

A pipeline written for Albumentations comes in by `from_albumentations`: what Sightline knows runs on whole batches, the
rest image by image through Albumentations itself (`PerSample`). `to_albumentations` is the way out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from . import pipelines
from .exceptions import DataError, RecipeError, nearest


class Transform(Protocol):
    """What every augmentation is: images (N, C, H, W) uint8 → uint8, a draw an image."""

    def __call__(self, images: Tensor, generator: Generator) -> Tensor: ...


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
        _require(is_whole(self.padding) and 0 <= self.padding <= 65535, self, "padding", "a whole number between 0 and 65535")
        _require(self.fill is None or _levels(self.fill), self, "fill", "None or a tuple of levels between 0 and 255")
        sized = isinstance(self.size, tuple) and len(self.size) == 2 and all(is_whole(s) and s > 0 for s in self.size)
        _require(self.size is None or sized, self, "size", "None or (height, width)")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        offsets = torch.randint(0, 2 * self.padding + 1, (len(images), 2), generator=generator)
        return self.apply(images, offsets)

    def apply(self, images: Tensor, offsets: Tensor) -> Tensor:
        """Cut the window whose top-left corner in the padded image is offsets (N, 2), rows then columns.

        Raises RecipeError where the images are not of `size`, or too small to be reflected by `padding`.
        """
        n, channels, height, width = images.shape
        if self.size not in (None, (height, width)):
            raise RecipeError(f"RandomCrop: made for images of {self.size}, these are {(height, width)}; change size")
        if self.fill is None and self.padding >= min(height, width):
            raise RecipeError(f"RandomCrop: padding {self.padding} needs larger images than {height}×{width}; lower it")
        offsets = offsets.to(images.device) - self.padding
        rows = torch.arange(height, device=images.device) + offsets[:, :1]
        columns = torch.arange(width, device=images.device) + offsets[:, 1:]
        # One gather over flat pixels: on a CPU, indexing with rows and columns takes six times as long.
        pixels = _reflect(rows, height)[:, :, None] * width + _reflect(columns, width)[:, None, :]
        index = pixels.view(n, 1, height * width).expand(-1, channels, -1)
        cropped = images.reshape(n, channels, height * width).gather(2, index).view(images.shape)
        if self.fill is None:
            return cropped
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        return _select(inside[:, None], cropped, _colour(self, self.fill, images))


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right with probability `p`."""

    p: float = 0.5

    def __post_init__(self) -> None:
        _require(_probability(self.p), self, "p", "a number between 0 and 1")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return self.apply(images, torch.rand(len(images), generator=generator) < self.p)

    def apply(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Mirror the images where chosen (N,) bool is True."""
        return _select(chosen.to(images.device)[:, None, None, None], images.flip(3), images)


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
        _require(is_whole(self.size) and self.size >= 1, self, "size", "a whole number of at least 1")
        _require(_probability(self.p), self, "p", "a number between 0 and 1")
        _require(self.fill == "mean" or _levels(self.fill), self, "fill", "'mean' or a tuple of levels between 0 and 255")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, _, height, width = images.shape
        if self.size > min(height, width):
            raise RecipeError(f"CoarseDropout: a hole of size {self.size} is larger than {height}×{width} images; lower it")
        chosen = torch.rand(n, generator=generator) < self.p
        top = (torch.rand(n, generator=generator) * (height - self.size + 1)).long()
        left = (torch.rand(n, generator=generator) * (width - self.size + 1)).long()
        return self.apply(images, chosen, torch.stack((top, left), 1))

    def apply(self, images: Tensor, chosen: Tensor, corners: Tensor) -> Tensor:
        """Fill the hole with the top-left corner corners (N, 2), rows then columns, where chosen (N,) bool is True.

        Raises RecipeError where `fill` is still "mean" or has another number of channels than the images.
        """
        if self.fill == "mean":
            raise RecipeError("CoarseDropout: fill is 'mean' and no mean is known here; call bind(policy, mean) first")
        height, width = images.shape[2:]
        corners, chosen = corners.to(images.device), chosen.to(images.device)
        rows = torch.arange(height, device=images.device) - corners[:, :1]
        columns = torch.arange(width, device=images.device) - corners[:, 1:]
        rows_in = (rows >= 0) & (rows < self.size) & chosen[:, None]
        columns_in = (columns >= 0) & (columns < self.size)
        hole = rows_in[:, None, :, None] & columns_in[:, None, None, :]
        return _select(hole, _colour(self, self.fill, images), images)


@dataclass(frozen=True)
class PerSample:
    """Transforms that Sightline has no batched form of, run image by image through Albumentations, on the CPU.

    `spec` is what `albumentations.to_dict` returns for them. Every image gets a seed of its own from the generator, so
    the same generator state gives the same images; a seed in the pipeline itself is not used. A call raises RecipeError
    where Albumentations is missing, doesn't accept the spec, fails, or changes an image's shape or dtype.
    """

    spec: dict[str, Any] = field(hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", pipelines.plain(self.spec))
        _require(pipelines.is_spec(self.spec), self, "spec", "what albumentations.to_dict returns")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return self.apply(images, torch.randint(2**63 - 1, (len(images),), generator=generator))

    def apply(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Transform every image as its seed in seeds (N,) int64 says."""
        images_NHWC = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        done = [self._one(image, seed) for image, seed in zip(images_NHWC, seeds.tolist(), strict=True)]
        stacked = np.stack(done) if done else images_NHWC
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous().to(images.device)

    @cached_property
    def compose(self) -> Any:
        """The `albumentations.Compose` that does the work."""
        return pipelines.build(self.spec)

    def _one(self, image: np.ndarray, seed: int) -> np.ndarray:
        # Not set_random_seed: it gives every transform the same stream, and a flip would always go with the same shift.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            result: np.ndarray = self.compose(image=image)["image"]
        except Exception as error:  # a crop larger than the image, a mask or boxes wanted: each fails in its own way
            raise RecipeError(
                f"{_name(self)}: Albumentations fails on a {image.dtype} image of {image.shape} ({pipelines.line(error)}); "
                "correct its arguments, or remove it"
            ) from error
        if (result.shape, result.dtype) != (image.shape, image.dtype):
            raise RecipeError(
                f"{_name(self)}: a {image.dtype} image of {image.shape} became {result.dtype} of {result.shape}; "
                "an augmentation must keep both: remove what resizes or converts"
            )
        return result


def augment(policy: Sequence[Transform], images: Tensor, generator: Generator) -> Tensor:
    """Apply the transforms of `policy` in order to a batch (N, C, H, W) uint8. Raises DataError for any other batch."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(f"augment: images are {images.dtype} {tuple(images.shape)}; give a uint8 batch (N, C, H, W)")
    for transform in policy:
        images = transform(images, generator)
    return images


def rates(policy: Sequence[Transform], images: Tensor, generator: Generator) -> list[tuple[str, float]]:
    """Run `policy` on a batch (N, C, H, W) uint8 and return each transform's name and its rate in images a second."""
    result = []
    for transform in policy:
        transform(images[:1], generator)  # the first call may import Albumentations or compile a kernel
        start = time.perf_counter()
        images = transform(images, generator)
        images.flatten()[:1].tolist()  # a device runs behind: reading one value waits for it
        result.append((_name(transform), len(images) / (time.perf_counter() - start)))
    return result


def bind(policy: Sequence[Transform], mean: Sequence[float]) -> tuple[Transform, ...]:
    """Return `policy` with every fill of "mean" replaced by `mean`, one value a channel on the 0–1 scale."""
    fill = tuple(255 * float(m) for m in mean)
    return tuple(replace(t, fill=fill) if isinstance(t, CoarseDropout) and t.fill == "mean" else t for t in policy)


EXAMPLE = 'write [{"transform": "RandomCrop", "padding": 4}]'
TRANSFORMS: dict[str, type[Any]] = {t.__name__: t for t in (RandomCrop, HorizontalFlip, CoarseDropout, PerSample)}


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


# Albumentations in and out


def from_albumentations(pipeline: Any) -> tuple[Transform, ...]:
    """Return the policy that does what an Albumentations pipeline does.

    `pipeline` is an `albumentations.Compose` (or a single transform), the dictionary that `albumentations.to_dict`
    makes of one, or the path of a .json, .yaml or .yml file that `albumentations.save` wrote; of Albumentations 1 or 2.

    - HorizontalFlip, CoarseDropout with one square hole of a fixed size in pixels, and Pad or PadIfNeeded (centred, by
      reflection or a constant) followed by RandomCrop become Sightline's own.
    - NoOp is left out, and so are Normalize, ToFloat and ToTensorV2 at the end: Sightline normalises by itself, with
      the training images' mean and standard deviation. Elsewhere they are refused: all here works on uint8 images.
    - All from the first other transform to the last becomes one `PerSample`, what is between them included: a padding
      there may need a crop further on.

    Raises RecipeError for a file that can't be read, an unknown transform, an argument that a transform doesn't know
    (Albumentations itself only warns), and where the package is missing.
    """
    steps = _steps(_images_only(pipelines.read(pipeline)))
    unknown = [i for i, (transform, _) in enumerate(steps) if transform is None]
    first, last = (unknown[0], unknown[-1] + 1) if unknown else (len(steps), len(steps))
    slow = [item for _, items in steps[first:last] for item in items]
    middle = [PerSample(pipelines.spec(slow))] if slow else []
    known = [[t for t, _ in part if t is not None] for part in (steps[:first], steps[last:])]
    return (*known[0], *middle, *known[1])


def to_albumentations(policy: Sequence[Transform], size: tuple[int, int] = (32, 32)) -> Any:
    """Return an `albumentations.Compose` with the distribution of `policy` on images of `size` (height, width).

    Raises RecipeError for a fill of "mean", which `bind` replaces, and where Albumentations is missing.
    """
    A = pipelines.albumentations()
    return A.Compose([out for transform in policy for out in _export(A, transform, size)])


def _export(A: Any, transform: Transform, size: tuple[int, int]) -> list[Any]:
    match transform:
        case RandomCrop(padding, fill, own):
            border = {"border_mode": pipelines.BORDER_REFLECT_101} if fill is None else {"fill": _exported(fill)}
            return [A.Pad(padding=padding, **border), A.RandomCrop(*(own or size))]
        case HorizontalFlip(p):
            return [A.HorizontalFlip(p=p)]
        case CoarseDropout(side, p, fill) if not isinstance(fill, str):
            hole = {"hole_height_range": (side, side), "hole_width_range": (side, side), "num_holes_range": (1, 1)}
            return [A.CoarseDropout(**hole, fill=_exported(fill), p=p)]
        case PerSample():
            return [transform.compose]
    raise RecipeError(f"to_albumentations: {transform} has no form there; for a fill of 'mean', call bind(policy, mean)")


def _exported(fill: tuple[float, ...]) -> int | tuple[int, ...]:
    levels = _rounded(fill)
    return levels[0] if len(levels) == 1 else levels


CONVERSIONS = ("Normalize", "ToFloat", "ToTensorV2")


def _images_only(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out NoOp, and the conversions at the end; raise RecipeError for a conversion before anything else."""
    items = [item for item in items if item["__class_fullname__"] != "NoOp"]
    while items and items[-1]["__class_fullname__"] in CONVERSIONS and items[-1]["p"] == 1:
        items.pop()
    for item in items:
        if item["__class_fullname__"] in CONVERSIONS:
            raise RecipeError(
                f"Albumentations {item['__class_fullname__']}: it stands before another transform or has p < 1; "
                "Sightline augments uint8 images and normalises them itself: move it to the end, or remove it"
            )
    return items


def _steps(items: list[dict[str, Any]]) -> list[tuple[Transform | None, list[dict[str, Any]]]]:
    """Return the batched transforms, None where there is none, each with the dictionaries that it stands for."""
    steps: list[tuple[Transform | None, list[dict[str, Any]]]] = []
    while items:
        pair = _crop(*items[:2]) if len(items) > 1 else None
        taken = 2 if pair else 1
        steps.append((pair or _single(items[0]), items[:taken]))
        items = items[taken:]
    return steps


def _single(item: dict[str, Any]) -> Transform | None:
    """Return the batched form of one transform, None where there is none."""
    if item["__class_fullname__"] == "HorizontalFlip":
        return HorizontalFlip(item["p"])
    if item["__class_fullname__"] != "CoarseDropout":
        return None
    sides, fill = {*item["hole_height_range"], *item["hole_width_range"]}, _fill(item)
    side = sides.pop()
    # Albumentations reads a list of whole numbers as floats, and takes what is at least 1 for pixels
    if item["num_holes_range"] != [1, 1] or sides or side < 1 or side % 1 or fill is None:
        return None
    return CoarseDropout(int(side), item["p"], tuple(int(v) for v in fill))  # Albumentations cuts the decimals off


def _crop(pad: dict[str, Any], crop: dict[str, Any]) -> RandomCrop | None:
    """Return the batched form of a padding followed by a crop, None where there is none."""
    if crop["__class_fullname__"] != "RandomCrop" or pad["p"] != 1 or crop["p"] != 1:
        return None
    size = crop["height"], crop["width"]
    padding = _padding(pad, *size)
    if padding is None:
        return None
    if pad["border_mode"] == pipelines.BORDER_REFLECT_101:
        return RandomCrop(padding, size=size)
    fill = _fill(pad)
    # OpenCV rounds the decimals of a padding, unlike those of a hole: leave them to it
    if pad["border_mode"] == pipelines.BORDER_CONSTANT and fill and all(v % 1 == 0 for v in fill):
        return RandomCrop(padding, fill, size)
    return None


def _padding(pad: dict[str, Any], height: int, width: int) -> int | None:
    """Return the padding that is the same on all sides of an image of height × width, None where there is no such."""
    if pad["__class_fullname__"] == "Pad":
        sides = set(pad["padding"]) if isinstance(pad["padding"], list) else {pad["padding"]}
    elif pad["__class_fullname__"] == "PadIfNeeded" and pad["min_height"] and pad["min_width"]:
        if pad["pad_height_divisor"] or pad["pad_width_divisor"] or pad["position"] != "center":
            return None
        both = {max(pad["min_height"] - height, 0), max(pad["min_width"] - width, 0)}
        if any(extra % 2 for extra in both):
            return None
        sides = {extra // 2 for extra in both}
    else:
        return None
    side = sides.pop()
    return side if not sides and side >= 0 else None


def _fill(item: dict[str, Any]) -> tuple[float, ...] | None:
    """Return a transform's fill, one level or one a channel; None where it isn't a number ("random", "inpaint_ns")."""
    fill = item["fill"]
    if isinstance(fill, str):
        return None
    return tuple(fill) if isinstance(fill, list) else (fill,)


# Small parts


def _reflect(index: Tensor, size: int) -> Tensor:
    """Reflect indices at the borders 0 and size - 1, the border itself not repeated."""
    period = max(2 * (size - 1), 1)
    index = index.remainder(period)
    return torch.where(index < size, index, period - index)


def _select(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Return `torch.where(mask, yes, no)` of uint8 tensors; by arithmetic, which is several times as fast on a CPU."""
    chosen = mask.to(torch.uint8)
    return yes * chosen + no * (1 - chosen)


def _colour(transform: Transform, fill: tuple[float, ...], images: Tensor) -> Tensor:
    """Return the levels `fill`, rounded, as a tensor (1, C or 1, 1, 1) like the images."""
    name, channels = type(transform).__name__, images.shape[1]
    if len(fill) not in (1, channels):
        raise RecipeError(f"{name}: fill has {len(fill)} levels and the images {channels} channels; give one or {channels}")
    return torch.tensor(_rounded(fill), dtype=images.dtype, device=images.device)[None, :, None, None]


def _rounded(fill: Sequence[float]) -> tuple[int, ...]:
    return tuple(round(level) for level in fill)


def _name(transform: Transform) -> str:
    if not isinstance(transform, PerSample):
        return type(transform).__name__
    inner = transform.spec["transform"]
    names = [str(item["__class_fullname__"]) for item in inner.get("transforms", [inner])]
    return f"PerSample({', '.join(names)})"


def _require(good: bool, transform: Transform, name: str, want: str) -> None:
    if not good:
        raise RecipeError(f"{type(transform).__name__}: {name} is {getattr(transform, name)!r}; it must be {want}")


def is_number(value: object) -> bool:
    """Whether a value read from a file is a number; True and False aren't."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Whether a value read from a file is a whole number; True and False aren't."""
    return isinstance(value, int) and not isinstance(value, bool)


def _probability(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _levels(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(is_number(v) and 0 <= v <= 255 for v in value)
