"""A run → RUN/figures/ and RUN/report.html, one file that needs nothing else.

`page_of` collects what the page says, as plain data; `templates/report.html` says it. Everything that the page shows of
names and files is escaped by Jinja2; only figures made here and the style and script of `templates/` go in as they are.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import figures, mistakes
from .datasets import DEV
from .exceptions import DataError
from .mistakes import Accuracy, Confusion
from .precision import Precision
from .recipe import RECIPES, Recipe
from .runs import Run, SavedMaps, write_text, writing
from .schedule import suggest

if TYPE_CHECKING:
    from .datasets import Dataset, Split
    from .models import Layer

SCHEMA = 1  # of `report_json`
THUMBNAIL = 128  # pixels, the longest side of a picture in the page
GRID = 24  # mistakes in figures/mistakes.png, and cards that are open at once


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


def model_table(run: Run) -> tuple[Layer, ...]:
    """Return a row for each module of the run's model, for an image of its data."""
    from .models import layers

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


def percent(fraction: float, digits: int = 1) -> str:
    """Return a fraction in per cent; one that would read as none or all but isn't as "<0.1 %" or ">99.9 %"."""
    text, least = f"{100 * fraction:.{digits}f}", f"{10**-digits:.{digits}f}"
    if fraction > 0 and float(text) == 0:
        return f"<{least} %"
    if fraction < 1 and float(text) == 100:
        return f">{100 - 10**-digits:.{digits}f} %"
    return f"{text} %"


def duration(seconds: float) -> str:
    """Return a time in words: "42 s", "3 min 5 s", "2 h 14 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _judged_images(run: Run, data: Dataset | None, data_dir: Path | None) -> tuple[Split | None, str]:
    """Return the images that the run is judged on, or None and why there are none."""
    if data is not None:
        run.check(data)
        return data.judged[1], ""
    try:
        return run.dataset(data_dir).judged[1], ""
    except DataError as error:
        return None, f"the data set was not found when this report was made ({error})"


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
    drawn = _drawn(saved, [row], image_HWC[None], weight)[0]
    heat = []
    for kind, raw, judged, picture in zip(saved.targets, saved.raw[row], saved.verdicts[row], drawn, strict=True):
        word = {"predicted": predicted, "true": true}.get(kind, "")
        if kind == "margin":
            nothing, seen = not raw.any(), f"for {predicted} {_where(raw)}, for {true} {_where(-raw)}"
        else:
            nothing, seen = raw.max() <= 0, _where(raw)
        verdict = "no evidence" if nothing else str(judged)
        of = f"{kind} class {word}" if word else kind
        alt = f"Heatmap of the {of}: {seen}" + f"; verdict: {judged}" * bool(judged)
        heat.append(_picture(kind, word, picture, alt, verdict=verdict))
    return (original, *heat)


def _drawn(saved: SavedMaps, rows: Sequence[int], images_NHWC: NDArray[np.uint8], weight: float) -> NDArray[np.uint8]:
    """Draw some images' maps, (N, T, H, W, 3): margins in diverging colours."""
    from .heatmaps import drawing

    return drawing.pictures(saved.raw[rows], images_NHWC, [target == "margin" for target in saved.targets], weight)


def _where(raw: NDArray[np.float32]) -> str:
    """Say in words where a map (h, w) is strongest."""
    if raw.max() <= 0:
        return "no evidence"
    row, column = np.unravel_index(raw.argmax(), raw.shape)
    vertical = ("upper", "middle", "lower")[int(3 * (row + 0.5) / raw.shape[0])]
    horizontal = ("left", "centre", "right")[int(3 * (column + 0.5) / raw.shape[1])]
    return f"strongest at the {vertical} {horizontal}"


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


def _mistakes_png(run: Run, split: Split, weight: float) -> bytes:
    """Draw the first mistakes as one picture, with their heatmaps where all of them have some."""
    rows, saved = mistakes.table(run.predictions, GRID), run.heatmaps
    place = {name: i for i, name in enumerate(split.ids)}
    images = split.images[[place[row["id"]] for row in rows]]
    titles = [f"{row['predicted']} / {row['true']}\n{row['confidence']:.2f}" for row in rows]
    where = {} if saved is None else {name: i for i, name in enumerate(saved.ids)}
    if saved is None or not all(row["id"] in where for row in rows):
        return figures.mistakes_grid(images, titles)
    return figures.mistakes_grid(images, titles, _drawn(saved, [where[row["id"]] for row in rows], images, weight))


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
