"""A model and what it learns from: how a batch of images becomes a loss."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .. import datasets, models
from ..augment import CutMix, MixUp, Transform, augment, bind
from ..batches import Resident, Streamed, source
from ..models import Normalise
from ..precision import Precision, choose
from ..recipe import Recipe

ADAPT_IMAGES = 5000  # enough for the covariance of small patches


@dataclass(frozen=True)
class Loss:
    """What a batch of B images gives: the mean loss to step down, each image's cross entropy (B,), and how many are right."""

    mean: Tensor
    each: Tensor
    right: Tensor


class Total:
    """The sum of an epoch's losses, and how many images were right; steps are counted when they are read from the device."""

    def __init__(self, loss: float = 0.0, right: int = 0) -> None:
        self.loss, self.right = loss, right
        self._unread: list[Tensor] = []

    def add(self, loss: Loss) -> None:
        """Take in a step, without waiting for it."""
        self._unread.append(torch.stack((loss.mean.detach(), loss.right.to(loss.mean.dtype))))

    def read(self, batch: int) -> None:
        """Count the steps since the last reading, each of `batch` images."""
        for mean, right in torch.stack(self._unread).tolist():
            self.loss, self.right = self.loss + mean * batch, self.right + int(right)
        self._unread.clear()


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
            arithmetic.prepare(model.train()),
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
        x = scaled(self.normalise(images, self.arithmetic.memory_format), scale)
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


def stream(seed: int, *parts: str | int) -> int:
    """A seed for one purpose, independent of every other's."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
