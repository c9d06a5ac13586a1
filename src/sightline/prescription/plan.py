"""What a fix costs, what fits into a budget, and what its numbers say: no training, no model, no disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import scipy

from ..exceptions import TrainingError

VARIETY = "variety"
ARM_WORDS = {  # an arm, and how a person is told of it
    "current": "the recipe as it is",
    "sham": "the same again (sham)",
    "prescription": "with the edit",
    VARIETY: "with more variety instead",
    "generic": "TrivialAugment + Cutout instead",
}
ARMS = tuple(ARM_WORDS)  # the last is the first to be left out where time is short
NEEDED = ARMS[:3]  # without these nothing is proved
SEEDS = 3  # of each arm, where neither seeds nor a budget are given
MOST_SEEDS = 5
POWER = 0.8
LEAST_GAIN = 0.05  # of a group's accuracy: less is no effect worth a change of the recipe
LEAST_ACCURACY = 0.005  # of the accuracy on all images: the same

Outcome = Literal["fixed", "risk reduced", "traded", "no effect", "cannot tell"]
PROVED = ("fixed", "risk reduced", "traded")


@dataclass(frozen=True)
class Interval:
    """A difference or a rate, as a fraction, with its 95 % interval."""

    value: float
    low: float
    high: float

    def minus(self, other: Interval) -> Interval:
        """The difference to an independent one, whose interval follows from the two.

        Zou and Donner 2008, https://doi.org/10.1002/sim.3095: each limit of the difference from the limits that lie that way.
        """
        value = self.value - other.value
        below = math.hypot(self.value - self.low, other.high - other.value)
        above = math.hypot(self.high - self.value, other.value - other.low)
        return Interval(value, value - below, value + above)

    def widened(self, comparisons: int) -> Interval:
        """The interval that holds for each of so many comparisons together (Bonferroni)."""
        factor = float(scipy.stats.norm.isf(0.025 / max(comparisons, 1)) / scipy.stats.norm.isf(0.025))
        return Interval(self.value, self.value - factor * (self.value - self.low), self.value + factor * (self.high - self.value))

    @property
    def detectable(self) -> float:
        """The smallest effect that an interval of this width tells from nothing with a power of 80 %."""
        return float((self.high - self.low) / 2 * (1 + scipy.stats.norm.ppf(POWER) / scipy.stats.norm.isf(0.025)))


class Costs(NamedTuple):
    """Seconds: of one full training, of one short fine-tune, of one probe again and of all of them, each for one net."""

    training: float
    tuning: float
    probe: float
    probes: float


@dataclass(frozen=True)
class Budget:
    """What is run: `seeds` nets of each of `arms`, after as many short fine-tunes of each of `candidates` edits; in `seconds`."""

    seeds: int
    arms: tuple[str, ...]
    candidates: int
    seconds: float


def plan_budget(
    costs: Costs, candidates: int, *, variety: bool = False, budget: float | None = None, seeds: int | None = None
) -> Budget:
    """Return how much of the whole plan fits into `budget` seconds.

    candidates: the edits that could be tried.  variety: whether it has an arm of its own.  seeds: of each arm; None for as many
    as fit, at most 5, or 3 where no budget is given. Seeds are given up first, then the generic arm, then that of variety, then
    edits, the least promising first.
    Raises TrainingError for a budget that is too short for one seed of the three arms that a proof needs, and for seeds below 1.
    """
    if seeds is not None and seeds < 1:
        raise TrainingError(f"a fix with {seeds} seeds can't be tried; give at least 1")
    if budget is None:
        return _planned(costs, seeds or SEEDS, _arms(ARMS, variety), candidates)
    counts = [seeds] if seeds else range(MOST_SEEDS, 0, -1)
    whole = [(k, _arms(arms, variety), candidates) for arms in (ARMS, ARMS[:-1]) for k in counts]
    less = [(k, NEEDED, n) for n in range(candidates, min(candidates, 1) - 1, -1) for k in counts]
    plans = [_planned(costs, *option) for option in (*whole, *less)]
    fitting = next((plan for plan in plans if plan.seconds <= budget), None)
    if fitting is None:
        least = clock(plans[-1].seconds)
        raise TrainingError(f"a budget of {clock(budget)} proves nothing here; the least takes about {least}: give that or more")
    return fitting


def _arms(arms: tuple[str, ...], variety: bool) -> tuple[str, ...]:
    return tuple(arm for arm in arms if variety or arm != VARIETY)


def _planned(costs: Costs, seeds: int, arms: tuple[str, ...], candidates: int) -> Budget:
    pruning = (candidates + 1) * (costs.tuning + costs.probe) if candidates else 0.0  # one more for the sham
    proving = len(arms) * costs.training + len(NEEDED) * costs.probes
    return Budget(seeds, arms, candidates, seeds * (pruning + proving))


def verdict(
    kind: Literal["cost", "risk", "variety"],
    primary: Interval,
    accuracy: Interval,
    worse: Sequence[str],
    least: float = LEAST_GAIN,
) -> Outcome:
    """Return what the numbers say; gains are above 0.

    primary: what was to improve, beyond the sham. Of a "cost" the accuracy, on the group that was held back or, where that is
    small, on all images, as of "variety"; of a "risk" what its probe finds less.  accuracy: the change on all test images.
    worse: classes and other probes that are worse beyond their interval.  least: the smallest gain of `primary` that matters.

    fixed          proved, and it was about accuracy, or accuracy rises
    risk reduced   proved, of a risk: accuracy is what it was
    traded         proved, but accuracy, a class or another probe is worse
    no effect      a gain that would matter is excluded
    cannot tell    neither
    """
    if primary.low > 0:
        if worse or accuracy.high < 0:
            return "traded"
        return "fixed" if kind != "risk" or accuracy.low > 0 else "risk reduced"
    return "no effect" if primary.high < least else "cannot tell"


def clock(seconds: float) -> str:
    """A time in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 5400 else f"{math.ceil(seconds / 360) / 10:g} h"
