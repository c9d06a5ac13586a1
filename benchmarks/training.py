"""What training costs here: against the plain stack that Sightline starts from, and against airbench94-muon.

    python benchmarks/training.py                    all but the long ones: throughput, loader, share (ten minutes)
    python benchmarks/training.py SECTION …          some of these:
        [--json docs/training.json] [--rounds 3] [--seeds 3] [--sides fast,fast12,airbench] [--width 0.5] [--data-dir DIR] …

throughput   images/s of ResNet-18: eager float32 with a per-sample Albumentations DataLoader, and Sightline, in turn
loader       images/s of what gives a net its images, of each built-in recipe: whole batches, and Albumentations image by image
share        the share of the machine's matrix throughput, in the same arithmetic, that a training step sustains
tiles        3×3 convolutions in float32 by sightline.winograd and by torch alone, layers and whole steps, both in turn
memory       peak of trainings of `fast` with --precision, for --epochs, as they are and where glibc holds back no crumbs, in turn
busy         seconds of a short training, alone and beside a process that takes a core, by how threads wait for each other
runs         whole trainings on CIFAR-10, each in a process of its own, in turn: accuracy, seconds from the process's start to the
             trained model (before the last test), peak memory.  A side is a recipe's name, another number of epochs after it if
             wanted, @ and times its width if wanted, or airbench (benchmarks/airbench.py).  Hours.
elsewhere    `fast` and `classic` on generated scenes and on a folder of 64×64 images, classic's epochs fitted to fast's time
ablation     `fast` (or --of strong) on CIFAR-10 without each of its parts and with others, judged on a tenth of the training
             images (--dev 0.2: a fifth) that is held out: choices are made there, not on the test images.  Hours; --width 0.25
             and --epochs 10 make them fewer.

Each section prints a table and replaces its own part of the JSON file. Whole trainings are kept there one by one, and those that
the file has are not done again: what takes hours can be stopped and gone on with, and seeds added. In `throughput` the plain
loader runs in the training's own process: workers would go on loading during the other side's turn, and take its cores. Nothing
else should run meanwhile.
"""
# ruff: noqa: E402 — the clock starts before torch is imported, which takes seconds

from __future__ import annotations

import time

START = time.perf_counter()

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from airbench import orthogonalise
from sightline import lean
from sightline.allocation import kept_memory
from sightline.augment import ColorJitter, HorizontalFlip, RandomCrop, bind, to_albumentations
from sightline.datasets import Dataset as Images
from sightline.datasets import Split
from sightline.models import FastNet, best_device, build
from sightline.planted import planted
from sightline.precision import NAMED
from sightline.recipe import Recipe, load_recipe
from sightline.terminal import table
from sightline.training import Learner, Progress, optimizers, train
from sightline.training.learner import choose_arithmetic
from sightline.training.optimizers import make_optimizer, set_rate
from sightline.winograd import Winograd

console = Console()


# ---------------------------------------------------------------- the plain stack


class Plain(Dataset[tuple[Tensor, int]]):
    """A Dataset as one writes it by hand: Albumentations on one image at a time."""

    def __init__(self, split: Split, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        import albumentations as A
        from albumentations.pytorch import ToTensorV2

        self.images, self.labels = split.images, split.labels
        self.transform = A.Compose(
            [
                A.PadIfNeeded(40, 40, border_mode=4),
                A.RandomCrop(32, 32),
                A.CoarseDropout((1, 1), (16, 16), (16, 16), fill=tuple(255 * m for m in mean), p=0.5),
                A.Normalize(mean, std),
                ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(image=self.images[i])["image"], int(self.labels[i])


def plain_steps(
    split: Split, mean: tuple[float, ...], std: tuple[float, ...], batch: int, device: torch.device
) -> Iterator[None]:
    """Train with the plain stack; every `next` is one step."""
    torch.manual_seed(0)
    model = build("resnet18", classes=10).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    while True:
        for x, y in DataLoader(Plain(split, mean, std), batch, shuffle=True, drop_last=True):
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            yield


def sightline_steps(learner: Learner, recipe: Recipe, scale: float = 1.0) -> Iterator[None]:
    """Train as `sightline train` does; every `next` is one step."""
    optimizer = make_optimizer(learner.model, recipe, recipe.batch_size, learner.arithmetic)
    set_rate(optimizer, 1e-3)
    learner.model.train()
    stream = Generator().manual_seed(0)
    while True:
        for chosen, images in learner.images.batches(torch.randperm(len(learner.images), generator=stream), recipe.batch_size):
            loss = learner.loss(learner.net, chosen, images, stream, 0, scale).mean
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            yield


def measure(steps: Iterator[None], count: int, batch: int) -> float:
    """Images a second over `count` steps."""
    start = time.perf_counter()
    for _ in range(count):
        next(steps)
    return count * batch / (time.perf_counter() - start)


def learner_of(data: Images, recipe: Recipe, device: torch.device, precision: str = "auto") -> Learner:
    """A learner with that arithmetic, or with what a training of the recipe chooses."""
    steps = recipe.epochs * max(1, len(data.train) // recipe.batch_size)
    return Learner.make(data, recipe, choose_arithmetic(precision, recipe, data, steps, device), seed=0, device=device)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (None of one) and n."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, "n": len(values), "values": list(values)}


# ---------------------------------------------------------------- sections


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """ResNet-18 as in `classic`, both sides in turn; the first step of each is not counted."""
    device, data, recipe = torch.device(best_device()), planted("planted:clean"), load_recipe("classic")
    learner = learner_of(data, recipe, device)
    sides = {
        "plain": plain_steps(data.train, *data.normalisation, recipe.batch_size, device),
        "sightline": sightline_steps(learner, recipe),
    }
    for steps in sides.values():
        next(steps)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, steps in sides.items():
            with kept_memory() if name == "sightline" else nullcontext():  # as `train` does
                speeds[name].append(measure(steps, 2, recipe.batch_size))
    ratios = [b / a for a, b in zip(speeds["plain"], speeds["sightline"], strict=True)]
    rows = [(name, f"{statistics.median(s):.1f}", f"{min(s):.1f}", f"{max(s):.1f}") for name, s in speeds.items()]
    rows.append(("ratio", f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}"))
    hours = 20 * 50_000 / statistics.median(speeds["plain"]) / 3600
    rows.append(("plain: hours for 20 epochs of 50,000", f"{hours:.2f}", "", ""))
    console.print(table(("ResNet-18, images/s", "median", "min", "max"), rows, left=("ResNet-18, images/s",)))
    return {"arithmetic": str(learner.arithmetic), "images_per_second": speeds, "ratio": ratios, "plain_hours": hours}


def loader(options: argparse.Namespace) -> dict[str, Any]:
    """What gives a net its images, CIFAR-sized, of each recipe: whole batches of 512, Albumentations one by one."""
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    data = planted("planted:clean", n_train=2048, n_test=10)
    mean, std = data.normalisation
    found: dict[str, Any] = {}
    for name in ("classic", "strong", "fast"):
        policy = bind(load_recipe(name).augment, mean)
        # Albumentations has no alternating flips; a drawn one costs it the same.
        plain = [HorizontalFlip() if isinstance(t, HorizontalFlip) else t for t in policy]
        composed = A.Compose([to_albumentations(plain, size=(32, 32)), A.Normalize(mean, std), ToTensorV2()])
        learner = learner_of(data, load_recipe(name).with_(batch_size=512), torch.device("cpu"))
        stream = Generator().manual_seed(0)
        rates: dict[str, list[float]] = {"sample by sample": [], "whole batches": []}
        for _ in range(options.rounds + 1):
            start = time.perf_counter()
            for image in data.train.images[:512]:
                composed(image=image)["image"]
            rates["sample by sample"].append(512 / (time.perf_counter() - start))
            start = time.perf_counter()
            for _ in range(10):  # epochs: one is over before the processor has warmed to it
                for chosen, images in learner.images.batches(torch.randperm(2048, generator=stream), 512):
                    learner.inputs(chosen, images, stream)
            rates["whole batches"].append(20480 / (time.perf_counter() - start))
        found[name] = {side: values[1:] for side, values in rates.items()}  # the first round warms up
        found[name]["ratio"] = [b / a for a, b in zip(*found[name].values(), strict=True)]
    rows = [(name, *(f"{statistics.median(values):,.0f}" for values in sides.values())) for name, sides in found.items()]
    console.print(table(("recipe", "sample by sample, images/s", "whole batches", "ratio"), rows, left=("recipe",)))
    return found


@kept_memory()
def share(options: argparse.Namespace) -> dict[str, Any]:
    """FLOPs a second of training steps beside those of a large matrix product in the same arithmetic, in turn."""
    device, data = torch.device(best_device()), planted("planted:clean")

    def product(dtype: str) -> float:
        a = torch.randn(2048, 2048, device=device).to(getattr(torch, dtype))
        start = time.perf_counter()
        for _ in range(8):
            (a @ a).flatten()[0].item()
        return 8 * 2 * 2048**3 / (time.perf_counter() - start)

    sides: dict[str, tuple[Iterator[None], int, float, str]] = {}
    chosen = learner_of(data, load_recipe("classic"), device).arithmetic
    compiled = next(name for name, each in NAMED.items() if each.compiled and each.dtype == chosen.dtype)
    for name, precision in (("classic", "auto"), ("classic", compiled), ("strong", "auto"), ("fast", "auto")):
        recipe = load_recipe(name)
        learner = learner_of(data, recipe, device, precision)
        counted = learner_of(data, recipe, device, "fp32")  # all products, also where the training saves some
        with FlopCounterMode(display=False) as counter:
            counted.loss(counted.model, torch.arange(2), counted.images.take(torch.arange(2)), Generator()).mean.backward()
        flops, size, arithmetic = counter.get_total_flops() / 2, recipe.batch_size, learner.arithmetic
        sides[f"{name}, batch {size}, {arithmetic}"] = (sightline_steps(learner, recipe), size, flops, arithmetic.dtype)
    for steps, _, _, dtype in sides.values():
        next(steps)
        product(dtype)
    found: dict[str, Any] = {name: {"flops_an_image": side[2], "share": []} for name, side in sides.items()}
    peaks = []
    for _ in range(options.rounds):
        for name, (steps, batch, flops, dtype) in sides.items():
            peaks.append(product(dtype))
            found[name]["share"].append(measure(steps, max(2, 1000 // batch), batch) * flops / peaks[-1])
    rows = [
        (name, f"{side['flops_an_image'] / 1e9:.3f}", *(f"{f(side['share']):.0%}" for f in (statistics.median, min, max)))
        for name, side in found.items()
    ]
    columns = ("training step", "GFLOP an image", "share of a matrix product", "min", "max")
    console.print(table(columns, rows, left=("training step",)))
    return {**found, "matrix_product_flops_per_second": peaks}


@kept_memory()
def tiles(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds by torch alone over those with sightline.winograd: of layers, there and back, and of recipes' whole steps."""
    device, data, found = torch.device("cpu"), planted("planted:clean"), dict[str, list[float]]()
    layers = [(500, 64, 64, 15), (500, 64, 256, 15), (500, 256, 256, 7), (500, 256, 256, 5)]  # of FastNet, and of ResNet-18
    layers += [(128, 64, 64, 32), (128, 128, 128, 16), (128, 256, 256, 8), (128, 512, 512, 4)]
    for images, channels, made, side in layers:
        shapes = ((images, channels, side, side), (made, channels, 3, 3), (images, made, side, side))
        x, weight, grad = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for shape in shapes)
        pair = (x.requires_grad_(), weight.requires_grad_())

        def there_and_back(context: Callable[[], Any], pair: Any = pair, grad: Tensor = grad) -> float:
            start = time.perf_counter()
            with context():
                result = F.conv2d(*pair, padding=1)
            torch.autograd.grad(result, pair, grad)
            return time.perf_counter() - start

        ways = (nullcontext, Winograd)
        seconds = [[there_and_back(way) for way in ways] for _ in range(options.rounds + 1)][1:]  # the first warms up
        found[f"{images} images of {side}×{side}, {channels} → {made} channels"] = [plain / tiled for plain, tiled in seconds]
    for name in ("strong", "fast"):
        recipe = load_recipe(name)
        learners = [learner_of(data, recipe, device, f"fp32-{way}") for way in ("channels-last", "winograd")]
        sides = [sightline_steps(learner, recipe) for learner in learners]
        speeds = [[measure(steps, 2, recipe.batch_size) for steps in sides] for _ in range(options.rounds + 1)][1:]
        found[f"steps of {name}, {recipe.batch_size} images of 32×32"] = [tiled / plain for plain, tiled in speeds]
    rows = [(name, *(f"{f(ratios):.2f}" for f in (statistics.median, min, max))) for name, ratios in found.items()]
    console.print(table(("torch's seconds over ours", "median", "min", "max"), rows, left=("torch's seconds over ours",)))
    return found


def runs(options: argparse.Namespace) -> dict[str, Any]:
    """Whole trainings on CIFAR-10 in turn, seed after seed."""
    sides = options.sides.split(",")
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for seed in range(options.seeds):
        for side in sides:
            found[side].append(once(options, f"{side} {seed}", partial(one, side, seed, options.data_dir)))
    result = {}
    for side, results in found.items():
        keys = [key for key in results[0] if all(isinstance(r.get(key), float) for r in results)]
        result[side] = {key: summary([r[key] for r in results]) for key in keys}
    rows = [
        (side, key, f"{value['mean']:.4f}", "" if value["sd"] is None else f"{value['sd']:.4f}", value["n"])
        for side, values in result.items()
        for key, value in values.items()
    ]
    console.print(table(("side", "figure", "mean", "sd", "n"), rows, left=("side", "figure")))
    return result


def read(path: Path) -> dict[str, Any]:
    """What the JSON file has so far."""
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return known


def once(options: argparse.Namespace, key: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the figures kept under `key` in the JSON file; measure and keep them if there are none."""
    known = read(options.json)
    trainings = known.setdefault("trainings", {})
    if key not in trainings:
        trainings[key] = measure()
        console.print(f"{key}: {trainings[key]}")
        options.json.write_text(json.dumps(known, indent=1) + "\n")
    figures: dict[str, float] = trainings[key]
    return figures


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Whole trainings of `fast` on CIFAR-10, seed 0: peak memory and seconds, with glibc's cache of each thread and without."""
    recipe = load_recipe("fast").with_(epochs=options.epochs)
    without = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    environments: dict[str, dict[str, str]] = {"as it is": {}, "no crumbs held back": without}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in environments}
    train_it = partial(one, "", 0, options.data_dir, recipe, "cifar10", "--precision", options.precision)
    for _ in range(options.rounds):
        for side, environment in environments.items():
            found[side].append(train_it(environment=environment))
    rows = [
        (side, f"{figures['peak_bytes'] / 1e9:.2f}", f"{figures['seconds_to_model']:.0f}", f"{figures['single_view']:.2%}")
        for side, trainings in found.items()
        for figures in trainings
    ]
    console.print(table(("fast", "peak, GB", "seconds", "single view"), rows, left=("fast",)))
    return {"precision": options.precision, "epochs": recipe.epochs, **found}


def busy(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of two epochs on generated scenes, from the process's start: alone and beside a process that takes a core."""
    recipes = {"small": load_recipe("small"), "fast, half the width": load_recipe("fast").with_(width=0.5)}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in recipes}
    for name, recipe in recipes.items():
        train_it = partial(one, name, 0, None, recipe.with_(epochs=2), "planted:clean")
        train_it()  # chooses the arithmetic
        for _ in range(options.rounds):
            for beside, waiting in itertools.product((False, True), ("as OpenMP does", "asleep")):
                with _taken_core() if beside else nullcontext():
                    figures = train_it(environment={"OMP_WAIT_POLICY": "passive"} if waiting == "asleep" else {})
                side = f"{'beside a busy process' if beside else 'alone'}, threads wait {waiting}"
                found[name].setdefault(side, []).append(figures["seconds_to_model"])
    rows = [
        (name, side, *(f"{f(seconds):.1f}" for f in (statistics.median, min, max)))
        for name, sides in found.items()
        for side, seconds in sides.items()
    ]
    console.print(table(("recipe", "", "seconds", "least", "most"), rows, left=("recipe", "")))
    return found


@contextmanager
def _taken_core() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            yield
        finally:
            other.kill()


def recipe_of(side: str) -> Recipe:
    """Say what a side is: "fast", "fast15" with 15 epochs, "fast@1.25" with 1.25 times the width."""
    named, _, width = side.partition("@")
    name = named.rstrip("0123456789")
    return load_recipe(name).with_(epochs=int(named[len(name) :] or 0) or None, width=float(width) if width else None)


def one(
    side: str,
    seed: int,
    data_dir: Path | None,
    recipe: Recipe | None = None,
    data: str = "cifar10",
    *options: str,
    environment: dict[str, str] | None = None,
) -> dict[str, float]:
    """Train once in a process of its own, with more of an environment, and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "result.json")
        if side == "airbench":
            command = [str(Path(__file__).with_name("airbench.py")), "--seed", str(seed), "--json", str(out)]
            command += ["--data-dir", str(data_dir)] if data_dir else []
        else:
            chosen = recipe or recipe_of(side)
            command = [__file__, "child", "--recipe", json.dumps(chosen.to_dict()), "--data", data, "--seed", str(seed), *options]
            command += ["--json", str(out), "--folder", str(Path(folder, "run"))]
            command += ["--data-dir", str(data_dir)] if data_dir else []
        subprocess.run(
            [sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
        )
        result = json.loads(out.read_text())
    kept = ("single_view", "mirror", "six_views", "views", "seconds_to_model", "seconds_with_testing", "peak_bytes")
    return {key: float(result[key]) for key in kept if result.get(key) is not None}


def child(options: argparse.Namespace) -> None:
    """What `one` starts: a training, timed from the process's start to its last step."""
    trained = 0.0

    def watch(now: Progress) -> None:
        nonlocal trained
        if now.stage in ("train", "settle"):
            trained = time.perf_counter() - START

    if options.without == "whitening":  # an ordinary first layer, which learns
        FastNet.adapt = lambda net, images: net.whiten.weight.requires_grad_(True)  # type: ignore[method-assign, assignment]
    if options.without == "savings":  # torch's layers, and an update's factor by one multiplication after the other
        lean.keeps_less = lambda layer, x: False
        optimizers.orthogonal = lambda matrix, products: orthogonalise(matrix, products).to(matrix.dtype)
    if options.without == "last convolution":
        whole = FastNet.__init__

        def shallow(net: FastNet, **sizes: int) -> None:
            whole(net, **sizes)
            del net.layer3[3:]  # with its norm and activation

        FastNet.__init__ = shallow  # type: ignore[method-assign, assignment]
    recipe = Recipe.from_dict(json.loads(options.recipe))
    run = train(
        options.data,
        options.folder,
        recipe=recipe,
        seed=options.seed,
        precision=options.precision,
        data_dir=options.data_dir,
        dev=options.dev,
        on_progress=watch,
    )
    results = run.info["results"]
    figures = {
        "single_view": results[f"{run.judged}_accuracy"],
        "views": results.get("views_accuracy"),
        "seconds_to_model": trained,
        "seconds_with_testing": time.perf_counter() - START,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    options.json.write_text(json.dumps(figures))


def elsewhere(options: argparse.Namespace) -> dict[str, Any]:
    """`fast` on other data, untuned, and `classic` with as many epochs as fit into the same time (at least one)."""
    found: dict[str, Any] = {}

    def classic(epochs: int) -> Recipe:
        return load_recipe("classic").with_(epochs=epochs, max_lr=0.01)

    with tempfile.TemporaryDirectory() as folder:
        for name, data in (("planted:clean", "planted:clean"), ("a folder, 64×64", write_folder(Path(folder, "images")))):
            sides: dict[str, list[dict[str, float]]] = {"fast": [], "classic": []}
            epochs = 1
            for seed in range(options.seeds):
                sides["fast"].append(once(options, f"{name}, fast {seed}", partial(one, "fast", seed, None, None, data)))
                if seed == 0:  # an epoch of classic, to know what fits
                    a = once(options, f"{name}, 1 of classic 0", partial(one, "", 0, None, classic(1), data))
                    if a["seconds_to_model"] < sides["fast"][0]["seconds_to_model"]:
                        b = once(options, f"{name}, 2 of classic 0", partial(one, "", 0, None, classic(2), data))
                        an_epoch = b["seconds_to_model"] - a["seconds_to_model"]
                        left = sides["fast"][0]["seconds_to_model"] - (a["seconds_to_model"] - an_epoch)
                        epochs = max(1, round(left / an_epoch))
                key = f"{name}, {epochs} of classic {seed}"
                sides["classic"].append(once(options, key, partial(one, "", seed, None, classic(epochs), data)))
            found[name] = {
                side: {"epochs": epochs if side == "classic" else load_recipe("fast").epochs}
                | {key: summary([r[key] for r in results]) for key in ("single_view", "seconds_to_model")}
                for side, results in sides.items()
            }
    rows = [
        (name, side, values["epochs"], f"{values['single_view']['mean']:.2%}", f"{values['seconds_to_model']['mean']:.0f}")
        for name, sides in found.items()
        for side, values in sides.items()
    ]
    console.print(table(("data", "recipe", "epochs", "test accuracy", "seconds"), rows, left=("data", "recipe")))
    return found


def write_folder(root: Path, size: int = 64) -> str:
    """A folder of PNG files, train and test, a sub-folder a class: generated scenes of another seed."""
    from PIL import Image

    data = planted("planted:clean", seed=7, size=size, n_train=4000, n_test=1000)
    for split, part in (("train", data.train), ("test", data.test)):
        for i, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            path = root / split / data.classes[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return str(root)


def parts_of_fast(fast: Recipe) -> dict[str, Recipe]:
    """`fast` without each of its parts, and with others."""
    return {
        "fast": fast,
        "no flip": replace(fast, augment=(RandomCrop(2),)),
        "random flip": replace(fast, augment=(RandomCrop(2), HorizontalFlip())),
        "no crop": replace(fast, augment=(HorizontalFlip(alternating=True),)),
        "no label smoothing": replace(fast, label_smoothing=0.0),
        "full size throughout": replace(fast, sizes=()),
        "all images in all epochs": replace(fast, keep=()),
        "all images in the last epoch": replace(fast, keep=((0.5, 0.55), (0.875, 1.0))),
        "crops by three pixels": replace(fast, augment=(RandomCrop(3), HorizontalFlip(alternating=True))),
        # Three that come to the work of eight epochs.
        "seven epochs with five at full size": replace(fast, epochs=7, sizes=((0.28, 0.5),), keep=((0.28, 0.65),)),
        "seven epochs with the hardest 73 %": replace(fast, epochs=7, sizes=((0.28, 0.5), (0.42, 0.625)), keep=((0.42, 0.73),)),
        "six epochs with the hardest 80 %": replace(fast, epochs=6, sizes=((0.16, 0.5), (0.33, 0.625)), keep=((0.33, 0.8),)),
        "SGD instead of muon": replace(fast, optimizer="sgd", max_lr=0.4, momentum=0.9, weight_decay=5e-4, decay_all=False),
        "batch 2000": replace(fast, batch_size=2000, max_lr=0.24),
        "batch 250": replace(fast, batch_size=250, max_lr=0.085),
        "batch 250 and longer momentum": replace(fast, batch_size=250, max_lr=0.06, momentum=0.85),
        "smoother labels and jitter": replace(
            fast, label_smoothing=0.2, augment=(*fast.augment, ColorJitter(0.1, 0.13, 0.0, 0.0, 1.0))
        ),
        "no whitening": fast,  # `child` sees to it, and to the next three
        "no savings": fast,
        "no last convolution": fast,
        "no last convolution but an eighth wider": replace(fast, width=1.125 * fast.width),
        "a quarter wider": replace(fast, width=1.25 * fast.width),
    }


def parts_of_strong(strong: Recipe) -> dict[str, Recipe]:
    """`strong` without each of its parts, and with others."""
    crop, flip, hole = strong.augment
    smaller = replace(strong, sizes=((0.25, 0.5), (0.5, 0.75)))
    return {
        "strong": strong,
        "SGD instead of muon": replace(strong, optimizer="sgd", max_lr=0.1, weight_decay=5e-4),
        "full size throughout": replace(strong, sizes=()),
        "from half the side": smaller,
        "from half the side and SGD instead of muon": replace(smaller, optimizer="sgd", max_lr=0.1, weight_decay=5e-4),
        "from half the side at half the rate": replace(smaller, max_lr=0.01),
        "from half the side at 1.5 times the rate": replace(smaller, max_lr=0.03),
        "batch 256": replace(strong, batch_size=256, max_lr=0.03),
        "no flip": replace(strong, augment=(crop, hole)),
        "no crop": replace(strong, augment=(flip, hole)),
        "no holes": replace(strong, augment=(crop, flip)),
        "no label smoothing": replace(strong, label_smoothing=0.0),
        "no average of weights": replace(strong, ema=0.0),
    }


def ablation(options: argparse.Namespace) -> dict[str, Any]:
    """A recipe without each of its parts, judged on held-out training images, a tenth if not said, with the seconds beside."""
    dev, own = options.dev or 0.1, load_recipe(options.of)
    recipe = own.with_(width=options.width, epochs=options.epochs, test_epochs="last")
    variants = parts_of_strong(recipe) if options.of == "strong" else parts_of_fast(recipe)
    unlike = {
        f"of {options.of}": options.of != "fast",
        f"at width {options.width:g}": options.width != 1,
        f"dev {dev:g}": dev != 0.1,
        f"{recipe.epochs} epochs": recipe.epochs != own.epochs,
    }
    at = ", ".join(text for text, differs in unlike.items() if differs)
    wanted = options.sides.split(",") if options.sides != SIDES else list(variants)
    found = {}
    for name in wanted:
        lacks = name.removeprefix("no ").partition(" but")[0]
        extra = ["--dev", f"{dev:g}", *(["--without", lacks] if lacks in WITHOUT else [])]
        results = []
        for seed in range(options.seeds):
            train_it = partial(one, "", seed, options.data_dir, variants[name], "cifar10", *extra)
            results.append(once(options, f"ablation{' ' * bool(at)}{at}, {name} {seed}", train_it))
        found[name] = {key: summary([r[key] for r in results]) for key in ("single_view", "views", "seconds_to_model")}
    rows = [
        (name, *(_spread(values[key]) for key in ("single_view", "views")), f"{values['seconds_to_model']['mean']:.0f}")
        for name, values in found.items()
    ]
    console.print(table(("variant", "single view", "with views", "seconds"), rows, left=("variant",)))
    return {**read(options.json).get("ablation", {}), at or "width 1": found}


def _spread(figures: dict[str, Any]) -> str:
    """The mean, with the standard deviation of several."""
    return f"{figures['mean']:.2%}" + (f" ± {figures['sd']:.2%}" if figures["sd"] is not None else "")


SIDES = "fast,airbench"
WITHOUT = ("whitening", "savings", "last convolution")  # what `ablation` takes from the code itself
SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    f.__name__: f for f in (throughput, loader, share, tiles, memory, busy, runs, elsewhere, ablation)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=["throughput", "loader", "share"], choices=[*SECTIONS, "child"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sides", default=SIDES)
    parser.add_argument("--of", choices=("fast", "strong"), default="fast", help="the recipe of `ablation`")
    parser.add_argument("--width", type=float, default=1.0, help="of the nets in `ablation`")
    parser.add_argument("--epochs", type=int, help="of the trainings in `ablation` and `memory`")
    parser.add_argument("--precision", choices=("auto", *NAMED), default="auto", help="of the trainings in `memory`")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--json", type=Path, default=Path("training.json"))
    for name in ("recipe", "data", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--dev", type=float, default=0.0, help="the share that `ablation` holds out: a tenth")
    parser.add_argument("--without", choices=WITHOUT, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not 0 <= options.dev <= 0.5:
        parser.error(f"--dev {options.dev:g}: it is the share that is held out, at most a half")
    if options.sections == ["child"]:
        child(options)
        return
    device = best_device()
    for name in options.sections:
        found = SECTIONS[name](options)
        known = read(options.json)
        known["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {device}"
        options.json.write_text(json.dumps({**known, name: found}, indent=1) + "\n")
    console.print(f"Written to {options.json}.")


if __name__ == "__main__":
    main()
