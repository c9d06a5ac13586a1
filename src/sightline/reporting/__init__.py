"""A run → RUN/figures/ and RUN/report.html, one file that needs nothing else; two runs → RUN_B/comparison.html.

`page_of` collects what the page says, as plain data; `templates/report.html` says it. Everything that the page shows of
names and files is escaped by Jinja2, or put into the page by its script as text; only figures made here and the style and
script of `templates/` go in as they are.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import figures, mistakes
from ..diagnosis import Diagnosis
from ..evaluation import opened_test
from ..exceptions import DataError, RunError
from ..runs import Predictions, Run, SavedMaps, write_text, writing
from ..schedule import suggest
from .gallery import Said
from .page import Before, Page, Story, model_table, page_of, reproduce
from .words import duration, percent

if TYPE_CHECKING:
    from ..comparison import Comparison
    from ..datasets import Dataset, Split

SCHEMA = 2  # of `report_json`: docs/report.schema.json
GRID = 24  # mistakes in figures/mistakes.png
SIDE = 128  # pixels of a picture in it
SHOWN = 500  # images in the gallery

__all__ = [
    "Story",
    "draw",
    "duration",
    "mistakes_sheet",
    "model_table",
    "page_of",
    "percent",
    "render",
    "report",
    "report_change",
    "report_json",
    "reproduce",
]


def report(
    run: Run,
    data: Dataset | None = None,
    *,
    n: int = SHOWN,
    weight: float = 0.725,
    data_dir: Path | None = None,
    fix: str | Path | None = None,
    no_pictures: str = "",
    no_heatmaps: str = "",
) -> Path:
    """Write RUN/figures/ and RUN/report.html, and return the page's path.

    At most `n` mistakes are shown, of every kind of confusion the gravest, and beside them what RUN/diagnosis.json says. The
    pictures come from `data`, or from the data set that the run names, loaded with `data_dir`; where it isn't found the
    page has none, and says so. Heatmaps are shown where RUN/heatmaps.npz exists; `weight` is the image's share in the blend.
    fix: the folder of `prescription.fix`, whose proof is shown with the cause that it is about.
    Who knows already that there can be no pictures or no heatmaps gives the reason as `no_pictures` or `no_heatmaps`.

    Raises RunError if the data set is not the one that the run was made with (but where images are gone since, the others are
    shown), or the folder can't be written to.
    """
    known = (None, None, f"No pictures: {no_pictures}")
    data, images, no_pictures = known if no_pictures else _pictures_of(run, data, data_dir)
    said = Said(run.predictions, run.heatmaps)
    story = Story(run, said, images, data, no_pictures, no_heatmaps, _diagnosis(run), _proof(fix))
    page, drawn = page_of(story, n, weight), draw(story)
    for name, svg in drawn.items():
        write_text(run.folder / "figures" / f"{name}.svg", figures.standalone(svg))
    there = {} if images is None else {name: images.images[i] for i, name in enumerate(images.ids)}
    if any(row.id in there for row in page.first):
        with writing(run.folder / "figures" / "mistakes.png") as part:
            part.write_bytes(mistakes_sheet(said, there, weight))
    path = run.folder / "report.html"
    write_text(path, render(page, drawn))
    return path


def report_change(
    a: Run,
    b: Run,
    comparison: Comparison,
    data: Dataset,
    *,
    n: int = SHOWN,
    weight: float = 0.725,
    explain: Callable[[Run, Split, Predictions, Sequence[str]], SavedMaps] | None = None,
) -> Path:
    """Write B/comparison.html, the page of run B on the test images beside run A, and return its path.

    comparison: of the two, or of the arms whose first runs they are, made by `compare`, which opened the test set.  explain:
    makes heatmaps of the images that are shown, such as `heatmaps.explain_images`; None: the page has none.
    Raises RunError if the folder can't be written to.
    """
    before, now = (Said(opened_test(run), None) for run in (a, b))
    story = Story(b, now, data.test, data, diagnosis=_diagnosis(b), before=Before(a, before, comparison))
    if explain is not None:
        ids = page_of(story, n, weight).gallery["items"]["id"]
        before, now = (Said(s.predictions, explain(r, data.test, s.predictions, ids)) for r, s in ((a, before), (b, now)))
        story = Story(b, now, data.test, data, diagnosis=story.diagnosis, before=Before(a, before, comparison))
    path = b.folder / "comparison.html"
    write_text(path, render(page_of(story, n, weight), draw(story)))
    return path


def report_json(run: Run, n: int = SHOWN) -> dict[str, Any]:
    """Return the report's figures as JSON-ready values, as docs/report.schema.json says.

    Rates are fractions, seconds are of the whole training; `n` is the report's. causes, and the mistakes by cause, are None
    where nobody has diagnosed the run.
    """
    predictions, results, found = run.predictions, run.info["results"], _diagnosis(run)
    overall = mistakes.accuracy(predictions)
    wrong = overall.n - overall.correct
    kinds = mistakes.kinds([predictions]).counts if wrong else {}
    return {
        "schema": SCHEMA,
        "run": str(run.folder),
        "data": run.info["data"]["name"],
        "recipe": run.info["recipe"]["name"],
        f"{run.judged}_accuracy": overall._asdict(),
        "epochs": int(results["epoch"]),
        "seconds": results["seconds"],
        "device": run.info["device"],
        "calibration_error": mistakes.calibration(predictions).ece,
        "classes": {name: accuracy._asdict() for name, accuracy in mistakes.per_class(predictions).items()},
        "most_confused": [pair._asdict() for pair in mistakes.most_confused(predictions)],
        "mistakes": {
            "n": wrong,
            "shown": min(n, wrong),
            "by_kind": {kind: count for kind, count in kinds.items() if kind not in ("right", "coin-flip")},
            "by_cause": None if found is None else {cause: len(ids) for cause, ids in found.groups.items()},
        },
        "causes": None if found is None else [_cause(cause) for cause in found.to_dict()["causes"]],
    }


def _cause(cause: Mapping[str, Any]) -> dict[str, Any]:
    """A cause of `Diagnosis.to_dict` without its images and what only its probe knows."""
    return {key: value for key, value in cause.items() if key not in ("images", "detail")}


def draw(story: Story) -> dict[str, str]:
    """Return the figures of a run's training and of its predictions as SVG elements by name."""
    predictions = story.said.predictions
    drawn = figures.curves(story.run.history)
    drawn["confusion"] = figures.confusion(mistakes.confusion_matrix(predictions), predictions.classes)
    drawn["classes"] = figures.class_accuracy(mistakes.per_class(predictions))
    drawn["reliability"] = figures.reliability(mistakes.calibration(predictions))
    sweeps = [suggest(np.array(test["lrs"]), np.array(test["losses"])) for test in story.run.info.get("range_tests", [])]
    return {**drawn, "range": figures.range_test(sweeps)} if sweeps else drawn


def render(page: Page, drawn: Mapping[str, str]) -> str:
    """Return the page as HTML. `drawn`: SVG elements by name."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sightline"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["json"] = _json_for_html
    style, parts, script = (environment.get_template(name).render() for name in ("report.css", "parts.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        page=page, drawn=drawn, style=style + parts, script=script, script_hash=digest
    )


def _json_for_html(value: Any) -> str:
    """JSON that can stand in a <script>: no tag, no comment and no end of it can begin inside."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _diagnosis(run: Run) -> Diagnosis | None:
    path = run.folder / "diagnosis.json"
    return Diagnosis.read(path) if path.exists() else None


def _proof(folder: str | Path | None) -> Mapping[str, Any] | None:
    """The result of a finished fix. Raises RunError where there is none."""
    if folder is None:
        return None
    path = Path(folder, "fix.json")
    try:
        result: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["result"]
        return {**result, "folder": str(folder)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"there is no finished fix in {folder} ({error}); make one with: sightline fix RUN -o {folder}") from None


def _pictures_of(run: Run, data: Dataset | None, data_dir: Path | None) -> tuple[Dataset | None, Split | None, str]:
    """Return the data that the run was trained on, the images that it is judged on, and why there are none, or not all."""
    if data is not None:
        run.check(data)
        return data, data.judged[1], ""
    try:
        data = run.dataset(data_dir)
        return data, data.judged[1], ""
    except DataError as error:
        return None, None, f"No pictures: the data set was not found when this report was made ({error})"
    except RunError as error:
        return None, *_those_left(run, data_dir, error)


def _those_left(run: Run, data_dir: Path | None, error: RunError) -> tuple[Split, str]:
    """Where files of a data set are gone, return the images that are left, found by their names. Raises `error` otherwise."""
    from ..datasets import Split, load

    was = run.info["data"]
    found = load(was["name"], data_dir=data_dir, **{key: was[key] for key in ("size", "skip_bad", "seed")})
    lacking = was["n_train"] + was.get("n_dev", 0) + was["n_test"] + len(run.left_out) - len(found.train) - len(found.test)
    known = set(run.predictions.ids)
    parts = [(part, [i for i, name in enumerate(part.ids) if name in known]) for part in (found.train, found.test)]
    if lacking <= 0 or not any(rows for _, rows in parts) or list(found.train.images.shape[1:]) != list(was["shape"]):
        raise error
    images, labels = (np.concatenate([getattr(part, key)[rows] for part, rows in parts]) for key in ("images", "labels"))
    ids = tuple(part.ids[i] for part, rows in parts for i in rows)
    note = f"{lacking:,} images of the data set are gone since the training; those that are left are found by their names."
    return Split(images, labels, found.classes, ids), note


def mistakes_sheet(said: Said, images: Mapping[str, NDArray[np.uint8]], weight: float = 0.725, n: int = GRID) -> bytes:
    """Draw the `n` mistakes with the highest loss as one picture (PNG), with their heatmaps where all of them have some.

    images: id → (H, W, 3) uint8; a mistake that isn't there is left out. At least one must be there.
    """
    from ..heatmaps import drawing

    rows, saved = [row for row in mistakes.table(said.predictions, n) if row["id"] in images], said.maps
    chosen = np.stack([images[row["id"]] for row in rows])
    where = {} if saved is None else {name: i for i, name in enumerate(saved.ids)}
    names: tuple[str, ...] = ()
    maps = np.zeros((len(rows), 0, *chosen.shape[1:]), np.uint8)
    if saved is not None and all(row["id"] in where for row in rows):
        names, raw = saved.targets, saved.raw[[where[row["id"]] for row in rows]]
        maps = drawing.pictures(raw, chosen, [target == "margin" for target in names], weight)
    pictures = [picture for image, own in zip(chosen, maps, strict=True) for picture in (image, *own)]
    titles = [title for row in rows for title in (f"{row['predicted']} / {row['true']} {row['confidence']:.2f}", *names)]
    line = 2 * (1 + len(names)) if names else 6
    starts = range(0, len(pictures), line)
    return drawing.sheet([pictures[i : i + line] for i in starts], [titles[i : i + line] for i in starts], side=SIDE)
