"""The one-cycle policy against torch's, and the range test on curves whose answer is known."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.schedule import one_cycle, range_test, suggest


def torch_rates(total: int, max_lr: float, peak: float, start: float, final: float, anneal: str) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr,
        total_steps=total,
        pct_start=peak,
        anneal_strategy="cos" if anneal == "cosine" else "linear",
        div_factor=1 / start,
        final_div_factor=start / final,
    )
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < total:
            schedule.step()
    return rates


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
@pytest.mark.parametrize("total, peak", [(1960, 0.25), (97, 0.3), (10, 0.5), (40, 0.9)])
def test_one_cycle_equals_torch_at_every_step(total: int, peak: float, anneal: str) -> None:
    expected = torch_rates(total, 0.0163, peak, 0.01, 0.0001, anneal)
    got = [one_cycle(i, total=total, max_lr=0.0163, peak=peak, start=0.01, final=0.0001, anneal=anneal) for i in range(total)]
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-15)


def test_the_classic_peak_comes_after_five_of_twenty_epochs() -> None:
    rates = [one_cycle(i, total=20 * 97, max_lr=1.0) for i in range(20 * 97)]
    assert int(np.argmax(rates)) == 5 * 97 - 1
    assert rates[0] == pytest.approx(1 / 100)
    assert rates[-1] == pytest.approx(1 / 100 / 100)


@given(
    total=st.integers(1, 3000),
    peak=st.floats(0.001, 0.999),
    start=st.floats(1e-6, 1.0),
    final=st.floats(1e-9, 1.0),
    anneal=st.sampled_from(["linear", "cosine"]),
)
def test_one_cycle_is_never_negative_and_never_above_its_peak(
    total: int, peak: float, start: float, final: float, anneal: str
) -> None:
    for step in {0, total // 3, total // 2, total - 1, total, total + 5}:
        assert 0 < one_cycle(step, total=total, max_lr=1.0, peak=peak, start=start, final=final, anneal=anneal) <= 1 + 1e-12


@given(total=st.integers(8, 500), peak=st.floats(0.1, 0.9))
def test_one_cycle_rises_then_falls(total: int, peak: float) -> None:
    rates = [one_cycle(i, total=total, max_lr=1.0, peak=peak) for i in range(total)]
    signs = [b > a for a, b in pairwise(rates)]
    assert signs == sorted(signs, reverse=True)


def textbook(lr: float) -> float:
    """A plateau at 2.3, a descent centred on 1e-3 in log-rate, and a divergence above 1."""
    return 2.3 - 1.3 / (1 + (1e-3 / lr) ** 2) + lr**2


def test_steepest_is_where_the_descent_is_steepest() -> None:
    test = range_test(textbook)
    assert test.steepest is not None
    assert abs(math.log10(test.steepest) + 3) < 0.06  # the logistic's centre


def test_peak_is_where_the_loss_is_lowest() -> None:
    from scipy.optimize import minimize_scalar

    lowest = minimize_scalar(lambda log_lr: textbook(10**log_lr), bounds=(-5, 1), method="bounded").x
    test = range_test(textbook)
    assert test.peak is not None
    assert abs(math.log10(test.peak) - lowest) < 0.06


def test_valley_lies_inside_the_descent_and_above_nothing_diverged() -> None:
    rates = np.geomspace(1e-5, 10, 200)
    test = suggest(rates, np.array([textbook(lr) for lr in rates]))
    minimum = rates[np.argmin(test.smooth)]
    assert test.valley is not None
    assert rates[0] < test.valley < minimum


def test_the_longest_descent_equals_a_search_of_all_subsequences() -> None:
    from itertools import combinations

    from sightline.schedule import _longest_descent

    random = np.random.default_rng(0)
    for _ in range(30):
        values = random.normal(size=9)
        best = max(
            (c for k in range(1, 10) for c in combinations(range(9), k) if all(values[a] > values[b] for a, b in pairwise(c))),
            key=len,
        )
        first, last = _longest_descent(values)
        longest = [
            c
            for c in combinations(range(9), len(best))
            if (c[0], c[-1]) == (first, last) and all(values[a] > values[b] for a, b in pairwise(c))
        ]
        assert longest, (values, first, last)


def test_noise_moves_the_suggestions_by_less_than_half_a_decade() -> None:
    rates = np.geomspace(1e-5, 10, 200)
    clean = np.array([textbook(lr) for lr in rates])
    steepest = [suggest(rates, clean + np.random.default_rng(i).normal(0, 0.05, 200)).steepest for i in range(20)]
    assert all(s is not None and abs(math.log10(s) + 3) < 0.5 for s in steepest)


def test_the_sweep_stops_at_divergence_and_at_a_loss_that_is_not_finite() -> None:
    seen: list[float] = []

    def diverges(lr: float) -> float:
        seen.append(lr)
        return textbook(lr)

    range_test(diverges)
    assert seen[-1] < 10
    test = range_test(lambda lr: textbook(lr) if lr < 0.1 else math.nan)
    assert test.lrs[-1] < 0.1
    assert np.isfinite(test.losses).all()


def test_a_flat_curve_gives_no_suggestion() -> None:
    test = range_test(lambda lr: 2.3)
    assert (test.steepest, test.valley, test.peak) == (None, None, None)
