"""Small nets of many kinds, and the papers' formulas a second time: literal, slow, one image and one channel at a time.

The formulas use nothing of the engine: activations and gradients come from a plain hook and full autograd, sums are NumPy's
float64. A score is a function of the logits (1, classes) → a number that can be differentiated. Maps are (h, w) float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sightline.heatmaps import Heatmaps, Maps
from sightline.models import BasicBlock, FastNet, ResNet, SmallNet

CLASSES = 5

Array = NDArray[np.float64]
Score = Callable[[Tensor], Tensor]
Cells = Callable[[Tensor], Tensor]

# --- the engine, as tests call it ---


def explain(
    model: Any, images: Tensor, targets: Any = "predicted", method: Any = "gradcam", layer: Any = "auto", **options: Any
) -> Maps:
    engine = {name: options.pop(name) for name in ("precision", "batch_size", "reshape", "output") if name in options}
    with Heatmaps(model, layer, **engine) as h:
        return h(images, targets, method, **options)


def assert_close(actual: ArrayLike, expected: ArrayLike, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest value expected."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    peak = float(np.abs(expected).max())
    assert peak > 0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * peak)


def assert_each_close(actual: ArrayLike, expected: ArrayLike | list[Array], tolerance: float = 1e-5) -> None:
    """Each image's map equals the expected one to `tolerance` of its own largest value."""
    for one, other in zip(np.asarray(actual), np.asarray(expected), strict=True):
        assert_close(one, other, tolerance)


# --- nets ---


class Vgg(nn.Module):
    """Convolutions whose outputs the next activation overwrites in place, then a hidden layer: no closed form."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels_in, channels, pool in ((3, 8, 2), (8, 12, 2), (12, 16, 4)):
            layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(pool)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(64, 20), nn.ReLU(inplace=True), nn.Linear(20, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then LayerNorm, Linear, GELU, Linear with the channels last, then a scale a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.shrink(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Stem, block, downsampling, block; then global average, LayerNorm and linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage1 = nn.Conv2d(3, 8, 2, 2), ConvNeXtBlock(8)
        self.down, self.stage2 = nn.Conv2d(8, 16, 2, 2), ConvNeXtBlock(16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        logits: Tensor = self.head(self.norm(x.mean((2, 3))))
        return logits


class Attention(nn.Module):
    """Self-attention with one head: tokens (N, L, K) → (N, L, K)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.project(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))
        return mixed


class TransformerBlock(nn.Module):
    """Pre-norm block: tokens (N, L, K) → (N, L, K)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class ViT(nn.Module):
    """Patches of 4×4 pixels of `size` images; class token, then `registers`, then patches; three blocks.

    The head reads the class token, or without one the mean of the patches.
    """

    def __init__(self, *, size: tuple[int, int] = (32, 32), class_token: bool = True, registers: int = 0) -> None:
        super().__init__()
        self.extra, width = class_token + registers, 12
        self.class_token = class_token
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.tokens = nn.Parameter(torch.randn(1, self.extra, width))
        self.positions = nn.Parameter(0.5 * torch.randn(1, size[0] * size[1] // 16, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        x = self.norm(self.blocks(torch.cat((self.tokens.expand(len(x), -1, -1), patches), 1)))
        logits: Tensor = self.head(x[:, 0] if self.class_token else x[:, self.extra :].mean(1))
        return logits


class SwinBlock(nn.Module):
    """Attention within windows of 4×4 cells: (N, h, w, K) → (N, h, w, K), or (N, L, K) → (N, L, K) for `grid` (h, w)."""

    def __init__(self, width: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.grid, self.block = grid, TransformerBlock(width)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, k = x.shape if self.grid is None else (len(x), *self.grid, x.shape[-1])
        windows = x.reshape(n, h // 4, 4, w // 4, 4, k).transpose(2, 3).reshape(-1, 16, k)
        cells: Tensor = self.block(windows).reshape(n, h // 4, w // 4, 4, 4, k).transpose(2, 3)
        return cells.reshape(x.shape)


class Merge(nn.Module):
    """Each 2×2 cells become one: (N, h, w, K) → (N, h/2, w/2, 2K), or the same on tokens for `grid` (h, w)."""

    def __init__(self, width: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.grid = grid
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, k = x.shape if self.grid is None else (len(x), *self.grid, x.shape[-1])
        cells = x.reshape(n, h // 2, 2, w // 2, 2, k).transpose(2, 3).reshape(n, h // 2, w // 2, 4 * k)
        merged: Tensor = self.reduce(self.norm(cells))
        return merged if self.grid is None else merged.flatten(1, 2)


class Swin(nn.Module):
    """Channels last from the stem on, as (N, h, w, K) or, with `tokens`, as (N, L, K); `size` is the images'."""

    def __init__(self, *, tokens: bool = False, size: tuple[int, int] = (32, 32), width: int = 8) -> None:
        super().__init__()
        first, second = ((size[0] // d, size[1] // d) if tokens else None for d in (2, 4))
        self.patches, self.tokens = nn.Conv2d(3, width, 2, 2), tokens
        self.stage1, self.merge = SwinBlock(width, first), Merge(width, first)
        self.stage2 = SwinBlock(2 * width, second)
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        x = self.norm(self.stage2(self.merge(self.stage1(x.flatten(1, 2) if self.tokens else x))))
        logits: Tensor = self.head(x.mean(1) if self.tokens else x.mean((1, 2)))
        return logits


class DenseNet(nn.Module):
    """The trunk's output is used again beside what grows from it: GAP and linear follow, but of both."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4))
        self.growth = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        logits: Tensor = self.fc(torch.cat((x, self.growth(x)), 1).mean((2, 3)))
        return logits


class ImageNetStem(ResNet):
    """A ResNet that divides the side of its input by 32: one cell is left of 32 pixels."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, (1, 1, 1, 1), classes=CLASSES, width=8)
        self.conv1 = nn.Conv2d(3, 8, 7, 2, padding=3, bias=False)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = nn.Sequential(self.pool, self.layer1)


class TupleBlock(nn.Module):
    """A convolution that returns its result with something beside it, as attention blocks return their weights."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.conv(x))
        return x, x.mean()


class TupleNet(nn.Module):
    """Two blocks that return tuples, then global average and linear."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2, self.fc = TupleBlock(3, 6), TupleBlock(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.block1(x)
        x, _ = self.block2(F.max_pool2d(x, 4))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Heads(nn.Module):
    """A net with a second head of three classes, before the first in what `pack` makes of (coarse, fine)."""

    def __init__(self, net: nn.Module, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.net, self.coarse, self.pack = net, nn.Linear(3, 3), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.coarse(x.mean((2, 3))), self.net(x))


class Opaque(nn.Module):
    """A linear layer that isn't an nn.Linear: what recognises a closed form by the class of the head doesn't see it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.matrix, self.offset = nn.Parameter(linear.weight.detach().T), nn.Parameter(linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix + self.offset


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ResNet(BasicBlock, (1, 1, 1, 1), classes=CLASSES, width=8),
    "smallnet": lambda: SmallNet(classes=CLASSES, width=8),
    "fastnet": lambda: FastNet(classes=CLASSES, width=4),
    "vgg": Vgg,
    "convnext": ConvNeXt,
    "densenet": DenseNet,
    "stem": ImageNetStem,
    "tuples": TupleNet,
    "vit": ViT,
    "vit-registers": lambda: ViT(registers=4),
    "vit-mean": lambda: ViT(class_token=False),
    "vit-wide": lambda: ViT(size=(24, 40)),
    "swin": Swin,
    "swin-tokens": lambda: Swin(tokens=True),
    "swin-wide": lambda: Swin(size=(32, 64)),
}


def striped(n: int = 6, size: tuple[int, int] = (32, 32), seed: int = 1) -> tuple[Tensor, Tensor]:
    """Noise (n, 3, H, W) with a bright stripe, and its place: (n,) classes."""
    random = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(n, 3, *size, generator=random), torch.randint(0, CLASSES, (n,), generator=random)
    for image, label in zip(images, labels, strict=True):
        image[:, 6 * label : 6 * label + 6] += 2
    return images, labels


@cache
def _trained(net: str, steps: int) -> nn.Module:
    torch.manual_seed(0)
    model = NETS[net]()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(steps):
        images, labels = striped(32, seed=100 + step)
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return model.eval()


def build(net: str, steps: int = 0) -> Any:
    """A net of `NETS` in evaluation mode with random weights, or after `steps` of training to tell where the stripe is."""
    with torch.random.fork_rng():
        return copy.deepcopy(_trained(net, steps)).requires_grad_(True)


# --- scores ---


def logit(c: int) -> Score:
    return lambda logits: logits[0, c]


def margin(a: int, b: int) -> Score:
    return lambda logits: logits[0, a] - logits[0, b]


def finer(logits: Tensor, c: int, alpha: float = 0.6) -> Score:
    """Finer-CAM's score at the logits of a clean image: y_c − α · mean of the three y_d with the smallest |y_d − y_c|."""
    others = [d for d in range(logits.shape[1]) if d != c]
    nearest = sorted(others, key=lambda d: abs(float(logits[0, d] - logits[0, c])))[:3]
    return lambda y: sum((y[0, c] - alpha * y[0, d] for d in nearest), start=torch.zeros(())) / len(nearest)


# --- activations and gradients by a plain hook and full autograd ---


def numbers(x: Tensor) -> Array:
    return x.detach().numpy().astype(np.float64)


def _as_is(x: Tensor) -> Tensor:
    return x


def activations_and_gradients(
    model: nn.Module, layer: str, image: Tensor, score: Score, cells: Cells = _as_is
) -> tuple[Array, Array]:
    """A and ∂score/∂A of one image (C, H, W), each (K, h, w); `cells` is the view of the layer's output as (1, K, h, w)."""
    stored: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        stored.append(first)
        passed_on = first.clone()  # what follows may overwrite it in place
        return (passed_on, *output[1:]) if isinstance(output, tuple) else passed_on

    with model.get_submodule(layer).register_forward_hook(keep), torch.enable_grad():
        logits = model(image[None].clone().requires_grad_())
    (gradient,) = torch.autograd.grad(score(logits), stored)
    return numbers(cells(stored[0])[0]), numbers(cells(gradient)[0])


def value(model: nn.Module, image: Tensor, score: Score) -> float:
    with torch.no_grad():
        return float(score(model(image[None])))


def logits_of(model: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(image[None])
    return logits


# --- formulas of A and g, both (K, h, w) ---


def weighted_sum(weights: list[float], A: Array) -> Array:
    total = np.zeros(A.shape[1:])
    for weight, channel in zip(weights, A, strict=True):
        total += weight * channel
    return total


def gradcam(A: Array, g: Array) -> Array:
    """Selvaraju et al. 2017, equations 1 and 2, without the ReLU."""
    return weighted_sum([float(gradient.mean()) for gradient in g], A)


def hirescam(A: Array, g: Array) -> Array:
    """Draelos & Carin 2020: Σ_k g_k ⊙ A_k."""
    total = np.zeros(A.shape[1:])
    for k, i, j in np.ndindex(*A.shape):
        total[i, j] += g[k, i, j] * A[k, i, j]
    return total


def layercam(A: Array, g: Array) -> Array:
    """Jiang et al. 2021, equations 6 and 7, without the last ReLU: Σ_k relu(g_k) ⊙ A_k."""
    total = np.zeros(A.shape[1:])
    for k, i, j in np.ndindex(*A.shape):
        total[i, j] += max(g[k, i, j], 0) * A[k, i, j]
    return total


def xgradcam(A: Array, g: Array) -> Array:
    """Fu et al. 2020, equation 8: w_k = Σ_ij A_k(i, j) / (Σ A_k) · g_k(i, j)."""
    weights = []
    for channel, gradient in zip(A, g, strict=True):
        total = channel.sum()
        weights.append(float((channel / total * gradient).sum()) if total != 0 else 0.0)
    return weighted_sum(weights, A)


def gradcam_plus_plus(A: Array, g: Array) -> Array:
    """Chattopadhyay et al. 2018, equations 5, 10 and 19 for an exponential score, whose value is left out."""
    return _plus_plus(A, g, g**2, g**3)


def _plus_plus(A: Array, D1: Array, D2: Array, D3: Array) -> Array:
    weights = []
    for k, channel in enumerate(A):
        weight = 0.0
        for i, j in np.ndindex(*channel.shape):
            if D2[k, i, j] != 0:
                alpha = D2[k, i, j] / (2 * D2[k, i, j] + channel.sum() * D3[k, i, j])
                weight += alpha * max(D1[k, i, j], 0)
        weights.append(weight)
    return weighted_sum(weights, A)


def eigengradcam(A: Array, g: Array) -> Array:
    """The first principal component of g ⊙ A: eigenvector of the covariance of the channels; the sign of the plain sum."""
    return principal_component(g * A)


def principal_component(weighted: Array) -> Array:
    """First principal component of (K, h, w) over its cells, times its deviation; the sign of the sum over channels."""
    cells = weighted.reshape(len(weighted), -1).T
    component: Array = (cells - cells.mean(0)) @ np.linalg.eigh(np.cov(cells, rowvar=False))[1][:, -1]
    covariance = np.cov(component, cells.sum(1))[0, 1]
    return (-component if covariance < 0 else component).reshape(weighted.shape[1:])


FORMULAS: dict[str, Callable[[Array, Array], Array]] = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "xgradcam": xgradcam,
    "hirescam": hirescam,
    "layercam": layercam,
    "eigengradcam": eigengradcam,
}


# --- formulas that need more than one pass, or none backward ---


def cam(A: Array, weight: Array) -> Array:
    """Zhou et al. 2016, equation 2: Σ_k w_k A_k for the class's weights (K,) after a global average."""
    return weighted_sum(weight.tolist(), A)


def eigencam(A: Array) -> Array:
    """Muhammad & Yeasin 2020: the projection of A (not centred) on its first right singular vector; the sign of Σ_k A_k."""
    cells = A.reshape(len(A), -1).T
    component: Array = cells @ np.linalg.eigh(cells.T @ cells)[1][:, -1]
    return (-component if component @ cells.sum(1) < 0 else component).reshape(A.shape[1:])


def smooth_gradcam_plus_plus(model: nn.Module, layer: str, image: Tensor, score: Score, noisy: list[Tensor]) -> Array:
    """Omeiza et al. 2019, equations 6 and 7: the derivatives are means over `noisy` copies; A is the clean image's."""
    A, _ = activations_and_gradients(model, layer, image, score)
    gradients = [activations_and_gradients(model, layer, copied, score)[1] for copied in noisy]
    D1, D2, D3 = (np.mean([g**power for g in gradients], 0) for power in (1, 2, 3))
    return _plus_plus(A, D1, D2, D3)


def scorecam(model: nn.Module, layer: str, image: Tensor, score: Score) -> Array:
    """Wang et al. 2020, equations 5 to 7 and the softmax of section 3.3, with a black image as the baseline."""
    A, _ = activations_and_gradients(model, layer, image, score)
    baseline = value(model, torch.zeros_like(image), score)
    increases = []
    for channel in A:
        mask = F.interpolate(torch.tensor(channel)[None, None], image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
        reach = mask.max() - mask.min()
        mask = (mask - mask.min()) / reach if reach > 0 else torch.zeros_like(mask)
        increases.append(value(model, image * mask.float(), score) - baseline)
    exponentials = np.exp(np.array(increases) - max(increases))
    return weighted_sum((exponentials / exponentials.sum()).tolist(), A)


def ablationcam(model: nn.Module, layer: str, image: Tensor, score: Score) -> Array:
    """Desai & Ramaswamy 2020, equation 3 times the score: w_k = y − y with channel k at zero."""
    A, _ = activations_and_gradients(model, layer, image, score)
    weights = []
    for k in range(len(A)):

        def ablate(module: nn.Module, inputs: object, output: Tensor, k: int = k) -> Tensor:
            without = output.clone()
            without[:, k] = 0
            return without

        whole = value(model, image, score)
        with model.get_submodule(layer).register_forward_hook(ablate):
            weights.append(whole - value(model, image, score))
    return weighted_sum(weights, A)


def fullgrad(model: nn.Module, image: Tensor, score: Score) -> tuple[Array, float]:
    """Srinivas & Fleuret 2019, equations 2 and 6 with ψ = |·|, min-max and upsampling: the map, and Σ x∘g + Σ biases.

    A batch norm's bias is β − γ μ / √(σ² + ε). The biases after the pooling count in the sum but have no place in the map.
    """
    outputs: list[Tensor] = []
    owners: list[nn.Module] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        outputs.append(output)
        owners.append(module)
        return output.clone()

    handles = [module.register_forward_hook(keep) for module in model.modules() if _bias(module) is not None]
    x = image[None].clone().requires_grad_()
    with torch.enable_grad():
        logits = model(x)
    for handle in handles:
        handle.remove()
    g, *gradients = torch.autograd.grad(score(logits), [x, *outputs])
    terms = [numbers(x * g)]
    for module, gradient in zip(owners, gradients, strict=True):
        last = gradient if isinstance(module, nn.Linear) else gradient.movedim(1, -1)
        terms.append(np.moveaxis(numbers(last) * numbers(_bias(module)), -1, 1))
    total = np.zeros(image.shape[1:])
    for term in terms:
        if term.ndim == 4:
            total += _psi(term[0], image.shape[1:])
    return total, float(sum(term.sum() for term in terms))


def _bias(module: nn.Module) -> Any:
    if isinstance(module, nn.BatchNorm2d):
        assert module.running_mean is not None and module.running_var is not None
        return module.bias - module.weight * module.running_mean / (module.running_var + module.eps).sqrt()
    return module.bias if isinstance(module, nn.Conv2d | nn.Linear) else None


def _psi(term: Array, size: torch.Size) -> Array:
    positive = np.abs(term)
    reach = positive.max() - positive.min()
    scaled = (positive - positive.min()) / reach if reach > 0 else np.zeros_like(positive)
    resized = F.interpolate(torch.tensor(scaled)[None], tuple(size), mode="bilinear", align_corners=False)[0]
    total = np.zeros(tuple(size))
    for channel in numbers(resized):
        total += channel
    return total


def literal(method: str, model: nn.Module, layer: str, image: Tensor, score: Score) -> Array:
    """The map of one image (C, H, W) by a method that needs only a score: all but cam, finercam and smoothgradcam++."""
    if method == "fullgrad":
        return fullgrad(model, image, score)[0]
    if method in ("scorecam", "ablationcam"):
        return {"scorecam": scorecam, "ablationcam": ablationcam}[method](model, layer, image, score)
    A, g = activations_and_gradients(model, layer, image, score)
    return eigencam(A) if method == "eigencam" else FORMULAS[method](A, g)
