"""What a probe finds, and the statistics that all probes share: each beside a sham, exact where counts are small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts are loaded where they are first used: they take a second
from numpy.typing import NDArray

from ..mistakes import newcombe

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

FEWEST = 20  # images without which a probe says nothing
SHOWN = 12  # rows that a finding names


class Effect(NamedTuple):
    """How much more often something happens under a probe than under its sham, in `n` images.

    rate, sham: the two shares.  effect: their difference, with its 95 % interval low to high.  p: one-sided, of no effect or
    a negative one.
    """

    rate: float
    sham: float
    effect: float
    low: float
    high: float
    p: float
    n: int


NO_EFFECT = Effect(0.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0)  # of no images: nothing is known


@dataclass(frozen=True)
class Finding:
    """What one probe found, of all images or of a class: what it changes beyond its sham.

    probe: its name.  cause: the id of the cause that it speaks for; "gate" and "data" speak for none alone.  label: the class
    that it is tied to, or None.  rate, sham, effect, low, high, p, n: as in `Effect`.
    repaired: the share of the mistakes that were tried which become right under the probe, minus the share under the sham; of
    curves, minus the share of right answers that are lost, too.
    repairs: the rows of the split that become right under the probe and not under the sham.  rows: up to 12 rows of the split
    that show best what it finds.  detail: JSON-ready values of its own; "note" says why nothing could be measured.
    """

    probe: str
    cause: str
    label: int | None
    rate: float
    sham: float
    effect: float
    low: float
    high: float
    p: float
    n: int
    repaired: float = 0.0
    repairs: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)


def found(
    probe: str,
    cause: str,
    label: int | None,
    effect: Effect,
    *,
    repaired: float = 0.0,
    repairs: Sequence[int] | Integers = (),
    rows: Sequence[int] | Integers = (),
    **detail: Any,
) -> Finding:
    """Return a finding of plain Python values; of more than SHOWN rows the first are kept."""
    rate, sham, difference, low, high, p = map(float, effect[:-1])
    mended, shown = (tuple(int(row) for row in some) for some in (repairs, rows[:SHOWN]))
    return Finding(probe, cause, label, rate, sham, difference, low, high, p, effect.n, float(repaired), mended, shown, detail)


def nothing(probe: str, cause: str, label: int | None, note: str) -> Finding:
    """Return the finding of a probe that couldn't be made; `note` says why."""
    return found(probe, cause, label, NO_EFFECT, note=note)


def paired(probes: Bools, shams: Bools) -> Effect:
    """Return the effect of a change of N images, made once, (N,), or R times, (N, R), beyond K shams of the same, (N, K).

    True is where it happened. p is exact and conditional: of an image's R + K changes each is as likely as the others to be
    among those under which it happened, so of m such changes those that are probes follow the hypergeometric distribution. With
    one probe and one sham that is McNemar's exact test. The interval is Agresti and Min's (2005,
    https://doi.org/10.1002/sim.1781): Wald's, with half an image added to each of the four cells of a pair.
    """
    n, count = shams.shape
    if not n:
        return NO_EFFECT
    made = probes.reshape(n, -1)
    times, total = made.shape[1], made.shape[1] + count
    difference = made.mean(1) - shams.mean(1)
    often = made.sum(1) + shams.sum(1)
    chances = scipy.stats.hypergeom.pmf(np.arange(times + 1), total, np.arange(total + 1)[:, None], times)[often]
    centre = difference.sum() / (n + 2)
    spread = np.sqrt(((difference**2).sum() + 1) / (n + 2) - centre**2)
    half = scipy.stats.norm.ppf(0.975) * spread / np.sqrt(n + 2)
    p = at_least(int(made.sum()), chances)
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Effect(float(made.mean()), float(shams.mean()), float(difference.mean()), low, high, p, n)


def differing(probe: Floats, sham: Floats) -> Effect:
    """Return the effect of a change on a share of each of N images, beyond that of its sham: (N,) each, from 0 to 1.

    p and interval are Student's, of the differences.
    """
    n, difference = len(probe), probe - sham
    if n < 2:
        return NO_EFFECT
    mean, error = float(difference.mean()), float(difference.std(ddof=1)) / np.sqrt(n)
    half = float(scipy.stats.t.ppf(0.975, n - 1)) * error
    p = float(scipy.stats.t.sf(mean / error, n - 1)) if error else 1.0 - (mean > 0)
    return Effect(float(probe.mean()), float(sham.mean()), mean, max(-1.0, mean - half), min(1.0, mean + half), p, n)


def unpaired(happened: int, n: int, happened_else: int, n_else: int) -> Effect:
    """Return the effect where probe and sham are made on different images.

    p is Fisher's exact test, the interval Newcombe's.
    """
    if not n or not n_else:
        return NO_EFFECT
    rate, sham = happened / n, happened_else / n_else
    low, high = newcombe((happened, happened_else), (n, n_else))
    p = float(scipy.stats.hypergeom.sf(happened - 1, n + n_else, happened + happened_else, n))
    return Effect(rate, sham, rate - sham, low, high, p, n)


def by_normal(rate: float, sham: float, deviation: float, n: int) -> Effect:
    """Return the effect of a rate beyond its sham whose difference is normal, with that standard deviation."""
    half, effect = float(scipy.stats.norm.ppf(0.975)) * deviation, rate - sham
    return Effect(
        rate, sham, effect, max(-1.0, effect - half), min(1.0, effect + half), float(scipy.stats.norm.sf(effect / deviation)), n
    )


def stands_out(rate: float, shams: Floats) -> float:
    """Return the one-sided p of a rate that is one more of those of K shams, by Student's t: shams (K,).

    What changes all images alike, such as one patch, is a sample of one, however many the images: it has to be told from
    other patches too, not from their mean alone. Of fewer than two nothing can be said: 1.
    """
    if len(shams) < 2:
        return 1.0
    spread = float(shams.std(ddof=1)) * np.sqrt(1 + 1 / len(shams))
    above = rate - float(shams.mean())
    if spread == 0:
        return 0.0 if above > 0 else 1.0
    return float(scipy.stats.t.sf(above / spread, len(shams) - 1))


def at_least(count: int, chances: Floats) -> float:
    """Return the probability that `count` or more of independent events happen.

    chances: (N,), of N events, or (N, R + 1), that 0 to R of the R in each of N groups happen.
    """
    together = np.ones(1)
    for group in np.stack([1 - chances, chances], 1) if chances.ndim == 1 else chances:
        together = np.convolve(together, group)
    return float(min(1.0, together[max(0, count) :].sum()))


def repairs(rows: Integers, probe: Bools, sham: Bools) -> dict[str, Any]:
    """Return `repaired` and `repairs` of a finding: mistakes `rows` (N,), right under the probe (N,) or its sham (N,)."""
    repaired = float(probe.mean() - sham.mean()) if len(rows) else 0.0
    return {"repaired": repaired, "repairs": rows[probe & ~sham]}
