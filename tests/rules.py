"""Models by a rule, and images of which the rule is known: what probes are tested on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sightline.datasets import Split
from sightline.models import Normalise
from sightline.probes import Finding, Subject

SIDE = 16
MIDDLE = slice(SIDE // 2 - 2, SIDE // 2 + 2)
K = 4
LEVELS = torch.tensor([40.0, 100.0, 160.0, 220.0])  # of what tells a class


class Rule(nn.Module):
    """A model by a rule: images (N, 3, H, W) in levels → classes (N,). Its logits are 4 at the class and 0 elsewhere."""

    def __init__(self, rule: Callable[[Tensor], Tensor], classes: int = K) -> None:
        super().__init__()
        self.rule, self.classes = rule, classes

    def forward(self, x: Tensor) -> Tensor:
        return 4.0 * F.one_hot(self.rule((x + 127.5).round()), self.classes)


def nearest_level(values: Tensor) -> Tensor:
    """The class whose level is the nearest to values (N,)."""
    return (values[:, None] - LEVELS).abs().argmin(1)


def middle(x: Tensor) -> Tensor:
    """The class that the mean of the image's middle tells."""
    return nearest_level(x[:, :, MIDDLE, MIDDLE].mean((1, 2, 3)))


def subject_of(
    model: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    masks: NDArray[np.bool_] | None = None,
    classes: int = K,
) -> Subject:
    names = tuple(f"class {i}" for i in range(classes))
    split = Split(images, labels, names, tuple(f"dev/{i}" for i in range(len(labels))), masks)
    return Subject.asked(model.eval(), split, Normalise((0.5,) * 3, (1 / 255,) * 3))


def scenes(n: int = 240, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
    """Noise, with a square in the middle whose level tells the class, and masks of the squares."""
    random, labels = np.random.default_rng(seed), np.arange(n) % K
    images = random.integers(90, 166, (n, SIDE, SIDE, 3), dtype=np.uint8)
    grain = random.integers(-28, 29, (n, 4, 4, 1))  # or the square itself would be a mark
    images[:, MIDDLE, MIDDLE] = LEVELS.numpy()[labels][:, None, None, None] + grain
    masks = np.zeros((n, SIDE, SIDE), bool)
    masks[:, MIDDLE, MIDDLE] = True
    return images, labels, masks


def one(findings: list[Finding], name: str, label: int | None = None) -> Finding:
    (finding,) = (f for f in findings if f.probe == name and f.label == label)
    return finding
