"""Our maps against pytorch-grad-cam's, torch-cam's and captum's, brought to their conventions; and where they leave the papers.

Optional: each runs where its library is installed (pip install grad-cam torchcam captum). Written against grad-cam 1.5.7,
torchcam 0.5.0 and captum 0.9.0. Where a library and a paper differ, a literal implementation of each stands here.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sightline.heatmaps import Heatmaps
from sightline.models import BasicBlock, ResNet

BENCHMARK = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "heatmaps.py"))
picture: Callable[[Tensor, Any], Tensor] = BENCHMARK["picture"]

CLASSES, N, SIZE = 5, 6, (32, 32)
LAYERS = ("layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def grad_cam() -> Any:
    """pytorch-grad-cam."""
    if find_spec("pytorch_grad_cam") is None:
        pytest.skip("needs pytorch-grad-cam: pip install grad-cam")
    return BENCHMARK["import_grad_cam"]()


@pytest.fixture(scope="module")
def torch_cam() -> Any:
    """torch-cam's methods."""
    return pytest.importorskip("torchcam.methods", reason="needs torch-cam: pip install torchcam")


@pytest.fixture(scope="module")
def captum() -> Any:
    """captum's attributions."""
    return pytest.importorskip("captum.attr", reason="needs captum: pip install captum")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(N, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(images: Tensor) -> nn.Module:
    """A small residual net with random weights, batch norm's statistics being those of the images."""
    torch.manual_seed(0)
    net = ResNet(BasicBlock, (1, 1, 1, 1), classes=CLASSES, width=8)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.normal_(module.bias, std=0.2)
    net.fc.weight.data *= 5
    net(images)
    return net.eval()


CHOSEN = torch.arange(N) % CLASSES


def ours(model: nn.Module, images: Tensor, method: str, layer: str, targets: Any = CHOSEN) -> Tensor:
    """Raw maps (N, 1, h, w)."""
    with Heatmaps(model, layer) as h:
        return torch.from_numpy(h(images, targets, method).raw)[:, None]


def scores_of(classes: Tensor) -> list[Callable[[Tensor], Tensor]]:
    """Targets as pytorch-grad-cam wants them."""
    return [BENCHMARK["class_score"](c) for c in classes.tolist()]


def theirs(cam: Any, images: Tensor, targets: Any = None) -> Tensor:
    """pytorch-grad-cam's maps (N, 1, H, W)."""
    return torch.from_numpy(cam(images, scores_of(CHOSEN) if targets is None else targets))[:, None]


def activations_and_gradients(model: nn.Module, images: Tensor, layer: str, classes: Tensor = CHOSEN) -> tuple[Tensor, Tensor]:
    """Independently of the engine: the layer's output and the gradient of the classes' logits, (N, K, h, w) each."""
    kept: list[Tensor] = []
    with model.get_submodule(layer).register_forward_hook(lambda *call: kept.append(call[2])):
        logits = model(images)
    (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), kept)
    return kept[0].detach(), gradient


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal to 1e-4 of the largest value expected."""
    peak = float(expected.abs().max())
    assert peak > 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * peak)


def assert_close_up_to_sign(actual: Tensor, raw: Tensor) -> list[int]:
    """Each of pytorch-grad-cam's maps is that of `raw` or of −raw; return which."""
    both = torch.stack([picture(sign * raw, SIZE) for sign in (1, -1)])
    nearest = (both - actual).flatten(2).norm(dim=2).argmin(0)
    assert_close(actual, both[nearest, torch.arange(N)])
    return nearest.tolist()


# --- the same formula ---


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("method", "name"),
    [("gradcam", "GradCAM"), ("hirescam", "HiResCAM"), ("layercam", "LayerCAM"), ("xgradcam", "XGradCAM")],
)
def test_maps_equal_pytorch_grad_cams_rectified_and_stretched(
    grad_cam: Any, model: nn.Module, images: Tensor, method: str, name: str, layer: str
) -> None:
    cam = getattr(grad_cam, name)(model, [model.get_submodule(layer)])
    assert_close(theirs(cam, images), picture(ours(model, images, method, layer), SIZE))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("method", "name"), [("gradcam", "GradCAM"), ("layercam", "LayerCAM"), ("xgradcam", "XGradCAM"), ("finercam", "FinerCAM")]
)
def test_maps_equal_torch_cams_rectified(
    torch_cam: Any, model: nn.Module, images: Tensor, method: str, name: str, layer: str
) -> None:
    with getattr(torch_cam, name)(model, layer) as cam:
        found = cam(CHOSEN.tolist(), model(images), normalized=False)[0]
    assert_close(found[:, None], ours(model, images, method, layer).relu())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_signed_maps_and_margins_equal_captums(captum: Any, model: nn.Module, images: Tensor, method: str, layer: str) -> None:
    name = {"gradcam": "LayerGradCam", "hirescam": "LayerGradientXActivation"}[method]
    cam = getattr(captum, name)(model, model.get_submodule(layer))
    other = (CHOSEN + 1) % CLASSES
    a, b = (cam.attribute(images, classes).detach().sum(1, keepdim=True) for classes in (CHOSEN, other))
    assert_close(ours(model, images, method, layer), a)

    def margin(logits: Tensor) -> Tensor:
        return (logits.gather(1, CHOSEN[:, None]) - logits.gather(1, other[:, None]))[:, 0]

    assert_close(ours(model, images, method, layer, margin), a - b)


def test_eigen_grad_cam_equals_pytorch_grad_cams_up_to_its_arbitrary_sign(
    grad_cam: Any, model: nn.Module, images: Tensor
) -> None:
    cam = grad_cam.EigenGradCAM(model, [model.get_submodule("layer3")])
    assert_close_up_to_sign(theirs(cam, images), ours(model, images, "eigengradcam", "layer3"))


# --- the same idea, other conventions ---


def component(X: Tensor, *, centred: bool) -> Tensor:
    """S₁U₁ of one image's cells × channels, literally; its sign is whatever the decomposition gives."""
    cells = X.flatten(1).T.double().numpy()
    if centred:
        cells = cells - cells.mean(0)
    u, s, _ = np.linalg.svd(cells, full_matrices=False)
    return torch.from_numpy(u[:, 0] * s[0]).float().reshape(1, *X.shape[1:])


def test_eigen_cam_of_pytorch_grad_cam_is_centred_and_its_sign_is_arbitrary(
    grad_cam: Any, model: nn.Module, images: Tensor
) -> None:
    signs = []
    for layer in LAYERS:
        activations, _ = activations_and_gradients(model, images, layer)
        raw = torch.stack([component(a, centred=True) for a in activations])
        upright = raw * (raw * activations.sum(1, keepdim=True)).sum((1, 2, 3), keepdim=True).sign()
        cam = grad_cam.EigenCAM(model, [model.get_submodule(layer)])
        signs += assert_close_up_to_sign(theirs(cam, images), upright)
    assert set(signs) == {0, 1}  # some lie along the plain sum of the activations, some against it


@pytest.mark.parametrize("layer", LAYERS)
def test_eigen_cam_as_in_the_paper_is_ours_and_lies_along_the_activations(model: nn.Module, images: Tensor, layer: str) -> None:
    activations, _ = activations_and_gradients(model, images, layer)
    literal = torch.stack([component(a, centred=False) for a in activations])
    upright = literal * (literal * activations.sum(1, keepdim=True)).sum((1, 2, 3), keepdim=True).sign()
    assert_close(ours(model, images, "eigencam", layer), upright)


def score_cam(model: nn.Module, images: Tensor, layer: str, *, corners: bool, stretch_first: bool) -> Tensor:
    """Score-CAM mask by mask: (N, 1, h, w). corners: align_corners; stretch_first: to [0, 1] before enlarging, not after."""

    def stretch(mask: Tensor) -> Tensor:
        return (mask - mask.min()) / (mask.max() - mask.min() + 1e-8)

    def enlarge(mask: Tensor) -> Tensor:
        return F.interpolate(mask[None, None], SIZE, mode="bilinear", align_corners=corners)[0]

    steps = (stretch, enlarge) if stretch_first else (enlarge, stretch)
    activations, _ = activations_and_gradients(model, images, layer)
    maps = []
    with torch.no_grad():
        for image, channels, c in zip(images, activations, CHOSEN, strict=True):
            masks = [steps[1](steps[0](channel)) for channel in channels]
            scores = torch.stack([model((image * mask)[None])[0, c] for mask in masks])
            maps.append((scores.softmax(0)[:, None, None] * channels).sum(0, keepdim=True))
    return torch.stack(maps)


def test_score_cam_with_aligned_corners_is_pytorch_grad_cams(grad_cam: Any, model: nn.Module, images: Tensor) -> None:
    cam = grad_cam.ScoreCAM(model, [model.get_submodule("layer3")])
    literal = score_cam(model, images, "layer3", corners=True, stretch_first=False)
    assert_close(theirs(cam, images), picture(literal, SIZE))


def test_score_cam_stretched_before_enlarging_is_torch_cams(torch_cam: Any, model: nn.Module, images: Tensor) -> None:
    with torch_cam.ScoreCAM(model, "layer3") as cam:
        with torch.no_grad():
            model(images)
        found = cam(CHOSEN.tolist(), normalized=False)[0][:, None]
    assert_close(found, score_cam(model, images, "layer3", corners=False, stretch_first=True).relu())


def test_score_cam_enlarged_and_then_stretched_as_in_the_paper_is_ours(model: nn.Module, images: Tensor) -> None:
    literal = score_cam(model, images, "layer3", corners=False, stretch_first=False)
    assert_close(ours(model, images, "scorecam", "layer3"), literal)


def test_ablation_cam_divided_by_the_score_is_pytorch_grad_cams_and_turns_round_where_the_score_is_negative(
    grad_cam: Any, model: nn.Module, images: Tensor
) -> None:
    scores = model(images).detach().gather(1, CHOSEN[:, None])[..., None, None]
    assert (scores < 0).any()
    assert (scores > 0).any()
    cam = grad_cam.AblationCAM(model, [model.get_submodule("layer3")])
    raw = ours(model, images, "ablationcam", "layer3")
    assert_close(theirs(cam, images), picture(raw / scores, SIZE))


def test_finer_cam_of_pytorch_grad_cam_weights_rivals_by_probability_and_is_another_function(
    grad_cam: Any, model: nn.Module, images: Tensor
) -> None:
    def weighted(logits: Tensor) -> Tensor:
        order = (logits - logits.amax(1, keepdim=True)).abs().argsort(1)
        own, rivals = logits.gather(1, order[:, :1]), logits.gather(1, order[:, 1:4])
        p = logits.softmax(1).gather(1, order[:, 1:4])
        return (p * (own - rivals)).sum(1) / p.sum(1)

    cam = grad_cam.FinerCAM(model, [model.get_submodule("layer3")])
    found = torch.from_numpy(cam(images))[:, None]
    assert_close(found, picture(ours(model, images, "gradcam", "layer3", weighted), SIZE))
    assert (found - picture(ours(model, images, "finercam", "layer3", "predicted"), SIZE)).abs().max() > 0.05


# --- where a library leaves the paper ---


def plus_plus(activations: Tensor, g: Tensor, epsilon: float = 0.0) -> Tensor:
    """Grad-CAM++ by the paper's equations 10 and 19, the common factor exp(score) left out: (N, 1, h, w)."""
    total = activations.sum((2, 3), keepdim=True)
    alpha = torch.where(g != 0, g**2 / (2 * g**2 + total * g**3 + epsilon).where(g != 0, torch.tensor(1.0)), 0)
    return ((alpha * g.relu()).sum((2, 3), keepdim=True) * activations).sum(1, keepdim=True)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scale", [1, 1e-3])
def test_grad_cam_plus_plus_of_pytorch_grad_cam_adds_an_epsilon_that_swamps_small_gradients(
    grad_cam: Any, model: nn.Module, images: Tensor, layer: str, scale: float
) -> None:
    model.get_submodule("fc").weight.data *= scale
    values = activations_and_gradients(model, images, layer)
    found = theirs(grad_cam.GradCAMPlusPlus(model, [model.get_submodule(layer)]), images)
    assert_close(found, picture(plus_plus(*values, epsilon=1e-6), SIZE))
    mine = ours(model, images, "gradcam++", layer)
    assert_close(mine, plus_plus(*values))
    if scale < 1:
        assert (found - picture(mine, SIZE)).abs().max() > 0.05


def test_grad_cam_plus_plus_of_torch_cam_loses_its_division(torch_cam: Any, model: nn.Module, images: Tensor) -> None:
    activations, g = activations_and_gradients(model, images, "layer3")
    with torch_cam.GradCAMpp(model, "layer3") as cam:
        found = cam(CHOSEN.tolist(), model(images), normalized=False)[0][:, None]
    cubes = (g.relu() ** 3).sum((2, 3), keepdim=True)
    assert_close(found, (cubes * activations).sum(1, keepdim=True))
    paper = plus_plus(activations, g)
    assert_close(ours(model, images, "gradcam++", "layer3"), paper)
    assert (picture(found, SIZE) - picture(paper, SIZE)).abs().max() > 0.05


def test_smooth_grad_cam_plus_plus_of_torch_cam_takes_the_last_noisy_pass_for_the_image(
    torch_cam: Any, model: nn.Module, images: Tensor
) -> None:
    with torch_cam.SmoothGradCAMpp(model, "layer3", num_samples=3) as cam:
        model(images)
        torch.manual_seed(7)
        found = cam(CHOSEN.tolist(), normalized=False)[0][:, None]
    torch.manual_seed(7)
    noisy = [images + torch.normal(torch.zeros(images.shape), 0.3) for _ in range(3)]
    values = [activations_and_gradients(model, x, "layer3") for x in noisy]
    clean, _ = activations_and_gradients(model, images, "layer3")
    second, third = (torch.stack([g**power for _, g in values]).mean(0) for power in (2, 3))
    below = 2 * second + (third * clean).sum((2, 3), keepdim=True) + 1e-8
    last, last_gradient = values[-1]
    factor = (second / below * last_gradient.relu()).sum((2, 3), keepdim=True)
    assert_close(found, (factor * last).sum(1, keepdim=True).relu())
    averaged = torch.stack([g for _, g in values]).mean(0)
    paper = ((second / below * averaged.relu()).sum((2, 3), keepdim=True) * clean).sum(1, keepdim=True)
    assert (picture(found, SIZE) - picture(paper, SIZE)).abs().max() > 0.05


def test_cam_of_torch_cam_keeps_its_sign_although_its_docstring_has_a_relu(
    torch_cam: Any, model: nn.Module, images: Tensor
) -> None:
    with torch_cam.CAM(model, "layer4", "fc") as cam, torch.no_grad():
        model(images)
        found = cam(CHOSEN.tolist(), normalized=False)[0][:, None]
    assert "ReLU" in torch_cam.CAM.__doc__
    assert found.min() < 0
    assert_close(ours(model, images, "cam", "layer4"), found)


def test_overlay_of_torch_cam_overflows_on_eight_bit_masks(torch_cam: Any) -> None:
    overlay_mask = import_module("torchcam.utils").overlay_mask
    image, hottest = Image.new("RGB", (2, 2)), np.ones((2, 2))
    exact = overlay_mask(image, Image.fromarray(hottest.astype(np.float32)), alpha=0.0).getpixel((0, 0))
    eight_bit = overlay_mask(image, Image.fromarray((255 * hottest).astype(np.uint8)), alpha=0.0).getpixel((0, 0))
    assert exact[0] > 100 > exact[2]  # jet's hottest colour is dark red
    assert eight_bit[2] > 100 > eight_bit[0]  # 255² is 1 in eight bits: dark blue, jet's coldest


def test_ablation_of_pytorch_grad_cam_drifts_where_activations_are_negative(grad_cam: Any) -> None:
    layer = import_module("pytorch_grad_cam.ablation_layer").AblationLayer()
    activations = torch.tensor([[[[-1.0]], [[2.0]], [[3.0]]]])
    layer.activations_to_be_ablated(activations[0].numpy())
    layer.set_next_batch(0, activations, 3)
    ablated = layer(None)[torch.arange(3), torch.arange(3), 0, 0]
    assert_close(ablated, torch.tensor([-1e7, -2e7, -3e7]))


def test_road_of_pytorch_grad_cam_imputes_every_pixel_of_a_map_that_is_mostly_zero(grad_cam: Any) -> None:
    road = import_module("pytorch_grad_cam.metrics.road")
    image, heatmap = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 8)
    heatmap[2, 3] = 1.0
    remove = import_module("pytorch_grad_cam.metrics.perturbation_confidence").RemoveMostRelevantFirst
    kept: list[Tensor] = []

    def imputer(image: Tensor, mask: Tensor) -> Tensor:
        kept.append(mask)
        return image

    remove(50, imputer)(image, heatmap)
    assert kept[0].sum() == 0  # half of the pixels were to stay
    system, _ = road.NoisyLinearImputer.setup_sparse_system(kept[0].numpy(), image.numpy(), road.neighbors_weights)
    assert np.linalg.matrix_rank(system.toarray()) < 64


def test_grad_cam_of_pytorch_grad_cam_leaves_evaluation_mode_and_parameter_gradients_behind_and_ours_does_not(
    grad_cam: Any, model: nn.Module, images: Tensor
) -> None:
    model.train()
    ours(model, images, "gradcam", "layer3")
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    theirs(grad_cam.GradCAM(model, [model.get_submodule("layer3")]), images)
    assert not model.training
    assert all(p.grad is not None for p in model.parameters())


def full_grad(model: nn.Module, images: Tensor, *, each_channel: bool) -> Tensor:
    """FullGrad of the input and the batch norms, term by term: (N, 1, H, W). each_channel: each is stretched on its own."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    kept: list[Tensor] = []
    handles = [module.register_forward_hook(lambda *call: kept.append(call[2])) for module in norms]
    x = images.clone().requires_grad_()
    score = model(x).gather(1, CHOSEN[:, None]).sum()
    for handle in handles:
        handle.remove()
    g, *gradients = torch.autograd.grad(score, [x, *kept])
    terms = [images * g]
    for module, gradient in zip(norms, gradients, strict=True):
        bias = module.bias - module.running_mean * module.weight / (module.running_var + module.eps).sqrt()
        terms.append(bias.detach()[:, None, None] * gradient)
    total = torch.zeros(N, 1, *SIZE)
    for term in terms:
        over = (2, 3) if each_channel else (1, 2, 3)
        low, high = term.abs().amin(over, keepdim=True), term.abs().amax(over, keepdim=True)
        stretched = (term.abs() - low) / (high - low + 1e-7)
        total += F.interpolate(stretched, SIZE, mode="bilinear").sum(1, keepdim=True)
    return total


def test_full_grad_of_pytorch_grad_cam_stretches_each_channel_and_so_counts_idle_ones_as_much(
    grad_cam: Any, model: nn.Module, images: Tensor
) -> None:
    found = theirs(grad_cam.FullGrad(model, []), images)
    by_channel = full_grad(model, images, each_channel=True)
    low, high = by_channel.amin((2, 3), keepdim=True), by_channel.amax((2, 3), keepdim=True)
    assert_close(found, (by_channel - low) / (high - low))
    mine = ours(model, images, "fullgrad", "auto")
    assert_close(mine, full_grad(model, images, each_channel=False))
