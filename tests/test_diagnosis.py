"""The diagnosis: one rule for all causes, over all that was tried, in nearly all seeds; and what is left unexplained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sightline import diagnosis
from sightline.datasets import Dataset, hold_out
from sightline.diagnosis import (
    ALPHA,
    LEAST,
    LEAST_BY_GUESS,
    LEAST_BY_PROBE,
    Diagnosis,
    concluded,
    diagnose,
    false_discovery_rates,
    least_of,
)
from sightline.exceptions import DataError, RunError
from sightline.probes import Finding
from sightline.recipe import Recipe
from sightline.runs import Run
from sightline.training import train

CLASSES = ("cat", "dog", "</script>")


def finding(cause: str, effect: float, p: float, label: int | None = None, **more: Any) -> Finding:
    values: dict[str, Any] = {
        "probe": f"{cause} probe",
        "rate": effect + 0.01,
        "sham": 0.01,
        "low": effect - 0.02,
        "high": effect + 0.02,
        "n": 200,
        "repaired": 0.0,
        "repairs": (),
        "rows": (0, 1),
        "detail": {},
    }
    return Finding(cause=cause, label=label, effect=effect, p=p, **{**values, **more})


def subject(n: int = 10, wrong: tuple[int, ...] = (2, 3, 5)) -> Any:
    right = np.ones(n, bool)
    right[list(wrong)] = False
    return SimpleNamespace(split=SimpleNamespace(ids=tuple(f"train/{i}" for i in range(n))), right=right)


def conclude(*seeds: list[Finding]) -> Diagnosis:
    runs: Any = [SimpleNamespace(folder=Path(f"run-{k}"), classes=CLASSES) for k in range(len(seeds))]
    return concluded(runs, [subject() for _ in seeds], seeds, lambda: 1.5)


def literal_q(p: list[float]) -> list[float]:
    """Benjamini and Hochberg 1995, as written: the smallest level at which each would be rejected."""
    ranked, n = sorted(p), len(p)
    return [min(n * ranked[j] / (j + 1) for j in range(n) if ranked[j] >= value) for value in p]


def test_rates_of_false_discoveries_are_over_all_that_could_be_a_cause() -> None:
    p = [0.001, 0.04, 0.03, 0.5, 0.9, 0.03]
    findings = [finding("mark", 0.5, value, i % 3) for i, value in enumerate(p)]
    found = false_discovery_rates([finding("gate", 1.0, 0.0), *findings, finding("data", 1.0, 0.0)])
    assert found[0] == found[-1] == 1
    assert found[1:-1] == pytest.approx(literal_q(p))


@pytest.mark.parametrize("cause", LEAST)
def test_a_cause_needs_both_its_least_effect_and_a_small_q(cause: str) -> None:
    label = 1 if cause == "mark" else None
    assert [c.id for c in conclude([finding(cause, LEAST[cause], 0.01, label)]).causes] == [cause]
    assert conclude([finding(cause, LEAST[cause] - 1e-6, 0.01, label)]).causes == ()
    assert conclude([finding(cause, 1.0, ALPHA + 1e-6, label)]).causes == ()


@pytest.mark.parametrize("probe", LEAST_BY_GUESS)
def test_where_objects_are_guessed_what_concerns_them_needs_more(probe: str) -> None:
    cause = {"background": "background", "background kept": "background", "place kept": "position", "larger": "scale"}[probe]
    known, guessed = LEAST_BY_PROBE.get(probe, LEAST[cause]), LEAST_BY_GUESS[probe]
    assert known < guessed
    for masks, enough in ((True, known), (False, guessed)):
        for effect, causes in ((enough, [cause]), (enough - 1e-6, [])):
            found = conclude([finding(cause, effect, 0.01, 1, probe=probe, detail={"masks": masks})])
            assert [c.id for c in found.causes] == causes
            assert found.findings[0].get("masks", True) == masks
            assert all(least_of(c) == enough for c in found.causes)


@pytest.mark.parametrize(("seen", "declared"), [((1, 1, 1), True), ((1, 0, 1), True), ((0, 1, 0), False)])
def test_with_several_seeds_all_but_one_must_show_it(seen: tuple[int, ...], declared: bool) -> None:
    found = conclude(*[[finding("scale", 0.9 * show, 0.001 if show else 1.0)] for show in seen])
    assert bool(found.causes) == declared


def test_a_cause_costs_now_if_it_repairs_mistakes_and_is_a_risk_if_not() -> None:
    cost = finding("scale", 0.9, 0.0, repaired=0.3, repairs=(2, 5))
    risk = finding("mark", 0.9, 0.0, 1)
    found = conclude([risk, cost])
    assert [(c.id, c.kind) for c in found.causes] == [("scale", "cost"), ("mark", "risk")]
    assert found.groups == {"mark": (), "scale": ("train/2", "train/5"), "unexplained": ("train/3",)}
    assert found.mistakes == 3 and found.causes[0].images == ("train/0", "train/1")


def test_marks_are_a_class_s_own_and_other_causes_hold_for_several() -> None:
    found = conclude([finding(cause, 0.9, 0.0, label) for cause in ("mark", "background") for label in (0, 2)])
    assert sorted((c.id, c.classes) for c in found.causes) == [("background", (0, 2)), ("mark", (0,)), ("mark", (2,))]


def test_a_diagnosis_comes_back_from_its_file(tmp_path: Path) -> None:
    found = conclude([finding("mark", 0.9, 0.0, 2, detail={"box": [1, 2, 3, 4]}), finding("hue", 0.0, 1.0)])
    path = tmp_path / "diagnosis.json"
    path.write_text(json.dumps(found.to_dict()))
    assert Diagnosis.read(path) == found
    assert json.loads(path.read_text())["causes"][0]["classes"] == ["</script>"]
    path.write_text("{")
    with pytest.raises(RunError, match="sightline diagnose"):
        Diagnosis.read(path)


@pytest.fixture(scope="module")
def run(blobs: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Dataset]:
    """A net that has learnt `blobs`, which are told apart by their place: moved, they are another class."""
    many = [replace(blobs.train, ids=tuple(f"{i}/{name}" for name in blobs.train.ids)) for i in range(2)]
    joined = replace(
        blobs.train,
        images=np.concatenate([split.images for split in many]),
        labels=np.concatenate([split.labels for split in many]),
        ids=many[0].ids + many[1].ids,
    )
    data = hold_out(replace(blobs, train=joined), 0.4)
    recipe = Recipe("quick", "smallnet", epochs=5, batch_size=32, max_lr=0.01, augment=())
    return train(data, tmp_path_factory.mktemp("diagnosed") / "run", recipe=recipe, precision="fp32"), data


def test_what_depends_on_the_place_is_told(run: tuple[Run, Dataset]) -> None:
    found = diagnose(*run)
    assert "position" in {cause.id for cause in found.causes} or "missing_flip" in {cause.id for cause in found.causes}
    assert Diagnosis.read(run[0].folder / "diagnosis.json").causes == found.causes
    assert {f["cause"] for f in found.findings} >= set(LEAST) - {"ambiguous"}


def test_too_few_images_and_strangers_are_refused(
    run: tuple[Run, Dataset], blobs: Dataset, quick: Recipe, tmp_path: Path
) -> None:
    data = hold_out(blobs, 0.1)
    few = train(data, tmp_path / "few", recipe=quick.with_(epochs=1), precision="fp32")
    with pytest.raises(DataError, match=f"at least {diagnosis.FEWEST} are needed"):
        diagnose(few, data)
    with pytest.raises(RunError, match="have another recipe"):
        diagnose([few, run[0]], data)
    with pytest.raises(RunError, match="no run"):
        diagnose([])
