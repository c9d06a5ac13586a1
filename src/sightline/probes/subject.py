"""What is probed: a model with the images that it is asked about, and what it said of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..datasets import Dataset, Split
from ..exceptions import DataError, RecipeError, RunError, nearest
from ..heatmaps import Heatmaps
from ..models import Normalise, at_once, device_of, to_device
from ..precision import NAMED, Precision
from ..runs import Run
from .evidence import Bools, Floats, Integers

PIECE = 500 * 32 * 32  # pixels of the images that a probe changes together: memory goes by pixels
LEARNED, LEARNED_PIXELS = 4000, 2**25  # images of the training that are kept beside those that are probed, and their pixels


@dataclass(frozen=True)
class Subject:
    """A model, in evaluation mode on `device`, and the N images that it is probed on.

    split: the images, dev's as a rule.  logits: (N, K) float32, of the images as they are.  normalise, arithmetic: how images
    become what the model takes in, and how it computes.  training: some of the images that it learned from, to read off them
    what a class looks like, or None where none are at hand; nothing is judged on them.
    """

    model: nn.Module
    normalise: Normalise
    arithmetic: Precision
    device: torch.device
    split: Split
    logits: NDArray[np.float32]
    classes: tuple[str, ...]
    training: Split | None = None

    @classmethod
    def of(
        cls,
        run: Run,
        data: Dataset,
        *,
        limit: int = 2000,
        device: str | torch.device | None = None,
        precision: str = "auto",
    ) -> Subject:
        """Return a run's model with the dev images of its data, at most `limit` of them.

        Fewer are chosen so that each class and each class's mistakes keep their share. precision: a name in
        `precision.NAMED`, or "auto" for the arithmetic that the training found to be the fastest, where that was on this kind
        of device.
        Raises RunError for a run that held nothing out of its training images, DataError for data without dev images.
        """
        if run.predictions.split != "dev":
            raise RunError(f"{run.folder} has no dev images, and the test set is not for probing; train again with --dev 0.1")
        if data.dev is None:
            raise DataError(f"{data.name} has no dev images; load it as the run did: run.dataset()")
        where = device_of(None if device is None else str(device))
        right = dict(zip(run.predictions.ids, run.predictions.predicted == run.predictions.labels, strict=True))
        rows = representative(data.dev.labels, np.array([right.get(name, True) for name in data.dev.ids]), limit)
        normalise = Normalise(run.info["normalisation"]["mean"], run.info["normalisation"]["std"], where)
        arithmetic = _arithmetic(run, where, precision)
        model = replace(arithmetic, compiled=False).prepare(run.model().to(where))
        subject = cls.asked(model, _some(data.dev, rows), normalise, arithmetic)
        height, width = subject.size
        learned = representative(
            data.train.labels, np.ones(len(data.train), bool), max(1, min(LEARNED, LEARNED_PIXELS // (height * width)))
        )
        return replace(subject, training=_some(data.train, learned))

    @classmethod
    def asked(cls, model: nn.Module, split: Split, normalise: Normalise, arithmetic: Precision = NAMED["fp32"]) -> Subject:
        """Ask a model, in evaluation mode on the device of `normalise`, about the images of a split.

        Raises DataError where there is none, or it doesn't answer with finite logits, one a class.
        """
        if not len(split):
            raise DataError("there are no images to probe; choose a larger share with --dev")
        device = normalise.shift.device
        blank = np.empty((0, len(split.classes)), np.float32)
        subject = cls(model, normalise, replace(arithmetic, compiled=False), device, split, blank, split.classes)
        answers = [subject.ask(subject.images(rows)) for rows in subject.pieces(np.arange(len(split)))]
        logits = torch.cat(answers) if _fit(answers, len(split.classes)) else torch.tensor(torch.nan)
        if not logits.isfinite().all():
            raise DataError(f"the model doesn't give {len(split.classes)} finite logits an image, one a class; check its weights")
        return replace(subject, logits=logits.numpy())

    def __len__(self) -> int:
        return len(self.split)

    @cached_property
    def learned(self) -> Subject:
        """The images that the model learned from, as a subject without logits; itself where none are at hand."""
        blank = np.empty((0, len(self.classes)), np.float32)
        return self if self.training is None else replace(self, split=self.training, training=None, logits=blank)

    @property
    def labels(self) -> Integers:
        """The true classes, (N,)."""
        return self.split.labels

    @cached_property
    def predicted(self) -> Integers:
        """The classes with the highest logit, (N,)."""
        predicted: Integers = self.logits.argmax(1)
        return predicted

    @cached_property
    def right(self) -> Bools:
        """Which predictions are the true class, (N,)."""
        right: Bools = self.predicted == self.labels
        return right

    @cached_property
    def margins(self) -> Floats:
        """How much the best class's logit is above the second's, (N,)."""
        if self.logits.shape[1] < 2:
            return np.zeros(len(self))
        ordered = np.partition(self.logits.astype(np.float64), -2, axis=1)
        margins: Floats = ordered[:, -1] - ordered[:, -2]
        return margins

    @property
    def masked(self) -> bool:
        """Whether the data know where the objects are; else it is guessed from heatmaps."""
        return self.split.masks is not None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.split.images.shape[1:3]
        return height, width

    def images(self, rows: Integers) -> Tensor:
        """Return images (B, 3, H, W) uint8 on the device."""
        return to_device(np.array(self.split.images[rows]), self.device).contiguous()

    def ask(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) float32, on the CPU, of images (B, 3, H, W) uint8; batches are made inside."""
        if not len(images):
            return torch.empty(0, len(self.classes))
        with torch.inference_mode():
            parts = []
            for some in images.split(at_once(self.size, self.device)):
                x = self.normalise(some.to(self.device), self.arithmetic.memory_format)
                with self.arithmetic.autocast(self.device):
                    parts.append(self.model(x).float().cpu())
            return torch.cat(parts).clone()

    def calls(self, images: Tensor) -> Integers:
        """Return the classes (B,) that images (B, 3, H, W) uint8 are taken for."""
        called: Integers = self.ask(images).argmax(1).numpy()
        return called

    def pieces(self, rows: Integers) -> Iterator[Integers]:
        """Cut rows into pieces whose images fit into memory several times."""
        height, width = self.size
        piece = max(1, PIECE // (height * width))
        return (rows[start : start + piece] for start in range(0, len(rows), piece))

    def heatmaps(self) -> NDArray[np.float32]:
        """Return Grad-CAM maps (N, h, w) of the predicted classes. Raises a SightlineError for a model that has none."""
        with Heatmaps(self.model) as heatmaps:
            parts = [heatmaps(self.normalise(self.images(rows))).raw for rows in self.pieces(np.arange(len(self)))]
        return np.concatenate(parts)


def representative(labels: Integers, right: Bools, limit: int) -> Integers:
    """Return `limit` rows, or all, in which each class and each class's mistakes have the share that they have in all."""
    if len(labels) <= limit:
        return np.arange(len(labels))
    # Every so-and-so-manyth of the rows in order of class and mistake.
    order = np.lexsort((right, labels))
    return np.sort(order[np.arange(limit) * len(order) // limit])


def _arithmetic(run: Run, device: torch.device, precision: str) -> Precision:
    if precision != "auto":
        if precision not in NAMED:
            raise RecipeError(f"unknown precision '{precision}': {nearest(precision, (*NAMED, 'auto'))}")
        return NAMED[precision]
    same = torch.device(run.info["device"]).type == device.type
    return Precision(**run.info["arithmetic"]) if same else NAMED["fp32"]


def _some(split: Split, rows: Integers) -> Split:
    masks = None if split.masks is None else split.masks[rows]
    return Split(split.images[rows], split.labels[rows], split.classes, tuple(split.ids[i] for i in rows), masks)


def _fit(answers: list[Tensor], classes: int) -> bool:
    return all(logits.ndim == 2 and logits.shape[1] == classes for logits in answers)
