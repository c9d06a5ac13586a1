"""May a verdict on a heatmap be believed? Maps whose worth is known, on generated scenes with known objects.

    python benchmarks/trust.py [--n 60] [--runs runs/trust] [--json trust.json]

Trains three nets with the recipe "small" (about 30 s each on two cores; a second run finds them in --runs): on clean scenes,
on scenes where a mark goes with one class, and on clean scenes with shuffled labels. Judges maps that should pass and maps
that shouldn't, measures how much of the mark each net's maps light up, where the maps of each method lie, and how they change as
the net loses its weights. The threshold SUPPORTED is chosen on every other image, verdicts are counted on the rest. Prints
tables and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from scipy import ndimage, stats
from torch import Tensor, nn

from sightline.datasets import Dataset, Split
from sightline.exceptions import RecipeError, RunError
from sightline.faithfulness import SUPPORTED, Estimate, energy_inside, judge, pointing_game, randomisation, stability
from sightline.heatmaps import METHODS, Heatmaps, Margin
from sightline.mistakes import wilson
from sightline.models import Normalise, build, to_device
from sightline.planted import Plant, marked, plant_of, planted
from sightline.runs import Run
from sightline.terminal import table
from sightline.training import train

Maps = NDArray[np.float32]
VERDICTS = ("supported", "weak", "no evidence")
MISSES, UNTRAINED, UNSEEN = "another image's map that misses", "random weights", "mark, net that never saw it"
# What the threshold is chosen by. A net with shuffled labels is no such control: it reads something too, and a map may show what.
NEGATIVE = (MISSES, UNTRAINED, UNSEEN)
FALSE_SUPPORT = 0.05  # the share of each that may pass


class Case(NamedTuple):
    """Maps to be judged: what `judge` needs."""

    model: nn.Module
    images: Tensor
    raw: Maps
    cotangents: Tensor


def the_mark() -> Plant:
    plant = plant_of("planted")
    assert plant is not None
    return plant


def trained(name: str, data: Dataset, runs: Path) -> nn.Module:
    """The net of a finished run in `runs`, trained first if there is none."""
    try:
        run = Run.open(runs / name)
    except RunError:
        run = train(data, runs / name, recipe="small")
    return run.model().eval()


def shuffled(data: Dataset) -> Dataset:
    """The same scenes with labels that mean nothing."""
    labels = np.random.default_rng(0).permutation(data.train.labels)
    return replace(data, name="planted:shuffled", train=replace(data.train, labels=labels))


def maps_of(model: nn.Module, images: Tensor, targets: Any, method: str = "gradcam") -> Maps:
    with Heatmaps(model) as heatmaps:
        return heatmaps(images, targets, method).raw


def top_two(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        first, second = model(images).topk(2).indices.unbind(1)
    return first, second


def own_maps(model: nn.Module, images: Tensor, method: str = "gradcam") -> Case:
    """The maps of the predicted classes."""
    first, _ = top_two(model, images)
    return Case(model, images, maps_of(model, images, first, method), F.one_hot(first, 10).float())


def margin_maps(model: nn.Module, images: Tensor) -> Case:
    """The maps of the predicted class against the runner-up."""
    first, second = top_two(model, images)
    cotangents = F.one_hot(first, 10).float() - F.one_hot(second, 10).float()
    return Case(model, images, maps_of(model, images, Margin(first, second)), cotangents)


def edges(images: Tensor) -> Maps:
    """The brightness's gradient by Sobel's filters, softened to the size of a map's cell."""
    grey = images.mean(1).numpy()
    strength = np.hypot(ndimage.sobel(grey, 1), ndimage.sobel(grey, 2))
    soft: Maps = ndimage.gaussian_filter(strength, (0, 2, 2)).astype(np.float32)
    return soft


def centre(images: Tensor) -> Maps:
    y, x = np.mgrid[: images.shape[2], : images.shape[3]] + 0.5
    distance = np.hypot(y - images.shape[2] / 2, x - images.shape[3] / 2).astype(np.float32)
    maps: Maps = np.repeat(distance.max() - distance[None], len(images), 0)
    return maps


def with_mark(split: Split, donor: Split) -> Split:
    """Paste the mark of the data set "planted" on all images of `split`."""
    top, left, height, width = the_mark().box
    rows, columns = slice(top, top + height), slice(left, left + width)
    images = split.images.copy()
    images[:, rows, columns] = donor.images[marked(donor)][0, rows, columns]
    return replace(split, images=images)


def mark_map(images: Tensor) -> Maps:
    """A map that points at the mark's place, whatever the image."""
    top, left, height, width = the_mark().box
    y, x = np.mgrid[: images.shape[2], : images.shape[3]] + 0.5
    distance = np.hypot(y - top - height / 2, x - left - width / 2).astype(np.float32)
    maps: Maps = np.repeat(distance.max() - distance[None], len(images), 0)
    return maps


def misses(raw: Maps, masks: NDArray[np.bool_]) -> Maps:
    """For each image the next one's map that has less of its energy on this image's object than chance gives."""
    chosen = []
    for i, mask in enumerate(masks):
        energy = energy_inside(raw, np.repeat(mask[None], len(raw), 0))
        chosen.append(next(j % len(raw) for j in range(i + 1, i + len(raw)) if energy[j % len(raw)] < mask.mean()))
    return raw[chosen]


def cases(nets: dict[str, nn.Module], images: Tensor, pasted: Tensor, masks: NDArray[np.bool_]) -> dict[str, Case]:
    """Maps that should be believed, and maps that shouldn't."""
    own = own_maps(nets["clean"], images)
    star = F.one_hot(torch.full((len(images),), the_mark().label), 10).float()
    return {
        "own map": own,
        "own map, HiResCAM": own_maps(nets["clean"], images, "hirescam"),
        "own margin map": margin_maps(nets["clean"], images),
        "another image's map": own._replace(raw=np.roll(own.raw, 1, 0)),
        MISSES: own._replace(raw=misses(own.raw, masks)),
        "Sobel map": own._replace(raw=edges(images)),
        "centre map": own._replace(raw=centre(images)),
        UNTRAINED: own_maps(nets["random"], images),
        "shuffled labels": own_maps(nets["shuffled"], images),
        "mark, net that learned it": Case(nets["marked"], pasted, mark_map(pasted), star),
        UNSEEN: Case(nets["clean"], pasted, mark_map(pasted), star),
    }


def calibrate(lows: NDArray[np.float64]) -> float:
    """The lowest threshold, in hundredths, that no more than FALSE_SUPPORT of a control's maps pass; lows (N, fills)."""
    return max(0, math.ceil(100 * float(np.quantile(lows.min(1), 1 - FALSE_SUPPORT)))) / 100


def bootstrap(values: NDArray[np.float64]) -> list[float]:
    """Mean and 95 % percentile interval over images."""
    found = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
    return [float(values.mean()), *map(float, found.confidence_interval)]


def judged(found: dict[str, Case], pool: Tensor) -> tuple[dict[str, Any], dict[str, float]]:
    """Shares of the verdicts on every second image, and the threshold that each control gives on the others."""
    trusts = {name: judge(*case, pool=pool) for name, case in found.items()}
    thresholds = {name: calibrate(trusts[name].deletion.low[::2]) for name in NEGATIVE}
    shares: dict[str, Any] = {}
    for name, trust in trusts.items():
        verdicts, n = trust.verdicts[1::2], len(trust.verdicts[1::2])
        shares[name] = {verdict: [verdicts.count(verdict) / n, *wilson(verdicts.count(verdict), n)] for verdict in VERDICTS}
        shares[name]["n"], shares[name]["effect"] = n, trust.deletion.mean[1::2].mean(0).tolist()
    return shares, thresholds


def lit_marks(nets: dict[str, nn.Module], pasted: Tensor, labels: NDArray[np.int64]) -> dict[str, list[float]]:
    """The share of the maps' positive part on the mark, and what the net that learned it adds to the mark's mere contrast."""
    star = the_mark().label
    others, true = pasted[labels != star], torch.from_numpy(labels[labels != star])
    box = np.zeros((len(others), *pasted.shape[2:]), bool)
    top, left, height, width = the_mark().box
    box[:, top : top + height, left : left + width] = True
    maps = {
        (net, which): maps_of(nets[net], others, t)
        for net in ("clean", "marked")
        for which, t in (("star", star), ("true", true))
    }
    shares = {key: np.nan_to_num(energy_inside(raw, box)) for key, raw in maps.items()}
    figures = {f"{which} class, {net} net": bootstrap(shares[net, which]) for net, which in shares}
    for which in ("star", "true"):
        figures[f"{which} class, more in the marked net"] = bootstrap(shares["marked", which] - shares["clean", which])
    return {"chance": [float(box.mean())] * 3, **figures}


def placed(model: nn.Module, images: Tensor, labels: Tensor, masks: NDArray[np.bool_]) -> dict[str, Any]:
    """Energy inside the object's mask and the pointing game for the true class, by method."""
    rows: dict[str, Any] = {}
    for method in METHODS:
        try:
            raw = maps_of(model, images, labels, method)
        except RecipeError as error:  # a method may be for other nets
            rows[method] = {"error": str(error)}
            continue
        energy, hits = energy_inside(raw, masks), pointing_game(raw, masks)
        low, high = wilson(round(float(hits.sum())), len(hits))
        rows[method] = {"energy": bootstrap(energy[~np.isnan(energy)]), "pointing": [float(hits.mean()), low, high]}
    return rows


def staged(stages: Iterable[str], estimate: Estimate) -> dict[str, list[float]]:
    return {stage: [float(x) for x in row] for stage, row in zip(stages, np.stack(estimate, 1), strict=True)}


def show(console: Console, title: str, figures: dict[str, list[float]]) -> None:
    rows = [(name, f"{mean:.3f}", f"{low:.3f}", f"{high:.3f}") for name, (mean, low, high) in figures.items()]
    console.print(table((title, "mean", "low", "high"), rows, left=(title,)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--runs", type=Path, default=Path("runs/trust"))
    parser.add_argument("--json", type=Path, default=Path("trust.json"))
    options = parser.parse_args()
    clean, mark = planted("planted:clean"), planted("planted")
    nets = {
        "clean": trained("clean", clean, options.runs),
        "marked": trained("marked", mark, options.runs),
        "shuffled": trained("shuffled", shuffled(clean), options.runs),
    }
    torch.manual_seed(0)
    nets["random"] = build("smallnet", classes=10).eval()
    normalise = Normalise(*clean.normalisation)
    everything = normalise(to_device(clean.test.images))
    images, pool = everything[: options.n], everything[options.n :]
    assert clean.test.masks is not None
    labels, masks = clean.test.labels[: options.n], clean.test.masks[: options.n]
    pasted = normalise(to_device(with_mark(clean.test, mark.test).images[: options.n]))

    shares, thresholds = judged(cases(nets, images, pasted, masks), pool)
    lit = lit_marks(nets, pasted, labels)
    methods = placed(nets["clean"], images, torch.from_numpy(labels), masks)
    predicted, _ = top_two(nets["clean"], images)
    scrambled = randomisation(nets["clean"], images, lambda model, x: maps_of(model, x, predicted))
    noisy = stability(nets["clean"], images, lambda model, x: maps_of(model, x, predicted))

    console = Console()
    rows = [(name, *(f"{row[v][0]:.0%} ({row[v][1]:.0%}–{row[v][2]:.0%})" for v in VERDICTS)) for name, row in shares.items()]
    console.print(table(("maps", *VERDICTS), rows, left=("maps",)))
    console.print(f"SUPPORTED is {SUPPORTED}; the other half of the images gives {max(thresholds.values())}.")
    show(console, "share of the map on the mark", lit)
    works = {method: row for method, row in methods.items() if "error" not in row}
    chance = float(masks.mean())
    show(console, f"energy inside the object (chance {chance:.3f})", {method: row["energy"] for method, row in works.items()})
    show(console, f"pointing game (chance {chance:.3f})", {method: row["pointing"] for method, row in works.items()})
    show(console, "rank correlation, weights randomised down to", staged(scrambled.stages, scrambled.estimate))
    show(console, "rank correlation under input noise", staged(noisy.stages, noisy.estimate))
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "n": options.n,
        "threshold": {"in use": SUPPORTED, "calibrated": thresholds, "false support allowed": FALSE_SUPPORT},
        "verdicts": shares,
        "mark": lit,
        "methods": {"chance": chance, **methods},
        "randomisation": staged(scrambled.stages, scrambled.estimate),
        "stability": staged(noisy.stages, noisy.estimate),
    }
    options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    console.print(f"Every interval is of 95 %. Written to {options.json}.")


if __name__ == "__main__":
    main()
