"""The heatmap engine: raw signed maps at layer resolution, for any method, target, layer and network.

    with Heatmaps(model) as h:
        maps = h(images, ("predicted", "true", "margin"), labels=labels)

What makes it exact: maps keep their sign and scale (the papers' ReLU and every stretching belong to drawing), nothing that isn't
finite passes, and where only a global average pool and one linear layer follow, each map is checked to sum to its score.

What makes it fast: no graph is built below the layer; one run of the model serves all targets; a margin is the difference of two
gradients that are there already; where the true class is the predicted one it costs nothing; and with a pool and a linear
layer after it, a layer's gradients are the linear layer's weights, so that no backward pass is needed at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..exceptions import DataError, RecipeError, SightlineError, nearest
from ..precision import has_bfloat16, wait
from .batch import Batch, Method, kind_of
from .drawing import pictures, sheet, upsample
from .layers import check_name
from .methods import METHODS
from .network import Network, Output, Plan
from .targets import Targets, Wanted, parse

SHOWN, SIDE = 8, 160  # images in `Maps.picture`, and their side in pixels
PRECISIONS = ("fp32", "bf16", "auto")
VIEWS = tuple(product((1.0, 0.9, 1.1), (False, True)))  # of `aug_smooth`: a factor, and whether flipped; the plain one first


@dataclass(frozen=True)
class Maps:
    """Heatmaps of N images for one target an image, or for T of them.

    raw: (N, h, w) or (N, T, h, w) float32, signed, at layer resolution.  targets: (N,) or (N, T) int64, the classes explained; −1
    where a target isn't one class.  logits: (N, classes) float32, of the images as given.  layer: its name; of several, with "+";
    of FullGrad, "input".  scores: like `targets`, float32: the numbers explained.  completeness: like `scores`: how far the map
    is from summing to its score, as a fraction; NaN where a method's maps sum to nothing in particular (see
    `Heatmaps.__call__`).  by_layer: each layer's own raw maps, where several were fused.
    """

    raw: NDArray[np.float32]
    targets: NDArray[np.int64]
    logits: NDArray[np.float32]
    layer: str
    method: str
    scores: NDArray[np.float32]
    completeness: NDArray[np.float32]
    by_layer: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def overlay(self, images_NHWC: NDArray[np.uint8], weight: float = 0.725, colormap: str = "inferno") -> NDArray[np.uint8]:
        """Draw the maps over their images: (N, H, W, 3), or (N, T, H, W, 3) uint8.

        A class's map is drawn by `overlay`, what is no one class, such as a margin, by `diverging`.
        """
        raw, targets = (self.raw, self.targets) if self.raw.ndim == 4 else (self.raw[:, None], self.targets[:, None])
        signed = [bool((column < 0).all()) for column in targets.T]
        drawn = pictures(raw, images_NHWC, signed, weight, colormap)
        return drawn if self.raw.ndim == 4 else drawn[:, 0]

    def picture(self, images_NHWC: NDArray[np.uint8] | None = None) -> bytes:
        """Return a PNG: a row an image, at most eight, the image and its maps, each with its class and score.

        Without images (N, H, W, 3) uint8, the maps alone, orange above zero and blue below.
        """
        n = min(len(self.raw), SHOWN)
        raw = self.raw[:n].reshape(n, -1, *self.raw.shape[-2:])
        targets, scores = self.targets[:n].reshape(n, -1), self.scores[:n].reshape(n, -1)
        if images_NHWC is None:
            grey = np.full((n, SIDE, SIDE, 3), 128, np.uint8)
            rows = [list(maps) for maps in pictures(raw, grey, [True] * raw.shape[1])]
        else:
            drawn = replace(self, raw=raw, targets=targets).overlay(images_NHWC[:n])
            rows = [[image, *maps] for image, maps in zip(images_NHWC, drawn, strict=False)]
        words = [
            [f"class {target}: {score:+.2f}" if target >= 0 else f"{score:+.2f}" for target, score in zip(*row, strict=True)]
            for row in zip(targets, scores, strict=True)
        ]
        titles = [[*["image"] * (images_NHWC is not None), *row] for row in words]
        return sheet(rows, titles, SIDE)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self.picture()


@dataclass
class _Piece:
    """The maps of one batch, on its device: by layer (N, T, h, w), scores and completeness (N, T), logits, settled targets."""

    maps: dict[str, Tensor]
    scores: Tensor
    completeness: Tensor
    logits: Tensor
    wanted: list[Wanted]


class Heatmaps:
    """Heatmaps of a classifier, as a context manager.

        with Heatmaps(model, layer="auto") as h:
            maps = h(images, targets="predicted", method="gradcam")

    layer: a name as in `model.named_modules()`, or several, whose maps are fused, or "auto": the last layer whose output has more
    than 4×4 cells that the logits depend on, found for each image size by one pass of one image; of several modules that return
    the same tensor, the outermost. A layer that runs several times is explained at its last run.

    reshape: how to read the layer's output as (N, K, h, w), where that isn't seen by itself (tokens with one or more class tokens
    before them and channel-last maps are); a function that only rearranges values.
    output: which of a model's several outputs are the logits: a key, an attribute, a position, or a function of the output.
    precision: "fp32"; "bf16" for bfloat16 arithmetic (autocast); "auto" for the faster of them on the first batch, provided that
    there bfloat16 predicts the same classes (at most one image or 0.5 % differ) and its maps correlate by 0.99 on average.
    batch_size: images that are worked on at once; more may be given.

    Where a method runs what follows the layer again, what precedes it is skipped: hooks of your own see NaN there, and one model
    is explained by one thread at a time. A model inside `torch.compile`, DataParallel or DistributedDataParallel is explained as
    the plain module that it wraps.

    Inside `with` every module is in evaluation mode; afterwards each is in the mode that it was in. Hooks live during a
    call only. Parameters, their gradients, `requires_grad` and memory format are never touched.

    Raises RecipeError for a layer that doesn't exist.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | Sequence[str] = "auto",
        *,
        reshape: Callable[[Tensor], Tensor] | None = None,
        output: Output = None,
        precision: str = "fp32",
        batch_size: int = 128,
    ) -> None:
        if precision not in PRECISIONS:
            raise RecipeError(f"unknown precision '{precision}': {nearest(precision, PRECISIONS)}")
        if batch_size < 1:
            raise RecipeError(f"a batch has at least one image, not {batch_size}")
        self._network = Network(model, output)
        self._layers = [layer] if isinstance(layer, str) else list(layer)
        if not self._layers:
            raise RecipeError("name at least one layer, or 'auto'")
        for name in self._layers:
            if name != "auto":
                check_name(self._network.model, name)
        self._reshape, self._batch_size = reshape, batch_size
        self._bf16: bool | None = {"fp32": False, "bf16": True, "auto": None}[precision]
        self._modes: dict[nn.Module, bool] = {}
        self._plans: dict[tuple[torch.Size, torch.device], Plan] = {}

    @property
    def precision(self) -> str:
        """The arithmetic used: "fp32" or "bf16", or "auto" as long as it isn't settled."""
        return "auto" if self._bf16 is None else "bf16" if self._bf16 else "fp32"

    def __enter__(self) -> Heatmaps:
        if self._modes:
            raise SightlineError("these heatmaps are open already; leave the first `with` before the next")
        self._modes = {module: module.training for module in self._network.model.modules()}
        # Set by hand: `model.eval()` may be overridden to do more, which could not be taken back.
        for module in self._modes:
            module.training = False
        return self

    def __exit__(self, *exception: object) -> None:
        for module, mode in self._modes.items():
            module.training = mode
        self._modes = {}
        self._plans = {}  # they hold one image's activations

    def __call__(
        self,
        images: Tensor,
        targets: Targets = "predicted",
        method: Method | Sequence[Method] = "gradcam",
        *,
        labels: Tensor | NDArray[np.integer[Any]] | Sequence[int] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        fuse: str = "mean",
    ) -> Maps:
        """Return the maps of images (N, C, H, W) float, *normalised* as in training, on the model's device.

        targets, what each map explains, is one of
          - "predicted", "true" (needs labels), a class for all images, or classes (N,): their logits;
          - "margin", the predicted class's logit minus the true one's, or a `Margin` of any two;
          - "embedding": what the last linear layer takes in, times itself held fixed: what makes the embedding what it is;
          - a function of the logits (N, classes) that returns a number an image (N,);
          - classes (N, T), or a list or tuple of the above but not of class indices alone: T maps an image.
        method: a name in METHODS, what `captum_method` returns, or one a target.
        labels: the true classes (N,).

        aug_smooth: the mean of the raw maps of six views, {as is, flipped left to right} × {0.9, 1, 1.1} times the
        normalised values, as in pytorch-grad-cam; but all views explain the same class, and nothing is rescaled before
        the mean.
        eigen_smooth: instead of the sum over channels, the first principal component of the weighted activations factor_k
        A_k: with cells as rows, channels as columns and each column's mean taken off, X = U S Vᵀ, the map is S₁ U₁. Its
        mean is zero; its sign is the one that correlates positively with the plain map.
        fuse: "mean" or "max" of several layers' maps, each divided by its largest absolute value and upsampled to the finest.

        `completeness` of the result: where only a global average pool and a linear layer follow the layer, |score − bias − sum of
        the map| relative to the sum of the absolute terms, for CAM (its mean), Grad-CAM, XGrad-CAM and HiResCAM; elsewhere
        |score − sum of the map| / |score| for XGrad-CAM and HiResCAM, which sum to gradient × activation, and for FullGrad
        before its ψ.

        Raises DataError for images of another form, activations or maps that aren't finite, or a sum rule that doesn't hold;
        RecipeError for targets, methods and layers that don't exist or don't go together.
        """
        self._check_call(images, fuse)
        wanted, several = ([], False) if _is_embedding(targets) else parse(targets, len(images), labels=labels is not None)
        methods = _methods(method, max(len(wanted), 1))
        true = _labels(labels, len(images))
        pieces = []
        for start in range(0, max(len(images), 1), self._batch_size):  # without images, one empty batch tells the shape
            rows, self._network.first = slice(start, start + self._batch_size), start
            batch = images[rows]
            plan = self._plan(batch)
            own = [target.rows(rows) for target in wanted]
            labels_here = None if true is None else true[rows].to(images.device)
            if self._bf16 is None and len(batch):
                self._bf16 = self._bf16_is_better(batch, plan)
            piece = self._smooth(batch, plan, own, labels_here, methods, eigen_smooth, aug_smooth)
            pieces.append(_finished(piece, several))
        return _joined(pieces, "+".join(dict.fromkeys(map(_name, methods))), fuse)

    def stream(
        self,
        batches: Iterable[Tensor | tuple[Tensor, Tensor]],
        targets: Targets = "predicted",
        method: Method | Sequence[Method] = "gradcam",
        *,
        progress: Callable[[int], None] = lambda done: None,
        **options: Any,
    ) -> Iterator[Maps]:
        """Yield the maps of each batch, images or (images, labels): memory stays that of one batch, whatever their number is.

        Arguments as in a call; targets can't be class indices (N,), for batches differ: give labels, and "true". `progress` is
        called with the number of images done.
        """
        done = 0
        for batch in batches:
            images, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
            maps = self(images, targets, method, labels=labels, **options)
            done += len(images)
            progress(done)
            yield maps

    def _check_call(self, images: Tensor, fuse: str) -> None:
        if not self._modes:
            raise SightlineError("heatmaps are computed inside `with Heatmaps(model) as h:` only: open it there")
        if any(module.training for module in self._modes):  # batch norm would learn from the images that are explained
            raise SightlineError(
                "the model was put into training mode inside `with Heatmaps`: train outside of it, and open it again"
            )
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            found = f"{images.dtype} of shape {tuple(images.shape)}" if hasattr(images, "dtype") else f"a {type(images).__name__}"
            raise DataError(f"heatmaps need float images (N, C, H, W), not {found}: normalise as in training")
        if fuse not in ("mean", "max"):
            raise RecipeError(f"layers are fused by 'mean' or 'max', not '{fuse}'")

    def _plan(self, images: Tensor) -> Plan:
        key = (images.shape[1:], images.device)
        if key not in self._plans:
            self._network.bf16 = False
            with _plain_arithmetic(images.device):
                generator = torch.Generator().manual_seed(0)
                example = torch.randn(1, *images.shape[1:], generator=generator).to(images.device, images.dtype)
                self._plans[key] = self._network.plan(self._layers, example, self._reshape)
        return self._plans[key]

    def _bf16_is_better(self, images: Tensor, plan: Plan) -> bool:
        """Time both arithmetics on real images, and compare what they say."""
        if not has_bfloat16(images.device):
            return False
        seconds, pieces = [], []
        for bf16 in (False, True, False, True):
            self._bf16 = bf16
            start = time.perf_counter()
            try:
                pieces.append(self._explain(images, plan, [Wanted(((1.0, "predicted"),))], None, ["gradcam"], False))
            except (RuntimeError, SightlineError):  # an operator without bfloat16, or values beyond its range
                self._bf16 = None
                if not bf16:
                    raise
                return False
            wait(images.device)
            seconds.append(time.perf_counter() - start)
        exact, rough = pieces[-2:]
        same = exact.logits.argmax(1) == rough.logits.argmax(1)
        maps = [torch.cat([m[same].flatten(2) for m in piece.maps.values()], 2)[:, 0] for piece in (exact, rough)]
        centred = [F.normalize(m - m.mean(1, keepdim=True), dim=1) for m in maps]
        alike = float((centred[0] * centred[1]).sum(1).mean()) >= 0.99
        return seconds[3] < seconds[2] and int((~same).sum()) <= max(1, len(same) / 200) and alike

    def _smooth(
        self,
        images: Tensor,
        plan: Plan,
        wanted: list[Wanted],
        labels: Tensor | None,
        methods: list[Method],
        eigen: bool,
        aug: bool,
    ) -> _Piece:
        piece = self._explain(images, plan, wanted, labels, methods, eigen)
        if not aug:
            return piece
        total = {name: maps / len(VIEWS) for name, maps in piece.maps.items()}
        for scale, flip in VIEWS[1:]:
            view = scale * (images.flip(3) if flip else images)
            other = self._explain(view, plan, piece.wanted, None, methods, eigen)
            for name, maps in other.maps.items():
                total[name] += (maps.flip(-1) if flip else maps) / len(VIEWS)
        missing = torch.full_like(piece.completeness, torch.nan)
        return _Piece(total, piece.scores, missing, piece.logits, piece.wanted)

    def _explain(
        self, images: Tensor, plan: Plan, wanted: list[Wanted], labels: Tensor | None, methods: list[Method], eigen: bool
    ) -> _Piece:
        """Return the maps of one batch; no `wanted` at all stands for the embedding."""
        if images.device.type == "cpu":
            memory_format = torch.channels_last if plan.channels_last else torch.contiguous_format
            images = images.contiguous(memory_format=memory_format)
        kinds = {kind_of(method) for method in methods}
        self._network.bf16 = bool(self._bf16)
        with _plain_arithmetic(images.device):
            needs_gradient = "factor" in kinds
            passed = self._network.run(images, plan, graph=needs_gradient and not plan.linear)
            if plan.linear and not passed.pools(plan):  # it did for one image, and doesn't for these
                plan = self._plans[images.shape[1:], images.device] = replace(plan, linear=False)
                passed = self._network.run(images, plan, graph=needs_gradient)
            batch = Batch(self._network, images, plan, passed, wanted, labels, self._batch_size)
            by_target: list[dict[str, Tensor]] = [{} for _ in methods]
            for kind in kinds:
                chosen = [t for t, method in enumerate(methods) if kind_of(method) == kind]
                for t, maps in zip(chosen, batch.maps(kind, chosen, [methods[t] for t in chosen], eigen), strict=True):
                    by_target[t] = maps
            maps = {name: torch.stack([m[name] for m in by_target], 1) for name in by_target[0]}
            scores = batch.scores()
            completeness = batch.completeness(methods, maps, scores, eigen)
        for name, tensor in maps.items():
            _check_maps(name, tensor, self._network.first)
        return _Piece(maps, scores, completeness, batch.logits, batch.wanted)


@contextmanager
def _plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Undo what the caller may have switched on (`inference_mode`, `autocast`), and build no graph unless told to."""
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 would break the sum rule
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


def _is_embedding(targets: object) -> bool:
    return isinstance(targets, str) and targets == "embedding"


def _methods(method: Method | Sequence[Method], n: int) -> list[Method]:
    """Return a checked method for each of `n` targets."""
    several = isinstance(method, Sequence) and not isinstance(method, str)
    methods: list[Any] = list(method) if several else [method] * n  # type: ignore[arg-type]
    if len(methods) != n:
        raise RecipeError(f"give one method for all targets, or one a target: there are {len(methods)} methods and {n} targets")
    for name in methods:
        if not hasattr(name, "attribute") and name not in METHODS:
            raise RecipeError(f"unknown method '{name}': {nearest(str(name), METHODS)}")
    if "fullgrad" in methods and len(set(map(_name, methods))) > 1:
        raise RecipeError("fullgrad's maps have the image's resolution: make them in a call of their own")
    return methods


def _name(method: Method) -> str:
    return method if isinstance(method, str) else str(method)


def _labels(labels: Any, n: int) -> Tensor | None:
    if labels is None:
        return None
    true = labels if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
    if true.shape != (n,) or true.is_floating_point() or true.dtype == torch.bool:
        raise RecipeError(f"labels are whole numbers (N,) for N = {n} images, not {true.dtype} of shape {tuple(true.shape)}")
    return true.long()


def _check_maps(name: str, maps: Tensor, first: int) -> None:
    broken = ~maps.isfinite().flatten(1).all(1)
    if broken.any():
        image = first + int(broken.nonzero()[0])
        raise DataError(f"the map of image {image} of the batch at '{name}' isn't finite: use another method, such as gradcam")


def _finished(piece: _Piece, several: bool) -> dict[str, Any]:
    """Bring a batch's maps to NumPy, with a dimension for the targets only if several were asked for."""

    def out(tensor: Tensor) -> NDArray[Any]:
        array: NDArray[Any] = (tensor if several else tensor[:, 0]).cpu().numpy()
        return array

    n = len(piece.logits)
    classes = [target.classes(piece.logits) for target in piece.wanted] or [torch.full((n,), -1)]
    return {
        "maps": {name: out(maps) for name, maps in piece.maps.items()},
        "targets": out(torch.stack(classes, 1)),
        "scores": out(piece.scores),
        "completeness": out(piece.completeness),
        "logits": piece.logits.cpu().numpy(),
    }


def _joined(pieces: list[dict[str, Any]], method: str, fuse: str) -> Maps:
    parts = {name: np.concatenate([piece["maps"][name] for piece in pieces]) for name in pieces[0]["maps"]}
    layer = "+".join(parts)
    rest: dict[str, Any] = {
        key: np.concatenate([piece[key] for piece in pieces]) for key in ("targets", "scores", "completeness", "logits")
    }
    if len(parts) == 1:
        return Maps(next(iter(parts.values())), layer=layer, method=method, **rest)
    return Maps(_fused(list(parts.values()), fuse), layer=layer, method=method, by_layer=parts, **rest)


def _fused(parts: list[NDArray[np.float32]], fuse: str) -> NDArray[np.float32]:
    """Bring several layers' maps (…, h, w) to one scale and the finest grid, and return their mean or maximum."""
    grid = max((part.shape[-2:] for part in parts), key=lambda shape: shape[0] * shape[1])
    scaled = []
    for part in parts:
        peak = np.abs(part).max((-2, -1), keepdims=True)
        scaled.append(upsample((part / np.where(peak > 0, peak, 1)).astype(np.float32), grid))
    stacked = np.stack(scaled)
    fused: NDArray[np.float32] = stacked.mean(0) if fuse == "mean" else stacked.max(0)
    return fused
