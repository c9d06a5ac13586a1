"""The command line as a person uses it: what it says, what it leaves on disk, and one line for each thing that is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline import cli, terminal
from sightline.augment import HorizontalFlip
from sightline.datasets import load
from sightline.diagnosis import Diagnosis
from sightline.exceptions import DataError
from sightline.planted import plant_of
from sightline.recipe import load_recipe
from sightline.runs import Predictions, Run

Sightline = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sightline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sightline:
    """Run the command line in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "400")  # a long temporary path wraps no line

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sightline", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder data set: two classes of 16×16 noise that nobody can tell apart, so mistakes are sure; names that hurt."""
    root = tmp_path_factory.mktemp("folder") / "it's <b>data</b>"
    random = np.random.default_rng(0)
    for name in ("dark & grey", "<img src=x onerror=alert(1)>"):
        (root / name).mkdir(parents=True)
        for i in range(30):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i} ü'.png")
    return root


@pytest.fixture(scope="session")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on that folder."""
    from sightline.recipe import Recipe
    from sightline.training import train

    recipe = Recipe("demo", "smallnet", epochs=1, batch_size=16, max_lr=1e-5, augment=())
    return train(folder, tmp_path_factory.mktemp("runs") / "run", recipe=recipe, precision="fp32", dev=0).folder


def one_line(err: str, *parts: str) -> None:
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def test_data_counts_and_draws(sightline: Sightline, folder: Path, tmp_path: Path) -> None:
    code, out, _ = sightline("data", folder, "-r", "small", "-o", tmp_path / "sheet.png")
    assert code == 0
    assert "dark & grey" in out and "24" in out and "16×16 pixels" in out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 32


def test_bad_files_are_counted_and_named(sightline: Sightline, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "dark & grey" / "empty.png").touch()
    code, _, err = sightline("data", copy, "-r", "small", "-o", tmp_path / "sheet.png")
    assert code == 1
    one_line(err, "empty.png", "--skip-bad")
    code, _, err = sightline("data", copy, "-r", "small", "-o", tmp_path / "sheet.png", "--skip-bad")
    assert code == 0
    assert "left out 1 unreadable files: dark & grey/empty.png" in err.replace("\n", " ")


def test_data_as_json_equals_the_data(sightline: Sightline, folder: Path, tmp_path: Path) -> None:
    code, out, _ = sightline("data", folder, "-r", "small", "-o", tmp_path / "sheet.png", "--json")
    said, data = json.loads(out), load(folder)
    assert code == 0
    assert said["hash"] == data.content_hash
    assert said["mean"] == pytest.approx((data.train.images / 255).mean((0, 1, 2)))
    assert {name: counts["train"] for name, counts in said["classes"].items()} == {name: 24 for name in data.classes}


def test_summary_says_the_parameters(sightline: Sightline) -> None:
    code, out, _ = sightline("summary", "resnet18")
    assert code == 0
    assert "11,173,962 parameters" in out and "512×4×4" in out


def test_lr_draws_the_curve_and_gives_values(sightline: Sightline, tmp_path: Path) -> None:
    arguments = (
        "lr",
        "planted:clean",
        "-r",
        "small",
        "--steps",
        40,
        "--precision",
        "fp32",
        "-o",
        tmp_path / "lr.svg",
        "--json",
    )
    code, out, err = sightline(*arguments)
    said = json.loads(out)
    assert code == 0
    assert re.search(r"range test: 120 steps, about \d+ (s|min) left", err)
    assert len(said["sweeps"]) == 3
    assert said["max_lr"] == np.median([sweep["peak"] for sweep in said["sweeps"] if sweep["peak"]])
    assert (tmp_path / "lr.svg").read_text().startswith("<?xml")


def test_train_then_mistakes_then_explain_then_report(sightline: Sightline, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("-r", "small", "--epochs", 2, "--batch-size", 16, "--max-lr", 1e-5, "--precision", "fp32")
    code, out, err = sightline("train", folder, *options, "-o", run)
    assert code == 0
    assert "Dev accuracy" in out and "epoch 2/2" in err
    code, out, _ = sightline("mistakes", run, "-o", tmp_path / "mistakes.csv", "--json")
    wrong = json.loads(out)["mistakes"]
    predictions = Run.open(run).predictions
    assert [row["id"] for row in wrong] == [
        predictions.ids[i] for i in np.argsort(-predictions.losses) if predictions.margins[i] > 0
    ]
    assert len((tmp_path / "mistakes.csv").read_text().splitlines()) == len(wrong) + 1
    code, out, _ = sightline("explain", run, "--json")
    made = {"layer": "layer2", "method": "Grad-CAM, the margin by HiResCAM", "precision": "fp32", "images": len(wrong)}
    targets = {"targets": ["predicted", "true", "margin"], "verdicts": {}}
    assert json.loads(out) == {"heatmaps": str(run / "heatmaps.npz"), **made, **targets}
    code, out, _ = sightline("report", run)
    assert code == 0
    page = (run / "report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_report_makes_the_heatmaps_that_are_missing(sightline: Sightline, finished: Path) -> None:
    (finished / "heatmaps.npz").unlink(missing_ok=True)
    assert sightline("report", finished)[0] == 0
    heatmaps = Run.open(finished).heatmaps
    assert heatmaps is not None
    assert set(heatmaps.ids) == {row["id"] for row in json.loads(sightline("mistakes", finished, "--json")[1])["mistakes"]}


def test_explain_judges_as_many_mistakes_as_asked(sightline: Sightline, finished: Path) -> None:
    """The table counts the verdicts of the file."""
    code, out, _ = sightline("explain", finished, "--trust", 2, "--layer", "layer3", "--layer", "layer2", "--fuse", "max")
    saved = Run.open(finished).heatmaps
    assert code == 0 and saved is not None and saved.layer == "layer3+layer2"
    assert set(saved.verdicts[:2].flat) <= {"supported", "weak", "no evidence"} and (saved.verdicts[2:] == "").all()
    for t, name in enumerate(saved.targets):
        counts = [int((saved.verdicts[:, t] == word).sum()) for word in ("supported", "weak", "no evidence")]
        assert sum(counts) == 2
        assert any(line.replace("│", " ").split() == [name, *map(str, counts)] for line in out.splitlines())


def test_files_of_any_size_are_explained(sightline: Sightline, finished: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, shape in (("tall.png", (50, 20, 3)), ("wide\x1b[31m\n.jpg", (30, 90, 3))):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "broken\x07.png").write_bytes(b"no image")
    arguments = ("explain", finished, tmp_path, "--method", "hirescam", "--target", "dark & grey", "--target", "margin")
    code, out, err = sightline(*arguments, "-o", tmp_path / "out", "--json")
    said = json.loads(out)
    assert code == 0 and "\x1b" not in out + err and "left out 1 unreadable files" in err
    assert said["unreadable"] == [f"{tmp_path}/broken?.png"]
    tall, wide = said["images"]
    assert (tall["file"], wide["file"]) == (f"{tmp_path}/tall.png", f"{tmp_path}/wide?[31m?.jpg")
    assert set(tall["scores"]) == set(tall["completeness"]) == {"dark & grey", "margin"}
    with Image.open(tall["picture"]) as picture:
        assert picture.size == (40, 50)
    code, out, err = sightline(*arguments, "-o", tmp_path / "out")
    assert code == 0 and "\x1b" not in out + err and "wide?[31m?.jpg" in out
    assert f"{100 * (1 - tall['completeness']['margin']):.0f} %" in out or "off by" in out


@pytest.mark.parametrize(
    ("completeness", "words"), [(float("nan"), "–"), (0, "100 %"), (0.034, "97 %"), (1, "0 %"), (1.4, "off by 140 %")]
)
def test_what_a_map_explains_is_said_as_a_share(completeness: float, words: str) -> None:
    assert cli._explained(completeness) == words


def test_one_image_under_all_methods(
    sightline: Sightline, finished: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.heatmaps.sweep.METHODS", {"cam": "", "gradcam": "", "eigencam": ""})
    photo = folder / "dark & grey" / "0 ü'.png"
    code, out, _ = sightline("explain", finished, photo, "--sheet", "-o", tmp_path / "out", "--json")
    assert code == 0 and list(json.loads(out)["left_out"]) == ["cam of predicted", "cam of margin"]
    with Image.open(tmp_path / "out" / "methods.png") as picture:
        assert picture.size[0] > 3 * 190  # the image and two methods


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("IMAGE", "--target", "dark & gray"), ("unknown class 'dark & gray'", "did you mean 'dark & grey'")),
        (("IMAGE", "--method", "grad-cam"), ("unknown method 'grad-cam'", "did you mean 'gradcam'")),
        (("IMAGE", "--trust", "3"), ("--trust is for a run's mistakes",)),
        (("IMAGE", "IMAGE", "--sheet"), ("one image", "not 2")),
        (("--target", "predicted"), ("--target and --sheet are for image files",)),
        (("--precision", "fp8"), ("unknown precision 'fp8'",)),
        (("no.png",), ("no image can be read, such as no.png",)),
    ],
)
def test_what_cannot_be_explained_is_said_in_one_line(
    sightline: Sightline,
    finished: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(finished.iterdir())
    photo = str(folder / "dark & grey" / "0 ü'.png")
    code, out, err = sightline("explain", finished, *(photo if word == "IMAGE" else word for word in arguments))
    assert (code, out) == (1, "")
    one_line(err, *parts)
    assert list(tmp_path.iterdir()) == [] and sorted(finished.iterdir()) == before


def test_a_report_without_its_data_says_so(sightline: Sightline, finished: Path, tmp_path: Path) -> None:
    info = json.loads((finished / "run.json").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in finished.iterdir():
        if path.is_file():
            (moved / path.name).write_bytes(path.read_bytes())
    (moved / "run.json").write_text(json.dumps({**info, "data": {**info["data"], "name": "/no/such/folder"}}))
    code, _, err = sightline("report", moved)
    assert code == 0
    assert "without pictures" in err
    assert "No pictures: " in (moved / "report.html").read_text()


def test_data_that_changed_since_is_refused(sightline: Sightline, finished: Path, tmp_path: Path) -> None:
    info = json.loads((finished / "run.json").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "run.json").write_text(json.dumps({**info, "data": {**info["data"], "hash": "0" * 64}}))
    code, _, err = sightline("explain", moved)
    assert code == 1
    one_line(err, "isn't what", "train again")


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (("train", "planted", "-r", "clasic", "-o", "RUN"), ("unknown recipe 'clasic'", "did you mean 'classic'")),
        (("train", "planted", "-r", "small", "--model", "resnet19", "-o", "RUN"), ("unknown model", "resnet18")),
        (("train", "planted", "-r", "small", "--max-lr", "-1", "-o", "RUN"), ("max_lr", "positive")),
        (("train", "planted", "-r", "small", "--precision", "fp8", "-o", "RUN"), ("unknown precision 'fp8'",)),
        (("train", "planted", "-r", "small", "--device", "foo", "-o", "RUN"), ("cannot use the device 'foo'",)),
        (("train", "/no/such/folder", "-o", "RUN"), ("/no/such/folder",)),
        (("train", "cifar100", "-o", "RUN"), ("cifar100", "cifar10")),
        (("mistakes", "/no/such/run"), ("no run folder", "sightline train")),
        (("report", "/no/such/run"), ("no run folder",)),
        (("explain", "/no/such/run"), ("no run folder",)),
        (("summary", "resnet-18"), ("did you mean 'resnet18'",)),
        (("data", "planted:dirty"), ("planted:dirty", "planted:clean")),
        (("data", "planted", "--augment", "/no/such.json"), ("/no/such.json",)),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: tuple[str, ...], parts: tuple[str, ...], sightline: Sightline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = sightline(*arguments)
    assert (code, out) == (1, "")
    one_line(err, *parts)
    assert list(tmp_path.iterdir()) == [], "something was left behind"


def test_wrong_usage_exits_with_2(sightline: Sightline) -> None:
    assert sightline("train")[0] == 2
    assert sightline("nothing")[0] == 2


def test_a_finished_run_is_not_overwritten(sightline: Sightline, folder: Path, finished: Path) -> None:
    code, _, err = sightline("train", folder, "-r", "small", "-o", finished)
    assert code == 1
    one_line(err, "never overwritten")


def test_an_unknown_layer_names_the_nearest(sightline: Sightline, finished: Path) -> None:
    code, _, err = sightline("explain", finished, "--layer", "layer9")
    assert code == 1
    one_line(err, "layer9", "layer3")


def test_an_augmentation_of_the_user_s_own_runs_and_its_rate_is_printed(
    sightline: Sightline, folder: Path, tmp_path: Path
) -> None:
    import albumentations as A

    A.save(A.Compose([A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(p=1.0)]), tmp_path / "mine.json")
    code, _, err = sightline(
        *(
            "train",
            folder,
            "-r",
            "small",
            "--epochs",
            1,
            "--precision",
            "fp32",
            "--augment",
            tmp_path / "mine.json",
            "-o",
            tmp_path / "run",
        )
    )
    assert code == 0
    assert "RandomBrightnessContrast" in err and "images/s" in err
    assert "RandomBrightnessContrast" in (tmp_path / "run" / "run.json").read_text()


def test_a_model_without_places_has_a_report_without_heatmaps(
    sightline: Sightline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_mlp.py").write_text(
        "from torch import nn\ndef mlp(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(768, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ("-r", "small", "--model", "my_mlp:mlp", "--epochs", 1, "--precision", "fp32")
    assert sightline("train", folder, *options, "-o", "run")[0] == 0
    code, _, err = sightline("report", "run")
    assert code == 0
    assert "without heatmaps" in err
    assert "No heatmaps: " in (tmp_path / "run" / "report.html").read_text()


def test_data_that_is_missing_is_looked_for_once(
    sightline: Sightline, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def missing(*arguments: object, **options: object) -> None:
        calls.append(options["data_dir"])
        raise DataError("gone")

    monkeypatch.setattr("sightline.datasets.load", missing)
    assert sightline("report", finished, "--data-dir", tmp_path)[0] == 0
    assert calls == [tmp_path]


def test_control_characters_do_not_reach_the_terminal() -> None:
    drawn = terminal.table(("name :dog:",), [("[red]a\x1b[31m:cat:",)])
    with terminal.out.capture() as capture:
        terminal.out.print(drawn)
    assert "[red]a?[31m:cat:" in capture.get()
    assert "name :dog:" in capture.get()


def test_control_c_leaves_a_run_that_can_be_gone_on_with_and_says_how(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sightline",
        "train",
        "planted",
        "-r",
        "small",
        "--precision",
        "fp32",
        "-o",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where tests run in the background it is ignored
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "resume" / "state.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), err  # to a shell both are 130; Python may end itself by the signal
    assert f"the same command with -o {tmp_path / 'run'} goes on" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_the_demo_tells_the_story(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "sightline", "demo", "-o", str(tmp_path / "demo"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(result.stdout)
    assert Path(said["report"]).stat().st_size < 5e6
    assert said["results"]["dev_accuracy"] > 0.9
    causes = {cause["id"]: cause for cause in said["diagnosis"]["causes"]}
    box = plant_of("planted")
    assert box is not None and causes["mark"]["classes"] == ["star"] and causes["mark"]["detail"]["box"] == list(box.box or ())
    assert said["fix"]["cause"]["id"] == "mark" and said["fix"]["measures"]["effect"]["after"]["value"] < 0.1
    assert [line.partition(":")[0] for line in said["findings"][2:]] == ["Before", "After"]


def test_one_epoch_on_the_real_cifar10(sightline: Sightline, cifar10_folder: Path, tmp_path: Path) -> None:
    options = ("-r", "small", "--epochs", 1, "--precision", "fp32", "--data-dir", cifar10_folder)
    code, _, _ = sightline("train", "cifar10", *options, "-o", tmp_path / "run")
    assert code == 0
    run = Run.open(tmp_path / "run")
    assert 0.45 < run.history[-1]["dev_accuracy"] < 0.8
    assert len(run.predictions) == 5_000
    assert sightline("report", tmp_path / "run", "--data-dir", cifar10_folder)[0] == 0
    assert 1e5 < (tmp_path / "run" / "report.html").stat().st_size < 5e6


def test_the_loop_from_the_command_line(sightline: Sightline, tmp_path: Path) -> None:
    """Two seeds trained, one diagnosed, both compared; what `fix` refuses."""
    options = ("-r", "small", "--width", 0.5, "--epochs", 3, "--precision", "fp32")
    for seed in (0, 1):
        assert sightline("train", "planted", *options, "--seed", seed, "-o", tmp_path / f"seed-{seed}")[0] == 0
    code, out, _ = sightline("diagnose", tmp_path / "seed-0", "--json")
    said = json.loads(out)
    assert code == 0 and said == json.loads((tmp_path / "seed-0" / "diagnosis.json").read_text())
    assert said["n"] == 400 and "mark" in {finding["cause"] for finding in said["findings"]}
    code, out, _ = sightline("compare", tmp_path / "seed-0", tmp_path / "seed-1", "--json")
    found, runs = json.loads(out), [Run.open(tmp_path / f"seed-{seed}") for seed in (0, 1)]
    right = [Predictions.read(run.folder / "test.parquet", run.classes) for run in runs]
    shares = [float((p.predicted == p.labels).mean()) for p in right]
    assert code == 0 and found["accuracy"] == pytest.approx(shares)
    assert [run.info["test_opened"] for run in runs] == [1, 1]
    code, out, _ = sightline("compare", tmp_path / "seed-0", tmp_path / "seed-1")
    assert code == 0 and out.lower().startswith(found["verdict"].lower()) and "McNemar" in out
    for bad, part in (
        (("--budget", "soon"), "is no time"),
        (("--not", "hflop"), "hflip"),
        (("--budget", "1s"), "proves nothing"),
    ):
        code, _, err = sightline("fix", tmp_path / "seed-0", "-o", tmp_path / "fix", *bad)
        assert code == 1 and part in err.replace("\n", " ")
    there = tmp_path / "there"  # where the model is used it is dark
    (there / "at night").mkdir(parents=True)
    for i, image in enumerate(load("planted:clean", seed=5).test.images[:200]):
        Image.fromarray(image // 4).resize((40, 40)).save(there / "at night" / f"{i}.png")
    (there / "broken.png").write_bytes(b"no image")
    code, out, err = sightline("diagnose", tmp_path / "seed-0", "--field", there)
    assert code == 0 and "Looked for and not found:" in out and "400 dev images" in out and "broken.png" in err
    (dark,) = (line for line in out.splitlines() if " lighting " in line and " field " in line)
    assert " 200 " in dark
    assert f"sightline fix {tmp_path / 'seed-0'} --field {there} -o FOLDER" in out.replace("\n", "")
    assert sightline("report", tmp_path / "seed-0")[0] == 0
    page = (tmp_path / "seed-0" / "report.html").read_text()
    assert "Where the model is used, by 200 images from there" in page and "look like dev images that were changed so" in page
    code, _, err = sightline("fix", tmp_path / "seed-0", "-o", tmp_path / "fix")
    assert code == 1 and "give them again with --field" in err.replace("\n", " ")
    (there / "at night").rename(tmp_path / "elsewhere")
    code, _, err = sightline("diagnose", tmp_path / "seed-0", "--field", there)
    assert code == 1 and "no image can be read in" in err


def test_what_training_lacks_is_said_beside_the_causes(finished: Path) -> None:
    run, recipe = Run.open(finished), load_recipe("small").with_(augment=())
    seen = {"probe": "flip", "cause": "missing_flip", "label": None, "rate": 0.02, "sham": 0.01, "effect": 0.01, "low": 0.0}
    found = Diagnosis((), run.classes, 200, 20, (), ({**seen, "high": 0.02, "p": 0.1, "q": 0.5, "n": 180},), {}, 1.0)
    (line,) = cli._lacking(Run(finished, {**run.info, "recipe": recipe.to_dict()}), found)
    assert line.startswith("No cause, and may help: hflip.")
    assert cli._lacking(Run(finished, {**run.info, "recipe": recipe.with_(augment=(HorizontalFlip(),)).to_dict()}), found) == []
    assert cli._lacking(Run(finished, {**run.info, "recipe": None}), found) == []


def test_reproduce_says_the_same_or_what_differs(sightline: Sightline, finished: Path, tmp_path: Path) -> None:
    code, out, _ = sightline("reproduce", finished, "-o", tmp_path / "again")
    assert code == 0
    assert out.startswith("The same, byte for byte: the history, epochs 1 to 1, and the weights (SHA-256 ")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()

    old = tmp_path / "old"
    shutil.copytree(finished, old)
    info = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps({**info, "seed": info["seed"] + 1}))
    code, out, _ = sightline("reproduce", old, "-o", tmp_path / "other")
    assert code == 0
    assert "Not the same: the history differs from epoch 1 on; the weights differ (SHA-256 " in out
    assert "Not as it was then: nothing that run.json knows of." in out

    code, out, _ = sightline("reproduce", old, "-o", tmp_path / "third", "--json")
    told = json.loads(out)
    assert (code, told["same"], told["differs"], told["changed"]) == (0, False, 1, [])
    assert told["weights"]["then"] != told["weights"]["now"]


def test_reproduce_refuses_a_taken_folder(sightline: Sightline, finished: Path) -> None:
    code, _, err = sightline("reproduce", finished, "-o", finished)
    assert code == 1
    one_line(err, "finished run")
