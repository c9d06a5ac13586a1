"""Train a model and leave a run folder: one flat loop, top to bottom.

Every random number is a function of (seed, epoch, step), so a training that is killed and resumed takes the same steps as one
that isn't.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.optim import Adam

from . import datasets, models, runs
from .augment import Transform, augment, bind
from .exceptions import RecipeError, RunError, TrainingError
from .models import Normalise, device_of, to_device
from .precision import Precision, choose, machine
from .recipe import Recipe, load_recipe
from .runs import Predictions, Run
from .schedule import RangeTest, one_cycle, range_test

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Progress:
    """What a training is doing now, for whoever draws it."""

    stage: str  # "load", "precision", "range test", "train", "test", "epoch" (one has ended), "predict"
    done: int = 0  # steps of this stage
    total: int = 0
    epoch: int = 0  # from 1
    epochs: int = 0
    loss: float = math.nan  # mean over the epoch so far
    accuracy: float = math.nan
    lr: float = math.nan
    images_per_second: float = math.nan
    row: dict[str, float] | None = None  # the epoch's row of history.csv, at stage "epoch"


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Learner:
    """A model and what it learns from, on one device."""

    model: nn.Module
    net: nn.Module  # the same model as a training step calls it: compiled, perhaps
    arithmetic: Precision
    policy: tuple[Transform, ...]
    normalise: Normalise
    images: Tensor  # (N, 3, H, W) uint8
    labels: Tensor  # (N,) int64

    @classmethod
    def make(cls, data: datasets.Dataset, recipe: Recipe, arithmetic: Precision, *, seed: int, device: torch.device) -> Learner:
        """A model of the recipe with the seed's weights, and the training images on `device`."""
        torch.manual_seed(_stream(seed, "weights"))
        model = models.build(recipe.model, classes=len(data.classes)).to(device)
        mean, std = data.normalisation
        return cls(
            model,
            arithmetic.prepare(model),
            arithmetic,
            bind(recipe.augment, mean),
            Normalise(mean, std, device),
            to_device(data.train.images, device),
            torch.from_numpy(data.train.labels).to(device),
        )

    def loss(self, net: nn.Module, chosen: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Mean cross entropy of the images `chosen` (B,), newly augmented, and how many of them are classified rightly."""
        chosen = chosen.to(self.images.device)
        x = self.arithmetic.format(self.normalise(augment(self.policy, self.images[chosen], generator)))
        y = self.labels[chosen]
        with self.arithmetic.autocast(x.device):
            logits = net(x)
        return F.cross_entropy(logits.float(), y), (logits.argmax(1) == y).sum()


def train(
    data: str | Path | datasets.Dataset,
    folder: str | Path,
    *,
    recipe: str | Path | Recipe = "classic",
    seed: int = 0,
    precision: str = "auto",
    device: str | None = None,
    data_dir: Path | None = None,
    size: int | None = None,
    skip_bad: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> Run:
    """Train `recipe` on `data` and return the finished run in `folder`; go on where a killed training of the same stopped.

    data: a name, a path or a Dataset.  device: "cpu", "cuda", … or None for the best there is.  precision: "auto" or a name in
    `precision.NAMED`.
    Raises RunError for a folder that holds something else, DataError for unusable data, RecipeError for an unusable recipe,
    TrainingError for a loss that is not finite. On one machine a seed gives the same weights, bit for bit, on a CPU.
    """
    folder, where = Path(folder), device_of(device)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    runs.prepare(folder)
    if not isinstance(data, datasets.Dataset):
        on_progress(Progress("load"))
        data = datasets.load(data, data_dir=data_dir, size=size, skip_bad=skip_bad)
    settings = {
        "recipe": recipe.to_dict(),
        "seed": seed,
        "data": _describe(data),
        "device": str(where),
        "precision": precision,
    }
    with runs.locked(folder), torch.random.fork_rng(devices=[]):  # the caller's random state comes back as it was
        return _train(data, folder, recipe, _plain(settings), where, on_progress)


def _train(
    data: datasets.Dataset, folder: Path, recipe: Recipe, settings: dict[str, Any], where: torch.device, on_progress: OnProgress
) -> Run:
    """The whole training, from its settings to the finished run."""
    n, batch, seed = len(data.train), min(recipe.batch_size, len(data.train)), settings["seed"]
    # The last, partial batch of an epoch is dropped: other images each time, and a single shape to compile for.
    steps, epochs = n // batch, recipe.epochs
    tensors, state = _resumed(folder, settings)
    if "arithmetic" not in state:
        on_progress(Progress("precision"))
        state["arithmetic"] = asdict(_arithmetic(settings["precision"], recipe, data, batch, steps * epochs, where))
    learner = Learner.make(data, recipe, Precision(**state["arithmetic"]), seed=seed, device=where)
    _try_out(learner, recipe, len(data.classes))
    if "max_lr" not in state:
        state["max_lr"], state["range_tests"] = recipe.max_lr, []
        if recipe.max_lr == "auto":
            # Short sweeps put the peak too low: the net can't learn enough before the rate is too high for it.
            tests = find_lr(learner, recipe, steps=min(200, max(60, steps * epochs // 10)), seed=seed, on_progress=on_progress)
            state["max_lr"], state["range_tests"] = suggested(tests), [test.to_dict() for test in tests]
        runs.save_state(folder, {}, state)
    model, optimizer = learner.model, make_optimizer(learner.model, recipe)
    _restore(model, optimizer, tensors)

    rate: Callable[[int], float] = partial(one_cycle, total=steps * epochs, max_lr=state["max_lr"], **recipe.cycle)
    history: list[dict[str, float]] = state.setdefault("history", [])
    for epoch in range(len(history), epochs):
        order = torch.randperm(n, generator=Generator().manual_seed(_stream(seed, "order", epoch)))
        begun = state.pop("within", {"step": 0, "loss": 0.0, "correct": 0, "seconds": 0.0})
        total_loss, correct, seconds = begun["loss"], begun["correct"], begun["seconds"]
        start = saved = time.perf_counter()
        model.train()
        for step in range(begun["step"], steps):
            stream = _stream(seed, "step", epoch, step)
            torch.manual_seed(stream)  # for what the model itself draws, such as dropout
            optimizer.param_groups[0]["lr"] = lr = rate(epoch * steps + step)

            chosen = order[step * batch : (step + 1) * batch]
            loss, right = learner.loss(learner.net, chosen, Generator().manual_seed(stream))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

            total_loss, correct, done = total_loss + loss.item() * batch, correct + int(right), (step + 1) * batch
            if not math.isfinite(total_loss):
                raise TrainingError(_not_finite(epoch + 1, lr))
            now = time.perf_counter()
            speed = (step + 1 - begun["step"]) * batch / (now - start)
            on_progress(Progress("train", step + 1, steps, epoch + 1, epochs, total_loss / done, correct / done, lr, speed))
            if now - saved > CHECKPOINT_SECONDS:
                within = {"step": step + 1, "loss": total_loss, "correct": correct, "seconds": seconds + now - start}
                runs.save_state(folder, _tensors(model, optimizer), {**state, "within": within})
                saved = now

        # The last epoch's test figures are those of the saved predictions, in float32.
        arithmetic = Precision() if epoch + 1 == epochs else learner.arithmetic
        watch = _testing(on_progress, epoch + 1, epochs)
        logits = predict(model, data.test, learner.normalise, arithmetic, on_progress=watch)
        predictions = Predictions.from_logits(logits, data.test.labels, data.test.ids, data.classes, "test")
        row = {
            "epoch": epoch + 1,
            "lr": rate((epoch + 1) * steps - 1),
            "train_loss": total_loss / (steps * batch),
            "train_accuracy": correct / (steps * batch),
            "test_loss": float(predictions.losses.astype(np.float64).mean()),
            "test_accuracy": float((predictions.predicted == predictions.labels).mean()),
            "seconds": seconds + time.perf_counter() - start,
        }
        if not math.isfinite(row["test_loss"]):
            raise TrainingError(_not_finite(epoch + 1, row["lr"]))
        history.append(row)
        if epoch + 1 < epochs:
            runs.save_state(folder, _tensors(model, optimizer), state)
        on_progress(Progress("epoch", epoch=epoch + 1, epochs=epochs, row=row))

    runs.write_weights(folder, model)
    runs.write_history(folder, history)
    predictions.write(folder)
    mean, std = data.normalisation
    info = {
        **settings,
        "normalisation": {"mean": mean, "std": std},
        "arithmetic": asdict(learner.arithmetic),
        "max_lr": state["max_lr"],
        "range_tests": state["range_tests"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "machine": machine(where),
        "versions": {
            "sightline": version("sightline"),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "results": {**history[-1], "n_test": len(data.test), "seconds": sum(row["seconds"] for row in history)},
    }
    return runs.finish(folder, info)


def make_optimizer(model: nn.Module, recipe: Recipe) -> Adam:
    """Adam with the recipe's L2 weight decay; the rate is set before each step."""
    return Adam(model.parameters(), lr=1e-3, weight_decay=recipe.weight_decay, fused=True)


@torch.inference_mode()
def predict(
    model: nn.Module,
    split: datasets.Split,
    normalise: Normalise,
    arithmetic: Precision,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Return the logits (N, K) float32 of a split's images, in the model's evaluation mode; its mode is restored."""
    device = normalise.shift.device
    images = to_device(split.images)
    batch = max(1, 500 * 32 * 32 // (images.shape[2] * images.shape[3]))  # memory goes by pixels
    was_training = model.training
    model.eval()
    parts = []
    for start in range(0, len(images), batch):
        x = arithmetic.format(normalise(images[start : start + batch].to(device)))
        with arithmetic.autocast(device):
            parts.append(model(x).float().cpu())
        on_progress(min(start + batch, len(images)), len(images))
    model.train(was_training)
    logits: NDArray[np.float32] = torch.cat(parts).numpy()
    return logits


def _testing(on_progress: OnProgress, epoch: int, epochs: int) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(Progress("test", done, total, epoch, epochs))


def find_lr(
    learner: Learner,
    recipe: Recipe,
    *,
    seed: int = 0,
    sweeps: int = 3,
    steps: int = 200,
    on_progress: OnProgress = lambda progress: None,
) -> list[RangeTest]:
    """Run `sweeps` range tests of the recipe on fresh draws of the images; model and random state come back as they were."""
    batch = min(recipe.batch_size, len(learner.images))
    tests: list[RangeTest] = []
    taken = count(1)
    for sweep in range(sweeps):
        optimizer = make_optimizer(learner.model, recipe)
        streams = (Generator().manual_seed(_stream(seed, "range test", sweep, i)) for i in range(steps))

        def step(lr: float, sweep: int = sweep, optimizer: Adam = optimizer, streams: Iterator[Generator] = streams) -> float:
            stream = next(streams)
            chosen = torch.randint(len(learner.images), (batch,), generator=stream)
            loss, _ = learner.loss(learner.model, chosen, stream)
            loss.backward()
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
            on_progress(Progress("range test", next(taken), sweeps * steps, loss=loss.item(), lr=lr))
            return loss.item()

        with _untouched(learner.model):
            tests.append(range_test(step, steps=steps))
    return tests


def range_tests(
    data: datasets.Dataset,
    recipe: Recipe,
    *,
    sweeps: int = 3,
    steps: int = 200,
    seed: int = 0,
    precision: str = "auto",
    device: str | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> list[RangeTest]:
    """Run the range test of `recipe` on `data` with fresh weights, as `train` does for a rate of "auto"."""
    where = device_of(device)
    batch = min(recipe.batch_size, len(data.train))
    on_progress(Progress("precision"))
    arithmetic = _arithmetic(precision, recipe, data, batch, sweeps * steps, where)
    learner = Learner.make(data, recipe, arithmetic, seed=seed, device=where)
    return find_lr(learner, recipe, sweeps=sweeps, steps=steps, seed=seed, on_progress=on_progress)


def suggested(tests: list[RangeTest]) -> float:
    """The median of the sweeps' *peak* suggestions. Raises TrainingError where no sweep found a descent."""
    found = [test.peak for test in tests if test.peak is not None]
    if not found:
        raise TrainingError("the range test found no rate at which the loss falls; give one with --max-lr, such as 0.01")
    return float(np.median(found))


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put the model's weights and buffers, its mode and torch's random state back at the end."""
    before, mode = copy.deepcopy(model.state_dict()), model.training
    with torch.random.fork_rng():
        model.train()
        try:
            yield
        finally:
            model.load_state_dict(before)
            model.train(mode)


def _stream(seed: int, *parts: str | int) -> int:
    """A seed for one purpose, independent of every other's."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@torch.no_grad()
def _try_out(learner: Learner, recipe: Recipe, classes: int) -> None:
    """Raise RecipeError unless the model turns two images into (2, classes) logits."""
    height, width = learner.images.shape[2:]
    what = f"the model '{recipe.model}', given images of {height}×{width} pixels,"
    mode = {module: module.training for module in learner.model.modules()}
    try:
        logits = learner.model.eval()(learner.normalise(learner.images[:2]).contiguous())
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise RecipeError(f"{what} fails ({str(error).splitlines()[0]}); change the model or the images' --size") from error
    finally:
        for module, training in mode.items():
            module.training = training
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (2, classes):
        raise RecipeError(f"{what} returns {shape} for two of them, not (2, {classes}): one logit a class is needed")
    if not any(p.requires_grad for p in learner.model.parameters()):
        raise RecipeError(f"{what} has no parameters to train")


def _describe(data: datasets.Dataset) -> dict[str, Any]:
    return {
        "name": data.name,
        "hash": data.content_hash,
        "classes": list(data.classes),
        "shape": list(data.train.images.shape[1:]),
        "n_train": len(data.train),
        "n_test": len(data.test),
        "skipped": list(data.skipped),
        **data.options,
    }


def _arithmetic(
    precision: str, recipe: Recipe, data: datasets.Dataset, batch: int, steps: int, device: torch.device
) -> Precision:
    def build() -> nn.Module:
        return models.build(recipe.model, classes=len(data.classes))

    shape = (batch, 3, *data.train.images.shape[1:3])
    return choose(precision, build, key=recipe.model, shape=shape, classes=len(data.classes), steps=steps, device=device)


def _resumed(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a killed training, or of a new one. Raises RunError where the killed one had other settings."""
    found = runs.load_state(folder)
    if found is None:
        return {}, {"settings": settings}
    tensors, state = found
    for key, value in settings.items():
        if state["settings"][key] != value:
            change = _difference(state["settings"][key], value)
            raise RunError(f"{folder} is an unfinished run with another {key} ({change}); give the same, or choose another -o")
    return tensors, state


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as JSON gives them back, lists for tuples, so that those of a killed run can be compared."""
    return cast(dict[str, Any], json.loads(json.dumps(settings)))


def _difference(then: Any, now: Any) -> str:
    """The first thing that differs, in a few words."""
    if isinstance(then, dict) and isinstance(now, dict):
        key = next(k for k in {**then, **now} if then.get(k) != now.get(k))
        return f"{key} {_difference(then.get(key), now.get(key))}"
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return next(_difference(a, b) for a, b in zip(then, now, strict=True) if a != b)
    return f"{str(then)[:60]}, now {str(now)[:60]}"


def _tensors(model: nn.Module, optimizer: Adam) -> dict[str, Tensor]:
    """Weights, buffers and the optimiser's memory under flat names."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for i, memory in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in memory.items()}
    return tensors


def _restore(model: nn.Module, optimizer: Adam, tensors: dict[str, Tensor]) -> None:
    """Inverse of `_tensors`; no tensors, no change."""
    if not tensors:
        return
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    parameters = list(model.parameters())
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            # The same strides as before: vectorised arithmetic may round differently at other places in memory.
            parameter = parameters[int(i)]
            same_shape = value.shape == parameter.shape
            optimizer.state[parameter][key] = (
                torch.empty_like(parameter).copy_(value) if same_shape else value.to(parameter.device)
            )


def _not_finite(epoch: int, lr: float) -> str:
    return (
        f"the loss stopped being finite in epoch {epoch}, at learning rate {lr:.3g}; with another -o, try a lower --max-lr "
        f"(such as {lr / 3:.2g}) or --precision fp32, or look for damaged images with `sightline data`"
    )


__all__ = ["Learner", "Progress", "find_lr", "predict", "range_tests", "suggested", "train"]
