"""What has no batched form: image by image through Albumentations itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from .. import pipelines
from ..exceptions import RecipeError
from .base import require


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
        require(pipelines.is_spec(self.spec), self, "spec", "what albumentations.to_dict returns")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return self.apply(images, torch.randint(2**63 - 1, (len(images),), generator=generator))

    def apply(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Transform every image as its seed in seeds (N,) int64 says."""
        images_NHWC = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        done = [self._one(image, seed) for image, seed in zip(images_NHWC, seeds.tolist(), strict=True)]
        stacked = np.stack(done) if done else images_NHWC
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous().to(images.device)

    @property
    def name(self) -> str:
        """The transforms' names: "PerSample(Blur, GaussNoise)"."""
        inner = self.spec["transform"]
        names = [str(item["__class_fullname__"]) for item in inner.get("transforms", [inner])]
        return f"PerSample({', '.join(names)})"

    @property
    def inside(self) -> frozenset[str]:
        """The names of all of Albumentations' classes in it, those within OneOf and its like included."""
        return frozenset(_names(self.spec["transform"]))

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
                f"{self.name}: Albumentations fails on a {image.dtype} image of {image.shape} ({pipelines.line(error)}); "
                "correct its arguments, or remove it"
            ) from error
        if (result.shape, result.dtype) != (image.shape, image.dtype):
            raise RecipeError(
                f"{self.name}: a {image.dtype} image of {image.shape} became {result.dtype} of {result.shape}; "
                "an augmentation must keep both: remove what resizes or converts"
            )
        return result


def _names(item: Any) -> Iterator[str]:
    """The class of a saved transform, and those of the transforms in it; a spec's own form was not looked at before."""
    if isinstance(item, dict):
        yield str(item.get("__class_fullname__", "")).rpartition(".")[2]
        inside = item.get("transforms")
        for inner in inside if isinstance(inside, list) else ():
            yield from _names(inner)
