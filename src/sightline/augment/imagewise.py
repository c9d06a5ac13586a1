"""Sightline's own transforms in a pipeline of Albumentations, image by image: those that it has no equivalent of.

Importing this module imports Albumentations, and makes `albumentations.load` know the pipelines that name
`SightlineTransform`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator

from .. import pipelines
from .policy import augment, from_dicts

A = pipelines.albumentations()


class SightlineTransform(A.ImageOnlyTransform):  # type: ignore[misc, name-defined]
    """One of Sightline's transforms, with probability `p`, on uint8 images (H, W, C).

    `transform` is what `to_dicts` returns for it, without its p. The draws follow from the pipeline's seed.
    """

    class InitSchema(A.ImageOnlyTransform.InitSchema):  # type: ignore[misc, name-defined]
        """What Albumentations checks the arguments by."""

        transform: dict[str, Any]

    def __init__(self, transform: dict[str, Any], p: float = 0.5) -> None:
        super().__init__(p=p)
        self.transform = transform
        self.always = from_dicts([{**transform, "p": 1.0}])

    def get_params(self) -> dict[str, Any]:
        """Draw the seed of one image's draws."""
        return {"seed": self.py_random.getrandbits(63)}

    def apply(self, img: np.ndarray, seed: int, **params: Any) -> np.ndarray:
        """Transform one image as its seed says."""
        batch = torch.tensor(img).permute(2, 0, 1)[None]
        (done,) = augment(self.always, batch, Generator().manual_seed(seed))
        image: np.ndarray = done.permute(1, 2, 0).contiguous().numpy()
        return image
