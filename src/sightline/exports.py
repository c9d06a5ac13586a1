"""A run's results in the forms of other programs: a table, COCO, FiftyOne, TensorBoard.

    csv           PATH, a table: one row an image that the run was judged on
    coco          PATH/labels.json, the truth; PATH/predictions.json, COCO's list of results
    fiftyone      PATH/labels.json and PATH/predictions.json, both as fiftyone.types.FiftyOneImageClassificationDataset reads them
    tensorboard   PATH/events.out.tfevents…: scalars by epoch, the final figures, pictures of the mistakes

Images of a folder data set are named where they are; those of other data sets are written as PATH/data/000000.png, …
A PATH is written whole or not at all, and nothing is overwritten but an earlier table.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import marks, mistakes
from .datasets import IMAGE_FORMATS, Dataset
from .diagnosis import Diagnosis
from .exceptions import DataError, RecipeError, RunError, nearest
from .reporting import GRID, mistakes_sheet
from .reporting.gallery import Said
from .runs import Predictions, Run, SavedMaps, write_json, writing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

OnProgress = Callable[[str, int, int], None]

COLUMNS = (
    "id",
    "split",
    "label",
    "predicted",
    "right",
    "confidence",
    "p_true",
    "loss",
    "margin",
    "causes",
    "heatmap",
    "label_error",
    "marked_cause",
)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet takes a cell that begins so for a formula
NAMED = 60  # classes up to which the confusion matrix names them


class Exported(NamedTuple):
    """What was written. path: as given.  rows: images.  without: what is missing and why, or ""."""

    path: Path
    rows: int
    without: str = ""


class Pictures(NamedTuple):
    """Where the images that a run was judged on are, in the order of its predictions.

    root: the folder that `names` are relative to.  names: with "/" between their parts.  sizes: (width, height) in pixels.
    """

    root: Path
    names: list[str]
    sizes: list[tuple[int, int]]


def export(
    run: Run,
    to: str,
    path: str | Path,
    data: Dataset | None = None,
    *,
    data_dir: Path | None = None,
    on_progress: OnProgress = lambda label, done, total: None,
) -> Exported:
    """Write a run's predictions and what is known of them in the form `to`: a key of FORMATS.

    path: of the file (csv) or of the folder, new or empty; a table that `export` wrote before is replaced.  data: the run's,
    else loaded by its name, with `data_dir`, where its images are needed.  on_progress: called with a label, done and total.

    Raises RunError for a path that is taken or can't be written to, and without the `tensorboard` package; RecipeError for an
    unknown form; DataError where the images are needed and aren't found.
    """
    if to not in FORMATS:
        raise RecipeError(f"'{to}' is no form that results can be exported to; {nearest(to, FORMATS)}")
    path = Path(path)
    _refuse_taken(path, table=to == "csv")
    return FORMATS[to](run, path, _Source(run, data, data_dir, on_progress))


def table(run: Run) -> list[dict[str, Any]]:
    """Return one row an image that the run was judged on, in the order of its predictions, with the keys of COLUMNS.

    label, predicted: names.  right: bool.  confidence, p_true: of the predicted and of the true class.  loss in nats, margin
    in logits, the best wrong class over the true one.  causes: of RUN/diagnosis.json's groups.  heatmap: the verdict on the
    predicted class's map, "" where nobody asked.  label_error (True) and marked_cause: of RUN/marks.json, else None.
    """
    p, causes, verdicts = run.predictions, _causes(run), _verdicts(run.heatmaps)
    marked = {mark.id: mark for mark in marks.of(run).marks}
    columns = zip(
        p.ids,
        p.labels.tolist(),
        p.predicted.tolist(),
        mistakes.confidences(p).tolist(),
        p.probabilities[np.arange(len(p)), p.labels].tolist(),
        p.losses.tolist(),
        p.margins.tolist(),
        strict=True,
    )
    rows = []
    for name, label, predicted, confidence, p_true, loss, margin in columns:
        known = (p.classes[label], p.classes[predicted], label == predicted, confidence, p_true, loss, margin)
        mark = marked.get(name, marks.Mark(name))
        found = (causes.get(name, []), verdicts.get(name, ""), mark.label_error or None, mark.cause)
        rows.append(dict(zip(COLUMNS, (name, p.split, *known, *found), strict=True)))
    return rows


# --- the forms


def _csv(run: Run, path: Path, source: _Source) -> Exported:
    rows = table(run)
    with writing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_cell(row[key]) for key in COLUMNS] for row in rows)
    return Exported(path, len(rows))


def _coco(run: Run, path: Path, source: _Source) -> Exported:
    p = run.predictions
    with _folder(path) as folder:
        pictures = source.pictures(folder)
        boxes = [[0, 0, width, height] for width, height in pictures.sizes]  # COCO labels boxes: here the whole image
        images = [
            {"id": i, "file_name": name, "width": width, "height": height, "sightline_id": known}
            for i, (name, (width, height), known) in enumerate(zip(pictures.names, pictures.sizes, p.ids, strict=True), 1)
        ]
        truth = [
            {"id": i, "image_id": i, "category_id": label + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, (label, box) in enumerate(zip(p.labels.tolist(), boxes, strict=True), 1)
        ]
        said = zip(p.predicted.tolist(), mistakes.confidences(p).tolist(), boxes, strict=True)
        results = [
            {"image_id": i, "category_id": label + 1, "bbox": box, "score": score}
            for i, (label, score, box) in enumerate(said, 1)
        ]
        categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(p.classes, 1)]
        info = {"description": f"{run.info['data']['name']}, {p.split}", "version": run.info["versions"].get("sightline", "")}
        content = {"info": info, "licenses": [], "categories": categories, "images": images, "annotations": truth}
        write_json(folder / "labels.json", content)
        write_json(folder / "predictions.json", results)
    return Exported(path, len(p))


def _fiftyone(run: Run, path: Path, source: _Source) -> Exported:
    rows, p = table(run), run.predictions
    with _folder(path) as folder:
        pictures = source.pictures(folder)
        # In `data/` an image's key is its name without the ending; elsewhere it is the absolute path, whole.
        inside = pictures.root.is_relative_to(folder)
        keys = [Path(name).stem if inside else (pictures.root / name).as_posix() for name in pictures.names]
        truth, said = {}, {}
        for key, row, label, predicted in zip(keys, rows, p.labels.tolist(), p.predicted.tolist(), strict=True):
            known = {name: row[name] for name in ("split", "label_error", "marked_cause") if row[name] is not None}
            about = {name: row[name] for name in ("right", "p_true", "loss", "margin", "causes", "heatmap")}
            truth[key] = {"label": label, "attributes": {"sightline_id": row["id"], **known}}
            said[key] = {"label": predicted, "confidence": row["confidence"], "attributes": about}
        for name, labels in (("labels.json", truth), ("predictions.json", said)):
            write_json(folder / name, {"classes": list(p.classes), "labels": labels})
    return Exported(path, len(p))


def _tensorboard(run: Run, path: Path, source: _Source) -> Exported:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RunError(
            "TensorBoard's events need the package tensorboard, which isn't installed; pip install sightline[tensorboard]"
        ) from None
    sheet, without = _sheet(run, source)
    begun = (run.folder / "run.json").stat().st_mtime - sum(row["seconds"] for row in run.history)
    with _folder(path) as folder:
        writer = SummaryWriter(str(folder))
        try:
            _write_scalars(run, writer, begun)
            last = int(run.history[-1]["epoch"])
            writer.add_image("confusion", _confusion(run.predictions), last, dataformats="HWC")
            if sheet is not None:
                writer.add_image("mistakes", sheet, last, dataformats="HWC")
        finally:
            writer.close()
    return Exported(path, len(run.predictions), without)


FORMATS: dict[str, Callable[[Run, Path, _Source], Exported]] = {
    "csv": _csv,
    "coco": _coco,
    "fiftyone": _fiftyone,
    "tensorboard": _tensorboard,
}


# --- images


class _Source:
    """The images that a run was judged on, read when they are first asked for."""

    def __init__(self, run: Run, data: Dataset | None, data_dir: Path | None, on_progress: OnProgress) -> None:
        self._run, self._data, self._data_dir, self._on_progress = run, data, data_dir, on_progress

    def images(self, ids: Sequence[str]) -> Iterator[NDArray[np.uint8]]:
        """Give the images of these names, (H, W, 3) each."""
        if self._data is None:
            self._data = self._run.dataset(self._data_dir)
        self._run.check(self._data)
        split = self._data.judged[1]
        place = {name: i for i, name in enumerate(split.ids)}
        return (split.images[place[name]] for name in ids)

    def pictures(self, folder: Path) -> Pictures:
        """Find the image files, or write them to folder/data where there are none. Raises DataError for a file that is gone."""
        ids, root = self._run.predictions.ids, Path(self._run.info["data"]["name"])
        if root.is_absolute():
            return Pictures(root, list(ids), [_size(root / name) for name in self._counted(ids)])
        data, sizes = folder / "data", []
        names = [f"{i:06}.png" for i in range(len(ids))]
        data.mkdir()
        for name, image in zip(self._counted(names), self.images(ids), strict=True):
            Image.fromarray(image).save(data / name)
            sizes.append((image.shape[1], image.shape[0]))
        return Pictures(data, names, sizes)

    def _counted(self, names: Sequence[str]) -> Iterator[str]:
        for i, name in enumerate(names, 1):
            yield name
            self._on_progress("images", i, len(names))


def _size(path: Path) -> tuple[int, int]:
    """Width and height that an image file says it has."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of images that are large: only their header is read
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                return image.width, image.height
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise DataError(f"cannot read {path} ({error}); bring the images back to where the run was trained") from None


# --- what else is known of an image


def _causes(run: Run) -> dict[str, list[str]]:
    """The causes of each mistake that RUN/diagnosis.json sorts, "unexplained" among them."""
    path = run.folder / "diagnosis.json"
    groups = Diagnosis.read(path).groups if path.exists() else {}
    found: dict[str, list[str]] = {}
    for cause, ids in groups.items():
        for name in ids:
            found.setdefault(name, []).append(cause)
    return found


def _verdicts(saved: SavedMaps | None) -> dict[str, str]:
    """How far the predicted class's heatmap of each image may be trusted, where that was asked or there is nothing in it."""
    if saved is None or "predicted" not in saved.targets:
        return {}
    t = saved.targets.index("predicted")
    empty = saved.raw[:, t].max((1, 2)) <= 0
    return {name: "no evidence" if empty[i] else str(saved.verdicts[i, t]) for i, name in enumerate(saved.ids)}


def _cell(value: object) -> object:
    """A value as a table's cell. Text that a spreadsheet would run as a formula gets an apostrophe before it."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, list):
        value = ";".join(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


# --- TensorBoard


def _write_scalars(run: Run, writer: SummaryWriter, begun: float) -> None:
    """Write history.csv by epoch, at the times when its epochs ended, and the final figures at the last one."""
    ends = [begun + seconds for seconds in accumulate(row["seconds"] for row in run.history)]
    curves = {f"{kind}/{split}": f"{split}_{kind}" for kind in ("loss", "accuracy") for split in ("train", run.judged)}
    for row, end in zip(run.history, ends, strict=True):
        for tag, key in {**curves, "rate": "lr"}.items():
            if np.isfinite(row[key]):  # an epoch without a test has no point
                writer.add_scalar(tag, row[key], int(row["epoch"]), walltime=end)
    for key, value in _final(run).items():
        writer.add_scalar(f"final/{key}", value, int(run.history[-1]["epoch"]), walltime=ends[-1])


def _final(run: Run) -> dict[str, float]:
    """The figures that the report begins with; rates are fractions."""
    p = run.predictions
    overall = mistakes.accuracy(p)
    return {
        f"{run.judged}_accuracy": overall.correct / max(overall.n, 1),
        f"{run.judged}_accuracy_low": overall.low,
        f"{run.judged}_accuracy_high": overall.high,
        "train_accuracy": run.info["results"]["train_accuracy"],
        "mistakes": overall.n - overall.correct,
        "calibration_error": mistakes.calibration(p).ece,
    }


def _sheet(run: Run, source: _Source) -> tuple[NDArray[np.uint8] | None, str]:
    """Draw the mistakes of the highest loss; or None, and why if it isn't for want of mistakes."""
    ids = [row["id"] for row in mistakes.table(run.predictions, GRID)]
    if not ids:
        return None, ""
    try:
        images = dict(zip(ids, source.images(ids), strict=True))
    except DataError as error:
        return None, f"pictures: {error}"
    return _pixels(mistakes_sheet(Said(run.predictions, run.heatmaps), images)), ""


def _confusion(predictions: Predictions) -> NDArray[np.uint8]:
    """Draw the confusion matrix as pixels (H, W, 3): shares of each true class, by the root, so that rare ones are seen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts, names = mistakes.confusion_matrix(predictions), predictions.classes
    k = len(names)
    side = min(2.4 + 0.3 * k, 9.0)
    figure = Figure((side, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow((counts / np.maximum(counts.sum(1, keepdims=True), 1)) ** 0.5, cmap="cividis", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", xticks=[], yticks=[])
    if k <= NAMED:
        short = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
        axes.set_xticks(range(k), short, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(k), short, fontsize=7, parse_math=False)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(file, format="png", dpi=120)
    return _pixels(file.getvalue())


def _pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image.convert("RGB"))


# --- where it goes


def _refuse_taken(path: Path, *, table: bool) -> None:
    """Raise RunError unless `path` is free: new, an empty folder for a folder, an earlier table for a table."""
    try:
        if table and path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                free = file.readline() == ",".join(COLUMNS) + "\n"
        else:
            free = not path.exists() or (not table and path.is_dir() and not any(path.iterdir()))
    except OSError as error:
        raise RunError(f"cannot use {path}: {error.strerror}; choose another -o") from None
    if not free:
        raise RunError(f"{path} is there already and holds something else; choose another -o, or delete it")


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """Give a folder beside `path` to fill, and rename it to `path` when the block ends well; nothing half-written is left."""
    path = Path(os.path.abspath(path))
    part = path.with_name(f".{path.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if path.exists():
            path.rmdir()  # empty; Windows renames nothing onto a folder
        part.rename(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; free some space or choose another folder") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


__all__ = ["COLUMNS", "FORMATS", "Exported", "export", "table"]
