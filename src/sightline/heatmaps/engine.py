"""Where the model looked: Grad-CAM, signed and at layer resolution; drawing is apart, below it, in NumPy only.

Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) of a logit y at a layer of activations A_k, n cells:

    raw(i, j) = Σ_k w_k A_k(i, j),   w_k = 1/n Σ_ij ∂y/∂A_k(i, j)

`raw` keeps its sign; the paper's ReLU happens in drawing. Where only a global average pool and one linear layer follow,
the sum of `raw` over its cells plus the class's bias is the logit.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..exceptions import DataError, RecipeError, SightlineError
from .drawing import overlay

Targets = Literal["predicted"] | Tensor | NDArray[np.integer[Any]] | Sequence[int] | Sequence[Sequence[int]]

MIN_CELLS = 4 * 4  # layer "auto" wants more than these: at 4×4 or below, a map of an image says little about places


@dataclass(frozen=True)
class Maps:
    """Heatmaps of N images for one class an image, or for T of them.

    raw: (N, h, w) or (N, T, h, w) float32, signed, at layer resolution, in logits.  targets: (N,) or (N, T) int64, the
    classes explained.  logits: (N, classes) float32, of the images as given.  layer: the name of the layer.
    """

    raw: NDArray[np.float32]
    targets: NDArray[np.int64]
    logits: NDArray[np.float32]
    layer: str

    def overlay(self, images_NHWC: NDArray[np.uint8], weight: float = 0.725, colormap: str = "inferno") -> NDArray[np.uint8]:
        """Blend the maps over their images: see `overlay`."""
        return overlay(self.raw, images_NHWC, weight, colormap)


class Heatmaps:
    """Grad-CAM of a classifier, as a context manager.

        with Heatmaps(model, layer="auto") as h:
            maps = h(images, targets="predicted")

    layer: a name as in `model.named_modules()`, or "auto": the last layer whose output has more than 4×4 cells, found
    for each image size by one pass of a zero image; of several modules that return the same tensor, the outermost. A
    layer that runs several times is explained at its last run.

    Inside `with` every module is in evaluation mode; afterwards each is in the mode that it was in. Hooks live during a
    call only. Parameters, their gradients and `requires_grad` are never touched.

    Raises RecipeError for a layer that doesn't exist.
    """

    def __init__(self, model: nn.Module, layer: str = "auto") -> None:
        names = [name for name, _ in model.named_modules() if name]
        if layer not in ("auto", *names):
            close = difflib.get_close_matches(layer, names, n=5, cutoff=0.3) or [n for n, _ in model.named_children()]
            raise RecipeError(f"the model has no layer '{layer}': use 'auto', or one such as {', '.join(close)}")
        self._model, self._wanted = model, layer
        self._modes: dict[nn.Module, bool] = {}
        self._layers: dict[torch.Size, str] = {}

    def __enter__(self) -> Heatmaps:
        if self._modes:
            raise SightlineError("these heatmaps are open already; leave the first `with` before the next")
        self._modes = {module: module.training for module in self._model.modules()}
        # Set by hand: `model.eval()` may be overridden to do more, which could not be taken back.
        for module in self._modes:
            module.training = False
        return self

    def __exit__(self, *exception: object) -> None:
        for module, mode in self._modes.items():
            module.training = mode
        self._modes = {}

    def __call__(
        self, images: Tensor, targets: Targets = "predicted", *, aug_smooth: bool = False, eigen_smooth: bool = False
    ) -> Maps:
        """Return the maps of images (N, C, H, W) float, *normalised* as in training, on the model's device.

        targets: "predicted", or class indices (N,), or (N, T) for T maps an image.

        aug_smooth: the mean of the raw maps of six views, {as is, flipped left to right} × {0.9, 1, 1.1} times the
        normalised values, as in pytorch-grad-cam; but all views explain the same class, and nothing is rescaled before
        the mean.
        eigen_smooth: instead of the sum over channels, the first principal component of the weighted activations w_k
        A_k: with cells as rows, channels as columns and each column's mean taken off, X = U S Vᵀ, the map is S₁ U₁. Its
        mean is zero; its sign is the one that correlates positively with the plain map.

        Raises DataError for images of another form and for activations that aren't finite, RecipeError for classes that
        don't exist and for a layer without spatial extent or influence on the logits.
        """
        if not self._modes:
            raise SightlineError("heatmaps are computed inside `with Heatmaps(model) as h:` only: open it there")
        if images.ndim != 4 or not images.is_floating_point():
            found = f"{images.dtype} of shape {tuple(images.shape)}"
            raise DataError(f"heatmaps need float images (N, C, H, W), not {found}: normalise as in training")
        size = images.shape[1:]
        if size not in self._layers:
            self._layers[size] = _choose_layer(self._model, self._wanted, images.new_zeros(1, *size))
        layer = self._layers[size]
        raw, classes, logits = _grad_cam(self._model, layer, images, targets, eigen_smooth)
        if aug_smooth:
            raw = raw / 6
            for scale, flip in list(product((1.0, 0.9, 1.1), (False, True)))[1:]:
                view = scale * (images.flip(3) if flip else images)
                smooth, _, _ = _grad_cam(self._model, layer, view, classes, eigen_smooth)
                raw += (smooth.flip(-1) if flip else smooth) / 6
        return Maps(raw.cpu().numpy(), classes.cpu().numpy(), logits.cpu().numpy(), layer)


def _grad_cam(model: nn.Module, layer: str, images: Tensor, targets: Targets, eigen: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the raw maps, the classes that they explain and the logits, all on the images' device."""
    with _float32_without_graph(images.device):
        activations, logits = _cut_forward(model, layer, images)
        classes = _classes(targets, logits)
        columns = (classes if classes.ndim == 2 else classes[:, None]).unbind(1)
        maps = []
        for i, column in enumerate(columns):
            chosen = F.one_hot(column, logits.shape[1]).to(logits)
            keep = i + 1 < len(columns)
            (gradient,) = torch.autograd.grad(logits, activations, chosen, retain_graph=keep, allow_unused=True)
            if gradient is None:
                raise RecipeError(f"the logits do not depend on layer '{layer}': use another one, or 'auto'")
            weighted = gradient.float().mean((2, 3), keepdim=True) * activations.detach().float()
            maps.append(_principal(weighted) if eigen else weighted.sum(1))
        raw = torch.stack(maps, 1).reshape(*classes.shape, *activations.shape[2:])
        return raw, classes, logits.detach().float()


@contextmanager
def _float32_without_graph(device: torch.device) -> Iterator[None]:
    """Undo what the caller may have switched on (`inference_mode`, `autocast`), and build no graph unless told to."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _cut_forward(model: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run the model with its graph cut at `layer`: return the layer's output, as a leaf, and the logits."""
    leaves: list[Tensor] = []

    def cut(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # from here on: the trunk below the layer needs no graph
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # the next module may work in place: no leaf allows that

    with model.get_submodule(layer).register_forward_hook(cut):
        logits = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise RecipeError("heatmaps need a model that returns logits (N, classes): wrap it in a module that does")
    if not logits.requires_grad:
        raise RecipeError(f"no gradient reaches layer '{layer}': use a later one, or 'auto'")
    broken = ~(leaves[-1].isfinite().flatten(1).all(1) & logits.isfinite().all(1))
    if broken.any():
        first = int(broken.nonzero()[0])
        raise DataError(f"image {first} of the batch gives values that aren't finite: check its pixels and the weights")
    return leaves[-1], logits


def _classes(targets: Targets, logits: Tensor) -> Tensor:
    """Return `targets` as checked class indices, (N,) or (N, T) int64."""
    if isinstance(targets, str):
        if targets != "predicted":
            raise RecipeError(f"unknown targets '{targets}': use 'predicted', or class indices (N,) or (N, T)")
        return logits.detach().argmax(1)
    classes = targets if isinstance(targets, Tensor) else torch.tensor(targets)
    fits = classes.ndim in (1, 2) and len(classes) == len(logits) and 0 not in classes.shape[1:]
    if classes.is_floating_point() or not fits:
        found = f"{classes.dtype} of shape {tuple(classes.shape)}"
        raise RecipeError(f"targets are whole numbers (N,) or (N, T) for N = {len(logits)} images, not {found}")
    wrong = classes[(classes < 0) | (classes >= logits.shape[1])]
    if len(wrong):
        raise RecipeError(f"there is no class {int(wrong[0])}: targets go from 0 to {logits.shape[1] - 1}")
    return classes.to(logits.device, torch.int64)


def _principal(weighted: Tensor) -> Tensor:
    """First principal component over the cells of (N, K, h, w), with the sign of the sum over channels: (N, h, w)."""
    cells = weighted.flatten(2).transpose(1, 2)
    u, s, _ = torch.linalg.svd(cells - cells.mean(1, keepdim=True), full_matrices=False)
    component = u[..., 0] * s[..., :1]
    agreement = (component * cells.sum(2)).sum(1, keepdim=True)  # the component's mean is zero: a covariance
    return torch.where(agreement < 0, -component, component).reshape(len(weighted), *weighted.shape[2:])


def _choose_layer(model: nn.Module, wanted: str, example: Tensor) -> str:
    """Return the layer to explain for images like `example` (1, C, H, W)."""
    outputs = _outputs(model, example)
    stages = _stages(outputs)
    advice = "use " + " or ".join(f"'{name}' ({cells})" for name, cells in stages.items())
    pixels = "×".join(map(str, example.shape[2:]))
    if wanted == "auto":
        if not stages:
            raise RecipeError(f"no layer has more than 4×4 cells on {pixels} images: name one, or use larger images")
        return next(iter(stages))
    output = outputs.get(wanted)
    if output is None or output.ndim != 4 or output.shape[2:].numel() < 2:
        shape = "no tensor" if output is None else str(tuple(output.shape[1:]))
        reason = f"layer '{wanted}' has no spatial extent on {pixels} images (it returns {shape})"
        raise RecipeError(f"{reason}: {advice if stages else 'use larger images'}")
    return wanted


def _outputs(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """Return each module's last output, in the order of execution; modules that return no tensor are left out."""
    outputs: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            outputs.pop(name, None)  # a module that runs again belongs at the end
            if isinstance(output, Tensor):
                outputs[name] = output

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _stages(outputs: dict[str, Tensor]) -> dict[str, str]:
    """Return for each resolution above 4×4 cells its last layer, and the cells in words, the last resolution first."""
    stages: dict[str, str] = {}
    for output in reversed(outputs.values()):
        cells = "×".join(map(str, output.shape[2:]))
        if output.ndim == 4 and output.shape[2:].numel() > MIN_CELLS and cells not in stages.values():
            same = [name for name, other in reversed(outputs.items()) if other is output]
            stages[min(same, key=lambda name: name.count("."))] = cells
    return stages
