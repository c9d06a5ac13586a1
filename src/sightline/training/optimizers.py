"""The optimisers, with a rate that is set before each step, and the average of the weights.

Every parameter group has a `share`: its rate is the training's rate times that, so one number drives them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.swa_utils import update_bn

from ..precision import Precision
from ..recipe import Recipe

# Of muon: the rates of what isn't a filter, in multiples of the filters'. FastNet, whose norms have no scale and whose head
# begins small, has airbench94's: of vectors (norms' biases) and of the head's matrix, an image of the batch.
OTHERS = 5.0
VECTORS = 0.44
HEAD = 5.6


def make_optimizer(model: nn.Module, recipe: Recipe, batch: int, arithmetic: Precision) -> Optimizer:
    """Return the recipe's optimiser of `model`, for batches of `batch` images; its own products are in that arithmetic too."""
    if recipe.optimizer == "muon":
        return Muon(model, recipe, batch, getattr(torch, arithmetic.dtype))
    groups = _groups(model, recipe)
    if recipe.optimizer == "sgd":
        # Fused, a first step that the scaler of float16 skips leaves the momentum as the memory was (torch 2.13).
        fused = arithmetic.dtype != "float16"
        return SGD(groups, lr=1e-3, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=fused)
    return Adam(groups, lr=1e-3, fused=True)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters in the order in which the optimiser's state counts them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """All parameters in one group, or what is not to be decayed (norms and biases: vectors) in a second."""
    learned = [p for p in model.parameters() if p.requires_grad]
    if recipe.decay_all:
        return [{"params": learned, "weight_decay": recipe.weight_decay, "share": 1.0}]
    decayed, others = [p for p in learned if p.ndim > 1], [p for p in learned if p.ndim <= 1]
    groups = [(decayed, recipe.weight_decay), (others, 0.0)]
    return [{"params": params, "weight_decay": decay, "share": 1.0} for params, decay in groups if params]


class Muon(Optimizer):
    """Orthogonalised updates for filters, SGD with Nesterov's momentum for the rest (K. Jordan 2024).

    https://kellerjordan.github.io/posts/muon/, in the form that it has for small convolutional nets in
    https://github.com/KellerJordan/cifar10-airbench. F filters (4-D) keep their norm, which is free where a norm follows each of
    them, and are moved by the rate times the orthogonal factor of their momentum, in units of their norm / √F; those of "fastnet"
    are scaled to √F before each step, as there. The rate of the other parameters is OTHERS times the filters'; of "fastnet"
    VECTORS or HEAD / columns² times that and the images of a batch, so that they stand for a *sum* over images and another batch
    size needs no other rate. Their decay is a share of the weights that each image takes off, `recipe.weight_decay` at the
    recipe's peak rate.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, batch: int, products: torch.dtype) -> None:
        self.products, self.scaled = products, recipe.model == "fastnet"
        learned = [p for p in model.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": [p for p in learned if p.ndim == 4], "share": 1.0, "decay": 0.0}]
        peak = recipe.max_lr if recipe.max_lr != "auto" else 1.0
        for p in learned:
            if p.ndim != 4:
                own = batch * (VECTORS if p.ndim < 2 else HEAD / p.shape[1] ** 2)
                share = own if self.scaled else OTHERS
                decay = batch * recipe.weight_decay / (peak * share) if recipe.decay_all or p.ndim > 1 else 0.0
                groups.append({"params": [p], "share": share, "decay": decay})
        super().__init__([group for group in groups if group["params"]], {"lr": 1e-3, "momentum": recipe.momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step; a closure is not called."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)

    def _update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        memory = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        gradient = gradient.add(p, alpha=group["decay"])
        memory.mul_(group["momentum"]).add_(gradient)
        update = gradient.add(memory, alpha=group["momentum"])
        if p.ndim != 4:
            p.add_(update, alpha=-group["lr"])
            return
        factor, root = orthogonal(update.flatten(1), self.products).view_as(p), len(p) ** 0.5
        if self.scaled:
            p.mul_(root / p.norm()).add_(factor, alpha=-group["lr"])
            return
        norm = p.norm().clamp_min(0.01 * root)  # filters that begin at 0 would stay there
        p.sub_(factor * (group["lr"] * norm / root))
        p.mul_(norm / p.norm())


def orthogonal(matrix: Tensor, products: torch.dtype, steps: int = 3) -> Tensor:
    """Return nearly the orthogonal factor U Vᵀ of a matrix U S Vᵀ (m, n) float32, in the same dtype.

    By Newton and Schulz's iteration with the quintic of K. Jordan, which raises small singular values fast and
    leaves them between 0.5 and 1.5 rather than at 1. Products in bfloat16 suffice for that, but where the device has no
    instructions for them they take longer than the whole step of training besides.

    A step multiplies x by a polynomial of x xᵀ. Such polynomials commute: their product is made first, all of them from one
    x xᵀ, which for a 3×3 filter is at most a ninth of x, and x is multiplied once. The same factor for half the operations.
    """
    x = (matrix / (matrix.norm() + 1e-7)).to(products)  # small numbers would be zeros in float16 before
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    gram = x @ x.T
    product = _quintic(gram)
    for _ in range(steps - 1):
        product = _quintic(product @ gram @ product) @ product
    factor: Tensor = product @ x
    return (factor.T if tall else factor).to(matrix.dtype)


def _quintic(gram: Tensor) -> Tensor:
    """The polynomial of x xᵀ (m, m) that takes x to the next one."""
    result = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
    result.diagonal().add_(3.4445)
    return result


def averaged(decay: float, steps: int) -> float:
    """The share that an average keeps at a step of a training of so many: `decay`, or what reaches back over a fifteenth of it.

    Older weights are worse than the last ones: in a short training an average of many steps is behind them.
    """
    return max(0.0, min(decay, 1 - 15 / steps))


class Average:
    """The exponential moving average of a model's parameters (B. Polyak, A. Juditsky 1992), debiased.

    Batch-norm statistics are not averaged: those of other weights fit no average. They are measured anew at the end.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.learned: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.sums = [torch.zeros_like(p) for p in self.learned]

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's weights of now into the average."""
        torch._foreach_lerp_(self.sums, self.learned, 1 - self.decay)
        self.steps += 1

    @torch.no_grad()
    def settle(self, model: nn.Module, batches: Iterable[Tensor]) -> None:
        """Make the average the model's weights, and measure its batch-norm statistics on `batches` of its inputs."""
        for parameter, total in zip(self.learned, self.sums, strict=True):
            parameter.copy_(total / (1 - self.decay**self.steps))
        update_bn(batches, model)
