"""PlantBench in small: a plant found, a null left alone, a field told; and its scores against counts by hand."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import plantbench
from sightline.datasets import hold_out
from sightline.diagnosis import Diagnosis, diagnose
from sightline.planted import marked, plant_of, planted
from sightline.training import train


def found_in(kind: str, folder: Path, n: int, field: int) -> Diagnosis:
    """The diagnosis of a net trained on a plant, with so many images from where the plant tells nothing."""
    name = f"planted:{kind}"
    data = hold_out(planted(name, n_train=n, n_test=10), 0.15)
    run = train(data, folder, recipe=plantbench.RECIPE, precision="fp32")
    there = planted(name, seed=1, n_train=10, n_test=field).test.images if field else None
    return diagnose(run, data, field=there)


@pytest.mark.slow
def test_a_mark_is_named_with_its_class_and_its_place(tmp_path: Path) -> None:
    found, plant = found_in("mark", tmp_path / "run", 1500, 0), plant_of("planted:mark")
    assert plant is not None
    marks = [cause for cause in found.causes if cause.id == "mark"]
    assert [cause.classes for cause in marks] == [plant.labels]
    assert plantbench.overlap(found.causes, plant) == 1.0


@pytest.mark.slow
def test_nothing_is_named_where_nothing_is_planted(tmp_path: Path) -> None:
    assert found_in("clean", tmp_path / "run", 2000, 500).causes == ()


@pytest.mark.slow
def test_light_is_named_that_only_the_field_shows(tmp_path: Path) -> None:
    found = found_in("lighting", tmp_path / "run", 2000, 500)
    assert ("lighting", "field") in [(cause.id, cause.probe) for cause in found.causes]
    assert found.field == 500


# --- scores


def case(planted_: list[str], *findings: tuple[str, str, float, float], **more: Any) -> dict[str, Any]:
    keys = ("probe", "cause", "effect", "p")
    return {"planted": planted_, "findings": [dict(zip(keys, finding, strict=True)) for finding in findings], **more}


def test_scores_are_counts_of_causes_over_all_cases() -> None:
    cases = [case(["mark"]), case(["mark", "lighting"]), case(["texture"]), case([]), case([])]
    named = iter([{"mark"}, {"mark", "scale"}, set(), {"scale"}, set()])
    found = plantbench.scores(cases, lambda _: next(named))
    # Right: mark twice. Wrong: scale. Missed: lighting and texture. One of the two nulls alarms.
    assert (found["precision"], found["recall"]) == (2 / 3, 2 / 4)
    assert found["f1"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert (found["false_alarms"], found["nulls"], found["cases"]) == (0.5, 2, 3)


def test_what_the_field_says_counts_only_where_it_is_asked() -> None:
    one = case(["lighting"], ("patch", "mark", 0.5, 1e-4), ("field", "lighting", 0.05, 1e-5), ("flip", "missing_flip", 0.5, 0.9))
    assert plantbench.by_diagnosis(one, field=False) == {"mark"}
    assert plantbench.by_diagnosis(one, field=True) == {"mark", "lighting"}


def test_what_the_clean_photographs_have_too_is_not_counted() -> None:
    clean = case([], ("flip", "missing_flip", 0.5, 1e-6), kind="clean", seed=3)
    one = case(["mark"], ("flip", "missing_flip", 0.5, 1e-6), ("patch", "mark", 0.5, 1e-6), kind="mark", seed=3)
    assert plantbench.natural([clean, one]) == {3: {"missing_flip"}}
    assert plantbench.beyond(partial(plantbench.by_diagnosis, field=True), {3: {"missing_flip", "mark"}})(one) == {"mark"}


def test_a_mean_comes_with_students_interval() -> None:
    values = [0.5, 0.9, 1.1, 0.7]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert plantbench.mean_of(values) == f"0.80 (95 % interval {low:.2f} to {high:.2f}), n = 4"


def test_a_plant_lies_on_photographs_of_its_class_and_the_field_is_of_other_images(cifar10_folder: Path) -> None:
    ground = plantbench.Photographs()
    data, plant = ground.make("mark", 0.9, 1)
    assert plant is not None and plant.box is not None and data.dev is not None
    own = data.train.labels == plant.labels[0]
    with_mark = marked(data.train)
    assert with_mark[own].mean() == pytest.approx(0.9, abs=0.02) and not with_mark[~own].any()
    assert len(data.train) + len(data.dev) == plantbench.PHOTOGRAPHS
    known = {image.tobytes() for image in ground.clean(1).images}
    assert not known & {image.tobytes() for image in ground.field("clean", 0.9, 1)}
    assert ground.make("clean", 0.9, 1)[1] is None


def test_the_overlap_of_boxes_is_their_common_part_over_their_union() -> None:
    assert plantbench._iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert plantbench._iou((0, 0, 4, 4), (2, 2, 4, 4)) == pytest.approx(4 / 28)
    assert plantbench._iou((0, 0, 4, 4), (8, 8, 4, 4)) == 0
