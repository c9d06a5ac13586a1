"""Marks: what a person says in the report comes back whole or not at all; label errors leave the next training, never test."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline import cli, datasets, marks, reporting
from sightline.comparison import compare
from sightline.datasets import Dataset, Split, hold_out, load
from sightline.diagnosis import LEAST
from sightline.evaluation import open_test
from sightline.exceptions import DataError, RunError
from sightline.marks import Mark
from sightline.planted import plant
from sightline.recipe import Recipe
from sightline.runs import Run
from sightline.training import train

SMALL = Recipe("small", "smallnet", epochs=2, batch_size=24, max_lr=0.01, augment=())


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder data set, 20 training images of 16×16 pixels a class, in names that hurt."""
    root, random = tmp_path_factory.mktemp("pictures") / "it's data", np.random.default_rng(0)
    for which, n in (("train", 20), ("test", 10)):
        for k, name in enumerate(("a <b>", "ü")):
            (root / which / name).mkdir(parents=True)
            for i in range(n):
                pixels = random.integers(0, 150, (16, 16, 3), dtype=np.uint8)
                pixels[:, 8 * k : 8 * k + 8] += 60
                Image.fromarray(pixels).save(root / which / name / f"{i} '🦉'.png")
    return root


@pytest.fixture(scope="session")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on it, with ten dev images."""
    return train(pictures, tmp_path_factory.mktemp("runs") / "run", recipe=SMALL, precision="fp32", device="cpu", dev=0.25)


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """The same in another place, to be written into."""
    return Run.open(shutil.copytree(trained.folder, tmp_path / "copied"))


def said(run: Run, *given: dict[str, Any]) -> dict[str, Any]:
    """What the page exports."""
    return {"schema": 1, "run": run.digest, "split": run.judged, "marks": list(given)}


def file(folder: Path, content: Any, name: str = "marks of the page.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def confirm(run: Run, *ids: str) -> Run:
    """Import label errors."""
    marks.take(run, file(run.folder.parent, said(run, *({"id": name, "label_error": True} for name in ids))))
    return run


# ---------------------------------------------------------------- who a run is


def test_the_digest_is_of_what_the_run_is_not_of_where_it_lies_or_who_looked(trained: Run, run: Run, tmp_path: Path) -> None:
    told = json.loads((trained.folder / "run.json").read_text())
    literally = hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
    assert trained.digest == run.digest == literally
    open_test(run, run.dataset())
    opened = Run.open(run.folder)
    assert opened.info["test_opened"] == 1 and opened.digest == literally
    (run.folder / "run.json").write_text(json.dumps(dict(reversed(told.items()))))
    assert Run.open(run.folder).digest == literally
    (run.folder / "run.json").write_text(json.dumps({**told, "seed": told["seed"] + 1}))
    assert Run.open(run.folder).digest != literally


# ---------------------------------------------------------------- from the page into the run


def test_marks_come_back_as_they_were_made(run: Run, tmp_path: Path) -> None:
    a, b, c = run.predictions.ids[:3]
    given = [{"id": c, "cause": "mark"}, {"id": a, "label_error": True}, {"id": b, "label_error": True, "cause": "texture"}]
    path = file(tmp_path, said(run, *given))
    assert marks.read(path).marks == (Mark(c, False, "mark"), Mark(a, True), Mark(b, True, "texture"))
    assert len(marks.of(run)) == 0 and not (run.folder / "marks.json").exists()
    taken = marks.take(run, path)
    assert (taken.new, taken.changed, taken.kept, taken.removed) == (3, 0, 0, 0)
    assert taken.label_errors == (a, b) and taken.causes == {"mark": (c,), "texture": (b,)}
    assert marks.of(run).marks == taken.marks == marks.read(run.folder / "marks.json").marks
    assert json.loads((run.folder / "marks.json").read_text()) == said(run, given[1], given[2], given[0])


def test_every_cause_that_is_diagnosed_can_be_marked(run: Run, tmp_path: Path) -> None:
    names = run.predictions.ids
    for cause, name in zip(LEAST, [*names, *names], strict=False):
        assert marks.take(run, file(tmp_path, said(run, {"id": name, "cause": cause}))).causes[cause] == (name,)


def test_of_two_marks_the_later_counts_and_the_others_stay(run: Run, tmp_path: Path) -> None:
    a, b, c, d, e = run.predictions.ids[:5]
    first = [
        {"id": a, "label_error": True},
        {"id": b, "cause": "mark"},
        {"id": c, "cause": "colour"},
        {"id": d, "cause": "scale"},
    ]
    marks.take(run, file(tmp_path, said(run, *first)))
    later = [
        {"id": b, "label_error": True},  # changed: the whole mark, so the cause is gone
        {"id": c, "cause": "colour"},  # the same again
        {"id": d, "label_error": False},  # taken back
        {"id": e, "cause": "position"},
    ]
    taken = marks.take(run, file(tmp_path, said(run, *later)))
    assert set(taken.marks) == {Mark(a, True), Mark(b, True), Mark(c, False, "colour"), Mark(e, False, "position")}
    assert (taken.new, taken.changed, taken.kept, taken.removed) == (1, 1, 2, 1)
    content = (run.folder / "marks.json").read_bytes()
    again = marks.take(run, run.folder / "marks.json")
    assert (again.new, again.changed, again.kept, again.removed) == (0, 0, 4, 0)
    assert (run.folder / "marks.json").read_bytes() == content


LONG = "x" * 200
GOOD: dict[str, Any] = {"schema": 1, "run": "0" * 16, "split": "dev", "marks": []}
BAD = {
    "nothing": ("", "is no file of marks"),
    "no JSON": ("{", "is no file of marks"),
    "another kind": ([1], "doesn't say its schema"),
    "no schema": ({**GOOD, "schema": None}, "doesn't say its schema"),
    "true is no schema": ({**GOOD, "schema": True}, "doesn't say its schema"),
    "newer": ({**GOOD, "schema": 2, "more": 1}, "newer Sightline .schema 2, not 1.; upgrade"),
    "schema zero": ({**GOOD, "schema": 0}, "no schema 0"),
    "more than it should": ({**GOOD, "weights": 1}, "unknown entry 'weights'"),
    "no run": ({**GOOD, "run": 5}, "which run"),
    "no digest": ({**GOOD, "run": "0" * 15 + "g"}, "which run"),
    "split": ({**GOOD, "split": "train"}, "split"),
    "split of another type": ({**GOOD, "split": ["dev"]}, "split"),
    "no marks": ({**GOOD, "marks": {}}, "no list"),
    "a mark of another kind": ({**GOOD, "marks": [{"id": "a", "cause": "mark"}, "b"]}, "mark 2 is no object"),
    "no id": ({**GOOD, "marks": [{"label_error": True}]}, "mark 1 names no image"),
    "an empty id": ({**GOOD, "marks": [{"id": "", "label_error": True}]}, "mark 1 names no image"),
    "an id of another type": ({**GOOD, "marks": [{"id": 3, "label_error": True}]}, "mark 1 names no image"),
    "one is no truth": ({**GOOD, "marks": [{"id": "a", "label_error": 1}]}, "neither true nor false"),
    "cause": ({**GOOD, "marks": [{"id": "a", "cause": "textur"}]}, "unknown cause 'textur'; did you mean 'texture'"),
    "cause of another type": ({**GOOD, "marks": [{"id": "a", "cause": ["mark"]}]}, "unknown cause"),
    "a long cause": ({**GOOD, "marks": [{"id": "a", "cause": LONG}]}, "unknown cause 'x{80}';"),
    "says nothing": ({**GOOD, "marks": [{"id": "a"}]}, "mark 1 says nothing"),
    "unknown": ({**GOOD, "marks": [{"id": "a", "label_error": True, "labelError": 1}]}, "mark 1 has an unknown entry"),
    "twice": ({**GOOD, "marks": [{"id": "a", "cause": "mark"}, {"id": "a", "label_error": True}]}, "'a' has 2 marks"),
    "a key twice": ('{"schema": 1, "schema": 1}', "the same thing twice"),
    "NaN": ('{"schema": NaN}', "NaN is no JSON"),
    "deep": ("[" * 100_000, "is no file of marks"),
    "a long number": ('{"schema": ' + "9" * 10_000 + "}", "is no file of marks"),
    "half a character": ('{"schema": 1, "\\ud800": 1}', r"unknown entry '\\ud800'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    content, message = BAD[kind]
    path = file(tmp_path, content)
    with pytest.raises(RunError, match=message) as error:
        marks.read(path)
    assert str(path) in str(error.value) and str(error.value).count("\n") == 0 and len(str(error.value)) < 700 + len(str(path))
    str(error.value).encode()  # can be printed


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"cannot read .*none\.json \(No such file"):
        marks.read(tmp_path / "none.json")
    with pytest.raises(RunError, match="cannot read"):
        marks.read(tmp_path)
    (tmp_path / "latin.json").write_bytes(json.dumps(GOOD).encode().replace(b"dev", b"d\xe9v"))
    with pytest.raises(RunError, match="is no file of marks"):
        marks.read(tmp_path / "latin.json")
    path = file(tmp_path, GOOD)
    monkeypatch.setattr(marks, "MOST_BYTES", path.stat().st_size)
    assert marks.read(path).marks == ()
    path.write_text(path.read_text() + " ")
    with pytest.raises(RunError, match="larger than"):
        marks.read(path)


def test_marks_of_another_run_change_nothing(run: Run, tmp_path: Path) -> None:
    name = run.predictions.ids[0]
    confirm(run, name)
    before = (run.folder / "marks.json").read_bytes()
    for changes, message in (
        ({"run": "0123456789abcdef"}, f"the run 0123456789abcdef, and .* is {run.digest}"),
        ({"split": "test"}, "marks test images, and .* judged on dev"),
        (
            {"marks": [{"id": name, "cause": "mark"}, {"id": "train/\u202eno", "cause": "mark"}]},
            r"marks 'train/\\u202eno', no dev",
        ),
        ({"marks": [{"id": name, "cause": "mark"}, {"id": "x" * 500, "cause": "mark"}]}, "marks 'x{80}', no dev"),
    ):
        with pytest.raises(RunError, match=message):
            marks.take(run, file(tmp_path, {**said(run), **changes}))
        assert (run.folder / "marks.json").read_bytes() == before
    told = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**told, "seed": 7}))
    with pytest.raises(RunError, match=f"the run {run.digest}"):
        marks.of(Run.open(run.folder))


# ---------------------------------------------------------------- out of the next training


def by_hand(data: Dataset, ids: set[str]) -> Dataset:
    """The same data set, image by image, without some."""

    def thinned(split: Split) -> Split:
        rows = [i for i in range(len(split)) if split.ids[i] not in ids]
        images = np.stack([np.array(split.images[i]) for i in rows])
        masks = None if split.masks is None else np.stack([split.masks[i] for i in rows])
        return Split(images, np.array([split.labels[i] for i in rows]), split.classes, tuple(split.ids[i] for i in rows), masks)

    return Dataset(data.name, thinned(data.train), data.test, dev=None if data.dev is None else thinned(data.dev))


def same(a: Split | None, b: Split | None) -> None:
    assert a is not None and b is not None and a.ids == b.ids and a.classes == b.classes
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert (a.masks is None) == (b.masks is None) and (a.masks is None or np.array_equal(a.masks, b.masks))


def test_the_other_images_stay_where_they_are(blobs: Dataset) -> None:
    masked = replace(blobs, train=replace(blobs.train, masks=blobs.train.images[..., 0] > 90))
    data = hold_out(masked, 0.2)
    assert data.dev is not None
    ids = {*data.train.ids[:30:3], *data.dev.ids[::4]}
    less, wanted = data.without(ids), by_hand(data, ids)
    same(less.train, wanted.train)
    same(less.dev, wanted.dev)
    assert less.test is data.test and less.left_out == tuple(sorted(ids)) and data.left_out == ()
    # What would happen to a naive one: the share of what is left is other images.
    naive = hold_out(by_hand(masked, ids), 0.2)
    assert naive.dev is not None and less.dev is not None and set(less.dev.ids) != set(naive.dev.ids)


def test_the_content_hash_stays_that_of_the_whole(blobs: Dataset) -> None:
    data = hold_out(blobs, 0.2)
    a, b = data.train.ids[0], data.train.ids[1]
    assert data.without([a]).content_hash == data.content_hash != by_hand(data, {a}).content_hash
    twice = data.without([a]).without([b, a])
    assert twice.content_hash == data.content_hash and twice.left_out == tuple(sorted((a, b)))
    same(twice.train, by_hand(data, {a, b}).train)
    assert data.without(()) is data
    assert data.without([a]).normalisation == by_hand(data, {a}).normalisation != data.normalisation


def test_what_cannot_be_left_out_is_an_error(blobs: Dataset) -> None:
    data = hold_out(blobs, 0.2)
    assert data.dev is not None
    with pytest.raises(DataError, match="'test/3' is a test image, and nothing is chosen on these"):
        data.without([data.train.ids[0], "test/3"])
    with pytest.raises(DataError, match=r"blobs has no image 'train/\\u202e' that could be left out"):
        data.without(["train/\u202e"])
    for split, name in ((data.train, "train"), (data.dev, "dev")):
        every = [split.ids[i] for i in np.flatnonzero(split.labels == 1)]
        with pytest.raises(DataError, match=f"no {name} image of the class 'middle' would be left"):
            data.without(every)
        assert (data.without(every[1:]).left_out) == tuple(sorted(every[1:]))
    with pytest.raises(DataError, match="hold out first"):
        hold_out(blobs.without(blobs.train.ids[:1]), 0.2)
    with pytest.raises(DataError, match="plant first, then leave out"):
        plant(blobs.without(blobs.train.ids[:1]), "tint")


def test_images_on_disk_stay_on_disk(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(pictures, dev=0.25, memory=0)
    ids = {*data.train.ids[::3]}
    first = data.without(ids)
    same(first.train, by_hand(data, ids).train)
    assert isinstance(first.train.images, np.memmap) and not first.train.images.flags.writeable
    assert Path(str(first.train.images.filename)) != Path(str(data.train.images.filename))  # type: ignore[attr-defined]
    monkeypatch.setattr(datasets, "_room_on_disk", None)  # the second time nothing is written
    same(load(pictures, dev=0.25, memory=0).without(ids).train, first.train)
    assert data.without(ids).dev is data.dev

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(datasets, "_room_on_disk", full)
    with pytest.raises(DataError, match=r"cannot write to .*No space left on device.*free as much"):
        data.without(data.train.ids[:1])


def test_training_does_not_see_them(blobs: Dataset, tmp_path: Path) -> None:
    data = hold_out(blobs, 0.2)
    assert data.dev is not None
    ids = {*data.train.ids[:40:4], *data.dev.ids[:3]}
    nets = {
        name: train(given, tmp_path / name, recipe=SMALL, precision="fp32", device="cpu")
        for name, given in (("without", data.without(ids)), ("by hand", by_hand(data, ids)), ("whole", data))
    }
    weights = {name: (net.folder / "model.safetensors").read_bytes() for name, net in nets.items()}
    assert weights["without"] == weights["by hand"] != weights["whole"]
    assert nets["without"].predictions.ids == nets["by hand"].predictions.ids
    np.testing.assert_array_equal(nets["without"].predictions.losses, nets["by hand"].predictions.losses)
    info = json.loads((nets["without"].folder / "run.json").read_text())["data"]
    assert info["without"] == sorted(ids) and info["hash"] == data.content_hash
    assert (info["n_train"], info["n_dev"]) == (len(data.train) - 10, len(data.dev) - 3)
    assert "without" not in nets["whole"].info["data"] and nets["whole"].left_out == ()


def test_with_the_same_dev_the_weights_are_the_same(run: Run, tmp_path: Path) -> None:
    """As the documentation says: who leaves out dev images alone learns from the same images."""
    confirm(run, *run.predictions.ids[:3])
    data = run.dataset()
    again = train(
        data.without(marks.left_out([run.folder], data)), tmp_path / "new", recipe=SMALL, precision="fp32", device="cpu"
    )
    assert (again.folder / "model.safetensors").read_bytes() == (run.folder / "model.safetensors").read_bytes()
    assert again.predictions.ids == run.predictions.ids[3:]


def test_a_run_loads_what_it_was_trained_on_again(run: Run, tmp_path: Path) -> None:
    whole = run.dataset()
    ids = (whole.train.ids[3], run.predictions.ids[0])
    less = train(whole.without(ids), tmp_path / "less", recipe=SMALL, precision="fp32", device="cpu")
    found = less.dataset()
    same(found.train, by_hand(whole, set(ids)).train)
    same(found.dev, by_hand(whole, set(ids)).dev)
    assert found.left_out == less.left_out == tuple(sorted(ids))
    for net, data in ((less, whole), (run, found), (less, whole.without(ids[:1]))):
        with pytest.raises(RunError, match=r"they differ in .*run\.dataset\(\)"):
            net.check(data)
    compared = compare(run, less)  # on the same test images, whichever of the two loads them
    assert compared.n == len(whole.test) and Run.open(less.folder).info["test_opened"] == 1
    with pytest.raises(RunError, match=r"trained without 0 images, .* without 2 or others"):
        compare([run, Run(less.folder, {**less.info, "seed": 1})], run)


class StoppedError(Exception):
    """Somebody pulled the plug."""


def test_an_unfinished_run_with_other_images_is_not_gone_on_with(blobs: Dataset, tmp_path: Path) -> None:
    a, b = blobs.train.ids[:2]

    def stop(now: Any) -> None:
        if now.stage == "train" and now.epoch == 2:
            raise StoppedError

    def start(data: Dataset, **how: Any) -> Run:
        return train(data, tmp_path / "run", recipe=SMALL, precision="fp32", device="cpu", **how)

    with pytest.raises(StoppedError):
        start(blobs.without([a]), on_progress=stop)
    for other in (blobs, blobs.without([b]), blobs.without([a, b])):
        with pytest.raises(RunError, match="unfinished run with another data"):
            start(other)
    straight = train(blobs.without([a]), tmp_path / "straight", recipe=SMALL, precision="fp32", device="cpu")
    assert (start(blobs.without([a])).folder / "model.safetensors").read_bytes() == (
        straight.folder / "model.safetensors"
    ).read_bytes()


# ---------------------------------------------------------------- --without


def test_what_runs_leave_out_adds_up(run: Run, tmp_path: Path) -> None:
    """The label errors of a run, what it was itself trained without, and of its run.json the latter alone."""
    a, b, c, d = run.predictions.ids[:4]
    confirm(run, a, b)
    marks.take(run, file(tmp_path, said(run, {"id": d, "cause": "mark"})))  # no label error
    data = load(run.info["data"]["name"], dev=0)  # of another --dev: another hash, the same ids
    assert marks.left_out([run.folder], data) == tuple(sorted((a, b)))
    less = train(run.dataset().without([a, b]), tmp_path / "less", recipe=SMALL, precision="fp32", device="cpu")
    assert marks.left_out([less.folder], data) == tuple(sorted((a, b)))
    confirm(less, c)
    assert marks.left_out([less.folder], data) == tuple(sorted((a, b, c)))
    assert marks.left_out([less.folder / "run.json"], data) == tuple(sorted((a, b)))
    assert marks.left_out([run.folder, less.folder, run.folder], data) == tuple(sorted((a, b, c)))
    assert data.without([a]).train.ids == tuple(name for name in data.train.ids if name != a)


def test_what_says_nothing_to_leave_out_is_refused(run: Run, blobs: Dataset, tmp_path: Path) -> None:
    data = run.dataset()
    marks.take(run, path := file(tmp_path, said(run, {"id": run.predictions.ids[0], "cause": "mark"})))
    for source, message in (
        (run.folder, "no label errors that a person confirmed; leave out --without"),
        (run.folder / "run.json", "was trained with all images"),
        (path, "is a file; name the run's folder, after: sightline import"),
        (tmp_path / "nowhere", "no run folder"),
    ):
        with pytest.raises(RunError, match=message):
            marks.left_out([source], data)
    with pytest.raises(RunError, match=r"was trained on .*it's data, not on blobs"):
        marks.left_out([confirm(run, run.predictions.ids[0]).folder], blobs)


def test_marks_on_test_images_are_kept_but_never_used(blobs: Dataset, tmp_path: Path) -> None:
    run = train(blobs, tmp_path / "run", recipe=SMALL, precision="fp32", device="cpu")
    assert run.judged == "test"
    confirm(run, "test/4")
    assert marks.of(run).label_errors == ("test/4",)
    with pytest.raises(RunError, match="marked on test images, and nothing is chosen on these"):
        marks.left_out([run.folder], blobs)


# ---------------------------------------------------------------- from the command line


def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", ["sightline", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def test_import_then_train_without(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = run.predictions.ids[:3]
    path = file(tmp_path, said(run, {"id": a, "label_error": True}, {"id": b, "label_error": True, "cause": "mark"}))
    code, out, _ = ask(monkeypatch, capsys, "import", run.folder, path)
    assert code == 0 and "2 marks: 2 new, 0 changed, 0 as they were; 0 taken back" in out
    assert "Label errors: 2. Causes: mark 1." in out
    assert f"Next: {shlex.join(['sightline', 'train', str(pictures), '--without', str(run.folder), '-o', 'NEW'])}" in out
    code, out, _ = ask(
        monkeypatch, capsys, "import", run.folder, file(tmp_path, said(run, {"id": c, "cause": "scale"})), "--json"
    )
    assert code == 0 and json.loads(out) == {
        "marks": str(run.folder / "marks.json"),
        "split": "dev",
        **{"new": 1, "changed": 0, "kept": 2, "removed": 0},
        "label_errors": [a, b],
        "causes": {"mark": [b], "scale": [c]},
    }
    code, _, err = ask(monkeypatch, capsys, "import", run.folder, file(tmp_path, {**GOOD, "schema": 2}))
    assert code == 1 and err.startswith("error: ") and len(err.strip().splitlines()) == 1

    options = ("-r", "small", "--epochs", 1, "--batch-size", 24, "--precision", "fp32", "--device", "cpu")
    new = tmp_path / "new"
    code, _, err = ask(monkeypatch, capsys, "train", pictures, *options, "--dev", 0, "--without", run.folder, "-o", new)
    assert code == 0 and "left out for their labels: 2 train images" in err
    left = Run.open(new)
    assert left.info["data"]["without"] == sorted((a, b)) and left.dataset().left_out == tuple(sorted((a, b)))
    code, _, err = ask(monkeypatch, capsys, "train", "planted", *options, "--without", run.folder, "-o", tmp_path / "bad")
    assert code == 1 and "name runs on the same data" in err and not (tmp_path / "bad").exists()


def test_the_command_that_a_run_names_makes_it_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run.dataset()
    ids = (whole.train.ids[5], run.predictions.ids[2])
    recipe = SMALL.with_(max_lr=0.02)
    less = train(whole.without(ids), tmp_path / "less", recipe=recipe, precision="fp32", device="cpu")
    assert "--without" not in reporting.reproduce(run.info)[0]
    command, needed = reporting.reproduce(less.info)
    words = shlex.split(command)
    assert words[words.index("--without") + 1] == "run.json"
    monkeypatch.chdir(tmp_path)
    shutil.copy(less.folder / "run.json", "run.json")
    assert needed
    file(tmp_path, recipe.to_dict(), "recipe.json")
    code, _, err = ask(monkeypatch, capsys, *words[1:])
    assert code == 0, err
    assert (tmp_path / "RUN" / "model.safetensors").read_bytes() == (less.folder / "model.safetensors").read_bytes()
    assert Run.open("RUN").left_out == less.left_out
