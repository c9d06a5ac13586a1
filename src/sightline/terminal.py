"""What the command line draws: progress bars and tables. Progress goes to stderr, so stdout holds results alone."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .runs import judged_on

if TYPE_CHECKING:
    from .prescription import Step
    from .training import Progress as Training

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

WORDS = {
    "load": "reading the data",
    "precision": "timing a few steps to find the fastest arithmetic",
    "range test": "range test",
    "train": "training",
    "test": "judging",
    "settle": "batch-norm statistics of the average",
    "views": "other views of the same images",
}


class Bars:
    """Progress bars for `with`: `bars.training` draws a training's progress, `bars.step` any counted work."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}"),
            console=err,
            transient=True,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def step(self, label: str, done: float, total: float | None, figures: str = "") -> None:
        """Draw `done` of `total` (None or 0: unknown) of the work called `label`."""
        if label not in self.tasks:
            self.tasks[label] = self.progress.add_task(escape(label), figures="")
        self.progress.update(self.tasks[label], completed=done, total=total or None, figures=figures)

    def training(self, now: Training) -> None:
        """Draw a training's progress: a bar for the epochs and one for what it does now."""
        if now.stage == "epoch" and now.row:
            judged = judged_on(now.row)
            loss, accuracy = now.row[f"{judged}_loss"], now.row[f"{judged}_accuracy"]
            self.step("epochs", now.epoch, now.epochs, _figures(loss, accuracy, now.row["lr"], prefix=f"{judged} "))
            if not err.is_terminal:
                err.print(_line(now.row, now.epochs))
            return
        if now.epochs:
            self.step("epochs", now.epoch - 1 + (now.done / now.total if now.stage == "train" else 1), now.epochs)
        figures = _figures(now.loss, now.accuracy, now.lr, now.images_per_second)
        self._only(WORDS.get(now.stage, now.stage))
        self.step(WORDS.get(now.stage, now.stage), now.done, now.total, figures)

    def fixing(self, now: Step) -> None:
        """Draw what a fix is doing: what it will cost, once, then a bar for its stage and those of the training in it."""
        if now.training is not None:
            if now.training.stage != "epoch":
                self.training(now.training)
            return
        if now.stage == "cost":
            err.print(f"This takes {now.text}.", markup=False, soft_wrap=True)
            return
        self._only(now.text)
        self.step(now.text, now.done, now.total)
        if not err.is_terminal:
            err.print(printable(now.text), markup=False, soft_wrap=True)

    def _only(self, label: str) -> None:
        """Take away the bars of other stages than `label`."""
        for other in [name for name in self.tasks if name not in (label, "epochs")]:
            self.progress.remove_task(self.tasks.pop(other))


def _figures(loss: float, accuracy: float, lr: float, speed: float = math.nan, *, prefix: str = "") -> str:
    parts = (
        f"{prefix}loss {loss:.3f}" if math.isfinite(loss) else "",
        f"{prefix}accuracy {accuracy:.2%}" if math.isfinite(accuracy) else "",
        f"rate {lr:.2e}" if math.isfinite(lr) else "",
        f"{speed:,.0f} images/s" if math.isfinite(speed) else "",
    )
    return "  ".join(part for part in parts if part)


def _line(row: Mapping[str, float], epochs: int) -> str:
    judged = judged_on(row)
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  rate {row['lr']:.2e}  train {row['train_loss']:.4f} {row['train_accuracy']:.2%}  "
        f"{judged} {_or_dash(row[f'{judged}_loss'], '.4f')} {_or_dash(row[f'{judged}_accuracy'], '.2%')}  {row['seconds']:.1f} s"
    )


def _or_dash(value: float, form: str) -> str:
    """A figure, or a dash where nothing was measured."""
    return format(value, form) if math.isfinite(value) else "–"


def printable(text: str) -> str:
    """Replace control characters, which could command the terminal, by a question mark."""
    return "".join("?" if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text)


def epoch_table(history: Sequence[Mapping[str, float]]) -> Table:
    """One row an epoch, as in history.csv."""
    judged = judged_on(history[0])
    rows = [
        (
            f"{row['epoch']:.0f}",
            f"{row['lr']:.2e}",
            f"{row['train_loss']:.4f}",
            f"{row['train_accuracy']:.2%}",
            _or_dash(row[f"{judged}_loss"], ".4f"),
            _or_dash(row[f"{judged}_accuracy"], ".2%"),
            f"{row['seconds']:.1f}",
        )
        for row in history
    ]
    columns = ("epoch", "rate", "train loss", "train accuracy", f"{judged} loss", f"{judged} accuracy", "seconds")
    return table(columns, rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", left: Sequence[str] = ()) -> Table:
    """A table with right-aligned columns, but for those named in `left`; cells are shown as they are, never as markup."""
    drawn = Table(title=escape(title) or None, title_justify="left", header_style="bold")
    for name in columns:
        drawn.add_column(escape(name), justify="left" if name in left else "right")
    for row in rows:
        drawn.add_row(*(escape(printable(str(cell))) for cell in row))
    return drawn
