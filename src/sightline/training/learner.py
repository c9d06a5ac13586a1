"""A model and what it learns from: how a batch of images becomes a loss."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from .. import datasets, models
from ..augment import CutMix, MixUp, Transform, augment, bind
from ..batches import Resident, Streamed, source
from ..models import Normalise, to_device
from ..precision import Precision, choose
from ..recipe import Recipe

ADAPT_IMAGES = 5000  # enough for the covariance of small patches
UNSURE = 0.25  # the share of images, the least confident, of which "shifted" views are taken


@dataclass(frozen=True)
class Loss:
    """What a batch of B images gives: the mean loss to step down, each image's cross entropy (B,), and how many are right."""

    mean: Tensor
    each: Tensor
    right: Tensor


@dataclass(frozen=True)
class Learner:
    """A model and what it learns from, on one device."""

    model: nn.Module
    net: nn.Module  # the same model as a training step calls it: compiled, perhaps
    arithmetic: Precision
    policy: tuple[Transform, ...]
    mixing: tuple[MixUp | CutMix, ...]  # one of them a batch
    smoothing: float
    normalise: Normalise
    images: Resident | Streamed
    labels: Tensor  # (N,) int64, on the device

    @classmethod
    def make(cls, data: datasets.Dataset, recipe: Recipe, arithmetic: Precision, *, seed: int, device: torch.device) -> Learner:
        """A model of the recipe with the seed's weights, adapted to the training images, and these for `device`."""
        torch.manual_seed(stream(seed, "weights"))
        model = models.build(recipe.model, classes=len(data.classes), width=recipe.width).to(device)
        mean, std = data.normalisation
        normalise, images = Normalise(mean, std, device), source(data.train.images, device)
        if isinstance(model, models.Adapting):
            some = torch.randperm(len(data.train), generator=Generator().manual_seed(stream(seed, "adapt")))[:ADAPT_IMAGES]
            model.adapt(normalise(images.take(some.sort().values)))
        policy = bind(recipe.augment, mean)
        return cls(
            model,
            arithmetic.prepare(model),
            arithmetic,
            tuple(t for t in policy if not isinstance(t, (MixUp, CutMix))),
            tuple(t for t in policy if isinstance(t, (MixUp, CutMix))),
            recipe.label_smoothing,
            normalise,
            images,
            torch.from_numpy(data.train.labels).to(device),
        )

    def inputs(
        self, chosen: Tensor, images: Tensor, generator: Generator, epoch: int = 0, scale: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the net is given for `images` (B, 3, H, W) uint8 at the places `chosen` (B,): newly augmented, mixed and scaled.

        Also returns each one's partner (B,) int64 and own share (B,) float32, on the device: with nothing to mix, itself and 1.
        """
        images, n = augment(self.policy, images, generator, chosen, epoch), len(images)
        partner, share = torch.arange(n), torch.ones(n)
        if self.mixing:
            which = int(torch.randint(len(self.mixing), (), generator=generator))
            images, partner, share = self.mixing[which].mix(images, generator)
        x = scaled(self.normalise(images), scale)
        return self.arithmetic.format(x), partner.to(x.device), share.to(x.device)

    def loss(
        self, net: nn.Module, chosen: Tensor, images: Tensor, generator: Generator, epoch: int = 0, scale: float = 1.0
    ) -> Loss:
        """The loss of `images`, newly drawn; see `inputs`."""
        x, partner, share = self.inputs(chosen, images, generator, epoch, scale)
        y = self.labels[chosen.to(self.labels.device)]
        with self.arithmetic.autocast(x.device):
            logits = net(x)
        logits = logits.float()
        mean = F.cross_entropy(logits, y, label_smoothing=self.smoothing)
        if self.mixing:
            own, other = (F.cross_entropy(logits, z, label_smoothing=self.smoothing, reduction="none") for z in (y, y[partner]))
            mean = (share * own + (1 - share) * other).mean()
        with torch.no_grad():
            return Loss(mean, F.cross_entropy(logits, y, reduction="none"), (logits.argmax(1) == y).sum())

    def forward(self, images: int) -> Tensor:
        """The logits of so many images of noise, as a training step computes them."""
        x = self.arithmetic.format(torch.randn(images, 3, *self.images.shape, device=self.labels.device))
        with self.arithmetic.autocast(x.device):
            logits: Tensor = self.model(x)
        return logits


def choose_arithmetic(precision: str, recipe: Recipe, data: datasets.Dataset, steps: int, device: torch.device) -> Precision:
    """The precision of that name, or for "auto" the fastest for this recipe's model, data and length on this machine."""

    def build() -> nn.Module:
        return models.build(recipe.model, classes=len(data.classes), width=recipe.width)

    shape = (recipe.batch(len(data.train)), 3, *data.train.images.shape[1:3])
    key = recipe.model if recipe.width == 1 else f"{recipe.model}×{recipe.width:g}"
    return choose(precision, build, key=key, shape=shape, classes=len(data.classes), steps=steps, device=device)


def scaled(x: Tensor, scale: float) -> Tensor:
    """Return x (N, C, H, W) float with sides of `scale` times their length, at least 8 pixels; bilinear, antialiased."""
    height, width = (max(min(side, 8), round(scale * side)) for side in x.shape[2:])
    if (height, width) == tuple(x.shape[2:]):
        return x
    return F.interpolate(x.contiguous(), (height, width), mode="bilinear", antialias=True)


@torch.inference_mode()
def predict(
    model: nn.Module,
    split: datasets.Split,
    normalise: Normalise,
    arithmetic: Precision,
    *,
    view: Callable[[Tensor], Tensor] = lambda images: images,
    rows: NDArray[np.int64] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Return the logits (N, K) float32 of a split's images, in the model's evaluation mode; its mode is restored.

    view: what is done to each batch (B, 3, H, W) uint8 first.  rows: which images, all if not given.
    """
    device = normalise.shift.device
    n, (height, width) = len(split) if rows is None else len(rows), split.images.shape[1:3]
    batch = max(1, 500 * 32 * 32 // (height * width))  # memory goes by pixels
    was_training = model.training
    model.eval()
    parts = []
    for start in range(0, n, batch):
        piece = slice(start, start + batch)
        images = to_device(np.array(split.images[piece if rows is None else rows[piece]]), device)
        x = arithmetic.format(normalise(view(images)))
        with arithmetic.autocast(device):
            parts.append(model(x).float().cpu())
        on_progress(min(start + batch, n), n)
    model.train(was_training)
    logits: NDArray[np.float32] = torch.cat(parts).numpy()
    return logits


def predict_views(
    model: nn.Module,
    split: datasets.Split,
    normalise: Normalise,
    arithmetic: Precision,
    logits: NDArray[np.float32],
    kind: str,
) -> NDArray[np.float32]:
    """Return the mean logits (N, K) over several views of each image; `logits` are those of the images as they are.

    kind "mirror": the image and its mirror image.  "shifted": these two, and both moved by a pixel up and left and down
    and right, the moved ones together weighing half; only of the quarter of the images that the model is least sure of
    (largest softmax probability), where nearly all changes happen.
    """
    if kind == "mirror":
        mirrored = predict(model, split, normalise, arithmetic, view=lambda x: x.flip(3))
        both: NDArray[np.float32] = (logits + mirrored) / np.float32(2)
        return both
    shifted = logits - logits.max(1, keepdims=True)
    sureness = 1 / np.exp(shifted).sum(1)
    rows = np.sort(np.argsort(sureness, kind="stable")[: round(UNSURE * len(logits))])
    mean = np.zeros_like(logits[rows])
    for pixels, weight in ((0, 0.5), (-1, 0.25), (1, 0.25)):
        for flip in (False, True):
            seen = logits[rows]
            if pixels or flip:
                seen = predict(model, split, normalise, arithmetic, view=_moved(pixels, flip), rows=rows)
            mean += np.float32(weight / 2) * seen
    result: NDArray[np.float32] = logits.copy()
    result[rows] = mean
    return result


def _moved(pixels: int, flip: bool) -> Callable[[Tensor], Tensor]:
    """A view: moved down and right by 0, 1 or -1 pixels, the edge reflected, and mirrored."""

    def view(images: Tensor) -> Tensor:
        if pixels:
            height, width = images.shape[2:]
            start = 1 - pixels
            padded = F.pad(images.float(), (1, 1, 1, 1), "reflect").to(torch.uint8)
            images = padded[:, :, start : start + height, start : start + width]
        return images.flip(3) if flip else images

    return view


def stream(seed: int, *parts: str | int) -> int:
    """A seed for one purpose, independent of every other's."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
