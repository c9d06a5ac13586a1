"""The page is parsed and its figures are compared with the predictions; every name in it tries to break out."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from torch import manual_seed

from sightline import datasets, models, reporting, runs
from sightline.exceptions import RunError
from sightline.recipe import RECIPES, Recipe
from sightline.reporting import page as page_module
from sightline.runs import Predictions, Run
from sightline.training import train

CLASSES = ("cat", "</script><img src=x onerror=alert(1)>", "'\" onfocus=alert(1) 😀", "\u202eסוס", "yak")
N = 60


def make_data(*, n: int = N, classes: tuple[str, ...] = CLASSES, pixels: int = 32) -> datasets.Dataset:
    """Noise in which no image is of the last class; every id is hostile too."""
    rng = np.random.default_rng(0)
    splits = [
        datasets.Split(
            rng.integers(0, 256, (n, pixels, pixels, 3), dtype=np.uint8),
            rng.integers(0, len(classes) - 1, n),
            classes,
            tuple(f'{part}/"><script>alert({i})</script>.png' for i in range(n)),
        )
        for part in ("train", "test")
    ]
    return datasets.Dataset("planted", *splits)


def make_run(folder: Path, data: datasets.Dataset, *, epochs: int = 2, right: bool = False, sweep: bool = False) -> Run:
    """A finished run of an untrained net; with `right` it makes no mistake."""
    manual_seed(0)
    model = models.build("smallnet", classes=len(data.classes))
    folder.mkdir()
    runs.write_weights(folder, model)
    logits = np.random.default_rng(1).normal(size=(len(data.test), len(data.classes))).astype(np.float32)
    logits[np.arange(len(logits)), data.test.labels] += 100 if right else 1
    predictions = Predictions.from_logits(logits, data.test.labels, data.test.ids, data.classes, "test")
    predictions.write(folder)
    accuracy = float((predictions.predicted == predictions.labels).mean())
    row = {**dict.fromkeys(runs.history_columns("test"), 0.5), "test_accuracy": accuracy}
    rows = [{**row, "epoch": i + 1.0} for i in range(epochs)]
    runs.write_history(folder, rows)
    rates = np.geomspace(1e-5, 10, 60)
    losses = 2 - 1.5 / (1 + np.exp(-np.log(rates) - 5))
    info = {
        "recipe": RECIPES["small"].with_(epochs=epochs).to_dict(),
        "seed": 7,
        "precision": "fp32",
        "device": "cpu",
        "data": {
            "name": data.name,
            "hash": data.content_hash,
            "classes": list(data.classes),
            "shape": list(data.test.images.shape[1:]),
            "n_train": len(data.train),
            "n_test": len(data.test),
            "skipped": [],
            "size": None,
            "skip_bad": False,
            "seed": 0,
        },
        "normalisation": {"mean": data.normalisation[0], "std": data.normalisation[1]},
        "arithmetic": {"dtype": "float32", "channels_last": True, "compiled": False},
        "max_lr": 0.01,
        "range_tests": [{"lrs": rates.tolist(), "losses": losses.tolist(), "steepest": 1, "valley": 1}] if sweep else [],
        "parameters": sum(p.numel() for p in model.parameters()),
        "machine": "a machine",
        "versions": {"sightline": "0.1.0", "python": "3.12.1", "torch": "2.9.0"},
        "results": {**rows[-1], "n_test": len(data.test), "seconds": 8050.0},
    }
    return runs.finish(folder, info)


def make_heatmaps(run: Run) -> None:
    """Random maps for every test image; those of the true class never argue for it. The first half is judged."""
    n, random = len(run.predictions), np.random.default_rng(2)
    raw = random.normal(size=(n, 3, 8, 8)).astype(np.float32)
    raw[:, 1] = -np.abs(raw[:, 1])
    verdicts = np.where(np.arange(n)[:, None] < n // 2, ["supported", "no evidence", "weak"], "").astype("<U16")
    zeros = np.zeros((n, 3), np.float32)
    parts = runs.MapParts(run.folder)
    arrays = {"raw": raw, "scores": zeros, "completeness": zeros, "verdicts": verdicts, "effects": zeros}
    parts.add(arrays, layer="layer3", method="Grad-CAM", precision="fp32")
    parts.finish(run.predictions.ids, ("predicted", "true", "margin"))


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of the page outside of style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.parts: list[str] = []
        self.captions: list[str] = []
        self.in_caption = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag == "figcaption":
            self.in_caption = True
            self.captions.append("")

    def handle_endtag(self, tag: str) -> None:
        self.in_caption &= tag != "figcaption"

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.parts.append(data)
        if self.in_caption:
            self.captions[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())

    def all(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    return make_data()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, data: datasets.Dataset) -> Run:
    run = make_run(tmp_path_factory.mktemp("full") / "run", data, sweep=True)
    make_heatmaps(run)
    reporting.report(run, data, n=30)
    return run


@pytest.fixture(scope="module")
def page(full: Run) -> Parsed:
    return Parsed((full.folder / "report.html").read_text(encoding="utf-8"))


def wrong(run: Run) -> list[int]:
    predictions = run.predictions
    mistakes = [i for i in range(len(predictions)) if predictions.predicted[i] != predictions.labels[i]]
    return sorted(mistakes, key=lambda i: -predictions.losses[i])


def test_page_opens_with_the_accuracy_and_its_interval(full: Run, page: Parsed) -> None:
    correct = N - len(wrong(full))
    interval = binomtest(correct, N).proportion_ci(method="wilson")
    assert f"{100 * correct / N:.2f} % test accuracy of the last epoch" in page.text
    assert f"95 % interval {100 * interval.low:.2f}–{100 * interval.high:.2f} % (Wilson), n = {N}" in page.text
    assert f"Mistakes {N - correct} of {N}" in page.text
    assert "Epochs 2 Training time 2 h 14 min Device cpu" in page.text


def test_without_script_the_gravest_mistakes_are_a_table(full: Run, page: Parsed) -> None:
    predictions, expected = full.predictions, wrong(full)
    assert f"30 of {len(expected)} mistakes are shown: of each confusion those with the highest loss" in page.text
    rows = [
        f"{CLASSES[predictions.predicted[i]]} {CLASSES[predictions.labels[i]]} {100 * predictions.probabilities[i].max():.1f} % "
        f"{predictions.losses[i]:.2f} {predictions.ids[i]}"
        for i in expected[:24]
    ]
    assert " ".join(rows) in page.text


def test_the_margin_s_colours_are_explained_where_there_are_margins(tmp_path: Path, page: Parsed, data: datasets.Dataset) -> None:
    assert page.text.count("■ orange argues for the predicted class, ■ blue for the true one") == 1
    plain = Parsed(reporting.report(make_run(tmp_path / "run", data), data).read_text(encoding="utf-8"))
    assert "argues for" not in plain.text and "asked again" not in plain.text


def test_classes_have_their_intervals_and_one_without_images_says_so(full: Run, page: Parsed) -> None:
    predictions = full.predictions
    for i, name in enumerate(CLASSES[:-1]):
        members = predictions.labels == i
        hits, n = int((predictions.predicted[members] == i).sum()), int(members.sum())
        interval = binomtest(hits, n).proportion_ci(method="wilson")
        assert f"{name} {n} {100 * hits / n:.1f} % {100 * interval.low:.1f}–{100 * interval.high:.1f} %" in page.text
    assert "yak 0 no images: nothing is known" in page.text


def test_nothing_in_the_page_makes_a_request(page: Parsed) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not [key for key in attributes if key.startswith("on")], tag
        for key in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
            assert attributes.get(key, "#").startswith(("#", "data:image/")), (tag, key)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_policy_allows_this_script_and_no_other(full: Run) -> None:
    text = (full.folder / "report.html").read_text(encoding="utf-8")
    kinds = [part.split(">")[0] for part in text.split("<script")[1:]]
    assert sorted(kinds) == ["", ' type="application/json" id="data"']  # data don't run
    script = text.split("<script>")[1].split("</script>")[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in text


def test_every_id_is_unique_and_every_reference_resolves(page: Parsed) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes[key] for _, attributes in page.tags for key in ("href", "xlink:href") if key in attributes]
    assert {link[1:] for link in links} <= set(ids) and "#mistakes" in links


def test_figures_and_page_are_the_same_from_the_same_run(full: Run, data: datasets.Dataset) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in full.folder.rglob("*") if path.is_file()}

    before = files()
    reporting.report(full, data, n=30)
    assert files() == before
    names = {path.name for path in before if path.parent.name == "figures"}
    svgs = ("loss", "accuracy", "rate", "confusion", "classes", "reliability", "range")
    assert names == {"mistakes.png", *(f"{name}.svg" for name in svgs)}


def test_model_table_counts_the_models_parameters(full: Run, page: Parsed) -> None:
    rows = reporting.model_table(full)
    assert sum(row.parameters for row in rows) == full.info["parameters"]
    assert (rows[-1].name, rows[-1].shape) == ("fc", str(len(CLASSES)))
    assert f"fc Linear {len(CLASSES)} {rows[-1].parameters}" in page.text


@pytest.mark.parametrize(
    ("recipe", "words", "in_file"),
    [
        (RECIPES["classic"], "--recipe classic", False),
        (RECIPES["classic"].with_(epochs=1, max_lr=0.5), "--recipe classic --epochs 1 --max-lr 0.5", False),
        (RECIPES["small"].with_(batch_size=64), "--recipe small --batch-size 64", False),
        (RECIPES["small"].with_(max_lr="auto"), "--recipe recipe.json", True),
        (RECIPES["small"].with_(peak=0.5), "--recipe recipe.json", True),
        (Recipe("mine"), "--recipe recipe.json", True),
    ],
)
def test_command_names_what_differs_from_the_built_in_recipe(full: Run, recipe: Recipe, words: str, in_file: bool) -> None:
    data = {**full.info["data"], "name": "my pictures", "size": 64, "skip_bad": True}
    info = {**full.info, "data": data, "recipe": json.loads(json.dumps(recipe.to_dict()))}
    command, needed = reporting.reproduce(info)
    assert shlex.split(command)[2] == "my pictures"
    where = "--seed 7 --precision fp32-channels-last --device cpu --size 64 --dev 0.0 --skip-bad -o RUN"
    assert command == f"sightline train 'my pictures' {words} {where}"
    assert needed == in_file


def test_figures_as_json_are_those_of_the_page(full: Run) -> None:
    values = json.loads(json.dumps(reporting.report_json(full), allow_nan=False))
    correct = N - len(wrong(full))
    assert values["test_accuracy"]["correct"] == correct and values["test_accuracy"]["n"] == N
    assert values["classes"]["yak"] == {"correct": 0, "n": 0, "accuracy": None, "low": 0, "high": 1}
    assert (values["schema"], values["epochs"], values["seconds"], values["device"]) == (2, 2, 8050.0, "cpu")
    pairs = [(full.predictions.labels[i], full.predictions.predicted[i]) for i in wrong(full)]
    assert values["most_confused"][0]["count"] == max(pairs.count(pair) for pair in pairs)


def test_a_width_that_isnt_the_built_in_one_is_told(
    blobs: datasets.Dataset, quick: Recipe, full: Run, page: Parsed, tmp_path: Path
) -> None:
    run = train(blobs, tmp_path / "run", recipe=quick.with_(width=0.5, epochs=1), precision="fp32")
    assert "Model smallnet × 0.5 Parameters" in Parsed(reporting.report(run, blobs, n=1).read_text(encoding="utf-8")).text
    assert full.info["recipe"]["width"] == 1 and "Model smallnet Parameters" in page.text


def test_run_without_mistakes_says_so(tmp_path: Path, data: datasets.Dataset) -> None:
    run = make_run(tmp_path / "run", data, epochs=1, right=True)
    text = Parsed(reporting.report(run, data).read_text(encoding="utf-8")).text
    assert f"None: all {N} test images were classified correctly" in text and "100.00 %" in text
    assert not (run.folder / "figures" / "mistakes.png").exists()


def payload(page: str) -> dict:
    """What the page's script reads."""
    return json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])


def test_run_without_heatmaps_shows_the_images_alone(tmp_path: Path, data: datasets.Dataset) -> None:
    text = reporting.report(make_run(tmp_path / "run", data), data, n=5).read_text(encoding="utf-8")
    assert len(payload(text)["items"]["id"]) == 5 and payload(text)["sheets"] and not payload(text)["now"]["targets"]
    assert "No heatmaps yet" in Parsed(text).text


def test_many_classes_and_large_images_stay_small(tmp_path: Path) -> None:
    classes = tuple(f"class {i}" for i in range(200))
    data = make_data(n=210, classes=classes, pixels=300)
    run = make_run(tmp_path / "run", data)
    path = reporting.report(run, data)
    shown = payload(path.read_text(encoding="utf-8"))
    sheets = [Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) for uri in shown["sheets"]]
    assert sheets[0].size[0] == 20 * shown["tile"][0] and shown["tile"][0] == shown["tile"][1] <= 128
    assert len(shown["items"]["id"]) == len(wrong(run))
    assert path.stat().st_size < 5_000_000  # noise, which no picture format makes smaller


def test_without_the_data_the_page_has_no_pictures_and_says_so(tmp_path: Path, data: datasets.Dataset) -> None:
    gone = replace(data, name=str(tmp_path / "gone"))
    run = make_run(tmp_path / "run", gone)
    make_heatmaps(run)
    text = reporting.report(run).read_text(encoding="utf-8")
    assert payload(text)["sheets"] == [] and all(payload(text)["items"]["missing"])
    assert "No pictures: the data set was not found" in Parsed(text).text
    assert f"{len(wrong(run))} of {len(wrong(run))} mistakes are shown" in Parsed(text).text


def test_images_that_are_gone_are_missing_and_the_others_are_shown(tmp_path: Path) -> None:
    root, random = tmp_path / "photos", np.random.default_rng(0)
    for i in range(48):
        path = root / ("test" if i % 2 else "train") / ("ab"[i % 4 // 2]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    data = datasets.load(str(root))
    run = make_run(tmp_path / "run", data)
    assert len(wrong(run)) > 2
    missing = [run.predictions.ids[i] for i in wrong(run)[:2]]
    kept = {name: data.test.images[i] for i, name in enumerate(data.test.ids)}
    for name in missing:
        next(root.rglob(Path(name).name)).unlink()
    text = reporting.report(run).read_text(encoding="utf-8")
    shown = payload(text)
    assert [name for name, gone in zip(shown["items"]["id"], shown["items"]["missing"], strict=True) if gone] == missing
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["sheets"][0].split(",")[1]))).convert("RGB"))
    for i, name in enumerate(shown["items"]["id"]):
        if name not in missing:
            np.testing.assert_array_equal(sheet[:32, 32 * i : 32 * i + 32], kept[name])
    assert "2 images of the data set are gone since the training" in Parsed(text).text
    path = next(root.rglob("*.png"))
    for i in range(3):
        path.with_name(f"more{i}.png").write_bytes(path.read_bytes())  # more than there were: other data
    with pytest.raises(RunError, match="isn't what"):
        reporting.report(run)


def test_other_data_is_an_error_that_says_what_differs(full: Run) -> None:
    other = make_data(n=N - 1)
    with pytest.raises(RunError) as error:
        reporting.report(full, other)
    assert f"{N - 1} + {N - 1} images, {N} + {N} then" in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_heatmaps_are_an_error_that_names_the_file(tmp_path: Path, data: datasets.Dataset) -> None:
    run = make_run(tmp_path / "run", data)
    make_heatmaps(run)
    whole = (run.folder / "heatmaps.npz").read_bytes()
    (run.folder / "heatmaps.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"heatmaps\.npz.*sightline explain"):
        reporting.report(run, data)
    assert not (run.folder / "report.html").exists()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (3600, "1 h 0 min"), (8050, "2 h 14 min")]
)
def test_durations_are_said_in_words(seconds: float, words: str) -> None:
    assert reporting.duration(seconds) == words


@pytest.mark.parametrize(
    ("fraction", "words"), [(0, "0.0 %"), (0.0001, "<0.1 %"), (0.0005, "0.1 %"), (0.5, "50.0 %"), (1, "100.0 %")]
)
def test_small_shares_do_not_read_as_none(fraction: float, words: str) -> None:
    assert reporting.percent(fraction) == words


@pytest.mark.parametrize(
    "fraction, digits, text",
    [
        (0.0, 1, "0.0 %"),
        (0.0004, 1, "<0.1 %"),
        (0.5, 2, "50.00 %"),
        (0.9244, 2, "92.44 %"),
        (0.9997, 1, ">99.9 %"),
        (0.99996, 2, ">99.99 %"),
        (1.0, 1, "100.0 %"),
    ],
)
def test_a_share_reads_as_none_or_all_only_if_it_is(fraction: float, digits: int, text: str) -> None:
    assert reporting.percent(fraction, digits) == text


@pytest.mark.parametrize(
    ("a", "b", "counts", "names"),
    [
        ("fix/current/seed-1", "fix/variety/seed-9", (3, 3), ("current", "variety")),
        ("fix/current/seed-1", "fix/variety/seed-9", (1, 1), ("seed-1", "seed-9")),
        ("fix/current/seed-1", "first", (3, 1), ("current", "first")),
        ("all/seed-1", "all/seed-4", (3, 3), ("seed-1", "seed-4")),  # in one folder: it tells nothing
    ],
)
def test_arms_of_several_seeds_are_called_by_their_folders(
    a: str, b: str, counts: tuple[int, int], names: tuple[str, str]
) -> None:
    before = SimpleNamespace(run=SimpleNamespace(folder=Path(a)), comparison=SimpleNamespace(runs=counts))
    story: Any = SimpleNamespace(before=before, run=SimpleNamespace(folder=Path(b)))
    assert page_module._names(story) == names
