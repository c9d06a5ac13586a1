"""Train a model and leave a run folder: one flat loop, top to bottom.

Every random number is a function of (seed, epoch, step), so a training that is killed and resumed takes the same steps as one
that isn't.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Generator, Tensor

from .. import datasets, runs
from ..allocation import give_back, kept_memory
from ..evaluation import predict, predict_views
from ..exceptions import RecipeError, RunError, TrainingError
from ..models import build, device_of
from ..precision import Precision, machine
from ..recipe import Recipe, load_recipe
from ..runs import Predictions, Run
from ..schedule import one_cycle
from . import memory
from .learner import Learner, Total, choose_arithmetic, scaled, stream
from .optimizers import Average, averaged, make_optimizer, set_rate
from .progress import OnProgress, Progress, silent
from .rate import find_lr, suggested
from .state import State

CHECKPOINT_SECONDS = 60.0
READ_SECONDS = 0.2  # how often an accelerator is asked for the loss
TIDY_SECONDS = 5.0  # how often free memory goes back to the system: gaps between what is in use grow with the steps
SETTLE_IMAGES = 10_000  # on which batch-norm statistics of averaged weights are measured


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
    dev: float = datasets.DEV,
    weights: Path | None = None,
    on_progress: OnProgress = silent,
) -> Run:
    """Train `recipe` on `data` and return the finished run in `folder`; go on where a killed training of the same stopped.

    data: a name, a path or a Dataset.  device: "cpu", "cuda", … or None for the best there is.  precision: "auto" or a name in
    `precision.NAMED`.  dev: the share of the training images that is held out, to be looked at: the run is judged on them, and
    the test images stay unseen; with 0 all images are learned from, and the run is judged on the test images. A Dataset says
    itself what is held out.  weights: a model.safetensors to start from, instead of the seed's weights.
    Raises RunError for a folder that holds something else, DataError for unusable data, RecipeError for an unusable recipe,
    TrainingError for a loss that is not finite. On one machine a seed gives the same weights, bit for bit, on a CPU.
    """
    folder, where = Path(folder), device_of(device)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    runs.prepare(folder)
    if not isinstance(data, datasets.Dataset):
        on_progress(Progress("load"))
        data = datasets.load(data, data_dir=data_dir, size=size, skip_bad=skip_bad, dev=dev)
    recipe = _growing(recipe, data)
    settings = {
        "recipe": recipe.to_dict(),
        "seed": seed,
        "data": _describe(data),
        "device": str(where),
        "precision": precision,
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None,
    }
    with runs.locked(folder), torch.random.fork_rng(devices=[]):  # the caller's random state comes back as it was
        return _train(data, folder, recipe, _plain(settings), weights, where, on_progress)


@kept_memory()  # not while data are loaded: what is left of that would lie between what a training keeps
def _train(
    data: datasets.Dataset,
    folder: Path,
    recipe: Recipe,
    settings: dict[str, Any],
    weights: Path | None,
    where: torch.device,
    on_progress: OnProgress,
) -> Run:
    """The whole training, from its settings to the finished run."""
    n, epochs, seed, (judged, held_out) = len(data.train), recipe.epochs, settings["seed"], data.judged
    batch = recipe.batch(n)
    steps = recipe.steps(n)
    work = [recipe.scale(epoch) ** 2 * steps[epoch] for epoch in range(epochs)]
    tensors, state = _resumed(folder, settings)
    if "arithmetic" not in state:
        on_progress(Progress("precision"))
        state["arithmetic"] = asdict(choose_arithmetic(settings["precision"], recipe, data, sum(steps), where))
    learner = Learner.make(data, recipe, Precision(**state["arithmetic"]), seed=seed, device=where)
    if weights:
        runs.read_weights(weights, learner.model)
    _try_out(learner, recipe, len(data.classes))
    _refuse_too_large(learner, batch, where)
    if "max_lr" not in state:
        state["max_lr"], state["range_tests"], state["suggestion"] = recipe.max_lr, [], None
        if recipe.max_lr == "auto":
            tests = find_lr(learner, recipe, seed=seed, on_progress=on_progress)
            state["max_lr"], together = suggested(tests)
            state["range_tests"], state["suggestion"] = [test.to_dict() for test in tests], together.to_dict()
        runs.save_state(folder, {}, state)
    model = learner.model
    optimizer = make_optimizer(model, recipe.with_(max_lr=state["max_lr"]), batch, learner.arithmetic)
    average = Average(model, averaged(recipe.ema, sum(steps))) if recipe.ema else None
    scaler = learner.arithmetic.scaler(where)
    now = State(model, optimizer, scaler, average, torch.full((n,), math.inf, device=where))
    now.restore(tensors)

    rate: Callable[[int], float] = partial(one_cycle, total=sum(steps), max_lr=state["max_lr"], **recipe.cycle)
    history: list[dict[str, float]] = state.setdefault("history", [])
    begin = len(history)
    for epoch in range(begin, epochs):
        begun = state.pop("within", None) or {"step": 0, "loss": 0.0, "correct": 0, "seconds": 0.0}
        if not begun["step"]:
            now.draw_order(recipe.kept(epoch), steps[epoch] * batch, Generator().manual_seed(stream(seed, "order", epoch)))
        give_back()
        total, seconds = Total(begun["loss"], begun["correct"]), begun["seconds"]
        start = saved = tidied = read = time.perf_counter()
        model.train()
        with closing(learner.images.batches(now.order[begun["step"] * batch :], batch)) as batches:
            for step, (chosen, images) in enumerate(batches, begun["step"]):
                number = stream(seed, "step", epoch, step)
                torch.manual_seed(number)  # for what the model itself draws, such as dropout
                set_rate(optimizer, lr := rate(sum(steps[:epoch]) + step))

                with memory.explained(_trial(learner), batch, where):
                    loss = learner.loss(learner.net, chosen, images, Generator().manual_seed(number), epoch, recipe.scale(epoch))
                    scaler.scale(loss.mean).backward()
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                if now.average:
                    now.average.update()
                if recipe.keep:
                    now.losses[chosen.to(where)] = loss.each
                total.add(loss)
                if step + 1 < steps[epoch] and not _due(time.perf_counter() - read, where):
                    continue
                total.read(batch)
                if not math.isfinite(total.loss):
                    raise TrainingError(_not_finite(epoch + 1, lr))
                read, done = time.perf_counter(), (step + 1) * batch
                share = (sum(work[:epoch]) + work[epoch] * (step + 1) / steps[epoch]) / sum(work)
                figures = (total.loss / done, total.right / done, lr, (done - begun["step"] * batch) / (read - start), share)
                on_progress(Progress("train", step + 1, steps[epoch], epoch + 1, epochs, *figures))
                if read - saved > CHECKPOINT_SECONDS:
                    spent = seconds + read - start
                    within = {"step": step + 1, "loss": total.loss, "correct": total.right, "seconds": spent}
                    runs.save_state(folder, now.tensors(), {**state, "within": within})
                    saved = time.perf_counter()
                if read - tidied > TIDY_SECONDS:
                    give_back()
                    tidied = time.perf_counter()

        give_back()
        last = epoch + 1 == epochs
        if last and now.average:
            on_progress(Progress("settle", epoch=epoch + 1, epochs=epochs))
            with learner.arithmetic.autocast(where):
                now.average.settle(model, _settling(learner, batch, seed, epoch))
        row = {
            "epoch": epoch + 1,
            "lr": rate(sum(steps[: epoch + 1]) - 1),
            "train_loss": total.loss / (steps[epoch] * batch),
            "train_accuracy": total.right / (steps[epoch] * batch),
            f"{judged}_loss": math.nan,
            f"{judged}_accuracy": math.nan,
        }
        if last or recipe.test_epochs == "all":
            # The last epoch's figures are those of the saved predictions, in float32.
            arithmetic = Precision() if last else learner.arithmetic
            watch = _testing(on_progress, epoch + 1, epochs)
            logits = predict(model, held_out, learner.normalise, arithmetic, on_progress=watch)
            predictions = Predictions.from_logits(logits, held_out.labels, held_out.ids, data.classes, judged)
            row[f"{judged}_loss"] = float(predictions.losses.astype(np.float64).mean())
            row[f"{judged}_accuracy"] = float((predictions.predicted == predictions.labels).mean())
            if not math.isfinite(row[f"{judged}_loss"]):
                raise TrainingError(_not_finite(epoch + 1, row["lr"]))
        history.append({**row, "seconds": seconds + time.perf_counter() - start})
        if not last:
            runs.save_state(folder, now.tensors(), state)
        on_progress(Progress("epoch", epoch=epoch + 1, epochs=epochs, row=history[-1]))

    results: dict[str, Any] = {**history[-1], f"n_{judged}": len(held_out), "seconds": sum(row["seconds"] for row in history)}
    if recipe.views != "none":
        on_progress(Progress("views"))
        seen = predict_views(model, held_out, learner.normalise, Precision(), logits, recipe.views)
        results["views_accuracy"] = float((seen.argmax(1) == held_out.labels).mean())
    runs.write_weights(folder, model)
    runs.write_history(folder, history)
    predictions.write(folder)
    mean, std = data.normalisation
    info = {
        **settings,
        "normalisation": {"mean": mean, "std": std},
        "arithmetic": asdict(learner.arithmetic),
        **{key: state[key] for key in ("max_lr", "range_tests", "suggestion")},
        "parameters": sum(p.numel() for p in model.parameters()),
        "machine": machine(where),
        "versions": {
            "sightline": version("sightline"),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "results": results,
    }
    return runs.finish(folder, info)


def _due(seconds: float, device: torch.device) -> bool:
    """Whether to read the loss `seconds` after the last time: to read it from an accelerator is to wait for all its work."""
    return device.type == "cpu" or seconds >= READ_SECONDS


def _settling(learner: Learner, batch: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Inputs as in training, of some thousand images."""
    generator = Generator().manual_seed(stream(seed, "settle"))
    order = torch.randperm(len(learner.images), generator=generator)[: max(batch, SETTLE_IMAGES)]
    with closing(learner.images.batches(order, batch)) as batches:
        for chosen, images in batches:
            yield learner.inputs(chosen, images, generator, epoch)[0]


def _trial(learner: Learner) -> Callable[[int], None]:
    """A step forward and back on so many images of noise, for finding out how many fit."""

    def step(images: int) -> None:
        learner.forward(images).float().sum().backward()
        learner.model.zero_grad()

    return step


def _refuse_too_large(learner: Learner, batch: int, device: torch.device) -> None:
    """Raise TrainingError where a batch is certain not to fit, before the operating system kills the process for it."""
    free = memory.available(device)
    if free is None or learner.arithmetic.compiled:
        return
    before = [(buffer, buffer.clone()) for buffer in learner.model.buffers()]
    an_image, besides = memory.kept_bytes(learner.forward)
    for buffer, value in before:
        buffer.copy_(value)  # noise is not for batch norm's statistics
    if an_image * batch + besides > free:
        raise memory.too_large(batch, max(0, int(0.8 * (free - besides) / max(an_image, 1))), device)


def _testing(on_progress: OnProgress, epoch: int, epochs: int) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(Progress("test", done, total, epoch, epochs))


def _growing(recipe: Recipe, data: datasets.Dataset) -> Recipe:
    """The recipe; where its model takes images of one size only, such as one that flattens them, without smaller ones."""
    if not recipe.sizes or ":" not in recipe.model:
        return recipe
    with torch.random.fork_rng(devices=[]):
        model = build(recipe.model, classes=len(data.classes)).eval()
    whole = torch.zeros(2, 3, *data.train.images.shape[1:3])
    if not _takes(model, whole) or all(_takes(model, scaled(whole, scale)) for _, scale in recipe.sizes):
        return recipe  # what the model can't do at full size, `_try_out` says
    logging.getLogger(__name__).warning(
        "'%s' takes images of one size only, so that they don't grow as the recipe has it", recipe.model
    )
    return recipe.with_(sizes=())


@torch.no_grad()
def _takes(model: torch.nn.Module, images: Tensor) -> bool:
    try:
        model(images)
    except Exception:  # somebody's model: anything can go wrong
        return False
    return True


@torch.no_grad()
def _try_out(learner: Learner, recipe: Recipe, classes: int) -> None:
    """Raise RecipeError unless the model turns two images into (2, classes) logits."""
    height, width = learner.images.shape
    what = f"the model '{recipe.model}', given images of {height}×{width} pixels,"
    mode = {module: module.training for module in learner.model.modules()}
    try:
        logits = learner.model.eval()(learner.normalise(learner.images.take(torch.arange(2))).contiguous())
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
        "n_dev": 0 if data.dev is None else len(data.dev),
        "skipped": list(data.skipped),
        **data.options,
    }


def _resumed(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a killed training, or of a new one. Raises RunError where the killed one had other settings."""
    found = runs.load_state(folder)
    if found is None:
        return {}, {"settings": settings}
    tensors, state = found
    for key, value in settings.items():
        if state["settings"].get(key) != value:
            change = _difference(state["settings"].get(key), value)
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


def _not_finite(epoch: int, lr: float) -> str:
    return (
        f"the loss stopped being finite in epoch {epoch}, at learning rate {lr:.3g}; with another -o, try a lower --max-lr "
        f"(such as {lr / 3:.2g}) or --precision fp32, or look for damaged images with `sightline data`"
    )
