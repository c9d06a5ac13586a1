"""What other programs get: read back by their own readers, or by a literal one, and compared with the run's files."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from sightline import cli, comparison, exports, notebook, reporting, runs
from sightline.datasets import Dataset, Split
from sightline.diagnosis import Cause, Diagnosis
from sightline.exceptions import DataError, RecipeError, RunError
from sightline.prescription import Fix
from sightline.reporting import SIDE
from sightline.runs import Predictions, Run
from test_reporting import make_data, make_heatmaps, make_run, wrong

CHROMIUM = Path("/usr/bin/chromium")
FORMULAS = ("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\tx")
NAMES = ("</script><img src=x onerror=alert(1)>", "'\" onfocus=alert(1) 😀", '"></iframe><script>alert(1)</script>')


@pytest.fixture(scope="module")
def data() -> Dataset:
    return make_data()


@pytest.fixture
def run(tmp_path: Path, data: Dataset) -> Run:
    run = make_run(tmp_path / "run", data, epochs=3)
    rows = [{**row, "epoch": i + 1.0} for i, row in enumerate(run.history)]
    for i, row in enumerate(rows):
        row |= {
            "lr": 0.1 / (i + 1),
            "train_loss": 2.0 - i / 3,
            "train_accuracy": 0.3 + i / 7,
            "test_loss": 1.9,
            "seconds": 10.0 + i,
        }
    rows[0]["test_loss"] = rows[0]["test_accuracy"] = float("nan")  # an epoch without a test
    runs.write_history(run.folder, rows)
    return Run.open(run.folder)


def diagnosed(run: Run, groups: dict[str, tuple[str, ...]] | None = None) -> Diagnosis:
    """Write RUN/diagnosis.json with one cause, of a class with a hostile name."""
    cause = Cause("mark", (1,), "cost", "paste", 0.3, 0.2, 0.4, 1e-5, 0.5, 0.2, 60, 0.1, run.predictions.ids[:2], {"x": 1})
    n = len(run.predictions)
    found = Diagnosis((str(run.folder),), run.classes, n, len(wrong(run)), (cause,), (), groups or {}, 2.0)
    runs.write_json(run.folder / "diagnosis.json", found.to_dict())
    return found


def on_files(folder: Path) -> Run:
    """A run on a folder of images of its own, as wide as high and not, that are there."""
    classes, n = ("cat", "dog"), 6
    ids = tuple(f"test/{classes[i % 2]}/{i} ü'.png" for i in range(n))
    for i, name in enumerate(ids):
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + i, 30)).save(path)
    split = Split(np.zeros((n, 32, 32, 3), np.uint8), np.arange(n) % 2, classes, ids)
    return make_run(folder / "run", Dataset(str(folder / "data"), split, split))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def cells(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- csv


def test_table_has_what_the_run_says_of_each_image(run: Run, tmp_path: Path) -> None:
    make_heatmaps(run)
    p = run.predictions
    diagnosed(run, {"mark": (p.ids[3], p.ids[5]), "position": (p.ids[3],), "unexplained": (p.ids[7],)})
    marked = [{"id": p.ids[0], "label_error": True, "cause": "texture"}, {"id": p.ids[4], "cause": "mark"}]
    runs.write_json(run.folder / "marks.json", {"schema": 1, "run": run.digest, "split": "test", "marks": marked})
    exports.export(run, "csv", tmp_path / "deep" / "t.csv")
    rows = cells(tmp_path / "deep" / "t.csv")
    assert list(rows[0]) == list(exports.COLUMNS)
    assert [row["id"] for row in rows] == list(p.ids) and {row["split"] for row in rows} == {"test"}
    assert [row["label"] for row in rows] == [p.classes[label] for label in p.labels]
    for i, row in enumerate(rows):
        assert int(row["right"]) == (p.predicted[i] == p.labels[i])
        assert float(row["confidence"]) == p.probabilities[i].max()
        assert float(row["p_true"]) == pytest.approx(np.exp(-p.losses[i]), rel=1e-5)
        assert float(row["loss"]) == p.losses[i] and float(row["margin"]) == p.margins[i]
    assert [rows[i]["causes"] for i in (3, 5, 7, 8)] == ["mark;position", "mark", "unexplained", ""]
    saved = run.heatmaps
    assert saved is not None
    empty = (saved.raw[:, 0] <= 0).all((1, 2))
    assert [row["heatmap"] for row in rows] == [
        "no evidence" if e else v for e, v in zip(empty, saved.verdicts[:, 0], strict=True)
    ]
    assert [(rows[i]["label_error"], rows[i]["marked_cause"]) for i in (0, 4, 1)] == [("1", "texture"), ("", "mark"), ("", "")]


def test_no_text_begins_as_a_formula_and_numbers_stay(tmp_path: Path) -> None:
    data = make_data(n=40, classes=(*FORMULAS, "plain"))
    run = make_run(tmp_path / "run", data)
    exports.export(run, "csv", tmp_path / "t.csv")
    rows = cells(tmp_path / "t.csv")
    assert {row["label"] for row in rows} == {f"'{name}" for name in FORMULAS}
    assert not any(row[key].startswith(exports.FORMULA) for row in rows for key in ("id", "label", "predicted", "causes"))
    assert any(row["margin"].startswith("-") for row in rows)


def test_only_an_earlier_table_is_replaced(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    exports.export(run, "csv", path)
    content = path.read_bytes()
    exports.export(run, "csv", path)
    assert path.read_bytes() == content
    for taken in (run.folder / "history.csv", run.folder / "run.json", tmp_path):
        before = taken.stat().st_mtime_ns
        with pytest.raises(RunError, match="is there already"):
            exports.export(run, "csv", taken)
        assert taken.stat().st_mtime_ns == before


# --- coco


def test_coco_of_a_named_data_set_has_its_images_as_png(run: Run, data: Dataset, tmp_path: Path) -> None:
    exports.export(run, "coco", tmp_path / "coco", data)
    truth, said, p = read(tmp_path / "coco" / "labels.json"), read(tmp_path / "coco" / "predictions.json"), run.predictions
    assert [c["name"] for c in sorted(truth["categories"], key=lambda c: c["id"])] == list(run.classes)
    names = {c["id"]: c["name"] for c in truth["categories"]}
    by_id = {image["id"]: image for image in truth["images"]}
    labels = {by_id[a["image_id"]]["sightline_id"]: names[a["category_id"]] for a in truth["annotations"]}
    assert labels == {name: p.classes[label] for name, label in zip(p.ids, p.labels, strict=True)}
    results = {by_id[r["image_id"]]["sightline_id"]: (names[r["category_id"]], r["score"]) for r in said}
    assert results == {
        name: (p.classes[k], p.probabilities[i, k]) for i, (name, k) in enumerate(zip(p.ids, p.predicted, strict=True))
    }
    place = {name: i for i, name in enumerate(data.test.ids)}
    for image in truth["images"]:
        with Image.open(tmp_path / "coco" / "data" / image["file_name"]) as png:
            assert png.size == (image["width"], image["height"])
            assert (np.asarray(png) == data.test.images[place[image["sightline_id"]]]).all()
    assert all(a["bbox"] == [0, 0, 32, 32] and a["area"] == 1024 and a["iscrowd"] == 0 for a in truth["annotations"])
    assert len({a["id"] for a in truth["annotations"]}) == len(p)


def test_coco_of_a_folder_names_the_files_that_are_there(tmp_path: Path) -> None:
    run = on_files(tmp_path)
    exports.export(run, "coco", tmp_path / "coco")
    truth = read(tmp_path / "coco" / "labels.json")
    assert not (tmp_path / "coco" / "data").exists()
    assert [image["file_name"] for image in truth["images"]] == list(run.predictions.ids)
    for image in truth["images"]:
        with Image.open(tmp_path / "data" / image["file_name"]) as there:
            assert there.size == (image["width"], image["height"])
    (tmp_path / "data" / run.predictions.ids[2]).unlink()
    with pytest.raises(DataError, match=r"2 ü'\.png"):
        exports.export(run, "coco", tmp_path / "again")
    assert not list(tmp_path.glob("*again*")) and not list(tmp_path.glob(".*again*"))


# --- fiftyone


def as_fiftyone_reads(folder: Path, labels: str) -> dict[str, tuple[str, float | None, dict[str, Any]]]:
    """FiftyOneImageClassificationDataset, as its documentation describes it: path → label, confidence, attributes."""
    content = read(folder / labels)
    assert set(content) == {"classes", "labels"}
    stems = {path.relative_to(folder / "data").with_suffix("").as_posix(): path for path in (folder / "data").rglob("*.*")}
    found = {}
    for key, target in content["labels"].items():
        path = Path(key) if Path(key).is_absolute() else stems[key]
        assert path.is_file()
        assert set(target) <= {"label", "confidence", "attributes"} and isinstance(target["label"], int)
        assert not {"id", "label", "confidence", "logits", "tags"} & set(target["attributes"])  # the label's own fields
        found[str(path)] = (content["classes"][target["label"]], target.get("confidence"), target["attributes"])
    return found


@pytest.mark.parametrize("files", [False, True])
def test_fiftyone_finds_each_image_with_its_truth_and_its_prediction(tmp_path: Path, data: Dataset, files: bool) -> None:
    run = on_files(tmp_path) if files else make_run(tmp_path / "run", data)
    p = run.predictions
    diagnosed(run, {"mark": (p.ids[1],)})
    exports.export(run, "fiftyone", tmp_path / "out", None if files else data)
    truth, said = (as_fiftyone_reads(tmp_path / "out", name) for name in ("labels.json", "predictions.json"))
    assert list(truth) == list(said) and len(truth) == len(p)
    for i, (path, name) in enumerate(zip(truth, p.ids, strict=True)):
        assert truth[path][:2] == (p.classes[p.labels[i]], None) and truth[path][2]["sightline_id"] == name
        label, confidence, more = said[path]
        assert (label, confidence) == (p.classes[p.predicted[i]], p.probabilities[i].max())
        assert more["loss"] == p.losses[i] and more["right"] == (p.predicted[i] == p.labels[i])
        assert more["causes"] == (["mark"] if i == 1 else [])
        if files:
            assert path == str(tmp_path / "data" / name)
        else:
            with Image.open(path) as image:
                assert (np.asarray(image) == data.test.images[i]).all()


# --- tensorboard


def test_tensorboard_reads_the_history_back(run: Run, data: Dataset, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make_heatmaps(run)
    assert exports.export(run, "tensorboard", tmp_path / "log", data).without == ""
    events = accumulator.EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    for tag, key in (("rate", "lr"), *((f"{k}/{s}", f"{s}_{k}") for k in ("loss", "accuracy") for s in ("train", "test"))):
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        expected = [(row["epoch"], np.float32(row[key])) for row in run.history if np.isfinite(row[key])]
        assert points == expected, tag
    assert len(events.Scalars("loss/test")) == 2
    assert np.diff([event.wall_time for event in events.Scalars("rate")]).tolist() == pytest.approx([11, 12], abs=1e-3)
    p = run.predictions
    correct = int((p.predicted == p.labels).sum())
    interval = binomtest(correct, len(p)).proportion_ci(method="wilson")
    final = {name: events.Scalars(f"final/{name}")[0].value for name in ("test_accuracy", "test_accuracy_low", "mistakes")}
    assert final == pytest.approx(
        {"test_accuracy": correct / len(p), "test_accuracy_low": interval.low, "mistakes": len(p) - correct}
    )
    assert set(events.Tags()["images"]) == {"confusion", "mistakes"}
    sheet = events.Images("mistakes")[0]
    # 24 mistakes, two a row: an image, and its three heatmaps.
    assert sheet.width > 8 * SIDE and sheet.height > 12 * SIDE


def test_tensorboard_without_the_data_or_the_package(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(Run, "dataset", lambda self, data_dir: (_ for _ in ()).throw(DataError("it is gone")))
    assert exports.export(run, "tensorboard", tmp_path / "log").without == "pictures: it is gone"
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RunError, match=r"pip install sightline\[tensorboard\]"):
        exports.export(run, "tensorboard", tmp_path / "other")
    assert not (tmp_path / "other").exists()


# --- all forms


@pytest.mark.parametrize("to", ["coco", "fiftyone", "tensorboard"])
def test_folders_are_written_whole_or_not_at_all(
    run: Run, data: Dataset, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, empty = tmp_path / "taken", tmp_path / "empty"
    empty.mkdir()
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is there already"):
        exports.export(run, to, taken, data)
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(exports, "write_json", full)
        broken.setattr(exports, "_write_scalars", full)
        with pytest.raises(RunError, match="No space left"):
            exports.export(run, to, empty, data)
    assert not any(empty.iterdir()) and {path.name for path in tmp_path.iterdir()} == {"taken", "empty", "run"}
    exports.export(run, to, empty, data)
    assert any(empty.iterdir())


def test_unknown_form_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'fiftyone'"):
        exports.export(run, "fiftyon", tmp_path / "x")


def test_command_exports_and_says_where(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sightline", "export", str(run.folder), "--to", "csv", "-o", str(tmp_path / "t.csv"), "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"to": "csv", "path": str(tmp_path / "t.csv"), "images": len(run.predictions), "without": ""}
    assert len(cells(tmp_path / "t.csv")) == said["images"]


# --- in a notebook


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile(tmp_path: Path) -> Run:
    data = make_data(n=40, classes=(*NAMES, "none"))
    run = make_run(tmp_path / NAMES[0].replace("/", "_"), data)
    return run


def harmless(page: str) -> Tags:
    """Parse a table, in which there are tables' tags alone and no attribute that a name could have brought."""
    parsed = Tags(page)
    allowed = {"div", "p", "strong", "bdi", "table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in parsed.tags} <= allowed
    assert all(set(attributes) <= {"scope"} for _, attributes in parsed.tags)
    return parsed


def test_run_without_a_report_shows_a_table(tmp_path: Path) -> None:
    run = hostile(tmp_path)
    shown = harmless(run._repr_html_()).text
    p = run.predictions
    correct = int((p.predicted == p.labels).sum())
    low, high = binomtest(correct, len(p)).proportion_ci(method="wilson")
    assert f"{100 * correct / len(p):.2f} %, 95 % interval {100 * low:.2f} % to {100 * high:.2f} %" in shown
    assert f"{len(p) - correct} of {len(p)}" in shown and any(name in shown for name in NAMES)
    assert "sightline.explain(run) and sightline.report(run)" in shown
    make_heatmaps(run)
    assert "Next: sightline.report(run)" in Tags(run._repr_html_()).text


def test_run_shows_its_report_while_it_is_newer(run: Run) -> None:
    page = f"<!doctype html><p title='\"'>{NAMES[2]} &amp; &lt;</p>"
    runs.write_text(run.folder / "report.html", page)
    (tag, attributes), *more = Tags(run._repr_html_()).tags
    assert (tag, more) == ("iframe", [])
    assert attributes["srcdoc"] == page
    assert attributes["sandbox"] == "allow-scripts allow-downloads"
    later = (run.folder / "report.html").stat().st_mtime_ns + 10**9
    shutil.os.utime(run.folder / "run.json", ns=(later, later))
    assert "iframe" not in run._repr_html_()


def test_results_show_themselves_as_tables(tmp_path: Path) -> None:
    run = hostile(tmp_path)
    found = diagnosed(run)
    assert NAMES[1] in harmless(found._repr_html_()).text and "50.0 %" in harmless(found._repr_html_()).text
    p = run.predictions
    better = Predictions.from_logits(np.eye(4, dtype=np.float32)[p.labels], p.labels, p.ids, p.classes, "test")
    compared = comparison.compare_predictions([p], [better])
    shown = harmless(compared._repr_html_()).text
    assert "B is better" in shown and f"+{100 * (1 - (p.predicted == p.labels).mean()):.2f}, 95 %" in shown
    trial = {"edit": NAMES[0], "cause": "mark", "effect": 0.25, "accuracy": -0.01}
    fix = Fix("fixed", NAMES[2], NAMES[1], edit={"name": "x"}, trials=(trial,))
    text = harmless(fix._repr_html_()).text
    assert all(name in text for name in NAMES) and "+25.0" in text and "-1.0" in text


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")
def test_the_frame_s_script_runs_and_reaches_nothing_outside(run: Run) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    script = """
      document.title = "ran";
      const tries = [() => parent.document.body.dataset.hacked = 1, () => document.cookie, () => top.location = "about:blank"];
      for (const reach of tries)
        try { reach(); document.title += ", reached"; } catch (error) { document.title += ", " + error.name; }
    """
    runs.write_text(run.folder / "report.html", f"<!doctype html><title></title><script>{script}</script>")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
        )
        page = browser.new_page()
        page.set_content(f"<!doctype html><title>notebook</title><body>{run._repr_html_()}")
        frame = page.locator("iframe").element_handle().content_frame()
        assert frame is not None
        frame.wait_for_function("document.title.split(',').length === 4")
        assert frame.title() == "ran, SecurityError, SecurityError, SecurityError"
        assert page.title() == "notebook" and page.evaluate("document.body.dataset.hacked") is None
        browser.close()


# --- JSON


def check(value: Any, schema: dict[str, Any], where: str = "$") -> None:
    """Assert what of JSON Schema docs/report.schema.json uses; an unknown keyword fails."""
    known = {"type", "const", "enum", "properties", "required", "additionalProperties", "items", "minimum", "maximum", "oneOf"}
    assert set(schema) <= known | {"description", "title", "$schema"}, where
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    if "type" in schema:
        types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        assert any(isinstance(value, kinds[kind]) for kind in types) and not isinstance(value, bool), where
    assert value == schema.get("const", value) and value in schema.get("enum", [value]), where
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        assert set(schema.get("required", ())) <= set(value), where
        for key, item in value.items():
            rest = schema.get("additionalProperties", {})
            assert key in properties or rest is not False, f"{where}.{key}"
            check(item, properties.get(key, rest), f"{where}.{key}")
        assert sum(set(one["required"]) <= set(value) for one in schema.get("oneOf", [])) == ("oneOf" in schema), where
    if isinstance(value, list):
        for i, item in enumerate(value):
            check(item, schema.get("items", {}), f"{where}[{i}]")
    if isinstance(value, (int, float)):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value), where


@pytest.mark.parametrize("with_diagnosis", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_json_is_what_its_schema_says(tmp_path: Path, data: Dataset, with_diagnosis: bool, right: bool) -> None:
    run = make_run(tmp_path / "run", data, right=right)
    if with_diagnosis:
        diagnosed(run, {"mark": run.predictions.ids[:2], "unexplained": run.predictions.ids[2:3]})
    schema = read(Path(__file__).parent.parent / "docs" / "report.schema.json")
    values = json.loads(json.dumps(reporting.report_json(run, n=5), allow_nan=False))
    check(values, schema)
    count = len(wrong(run))
    assert (values["mistakes"]["n"], values["mistakes"]["shown"]) == (count, min(5, count))
    assert sum(values["mistakes"]["by_kind"].values()) == count
    if with_diagnosis:
        assert values["mistakes"]["by_cause"] == {"mark": 2, "unexplained": 1}
        (cause,) = values["causes"]
        assert (cause["id"], cause["classes"], cause["effect"], cause["low"]) == ("mark", [run.classes[1]], 0.3, 0.2)
    else:
        assert values["causes"] is None and values["mistakes"]["by_cause"] is None
    for broken in ({**values, "schema": 1}, {**values, "epochs": 1.5}, {**values, "more": 1}):
        with pytest.raises(AssertionError):
            check(broken, schema)


def test_the_docs_name_every_form_and_column() -> None:
    text = (Path(__file__).parent.parent / "docs" / "report.md").read_text(encoding="utf-8")
    assert all(f"--to {to}" in text for to in exports.FORMATS)
    assert all(f"`{column}`" in text for column in exports.COLUMNS)
    assert re.search(rf"`schema` is {reporting.SCHEMA}\b", text)
    assert notebook.FRAME.count("sandbox=") == 1
