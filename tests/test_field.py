"""What sets the field apart: mixtures whose shares are known, and models whose every loss is."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rules import SIDE, Rule, subject_of
from sightline.diagnosis import holds
from sightline.exceptions import DataError
from sightline.models import to_device
from sightline.probes import Finding, Subject, probe
from sightline.probes.field import BINS, CAUSES, CHANGES, binned, chosen, descriptors, mixture, pulls

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the mixture


def simplex(k: int, steps: int) -> NDArray[np.float64]:
    """All shares of k in steps of 1 / steps."""
    grid = itertools.product(range(steps + 1), repeat=k - 1)
    return np.array([(steps - sum(rest), *rest) for rest in grid if sum(rest) <= steps]) / steps


@pytest.mark.parametrize("seed", range(5))
def test_the_shares_are_the_best_of_all_that_sum_to_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    histograms, wanted, penalties = random.random((6, 3)), random.random(6), np.append(0, random.random(2) / 4)
    shares = mixture(histograms, wanted, penalties)
    tried = simplex(3, 200)

    def loss(some: NDArray[np.float64]) -> Any:
        return ((some @ histograms.T - wanted) ** 2).sum(-1) + 2 * some @ penalties

    assert shares.sum() == pytest.approx(1) and shares.min() >= 0
    assert loss(shares) <= loss(tried).min() + 1e-4  # TOGETHER keeps the sum at 1 but for a hair
    np.testing.assert_allclose(shares, tried[loss(tried).argmin()], atol=0.02)


def test_a_mixture_is_recovered_exactly_where_nothing_is_random() -> None:
    random = np.random.default_rng(0)
    histograms, true = random.random((30, 5)), np.array([0.4, 0, 0.35, 0.25, 0])
    np.testing.assert_allclose(mixture(histograms, histograms @ true, np.zeros(5)), true, atol=1e-4)


def test_penalties_above_the_pulls_leave_the_images_as_they_are_and_penalties_below_dont() -> None:
    random = np.random.default_rng(3)
    histograms = random.random((20, 4))
    wanted = histograms @ np.array([0.7, 0.3, 0, 0])
    pull = pulls(histograms, wanted)
    above = np.append(0, np.maximum(pull[1:], 0) + 1e-3)
    np.testing.assert_allclose(mixture(histograms, wanted, above), [1, 0, 0, 0], atol=1e-4)
    below = above - [0, 0.05, 0, 0]
    assert mixture(histograms, wanted, below)[1] > 0.01
    # What takes part is fitted again without the penalties: its share is not made smaller by them.
    halfway = np.append(0, 0.5 * np.maximum(pull[1:], 1e-3))
    assert mixture(histograms, wanted, halfway)[1] < 0.25 < chosen(histograms, wanted, halfway)[1]


# --- the numbers of an image


def test_descriptors_of_a_flat_image_are_its_level_and_nothing_else() -> None:
    flat = torch.full((1, 3, SIDE, SIDE), 51, dtype=torch.uint8)
    numbers = descriptors(flat)[0]
    light, spread, *quantiles = numbers[:7].tolist()
    assert light == pytest.approx(0.2, abs=1e-6) and spread == pytest.approx(0, abs=1e-6)
    assert quantiles == pytest.approx([0.2] * 5, abs=1e-6)
    assert set(np.round(numbers[7:].tolist(), 6)) == {0.0, 0.2, 1.0}  # no colour, no change; light by place; all of it flat


def test_descriptors_tell_a_diagonal_from_its_mirror_image_and_a_blur_from_noise() -> None:
    random = np.random.default_rng(0)
    rows = (np.arange(SIDE)[:, None] + np.arange(SIDE)) % 4 < 2
    stripes = torch.from_numpy(np.where(rows, 200, 50).astype(np.uint8)).expand(1, 3, SIDE, SIDE).contiguous()
    mirrored, noisy = stripes.flip(3), to_device(random.integers(0, 256, (1, SIDE, SIDE, 3), np.uint8))
    one, other, noise = (descriptors(images)[0] for images in (stripes, mirrored, noisy))
    assert (one[:13] - other[:13]).abs().max() < 0.05  # light and colour are the same
    assert (one - other).abs().max() > 0.4  # directions aren't
    assert noise[1] > 0.1 and (one - noise).abs().max() > 0.1


def test_an_image_of_one_block_has_numbers_too() -> None:
    assert descriptors(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).isfinite().all()


def test_each_number_falls_into_one_bin() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(50, 3))
    edges = np.quantile(values, np.arange(1, BINS) / BINS, axis=0)
    bins = binned(values, edges).reshape(50, 3, BINS)
    assert (bins.sum(2) == 1).all()
    assert (bins.sum(0) == 10).all()
    for i, d in itertools.product(range(50), range(3)):
        assert bins[i, d, sum(values[i, d] >= edge for edge in edges[:, d])] == 1


# --- the probe


def pictures(n: int, seed: int) -> NDArray[np.uint8]:
    """Clouds of all kinds of light, with a bright block somewhere."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.normal(0, 30, (n, 3, 4, 4)))
    clouds = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear").numpy().transpose(0, 2, 3, 1)
    images = clouds + random.uniform(110, 190, (n, 1, 1, 1)) + random.normal(0, 6, (n, SIDE, SIDE, 1))
    for image, row, column in zip(images, *random.integers(2, SIDE - 6, (2, n)), strict=True):
        image[row : row + 4, column : column + 4] += 40
    return np.clip(images, 0, 255).round().astype(np.uint8)


def half_dark(images: NDArray[np.uint8], share: float, light: float = 0.4) -> NDArray[np.uint8]:
    """The first share of the images with so much of their light."""
    changed = images.copy()
    dark = changed[: round(share * len(images))]
    dark[:] = (dark * light).round().astype(np.uint8)
    return changed


def sees_light(images: NDArray[np.uint8]) -> Subject:
    """A model that is right on all images but says 1 to all that are darker than any of them."""
    least = float(images.mean((1, 2, 3)).min())
    labels = np.zeros(len(images), np.int64)
    return subject_of(Rule(lambda x: (x.mean((1, 2, 3)) < 0.99 * least).long(), 2), images, labels, classes=2)


def by_cause(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.cause: finding for finding in findings}


def test_darkness_in_the_field_is_named_with_its_share_and_what_it_costs() -> None:
    subject, there = sees_light(pictures(300, 0)), half_dark(pictures(500, 1), 0.6)
    found = by_cause(probe(subject, field=there, only=["field"]))
    dark = found["lighting"]
    assert dark.probe == "field" and dark.n == 500
    # A rule that is wrong on all that is darker than any dev image loses nearly all of the dark share.
    truth = (subject.calls(to_device(there)) == 1).mean()
    assert truth > 0.5
    assert dark.low < truth < dark.high + 0.05 and dark.effect == pytest.approx(truth, abs=0.1)
    assert dark.detail["change"] == "darker" and dark.detail["magnitude"] == -0.6
    assert dark.detail["share"] == pytest.approx(0.6, abs=0.15)
    assert dark.p < 1e-6 and len(dark.rows) == 12
    assert [cause for cause, f in found.items() if holds(f.probe, cause, f.effect, f.p)] == ["lighting"]


def test_a_field_that_is_like_dev_loses_nothing() -> None:
    subject = sees_light(pictures(300, 0))
    for seed in range(1, 6):
        for finding in probe(subject, field=pictures(500, seed), only=["field"], seed=seed):
            assert not holds(finding.probe, finding.cause, finding.effect, finding.p)


def test_what_no_change_explains_is_blamed_on_none() -> None:
    """Stickers in the field are neither darkness nor noise nor anything else that is tried."""
    subject, there = sees_light(pictures(300, 0)), pictures(500, 1)
    there[:250, ::2, :6] = (255, 0, 255)
    found = probe(subject, field=there, only=["field"])
    assert [f.cause for f in found] == list(CAUSES)
    assert all(f.p == 1 and "it is something else" in f.detail["note"] for f in found)


def test_darkness_that_costs_nothing_is_no_cause() -> None:
    images = pictures(300, 0)
    indifferent = subject_of(Rule(lambda x: torch.zeros(len(x), dtype=torch.long), 2), images, np.zeros(300, np.int64), classes=2)
    found = by_cause(probe(indifferent, field=half_dark(pictures(500, 1), 0.6), only=["field"]))
    assert found["lighting"].detail["share"] > 0.4
    assert (found["lighting"].effect, found["lighting"].p) == (0.0, 1.0)


def test_there_is_a_finding_a_cause_and_without_images_none() -> None:
    subject = sees_light(pictures(120, 0))
    assert [f.cause for f in probe(subject, field=pictures(120, 1), only=["field"])] == list(CAUSES)
    assert probe(subject, only=["field"]) == []
    assert {change.curve.cause for change in CHANGES} == set(CAUSES)


def test_few_images_say_nothing_and_others_sizes_are_refused() -> None:
    subject = sees_light(pictures(120, 0))
    for finding in probe(subject, field=pictures(99, 1), only=["field"]):
        assert (finding.n, finding.p) == (0, 1.0) and "99 of the field" in finding.detail["note"]
    with pytest.raises(DataError, match=r"\(8, 16, 3\), not \(16, 16, 3\)"):
        probe(subject, field=pictures(120, 1)[:, :8])


def test_the_same_seed_finds_the_same() -> None:
    subject, there = sees_light(pictures(150, 0)), half_dark(pictures(200, 1), 0.5)
    first, again = (probe(subject, field=there, only=["field"], seed=4) for _ in range(2))
    assert [replace(f, detail={}) for f in first] == [replace(f, detail={}) for f in again]
