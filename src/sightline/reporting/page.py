"""All that the page says, as plain data; `templates/report.html` says it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import figures, mistakes
from ..comparison import Comparison
from ..datasets import DEV
from ..diagnosis import LEAST, Diagnosis
from ..mistakes import Accuracy, Confusion
from ..precision import Precision
from ..recipe import RECIPES, Recipe
from ..runs import Predictions, Run, SavedMaps
from . import gallery
from .causes import CauseCard, Probes, cards, curves_of, gate, nothing_found, variety_card
from .change import Change, change_of
from .gallery import Said
from .samples import DataSheet, data_sheet
from .words import duration, percent, short_names

if TYPE_CHECKING:
    from ..datasets import Dataset, Split
    from ..models import Layer

FIRST = 24  # mistakes that a reader without script gets


@dataclass(frozen=True)
class Before:
    """What a run is compared with: the first of its runs, what it said of the same images, its heatmaps of them."""

    run: Run
    said: Said
    comparison: Comparison


@dataclass(frozen=True)
class Story:
    """What a page is about.

    said: what the run said of the images, and its heatmaps of them.  images: those of the predictions, or None.  data: what it
    was trained on, or None.  no_pictures: why there are no images, or not all, or "".  no_heatmaps: why there are none, or "".
    diagnosis: in the run's folder.  fix: what came of it, as FOLDER/fix.json's result.  before: what the run is compared with.
    """

    run: Run
    said: Said
    images: Split | None = None
    data: Dataset | None = None
    no_pictures: str = ""
    no_heatmaps: str = ""
    diagnosis: Diagnosis | None = None
    fix: Mapping[str, Any] | None = None
    before: Before | None = None


class Row(NamedTuple):
    """A mistake for a reader without script. true, predicted: classes; confidence: a fraction."""

    id: str
    true: str
    predicted: str
    confidence: float
    loss: float


@dataclass(frozen=True)
class Page:
    """All that the page says. Rates are fractions; figures are SVG elements; `gallery` is what `gallery.payload` returns."""

    title: str
    judged: str  # "dev" or "test": what the accuracy and the mistakes are of
    accuracy: Accuracy
    facts: tuple[tuple[str, str], ...]
    classes: tuple[str, ...]
    mistakes: int
    gallery: dict[str, Any]
    file: str  # with all predictions
    first: tuple[Row, ...]
    pictures_note: str
    heatmaps_note: str
    change: Change | None
    causes: tuple[CauseCard, ...]
    variety: CauseCard | None
    probes: Probes | None
    sensitivity: str
    data: DataSheet | None
    confused: tuple[Confusion, ...]
    per_class: Mapping[str, Accuracy]
    ece: float
    history: Sequence[Mapping[str, float]]
    layers: tuple[Layer, ...]
    recipe: str
    command: str
    recipe_needed: bool
    provenance: tuple[tuple[str, str], ...]


def page_of(story: Story, n: int = 500, weight: float = 0.725) -> Page:
    """Collect what the page says, with at most `n` images in its gallery; `weight` is the image's share under a heatmap."""
    run, predictions, diagnosis = story.run, story.said.predictions, story.diagnosis
    info, results = run.info, run.info["results"]
    calibration = mistakes.calibration(predictions)
    wrong = mistakes.top_mistakes(predictions)
    command, needed = reproduce(info)
    recipe = Recipe.from_dict(info["recipe"]) if info["recipe"] else None
    size = tuple(info["data"]["shape"][:2])
    probed = story.images if predictions.split == run.judged or story.data is None else story.data.judged[1]
    overall = mistakes.accuracy(predictions)
    return Page(
        title=_title(story),
        judged=predictions.split,
        accuracy=overall,
        facts=(
            ("Mistakes", f"{len(wrong):,} of {len(predictions):,}"),
            ("Epochs", f"{results['epoch']:.0f}"),
            ("Training time", duration(results["seconds"])),
            ("Device", str(info["device"])),
            ("Model", _model(info["recipe"])),
            ("Parameters", f"{info['parameters']:,}"),
            ("Train accuracy", percent(results["train_accuracy"], 2)),
            *_views(run),
            ("Calibration error", percent(calibration.ece)),
        ),
        classes=predictions.classes,
        mistakes=len(wrong),
        gallery=_gallery(story, wrong, n, weight),
        file="predictions.parquet" if predictions.split == run.judged else f"{predictions.split}.parquet",
        first=tuple(_row(predictions, int(i)) for i in wrong[:FIRST]),
        pictures_note=story.no_pictures,
        heatmaps_note=f"No heatmaps: {story.no_heatmaps}" if story.no_heatmaps else _heatmaps_note(story.said.maps, diagnosis),
        change=None if story.before is None else change_of(story.before.comparison, _names(story)),
        causes=() if diagnosis is None else cards(diagnosis, recipe, size, probed, story.fix, data=info["data"]["name"]),
        variety=None if diagnosis is None else variety_card(diagnosis, recipe, size, story.fix, data=info["data"]["name"]),
        probes=None if diagnosis is None else nothing_found(diagnosis),
        sensitivity="" if diagnosis is None else figures.sensitivity(curves_of(diagnosis)),
        data=None if story.data is None else data_sheet(story.data, recipe.augment if recipe else ()),
        confused=tuple(mistakes.most_confused(predictions)),
        per_class=mistakes.per_class(predictions),
        ece=calibration.ece,
        history=run.history,
        layers=model_table(run),
        recipe=json.dumps(info["recipe"], indent=1, ensure_ascii=False),
        command=command,
        recipe_needed=needed,
        provenance=_provenance(info),
    )


def _title(story: Story) -> str:
    name = f"{story.run.info['recipe']['name']} on {story.run.info['data']['name']}"
    return name if story.before is None else f"{name}, compared with {_names(story)[0]}"


def _names(story: Story) -> tuple[str, str]:
    """What the two runs are called: their folders' names, with the folders above as far as those don't differ.

    Of several seeds each, the folders that hold them.
    """
    assert story.before is not None
    runs = story.before.run.folder, story.run.folder
    arms = tuple(run.parent if n > 1 else run for run, n in zip(runs, story.before.comparison.runs, strict=True))
    return short_names(*(arms if arms[0] != arms[1] else runs))


def _row(predictions: Predictions, i: int) -> Row:
    true, predicted = (predictions.classes[int(some[i])] for some in (predictions.labels, predictions.predicted))
    chance = float(predictions.probabilities[i, predictions.predicted[i]])
    return Row(predictions.ids[i], true, predicted, chance, float(predictions.losses[i]))


def _gallery(story: Story, wrong: NDArray[np.int64], n: int, weight: float) -> dict[str, Any]:
    """The mistakes, and where two runs are compared what was fixed as well; images of causes are shown in any case."""
    predictions, before, diagnosis = story.said.predictions, story.before, story.diagnosis
    rows, surest = wrong, None
    strata, losses = gallery.strata_of(predictions), predictions.losses
    if before is not None:
        other = before.said.predictions
        rows = np.flatnonzero((predictions.predicted != predictions.labels) | (other.predicted != other.labels))
        strata, losses = len(predictions.classes) * strata + other.predicted, np.maximum(losses, other.losses)
        reliable = (before.comparison.fixed, before.comparison.broken)
        surest = {name: 1 - k / len(ids) for ids in reliable for k, name in enumerate(ids)}
    groups: dict[str, Sequence[str]] = {}
    if diagnosis is not None and predictions.split != "test":  # causes are looked for on dev images alone
        groups = {key: ids for key, ids in diagnosis.groups.items() if ids}
    shown = {name for cause in (diagnosis.causes if diagnosis and groups else ()) for name in cause.images}
    first = [k for k, i in enumerate(rows) if predictions.ids[i] in shown]
    chosen = rows[gallery.choose(strata[rows], losses[rows], n, first)]
    chosen = chosen[np.argsort(-predictions.losses[chosen], kind="stable")]  # where two runs are compared too
    kinds = mistakes.kinds([predictions]).kinds[chosen].tolist() if len(predictions.classes) > 1 else None
    return gallery.payload(
        story.said,
        chosen,
        story.images,
        run=story.run.digest,
        total=len(rows),
        before=None if before is None else before.said,
        names=_names(story) if before is not None else (),
        causes=groups,
        marking=[*dict.fromkeys([*(key for key in groups if key in LEAST), *LEAST])][:9],
        kinds=kinds,
        surest=surest,
        weight=weight,
    )


def model_table(run: Run) -> tuple[Layer, ...]:
    """Return a row for each module of the run's model, for an image of its data."""
    from ..models import layers

    height, width, channels = run.info["data"]["shape"]
    return tuple(layers(run.model(), (height, width), channels))


def reproduce(info: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the command that trains this run again, and whether it needs the recipe in a file, recipe.json."""
    recipe, data = info["recipe"], info["data"]
    known = json.loads(json.dumps(RECIPES.get(recipe["name"], Recipe()).to_dict()))  # lists for tuples, as in `info`
    changed = [key for key, value in recipe.items() if value != known[key]]
    needed = not {"model", "width", "epochs", "batch_size", "max_lr"}.issuperset(changed)
    needed |= "max_lr" in changed and recipe["max_lr"] == "auto"  # the option takes numbers
    options = {"recipe": "recipe.json" if needed else recipe["name"]}
    options |= {} if needed else {key: recipe[key] for key in changed}
    options |= {"seed": info["seed"], "precision": Precision(**info["arithmetic"]).name, "device": info["device"]}
    options |= {"size": data["size"]} if data["size"] else {}
    options |= {"dev": data.get("dev", 0.0)} if data.get("dev", 0.0) != DEV else {}
    options |= {"without": "run.json"} if data.get("without") else {}  # this run's own file names the images left out
    words = [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    return shlex.join(["sightline", "train", data["name"], *words, *["--skip-bad"] * data["skip_bad"], "-o", "RUN"]), needed


def _model(recipe: dict[str, Any]) -> str:
    """The model's name, and its width where it isn't as built in: "resnet18 × 0.5"."""
    width = recipe.get("width", 1.0)
    return str(recipe["model"]) if width == 1 else f"{recipe['model']} × {width:g}"


def _views(run: Run) -> list[tuple[str, str]]:
    views = run.info["results"].get("views_accuracy")
    return [] if views is None else [(f"{run.judged.capitalize()} accuracy with more views", percent(views, 2))]


def _heatmaps_note(saved: SavedMaps | None, diagnosis: Diagnosis | None) -> str:
    if saved is None:
        return "No heatmaps yet: `sightline explain RUN` makes them; then make this report again."
    cells = "×".join(map(str, saved.raw.shape[2:]))
    return (
        f"{saved.method} at layer “{saved.layer}”, {cells} cells, for the predicted and for the true class; both maps of an "
        "image share one scale. “No evidence”: no cell speaks for the class."
        + " The word under a map: its hottest places were removed, and equal areas elsewhere, and the model asked again."
        * bool(saved.verdicts.any())
        + (f" {gate(diagnosis)}" if diagnosis else "")
    ).strip()


def _provenance(info: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    data = info["data"]
    return (
        ("Data", f"{data['name']}: images: {data['n_train']:,} train, {data.get('n_dev', 0):,} dev, {data['n_test']:,} test"),
        ("Data, SHA-256", data["hash"]),
        ("Highest learning rate", f"{info['max_lr']:.3g}"),
        ("Arithmetic", str(Precision(**info["arithmetic"]))),
        ("Machine", info["machine"]),
        *((f"{name} version", str(number)) for name, number in info["versions"].items()),
    )
