"""Heatmaps a second, and the memory they take: Sightline against pytorch-grad-cam, torch-cam and captum.

    python benchmarks/heatmaps.py [--run RUN] [--device cuda] [--quick] [--json heatmaps.json]

All sides explain the same images with the same weights in one process and with the same number of threads, one after the
other in each round. Before anything is timed, each peer's maps are compared with ours, brought to the peer's conventions; if
they differ, nothing is timed. Each side has its own copy of the model, for hooks of one would slow down the others. A peer
that isn't installed is left out. "× sightline" is how many times as fast ours is as the row's side: the ratio of the medians,
and in brackets the smallest and the largest of the rounds' own. About nine minutes on two cores.

The peers, each in the best way that its documentation offers:
  pytorch-grad-cam: a list of targets; a call a target, for its maps have lost their sign and can't be subtracted.
  torch-cam: one forward pass, with `retain_graph` for further targets; the margin as one more column of scores.
  captum: a forward pass for the predictions, then tensor targets; the margin is the difference of two maps.

The weights are random, with batch norm's statistics taken from the images, or a run's. Without a run, the labels are the
predictions but for every tenth image.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from sightline.exceptions import RunError
from sightline.heatmaps import Heatmaps, Maps
from sightline.heatmaps.methods import principal
from sightline.models import BasicBlock, Normalise, ResNet, SmallNet, build, device_of, to_device
from sightline.precision import machine
from sightline.runs import Run
from sightline.terminal import table

TARGETS = ("predicted", "true", "margin")
WORKS = {"one": "one map", "three": "three maps"}  # the latter: predicted, true and margin, with the predictions
OURS = "sightline"
AUTO = "sightline, auto"
# ‖theirs − ours‖ / ‖ours‖ from which two sides do not compute the same. Rounding that turns a ReLU on or off gives up to 3e-3,
# as between two memory formats of the same library.
DIFFERENT = 1e-2
MASKED = 128  # masked images in one pass of Score-CAM and Ablation-CAM, on both sides


def import_grad_cam() -> Any:
    """Import pytorch-grad-cam. It imports torchvision, whose wheel finds no operators of its own beside the CPU build of torch.

    The two that torchvision asks for on import are declared then; neither is ever called.
    """
    try:
        import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return import_module("pytorch_grad_cam")


def picture(raw: Tensor, size: Sequence[int]) -> Tensor:
    """Signed maps (N, T, h, w) → what pytorch-grad-cam returns: positive part, stretched to [0, 1], enlarged, stretched again."""

    def stretch(maps: Tensor) -> Tensor:
        maps = maps - maps.amin((2, 3), keepdim=True)
        return maps / (1e-7 + maps.amax((2, 3), keepdim=True))

    return stretch(F.interpolate(stretch(raw.relu()), tuple(size), mode="bilinear"))


def class_score(c: int) -> Callable[[Tensor], Tensor]:
    """A target as pytorch-grad-cam wants it: one image's logits → a number."""
    return lambda logits: logits[c]


def margin_score(a: int, b: int) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits[a] - logits[b]


class Ours:
    """Sightline, as a sweep over many batches uses it: opened once."""

    def __init__(self, model: nn.Module, layer: str, precision: str = "fp32") -> None:
        self.h = Heatmaps(model, layer, precision=precision).__enter__()  # the model is its own: nothing to give back

    def one(self, images: Tensor, classes: Tensor) -> Tensor:
        return torch.from_numpy(self.h(images, classes).raw)[:, None]

    def three(self, images: Tensor, labels: Tensor) -> Tensor:
        return torch.from_numpy(self.h(images, TARGETS, labels=labels).raw)


class GradCam:
    """pytorch-grad-cam."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.cam = import_grad_cam().GradCAM(model, [model.get_submodule(layer)])

    def maps(self, images: Tensor, targets: list[Callable[[Tensor], Tensor]] | None) -> Tensor:
        return torch.from_numpy(self.cam(images, targets))[:, None]

    def one(self, images: Tensor, classes: Tensor) -> Tensor:
        return self.maps(images, [class_score(c) for c in classes.tolist()])

    def three(self, images: Tensor, labels: Tensor) -> Tensor:
        predicted = self.maps(images, None)
        pairs = zip(self.cam.outputs.argmax(1).tolist(), labels.tolist(), strict=True)
        margin = self.maps(images, [margin_score(a, b) for a, b in pairs])
        return torch.cat((predicted, self.one(images, labels), margin), 1)

    expected = staticmethod(picture)


class TorchCam:
    """torch-cam; its maps have lost their negative part."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.model, self.cam = model, import_module("torchcam.methods").GradCAM(model, layer)

    def one(self, images: Tensor, classes: Tensor) -> Tensor:
        maps: Tensor = self.cam(classes.tolist(), self.model(images), normalized=False)[0]
        return maps[:, None]

    def three(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.model(images)
        classes = logits.argmax(1)
        margin = logits.gather(1, classes[:, None]) - logits.gather(1, labels[:, None])
        first, second = (self.cam(c.tolist(), logits, normalized=False, retain_graph=True)[0] for c in (classes, labels))
        return torch.stack((first, second, self.cam(0, margin, normalized=False)[0]), 1)

    @staticmethod
    def expected(raw: Tensor, size: Sequence[int]) -> Tensor:
        return raw.relu()


class Captum:
    """captum; signed maps, as ours."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.model, self.cam = model, import_module("captum.attr").LayerGradCam(model, model.get_submodule(layer))

    def one(self, images: Tensor, classes: Tensor) -> Tensor:
        maps: Tensor = self.cam.attribute(images, classes)
        return maps.detach()

    def three(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            classes = self.model(images).argmax(1)
        predicted, true = self.one(images, classes), self.one(images, labels)
        return torch.cat((predicted, true, predicted - true), 1)

    @staticmethod
    def expected(raw: Tensor, size: Sequence[int]) -> Tensor:
        return raw


class Peer(NamedTuple):
    """A library: its name on the package index, the module that it installs, and its side of the comparison."""

    distribution: str
    module: str
    side: Callable[[nn.Module, str], Any]


PEERS = {
    "pytorch-grad-cam": Peer("grad-cam", "pytorch_grad_cam", GradCam),
    "torch-cam": Peer("torchcam", "torchcam", TorchCam),
    "captum": Peer("captum", "captum", Captum),
}


class ImageNetResNet(ResNet):
    """ResNet-18 for large images: a 7×7 stem of stride 2 and a max-pool, as in torchvision."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, (2, 2, 2, 2), classes=1000)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Task(NamedTuple):
    """A model in evaluation mode, and the images (N, C, H, W) and labels (N,) that it is explained on."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor


def random_task(name: str, model: nn.Module, n: int, side: int, device: torch.device) -> Task:
    """Random images for a model with random weights; the labels are the predictions but for every tenth image."""
    images = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    model.to(device).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # so that one pass sets the statistics: without them, hardly anything differs between images
    with torch.inference_mode():
        model(images)
        logits = model.eval()(images)
    labels = logits.argmax(1).clone()
    labels[::10] = (labels[::10] + 1) % logits.shape[1]
    return Task(f"{name}, {side}×{side}, random weights", model, images, labels)


def run_task(folder: Path, n: int, device: torch.device) -> Task:
    """A run's model on its first test images, with their real labels."""
    run = Run.open(folder)
    data = run.dataset()
    normalise = Normalise(run.info["normalisation"]["mean"], run.info["normalisation"]["std"], device)
    images = normalise(to_device(data.test.images[:n], device)).contiguous()
    labels = torch.from_numpy(data.test.labels[:n]).long().to(device)
    name = f"{run.info['recipe']['model']}, {images.shape[3]}×{images.shape[2]}, trained on {data.name}"
    return Task(name, run.model().to(device), images, labels)


def tasks(options: argparse.Namespace, device: torch.device) -> list[Task]:
    """The small and the large net, with images enough to keep the device busy."""
    small, large = (512, 128) if device.type == "cuda" else (64, 16)
    if options.quick:
        small, large = 4, 2
    torch.manual_seed(0)
    first = (
        run_task(options.run, small, device)
        if options.run
        else random_task("ResNet-18", build("resnet18", classes=10), small, 32, device)
    )
    return [first, random_task("ResNet-18", ImageNetResNet(), large, 224, device)]


def distance(theirs: Tensor, ours: Tensor) -> float:
    """‖theirs − ours‖ / ‖ours‖."""
    return float((theirs.cpu() - ours).norm() / ours.norm())


def prove_equal(what: str, differences: dict[str, float], limit: float = DIFFERENT) -> None:
    """Raise RunError for a peer whose maps are not ours."""
    for name, difference in differences.items():
        if not difference < limit:
            raise RunError(f"{what}: {name}'s maps differ from ours by {difference:.1e}, so nothing is timed; check its version")


def seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(calls: Mapping[str, Callable[[], object]], n: int, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Images a second of each side in each round; each has run before."""
    speeds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            speeds[name].append(n / seconds(call, device))
    return speeds


def ratios(speeds: dict[str, list[float]]) -> dict[str, dict[str, dict[str, float]]]:
    """How much faster each of our sides is than each other side: the ratio of medians, and the rounds' smallest and largest."""
    ours = [name for name in speeds if name in (OURS, AUTO)]
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in ours}
    for mine, theirs in product(ours, speeds.keys() - ours):
        paired = [a / b for a, b in zip(speeds[mine], speeds[theirs], strict=True)]
        of_medians = statistics.median(speeds[mine]) / statistics.median(speeds[theirs])
        found[mine][theirs] = {"ratio": of_medians, "min": min(paired), "max": max(paired)}
    return found


def result(work: str, task: Task, layer: str, speeds: dict[str, list[float]], differences: dict[str, float]) -> dict[str, Any]:
    about = {"work": work, "model": task.name, "layer": layer, "images": len(task.images), "differences": differences}
    return {**about, "images_per_second": speeds, "ratios": ratios(speeds)}


def forward(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(images)
    return logits


def compare(work: str, task: Task, layer: str, peers: Sequence[str], rounds: int) -> dict[str, Any]:
    """Time `work`: "one" map an image, of a class that is given, or "three" with the predictions."""
    sides: dict[str, Any] = {OURS: Ours(copy.deepcopy(task.model), layer)}
    if work == "three":
        sides[AUTO] = Ours(copy.deepcopy(task.model), layer, "auto")
    sides |= {name: PEERS[name].side(copy.deepcopy(task.model), layer) for name in peers}
    calls = {name: partial(getattr(side, work), task.images, task.labels) for name, side in sides.items()}
    if work == "one":
        calls["forward pass alone"] = partial(forward, task.model, task.images)
    maps = {name: call() for name, call in calls.items()}
    differences = {p: distance(maps[p], sides[p].expected(maps[OURS], task.images.shape[2:])) for p in peers}
    prove_equal(f"{WORKS[work]}, {task.name}, {layer}", differences)
    speeds = in_turn(calls, len(task.images), rounds, task.images.device)
    found = result(WORKS[work], task, layer, speeds, differences)
    return {**found, "auto": against_fp32(sides[OURS].h, sides[AUTO].h, task)} if AUTO in sides else found


def against_fp32(exact: Heatmaps, auto: Heatmaps, task: Task) -> dict[str, Any]:
    """What precision "auto" chose, and how its predictions and maps agree with those of fp32."""
    a, b = (h(task.images, TARGETS, labels=task.labels) for h in (exact, auto))
    return agreement(a, b, auto.precision)


def agreement(a: Maps, b: Maps, precision: str) -> dict[str, Any]:
    """The share of equal predictions, and the maps' mean correlation."""
    maps = [m.raw.reshape(-1, m.raw.shape[-2] * m.raw.shape[-1]) for m in (a, b)]
    some = (maps[0].std(1) > 0) & (maps[1].std(1) > 0)  # where the prediction is right, the margin map is zero
    correlations = [np.corrcoef(x, y)[0, 1] for x, y in zip(maps[0][some], maps[1][some], strict=True)]
    same = a.logits.argmax(1) == b.logits.argmax(1)
    return {"precision": precision, "agreement": float(same.mean()), "correlation": float(np.mean(correlations))}


def ablation(task: Task, h: Heatmaps, theirs: Tensor) -> float:
    """Theirs divides by the score, which may turn the map round."""
    maps = h(task.images, task.labels, "ablationcam")
    return distance(theirs, picture(torch.from_numpy(maps.raw / maps.scores[:, None, None])[:, None], task.images.shape[2:]))


def score(task: Task, h: Heatmaps, theirs: Tensor) -> float:
    """Theirs enlarges the masks with aligned corners: so do ours for this comparison."""
    aligned = partial(F.interpolate, align_corners=True)
    with mock.patch("sightline.heatmaps.methods.F.interpolate", aligned):
        raw = h(task.images, task.labels, "scorecam").raw
    return distance(theirs, picture(torch.from_numpy(raw)[:, None], task.images.shape[2:]))


def eigen(task: Task, h: Heatmaps, theirs: Tensor) -> float:
    """Theirs takes each channel's mean off first, and its sign is arbitrary: our algebra is compared, on the same activations."""
    kept: list[Tensor] = []
    with task.model.get_submodule("layer4").register_forward_hook(lambda *call: kept.append(call[2])), torch.inference_mode():
        task.model(task.images)
    raw = principal(kept[0], kept[0].sum(1), centred=True).cpu()[:, None]
    both = torch.stack([picture(sign * raw, task.images.shape[2:]) for sign in (1, -1)])
    nearest = (both - theirs).flatten(2).norm(dim=2).argmin(0)
    return distance(theirs, both[nearest, torch.arange(len(nearest))])


# Method, pytorch-grad-cam's name for it, how many images, what compares them, and from where on they differ.
METHODS = (
    ("ablationcam", "AblationCAM", 2, ablation, DIFFERENT),
    ("scorecam", "ScoreCAM", 2, score, DIFFERENT),
    ("eigencam", "EigenCAM", 16, eigen, DIFFERENT),
)


def by_method(task: Task, most: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Score-CAM, Ablation-CAM and Eigen-CAM at the last block, on a few images, against pytorch-grad-cam."""
    grad_cam = import_grad_cam()
    for method, name, n, difference, limit in METHODS:
        n = min(n, most)
        few = task._replace(images=task.images[:n], labels=task.labels[:n])
        mine, auto = (Ours(copy.deepcopy(task.model), "layer4", precision).h for precision in ("fp32", "auto"))
        other = copy.deepcopy(task.model)
        cam = getattr(grad_cam, name)(other, [other.get_submodule("layer4")])
        cam.batch_size = MASKED
        ours = zip((OURS, AUTO), (mine, auto), strict=True)
        calls: dict[str, Callable[[], Any]] = {side: partial(h, few.images, few.labels, method) for side, h in ours}
        calls["pytorch-grad-cam"] = partial(cam, few.images, [class_score(c) for c in few.labels.tolist()])
        exact, rough = calls[OURS](), calls[AUTO]()
        differences = {"pytorch-grad-cam": difference(few, mine, torch.from_numpy(calls["pytorch-grad-cam"]())[:, None])}
        prove_equal(f"{method}, {task.name}", differences, limit)
        found = result(method, few, "layer4", in_turn(calls, n, rounds, few.images.device), differences)
        yield {**found, "auto": agreement(exact, rough, auto.precision)}


def sweep(n: int) -> None:
    """Three maps for each of `n` generated images, as a stream; print the process's largest memory use in MiB."""
    torch.manual_seed(0)
    batches = ((torch.randn(size, 3, 32, 32), torch.arange(size) % 10) for size in [128] * (n // 128) + [n % 128] * (n % 128 > 0))
    with Heatmaps(SmallNet(classes=10)) as h:
        for _ in h.stream(batches, TARGETS):
            pass
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def memory(few: int, many: int) -> dict[str, float]:
    """Peak memory in MiB of a sweep over few and over many images, each in a process of its own."""
    peaks = {}
    for n in (few, many):
        done = subprocess.run([sys.executable, __file__, "--sweep", str(n)], check=True, capture_output=True, text=True)
        peaks[f"{n:,} images"] = float(done.stdout)
    return {**peaks, "ratio": peaks[f"{many:,} images"] / peaks[f"{few:,} images"]}


def measure(tasks: Sequence[Task], peers: Sequence[str], rounds: int, most: int) -> list[dict[str, Any]]:
    """All that is timed; the methods that take long on the first net only, on at most `most` images."""
    found = []
    if "pytorch-grad-cam" in peers:
        with redirect_stderr(StringIO()):  # its progress bars
            found += by_method(tasks[0], most, rounds)
    works = product(tasks, ("layer3", "layer4"), WORKS)
    return found + [compare(work, task, layer, peers, rounds) for task, layer, work in works]


def rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A table's rows for one result: a side, its speed, and by how much each of ours beats it."""
    for name, speeds in found["images_per_second"].items():
        beaten = [by[name] for by in found["ratios"].values() if name in by]
        cells = [f"{r['ratio']:.2f} ({r['min']:.2f}–{r['max']:.2f})" for r in beaten]
        yield (found["work"], found["layer"], name, f"{statistics.median(speeds):.1f}", *cells, *[""] * (2 - len(cells)))


def show(console: Console, found: Sequence[dict[str, Any]]) -> None:
    for model in dict.fromkeys(f["model"] for f in found):
        mine = [f for f in found if f["model"] == model]
        columns = ("work", "layer", "side", "images/s", "× sightline", "× sightline, auto")
        console.print(table(columns, [row for f in mine for row in rows(f)], title=model, left=columns[:3]))
        for f in mine:
            if "auto" in f:
                auto = "auto is {precision}, its top-1 agreement {agreement:.1%}, its maps' correlation {correlation:.4f}"
                console.print(f"{f['work']}, {f['layer']}: {auto.format(**f['auto'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run of a ResNet: its weights and test images, for the small net")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny numbers, to see that it works; the speeds mean nothing")
    parser.add_argument("--json", type=Path, default=Path("heatmaps.json"))
    parser.add_argument("--sweep", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sweep:
        return sweep(options.sweep)
    # First, while this process is small: Linux lets a new process start from its parent's peak.
    peaks = memory(256, 1024) if options.quick else memory(10_000, 100_000)
    device, console = device_of(options.device), Console()
    torch.backends.cudnn.allow_tf32 = False  # fp32 is to mean the same for everyone
    peers = [name for name, peer in PEERS.items() if find_spec(peer.module)]
    for name in PEERS.keys() - peers:
        console.print(f"{name} isn't installed: left out.")
    found = measure(tasks(options, device), peers, 1 if options.quick else options.rounds, 1 if options.quick else 16)
    show(console, found)
    console.print("Peak memory in MiB: " + ", ".join(f"{name} {value:.4g}" for name, value in peaks.items()))
    written = {
        "machine": f"{machine(device)}, torch {torch.__version__}",
        "peers": {name: version(PEERS[name].distribution) for name in peers},
        "speed": found,
        "peak_memory_MiB": peaks,
    }
    options.json.write_text(json.dumps(written, indent=1) + "\n")
    console.print(f"Written to {options.json}.")


if __name__ == "__main__":
    main()
