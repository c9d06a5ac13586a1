"""Learning rates: the one-cycle policy as a pure function of the step, and the range test that finds its peak.

One-cycle: L. Smith, N. Topin 2018 (https://arxiv.org/abs/1708.07120). Range test: L. Smith 2017 (https://arxiv.org/abs/1506.01186).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

TOLD_APART = 0.02  # of the loss: what falls or rises by less is taken to be level
APART = 0.5  # decades: sweeps farther than this from their median disagree
RESOLUTION = 0.1  # decades: no fit places a suggestion closer than this, however well the sweeps agree


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
    smooth: the curve fitted to the losses. steepest, valley, peak: suggested rates, None where the curve has no descent to
    read them off.
    """

    lrs: NDArray[np.float64]
    losses: NDArray[np.float64]
    smooth: NDArray[np.float64]
    steepest: float | None
    valley: float | None
    peak: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, without the fitted curve, which `suggest` makes again."""
        suggestions = {"steepest": self.steepest, "valley": self.valley, "peak": self.peak}
        return {"lrs": self.lrs.tolist(), "losses": self.losses.tolist(), **suggestions}


@dataclass(frozen=True)
class Estimate:
    """A rate that several sweeps suggest: the median, over log-rate, of their suggestions.

    spread: decades from the median to the sweep farthest from it, at least 0.1; None with a single sweep, which can't tell.
    On simulated cases of three sweeps (tests/test_schedule.py), median ± spread held the steepest point in 98 % and the lowest
    in 87 %; where the noise was 3 % of the loss or more, in 96 % and 78 %.
    """

    lr: float
    spread: float | None

    @property
    def band(self) -> tuple[float, float]:
        """The rates `spread` below and above the median: the narrowest band around it that holds every sweep's suggestion."""
        factor: float = 10 ** (self.spread or 0.0)
        return self.lr / factor, self.lr * factor


@dataclass(frozen=True)
class Suggestion:
    """What the sweeps of a range test say together. *peak* is the rate for one-cycle; the others are for a constant rate.

    steepest, valley, peak: None where no sweep found a descent. doubts: why the peak may be wrong, a sentence each.
    """

    steepest: Estimate | None
    valley: Estimate | None
    peak: Estimate | None
    doubts: tuple[str, ...]

    @property
    def confident(self) -> bool:
        """Whether there is a peak and nothing speaks against it."""
        return self.peak is not None and not self.doubts

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values: of each suggestion its rate and spread, or None; the doubts, and whether there are none."""
        return {**asdict(self), "doubts": list(self.doubts), "confident": self.confident}


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
    """Fit a curve to a sweep's losses over log-rate and read *steepest*, *valley* and *peak* off it.

    The fit is local linear regression (see `_fit`): single spikes don't move it, and it doesn't lag as a running mean does.
    steepest: where the fitted line falls most steeply over log-rate, on the way to the minimum. valley: half-way along the
    longest decreasing subsequence of the fit up to there, the rule of fastai (https://docs.fast.ai/callback.schedule.html). Both
    are rates for a training at a constant rate. peak: where the fit is lowest, the end of the descent (see `_bottom`); there
    Smith puts the peak of one-cycle (https://arxiv.org/abs/1708.07120, section 4.1). None is given where the loss falls by less
    than 2 %.
    """
    if len(lrs) < 8:
        return RangeTest(lrs, losses, losses.copy(), None, None, None)
    smooth, _ = _fit(np.log10(lrs), losses, share=0.2)
    _, slope = _fit(np.log10(lrs), losses, share=0.3)  # noise hurts a slope more than a height
    bottom = _bottom(smooth)
    if bottom < 2 or smooth[bottom] > (1 - TOLD_APART) * smooth[:bottom].max():
        return RangeTest(lrs, losses, smooth, None, None, None)
    first, last = _longest_descent(smooth[: bottom + 1])
    steepest, valley = int(np.argmin(slope[: bottom + 1])), (first + last) // 2
    return RangeTest(lrs, losses, smooth, float(lrs[steepest]), float(lrs[valley]), float(lrs[bottom]))


def combine(tests: Sequence[RangeTest]) -> Suggestion:
    """Take the median of the sweeps' suggestions, measure how far they lie apart, and say what speaks against the peak.

    In doubt is a peak that sweeps put half a decade or more from their median, that only some of them (or one alone) found, or
    after which the loss of any never rose, so that a higher rate may be better.
    """
    peaks = [test.peak for test in tests]
    peak, n = _estimate(peaks), len(tests)
    missing = peaks.count(None)
    open_ended = sum(test.peak is not None and test.smooth[-1] < (1 + TOLD_APART) * test.smooth.min() for test in tests)
    doubts = []
    if missing:
        doubts.append(f"the loss fell in {n - missing} of {n} sweeps")
    if n == 1:
        doubts.append("a single sweep can't tell its spread")
    if peak is not None and (peak.spread or 0) >= APART:
        doubts.append(f"the sweeps' peaks lie up to {peak.spread:.1f} decades from their median")
    if open_ended:
        doubts.append(f"the loss did not rise again in {open_ended} of {n} sweeps: a higher rate may be better")
    steepest, valley = (_estimate([getattr(test, name) for test in tests]) for name in ("steepest", "valley"))
    return Suggestion(steepest, valley, peak, tuple(doubts))


def _bottom(smooth: NDArray[np.float64]) -> int:
    """Where the fit is lowest; but behind a rise only if it falls there by as much again as before, and clearly.

    At rates far too high a net ends by giving nearly the same answer for every image: its loss comes back from the rise, and the
    rate is no better for that. Where the net learned little before, that is the lowest loss of all. Rises of less than a fifth
    of what the loss had fallen are noise.
    """
    bottom, top = 0, smooth[0]  # top: the highest since the bottom
    for i, loss in enumerate(smooth):
        clear, fallen = 2 * TOLD_APART * smooth[bottom], smooth[0] - smooth[bottom]
        risen = top - smooth[bottom] > max(clear, fallen / 5)
        if loss < smooth[bottom] - (max(clear, fallen) if risen else 0):
            bottom, top = i, loss
        top = max(top, loss)
    return bottom


def _estimate(rates: Sequence[float | None]) -> Estimate | None:
    found = sorted(rate for rate in rates if rate is not None)
    if not found:
        return None
    median = math.sqrt(found[(len(found) - 1) // 2] * found[len(found) // 2])
    farthest = max(found[-1] / median, median / found[0])
    return Estimate(median, max(math.log10(farthest), RESOLUTION) if len(found) > 1 else None)


def _fit(x: NDArray[np.float64], y: NDArray[np.float64], share: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return height and slope, at each x, of a line fitted to that share of the points that is nearest.

    Nearer points weigh more (tricube), and outliers less the farther they lie from the previous fit (bisquare): LOWESS,
    W. Cleveland 1979 (https://doi.org/10.1080/01621459.1979.10481038).
    """
    away = x - x[:, None]
    distance = np.abs(away)
    reach = np.sort(distance, axis=1)[:, max(int(share * len(x)), 6) - 1, None]
    near = np.clip(1 - (distance / reach) ** 3, 0, None) ** 3
    trust = np.ones_like(y)
    for _ in range(4):
        weights = near * trust
        w, wx, wxx = weights.sum(1), (weights * away).sum(1), (weights * away**2).sum(1)
        wy, wxy = weights @ y, (weights * away) @ y
        determinant = w * wxx - wx**2
        height, slope = (wxx * wy - wx * wxy) / determinant, (w * wxy - wx * wy) / determinant
        residual = np.abs(y - height)
        # Without the floor a curve free of noise would have outliers: its own bends.
        scale = max(6 * float(np.median(residual)), 0.01 * float(np.median(np.abs(y))), 1e-12)
        # Never zero: where all the points near are outliers, the line is fitted to them.
        trust = np.clip(1 - (residual / scale) ** 2, 1e-4, None) ** 2
    # A divergence too sudden for lines ends the sweep with nothing but outliers: there the losses themselves are the curve.
    end = np.flatnonzero(y < height + scale)[-1] + 1
    height[end:] = y[end:]
    return height, slope


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
