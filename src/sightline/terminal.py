"""What the command line draws: progress bars and tables. Progress goes to stderr, so stdout holds results alone."""

from __future__ import annotations

import math
import time
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
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from .runs import judged_on

if TYPE_CHECKING:
    from .prescription import Step
    from .training import Progress as Training

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

SOON = 10  # steps after which it can be said how long the others will take
WORDS = {
    "load": "reading the data",
    "precision": "timing a few steps to find the fastest arithmetic",
    "range test": "range test",
    "train": "training",
    "test": "judging",
    "settle": "batch-norm statistics of the average",
    "views": "other views of the same images",
}


class Remaining(TimeRemainingColumn):
    """The time that is left: where the work itself foretells it, that; else at the bar's pace."""

    def render(self, task: Task) -> Text:
        """Return it as minutes and seconds."""
        left = task.fields.get("left")
        if left is None:
            return super().render(task)
        minutes, seconds = divmod(math.ceil(left), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}", style="progress.remaining")


class Pace:
    """How long the rest of some work takes, at the pace at which its share of the whole was seen to grow."""

    def __init__(self) -> None:
        self.start = self.first = 0.0  # when the work was first heard of, and what share of it was done by then
        self.last = math.inf

    def left(self, share: float) -> float | None:
        """Return the seconds that are left of work of which `share` is done by now; None: not known yet."""
        now = time.monotonic()
        if share < self.last:  # less than before: other work has begun
            self.start, self.first = now, share
        self.last = share
        return (now - self.start) * (1 - share) / (share - self.first) if share > self.first else None


class Bars:
    """Progress bars for `with`: `bars.training` draws a training's progress, `bars.step` any counted work."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            Remaining(compact=True),
            TextColumn("{task.fields[figures]}"),
            console=err,
            transient=True,
        )
        self.tasks: dict[str, TaskID] = {}
        self.pace = Pace()
        self.left: float | None = None  # seconds, of the training that is going on

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def step(self, label: str, done: float, total: float | None, figures: str = "", left: float | None = None) -> None:
        """Draw `done` of `total` (None or 0: unknown) of the work called `label`; `left` seconds, if that is known."""
        if label not in self.tasks:
            self.tasks[label] = self.progress.add_task(escape(label), figures="")
        self.progress.update(self.tasks[label], completed=done, total=total or None, figures=figures, left=left)

    def training(self, now: Training) -> None:
        """Draw a training's progress: a bar for the epochs and one for what it does now."""
        if now.stage == "epoch" and now.row:
            judged = judged_on(now.row)
            loss, accuracy = now.row[f"{judged}_loss"], now.row[f"{judged}_accuracy"]
            figures = _figures(loss, accuracy, now.row["lr"], prefix=f"{judged} ")
            self.step("epochs", now.epoch, now.epochs, figures, left=self.left)
            if not err.is_terminal:
                err.print(_line(now.row, now.epochs, self.left), soft_wrap=True)
            return
        if now.stage == "train":
            self.left = self.pace.left(now.share)
        if now.epochs:
            done = now.epoch - 1 + (now.done / now.total if now.stage == "train" else 1)
            self.step("epochs", done, now.epochs, left=self.left)
        label, figures = WORDS.get(now.stage, now.stage), _figures(now.loss, now.accuracy, now.lr, now.images_per_second)
        self._only(label)
        self.step(label, now.done, now.total, figures)
        if now.stage == "range test":
            left = self.pace.left(now.done / now.total)
            if now.done == SOON and left is not None and not err.is_terminal:
                err.print(f"{label}: {now.total:,} steps, about {_clock(left)} left", soft_wrap=True)

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


def _line(row: Mapping[str, float], epochs: int, left: float | None) -> str:
    judged = judged_on(row)
    more = f"  about {_clock(left)} left" if left is not None and row["epoch"] < epochs else ""
    loss, accuracy = _or_dash(row[f"{judged}_loss"], ".4f"), _or_dash(row[f"{judged}_accuracy"], ".2%")
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  rate {row['lr']:.2e}  train {row['train_loss']:.4f} {row['train_accuracy']:.2%}  "
        f"{judged} {loss} {accuracy}  {row['seconds']:.1f} s{more}"
    )


def _clock(seconds: float) -> str:
    from .prescription.plan import clock  # not before it is needed: it brings torch

    return clock(seconds)


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
