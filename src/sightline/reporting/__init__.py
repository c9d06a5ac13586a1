"""A run → RUN/figures/ and RUN/report.html, one file that needs nothing else.

`page_of` collects what the page says, as plain data; `templates/report.html` says it. Everything that the page shows of
names and files is escaped by Jinja2; only figures made here and the style and script of `templates/` go in as they are.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import figures, mistakes
from ..exceptions import DataError
from ..runs import Run, write_text, writing
from ..schedule import suggest
from .page import Page, model_table, overlaid, page_of, reproduce
from .words import duration, percent

if TYPE_CHECKING:
    from ..datasets import Dataset, Split

SCHEMA = 1  # of `report_json`
GRID = 24  # mistakes in figures/mistakes.png, and cards that are open at once

__all__ = ["draw", "duration", "model_table", "page_of", "percent", "render", "report", "report_json", "reproduce"]


def report(
    run: Run,
    data: Dataset | None = None,
    *,
    n: int = 200,
    weight: float = 0.725,
    data_dir: Path | None = None,
    no_pictures: str = "",
    no_heatmaps: str = "",
) -> Path:
    """Write RUN/figures/ and RUN/report.html with the `n` mistakes of the highest loss, and return the page's path.

    The pictures come from `data`, or from the data set that the run names, loaded with `data_dir`; where it isn't found the
    page has none, and says so. Heatmaps are shown where RUN/heatmaps.npz exists; `weight` is the image's share in the blend.
    Who knows already that there can be no pictures or no heatmaps gives the reason as `no_pictures` or `no_heatmaps`.

    Raises RunError if the data set is not the one that the run was made with, or the folder can't be written to.
    """
    split, no_pictures = (None, no_pictures) if no_pictures else _judged_images(run, data, data_dir)
    page = page_of(run, split, n, weight, no_pictures=no_pictures, no_heatmaps=no_heatmaps)
    drawn = draw(run)
    for name, svg in drawn.items():
        write_text(run.folder / "figures" / f"{name}.svg", figures.standalone(svg))
    if split is not None and page.mistakes:
        with writing(run.folder / "figures" / "mistakes.png") as part:
            part.write_bytes(_mistakes_png(run, split, weight))
    path = run.folder / "report.html"
    write_text(path, render(page, drawn))
    return path


def report_json(run: Run) -> dict[str, Any]:
    """Return the report's figures as JSON-ready values; rates are fractions, seconds are of the whole training."""
    predictions, results = run.predictions, run.info["results"]
    overall = mistakes.accuracy(predictions)
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
    }


def draw(run: Run) -> dict[str, str]:
    """Return the run's figures as SVG elements by name."""
    predictions = run.predictions
    drawn = figures.curves(run.history)
    drawn["confusion"] = figures.confusion(mistakes.confusion_matrix(predictions), predictions.classes)
    drawn["classes"] = figures.class_accuracy(mistakes.per_class(predictions))
    drawn["reliability"] = figures.reliability(mistakes.calibration(predictions))
    sweeps = [suggest(np.array(test["lrs"]), np.array(test["losses"])) for test in run.info.get("range_tests", [])]
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
    style, script = (environment.get_template(name).render() for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        page=page, drawn=drawn, style=style, script=script, script_hash=digest, open_cards=GRID
    )


def _judged_images(run: Run, data: Dataset | None, data_dir: Path | None) -> tuple[Split | None, str]:
    """Return the images that the run is judged on, or None and why there are none."""
    if data is not None:
        run.check(data)
        return data.judged[1], ""
    try:
        return run.dataset(data_dir).judged[1], ""
    except DataError as error:
        return None, f"the data set was not found when this report was made ({error})"


def _mistakes_png(run: Run, split: Split, weight: float) -> bytes:
    """Draw the first mistakes as one picture, with their heatmaps where all of them have some."""
    rows, saved = mistakes.table(run.predictions, GRID), run.heatmaps
    place = {name: i for i, name in enumerate(split.ids)}
    images = split.images[[place[row["id"]] for row in rows]]
    titles = [f"{row['predicted']} / {row['true']}\n{row['confidence']:.2f}" for row in rows]
    where = {} if saved is None else {name: i for i, name in enumerate(saved.ids)}
    if saved is None or not all(row["id"] in where for row in rows):
        return figures.mistakes_grid(images, titles)
    return figures.mistakes_grid(images, titles, overlaid(saved, [where[row["id"]] for row in rows], images, weight))
