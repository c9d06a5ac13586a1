"""The networks: their sizes, their shapes, and what they compute, against a literal second writing of ResNet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.exceptions import RecipeError
from sightline.models import Normalise, build, layers, to_device

# Parameters with a 3×3 stem and 10 classes: those of ImageNet's ResNets less 49·3·64 of the 7×7 stem plus 9·3·64 of the 3×3 one,
# and less 1000·(d + 1) of the head plus 10·(d + 1); ImageNet's counts are those of torchvision's documentation.
IMAGENET = {"resnet18": (11_689_512, 512), "resnet34": (21_797_672, 512), "resnet50": (25_557_032, 2048)}
IMAGENET |= {"resnet101": (44_549_160, 2048), "resnet152": (60_192_808, 2048)}


@pytest.mark.parametrize("name", IMAGENET)
def test_parameters_are_those_of_the_paper_s_networks(name: str) -> None:
    imagenet, width = IMAGENET[name]
    expected = imagenet - 40 * 3 * 64 - 990 * (width + 1)
    with torch.device("meta"):
        assert sum(p.numel() for p in build(name, classes=10).parameters()) == expected


def test_resnet18_with_ten_classes_has_exactly_11173962_parameters() -> None:
    assert sum(p.numel() for p in build("resnet18", classes=10).parameters()) == 11_173_962


def literal_resnet(state: dict[str, Tensor], x: Tensor, blocks: tuple[int, ...], convolutions: int) -> Tensor:
    """ResNet as functions of its weights, in evaluation mode: convolution, batch norm by its formula, ReLU, shortcut."""

    def conv_bn(x: Tensor, conv: str, bn: str, stride: int) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, variance, scale, shift = (
            state[f"{bn}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    x = conv_bn(x, "conv1", "bn1", 1).clamp(min=0)
    for stage, depth in enumerate(blocks, start=1):
        for j in range(depth):
            at, stride = f"layer{stage}.{j}", 2 if stage > 1 and j == 0 else 1
            out = x
            for k in range(1, convolutions + 1):
                strided = k == (1 if convolutions == 2 else 2)
                out = conv_bn(out, f"{at}.conv{k}", f"{at}.bn{k}", stride if strided else 1)
                out = out.clamp(min=0) if k < convolutions else out
            if f"{at}.downsample.0.weight" in state:
                x = conv_bn(x, f"{at}.downsample.0", f"{at}.downsample.1", stride)
            x = (out + x).clamp(min=0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("name, blocks, convolutions", [("resnet18", (2, 2, 2, 2), 2), ("resnet50", (3, 4, 6, 3), 3)])
def test_the_logits_equal_a_literal_resnet(name: str, blocks: tuple[int, ...], convolutions: int) -> None:
    torch.manual_seed(0)
    model = build(name, classes=10)
    for module in model.modules():  # statistics and scales that make every term of batch norm count
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_mean, module.bias):
                nn.init.normal_(value, 0, 0.1)
            for value in (module.running_var, module.weight):
                nn.init.uniform_(value, 0.5, 1.5)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(x), literal_resnet(model.state_dict(), x, blocks, convolutions), rtol=1e-4, atol=1e-4
        )


def test_the_stages_have_32_16_8_and_4_cells_a_side() -> None:
    rows = {row.name: row.shape for row in layers(build("resnet18", classes=10), 32) if row.depth == 1}
    assert [rows[f"layer{i}"] for i in (1, 2, 3, 4)] == ["64×32×32", "128×16×16", "256×8×8", "512×4×4"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def literal_fastnet(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The fast net as functions of its weights, in evaluation mode."""

    def block(x: Tensor, layer: str, i: int, pool: bool) -> Tensor:
        weight = state[f"{layer}.{i}.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if pool:
            height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
            x = torch.stack([x[:, :, a:height:2, b:width:2] for a in (0, 1) for b in (0, 1)]).amax(0)
        norm = f"{layer}.{i + 1 + pool}"
        mean, variance, shift = (state[f"{norm}.{k}"][:, None, None] for k in ("running_mean", "running_var", "bias"))
        return gelu((x - mean) / (variance + 1e-5).sqrt() + shift)

    x = gelu(F.conv2d(x, state["whiten.weight"]))
    for layer in ("layer1", "layer2"):
        x = block(block(x, layer, 0, True), layer, 4, False)
    x = block(block(x, "layer3", 0, False), "layer3", 3, False)
    return x.amax((2, 3)) @ state["fc.weight"].T


@pytest.mark.parametrize("size", [32, 45])
def test_the_logits_equal_a_literal_fast_net(size: int) -> None:
    torch.manual_seed(0)
    model = build("fastnet", classes=7, width=0.25)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_mean, module.bias):
                nn.init.normal_(value, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), literal_fastnet(model.state_dict(), x), rtol=1e-4, atol=1e-5)


def test_the_fast_net_s_head_computes_in_float32_whatever_the_rest_does() -> None:
    torch.manual_seed(0)
    model, seen = build("fastnet", classes=10, width=0.25).eval(), []
    model.layer3.register_forward_hook(lambda module, given, result: seen.append(result))  # type: ignore[union-attr]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(4, 3, 32, 32))
    assert seen[0].dtype == torch.bfloat16 and logits.dtype == torch.float32
    torch.testing.assert_close(logits, seen[0].float().amax((2, 3)) @ model.state_dict()["fc.weight"].T, rtol=1e-6, atol=1e-6)


def test_the_fast_net_s_last_stage_has_7_cells_a_side_and_large_images_are_averaged_down_first() -> None:
    model = build("fastnet", classes=10, width=0.25)
    rows = {row.name: row.shape for row in layers(model, 32) if row.depth == 1}
    assert [rows[f"layer{i}"] for i in (1, 2, 3)] == ["16×15×15", "64×7×7", "64×7×7"]
    x = torch.randn(1, 3, 130, 200)
    model.adapt(x)  # type: ignore[operator]
    assert int(model.state_dict()["_extra_state"]) == 2
    with torch.no_grad():
        halved = (x[:, :, 0:130:2, 0:200:2] + x[:, :, 1::2, 0::2] + x[:, :, 0::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        found = model.eval()(x)
        model.reduction = 1
        torch.testing.assert_close(found, model(halved), rtol=1e-4, atol=1e-5)


def test_width_multiplies_the_channels() -> None:
    assert build("resnet18", classes=10, width=0.5).fc.in_features == 256  # type: ignore[union-attr]
    assert build("fastnet", classes=10).fc.in_features == 256  # type: ignore[union-attr]
    assert sum(p.numel() for p in build("resnet18", classes=10, width=1.0).parameters()) == 11_173_962


def test_the_table_s_parameters_add_up_and_the_model_is_left_as_it_was() -> None:
    model = build("resnet18", classes=10).train()
    assert sum(row.parameters for row in layers(model, 32)) == 11_173_962
    assert all(module.training for module in model.modules())


def test_a_layer_that_is_called_twice_is_counted_once_and_images_need_not_be_square() -> None:
    convolution = nn.Conv2d(3, 3, 3, padding=1)
    rows = layers(nn.Sequential(convolution, convolution), (16, 40))
    assert sum(row.parameters for row in rows) == 3 * 3 * 9 + 3
    assert rows[-1].shape == "3×16×40"


def test_an_image_that_is_too_small_is_refused() -> None:
    with pytest.raises(RecipeError, match="try another --size"):
        layers(nn.Sequential(nn.Conv2d(3, 4, 9)), 4)


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'resnet18'"):
        build("resnet-18", classes=10)


@pytest.mark.parametrize("name", ["no_such_module:make", "collections:no_such_function", ":make", "json:loads:x"])
def test_a_factory_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="cannot find the model"):
        build(name, classes=10)


def test_a_factory_that_makes_no_module_is_refused() -> None:
    with pytest.raises(RecipeError, match="must return a torch"):
        build("builtins:str", classes=10)


def test_normalise_gives_mean_0_and_deviation_1() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    mean, std = (tuple(f((images / 255), axis=(0, 1, 2))) for f in (np.mean, np.std))
    x = Normalise(mean, std)(to_device(images))
    expected = (images.transpose(0, 3, 1, 2) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(x, expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(5, 3, 8, 6), (5, 1, 6, 8), (1, 3, 1, 1), (0, 3, 8, 8)])
def test_normalise_gives_the_same_channels_first_and_last(shape: tuple[int, int, int, int]) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    channels = shape[1]
    normalise = Normalise((0.1, 0.5, 0.9)[:channels], (0.2, 0.3, 0.4)[:channels])
    first = normalise(images)
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        last = normalise(given, torch.channels_last)
        assert torch.equal(last, first)
        assert last.is_contiguous(memory_format=torch.channels_last) or not len(images)  # none is laid out so, says torch
    assert first.is_contiguous()


def test_importing_sightline_imports_no_torch() -> None:
    code = "import sys, sightline, sightline.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False).returncode == 0
