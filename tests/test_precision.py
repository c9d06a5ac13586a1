"""Which arithmetic is chosen, that it is remembered, and that the choice changes nothing else."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from platformdirs import user_cache_path
from torch import nn

from sightline import precision
from sightline.exceptions import RecipeError
from sightline.models import build
from sightline.precision import NAMED, Precision, choose

CPU = torch.device("cpu")
SMALL = partial(build, "smallnet", classes=3)
BRAIN, HALF = Precision("bfloat16", True), Precision("float16", True)


def chosen(name: str = "auto", *, steps: int = 10, key: str = "smallnet") -> Precision:
    return choose(name, SMALL, key=key, shape=(8, 3, 16, 16), classes=3, steps=steps, device=CPU)


@pytest.mark.parametrize(
    "seconds, expected",
    [
        ({"float32": 1.0, "float32, channels-last": 0.95, "bfloat16, channels-last": 0.95}, Precision()),
        ({"float32": 1.0, "float32, channels-last": 0.5, "bfloat16, channels-last": 0.48}, Precision("float32", True)),
        ({"float32": 1.0, "float32, channels-last": 0.8, "bfloat16, channels-last": 0.3}, BRAIN),
        ({"float32": 1.0, "float32, channels-last": math.inf, "bfloat16, channels-last": math.inf}, Precision()),
        ({"float32": 1.0, "float32, channels-last": 1.0, "bfloat16, channels-last": 2.0, "float16, channels-last": 0.3}, HALF),
        ({"float32": 1.0, "float32, channels-last": 0.9, "bfloat16, channels-last": 0.4, "float16, channels-last": 0.3}, BRAIN),
    ],
)
def test_only_what_is_clearly_faster_replaces_what_is_simpler(
    seconds: dict[str, float], expected: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_seconds", lambda candidate, **_: seconds.get(str(candidate), math.inf))
    assert chosen(key=str(seconds)) == expected


def test_compiling_is_tried_only_for_long_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_seconds", lambda candidate, **_: 0.1 if candidate.compiled else 1.0)
    assert not chosen(steps=100, key="short").compiled
    assert chosen(steps=10_000, key="long").compiled


def test_the_choice_is_remembered_so_that_a_seed_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    first = chosen(key="remembered")
    monkeypatch.setattr(precision, "_seconds", lambda *_, **__: pytest.fail("timed again"))
    assert chosen(key="remembered") == first


def test_trainings_of_other_lengths_have_the_same_arithmetic_and_are_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Precision] = []
    monkeypatch.setattr(precision, "_seconds", lambda candidate, **_: timed.append(candidate) or 1 / (1 + len(timed)))
    first = chosen(steps=10, key="lengths")
    assert timed == [NAMED[name] for name in ("fp32", "fp32-channels-last", "fp32-winograd", "bf16")] and first == NAMED["bf16"]
    assert chosen(steps=20, key="lengths") == chosen(steps=9000, key="lengths") == first and len(timed) == 4
    assert chosen(steps=9500, key="lengths") == chosen(steps=10**6, key="lengths") == NAMED["bf16-compiled"]  # 1/5 s a step
    assert timed[4:] == [NAMED["bf16"], NAMED["bf16-compiled"]]


def test_what_an_older_version_remembered_or_nobody_can_read_is_timed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_seconds", lambda candidate, **_: 0.1 if candidate.channels_last else 1.0)
    first, path = chosen(key="older"), user_cache_path("sightline") / "precision.json"
    for text in (json.dumps({key: asdict(Precision()) for key in json.loads(path.read_text())}), "{", "[1]"):
        path.write_text(text)
        assert chosen(key="older") == first
        assert all("seconds" in value for value in json.loads(path.read_text()).values())


def test_what_runs_nowhere_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_seconds", lambda *_, **__: math.inf)
    assert chosen(key="nowhere") == NAMED["fp32"]
    assert not any("|nowhere|" in key for key in json.loads((user_cache_path("sightline") / "precision.json").read_text()))


def test_timing_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    chosen(key="random state")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("emulated", [False, True])
def test_bfloat16_is_not_tried_where_its_products_are_emulated(emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: not emulated)
    seconds = precision._seconds(NAMED["bf16"], SMALL, (8, 3, 16, 16), 3, CPU)
    assert math.isinf(seconds) == emulated
    assert precision._seconds(NAMED["fp32"], SMALL, (8, 3, 16, 16), 3, CPU) < math.inf


def test_float16_is_for_nvidia_s_gpus(caplog: pytest.LogCaptureFixture) -> None:
    assert math.isinf(precision._seconds(NAMED["fp16"], SMALL, (8, 3, 16, 16), 3, CPU))
    assert chosen("fp16") == HALF
    assert "float16 is emulated on this machine" in caplog.text


def test_who_asks_for_emulated_bfloat16_is_warned(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for emulated in (False, True):
        monkeypatch.setattr(precision, "has_bfloat16", lambda _, emulated=emulated: not emulated)
        assert chosen("bf16") == NAMED["bf16"] and chosen("fp32") == NAMED["fp32"]
        assert [record.message for record in caplog.records if "emulated" in record.message] == [
            "bfloat16 is emulated on this machine, many times slower than --precision auto"
        ] * emulated


@pytest.mark.parametrize("times, expected", [(0.5, True), (7.0, True), (9.0, False), (50.0, False)])
def test_bfloat16_is_emulated_if_a_product_takes_over_eight_times_as_long(
    times: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, products = [0.0], list[float]()

    class Product:
        def __init__(self, *_: int, dtype: torch.dtype, device: torch.device) -> None:
            self.cost = times if dtype == torch.bfloat16 else 1.0

        def __matmul__(self, other: Product) -> Product:
            products.append(self.cost)
            clock[0] += self.cost * (50 if len(products) < 8 else 1)  # a core is busy with something else at first
            return self

        def __getitem__(self, _: object) -> Product:
            return self

        def item(self) -> float:
            return 0.0

    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "ones", Product)
    assert precision.has_bfloat16.__wrapped__(CPU) is expected


def test_a_slow_candidate_takes_no_more_than_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def build_counted() -> torch.nn.Module:
        model = SMALL()
        model.register_forward_hook(lambda *_: steps.append(1))
        return model

    for limit, expected in ((0.0, 2), (math.inf, 5)):
        monkeypatch.setattr(precision, "TRY_SECONDS", limit)
        precision._seconds(Precision(), build_counted, (8, 3, 16, 16), 3, CPU)
        assert len(steps) == expected
        steps.clear()


def test_a_step_that_waits_for_a_core_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "TRY_SECONDS", math.inf)
    waits = iter((0.3, 0.3, 0.0, 0.3, 0.3))

    def build_waiting() -> torch.nn.Module:
        model = SMALL()
        model.register_forward_hook(lambda *_: time.sleep(next(waits)))
        return model

    assert precision._seconds(Precision(), build_waiting, (8, 3, 16, 16), 3, CPU) < 0.3


def test_of_a_large_batch_a_part_is_timed_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def build_counted() -> torch.nn.Module:
        model = SMALL()
        model.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
        return model

    monkeypatch.setattr(precision, "TRY_SECONDS", 0.0)
    monkeypatch.setattr(precision, "wait", lambda _: None)
    clock = iter(range(100))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(clock))
    assert precision._seconds(Precision(), build_counted, (512, 3, 16, 16), 3, CPU) == 4.0  # a second a part
    assert seen == [128, 128]


def test_what_does_not_run_here_is_no_candidate() -> None:
    def broken() -> torch.nn.Module:
        raise RuntimeError("not implemented for 'BFloat16'")

    assert precision._seconds(Precision(), broken, (8, 3, 16, 16), 3, CPU) == math.inf


@pytest.mark.parametrize(
    "channels, stride, kernel, refused",
    [(4, 2, 1, True), (15, 2, 1, True), (16, 2, 1, False), (4, 1, 1, False), (4, 2, 3, False)],
)
def test_channels_last_is_refused_where_the_kernel_overruns_its_memory(
    channels: int, stride: int, kernel: int, refused: bool
) -> None:
    model = nn.Sequential(nn.Conv2d(channels, 8, kernel, stride))
    Precision().prepare(model)
    with pytest.raises(RecipeError, match=f"'0', .* {channels} input channels.*--precision fp32") if refused else nullcontext():
        NAMED["fp32-channels-last"].prepare(model)
    NAMED["fp32-channels-last"].prepare(model.eval())  # what is only asked needs no gradient of its weights


def test_a_narrow_resnet18_trains_where_channels_last_would_crash(tmp_path: Path) -> None:
    program = (
        "from sightline.planted import planted; from sightline.recipe import load_recipe; from sightline.training import train\n"
        "data = planted('planted:clean', n_train=256, n_test=10)\n"
        f"run = train(data, {str(tmp_path / 'run')!r}, recipe=load_recipe('strong').with_(width=1 / 16, epochs=1))\n"
        "assert not run.info['arithmetic']['channels_last']"
    )
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=alone, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [name for name in NAMED if "compiled" not in name])
def test_every_precision_computes_nearly_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    model, x = SMALL().eval(), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        with NAMED[name].autocast(CPU):
            got = NAMED[name].prepare(model)(NAMED[name].format(x)).float()
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch calls deprecated
def test_compiled_training_equals_eager() -> None:
    torch.manual_seed(0)
    model, x = SMALL().train(), torch.randn(8, 3, 16, 16)
    expected = model(x)
    got = NAMED["fp32-compiled"].prepare(model)(NAMED["fp32-compiled"].format(x))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_float16_loses_no_small_gradient_and_takes_no_step_beyond_its_range() -> None:
    x, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 3

    def gradient(arithmetic: Precision, factor: float) -> tuple[list[torch.Tensor], bool]:
        torch.manual_seed(0)
        model, scaler = SMALL().train(), arithmetic.scaler(CPU)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=1 / factor)
        with arithmetic.autocast(CPU):
            logits = model(x)
        scaler.scale(factor * nn.functional.cross_entropy(logits.float(), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
        taken = [(b - p).detach() for b, p in zip(before, model.parameters(), strict=True)]
        return taken, any(step.any() for step in taken)

    (exact, _), (ours, moved) = gradient(Precision(), 1e-6), gradient(HALF, 1e-6)
    assert moved
    exact_step, our_step = (torch.cat([tensor.flatten() for tensor in some]) for some in (exact, ours))
    assert (our_step - exact_step).norm() < 0.1 * exact_step.norm()
    assert gradient(Precision(), 1e6)[1] and not gradient(HALF, 1e6)[1]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"unknown precision 'fp8'.*bf16"):
        chosen("fp8")
