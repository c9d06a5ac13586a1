"""What all stages of a fix stand on: the run and its data, the folder that everything is kept in, and trainings that go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datasets import Dataset
from ..exceptions import RunError
from ..recipe import Recipe
from ..runs import Run, write_json
from ..training import Progress, train
from .edits import Size


@dataclass(frozen=True)
class Step:
    """What a fix is doing now.

    stage: "diagnose", "cost", "prune", "plan", "train" or "verify".  text: the same in words.  done, total: of what the stage
    counts.  training: what the training that goes on now says, None before it.
    """

    stage: str
    text: str = ""
    done: int = 0
    total: int = 0
    training: Progress | None = None


OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class Ground:
    """The runs to fix, seeds of one recipe; their data; the recipe at the rate that it was trained with; where all is kept.

    field: images from where the model is used, (M, H, W, 3), if there are any.
    """

    runs: tuple[Run, ...]
    data: Dataset
    recipe: Recipe
    folder: Path
    device: str | None
    on_progress: OnStep
    field: NDArray[np.uint8] | None = None

    @property
    def size(self) -> Size:
        """Height and width of the images."""
        height, width = self.data.train.images.shape[1:3]
        return height, width

    @property
    def fresh(self) -> int:
        """The first of the seeds that no run had."""
        return max(int(run.info["seed"]) for run in self.runs) + 1

    def trained(self, name: str, recipe: Recipe, seed: int, step: Step, weights: Path | None = None) -> Run:
        """Return the run in the sub-folder `name`, trained, or trained to its end, if it isn't yet."""
        folder = self.folder / name
        if (folder / "run.json").exists():
            return Run.open(folder)
        self.on_progress(step)
        return train(
            self.data,
            folder,
            recipe=recipe,
            seed=seed,
            precision=self.runs[0].info["precision"],
            device=self.device,
            weights=weights,
            on_progress=lambda now: self.on_progress(Step(step.stage, step.text, step.done, step.total, now)),
        )


class Journal:
    """FOLDER/fix.json: what each stage that is done has found.

    Raises RunError where the folder holds something else, or a fix with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._path, self._begun = folder / "fix.json", time.perf_counter()
        self._state: dict[str, Any] = {"settings": _plain(settings), "seconds": 0.0}
        if self._path.exists():
            then, self._state = self._state["settings"], read_json(self._path)
            changed = [key for key, value in then.items() if self._state["settings"].get(key) != value]
            if changed:
                raise RunError(f"{folder} holds a fix with other {changed[0]}; give the same as then, or choose another folder")
        elif folder.exists() and {path.name for path in folder.iterdir()} - {"resume"}:
            raise RunError(f"{folder} holds other files; choose an empty or new folder")

    def __contains__(self, stage: str) -> bool:
        return stage in self._state

    def __getitem__(self, stage: str) -> Any:
        return self._state[stage]

    def keep(self, stage: str, value: Any) -> None:
        """Write what a stage found, and the time that all took so far. The value comes back as JSON gives it."""
        now = time.perf_counter()
        self._state |= {stage: _plain(value), "seconds": self._state["seconds"] + now - self._begun}
        self._begun = now
        write_json(self._path, self._state)


def read_json(path: Path) -> dict[str, Any]:
    """Read what an earlier stage wrote. Raises RunError where it is damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path} ({error}); delete {path.parent} to start again") from None
    return content


def _plain(value: Any) -> Any:
    """What JSON gives back, lists for tuples, so that a fix that went on gives the same as one that didn't have to."""
    return json.loads(json.dumps(value))
