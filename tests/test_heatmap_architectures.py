"""Any architecture: which layer, how its output is read as cells, and that the model and the caller are left as they were."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cams import (
    CLASSES,
    FORMULAS,
    Cells,
    Heads,
    activations_and_gradients,
    assert_close,
    build,
    eigencam,
    explain,
    fullgrad,
    logit,
    striped,
    value,
    weighted_sum,
)
from sightline.exceptions import DataError, RecipeError
from sightline.heatmaps import METHODS, Heatmaps
from sightline.models import SmallNet

SIZES = {"vit-wide": (24, 40), "swin-wide": (32, 64)}


pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def refused(error: type[Exception] | tuple[type[Exception], ...], pattern: str) -> Iterator[None]:
    """The block raises `error`, whose message is one line and has `pattern` in it."""
    with pytest.raises(error, match=pattern) as caught:
        yield
    assert "\n" not in str(caught.value)


def tokens(prefix: int, grid: tuple[int, int]) -> Cells:
    """Tokens (N, prefix + h·w, K) → (N, K, h, w), one cell at a time."""

    def cells(x: Tensor) -> Tensor:
        rows = [torch.stack([x[:, prefix + i * grid[1] + j] for j in range(grid[1])], -1) for i in range(grid[0])]
        return torch.stack(rows, -2)

    return cells


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


# --- the layer, and its cells ---


@pytest.mark.parametrize(
    ("net", "layer", "grid"),
    [
        ("resnet", "layer3", (8, 8)),
        ("smallnet", "layer3", (8, 8)),
        ("fastnet", "layer3", (7, 7)),
        ("vgg", "features.7", (8, 8)),
        ("convnext", "stage2", (8, 8)),
        ("densenet", "growth", (8, 8)),
        ("stem", "layer1", (8, 8)),
        ("tuples", "block2", (8, 8)),
        ("vit", "blocks.2.norm1", (8, 8)),
        ("vit-registers", "blocks.2.norm1", (8, 8)),
        ("vit-wide", "blocks.2.norm1", (6, 10)),
        ("vit-mean", "norm", (8, 8)),
        ("swin", "norm", (8, 8)),
        ("swin-wide", "norm", (8, 16)),
        ("swin-tokens", "norm", (8, 8)),
    ],
)
def test_auto_chooses_the_last_layer_with_places(net: str, layer: str, grid: tuple[int, int]) -> None:
    maps = explain(build(net), striped(2, SIZES.get(net, (32, 32)))[0])
    assert (maps.layer, maps.raw.shape[1:]) == (layer, grid)
    assert (np.abs(maps.raw).max((1, 2)) > 0).all()


class Case(NamedTuple):
    net: str
    layer: str
    cells: Cells


CASES = {
    f"{case.net} {case.layer}": case
    for case in (
        Case("convnext", "stage1", lambda x: x),
        Case("convnext", "stage2.depthwise", lambda x: x),
        Case("convnext", "stage2.expand", channels_last),
        Case("densenet", "trunk", lambda x: x),
        Case("tuples", "block1", lambda x: x),
        Case("tuples", "block2", lambda x: x),
        Case("stem", "layer2", lambda x: x),
        Case("vgg", "features.3", lambda x: x),
        Case("vit", "blocks.0", tokens(1, (8, 8))),
        Case("vit", "blocks.1", tokens(1, (8, 8))),
        Case("vit", "blocks.2.norm1", tokens(1, (8, 8))),
        Case("vit-registers", "blocks.1", tokens(5, (8, 8))),
        Case("vit-wide", "blocks.1", tokens(1, (6, 10))),
        Case("vit-mean", "blocks.1", tokens(0, (8, 8))),
        Case("vit-mean", "norm", tokens(0, (8, 8))),
        Case("vit", "patches", lambda x: x),
        Case("swin", "stage1", channels_last),
        Case("swin", "norm", channels_last),
        Case("swin-wide", "stage2", channels_last),
        Case("swin-tokens", "stage1", tokens(0, (16, 16))),
        Case("swin-tokens", "stage2", tokens(0, (8, 8))),
    )
}


@pytest.mark.parametrize("name", CASES)
def test_maps_equal_the_literal_formulas_on_the_cells(name: str) -> None:
    net, layer, cells = CASES[name]
    model, images = build(net, 15 if net in ("vit", "swin") else 0), striped(2, SIZES.get(net, (32, 32)))[0]
    for image, c in zip(images, (1, 3), strict=True):
        A, g = activations_and_gradients(model, layer, image, logit(c), cells)
        terms = np.abs(A * g).sum(0).max()  # before a layer norm they cancel: see the next test
        for method in ("gradcam", "hirescam", "layercam", "gradcam++"):
            found, expected = explain(model, image[None], c, method, layer).raw[0], FORMULAS[method](A, g)
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(terms, np.abs(expected).max()))
    A, _ = activations_and_gradients(model, layer, images[0], logit(1), cells)
    assert_close(explain(model, images, 1, "eigencam", layer).raw[0], eigencam(A))


def test_gradient_times_activation_vanishes_before_a_layer_norm() -> None:
    """A layer norm is blind to its input's scale, so that Σ_k A_k ∂y/∂A_k = 0 in each cell: a map worth nothing.

    That is why layer "auto" of a transformer is the last norm that the logits depend on, and not the block before it.
    """
    for net, before, after in (
        ("vit", "blocks.1", "blocks.2.norm1"),
        ("vit-mean", "blocks.2", "norm"),
        ("swin", "stage2", "norm"),
    ):
        model, (images, _) = build(net), striped(2)
        sizes = [explain(model, images, 1, "hirescam", layer).raw for layer in (before, after)]
        assert np.abs(sizes[0]).max() < 1e-3 * np.abs(sizes[1]).max()
        assert (explain(model, images, 1, "hirescam", before).completeness > 0.99).all()


@pytest.mark.parametrize("net", ["convnext", "vit", "swin", "swin-tokens"])
def test_full_grad_equals_the_literal_formula_wherever_the_channels_are(net: str) -> None:
    model, (images, _) = build(net), striped(2)
    maps = explain(model, images, 1, "fullgrad")
    for image, found, lacking in zip(images, maps.raw, maps.completeness, strict=True):
        expected, total = fullgrad(model, image, logit(1))
        score = value(model, image, logit(1))
        assert_close(found, expected)
        assert lacking == pytest.approx(abs(score - total) / abs(score), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["vit blocks.1", "swin stage1", "swin-tokens stage2"])
def test_ablation_switches_a_channel_off_in_the_cells_only(name: str) -> None:
    """The class token keeps its channels."""
    net, layer, cells = CASES[name]
    model, image = build(net), striped(1)[0][0]
    A, _ = activations_and_gradients(model, layer, image, logit(1), cells)
    whole, weights = value(model, image, logit(1)), []
    for k in range(len(A)):

        def ablate(module: nn.Module, inputs: object, output: Tensor, k: int = k) -> Tensor:
            without = output.clone()
            without[:, 1 if net == "vit" else 0 :, ..., k] = 0
            return without

        with model.get_submodule(layer).register_forward_hook(ablate):
            weights.append(whole - value(model, image, logit(1)))
    assert_close(explain(model, image[None], 1, "ablationcam", layer).raw[0], weighted_sum(weights, A))


def test_the_last_block_of_a_vit_with_class_token_is_refused_with_the_reason() -> None:
    images, _ = striped(1)
    for layer in ("blocks.2", "norm"):
        with refused(RecipeError, rf"do not depend on layer '{layer}' but for its class token: use 'blocks\.2\.norm1' \(8×8\)"):
            explain(build("vit"), images, layer=layer)
    assert explain(build("vit-mean"), images, layer="blocks.2").raw.any()


def test_a_layer_of_one_cell_is_refused_with_the_reason_and_the_alternatives() -> None:
    model, (images, _) = build("stem"), striped(1)
    with refused(
        RecipeError, r"'layer4' has no spatial extent on 32×32 images \(it returns \(64, 1, 1\)\): use 'layer1' \(8×8\)"
    ):
        explain(model, images, layer="layer4")
    assert explain(model, images, layer="layer3").raw.shape == (1, 2, 2)
    assert explain(model, striped(1, (256, 256))[0]).layer == "layer4"


def test_a_layer_that_is_not_reached_is_refused() -> None:
    model = SmallNet(classes=CLASSES, width=8)
    model.spare = nn.Conv2d(3, 3, 1)
    with refused(RecipeError, r"'spare' is not reached[^\n]*'layer3' \(8×8\)"):
        explain(model, striped(1)[0], layer="spare")


# --- told how to read a layer ---


def test_reshape_tells_how_a_layer_is_read() -> None:
    model, (images, _) = build("vit"), striped(2)

    def turned(x: Tensor) -> Tensor:
        return x[:, 1:].reshape(-1, 8, 8, x.shape[2]).permute(0, 3, 2, 1)

    for method in ("gradcam", "hirescam", "ablationcam", "eigencam"):
        expected = explain(model, images, 1, method, "blocks.1").raw
        assert_close(explain(model, images, 1, method, "blocks.1", reshape=turned).raw, expected.transpose(0, 2, 1))


def test_a_reshape_that_does_not_fit_is_refused() -> None:
    with refused(RecipeError, r"'blocks\.1' has no spatial extent"):
        explain(build("vit"), striped(1)[0], layer="blocks.1", reshape=lambda x: x.unflatten(1, (8, 8)))


# --- several outputs ---


class Named(NamedTuple):
    coarse: Tensor
    fine: Tensor


HEADS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any]] = {
    "a key": (lambda coarse, fine: {"coarse": coarse, "fine": fine}, "fine"),
    "a position": (lambda coarse, fine: (coarse, fine), 1),
    "the last position": (lambda coarse, fine: [coarse, fine], -1),
    "a field": (Named, "fine"),
    "an attribute": (lambda coarse, fine: SimpleNamespace(coarse=coarse, fine=fine), "fine"),
    "a function": (lambda coarse, fine: {"all": [coarse, fine]}, lambda result: result["all"][1]),
    "logits, by their name": (lambda coarse, fine: SimpleNamespace(coarse=coarse, logits=fine), None),
    "the only one": (lambda coarse, fine: {"fine": fine, "loss": coarse.sum()}, None),
}


@pytest.mark.parametrize("kind", HEADS)
def test_output_tells_which_of_several_outputs_are_the_logits(kind: str) -> None:
    pack, output = HEADS[kind]
    plain, (images, _) = build("resnet"), striped(3)
    for method, layer in (("gradcam", "layer4"), ("hirescam", "layer3"), ("ablationcam", "layer3"), ("scorecam", "layer4")):
        expected = explain(plain, images, 4, method, layer)
        maps = explain(Heads(plain, pack).eval(), images, 4, method, f"net.{layer}", output=output)
        assert_close(maps.raw, expected.raw)
        assert_close(maps.logits, expected.logits)


def test_ambiguous_outputs_are_refused_with_the_choices() -> None:
    net, (images, _) = build("resnet"), striped(1)
    with refused(RecipeError, r"output='coarse' or 'fine'"):
        explain(Heads(net, lambda coarse, fine: {"coarse": coarse, "fine": fine}), images)
    with refused(RecipeError, "output=0 or 1"):
        explain(Heads(net, lambda coarse, fine: (coarse, fine)), images)
    with refused(RecipeError, r"no 'medium': it has 'coarse' or 'fine'"):
        explain(Heads(net, lambda coarse, fine: {"coarse": coarse, "fine": fine}), images, output="medium")
    with refused(RecipeError, r"logits \(N, classes\)"):
        explain(nn.Sequential(nn.Conv2d(3, 4, 3)), images)


# --- wrapped nets ---


@pytest.mark.parametrize("method", ["gradcam", "layercam", "ablationcam", "scorecam", "fullgrad"])
def test_maps_of_a_compiled_net_equal_those_of_the_plain_one(method: str) -> None:
    model, (images, _) = build("resnet"), striped(2)
    compiled: Any = torch.compile(model, backend="eager")
    assert_close(compiled(images).detach(), model(images).detach())
    for layer in ("layer3", "layer4"):
        assert_close(explain(compiled, images, 1, method, layer).raw, explain(model, images, 1, method, layer).raw)


def test_maps_of_a_net_in_data_parallel_equal_those_of_the_plain_one() -> None:
    model, (images, _) = build("resnet"), striped(2)
    for layer in ("auto", "layer4"):
        maps = explain(nn.DataParallel(model), images, 1, layer=layer)
        assert_close(maps.raw, explain(model, images, 1, layer=layer).raw)


# --- in place ---


@pytest.mark.parametrize("method", [m for m in METHODS if m != "cam"])
def test_what_follows_may_overwrite_the_layer_in_place(method: str) -> None:
    """The same weights with and without in-place activations give the same maps of the convolution before them."""
    model, (images, _) = build("vgg", 15), striped(2)
    inplace = explain(model, images, 1, method, "features.3").raw
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    assert_close(inplace, explain(model, images, 1, method, "features.3").raw)


# --- the model and the caller are left as they were ---


def state(model: nn.Module) -> list[object]:
    modules = list(model.modules())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in modules]
    values = [(p.requires_grad, p.sum().item(), p.stride()) for p in (*model.parameters(), *model.buffers())]
    gradients = [p.grad if p.grad is None else p.grad.sum().item() for p in model.parameters()]
    own = [sorted(vars(m)) for m in modules]  # a forward of a module's own, for example
    return [torch.is_grad_enabled(), [m.training for m in modules], hooks, values, gradients, own, torch.get_rng_state().tolist()]


@pytest.fixture
def used() -> Any:
    """A net in the middle of a training: some modules frozen, some gradients there, channels last."""
    model = build("resnet").to(memory_format=torch.channels_last).train()
    model.layer3.eval()
    model.layer1.requires_grad_(False)
    model(striped(4)[0]).sum().backward()
    model.fc.weight.grad = None
    return model


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_a_hundred_uses_leave_the_model_and_the_memory_as_they_were(used: Any) -> None:
    before, (images, labels) = state(used), striped(2)
    alive = 0
    for use in range(100):
        if use == 20:
            alive = tensors_alive()
        method = ("gradcam", "layercam", "gradcam++", "eigencam", "fullgrad")[use % 5]
        with Heatmaps(used, "layer3" if use % 2 else "layer4") as h:
            h(images, ("predicted", "margin"), method, labels=labels)
    assert tensors_alive() == alive
    assert state(used) == before


@pytest.mark.parametrize("method", METHODS)
def test_whichever_pass_fails_the_exception_comes_through_and_the_model_is_as_it_was(method: str, used: Any) -> None:
    (images, _), layer = striped(2), "layer4" if method == "cam" else "layer3"
    before, expected = state(used), explain(used, images, 1, method, layer).raw
    failures = 0
    for failing in range(100):
        calls = iter(range(10**6))

        def fail(module: nn.Module, inputs: object, output: object, calls: Iterator[int] = calls, failing: int = failing) -> None:
            if next(calls) == failing:
                raise ZeroDivisionError

        handle = used.fc.register_forward_hook(fail)
        try:
            raw = explain(used, images, 1, method, layer).raw
        except ZeroDivisionError:
            failures += 1
        else:  # a failing trial run only means the longer way; or no pass was left to fail
            assert_close(raw, expected)
        handle.remove()
        assert state(used) == before
        if next(calls) <= failing:
            break
    assert failures >= 2


@pytest.mark.parametrize("caller", [torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)])
@pytest.mark.parametrize("method", METHODS)
def test_maps_do_not_depend_on_the_callers_modes(method: str, caller: Any) -> None:
    model, layer = build("resnet"), "layer4" if method == "cam" else "layer3"
    expected = explain(model, striped(2)[0], 1, method, layer).raw
    with caller:
        images, enabled = striped(2)[0], torch.is_grad_enabled()
        np.testing.assert_array_equal(explain(model, images, 1, method, layer).raw, expected)
        assert torch.is_grad_enabled() == enabled


# --- bad input ---


def test_values_that_are_not_finite_are_named() -> None:
    model, (images, _) = build("resnet"), striped(4)
    broken = images.clone()
    broken[2, 0, 10, 10] = torch.nan
    for method in METHODS:
        layer = "layer4" if method == "cam" else "layer3"
        with refused(DataError, r"image 2 of the batch[^\n]*finite"):
            explain(model, broken, 1, method, layer)
    with refused(DataError, r"image 2 of the batch"):
        explain(model, broken, 1, layer="layer3", batch_size=2)
    model.layer2.register_forward_hook(lambda module, inputs, output: output * torch.inf)
    with refused(DataError, r"layer3"):
        explain(model, images, 1, layer="layer3")


def test_images_of_the_wrong_kind_are_refused() -> None:
    model, (images, _) = build("resnet"), striped(2)
    with refused(DataError, r"1×32×32 images[^\n]*channels"):
        explain(model, images[:, :1])
    with refused(DataError, r"not torch.uint8 of shape \(2, 3, 32, 32\)"):
        explain(model, images.to(torch.uint8))
    with refused(DataError, r"shape \(3, 32, 32\)"):
        explain(model, images[0])


def test_labels_and_targets_that_do_not_fit_are_refused() -> None:
    model, (images, labels) = build("resnet"), striped(3)
    for wrong in (labels[:2], labels[:, None], labels.float()):
        with refused((DataError, RecipeError), r"label"):
            explain(model, images, "true", labels=wrong)
    with refused((DataError, RecipeError), rf"no class {CLASSES}"):
        explain(model, images, "true", labels=[0, 1, CLASSES])
    with refused(RecipeError, r"labels="):
        explain(model, images, "margin")
    with refused(RecipeError, r"N = 3"):
        explain(model, images, [0, 1])
    with refused(RecipeError, rf"no class {CLASSES}"):
        explain(model, images, CLASSES)
    with refused(RecipeError, r"one number an image"):
        explain(model, images, lambda logits: logits)
    with refused(RecipeError, r"did you mean 'predicted'"):
        explain(model, images, "predict")
