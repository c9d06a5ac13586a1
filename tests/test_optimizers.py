"""The optimisers and the average, against their formulas written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sightline.precision import NAMED, Precision
from sightline.recipe import Recipe
from sightline.training.optimizers import HEAD, OTHERS, VECTORS, Average, averaged, make_optimizer, orthogonal, set_rate

pytestmark = pytest.mark.usefixtures("one_thread")


def newton_schulz(matrix: NDArray[np.float64], steps: int = 3) -> NDArray[np.float64]:
    """The quintic iteration, written out: X ← aX + b(XXᵀ)X + c(XXᵀ)²X."""
    x = matrix / (np.linalg.norm(matrix) + 1e-7)
    for _ in range(steps):
        x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    return x


@pytest.mark.parametrize("dtype, within", [(torch.float32, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_orthogonal_is_the_quintic_iteration(shape: tuple[int, int], dtype: torch.dtype, within: float) -> None:
    matrix = 1e-6 * np.random.default_rng(0).normal(size=shape)  # as small as gradients are: float16 ends at 6e-8
    ours = orthogonal(torch.from_numpy(matrix).float(), dtype).numpy()
    np.testing.assert_allclose(ours, newton_schulz(matrix), atol=within)


def test_orthogonal_brings_singular_values_near_one_and_keeps_their_vectors() -> None:
    matrix = torch.randn(24, 200, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(orthogonal(matrix, torch.float32, steps=5))
    assert values.min() > 0.5 and values.max() < 1.5
    aligned = (u.T @ orthogonal(matrix, torch.float32, steps=5) @ v.T).diagonal()
    assert aligned.min() > 0.5


class Tiny(nn.Module):
    """A filter, a norm's bias and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.norm.weight.requires_grad_(False)
        self.fc = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).amax((2, 3)))


SUMS = (1, 10 * VECTORS, 10 * HEAD / 4**2)  # of fastnet, for batches of 10


@pytest.mark.parametrize(
    "net, decay_all, shares",
    [("fastnet", True, SUMS), ("resnet18", True, (1, OTHERS, OTHERS)), ("mine:net", False, (1, OTHERS, OTHERS))],
)
def test_muon_steps_as_its_formulas_say(net: str, decay_all: bool, shares: tuple[float, ...]) -> None:
    model, batch = Tiny(), 10
    recipe = Recipe(model=net, optimizer="muon", max_lr=0.2, momentum=0.6, weight_decay=1e-3, decay_all=decay_all)
    optimizer = make_optimizer(model, recipe, batch, Precision())
    random = np.random.default_rng(1)
    w, bias, head = (p.detach().double().numpy().copy() for p in (model.conv.weight, model.norm.bias, model.fc.weight))
    bias += 0.3
    model.norm.bias.data += 0.3
    memories = [np.zeros_like(x) for x in (w, bias, head)]
    for rate in (0.2, 0.1):
        gradients = [random.normal(size=x.shape) for x in (w, bias, head)]
        for p, g in zip((model.conv.weight, model.norm.bias, model.fc.weight), gradients, strict=True):
            p.grad = torch.from_numpy(g).float()
        set_rate(optimizer, rate)
        optimizer.step()
        for i, (x, share) in enumerate(zip((w, bias, head), shares, strict=True)):
            # batch · decay of the weights goes at the peak rate: rate · share · decay = batch · 1e-3 at 0.2
            g = gradients[i] + (batch * 1e-3 / (0.2 * share) if i == 2 or (i == 1 and decay_all) else 0) * x
            memories[i] = 0.6 * memories[i] + g
            update = g + 0.6 * memories[i]
            if i == 0:
                norm = np.linalg.norm(x)
                if net == "fastnet":
                    x *= 2 / norm  # √4 filters
                    norm = 2
                x -= rate * norm / 2 * newton_schulz(update.reshape(4, -1)).reshape(x.shape)  # √4 filters
                if net != "fastnet":
                    x *= norm / np.linalg.norm(x)
            else:
                x -= rate * share * update
    np.testing.assert_allclose(model.conv.weight.detach(), w, atol=1e-5)
    np.testing.assert_allclose(model.norm.bias.detach(), bias, rtol=1e-4)
    np.testing.assert_allclose(model.fc.weight.detach(), head, rtol=1e-4)
    assert torch.equal(model.norm.weight, torch.ones(4))


@pytest.mark.parametrize("arithmetic", [NAMED["fp32"], NAMED["bf16"], NAMED["fp16"]])
def test_muon_s_products_are_in_the_training_s_arithmetic(arithmetic: Precision) -> None:
    model, recipe = Tiny(), Recipe(model="fastnet", optimizer="muon", max_lr=0.2, momentum=0.0)
    before, gradient = model.conv.weight.detach().clone(), torch.randn(model.conv.weight.shape)
    model.conv.weight.grad = gradient
    optimizer = make_optimizer(model, recipe, 10, arithmetic)
    set_rate(optimizer, 0.2)
    optimizer.step()
    factor = orthogonal(gradient.flatten(1), getattr(torch, arithmetic.dtype)).view_as(before)
    assert torch.equal(model.conv.weight, (before * (2 / before.norm())).add(factor, alpha=-0.2))


def test_muon_moves_filters_that_begin_at_zero() -> None:
    model = Tiny()
    model.conv.weight.data.zero_()
    optimizer = make_optimizer(model, Recipe(model="mine:net", optimizer="muon", max_lr=0.2), 10, Precision())
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    model.conv.weight.grad = torch.randn(4, 3, 3, 3)
    for _ in range(2):
        set_rate(optimizer, 0.2)
        optimizer.step()
        assert model.conv.weight.norm().item() == pytest.approx(0.02)  # a hundredth of √4


def test_sgd_is_nesterov_s_and_spares_norms_and_biases() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    recipe = Recipe(optimizer="sgd", momentum=0.8, weight_decay=0.1, decay_all=False)
    optimizer = make_optimizer(model, recipe, 10, Precision())
    before = [p.detach().double().numpy().copy() for p in model.parameters()]
    memories = [np.zeros_like(p) for p in before]
    random = np.random.default_rng(0)
    for rate in (0.1, 0.3):
        for i, p in enumerate(model.parameters()):
            g = random.normal(size=p.shape)
            p.grad = torch.from_numpy(g).float()
            g = g + (0.1 if p.ndim > 1 else 0) * before[i]
            memories[i] = 0.8 * memories[i] + g
            before[i] -= rate * (g + 0.8 * memories[i])
        set_rate(optimizer, rate)
        optimizer.step()
    for p, expected in zip(model.parameters(), before, strict=True):
        np.testing.assert_allclose(p.detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decay_all", [True, False])
def test_adam_is_torch_s_own(decay_all: bool) -> None:
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    optimizer = make_optimizer(model, Recipe(weight_decay=0.1, decay_all=decay_all), 10, Precision())
    decays = [0.1, 0.1 if decay_all else 0.0]
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(other.parameters(), decays, strict=True)]
    reference = torch.optim.Adam(groups, lr=0.05)
    for _ in range(3):
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        set_rate(optimizer, 0.05)
        optimizer.step()
        reference.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_average_is_the_weighted_mean_of_all_steps_and_its_statistics_are_its_own() -> None:
    model = Tiny()
    average = Average(model, 0.9)
    seen = []
    for _ in range(5):
        with torch.no_grad():
            model.conv.weight += torch.randn_like(model.conv.weight)
            seen.append(model.conv.weight.double().clone())
        average.update()
    weights = [0.9**k for k in range(4, -1, -1)]
    expected = sum(w * s for w, s in zip(weights, seen, strict=True)) / sum(weights)
    inputs = [torch.randn(6, 3, 8, 8) for _ in range(4)]
    model.norm.running_mean.fill_(99)  # type: ignore[union-attr, operator]
    average.settle(model, inputs)
    torch.testing.assert_close(model.conv.weight.double(), expected, rtol=1e-5, atol=1e-6)
    features = [model.conv(x).detach().transpose(0, 1).flatten(1) for x in inputs]
    torch.testing.assert_close(model.norm.running_mean, torch.stack([f.mean(1) for f in features]).mean(0))
    torch.testing.assert_close(model.norm.running_var, torch.stack([f.var(1) for f in features]).mean(0))


def test_a_short_training_is_averaged_over_a_fifteenth_of_it() -> None:
    assert averaged(0.998, 7800) == 0.998  # reaches back over 500 steps, which is less
    for steps in (100, 640):
        decay = averaged(0.998, steps)
        weights = np.array([(1 - decay) * decay**age for age in range(10 * steps)])
        assert (weights * np.arange(1, len(weights) + 1)).sum() == pytest.approx(steps / 15)  # how old they are on average
    assert averaged(0.998, 10) == 0.0
