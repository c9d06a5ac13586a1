"""How long a training's rest takes, as the terminal says it."""

from __future__ import annotations

import math

import pytest

from sightline import terminal
from sightline.terminal import Bars, Pace
from sightline.training import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that have passed: what a test puts into it."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_what_is_left_is_told_from_the_share_that_is_done(clock: list[float]) -> None:
    pace = Pace()
    assert pace.left(0.1) is None  # a training that is gone on with: its first tenth took nobody knows how long
    clock[0] += 20
    assert pace.left(0.2) == pytest.approx(160)  # a tenth in 20 seconds, and eight are left
    clock[0] += 4
    assert pace.left(0.22) == pytest.approx(24 / 0.12 * 0.78)
    assert pace.left(0.01) is None  # another training
    clock[0] += 1
    assert pace.left(0.02) == pytest.approx(98)


def test_epochs_that_cost_more_later_are_reckoned_with(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    row = {"epoch": 1, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.5, "dev_loss": math.nan, "dev_accuracy": math.nan}
    with Bars() as bars:
        for step in range(1, 11):  # the first of two epochs, at half the side: a fifth of the whole
            clock[0] += 6
            bars.training(Progress("train", step, 10, 1, 2, 1.0, 0.5, 0.1, 50.0, 0.02 * step))
        bars.training(Progress("epoch", epoch=1, epochs=2, row={**row, "seconds": 60.0}))
        left = bars.left
    assert left == pytest.approx(54 / 0.18 * 0.8)  # 240 s, and not the 60 of an epoch that is like the first
    assert "epoch 1/2" in (said := capsys.readouterr().err) and "about 4 min left\n" in said
