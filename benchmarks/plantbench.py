"""PlantBench: are the diagnoses right? Data with known causes, and data with none.

    python benchmarks/plantbench.py [diagnose] [gap] [show] [--on cifar10] [--kinds mark,tint,…] [--strengths 0.9] [--seeds 3]
        [--first-seed 0] [--nulls 20] [--runs DIR] [--json docs/plantbench.json]

diagnose   a net is trained on each plant, a cause built into the training images, and on the nulls, which have none, and is
           diagnosed: precision, recall and F1 of the causes; false alarms on the nulls; overlap of the place found with the
           mark's true place. Twice: as it stands, and with 1,000 images without labels from where the model is used, which are
           as the test images are, but others; beside it what simpler rules and other tools would have said (rivals.py)
gap        what the first prescription is worth: gap closed = (accuracy after − before) / (trained without the plant − before),
           on a test set where the plant tells nothing; beside it a random prescription, and always TrivialAugment + Cutout; and
           what each costs on clean test images, those of scenes in which nothing is planted

show       the tables, by the thresholds as they are now, and between which effects these lie

Plants are put into generated scenes or, with --on cifar10, into 10,000 images of CIFAR-10, whose nets are wrong for reasons of
their own: there what is named of the clean images too isn't counted. Rules are scored on plants of strength 0.8 and more; what
weaker ones give is shown by strength. Nets are `fast` at half its width, without flips. Seeds from 100 on were used to set the
thresholds of `diagnosis.LEAST`; those before are for scoring. With --runs, nets are kept in that folder and not trained again.
Every case is kept in the JSON file, and those that it has are not done again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from rich.console import Console

import rivals
from sightline.augment import RandomCrop
from sightline.datasets import Dataset, Split, hold_out, load
from sightline.diagnosis import LEAST, Cause, diagnose, holds, least
from sightline.evaluation import open_test, predictions_of
from sightline.mistakes import false_discovery_rates, wilson
from sightline.planted import NULLS, PLANTS, Plant, plant, plant_of, planted, truth, unplanted
from sightline.prescription import edits, generic
from sightline.probes import Subject
from sightline.recipe import Recipe, load_recipe
from sightline.runs import Predictions, Run
from sightline.terminal import table
from sightline.training import train

console = Console()
FIELD = 10_000  # added to the seed: other images than those of the test
PHOTOGRAPHS, FIELD_IMAGES = 10_000, 1000  # of CIFAR-10's training images; of its test images, as the field
LEAST_GAP = 0.01  # of accuracy: of a smaller one no share can be told
CALIBRATION = 100  # from this seed on, cases only set thresholds
STRONG = 0.8  # from this strength on a plant is to be found; of weaker ones little is lost, and they are only shown
RECIPE = load_recipe("fast").with_(width=0.5, augment=(RandomCrop(2),))  # no flip: `direction` is to be missed


@dataclass(frozen=True)
class Scenes:
    """Generated scenes, in which causes are planted before they are drawn."""

    prefix = ""

    def make(self, kind: str, strength: float, seed: int) -> tuple[Dataset, Plant | None]:
        """The data of a case, a tenth of the training images held out, and what is planted in them."""
        name = f"planted:{kind}"
        return hold_out(planted(name, seed=seed, strength=strength), 0.1), plant_of(name)

    def without(self, kind: str, seed: int) -> Dataset:
        """The same without what is planted in the training images."""
        return hold_out(unplanted(f"planted:{kind}", seed=seed), 0.1)

    def field(self, kind: str, strength: float, seed: int) -> NDArray[np.uint8]:
        """Images as the test's are, but others: (1000, H, W, 3)."""
        return planted(f"planted:{kind}", seed=seed + FIELD, strength=strength, n_train=10).test.images

    def clean(self, seed: int) -> Split:
        """Test images in which nothing is planted."""
        return planted("planted:clean", seed=seed, n_train=10).test


@dataclass(frozen=True)
class Photographs:
    """Some of CIFAR-10's images, other ones for each seed, in which causes are planted."""

    prefix = "cifar10 "

    def _some(self, seed: int, first: int, last: int) -> Dataset:
        whole, random = load("cifar10"), np.random.default_rng(seed)
        learned, judged = random.permutation(len(whole.train))[:PHOTOGRAPHS], random.permutation(len(whole.test))[first:last]
        return replace(whole, train=_rows(whole.train, learned), test=_rows(whole.test, judged))

    def make(self, kind: str, strength: float, seed: int) -> tuple[Dataset, Plant | None]:
        """As `Scenes.make`."""
        data = self._some(seed, FIELD_IMAGES, 10_000)
        known = truth(data, kind, strength=strength)
        return hold_out(plant(data, kind, strength=strength, seed=seed), 0.1), known if known.causes else None

    def without(self, kind: str, seed: int) -> Dataset:
        """As `Scenes.without`."""
        return self.make(kind, 0.0, seed)[0]

    def field(self, kind: str, strength: float, seed: int) -> NDArray[np.uint8]:
        """As `Scenes.field`."""
        return plant(self._some(seed, 0, FIELD_IMAGES), kind, strength=strength, seed=seed).test.images

    def clean(self, seed: int) -> Split:
        """As `Scenes.clean`."""
        return self._some(seed, FIELD_IMAGES, 10_000).test


Ground = Scenes | Photographs
GROUNDS: dict[str, Ground] = {"planted": Scenes(), "cifar10": Photographs()}


def _rows(split: Split, rows: NDArray[np.int64]) -> Split:
    return replace(split, images=split.images[rows], labels=split.labels[rows], ids=tuple(split.ids[i] for i in rows))


def accuracy_on_test(run: Run, data: Dataset) -> float:
    """On the test images, where the plant tells nothing."""
    return _accuracy(open_test(run, data))


def _accuracy(predictions: Predictions) -> float:
    return float((predictions.predicted == predictions.labels).mean())


def trained(data: Dataset, folder: Path, recipe: Recipe, seed: int) -> Run:
    """The run in that folder; trained if there is none."""
    if (folder / "run.json").exists():
        return Run.open(folder)
    return train(data, folder, recipe=recipe, seed=seed)


@contextmanager
def kept(runs: Path | None) -> Iterator[Path]:
    """The folder where runs are kept, or one for the time being."""
    with tempfile.TemporaryDirectory() as folder:
        yield runs or Path(folder)


def diagnosed(ground: Ground, kind: str, strength: float, seed: int, runs: Path | None) -> dict[str, Any]:
    """Train on a case, diagnose, and keep what was found."""
    data, truth_ = ground.make(kind, strength, seed)
    with kept(runs) as folder:
        run = trained(data, folder / f"{ground.prefix.replace(' ', '-')}{kind}-{strength:g}-{seed}", RECIPE, seed)
        found = diagnose(run, data, field=ground.field(kind, strength, seed))
        findings = [
            {key: f[key] for key in ("probe", "cause", "label", "effect", "p", "masks") if key in f}
            for f in found.findings
            if f["cause"] in LEAST
        ]
        subject = Subject.of(run, data)
        maps = subject.heatmaps()
        return {
            "kind": kind,
            "strength": strength,
            "seed": seed,
            "planted": list(truth_.causes) if truth_ else [],
            "labels": list(truth_.labels) if truth_ else [],
            "causes": [{"id": c.id, "classes": list(c.classes), "effect": c.effect, "kind": c.kind} for c in found.causes],
            "overlap": overlap(found.causes, truth_),
            "findings": findings,
            "rivals": {
                "largest average drop": rivals.largest_drop(findings),
                "heatmaps' centre of mass": rivals.centre_of_mass(maps, subject.predicted),
                "clusters of heatmaps": rivals.heatmap_clusters(maps, subject.labels),
                "cleanlab's image properties": rivals.image_properties(subject.split.images, subject.labels),
                "a cause at random": [random.Random(f"{kind} {seed}").choice(list(LEAST))],
            },
            "dev_accuracy": run.info["results"]["dev_accuracy"],
            "test_accuracy": accuracy_on_test(run, data),
            "seconds": {"training": run.info["results"]["seconds"], "diagnosis": found.seconds},
        }


def overlap(causes: Iterable[Cause], truth_: Plant | None) -> float | None:
    """Intersection over union of the place found and the mark's true place; None without a mark to find, 0 if it isn't found."""
    if truth_ is None or truth_.box is None or not truth_.causes:
        return None
    shares = [_iou(cause.detail["box"], truth_.box) for cause in causes if cause.id == "mark"]
    return max(shares, default=0.0)


def _iou(a: Sequence[int], b: Sequence[int]) -> float:
    height = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    width = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(height, 0) * max(width, 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def gap(ground: Ground, kind: str, strength: float, seed: int, runs: Path | None) -> dict[str, Any]:
    """The accuracy on the test images without the plant, before and after each prescription, and on clean ones."""
    data, truth_ = ground.make(kind, strength, seed)
    without, clean = ground.without(kind, seed), ground.clean(seed)
    accuracies: dict[str, float] = {}
    cleanly: dict[str, float] = {}
    with kept(runs) as folder:

        def arm(name: str, recipe: Recipe, on: Dataset = data) -> Run:
            run = trained(
                on, folder / f"{ground.prefix.replace(' ', '-')}gap-{kind}-{strength:g}-{seed}-{name}", recipe, seed + 1000
            )
            accuracies[name] = accuracy_on_test(run, on)
            cleanly[name] = _accuracy(predictions_of(run, clean, "clean"))
            return run

        before = arm("before", RECIPE)
        arm("oracle", RECIPE, without)
        causes = diagnose(before, data, field=ground.field(kind, strength, seed)).causes
        first = next((edit for cause in causes for edit in edits(cause, RECIPE)), None)
        every = [edit for cause in LEAST for edit in edits(_any(cause), RECIPE)]
        drawn = random.Random(f"{kind} {seed}").choice(every)
        if first is not None:
            arm("after", first.apply(RECIPE))
        arm("generic", generic(RECIPE))
        arm("random", drawn.apply(RECIPE))
    return {
        "kind": kind,
        "strength": strength,
        "seed": seed,
        "planted": list(truth_.causes) if truth_ else [],
        "prescribed": None if first is None else {"cause": first.cause, "edit": first.name},
        **({"after": accuracies["before"]} | accuracies),
        "clean": {"after": cleanly["before"]} | cleanly,
    }


def _any(cause: str) -> Cause:
    """A cause of that name without evidence, whose edits have their default magnitudes: for a random prescription."""
    patch = [[[0, 0, 0]] * 4] * 4
    detail = {"box": [0, 0, 4, 4], "patch": patch, "form": "tint"}
    return Cause(cause, (), "risk", "", 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0, 0.0, (), detail)


# ---------------------------------------------------------------- scores


def scores(cases: Sequence[dict[str, Any]], named: Callable[[dict[str, Any]], set[str]]) -> dict[str, float]:
    """Precision, recall and F1 of the causes that `named` gives over all cases with a plant; alarms on the nulls."""
    right = wrong = missed = alarms = 0
    nulls = [case for case in cases if not case["planted"]]
    for case in cases:
        found, true = named(case), set(case["planted"])
        if not true:
            alarms += bool(found)
            continue
        right, wrong, missed = right + len(found & true), wrong + len(found - true), missed + len(true - found)
    precision, recall = right / max(right + wrong, 1), right / max(right + missed, 1)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(precision + recall, 1e-9),
        "false_alarms": alarms / max(len(nulls), 1),
        "nulls": len(nulls),
        "cases": len(cases) - len(nulls),
    }


def by_diagnosis(case: dict[str, Any], field: bool) -> set[str]:
    """The causes that `diagnose` names, with images from the field or without, by the thresholds as they are now."""
    findings = [{"masks": _masked(case), **f} for f in case["findings"] if field or f["probe"] != "field"]
    rates = false_discovery_rates(np.array([f["p"] for f in findings]))
    keys = ("probe", "cause", "effect")
    return {f["cause"] for f, q in zip(findings, rates, strict=True) if holds(*(f[key] for key in keys), float(q), f["masks"])}


def _masked(case: dict[str, Any]) -> bool:
    """Whether the case's images come with their objects' outlines: photographs don't."""
    return case.get("on", "planted") == "planted"


def by_rival(case: dict[str, Any], name: str) -> set[str]:
    return set(case["rivals"][name])


def show(cases: dict[str, Any]) -> None:
    """The tables of what the file has."""
    for name in GROUNDS:
        own = [case for case in cases.values() if case.get("on", "planted") == name and case["seed"] < CALIBRATION]
        diagnoses, gaps = ([case for case in own if key in case] for key in ("findings", "oracle"))
        setting = [c for c in cases.values() if c.get("on", "planted") == name and c["seed"] >= CALIBRATION and "findings" in c]
        if own or setting:
            console.rule(name)
        if setting:
            show_margins(setting, natural(setting) if name == "cifar10" else {})
        if diagnoses:
            show_diagnoses(diagnoses, natural(diagnoses) if name == "cifar10" else {})
        if gaps:
            show_gaps(gaps)


def natural(cases: Sequence[dict[str, Any]]) -> dict[int, set[str]]:
    """By seed what is named of the clean images: causes that were there before anything was planted."""
    return {case["seed"]: by_diagnosis(case, field=True) for case in cases if case["kind"] == "clean"}


def beyond(named: Callable[[dict[str, Any]], set[str]], own: dict[int, set[str]]) -> Callable[[dict[str, Any]], set[str]]:
    """What is named of a case, without what its images had of their own; what was planted counts all the same."""
    return lambda case: named(case) - (own.get(case["seed"], set()) - set(case["planted"]))


def show_diagnoses(cases: Sequence[dict[str, Any]], own: dict[int, set[str]]) -> None:
    """What was named of each plant at each strength, and the scores. own: causes that aren't counted, by seed."""
    alone, with_field = (beyond(partial(by_diagnosis, field=field), own) for field in (False, True))
    rows = []
    for kind, strength in dict.fromkeys((case["kind"], case["strength"]) for case in cases):
        some = [case for case in cases if (case["kind"], case["strength"]) == (kind, strength)]
        true = set(some[0]["planted"])
        hits = [sum(true <= named(case) if true else not named(case) for case in some) for named in (alone, with_field)]
        others = sorted({cause for case in some for cause in with_field(case) - true})
        places = [case["overlap"] for case in some if case["overlap"] is not None]
        place = f"{statistics.fmean(places):.2f}" if places else ""
        drop = statistics.fmean(case["dev_accuracy"] - case["test_accuracy"] for case in some)
        names = (f"{kind} {strength:g}", ", ".join(sorted(true)) or "none")
        rows.append((*names, *(f"{hit}/{len(some)}" for hit in hits), ", ".join(others), place, f"{100 * drop:.1f}"))
    columns = ("plant", "planted", "named", "with field", "also named", "place, IoU", "dev − test, points")
    console.print(table(columns, rows, left=("plant", "planted", "also named")))
    show_strengths(cases, {"alone": alone, "with field": with_field})
    cases = [case for case in cases if case["strength"] >= STRONG or not case["planted"]]
    rules: dict[str, Callable[[dict[str, Any]], set[str]]] = {
        "diagnose": alone,
        "diagnose, with images from the field": with_field,
        **{name: partial(by_rival, name=name) for name in cases[0]["rivals"]},
    }
    keys, drawn = ("precision", "recall", "f1", "false_alarms"), []
    for name, rule in rules.items():
        scored = scores(cases, rule)
        low, high = (
            wilson(round(scored["false_alarms"] * scored["nulls"]), int(scored["nulls"])) if scored["nulls"] else (0.0, 1.0)
        )
        interval = f"{low:.2f} to {high:.2f}"
        drawn.append((name, *(f"{scored[key]:.2f}" for key in keys), interval, scored["cases"], scored["nulls"]))
    console.print(table(("rule", *keys, "95 %", "plants", "nulls"), drawn, left=("rule",)))
    seconds = [case["seconds"]["diagnosis"] for case in cases]
    console.print(f"seconds a diagnosis: median {statistics.median(seconds):.0f}, n = {len(seconds)}")


def show_strengths(cases: Sequence[dict[str, Any]], rules: dict[str, Callable[[dict[str, Any]], set[str]]]) -> None:
    """Precision and recall by strength."""
    rows = []
    for strength in sorted({case["strength"] for case in cases if case["planted"]}, reverse=True):
        some = [case for case in cases if case["strength"] == strength and case["planted"]]
        scored = [scores(some, rule) for rule in rules.values()]
        rows.append((f"{strength:g}", len(some), *(f"{each[key]:.2f}" for each in scored for key in ("precision", "recall"))))
    columns = (f"{key}, {rule}" for rule in rules for key in ("precision", "recall"))
    console.print(table(("strength", "plants", *columns), rows))


def show_margins(cases: Sequence[dict[str, Any]], own: dict[int, set[str]]) -> None:
    """What thresholds are set between: each probe's effect where its cause isn't planted, at most, and where it is, at least."""
    elsewhere: dict[tuple[str, str], float] = {}
    planted_: dict[tuple[str, str], float] = {}
    for case in cases:
        here: dict[tuple[str, str], float] = {}
        for f in case["findings"]:
            key, true = (f["probe"], f["cause"]), f["cause"] in case["planted"]
            effect = -1.0 if f["effect"] is None else f["effect"]
            if true and (f["label"] is None or f["label"] in case["labels"] or not case["labels"]):
                here[key] = max(here.get(key, -1.0), effect)
            elif not true and f["cause"] not in own.get(case["seed"], ()):
                elsewhere[key] = max(elsewhere.get(key, -1.0), effect)
        planted_ = {key: min(planted_.get(key, 1.0), here.get(key, 1.0)) for key in (*planted_, *here)}
    masks = all(_masked(case) for case in cases)
    rows = [
        (*key, *(f"{side[key]:.3f}" if key in side else "" for side in (elsewhere, planted_)), f"{least(*key, masks):g}")
        for key in dict.fromkeys((*elsewhere, *planted_))
    ]
    columns = ("probe", "cause", "not planted, at most", "planted, at least", "threshold")
    console.print(table(columns, rows, left=("probe", "cause")))


def show_gaps(gaps: Sequence[dict[str, Any]]) -> None:
    """What each prescription closed of the gap, and what it costs where nothing was to be mended."""
    wide = [case for case in gaps if case["oracle"] - case["before"] > LEAST_GAP]
    lines: list[tuple[str, ...]] = []
    for case in gaps:
        closes = [f"{_closed(case, arm):+.2f}" if case in wide else "–" for arm in ("after", "generic", "random")]
        given = f"{case['prescribed']['edit']} ({case['prescribed']['cause']})" if case["prescribed"] else "none"
        lost = f"{100 * _lost(case, 'after'):+.1f}" if "clean" in case else ""
        figures = (f"{case['before']:.1%}", f"{case['oracle']:.1%}", given, *closes, lost)
        lines.append((f"{case['kind']} {case['strength']:g} {case['seed']}", *figures))
    columns = (
        "case",
        "before",
        "without the plant",
        "prescribed",
        "gap closed",
        "TrivialAugment + Cutout",
        "random",
        "clean, points lost",
    )
    console.print(table(columns, lines, left=("case", "prescribed")))
    right = [case["prescribed"]["cause"] in case["planted"] for case in gaps if case["prescribed"]]
    console.print(f"first prescription of a planted cause: {sum(right)} of {len(right)} prescriptions, {len(gaps)} cases")
    for arm in ("after", "generic", "random"):
        console.print(f"gap closed, {arm}: {mean_of([_closed(case, arm) for case in wide])}")
    console.print(f"gap closed, after − generic: {mean_of([_closed(c, 'after') - _closed(c, 'generic') for c in wide])}")
    told = [case for case in gaps if "clean" in case]
    for arm in ("after", "generic", "random") if told else ():
        console.print(f"points lost on clean images, {arm}: {mean_of([100 * _lost(case, arm) for case in told])}")


def _closed(case: dict[str, Any], arm: str) -> float:
    return float((case[arm] - case["before"]) / (case["oracle"] - case["before"]))


def _lost(case: dict[str, Any], arm: str) -> float:
    return float(case["clean"]["before"] - case["clean"][arm])


def mean_of(values: Sequence[float]) -> str:
    """The mean with Student's interval."""
    if len(values) < 2:
        return f"n = {len(values)}"
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error
    return f"{mean:.2f} (95 % interval {mean - half:.2f} to {mean + half:.2f}), n = {len(values)}"


def a_line_each(cases: dict[str, Any]) -> str:
    """JSON with a case a line: a change of one shows as one."""
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(case)}" for key, case in cases.items()) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=["diagnose", "gap"], choices=["diagnose", "gap", "show"])
    parser.add_argument("--on", default="planted", choices=list(GROUNDS))
    parser.add_argument("--kinds", default=",".join(PLANTS))
    parser.add_argument("--strengths", default="0.9")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--nulls", type=int, default=20, help="runs of each of the nulls")
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--json", type=Path, default=Path("plantbench.json"))
    options = parser.parse_args()
    ground = GROUNDS[options.on]
    cases: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}

    def once(work: Callable[..., dict[str, Any]], name: str, kind: str, strength: float, seed: int) -> None:
        key = f"{ground.prefix}{name} {kind} {strength:g} {seed}"
        if key not in cases:
            cases[key] = {"on": options.on, **work(ground, kind, strength, seed, options.runs)}
            options.json.write_text(a_line_each(cases))
            console.print(f"{key}: {[c['id'] for c in cases[key]['causes']] if name == 'diagnose' else cases[key]}")

    strengths = [float(s) for s in options.strengths.split(",")]
    kinds = [kind for kind in options.kinds.split(",") if kind]
    if options.sections == ["show"]:
        show(cases)
        return
    for seed in range(options.first_seed, options.first_seed + max(options.seeds, options.nulls)):
        for strength in strengths:
            for kind in kinds if seed < options.first_seed + options.seeds else []:
                if "diagnose" in options.sections:
                    once(diagnosed, "diagnose", kind, strength, seed)
                if "gap" in options.sections:
                    once(gap, "gap", kind, strength, seed)
        for kind in NULLS if "diagnose" in options.sections and seed < options.first_seed + options.nulls else []:
            once(diagnosed, "diagnose", kind, strengths[0], seed)
    show(cases)


if __name__ == "__main__":
    main()
