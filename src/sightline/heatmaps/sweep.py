"""Heatmaps of many images: a run's mistakes, to RUN/heatmaps.npz."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..mistakes import top_mistakes
from ..models import Normalise, best_device, to_device
from ..runs import Run, SavedMaps
from .engine import Heatmaps

if TYPE_CHECKING:
    from ..datasets import Dataset


def explain(
    run: Run,
    data: Dataset | None = None,
    *,
    layer: str = "auto",
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write RUN/heatmaps.npz: Grad-CAM of the predicted and of the true class for every mistake of a run; return its path.

    data: the run's data set, loaded by its name if not given.  layer, aug_smooth, eigen_smooth: see `Heatmaps`.
    `progress(done, total)` is called after each batch.
    """
    if data is None:
        data = run.dataset()
    run.check(data)
    predictions = run.predictions
    place = {name: i for i, name in enumerate(data.test.ids)}
    wrong = top_mistakes(predictions)
    ids = [predictions.ids[i] for i in wrong]
    raw, name = explain_batches(
        run.model().to(best_device()),
        data.test.images[[place[i] for i in ids]],
        (run.info["normalisation"]["mean"], run.info["normalisation"]["std"]),
        predictions.predicted[wrong],
        predictions.labels[wrong],
        layer=layer,
        aug_smooth=aug_smooth,
        eigen_smooth=eigen_smooth,
        progress=lambda done: progress(done, len(ids)),
    )
    smoothing = [word for word, on in (("flip and scale smoothing", aug_smooth), ("eigen smoothing", eigen_smooth)) if on]
    method = ", ".join(["Grad-CAM", *smoothing])
    return SavedMaps(tuple(ids), raw[:, 0], raw[:, 1], name, method).write(run.folder)


def explain_batches(
    model: nn.Module,
    images_NHWC: NDArray[np.uint8],
    normalisation: tuple[Sequence[float], Sequence[float]],
    predicted: NDArray[np.integer[Any]],
    true: NDArray[np.integer[Any]],
    *,
    layer: str = "auto",
    batch_size: int = 128,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[NDArray[np.float32], str]:
    """Return the raw maps of the predicted and the true class, (N, 2, h, w) float32, and the name of the layer.

    images_NHWC: (N, H, W, 3) uint8; `normalisation` is the mean and the standard deviation a channel on the 0–1 scale, those
    of the model's training: the maps are of the input that the model knows. predicted, true: (N,) class indices. Memory beyond
    the result is that of one batch, whatever N is (which may be 0). `progress` is called after each batch with the number of
    images done so far.
    """
    device = next(model.parameters()).device
    normalise = Normalise(*normalisation, device)
    targets = np.stack((predicted, true), 1)
    raw = []
    with Heatmaps(model, layer) as heatmaps:
        for start in range(0, max(len(images_NHWC), 1), batch_size):  # without images, one empty batch tells the shape
            batch = slice(start, start + batch_size)
            images = normalise(to_device(images_NHWC[batch], device))
            maps = heatmaps(images, targets[batch], aug_smooth=aug_smooth, eigen_smooth=eigen_smooth)
            raw.append(maps.raw)
            progress(start + len(images))
    return np.concatenate(raw), maps.layer
