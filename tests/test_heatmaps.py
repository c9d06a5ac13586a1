"""Grad-CAM against captum, closed forms and literal loops; drawing against literal NumPy; the model left as it was."""

from __future__ import annotations

import io
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from PIL import Image
from torch import Tensor, nn

from cams import assert_close
from sightline.exceptions import DataError, RecipeError, SightlineError
from sightline.heatmaps import Heatmaps, Maps, Margin, overlay
from sightline.heatmaps.drawing import diverging
from sightline.models import BasicBlock, FastNet, ResNet, SmallNet

CLASSES = 5


def vgg() -> nn.Module:
    """Convolutions whose outputs the next activation overwrites in place, then a hidden layer: no closed form."""
    features = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(4),
    )
    head = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(inplace=True), nn.Linear(20, CLASSES))
    return nn.Sequential(features, head)


NETS = {
    "resnet": lambda: ResNet(BasicBlock, (1, 1, 1, 1), classes=CLASSES, width=8),
    "smallnet": lambda: SmallNet(classes=CLASSES, width=8),
    "fastnet": lambda: FastNet(classes=CLASSES, width=4),
    "vgg": vgg,
}
LAYERS = {
    "resnet": ("layer2", "layer3", "layer4"),
    "smallnet": ("layer2", "layer3"),
    "fastnet": ("layer2", "layer3"),
    "vgg": ("0.3", "0.6", "0.7"),
}


def random_images(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def build(net: str, steps: int = 0) -> nn.Module:
    """A net in evaluation mode with random weights, or after `steps` of training to tell where an image is bright."""
    torch.manual_seed(0)
    model = NETS[net]()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        images, labels = torch.randn(32, 3, 32, 32), torch.randint(0, CLASSES, (32,))
        for image, label in zip(images, labels, strict=True):
            image[:, 6 * label : 6 * label + 6] += 2
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return model.eval().requires_grad_(True)


@pytest.fixture
def model() -> nn.Module:
    return build("smallnet")


pytestmark = pytest.mark.usefixtures("one_thread")


def explain(model: nn.Module, images: Tensor, targets: Any = "predicted", layer: str = "auto", **options: Any) -> Maps:
    with Heatmaps(model, layer) as h:
        return h(images, targets, **options)


# --- values ---


@pytest.mark.parametrize("steps", [0, 15])
@pytest.mark.parametrize(("net", "layer"), [(net, layer) for net, layers in LAYERS.items() for layer in layers])
def test_raw_maps_equal_captums_layer_grad_cam(net: str, layer: str, steps: int) -> None:
    model, images = build(net, steps), random_images()
    targets = torch.arange(6) % CLASSES
    reference = LayerGradCam(model, model.get_submodule(layer)).attribute(images, targets, relu_attributions=False)
    maps = explain(model, images, targets, layer)
    assert maps.raw.dtype == np.float32
    assert maps.raw.min() < 0 < maps.raw.max()
    assert_close(maps.raw, reference[:, 0].detach())
    assert_close(maps.logits, model(images).detach())


def test_two_convolution_net_by_hand() -> None:
    """conv1 → ReLU → conv2 (3×3, zero padding) → mean: conv2's tap at offset a, b reaches (5 − |a|)(4 − |b|) cells."""
    rng = np.random.default_rng(0)
    conv1, conv2, image = (rng.normal(size=s).astype(np.float32) for s in ((2, 1, 3, 3), (3, 2, 3, 3), (5, 4)))
    padded = np.pad(image, 1)
    activations, expected = np.zeros((2, 5, 4)), np.zeros((3, 5, 4))
    for k, i, j in np.ndindex(2, 5, 4):
        activations[k, i, j] = max(0, (conv1[k, 0] * padded[i : i + 3, j : j + 3]).sum())
    for c, k in np.ndindex(3, 2):
        reached = sum(float(conv2[c, k, a + 1, b + 1]) * (5 - abs(a)) * (4 - abs(b)) for a, b in product((-1, 0, 1), repeat=2))
        expected[c] += reached / 20 / 20 * activations[k]  # the mean over 20 outputs, then over 20 cells
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    model.load_state_dict({"0.weight": torch.tensor(conv1), "2.weight": torch.tensor(conv2)})
    maps = explain(model, torch.tensor(image)[None, None], [[0, 1, 2]], layer="1")
    assert_close(maps.raw[0], expected)


def test_maps_before_average_pool_and_linear_sum_to_the_logit() -> None:
    model, images = build("resnet", steps=15), random_images()
    maps = explain(model, images, torch.arange(CLASSES).expand(6, -1), layer="layer4")
    bias = model.get_parameter("fc.bias").detach().numpy()
    assert_close(maps.raw.sum((2, 3)) + bias, maps.logits)


def test_predicted_targets_are_the_largest_logits(model: nn.Module) -> None:
    images = random_images()
    maps = explain(model, images)
    predicted = model(images).argmax(1)
    assert maps.targets.tolist() == predicted.tolist()
    np.testing.assert_array_equal(maps.raw, explain(model, images, predicted).raw)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_several_targets_an_image_equal_one_at_a_time(model: nn.Module, kind: type) -> None:
    images, pairs = random_images(3), [[0, 1], [4, 2], [3, 3]]
    maps = explain(model, images, kind(pairs))
    assert maps.targets.tolist() == pairs
    for t in range(2):
        np.testing.assert_array_equal(maps.raw[:, t], explain(model, images, [pair[t] for pair in pairs]).raw)


@pytest.mark.parametrize("options", [{}, {"aug_smooth": True}, {"eigen_smooth": True}])
@pytest.mark.parametrize("net", NETS)
def test_batch_equals_one_by_one_in_any_order(net: str, options: dict[str, bool]) -> None:
    model, images, targets = build(net), random_images(), [0, 1, 2, 3, 4, 0]
    batch = explain(model, images, targets, **options).raw
    single = [explain(model, images[i : i + 1], targets[i : i + 1], **options).raw[0] for i in reversed(range(6))]
    assert_close(batch, np.stack(single[::-1]))


def test_flipping_the_input_of_a_symmetric_net_flips_the_map(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(3)) / 2
    images = random_images()
    raw = explain(model, images, [0] * 6).raw
    assert np.abs(raw - raw[..., ::-1]).max() > 0.1 * np.abs(raw).max()
    assert_close(explain(model, images.flip(3), [0] * 6).raw, raw[..., ::-1])


# --- smoothing ---


def test_aug_smooth_is_the_mean_of_six_views_of_one_class() -> None:
    model, images = build("vgg"), random_images(64)
    plain = explain(model, images)
    assert (explain(model, images.flip(3)).targets != plain.targets).any(), "some view must predict another class"
    total = np.zeros_like(plain.raw)
    for scale in (0.9, 1.0, 1.1):
        total += explain(model, scale * images, plain.targets).raw
        total += explain(model, scale * images.flip(3), plain.targets).raw[..., ::-1]
    smooth = explain(model, images, aug_smooth=True)
    assert_close(smooth.raw, total / 6)
    np.testing.assert_array_equal(smooth.logits, plain.logits)


def test_eigen_smooth_is_the_first_principal_component_with_the_plain_maps_sign() -> None:
    model, images = build("vgg", steps=15), random_images()
    stored: list[Tensor] = []
    with model.get_submodule("0.4").register_forward_hook(lambda module, inputs, output: stored.append(output)):
        logits = model(images)
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), stored)
    weighted = (gradient.mean((2, 3), keepdim=True) * stored[0]).detach().numpy()
    plain, smooth = (explain(model, images, [2] * 6, "0.4", eigen_smooth=e).raw for e in (False, True))
    for i in range(6):
        cells = weighted[i].reshape(len(weighted[i]), -1).T.astype(np.float64)
        covariance = np.cov(cells, rowvar=False)
        component = (cells - cells.mean(0)) @ np.linalg.eigh(covariance)[1][:, -1]
        component *= np.sign(np.corrcoef(component, plain[i].ravel())[0, 1])
        assert_close(smooth[i], component.reshape(16, 16))


# --- which layer ---


@pytest.mark.parametrize(
    ("net", "side", "expected"),
    [("resnet", 32, "layer3"), ("resnet", 64, "layer4"), ("resnet", 16, "layer2"), ("smallnet", 32, "layer3")],
)
def test_auto_is_the_last_layer_with_more_than_4x4_cells(net: str, side: int, expected: str) -> None:
    assert explain(build(net), torch.randn(1, 3, side, side)).layer == expected


def test_auto_prefers_the_outermost_and_then_the_last_module_of_a_tensor() -> None:
    assert explain(build("vgg"), random_images()).layer == "0.7"  # 0.6's tensor, which 0.7 overwrites in place


@pytest.mark.parametrize(("stride", "expected"), [(2, "relu"), (8, "first")])
def test_auto_judges_a_layer_that_runs_again_by_its_last_run(stride: int, expected: str) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, CLASSES, 3, stride), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.second(self.relu(self.first(x)))).mean((2, 3))

    maps = explain(Shared(), random_images())
    assert (maps.layer, maps.raw.shape[1]) == (expected, {"relu": 14, "first": 30}[expected])


def test_unknown_layer_names_the_nearest(model: nn.Module) -> None:
    with pytest.raises(RecipeError, match=r"no layer 'layer33': use 'auto', or one such as layer3,"):
        Heatmaps(model, "layer33")


def test_layer_without_spatial_extent_is_refused_with_alternatives() -> None:
    with pytest.raises(RecipeError, match=r"'fc' has no spatial extent .*: use 'layer3' \(8×8\) or 'layer2' \(16×16\)"):
        explain(build("resnet"), random_images(), layer="fc")
    with pytest.raises(RecipeError, match=r"returns \(64, 1, 1\)\): use 'layer1' \(8×8\)"):
        explain(build("resnet"), torch.randn(1, 3, 8, 8), layer="layer4")
    with pytest.raises(RecipeError, match=r"more than 4×4 cells on 4×4 images"):
        explain(build("resnet"), torch.randn(1, 3, 4, 4))


def test_layer_that_the_logits_do_not_depend_on_is_refused() -> None:
    class Aside(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            self.layer1(x)
            return self.fc(x.mean((2, 3)).repeat(1, 32))

    with pytest.raises(RecipeError, match="do not depend on layer 'layer1'"):
        explain(Aside(classes=2, width=12), random_images(), layer="layer1")
    with pytest.raises(RecipeError, match=r"do not depend on layer 'layer1': use larger images"):
        explain(Aside(classes=2, width=12).requires_grad_(False), random_images(), layer="layer1")


# --- the model comes back as it was ---


def state(model: nn.Module) -> list[object]:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    values = [(p.requires_grad, p.sum().item(), p.stride()) for p in (*model.parameters(), *model.buffers())]
    gradients = [p.grad if p.grad is None else p.grad.sum().item() for p in model.parameters()]
    return [torch.is_grad_enabled(), [m.training for m in model.modules()], hooks, values, gradients]


@pytest.fixture
def used() -> nn.Module:
    """A net in the middle of a training: some modules frozen, some gradients there, channels last."""
    model = build("resnet").to(memory_format=torch.channels_last).train()
    model.layer3.eval()
    model.layer1.requires_grad_(False)
    model(random_images()).sum().backward()
    model.fc.weight.grad = None
    return model


def test_model_comes_back_as_it_was(used: nn.Module) -> None:
    before, expected = state(used), explain(build("resnet"), random_images()).layer
    with Heatmaps(used) as h:
        assert not any(module.training for module in used.modules())
        for options in ({}, {"aug_smooth": True}, {"eigen_smooth": True}):
            assert h(random_images(), **options).layer == expected
        assert not any(module._forward_hooks for module in used.modules())
    assert state(used) == before


def test_exceptions_pass_through_and_leave_the_model_as_it_was(used: nn.Module) -> None:
    before = state(used)
    with pytest.raises(ZeroDivisionError), Heatmaps(used):
        raise ZeroDivisionError
    assert state(used) == before
    with pytest.raises(DataError, match=r"doesn't take 7×32×32 images .*channels"), Heatmaps(used) as h:
        h(torch.randn(1, 7, 32, 32))
    assert state(used) == before

    def fail(module: nn.Module, inputs: tuple[Tensor], output: object) -> None:
        if len(inputs[0]) > 1:  # the real pass, not the one that looks for the layer
            raise ZeroDivisionError

    handle = used.get_submodule("layer4").register_forward_hook(fail)
    with handle, pytest.raises(ZeroDivisionError), Heatmaps(used) as h:
        h(random_images())
    assert state(used) == before


@pytest.mark.parametrize("caller", [torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)])
def test_maps_do_not_depend_on_the_callers_modes(model: nn.Module, caller: torch.no_grad) -> None:
    expected = explain(model, random_images()).raw
    with caller:
        images = random_images()
        enabled = torch.is_grad_enabled()
        raw = explain(model, images).raw
        assert torch.is_grad_enabled() == enabled
    np.testing.assert_array_equal(raw, expected)


@pytest.mark.parametrize("net", NETS)
def test_maps_do_not_depend_on_frozen_parameters_or_the_models_mode(net: str) -> None:
    model = build(net)
    expected = explain(model, random_images()).raw
    np.testing.assert_array_equal(explain(model.train().requires_grad_(False), random_images()).raw, expected)


def test_outside_with_there_are_no_maps(model: nn.Module) -> None:
    heatmaps = Heatmaps(model)
    with pytest.raises(SightlineError, match="inside `with Heatmaps"):
        heatmaps(random_images())
    with heatmaps:
        heatmaps(random_images())
    with pytest.raises(SightlineError, match="inside `with Heatmaps"):
        heatmaps(random_images())


# --- bad input ---


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("true", "the true class of these images isn't known: give labels="),
        ("predictedd", "unknown target 'predictedd': did you mean 'predicted'"),
        ([0, 1], r"whole numbers \(N,\) or \(N, T\) for N = 6 images, not torch.int64 of shape \(2,\)"),
        ([0.0] * 6, "not torch.float64"),
        ([[]] * 6, r"shape \(6, 0\)"),
        (5, "no class 5: targets go from 0 to 4"),
        ([0, 1, 2, 3, 4, 5], "no class 5: targets go from 0 to 4"),
        ([0, 1, 2, 3, 4, -1], "no class -1"),
    ],
)
def test_bad_targets_are_refused(model: nn.Module, targets: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        explain(model, random_images(), targets)


def test_bad_images_are_refused(model: nn.Module) -> None:
    with pytest.raises(DataError, match=r"not torch.uint8 of shape \(1, 3, 32, 32\): normalise"):
        explain(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"shape \(3, 32, 32\)"):
        explain(model, random_images()[0])
    images = random_images()
    images[4, 0, 10, 10] = torch.nan
    with pytest.raises(DataError, match="image 4 of the batch"):
        explain(model, images)


def test_model_without_logits_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"need logits \(N, classes\), and the model returns a tensor \(1, 4, 30, 30\)"):
        explain(nn.Sequential(nn.Conv2d(3, 4, 3)), random_images())


# --- drawing ---


def test_a_margin_is_drawn_by_diverging_and_a_class_by_overlay(model: nn.Module) -> None:
    images_NHWC = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    maps = explain(model, random_images(), ("predicted", Margin(1, 3)))
    drawn = maps.overlay(images_NHWC, 0.5)
    np.testing.assert_array_equal(drawn[:, 0], overlay(maps.raw[:, 0], images_NHWC, 0.5))
    np.testing.assert_array_equal(drawn[:, 1], diverging(maps.raw[:, 1], images_NHWC))
    margin = explain(model, random_images(), Margin(1, 3), method="hirescam")
    np.testing.assert_array_equal(margin.overlay(images_NHWC), diverging(margin.raw, images_NHWC))


def test_a_notebook_shows_the_image_and_its_maps(model: nn.Module) -> None:
    """Eight rows at most; each picture enlarged five times, 8 pixels apart, as `sheet` lays them out."""
    images_NHWC = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    maps = explain(model, random_images(9), ("predicted", Margin(1, 3)))
    shown = np.asarray(Image.open(io.BytesIO(maps.picture(images_NHWC))))
    for column, expected in enumerate((images_NHWC[0], *maps.overlay(images_NHWC)[0])):
        left = 8 + column * 168
        np.testing.assert_array_equal(shown[8:168, left : left + 160], expected.repeat(5, 0).repeat(5, 1))
    alone = np.asarray(Image.open(io.BytesIO(maps._repr_png_())))
    assert alone.shape == (shown.shape[0], shown.shape[1] - 168, 3)
    grey = diverging(maps.raw[:1], np.full((1, 160, 160, 3), 128, np.uint8))[0]
    np.testing.assert_array_equal(alone[8:168, 8:168], grey[0])


def test_overlay_of_maps_is_that_of_their_raw_values(model: nn.Module) -> None:
    images_NHWC = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    maps = explain(model, random_images(), [[0, 1]] * 6)
    expected = overlay(maps.raw, images_NHWC, 0.5, "cividis")
    np.testing.assert_array_equal(maps.overlay(images_NHWC, 0.5, "cividis"), expected)
    np.testing.assert_array_equal(maps.overlay(images_NHWC)[:, 0], maps.overlay(images_NHWC, 0.725, "inferno")[:, 0])
    np.testing.assert_array_equal(maps.overlay(images_NHWC, 1.0)[:, 1], images_NHWC)


def test_heatmaps_are_not_opened_twice() -> None:
    model = SmallNet(classes=3).train()
    heatmaps = Heatmaps(model)
    with heatmaps, pytest.raises(SightlineError, match="open already"), heatmaps:
        pass
    assert model.training
