"""What a training tells whoever watches it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """What a training is doing now, for whoever draws it."""

    stage: str  # "load", "precision", "range test", "train", "test", "epoch" (one has ended), "settle", "views"
    done: int = 0  # steps of this stage
    total: int = 0
    epoch: int = 0  # from 1
    epochs: int = 0
    loss: float = math.nan  # mean over the epoch so far
    accuracy: float = math.nan
    lr: float = math.nan
    images_per_second: float = math.nan
    share: float = math.nan  # of the whole training's work, by the pixels that it looks at: what is done by now
    row: dict[str, float] | None = None  # the epoch's row of history.csv, at stage "epoch"


OnProgress = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Watch nothing."""
