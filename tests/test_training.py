"""The training loop: that it learns, that a seed decides everything, and that a killed run ends as if it never was."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline import allocation, training
from sightline.augment import CoarseDropout, HorizontalFlip, RandomCrop, Transform
from sightline.datasets import Dataset, load
from sightline.evaluation import predict
from sightline.exceptions import RecipeError, RunError, SightlineError, TrainingError
from sightline.models import Normalise, build, to_device
from sightline.precision import Precision
from sightline.recipe import Recipe
from sightline.runs import Run
from sightline.schedule import RangeTest
from sightline.training import Progress, find_lr, loop, train
from sightline.training.learner import stream


def weights(run: Run | Path) -> bytes:
    return ((run.folder if isinstance(run, Run) else run) / "model.safetensors").read_bytes()


def test_it_learns(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    run = train(blobs, tmp_path / "run", recipe=quick, precision="fp32")
    assert run.history[-1]["test_accuracy"] > 0.9
    assert [row["epoch"] for row in run.history] == [1, 2, 3]


def test_the_reported_accuracy_is_that_of_the_saved_weights(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    run = train(blobs, tmp_path / "run", recipe=quick, precision="fp32")
    logits = run.model()(Normalise(*blobs.normalisation)(to_device(blobs.test.images))).detach().numpy()
    accuracy = (logits.argmax(1) == blobs.test.labels).mean()
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(blobs.test.labels)).item()
    assert run.history[-1]["test_accuracy"] == run.info["results"]["test_accuracy"] == pytest.approx(accuracy)
    assert run.history[-1]["test_loss"] == pytest.approx(loss, rel=1e-5)
    np.testing.assert_array_equal(run.predictions.predicted, logits.argmax(1))


def test_the_loop_equals_a_plain_one(blobs: Dataset, tmp_path: Path) -> None:
    """Weights and figures equal those of the few lines that anyone would write, given the same images in the same order."""
    recipe = Recipe("plain", "smallnet", epochs=2, batch_size=60, max_lr=0.01, weight_decay=1e-2, augment=())
    run = train(blobs, tmp_path / "run", recipe=recipe, precision="fp32", seed=3)

    torch.manual_seed(stream(3, "weights"))
    model = build("smallnet", classes=3)
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        0.01,
        total_steps=8,
        pct_start=0.25,
        anneal_strategy="linear",
        div_factor=100,
        final_div_factor=100,
        cycle_momentum=False,
    )
    images = Normalise(*blobs.normalisation)(to_device(blobs.train.images)).contiguous()
    labels = torch.tensor(blobs.train.labels)
    for epoch in range(2):
        order = torch.randperm(240, generator=torch.Generator().manual_seed(stream(3, "order", epoch)))
        losses = []
        for chosen in order.split(60):
            loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if len(losses) + epoch * 4 < 7:
                schedule.step()
            losses.append(loss.item())
        assert run.history[epoch]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    for name, value in run.model().state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=2e-3, atol=2e-4)


def test_progress_says_the_share_of_the_work_by_the_pixels_that_were_looked_at(
    blobs: Dataset, quick: Recipe, tmp_path: Path
) -> None:
    recipe = replace(quick, epochs=3, sizes=((0.3, 0.5),), keep=((0.6, 0.5),))
    seen = []

    def watch(now: Progress) -> None:
        if now.stage == "train":
            seen.append((now.epoch, now.share))

    train(blobs, tmp_path, recipe=recipe, precision="fp32", on_progress=watch)
    pixels = [{1: 0.25, 2: 1.0, 3: 1.0}[epoch] for epoch, _ in seen]  # the sides of the first epoch's images are halved
    assert [share for _, share in seen] == pytest.approx(np.cumsum(pixels) / np.sum(pixels))
    assert sum(epoch == 3 for epoch, _ in seen) < sum(epoch == 2 for epoch, _ in seen)


def test_how_often_the_loss_is_read_changes_nothing(
    blobs: Dataset, quick: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, steps = replace(quick, keep=((0.5, 0.5),)), []
    each = train(blobs, tmp_path / "each", recipe=recipe, precision="fp32")
    monkeypatch.setattr(loop, "_due", lambda seconds, device: False)  # as on an accelerator that is never waited for
    last = train(blobs, tmp_path / "last", recipe=recipe, precision="fp32", on_progress=lambda now: steps.append(now.stage))
    assert weights(each) == weights(last)
    timeless = [[{**row, "seconds": 0.0} for row in run.history] for run in (each, last)]
    assert timeless[0] == timeless[1]
    assert steps.count("train") == recipe.epochs  # the last step of each


def test_a_seed_decides_the_weights(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    recipe = quick.with_(augment=(RandomCrop(2), HorizontalFlip(), CoarseDropout(6)))
    runs = [train(blobs, tmp_path / str(i), recipe=recipe, precision="fp32", seed=seed) for i, seed in enumerate((5, 5, 6))]
    assert weights(runs[0]) == weights(runs[1]) != weights(runs[2])


class KilledError(Exception):
    pass


POLICIES = [(RandomCrop(2), CoarseDropout(6)), (RandomCrop(2, (0.0,), (16, 16)), CoarseDropout(6, fill=(1.0, 2.0, 3.0)))]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "stage, at", [("train", 1), ("train", 5), ("train", 8), ("train", 20), ("test", 1), ("test", 2), ("epoch", 1)]
)
def test_a_run_that_stopped_anywhere_ends_as_if_it_had_not(
    stage: str,
    at: int,
    policy: tuple[Transform, ...],
    blobs: Dataset,
    quick: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    recipe = quick.with_(augment=policy)
    whole = train(blobs, tmp_path / "whole", recipe=recipe, precision="fp32")
    seen = 0

    def kill(now: training.Progress) -> None:
        nonlocal seen
        seen += now.stage == stage
        if seen == at and now.stage == stage:
            raise KilledError

    with pytest.raises(KilledError):
        train(blobs, tmp_path / "killed", recipe=recipe, precision="fp32", on_progress=kill)
    resumed = train(blobs, tmp_path / "killed", recipe=recipe, precision="fp32")
    assert weights(resumed) == weights(whole)
    for a, b in zip(resumed.history, whole.history, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    assert not (resumed.folder / "resume").exists()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
@pytest.mark.parametrize("often", [False, True])
def test_what_steps_leave_behind_goes_back_before_the_test_and_every_so_often(often: bool, tmp_path: Path) -> None:
    """In a process of its own: in this one, earlier tests' memory goes back at any time."""
    script = textwrap.dedent("""
        import json, mmap, sys
        from pathlib import Path
        import torch
        from sightline import training
        from sightline.planted import planted
        from sightline.recipe import RECIPES

        training.loop.TIDY_SECONDS = float(sys.argv[2])
        BLOCK = 2**28
        resident = {"train": [], "test": []}  # in blocks

        def watch(now):
            if now.stage in resident:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                resident[now.stage].append(pages * mmap.PAGESIZE / BLOCK)
            if now.stage == "train":
                torch.ones(BLOCK, dtype=torch.uint8)  # freed at once, and kept

        data = planted("planted:clean", n_train=96, n_test=32)
        recipe = RECIPES["small"].with_(epochs=1, batch_size=32)
        training.train(data, sys.argv[1], recipe=recipe, precision="fp32", on_progress=watch)
        print(json.dumps(resident))
    """)
    arguments = [sys.executable, "-c", script, str(tmp_path / "run"), "-1" if often else "1e9"]
    done = subprocess.run(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    resident = json.loads(done.stdout)
    first, second = resident["train"][:2]
    assert second - first > 0.8 if not often else abs(second - first) < 0.2
    assert abs(resident["test"][0] - first) < 0.2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_freed_memory_is_not_kept_while_data_are_loaded(
    blobs: Dataset, quick: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping: dict[str, int] = {}

    def load(*arguments: Any, **options: Any) -> Dataset:
        keeping["load"] = allocation._inside
        return blobs

    monkeypatch.setattr(loop.datasets, "load", load)
    train("blobs", tmp_path / "run", recipe=quick, on_progress=lambda now: keeping.update({now.stage: allocation._inside}))
    assert keeping["load"] == 0
    assert keeping["train"] > 0 and keeping["test"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch calls deprecated
def test_a_compiled_run_that_stopped_ends_as_if_it_had_not(
    blobs: Dataset, quick: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    whole = train(blobs, tmp_path / "whole", recipe=quick, precision="bf16-compiled")

    def kill(now: training.Progress) -> None:
        if now.stage == "train" and now.epoch == 2 and now.done == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train(blobs, tmp_path / "killed", recipe=quick, precision="bf16-compiled", on_progress=kill)
    assert weights(train(blobs, tmp_path / "killed", recipe=quick, precision="bf16-compiled")) == weights(whole)


def test_kill_minus_nine_loses_nothing(tmp_path: Path) -> None:
    """A real process, killed as an operating system kills, again and again, ends with the weights of one that isn't."""
    script = textwrap.dedent("""
        import sys
        from sightline import training
        from sightline.recipe import RECIPES
        from sightline.planted import planted
        training.loop.CHECKPOINT_SECONDS = 0.05
        data = planted("planted:clean", n_train=300, n_test=50)
        recipe = RECIPES["small"].with_(epochs=8, batch_size=32)
        training.train(data, sys.argv[1], recipe=recipe, precision="fp32")
    """)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(folder: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", script, str(tmp_path / folder)], env=environment)

    assert start("whole").wait() == 0
    kills = 0
    for _ in range(4):
        process = start("killed")
        state = tmp_path / "killed" / "resume" / "state.safetensors"
        before = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2, "the process was never caught in the act"
    assert start("killed").wait() == 0 or (tmp_path / "killed" / "run.json").exists()
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_an_unfinished_run_of_other_settings_is_not_gone_on_with(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    def kill(now: training.Progress) -> None:
        if now.stage == "epoch":
            raise KilledError

    with pytest.raises(KilledError):
        train(blobs, tmp_path, recipe=quick, precision="fp32", on_progress=kill)
    with pytest.raises(RunError, match=r"another seed \(0, now 1\)"):
        train(blobs, tmp_path, recipe=quick, precision="fp32", seed=1)
    with pytest.raises(RunError, match=r"another recipe.*epochs 3, now 4"):
        train(blobs, tmp_path, recipe=quick.with_(epochs=4), precision="fp32")


def test_two_processes_never_train_into_one_folder(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    def second(now: training.Progress) -> None:
        if now.stage == "train":
            train(blobs, tmp_path / "run", recipe=quick, precision="fp32")

    with pytest.raises(RunError, match="another process is training"):
        train(blobs, tmp_path / "run", recipe=quick, precision="fp32", on_progress=second)
    train(blobs, tmp_path / "run", recipe=quick, precision="fp32")  # the lock is gone with its owner


def test_training_leaves_the_caller_s_random_state_alone(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    train(blobs, tmp_path / "run", recipe=quick.with_(epochs=1), precision="fp32")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_finds_its_data_again_however_it_was_loaded(quick: Recipe, tmp_path: Path) -> None:
    data = load("planted:clean", seed=3, size=24)
    run = train(data, tmp_path / "run", recipe=quick.with_(epochs=1, batch_size=1000), precision="fp32")
    assert run.dataset().content_hash == data.content_hash


def test_a_finished_run_is_never_overwritten(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    run = train(blobs, tmp_path / "run", recipe=quick.with_(epochs=1), precision="fp32")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="never overwritten"):
        train(blobs, tmp_path / "run", recipe=quick, precision="fp32", seed=9)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("batch_size, epochs", [(32, 3), (240, 1), (240, 2)])
def test_a_loss_that_is_not_finite_stops_with_what_to_try(
    batch_size: int, epochs: int, blobs: Dataset, quick: Recipe, tmp_path: Path
) -> None:
    recipe = quick.with_(max_lr=1e30, batch_size=batch_size, epochs=epochs)
    with pytest.raises(TrainingError, match="with another -o, try a lower --max-lr"):
        train(blobs, tmp_path / "run", recipe=recipe, precision="fp32")
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()


OWN = """
import torch
from torch import nn

def tiny(classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.1), nn.Flatten(), nn.Linear(8 * 14 * 14, classes))

def any_size(classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))

def tied(classes):
    first, second = nn.Linear(768, 768), nn.Linear(768, 768)
    second.weight = first.weight
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.Linear(768, classes))

def many(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, classes + 2))

def large(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(10, classes))

def frozen(classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

def broken(classes):
    return 1 / 0

def no_argument():
    return nn.Identity()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("factory", ["tiny", "tied"])
def test_a_user_s_own_model_trains_by_its_name(factory: str, blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    recipe = replace(quick, model=f"own_models:{factory}", epochs=2)
    first, second = (train(blobs, tmp_path / name, recipe=recipe, precision="fp32") for name in ("a", "b"))
    assert weights(first) == weights(second)  # dropout included
    x = Normalise(*blobs.normalisation)(to_device(blobs.test.images))
    np.testing.assert_array_equal(first.model()(x).argmax(1), first.predictions.predicted)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    "factory, message",
    [
        ("many", r"returns \(2, 5\) .* not \(2, 3\)"),
        ("large", "fails.*--size"),
        ("frozen", "no parameters"),
        ("broken", "ZeroDivisionError"),
        ("no_argument", "TypeError"),
    ],
)
def test_a_model_that_is_no_classifier_of_these_images_is_refused(
    factory: str, message: str, blobs: Dataset, quick: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        train(blobs, tmp_path / "run", recipe=replace(quick, model=f"own_models:{factory}"), precision="fp32")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("factory, grows", [("tiny", False), ("any_size", True)])
def test_images_grow_only_for_models_that_take_smaller_ones(
    factory: str, grows: bool, blobs: Dataset, quick: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = replace(quick, model=f"own_models:{factory}", epochs=2, sizes=((0.5, 0.75),))
    run = train(blobs, tmp_path / "run", recipe=recipe, precision="fp32")
    assert run.info["recipe"]["sizes"] == ([[0.5, 0.75]] if grows else [])
    assert ("one size only" in caplog.text) != grows


@pytest.mark.usefixtures("own")
def test_a_run_s_own_code_is_not_run(blobs: Dataset, quick: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(blobs, tmp_path / "run", recipe=replace(quick, model="own_models:tiny", epochs=1), precision="fp32")
    (run.folder / "evil.py").write_text("raise SystemExit('code of a stranger was run')")
    path = run.folder / "run.json"
    for name in ("run.evil:make", "evil:make"):
        info = json.loads(path.read_text())
        path.write_text(json.dumps({**info, "recipe": {**info["recipe"], "model": name}}))
        with pytest.raises(SightlineError):
            Run.open("run").model()
    monkeypatch.chdir(run.folder)
    with pytest.raises(RunError, match="in its own folder"):
        Run.open(".").model()


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_refused(device: str, blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leave out --device"):
        train(blobs, tmp_path / "run", recipe=quick, device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu_is_gone_on_with(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    def kill(now: training.Progress) -> None:
        if now.stage == "epoch":
            raise KilledError

    with pytest.raises(KilledError):
        train(blobs, tmp_path, recipe=quick, precision="fp32", on_progress=kill)
    assert train(blobs, tmp_path, recipe=quick, precision="fp32").history[-1]["test_accuracy"] > 0.9


def test_the_range_test_leaves_model_and_random_state_as_they_were(blobs: Dataset, quick: Recipe) -> None:
    learner = training.Learner.make(blobs, quick, Precision(), seed=0, device=torch.device("cpu"))
    learner.model.eval()
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    state = torch.get_rng_state()
    tests = find_lr(learner, quick, sweeps=2, steps=30)
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not learner.model.training
    assert len(tests) == 2
    assert not np.array_equal(tests[0].losses, tests[1].losses)


def test_sweeps_too_short_for_a_descent_are_followed_by_longer_ones(
    blobs: Dataset, quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def sweep(step: object, steps: int) -> RangeTest:
        asked.append(steps)
        lrs = np.logspace(-5, 1, steps)
        return RangeTest(lrs, np.ones(steps), np.ones(steps), None, None, 0.01 if steps == 200 else None)

    monkeypatch.setattr("sightline.training.rate.range_test", sweep)
    learner = training.Learner.make(blobs, quick, Precision(), seed=0, device=torch.device("cpu"))
    assert [test.peak for test in find_lr(learner, quick)] == 3 * [0.01]
    assert asked == 3 * [60] + 3 * [200]
    asked.clear()
    assert [test.peak for test in find_lr(learner, quick, steps=60)] == 3 * [None]  # as it was told
    assert asked == 3 * [60]


def test_auto_takes_the_median_of_three_sweeps(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    run = train(blobs, tmp_path / "run", recipe=quick.with_(max_lr="auto", epochs=4), precision="fp32")
    suggestions = [test["peak"] for test in run.info["range_tests"]]
    assert len(suggestions) == 3
    assert run.info["max_lr"] == np.median([s for s in suggestions if s is not None])
    assert max(row["lr"] for row in run.history) <= run.info["max_lr"]


def test_a_batch_larger_than_the_data_is_the_data(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    run = train(blobs, tmp_path / "run", recipe=quick.with_(batch_size=1000, epochs=1), precision="fp32")
    assert len(run.history) == 1


def test_predict_equals_a_plain_loop_and_restores_the_mode(blobs: Dataset) -> None:
    torch.manual_seed(0)
    model = build("smallnet", classes=3).train()
    normalise = Normalise(*blobs.normalisation)
    logits = predict(model, blobs.test, normalise, Precision())
    assert model.training
    one_by_one = [model.eval()(normalise(to_device(blobs.test.images[i : i + 1]))).detach().numpy()[0] for i in range(60)]
    np.testing.assert_allclose(logits, one_by_one, rtol=1e-4, atol=1e-5)


def test_bfloat16_trains_too_and_says_so(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    run = train(blobs, tmp_path / "run", recipe=quick, precision="bf16")
    assert run.info["arithmetic"] == {"dtype": "bfloat16", "channels_last": True, "compiled": False, "winograd": False}
    assert run.history[-1]["test_accuracy"] > 0.9


def test_run_json_says_what_is_needed_to_do_it_again(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    run = train(blobs, tmp_path / "run", recipe=quick.with_(epochs=1), precision="fp32", seed=4)
    info = json.loads((run.folder / "run.json").read_text())
    assert (info["schema"], info["seed"], info["data"]["hash"]) == (1, 4, blobs.content_hash)
    assert Recipe.from_dict(info["recipe"]) == quick.with_(epochs=1)
    assert info["data"]["classes"] == ["left", "middle", "right"]
    assert info["parameters"] == sum(p.numel() for p in build("smallnet", classes=3).parameters())
