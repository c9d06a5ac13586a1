"""Layers that keep less: torch's numbers, torch's gradients, fewer bytes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline import lean
from sightline.lean import MaxPool, UnscaledNorm
from sightline.models import build
from sightline.training.memory import kept_bytes

FORMATS = [torch.contiguous_format, torch.channels_last]


def noise(shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x.to(dtype).contiguous(memory_format=memory_format).requires_grad_()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(6, 8), (31, 15), (2, 2), (200, 170)])
def test_pooling_and_its_gradient_are_torch_s_bit_for_bit(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "SOME", 2)  # three images at two times
    x, other = (noise((3, 5, *size), memory_format, dtype) for _ in range(2))
    pooled, expected = MaxPool()(x), F.max_pool2d(other, 2)
    assert torch.equal(pooled, expected)
    grad = torch.randn(expected.shape).to(dtype)
    pooled.backward(grad)
    expected.backward(grad)
    assert x.grad is not None and other.grad is not None and torch.equal(x.grad, other.grad)
    assert x.grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_of_equal_maxima_the_first_takes_the_gradient(value: float) -> None:
    x = torch.full((1, 1, 4, 4), value, requires_grad=True)
    MaxPool()(x).sum().backward()
    expected = torch.zeros(1, 1, 4, 4)
    expected[..., ::2, ::2] = 1
    if value != value:  # of NaNs torch takes the last
        expected = expected.roll((1, 1), (2, 3))
    assert x.grad is not None and torch.equal(x.grad, expected)


def literal_norm(x: Tensor, shift: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm with a shift in float64, and the gradients of its input and shift, each term written out."""
    x, shift, grad = (each.double() for each in (x, shift[:, None, None], grad))
    axes = (0, 2, 3)
    deviation = (x.var(axes, unbiased=False, keepdim=True) + 1e-5).sqrt()
    normal = (x - x.mean(axes, keepdim=True)) / deviation
    back = grad - grad.mean(axes, keepdim=True) - normal * (grad * normal).mean(axes, keepdim=True)
    return normal + shift, back / deviation, grad.sum(axes)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_the_norm_and_its_gradients_equal_the_formula(
    dtype: torch.dtype, close: float, memory_format: torch.memory_format
) -> None:
    norm = UnscaledNorm(6)
    nn.init.normal_(norm.bias, 0, 2)
    with torch.no_grad():  # a mean and a deviation of its own a channel
        x = (
            noise((7, 6, 9, 5), memory_format, dtype) * torch.linspace(0.1, 9, 6)[:, None, None]
            + torch.linspace(-3, 3, 6)[:, None, None]
        )
    x = x.to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    normed = norm(x)
    assert normed.dtype == dtype and normed.is_contiguous(memory_format=memory_format)
    grad = torch.randn(normed.shape).to(dtype)
    normed.backward(grad)
    assert x.grad is not None and norm.bias.grad is not None and norm.weight.grad is None
    for found, expected in zip((normed, x.grad, norm.bias.grad), literal_norm(x, norm.bias, grad), strict=True):
        assert (found.double() - expected).norm() <= close * expected.norm()


@pytest.mark.parametrize("momentum", [0.2, None])  # None: what torch's `update_bn` measures an average's statistics with
def test_the_norm_gives_torch_s_output_and_running_statistics_bit_for_bit(momentum: float | None) -> None:
    ours, theirs = UnscaledNorm(6), nn.BatchNorm2d(6)
    ours.momentum = theirs.momentum = momentum
    for step in range(3):
        x = torch.randn(7, 6, 9, 5, generator=torch.Generator().manual_seed(step)) * 3 + 1
        assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert list(ours.state_dict()) == list(theirs.state_dict()) and int(ours.num_batches_tracked or 0) == 3
    x, other = (noise((2, 6, 4, 4), torch.contiguous_format) for _ in range(2))
    ours.eval()(x).square().sum().backward()
    theirs.eval()(other).square().sum().backward()
    assert x.grad is not None and other.grad is not None and torch.equal(x.grad, other.grad)


def test_what_they_keep_is_counted_to_the_byte() -> None:
    def pooled(images: int) -> Tensor:
        result: Tensor = MaxPool()(torch.ones(images, 3, 8, 8, requires_grad=True))
        return result

    assert kept_bytes(pooled) == (3 * 4 * 4 * 2, 0)
    block = nn.Sequential(UnscaledNorm(3), nn.GELU())

    def activated(images: int) -> Tensor:
        result: Tensor = block(torch.ones(images, 3, 8, 8, requires_grad=True))
        return result

    assert kept_bytes(activated) == (3 * 8 * 8 * 4, 2 * 3 * 4)  # one tensor for both; the shift, and what it was divided by


def test_the_fast_net_keeps_less_than_half_of_what_torch_s_layers_would(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(net: nn.Module) -> int:
        return kept_bytes(lambda images: net(torch.ones(images, 3, 32, 32)))[0]

    net = build("fastnet", classes=10, width=0.5)
    less = kept(net)
    monkeypatch.setattr(lean, "keeps_less", lambda layer, x: False)
    assert less < 0.5 * kept(net)


@pytest.mark.parametrize("layer", [MaxPool(), UnscaledNorm(3)], ids=["pool", "norm"])
def test_gradients_of_gradients_are_refused_while_training_and_not_after(layer: nn.Module) -> None:
    x = noise((2, 3, 4, 4), torch.contiguous_format)
    (grad,) = torch.autograd.grad(layer.train()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    (grad,) = torch.autograd.grad(layer.eval()(x).square().sum(), x, create_graph=True)
    grad.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
