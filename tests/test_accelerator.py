"""On an accelerator everything computes what it computes on the CPU, and asks for nothing that such a device lacks."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from accelerator import NAME, Pretended
from sightline import augment, lean
from sightline.augment import CutMix, MixUp, Transform
from sightline.datasets import Dataset, hold_out
from sightline.diagnosis import diagnose
from sightline.faithfulness import judge
from sightline.heatmaps import METHODS, Heatmaps, explain
from sightline.models import best_device, build, to_device
from sightline.planted import planted
from sightline.precision import choose
from sightline.recipe import load_recipe
from sightline.runs import Run
from sightline.training import range_tests, train

pytestmark = [
    pytest.mark.skipif(Pretended is None, reason="this torch has no devices written in Python"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def scenes() -> Dataset:
    return hold_out(planted("planted", n_train=400, n_test=100), 0.25)


@pytest.fixture(scope="module")
def run(scenes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = load_recipe("small").with_(width=0.5, epochs=4, batch_size=20)
    return train(scenes, tmp_path_factory.mktemp("run") / "run", recipe=recipe, precision="fp32")


def test_the_device_refuses_what_apples_gpus_refuse() -> None:
    assert best_device() == "cpu"
    with Pretended():
        assert best_device() == NAME
        there = torch.arange(6.0).view(2, 3).to(NAME)
        assert there.device.type == NAME
        assert torch.equal((2 * there + torch.tensor(1.0))[:, 1:].cpu(), torch.tensor([[3.0, 5.0], [9.0, 11.0]]))
        for refused in (lambda: there.double(), lambda: torch.ones(2, dtype=torch.float64, device=NAME)):
            with pytest.raises(TypeError, match=r"no torch\.float64"):
                refused()
        with pytest.raises(RuntimeError, match="on the CPU"):
            there + torch.ones(2, 3)
        with pytest.raises(RuntimeError):
            there.numpy()
        with pytest.raises(NotImplementedError, match="_linalg_eigh"):
            torch.linalg.eigh(there @ there.T)
    assert best_device() == "cpu"


@pytest.mark.parametrize("name", ["classic", "strong", "fast"])
def test_a_training_there_has_the_same_weights_bit_for_bit(
    name: str, scenes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "keeps_less", lambda layer, x: False)  # on a CPU alone, where it rounds otherwise
    recipe = load_recipe(name).with_(width=0.25 if name == "fast" else 0.0625, epochs=2, batch_size=80, least_steps=1)
    recipe = recipe.with_(max_lr=0.01) if recipe.max_lr == "auto" else recipe
    here = train(scenes, tmp_path / "here", recipe=recipe, precision="fp32", device="cpu")
    with Pretended():
        there = train(scenes, tmp_path / "there", recipe=recipe, precision="fp32")
    assert there.info["device"] == NAME and here.info["device"] == "cpu"
    same = zip(here.model().state_dict().items(), there.model().state_dict().items(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in same)
    assert np.array_equal(here.predictions.probabilities, there.predictions.probabilities)
    assert here.info["results"].get("views_accuracy") == there.info["results"].get("views_accuracy")


def test_the_arithmetic_is_chosen_there_by_steps_that_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    device = torch.device(NAME)
    with Pretended():
        choose("auto", partial(build, "smallnet", classes=3), key=NAME, shape=(8, 3, 16, 16), classes=3, steps=4, device=device)
    assert len(waited) >= 4 and set(waited) == {device}  # two steps at least of either memory format


def test_the_range_test_there_says_the_same(scenes: Dataset) -> None:
    recipe = load_recipe("small").with_(batch_size=40)
    here = range_tests(scenes, recipe, sweeps=1, steps=20, precision="fp32", device="cpu")
    with Pretended():
        there = range_tests(scenes, recipe, sweeps=1, steps=20, precision="fp32")
    assert np.array_equal(here[0].losses, there[0].losses)


def policies() -> list[Transform]:
    """Every transform that can be made without arguments, and those that need some."""
    by_name = [getattr(augment, name) for name in augment.__all__ if name[0].isupper() and name not in ("Transform", "PerSample")]
    given = {"Erase": (3, 4, 8, 9), "Stamp": ([[[0, 9, 255]] * 4] * 4, 2, 3)}
    return [transform(*given.get(transform.__name__, ())) for transform in by_name]


@pytest.mark.parametrize("transform", policies(), ids=lambda each: type(each).__name__)
def test_a_transform_there_gives_the_same_images(transform: Transform, scenes: Dataset) -> None:
    images = to_device(scenes.train.images[:60])

    def changed(images: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        if isinstance(transform, (MixUp, CutMix)):
            return transform.mix(images, generator)[0]
        policy = augment.bind((transform,), scenes.normalisation[0])
        return augment.augment(policy, images, generator, torch.arange(len(images)), 0)

    here = changed(images)
    with Pretended():
        there = changed(images.to(NAME))
        assert there.device.type == NAME
        assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_there_gives_the_same_maps(method: str) -> None:
    torch.manual_seed(0)
    model, images = build("resnet18", classes=4, width=0.0625), torch.randn(3, 3, 32, 32)

    def maps(device: str) -> np.ndarray:
        with Heatmaps(model.to(device), "layer4") as heatmaps:
            raw: np.ndarray = heatmaps(images.to(device), ("predicted",), method=method).raw
        return raw

    here = maps("cpu")
    with Pretended():
        there = maps(NAME)
    assert np.abs(here).max() > 0
    np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-6 * np.abs(here).max())


def test_heatmaps_their_trust_and_the_causes_there_are_the_same(run: Run, scenes: Dataset) -> None:
    field = planted("planted:lighting", seed=1, n_train=10, n_test=60).test.images

    def looked_at(device: str) -> tuple[list[np.ndarray], tuple[dict[str, object], ...]]:
        with np.load(explain(run, scenes, trust=3, judge=judge)) as saved:
            maps = [saved[name] for name in sorted(saved.files)]
        return maps, diagnose(run, scenes, field=field, device=device).findings

    maps, findings = looked_at("cpu")
    with Pretended():
        other_maps, other_findings = looked_at(NAME)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)  # the way back may take other kernels, that round otherwise
    for array, other in zip(maps, other_maps, strict=True):
        (close if array.dtype.kind == "f" else np.testing.assert_array_equal)(array, other)
    assert len(maps) > 5 and len(findings) > 20 and json.dumps(findings) == json.dumps(other_findings)
