"""The learning-rate range test of a recipe on its data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import torch
from torch import Generator, Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from .. import datasets
from ..allocation import kept_memory
from ..exceptions import TrainingError
from ..models import device_of
from ..recipe import Recipe
from ..schedule import RangeTest, Suggestion, combine, range_test
from .learner import Learner, choose_arithmetic, stream
from .optimizers import make_optimizer, set_rate
from .progress import OnProgress, Progress, silent

LONGEST = 200  # steps of a sweep
Drawn = tuple[tuple[Tensor, Tensor], Generator]


def sweep_steps(training: int) -> int:
    """The steps of a sweep for a training of so many: a tenth, but 60 to 200.

    Short sweeps put the peak too low: the net can't learn enough before the rate is too high for it.
    """
    return min(LONGEST, max(60, training // 10))


def find_lr(
    learner: Learner,
    recipe: Recipe,
    *,
    seed: int = 0,
    sweeps: int = 3,
    steps: int | None = None,
    on_progress: OnProgress = silent,
) -> list[RangeTest]:
    """Run `sweeps` range tests of the recipe on fresh draws of the images; model and random state come back as they were.

    steps: of each sweep; if not given, `sweep_steps` of the recipe's training, or LONGEST where with these none finds a descent.
    """
    some = steps or sweep_steps(sum(recipe.steps(len(learner.images))))
    tests = _sweep(learner, recipe, seed, sweeps, some, on_progress)
    if steps is None and some < LONGEST and all(test.peak is None for test in tests):
        tests = _sweep(learner, recipe, seed, sweeps, LONGEST, on_progress)
    return tests


def _sweep(learner: Learner, recipe: Recipe, seed: int, sweeps: int, steps: int, on_progress: OnProgress) -> list[RangeTest]:
    n = len(learner.images)
    batch = recipe.batch(n)
    tests: list[RangeTest] = []
    taken = count(1)
    for sweep in range(sweeps):
        optimizer = make_optimizer(learner.model, recipe, batch, learner.arithmetic)
        scaler = learner.arithmetic.scaler(learner.labels.device)
        streams = [Generator().manual_seed(stream(seed, "range test", sweep, i)) for i in range(steps)]
        order = torch.cat([torch.randint(n, (batch,), generator=generator) for generator in streams])
        batches = zip(learner.images.batches(order, batch), streams, strict=True)

        def step(
            lr: float, batches: Iterator[Drawn] = batches, optimizer: Optimizer = optimizer, scaler: GradScaler = scaler
        ) -> float:
            (chosen, images), generator = next(batches)
            loss = learner.loss(learner.model, chosen, images, generator).mean
            scaler.scale(loss).backward()
            set_rate(optimizer, lr)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            on_progress(Progress("range test", next(taken), sweeps * steps, loss=loss.item(), lr=lr))
            return loss.item()

        with _untouched(learner.model):
            tests.append(range_test(step, steps=steps))
    return tests


@kept_memory()
def range_tests(
    data: datasets.Dataset,
    recipe: Recipe,
    *,
    sweeps: int = 3,
    steps: int | None = None,
    seed: int = 0,
    precision: str = "auto",
    device: str | None = None,
    on_progress: OnProgress = silent,
) -> list[RangeTest]:
    """Run the range test of `recipe` on `data` with fresh weights, as `train` does for a rate of "auto".

    steps: as `find_lr` takes them.
    """
    where = device_of(device)
    on_progress(Progress("precision"))
    some = steps or sweep_steps(sum(recipe.steps(len(data.train))))
    arithmetic = choose_arithmetic(precision, recipe, data, sweeps * some, where)
    learner = Learner.make(data, recipe, arithmetic, seed=seed, device=where)
    return find_lr(learner, recipe, sweeps=sweeps, steps=steps, seed=seed, on_progress=on_progress)


def suggested(tests: Sequence[RangeTest]) -> tuple[float, Suggestion]:
    """The rate for one-cycle, the median of the sweeps' *peaks*, and all that they say together.

    Raises TrainingError where no sweep found a descent.
    """
    together = combine(tests)
    if together.peak is None:
        raise TrainingError("the range test found no rate at which the loss falls; give one with --max-lr, such as 0.01")
    return together.peak.lr, together


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
