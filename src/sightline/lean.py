"""Layers that keep less for the way back: most of a training's memory is what its layers keep until gradients come back.

What they compute is torch's own, the gradients too (the norm's but for rounding). Torch's layers keep their inputs; these keep
what is smaller, or what the layer after them keeps anyway. They do so on a CPU, and are torch's layers elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SOME = 50  # images that are pooled at a time


def keeps_less(layer: nn.Module, x: Tensor) -> bool:
    """Whether `layer` isn't torch's own for x: while it trains on a CPU. A compiler chooses itself what to keep."""
    return layer.training and x.device.type == "cpu" and not torch.compiler.is_compiling()


class MaxPool(nn.MaxPool2d):
    """Max-pooling of 2×2 cells, (N, C, H, W) → (N, C, H // 2, W // 2): keeps where each maximum lay, in two bytes."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = _Pooled.apply(x) if keeps_less(self, x) else super().forward(x)  # type: ignore[no-untyped-call]
        return pooled


class UnscaledNorm(nn.BatchNorm2d):
    """Batch norm that shifts and does not scale: keeps its output, which an activation after it keeps too, not its input.

    The way back needs the normalised input, and that is the output without the shift. After S. Rota Bulò et al.
    (https://arxiv.org/abs/1712.02616), who take it back through an activation as well. `weight` is 1 and not trained.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1) -> None:
        super().__init__(channels, momentum=momentum)
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if not keeps_less(self, x):
            return super().forward(x)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum  # None: of all batches alike
        shifted: Tensor = _Normed.apply(  # type: ignore[no-untyped-call]
            x, self.bias, self.running_mean, self.running_var, momentum, self.eps
        )
        return shifted


class _Pooled(torch.autograd.Function):
    """Max-pooling of 2×2 cells, some images at a time: torch's places are int64, as large as what is pooled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape, ctx.form = x.shape, _format(x)
        height, width = x.shape[2:]
        shape = (*x.shape[:2], height // 2, width // 2)
        pooled = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=ctx.form)
        places = torch.empty_like(pooled, dtype=torch.int16 if height * width <= 2**15 else torch.int32)
        for some, into, kept in zip(x.split(SOME), pooled.split(SOME), places.split(SOME), strict=True):
            found, place = F.max_pool2d(some, 2, return_indices=True)
            into.copy_(found)
            kept.copy_(place)
        ctx.save_for_backward(places)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (places,) = ctx.saved_tensors
        result = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.form)
        back = torch.ops.aten.max_pool2d_with_indices_backward.grad_input
        for some, into, place in zip(grad.split(SOME), result.split(SOME), places.split(SOME), strict=True):
            # The result stands for the input, too, of which only the shape is read.
            back(some, into, [2, 2], [2, 2], [0, 0], [1, 1], False, place.long(), grad_input=into)
        return result


def _format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class _Normed(torch.autograd.Function):
    """Batch norm with a shift, which also moves the running mean and variance."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
    ) -> Tensor:
        normed, _, inverse = torch.native_batch_norm(x, None, shift, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(normed, shift, inverse)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, shift, inverse = ctx.saved_tensors
        # Told that mean `shift` and deviation 1 made its input normal, and that it was scaled by 1 / deviation then: the same.
        back = torch.ops.aten.native_batch_norm_backward
        x, _, by_shift = back(grad, normed, inverse, None, None, shift, torch.ones_like(inverse), True, 0.0, [True, True, True])
        return x, by_shift, None, None, None, None
