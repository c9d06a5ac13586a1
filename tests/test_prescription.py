"""Edits for every cause, the arithmetic of a fix, its verdicts, and that a killed fix goes on as if it never was."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from sightline import augment, prescription
from sightline.augment import (
    Backdrop,
    Blur,
    CoarseDropout,
    ColorJitter,
    Erase,
    Frame,
    HorizontalFlip,
    Jpeg,
    Noise,
    PerSample,
    RandomCrop,
    Recombine,
    Restyle,
    Rotate,
    Scale,
    Shift,
    Stamp,
    Tint,
    TrivialAugmentWide,
    from_dicts,
)
from sightline.comparison import recipe_difference
from sightline.datasets import Dataset, hold_out
from sightline.diagnosis import LEAST, Cause, Diagnosis
from sightline.exceptions import DataError, RecipeError, RunError, TrainingError
from sightline.mistakes import newcombe, wilson
from sightline.prescription import (
    INVARIANCES,
    Costs,
    Edit,
    Fix,
    Interval,
    Step,
    edits,
    fix,
    generic,
    plan_budget,
    variety,
    verdict,
)
from sightline.prescription import ground as ground_module
from sightline.prescription import measures as measures_module
from sightline.prescription import proof as proof_module
from sightline.prescription import pruning as pruning_module
from sightline.prescription.measures import Standing, collateral, effect_of, held_back, probes_of, standing
from sightline.prescription.plan import ARMS, MOST_SEEDS, NEEDED, clock
from sightline.prescription.pruning import judged, pruned, tuning
from sightline.probes import PROBES, Finding, Subject, probe
from sightline.recipe import RECIPES, Recipe, load_recipe
from sightline.runs import Predictions, Run, write_json
from sightline.training import train

MARK = {"box": [26, 26, 4, 4], "patch": [[[255, 225, 0]] * 4] * 4}
DETAILS: dict[str, dict[str, Any]] = {"mark": MARK, "tint_frame": {"form": "tint", "levels": [20.4, -10.2, 0.0]}}


def cause(name: str, probe: str = "some", **changes: Any) -> Cause:
    """A declared cause with the figures that edits don't look at."""
    values: dict[str, Any] = {
        "id": name,
        "classes": (),
        "kind": "cost",
        "probe": probe,
        "effect": 0.4,
        "low": 0.3,
        "high": 0.5,
        "q": 0.01,
        "rate": 0.5,
        "sham": 0.1,
        "n": 100,
        "repaired": 0.2,
        "images": (),
        "detail": DETAILS.get(name, {}),
    }
    return Cause(**{**values, **changes})


def curve(name: str, probe: str, knee: float, reference: float) -> Cause:
    return cause(name, probe, detail={"knee": knee, "reference": reference})


PLAIN = Recipe("plain", augment=())


# --- edits


@pytest.mark.parametrize(
    ("given", "policies"),
    [
        (cause("missing_flip"), [(HorizontalFlip(),)]),
        (curve("position", "shift", 1 / 16, 1 / 8), [(Shift(v, p=0.8),) for v in (1 / 8, 1 / 16, 1 / 4)]),
        (cause("position", "place", classes=(1,)), [(Shift(0.5, p=0.8),), (Shift(0.25, p=0.8),)]),
        (curve("rotation", "rotation", 10, 10), [(Rotate(20, 0.8),), (Rotate(10, 0.8),)]),
        (curve("rotation", "rotation", 30, 10), [(Rotate(45, 0.8),), (Rotate(30, 0.8),), (Rotate(20, 0.8),)]),
        (curve("lighting", "darker", -0.15, -0.3), [(ColorJitter(v, v, 0, 0, 0.8),) for v in (0.3, 0.15, 0.6)]),
        (curve("blur_noise", "blur", 1, 1), [(Blur((0, 2), 0.8),), (Blur((0, 1), 0.8),)]),
        (curve("blur_noise", "noise", 0.04, 0.04), [(Noise((0, 0.08), 0.8),), (Noise((0, 0.04), 0.8),)]),
        (curve("blur_noise", "jpeg", 70, 40), [(Jpeg((40, 100), 0.8),), (Jpeg((70, 100), 0.8),), (Jpeg((5, 100), 0.8),)]),
        (cause("background"), [(Recombine(0.5),), (Backdrop(p=0.8),), (Backdrop(p=0.5),)]),
        (cause("texture"), [(Recombine(0.5),), (Restyle(1.0, 0.8),), (Blur((0, 1.5), 0.8),)]),
        (cause("tint_frame"), [(Tint(0.16, 1.0),), (Tint(0.32, 1.0),)]),
        (cause("tint_frame", detail={"form": "frame", "width": 3}), [(Frame(3, 1.0),), (Frame(6, 1.0),)]),
        (cause("ambiguous"), []),
    ],
)
def test_each_cause_has_its_edits_best_first(given: Cause, policies: list[Any]) -> None:
    assert [edit.policy for edit in edits(given, PLAIN)] == policies


def test_scales_are_drawn_alike_to_both_sides() -> None:
    for knee in (0.75, 1 / 0.75):
        first, second = (edit.policy[0] for edit in edits(curve("scale", "smaller", knee, 0.75), PLAIN))
        assert isinstance(first, Scale) and isinstance(second, Scale)
        assert first.factor == pytest.approx((0.75**2, 0.75**-2))
        assert second.factor == pytest.approx((0.75, 1 / 0.75))


def test_no_scale_is_beyond_twice() -> None:
    first = edits(curve("scale", "smaller", 0.6, 0.75), PLAIN)[0].policy[0]
    assert isinstance(first, Scale)
    assert first.factor == pytest.approx((0.5, 2))


def test_grey_comes_first_where_the_grey_probe_found_it() -> None:
    assert [e.name for e in edits(curve("colour", "grey", 1, 1), PLAIN)] == ["grey", "hue ±0.5"]
    assert [e.name for e in edits(curve("colour", "hue", 0.1, 0.1), PLAIN)] == ["hue ±0.2", "grey", "hue ±0.1"]


def test_holes_are_half_as_large_as_what_may_hide_a_thing() -> None:
    first, second, third = edits(curve("occlusion", "occlusion", 0.25, 0.375), PLAIN, size=(40, 64))
    assert first.policy == (CoarseDropout(10, 0.8),)
    assert [type(e.policy[0]).__name__ for e in (second, third)] == ["RandomErasing", "CutMix"]


def test_every_cause_has_an_edit_but_the_ambiguous() -> None:
    assert {name for name in LEAST if edits(cause(name), PLAIN)} == set(LEAST) - {"ambiguous"}
    assert all(len(edits(cause(name), recipe)) <= 3 for name, recipe in product(LEAST, RECIPES.values()))


def test_wrong_labels_are_smoothed_and_no_augmentation_is_changed() -> None:
    (edit,) = edits(cause("label_errors"), PLAIN)
    assert edit.policy == ()
    assert edit.apply(PLAIN).label_smoothing == 0.1
    assert edits(cause("label_errors"), RECIPES["strong"]) == ()  # it smooths as much already


def test_unknown_causes_and_invariances_are_refused() -> None:
    with pytest.raises(RecipeError, match="unknown cause 'marks': did you mean 'mark'"):
        edits(cause("marks"), PLAIN)
    with pytest.raises(RecipeError, match="unknown invariance 'rotate': did you mean 'rotation'"):
        edits(cause("mark"), PLAIN, forbidden=["rotate"])


RELIES = {  # written down a second time, by name: what each transform takes for granted
    "HorizontalFlip": {"hflip"},
    "RandomCrop": {"shift"},
    "Shift": {"shift"},
    "Scale": {"scale"},
    "Rotate": {"rotation"},
    "Grey": {"grey"},
    "Blur": {"blur"},
    "Noise": {"noise"},
    "Jpeg": {"jpeg"},
    "Tint": {"hue"},
    **{name: {"hue", "texture"} for name in ("Restyle", "Recombine")},
    "Backdrop": {"background"},
    **{name: {"erase"} for name in ("CoarseDropout", "RandomErasing", "CutMix", "Erase", "Stamp", "Frame")},
}


def relied(transform: Any) -> set[str]:
    if isinstance(transform, ColorJitter):
        return ({"brightness"} if transform.brightness else set()) | ({"hue"} if transform.hue else set())
    return RELIES[type(transform).__name__]


VARIANTS = [
    *(cause(name) for name in LEAST),
    cause("tint_frame", detail={"form": "frame"}),
    *(cause(name, probe) for name, probe in [("blur_noise", "noise"), ("blur_noise", "jpeg"), ("colour", "grey")]),
    cause("mark", detail={}),
]


@pytest.mark.parametrize("forbidden", INVARIANCES)
def test_nothing_outside_the_declared_invariances_is_proposed(forbidden: str) -> None:
    for given in VARIANTS:
        allowed, all_of_them = (edits(given, PLAIN, forbidden=names) for names in ([forbidden], []))
        assert not any(forbidden in relied(t) for edit in allowed for t in edit.policy)
        assert {e.policy for e in allowed} >= {e.policy for e in all_of_them if not any(forbidden in relied(t) for t in e.policy)}


def test_flips_alternate_where_the_recipe_is_made_for_it() -> None:
    muon = RECIPES["fast"].with_(augment=(RandomCrop(2),))
    assert edits(cause("missing_flip"), muon)[0].policy == (RandomCrop(2), HorizontalFlip(alternating=True))


def test_what_is_there_already_is_not_proposed() -> None:
    for recipe in (RECIPES["strong"], RECIPES["fast"], RECIPES["small"]):
        assert edits(cause("missing_flip"), recipe) == ()
    rare = RECIPES["small"].with_(augment=(HorizontalFlip(0.1),))
    assert edits(cause("missing_flip"), rare)[0].policy == (HorizontalFlip(),)


def test_a_crop_is_widened_and_not_doubled() -> None:
    recipe = PLAIN.with_(augment=(RandomCrop(4, fill=(9.0,)), HorizontalFlip()))
    found = edits(curve("position", "shift", 1 / 16, 1 / 8), recipe)
    assert [e.policy for e in found] == [(RandomCrop(8, fill=(9.0,)), HorizontalFlip())]  # 4 px and 2 px are there


def test_a_stronger_transform_keeps_what_the_weaker_one_had() -> None:
    recipe = PLAIN.with_(augment=(ColorJitter(0.1, 0.9, 0.3, 0.05, 0.2), Blur((0.5, 1.5), 0.1)))
    jitter = edits(curve("lighting", "darker", 0.3, 0.3), recipe)[0].policy
    assert jitter == (ColorJitter(0.6, 0.9, 0.3, 0.05, 0.8), Blur((0.5, 1.5), 0.1))
    assert edits(curve("blur_noise", "blur", 0.5, 1), recipe)[0].policy[1] == Blur((0, 1.5), 0.8)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_an_edited_policy_has_every_kind_once_and_in_order(recipe: Recipe) -> None:
    order = [
        *("Erase", "Stamp", "Frame"),
        *("RandomCrop", "Shift", "Scale", "Rotate", "HorizontalFlip"),
        *("Backdrop", "Recombine"),
        *("ColorJitter", "Grey", "Tint", "Restyle", "TrivialAugmentWide"),
        *("Blur", "Noise", "Jpeg"),
        *("CoarseDropout", "RandomErasing"),
        "CutMix",
    ]
    groups = {
        name: i
        for i, names in enumerate((order[:3], order[3:8], order[8:10], order[10:15], order[15:18], order[18:20], order[20:]))
        for name in names
    }
    for given in VARIANTS:
        for edit in edits(given, recipe):
            again = edits(given, recipe.with_(augment=edit.policy, **edit.changes))
            for policy in (edit.policy, *(e.policy for e in again)):
                names = [type(t).__name__ for t in policy]
                assert len(names) == len(set(names))
                assert not {"RandomCrop", "Shift"} <= set(names)
                assert not {"CoarseDropout", "RandomErasing"} <= set(names)
                assert [groups[n] for n in names] == sorted(groups[n] for n in names)


def test_an_edited_recipe_is_the_same_after_the_disk(tmp_path: Path) -> None:
    for given in VARIANTS:
        for edit in edits(given, RECIPES["classic"]):
            edited = edit.apply(RECIPES["classic"])
            write_json(tmp_path / "recipe.json", edited.to_dict())
            assert load_recipe(tmp_path / "recipe.json") == edited
            assert edited.name == f"classic + {edit.name}"
            assert from_dicts(json.loads(json.dumps(edit.to_dict()))["policy"]) == edit.policy


def test_after_erasing_and_stamping_a_mark_tells_nothing() -> None:
    """The mark is in nine of ten images of class 0 alone; then in half of both, and no pixel of the old place is left."""
    patch = torch.tensor(MARK["patch"], dtype=torch.uint8).permute(2, 0, 1)
    images = torch.full((2000, 3, 32, 32), 77, dtype=torch.uint8)
    images[:900, :, 26:30, 26:30] = patch
    policy = edits(cause("mark", classes=(0,)), PLAIN)[0].policy
    changed = augment.augment(policy, images, torch.Generator().manual_seed(1))
    marked = (changed[:, :, 26:30, 26:30] == patch).flatten(1).all(1)
    counts = np.array([[int(some.sum()), int((~some).sum())] for some in marked.split(1000)])
    assert stats.chi2_contingency(counts).pvalue > 0.01
    assert abs(counts[:, 0].sum() - 1000) < 4 * math.sqrt(2000 / 4)
    around = changed[:, :, 25:31, 25:31][~marked].float()  # the box and a margin of one pixel: noise of mean 127.5
    assert abs(float(around.mean()) - 127.5) < 4 * 255 / math.sqrt(12 * around.numel())
    assert torch.equal(changed[:, :, :25], images[:, :, :25])


def test_marks_at_the_border_are_erased_within_the_image() -> None:
    at_corner = cause("mark", detail={"box": [0, 28, 4, 4], "patch": MARK["patch"]})
    erase = edits(at_corner, PLAIN)[1].policy[0]
    assert erase == Erase(0, 27, 5, 5, fill="noise", size=(32, 32))


def test_marks_at_two_places_are_stamped_each() -> None:
    first = edits(cause("mark"), PLAIN)[2].policy
    other = cause("mark", detail={"box": [0, 0, 4, 4], "patch": MARK["patch"]})
    both = edits(other, PLAIN.with_(augment=first))[2].policy
    assert [(t.top, t.left) for t in both if isinstance(t, Stamp)] == [(26, 26), (0, 0)]


def test_the_generic_arm_adds_trivial_augment_and_cutout() -> None:
    assert generic(RECIPES["classic"]).augment == (RandomCrop(4), TrivialAugmentWide(), CoarseDropout(16, 1.0, "mean"))
    assert generic(PLAIN, (16, 20)).augment == (TrivialAugmentWide(), CoarseDropout(8, 1.0, "mean"))


# --- variety


def seen(probe: str, name: str, effect: float, n: int = 200) -> dict[str, Any]:
    """A finding as a diagnosis keeps it."""
    figures = {"rate": effect + 0.01, "sham": 0.01, "low": effect - 0.01, "high": effect + 0.01, "p": 0.2, "q": 0.4}
    return {"probe": probe, "cause": name, "label": None, "effect": effect, "n": n, "repaired": 0.0, **figures}


def albumentations(name: str, *inner: PerSample) -> PerSample:
    """A transform of Albumentations that Sightline doesn't know, with others in it."""
    return PerSample({"transform": {"__class_fullname__": name, "transforms": [each.spec["transform"] for each in inner]}})


BORNE = seen("flip", "missing_flip", 0.02), seen("shift", "position", 0.03)


@pytest.mark.parametrize(
    ("policy", "findings", "causes", "forbidden", "added"),
    [
        ((), BORNE, (), (), "hflip and crop 4 px"),
        ((RandomCrop(2),), BORNE, (), (), "hflip"),
        ((Shift(0.1),), BORNE, (), (), "hflip"),
        ((TrivialAugmentWide(),), BORNE, (), (), "hflip"),  # it moves things, and never mirrors them
        ((HorizontalFlip(),), BORNE, (), (), "crop 4 px"),
        ((HorizontalFlip(), RandomCrop(4)), BORNE, (), (), None),
        ((albumentations("D4"),), BORNE, (), (), "crop 4 px"),
        ((albumentations("OneOf", albumentations("Blur"), albumentations("HorizontalFlip")),), BORNE, (), (), "crop 4 px"),
        ((albumentations("Blur", albumentations("Perspective")),), BORNE, (), (), "hflip"),
        ((), BORNE, (), ("hflip",), "crop 4 px"),
        ((), BORNE, (), ("hflip", "shift"), None),
        ((), (seen("flip", "missing_flip", 0.2), BORNE[1]), (), (), "crop 4 px"),  # lost when mirrored: another thing then
        ((), (seen("flip", "missing_flip", 0.02, n=5),), (), (), None),  # too few to say that it is borne
        ((), (), (), (), None),
        ((), BORNE, ("missing_flip",), (), "crop 4 px"),  # a cause, with edits of its own
    ],
)
def test_variety_is_what_the_model_bears_and_training_lacks(
    policy: Any, findings: Any, causes: Any, forbidden: Any, added: str | None
) -> None:
    given = Diagnosis((), (), 500, 50, tuple(cause(name, "flip") for name in causes), findings, {}, 0.0)
    found = variety(given, PLAIN.with_(augment=policy), forbidden=forbidden)
    assert (None if found is None else found[1].name) == added
    if found is not None:
        because, edit = found
        assert (because.kind, because.effect) == ("variety", 0.02 if "hflip" in edit.name else 0.03)
        assert set(policy) < set(edit.policy)
        assert {type(t) for t in edit.policy} - {type(t) for t in policy} == {
            {"hflip": HorizontalFlip, "crop 4 px": RandomCrop}[name] for name in edit.name.split(" and ")
        }


def test_variety_suits_the_recipe_and_the_images() -> None:
    given = Diagnosis((), (), 500, 50, (), BORNE, {}, 0.0)
    found = variety(given, RECIPES["fast"].with_(augment=()), size=(64, 80))
    assert found is not None
    assert found[1].policy == (HorizontalFlip(alternating=True), RandomCrop(8))
    with pytest.raises(RecipeError, match="unknown invariance"):
        variety(given, PLAIN, forbidden=["mirror"])


# --- plan


COSTS = Costs(training=100.0, tuning=10.0, probe=1.0, probes=20.0)
FOUR = ("current", "sham", "prescription", "generic")


def seconds(seeds: int, arms: int, candidates: int) -> float:
    """Literally: every net that is trained and every probe that is made."""
    total = 0.0
    for _ in range(seeds):
        for _ in range(candidates + 1):
            total += COSTS.tuning + COSTS.probe
        for _ in range(arms):
            total += COSTS.training
        total += 3 * COSTS.probes  # of current, sham and prescription
    return total


def test_without_a_budget_all_of_three_seeds_is_planned() -> None:
    plan = plan_budget(COSTS, 5)
    assert (plan.seeds, plan.arms, plan.candidates) == (3, FOUR, 5)
    assert plan.seconds == seconds(3, 4, 5)
    more = plan_budget(COSTS, 5, variety=True)
    assert (more.arms, more.seconds) == (ARMS, seconds(3, 5, 5))
    alone = plan_budget(COSTS, 0)  # without an edit to try nothing is fine-tuned
    assert (alone.arms, alone.seconds) == (FOUR, 3 * (4 * COSTS.training + 3 * COSTS.probes))


@pytest.mark.parametrize("variety", [False, True])
@pytest.mark.parametrize("budget", [382, 400, 480, 500, 520, 600, 700, 1000, 1600, 3000, 1e6])
def test_a_budget_is_used_in_the_order_of_what_matters(budget: float, variety: bool) -> None:
    plan = plan_budget(COSTS, 4, variety=variety, budget=budget)
    options = (ARMS, ARMS[:-1], NEEDED) if variety else (FOUR, NEEDED)
    fitting = [
        (len(arms), candidates, k)
        for k, arms, candidates in product(range(1, MOST_SEEDS + 1), options, range(1, 5))
        if seconds(k, len(arms), candidates) <= budget and (candidates == 4 or arms == NEEDED)
    ]
    assert (len(plan.arms), plan.candidates, plan.seeds) == max(fitting)  # the arms, then the edits, then the seeds
    assert plan.seconds == seconds(plan.seeds, len(plan.arms), plan.candidates) <= budget


def test_given_seeds_are_kept_within_a_budget() -> None:
    assert plan_budget(COSTS, 4, budget=950, seeds=2).arms == NEEDED
    assert plan_budget(COSTS, 4, budget=1e6, seeds=2).seeds == 2


def test_too_short_a_budget_says_the_least() -> None:
    with pytest.raises(TrainingError, match=r"a budget of 60 s proves nothing here; the least takes about 7 min"):
        plan_budget(COSTS, 4, budget=60)
    with pytest.raises(TrainingError, match="0 seeds"):
        plan_budget(COSTS, 4, seeds=0)


@pytest.mark.parametrize(
    ("time", "words"), [(0.2, "1 s"), (59.1, "60 s"), (100, "2 min"), (5399, "90 min"), (7200, "2 h"), (9000, "2.5 h")]
)
def test_times_are_said_in_round_words(time: float, words: str) -> None:
    assert clock(time) == words


def test_the_difference_of_two_proportions_is_newcombes() -> None:
    for (k, n), (j, m) in product([(0, 30), (7, 20), (90, 100)], [(3, 40), (60, 60)]):
        difference = Interval(k / n, *wilson(k, n)).minus(Interval(j / m, *wilson(j, m)))
        assert (difference.low, difference.high) == pytest.approx(newcombe((k, j), (n, m)))


def test_widened_intervals_are_those_of_a_stricter_level() -> None:
    narrow = Interval(0.3, 0.3 - stats.norm.isf(0.025), 0.3 + stats.norm.isf(0.025))
    assert narrow.widened(1) == narrow
    wide = narrow.widened(10)
    assert (wide.low, wide.high) == pytest.approx((0.3 - stats.norm.isf(0.0025), 0.3 + stats.norm.isf(0.0025)))


def test_a_detectable_effect_is_told_four_times_in_five() -> None:
    error = 0.02
    interval = Interval(0.1, 0.1 - stats.norm.isf(0.025) * error, 0.1 + stats.norm.isf(0.025) * error)
    assert stats.norm.sf(stats.norm.isf(0.025), loc=interval.detectable / error) == pytest.approx(0.8)


SURE, NONE, UNSURE, WORSE = (
    Interval(0.2, 0.1, 0.3),
    Interval(0.0, -0.02, 0.02),
    Interval(0.1, -0.1, 0.3),
    Interval(-0.1, -0.2, -0.05),
)


@pytest.mark.parametrize(
    ("kind", "primary", "accuracy", "worse", "expected"),
    [
        ("cost", SURE, NONE, [], "fixed"),
        ("cost", SURE, SURE, [], "fixed"),
        ("cost", SURE, UNSURE, [], "fixed"),
        ("cost", SURE, WORSE, [], "traded"),
        ("variety", SURE, SURE, [], "fixed"),
        ("variety", WORSE, WORSE, [], "no effect"),
        ("cost", SURE, SURE, ["cat"], "traded"),
        ("risk", SURE, NONE, [], "risk reduced"),
        ("risk", SURE, SURE, [], "fixed"),
        ("risk", SURE, WORSE, [], "traded"),
        ("risk", SURE, NONE, ["shift"], "traded"),
        ("cost", NONE, SURE, [], "no effect"),
        ("risk", WORSE, WORSE, ["cat"], "no effect"),
        ("cost", UNSURE, SURE, [], "cannot tell"),
        ("risk", UNSURE, WORSE, ["cat"], "cannot tell"),
        ("cost", Interval(0.0, -1.0, 1.0), NONE, [], "cannot tell"),
    ],
)
def test_a_verdict_follows_from_the_numbers(
    kind: Any, primary: Interval, accuracy: Interval, worse: list[str], expected: str
) -> None:
    assert verdict(kind, primary, accuracy, worse) == expected


def test_what_effect_would_matter_decides_between_none_and_unknown() -> None:
    assert verdict("risk", UNSURE, NONE, [], least=0.4) == "no effect"


# --- measures and pruning


def finding(probe: str, name: str, effect: float, half: float = 0.05, label: int | None = None) -> Finding:
    return Finding(probe, name, label, effect + 0.1, 0.1, effect, effect - half, effect + half, 0.01, 200)


def rights(share: float, nets: int = 1, n: int = 5000) -> NDArray[np.bool_]:
    """Nets that are right about this share of n images, the first ones."""
    return np.tile(np.arange(n) < share * n, (nets, 1))


def test_half_of_the_images_are_held_back_whatever_dev_is() -> None:
    ids = [f"train/{i}" for i in range(4000)]
    assert stats.binomtest(sum(map(held_back, ids)), 4000).pvalue > 0.01
    assert [held_back(f"train/{i}") for i in range(6)] == [held_back(f"train/{i}") for i in range(6)]


def test_an_effect_is_the_mean_over_nets_and_classes() -> None:
    nets = [
        [finding("patch", "mark", 0.4, label=0), finding("patch", "mark", 0.9, label=1), finding("flip", "missing_flip", 0.7)],
        [finding("patch", "mark", 0.2, half=0.15, label=0)],
    ]
    own = effect_of(nets, cause("mark", "patch", classes=(0,)))
    assert (own.value, own.low, own.high) == pytest.approx((0.3, 0.2, 0.4))
    assert effect_of(nets, cause("rotation", "rotation")) == Interval(0.0, -1.0, 1.0)


def test_a_cause_is_probed_again_by_its_own_probe(run: Run, data: Dataset) -> None:
    subject = Subject.of(run, data)
    for name in PROBES:
        for f in probe(subject, only=[name]):
            assert f.cause not in LEAST or probes_of(cause(f.cause, f.probe)) == name


def test_a_cause_from_the_field_is_probed_again_with_the_images_from_there(
    run: Run, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def asked(subject: Subject, **arguments: Any) -> list[Finding]:
        seen.append(arguments)
        return [finding("darker", "lighting", 0.5), finding("field", "lighting", 0.2)]

    monkeypatch.setattr(measures_module, "probe", asked)
    there, dark = np.zeros((5, *data.train.images.shape[1:]), np.uint8), cause("lighting", "field")
    assert standing([run], data, dark, (), field=there).effect.value == 0.2
    assert [(arguments["only"], arguments["field"] is there) for arguments in seen] == [(["field"], True)]
    looked = replace(diagnosed(run, dark), field=5)
    with pytest.raises(DataError, match="5 images from the field"):
        fix(run, data, run.folder / "fix", diagnosis=looked)


def test_only_what_is_clearly_worse_is_collateral() -> None:
    names = ["clearly", "hardly", "unsure", "better"]
    before = [[finding(name, "rotation", 0.1) for name in names] + [finding("patch", "mark", 0.0), finding("x", "ambiguous", 0)]]
    after = [
        [
            finding("clearly", "rotation", 0.4),
            finding("hardly", "rotation", 0.19),  # less than a cause would need
            finding("unsure", "rotation", 0.4, half=0.3),
            finding("better", "rotation", 0.0),
            finding("patch", "mark", 0.9),  # the cause that was treated
            finding("x", "ambiguous", 0.9),  # a share of what is still wrong
        ]
    ]
    assert [f.probe for f in collateral(before, after, cause("mark", "patch"))] == ["clearly"]
    one_as_bad = [*before, [finding("clearly", "rotation", 0.4)]]  # then nets of the old recipe differ as much
    assert collateral(one_as_bad, after, cause("mark", "patch")) == []


def test_more_comparisons_need_clearer_harm() -> None:
    """A change by 2.5 standard errors is one of one, and none of twenty."""
    error = 0.2 / 2.5
    half = float(stats.norm.isf(0.025)) * error / math.sqrt(2)

    def found(many: int) -> int:
        quiet = [finding(f"quiet {i}", "lighting", 0.1, half) for i in range(many - 1)]
        before, after = ([[finding("loud", "lighting", e, half), *quiet]] for e in (0.1, 0.3))
        return len(collateral(before, after, cause("mark")))

    assert (found(1), found(20)) == (1, 0)


def test_a_trial_is_judged_beside_the_sham() -> None:
    sham = Standing(Interval(0.4, 0.3, 0.5), 0.2, rights(0.9), 0.7)
    after = Standing(Interval(0.1, 0.0, 0.2), 0.6, rights(0.88), 0.65)
    (edit,) = edits(cause("missing_flip"), PLAIN)
    risk = partial(judged, cause("missing_flip", kind="risk"), edit, sham)
    whole = risk(after, group=100)
    assert (whole.effect, whole.group, whole.score) == pytest.approx((0.3, 0.4, 0.35))
    assert (whole.accuracy, whole.worst_class) == pytest.approx((-0.02, -0.05))
    assert risk(after, group=25).score == pytest.approx((0.3 + 0.25 * 0.4) / 1.25)  # weighed by how many images it is of
    few = risk(after, group=9)
    assert few.group is None
    assert few.score == pytest.approx(0.3)
    assert whole.promising
    assert not replace(whole, score=0.0).promising
    assert not risk(replace(after, right=rights(0.84)), group=100).promising


def test_an_edit_for_accuracy_must_not_surely_lose_some() -> None:
    sham = Standing(Interval(0.4, 0.3, 0.5), None, rights(0.9, nets=3), 0.7)
    less, hardly = (Standing(Interval(0.1, 0.0, 0.2), None, rights(share, nets=3), 0.7) for share in (0.88, 0.899))
    (edit,) = edits(cause("missing_flip"), PLAIN)
    judgements = {
        (kind, name): judged(cause("missing_flip", kind=kind), edit, sham, after, group=0).promising
        for kind, (name, after) in product(("cost", "risk"), {"less": less, "hardly": hardly}.items())
    }
    change = recipe_difference(sham.right, less.right)
    assert change.high < -0.005 < recipe_difference(sham.right, hardly.right).high
    assert judgements == {("cost", "less"): False, ("cost", "hardly"): True, ("risk", "less"): True, ("risk", "hardly"): True}


@pytest.mark.parametrize(
    ("effects", "accuracies", "best"),
    [
        ([0.11, 0.1, 0.2], [0.9, 0.9, 0.9], 0),  # the second is better by a hair: the order says more
        ([0.2, 0.1, 0.2], [0.9, 0.9, 0.9], 1),
        ([0.1, 0.1, 0.2], [0.8, 0.9, 0.9], 1),  # the first costs too much
        ([0.5, 0.4, 0.4], [0.9, 0.9, 0.9], None),
    ],
)
def test_the_first_of_nearly_equal_edits_is_taken(
    effects: list[float], accuracies: list[float], best: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = iter([(0.4, 0.9), *zip(effects, accuracies, strict=True)])  # the sham's, then each edit's

    def measured(*_: Any, **__: Any) -> Standing:
        effect, accuracy = next(nets)
        return Standing(Interval(effect, effect, effect), None, rights(accuracy), 0.5)

    monkeypatch.setattr(pruning_module, "standing", measured)
    monkeypatch.setattr(pruning_module, "_tuned", lambda *_: [])
    given = cause("mark", "patch")
    here: Any = SimpleNamespace(recipe=PLAIN, data=None, device=None, field=None)
    none = Diagnosis((), (), 0, 0, (given,), (), {}, 0.0)
    trials, chosen = pruned(here, 1, [(given, edit) for edit in edits(given, PLAIN)], none)
    assert chosen == best
    assert [t.effect for t in trials] == pytest.approx([0.4 - effect for effect in effects])


def test_a_shortcuts_own_class_may_lose_on_dev(run: Run, data: Dataset, probes: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run.predictions
    wrong = replace(
        said, predicted=np.where((said.labels == 0) | (np.arange(len(said)) % 2 == 0), (said.labels + 1) % 3, said.labels)
    )
    monkeypatch.setitem(vars(run), "predictions", wrong)
    whole = standing([run, run], data, cause("missing_flip", "flip"), wrong.ids[:4])
    assert whole.right.mean() == pytest.approx(float(np.mean(wrong.predicted == wrong.labels)))
    assert whole.worst_class == 0
    tied = standing([run], data, cause("missing_flip", "flip", classes=(0,)), ())
    accuracies = [float(np.mean(wrong.predicted[wrong.labels == label] == label)) for label in (1, 2)]
    assert tied.worst_class == pytest.approx(min(accuracies))
    assert tied.right.mean() == pytest.approx(float(np.mean((wrong.predicted == wrong.labels)[wrong.labels > 0])))
    assert (whole.group, tied.group) == (pytest.approx(float(np.mean((wrong.predicted == wrong.labels)[:4]))), None)


def test_a_fine_tune_is_short_and_gentle() -> None:
    tuned = tuning(RECIPES["fast"])
    assert (tuned.epochs, tuned.max_lr, tuned.start_lr, tuned.ema) == (1, pytest.approx(0.012), 1.0, 0.0)
    assert (tuned.scale(0), tuned.kept(0)) == (1.0, 1.0)
    assert tuning(RECIPES["strong"].with_(epochs=40)).epochs == 4
    assert tuned.augment == RECIPES["fast"].augment
    with pytest.raises(RecipeError, match="give max_lr"):
        tuning(RECIPES["classic"])


# --- the whole


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(blobs: Dataset) -> Dataset:
    return hold_out(blobs, 0.4)


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe("quick", "smallnet", epochs=2, batch_size=48, max_lr=0.003, augment=())
    return train(data, tmp_path_factory.mktemp("base") / "run", recipe=recipe, precision="fp32", seed=4)


def diagnosed(run: Run, *causes: Cause) -> Diagnosis:
    """A diagnosis of these causes, each of which repairs every third dev image."""
    ids = run.predictions.ids
    groups = {c.id: ids[::3] for c in causes}
    findings = ({"probe": "flip"}, {"probe": "shift"})
    return Diagnosis((str(run.folder),), run.classes, len(ids), 30, causes, findings, groups, 2.0)


class Probes:
    """In place of the probes: "flip" finds 0.4 in nets that weren't trained with flips and 0.02 in others; "shift" finds nothing.

    Subjects are the runs themselves.
    """

    def __init__(self, effect: float = 0.02, collateral: float = 0.0) -> None:
        self.effect, self.collateral = effect, collateral

    def of(self, run: Run, data: Dataset, *, device: str | None = None) -> Run:
        return run

    def probe(self, run: Run, *, field: Any = None, only: list[str] | None = None) -> list[Finding]:
        flips = any(t["transform"] == "HorizontalFlip" for t in run.info["recipe"]["augment"])
        all_of_them = [
            finding("flip", "missing_flip", self.effect if flips else 0.4),
            finding("shift", "position", self.collateral if flips else 0.0),
        ]
        return all_of_them if only is None or "sensitivity" in only else []


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> Probes:
    fake = Probes()
    for module in (measures_module, proof_module):
        monkeypatch.setattr(module, "Subject", fake)
        monkeypatch.setattr(module, "probe", fake.probe)
    return fake


FLIP = cause("missing_flip", "flip")


def test_a_fix_without_causes_trains_nothing(run: Run, data: Dataset, tmp_path: Path) -> None:
    result = fix(run, data, tmp_path / "fix", diagnosis=diagnosed(run))
    assert result.verdict == "no cause found: nothing to fix"
    assert not (tmp_path / "fix").exists()


def test_where_no_training_helps_that_is_said(run: Run, data: Dataset, tmp_path: Path) -> None:
    result = fix(run, data, tmp_path / "fix", diagnosis=diagnosed(run, cause("ambiguous")))
    assert result.verdict == "no edit to try"
    forbidden = fix(run, data, tmp_path / "fix", diagnosis=diagnosed(run, FLIP), forbidden=["hflip"])
    assert (forbidden.verdict, "missing_flip" in forbidden.summary) == ("no edit to try", True)
    assert not (tmp_path / "fix").exists()


def test_a_whole_fix_says_what_the_files_say(
    run: Run, data: Dataset, probes: Probes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_module, "FULL_GROUP", 10)  # there are few images here
    said: list[Step] = []
    result = fix(run, data, tmp_path / "fix", seeds=2, diagnosis=diagnosed(run, FLIP), on_progress=said.append)
    stages = list(dict.fromkeys(step.stage for step in said))
    assert stages == ["cost", "prune", "plan", "train", "verify"]
    assert said[0].text.startswith("at most 4 short fine-tunes (1 s each) and 8 full trainings")
    assert result == fix(run, data, tmp_path / "fix", seeds=2, diagnosis=diagnosed(run, FLIP))  # it is on the disk

    measures, plan = result.measures, result.plan
    assert measures is not None and plan is not None and result.edit is not None
    group = [name for name in run.predictions.ids[::3] if held_back(name)]
    assert (plan["primary"], plan["group"]) == ("group", group)
    assert plan["seeds"] == {"current": [5, 6], "sham": [7, 8], "prescription": [9, 10], "generic": [11, 12]}
    assert [t["transform"] for t in result.edit["policy"]] == ["HorizontalFlip"]
    assert measures["effect"]["before"]["value"] == pytest.approx(0.4)
    assert measures["effect"]["after"]["value"] == pytest.approx(0.02)

    right: dict[str, list[float]] = {}
    tests: dict[str, list[float]] = {}
    for arm, seeds in plan["seeds"].items():
        for seed in seeds:
            net = Run.open(tmp_path / "fix" / arm / f"seed-{seed}")
            rows = {
                name: p == y
                for name, p, y in zip(net.predictions.ids, net.predictions.predicted, net.predictions.labels, strict=True)
            }
            right.setdefault(arm, []).append(float(np.mean([rows[name] for name in group])))
            test = Predictions.read(net.folder / "test.parquet", net.classes)
            tests.setdefault(arm, []).append(float((test.predicted == test.labels).mean()))
            assert (net.info["seed"], net.info["test_opened"]) == (seed, 1)
    current, sham, cured = (float(np.mean(right[arm])) for arm in ("current", "sham", "prescription"))
    assert measures["group"]["accuracy"]["prescription"] == pytest.approx(cured)
    assert measures["group"]["gain"]["value"] == pytest.approx((cured - current) - (sham - current))
    assert measures["group"]["null"]["value"] == pytest.approx(sham - current)
    assert measures["accuracy"] == pytest.approx({arm: float(np.mean(values)) for arm, values in tests.items()})
    both = float(np.mean(tests["current"] + tests["sham"]))
    assert measures["change"]["value"] == pytest.approx(float(np.mean(tests["prescription"])) - both)
    assert measures["beyond_generic"]["value"] == pytest.approx(float(np.mean(tests["prescription"]) - np.mean(tests["generic"])))
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_plan_is_older_than_any_opening_of_the_test_set(run: Run, data: Dataset, probes: Probes, tmp_path: Path) -> None:
    opened: list[bool] = []

    def watch(step: Step) -> None:
        opened.append(bool(list(tmp_path.rglob("test.parquet"))) or "test_opened" in Run.open(run.folder).info)
        if step.stage == "train" and step.training is None:
            assert (tmp_path / "fix" / "plan.json").exists()

    fix(run, data, tmp_path / "fix", seeds=1, diagnosis=diagnosed(run, FLIP), on_progress=watch)
    assert not any(opened)
    written = (tmp_path / "fix" / "plan.json").stat().st_mtime_ns
    tests = [path.stat().st_mtime_ns for path in tmp_path.rglob("test.parquet")]
    assert len(tests) == 4
    assert all(written < time for time in tests)


class Killed(BaseException):
    """What Ctrl-C is: not an error that anything here handles."""


def test_a_fix_that_is_killed_at_every_stage_goes_on(
    run: Run, data: Dataset, probes: Probes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[str] = []

    def counting(data: Dataset, folder: Path, **how: Any) -> Run:
        result = train(data, folder, **how)
        finished.append(folder.relative_to(tmp_path).as_posix())
        return result

    monkeypatch.setattr(ground_module, "train", counting)
    diagnosis = diagnosed(run, FLIP)
    whole = fix(run, data, tmp_path / "whole", seeds=1, diagnosis=diagnosis)
    assert len(finished) == 6
    once = {name.removeprefix("whole/") for name in finished}
    finished.clear()

    seen: set[tuple[str, str, str]] = set()

    def kill(step: Step) -> None:
        within = f"{step.training.stage} {step.training.epoch}" if step.training else ""
        if within in ("", "epoch 1") and (step.stage, step.text, within) not in seen:
            seen.add((step.stage, step.text, within))
            raise Killed

    result: Fix | None = None
    for _ in range(40):
        try:
            result = fix(run, data, tmp_path / "killed", seeds=1, diagnosis=diagnosis, on_progress=kill)
            break
        except Killed:
            continue
    assert result is not None
    assert len({(stage, text) for stage, text, _ in seen}) == 9  # cost, 2 fine-tunes, plan, 4 trainings, verify
    assert sorted(finished) == sorted(f"killed/{name}" for name in once)  # each once
    assert replace(result, seconds=0, folder="") == replace(whole, seconds=0, folder="")


def test_an_edit_that_does_no_more_than_the_sham_is_not_trained(run: Run, data: Dataset, probes: Probes, tmp_path: Path) -> None:
    probes.effect = 0.5
    few = diagnosed(run, FLIP)
    few = replace(few, groups={"missing_flip": ()})
    result = fix(run, data, tmp_path / "fix", seeds=1, diagnosis=few)
    assert result.verdict == "no effect"
    assert [t["edit"] for t in result.trials] == ["hflip"]
    assert result.trials[0]["effect"] == pytest.approx(-0.1)
    assert sorted(p.name for p in (tmp_path / "fix").iterdir()) == ["fix.json", "tuned"]


def test_a_risk_is_judged_by_its_probe(run: Run, data: Dataset, probes: Probes, tmp_path: Path) -> None:
    risk = replace(FLIP, kind="risk")
    result = fix(run, data, tmp_path / "fix", seeds=1, diagnosis=diagnosed(run, risk))
    assert result.plan is not None and result.measures is not None
    assert result.plan["primary"] == "probe"
    expected = Interval(0.4, 0.35, 0.45).minus(Interval(0.02, -0.03, 0.07))
    gain = result.measures["gain"]
    assert (gain["value"], gain["low"], gain["high"]) == pytest.approx((expected.value, expected.low, expected.high))
    assert result.verdict in ("risk reduced", "fixed", "traded")
    assert "from 40.0 to 2.0 %" in result.summary


def test_a_fix_that_makes_another_probe_worse_is_traded(run: Run, data: Dataset, probes: Probes, tmp_path: Path) -> None:
    probes.collateral = 0.6
    result = fix(run, data, tmp_path / "fix", seeds=1, diagnosis=diagnosed(run, replace(FLIP, kind="risk")))
    assert result.measures is not None
    assert "shift (position)" in result.measures["worse"]
    assert result.verdict == "traded"


@pytest.mark.parametrize(
    ("outcome", "high", "kept"),
    [("cannot tell", -0.005, True), ("no effect", -0.005, True), ("cannot tell", 0.01, False), ("traded", -0.005, False)],
)
def test_an_edit_that_isnt_proved_and_costs_accuracy_is_advised_against(outcome: str, high: float, kept: bool) -> None:
    nothing = {"value": 0.0, "low": -0.2, "high": 0.2}
    measures = {
        "gain": nothing,
        "change": {"value": -0.01, "low": -0.015, "high": high},
        "effect": {"before": nothing, "after": nothing},
        "group": {"n": 28},
        "primary": "group",
        "worse": [],
    }
    edit = edits(FLIP, PLAIN)[0]
    assert ("keep the recipe as it is" in proof_module.summary(outcome, FLIP, edit, measures)) == kept
    more = {"edit": "crop 4 px", "change": {"value": 0.02, "low": 0.01, "high": 0.03}}
    said = proof_module.summary(outcome, FLIP, edit, {**measures, "variety": more})
    assert "crop 4 px for variety in its place: test accuracy +2.0 points" in said
    assert ("take the variety in its place" in said, "keep the recipe" in said) == (kept, False)
    assert Fix(outcome, "", "").proved == (outcome == "traded")


def test_the_second_cause_is_tried_where_the_first_has_no_edit_that_helps(
    run: Run, data: Dataset, probes: Probes, tmp_path: Path
) -> None:
    two = diagnosed(run, cause("position", "shift"), FLIP)
    result = fix(run, data, tmp_path / "fix", seeds=1, diagnosis=replace(two, groups={}))
    assert [t["cause"] for t in result.trials] == ["position", "position", "missing_flip"]
    assert result.cause is not None
    assert result.cause["id"] == "missing_flip"


def varied(diagnosis: Diagnosis) -> Diagnosis:
    """The same, and moves are borne: crops are a variety that the recipe lacks."""
    return replace(diagnosis, findings=(seen("shift", "position", 0.03),))


def test_variety_is_an_arm_beside_a_causes_edit(run: Run, data: Dataset, probes: Probes, tmp_path: Path) -> None:
    result = fix(run, data, tmp_path / "fix", seeds=1, diagnosis=varied(diagnosed(run, FLIP)))
    assert result.plan is not None and result.measures is not None and result.edit is not None
    assert result.edit["name"] == "hflip"
    assert result.plan["variety"]["edit"] == "crop 2 px"
    assert list(result.plan["seeds"]) == list(ARMS)
    recipe = load_recipe(tmp_path / "fix" / "variety.json")
    assert recipe.augment == (RandomCrop(2),)
    trained = Run.open(tmp_path / "fix" / "variety" / f"seed-{result.plan['seeds']['variety'][0]}")
    assert Recipe.from_dict(trained.info["recipe"]) == recipe
    accuracies = {arm: result.measures["accuracy"][arm] for arm in ("sham", "variety")}
    assert result.measures["variety"]["change"]["value"] == pytest.approx(accuracies["variety"] - accuracies["sham"])
    assert "crop 2 px for variety in its place: test accuracy" in result.summary


def test_without_a_promising_edit_variety_is_what_is_proved(run: Run, data: Dataset, probes: Probes, tmp_path: Path) -> None:
    probes.effect = 0.5  # flips do harm
    diagnosis = replace(varied(diagnosed(run, FLIP)), groups={})
    result = fix(run, data, tmp_path / "fix", seeds=1, diagnosis=diagnosis)
    assert [t["edit"] for t in result.trials] == ["hflip"]
    assert result.cause is not None and result.plan is not None and result.measures is not None
    assert (result.cause["id"], result.cause["kind"], result.plan["primary"]) == ("position", "variety", "accuracy")
    assert list(result.plan["seeds"]) == ["current", "sham", "prescription", "generic"]
    assert (result.plan["least"], result.plan["variety"], result.measures["variety"]) == (0.005, None, None)
    change = result.measures["accuracy"]["prescription"] - result.measures["accuracy"]["sham"]
    assert result.measures["gain"] == result.measures["change"]
    assert result.measures["gain"]["value"] == pytest.approx(change)
    assert result.summary.startswith(f"crop 2 px for variety: {result.verdict}; test accuracy {100 * change:+.1f} points")
    assert result.summary.count("test accuracy") == 1
    assert result.summary.endswith(
        "of 1 tried in short fine-tunes, no edit did more than the sham without costing too much accuracy"
    )


def test_without_any_cause_variety_is_proved_and_nothing_is_fine_tuned(
    run: Run, data: Dataset, probes: Probes, tmp_path: Path
) -> None:
    said: list[Step] = []
    result = fix(run, data, tmp_path / "fix", seeds=1, diagnosis=varied(diagnosed(run)), on_progress=said.append)
    assert said[0].text.startswith("4 full trainings")
    assert result.trials == ()
    assert result.edit is not None and result.edit["name"] == "crop 2 px"
    assert not (tmp_path / "fix" / "tuned").exists()


def test_the_accuracy_on_all_images_is_judged_where_the_group_is_small(
    run: Run, data: Dataset, probes: Probes, tmp_path: Path
) -> None:
    few = replace(diagnosed(run, FLIP), groups={"missing_flip": run.predictions.ids[:30]})
    result = fix(run, data, tmp_path / "fix", seeds=1, diagnosis=few)
    assert result.plan is not None and result.measures is not None
    assert (result.plan["primary"], result.plan["least"]) == ("accuracy", 0.005)
    assert result.measures["gain"] == result.measures["change"]
    assert result.measures["group"]["n"] == len(result.plan["group"]) > 0


def test_one_cause_of_several_is_chosen(run: Run, data: Dataset, probes: Probes, tmp_path: Path) -> None:
    two = varied(diagnosed(run, cause("colour", "hue"), FLIP))
    result = fix(run, data, tmp_path / "fix", seeds=1, diagnosis=two, against="missing_flip")
    assert [t["cause"] for t in result.trials] == ["missing_flip"]
    more = fix(run, data, tmp_path / "more", seeds=1, diagnosis=two, against="variety")
    assert more.trials == () and more.edit is not None and more.edit["name"] == "crop 2 px"
    with pytest.raises(RecipeError, match="found no cause 'colours': did you mean 'colour'"):
        fix(run, data, tmp_path / "none", diagnosis=two, against="colours")
    lacking = fix(run, data, tmp_path / "none", diagnosis=diagnosed(run, FLIP), against="variety")
    assert (lacking.verdict, "a lack of variety" in lacking.summary) == ("no edit to try", True)


def test_the_edited_recipe_is_a_file_that_train_takes(run: Run, data: Dataset, probes: Probes, tmp_path: Path) -> None:
    A = pytest.importorskip("albumentations")
    result = fix(run, data, tmp_path / "fix", seeds=1, diagnosis=diagnosed(run, FLIP))
    edited = load_recipe(tmp_path / "fix" / "recipe.json")
    assert edited.augment == (HorizontalFlip(),)
    assert edited.max_lr == run.info["max_lr"]
    assert (edited.model, edited.epochs) == ("smallnet", 2)
    assert result.albumentations == "albumentations.json"
    assert augment.from_albumentations(A.load(tmp_path / "fix" / "albumentations.json")) == (HorizontalFlip(),)


def test_a_policy_that_albumentations_cannot_say_is_explained(run: Run, data: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("albumentations")
    here = ground_module.Ground((run,), data, PLAIN, tmp_path, None, lambda step: None)
    said = proof_module.exported(here, Edit("backdrop", "background", (Backdrop(),), ""))
    assert "Backdrop" in said
    assert not (tmp_path / "albumentations.json").exists()
    flips = Edit("hflip", "missing_flip", (HorizontalFlip(alternating=True),), "")
    assert proof_module.exported(here, flips) == "albumentations.json"


# --- bad input


def test_weights_from_elsewhere_are_not_trained_again(run: Run, data: Dataset, tmp_path: Path) -> None:
    imported = Run(run.folder, {**run.info, "weights": "0" * 64})
    with pytest.raises(RunError, match="diagnosis yes, fix no"):
        fix(imported, data, tmp_path / "fix", diagnosis=diagnosed(run, FLIP))


def test_runs_of_several_recipes_are_refused(run: Run, data: Dataset, tmp_path: Path) -> None:
    other = Run(run.folder, {**run.info, "recipe": {**run.info["recipe"], "epochs": 7}})
    with pytest.raises(RunError, match="other recipes"):
        fix([run, other], data, tmp_path / "fix")
    with pytest.raises(RunError, match="no run to fix"):
        fix([], data, tmp_path / "fix")


def test_a_run_without_dev_images_is_refused(blobs: Dataset, tmp_path: Path) -> None:
    recipe = Recipe("quick", "smallnet", epochs=1, batch_size=48, max_lr=0.003, augment=())
    run = train(blobs, tmp_path / "run", recipe=recipe, precision="fp32")
    with pytest.raises(RunError, match="--dev"):
        fix(run, blobs, tmp_path / "fix")


def test_a_folder_with_something_else_is_refused(run: Run, data: Dataset, probes: Probes, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other files"):
        fix(run, data, tmp_path, diagnosis=diagnosed(run, FLIP))

    def stop(step: Step) -> None:
        if step.stage == "prune":
            raise Killed

    with pytest.raises(Killed):
        fix(run, data, tmp_path / "fix", seeds=1, diagnosis=diagnosed(run, FLIP), on_progress=stop)
    with pytest.raises(RunError, match="a fix with other seeds"):
        fix(run, data, tmp_path / "fix", seeds=2, diagnosis=diagnosed(run, FLIP))
    (tmp_path / "fix" / "fix.json").write_text("{")
    with pytest.raises(RunError, match="delete"):
        fix(run, data, tmp_path / "fix", seeds=1, diagnosis=diagnosed(run, FLIP))


def test_a_budget_that_is_too_short_trains_nothing(run: Run, data: Dataset, probes: Probes, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="proves nothing"):
        fix(run, data, tmp_path / "fix", budget=0.001, diagnosis=diagnosed(run, FLIP))
    assert not (tmp_path / "fix").exists()


def test_the_public_names_are_there() -> None:
    assert all(hasattr(prescription, name) for name in prescription.__all__)
