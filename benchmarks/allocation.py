"""What it is worth on a CPU to keep freed memory (sightline.allocation): seconds, page faults and peak memory with and without.

    python benchmarks/allocation.py [--only training] [--rounds 3] [--json docs/allocation.json]
    python benchmarks/allocation.py --layers --rounds 12      # what FastNet's layers keep and cost beside torch's

Each turn is a process of its own, which does the work three times to warm up and three times for the figures: two steps of
training (in bfloat16 where the CPU has instructions for it, else in float32; channels last), the heatmaps of 128 images, or what
a model says of 500. Random weights do. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from sightline import lean
from sightline.allocation import kept_memory
from sightline.datasets import Split
from sightline.evaluation import predict
from sightline.heatmaps import Heatmaps
from sightline.models import Normalise, build
from sightline.planted import planted
from sightline.precision import NAMED, has_bfloat16
from sightline.recipe import load_recipe
from sightline.terminal import table
from sightline.training import Learner
from sightline.training.memory import kept_bytes
from sightline.training.optimizers import make_optimizer, set_rate

CPU = torch.device("cpu")


def training(recipe: str, *, torch_s_layers: bool = False) -> Callable[[], None]:
    """Two steps of a recipe; with torch's layers in place of those of sightline.lean, if asked."""
    if torch_s_layers:
        lean.keeps_less = lambda layer, x: False
    chosen, arithmetic = load_recipe(recipe), NAMED["bf16" if has_bfloat16(CPU) else "fp32-channels-last"]
    learner = Learner.make(planted("planted:clean"), chosen, arithmetic, seed=0, device=CPU)
    optimizer = make_optimizer(learner.model, chosen, chosen.batch_size, learner.arithmetic)
    set_rate(optimizer, 1e-3)
    order, stream = torch.arange(2 * chosen.batch_size), torch.Generator().manual_seed(0)

    def steps() -> None:
        for places, images in learner.images.batches(order, chosen.batch_size):
            learner.loss(learner.net, places, images, stream).mean.backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def heatmaps(model: str) -> Callable[[], None]:
    """Grad-CAM of 128 images, a batch of the sweep."""
    images, net = torch.randn(128, 3, 32, 32), build(model, classes=10).eval()

    def explain() -> None:
        with Heatmaps(net) as explained:
            explained(images)

    return explain


def predictions(model: str) -> Callable[[], None]:
    """The logits of 500 images."""
    images = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3), np.uint8)
    split = Split(images, np.zeros(500, np.int64), ("a", "b"), tuple(map(str, range(500))))
    net, normalise = build(model, classes=10), Normalise((0.5,) * 3, (0.25,) * 3, CPU)

    def ask() -> None:
        predict(net, split, normalise, NAMED["fp32"])

    return ask


def layers(rounds: int) -> None:
    """What FastNet keeps of an image for the way back, and a step's seconds, with torch's layers and those of sightline.lean."""
    net, ours = build("fastnet", classes=10).to(memory_format=torch.channels_last), lean.keeps_less
    sides = {"torch's": lambda layer, x: False, "lean": ours}
    kept: dict[str, list[str]] = {side: [] for side in sides}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for side, rule in sides.items():
        lean.keeps_less = rule
        for dtype in (torch.float32, torch.bfloat16):
            with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
                kept[side].append(f"{kept_bytes(lambda n: net(torch.randn(n, 3, 32, 32)))[0] / 1e6:.3f}")
    images, dtype = torch.randn(500, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.bfloat16
    with kept_memory():
        for i in range(rounds + 1):
            for side, rule in list(sides.items())[:: 1 if i % 2 else -1]:
                lean.keeps_less = rule
                start = time.perf_counter()
                with torch.autocast("cpu", dtype, enabled=has_bfloat16(CPU)):
                    logits = net(images)
                logits.logsumexp(1).sum().backward()
                seconds[side].append(time.perf_counter() - start)
    middle = {side: f"{statistics.median(each[1:]):.2f}" for side, each in seconds.items()}  # the first takes its memory
    rows = [(side, *kept[side], middle[side]) for side in sides]
    Console().print(table(("layers", "MB an image, float32", "bfloat16", "seconds of a step"), rows, left=("layers",)))
    ratios = [a / b for a, b in zip(*(each[1:] for each in seconds.values()), strict=True)]
    Console().print(f"ratio of {len(ratios)} pairs: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


WORK: dict[str, Callable[[], Callable[[], None]]] = {
    "training, fast, batch 500": lambda: training("fast"),
    "training, fast, torch's layers": lambda: training("fast", torch_s_layers=True),
    "training, classic (ResNet-18), batch 512": lambda: training("classic"),
    "training, strong (ResNet-18), batch 128": lambda: training("strong"),
    "heatmaps, ResNet-18": lambda: heatmaps("resnet18"),
    "heatmaps, fastnet": lambda: heatmaps("fastnet"),
    "predictions, ResNet-18": lambda: predictions("resnet18"),
    "predictions, fastnet": lambda: predictions("fastnet"),
}


def child(name: str, kept: bool) -> dict[str, float]:
    """Do the work once in this process, after it has warmed up, and return the figures."""
    with kept_memory() if kept else nullcontext():
        work = WORK[name]()
        for _ in range(3):
            work()
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        for _ in range(3):
            work()
        seconds = (time.perf_counter() - start) / 3
        after = resource.getrusage(resource.RUSAGE_SELF)
    faults = (after.ru_minflt - before.ru_minflt) / 3
    return {"seconds": seconds, "faults": faults, "peak_bytes": 1024.0 * after.ru_maxrss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="the work whose name begins so")
    parser.add_argument("--json", type=Path, default=Path("allocation.json"))
    parser.add_argument(
        "--layers", action="store_true", help="instead: what FastNet's layers keep and cost, in turn in one process"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child[0], options.child[1] == "kept")))
        return
    if options.layers:
        layers(options.rounds)
        return
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {"given back": [], "kept": []} for name in WORK if name.startswith(options.only)
    }
    for _ in range(options.rounds):
        for name, sides in found.items():
            for side, results in sides.items():
                command = [sys.executable, __file__, "--child", name, side]
                results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    rows = []
    for name, sides in found.items():
        middle: dict[str, dict[str, Any]] = {
            side: {key: statistics.median(r[key] for r in results) for key in results[0]} for side, results in sides.items()
        }
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(*sides.values(), strict=True)]
        figures = [f"{middle[side][key] / unit:,.{digits}f}" for key, unit, digits in FIGURES for side in middle]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append((name, *figures[:2], ratio, *figures[2:]))
    columns = ("work", "s", "s, kept", "ratio", "faults", "faults, kept", "peak MB", "peak MB, kept")
    Console().print(table(columns, rows, left=("work",)))
    options.json.write_text(json.dumps(found, indent=1) + "\n")


FIGURES = (("seconds", 1, 3), ("faults", 1, 0), ("peak_bytes", 2**20, 0))

if __name__ == "__main__":
    main()
