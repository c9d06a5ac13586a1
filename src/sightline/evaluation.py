"""What a model says of images, and the last word: what a run says of the test images, whose openings run.json counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .allocation import kept_memory
from .datasets import Dataset, Split
from .models import Normalise, at_once, best_device, to_device
from .precision import Precision
from .runs import Predictions, Run, count_opening

OPENED = "test.parquet"  # what a run says of the test images, once it was asked
UNSURE = 0.25  # the share of images, the least confident, of which "shifted" views are taken


@kept_memory()
@torch.inference_mode()
def predict(
    model: nn.Module,
    split: Split,
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
    n = len(split) if rows is None else len(rows)
    height, width = split.images.shape[1:3]
    batch = at_once((height, width), device)
    was_training = model.training
    model.eval()
    parts = []
    for start in range(0, n, batch):
        piece = slice(start, start + batch)
        images = to_device(np.array(split.images[piece if rows is None else rows[piece]]), device)
        x = normalise(view(images), arithmetic.memory_format)
        with arithmetic.autocast(device):
            parts.append(model(x).float().cpu())
        on_progress(min(start + batch, n), n)
    model.train(was_training)
    logits: NDArray[np.float32] = torch.cat(parts).numpy()
    return logits


def predict_views(
    model: nn.Module,
    split: Split,
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


def predictions_of(run: Run, split: Split, name: str, *, device: str | None = None) -> Predictions:
    """Ask the run's model about the images of `split`, called `name`, in float32 and the memory format of its training."""
    where = device or best_device()
    normalise = Normalise(run.info["normalisation"]["mean"], run.info["normalisation"]["std"], where)
    arithmetic = Precision(channels_last=run.info["arithmetic"]["channels_last"])
    logits = predict(arithmetic.prepare(run.model().to(where)), split, normalise, arithmetic)
    return Predictions.from_logits(logits, split.labels, split.ids, run.classes, name)


def open_test(run: Run, data: Dataset) -> Predictions:
    """Open the test set: return what the run says of it, and count the opening in run.json as "test_opened".

    Kept in RUN/test.parquet (`opened_test`); a run that is judged on the test images has them as its predictions, and its
    training opened them.
    Raises RunError where `data` isn't the run's.
    """
    run.check(data, left_out=False)
    count_opening(run)
    if run.judged != "test" and not Path(run.folder, OPENED).exists():
        predictions_of(run, data.test, "test").write(run.folder, OPENED)
    return opened_test(run)


def opened_test(run: Run) -> Predictions:
    """Return what `open_test` kept, once more: it doesn't count. Raises RunError where the test set was never opened."""
    return run.predictions if run.judged == "test" else Predictions.read(run.folder / OPENED, run.classes)
