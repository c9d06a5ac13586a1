"""The methods' formulas, as their papers give them, before any ReLU: pure functions of activations and gradients.

A (N, K, h, w) are a layer's activations, g = ∂score/∂A their gradients (N, K, h, w), or (N, K, 1, 1) where they are the same in
all cells; S_k = Σ_ij A_k. All but Eigen-CAM and FullGrad are sums of activations, Σ_k factor_k A_k, and differ in the factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

METHODS = {
    "cam": "CAM: the linear layer's weights; its mean plus the bias is the logit (Zhou et al. 2016, arXiv 1512.04150)",
    "gradcam": "Grad-CAM: each channel by its mean gradient (Selvaraju et al. 2017, arXiv 1610.02391)",
    "gradcam++": "Grad-CAM++: positive gradients, weighted by place (Chattopadhay et al. 2018, arXiv 1710.11063)",
    "smoothgradcam++": "Smooth Grad-CAM++: the same over noisy copies of the image (Omeiza et al. 2019, arXiv 1908.01224)",
    "xgradcam": "XGrad-CAM: gradients weighted by activation; sums to gradient × activation (Fu et al. 2020, arXiv 2008.02312)",
    "hirescam": "HiResCAM: gradient × activation, place by place (Draelos and Carin 2020, arXiv 2011.08891)",
    "layercam": "LayerCAM: positive gradient × activation (Jiang et al. 2021, doi 10.1109/TIP.2021.3089943)",
    "scorecam": "Score-CAM: each channel as a mask on the image (Wang et al. 2020, arXiv 1910.01279)",
    "ablationcam": "Ablation-CAM: each channel switched off (Desai and Ramaswamy 2020, doi 10.1109/WACV45572.2020.9093360)",
    "eigencam": "Eigen-CAM: the activations' first component, for no class (Muhammad and Yeasin 2020, arXiv 2008.00299)",
    "eigengradcam": "EigenGrad-CAM: the first principal component of gradient × activation (pytorch-grad-cam)",
    "finercam": "Finer-CAM: Grad-CAM of a class against its nearest rivals (Zhang et al. 2025, arXiv 2501.11309)",
    "fullgrad": "FullGrad: input and bias gradients of all layers (Srinivas and Fleuret 2019, arXiv 1905.00780)",
}
COMPLETE = ("cam", "gradcam", "xgradcam", "hirescam")  # where only pool and linear layer follow, these sum to the logit
ADDITIVE = ("xgradcam", "hirescam")  # these sum to gradient × activation anywhere


def gradcam(A: Tensor, g: Tensor) -> Tensor:
    """mean_ij g"""
    mean: Tensor = g.mean((2, 3), keepdim=True)
    return mean


def gradcam_plus_plus(A: Tensor, g: Tensor) -> Tensor:
    """Σ_ij α relu(g), α = g² / (2 g² + S_k g³), 0 where g = 0.

    That is the paper's for the score exp(y), whose derivatives are exp(y) g, exp(y) g², exp(y) g³; the common positive factor
    exp(y) is left out. No epsilon is needed, α being 1 / (2 + S_k g). torch-cam has Σ_ij A g³ for S_k g³.
    """
    return plus_plus(A, g, g**2, g**3)


def plus_plus(A: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """The factor of (Smooth) Grad-CAM++ from the score's (mean) derivatives."""
    below = 2 * second + A.sum((2, 3), keepdim=True) * third
    alpha = torch.where(second > 0, second / torch.where(second > 0, below, 1), 0)
    repeats = A.shape[2:].numel() / alpha.shape[2:].numel()  # a gradient that is the same in all cells is given once
    factor: Tensor = (alpha * first.relu()).sum((2, 3), keepdim=True) * repeats
    return factor


def xgradcam(A: Tensor, g: Tensor) -> Tensor:
    """Σ_ij A g / S_k, 0 where S_k = 0."""
    total = A.sum((2, 3), keepdim=True)
    return torch.where(total != 0, (A * g).sum((2, 3), keepdim=True) / torch.where(total != 0, total, 1), 0)


def hirescam(A: Tensor, g: Tensor) -> Tensor:
    """g"""
    return g


def layercam(A: Tensor, g: Tensor) -> Tensor:
    """relu(g)"""
    return g.relu()


FACTORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "smoothgradcam++": gradcam_plus_plus,  # of the derivatives' means; the same where noise doesn't change them
    "xgradcam": xgradcam,
    "hirescam": hirescam,
    "layercam": layercam,
    "eigengradcam": hirescam,
    "finercam": gradcam,
}


def weighted(A: Tensor, factor: Tensor) -> Tensor:
    """Return Σ_k factor_k A_k, (N, h, w)."""
    if factor.shape[2:] != (1, 1):
        return (factor * A).sum(1)
    cells: Tensor = torch.bmm(factor.flatten(1)[:, None], A.flatten(2))[:, 0]
    return cells.unflatten(1, A.shape[2:])  # type: ignore[no-any-return]


def principal(X: Tensor, plain: Tensor, *, centred: bool) -> Tensor:
    """Return the first component over the cells of X (N, K, h, w), S₁U₁ as (N, h, w), with the sign of the map `plain`.

    With cells as rows and channels as columns X = U S Vᵀ, after each column's mean is taken off if `centred`. Only U and S are
    needed, so they come from the smaller of the Gram matrices X Xᵀ (cells) and Xᵀ X (channels). The sign of a singular vector
    is arbitrary: here the map's product with `plain` is never negative.
    """
    cells = X.flatten(2).transpose(1, 2)
    cells = cells.double() if cells.device.type in ("cpu", "cuda") else cells.cpu().double()  # Apple's GPUs have no float64
    if centred:
        cells = cells - cells.mean(1, keepdim=True)
    if cells.shape[1] <= cells.shape[2]:
        values, vectors = torch.linalg.eigh(cells @ cells.transpose(1, 2))
        component = vectors[..., -1] * values[:, -1:].clamp(min=0).sqrt()
    else:
        _, vectors = torch.linalg.eigh(cells.transpose(1, 2) @ cells)
        component = (cells @ vectors[..., -1:])[..., 0]
    agreement = (component * plain.flatten(1).to(component)).sum(1, keepdim=True)
    return torch.where(agreement < 0, -component, component).float().reshape(plain.shape).to(plain.device)


def scorecam(
    A: Tensor, images: Tensor, logits_of: Callable[[Tensor], Tensor], scores_of: Callable[[Tensor, Tensor], Tensor], size: int
) -> Tensor:
    """Return Score-CAM's factors (N, T, K): softmax_k(score(x ∘ M_k) − score(0)).

    M_k is A_k, upsampled (bilinear, align_corners=False) and stretched to [0, 1]. logits_of: images → logits.  scores_of: logits
    (M, classes) and the images that they belong to (M,) → scores (M, T).  size: masked images in one pass. A channel that is the
    same everywhere is stretched to zero, and so costs no pass.
    """
    n, k = A.shape[:2]
    alive = A.flatten(2).amax(2) > A.flatten(2).amin(2)
    rows = torch.arange(n, device=A.device)
    nothing = scores_of(logits_of(torch.zeros_like(images[:1])).expand(n, -1), rows)
    rise = torch.zeros(n, nothing.shape[1], k, device=A.device)
    for row, channel in _pairs(alive, size):
        masks = F.interpolate(A[row, channel][:, None], images.shape[2:], mode="bilinear")
        low, high = masks.amin((1, 2, 3), keepdim=True), masks.amax((1, 2, 3), keepdim=True)
        scores = scores_of(logits_of(images[row] * ((masks - low) / (high - low)).to(images)), row)
        rise[row, :, channel] = scores - nothing[row]
    return rise.softmax(2)


def ablationcam(
    A: Tensor,
    logits: Tensor,
    without: Callable[[Tensor, Tensor], Tensor],
    scores_of: Callable[[Tensor, Tensor], Tensor],
    size: int,
) -> Tensor:
    """Return Ablation-CAM's factors (N, T, K): score(x) − score(x with A_k := 0).

    The paper divides by score(x): a constant a map, left out, for it would turn the map round where the score is negative.
    without: images (M,) and channels (M,) → logits; the others as in `scorecam`. A channel that is zero costs no pass.
    """
    n, k = A.shape[:2]
    whole = scores_of(logits, torch.arange(n, device=A.device))
    fall = torch.zeros(n, whole.shape[1], k, device=A.device)
    for row, channel in _pairs(A.flatten(2).count_nonzero(2) > 0, size):
        fall[row, :, channel] = whole[row] - scores_of(without(row, channel), row)
    return fall


def _pairs(chosen: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the rows and columns of a mask's true places, at most `size` at a time."""
    rows, columns = chosen.nonzero(as_tuple=True)
    yield from zip(rows.split(size), columns.split(size), strict=True)
