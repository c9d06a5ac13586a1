"""All that the page says, as plain data; `templates/report.html` says it."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import mistakes
from ..datasets import DEV
from ..mistakes import Accuracy, Confusion
from ..precision import Precision
from ..recipe import RECIPES, Recipe
from ..runs import Run, SavedMaps
from .words import duration, percent, where

if TYPE_CHECKING:
    from ..datasets import Split
    from ..models import Layer

THUMBNAIL = 128  # pixels, the longest side of a picture in the page


@dataclass(frozen=True)
class Picture:
    """A picture in a card.

    kind: "image", or what the heatmap explains: "predicted", "true" or "margin".  name: that class, or "".  verdict: how far the
    heatmap may be trusted, or "" where nobody asked.  uri: a data: URI.  alt: what the picture shows, in words.  pixels: its
    pixels are the image's own, not scaled down.
    """

    kind: str
    name: str
    verdict: str
    uri: str
    alt: str
    pixels: bool


@dataclass(frozen=True)
class Card:
    """One mistake. true, predicted: indices into the page's classes; confidence and probability_true are fractions."""

    id: str
    true: int
    predicted: int
    confidence: float
    probability_true: float
    loss: float
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Page:
    """All that the page says. Rates are fractions."""

    title: str
    judged: str  # "dev" or "test": what the accuracy and the mistakes are of
    accuracy: Accuracy
    facts: tuple[tuple[str, str], ...]
    classes: tuple[str, ...]
    mistakes: int
    cards: tuple[Card, ...]
    pictures_note: str
    heatmaps_note: str
    margins: bool
    confused: tuple[Confusion, ...]
    per_class: Mapping[str, Accuracy]
    ece: float
    history: Sequence[Mapping[str, float]]
    layers: tuple[Layer, ...]
    recipe: str
    command: str
    recipe_needed: bool
    provenance: tuple[tuple[str, str], ...]


def page_of(run: Run, split: Split | None, n: int, weight: float, *, no_pictures: str = "", no_heatmaps: str = "") -> Page:
    """Collect what the page says. `split`: the images that the run is judged on, or None, and then `no_pictures` says why."""
    info, predictions = run.info, run.predictions
    wrong = mistakes.top_mistakes(predictions)
    calibration = mistakes.calibration(predictions)
    recipe = info["recipe"]
    command, needed = reproduce(info)
    results = info["results"]
    cards = _cards(run, wrong[:n], split, weight)
    return Page(
        title=f"{recipe['name']} on {info['data']['name']}",
        judged=run.judged,
        accuracy=mistakes.accuracy(predictions),
        facts=(
            ("Mistakes", f"{len(wrong):,} of {len(predictions):,}"),
            ("Epochs", f"{results['epoch']:.0f}"),
            ("Training time", duration(results["seconds"])),
            ("Device", str(info["device"])),
            ("Model", recipe["model"]),
            ("Parameters", f"{info['parameters']:,}"),
            ("Train accuracy", percent(results["train_accuracy"], 2)),
            *_views(run),
            ("Calibration error", percent(calibration.ece)),
        ),
        classes=predictions.classes,
        mistakes=len(wrong),
        cards=cards,
        pictures_note=f"No pictures: {no_pictures}" if no_pictures else "",
        heatmaps_note=f"No heatmaps: {no_heatmaps}" if no_heatmaps else _heatmaps_note(run.heatmaps),
        margins=any(picture.kind == "margin" for card in cards for picture in card.pictures),
        confused=tuple(mistakes.most_confused(predictions)),
        per_class=mistakes.per_class(predictions),
        ece=calibration.ece,
        history=run.history,
        layers=model_table(run),
        recipe=json.dumps(recipe, indent=1, ensure_ascii=False),
        command=command,
        recipe_needed=needed,
        provenance=_provenance(info),
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
    words = [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    return shlex.join(["sightline", "train", data["name"], *words, *["--skip-bad"] * data["skip_bad"], "-o", "RUN"]), needed


def _views(run: Run) -> list[tuple[str, str]]:
    views = run.info["results"].get("views_accuracy")
    return [] if views is None else [(f"{run.judged.capitalize()} accuracy with more views", percent(views, 2))]


def _cards(run: Run, chosen: NDArray[np.int64], split: Split | None, weight: float) -> tuple[Card, ...]:
    predictions, saved = run.predictions, run.heatmaps
    row = {} if saved is None else {name: i for i, name in enumerate(saved.ids)}
    place = {} if split is None else {name: i for i, name in enumerate(split.ids)}
    sure = mistakes.confidences(predictions)
    cards = []
    for i in chosen:
        true, predicted, name = int(predictions.labels[i]), int(predictions.predicted[i]), predictions.ids[i]
        image = None if split is None else split.images[place[name]]
        words = (predictions.classes[true], predictions.classes[predicted])
        cards.append(
            Card(
                name,
                true,
                predicted,
                float(sure[i]),
                float(predictions.probabilities[i, true]),
                float(predictions.losses[i]),
                () if image is None else _pictures(image, name, words, float(sure[i]), saved, row.get(name), weight),
            )
        )
    return tuple(cards)


def _pictures(
    image_HWC: NDArray[np.uint8],
    name: str,
    words: tuple[str, str],
    sure: float,
    saved: SavedMaps | None,
    row: int | None,
    weight: float,
) -> tuple[Picture, ...]:
    """Return the image, and over it the maps that are saved in `row`, if there is one."""
    true, predicted = words
    alt = f"{name}: true {true}, predicted {predicted}, confidence {sure:.2f}"
    original = _picture("image", "", image_HWC, alt)
    if saved is None or row is None:
        return (original,)
    drawn = overlaid(saved, [row], image_HWC[None], weight)[0]
    heat = []
    for kind, raw, judged, picture in zip(saved.targets, saved.raw[row], saved.verdicts[row], drawn, strict=True):
        word = {"predicted": predicted, "true": true}.get(kind, "")
        if kind == "margin":
            nothing, seen = not raw.any(), f"for {predicted} {where(raw)}, for {true} {where(-raw)}"
        else:
            nothing, seen = raw.max() <= 0, where(raw)
        verdict = "no evidence" if nothing else str(judged)
        of = f"{kind} class {word}" if word else kind
        alt = f"Heatmap of the {of}: {seen}" + f"; verdict: {judged}" * bool(judged)
        heat.append(_picture(kind, word, picture, alt, verdict=verdict))
    return (original, *heat)


def overlaid(saved: SavedMaps, rows: Sequence[int], images_NHWC: NDArray[np.uint8], weight: float) -> NDArray[np.uint8]:
    """Draw some images' maps, (N, T, H, W, 3): margins in diverging colours."""
    from ..heatmaps import drawing

    return drawing.pictures(saved.raw[rows], images_NHWC, [target == "margin" for target in saved.targets], weight)


def _picture(kind: str, name: str, image_HWC: NDArray[np.uint8], alt: str, *, verdict: str = "") -> Picture:
    """Return a picture of at most 128 pixels: small images exactly (PNG), large ones as WebP, which is a tenth of it."""
    from PIL import Image

    picture = Image.fromarray(image_HWC)
    small = max(picture.size) <= THUMBNAIL // 2
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    if small:
        picture.save(file, "PNG", optimize=True)
    else:
        picture.save(file, "WEBP", quality=75)
    uri = f"data:image/{'png' if small else 'webp'};base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(kind, name, verdict, uri, alt, small)


def _heatmaps_note(saved: SavedMaps | None) -> str:
    if saved is None:
        return "No heatmaps yet: `sightline explain RUN` makes them; then make this report again."
    cells = "×".join(map(str, saved.raw.shape[2:]))
    return (
        f"{saved.method} at layer “{saved.layer}”, {cells} cells, for the predicted and for the true class; both maps of an "
        "image share one scale. “No evidence”: no cell speaks for the class."
        + " The word under a map: its hottest places were removed, and equal areas elsewhere, and the model asked again."
        * bool(saved.verdicts.any())
    )


def _provenance(info: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    data, arithmetic = info["data"], info["arithmetic"]
    ways = ["channels last"] * arithmetic["channels_last"] + ["compiled"] * arithmetic["compiled"]
    return (
        ("Data", f"{data['name']}: images: {data['n_train']:,} train, {data.get('n_dev', 0):,} dev, {data['n_test']:,} test"),
        ("Data, SHA-256", data["hash"]),
        ("Highest learning rate", f"{info['max_lr']:.3g}"),
        ("Arithmetic", ", ".join([arithmetic["dtype"], *ways])),
        ("Machine", info["machine"]),
        *((f"{name} version", str(number)) for name, number in info["versions"].items()),
    )
