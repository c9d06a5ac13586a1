"""Models of all kinds, as people write them: other arithmetic, views, notes to themselves, hooks that refuse."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cams import CLASSES, assert_close, explain, striped
from sightline.exceptions import DataError, RecipeError, SightlineError
from sightline.heatmaps import METHODS, Heatmaps, Margin, engine

SCORES = ("predicted", "true", "margin")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def pooled(*between: nn.Module, bias: bool = True) -> nn.Sequential:
    """Two convolutions, global average pool, one linear layer: the closed form holds at 2, or at 3 if there is one."""
    first, second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1, stride=2)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES, bias=bias)
    return nn.Sequential(first, nn.ReLU(), second, *between, *head)


class LeNet(nn.Module):
    """Flattens by `view` or by `flatten`: a view of channels-last activations doesn't exist."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.view = view
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 8 * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(x).relu(), 2)
        x = F.max_pool2d(self.second(x).relu(), 2)
        logits: Tensor = self.fc(x.view(len(x), -1) if self.view else x.flatten(1))
        return logits


class Note(nn.Module):
    """Its features, of which it keeps the mean for whoever asks later."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv(x).relu()
        self.kept = features.mean((2, 3))
        return features


class Noted(nn.Module):
    """What follows `later` reads what `note` returned: from its note, or from what was handed on."""

    def __init__(self, read: bool) -> None:
        super().__init__()
        self.read, self.note, self.later, self.fc = read, Note(), nn.Conv2d(6, 8, 3, padding=1), nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = self.note(x)
        kept = self.note.kept if self.read else features.mean((2, 3))
        logits: Tensor = self.fc(torch.cat([self.later(features).relu().mean((2, 3)).square(), kept], 1))
        return logits


def twins(kind: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The two variants of a net, with the same weights."""
    a, b = kind(True), kind(False)
    b.load_state_dict(a.state_dict())
    return a, b


@pytest.mark.parametrize("method", ["gradcam", "ablationcam", "scorecam", "fullgrad"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_net_that_flattens_by_view_is_explained(method: str, memory_format: torch.memory_format) -> None:
    (viewing, flattening), (images, labels) = twins(LeNet), striped(3)
    images = images.contiguous(memory_format=memory_format)
    expected = explain(flattening, images, SCORES, method, "second", labels=labels).raw
    assert_close(explain(viewing, images, SCORES, method, "second", labels=labels).raw, expected)


@pytest.mark.parametrize("method", ["hirescam", "ablationcam"])
def test_what_a_module_keeps_for_a_later_one_is_not_skipped(method: str) -> None:
    """Maps of some images only are made by what follows the layer alone, which must not read the notes on other images."""
    (reading, handing), (images, _) = twins(Noted), striped(6)
    labels = reading(images).argmax(1)
    labels[1] = (labels[1] + 1) % CLASSES
    expected = explain(handing, images, SCORES, method, "later", labels=labels).raw
    assert_close(explain(reading, images, SCORES, method, "later", labels=labels).raw, expected)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("layer", ["1", "2"])
def test_nets_of_other_arithmetic_give_the_same_maps(layer: str, dtype: torch.dtype, rounding: float) -> None:
    model, (images, labels) = pooled(), striped(4)
    expected = explain(model, images, SCORES, "hirescam", layer, labels=labels)
    maps = explain(model.to(dtype), images.to(dtype), SCORES, "hirescam", layer, labels=labels)
    assert maps.raw.dtype == np.float32
    np.testing.assert_allclose(maps.raw, expected.raw, rtol=0, atol=rounding * np.abs(expected.raw).max())
    np.testing.assert_allclose(maps.scores, expected.scores, rtol=0, atol=rounding * np.abs(expected.logits).max())
    assert (layer == "2") == bool(maps.completeness.max() < 1e-5)


@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "eigencam"])
def test_methods_with_and_without_gradients_go_together(method: str) -> None:
    model, (images, _) = pooled(), striped(3)
    maps = explain(model, images, [[0, 1]] * 3, ["layercam", method], "1")
    assert_close(maps.raw[:, 0], explain(model, images, 0, "layercam", "1").raw)
    assert_close(maps.raw[:, 1], explain(model, images, 1, method, "1").raw)


def test_the_sum_rule_is_relative_to_what_is_added_up_not_to_what_is_left() -> None:
    """After an instance norm each channel's mean is zero but for rounding, which isn't a map that misses its score."""
    model, (images, _) = pooled(nn.InstanceNorm2d(8), bias=False), striped(4)
    maps = explain(model, images, [[0, 1]] * 4, "cam", "3")
    assert maps.completeness.max() < 1e-6
    assert np.abs(maps.scores).max() < 1e-6 < np.abs(maps.raw).max()


def test_gradient_times_activation_misses_nothing_of_a_margin_of_zero() -> None:
    model, (images, _) = pooled(), striped(3)
    maps = explain(model, images, Margin("predicted", "predicted"), "hirescam", "1")
    assert not maps.scores.any() and not maps.raw.any()
    np.testing.assert_array_equal(maps.completeness, 0)


def test_a_model_that_is_put_into_training_mode_inside_with_is_refused_and_learns_nothing() -> None:
    model, (images, _) = pooled(nn.BatchNorm2d(8)), striped(2)
    before = [buffer.clone() for buffer in model.buffers()]
    with Heatmaps(model) as h:
        h(images)
        model.train()
        with pytest.raises(SightlineError, match="training mode inside `with Heatmaps`"):
            h(images)
    assert model.training and all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def test_auto_precision_is_fp32_where_an_operator_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "has_bfloat16", lambda _: True)

    def refuse(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not implemented for 'BFloat16'")

    model, (images, _) = pooled(), striped(2)
    expected = explain(model, images).raw
    model.register_forward_pre_hook(refuse)
    with Heatmaps(model, precision="auto") as h:
        assert h(images[:0]).raw.shape == (0, *expected.shape[1:])
        assert h.precision == "auto"  # nothing can be timed without images
        np.testing.assert_array_equal(h(images).raw, expected)
        assert h.precision == "fp32"


def test_auto_precision_tries_no_bfloat16_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    def watch(module: nn.Module, inputs: tuple[Tensor]) -> None:
        assert not torch.is_autocast_enabled("cpu")

    model, (images, _) = pooled(), striped(2)
    model.register_forward_pre_hook(watch)
    monkeypatch.setattr(engine, "has_bfloat16", lambda _: False)
    with Heatmaps(model, precision="auto") as h:
        h(images)
        assert h.precision == "fp32"


@pytest.mark.parametrize("method", METHODS)
def test_no_images_give_no_maps_of_the_same_form(method: str) -> None:
    model, (images, labels) = pooled(), striped(2)
    some, none = (explain(model, images[:n], SCORES[:2], method, "2", labels=labels[:n]) for n in (2, 0))
    for name in ("raw", "scores", "targets", "completeness", "logits"):
        assert getattr(none, name).shape == (0, *getattr(some, name).shape[1:])


def test_a_module_that_returns_a_number_is_passed_over() -> None:
    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.penalty = pooled(), nn.MSELoss()

        def forward(self, x: Tensor) -> Tensor:
            self.penalty(x, x.flip(3))
            logits: Tensor = self.net(x)
            return logits

    model, (images, _) = Penalised(), striped(2)
    assert_close(explain(model, images, 0, "ablationcam").raw, explain(model.net, images, 0, "ablationcam").raw)


def test_a_model_of_many_image_sizes_leaves_no_activations_behind() -> None:
    def alive() -> int:
        gc.collect()
        return sum(thing.untyped_storage().nbytes() for thing in gc.get_objects() if type(thing) is Tensor)

    with Heatmaps(pooled(), "1") as h:
        before = alive()
        for side in range(24, 32):
            h(torch.randn(1, 3, side, side))
        assert alive() - before < 8 * 24 * 24  # bytes: less than one channel of one image a size


def test_a_module_that_takes_no_hooks_leaves_none_on_the_others() -> None:
    class Sealed(nn.Identity):
        def register_forward_hook(self, *arguments: Any, **options: Any) -> Any:
            raise RuntimeError("takes no hooks")

    model = nn.Sequential(pooled(), Sealed())
    with pytest.raises(DataError, match="takes no hooks"):
        explain(model, striped(1)[0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "error", [AssertionError("height (32) doesn't match (224)"), ValueError("224 pixels, please"), AssertionError()]
)
def test_a_check_of_the_models_own_is_an_error_in_one_line(error: Exception) -> None:
    def refuse(module: nn.Module, inputs: tuple[Tensor]) -> None:
        raise error

    model = pooled()
    model.register_forward_pre_hook(refuse)
    with pytest.raises(DataError, match="doesn't take 3×32×32 images") as caught:
        explain(model, striped(1)[0])
    assert (str(error) or "AssertionError") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (True, "not torch.bool"),
        (["predicted", "embedding"], "explain it on its own"),
        (Margin("predicted", Margin(0, 1)), "N = 3"),  # type: ignore[arg-type]
        (Margin("predicted", len), "class indices"),  # type: ignore[arg-type]
    ],
)
def test_targets_without_a_meaning_are_refused(targets: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        explain(pooled(), striped(3)[0], targets)


@pytest.mark.parametrize("method", [None, len])
def test_what_is_no_method_is_refused(method: Any) -> None:
    with pytest.raises(RecipeError, match="unknown method"):
        explain(pooled(), striped(1)[0], method=method)


def test_full_grad_says_that_its_map_is_of_the_input() -> None:
    maps = explain(pooled(), striped(1)[0], 0, "fullgrad", "1")
    assert (maps.layer, maps.raw.shape) == ("input", (1, 32, 32))


def test_output_reads_a_dict_by_its_keys_even_where_they_are_methods() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = pooled()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"values": self.net(x), "keys": x.flatten(1)}

    model, (images, _) = Named(), striped(2)
    assert_close(explain(model, images, 1, "layercam", output="values").raw, explain(model.net, images, 1, "layercam").raw)
