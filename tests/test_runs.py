"""The run folder: what is written is what is read, whole or not at all, and what can't be used is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import log_softmax

from sightline import runs
from sightline.datasets import Dataset, hold_out
from sightline.evaluation import open_test
from sightline.exceptions import RunError
from sightline.models import Normalise, to_device
from sightline.recipe import Recipe
from sightline.runs import MapParts, Predictions, Run, SavedMaps, load_state, prepare, save_state, write_text
from sightline.training import train

HOSTILE = ("</script>", "a b", "ü\u202e", '"quoted"')


def some_predictions(n: int = 50) -> tuple[Predictions, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits = random.normal(0, 5, (n, 4)).astype(np.float32)
    labels = random.integers(0, 4, n)
    return Predictions.from_logits(logits, labels, [f"test/{i}" for i in range(n)], HOSTILE, "test"), logits, labels


def test_predictions_follow_from_the_logits() -> None:
    predictions, logits, labels = some_predictions()
    rows = range(len(labels))
    np.testing.assert_array_equal(predictions.predicted, logits.argmax(1))
    np.testing.assert_allclose(predictions.losses, [-log_softmax(logits[i].astype(float))[labels[i]] for i in rows], rtol=1e-6)
    np.testing.assert_allclose(predictions.probabilities.sum(1), 1, rtol=1e-6)
    for i in rows:
        wrong = max(logits[i, k] for k in range(4) if k != labels[i])
        assert predictions.margins[i] == pytest.approx(wrong - logits[i, labels[i]], rel=1e-5)
    assert ((predictions.margins > 0) == (predictions.predicted != labels)).all()


def test_huge_logits_neither_overflow_nor_vanish() -> None:
    logits = np.array([[1e4, 0, -1e4, 5], [0, 0, 0, 0]], np.float32)
    predictions = Predictions.from_logits(logits, np.array([2, 0]), ["a", "b"], HOSTILE, "test")
    assert predictions.losses[0] == pytest.approx(2e4)
    assert predictions.losses[1] == pytest.approx(np.log(4))


def test_predictions_survive_the_disk(tmp_path: Path) -> None:
    predictions, _, _ = some_predictions()
    predictions.write(tmp_path)
    read = Predictions.read(tmp_path / "predictions.parquet", HOSTILE)
    assert (read.ids, read.split, read.classes) == (predictions.ids, "test", HOSTILE)
    for name in ("labels", "predicted", "losses", "margins", "probabilities"):
        np.testing.assert_array_equal(getattr(read, name), getattr(predictions, name))


def test_the_parquet_file_has_one_row_an_image_and_one_column_a_class(tmp_path: Path) -> None:
    predictions, _, _ = some_predictions()
    predictions.write(tmp_path)
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert table.column_names == ["id", "split", "label", "predicted", "loss", "margin", *(f"p_{name}" for name in HOSTILE)]
    assert table.num_rows == 50


def map_arrays(n: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    numbers = {name: random.normal(size=(n, 3)).astype(np.float32) for name in ("scores", "completeness", "effects")}
    raw = random.normal(size=(n, 3, 4, 4)).astype(np.float32)
    return {**numbers, "raw": raw, "verdicts": random.choice(["", "weak", "no evidence"], (n, 3)).astype("<U16")}


def test_heatmaps_survive_the_disk(tmp_path: Path) -> None:
    ids, targets, arrays = ("test/ü.png", "test/1", "2"), ("predicted", "true", "margin"), map_arrays(3)
    parts = MapParts(tmp_path)
    parts.add(arrays, layer="layer3", method="Grad-CAM", precision="fp32")
    read = SavedMaps.read(parts.finish(ids, targets))
    assert (read.ids, read.targets) == (ids, targets)
    assert (read.layer, read.method, read.precision) == ("layer3", "Grad-CAM", "fp32")
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(read, name), array)


def test_heatmaps_of_an_older_form_say_how_to_make_them_again(tmp_path: Path) -> None:
    maps = np.zeros((1, 4, 4), np.float32)
    np.savez(tmp_path / "heatmaps.npz", ids=["a"], predicted=maps, true=maps, layer="layer3", method="Grad-CAM")
    with pytest.raises(RunError, match=r"heatmaps\.npz .*make it again with: sightline explain") as error:
        SavedMaps.read(tmp_path / "heatmaps.npz")
    assert "\n" not in str(error.value)


def test_parts_are_kept_for_the_same_settings_only(tmp_path: Path) -> None:
    def reopened(settings: dict[str, object] | None) -> MapParts:
        return MapParts(tmp_path, settings)

    assert reopened({"layer": ["a"], "trust": 0}).names == {}
    assert not list(tmp_path.iterdir()), "nothing is written before there is a part"
    reopened({"layer": ["a"], "trust": 0}).add(map_arrays(2), layer="a", method="m", precision="bf16")
    again = reopened({"layer": ["a"], "trust": 0})
    assert (len(again), again.names) == (1, {"layer": "a", "method": "m", "precision": "bf16"})
    assert len(reopened({"layer": ["b"], "trust": 0})) == 0
    again.add(map_arrays(2), layer="a", method="m", precision="bf16")
    assert len(reopened(None)) == 0


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x80\x04."])
def test_damaged_heatmaps_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "heatmaps.npz").write_bytes(content)
    with pytest.raises(RunError, match="sightline explain"):
        SavedMaps.read(tmp_path / "heatmaps.npz")


def test_a_checkpoint_survives_the_disk(tmp_path: Path) -> None:
    tensors = {"model.weight": torch.randn(3, 4), "optimizer.0.step": torch.tensor(7.0)}
    state = {"history": [{"lr": 0.1 + 0.2}], "text": "ü"}
    save_state(tmp_path, tensors, state)
    found = load_state(tmp_path)
    assert found is not None
    assert found[1] == state
    assert all(torch.equal(value, tensors[name]) for name, value in found[0].items())


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, {"a": torch.zeros(3)}, {})
    path = tmp_path / "resume" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunError, match=r"delete .* to start again"):
        load_state(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), runs.writing(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["history.csv"]


def test_a_disk_that_is_full_is_a_one_line_error(tmp_path: Path) -> None:
    """The operating system really refuses to write: a limit on the size of files stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(RunError, match="free some space") as text:
            write_text(tmp_path / "run.json", "x" * 5000)
        with pytest.raises(RunError, match="free some space") as checkpoint:
            save_state(tmp_path, {"a": torch.zeros(5000)}, {})
        with pytest.raises(RunError, match="free some space"):
            some_predictions(2000)[0].write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert all("\n" not in str(error.value) for error in (text, checkpoint))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_read_only_folder_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(RunError, match="cannot write to"):
        prepare(tmp_path / "new" / "run")


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another -o"):
        prepare(tmp_path / "file")
    with pytest.raises(RunError, match="choose another -o"):
        prepare(tmp_path / "file" / "run")


def test_other_files_are_never_mixed_with_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match=r"holds other files \(thesis\.tex\)"):
        prepare(tmp_path)


@pytest.fixture
def run(blobs: Dataset, quick: Recipe, tmp_path: Path) -> Run:
    return train(blobs, tmp_path / "run", recipe=quick.with_(epochs=1), precision="fp32")


def test_a_run_made_by_a_newer_version_is_refused(run: Run) -> None:
    path = run.folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": runs.SCHEMA + 1}))
    with pytest.raises(RunError, match=r"newer Sightline.*upgrade"):
        Run.open(run.folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": "x"}', "null"])
def test_a_damaged_run_json_is_refused(run: Run, content: str) -> None:
    (run.folder / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json"):
        Run.open(run.folder)


def test_a_missing_and_an_unfinished_run_are_told_apart(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run folder"):
        Run.open(tmp_path / "none")
    (run.folder / "run.json").unlink()
    with pytest.raises(RunError, match=r"it has no run\.json"):
        Run.open(run.folder)
    (run.folder / "resume").mkdir()
    with pytest.raises(RunError, match="finish it with the same"):
        Run.open(run.folder)


def test_damaged_weights_predictions_and_history_are_refused(run: Run) -> None:
    for name in ("model.safetensors", "predictions.parquet", "history.csv"):
        (run.folder / name).write_bytes(b"\x00damaged")
    damaged = Run.open(run.folder)
    with pytest.raises(RunError, match=r"model\.safetensors"):
        damaged.model()
    with pytest.raises(RunError, match=r"predictions\.parquet"):
        _ = damaged.predictions
    with pytest.raises(RunError, match=r"history\.csv"):
        _ = damaged.history


def test_history_keeps_every_digit(run: Run) -> None:
    row = run.history[0]
    runs.write_history(run.folder, [row])
    assert runs.read_history(run.folder / "history.csv") == [row]


def test_writing_fails_with_the_system_s_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_text(tmp_path / "a", "b")


def test_a_run_with_held_out_images_is_judged_on_them(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    data = hold_out(blobs, 0.2)
    assert data.dev is not None
    run = train(data, tmp_path / "run", recipe=quick.with_(epochs=1), precision="fp32")
    assert run.judged == run.predictions.split == "dev" and run.predictions.ids == data.dev.ids
    assert "test_accuracy" not in run.info["results"] and not (run.folder / "test.parquet").exists()
    right = (run.predictions.predicted == data.dev.labels).mean()
    assert run.history[0]["dev_accuracy"] == run.info["results"]["dev_accuracy"] == pytest.approx(right)
    assert (run.folder / "history.csv").read_text().splitlines()[0].split(",") == list(runs.history_columns("dev"))


@pytest.mark.parametrize("precision", ["fp32", "fp32-channels-last"])
def test_opening_the_test_set_is_counted(blobs: Dataset, quick: Recipe, tmp_path: Path, precision: str) -> None:
    data = hold_out(blobs, 0.2)
    run = train(data, tmp_path / "run", recipe=quick, precision=precision)
    first, second = open_test(run, data), open_test(run, data)
    assert Run.open(run.folder).info["test_opened"] == 2
    logits = run.model()(Normalise(*data.normalisation)(to_device(data.test.images))).detach().numpy()
    np.testing.assert_array_equal(first.predicted, logits.argmax(1))
    np.testing.assert_array_equal(first.losses, second.losses)
    assert first.split == "test" and first.ids == data.test.ids
    with pytest.raises(RunError, match="isn't what"):
        open_test(run, blobs)


def test_seeds_are_the_runs_in_a_folder(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    for seed in (1, 0):
        train(blobs, tmp_path / f"seed-{seed}", recipe=quick.with_(epochs=1), seed=seed, precision="fp32")
    assert [run.info["seed"] for run in runs.open_seeds(tmp_path)] == [0, 1]
    assert [run.info["seed"] for run in runs.open_seeds(tmp_path / "seed-1")] == [1]
    with pytest.raises(RunError, match="there is no run folder"):
        runs.open_seeds(tmp_path / "nothing")


def test_a_training_may_start_from_given_weights(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    run = train(blobs, tmp_path / "run", recipe=quick, precision="fp32")
    still = quick.with_(epochs=1, max_lr=1e-12)
    again = train(blobs, tmp_path / "again", recipe=still, precision="fp32", seed=1, weights=run.folder / "model.safetensors")
    before, after = run.model().state_dict(), again.model().state_dict()
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)
    assert again.info["weights"] == hashlib.sha256((run.folder / "model.safetensors").read_bytes()).hexdigest()
    weights = run.folder / "model.safetensors"
    with pytest.raises(RunError, match=r"don't fit the model \(size mismatch for .*another version of Sightline; train it again"):
        train(blobs, tmp_path / "bad", recipe=still.with_(width=2.0), precision="fp32", weights=weights)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"cannot read the weights .*copy the run folder again"):
        run.model()
