"""Heatmaps of many images: what is on disk equals what each image gives on its own, killed or not; files of any kind."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sightline import datasets
from sightline.datasets import Dataset
from sightline.exceptions import DataError, RecipeError, RunError
from sightline.heatmaps import Heatmaps, drawing, overlay, sweep
from sightline.heatmaps.sweep import compare_methods, explain, explain_files, explain_images
from sightline.recipe import Recipe
from sightline.runs import MAP_ARRAYS, MapParts, Run, SavedMaps
from sightline.training import train

Array = NDArray[Any]


@pytest.fixture(scope="module")
def run(blobs: Dataset, quick: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has learned next to nothing, so that mistakes are many."""
    return train(blobs, tmp_path_factory.mktemp("sweep") / "run", recipe=quick.with_(epochs=1, max_lr=1e-4), precision="fp32")


def wrong(run: Run) -> list[int]:
    p = run.predictions
    return [int(i) for i in np.argsort(-p.losses, kind="stable") if p.predicted[i] != p.labels[i]]


def as_input(run: Run, image_HWC: Array) -> torch.Tensor:
    mean, std = (np.array(run.info["normalisation"][key]) for key in ("mean", "std"))
    return torch.tensor(((image_HWC / 255 - mean) / std).transpose(2, 0, 1), dtype=torch.float32)[None]


def assert_close(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max() + 1e-7)


# --- a run's mistakes ---


def test_the_saved_maps_are_those_of_the_run_s_own_images(blobs: Dataset, run: Run) -> None:
    """Each id's three maps, in their places, equal what its image gives on its own, normalised as in training."""
    explain(run, blobs, batch_size=7)
    saved, predictions, rows = run.heatmaps, run.predictions, wrong(run)
    assert saved is not None and len(rows) > 16
    assert saved.ids == tuple(blobs.test.ids[i] for i in rows)
    assert (saved.targets, saved.precision) == (("predicted", "true", "margin"), "fp32")
    assert saved.method == "Grad-CAM, the margin by HiResCAM"
    with Heatmaps(run.model()) as heatmaps:
        for row, i in enumerate(rows):
            classes = [int(predictions.predicted[i]), int(blobs.test.labels[i])]
            maps, exact = (heatmaps(as_input(run, blobs.test.images[i]), [classes], m) for m in ("gradcam", "hirescam"))
            assert saved.layer == maps.layer
            assert_close(saved.raw[row, :2], maps.raw[0])
            assert_close(saved.raw[row, 2], exact.raw[0, 0] - exact.raw[0, 1])
            assert_close(saved.scores[row], np.append(maps.scores[0], maps.scores[0, 0] - maps.scores[0, 1]))
    assert set(saved.verdicts.flat) == {""} and np.isnan(saved.effects).all()
    assert not (run.folder / "heatmaps.parts").exists()


def test_any_images_get_the_maps_that_mistakes_get(blobs: Dataset, run: Run) -> None:
    """In any order and batch; the margin of a right answer is that of the next best class over it."""
    explain(run, blobs)
    saved, predictions, rows = run.heatmaps, run.predictions, wrong(run)
    assert saved is not None
    right = int(np.flatnonzero(predictions.predicted == predictions.labels)[0])
    asked = [*rows[8:2:-1], right]
    maps = explain_images(run, blobs.test, predictions, [predictions.ids[i] for i in asked], batch_size=4)
    assert (maps.ids, maps.targets, maps.layer, maps.method) == (
        tuple(predictions.ids[i] for i in asked),
        saved.targets,
        saved.layer,
        saved.method,
    )
    for row, i in enumerate(asked[:-1]):
        assert_close(maps.raw[row], saved.raw[rows.index(i)])
        assert_close(maps.scores[row], saved.scores[rows.index(i)])
    true = int(predictions.labels[right])
    others = np.argsort(-predictions.probabilities[right])
    rival = int(next(k for k in others if k != true))
    with Heatmaps(run.model()) as heatmaps:
        exact = heatmaps(as_input(run, blobs.test.images[right]), [[rival, true]], "hirescam")
    assert_close(maps.raw[-1, 2], exact.raw[0, 0] - exact.raw[0, 1])
    assert explain_images(run, blobs.test, predictions, []).raw.shape[:2] == (0, 3)


def test_the_options_are_those_of_heatmaps(blobs: Dataset, run: Run) -> None:
    explain(run, blobs, layer=["layer1", "layer3"], method="hirescam", fuse="max", aug_smooth=True, eigen_smooth=True)
    saved, i = run.heatmaps, wrong(run)[0]
    assert saved is not None
    targets = [[int(run.predictions.predicted[i]), int(blobs.test.labels[i])]]
    with Heatmaps(run.model(), ["layer1", "layer3"]) as heatmaps:
        image = as_input(run, blobs.test.images[i])
        maps = heatmaps(image, targets, "hirescam", fuse="max", aug_smooth=True, eigen_smooth=True)
    assert (saved.layer, saved.method) == ("layer1+layer3", "HiResCAM, flip and scale smoothing, eigen smoothing")
    np.testing.assert_allclose(saved.raw[0, :2], maps.raw[0], atol=1e-3 * np.abs(maps.raw).max())


def test_finer_cam_has_no_margin(blobs: Dataset, run: Run) -> None:
    explain(run, blobs, method="finercam")
    saved = run.heatmaps
    assert saved is not None and saved.targets == ("predicted", "true") and saved.raw.shape[1] == 2


class KilledError(Exception):
    """Stands for a signal: it leaves the call in the middle."""


def test_a_killed_explain_goes_on_where_it_was_and_ends_with_the_same_bytes(
    blobs: Dataset, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = explain(run, blobs, batch_size=4).read_bytes()
    total = len(wrong(run))

    def stop(done: int, of: int) -> None:
        assert of == total
        if done == 8:
            raise KilledError

    with pytest.raises(KilledError):
        explain(run, blobs, batch_size=4, progress=stop)
    parts = run.folder / "heatmaps.parts"
    assert sorted(path.name for path in parts.iterdir()) == ["000000.npz", "000001.npz", "settings.json"]
    assert (run.folder / "heatmaps.npz").read_bytes() == whole, "the old file stays until the new one is whole"
    done: list[int] = []
    computed = count_images(monkeypatch)
    explain(run, blobs, batch_size=4, progress=lambda d, _: done.append(d))
    assert done == [*range(12, total, 4), total] and sum(computed) == total - 8
    assert (run.folder / "heatmaps.npz").read_bytes() == whole
    assert not parts.exists()


def count_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that are explained from now on."""
    sizes: list[int] = []
    call = Heatmaps.__call__

    def counted(self: Heatmaps, images: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(images))
        return call(self, images, *arguments, **options)

    monkeypatch.setattr(Heatmaps, "__call__", counted)
    return sizes


@pytest.mark.parametrize("change", [{"method": "layercam"}, {"layer": "layer2"}, {"aug_smooth": True}, {"batch_size": 5}])
def test_other_settings_start_anew(blobs: Dataset, run: Run, change: dict[str, Any]) -> None:
    def stop(done: int, _: int) -> None:
        raise KilledError

    fresh = explain(run, blobs, **{"batch_size": 4, **change}).read_bytes()
    with pytest.raises(KilledError):
        explain(run, blobs, batch_size=4, progress=stop)
    assert explain(run, blobs, **{"batch_size": 4, **change}).read_bytes() == fresh


def test_a_run_without_mistakes_has_no_maps(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    run = train(blobs, tmp_path / "run", recipe=quick, precision="fp32")
    predictions = replace(run.predictions, predicted=run.predictions.labels)
    predictions.write(run.folder)
    saved = SavedMaps.read(explain(Run.open(run.folder), blobs))
    assert (saved.ids, saved.raw.shape, saved.layer) == ((), (0, 3, 8, 8), "layer2")


def test_other_data_than_the_run_s_is_refused(blobs: Dataset, run: Run) -> None:
    other = replace(blobs, test=replace(blobs.test, images=255 - blobs.test.images))
    with pytest.raises(RunError, match="contents differ"):
        explain(run, other)


def test_the_first_mistakes_are_judged_and_the_others_are_not(blobs: Dataset, run: Run) -> None:
    """The judge gets each map with its image, its score's gradient and a pool; its words and effects come back in place."""
    seen: list[tuple[Array, Array, Array]] = []

    def judge(model: torch.nn.Module, images: torch.Tensor, raw: Array, cotangents: torch.Tensor, *, pool: torch.Tensor) -> Any:
        assert len(pool) >= 6 and pool.shape[1:] == images.shape[1:]
        scores = (model(images) * cotangents).sum(1).detach().numpy()
        seen.append((raw, scores, images.numpy()))
        mean = np.stack([scores + 1, scores, scores + 2], 1)
        return SimpleNamespace(verdicts=["weak"] * len(raw), deletion=SimpleNamespace(mean=mean))

    explain(run, blobs, batch_size=6, trust=10, judge=judge)
    saved = run.heatmaps
    assert saved is not None
    assert (saved.verdicts[:10] == "weak").all() and (saved.verdicts[10:] == "").all()
    np.testing.assert_allclose(saved.effects[:10], saved.scores[:10], rtol=1e-3, atol=1e-4)
    assert np.isnan(saved.effects[10:]).all()
    np.testing.assert_array_equal(np.concatenate([raw for raw, _, _ in seen[::3]]), saved.raw[:10, 0])
    image = as_input(run, blobs.test.images[wrong(run)[9]])[0]
    np.testing.assert_allclose(seen[-1][2][-1], image, atol=1e-5)


# --- the file ---


def test_the_joined_file_holds_the_parts_one_after_the_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    batches = [some_arrays(rng, n) for n in (5, 5, 2)]
    parts = MapParts(tmp_path)
    for arrays in batches:
        parts.add(arrays, layer="layer3", method="Grad-CAM", precision="bf16")
    ids = ["ü.png", "\u202e2", *map(str, range(10))]
    path = parts.finish(ids, ("predicted", "margin"))
    with np.load(path, allow_pickle=False) as file:
        assert file["ids"].tolist() == ids and file["targets"].tolist() == ["predicted", "margin"]
        for name in MAP_ARRAYS:
            expected = np.concatenate([arrays[name] for arrays in batches])
            assert file[name].dtype == expected.dtype
            np.testing.assert_array_equal(file[name], expected)
        assert [str(file[name]) for name in ("layer", "method", "precision")] == ["layer3", "Grad-CAM", "bf16"]
    assert [path.name for path in tmp_path.iterdir()] == ["heatmaps.npz"]


def some_arrays(rng: np.random.Generator, n: int, side: int = 4) -> dict[str, Array]:
    arrays: dict[str, Array] = {
        name: rng.normal(size=(n, 2)).astype(np.float32) for name in ("scores", "completeness", "effects")
    }
    arrays["raw"] = rng.normal(size=(n, 2, side, side)).astype(np.float32)
    arrays["verdicts"] = rng.choice(["weak", "", "no evidence"], (n, 2)).astype("<U16")
    return arrays


def test_joining_needs_the_memory_of_one_part_however_many_there_are(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        parts = MapParts(tmp_path / str(count))
        arrays = some_arrays(np.random.default_rng(0), 16, 64)  # half a megabyte
        for _ in range(count):
            parts.add(arrays, layer="", method="", precision="")
        tracemalloc.start()
        parts.finish(["id"] * (16 * count), ("a", "b"))
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(1)  # what is imported by the first use
    assert peak(40) < 1.1 * peak(4)


# --- files ---


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of all sizes and kinds in nested folders; three files that are none; a name that could break a terminal."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    (folder / "deeper" / ".hidden").mkdir(parents=True)

    def noise(*shape: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))

    noise(40, 100, 3).save(folder / "wide.png")
    noise(90, 30).save(folder / "deeper" / "grey.png")
    noise(20, 20, 4).save(folder / "deeper" / "rgba.webp", lossless=True)
    noise(33, 17, 3).quantize(16).save(folder / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    noise(24, 64, 3).save(folder / "side.jpg", exif=exif)
    noise(5, 7, 3).save(folder / "a\x1b[31m\nb.png")
    noise(16, 16, 3).save(folder / "deeper" / ".hidden" / "hidden.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "notes.txt").write_text("no image, and not asked for")
    return folder


def reference(path: Path, tmp_path: Path, side: int) -> tuple[Array, Array]:
    """The file as `datasets.load` gives it: at its own size, and at the size of the run's images."""
    root = tmp_path / f"reference-{path.stem.encode().hex()}"
    for i, name in enumerate("aabb"):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{i}{path.suffix}").write_bytes(path.read_bytes())
    return datasets.load(root).train.images[0], datasets.load(root, size=side).train.images[0]


def test_files_are_explained_as_a_folder_s_images_are(run: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    missing = photos / "missing.png"
    found = explain_files(run, [photos, missing], out, targets=("predicted", "left", "margin:left,right"), batch_size=3)
    names = ["a\x1b[31m\nb.png", "deeper/grey.png", "deeper/rgba.webp", "palette.gif", "side.jpg", "wide.png"]
    assert [row.file for row in found.rows] == [f"{photos}/{name}".replace("\x1b", "?").replace("\n", "?") for name in names]
    assert found.unreadable == [str(photos / "broken.png"), str(missing)]
    saved = SavedMaps.read(found.heatmaps)
    assert saved.ids == tuple(row.file for row in found.rows)
    assert saved.targets == ("predicted", "left", "margin:left,right")
    with Heatmaps(run.model()) as heatmaps:
        for i, (name, row) in enumerate(zip(names, found.rows, strict=True)):
            original, fitted = reference(photos / name, tmp_path, 16)
            maps, exact = (heatmaps(as_input(run, fitted), [[0, 1, 2]], method) for method in ("gradcam", "hirescam"))
            best = int(maps.logits[0].argmax())
            expected = np.stack([maps.raw[0, best], maps.raw[0, 0], exact.raw[0, 0] - exact.raw[0, 2]])
            assert_close(saved.raw[i], expected)
            assert row.predicted == run.classes[best]
            assert row.confidence == pytest.approx(float(torch.tensor(maps.logits[0]).softmax(0).max()), rel=1e-4)
            picture = np.asarray(Image.open(row.picture))
            assert picture.shape == (original.shape[0], 3 * original.shape[1], 3)
            assert row.picture.name.startswith(f"{i + 1:04}-") and row.picture.name.isprintable()
    assert np.asarray(Image.open(found.sheet)).shape[1] > 4 * 190
    assert {path.name for path in out.iterdir()} == {"heatmaps.npz", "sheet.png", *(row.picture.name for row in found.rows)}


def test_files_never_replace_the_heatmaps_of_a_run_s_mistakes(blobs: Dataset, run: Run, photos: Path) -> None:
    before = explain(run, blobs).read_bytes()
    with pytest.raises(RecipeError, match="is a run's folder and has heatmaps of its own: choose another"):
        explain_files(run, [photos], run.folder)
    assert (run.folder / "heatmaps.npz").read_bytes() == before


def test_the_overlay_lies_on_what_the_model_sees_and_the_rest_is_pale(run: Run, tmp_path: Path) -> None:
    """A wide image: the centre square is the model's; its overlay is that of the original pixels there."""
    image = np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "wide.png")
    found = explain_files(run, [tmp_path / "wide.png"], tmp_path / "out", targets=["predicted"])
    raw = SavedMaps.read(found.heatmaps).raw
    drawn = np.asarray(Image.open(found.rows[0].picture))
    np.testing.assert_array_equal(drawn[:, 30:70], overlay(raw[0], image[None, :, 30:70])[0])
    np.testing.assert_array_equal(drawn[:, :30], image[:, :30] // 4 + 191)
    np.testing.assert_array_equal(drawn[:, 70:], image[:, 70:] // 4 + 191)


@pytest.fixture
def photo(tmp_path: Path, blobs: Dataset) -> Path:
    Image.fromarray(blobs.test.images[0]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize(
    ("words", "classes"),
    [
        (("true:left", "margin"), lambda order: (0, (order[0], 0))),
        (("margin",), lambda order: ((order[0], order[1]),)),
        (("right", "margin:middle,left"), lambda order: (2, (1, 0))),
        (("right", "left"), lambda order: (2, 0)),
    ],
)
def test_targets_mean_what_they_say(
    run: Run, photo: Path, tmp_path: Path, words: tuple[str, ...], classes: Callable[[list[int]], tuple[Any, ...]]
) -> None:
    """A class is its map, a margin the difference of two; without a true class, of the best and the second best."""
    saved = SavedMaps.read(explain_files(run, [photo], tmp_path / "out", targets=words).heatmaps)
    with Heatmaps(run.model()) as heatmaps:
        image = as_input(run, np.asarray(Image.open(photo)))
        maps, exact = (heatmaps(image, [[0, 1, 2]], method) for method in ("gradcam", "hirescam"))
    order = np.argsort(-maps.logits[0]).tolist()
    for t, target in enumerate(classes(order)):
        a, b = target if isinstance(target, tuple) else (target, None)
        expected = maps.raw[0, a] if b is None else exact.raw[0, a] - exact.raw[0, b]
        score = maps.logits[0, a] - (0 if b is None else maps.logits[0, b])
        assert np.abs(saved.raw[0, t] - expected).max() <= 1e-4 * np.abs(exact.raw).max()
        assert saved.scores[0, t] == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_names_with_commas_and_colons_can_be_meant() -> None:
    classes = ("tench, Tinca tinca", "margin", "a,b", "true: love")
    assert sweep._targets(["margin:tench, Tinca tinca,a,b"], classes) == [(0, 2)]
    assert sweep._targets(["true:margin", "true:true: love"], classes) == [1, 3]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lefft", r"unknown class 'lefft': did you mean 'left'\? known: left, middle, right"),
        ("true:lefft", "did you mean 'left'"),
        ("margin:left,middel", "did you mean 'middle'"),
        ("margin:left", r"as in margin:left,middle, not 'margin:left'"),
        ("true", "true:NAME"),
    ],
)
def test_unknown_targets_are_refused_before_anything_is_written(
    run: Run, photo: Path, tmp_path: Path, word: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        explain_files(run, [photo], tmp_path / "out", targets=[word])
    assert not (tmp_path / "out").exists()


def test_files_of_which_none_can_be_read_are_an_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"no image can be read, such as .*empty\.png"):
        explain_files(run, [tmp_path / "empty.png"], tmp_path / "out")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"such as .*folder"):
        explain_files(run, [tmp_path / "folder"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_no_text_is_explained_all_the_same(run: Run, photo: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(photo.read_bytes())
    (row,) = explain_files(run, [tmp_path / name], tmp_path / "out").rows
    assert row.file == f"{tmp_path}/caf\ufffd.png" and row.picture.exists()
    json.dumps(row.file).encode()


def test_methods_side_by_side_are_each_drawn_on_its_own_scale(
    run: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out: list[tuple[Any, Any]] = []
    monkeypatch.setattr(sweep, "sheet", lambda rows, titles, side: laid_out.append((rows, titles)) or b"png")
    monkeypatch.setattr(sweep, "METHODS", {"gradcam": "", "cam": "", "layercam": ""})
    failed = compare_methods(run, photo, tmp_path / "methods.png", targets=["predicted", "margin:left,right"])
    assert list(failed) == ["cam of predicted", "cam of margin:left,right"] and "CAM needs" in failed["cam of predicted"]
    ((rows, titles),) = laid_out
    assert titles == [["predicted", "gradcam", "layercam"], ["margin:left,right", "gradcam", "layercam"]]
    image = np.asarray(Image.open(photo))
    with Heatmaps(run.model()) as heatmaps:
        for column, method in ((1, "gradcam"), (2, "layercam")):
            x = as_input(run, image)
            predicted = heatmaps(x, "predicted", method).raw
            difference = heatmaps(x, [sweep.Margin(0, 2)], method).raw
            assert np.abs(rows[0][column].astype(int) - overlay(predicted, image[None])[0]).max() <= 2
            assert np.abs(rows[1][column].astype(int) - drawing.diverging(difference[:, 0], image[None])[0]).max() <= 2
    np.testing.assert_array_equal(rows[0][0], image)
    assert (tmp_path / "methods.png").read_bytes() == b"png"
