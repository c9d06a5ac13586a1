"""Residual networks for small images, models by name, and how images become their input.

The ResNets are those of He et al. 2015 (https://arxiv.org/abs/1512.03385) in the form that is usual for 32×32 images: a 3×3
stem with stride 1 and no max-pool, so that the last stage still has 4×4 cells. Modules are named as in torchvision (`conv1`,
`bn1`, `layer1` … `layer4`, `fc`). ResNet-18 with 10 classes has exactly 11,173,962 parameters.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .exceptions import RecipeError, nearest
from .lean import MaxPool, UnscaledNorm


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(channels_in, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut (ResNet-50, -101 and -152)."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.downsample = _shortcut(channels_in, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.downsample(x))


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    convolution = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


class ResNet(nn.Module):
    """A ResNet for small images: (N, channels, H, W) float → logits (N, classes).

    `blocks` is the number of blocks in each of the four stages; stage i has `width`·2^i channels (times the block's expansion).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        *,
        classes: int,
        channels: int = 3,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages, channels_in = [], width
        for i, depth in enumerate(blocks):
            layers: list[nn.Module] = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                layers.append(block(channels_in, width * 2**i, stride))
                channels_in = width * 2**i * block.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class SmallNet(nn.Module):
    """Four 3×3 convolutions with batch norm: 97 k parameters at width 16, for demonstrations and tests.

    (N, channels, H, W) float → logits (N, classes). The third stage keeps a quarter of the input's side.
    """

    def __init__(self, *, classes: int, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width, 8 * width)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)
        )
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.layer1(x), 2)
        x = F.max_pool2d(self.layer2(x), 2)
        x = self.layer3(x)
        x = self.layer4(F.max_pool2d(x, 2))
        logits: Tensor = self.fc(x.amax((2, 3)))
        return logits


class FastNet(nn.Module):
    """A small, wide net that learns fast: (N, channels, H, W) float → logits (N, classes).

    After K. Jordan's airbench94 (https://arxiv.org/abs/2404.00498): a frozen first layer that whitens 2×2 patches of the data,
    few wide convolutions that start as identities, max-pooling right after a convolution, norms without a scale. Images of 32×32
    pixels leave layer3 with 7×7 cells. Where the training images' sides have 128 pixels and more, all images are averaged down
    first, by the factor (a whole number, kept with the weights) that leaves the training images 64 to 127.
    """

    def __init__(self, *, classes: int, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        patch = 4 * channels
        self.reduction = 1
        self.whiten = nn.Conv2d(channels, 2 * patch, 2, bias=False)
        self.whiten.weight.requires_grad_(False)
        self.layer1 = nn.Sequential(*_norm_act(2 * patch, width, pool=True), *_norm_act(width, width))
        self.layer2 = nn.Sequential(*_norm_act(width, 4 * width, pool=True), *_norm_act(4 * width, 4 * width))
        self.layer3 = nn.Sequential(*_norm_act(4 * width, 4 * width), *_norm_act(4 * width, 4 * width))
        self.fc = nn.Linear(4 * width, classes, bias=False)
        with torch.no_grad():
            self.fc.weight /= self.fc.weight.std() * 4 * width

    @torch.no_grad()
    def adapt(self, images: Tensor) -> None:
        """Take the reduction from the side of `images` (N, channels, H, W), and the first layer's filters from their 2×2 patches.

        The filters are those that make the patches white, and minus those:
        the rows of E/√(λ + 5e-4), with the eigenvectors E and eigenvalues λ of the patches' second moments.
        """
        self.reduction = max(min(images.shape[2:]) // 64, 1)
        images = self._reduced(images).cpu()  # Apple's GPUs have no float64
        channels = images.shape[1]
        sums, count = torch.zeros(4 * channels, 4 * channels, dtype=torch.float64), 0
        for some in images.split(500):
            patches = F.unfold(some, 2).double().transpose(1, 2).reshape(-1, 4 * channels)
            sums, count = sums + patches.T @ patches, count + len(patches)
        values, vectors = torch.linalg.eigh(sums / count)
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(-1, channels, 2, 2)
        self.whiten.weight.copy_(torch.cat((filters, -filters)))

    def forward(self, x: Tensor) -> Tensor:
        x = self._reduced(x)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16's 8 bits are too few for the small components
            x = self.whiten(x.float())
        x = F.gelu(x)
        x = self.layer3(self.layer2(self.layer1(x)))
        # Not amax, whose way back takes several times as long on a CPU.
        x = F.adaptive_max_pool2d(x, 1).flatten(1)
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 an unsure image's largest logits would often tie
            logits: Tensor = self.fc(x.float())
        return logits

    def _reduced(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.reduction) if self.reduction > 1 else x

    def get_extra_state(self) -> Tensor:
        """The reduction, kept with the weights."""
        return torch.tensor(self.reduction)

    def set_extra_state(self, state: Tensor) -> None:
        self.reduction = int(state)


def _norm_act(channels_in: int, channels: int, *, pool: bool = False) -> list[nn.Module]:
    """A convolution that starts as the identity on its first channels, a pooling, a norm without a scale, and GELU."""
    conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:channels_in])
    return [conv, *([MaxPool()] if pool else []), UnscaledNorm(channels, momentum=0.2), nn.GELU()]


@runtime_checkable
class Adapting(Protocol):
    """A model that takes something from the training images before it is trained."""

    def adapt(self, images: Tensor) -> None:
        """images: some thousands, normalised, (N, channels, H, W) float32."""


MODELS: dict[str, tuple[Callable[..., nn.Module], int]] = {  # each with its width
    "resnet18": (partial(ResNet, BasicBlock, (2, 2, 2, 2)), 64),
    "resnet34": (partial(ResNet, BasicBlock, (3, 4, 6, 3)), 64),
    "resnet50": (partial(ResNet, Bottleneck, (3, 4, 6, 3)), 64),
    "resnet101": (partial(ResNet, Bottleneck, (3, 4, 23, 3)), 64),
    "resnet152": (partial(ResNet, Bottleneck, (3, 8, 36, 3)), 64),
    "smallnet": (SmallNet, 16),
    "fastnet": (FastNet, 64),
}


def build(name: str, *, classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """Return the model called `name` with fresh weights, drawn from torch's global generator.

    `name` is one of MODELS, whose channels are multiplied by `width`, or "package.module:factory" for a function of your own that
    takes the number of classes and returns an nn.Module; it is looked for in the current folder too. Raises RecipeError for a
    name that is neither, and for a width with a model of your own.
    """
    if ":" in name:
        if width != 1:
            raise RecipeError(f"width is {width:g}, but '{name}' is a model of your own; set its width there")
        return _imported(name, classes)
    if name not in MODELS:
        raise RecipeError(f"unknown model '{name}': {nearest(name, MODELS)}; or give package.module:factory of your own")
    make, channels_wide = MODELS[name]
    return make(classes=classes, channels=channels, width=max(1, round(width * channels_wide)))


def _imported(name: str, classes: int) -> nn.Module:
    module, _, factory = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        make = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"cannot find the model '{name}' ({error}); check the module's and the function's name") from None
    except Exception as error:  # it is somebody's file: anything can go wrong while it is read
        raise RecipeError(f"the model's file '{module}' has a mistake ({type(error).__name__}: {error}); mend it") from error
    try:
        model = make(classes)
    except Exception as error:
        raise RecipeError(f"the model '{name}' failed ({type(error).__name__}: {error}); it is called with {classes}") from error
    if not isinstance(model, nn.Module):
        raise RecipeError(f"the model '{name}' returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def best_device() -> str:
    """Return "cuda" or "mps" where torch has one, else "cpu"."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator is not None else "cpu"


def device_of(name: str | None) -> torch.device:
    """Return the device called `name`, or the best there is for None. Raises RecipeError for one that can't be used here."""
    try:
        device = torch.device(name or best_device())
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"cannot use the device '{name}' here ({reason}); leave out --device, or give cpu") from None
    return device


def to_device(images: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """Return images (N, H, W, 3) uint8 as a tensor (N, 3, H, W) on `device`, still channels last in memory."""
    writable = np.require(images, requirements=["C", "W"])  # a memory map is copied: torch warns of arrays that it can't write to
    return torch.from_numpy(writable).to(device).permute(0, 3, 1, 2)


def at_once(size: tuple[int, int], device: torch.device) -> int:
    """Return how many images of `size` (height, width) to ask a model about at once: memory goes by pixels.

    On a CPU fewer: more of what lies between the layers stays in its caches.
    """
    height, width = size
    return max(1, (125 if device.type == "cpu" else 500) * 32 * 32 // (height * width))


class Normalise:
    """uint8 batch (N, 3, H, W) → float32 with the data set's mean 0 and deviation 1 a channel; mean and std on the 0–1 scale.

    The result lies in memory as `memory_format` says, channels first or last.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> None:
        self.shift = 255 * torch.tensor(mean, device=device)[:, None, None]
        self.scale = 1 / (255 * torch.tensor(std, device=device)[:, None, None])

    def __call__(self, images: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        # In place and over long rows: with new memory a step, or rows of three channels, it takes ten times as long.
        if memory_format is torch.channels_last:
            levels = images.permute(0, 2, 3, 1).contiguous().float()
            shift, scale = (each.expand(-1, *images.shape[2:]).permute(1, 2, 0).flatten() for each in (self.shift, self.scale))
            levels.flatten(1).sub_(shift).mul_(scale)
            return levels.permute(0, 3, 1, 2)
        return images.contiguous().float().sub_(self.shift).mul_(self.scale)


class Layer(NamedTuple):
    """One row of a model's table: depth in the tree of modules, name, class name, output shape and own parameters."""

    depth: int
    name: str
    kind: str
    shape: str
    parameters: int


def layers(model: nn.Module, size: int | tuple[int, int], channels: int = 3) -> list[Layer]:
    """Return a row for each module of `model`, in the order of its calls; the model is left as it was.

    The input is one image of `size` (height and width, or both). `parameters` counts those that a module owns itself, where it is
    called first. Raises RecipeError where the model
    doesn't take such an input.
    """
    import torchinfo

    height, width = (size, size) if isinstance(size, int) else size
    modes = {module: module.training for module in model.modules()}
    try:
        found = torchinfo.summary(model, (1, channels, height, width), depth=100, verbose=0, device="cpu", mode="eval")
    except RuntimeError as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise RecipeError(f"the model doesn't take a {channels}×{height}×{width} image ({cause}); try another --size") from None
    finally:
        for module, mode in modes.items():
            module.training = mode
    return [
        Layer(
            layer.depth,
            layer.var_name,
            layer.class_name,
            "×".join(map(str, layer.output_size[1:])),
            0 if layer.is_recursive else sum(p.numel() for p in layer.module.parameters(recurse=False)),
        )
        for layer in found.summary_list
    ]
