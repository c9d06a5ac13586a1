"""A diagnosis as the page says it: a card a cause, with its evidence beside its sham, and what was looked for in vain."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import figures
from ..diagnosis import ALPHA, LEAST, Cause, Diagnosis, holds
from ..prescription.edits import edits
from ..prescription.plan import ARM_WORDS, PROVED
from ..prescription.variety import variety
from .pictures import encoded, joined, tile_of, uri
from .words import chance, percent, points, span

if TYPE_CHECKING:
    from ..datasets import Split
    from ..recipe import Recipe

FEW = 20  # images of which a probe says nothing
ROWS = 200  # of the table of what was found in vain
COLUMNS = 6  # images in a row of a sheet
EXACT = 64  # pixels up to which images are shown with their own
SIDE = 96  # pixels that an image of a sheet takes on the screen, about
ABOUT_LABELS = ("label_errors", "ambiguous")  # causes of which a person has to see the labels
NOT_KNOWN = "the probe {probe} makes a difference in {{rate}} of {{n}} images; its sham in {{sham}}"

TITLES = {
    "missing_flip": "Mirror images are lost",
    "position": "It matters where in the picture a thing is",
    "scale": "Larger or smaller things are lost",
    "rotation": "Turned things are lost",
    "lighting": "Things in another light are lost",
    "colour": "The colour tells the class",
    "blur_noise": "Pictures of lesser quality are lost",
    "occlusion": "Partly hidden things are lost",
    "background": "The background tells the class",
    "mark": "A mark in the picture tells the class",
    "tint_frame": "A tint or a frame tells the class",
    "texture": "The texture tells the class",
    "label_errors": "Some labels are probably wrong",
    "ambiguous": "Two classes are hard to tell apart",
}
KINDS = {
    "cost": "costs accuracy now",
    "risk": "a risk that images like these can't show",
    "variety": "no cause: pictures that training never shows, though the model bears them",
}
_DRAWN = "{{rate}} of {{n}} other images are taken for the class once they get {0}; with {1}, {{sham}}"
_STEP = "{{rate}} of {{n}} right images are wrong once {0}; moved by one pixel, {{sham}}"
_SHADED = "{{rate}} of {{n}} right images are wrong once {0}; in uneven light of the same strength, {{sham}}"
EVIDENCE = {  # by probe: what happens with it, and what under its sham
    "patch": _DRAWN.format("the patch that recurs in its images", "other patches at the same place"),
    "frame": _DRAWN.format("the border of one of its images", "borders of other classes"),
    "tint": _DRAWN.format("twice the tint of its images", "other tints of the same strength"),
    "background": _DRAWN.format("a background of the class", "backgrounds of other classes"),
    "background kept": "{rate} of {n} right images of the class are wrong before a background of another class; before other "
    "backgrounds of their own class, {sham}",
    "place": "{rate} of {n} other images are taken for the class once their object is moved to where its objects lie; moved to "
    "where other classes' lie, {sham}",
    "place kept": "{rate} of {n} right images of the class are wrong once moved to where other classes' objects lie; moved to "
    "where others of their own class lie, {sham}",
    "texture": _DRAWN.format("the surface of one of its objects, twice as strong,", "surfaces of other classes"),
    "shuffle": "In {n} pictures of shuffled pieces the class is still told from others (hits minus false alarms: {rate}); other "
    "classes, on average, {sham}",
    "flip": "Mirrored, {n} right images lose {rate} of their class's probability, on average; moved by one pixel, {sham}",
    "shift": _STEP.format("moved by an eighth of the side"),
    "smaller": _STEP.format("made smaller (×0.75)"),
    "larger": _STEP.format("made larger (×1.6)"),
    "rotation": _STEP.format("turned by 10 degrees"),
    "darker": _SHADED.format("darker by 30 %"),
    "brighter": _SHADED.format("brighter by 30 %"),
    "less contrast": _SHADED.format("of 30 % less contrast"),
    "more contrast": _SHADED.format("of 30 % more contrast"),
    "hue": _SHADED.format("their hue is turned by a tenth of the circle"),
    "grey": _SHADED.format("without colour"),
    "blur": _SHADED.format("blurred by 1 pixel"),
    "noise": _SHADED.format("noisy (4 % of the levels)"),
    "jpeg": _SHADED.format("compressed (JPEG, quality 40)"),
    "occlusion": "{rate} of {n} right images are wrong behind a square of a quarter of the side; with as many pixels hidden in "
    "small pieces, {sham}",
    "field": "Where the model is used, by {n} images from there, {rate} of the answers are lost to it; dev images in their place "
    "would say {sham}",
    "confident learning": "{rate} of {n} images have a label that is probably wrong; by the model's own doubts alone it would be "
    "{sham}",
    "pairs": "{rate} of {n} mistakes are between the class and the one that it is most confused with; if they were confused as "
    "others are, {sham}",
}
RULE = (
    "Causes that cost accuracy now come first, ordered by the effect, in multiples of the least that counts for that cause, "
    "times the number of mistakes that undoing it repairs; then risks, by the effect alone."
)


@dataclass(frozen=True)
class Sheet:
    """Images joined in a grid.

    uri: a data: URI.  width, height: in CSS pixels, as shown.  pixels: they are the images' own.  labels: of the images, row by
    row, where the cause is about these.
    """

    uri: str
    alt: str
    width: int
    height: int
    pixels: bool
    labels: tuple[str, ...]


@dataclass(frozen=True)
class EditRow:
    """An edit that could help.  tried: what a short fine-tune beside a sham showed, in words, or ""."""

    name: str
    why: str
    tried: str


@dataclass(frozen=True)
class Proof:
    """What full trainings showed.  arms: names and test accuracies, fractions.  command: "" where nothing was proved."""

    verdict: str
    summary: str
    arms: tuple[tuple[str, float], ...]
    beyond: str
    command: str


@dataclass(frozen=True)
class CauseCard:
    """A cause. classes: names, () for all.  kind: "cost" or "risk", and `kind_words` what that means.  figure: SVG text.

    sure: the interval excludes no effect.  edits_note: why there are no edits, or "".
    """

    id: str
    title: str
    classes: tuple[str, ...]
    kind: str
    kind_words: str
    evidence: str
    detail: str
    sure: bool
    figure: str
    figure_label: str
    sheet: Sheet | None
    caption: str
    repaired: str
    edits: tuple[EditRow, ...]
    edits_note: str
    proof: Proof | None


class ProbeRow(NamedTuple):
    """A probe that found nothing, of one class or of all (""); with `note`, it couldn't be made for `times` classes."""

    probe: str
    cause: str
    label: str
    effect: str
    n: int
    q: str
    note: str
    times: int = 1


class Point(NamedTuple):
    """A point of a curve: which shares, fractions, the change and its sham break at a magnitude in `unit`."""

    probe: str
    unit: str
    magnitude: float
    breaks: float
    sham: float


@dataclass(frozen=True)
class Probes:
    """What was tried, whether it found something or not.

    tested: tests, a probe of a class each; unmade: those of them that couldn't be made.  rows: at most `limit` of the `empty`
    that found nothing, the lowest q first, then what couldn't be made.  unexplained: mistakes that no cause's undoing repairs.
    """

    tested: int
    unmade: int
    alpha: float
    empty: int
    rows: tuple[ProbeRow, ...]
    curves: tuple[Point, ...]
    n: int
    mistakes: int
    unexplained: int
    rule: str = RULE
    limit: int = ROWS


def cards(
    diagnosis: Diagnosis,
    recipe: Recipe | None,
    size: int | tuple[int, int],
    images: Split | None,
    fix: Mapping[str, Any] | None,
    *,
    data: str = "DATA",
) -> tuple[CauseCard, ...]:
    """Return a card a cause, in the diagnosis's order: see `RULE`.

    recipe: the run's, None where its weights come from elsewhere, and then there are no edits.  size: of the images in pixels,
    (height, width) or one for both.  images: those that were probed, or None.  fix: `Fix.to_dict`'s form, or None; what it
    proved stands on the card of its cause.  data: what the data set is called in a command.
    Raises RecipeError for a cause that this version doesn't know.
    """
    sides = (size, size) if isinstance(size, int) else size
    return tuple(
        _card(i, cause, diagnosis, recipe, sides, images, fix or {}, data) for i, cause in enumerate(diagnosis.causes, 1)
    )


def variety_card(
    diagnosis: Diagnosis, recipe: Recipe | None, size: int | tuple[int, int], fix: Mapping[str, Any] | None, *, data: str = "DATA"
) -> CauseCard | None:
    """Return the card of the variety that a recipe lacks, see `prescription.variety`; arguments as in `cards`."""
    sides = (size, size) if isinstance(size, int) else size
    found = None if recipe is None else variety(diagnosis, recipe, size=sides)
    if found is None:
        return None
    cause, edit = found
    card = _card(0, cause, diagnosis, recipe, sides, None, fix or {}, data)
    return replace(
        card,
        id="variety",
        title="More variety",
        sure=True,
        repaired="No mistake is known to come of it. What it is worth no probe can show: only whole trainings do.",
        edits=(EditRow(edit.name, edit.why, ""),),
        edits_note="",
        proof=card.proof or _of_variety(fix or {}, data),
    )


def nothing_found(diagnosis: Diagnosis) -> Probes:
    """Return what was tried, with the probes that found nothing."""
    tested = [f for f in diagnosis.findings if f["cause"] in LEAST]
    unmade = [f for f in tested if not f["n"]]
    empty = sorted(
        (f for f in tested if f["n"] and not _declared(f, diagnosis)),
        key=lambda f: (_known(f["q"], 1.0), -_known(f["effect"], 0.0)),
    )
    rows = [_row(finding, diagnosis) for finding in empty[:ROWS]]
    reasons = Counter((f["probe"], f["cause"], f.get("curve", {}).get("note", "there were no images for it")) for f in unmade)
    rows += [ProbeRow(probe, TITLES[cause], "", "", 0, "", note, times) for (probe, cause, note), times in reasons.items()]
    return Probes(
        tested=len(tested),
        unmade=len(unmade),
        alpha=ALPHA,
        empty=len(empty),
        rows=tuple(rows),
        curves=tuple(
            Point(probe, figures.MAGNITUDES.get(probe, ""), *point)
            for probe, curve in curves_of(diagnosis).items()
            for point in zip(curve["magnitudes"], curve["breaks"], curve["sham"], strict=True)
        ),
        n=diagnosis.n,
        mistakes=diagnosis.mistakes,
        unexplained=len(diagnosis.groups.get("unexplained", ())),
    )


def gate(diagnosis: Diagnosis) -> str:
    """Say whether the model's heatmaps show where it looks, by the less favourable of the fills of their hottest places."""
    made = [f for f in diagnosis.findings if f["cause"] == "gate" and f["n"]]
    if not made:
        return ""
    least = min(made, key=lambda f: f["low"])
    seen = (
        f"Without its hottest fifth {percent(least['rate'])} of {least['n']} images are called something else, without as much "
        f"elsewhere {percent(least['sham'])} ({span(least['low'], least['high'])} points at 95 %): "
    )
    return seen + (
        "the heatmaps of this model show what it looks at." if least["low"] > 0 else "do not rely on the heatmaps of this model."
    )


def curves_of(diagnosis: Diagnosis) -> dict[str, dict[str, list[float]]]:
    """Return by probe the curves "magnitudes", "breaks" and "sham", as `figures.sensitivity` takes them."""
    found = {f["probe"]: f["curve"] for f in diagnosis.findings if "magnitudes" in f.get("curve", {})}
    return {probe: {key: list(curve[key]) for key in ("magnitudes", "breaks", "sham")} for probe, curve in found.items()}


# --- a card


def _card(
    place: int,
    cause: Cause,
    diagnosis: Diagnosis,
    recipe: Recipe | None,
    size: tuple[int, int],
    images: Split | None,
    fix: Mapping[str, Any],
    data: str,
) -> CauseCard:
    sheet, found = _sheet(cause, images), _edits(cause, recipe, size, fix)
    values = " ".join(f"{key} {percent(value)}," for key, value in (("probe", cause.rate), ("sham", cause.sham)))
    return CauseCard(
        id=cause.id,
        title=TITLES.get(cause.id, cause.id),
        classes=tuple(diagnosis.classes[label] for label in cause.classes),
        kind=cause.kind,
        kind_words=KINDS[cause.kind],
        evidence=_evidence(cause),
        detail=_detail(cause),
        sure=cause.low > 0,
        figure=figures.evidence(cause.rate, cause.sham, cause.low, cause.high, f"cause-{place}"),
        figure_label=f"{values} difference {span(cause.low, cause.high)} points",
        sheet=sheet,
        caption=_caption(cause) if sheet else "",
        repaired=_repaired(cause, diagnosis),
        edits=found,
        edits_note="" if found else _no_edits(cause, recipe),
        proof=_proof(cause, fix, data),
    )


def _evidence(cause: Cause) -> str:
    """A sentence with the numbers of the probe that speaks for a cause."""
    if cause.n < FEW:
        return f"n = {cause.n}: too few to say."
    said = EVIDENCE.get(cause.probe, NOT_KNOWN.format(probe=cause.probe.replace("{", "(").replace("}", ")")))
    said = said.format(rate=percent(cause.rate), sham=percent(cause.sham), n=f"{cause.n:,}")
    said = f"Of the strongest of its {len(cause.classes)} classes: {said}" if len(cause.classes) > 1 else said
    told = f"Difference {points(cause.effect)} points, 95 % interval {span(cause.low, cause.high)}; {chance('q', cause.q)}."
    return f"{said}. {told}" + " The interval holds 0: not beyond doubt." * (cause.low <= 0)


def _detail(cause: Cause) -> str:
    """What else the probe knows of a cause: where, how large, from which magnitude on."""
    known = cause.detail
    if "box" in known:
        top, left, height, width = known["box"]
        held = f"{percent(known['held'])} of the class's images hold it, {percent(known['elsewhere'])} of the others"
        return f"The mark: {height} × {width} pixels, from row {top} and column {left}; {held}."
    if cause.probe == "field":
        unit = figures.MAGNITUDES.get(known["change"], "")
        looks = f"{percent(known['share'])} of the images from the field look like dev images that were changed so"
        magnitude = f"{known['magnitude']:g}".replace("-", "−")
        return f"{looks}; the costliest change: {known['change']}, {magnitude} {unit}."
    if known.get("form") == "frame":
        return f"The frame is {known['width']} pixel{'s' * (known['width'] != 1)} wide."
    if "levels" in known:
        colours = zip(("red", "green", "blue"), known["levels"], strict=True)
        return f"The tint, in levels of 255: {', '.join(f'{colour} {level:+.0f}' for colour, level in colours)}."
    if known.get("knee") is not None and "reference" in known:
        unit = figures.MAGNITUDES.get(cause.probe, "")
        return f"The mildest change that breaks more than its sham: {known['knee']:g} {unit}.".replace(" .", ".")
    return ""


def _repaired(cause: Cause, diagnosis: Diagnosis) -> str:
    """How many mistakes a cause explains, in words."""
    if cause.id == "ambiguous":
        return "No change of the images repairs these mistakes."
    if not diagnosis.mistakes:
        return "There are no mistakes that it could explain."
    undoing = "Mending the labels" if cause.id == "label_errors" else "Undoing it"
    count, alike = len(diagnosis.groups.get(cause.id, ())), sum(other.id == cause.id for other in diagnosis.causes)
    together = " together with the other causes of this kind" * (alike > 1)
    if not count:
        return f"{undoing} repairs none of the {diagnosis.mistakes:,} mistakes{together}."
    less = ", less what it breaks" if cause.probe in figures.MAGNITUDES else ""
    tried = f"beyond the sham{less}: {percent(max(cause.repaired, 0.0))} of the mistakes tried"
    return f"{undoing} repairs {count:,} of {diagnosis.mistakes:,} mistakes{together} ({tried})."


def _edits(cause: Cause, recipe: Recipe | None, size: tuple[int, int], fix: Mapping[str, Any]) -> tuple[EditRow, ...]:
    if recipe is None:
        return ()
    tried = {(trial["cause"], trial["edit"]): trial for trial in fix.get("trials", ())}
    found = edits(cause, recipe, size=size)
    return tuple(EditRow(edit.name, edit.why, _tried(tried.get((cause.id, edit.name)))) for edit in found)


def _tried(trial: Mapping[str, Any] | None) -> str:
    if trial is None:
        return ""
    group = [] if trial["group"] is None else [f"accuracy on its images held back {points(trial['group'])}"]
    parts = [f"the probe’s effect {points(-trial['effect'])} points", *group, f"dev accuracy {points(trial['accuracy'])}"]
    harm = " It costs too much accuracy." * trial.get("harmful", False)
    return f"Tried in short fine-tunes, beyond a sham: {', '.join(parts)}.{harm}"


def _no_edits(cause: Cause, recipe: Recipe | None) -> str:
    """Why there are no edits, where there are none."""
    if recipe is None:
        return "The weights came from elsewhere: without a recipe there is nothing to edit."
    if cause.id in ABOUT_LABELS:
        return "No further change of the training helps here: look at these images and their labels."
    return "The recipe does already what could help."


def _proof(cause: Cause, fix: Mapping[str, Any], data: str) -> Proof | None:
    """What `fix` has to say of a cause: the proof, or that none of its edits was worth one."""
    about = fix.get("cause")
    if not about:
        tried = any(trial["cause"] == cause.id for trial in fix.get("trials", ()))
        return Proof(fix["verdict"], fix["summary"], (), "", "") if tried else None
    measures = fix.get("measures")
    if not measures or (about["id"], tuple(about["classes"])) != (cause.id, cause.classes):
        return None
    beyond = measures.get("beyond_generic")
    return Proof(
        fix["verdict"],
        fix["summary"],
        tuple((ARM_WORDS.get(arm, arm), float(accuracy)) for arm, accuracy in measures["accuracy"].items()),
        f"{points(beyond['value'])} points ({span(beyond['low'], beyond['high'])})" if beyond else "",
        _command(fix, data, "recipe") if fix["verdict"] in PROVED else "",
    )


def _of_variety(fix: Mapping[str, Any], data: str) -> Proof | None:
    """What a fix of something else has to say of its arm with more variety."""
    found = (fix.get("measures") or {}).get("variety")
    if not found:
        return None
    change = found["change"]
    verdict = "accuracy rises" if change["low"] > 0 else "accuracy falls" if change["high"] < 0 else "cannot tell"
    accuracies = fix["measures"]["accuracy"]
    return Proof(
        verdict,
        f"{found['edit']} for variety: test accuracy {points(change['value'])} points ({span(change['low'], change['high'])})",
        tuple((ARM_WORDS[arm], float(accuracies[arm])) for arm in ("current", "sham", "variety")),
        "",
        _command(fix, data, "variety") if change["low"] > 0 else "",
    )


def _command(fix: Mapping[str, Any], data: str, name: str) -> str:
    return shlex.join(["sightline", "train", data, "-r", f"{fix.get('folder') or 'FOLDER'}/{name}.json"])


# --- its images


def _caption(cause: Cause) -> str:
    if cause.id == "label_errors":
        return "Images whose label is probably wrong, the most certain first."
    if cause.probe == "flip":
        return "Images whose class loses the most probability when they are mirrored; shown as they were before."
    if cause.id == "ambiguous":
        return "Mistakes between the classes, the most undecided first."
    return "Images whose answer the probe changes and the sham doesn't, the surest answers first; shown as they were before."


def _sheet(cause: Cause, images: Split | None) -> Sheet | None:
    """Join a cause's images, up to 12, in rows of six; None where there are none."""
    place = {} if images is None else {name: i for i, name in enumerate(images.ids)}
    chosen = [place[name] for name in cause.images if name in place]
    if images is None or not chosen:
        return None
    exact = max(images.images.shape[1:3]) <= EXACT
    tile = tile_of(images.images, EXACT if exact else SIDE)
    columns = min(COLUMNS, len(chosen))
    sheet = joined((images.images[i] for i in chosen), tile, columns, max(1, max(tile) // 24))
    scale = max(1, SIDE // max(tile))
    labels = [images.classes[images.labels[i]] for i in chosen]
    named = tuple(labels) if cause.id in ABOUT_LABELS else ()
    file = encoded(sheet, 0 if exact else 75)
    return Sheet(uri(file), _alt(labels, columns), scale * sheet.width, scale * sheet.height, exact, named)


def _alt(labels: Sequence[str], columns: int) -> str:
    rows = [labels[i : i + columns] for i in range(0, len(labels), columns)]
    said = "; ".join(", ".join(row) for row in rows)
    return f"{len(labels)} image{'s' * (len(labels) > 1)} that show it, labelled, row by row: {said}"


# --- what found nothing


def _declared(finding: Mapping[str, Any], diagnosis: Diagnosis) -> bool:
    """Whether a finding is one of those that a cause was made of."""
    if not _holds(finding):
        return False
    return any(
        cause.id == finding["cause"]
        and finding["probe"] in (cause.probe, *cause.detail.get("also", ()))
        and (not cause.classes or finding["label"] in cause.classes)
        for cause in diagnosis.causes
    )


def _holds(finding: Mapping[str, Any]) -> bool:
    """Whether a finding as it is on the disk is enough for its cause."""
    effect, q = _known(finding["effect"], 0.0), _known(finding["q"], 1.0)
    return holds(finding["probe"], finding["cause"], effect, q, finding.get("masks", True))


def _row(finding: Mapping[str, Any], diagnosis: Diagnosis) -> ProbeRow:
    effect, low, high = (_known(finding[key], float("nan")) for key in ("effect", "low", "high"))
    label, q = finding["label"], _known(finding["q"], 1.0)
    few = finding["n"] < FEW
    again = _holds(finding)
    note = f"n = {finding['n']}: too few to say" if few else "found, but not in the other seeds" if again else ""
    return ProbeRow(
        finding["probe"],
        TITLES[finding["cause"]],
        "" if label is None else diagnosis.classes[label],
        "–" if few or not np.isfinite([effect, low, high]).all() else f"{points(effect)} ({span(low, high)})",
        finding["n"],
        chance("q", q),
        note,
    )


def _known(value: float | None, otherwise: float) -> float:
    """JSON has no NaN: a number that isn't there is None."""
    return otherwise if value is None or not np.isfinite(value) else float(value)
