"""airbench94-muon, written anew: the reference that the recipe `fast` is timed against where the original can't run, as on a CPU.

    python benchmarks/airbench.py [--data-dir DIR] [--seed 0] [--epochs 8] [--batch 2000] [--fraction 1.0] [--json OUT]

The method is Keller Jordan's (https://github.com/KellerJordan/cifar10-airbench, airbench94_muon.py at f1c599c, MIT licence). He
states 94.01 % with six views (n = 200) in 2.59 s on an A100. Net, data, loss, optimisers, schedule and test are his, number by
number; none of his code is copied. What differs, by necessity:

- Weights and optimiser state are float32, the arithmetic is bfloat16 (torch.autocast), and the Newton-Schulz iteration's too; his
  weights are float16, which is slow or missing on CPUs. Where the device has no instructions for bfloat16, all is float32.
- The head and the loss are float32: bfloat16 logits have 8 bits, float16 has 11, and with 8 the two largest would often tie.
- No torch.compile, and no warm-up run before the clock starts: time counts from the start of the process.
- It runs on the accelerator that torch finds, else on the CPU.

Prints a line an epoch, then accuracy (single view, mirror, six views), seconds and images/s; `--json` writes them.
"""
# ruff: noqa: E402 — the clock starts before torch is imported, which takes seconds

from __future__ import annotations

import time

START = time.perf_counter()

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.datasets import Split, load
from sightline.models import best_device
from sightline.precision import has_bfloat16, machine

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TRANSLATE = 2  # pixels, at most, each way
WHITENING_IMAGES, WHITENING_EPOCHS = 5000, 3  # where the filters come from; how long their bias learns
BIAS_LR, HEAD_LR, FILTER_LR = 0.053, 0.67, 0.24
SGD_MOMENTUM, MUON_MOMENTUM = 0.85, 0.6
DECAY = 2e-6  # an image of the batch; divided by the rate, so that the two can be chosen apart
SMOOTHING = 0.2
TEST_BATCH = 2000


# ---------------------------------------------------------------- the net


class BatchNorm(nn.BatchNorm2d):
    """Without a scale to learn. Keeps 0.6 of the running statistics at each step; torch calls that a momentum of 0.4."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-12, momentum=1 - 0.6)
        self.weight.requires_grad_(False)


class Conv(nn.Conv2d):
    """3×3. As many of its filters as it has input channels begin by passing these through; the others are torch's."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__(width_in, width, 3, padding=1, bias=False)
        nn.init.dirac_(self.weight.data[:width_in])


class Stage(nn.Sequential):
    """Two convolutions; halves the image between the first and its norm."""

    def __init__(self, width_in: int, width: int) -> None:
        first = (Conv(width_in, width), nn.MaxPool2d(2), BatchNorm(width), nn.GELU())
        super().__init__(*first, Conv(width, width), BatchNorm(width), nn.GELU())


class Net(nn.Module):
    """(N, 3, 32, 32) → logits (N, 10) float32; 1,972,792 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        self.stages = nn.Sequential(nn.GELU(), Stage(24, 64), Stage(64, 256), Stage(256, 256), nn.MaxPool2d(3))
        self.head = nn.Linear(256, 10, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    def forward(self, x: Tensor, bias_learns: bool = True) -> Tensor:
        bias = self.whiten.bias
        assert bias is not None
        x = self.stages(F.conv2d(x, self.whiten.weight, bias if bias_learns else bias.detach())).flatten(1)
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.head(x.float()) / self.head.in_features
        return logits


def set_whitening(net: Net, images: Tensor, eps: float = 5e-4) -> None:
    """Set the first filters to the whitened principal components of the images' 2×2 patches, and to their negatives.

    images: (N, 3, H, W), normalised.
    """
    patches = F.unfold(images.float(), 2).transpose(1, 2).reshape(-1, 12)
    variances, directions = torch.linalg.eigh((patches.T @ patches / len(patches)).cpu())
    filters = (directions / (variances + eps).sqrt()).T.reshape(12, 3, 2, 2)
    net.whiten.weight.data.copy_(torch.cat((filters, -filters)))


# ---------------------------------------------------------------- the data


def normalise(split: Split, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A split's images (N, 3, H, W), channels last; their dtype is that of the arithmetic, here and in the training."""
    images = torch.from_numpy(split.images).to(device).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    return images.div_(255).sub_(mean).div_(std).to(dtype)


def flip_half(images: Tensor) -> Tensor:
    """Mirror each image with probability 1/2."""
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(chosen, images.flip(-1), images)


def crop(padded: Tensor, size: int) -> Tensor:
    """Cut a square of `size` pixels from each image (N, 3, H, W), at a place of its own."""
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # (N, 3, places down, places right, size, size): a view
    n, _, down, right, _, _ = windows.shape
    device = padded.device
    top, left = torch.randint(down, (n,), device=device), torch.randint(right, (n,), device=device)
    return windows[torch.arange(n, device=device), :, top, left]


def batches(images: Tensor, labels: Tensor, *, epochs: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The augmented batches of all epochs, without the last, partial one of each; images as `normalise` gives them.

    Who is mirrored is drawn once, and every second epoch shows all images the other way round.
    """
    size = images.shape[-1]
    padded = F.pad(flip_half(images), (TRANSLATE,) * 4, "reflect")
    for epoch in range(epochs):
        seen = crop(padded, size)
        if epoch % 2:
            seen = seen.flip(-1)
        order = torch.randperm(len(images), device=images.device)
        for chosen in order[: len(order) // batch * batch].split(batch):
            yield seen[chosen].contiguous(memory_format=torch.channels_last), labels[chosen]


# ---------------------------------------------------------------- the optimisers


def orthogonalise(matrix: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Bring the singular values of a matrix (m, n) near 1 by three steps of a quintic Newton-Schulz iteration, in that dtype.

    The coefficients (https://kellerjordan.github.io/posts/muon/) trade convergence for speed: values end within about 0.5–1.5.
    """
    if len(matrix) > matrix.shape[1]:
        return orthogonalise(matrix.T, dtype).T
    x = matrix.to(dtype, copy=True)
    x /= x.norm() + 1e-7
    for _ in range(3):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


class Muon:
    """Steps of orthogonalised Nesterov momentum; the filters' norm is reset to the root of their number before each."""

    def __init__(self, filters: list[nn.Parameter], dtype: torch.dtype = torch.bfloat16) -> None:
        self.filters, self.dtype = filters, dtype
        self.momenta = [torch.zeros_like(p) for p in filters]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for p, momentum in zip(self.filters, self.momenta, strict=True):
            assert p.grad is not None
            momentum.mul_(MUON_MOMENTUM).add_(p.grad)
            ahead = p.grad.add(momentum, alpha=MUON_MOMENTUM)
            p.mul_(len(p) ** 0.5 / p.norm())
            p.sub_(orthogonalise(ahead.flatten(1), self.dtype).view_as(p), alpha=lr)


def make_optimizers(net: Net, batch: int, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.optim.SGD, Muon]:
    """SGD for the whitening bias, the norms' biases and the head, in this order; Muon for the 3×3 filters."""
    learning = [p for p in net.stages.parameters() if p.requires_grad]
    biases = [p for p in learning if p.dim() == 1]
    settings = (([net.whiten.bias], BIAS_LR), (biases, BIAS_LR), ([net.head.weight], HEAD_LR))
    groups = [{"params": params, "lr": lr, "initial": lr, "weight_decay": DECAY * batch / lr} for params, lr in settings]
    return torch.optim.SGD(groups, momentum=SGD_MOMENTUM, nesterov=True), Muon([p for p in learning if p.dim() == 4], dtype)


# ---------------------------------------------------------------- training


def train_steps(
    net: Net, images: Tensor, labels: Tensor, *, epochs: int = 8, batch: int = 2000
) -> Iterator[tuple[Tensor, Tensor]]:
    """Train; every `next` is one step, and gives the batch's summed loss and how many of it were classified rightly.

    images: what `normalise` gives.  The whole-epoch augmentation is part of an epoch's first step.
    """
    steps = len(images) // batch
    sgd, muon = make_optimizers(net, batch, images.dtype)
    net.train()
    for step, (x, y) in enumerate(batches(images, labels, epochs=epochs, batch=batch)):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
            logits = net(x, bias_learns=step < WHITENING_EPOCHS * steps)
        loss = F.cross_entropy(logits, y, label_smoothing=SMOOTHING, reduction="sum")
        loss.backward()
        left = 1 - step / (epochs * steps)
        # The first group is the whitening bias. Past its epochs it has no gradient, so SGD skips it.
        for group, part in zip(sgd.param_groups, (max(0, 1 - step / (WHITENING_EPOCHS * steps)), left, left), strict=True):
            group["lr"] = group["initial"] * part
        sgd.step()
        muon.step(FILTER_LR * left)
        net.zero_grad()
        yield loss.detach(), (logits.argmax(1) == y).sum()


def make_net(images: Tensor) -> Net:
    """A fresh net, whitened for these images, on their device."""
    net = Net().to(images.device)
    set_whitening(net, images[:WHITENING_IMAGES])
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def train(
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int = 8,
    batch: int = 2000,
    seed: int = 0,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> Net:
    """Train a fresh net on images that `normalise` gave; `on_epoch` gets each epoch's figures, of training images only."""
    torch.manual_seed(seed)
    net, seen = make_net(images), len(images) // batch * batch
    steps = train_steps(net, images, labels, epochs=epochs, batch=batch)
    for epoch in range(epochs):
        start = time.perf_counter()
        losses, rights = zip(*(next(steps) for _ in range(seen // batch)), strict=True)
        loss, accuracy = torch.stack(losses).sum().item() / seen, torch.stack(rights).sum().item() / seen
        row = {"epoch": epoch + 1, "train_loss": loss, "train_accuracy": accuracy, "seconds": time.perf_counter() - start}
        on_epoch(row)
    return net


# ---------------------------------------------------------------- the test


def mirrored(net: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the images as they are, and their mean with those of the mirror images."""
    logits = net(x)
    return logits, (logits + net(x.flip(-1))) / 2


def views(net: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, 10) of a batch (N, 3, H, W): single view; with its mirror image; six views.

    The six are the image and two copies shifted by a pixel along the diagonal, each with its mirror image; the unshifted pair
    counts half.
    """
    single, mirror = mirrored(net, x)
    padded = F.pad(x, (1, 1, 1, 1), "reflect")
    shifted = [mirrored(net, window)[1] for window in (padded[..., :-2, :-2], padded[..., 2:, 2:])]
    return single, mirror, mirror / 2 + (shifted[0] + shifted[1]) / 4


@torch.no_grad()
def accuracies(net: Net, images: Tensor, labels: Tensor) -> dict[str, float]:
    """The share of the images (as `normalise` gives them) that is classified rightly: single view, mirror and six views."""
    net.eval()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.dtype == torch.bfloat16):
        logits = [torch.cat(parts) for parts in zip(*(views(net, x) for x in images.split(TEST_BATCH)), strict=True)]
    right = [(each.argmax(1) == labels).sum().item() / len(labels) for each in logits]
    return dict(zip(("single_view", "mirror", "six_views"), right, strict=True))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Load, train and test as the command line says; returns the figures."""
    device = torch.device(best_device())
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
    data = load("cifar10", data_dir=options.data_dir)
    n = round(options.fraction * len(data.train))
    if not 1 <= options.batch <= n:
        raise SystemExit(f"a batch of {options.batch} can't be taken from {n} images; give a --batch from 1 to {n}")
    history: list[dict[str, float]] = []

    def note(row: dict[str, float]) -> None:
        history.append(row)
        print("epoch {epoch}  loss {train_loss:.3f}  accuracy {train_accuracy:.2%}  {seconds:.1f} s".format(**row), flush=True)

    net = train(
        normalise(data.train, device, dtype)[:n],
        torch.from_numpy(data.train.labels[:n]).to(device),
        epochs=options.epochs,
        batch=options.batch,
        seed=options.seed,
        on_epoch=note,
    )
    trained = time.perf_counter() - START
    rates = accuracies(net, normalise(data.test, device, dtype), torch.from_numpy(data.test.labels).to(device))
    tested = time.perf_counter() - START
    speed = options.epochs * (n // options.batch * options.batch) / sum(row["seconds"] for row in history)
    timing = {"seconds_to_model": trained, "seconds_with_testing": tested, "images_per_second": speed}
    setting = {"machine": machine(device), "torch": torch.__version__, "dtype": str(dtype), "images": n, "seed": options.seed}
    return {**setting, "batch": options.batch, "epochs": options.epochs, **rates, **timing, "history": history}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--fraction", type=float, default=1.0, help="the part of the training images to use")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    result = run(options)
    print(
        "single view {single_view:.2%}  mirror {mirror:.2%}  six views {six_views:.2%}  {seconds_to_model:.1f} s to the model"
        "  {seconds_with_testing:.1f} s with testing  {images_per_second:.1f} images/s".format(**result)
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
