"""Training throughput of ResNet-18: Sightline against the plain stack that it starts from.

    python benchmarks/training.py [--rounds 3] [--steps 2] [--json training.json]

The plain stack is what a course notebook does: eager float32 and a DataLoader that calls Albumentations image by image (in the
training's own process: workers would go on loading during the other side's turn, and take its cores). Both sides run in turn in
one process on the same images, batch size, optimiser and number of threads; the first step of each is not counted. Prints a
table and writes JSON. About four minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from sightline.augment import rates
from sightline.datasets import Split
from sightline.models import best_device, build
from sightline.planted import planted
from sightline.precision import choose
from sightline.recipe import load_recipe
from sightline.terminal import table
from sightline.training import Learner, make_optimizer


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


def sightline_steps(learner: Learner, batch: int) -> Iterator[None]:
    """Train as `sightline train` does; every `next` is one step."""
    recipe = load_recipe("classic")
    optimizer = make_optimizer(learner.model, recipe)
    learner.model.train()
    stream = Generator().manual_seed(0)
    while True:
        for chosen in torch.randperm(len(learner.images), generator=stream).split(batch):
            if len(chosen) == batch:
                loss, _ = learner.loss(learner.net, chosen, stream)
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


def loaders(split: Split, mean: tuple[float, ...], std: tuple[float, ...], learner: Learner) -> dict[str, float]:
    """Images a second of the augmentation alone, on one batch of 512: whole batches, and Albumentations image by image."""
    plain = Plain(split, mean, std)
    start = time.perf_counter()
    for i in range(512):
        plain[i]
    one_by_one = 512 / (time.perf_counter() - start)
    images = learner.images[:512]
    whole = 1 / sum(1 / rate for _, rate in rates(learner.policy, images, Generator().manual_seed(0)))
    return {"sample by sample": one_by_one, "whole batches": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path, default=Path("training.json"))
    options = parser.parse_args()
    device, data, recipe = torch.device(best_device()), planted("planted:clean"), load_recipe("classic")
    mean, std = data.normalisation
    arithmetic = choose(
        options.precision,
        lambda: build("resnet18", classes=10),
        key="resnet18",
        shape=(options.batch, 3, 32, 32),
        classes=10,
        steps=20 * 97,
        device=device,
    )
    learner = Learner.make(data, recipe, arithmetic, seed=0, device=device)
    sides = {
        "plain": plain_steps(data.train, mean, std, options.batch, device),
        "sightline": sightline_steps(learner, options.batch),
    }
    for steps in sides.values():
        next(steps)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, steps in sides.items():
            speeds[name].append(measure(steps, options.steps, options.batch))
    ratios = [b / a for a, b in zip(speeds["plain"], speeds["sightline"], strict=True)]
    rows = [(name, f"{statistics.median(s):.1f}", f"{min(s):.1f}", f"{max(s):.1f}") for name, s in speeds.items()]
    rows.append(("ratio", f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}"))
    augmentation = loaders(data.train, mean, std, learner)
    console = Console()
    console.print(table(("ResNet-18, images/s", "median", "min", "max"), rows, left=("ResNet-18, images/s",)))
    console.print(table(("augmentation alone", "images/s"), [(k, f"{v:,.0f}") for k, v in augmentation.items()]))
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {device}",
        "arithmetic": str(arithmetic),
        "batch": options.batch,
        "steps_a_round": options.steps,
        "images_per_second": speeds,
        "ratio": ratios,
        "augmentation_images_per_second": augmentation,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"Arithmetic: {arithmetic}. Written to {options.json}.")


if __name__ == "__main__":
    main()
