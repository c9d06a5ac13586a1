"""One batch on its way: the model's pass, the targets settled, and the maps by each kind of method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..exceptions import DataError, RecipeError
from .fullgrad import fullgrad
from .layers import Form
from .methods import ADDITIVE, COMPLETE, FACTORS, ablationcam, plus_plus, principal, scorecam, weighted
from .network import Network, Pass, Plan
from .targets import Wanted, nearest_rivals

TOLERANCE = 1e-5  # of the sum rule, relative to the sum of what is added up
RIVALS, RIVALS_WEIGHT = 3, 0.6  # Finer-CAM's
COPIES, NOISE = 8, 0.3  # Smooth Grad-CAM++'s noisy copies, and their noise's deviation in units of the normalised input


class Attribution(Protocol):
    """A method of one's own, such as `captum_method` returns."""

    def attribute(self, network: Network, images: Tensor, cotangents: Tensor, layer: str, form: Form) -> Tensor:
        """Return maps (N, T, h, w) of the scores (cotangents[:, t] * logits).sum(1); cotangents (N, T, classes)."""


Method = str | Attribution


class Batch:
    """The maps of one batch; no `wanted` at all stands for the embedding."""

    def __init__(
        self,
        network: Network,
        images: Tensor,
        plan: Plan,
        passed: Pass,
        wanted: list[Wanted],
        labels: Tensor | None,
        size: int,
    ) -> None:
        self.network, self.images, self.plan, self.passed, self.size = network, images, plan, passed, size
        self.logits = self._logits()
        self.wanted = [target.settle(self.logits, labels) for target in wanted]
        self.fullgrad_sums: Tensor | None = None

    def maps(self, kind: str, chosen: list[int], methods: list[Method], eigen: bool) -> Iterable[dict[str, Tensor]]:
        """Return each layer's maps (N, h, w) for the chosen targets, by methods of one kind."""
        if kind == "factor":
            return self._by_factor(chosen, methods, eigen)
        if eigen:
            raise RecipeError(f"eigen smoothing is for methods with a gradient, not for {kind}: leave it out")
        if kind == "eigencam":
            plain = {name: self._cells(name) for name in self.plan.layers}
            maps = {name: principal(A, A.sum(1), centred=False) for name, A in plain.items()}
            return [maps for _ in chosen]
        if not self.wanted:
            raise RecipeError(f"{kind} explains scores made of logits, not the embedding: use gradcam, for instance")
        if kind == "attribution":
            return [self._by_attribution(t, method) for t, method in zip(chosen, methods, strict=True)]
        by_kind = {"scorecam": self._scorecam, "ablationcam": self._ablationcam, "fullgrad": self._fullgrad, "cam": self._cam}
        return by_kind[kind](chosen)

    def scores(self) -> Tensor:
        """Return the numbers explained, (N, T)."""
        if not self.wanted:
            return self._embedding().square().sum(1, keepdim=True)
        return torch.stack([target.value(self.logits) for target in self.wanted], 1)

    def completeness(self, methods: list[Method], maps: dict[str, Tensor], scores: Tensor, eigen: bool) -> Tensor:
        """Return how far each map is from its score, (N, T). Raises DataError if a sum rule is broken."""
        result = torch.full_like(scores, torch.nan)
        if len(maps) > 1 or eigen:
            return result
        (raw,) = maps.values()
        for t, method in enumerate(methods):
            total = self.fullgrad_sums[:, t] if method == "fullgrad" and self.fullgrad_sums is not None else raw[:, t].sum((1, 2))
            if self.plan.linear and method in COMPLETE and self._is_linear_target(t):
                result[:, t] = self._sum_rule(t, raw[:, t].mean((1, 2)) if method == "cam" else total, scores[:, t])
            elif method in ADDITIVE or method == "fullgrad":
                result[:, t] = (scores[:, t] - total).abs() / scores[:, t].abs().clamp(min=torch.finfo(torch.float32).tiny)
        return result

    def _logits(self) -> Tensor:
        """Return the logits, float32; of bfloat16 arithmetic with a linear head, exactly those that the maps sum to."""
        head = self.plan.head
        if self.plan.linear and head is not None and self.passed.output.dtype != torch.float32:
            return F.linear(self._embedding(), head.weight.float(), None if head.bias is None else head.bias.float()).detach()
        return self.passed.output.detach().float()

    def _embedding(self) -> Tensor:
        if self.passed.embedding is None:
            raise RecipeError("this model has no linear layer that makes its logits: explain a class, or give a function")
        if self.plan.linear:  # its precision, not that of a pool in bfloat16
            return self._cells(next(iter(self.plan.layers))).mean((2, 3))
        return self.passed.embedding.detach().float()

    def _cells(self, name: str) -> Tensor:
        return self.plan.layers[name].cells(self.passed.leaves[name]).detach().float()

    def _is_linear_target(self, t: int) -> bool:
        return not self.wanted or self.wanted[t].score is None

    def _cotangent(self, t: int, method: Method) -> Tensor:
        """Return the explained score's gradient with respect to logits, or to the embedding."""
        if not self.wanted:
            if method == "finercam":
                raise RecipeError("finercam compares a class with its rivals: give class targets, not the embedding")
            return self._embedding()
        wanted = self.wanted[t]
        rivals = method == "finercam"
        return (nearest_rivals(wanted, self.logits, RIVALS, RIVALS_WEIGHT) if rivals else wanted).cotangent(self.logits)

    def _by_factor(self, chosen: list[int], methods: list[Method], eigen: bool) -> Iterator[dict[str, Tensor]]:
        """Yield maps of the methods that need activations and gradients only."""
        smooth = "smoothgradcam++" in methods
        # Before a pool and a linear layer, noise changes no class's gradient.
        constant = self.plan.linear and self.wanted and all(self._is_linear_target(t) for t in chosen)
        noisy = self._noisy_gradients(chosen) if smooth and not constant else {}
        gradients = self._gradients(chosen, methods)
        for t, method, gradient in zip(chosen, methods, gradients, strict=True):
            maps = {}
            for name, g in gradient.items():
                A = self._cells(name)
                smoothed = method == "smoothgradcam++" and bool(noisy)
                factor = plus_plus(A, *noisy[t][name]) if smoothed else FACTORS[str(method)](A, g)
                plain = weighted(A, factor)
                principal_too = eigen or method == "eigengradcam"
                maps[name] = principal(factor * A, plain, centred=True) if principal_too else plain
            yield maps

    def _gradients(self, chosen: list[int], methods: list[Method]) -> Iterator[dict[str, Tensor]]:
        """Yield for each chosen target the gradients of its score at each layer, (N, K, h, w), or (N, K, 1, 1) in closed form."""
        if self.plan.linear:
            for t, method in zip(chosen, methods, strict=True):
                yield self._closed_form(self._cotangent(t, method))
            return
        columns = self._columns(chosen, methods)
        if columns is None:
            for i, (t, method) in enumerate(zip(chosen, methods, strict=True)):
                yield self._backward(self._cotangent(t, method), keep=i + 1 < len(chosen))
            return
        basis = self._column_gradients(columns)
        for t in chosen:
            terms = [(factor, basis[_place(columns, classes)]) for factor, classes in self.wanted[t].terms]
            yield {name: _sum([factor * gradient[name] for factor, gradient in terms]) for name in self.plan.layers}

    def _closed_form(self, cotangent: Tensor) -> dict[str, Tensor]:
        head, (name, form) = self.plan.head, next(iter(self.plan.layers.items()))
        assert head is not None
        slope = cotangent @ head.weight.detach().float() if self.wanted else cotangent
        return {name: slope[:, :, None, None] / (form.grid[0] * form.grid[1])}

    def _columns(self, chosen: list[int], methods: list[Method]) -> list[Any] | None:
        """Return the classes (N,) whose gradients make up all targets, or None where a backward pass a target is less work."""
        if not self.wanted or "finercam" in methods or any(self.wanted[t].score for t in chosen):
            return None
        columns: list[Any] = []
        for t in chosen:
            for _, classes in self.wanted[t].terms:
                if not any(torch.equal(classes, other) for other in columns):  # type: ignore[arg-type]
                    columns.append(classes)
        return columns if len(columns) <= len(chosen) else None

    def _column_gradients(self, columns: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return each column's gradients; where an image's class is that of an earlier column, that one's."""
        found: list[dict[str, Tensor]] = []
        for i, classes in enumerate(columns):
            cotangent = F.one_hot(classes, self.logits.shape[1]).float()
            fresh = (
                torch.stack([classes != other for other in columns[:i]]).all(0)
                if i
                else torch.ones_like(classes, dtype=torch.bool)
            )
            rows = fresh.nonzero()[:, 0]
            if 2 * len(rows) <= len(classes) and i and len(self.plan.layers) == 1:
                gradient = self._tail_gradient(cotangent[rows], rows, like=found[0]) if len(rows) else _zeros(found[0])
            else:
                gradient = self._backward(cotangent, keep=i + 1 < len(columns))
            for other, earlier in zip(columns[:i], found, strict=True):
                same = classes == other
                for name in gradient:
                    gradient[name][same] = earlier[name][same]
            found.append(gradient)
        return found

    def _backward(self, cotangent: Tensor, *, keep: bool) -> dict[str, Tensor]:
        explained = self.passed.output if self.wanted else self.passed.embedding
        if explained is None:
            self._embedding()  # says why
        assert explained is not None
        leaves = list(self.passed.leaves.values())
        found = torch.autograd.grad(explained, leaves, cotangent.to(explained), retain_graph=keep, allow_unused=True)
        gradients = {}
        for name, gradient in zip(self.passed.leaves, found, strict=True):
            if gradient is None:
                raise RecipeError(f"the logits do not depend on layer '{name}': use another one, or 'auto'")
            gradients[name] = self.plan.layers[name].cells(gradient).float()
        return gradients

    def _tail_gradient(self, cotangent: Tensor, rows: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return gradients for some of the rows, the others zero, by running what follows the layer for them alone."""
        ((name, form),) = self.plan.layers.items()
        with torch.enable_grad():
            leaf = self.passed.leaves[name].detach()[rows].requires_grad_()
            logits = self.network.tail(self.plan, name, leaf.clone(), lambda: self.images[rows])
            (gradient,) = torch.autograd.grad(logits, leaf, cotangent.to(logits))
        whole = torch.zeros_like(like[name])
        whole[rows] = form.cells(gradient).float()
        return {name: whole}

    def _noisy_gradients(self, chosen: list[int]) -> dict[int, dict[str, tuple[Tensor, Tensor, Tensor]]]:
        """Return for each target and layer the means over noisy copies of g, g² and g³. The noise is the same for every image."""
        sums: dict[int, dict[str, list[Tensor]]] = {t: {} for t in chosen}
        generator = torch.Generator().manual_seed(0)
        for _ in range(COPIES):
            noise = NOISE * torch.randn(self.images.shape[1:], generator=generator).to(self.images)
            noisy = self.images + noise
            passed = self.network.run(noisy, self.plan, graph=not self.plan.linear)
            batch = Batch(self.network, noisy, self.plan, passed, [], None, self.size)
            batch.wanted = self.wanted
            for t, gradient in zip(chosen, batch._gradients(chosen, ["smoothgradcam++"] * len(chosen)), strict=True):
                for name, g in gradient.items():
                    powers = [g / COPIES, g**2 / COPIES, g**3 / COPIES]
                    sums[t][name] = [a + b for a, b in zip(sums[t][name], powers, strict=True)] if name in sums[t] else powers
        return {t: {name: (p[0], p[1], p[2]) for name, p in by_layer.items()} for t, by_layer in sums.items()}

    def _cam(self, chosen: list[int]) -> list[dict[str, Tensor]]:
        if not self.plan.linear:
            raise RecipeError("CAM needs a global average pool and one linear layer after the layer: use gradcam here")
        (name,) = self.plan.layers
        A = self._cells(name)
        slopes = [self._closed_form(self._cotangent(t, "cam"))[name] * A.shape[2:].numel() for t in chosen]
        return [{name: weighted(A, slope)} for slope in slopes]

    def _scores_of(self, chosen: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
        def scores_of(logits: Tensor, rows: Tensor) -> Tensor:
            return torch.stack([self.wanted[t].rows(rows).value(logits.float()) for t in chosen], 1)

        return scores_of

    def _scorecam(self, chosen: list[int]) -> list[dict[str, Tensor]]:
        maps: list[dict[str, Tensor]] = [{} for _ in chosen]
        for name in self.plan.layers:
            A = self._cells(name)
            factors = scorecam(A, self.images, self.network.logits, self._scores_of(chosen), self.size)
            for i in range(len(chosen)):
                maps[i][name] = weighted(A, factors[:, i, :, None, None])
        return maps

    def _ablationcam(self, chosen: list[int]) -> list[dict[str, Tensor]]:
        maps: list[dict[str, Tensor]] = [{} for _ in chosen]
        for name in self.plan.layers:
            A = self._cells(name)
            if self.plan.linear and all(self._is_linear_target(t) for t in chosen):
                falls = [self._closed_form(self._cotangent(t, "cam"))[name] * A.sum((2, 3), keepdim=True) for t in chosen]
            else:
                without, scores_of = self._without(name), self._scores_of(chosen)
                logits = self.passed.output.detach().float()  # by the same arithmetic as those without a channel
                falls = list(ablationcam(A, logits, without, scores_of, self.size)[..., None, None].unbind(1))
            for i, fall in enumerate(falls):
                maps[i][name] = weighted(A, fall)
        return maps

    def _without(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        leaf, form = self.passed.leaves[name].detach(), self.plan.layers[name]

        def without(rows: Tensor, channels: Tensor) -> Tensor:
            ablated = form.without(leaf[rows], channels)
            return self.network.tail(self.plan, name, ablated, lambda: self.images[rows]).float()

        return without

    def _fullgrad(self, chosen: list[int]) -> list[dict[str, Tensor]]:
        def cotangents_of(logits: Tensor) -> list[Tensor]:
            return [self.wanted[t].cotangent(logits) for t in chosen]

        maps, sums, _ = fullgrad(self.network.model, self.images, self.network.logits, cotangents_of)
        self.fullgrad_sums = torch.zeros(len(maps), len(self.wanted), device=maps.device)
        self.fullgrad_sums[:, chosen] = sums
        return [{"input": m} for m in maps.unbind(1)]

    def _by_attribution(self, t: int, method: Method) -> dict[str, Tensor]:
        assert not isinstance(method, str)
        if len(self.plan.layers) > 1:
            raise RecipeError(f"{method} explains one layer at a time: name one, not {' and '.join(self.plan.layers)}")
        name, form = next(iter(self.plan.layers.items()))
        maps = method.attribute(self.network, self.images, self._cotangent(t, method)[:, None], name, form)
        return {name: maps[:, 0].detach().float()}

    def _sum_rule(self, t: int, total: Tensor, scores: Tensor) -> Tensor:
        """Return how far total + bias is from the score, relative to the sum of the absolute terms."""
        head, (name,) = self.plan.head, self.plan.layers
        assert head is not None
        cotangent = self._cotangent(t, "cam")
        slope = cotangent @ head.weight.detach().float() if self.wanted else cotangent
        bias = torch.zeros_like(total)
        if self.wanted and head.bias is not None:
            bias = (cotangent * head.bias.detach().float()).sum(1)
        size = (slope.abs() * self._cells(name).abs().mean((2, 3))).sum(1) + bias.abs()
        error = (scores - bias - total).abs() / size.clamp(min=torch.finfo(torch.float32).tiny)
        if len(error) and float(error.max()) > TOLERANCE:
            raise DataError(f"a map misses its score by {float(error.max()):.1e} of its terms: turn off reduced precision (TF32)")
        return error


def kind_of(method: Method) -> str:
    """Return which kind of computation a method needs: "factor" of activations and gradients, "attribution", or its own name."""
    if not isinstance(method, str):
        return "attribution"
    return "factor" if method in FACTORS else method


def _place(columns: list[Tensor], classes: Any) -> int:
    return next(i for i, column in enumerate(columns) if torch.equal(column, classes))


def _sum(terms: list[Tensor]) -> Tensor:
    return terms[0] if len(terms) == 1 else torch.stack(terms).sum(0)


def _zeros(like: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in like.items()}
