"""PlantBench in small: a plant found, a null left alone, a field told; and its scores against counts by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import plantbench
from sightline.datasets import hold_out
from sightline.diagnosis import Diagnosis, diagnose
from sightline.planted import plant_of, planted
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


def test_the_overlap_of_boxes_is_their_common_part_over_their_union() -> None:
    assert plantbench._iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert plantbench._iou((0, 0, 4, 4), (2, 2, 4, 4)) == pytest.approx(4 / 28)
    assert plantbench._iou((0, 0, 4, 4), (8, 8, 4, 4)) == 0
