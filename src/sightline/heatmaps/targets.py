"""What a map explains: one number an image, made of its logits.

That number is a class's logit, the difference of two, or what a function of yours makes of the logits. To the engine each is its
gradient with respect to the logits, the *cotangent* (N, classes): a one for the class, a one and a minus one for a margin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..exceptions import RecipeError, nearest

Classes = str | int | Tensor | NDArray[np.integer[Any]] | Sequence[int]
Score = Callable[[Tensor], Tensor]


class Margin(NamedTuple):
    """The difference of two logits, a − b: which places argue for a over b.

    a, b: "predicted", "true", a class for all images, or classes (N,).
    """

    a: Classes = "predicted"
    b: Classes = "true"


Target = str | int | Margin | Score
Targets = Target | Tensor | NDArray[np.integer[Any]] | Sequence[int] | Sequence[Sequence[int]] | Sequence[Target]

NAMES = {"predicted": "predicted", "true": "true", "margin": Margin()}


@dataclass(frozen=True)
class Wanted:
    """One target of a batch: a sum of logits, Σ sign · logits[classes], or a function of them.

    terms: pairs of a factor and classes, "predicted", "true" or (N,) int64 on the CPU, until `settle`.
    """

    terms: tuple[tuple[float, Classes], ...] = ()
    score: Score | None = None

    def rows(self, batch: slice | Tensor) -> Wanted:
        """Return the target of some of the images."""
        return Wanted(tuple((f, c[batch] if isinstance(c, Tensor) else c) for f, c in self.terms), self.score)

    def settle(self, logits: Tensor, labels: Tensor | None) -> Wanted:
        """Return the target with the predicted and true classes filled in. Raises RecipeError for classes that don't exist."""
        return Wanted(tuple((factor, _settled(classes, logits, labels)) for factor, classes in self.terms), self.score)

    def cotangent(self, logits: Tensor) -> Tensor:
        """Return the score's gradient with respect to the logits, (N, classes) float32. The target is settled."""
        if self.score is not None:
            return _gradient(self.score, logits)
        total = torch.zeros_like(logits)
        for factor, classes in self.terms:
            total += factor * F.one_hot(_tensor(classes), logits.shape[1])
        return total

    def value(self, logits: Tensor) -> Tensor:
        """Return the score itself, (N,) float32."""
        if self.score is not None:
            with torch.no_grad():
                return self.score(logits).float()
        parts = [factor * logits.gather(1, _tensor(classes)[:, None])[:, 0] for factor, classes in self.terms]
        return torch.stack(parts).sum(0)

    def classes(self, logits: Tensor) -> Tensor:
        """Return the class explained, (N,) int64; −1 where a target isn't one class."""
        if len(self.terms) == 1:
            return _tensor(self.terms[0][1])
        return torch.full((len(logits),), -1, device=logits.device)


def parse(targets: Targets, n: int, *, labels: bool) -> tuple[list[Wanted], bool]:
    """Return the targets of `n` images, and whether they were given as several an image. `labels`: true classes are known.

    Raises RecipeError, which says what can be given.
    """
    if isinstance(targets, (str, int, np.integer, Margin)) or callable(targets):
        return [_one(targets, n, labels)], False
    if isinstance(targets, Sequence) and any(isinstance(t, (str, Margin)) or callable(t) for t in targets):
        return [_one(target, n, labels) for target in targets], True
    classes = _indices(targets, n)
    if classes.ndim == 1:
        return [Wanted(((1.0, classes),))], False
    return [Wanted(((1.0, column),)) for column in classes.unbind(1)], True


def nearest_rivals(wanted: Wanted, logits: Tensor, n: int, weight: float) -> Wanted:
    """Return a class target less `weight` times the mean of the `n` classes whose logits are nearest to its own.

    That is Finer-CAM's score (Zhang et al. 2025, https://arxiv.org/abs/2501.11309) with its authors' "aggregate" setting, weight
    0.6 and three rivals; their later code, and pytorch-grad-cam, weigh the rivals by softmax and take weight 1.
    """
    if len(wanted.terms) != 1 or wanted.score is not None:
        raise RecipeError("finercam compares a class with its rivals: give class targets, not margins or functions")
    own = wanted.classes(logits)
    distance = (logits - logits.gather(1, own[:, None])).abs().scatter(1, own[:, None], torch.inf)
    rivals = distance.topk(min(n, logits.shape[1] - 1), largest=False).indices
    return Wanted((*wanted.terms, *((-weight / rivals.shape[1], rival) for rival in rivals.unbind(1))))


def _one(target: Any, n: int, labels: bool) -> Wanted:
    if isinstance(target, str):
        if target == "embedding":
            raise RecipeError("the embedding isn't made of logits: explain it on its own, targets='embedding' without a list")
        if target not in NAMES:
            raise RecipeError(
                f"unknown target '{target}': {nearest(target, (*NAMES, 'embedding'))}; or give classes (N,) or (N, T)"
            )
        target = NAMES[target]
    if isinstance(target, Margin):
        return Wanted(((1.0, _classes(target.a, n, labels)), (-1.0, _classes(target.b, n, labels))))
    if callable(target):
        return Wanted(score=target)
    return Wanted(((1.0, _classes(target, n, labels)),))


def _classes(classes: Any, n: int, labels: bool) -> Classes:
    """Return "predicted", "true" or classes (N,) int64."""
    if isinstance(classes, str):
        if classes not in ("predicted", "true"):
            raise RecipeError(f'unknown class \'{classes}\': give "predicted", "true" or the index of a class')
        if classes == "true" and not labels:
            raise RecipeError("the true class of these images isn't known: give labels=, the class index of each image")
        return classes
    if isinstance(classes, (int, np.integer)) and not isinstance(classes, bool):
        return torch.full((n,), int(classes))
    indices = _indices(classes, n)
    if indices.ndim != 1:
        raise RecipeError(f"one target is one class an image, (N,) for N = {n} images: give each target on its own")
    return indices


def _indices(targets: Any, n: int) -> Tensor:
    """Return class indices (N,) or (N, T) as int64 on the CPU."""
    classes = _array(targets)
    fits = classes.ndim in (1, 2) and len(classes) == n and 0 not in classes.shape[1:]
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool or not fits:
        found = f"{classes.dtype} of shape {tuple(classes.shape)}"
        raise RecipeError(f"targets are whole numbers (N,) or (N, T) for N = {n} images, not {found}")
    return classes.long().cpu()


def _array(targets: Any) -> Tensor:
    try:
        return targets if isinstance(targets, Tensor) else torch.tensor(np.asarray(targets))
    except (ValueError, TypeError):
        raise RecipeError(f"targets are class indices (N,) or (N, T), not {str(targets)[:60]}") from None


def _settled(classes: Classes, logits: Tensor, labels: Tensor | None) -> Tensor:
    if isinstance(classes, str):
        chosen = logits.argmax(1) if classes == "predicted" else labels
        assert chosen is not None
        classes = chosen
    settled = _tensor(classes).to(logits.device)
    wrong = settled[(settled < 0) | (settled >= logits.shape[1])]
    if len(wrong):
        raise RecipeError(f"there is no class {int(wrong[0])}: targets go from 0 to {logits.shape[1] - 1}")
    return settled


def _tensor(classes: Classes) -> Tensor:
    assert isinstance(classes, Tensor)
    return classes


def _gradient(score: Score, logits: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        value = score(leaf)
        if not isinstance(value, Tensor) or value.shape != (len(logits),) or not value.requires_grad:
            found = f"{tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise RecipeError(f"a target function makes one number an image, (N,), of the logits by torch's means, not {found}")
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return gradient
