"""Which layer a heatmap is of, and how that layer's output is read as cells: activations (N, K, h, w).

One pass of one image records what every module returns. A convolution's output has its cells last, (N, K, h, w); Swin-like
networks have their channels last, (N, h, w, K); transformers have tokens, (N, L, K), where class and register tokens come
first. Which of these an output is, is read off its shape and the image's: cells have the image's proportions.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import gcd, isqrt, prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..exceptions import RecipeError

MIN_CELLS = 4 * 4  # layer "auto" wants more than these: at 4×4 or below, a map of an image says little about places
MOST_PREFIX_TOKENS = 16  # class, distillation and register tokens; DINOv2 with registers has 5


@dataclass(frozen=True)
class Form:
    """How a layer's output is read as activations (N, K, h, w).

    kind: "first" for (N, K, h, w), "last" for (N, h, w, K), "tokens" for (N, prefix + h·w, K), "told" for the user's `reshape`.
    """

    kind: Literal["first", "last", "tokens", "told"]
    grid: tuple[int, int]
    prefix: int = 0
    reshape: Callable[[Tensor], Tensor] | None = None

    def cells(self, output: Tensor) -> Tensor:
        """Return the layer's output, or its gradient, as (N, K, h, w)."""
        if self.reshape is not None:
            return self.reshape(output)
        if self.kind == "tokens":
            tokens: Tensor = output[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
            return tokens
        return output.permute(0, 3, 1, 2) if self.kind == "last" else output

    def without(self, output: Tensor, channels: Tensor) -> Tensor:
        """Return `output` with channel channels[i] of row i set to zero in all cells; class and register tokens stay."""
        rows = torch.arange(len(output), device=output.device)
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            cells = self.cells(leaf)
            kept = torch.zeros_like(cells)
            kept[rows, channels] = cells.detach()[rows, channels]
            # A rearrangement's transpose puts each cell back where it came from, whatever the form.
            (removed,) = torch.autograd.grad(cells, leaf, kept)
        return output.detach() - removed


@dataclass
class Trace:
    """What one pass of one image saw: each module's last output (its first tensor), when it ran, and how often.

    `outputs` is in the order of execution. `plain` are the modules that return a tensor itself, not in a tuple or the like.
    """

    example: tuple[int, ...]  # (C, H, W)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    plain: set[str] = field(default_factory=set)
    entered: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    norms: set[str] = field(default_factory=set)
    result: Any = None

    @property
    def size(self) -> tuple[int, int]:
        return self.example[1], self.example[2]


def trace(model: nn.Module, example: Tensor) -> Trace:
    """Pass `example` (1, C, H, W) through the model with a graph, and return what its modules did."""
    seen, clock = Trace(tuple(example.shape[1:])), iter(range(1 << 62))

    def enter(name: str) -> Callable[[nn.Module, object], None]:
        def hook(module: nn.Module, inputs: object) -> None:
            seen.entered[name] = next(clock)

        return hook

    def leave(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            seen.left[name], seen.runs[name] = next(clock), seen.runs.get(name, 0) + 1
            seen.outputs.pop(name, None)  # a module that runs again belongs at the end
            tensor = first_tensor(output)
            if "norm" in type(module).__name__.lower():
                seen.norms.add(name)
            if tensor is not None:
                seen.outputs[name] = tensor
            if tensor is output:
                seen.plain.add(name)

        return hook

    handles = []
    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(enter(name)))
                handles.append(module.register_forward_hook(leave(name)))
        with torch.enable_grad():
            seen.result = model(example.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    return seen


def first_tensor(output: object) -> Tensor | None:
    """Return the first tensor of a module's output: the output itself, or an element of a tuple, a list or a mapping."""
    if isinstance(output, Tensor):
        return output
    elements = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((element for element in elements if isinstance(element, Tensor)), None)


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """Return a module's output with its first tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    old = first_tensor(output)
    if isinstance(output, Mapping):
        changed = {key: tensor if value is old else value for key, value in output.items()}
        return changed if type(output) is dict else type(output)(**changed)  # such as a ModelOutput
    elements = [tensor if element is old else element for element in output]
    if isinstance(output, tuple):
        return type(output)(*elements) if hasattr(output, "_fields") else tuple(elements)
    return elements


def check_name(model: nn.Module, layer: str) -> None:
    """Raise RecipeError, which names the nearest ones, unless the model has a module called `layer`."""
    names = [name for name, _ in model.named_modules() if name]
    if layer not in names:
        close = difflib.get_close_matches(layer, names, n=5, cutoff=0.3) or [n for n, _ in model.named_children()]
        raise RecipeError(f"the model has no layer '{layer}': use 'auto', or one such as {', '.join(close)}")


def choose(seen: Trace, wanted: str, score: Tensor, reshape: Callable[[Tensor], Tensor] | None = None) -> tuple[str, Form]:
    """Return the layer called `wanted`, or for "auto" the last with more than 4×4 cells that the score depends on, and its form.

    Of a transformer, "auto" is the last such norm: a layer norm doesn't see its input's scale, so that before one gradient ×
    activation is zero in each cell, and what lies between the norm and the tokens' mixing is no layer that people know.
    score: a number with a graph, of the traced pass. Of several modules that return the same tensor, the outermost is meant.
    Raises RecipeError for a layer that wasn't reached, has no places or no influence on the score.
    """
    if wanted == "auto":
        best = next(_usable(seen, reshape, score), None)
        if best is not None:
            return best
        if not score.requires_grad:
            raise RecipeError("no gradient leads back from the logits: take `torch.no_grad` out of the model's forward")
        raise RecipeError(f"no layer has more than 4×4 cells on {_pixels(seen)} images: name one, or use larger images")
    if wanted not in seen.runs:
        raise RecipeError(f"layer '{wanted}' is not reached by the forward pass: {_advice(seen, reshape, score)}")
    named = form_of(seen, wanted, reshape)
    if named is None or prod(named.grid) < 2:
        shape = str(tuple(seen.outputs[wanted].shape[1:])) if wanted in seen.outputs else "no tensor"
        reason = f"layer '{wanted}' has no spatial extent on {_pixels(seen)} images (it returns {shape})"
        raise RecipeError(f"{reason}: {_advice(seen, reshape, score)}")
    if not _influences(seen, wanted, named, score):
        reason = f"the logits do not depend on layer '{wanted}'" + " but for its class token" * (named.prefix > 0)
        raise RecipeError(f"{reason}: {_advice(seen, reshape, score)}")
    return wanted, named


def form_of(seen: Trace, name: str, reshape: Callable[[Tensor], Tensor] | None = None) -> Form | None:
    """Return how the output of layer `name` is read as cells, or None where it has no places."""
    output = seen.outputs.get(name)
    if output is None or not output.is_floating_point() or output.shape[:1] != (1,):  # such as one row a window
        return None
    if reshape is not None:
        return _told(output, reshape)
    if output.ndim == 4 and not _is_attention(seen, output):
        first, last = (_mismatch(seen.size, (output.shape[i], output.shape[i + 1])) for i in (2, 1))
        if first <= last:
            return Form("first", (output.shape[2], output.shape[3]))
        return Form("last", (output.shape[1], output.shape[2]))
    if output.ndim == 3:
        grid = _token_grid(seen, output.shape[1])
        return Form("tokens", grid, output.shape[1] - prod(grid)) if grid else None
    return None


def _is_attention(seen: Trace, output: Tensor) -> bool:
    """Whether a 4-D output is (N, heads, L, L), of every token to every token."""
    lengths = {other.shape[1] for other in seen.outputs.values() if other.ndim == 3 and len(other) == 1}
    return output.shape[2] == output.shape[3] and output.shape[2] in lengths


def _told(output: Tensor, reshape: Callable[[Tensor], Tensor]) -> Form | None:
    try:
        cells = reshape(output.detach())
    except (RuntimeError, IndexError, ValueError):  # meant for another layer
        return None
    if not isinstance(cells, Tensor) or cells.ndim != 4:
        return None
    return Form("told", (cells.shape[2], cells.shape[3]), reshape=reshape)


def _mismatch(size: tuple[int, int], grid: tuple[int, int]) -> float:
    """How far a grid's proportions are from the image's; 0 for equal ones. Padding may cost a cell or two."""
    return abs(grid[0] * size[1] - grid[1] * size[0]) / (grid[0] * size[1] + grid[1] * size[0])


def _token_grid(seen: Trace, length: int) -> tuple[int, int] | None:
    """Return the grid (h, w) of `length` tokens, less a few leading ones: the patches', else one like the image."""
    height, width = seen.size
    unit = gcd(height, width)
    side = isqrt(length * unit * unit // (height * width))
    proportional = (side * height // unit, side * width // unit)
    patches = [(o.shape[2], o.shape[3]) for o in seen.outputs.values() if o.ndim == 4]
    for grid in (*patches, proportional):
        if 1 < prod(grid) <= length <= prod(grid) + MOST_PREFIX_TOKENS:
            return grid
    return None


def _candidates(seen: Trace, reshape: Callable[[Tensor], Tensor] | None) -> list[tuple[str, Form]]:
    """Return the layers with places, the last first; of several that return one tensor, the outermost."""
    found = []
    for name in reversed(seen.outputs):
        same = [other for other, output in reversed(seen.outputs.items()) if output is seen.outputs[name]]
        form = form_of(seen, name, reshape)
        if form is not None and name == min(same, key=lambda other: other.count(".")):
            found.append((name, form))
    return found


def _influences(seen: Trace, name: str, form: Form, score: Tensor) -> bool:
    """Whether the score depends on the layer's cells: a vision transformer's last block acts by its class token only."""
    output = seen.outputs[name]
    if not output.requires_grad or not score.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(score, output, retain_graph=True, allow_unused=True)
    return gradient is not None and bool(form.cells(gradient).count_nonzero())


def _usable(seen: Trace, reshape: Callable[[Tensor], Tensor] | None, score: Tensor) -> Iterator[tuple[str, Form]]:
    """Yield the layers with more than 4×4 cells that the score depends on, the last first; of a transformer, the norms only."""
    found = [(name, form) for name, form in _candidates(seen, reshape) if prod(form.grid) > MIN_CELLS]
    normed = any(name in seen.norms and form.kind in ("last", "tokens") for name, form in found)
    for name, form in found:
        plain = normed and form.kind in ("last", "tokens") and name not in seen.norms
        if not plain and _influences(seen, name, form, score):
            yield name, form


def _advice(seen: Trace, reshape: Callable[[Tensor], Tensor] | None, score: Tensor) -> str:
    """Name for each resolution above 4×4 cells its last layer, the last resolution first."""
    stages: dict[str, str] = {}
    for name, form in _usable(seen, reshape, score):
        cells = "×".join(map(str, form.grid))
        if cells not in stages.values():
            stages[name] = cells
    return "use " + " or ".join(f"'{name}' ({cells})" for name, cells in stages.items()) if stages else "use larger images"


def _pixels(seen: Trace) -> str:
    return "×".join(map(str, seen.size))
