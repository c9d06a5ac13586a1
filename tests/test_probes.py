"""Probes: each on a hand-made model whose every rate is known, and each statistic against a second one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from rules import LEVELS, MIDDLE, SIDE, K, Rule, middle, nearest_level, one, scenes, subject_of
from sightline.datasets import Dataset, Split, hold_out
from sightline.exceptions import DataError, RecipeError, RunError
from sightline.probes import PROBES, Finding, Subject, probe
from sightline.probes import labels as labels_module
from sightline.probes.deletion import extreme, moved_round
from sightline.probes.evidence import at_least, differing, paired, repairs, stands_out, unpaired
from sightline.probes.features import areas, deviation
from sightline.probes.objects import centres, objects, resized, shuffled, surfaced, swatches, without
from sightline.probes.scenes import told_apart
from sightline.probes.sensitivity import CURVES, Draws, scattered, shaded
from sightline.probes.subject import representative
from sightline.recipe import Recipe
from sightline.training import train

pytestmark = pytest.mark.usefixtures("one_thread")


def false_discovery_rates(findings: list[Finding]) -> NDArray[np.float64]:
    return np.asarray(stats.false_discovery_control([finding.p for finding in findings]))


# --- statistics


@pytest.mark.parametrize(
    ("both", "probe_only", "sham_only", "neither"), [(3, 9, 2, 40), (0, 0, 5, 9), (5, 1, 0, 0), (0, 12, 12, 3)]
)
def test_with_one_sham_the_p_is_mcnemars_exact_test(both: int, probe_only: int, sham_only: int, neither: int) -> None:
    happened = np.repeat([True, True, False, False], [both, probe_only, sham_only, neither])
    sham = np.repeat([True, False, True, False], [both, probe_only, sham_only, neither])
    effect = paired(happened, sham[:, None])
    expected = stats.binomtest(probe_only, max(1, probe_only + sham_only), alternative="greater").pvalue
    assert effect.p == pytest.approx(expected)
    assert effect.effect == pytest.approx((probe_only - sham_only) / len(sham))
    assert (effect.rate, effect.sham, effect.n) == pytest.approx((happened.mean(), sham.mean(), len(sham)))


def test_with_several_shams_the_p_counts_all_ways_in_which_it_could_have_happened() -> None:
    table = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]], bool)  # the probe, two shams
    as_often = 0
    ways = list(product(range(3), repeat=len(table)))
    for way in ways:  # which of the three is called the probe, image by image
        as_often += sum(int(row[i]) for row, i in zip(table, way, strict=True)) >= table[:, 0].sum()
    assert paired(table[:, 0], table[:, 1:]).p == pytest.approx(as_often / len(ways))


def test_a_change_made_several_times_is_compared_in_all_ways_of_dealing_each_images_changes() -> None:
    probes, shams = np.array([[1, 1], [1, 0], [0, 1]], bool), np.array([[0, 1], [0, 0], [0, 1]], bool)
    both, as_often, ways = np.concatenate([probes, shams], 1), 0, list(product(combinations(range(4), 2), repeat=3))
    for way in ways:  # which two of the four are called the probe, image by image
        as_often += sum(row[list(some)].sum() for row, some in zip(both, way, strict=True)) >= probes.sum()
    effect = paired(probes, shams)
    assert effect.p == pytest.approx(as_often / len(ways))
    assert (effect.rate, effect.sham, effect.effect, effect.n) == pytest.approx((4 / 6, 2 / 6, 2 / 6, 3))
    assert paired(probes[:, :1], shams) == paired(probes[:, 0], shams)


def test_the_interval_of_pairs_adds_half_a_pair_to_each_cell() -> None:
    both, probe_only, sham_only, neither = 3.5, 9.5, 2.5, 40.5
    n = both + probe_only + sham_only + neither
    centre = (probe_only - sham_only) / n
    half = 1.959964 * np.sqrt((probe_only + sham_only) - (probe_only - sham_only) ** 2 / n) / n
    happened = np.repeat([True, True, False, False], [3, 9, 2, 40])
    sham = np.repeat([True, False, True, False], [3, 9, 2, 40])
    effect = paired(happened, sham[:, None])
    assert (effect.low, effect.high) == pytest.approx((centre - half, centre + half))


@pytest.mark.parametrize("shams", [1, 3])
def test_the_interval_covers_the_truth_in_95_of_100_and_the_p_is_small_as_rarely_as_it_says(shams: int) -> None:
    random, covered, low_p = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        unsteady = random.uniform(0.0, 0.4, 150)  # images differ
        draws = random.random((150, 1 + shams)) < unsteady[:, None]
        happened = draws[:, 0] | (random.random(150) < 0.2)
        truth = 0.2 * (1 - 0.2)
        effect = paired(happened, draws[:, 1:])
        covered += effect.low <= truth <= effect.high
        low_p += paired(draws[:, 0], draws[:, 1:]).p <= 0.05
    assert 0.93 <= covered / 2000 <= 0.97
    assert low_p / 2000 <= 0.06


def test_shares_are_compared_by_students_test_of_pairs() -> None:
    random = np.random.default_rng(3)
    probe_, sham = random.uniform(0, 1, 40), random.uniform(0, 0.8, 40)
    effect, reference = differing(probe_, sham), stats.ttest_rel(probe_, sham, alternative="greater")
    assert effect.p == pytest.approx(reference.pvalue)
    interval = stats.ttest_rel(probe_, sham).confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))
    assert (effect.rate, effect.sham, effect.n) == pytest.approx((probe_.mean(), sham.mean(), 40))
    assert differing(sham, sham).p == 1.0
    assert differing(sham + 0.1, sham).p < 1e-9


def test_the_unpaired_p_is_fishers() -> None:
    effect = unpaired(9, 20, 4, 30)
    assert effect.p == pytest.approx(stats.fisher_exact([[9, 11], [4, 26]], alternative="greater").pvalue)
    assert effect.effect == pytest.approx(9 / 20 - 4 / 30)
    assert effect.low < effect.effect < effect.high


def test_the_chance_of_so_many_events_is_that_of_all_their_combinations() -> None:
    chances = np.array([0.1, 0.5, 0.9, 1.0, 0.0, 0.3])
    for count in range(8):
        expected = 0.0
        for happens in product([False, True], repeat=len(chances)):
            if sum(happens) >= count:
                expected += float(np.prod(np.where(happens, chances, 1 - chances)))
        assert at_least(count, chances) == pytest.approx(expected)
    groups = np.array([[0.2, 0.5, 0.3], [0.6, 0.4, 0.0]])  # 0, 1 or 2 of each
    ways = {(i, j): groups[0, i] * groups[1, j] for i, j in product(range(3), repeat=2)}
    for count in range(5):
        assert at_least(count, groups) == pytest.approx(sum(p for way, p in ways.items() if sum(way) >= count))


def test_a_rate_like_its_shams_stands_out_as_often_as_its_p_says() -> None:
    random = np.random.default_rng(1)
    draws = random.normal(0.3, 0.1, (4000, 7))
    ps = np.array([stands_out(row[0], row[1:]) for row in draws])
    assert stats.kstest(ps, "uniform").pvalue > 0.01
    assert stands_out(0.4, np.full(5, 0.3)) == 0.0
    assert stands_out(0.3, np.full(5, 0.3)) == 1.0


def test_nothing_is_known_of_no_images() -> None:
    none = np.zeros((0, 2), bool)
    assert paired(none[:, 0], none) == unpaired(0, 0, 0, 3)
    assert (paired(none[:, 0], none).p, paired(none[:, 0], none).low) == (1.0, -1.0)
    assert repairs(np.zeros(0, np.int64), none[:, 0], none[:, 0])["repaired"] == 0.0


def test_hits_minus_false_alarms_have_the_variance_of_repeated_draws() -> None:
    random, true = np.random.default_rng(2), np.arange(300) < 60
    draws = [told_apart(true, random.random(300) < np.where(true, 0.7, 0.2)) for _ in range(2000)]
    scores, variances = np.array(draws).T
    assert scores.mean() == pytest.approx(0.5, abs=0.01)
    assert variances.mean() == pytest.approx(scores.var(), rel=0.1)


# --- the subject


def test_a_choice_keeps_the_share_of_each_class_and_of_its_mistakes() -> None:
    random = np.random.default_rng(0)
    labels, right = random.integers(0, 5, 1000), random.random(1000) < 0.8
    rows = representative(labels, right, 100)
    assert len(np.unique(rows)) == 100
    for label, good in product(range(5), (False, True)):
        all_, some = ((which == label) & (correct == good) for which, correct in ((labels, right), (labels[rows], right[rows])))
        assert abs(some.sum() - all_.sum() / 10) <= 1
    np.testing.assert_array_equal(representative(labels, right, 1000), np.arange(1000))


def test_asking_gives_the_models_logits_whatever_the_batch() -> None:
    images, labels, _ = scenes(1100)
    subject = subject_of(Rule(middle), images, labels)
    whole = subject.model(subject.normalise(torch.from_numpy(images).permute(0, 3, 1, 2)))
    np.testing.assert_array_equal(subject.logits, whole.numpy())
    assert subject.right.all()
    np.testing.assert_array_equal(subject.margins, np.full(1100, 4.0))
    assert subject.ask(subject.images(np.zeros(0, np.int64))).shape == (0, K)


def test_a_model_without_finite_logits_is_refused() -> None:
    images, labels, _ = scenes(20)
    with pytest.raises(DataError, match="no images"):
        subject_of(Rule(middle), images[:0], labels[:0])
    with pytest.raises(DataError, match="4 finite logits"):
        subject_of(Rule(middle, classes=5), images, labels)

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), K), torch.nan)

    with pytest.raises(DataError, match="4 finite logits"):
        subject_of(Broken(), images, labels)


def test_a_runs_dev_images_are_probed_and_a_run_without_any_is_refused(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    data = hold_out(blobs, 0.25)
    run = train(data, tmp_path / "run", recipe=quick, device="cpu", precision="fp32")
    subject = Subject.of(run, data, limit=30, device="cpu")
    assert data.dev is not None
    rows = [data.dev.ids.index(name) for name in subject.split.ids]
    np.testing.assert_array_equal(subject.split.images, data.dev.images[rows])
    assert set(subject.learned.split.ids) == set(data.train.ids) and len(subject.learned) < len(blobs.train)
    np.testing.assert_array_equal(
        subject.predicted, run.predictions.predicted[[run.predictions.ids.index(i) for i in subject.split.ids]]
    )
    found = probe(subject, only=("deletion",))
    assert [finding.n for finding in found] == [30, 30]
    with pytest.raises(DataError, match=r"run\.dataset"):
        Subject.of(run, blobs)
    with pytest.raises(RecipeError, match="fp32"):
        Subject.of(run, data, device="cpu", precision="fp3")
    without_dev = train(blobs, tmp_path / "all", recipe=replace(quick, epochs=1), device="cpu", precision="fp32")
    with pytest.raises(RunError, match="--dev"):
        Subject.of(without_dev, blobs)


# --- pixels


def test_uneven_light_has_the_energy_of_the_change_and_no_other_mean() -> None:
    images = torch.randint(60, 196, (40, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = Draws.of(images, torch.Generator().manual_seed(1))
    for curve in CURVES:
        if curve.sham == "shading":
            changed = curve.change(images, curve.magnitudes[0], draws, subject_of(Rule(middle), *scenes(20)[:2]))
            lit = shaded(images, changed, draws.light)
            wanted, reached = ((some.float() - images.float()).square().mean((1, 2, 3)).sqrt() for some in (changed, lit))
            torch.testing.assert_close(reached, wanted, rtol=0.05, atol=0.3)
            assert (lit.float() - images.float()).mean((1, 2, 3)).abs().max() < 3


def test_scattering_hides_so_many_pixels_of_each_image() -> None:
    images = torch.full((5, 3, 64, 64), 200, dtype=torch.uint8)
    order = torch.rand((5, 32, 32), generator=torch.Generator().manual_seed(0))
    hidden = scattered(images, 0.25, order, (10.4, 20.6, 30.0))
    changed = (hidden != images).all(1)
    np.testing.assert_array_equal(changed.sum((1, 2)), np.full(5, 32 * 32))
    assert hidden[0][:, changed[0]].T.unique(dim=0).tolist() == [[10, 21, 30]]


def test_shuffling_keeps_each_piece_whole() -> None:
    images = torch.randint(0, 256, (3, 3, 18, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mixed = shuffled(images, 4, torch.Generator().manual_seed(1))
    for before, after in zip(images, mixed, strict=True):
        pieces = [
            sorted(some[:, i : i + 4, j : j + 4].flatten().tolist() for i in range(0, 16, 4) for j in range(0, 16, 4))
            for some in (before, after)
        ]
        assert pieces[0] == pieces[1]
    assert torch.equal(mixed[:, :, 16:], images[:, :, 16:])
    assert not torch.equal(mixed, images)


def test_an_object_taken_away_is_filled_from_around_it() -> None:
    images = torch.full((2, 3, SIDE, SIDE), 70, dtype=torch.uint8)
    masks = torch.zeros((2, 1, SIDE, SIDE), dtype=torch.bool)
    masks[:, :, MIDDLE, MIDDLE] = True
    images[masks.expand_as(images)] = 250
    assert (without(images, masks).float() - 70).abs().max() <= 1
    slope = torch.arange(SIDE, dtype=torch.uint8).mul(10).expand(2, 3, SIDE, SIDE).clone()
    slope[masks.expand_as(slope)] = 0
    filled = without(slope, masks)
    assert torch.equal(filled[~masks.expand_as(filled)], slope[~masks.expand_as(slope)])
    assert filled[0, 0, 7, 6] < filled[0, 0, 7, 9]


def test_a_surface_is_laid_on_an_object_and_its_mean_colour_stays() -> None:
    donors = torch.zeros((1, 3, SIDE, SIDE), dtype=torch.uint8)
    donors[:, :, 5:9, 7:11] = torch.tensor([[100, 140], [140, 100]], dtype=torch.uint8).repeat(2, 2)
    there = torch.zeros((1, 1, SIDE, SIDE), dtype=torch.bool)
    there[:, :, 5:9, 7:11] = True
    swatch = swatches(donors, there)
    assert torch.equal(swatch[0], donors[0, :, 5:9, 7:11])
    images, _, masks = scenes(1)
    inside = torch.from_numpy(masks)[:, None]
    target = torch.from_numpy(images).permute(0, 3, 1, 2)
    new = surfaced(target, inside, swatch)
    mean = float(target[inside.expand_as(target)].float().mean())
    assert torch.equal(new[~inside.expand_as(new)], target[~inside.expand_as(new)])
    assert sorted(set(new[0, 0, MIDDLE, MIDDLE].flatten().tolist())) == [round(mean) - 20, round(mean) + 20]


def test_a_surface_of_twice_the_relief_differs_twice_as_much_from_its_mean() -> None:
    images, inside = torch.full((1, 3, 8, 8), 120, dtype=torch.uint8), torch.ones((1, 1, 8, 8), dtype=torch.bool)
    surface = torch.tensor([[90, 110], [110, 90]], dtype=torch.uint8).expand(1, 3, 2, 2)
    once, twice = (surfaced(images, inside, surface, dose) for dose in (1.0, 2.0))
    assert torch.equal(twice.int() - 120, 2 * (once.int() - 120))
    assert sorted(set(twice.flatten().tolist())) == [100, 140]


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0, 1.6, 2.0])
def test_an_object_made_larger_is_the_same_object_of_that_size_and_leaves_what_is_around_it(factor: float) -> None:
    def disc(radius: float, down: float, across: float) -> Tensor:
        y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
        return ((y - down) ** 2 + (x - across) ** 2 <= radius**2)[None, None]

    before = torch.cat([disc(9, 30, 36), disc(9, 20, 24)])
    images = torch.full((2, 3, 64, 64), 80, dtype=torch.uint8)
    images[before.expand_as(images)] = 200
    after = resized(images, before, torch.full((2,), factor))
    wanted = torch.cat([disc(9 * factor, 30, 36), disc(9 * factor, 20, 24)])
    there, filled = (((after.int() - level).abs() <= 1).all(1, keepdim=True) for level in (200, 80))
    assert (there & wanted).sum() / (there | wanted).sum() > 0.9
    assert (there | filled).all()  # nothing is mixed with black, and what was hidden is filled
    if factor == 1:
        assert torch.equal(after, images)


def test_of_images_without_an_object_nothing_is_made_larger() -> None:
    images = torch.randint(0, 256, (3, 3, 20, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resized(images, torch.zeros((3, 1, 20, 16), dtype=torch.bool), torch.full((3,), 1.6)), images)


def test_where_objects_are_known_these_alone_are_made_larger() -> None:
    images, labels, masks = scenes(200)
    corner = Rule(lambda x: nearest_level(x[:, 0, 0, 0] * 1.2))  # the picture's corner moves only if the whole picture does
    labels = corner.rule(torch.from_numpy(images).permute(0, 3, 1, 2).float()).numpy()
    known, unknown = (
        one(probe(subject_of(corner, images, labels, some), only=("sensitivity",)), "larger") for some in (masks, None)
    )
    assert known.rate == 0.0
    assert unknown.rate > 0.2


def test_objects_are_where_the_data_say_and_else_in_the_centre() -> None:
    images, labels, masks = scenes(30)
    known, unknown = (subject_of(Rule(middle), images, labels, some) for some in (masks, None))
    np.testing.assert_array_equal(objects(known, np.array([3, 4]))[:, 0], masks[[3, 4]])
    ellipse = objects(unknown, np.array([0]))[0, 0].numpy()
    assert ellipse.mean() == pytest.approx(np.pi * 0.375**2, abs=0.03)
    np.testing.assert_allclose(centres(known, None), np.full((30, 2), SIDE / 2 - 0.5))
    maps = np.zeros((30, 4, 4), np.float32)
    maps[:, 0, 3], maps[:, 3, 3] = 1, -9
    at = centres(unknown, maps)
    assert (at[:, 0] < SIDE / 4).all()
    assert (at[:, 1] > SIDE * 3 / 4).all()
    assert np.isnan(centres(unknown, None)).all()


def test_the_hottest_fifth_is_a_fifth_and_its_sham_is_the_same_shape_elsewhere() -> None:
    heat = np.random.default_rng(0).normal(size=(4, 20, 20)).astype(np.float32)
    region = extreme(heat)
    assert region.sum((1, 2, 3)).tolist() == [80] * 4
    for values, chosen in zip(heat, region[:, 0].numpy(), strict=True):
        assert values[chosen].min() >= values[~chosen].max()
    moved = moved_round(region, np.random.default_rng(1))
    for before, after in zip(region[:, 0], moved[:, 0], strict=True):
        assert any(torch.equal(before.roll((i, j), (0, 1)), after) for i in range(5, 16) for j in range(5, 16))


# --- sensitivity


def halves(n: int = 300) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Images whose left half has a class's level, and the right half that of another, independent one."""
    random = np.random.default_rng(0)
    left, right = (random.integers(0, K, n) for _ in range(2))
    images = np.zeros((n, SIDE, SIDE, 3), np.uint8)
    images[:, :, : SIDE // 2] = LEVELS.numpy()[left][:, None, None, None]
    images[:, :, SIDE // 2 :] = LEVELS.numpy()[right][:, None, None, None]
    return images, left, right


def left_half(x: Tensor) -> Tensor:
    return nearest_level(x[:, :, :, : SIDE // 2 - 2].mean((1, 2, 3)))


def test_a_model_of_the_left_half_breaks_when_mirrored_as_often_as_the_halves_differ() -> None:
    images, left, right = halves()
    labels = left.copy()
    labels[:60] = right[:60]  # mistakes, unless the halves agree: the mirror image repairs them
    subject = subject_of(Rule(left_half), images, labels)
    finding = one(probe(subject, only=("sensitivity",)), "flip")
    tried = subject.right
    chance, others = np.exp(4) / (np.exp(4) + K - 1), 1 / (np.exp(4) + K - 1)  # of the class that the rule says, and of another
    assert finding.rate == pytest.approx((left != right)[tried].mean() * (chance - others), abs=1e-6)
    assert (finding.sham, finding.n, finding.detail["knee"]) == (0.0, tried.sum(), 1)
    assert finding.detail["breaks"] == pytest.approx([(left != right)[tried].mean()])
    assert finding.p < 1e-9
    wrong = np.flatnonzero(~subject.right)
    assert finding.repaired == pytest.approx(1 - (left != right)[tried].mean())  # all mistakes, less the right answers lost
    assert finding.repairs == tuple(wrong)
    assert all((left != right)[row] and tried[row] for row in finding.rows)


def test_a_flip_is_judged_by_the_sureness_that_it_costs_even_where_it_costs_no_answer() -> None:
    class Unsure(nn.Module):
        """Sure where the left edge is black, half as sure where the right edge is."""

        def forward(self, x: Tensor) -> Tensor:
            pixels = (x + 127.5).round()
            scale = torch.where(pixels[:, 0, 5, 0] == 0, 3.0, 1.5)
            return scale[:, None] * nn.functional.one_hot(middle(pixels), K)

    images, labels, masks = scenes(200)
    images[:, :, :2] = 0
    finding = one(probe(subject_of(Unsure(), images, labels, masks), only=("sensitivity",)), "flip")
    sure, unsure = (np.exp(v) / (np.exp(v) + K - 1) for v in (3, 1.5))
    assert finding.detail["breaks"] == [0.0]
    assert finding.rate == pytest.approx(sure - unsure, abs=1e-6)
    assert finding.sham < 0.03  # a step brings some of the surroundings into the middle
    assert finding.p < 1e-9


def test_a_model_of_the_mean_breaks_in_the_dark_where_the_mean_crosses_its_threshold() -> None:
    random = np.random.default_rng(0)
    means = random.uniform(60, 200, 300)
    images = (means[:, None, None, None] + random.normal(0, 5, (300, SIDE, SIDE, 3))).round().astype(np.uint8)
    subject = subject_of(
        Rule(lambda x: (x.mean((1, 2, 3)) > 120).long(), 2), images, (images.mean((1, 2, 3)) > 120).astype(np.int64), classes=2
    )
    found = probe(subject, only=("sensitivity",))
    dark, flip = one(found, "darker"), one(found, "flip")
    exact = images.mean((1, 2, 3))
    for magnitude, breaks in zip(dark.detail["magnitudes"], dark.detail["breaks"], strict=True):
        assert breaks == pytest.approx(((exact > 120) & ((1 + magnitude) * exact <= 120)).mean(), abs=0.01)
    assert dark.detail["knee"] == -0.15
    assert dark.sham < 0.05
    assert (flip.rate, flip.sham, flip.p, flip.detail["knee"]) == (0.0, 0.0, 1.0, None)


def test_nothing_breaks_a_model_that_says_the_same_of_all_images() -> None:
    images, labels, masks = scenes()
    found = probe(subject_of(Rule(lambda x: torch.zeros(len(x), dtype=torch.long)), images, labels, masks))
    changed = [f for f in found if f.cause not in ("data", "ambiguous", "label_errors")]
    assert all(finding.p >= 0.5 and finding.rate <= finding.sham for finding in changed)
    assert one(found, "shift").detail["breaks"] == [0.0, 0.0, 0.0]


# --- shortcuts: in each, class 2 has one, and the model goes by it


def shortcut(add: Callable[[NDArray[np.uint8]], None], sees: Callable[[Tensor], Tensor], share: float = 0.8) -> Subject:
    """Scenes of which a share of class 2's have a shortcut that `add` puts there, and a model that says 2 where it `sees` it."""
    images, labels, masks = scenes()
    with_it = np.flatnonzero(labels == 2)
    with_it = with_it[: round(share * len(with_it))]
    part = images[with_it]
    add(part)
    images[with_it] = part
    model = Rule(lambda x: torch.where(sees(x), torch.tensor(2), middle(x)))
    return subject_of(model, images, labels, masks)


PATCH = np.random.default_rng(9).integers(0, 256, (2, 3, 3), dtype=np.uint8)  # (2, 3, 3): height, width, channels


def put_patch(images: NDArray[np.uint8]) -> None:
    images[:, 12:14, 11:14] = PATCH


def sees_patch(x: Tensor) -> Tensor:
    patch = torch.from_numpy(PATCH).permute(2, 0, 1)
    return ((x[:, :, 12:14, 11:14] - patch).abs() <= 3).all(1).all(1).all(1)


def test_a_mark_is_found_where_it_is_and_draws_all_other_images() -> None:
    found = probe(shortcut(put_patch, sees_patch), only=("mark", "frame", "tint", "background"))
    mark = one(found, "patch", 2)
    assert (mark.rate, mark.sham) == (1.0, 0.0)
    assert mark.p < 1e-6
    top, left, height, width = mark.detail["box"]
    assert (top, left) == (12, 11)
    assert (height, width) == (2, 3)
    np.testing.assert_array_equal(mark.detail["patch"], PATCH)
    assert mark.detail["held"] == pytest.approx(0.8, abs=0.02)
    assert mark.detail["elsewhere"] == 0.0
    assert all(finding.p > 0.05 for finding in found if finding is not mark)  # not found again as background or frame


def test_a_patch_that_recurs_in_all_classes_is_no_mark() -> None:
    images = np.random.default_rng(0).integers(0, 256, (240, SIDE, SIDE, 3), dtype=np.uint8)
    put_patch(images)
    findings = probe(subject_of(Rule(middle), images, np.arange(240) % K), only=("mark",))
    assert all(finding.p == 1.0 and "recurs" in finding.detail["note"] for finding in findings)


def test_a_recurring_patch_that_the_model_doesnt_read_draws_nothing() -> None:
    mark = one(probe(shortcut(put_patch, lambda x: torch.zeros(len(x), dtype=torch.bool)), only=("mark",)), "patch", 2)
    assert (mark.rate, mark.sham, mark.p) == (0.0, 0.0, 1.0)
    assert mark.detail["held"] == pytest.approx(0.8, abs=0.02)


def test_mistakes_that_a_mark_makes_are_repaired_where_it_is_erased() -> None:
    images, labels, masks = scenes()
    marked = (labels == 2) | (np.arange(len(labels)) < 30)
    part = images[marked]
    put_patch(part)
    images[marked] = part
    subject = subject_of(Rule(lambda x: torch.where(sees_patch(x), torch.tensor(2), middle(x))), images, labels, masks)
    wrong = np.flatnonzero(marked & (labels != 2))
    np.testing.assert_array_equal(np.flatnonzero(~subject.right), wrong)
    mark = one(probe(subject, only=("mark",)), "patch", 2)
    assert mark.rate == 1.0
    assert mark.repaired == pytest.approx(len(mark.repairs) / len(wrong))
    assert set(mark.repairs) <= set(wrong.tolist())
    assert len(mark.repairs) >= 0.7 * len(wrong)  # some of the pixels put in its place are of images that hold it


def test_a_frame_is_found() -> None:
    def put(images: NDArray[np.uint8]) -> None:
        for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
            images[edge] = (250, 0, 200)

    def sees(x: Tensor) -> Tensor:
        return ((x[:, :, 0] - torch.tensor([250.0, 0, 200])[:, None]).abs() < 3).all(1).all(1) & (x[:, 0, -1] > 240).all(1)

    found = probe(shortcut(put, sees), only=("frame", "tint", "background"))
    frame = one(found, "frame", 2)
    assert frame.rate == pytest.approx(0.8, abs=0.03)  # of the donors so many have one
    assert (frame.sham, frame.detail["form"], frame.detail["width"]) == (0.0, "frame", 1)
    assert all(finding.p > 0.05 for finding in found if finding is not frame)


def test_a_tint_is_found() -> None:
    def put(images: NDArray[np.uint8]) -> None:
        images[...] = np.clip(images + np.array([24.0, 0, -24]), 0, 255).astype(np.uint8)

    def sees(x: Tensor) -> Tensor:
        return x[:, 0].mean((1, 2)) - x[:, 2].mean((1, 2)) > 30

    found = probe(shortcut(put, sees, share=1.0), only=("tint", "background"))
    tint = one(found, "tint", 2)
    assert tint.rate > 0.9
    # Twice the tint is 68 levels long. Of random directions those lie at a red beyond blue of 30 whose cosine with that of the
    # tint is 30 / (68 √2) or more: by Archimedes, a share of half of 1 minus that.
    assert tint.sham == pytest.approx((1 - 30 / (68 * 2**0.5)) / 2, abs=0.07)
    np.testing.assert_allclose(tint.detail["levels"], (24, 0, -24), atol=2)
    assert all(finding.p > 0.05 for finding in found if finding is not tint)


def test_a_tint_is_read_off_the_images_that_the_model_learned_from() -> None:
    images, labels, masks = scenes(4000)
    tinted = images.astype(int)
    tinted[labels == 2] += np.array([24, 0, -24])
    training = Split(tinted.clip(0, 255).astype(np.uint8), labels, tuple("abcd"), tuple(map(str, range(4000))), masks)
    few = subject_of(Rule(lambda x: torch.where(x[:, 0].mean((1, 2)) - x[:, 2].mean((1, 2)) > 30, 2, middle(x))), *scenes(100))
    assert few.learned is few
    tint = one(probe(replace(few, training=training), only=("tint",)), "tint", 2)
    np.testing.assert_allclose(tint.detail["levels"], (24, 0, -24), atol=1)
    assert (tint.rate, tint.n) == (1.0, 75)
    assert np.abs(one(probe(few, only=("tint",)), "tint", 2).detail["levels"]).max() < 12  # the probed images have none


def test_a_background_is_found_and_keeps_the_class() -> None:
    def put(images: NDArray[np.uint8]) -> None:
        outside = np.ones((SIDE, SIDE), bool)
        outside[MIDDLE, MIDDLE] = False
        images[:, outside] = images[:, outside] // 4 + np.array([0, 150, 0], np.uint8)

    def green(x: Tensor) -> Tensor:
        return (x[:, 1, 4, 4:12] - x[:, 0, 4, 4:12]).mean(1) > 100

    images, labels, masks = scenes()
    part = images[labels == 2]
    put(part)
    images[labels == 2] = part
    others = torch.tensor([0, 1, 3, 3])
    model = Rule(lambda x: torch.where(green(x), torch.tensor(2), others[middle(x)]))
    found = probe(subject_of(model, images, labels, masks), only=("tint", "background", "texture"))
    drawn, kept = one(found, "background", 2), one(found, "background kept", 2)
    assert (drawn.rate, drawn.sham, drawn.detail["masks"]) == (1.0, 0.0, True)
    assert (kept.rate, kept.sham) == (1.0, 0.0)
    (shuffle,) = (finding for finding in found if finding.probe == "shuffle" and finding.label == 2)
    assert "another shortcut" in shuffle.detail["note"]  # it is told in shuffled pictures, but not by its texture
    assert all(finding.p > 0.05 for finding in found if finding.label != 2 and finding.probe != "background")
    assert all(finding.effect < 0.15 for finding in found if finding.label != 2)


def placed(n: int = 400) -> Subject:
    """A bright square anywhere, of class 2 top left; the model says 2 where it lies there, and else by its colour."""
    random, labels = np.random.default_rng(0), np.arange(n) % K
    images, masks = np.full((n, 32, 32, 3), 20, np.uint8), np.zeros((n, 32, 32), bool)
    for image, mask, label in zip(images, masks, labels, strict=True):
        i, j = random.integers(2, 8, 2) if label == 2 else random.integers(4, 26, 2)
        image[i : i + 3, j : j + 3] = 90
        image[i : i + 3, j : j + 3, label % 3] = 250
        mask[i : i + 3, j : j + 3] = True

    def rule(x: Tensor) -> Tensor:
        bright = (x.amax(1) > 200).float()
        there = bright[:, :11, :11].sum((1, 2)) > bright.sum((1, 2)) / 2
        colour = x.amax((2, 3)).argmax(1)
        return torch.where(there, torch.tensor(2), torch.tensor([3, 1, 0])[colour])

    return subject_of(Rule(rule), images, labels, masks)


def test_a_place_is_found() -> None:
    found = probe(placed(), only=("position",))
    drawn, kept = one(found, "place", 2), one(found, "place kept", 2)
    np.testing.assert_allclose(drawn.detail["place"], (5.5, 5.5), atol=0.5)
    assert drawn.rate == 1.0
    assert drawn.sham < 0.2
    assert drawn.p < 1e-6
    assert kept.effect > 0.5
    assert kept.p < 1e-9


def test_a_class_that_no_move_leaves_right_has_no_place_for_that() -> None:
    subject = placed()
    anywhere = subject.labels != 2

    def rule(x: Tensor) -> Tensor:  # class 0 is told only where its object lies in an even row
        rows = (x.amax(1) > 200).any(2).float().argmax(1)
        colour = x.amax((2, 3)).argmax(1)
        return torch.where((colour == 0) & (rows % 2 == 1), torch.tensor(1), colour)

    split = Split(
        subject.split.images[anywhere],
        subject.labels[anywhere] % 3,
        subject.classes,
        tuple(np.array(subject.split.ids)[anywhere]),
        subject.split.masks[anywhere],
    )
    kept = one(probe(Subject.asked(Rule(rule), split, subject.normalise), only=("position",)), "place kept", 0)
    assert kept.rate == pytest.approx(0.5, abs=0.1)
    assert kept.sham == pytest.approx(0.5, abs=0.1)
    assert kept.p > 0.05


def test_a_texture_is_found() -> None:
    random, n = np.random.default_rng(0), 400
    labels = np.arange(n) % K
    images, masks = np.full((n, 32, 32, 3), 110, np.uint8), np.zeros((n, 32, 32), bool)
    images += random.integers(0, 10, images.shape, dtype=np.uint8)
    for image, mask, label in zip(images, masks, labels, strict=True):
        i, j = random.integers(0, 20, 2)
        image[i : i + 12, j : j + 12] = np.array([40, 90, 0, 200])[label] if label != 2 else 120
        if label == 2:
            image[i : i + 12, j : j + 12] += (np.indices((12, 12)).sum(0) % 2 * 60)[..., None].astype(np.uint8)
        mask[i : i + 12, j : j + 12] = True

    def rule(x: Tensor) -> Tensor:
        checks = ((x[:, 0, :, 1:] - x[:, 0, :, :-1]).abs() > 40).float().mean((1, 2)) > 0.07
        values = torch.stack([((x[:, 0] - level).abs() < 2).float().sum((1, 2)) for level in (40, 90, 200)], 1)
        return torch.where(checks, torch.tensor(2), torch.tensor([0, 1, 3])[values.argmax(1)])

    subject = subject_of(Rule(rule), images, labels, masks)
    assert subject.right.all()
    texture = one(probe(subject, only=("texture",)), "texture", 2)
    assert (texture.rate, texture.sham) == (1.0, 0.0)
    assert texture.p < 1e-9


def test_a_class_told_by_its_texture_survives_shuffling() -> None:
    images, labels, masks = scenes(400)
    rough = images[labels == 2]
    rough[:, :, ::2] = 255
    images[labels == 2] = rough
    others = torch.tensor([0, 1, 3, 3])
    model = Rule(lambda x: torch.where(x[:, :, :, ::2].mean((1, 2, 3)) > 240, torch.tensor(2), others[middle(x)]))
    finding = one(probe(subject_of(model, images, labels, masks), only=("texture",)), "shuffle", 2)
    assert finding.rate == 1.0
    assert finding.sham < 0.6
    assert finding.p < 0.05  # of only three other classes


# --- the data alone


def test_areas_under_the_curve_are_those_of_mann_and_whitney() -> None:
    random = np.random.default_rng(0)
    values, labels = random.integers(0, 9, (120, 3)).astype(float), random.integers(0, 3, 120)
    ours = areas(stats.rankdata(values, axis=0), labels, 4)
    for label, column in product(range(3), range(3)):
        own, others = values[labels == label, column], values[labels != label, column]
        area = stats.mannwhitneyu(own, others).statistic / (len(own) * len(others))
        assert ours[label, column] == pytest.approx(max(area, 1 - area))
    assert np.isnan(ours[3]).all()


def test_the_deviation_of_an_area_is_that_of_repeated_draws_of_exponentials() -> None:
    random = np.random.default_rng(0)  # for exponentials Hanley and McNeil's formula is exact
    drawn = []
    for _ in range(3000):
        own, others = random.exponential(3, 40), random.exponential(1, 60)
        drawn.append((own[:, None] > others).mean())
    assert np.mean(drawn) == pytest.approx(0.75, abs=0.005)
    assert deviation(0.75, 40, 60) == pytest.approx(np.std(drawn), rel=0.05)


def test_a_feature_that_tells_a_class_is_named() -> None:
    images, labels, _ = scenes()
    images[labels == 1, -2:, :2, 1] = 255
    found = probe(subject_of(Rule(middle), images, labels), only=("features",))
    corner = one(found, "feature:corners", 1)
    assert corner.detail == {"feature": "bottom left green", "supports": "mark"}
    assert corner.rate == 1.0
    assert corner.p == pytest.approx(1 / 500)
    assert corner.cause == "data"


# --- labels


def noisy(
    noise: float, temperature: float, seed: int, n: int = 2000, classes: int = 10
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits, and labels drawn from softmax(logits / temperature), of which a share is then another at random."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, classes))
    logits[np.arange(n), random.integers(0, classes, n)] += 9
    true = (logits / temperature + random.gumbel(size=logits.shape)).argmax(1)
    changed = random.random(n) < noise
    return logits, np.where(changed, (true + random.integers(1, classes, n)) % classes, true)


@pytest.mark.parametrize(("noise", "temperature"), [(0.0, 1.0), (0.0, 2.5), (0.1, 1.0), (0.1, 2.5)])
def test_temperature_and_share_of_wrong_labels_are_recovered(noise: float, temperature: float) -> None:
    fits = [labels_module.calibrated(*noisy(noise, temperature, seed))[1:3] for seed in range(5)]
    assert np.mean(fits, 0) == pytest.approx((temperature, noise), rel=0.05, abs=0.02)


def labelled(noise: float, temperature: float, seed: int) -> Finding:
    logits, labels = noisy(noise, temperature, seed)
    images = np.zeros((len(labels), 2, 2, 3), np.uint8)
    subject = subject_of(Rule(lambda x: torch.zeros(len(x), dtype=torch.long), 10), images, labels, classes=10)
    return labels_module.label_errors(replace(subject, logits=logits.astype(np.float32)))


def test_wrong_labels_are_counted_beyond_what_doubt_explains() -> None:
    finding = labelled(0.08, 1.5, seed=3)
    assert finding.effect == pytest.approx(0.08, abs=0.025)
    assert finding.p < 1e-6
    assert finding.low < 0.08 < finding.high
    assert len(finding.repairs) == pytest.approx(finding.rate * 2000, rel=0.1)


def test_an_overconfident_model_is_no_label_error() -> None:
    ps = np.array([labelled(0.0, temperature, seed).p for seed in range(15) for temperature in (1.0, 3.0)])
    assert (ps <= 0.05).mean() <= 0.1


def test_suspects_are_those_of_confident_learning_image_by_image() -> None:
    random = np.random.default_rng(0)
    probabilities, labels = random.dirichlet(np.full(3, 0.5), 200), random.integers(0, 3, 200)
    thresholds = [probabilities[labels == k, k].mean() for k in range(3)]
    confident, suspected = labels_module.suspects(probabilities, labels)
    for row, label, ours, is_suspect in zip(probabilities, labels, confident, suspected, strict=True):
        reached = [k for k in range(3) if row[k] >= thresholds[k]]
        expected = max(reached, key=lambda k: row[k]) if reached else -1
        assert ours == expected
        assert is_suspect == (expected not in (-1, label))


def test_expected_confusions_are_those_of_the_other_classes() -> None:
    counts = np.array([[0, 7, 3, 1], [2, 0, 5, 4], [6, 8, 0, 9], [1, 2, 3, 0]])
    number, p = labels_module.expected(counts, 0, 1)  # of 0 taken for 1: like those of 2 and 3 that aren't taken for 0
    assert number == pytest.approx((7 + 3 + 1) * (8 + 2) / (8 + 9 + 2 + 3))
    assert p == pytest.approx(stats.fisher_exact([[7, 4], [10, 12]], alternative="greater").pvalue)


def confused(pairs: dict[tuple[int, int], int], n: int = 600, classes: int = 6) -> list[Finding]:
    """A model with so many mistakes a pair (true, predicted), its others at random."""
    random, labels = np.random.default_rng(0), np.arange(n) % classes
    predicted = labels.copy()
    for (true, other), count in pairs.items():
        predicted[np.flatnonzero(labels == true)[:count]] = other
    rest = np.flatnonzero((predicted == labels) & (random.random(n) < 0.1))
    predicted[rest] = (labels[rest] + random.integers(1, classes, len(rest))) % classes
    subject = subject_of(
        Rule(lambda x: torch.zeros(len(x), dtype=torch.long), classes), np.zeros((n, 2, 2, 3), np.uint8), labels, classes=classes
    )
    return labels_module.ambiguous(replace(subject, logits=np.eye(classes, dtype=np.float32)[predicted]))


def test_a_pair_confused_both_ways_is_found_and_one_way_isnt() -> None:
    found = confused({(1, 4): 25, (4, 1): 30})
    assert [finding.detail["classes"] for finding in found if finding.p < 0.01] == [[1, 4], [4, 1]]
    assert found[1].rate > found[1].sham + 0.2
    assert all(finding.p > 0.05 for finding in confused({(1, 4): 40}))


# --- all together


def chaos(x: Tensor) -> Tensor:
    """A class that any change of any pixel draws anew: every probe and its sham break it equally often."""
    weights = torch.randint(1, 2**40, x.shape[1:], generator=torch.Generator().manual_seed(0))
    mixed = (x.long() * weights).sum((1, 2, 3)) * 6364136223846793005 + 1442695040888963407
    return ((mixed >> 40) & 1023) % K


def test_a_model_that_reads_nothing_gives_findings_at_the_nominal_rate_only() -> None:
    alarms, small = 0, []
    for seed in range(50):
        random = np.random.default_rng(seed)
        images = random.integers(0, 256, (160, SIDE, SIDE, 3), dtype=np.uint8)
        found = probe(subject_of(Rule(chaos), images, random.integers(0, K, 160)), seed=seed)
        alarms += int((false_discovery_rates(found) <= 0.1).any())
        small += [finding.p <= 0.05 for finding in found]
    assert alarms <= 10  # of 50, at a rate of at most 0.1, more have a probability of 1 %
    assert np.mean(small) <= 0.06


def test_the_same_seed_gives_the_same_findings_in_the_same_order_whatever_is_left_out() -> None:
    images, labels, masks = scenes(120)
    subject = subject_of(Rule(left_half), images, labels, masks)
    seen: list[tuple[int, int]] = []
    found = probe(subject, seed=3, on_progress=lambda done, total: seen.append((done, total)))
    made = len(PROBES) - 1  # without images from the field
    assert seen == [(i, made) for i in range(made + 1)]
    again = [finding for name in PROBES for finding in probe(subject, seed=3, only=(name,))]
    assert [(f.probe, f.label) for f in found] == [(f.probe, f.label) for f in again]
    assert found == again


def test_too_few_images_give_findings_that_say_so() -> None:
    images, labels, masks = scenes(9)
    for n in (1, 9):
        found = probe(subject_of(Rule(middle), images[:n], labels[:n], masks[:n]))
        assert len(found) == len(probe(subject_of(Rule(middle), *scenes(60)), only=None))
        assert all(finding.p == 1.0 and finding.detail["note"] for finding in found)


def test_unknown_probes_and_maps_that_dont_fit_are_refused() -> None:
    subject = subject_of(Rule(middle), *scenes(30))
    with pytest.raises(RecipeError, match="did you mean 'mark'"):
        probe(subject, only=("marks",))
    with pytest.raises(DataError, match="30 images need as many"):
        probe(subject, maps=np.zeros((29, 4, 4), np.float32))
