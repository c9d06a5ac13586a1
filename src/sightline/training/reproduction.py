"""Train a finished run again as its run.json says, and find out whether the same came out: history and weights, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..datasets import Dataset
from ..exceptions import RunError
from ..precision import Precision
from ..recipe import Recipe
from ..runs import Run
from .loop import train
from .progress import OnProgress, Progress, silent


@dataclass(frozen=True)
class Reproduction:
    """What came out of training a run again.

    run: the new run.  weights: SHA-256 of the old and of the new model.safetensors.  epochs: how many the run has.  differs: the
    first epoch whose losses, accuracies or rate differ from the old one's in any bit, None where none does.  changed: what else
    is not as it was then, "torch 2.13.0, now 2.14.0", which may be why.
    """

    run: Run
    weights: tuple[str, str]
    epochs: int
    differs: int | None
    changed: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether all weights and the whole history, but for its seconds, are the same."""
        return self.weights[0] == self.weights[1] and self.differs is None


def reproduce(
    run: Run,
    folder: str | Path,
    data: Dataset | None = None,
    *,
    device: str | None = None,
    data_dir: Path | None = None,
    on_progress: OnProgress = silent,
) -> Reproduction:
    """Train `run` again in `folder` with the recipe, seed, data and arithmetic that its run.json names, and compare.

    data: the run's data set, loaded by its name if not given.  device: another than the run's.
    A killed one goes on when it is called again. On a CPU the same machine and versions give the same bits; elsewhere the
    result says what differs. Raises RunError where the data have changed, and for a run that started from the weights of
    another, which it doesn't keep; and what `train` raises.
    """
    if run.info.get("weights"):
        raise RunError(f"{run.folder} started from the weights of another run, which it doesn't keep; train that one again")
    run.model()  # refuses what isn't to be trusted, and weights that can't be read, before hours are spent
    history, recipe = run.history, Recipe.from_dict(run.info["recipe"])
    if len(history) != recipe.epochs:
        raise RunError(f"{run.folder} has {len(history)} of {recipe.epochs} epochs in its history.csv; copy the run folder again")
    if data is None:
        on_progress(Progress("load"))
        data = run.dataset(data_dir)
    run.check(data)
    new = train(
        data,
        folder,
        recipe=recipe,
        seed=run.info["seed"],
        precision=Precision(**run.info["arithmetic"]).name,
        device=device or run.info["device"],
        on_progress=on_progress,
    )
    pairs = list(zip(history, new.history, strict=True))
    differs = next((i for i, rows in enumerate(pairs, 1) if _told(rows[0]) != _told(rows[1])), None)
    return Reproduction(new, (_sha256(run), _sha256(new)), len(pairs), differs, tuple(_changes(run.info, new.info)))


def _told(row: Mapping[str, float]) -> dict[str, str]:
    """A row of history without what the clock says; as text, for NaN is the same as NaN here."""
    return {key: repr(value) for key, value in row.items() if key != "seconds"}


def _sha256(run: Run) -> str:
    return hashlib.sha256((run.folder / "model.safetensors").read_bytes()).hexdigest()


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the machine and the versions is not as it was."""
    was, has = ({"machine": info["machine"], "device": info["device"], **info["versions"]} for info in (then, now))
    return [f"{key} {was.get(key, 'unknown')}, now {value}" for key, value in has.items() if was.get(key) != value]
