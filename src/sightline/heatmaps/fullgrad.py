"""FullGrad (Srinivas and Fleuret 2019, https://arxiv.org/abs/1905.00780): the score as input gradients and bias gradients.

For a network of affine layers and ReLUs, score = Σ x ⊙ ∂score/∂x + Σ_layers Σ b ⊙ ∂score/∂(b's output), exactly. Of batch norm
in evaluation mode the bias is β − γ μ / √(σ² + ε). The map is ψ(x ⊙ ∂score/∂x) + Σ_layers ψ(bias gradients), at the image's
resolution and without a sign: ψ takes |·|, stretches it to [0, 1] over the channels and cells of a layer, upsamples it
bilinearly (align_corners=False, where the authors' code has True) and sums over channels. Layers without places count in the
sum, not in the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fullgrad(
    model: nn.Module,
    images: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    cotangents_of: Callable[[Tensor], Sequence[Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps (N, T, H, W), what they should sum to per target before ψ, (N, T), and the logits (N, classes).

    logits_of: images → logits, with a graph.  cotangents_of: logits → T cotangents (N, classes).
    """
    seen: list[tuple[Tensor, int, Tensor]] = []  # a bias, the dimension of the output that it lies along, the output

    def keep(bias: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            seen.append((bias, -1 if isinstance(module, nn.Linear) else 1, output))
            return output.clone()  # what follows may work in place

        return hook

    with ExitStack() as stack, torch.enable_grad():
        for module in model.modules():
            bias = _bias(module)
            if bias is not None:
                stack.enter_context(module.register_forward_hook(keep(bias.detach())))
        leaf = images.detach().clone().requires_grad_()
        logits = logits_of(leaf)
    maps, sums = [], []
    places = [leaf, *(output for *_, output in seen)]
    for cotangent in cotangents_of(logits.detach().float()):
        gradients = torch.autograd.grad(logits, places, cotangent.to(logits), retain_graph=True, allow_unused=True)
        terms = [leaf.detach() * _filled(gradients[0], leaf)]
        for (bias, along, output), gradient in zip(seen, gradients[1:], strict=True):
            terms.append((bias * _filled(gradient, output).movedim(along, -1)).movedim(-1, 1))
        # One layer after the other: at the image's resolution, all of them at once would be gigabytes.
        maps.append(reduce(torch.add, (_psi(term, images.shape[2:]) for term in terms if _has_places(term, len(images)))))
        sums.append(reduce(torch.add, (_total(term, len(images)) for term in terms)))
    return torch.stack(maps, 1), torch.stack(sums, 1), logits.detach().float()


def _bias(module: nn.Module) -> Tensor | None:
    """Return what a module adds to each channel, or None."""
    if isinstance(module, BATCH_NORMS) and module.running_mean is not None and module.running_var is not None:
        scale = (module.running_var + module.eps).rsqrt() * (1 if module.weight is None else module.weight)
        return (0 if module.bias is None else module.bias) - scale * module.running_mean
    bias = getattr(module, "bias", None)
    return bias if isinstance(module, (nn.Conv2d, nn.Linear)) and isinstance(bias, Tensor) else None


def _has_places(term: Tensor, n: int) -> bool:
    return term.ndim == 4 and len(term) == n


def _total(term: Tensor, n: int) -> Tensor:
    """Return the sum for each of `n` images; a term may have several rows an image, such as one a window."""
    return term.float().reshape(n, term.numel() // max(n, 1)).sum(1)


def _filled(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _psi(term: Tensor, size: torch.Size) -> Tensor:
    size_ = term.detach().abs().float()
    low, high = size_.amin((1, 2, 3), keepdim=True), size_.amax((1, 2, 3), keepdim=True)
    stretched = (size_ - low) / torch.where(high > low, high - low, 1)
    return F.interpolate(stretched.sum(1, keepdim=True), size, mode="bilinear")[:, 0]  # linear, so that the sum may come first
