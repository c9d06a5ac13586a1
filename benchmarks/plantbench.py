"""PlantBench: are the diagnoses right? Data with known causes, and data with none.

    python benchmarks/plantbench.py [diagnose] [gap] [--kinds mark,tint,…] [--strengths 0.9] [--seeds 3] [--first-seed 0]
        [--nulls 20] [--runs DIR] [--json docs/plantbench.json]

diagnose   a net is trained on each plant, a cause built into the training images, and on the nulls, which have none, and is
           diagnosed: precision, recall and F1 of the causes; false alarms on the nulls; overlap of the place found with the
           mark's true place. Twice: as it stands, and with 1,000 images without labels from where the model is used, which are
           as the test images are, but others; beside it what simpler rules and other tools would have said (rivals.py)
gap        what the first prescription is worth: gap closed = (accuracy after − before) / (trained without the plant − before),
           on a test set where the plant tells nothing; beside it a random prescription, and always TrivialAugment + Cutout

Nets are `fast` at half its width, without flips. Seeds from 100 on were used to set the thresholds of `diagnosis.LEAST`; those
before are for scoring. With --runs, nets are kept in that folder and not trained again. Every case is kept in the JSON file, and
those that it has are not done again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

import rivals
from sightline.augment import RandomCrop
from sightline.datasets import Dataset, hold_out
from sightline.diagnosis import LEAST, Cause, diagnose, holds
from sightline.evaluation import open_test
from sightline.mistakes import false_discovery_rates
from sightline.planted import NULLS, PLANTS, Plant, plant_of, planted, unplanted
from sightline.prescription import edits, generic
from sightline.probes import Subject
from sightline.recipe import Recipe, load_recipe
from sightline.runs import Run
from sightline.terminal import table
from sightline.training import train

console = Console()
FIELD = 10_000  # added to the seed: other images than those of the test
CALIBRATION = 100  # from this seed on, cases only set thresholds
RECIPE = load_recipe("fast").with_(width=0.5, augment=(RandomCrop(2),))  # no flip: `direction` is to be missed


def accuracy_on_test(run: Run, data: Dataset) -> float:
    """On the test images, where the plant tells nothing."""
    predictions = open_test(run, data)
    return float((predictions.predicted == predictions.labels).mean())


def make(kind: str, strength: float, seed: int) -> tuple[Dataset, Plant | None]:
    """The data of a case, a tenth of the training images held out, and what is planted in them."""
    name = f"planted:{kind}"
    return hold_out(planted(name, seed=seed, strength=strength), 0.1), plant_of(name)


def in_the_field(kind: str, strength: float, seed: int) -> NDArray[np.uint8]:
    """Images as the test's are, but others: (1000, H, W, 3)."""
    return planted(f"planted:{kind}", seed=seed + FIELD, strength=strength, n_train=10).test.images


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


def diagnosed(kind: str, strength: float, seed: int, runs: Path | None) -> dict[str, Any]:
    """Train on a case, diagnose, and keep what was found."""
    data, plant = make(kind, strength, seed)
    with kept(runs) as folder:
        run = trained(data, folder / f"{kind}-{strength:g}-{seed}", RECIPE, seed)
        found = diagnose(run, data, field=in_the_field(kind, strength, seed))
        findings = [
            {key: f[key] for key in ("probe", "cause", "label", "effect", "p")} for f in found.findings if f["cause"] in LEAST
        ]
        subject = Subject.of(run, data)
        maps = subject.heatmaps()
        return {
            "kind": kind,
            "strength": strength,
            "seed": seed,
            "planted": list(plant.causes) if plant else [],
            "labels": list(plant.labels) if plant else [],
            "causes": [{"id": c.id, "classes": list(c.classes), "effect": c.effect, "kind": c.kind} for c in found.causes],
            "overlap": overlap(found.causes, plant),
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


def overlap(causes: Iterable[Cause], plant: Plant | None) -> float | None:
    """Intersection over union of the place found and the mark's true place; None without a mark to find, 0 if it isn't found."""
    if plant is None or plant.box is None or not plant.causes:
        return None
    shares = [_iou(cause.detail["box"], plant.box) for cause in causes if cause.id == "mark"]
    return max(shares, default=0.0)


def _iou(a: Sequence[int], b: Sequence[int]) -> float:
    height = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    width = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(height, 0) * max(width, 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def gap(kind: str, strength: float, seed: int, runs: Path | None) -> dict[str, Any]:
    """The accuracy on the test images without the plant, before and after each prescription."""
    data, plant = make(kind, strength, seed)
    without = hold_out(unplanted(f"planted:{kind}", seed=seed), 0.1)
    with kept(runs) as folder:

        def arm(name: str, recipe: Recipe, on: Dataset = data) -> tuple[Run, float]:
            run = trained(on, folder / f"gap-{kind}-{strength:g}-{seed}-{name}", recipe, seed + 1000)
            return run, accuracy_on_test(run, on)

        run, before = arm("before", RECIPE)
        _, oracle = arm("oracle", RECIPE, without)
        causes = diagnose(run, data, field=in_the_field(kind, strength, seed)).causes
        first = next((edit for cause in causes for edit in edits(cause, RECIPE)), None)
        every = [edit for cause in LEAST for edit in edits(_any(cause), RECIPE)]
        drawn = random.Random(f"{kind} {seed}").choice(every)
        return {
            "kind": kind,
            "strength": strength,
            "seed": seed,
            "planted": list(plant.causes) if plant else [],
            "before": before,
            "oracle": oracle,
            "prescribed": None if first is None else {"cause": first.cause, "edit": first.name},
            "after": before if first is None else arm("after", first.apply(RECIPE))[1],
            "generic": arm("generic", generic(RECIPE))[1],
            "random": arm("random", drawn.apply(RECIPE))[1],
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
    findings = [f for f in case["findings"] if field or f["probe"] != "field"]
    rates = false_discovery_rates(np.array([f["p"] for f in findings]))
    return {f["cause"] for f, q in zip(findings, rates, strict=True) if holds(f["probe"], f["cause"], f["effect"], float(q))}


def by_rival(case: dict[str, Any], name: str) -> set[str]:
    return set(case["rivals"][name])


def show(cases: dict[str, Any]) -> None:
    """The tables of what the file has."""
    diagnoses = [case for key, case in cases.items() if key.startswith("diagnose ") and case["seed"] < CALIBRATION]
    if diagnoses:
        kinds = list(dict.fromkeys(case["kind"] for case in diagnoses))
        rows = []
        for kind in kinds:
            own = [case for case in diagnoses if case["kind"] == kind]
            true = set(own[0]["planted"])
            found = [by_diagnosis(case, field=False) for case in own]
            with_field = [by_diagnosis(case, field=True) for case in own]
            others = sorted({cause for some in found for cause in some - true})
            hits, more = (sum(true <= f if true else not f for f in some) for some in (found, with_field))
            places = [case["overlap"] for case in own if case["overlap"] is not None]
            place = f"{statistics.fmean(places):.2f}" if places else ""
            drop = statistics.fmean(case["dev_accuracy"] - case["test_accuracy"] for case in own)
            true_names, named = ", ".join(sorted(true)) or "none", (f"{hits}/{len(own)}", f"{more}/{len(own)}")
            rows.append((kind, true_names, *named, ", ".join(others), place, f"{100 * drop:.1f}"))
        columns = ("plant", "planted", "named", "with field", "also named", "place, IoU", "dev − test, points")
        console.print(table(columns, rows, left=("plant", "planted", "also named")))
        rules: dict[str, Callable[[dict[str, Any]], set[str]]] = {
            "diagnose": partial(by_diagnosis, field=False),
            "diagnose, with images from the field": partial(by_diagnosis, field=True),
            **{name: partial(by_rival, name=name) for name in diagnoses[0]["rivals"]},
        }
        scored = {name: scores(diagnoses, rule) for name, rule in rules.items()}
        keys = ("precision", "recall", "f1", "false_alarms")
        drawn = [(name, *(f"{v[key]:.2f}" for key in keys), v["cases"], v["nulls"]) for name, v in scored.items()]
        console.print(table(("rule", *keys, "plants", "nulls"), drawn, left=("rule",)))
    gaps = [case for key, case in cases.items() if key.startswith("gap ")]
    if gaps:
        lines: list[tuple[str, ...]] = []
        for case in gaps:
            width = case["oracle"] - case["before"]
            arms = ("after", "generic", "random")
            closed = [f"{(case[arm] - case['before']) / width:+.2f}" if width > 0.01 else "–" for arm in arms]
            given = f"{case['prescribed']['edit']} ({case['prescribed']['cause']})" if case["prescribed"] else "none"
            accuracies = (f"{case['before']:.1%}", f"{case['oracle']:.1%}")
            lines.append((f"{case['kind']} {case['seed']}", *accuracies, given, *closed))
        columns = ("case", "before", "without the plant", "prescribed", "gap closed", "TrivialAugment + Cutout", "random")
        console.print(table(columns, lines, left=("case", "prescribed")))
        wide = [case for case in gaps if case["oracle"] - case["before"] > 0.01]
        for arm in ("after", "generic", "random"):
            values = [(case[arm] - case["before"]) / (case["oracle"] - case["before"]) for case in wide]
            console.print(f"gap closed, {arm}: mean {np.mean(values):.2f}, n = {len(values)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=["diagnose", "gap"], choices=["diagnose", "gap", "show"])
    parser.add_argument("--kinds", default=",".join(PLANTS))
    parser.add_argument("--strengths", default="0.9")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--nulls", type=int, default=20, help="runs of each of the nulls")
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--json", type=Path, default=Path("plantbench.json"))
    options = parser.parse_args()
    cases: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}

    def once(work: Callable[..., dict[str, Any]], name: str, kind: str, strength: float, seed: int) -> None:
        key = f"{name} {kind} {strength:g} {seed}"
        if key not in cases:
            cases[key] = work(kind, strength, seed, options.runs)
            options.json.write_text(json.dumps(cases, indent=1) + "\n")
            console.print(f"{key}: {[c['id'] for c in cases[key]['causes']] if name == 'diagnose' else cases[key]}")

    strengths = [float(s) for s in options.strengths.split(",")]
    kinds = [kind for kind in options.kinds.split(",") if kind]
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
