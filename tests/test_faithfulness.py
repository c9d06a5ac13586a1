"""Trust in heatmaps: every formula against a literal second one, and verdicts on a net whose only evidence is known."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sightline import faithfulness
from sightline.exceptions import DataError, RecipeError
from sightline.faithfulness import (
    FRACTIONS,
    agreement,
    curves,
    describe,
    energy_inside,
    impute,
    judge,
    pointing_game,
    randomisation,
    rank_correlation,
    stability,
)

SIDE = 16
PATCH = (slice(2, 7), slice(9, 14))  # where the hand-weighted net looks


class Reader(nn.Module):
    """Class 0's logit is the mean of one known patch, class 1's minus half of it, class 2's is constant. No weight is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)  # would change its statistics, and the logits, in training mode
        mask = torch.zeros(SIDE, SIDE)
        mask[PATCH] = 0.2
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        evidence = (self.norm(x) * self.mask).sum((1, 2, 3))
        return torch.stack([evidence, -evidence / 2, torch.zeros_like(evidence)], 1)


def scenes(n: int, bright: bool = True) -> Tensor:
    """Noise, with the patch bright: (n, 3, SIDE, SIDE)."""
    images = 0.3 * torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(n))
    if bright:
        images[:, :, PATCH[0], PATCH[1]] += 2
    return images


def blob(rows: slice, columns: slice, n: int) -> NDArray[np.float32]:
    """Maps (n, SIDE, SIDE) that are hot in one place and fade out from there, so that nothing is tied."""
    y, x = np.mgrid[:SIDE, :SIDE]
    row, column = ((place.start + place.stop - 1) / 2 for place in (rows, columns))
    heat = 3 - np.hypot(y - row, x - column) / 4 - 1e-4 * (y * SIDE + x)
    return np.repeat(heat[None], n, 0).astype(np.float32)


def one_hot(label: int, n: int) -> Tensor:
    return F.one_hot(torch.full((n,), label), 3).float()


def pool() -> Tensor:
    return scenes(9, bright=False)


# --- fills


def dense_imputation(image: NDArray[np.float64], removed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """ROAD's linear system by loops over pixels and neighbours, solved as a dense one."""
    _, height, width = image.shape
    system, right = np.eye(height * width), image.reshape(len(image), -1).T.copy()
    for i in range(height):
        for j in range(width):
            if removed[i, j]:
                pixel = i * width + j
                right[pixel] = 0
                system[pixel, pixel] = 0
                for a, b in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
                    if 0 <= i + a < height and 0 <= j + b < width:
                        weight = 1 / 6 if 0 in (a, b) else 1 / 12
                        system[pixel, pixel] += weight
                        system[pixel, (i + a) * width + j + b] -= weight
    return np.linalg.solve(system, right).T.reshape(image.shape)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_road_imputation_is_the_dense_solution_of_its_equations(share: float) -> None:
    random = np.random.default_rng(0)
    image, noise = random.normal(size=(3, 7, 9)), random.normal(size=(3, 7, 9))
    before = image.copy()
    removed = random.permutation(63).reshape(7, 9) < max(1, round(share * 63))
    expected = dense_imputation(image, removed)
    ours = impute(torch.from_numpy(image), removed).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    noisy = impute(torch.from_numpy(image), removed, noise).numpy()
    np.testing.assert_allclose(noisy, expected + noise * removed, atol=1e-12)
    np.testing.assert_array_equal(image, before)


def test_imputation_leaves_a_linear_slope_as_it_is() -> None:
    slope = torch.arange(10.0).repeat(1, 10, 1) + torch.arange(10.0)[:, None]
    removed = np.zeros((10, 10), bool)
    removed[3:7, 2:8] = True
    torch.testing.assert_close(impute(slope, removed), slope)


def test_the_blur_is_a_mean_with_gaussian_weights() -> None:
    images = scenes(2)[:, :, :8, :5]
    literal = torch.zeros_like(images)
    for i in range(8):
        for j in range(5):
            y, x = torch.meshgrid(torch.arange(8.0), torch.arange(5.0), indexing="ij")
            weights = torch.exp(-(((y - i) / (0.25 * 8)) ** 2 + ((x - j) / (0.25 * 5)) ** 2) / 2)
            literal[:, :, i, j] = (images * weights).sum((2, 3)) / weights.sum()
    torch.testing.assert_close(faithfulness._blurred(images), literal)


def test_patches_come_from_images_other_than_the_one_explained() -> None:
    images = scenes(8)
    others = faithfulness._others(images[:3], images)
    assert others.shape == (3, len(FRACTIONS), 3, SIDE, SIDE)
    for image, chosen in zip(images, others, strict=False):
        assert not any(torch.equal(image, other) for other in chosen)
        assert all(any(torch.equal(other, x) for x in images) for other in chosen)


# --- which pixels go


def test_shams_remove_as_many_pixels_as_the_map_and_the_same_shape() -> None:
    random = np.random.default_rng(0)
    heat = random.normal(size=(SIDE, SIDE)).astype(np.float32)
    shifts = faithfulness._shifts(random, (SIDE, SIDE), 20)
    gone = faithfulness._removed(heat, shifts)
    counts = np.array([round(f * SIDE * SIDE) for f in FRACTIONS])
    assert (gone.sum((2, 3)) == np.concatenate([counts, SIDE * SIDE - counts])).all()
    for sham, (down, across) in zip(gone[1:], shifts, strict=True):
        assert (sham == np.roll(gone[0], (down, across), (1, 2))).all()
        assert max(min(down, SIDE - down), min(across, SIDE - across)) >= SIDE / 4


def test_exactly_the_wanted_number_of_tied_pixels_goes() -> None:
    heat = np.zeros((SIDE, SIDE), np.float32)
    heat[3] = 1
    gone = faithfulness._removed(heat, np.array([[5, 0]]))
    counts = [round(f * SIDE * SIDE) for f in FRACTIONS]
    assert gone[0, : len(FRACTIONS)].sum((1, 2)).tolist() == counts
    assert gone[0, 0, 3].all() and gone[1, 0, 8].all()
    assert (gone[0, 0] | gone[0, 1] == gone[0, 1]).all()  # more of the hottest includes fewer of them
    rest = np.flatnonzero(gone[0, 0].ravel())
    assert rest[rest // SIDE != 3].max() == counts[0] - SIDE - 1  # ties by place: the first rows


def test_the_reversed_maps_deletion_is_the_insertion_of_the_other_fraction() -> None:
    heat = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    shifts = np.zeros((0, 2), np.int64)
    own, reverse = faithfulness._removed(heat, shifts)[0], faithfulness._removed(-heat, shifts)[0]
    assert (reverse[: len(FRACTIONS)] == own[len(FRACTIONS) :][::-1]).all()


# --- curves


def test_curves_are_those_of_a_literal_loop() -> None:
    net, images, others = Reader().eval(), scenes(3), pool()
    raw = np.random.default_rng(1).normal(size=(3, 4, 4)).astype(np.float32)
    cotangents = torch.tensor([[1.0, -1, 0], [0, 1, 0], [0.5, 0, 2]])
    ours = curves(net, images, raw, cotangents, pool=others, shams=3, seed=7)

    random = np.random.default_rng(7)
    shifts = faithfulness._shifts(random, (SIDE, SIDE), 3)
    chosen = others[random.permutation(len(others))[:5]]
    noise = random.normal(0, 0.01, (3, SIDE, SIDE))

    def score(picture: Tensor, i: int) -> float:
        with torch.no_grad():
            return float((net(picture[None])[0] * cotangents[i]).sum())

    for i in range(3):
        heat = F.interpolate(torch.from_numpy(raw[None, i : i + 1]), (SIDE, SIDE), mode="bilinear")[0, 0].numpy()
        blurred = faithfulness._blurred(images[i : i + 1])[0]
        for s, shift in enumerate([(0, 0), *shifts]):
            places = sorted(np.ndindex(SIDE, SIDE), key=lambda place: -np.roll(heat, shift, (0, 1))[place])
            for k, fraction in enumerate(FRACTIONS):
                hottest = np.zeros((SIDE, SIDE), bool)
                for place in places[: round(fraction * SIDE * SIDE)]:
                    hottest[place] = True
                for curve, gone in ((ours.deletion, hottest), (ours.insertion, ~hottest)):
                    road = dense_imputation(images[i].double().numpy(), gone) + noise * gone
                    for f, content in enumerate((blurred, chosen[k], torch.from_numpy(road).float())):
                        picture = torch.where(torch.from_numpy(gone), content, images[i])
                        assert curve[i, f, s, k] == pytest.approx(score(picture, i), abs=2e-5)
        assert ours.intact[i] == pytest.approx(score(images[i], i), abs=1e-5)
        with torch.no_grad():
            spread = float(net(images[i : i + 1]).std())
        assert ours.scale[i] == pytest.approx(max(score(images[i], i) - score(blurred, i), spread), abs=1e-5)


def test_batch_size_and_company_change_nothing() -> None:
    net, images, others = Reader(), scenes(3), pool()
    raw = np.random.default_rng(1).normal(size=(3, 4, 4)).astype(np.float32)
    whole = judge(net, images, raw, one_hot(0, 3), pool=others, shams=3)
    small = judge(net, images, raw, one_hot(0, 3), pool=others, shams=3, batch_size=7)
    alone = judge(net, images[2:], raw[2:], one_hot(0, 1), pool=others, shams=3)
    np.testing.assert_allclose(small.deletion.mean, whole.deletion.mean, atol=1e-5)
    np.testing.assert_allclose(alone.curves.insertion[0], whole.curves.insertion[2], atol=1e-5)
    assert small.verdicts == whole.verdicts


def test_the_model_comes_back_as_it_was() -> None:
    net = Reader().train()
    net.norm.eval()
    net.requires_grad_(True)
    before = copy.deepcopy(net.state_dict())
    judge(net, scenes(1), blob(*PATCH, 1), one_hot(0, 1), pool=pool(), shams=2, fills=("blur",))
    assert net.training and not net.norm.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


# --- verdicts


def test_a_map_of_what_the_net_reads_is_supported() -> None:
    trust = judge(Reader(), scenes(4), blob(*PATCH, 4), one_hot(0, 4), pool=pool())
    assert trust.verdicts == ("supported",) * 4
    assert (trust.deletion.low > 0.1).all() and (trust.insertion.low > 0.1).all() and (trust.against_reverse > 0.3).all()


def test_a_map_that_points_elsewhere_is_no_evidence() -> None:
    trust = judge(Reader(), scenes(4), blob(slice(9, 14), slice(1, 6), 4), one_hot(0, 4), pool=pool())
    assert trust.verdicts == ("no evidence",) * 4
    assert (trust.against_reverse < 0).all()


def test_effects_are_the_differences_of_the_curves_with_student_intervals() -> None:
    from scipy import stats

    trust = judge(Reader(), scenes(2), blob(*PATCH, 2), one_hot(0, 2), pool=pool(), shams=5)
    for i in range(2):
        for f in range(3):
            own, *shams = trust.curves.deletion[i, f].mean(1)
            differences = [(sham - own) / trust.curves.scale[i] for sham in shams]
            low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
            assert (trust.deletion.low[i, f], trust.deletion.high[i, f]) == pytest.approx((low, high))
            assert trust.deletion.mean[i, f] == pytest.approx(np.mean(differences))
            kept, *others = trust.curves.insertion[i, f].mean(1)
            assert trust.insertion.mean[i, f] == pytest.approx((kept - np.mean(others)) / trust.curves.scale[i])
            assert trust.against_reverse[i, f] == pytest.approx((kept - own) / trust.curves.scale[i])


def test_a_class_map_without_a_positive_place_is_no_evidence_but_a_margin_map_may_be() -> None:
    raw = blob(*PATCH, 2) - 10
    of_class = judge(Reader(), scenes(2), raw, one_hot(0, 2), pool=pool())
    margin = judge(Reader(), scenes(2), raw, one_hot(0, 2) - one_hot(1, 2), pool=pool())
    assert of_class.empty.all() and of_class.verdicts == ("no evidence",) * 2
    assert not margin.empty.any() and margin.verdicts == ("supported",) * 2


def test_a_constant_map_is_no_evidence() -> None:
    trust = judge(Reader(), scenes(2), np.ones((2, 4, 4), np.float32), one_hot(0, 2), pool=pool())
    assert trust.verdicts == ("no evidence",) * 2
    assert (trust.deletion.mean == 0).all() and (trust.deletion.high == 0).all()


def test_a_map_that_wins_with_one_fill_alone_is_weak() -> None:
    lows = np.array([[0.3, 0.2, 0.4], [0.3, -0.1, 0.4], [0.3, 0.01, 0.4], [-0.1, -0.2, 0.0]])
    verdicts = faithfulness._verdicts(lows, np.zeros(4, bool))
    assert verdicts == ("supported", "weak", "weak", "no evidence")


def test_verdicts_in_words_carry_the_figures_of_the_least_favourable_fill() -> None:
    trust = judge(Reader(), scenes(1), blob(*PATCH, 1), one_hot(0, 1), pool=pool(), shams=4)
    fill = int(trust.deletion.low[0].argmin())
    low, high = (values[0, fill] * trust.curves.scale[0] for values in (trust.deletion.low, trust.deletion.high))
    text = describe(trust, 0, "the dog–cat margin")
    assert text.startswith("supported: deleting the hottest 10–90 % lowers the dog–cat margin by ")
    assert f"(95 %: {low:+.2f} to {high:+.2f}; fill '{trust.curves.fills[fill]}'" in text
    elsewhere = judge(Reader(), scenes(1), blob(slice(9, 14), slice(1, 6), 1), one_hot(0, 1), pool=pool(), shams=4)
    assert describe(elsewhere, 0, "the logit").startswith("no evidence: deleting the hottest 10–90 % doesn't clearly lower")
    empty = judge(Reader(), scenes(1), blob(*PATCH, 1) - 10, one_hot(0, 1), pool=pool(), shams=4)
    assert describe(empty, 0).startswith("no evidence: no place argues for it")


# --- models


class Small(nn.Module):
    """One convolution, a global average pool and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def cam(model: nn.Module, images: Tensor) -> NDArray[np.float32]:
    """The class activation maps of class 0, (N, h, w): the head's weights times the activations."""
    with torch.no_grad():
        return torch.einsum("k,nkhw->nhw", model.fc.weight[0], model.conv(images).relu()).numpy()


def test_randomisation_of_a_linear_head_changes_the_maps_and_not_the_model() -> None:
    net, images = Small(), scenes(6)
    before = copy.deepcopy(net.state_dict())
    found = randomisation(net, images, cam)
    assert found.stages == ("fc", "conv")
    assert (found.estimate.mean < 0.9).all()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    np.testing.assert_array_equal(randomisation(net, images, cam).correlations, found.correlations)


def test_randomisation_permutes_each_modules_own_weights_from_the_head_down() -> None:
    net, seen = Small(), []

    def record(model: nn.Module, images: Tensor) -> NDArray[np.float32]:
        seen.append(copy.deepcopy(model.state_dict()))
        return cam(model, images)

    randomisation(net, scenes(2), record)
    original, head, all_ = seen
    assert torch.equal(head["conv.weight"], original["conv.weight"]) and not torch.equal(head["fc.weight"], original["fc.weight"])
    assert torch.equal(all_["fc.weight"], head["fc.weight"]) and not torch.equal(all_["conv.weight"], head["conv.weight"])
    for name, value in all_.items():
        assert torch.equal(value.flatten().sort().values, original[name].flatten().sort().values)


def test_maps_that_do_not_depend_on_the_weights_survive_randomisation() -> None:
    def brightness(model: nn.Module, images: Tensor) -> NDArray[np.float32]:
        return images.mean(1).numpy()

    found = randomisation(Small(), scenes(3), brightness)
    np.testing.assert_allclose(found.estimate.low, 1)


def test_stability_is_one_without_noise_and_falls_with_it() -> None:
    found = stability(Small(), scenes(8), cam, sigmas=(0, 0.1, 1))
    none, little, much = found.estimate.mean
    assert none == pytest.approx(1) and 1 > little > much
    noise = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    expected = rank_correlation(cam(Small(), scenes(8)), cam(Small(), scenes(8) + 0.1 * noise))
    np.testing.assert_allclose(found.correlations[1], expected)


def test_agreement_compares_every_pair_of_runs_by_spearmans_correlation() -> None:
    from scipy import stats

    random = np.random.default_rng(0)
    runs = [random.integers(0, 6, (4, 3, 5)).astype(np.float32) for _ in range(3)]  # with ties
    found = agreement(runs)
    assert found.stages == ("0–1", "0–2", "1–2")
    for row, (i, j) in zip(found.correlations, ((0, 1), (0, 2), (1, 2)), strict=True):
        expected = [stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(runs[i], runs[j], strict=True)]
        np.testing.assert_allclose(row, expected)
        interval = stats.ttest_1samp(expected, 0).confidence_interval(0.95)
        stage = found.stages.index(f"{i}–{j}")
        assert (found.estimate.low[stage], found.estimate.high[stage]) == pytest.approx(tuple(interval))


def test_a_constant_map_agrees_with_nothing() -> None:
    constant = np.ones((2, 3, 3), np.float32)
    assert (rank_correlation(constant, np.arange(18, dtype=np.float32).reshape(2, 3, 3)) == 0).all()


# --- masks


def test_energy_inside_and_pointing_are_those_of_literal_loops() -> None:
    random = np.random.default_rng(0)
    raw, masks = random.normal(size=(20, 4, 4)).astype(np.float32), random.random((20, 12, 12)) < 0.4
    energy, hits = energy_inside(raw, masks), pointing_game(raw, masks)
    for i in range(20):
        heat = F.interpolate(torch.from_numpy(raw[None, i : i + 1]), (12, 12), mode="bilinear")[0, 0].numpy()
        total = inside = 0.0
        for place in np.ndindex(12, 12):
            total += max(heat[place], 0)
            inside += max(heat[place], 0) * masks[i][place]
        assert energy[i] == pytest.approx(inside / total, abs=1e-5)
        peaks = [place for place in np.ndindex(12, 12) if heat[place] >= heat.max() - 1e-6]
        assert hits[i] == pytest.approx(np.mean([masks[i][place] for place in peaks]))
    assert 0 < hits.mean() < 1


def test_maps_that_say_nothing_have_no_energy_and_point_by_chance() -> None:
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 0] = True
    assert np.isnan(energy_inside(np.full((1, 2, 2), -1, np.float32), masks)).all()
    assert pointing_game(np.full((1, 2, 2), -1, np.float32), masks) == pytest.approx(0.25)
    assert energy_inside(np.ones((1, 2, 2), np.float32), masks) == pytest.approx(0.25)


# --- bad input


BAD: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"images": torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)}, DataError, "float images .*normalise"),
    ({"raw": np.zeros((1, 2, 4, 4), np.float32)}, DataError, "one target at a time"),
    ({"raw": np.full((1, 4, 4), np.nan, np.float32)}, DataError, "finite maps"),
    ({"cotangents": torch.zeros(3)}, DataError, "a row an image"),
    ({"pool": torch.zeros(9, 3, 8, 8)}, DataError, "same channels and size"),
    ({"pool": scenes(9)[:4]}, DataError, "at least 5 images other than"),
    ({"fills": ("blurr",)}, RecipeError, "did you mean 'blur'"),
    ({"shams": 1}, RecipeError, "at least 2"),
    ({"model": nn.Identity()}, DataError, "logits"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), BAD)
def test_bad_input_is_refused_in_one_line(wrong: dict[str, object], error: type[Exception], message: str) -> None:
    good = {"model": Reader(), "images": scenes(1), "raw": blob(*PATCH, 1), "cotangents": one_hot(0, 1), "pool": pool()}
    call: Callable[..., object] = judge
    with pytest.raises(error, match=message) as caught:
        call(**{**good, **wrong})
    assert "\n" not in str(caught.value)


def test_logits_that_are_not_finite_are_refused() -> None:
    net = Reader()
    net.norm.weight.data[0] = torch.inf
    with pytest.raises(DataError, match="aren't finite"):
        judge(net, scenes(1), blob(*PATCH, 1), one_hot(0, 1), pool=pool())


def test_an_interval_needs_two_images_and_agreement_two_runs() -> None:
    with pytest.raises(DataError, match="at least two images"):
        stability(Small(), scenes(1), cam)
    with pytest.raises(DataError, match="two or more runs"):
        agreement([np.zeros((2, 3, 3), np.float32)])
    with pytest.raises(DataError, match="same images and layer"):
        agreement([np.zeros((2, 3, 3), np.float32), np.zeros((2, 4, 4), np.float32)])
    with pytest.raises(DataError, match="don't fit"):
        energy_inside(np.zeros((2, 3, 3), np.float32), np.zeros((3, 6, 6), bool))
