"""captum through the adapter against captum called by hand, and the model, the images and the generators as they were."""

from __future__ import annotations

import sys
from collections import OrderedDict
from functools import partial
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.exceptions import RecipeError
from sightline.heatmaps import Heatmaps, Margin
from sightline.heatmaps.attributions import CaptumMethod, captum_method, method_of
from sightline.heatmaps.layers import Form
from sightline.heatmaps.network import Network

CLASSES, CELLS = 4, Form("first", (8, 8))
SQUARES = (torch.arange(16)[:, None] // 4 * 4 + torch.arange(16) // 4)[None, None]
# Class → options for the adapter and for captum alike.
INPUT: dict[str, dict[str, Any]] = {
    "Saliency": {"abs": False},
    "InputXGradient": {},
    "IntegratedGradients": {"n_steps": 8, "internal_batch_size": 128},
    "DeepLift": {},
    "GuidedBackprop": {},
    "Deconvolution": {},
    "LRP": {},
    "Occlusion": {"sliding_window_shapes": (3, 4, 4), "strides": (3, 2, 2)},
    "FeatureAblation": {"feature_mask": SQUARES, "perturbations_per_eval": 3},
    "ShapleyValueSampling": {"feature_mask": SQUARES, "n_samples": 2},
    "GradientShap": {"baselines": torch.zeros(2, 3, 16, 16), "n_samples": 3},
    "GuidedGradCam": {},
}
LAYER: dict[str, dict[str, Any]] = {
    "LayerGradCam": {},
    "LayerGradientXActivation": {},
    "LayerIntegratedGradients": {"n_steps": 8, "internal_batch_size": 128},
    "LayerConductance": {"n_steps": 8, "internal_batch_size": 128},
    "InternalInfluence": {"n_steps": 8, "internal_batch_size": 128},
    "LayerDeepLift": {},
    "LayerActivation": {},
}
# Those whose attribution of a difference is the difference of the attributions, chance included.
LINEAR = ("Saliency", "InputXGradient", "IntegratedGradients", "DeepLift", "Occlusion", "FeatureAblation", "ShapleyValueSampling")
LINEAR += ("LayerGradCam", "LayerGradientXActivation", "LayerIntegratedGradients", "LayerConductance", "InternalInfluence")
ALONE = [name for name in (*INPUT, *LAYER) if name not in ("ShapleyValueSampling", "GradientShap")]  # by chance, a batch differs


class Net(nn.Module):
    """Each activation a module of its own, as DeepLift asks for, and all modules such that LRP has a rule for them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.last = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(8, 10, 2), nn.ReLU(), nn.Conv2d(10, CLASSES, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.last(self.stem(images))).flatten(1)
        return logits


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def one_hot(*targets: int) -> Tensor:
    """Cotangents (N, 1, classes) of one class an image."""
    return torch.eye(CLASSES)[torch.tensor(targets)][:, None]


def attribute(method: CaptumMethod, model: nn.Module, images: Tensor, cotangents: Tensor, form: Form = CELLS) -> Tensor:
    return method.attribute(Network(model), images, cotangents, "last", form)


def by_hand(name: str, model: nn.Module, images: Tensor, target: list[int], **options: Any) -> Tensor:
    """What captum gives for classes, summed over the channels: (N, h, w)."""
    cls = getattr(captum.attr, name)
    layered = name.startswith("Layer") or name in ("InternalInfluence", "GuidedGradCam")
    attribution = cls(model, model.last) if layered else cls(model)
    torch.manual_seed(0)
    np.random.seed(0)
    call = partial(attribution.attribute, images, **options)
    result: Tensor = call() if name == "LayerActivation" else call(target=target)
    return result.detach().sum(1)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest value expected."""
    assert actual.shape == expected.shape
    peak = float(expected.abs().max())
    assert peak > 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * peak)


# --- values ---


@pytest.mark.parametrize("name", [*INPUT, *LAYER])
@pytest.mark.filterwarnings("ignore::UserWarning")  # captum by hand announces its hooks
def test_maps_of_classes_equal_captum_called_by_hand(name: str, model: nn.Module, images: Tensor) -> None:
    options, target = {**INPUT, **LAYER}[name], [0, 3, 1]
    maps = attribute(captum_method(name, **options), model, images, one_hot(*target))
    assert maps.dtype == torch.float32
    assert_close(maps[:, 0], by_hand(name, model, images, target, **options))


@pytest.mark.parametrize("name", LINEAR)
def test_the_margins_map_is_the_difference_of_two_classes_maps(name: str, model: nn.Module, images: Tensor) -> None:
    a, b = one_hot(0, 3, 1), one_hot(2, 1, 0)
    method = captum_method(name, **{**INPUT, **LAYER}[name])
    maps = attribute(method, model, images, torch.cat((a, b, a - b), 1))
    assert_close(maps[:, 2], maps[:, 0] - maps[:, 1], 1e-4)


@pytest.mark.parametrize("name", ALONE)
def test_a_batch_gives_what_its_images_give_one_by_one(name: str, model: nn.Module, images: Tensor) -> None:
    method = captum_method(name, **{**INPUT, **LAYER}[name])
    cotangents = torch.cat((one_hot(0, 3, 1), one_hot(2, 2, 0)), 1)
    alone = [attribute(method, model, images[i : i + 1], cotangents[i : i + 1]) for i in range(3)]
    assert_close(attribute(method, model, images, cotangents), torch.cat(alone))


def test_integrated_gradients_sum_to_the_score_less_that_of_the_baseline(model: nn.Module, images: Tensor) -> None:
    cotangents = torch.cat((one_hot(0, 3, 1), one_hot(0, 3, 1) - one_hot(2, 1, 0)), 1)
    maps = attribute(captum_method("IntegratedGradients", n_steps=200), model, images, cotangents)
    with torch.no_grad():
        change = model(images) - model(torch.zeros_like(images))
    assert_close(maps.sum((2, 3)), (cotangents * change[:, None]).sum(2), 1e-2)


def test_smoothgrad_is_the_mean_gradient_over_noisy_copies(model: nn.Module, images: Tensor) -> None:
    maps = attribute(captum_method("NoiseTunnel", nt_samples=4, stdevs=0.3), model, images, one_hot(0, 3, 1))
    torch.manual_seed(0)
    noisy = torch.normal(0, torch.full((3, 4, 3, 16, 16), 0.3)).flatten(0, 1) + images.repeat_interleave(4, 0)
    noisy.requires_grad_()
    model(noisy)[torch.arange(12), torch.tensor([0, 3, 1]).repeat_interleave(4)].sum().backward()
    assert noisy.grad is not None
    assert_close(maps[:, 0], noisy.grad.unflatten(0, (3, 4)).mean(1).sum(1))


def test_without_options_each_of_64_squares_is_occluded_once(model: nn.Module, images: Tensor) -> None:
    maps = attribute(captum_method("Occlusion"), model, images, one_hot(0, 3, 1))
    ablated = attribute(captum_method("FeatureAblation"), model, images, one_hot(0, 3, 1))
    expected = torch.zeros(3, 16, 16)
    with torch.no_grad():
        for y in range(0, 16, 2):
            for x in range(0, 16, 2):
                occluded = images.clone()
                occluded[:, :, y : y + 2, x : x + 2] = 0
                fall = (model(images) - model(occluded))[torch.arange(3), torch.tensor([0, 3, 1])]
                expected[:, y : y + 2, x : x + 2] = 3 * fall[:, None, None]  # captum gives it to each of the channels
    assert_close(maps[:, 0], expected)
    assert_close(ablated[:, 0], expected)


def test_saliency_keeps_its_sign_unless_told_otherwise(model: nn.Module, images: Tensor) -> None:
    signed = attribute(captum_method("Saliency"), model, images, one_hot(0, 3, 1))
    assert signed.min() < 0 < signed.max()
    assert attribute(captum_method("Saliency", abs=True), model, images, one_hot(0, 3, 1)).min() >= 0


def test_a_layer_whose_channels_come_last_is_read_as_the_form_says(model: nn.Module, images: Tensor) -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 3, 1, 2)

    steps = {
        "trunk": nn.Sequential(model.stem, model.last),
        "last": Last(),
        "first": First(),
        "head": model.head,
        "flat": nn.Flatten(),
    }
    swin = nn.Sequential(OrderedDict(steps))
    method = captum_method("LayerIntegratedGradients", n_steps=4)
    maps = attribute(method, swin, images, one_hot(0, 3, 1), Form("last", (8, 8)))
    assert_close(maps, attribute(method, model, images, one_hot(0, 3, 1)))
    with pytest.raises(RecipeError, match="channels aren't first: use 'gradcam'"):
        attribute(captum_method("LayerGradCam"), swin, images, one_hot(0, 3, 1), Form("last", (8, 8)))


def test_steps_run_no_more_than_128_rows_at_a_time(model: nn.Module, images: Tensor) -> None:
    rows: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    attribute(captum_method("IntegratedGradients"), model, images, one_hot(0, 3, 1))  # 3 images of 50 steps each
    assert 1 < max(rows) <= 128


@pytest.mark.parametrize("name", ["IntegratedGradients", "LayerConductance"])
def test_the_engine_takes_it_for_classes_and_margins_whatever_the_caller_switched_off(
    name: str, model: nn.Module, images: Tensor
) -> None:
    options, true, other = {**INPUT, **LAYER}[name], [0, 3, 1], [2, 1, 0]
    with torch.inference_mode(), Heatmaps(model.train(), "last") as h:
        method = captum_method(name, **options)
        maps = h(images * 1, ("true", Margin("true", torch.tensor(other))), method, labels=torch.tensor(true))
    a, b = (by_hand(name, model.eval(), images, target, **options) for target in (true, other))
    assert maps.method == f"captum:{name}"
    assert_close(torch.tensor(maps.raw), torch.stack((a, a - b), 1))


# --- side effects ---


def snapshot(model: nn.Module) -> list[Any]:
    """What a module carries beside its weights: attributes, hooks, modes, `requires_grad`."""
    extras = [
        {key: str(value) for key, value in vars(m).items() if key not in ("_parameters", "_buffers")} for m in model.modules()
    ]
    return [*extras, [(p.requires_grad, p.grad is None) for p in model.parameters()]]


@pytest.mark.parametrize(
    "name", ["IntegratedGradients", "DeepLift", "GuidedBackprop", "LRP", "LayerDeepLift", "LayerConductance"]
)
@pytest.mark.parametrize("broken", [False, True])
def test_the_model_and_the_images_are_left_as_they_were(name: str, broken: bool, model: nn.Module, images: Tensor) -> None:
    class Unknown(nn.Module):  # LRP has no rule for it, and nothing gets through it
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no way\nthrough")

    next(model.parameters()).requires_grad_(False)
    if broken:
        model.head.append(Unknown())
    weights, before = [p.detach().clone() for p in model.parameters()], snapshot(model)
    if broken:
        with pytest.raises(RecipeError, match=r"^captum's \w+ failed at layer 'last' \(.+\): check its options, or use another$"):
            attribute(captum_method(name), model, images, one_hot(0, 3, 1))
    else:
        attribute(captum_method(name), model, images, one_hot(0, 3, 1))
    assert snapshot(model) == before
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert not images.requires_grad
    assert images.grad is None


def test_chance_is_seeded_and_the_callers_generators_go_on_as_if_nothing_was(model: nn.Module, images: Tensor) -> None:
    method = captum_method("GradientShap", stdevs=0.1)
    torch.manual_seed(5)
    np.random.seed(5)
    first = attribute(method, model, images, one_hot(0, 3, 1))
    drawn = torch.rand(3), np.random.rand(3)
    assert torch.equal(first, attribute(method, model, images, one_hot(0, 3, 1)))
    torch.manual_seed(5)
    np.random.seed(5)
    assert torch.equal(drawn[0], torch.rand(3))
    np.testing.assert_array_equal(drawn[1], np.random.rand(3))


@pytest.mark.parametrize("name", ["IntegratedGradients", "LayerConductance", "Occlusion"])
def test_a_caller_without_gradients_gets_the_same_maps(name: str, model: nn.Module, images: Tensor) -> None:
    method = captum_method(name)
    expected = attribute(method, model, images, one_hot(0, 3, 1))
    with torch.no_grad():
        assert_close(attribute(method, model, images, one_hot(0, 3, 1)), expected)


# --- bad input ---


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "IntegratedGradient",
            {},
            "captum has no attribution 'IntegratedGradient' for images: did you mean 'IntegratedGradients'",
        ),
        ("NeuronGradient", {}, "captum has no attribution 'NeuronGradient' for images"),
        ("LLMAttribution", {}, "captum has no attribution 'LLMAttribution' for images"),
        ("IntegratedGradients", {"steps": 3}, "captum's IntegratedGradients has no option 'steps': did you mean 'n_steps'"),
        ("GuidedBackprop", {"abs": False}, "captum's GuidedBackprop has no option 'abs': it has none"),
        ("NoiseTunnel", {"of": "Salience"}, "captum has no attribution 'Salience' for images: did you mean 'Saliency'"),
    ],
)
def test_names_and_options_that_captum_lacks_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        captum_method(name, **options)


def test_a_margin_is_refused_where_captums_relevances_would_not_add_up(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(RecipeError, match="captum's LRP explains single classes only: give classes, or use DeepLift"):
        attribute(captum_method("LRP"), model, images, one_hot(0, 3, 1) - one_hot(2, 1, 0))


def test_without_captum_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(RecipeError, match=r"captum isn't installed: pip install 'sightline\[captum\]'"):
        captum_method("Saliency")


def test_a_text_with_a_prefix_becomes_a_method_and_others_stay() -> None:
    assert method_of("captum:Occlusion") == captum_method("Occlusion")
    assert str(method_of("captum:Occlusion")) == "captum:Occlusion"
    assert method_of("gradcam") == "gradcam"
