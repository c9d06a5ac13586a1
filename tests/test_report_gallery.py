"""The gallery's data: which images are shown, sheets and grids that decode to what went in."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from sightline import datasets, reporting
from sightline.evaluation import opened_test
from sightline.heatmaps import drawing
from sightline.mistakes import kinds
from sightline.reporting import gallery
from sightline.reporting.gallery import CELLS, COLUMNS, FULL, TILES, Said
from sightline.runs import Predictions, Run
from test_reporting import make_data, make_heatmaps, make_run, wrong


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    return make_data()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: datasets.Dataset) -> Run:
    made = make_run(tmp_path_factory.mktemp("gallery") / "run", data)
    make_heatmaps(made)
    return made


@pytest.fixture(scope="module")
def shown(run: Run, data: datasets.Dataset) -> dict:
    rows = np.array(wrong(run))
    return gallery.payload(Said(run.predictions, run.heatmaps), rows, data.test, run="r", total=len(rows))


def tiles(payload: dict) -> list[np.ndarray]:
    """The pictures, cut out of the sheets as a reader of the page's data would."""
    width, height = payload["tile"]
    cut = []
    for i in range(len(payload["items"]["id"])):
        uri = payload["sheets"][i // TILES].removeprefix("data:image/webp;base64,")
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB"))
        top, left = height * (i % TILES // COLUMNS), width * (i % TILES % COLUMNS)
        cut.append(sheet[top : top + height, left : left + width])
    return cut


def test_small_pictures_are_the_images_themselves(run: Run, data: datasets.Dataset, shown: dict) -> None:
    assert shown["exact"] and shown["tile"] == [32, 32]
    for i, picture in zip(wrong(run), tiles(shown), strict=True):
        np.testing.assert_array_equal(picture, data.test.images[i])


def test_large_pictures_are_made_smaller_and_keep_their_shape() -> None:
    ramp = np.tile(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], (200, 1, 3))
    images = datasets.Split(np.stack([ramp, ramp[:, ::-1]]), np.zeros(2, np.int64), ("a",), ("x", "y"))
    sheets, tile, there, exact = gallery.sprites(images, ["y", "x", "gone"])
    assert (tile, there, exact) == ((128, 64), [True, True, False], False)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheets[0].split(",")[1]))).convert("RGB")).astype(int)
    assert sheet.shape == (64, 3 * 128, 3)
    expected = np.linspace(0, 255, 128)
    assert np.abs(sheet[:, :128].mean((0, 2)) - expected[::-1]).max() < 6
    assert np.abs(sheet[:, 128:256].mean((0, 2)) - expected).max() < 6
    assert np.abs(sheet[:, 256:] - 128).max() < 6  # grey, where there is no image


def test_sheets_that_would_be_too_large_are_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    images = datasets.Split(noise, np.zeros(40, np.int64), ("a",), tuple(map(str, range(40))))
    whole, tile, _, exact = gallery.sprites(images, images.ids)
    assert tile == (64, 64) and exact
    monkeypatch.setattr(gallery, "BUDGET", len(whole[0]) // 8)
    less, tile, _, exact = gallery.sprites(images, images.ids)
    assert len(less[0]) * 3 / 4 <= gallery.BUDGET and not exact


def test_more_pictures_than_a_sheet_holds_go_on_in_the_next() -> None:
    n = TILES + 3
    values = np.arange(n) % 251
    images = np.broadcast_to(values[:, None, None, None], (n, 8, 8, 3)).astype(np.uint8)
    split = datasets.Split(images, np.zeros(n, np.int64), ("a",), tuple(map(str, range(n))))
    sheets, tile, _, _ = gallery.sprites(split, split.ids)
    assert len(sheets) == 2
    cut = tiles({"sheets": sheets, "tile": tile, "items": {"id": split.ids}})
    assert [int(picture[4, 4, 0]) for picture in cut] == values.tolist()


def decoded(said: dict) -> np.ndarray:
    height, width = said["grid"]
    return np.frombuffer(base64.b64decode(said["maps"]), "<i2").reshape(-1, len(said["targets"]), height, width)


def test_grids_are_the_saved_maps_up_to_the_scale_of_their_kind(run: Run, shown: dict) -> None:
    saved = run.heatmaps
    assert saved
    maps = decoded(shown["now"])
    assert shown["now"]["targets"] == ["predicted", "true", "margin"] and all(shown["now"]["mapped"])
    for row, i in enumerate(wrong(run)):
        for some in (slice(0, 2), slice(2, 3)):  # the class maps share one scale, the margin has its own
            peak = np.abs(saved.raw[i, some]).max()
            np.testing.assert_allclose(maps[row, some] / FULL, saved.raw[i, some] / peak, atol=0.51 / FULL)


def test_grids_draw_what_the_maps_draw(run: Run, data: datasets.Dataset, shown: dict) -> None:
    saved, rows = run.heatmaps, wrong(run)
    assert saved
    images, signed = data.test.images[rows], [False, False, True]
    from_grids = drawing.pictures(decoded(shown["now"]).astype(np.float32), images, signed)
    difference = np.abs(from_grids.astype(int) - drawing.pictures(saved.raw[rows], images, signed))
    assert difference.max() <= 1


def test_finer_grids_are_averaged_by_area() -> None:
    raw = np.random.default_rng(0).normal(size=(2, 1, 28, 35)).astype(np.float32)
    whole, cells = gallery.grids(raw, [True])
    assert cells == (CELLS, CELLS)
    for i in range(2):
        # Each pixel is repeated until both grids divide it: then the mean over an area is a mean over blocks.
        fine = np.repeat(np.repeat(raw[i, 0], 14, 0), 14, 1)
        literal = fine.reshape(CELLS, 28, CELLS, 35).mean((1, 3))
        np.testing.assert_allclose(whole[i, 0] / FULL, literal / np.abs(literal).max(), atol=1e-4)


def test_a_map_of_zeros_stays_one() -> None:
    whole, _ = gallery.grids(np.zeros((1, 2, 3, 3), np.float32), [False, True])
    assert not whole.any()


def test_images_without_heatmaps_are_told_from_those_with_some(run: Run, data: datasets.Dataset) -> None:
    saved, rows = run.heatmaps, np.array(wrong(run))
    assert saved
    half = replace(saved, ids=saved.ids[::2], raw=saved.raw[::2], verdicts=saved.verdicts[::2], effects=saved.effects[::2])
    payload = gallery.payload(Said(run.predictions, half), rows, data.test, run="r", total=len(rows))
    assert payload["now"]["mapped"] == [i % 2 == 0 for i in rows]
    assert len(decoded(payload["now"])) == sum(payload["now"]["mapped"])


def test_numbers_are_those_of_the_predictions(run: Run, shown: dict) -> None:
    said, rows = run.predictions, wrong(run)
    assert shown["items"]["id"] == [said.ids[i] for i in rows]
    assert shown["items"]["true"] == said.labels[rows].tolist()
    assert shown["now"]["predicted"] == said.predicted[rows].tolist()
    for key, values in (
        ("confidence", said.probabilities[rows].max(1)),
        ("p_true", said.probabilities[rows, said.labels[rows]]),
        ("loss", said.losses[rows]),
        ("margin", said.margins[rows]),
    ):
        np.testing.assert_allclose(shown["now"][key], values, atol=5.1e-7)


def test_colours_are_matplotlibs() -> None:
    for name, text in gallery.colours().items():
        table = np.frombuffer(base64.b64decode(text), np.uint8).reshape(256, 3)
        literal = [[round(255 * part) for part in matplotlib.colormaps[name](k)[:3]] for k in range(256)]
        assert np.abs(table.astype(int) - literal).max() <= 1


def test_every_stratum_is_seen_before_any_is_seen_twice() -> None:
    random = np.random.default_rng(0)
    strata, losses = random.choice([0, 1, 2, 3, 7], 300, p=[0.6, 0.2, 0.1, 0.06, 0.04]), random.exponential(size=300)
    for n in (3, 5, 40, 120, 400):
        chosen = gallery.choose(strata, losses, n)
        # Literally: each stratum's images by loss; take one of each in turn, the gravest of a round first.
        queues = {s: sorted(np.flatnonzero(strata == s), key=lambda i: -losses[i]) for s in set(strata.tolist())}
        literal: list[int] = []
        while len(literal) < min(n, 300):
            round_ = sorted((queue.pop(0) for queue in queues.values() if queue), key=lambda i: -losses[i])
            literal += round_[: n - len(literal)]
        assert sorted(chosen) == sorted(literal)
        assert (np.diff(losses[chosen]) <= 0).all()


def test_images_that_are_asked_for_are_shown_in_any_case() -> None:
    strata, losses = np.zeros(10, np.int64), np.arange(10.0)
    assert set(gallery.choose(strata, losses, 3, first=[0, 4])) == {0, 4, 9}


def test_page_data_survive_hostile_names(run: Run, data: datasets.Dataset) -> None:
    text = reporting.report(run, data).read_text(encoding="utf-8")
    block = text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert "<" not in block and "&" not in block
    payload = json.loads(block)
    assert payload["classes"] == list(data.classes)
    assert payload["items"]["id"] == [run.predictions.ids[i] for i in wrong(run)]
    assert payload["run"] == run.digest and payload["split"] == "test"


def test_kinds_are_those_of_mistakes(run: Run, data: datasets.Dataset) -> None:
    page = reporting.page_of(reporting.Story(run, Said(run.predictions, None), data.test))
    told = [page.gallery["kinds"][k] for k in page.gallery["items"]["kind"]]
    assert told == kinds([run.predictions]).kinds[wrong(run)].tolist()


def test_the_rest_is_said_to_be_left_out(run: Run, data: datasets.Dataset) -> None:
    page = reporting.page_of(reporting.Story(run, Said(run.predictions, None), data.test), n=7)
    assert len(page.gallery["items"]["id"]) == 7 and page.gallery["total"] == len(wrong(run))
    assert f"7 of {len(wrong(run))} mistakes are shown" in " ".join(
        reporting.render(page, reporting.draw(reporting.Story(run, Said(run.predictions, None)))).split()
    )


def test_two_runs_show_what_was_fixed_and_broken(tmp_path: Path, run: Run, data: datasets.Dataset) -> None:
    from sightline.comparison import compare_predictions

    after = make_run(tmp_path / "after", data)
    said = after.predictions
    logits = np.log(said.probabilities).copy()
    logits[:10] = np.roll(logits[:10], 1, 1)
    Predictions.from_logits(logits, said.labels, said.ids, said.classes, "test").write(after.folder)
    after = Run.open(after.folder)
    comparison = compare_predictions([opened_test(run)], [opened_test(after)])
    path = reporting.report_change(run, after, comparison, data)
    assert path == after.folder / "comparison.html"
    payload = json.loads(path.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0])
    was, now = ((each.predictions.predicted == each.predictions.labels) for each in (run, after))
    expected = {
        name: "fixed" if now[i] else "broken" if was[i] else "still wrong"
        for i, name in enumerate(said.ids)
        if not (was[i] and now[i])
    }
    assert dict(zip(payload["items"]["id"], payload["items"]["flip"], strict=True)) == expected
    assert payload["before"]["predicted"] == [
        int(run.predictions.predicted[said.ids.index(name)]) for name in payload["items"]["id"]
    ]
    assert payload["names"] == ["run", "after"]
    assert "test_opened" not in run.info  # whoever compares opens the test set; the page doesn't again
