"""The report: seconds and memory to build it, its size, and how fast a browser shows and filters it.

    python benchmarks/report.py [--cases cifar10,large] [--rounds 3] [--runs runs/report] [--json report.json]

    cifar10   10,000 predictions of 10 classes, 750 of them wrong, images of 32×32 pixels: the real ones where SIGHTLINE_DATA is
              set, else generated ones
    large     100,000 predictions of 200 classes, 25,000 of them wrong, generated images of 64×64 pixels, 1.2 GB in a file

Both are finished runs of a ResNet-18 that was never trained, with invented predictions and heatmaps (three of 7×7 cells for each
mistake, all judged); a report takes as long as of a trained one. Generated images have what makes photographs large: amplitudes
that fall with 1/frequency (Field 1987, https://doi.org/10.1364/JOSAA.4.002379), colours that go together, and a sensor's noise.

A report is built in a process of its own, from start to end: Python, imports, the data set's check (its SHA-256) and, for the
real CIFAR-10, reading it. Its memory is sampled every 10 ms: what the process has for itself; pages of the mapped image file,
which the system takes away when it needs room, are in the peak of the resident set alone.

Headless Chromium then opens the page: first paint is "first-contentful-paint" of the performance API, "ready" when the gallery
can be used; a change is the time from the event to the end of the next frame, the median of the rounds, and the largest of the
changes of a kind is told. Axe's
rules with serious or critical findings are counted. Needs Debian's chromium, playwright and axe-playwright-python; without them
those rows are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SHOWN = 500
BASES = 4000  # generated images that aren't another one moved
CHANGES = {  # what is changed in the page: the fields of the form, and the values that they get
    "filters": {
        "true": "13579",
        "predicted": "02468",
        "sure": ("0.9", "0.5", "0"),
        "q": ("a", "1", "test/3"),
        "trust": ("weak",),
    },
    "orders": {"sort": ("margin", "sure", "trust", "loss")},
    "pictures": {"of": ("true", "margin", "predicted"), "opacity": ("0.9", "0.5"), "threshold": ("0.3", "0"), "cells": "10"},
}
LIMITS = {
    "cifar10": {"seconds": 8.0, "megabytes": 3.0, "memory": None, "first_paint": 1000.0, "filters": 50.0, "axe": 0},
    "large": {"seconds": 30.0, "megabytes": 5.0, "memory": 1000.0, "first_paint": 1000.0, "filters": 50.0, "axe": 0},
}
NAMES = {
    "seconds": "seconds to build",
    "megabytes": "file, MB",
    "memory": "memory, MB",
    "resident": "peak of the resident set, MB",
    "first_paint": "first paint, ms",
    "ready": "ready, ms",
    "filters": "a filter, ms (largest)",
    "orders": "an order, ms (largest)",
    "pictures": "a change of the pictures, ms (largest)",
    "axe": "axe: serious or critical",
}


@dataclass(frozen=True)
class Case:
    """A run to report. wrong: how many of its `n` predictions are."""

    name: str
    n: int
    wrong: int
    classes: int
    side: int


CASES = {case.name: case for case in (Case("cifar10", 10_000, 750, 10, 32), Case("large", 100_000, 25_000, 200, 64))}


# --- finished runs


def photos(n: int, side: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Noise like photographs, (n, side, side, 3) uint8; it is periodic, so that moved ones are as good."""
    y, x = np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")
    fall = 1 / np.maximum(np.hypot(y, x), 1 / side)
    fall[0, 0] = 0
    grey, *colours = (
        np.fft.irfft2(np.fft.rfft2(random.normal(size=(n, side, side)).astype(np.float32)) * fall, s=(side, side))
        for _ in range(4)
    )
    spread = 50 / np.array([map_.std() for map_ in (grey, *colours)])
    planes = [spread[0] * grey + 0.3 * scale * colour for scale, colour in zip(spread[1:], colours, strict=True)]
    noisy = np.stack(planes, -1) + random.normal(scale=3, size=(n, side, side, 3)) + random.uniform(80, 170, (n, 1, 1, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def write_images(path: Path, case: Case) -> None:
    """Write the images of a case as an .npy file, which is mapped rather than read."""
    random = np.random.default_rng(0)
    bases = photos(min(case.n, BASES), case.side, random)
    part = path.with_suffix(".part")
    images = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(case.n, case.side, case.side, 3))
    for start in range(0, case.n, len(bases)):
        moved = np.roll(bases, random.integers(0, case.side, 2), (1, 2))
        images[start : start + len(bases)] = moved[: case.n - start]
    images.flush()
    part.rename(path)


def logits_of(labels: NDArray[np.int64], case: Case, random: np.random.Generator) -> NDArray[np.float32]:
    """Logits that are wrong about `case.wrong` images, more often for classes that are near."""
    logits = random.normal(scale=0.5, size=(case.n, case.classes)).astype(np.float32)
    rows = np.arange(case.n)
    logits[rows, labels] += 6
    wrong = random.choice(case.n, case.wrong, replace=False)
    others = (labels[wrong] + 1 + np.minimum(random.geometric(0.3, case.wrong), case.classes - 1) - 1) % case.classes
    others = np.where(others == labels[wrong], (others + 1) % case.classes, others)
    logits[wrong, others] = logits[wrong].max(1) + random.exponential(2, case.wrong)
    return logits


def dataset_of(case: Case, folder: Path) -> Any:
    """The case's data: the real CIFAR-10, or mapped images with labels that go round."""
    from sightline import datasets

    if is_real(case):
        return datasets.load("cifar10")
    path = folder / "images.npy"
    if not path.exists():
        write_images(path, case)
    images = np.load(path, mmap_mode="r")
    classes = tuple(f"class {i}" for i in range(case.classes))
    labels = np.arange(case.n) % case.classes
    test = datasets.Split(images, labels, classes, tuple(f"test/{i}" for i in range(case.n)))
    few = slice(0, case.classes)
    train = datasets.Split(images[few], labels[few], classes, tuple(f"train/{i}" for i in range(case.classes)))
    return datasets.Dataset(str(folder / "images"), train, test)


def home(case: Case, runs: Path) -> Path:
    return runs.absolute() / (f"{case.name}-real" if is_real(case) else case.name)


def is_real(case: Case) -> bool:
    return case.name == "cifar10" and bool(os.environ.get("SIGHTLINE_DATA"))


def make(case: Case, folder: Path) -> Path:
    """Make the case's finished run in folder/run, unless it is there."""
    run = folder / "run"
    if (run / "run.json").exists():
        return run
    import torch

    from sightline import models, runs
    from sightline.recipe import RECIPES
    from sightline.runs import Predictions

    run.mkdir(parents=True, exist_ok=True)
    data, random = dataset_of(case, folder), np.random.default_rng(1)
    torch.manual_seed(0)
    recipe = RECIPES["classic"]
    model = models.build(recipe.model, classes=case.classes)
    runs.write_weights(run, model)
    logits = logits_of(data.test.labels, case, random)
    predictions = Predictions.from_logits(logits, data.test.labels, data.test.ids, data.classes, "test")
    predictions.write(run)
    write_maps(run, predictions, random)
    right = float((predictions.predicted == predictions.labels).mean())
    row = {**dict.fromkeys(runs.history_columns("test"), 0.5), "test_accuracy": right}
    rows = [{**row, "epoch": epoch + 1.0} for epoch in range(recipe.epochs)]
    runs.write_history(run, rows)
    info = {
        "recipe": recipe.to_dict(),
        "seed": 0,
        "precision": "fp32",
        "device": "cpu",
        "data": {
            "name": data.name,
            "hash": data.content_hash,
            "classes": list(data.classes),
            "shape": list(data.test.images.shape[1:]),
            "n_train": len(data.train),
            "n_test": len(data.test),
            "skipped": [],
            **data.options,
        },
        "normalisation": {"mean": [0.5] * 3, "std": [0.25] * 3},
        "arithmetic": {"dtype": "float32", "channels_last": True, "compiled": False},
        "max_lr": 0.01,
        "range_tests": [],
        "parameters": sum(p.numel() for p in model.parameters()),
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__},
        "results": {**rows[-1], "n_test": len(data.test), "seconds": 1.0},
    }
    runs.finish(run, info)
    return run


def write_maps(run: Path, predictions: Any, random: np.random.Generator) -> None:
    """Three judged maps of 7×7 cells for each mistake."""
    from sightline import runs

    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    n = len(wrong)
    arrays = {
        "raw": random.normal(size=(n, 3, 7, 7)).astype(np.float32),
        "scores": np.zeros((n, 3), np.float32),
        "completeness": np.zeros((n, 3), np.float32),
        "verdicts": random.choice(["supported", "weak", "no evidence"], (n, 3)),
        "effects": random.uniform(-0.5, 0.9, (n, 3)).astype(np.float32),
    }
    parts = runs.MapParts(run)
    parts.add(arrays, layer="layer3", method="Grad-CAM", precision="fp32")
    parts.finish([predictions.ids[i] for i in wrong], ("predicted", "true", "margin"))


# --- building, in a process of its own


@contextmanager
def sampled() -> Iterator[dict[str, float]]:
    """The peak of what the process has for itself inside of the block, in MB, as "memory"; {} where the system doesn't tell."""
    peak: dict[str, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    peak["memory"] = max(peak.get("memory", 0.0), int(line.split()[1]) * 1024 / 1e6)

    thread = threading.Thread(target=watch, daemon=True)
    if Path("/proc/self/status").exists():
        thread.start()
    yield peak
    done.set()
    if thread.is_alive():
        thread.join()


def child(case: Case, folder: Path) -> None:
    """Build the report, and print what it took as JSON."""
    with sampled() as peak:
        from sightline import reporting
        from sightline.runs import Run

        run = Run.open(folder / "run")
        # Generated images have no loader; a run on real ones finds them by itself.
        path = reporting.report(run, None if is_real(case) else dataset_of(case, folder), n=SHOWN)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    print(json.dumps({"megabytes": path.stat().st_size / 1e6, "resident": resident, **peak}))


def built(case: Case, folder: Path, rounds: int) -> dict[str, float]:
    """Build the report `rounds` times: the median of the seconds, the largest of the rest."""
    seconds, told = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        command = [sys.executable, __file__, "--child", case.name, "--runs", str(folder.parent)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        told.append(json.loads(done.stdout.splitlines()[-1]))
    return {"seconds": statistics.median(seconds), **{key: max(one[key] for one in told) for key in told[0]}}


# --- in the browser

READY = """new MutationObserver((_, watcher) => {
  if (document.documentElement?.dataset.ready) { window.readyAt = performance.now(); watcher.disconnect(); }
}).observe(document, { attributes: true, subtree: true, attributeFilter: ["data-ready"] })"""
CHANGE = """async ([name, value]) => {
  const field = document.getElementById("controls").elements[name];
  if (!field) return null;
  if (field.type === "checkbox") field.checked = value === "1";
  else field.value = value;
  const start = performance.now();
  field.dispatchEvent(new Event("input", { bubbles: true }));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}"""


def shown(path: Path, rounds: int) -> dict[str, float]:
    """Open the page `rounds` times: medians of the first paint and of ready, and of each change; of a kind's the largest."""
    if not CHROMIUM.exists() or find_spec("playwright") is None:
        return {}
    from playwright.sync_api import sync_playwright

    opened: list[dict[str, float]] = []
    times: list[dict[str, list[float]]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        for _ in range(rounds):
            page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")  # no scrolling meanwhile
            page.add_init_script(READY)
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready]", state="attached")
            page.wait_for_timeout(500)
            paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            opened.append({"first_paint": paint, "ready": page.evaluate("window.readyAt")})
            times.append(changed(page))
            page.close()
        findings = serious(browser, path)
        browser.close()
    medians = {key: statistics.median(one[key] for one in opened) for key in ("first_paint", "ready")}
    changes = {kind: list(map(statistics.median, zip(*(one[kind] for one in times), strict=True))) for kind in CHANGES}
    return {**medians, **{kind: max(some) for kind, some in changes.items()}, **findings}


def changed(page: Any) -> dict[str, list[float]]:
    """The times of each kind of change, in ms, with the gallery on the screen."""
    page.evaluate("document.getElementById('cards').scrollIntoView()")
    page.wait_for_timeout(300)
    found: dict[str, list[float]] = {}
    for kind, fields in CHANGES.items():
        times = []
        for name, values in fields.items():
            times += [page.evaluate(CHANGE, [name, value]) for value in values]
            if kind == "filters":
                times.append(page.evaluate(CHANGE, [name, ""]))
        found[kind] = [time_ for time_ in times if time_ is not None]
    return found


def serious(browser: Any, path: Path) -> dict[str, float]:
    """How many of axe's rules find something serious or critical, light and dark, on a phone and on a wide screen."""
    if find_spec("axe_playwright_python") is None:
        return {}
    from axe_playwright_python.sync_playwright import Axe

    found: set[str] = set()
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    for scheme in ("light", "dark"):
        for width in (390, 1280):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 900})
            violations = Axe().run(page).response["violations"]
            found |= {rule["id"] for rule in violations if rule["impact"] in ("serious", "critical")}
    return {"axe": len(found)}


# --- the table


def rows_of(name: str, figures: dict[str, float]) -> Iterator[tuple[str, str, str, str, str]]:
    for key, words in NAMES.items():
        if key not in figures:
            continue
        value, limit = figures[key], LIMITS[name].get(key)
        verdict = "" if limit is None else "within" if value <= limit else "above"
        yield name, words, f"{value:.3g}" if value < 100 else f"{value:.0f}", "" if limit is None else f"{limit:g}", verdict


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="cifar10,large")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/report"))
    parser.add_argument("--json", type=Path, default=Path("report.json"))
    parser.add_argument("--child", choices=tuple(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(CASES[options.child], home(CASES[options.child], options.runs))
        return
    import torch
    from rich.console import Console

    from sightline.precision import machine
    from sightline.terminal import table

    results: dict[str, Any] = {"machine": machine(torch.device("cpu")), "rounds": options.rounds, "limits": LIMITS}
    for name in options.cases.split(","):
        folder = home(CASES[name], options.runs)
        run = make(CASES[name], folder)
        results[name] = {"real images": is_real(CASES[name]), **built(CASES[name], folder, options.rounds)}
        results[name] |= shown(run / "report.html", options.rounds)
    console = Console()
    rows = [row for name in CASES if name in results for row in rows_of(name, results[name])]
    console.print(table(("case", "what", "measured", "limit", ""), rows, left=("case", "what", "")))
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(f"Written to {options.json}.")


if __name__ == "__main__":
    main()
