"""Learning rates: the one-cycle policy as a pure function of the step, and the range test that finds its peak.

One-cycle: L. Smith, N. Topin 2018 (https://arxiv.org/abs/1708.07120). Range test: L. Smith 2017 (https://arxiv.org/abs/1506.01186).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


def one_cycle(
    step: float,
    *,
    total: int,
    max_lr: float,
    peak: float = 0.25,
    start: float = 0.01,
    final: float = 0.0001,
    anneal: Literal["linear", "cosine"] = "linear",
) -> float:
    """Return the learning rate of step `step`, 0 ≤ step < total.

    From start·max_lr up to max_lr at step peak·total − 1, then down to final·max_lr at the last step: the same positions as
    torch.optim.lr_scheduler.OneCycleLR's two phases with div_factor = 1/start and final_div_factor = start/final. It is
    never negative: beyond either end it stays at the end's value.
    """
    top = max(peak * total - 1, 0.0)
    last = max(total - 1, 1)
    if step <= top and top > 0:
        low, high, progress = start, 1.0, max(step, 0) / top
    else:
        low, high, progress = 1.0, final, min((step - top) / max(last - top, 1e-12), 1.0)
    if anneal == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return max_lr * (low + (high - low) * progress)


@dataclass(frozen=True)
class RangeTest:
    """One sweep of the range test.

    lrs, losses: (steps taken,) float64, the rate of each step and the training loss *before* the step at that rate.
    smooth: the losses smoothed. steepest, valley, peak: suggested rates, None where the curve has no descent to read them off.
    """

    lrs: NDArray[np.float64]
    losses: NDArray[np.float64]
    smooth: NDArray[np.float64]
    steepest: float | None
    valley: float | None
    peak: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, without the smoothed curve, which `suggest` makes again."""
        suggestions = {"steepest": self.steepest, "valley": self.valley, "peak": self.peak}
        return {"lrs": self.lrs.tolist(), "losses": self.losses.tolist(), **suggestions}


def range_test(step: Callable[[float], float], *, steps: int = 200, low: float = 1e-5, high: float = 10.0) -> RangeTest:
    """Sweep the learning rate exponentially from `low` to `high` and read three suggestions off the curve.

    `step(lr)` takes one optimiser step at that rate and returns the loss it started from; the caller restores the model.
    The sweep stops early at a loss that is not finite, and where the smoothed loss is twice its best and 1.3 times its first.
    """
    rates = np.geomspace(low, high, steps)
    losses: list[float] = []
    average, best = 0.0, math.inf
    for i, rate in enumerate(rates):
        loss = step(float(rate))
        if not math.isfinite(loss):
            break
        losses.append(loss)
        average = 0.9 * average + 0.1 * loss
        debiased = average / (1 - 0.9 ** (i + 1))
        best = min(best, debiased)
        if debiased > max(2 * best, 1.3 * losses[0]):
            break
    return suggest(rates[: len(losses)], np.array(losses))


def suggest(lrs: NDArray[np.float64], losses: NDArray[np.float64]) -> RangeTest:
    """Smooth a sweep's losses and read *steepest*, *valley* and *peak* off it.

    Smoothing is a centred Gaussian over log-rate, which doesn't lag as a running mean does. steepest: where the smoothed loss
    falls fastest per unit of log-rate, on the way to its minimum. valley: half-way along the longest decreasing subsequence of
    the smoothed losses, the rule of fastai (https://docs.fast.ai/callback.schedule.html). Both are rates for a training at a
    constant rate. peak: where the smoothed loss is lowest, the end of the descent; there Smith puts the peak of one-cycle
    (https://arxiv.org/abs/1708.07120, section 4.1). None is given where the loss falls by less than 2 %.
    """
    if len(lrs) < 8:
        return RangeTest(lrs, losses, losses.copy(), None, None, None)
    smooth = _smooth(losses, sigma=len(lrs) / 40)
    bottom = int(np.argmin(smooth))
    if bottom < 2 or smooth[bottom] > 0.98 * smooth[:bottom].max():
        return RangeTest(lrs, losses, smooth, None, None, None)
    slope = np.gradient(smooth, np.log(lrs))[: bottom + 1]
    first, last = _longest_descent(smooth)
    steepest, valley = int(np.argmin(slope)), (first + last) // 2
    return RangeTest(lrs, losses, smooth, float(lrs[steepest]), float(lrs[valley]), float(lrs[bottom]))


def _smooth(values: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Average with Gaussian weights, renormalised at the ends."""
    position = np.arange(len(values))
    weights = np.exp(-0.5 * ((position[:, None] - position) / sigma) ** 2)
    smooth: NDArray[np.float64] = (weights @ values) / weights.sum(1)
    return smooth


def _longest_descent(values: NDArray[np.float64]) -> tuple[int, int]:
    """First and last index of the longest strictly decreasing subsequence, the earliest of several."""
    length, first = np.ones(len(values), int), np.arange(len(values))
    for i in range(1, len(values)):
        above = np.flatnonzero(values[:i] > values[i])
        if len(above):
            j = above[np.argmax(length[above])]
            length[i], first[i] = length[j] + 1, first[j]
    last = int(np.argmax(length))
    return int(first[last]), last
