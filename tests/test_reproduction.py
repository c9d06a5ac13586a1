"""A run trained again by its run.json: the same bits, or what differs; against copies in which one thing was changed."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sightline.augment import HorizontalFlip, RandomCrop
from sightline.datasets import Dataset, hold_out
from sightline.exceptions import RunError
from sightline.recipe import Recipe
from sightline.runs import Run, read_weights, write_weights
from sightline.training import reproduce, train


@pytest.fixture(scope="module")
def held(blobs: Dataset) -> Dataset:
    return hold_out(blobs, 0.2)


@pytest.fixture(scope="module")
def first(held: Dataset, quick: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with all that draws random numbers, judged only after its last epoch, so that its history has NaN."""
    recipe = replace(quick, augment=(RandomCrop(2), HorizontalFlip()), test_epochs="last")
    return train(held, tmp_path_factory.mktemp("runs") / "first", recipe=recipe, seed=7, precision="fp32")


def copy(run: Run, folder: Path, **changes: object) -> Run:
    """A copy of a run, with these entries of its run.json changed."""
    shutil.copytree(run.folder, folder)
    (folder / "run.json").write_text(json.dumps({**run.info, **changes}))
    return Run.open(folder)


def test_the_same_bits_come_out(first: Run, held: Dataset, tmp_path: Path) -> None:
    found = reproduce(first, tmp_path / "again", held)
    assert found.same
    assert (found.epochs, found.differs, found.changed) == (3, None, ())
    then, now = ((folder / "model.safetensors").read_bytes() for folder in (first.folder, tmp_path / "again"))
    assert then == now
    assert found.weights == (hashlib.sha256(then).hexdigest(),) * 2
    assert found.run.folder == tmp_path / "again"


def test_another_epoch_in_the_history_is_found(first: Run, held: Dataset, tmp_path: Path) -> None:
    old = copy(first, tmp_path / "old")
    with (old.folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[1]["train_loss"] = repr(float(rows[1]["train_loss"]) * (1 + 1e-15))  # the next float
    with (old.folder / "history.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = reproduce(old, tmp_path / "again", held)
    assert found.differs == 2
    assert not found.same
    assert found.weights[0] == found.weights[1]


def test_other_weights_are_found(first: Run, held: Dataset, tmp_path: Path) -> None:
    old = copy(first, tmp_path / "old")
    model = old.model()
    read_weights(old.folder / "model.safetensors", model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    write_weights(old.folder, model)
    found = reproduce(old, tmp_path / "again", held)
    assert found.differs is None
    assert not found.same
    assert found.weights[0] == hashlib.sha256((old.folder / "model.safetensors").read_bytes()).hexdigest() != found.weights[1]


def test_another_seed_gives_another_run(first: Run, held: Dataset, tmp_path: Path) -> None:
    found = reproduce(copy(first, tmp_path / "old", seed=8), tmp_path / "again", held)
    assert found.differs == 1
    assert found.weights[0] != found.weights[1]


def test_what_changed_since_is_said(first: Run, held: Dataset, tmp_path: Path) -> None:
    versions = {**first.info["versions"], "torch": "1.0"}
    found = reproduce(copy(first, tmp_path / "old", versions=versions, machine="an abacus"), tmp_path / "again", held)
    assert found.changed == (
        f"machine an abacus, now {first.info['machine']}",
        f"torch 1.0, now {torch.__version__}",
    )
    assert found.same


def test_a_run_of_an_older_recipe_takes_what_was_meant_then(first: Run, held: Dataset, tmp_path: Path) -> None:
    """Fields that came later have defaults that change nothing."""
    old = {
        key: value for key, value in first.info["recipe"].items() if key not in ("least_steps", "ema", "keep", "sizes", "width")
    }
    assert reproduce(copy(first, tmp_path / "old", recipe=old), tmp_path / "again", held).same


@pytest.mark.parametrize("what", ("weights", "data", "history"))
def test_what_cannot_be_trained_again_is_refused_before_anything_is_written(
    what: str, first: Run, held: Dataset, blobs: Dataset, tmp_path: Path
) -> None:
    if what == "weights":
        old, data, words = copy(first, tmp_path / "old", weights="ab" * 32), held, "the weights of another run"
    elif what == "data":
        other = hold_out(replace(blobs, train=replace(blobs.train, labels=blobs.train.labels[::-1].copy())), 0.2)
        old, data, words = first, other, "isn't what"
    else:
        old, data, words = copy(first, tmp_path / "old"), held, "2 of 3 epochs"
        lines = (old.folder / "history.csv").read_text().splitlines(keepends=True)
        (old.folder / "history.csv").write_text("".join(lines[:-1]))
    with pytest.raises(RunError, match=words):
        reproduce(old, tmp_path / "again", data)
    assert not (tmp_path / "again").exists()
