"""Every method against a second, literal implementation of its paper's formula, and against closed forms worked out by hand."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from cams import (
    CLASSES,
    FORMULAS,
    Opaque,
    activations_and_gradients,
    assert_close,
    assert_each_close,
    build,
    cam,
    explain,
    finer,
    fullgrad,
    gradcam,
    hirescam,
    literal,
    logit,
    logits_of,
    margin,
    numbers,
    principal_component,
    smooth_gradcam_plus_plus,
    striped,
    value,
)
from sightline.exceptions import RecipeError
from sightline.heatmaps import METHODS, Heatmaps, Maps, Margin, upsample
from sightline.models import SmallNet

NO_CLASS = ("eigencam",)  # no method but this one is blind to the target
LITERAL = (*FORMULAS, "scorecam", "ablationcam", "eigencam", "fullgrad")
CASES = (
    ("resnet", 15, "layer3"),
    ("smallnet", 0, "layer3"),
    ("fastnet", 0, "layer3"),
    ("vgg", 15, "features.4"),
    ("densenet", 0, "growth"),
)


pytestmark = pytest.mark.usefixtures("one_thread")


# --- the literal formulas are themselves right ---


def test_the_literal_grad_cam_equals_captums() -> None:
    for net, steps, layer in CASES:
        model, image = build(net, steps), striped(1)[0]
        expected = LayerGradCam(model, model.get_submodule(layer)).attribute(image, 2)
        assert_close(gradcam(*activations_and_gradients(model, layer, image[0], logit(2))), numbers(expected)[0, 0])


# --- each method against its literal twin ---


@pytest.mark.parametrize("method", LITERAL)
@pytest.mark.parametrize(("net", "steps", "layer"), CASES)
def test_maps_of_classes_equal_the_literal_formula(net: str, steps: int, layer: str, method: str) -> None:
    model, (images, _) = build(net, steps), striped(3)
    classes = [4, 0, 2]
    maps = explain(model, images, classes, method, layer)
    assert maps.raw.dtype == np.float32
    assert maps.method == method
    expected = [literal(method, model, layer, image, logit(c)) for image, c in zip(images, classes, strict=True)]
    assert_each_close(maps.raw, expected)


@pytest.mark.parametrize("method", [m for m in LITERAL if m not in NO_CLASS])
def test_maps_of_the_margin_equal_the_literal_formula(method: str) -> None:
    model, (images, _) = build("resnet", 15), striped(3)
    a, b = [0, 1, 2], [3, 0, 4]
    raw = explain(model, images, Margin(a, b), method, "layer3").raw
    expected = [literal(method, model, "layer3", image, margin(*pair)) for image, *pair in zip(images, a, b, strict=True)]
    assert_each_close(raw, expected)


@pytest.mark.parametrize("method", [m for m in LITERAL if m not in NO_CLASS])
def test_maps_of_a_function_of_the_logits_equal_the_literal_formula(method: str) -> None:
    def confidence(logits: Tensor) -> Tensor:
        return logits.log_softmax(1)[:, 1]

    model, (images, _) = build("vgg", 15), striped(3)
    maps = explain(model, images, confidence, method, "features.5")
    expected = [literal(method, model, "features.5", image, lambda y: confidence(y)[0]) for image in images]
    assert_each_close(maps.raw, expected)
    assert maps.targets.tolist() == [-1, -1, -1]
    assert_close(maps.scores, model(images).log_softmax(1)[:, 1].detach())


@pytest.mark.parametrize("net", ["resnet", "vgg", "densenet"])
def test_finer_cam_equals_the_literal_formula(net: str) -> None:
    model, (images, _) = build(net, 15), striped(4)
    classes = [0, 1, 2, 4]
    layer = {"resnet": "layer4", "vgg": "features.5", "densenet": "trunk"}[net]
    expected = [
        gradcam(*activations_and_gradients(model, layer, image, finer(logits_of(model, image), c)))
        for image, c in zip(images, classes, strict=True)
    ]
    assert_each_close(explain(model, images, classes, "finercam", layer).raw, expected)


def test_finer_cam_of_two_classes_compares_with_the_one_rival() -> None:
    torch.manual_seed(0)
    model, (images, _) = SmallNet(classes=2, width=8).eval(), striped(2)
    expected = [
        gradcam(*activations_and_gradients(model, "layer3", image, lambda y: y[0, 1] - 0.6 * y[0, 0])) for image in images
    ]
    assert_each_close(explain(model, images, 1, "finercam", "layer3").raw, expected)


def test_cam_is_the_weights_times_the_activations() -> None:
    model, (images, _) = build("resnet", 15), striped(3)
    weights = numbers(model.fc.weight)
    A = [activations_and_gradients(model, "layer4", image, logit(0))[0] for image in images]
    assert_each_close(explain(model, images, 3, "cam", "layer4").raw, [cam(a, weights[3]) for a in A])
    raw = explain(model, images, Margin(3, 1), "cam", "layer4").raw
    assert_each_close(raw, [cam(a, weights[3] - weights[1]) for a in A])


@pytest.mark.parametrize(
    ("net", "layer"), [("vgg", "features.8"), ("resnet", "layer3"), ("densenet", "growth"), ("convnext", "stage2")]
)
def test_cam_is_refused_where_no_pool_and_linear_layer_follow(net: str, layer: str) -> None:
    with pytest.raises(RecipeError, match=r"(?i)cam[^\n]*linear"):
        explain(build(net), striped(1)[0], 0, "cam", layer)


def noisy_copies(model: nn.Module, image: Tensor, **options: Any) -> tuple[Maps, list[Tensor]]:
    """Smooth Grad-CAM++ of one image, and the noisy copies that the model was given meanwhile."""
    seen: list[Tensor] = []
    with model.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0].detach().clone())):
        maps = explain(model, image[None], 2, "smoothgradcam++", **options)
    return maps, [x for x in seen if 0 < float((x - image).std()) < 0.5]


@pytest.mark.parametrize(("net", "layer"), [("resnet", "layer3"), ("vgg", "features.5")])
def test_smooth_grad_cam_plus_plus_equals_the_literal_formula_on_the_same_noise(net: str, layer: str) -> None:
    model, image = build(net, 15), striped(1)[0][0]
    maps, noisy = noisy_copies(model, image, layer=layer)
    noise = torch.stack(noisy) - image
    assert len(noisy) == 8
    assert float(noise.std()) == pytest.approx(0.3, rel=0.03)
    assert abs(float(noise.mean())) < 0.01
    assert_close(maps.raw[0], smooth_gradcam_plus_plus(model, layer, image, logit(2), noisy))


def test_smooth_grad_cam_plus_plus_before_pool_and_linear_needs_no_noise() -> None:
    """The gradient of a class is the same whatever the image: the literal formula gives the same map for any noise."""
    model, image = build("resnet", 15), striped(1)[0][0]
    maps, noisy = noisy_copies(model, image, layer="layer4")
    copies = [image + 0.3 * torch.randn(image.shape, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    assert noisy == []
    assert_close(maps.raw[0], smooth_gradcam_plus_plus(model, "layer4", image, logit(2), copies))


def test_smooth_grad_cam_plus_plus_is_reproducible_and_leaves_the_random_state_alone() -> None:
    model, (images, _) = build("smallnet"), striped(3)
    torch.manual_seed(1)
    first = explain(model, images, 0, "smoothgradcam++").raw
    drawn = torch.rand(3)
    torch.manual_seed(2)
    np.testing.assert_array_equal(explain(model, images, 0, "smoothgradcam++").raw, first)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)


# --- by hand ---


def pool_and_linear(weight: list[list[float]], bias: list[float]) -> Any:
    """The image itself is the activation; then global average and linear."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, len(weight)))
    model.load_state_dict(
        {"0.weight": torch.eye(2)[..., None, None], "3.weight": torch.tensor(weight), "3.bias": torch.tensor(bias)}
    )
    return model


# Two channels of 2×2 cells, which sum to 10 and to 0; class 0 has the weights 1 and −2, so that g = 1/4 and −1/2.
FIRST, SECOND = np.array([[1, 2], [3, 4]]), np.array([[0, 1], [0, -1]])
BY_HAND = {
    "cam": FIRST - 2 * SECOND,
    "gradcam": FIRST / 4 - SECOND / 2,
    "hirescam": FIRST / 4 - SECOND / 2,
    "layercam": FIRST / 4,
    "xgradcam": FIRST / 4,  # the second channel sums to 0
    "gradcam++": FIRST * 4 * (1 / 4) / (2 + 10 / 4),  # α = 1 / (2 + S g); the second gradient is negative
    "ablationcam": FIRST * 2.5,  # the mean of the first channel is 2.5, that of the second 0
    "finercam": (1 - 0.6 * 3) * FIRST / 4 + (-2 - 0.6 * 1) * SECOND / 4,  # the only rival has the weights 3 and 1
}


@pytest.mark.parametrize(("method", "hidden"), [pair for pair in product(BY_HAND, (False, True)) if pair != ("cam", True)])
def test_maps_of_a_net_of_two_channels_by_hand(method: str, hidden: bool) -> None:
    model = pool_and_linear([[1, -2], [3, 1]], [0.5, -0.5])
    if hidden:
        model[3] = Opaque(model[3])
    image = torch.tensor(np.stack((FIRST, SECOND)), dtype=torch.float32)[None]
    maps = explain(model, image, 0, method, "0")
    assert_close(maps.raw[0], BY_HAND[method])
    assert maps.logits[0].tolist() == [3, 7]


# --- closed form and general path ---


def opaque(model: Any) -> Any:
    """The same net with a head that isn't an nn.Linear."""
    model = copy.deepcopy(model)
    model.fc = Opaque(model.fc)
    return model


@pytest.mark.parametrize(
    ("method", "targets"),
    [pair for pair in product(METHODS, (3, "margin")) if pair[0] != "cam" and pair != ("finercam", "margin")],
)
def test_the_closed_form_equals_the_general_path(method: str, targets: Any) -> None:
    model, (images, labels) = build("resnet", 15), striped(4)
    labels = (labels + 1) % CLASSES
    closed, general = (explain(m, images, targets, method, "layer4", labels=labels) for m in (model, opaque(model)))
    assert_each_close(closed.raw, general.raw)
    assert_close(closed.scores, general.scores)


class LocallyLinear(nn.Module):
    """fc(relu(mean(A))): where all means are positive the gradient is that of pool and linear, elsewhere it isn't."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, CLASSES)
        self.conv.load_state_dict({"weight": self.conv.weight.data, "bias": torch.full((3,), 2.0)})

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.conv(x).mean((2, 3))))
        return logits


@pytest.mark.parametrize("method", ["gradcam", "layercam", "ablationcam"])
def test_a_head_that_is_linear_for_some_images_only_is_not_taken_for_linear(method: str) -> None:
    torch.manual_seed(0)
    model, noise = LocallyLinear(), torch.randn(2, 3, 8, 8)
    images = noise - torch.tensor([0.0, 20.0])[:, None, None, None] * model.conv.weight.data[1].sign()
    assert (model.conv(images).mean((2, 3)) > 0).tolist()[0] == [True, True, True]
    assert not (model.conv(images).mean((2, 3)) > 0)[1, 1]
    expected = [literal(method, model, "conv", image, logit(1)) for image in images]
    assert_each_close(explain(model, images, 1, method, "conv").raw, expected)


class ReadsTheImageAgain(nn.Module):
    """What follows the layer reads the image too: the layer's output alone doesn't tell the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(9, 9), nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((torch.relu(self.conv(x)).sum((2, 3)) / 100, x.amax((2, 3))), 1)
        logits: Tensor = self.fc(torch.tanh(self.hidden(both)))
        return logits


@pytest.mark.parametrize("method", ["gradcam", "ablationcam", "scorecam"])
def test_a_net_that_reads_its_image_again_after_the_layer_is_explained_rightly(method: str) -> None:
    torch.manual_seed(0)
    model, (images, _) = ReadsTheImageAgain(), striped(3)
    expected = [literal(method, model, "conv", image, logit(1)) for image in images]
    assert_each_close(explain(model, images, 1, method, "conv").raw, expected)


def test_full_grad_adds_a_bias_along_the_channels_wherever_they_are() -> None:
    """A linear layer on the last of (N, 8, 8, 8): heights, widths and channels can be told apart by the layer's kind only."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.mix(torch.relu(self.conv(x)).permute(0, 2, 3, 1)))
            logits: Tensor = self.fc(y.amax((1, 2)))
            return logits

    torch.manual_seed(0)
    model, images = Last(), torch.randn(2, 3, 8, 8)
    maps = explain(model, images, 1, "fullgrad", "conv")
    literals = [fullgrad(model, image, logit(1)) for image in images]
    assert_each_close(maps.raw, [full for full, _ in literals])
    assert [total for _, total in literals] == pytest.approx(model(images)[:, 1].tolist(), rel=1e-5)
    assert maps.completeness.max() < 1e-5


# --- what maps sum to ---


def test_the_margin_map_before_pool_and_linear_sums_to_the_logit_margin() -> None:
    model, (images, labels) = build("resnet", 15), striped(8)
    labels = (labels + torch.arange(8) % 3) % CLASSES
    maps = explain(model, images, "margin", layer="layer4", labels=labels)
    predicted = maps.logits.argmax(1)
    rows, bias = np.arange(8), numbers(model.fc.bias)
    expected = maps.logits[rows, predicted] - maps.logits[rows, labels]
    assert (expected > 0).any()
    assert_close(maps.raw.sum((1, 2)) + bias[predicted] - bias[labels], expected)
    assert_close(maps.scores, expected)
    assert maps.completeness.max() < 1e-5


def test_the_mean_of_cam_and_the_bias_are_the_logit() -> None:
    model, (images, _) = build("resnet", 15), striped(3)
    maps = explain(model, images, np.tile(np.arange(CLASSES), (3, 1)), "cam", "layer4")
    assert_close(maps.raw.mean((2, 3)) + numbers(model.fc.bias), maps.logits)
    assert maps.completeness.max() < 1e-5


def test_the_margin_is_exactly_zero_where_the_prediction_is_true() -> None:
    model, (images, _) = build("resnet", 15), striped(4)
    for layer, method in product(("layer3", "layer4"), ("gradcam", "hirescam", "layercam", "gradcam++", "ablationcam")):
        maps = explain(model, images, "margin", method, layer, labels=model(images).argmax(1))
        assert not maps.raw.any()
        assert not maps.scores.any()


@pytest.mark.parametrize("method", ["hirescam", "xgradcam"])
def test_completeness_elsewhere_is_what_gradient_times_activation_lacks_of_the_score(method: str) -> None:
    model, (images, _) = build("vgg", 15), striped(3)
    maps = explain(model, images, 2, method, "features.5")
    sums = np.array([hirescam(*activations_and_gradients(model, "features.5", image, logit(2))).sum() for image in images])
    scores = np.array([value(model, image, logit(2)) for image in images])
    assert (np.abs(scores - sums) > 1e-3 * np.abs(scores)).all()
    np.testing.assert_allclose(maps.completeness, np.abs(scores - sums) / np.abs(scores), rtol=1e-3)
    assert_close(maps.scores, scores)


def test_completeness_of_full_grad_is_tiny_for_affine_layers_and_relus() -> None:
    model, (images, _) = build("smallnet", 15), striped(3)
    for image in images:
        assert fullgrad(model, image, logit(1))[1] == pytest.approx(value(model, image, logit(1)), rel=1e-5, abs=1e-5)
    assert explain(model, images, 1, "fullgrad").completeness.max() < 1e-4


@pytest.mark.parametrize("method", ["layercam", "gradcam++", "eigencam", "scorecam", "ablationcam"])
def test_methods_whose_maps_sum_to_nothing_have_no_completeness(method: str) -> None:
    model, (images, _) = build("smallnet"), striped(2)
    assert np.isnan(explain(model, images, 1, method, "layer3").completeness).all()


def test_a_skip_past_the_layer_shows_in_the_completeness() -> None:
    """fc(mean(layer) + mean(before)): the gradient is that of pool and linear, yet the map doesn't sum to the logit."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.fc = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            logits: Tensor = self.fc(self.second(x).mean((2, 3)) + x.mean((2, 3)))
            return logits

    torch.manual_seed(0)
    model, (images, _) = Skip(), striped(3)
    maps = explain(model, images, 1, "hirescam", "second")
    A = [activations_and_gradients(model, "second", image, logit(1)) for image in images]
    assert_each_close(maps.raw, [hirescam(*pair) for pair in A])
    assert (maps.completeness > 0.05).all()


# --- identities at the last block ---


def test_methods_coincide_before_pool_and_linear() -> None:
    model, (images, _) = build("resnet", 15), striped(3)
    raw = {m: explain(model, images, 2, m, "layer4").raw for m in METHODS}
    n = raw["cam"][0].size
    for method in ("gradcam", "hirescam", "xgradcam"):
        assert_close(raw[method], raw["cam"] / n)
    weight = numbers(model.fc.weight)[2]
    A = np.stack([activations_and_gradients(model, "layer4", image, logit(2))[0] for image in images])
    assert_close(raw["layercam"], np.einsum("k,nkij->nij", np.maximum(weight, 0), A) / n)
    assert_close(raw["ablationcam"], np.einsum("k,nk,nkij->nij", weight, A.mean((2, 3)), A))
    sums = A.sum((2, 3))
    factor = np.where(weight > 0, weight, 0) / (2 + sums * weight / n)
    assert_close(raw["gradcam++"], np.einsum("nk,nkij->nij", factor, A))


# --- targets ---


def test_targets_side_by_side_equal_one_at_a_time() -> None:
    model, (images, labels) = build("resnet", 15), striped(4)
    labels = (labels + 1) % CLASSES

    def confidence(logits: Tensor) -> Tensor:
        return logits.softmax(1).amax(1)

    targets = ["predicted", "true", "margin", Margin("true", 0), confidence, 3]
    for layer in ("layer3", "layer4"):
        together = explain(model, images, targets, "gradcam", layer, labels=labels)
        assert together.raw.shape[:2] == together.scores.shape == together.targets.shape == (4, 6)
        for t, target in enumerate(targets):
            alone = explain(model, images, target, "gradcam", layer, labels=labels)
            assert_close(together.raw[:, t], alone.raw)
            assert_close(together.scores[:, t], alone.scores)
            assert together.targets[:, t].tolist() == alone.targets.tolist()
    predicted = model(images).argmax(1)
    assert together.targets[:, 0].tolist() == predicted.tolist()
    assert together.targets[:, 1].tolist() == labels.tolist()
    assert (together.targets[:, [2, 3, 4]] == -1).all()
    assert together.targets[:, 5].tolist() == [3] * 4


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("cam", "finercam")])
def test_predicted_true_and_margin_equal_one_at_a_time_for_every_method(method: str) -> None:
    model, (images, labels) = build("smallnet", 15), striped(3)
    labels = (labels + 1) % CLASSES
    together = explain(model, images, ("predicted", "true", "margin"), method, "layer3", labels=labels)
    for t, target in enumerate(("predicted", "true", "margin")):
        alone = explain(model, images, target, method, "layer3", labels=labels)
        assert_each_close(together.raw[:, t], alone.raw)


def test_the_embedding_is_explained_by_half_its_squared_length() -> None:
    """The gradient of |e|²/2 is e itself, and after pool and linear the map sums to |e|², which is the score."""
    model, (images, _) = build("vgg", 15), striped(2)
    classifier, model.classifier[2] = model.classifier[2], nn.Identity()
    pairs = [activations_and_gradients(model, "features.5", image, lambda e: e.square().sum() / 2) for image in images]
    lengths = [value(model, image, lambda e: e.square().sum()) for image in images]
    model.classifier[2] = classifier
    maps = explain(model, images, "embedding", layer="features.5")
    assert_each_close(maps.raw, [gradcam(*pair) for pair in pairs])
    assert_close(maps.scores, lengths)
    assert maps.targets.tolist() == [-1, -1]
    assert_close(maps.logits, model(images).detach())
    linear = explain(build("resnet", 15), images, "embedding", layer="layer4")
    assert_close(linear.raw.sum((1, 2)), linear.scores)
    assert linear.completeness.max() < 1e-5


# --- several layers and smoothing ---


def test_several_layers_at_once_equal_one_by_one_and_are_fused_by_mean_or_max() -> None:
    model, (images, labels) = build("resnet", 15), striped(3)
    labels = (labels + 1) % CLASSES
    names = ["layer2", "layer3", "layer4"]
    for method in ("gradcam", "layercam"):
        alone = {name: explain(model, images, ("predicted", "true"), method, name, labels=labels).raw for name in names}
        scaled = [upsample(raw / np.abs(raw).max((2, 3), keepdims=True), (16, 16)) for raw in alone.values()]
        for fuse, expected in (("mean", np.mean(scaled, 0)), ("max", np.max(scaled, 0))):
            maps = explain(model, images, ("predicted", "true"), method, names, labels=labels, fuse=fuse)
            assert maps.layer == "layer2+layer3+layer4"
            assert list(maps.by_layer) == names
            for name in names:
                assert_close(maps.by_layer[name], alone[name])
            assert_close(maps.raw, expected)


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam", "scorecam"])
def test_aug_smooth_is_the_mean_of_six_views_of_one_class(method: str) -> None:
    model, (images, _) = build("vgg", 15), striped(3)
    total = np.zeros_like(explain(model, images, 1, method, "features.5").raw)
    for scale in (0.9, 1.0, 1.1):
        total += explain(model, scale * images, 1, method, "features.5").raw / 6
        total += explain(model, scale * images.flip(3), 1, method, "features.5").raw[..., ::-1] / 6
    assert_close(explain(model, images, 1, method, "features.5", aug_smooth=True).raw, total)


@pytest.mark.parametrize(("net", "layer"), [("vgg", "features.5"), ("resnet", "layer4")])
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam"])
def test_eigen_smooth_is_the_first_principal_component_of_the_weighted_activations(net: str, layer: str, method: str) -> None:
    model, (images, _) = build(net, 15), striped(3)
    expected = []
    for image in images:
        A, g = activations_and_gradients(model, layer, image, logit(1))
        factor = {"gradcam": g.mean((1, 2), keepdims=True), "hirescam": g, "layercam": np.maximum(g, 0)}[method]
        expected.append(principal_component(factor * A))
    assert_each_close(explain(model, images, 1, method, layer, eigen_smooth=True).raw, expected)


# --- what must change nothing ---


@pytest.mark.parametrize("method", METHODS)
def test_batch_size_and_order_change_nothing(method: str) -> None:
    model, (images, _) = build("resnet", 15), striped(5)
    layer, classes = ("layer4" if method == "cam" else "layer3"), [0, 1, 2, 3, 4]
    whole = explain(model, images, classes, method, layer).raw
    in_twos = explain(model, images, classes, method, layer, batch_size=2).raw
    order = [3, 0, 4, 2, 1]
    turned = explain(model, images[order], order, method, layer).raw
    single = [explain(model, images[i : i + 1], classes[i : i + 1], method, layer).raw[0] for i in range(5)]
    assert_each_close(whole, single)
    assert_each_close(in_twos, single)
    assert_each_close(turned, [single[i] for i in order])


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("cam", "smoothgradcam++")])
def test_flipping_the_image_of_a_symmetric_net_flips_the_map(method: str) -> None:
    """Smooth Grad-CAM++ is left out: its noise isn't flipped."""
    model = build("smallnet", 15)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(3)) / 2
    images, _ = striped(3)
    raw = explain(model, images, 0, method, "layer3").raw
    assert np.abs(raw - raw[..., ::-1]).max() > 0.05 * np.abs(raw).max()
    assert_close(explain(model, images.flip(3), 0, method, "layer3").raw, raw[..., ::-1])


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_a_frozen_copy_equal_those_of_the_original(method: str) -> None:
    model, (images, _) = build("resnet", 15), striped(2)
    frozen = copy.deepcopy(model).requires_grad_(False)
    layer = "layer4" if method == "cam" else "layer3"
    expected = explain(model, images, 1, method, layer).raw
    np.testing.assert_array_equal(explain(frozen, images, 1, method, layer).raw, expected)


@pytest.mark.parametrize("method", ["cam", "gradcam", "hirescam", "layercam", "gradcam++"])
def test_maps_in_bf16_are_close_to_those_in_fp32(method: str) -> None:
    model, (images, _) = build("resnet", 15), striped(6)
    exact, rough = (explain(model, images, 2, method, "layer4", precision=p).raw for p in ("fp32", "bf16"))
    assert rough.dtype == np.float32
    assert not np.array_equal(exact, rough)
    for a, b in zip(exact, rough, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] >= 0.99


def test_stream_equals_one_call() -> None:
    model, (images, labels) = build("resnet", 15), striped(5)
    expected = explain(model, images, ("predicted", "true"), "hirescam", labels=labels)
    with Heatmaps(model) as h:
        batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]
        streamed = list(h.stream(iter(batches), ("predicted", "true"), "hirescam"))
        pictures = list(h.stream([images[:3], images[3:]]))
    assert_close(np.concatenate([maps.raw for maps in streamed]), expected.raw)
    assert np.concatenate([maps.targets for maps in streamed]).tolist() == expected.targets.tolist()
    assert_close(np.concatenate([maps.raw for maps in pictures]), explain(model, images).raw)


# --- names ---


def test_a_method_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'grad-cam'[^\n]*did you mean 'gradcam'") as error:
        explain(build("smallnet"), striped(1)[0], 0, "grad-cam")
    assert "\n" not in str(error.value)


def test_every_method_has_a_line_of_description() -> None:
    assert set(METHODS) == {*LITERAL, "cam", "finercam", "smoothgradcam++"}
    assert all(METHODS[m] and "\n" not in METHODS[m] for m in METHODS)
