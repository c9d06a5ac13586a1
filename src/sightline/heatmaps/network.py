"""The model as the engine uses it: run up to a layer without a graph, from there on with one, or from there on alone.

Heatmaps differentiate only what follows the layer ("the tail"), and some run the tail again with other activations. The first
needs a hook at the layer. The second needs the trunk's modules to be skipped: their `forward` is replaced for the call by one
that returns a placeholder, which is allowed only where a test with NaN placeholders has shown that nothing after the layer
reads them (a U-Net does, for example; there the whole model runs again).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import DataError, RecipeError
from .layers import Form, Trace, check_name, choose, first_tensor, trace, with_first_tensor

Output = str | int | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class Plan:
    """What is known of the model for images of one size.

    layers: each layer's name → its form.  head: the linear layer that makes the logits out of the embedding, or None.
    linear: whether only a global average pool lies between the (single) layer and the head.  channels_last: whether images go in
    that memory format, the faster one on a CPU.
    """

    layers: Mapping[str, Form]
    head: nn.Linear | None
    linear: bool
    channels_last: bool
    seen: Trace


@dataclass
class Pass:
    """One run of the model on a batch. leaves: each layer's output as it was.  output: the logits (N, classes)."""

    leaves: dict[str, Tensor]
    output: Tensor
    embedding: Tensor | None

    def pools(self, plan: Plan) -> bool:
        """Whether the head's input is the mean of the layer's cells for each of these images, as a linear plan has it."""
        ((name, form),) = plan.layers.items()
        cells, embedding = form.cells(self.leaves[name]).detach(), self.embedding
        if embedding is None or embedding.shape != cells.shape[:2]:
            return False
        error = (embedding.detach().float() - cells.float().mean((2, 3))).abs()
        return bool((error <= _rounding(embedding) * cells.float().abs().mean((2, 3)) + torch.finfo(torch.float32).tiny).all())


class Network:
    """A model whose hooks live during a call only; `output` tells which of several outputs are the logits."""

    def __init__(self, model: nn.Module, output: Output = None) -> None:
        self.model, self._output = unwrapped(model), output
        self.bf16 = False
        self.first = 0  # the place of a batch's first image among all that were given, for messages
        self._isolated: dict[tuple[str, tuple[int, ...]], bool] = {}

    def plan(self, wanted: Sequence[str], example: Tensor, reshape: Callable[[Tensor], Tensor] | None) -> Plan:
        """Look at one pass of `example` (1, C, H, W), and choose the layers called `wanted` ("auto" is one).

        Raises DataError where the model doesn't take such an image, RecipeError for layers that can't be explained.
        """
        for name in wanted:
            if name != "auto":
                check_name(self.model, name)
        try:
            seen = trace(self.model, example)
        except (RuntimeError, ValueError, AssertionError) as error:  # by torch, or by a check of the model's own
            shape, reason = "×".join(map(str, example.shape[1:])), (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"the model doesn't take {shape} images ({reason}): give what it was trained on") from error
        logits = select(seen.result, self._output)
        with torch.enable_grad():
            score = logits @ _ramp(logits)  # not a plain sum: that could vanish
        layers = dict(choose(seen, name, score, reshape) for name in wanted)
        head = self._head(seen, logits)
        linear = head is not None and len(layers) == 1 and self._is_linear(seen, *next(iter(layers.items())), head, logits)
        return Plan(layers, head, linear, self._takes_channels_last(example), _without_values(seen))

    def run(self, images: Tensor, plan: Plan, *, graph: bool) -> Pass:
        """Run the model; with `graph`, from the first of the plan's layers on, whose output is then a leaf of the graph.

        Raises DataError if an output or a layer isn't finite, RecipeError where no gradient reaches a layer.
        """
        leaves: dict[str, Tensor] = {}
        embedding: list[Tensor] = []

        def cut(name: str) -> Callable[[nn.Module, object, Any], Any]:
            def hook(module: nn.Module, inputs: object, output: Any) -> Any:
                tensor = first_tensor(output)
                assert tensor is not None
                if graph:
                    torch.set_grad_enabled(True)  # from here on: the trunk below the layer needs no graph
                    tensor = tensor if tensor.requires_grad and leaves else tensor.detach().requires_grad_()
                leaves[name] = tensor
                return with_first_tensor(output, tensor.clone())  # what follows may work in place: no leaf allows that

            return hook

        with torch.no_grad(), ExitStack() as stack:  # `no_grad` also ends what `cut` switches on
            for name in plan.layers:
                stack.enter_context(self.model.get_submodule(name).register_forward_hook(cut(name)))
            if plan.head is not None:
                keep = plan.head.register_forward_pre_hook(lambda module, inputs: embedding.extend(inputs[:1]))
                stack.enter_context(keep)
            logits = self._call(images)
        if graph and not logits.requires_grad:
            raise RecipeError(f"no gradient reaches layer '{next(iter(plan.layers))}': use a later one, or 'auto'")
        for name, tensor in (*leaves.items(), ("the output", logits)):
            _check_finite(name, tensor, self.first)
        return Pass(leaves, logits, embedding[-1] if embedding else None)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of a plain pass, float32."""
        return self._call(images).float()

    def tail(self, plan: Plan, layer: str, output: Tensor, images: Callable[[], Tensor]) -> Tensor:
        """Return the logits (M, classes) where layer `layer` returns `output` (M, …); the trunk is skipped if it may be.

        images: gives the M images that the rows belong to, for models of which the whole has to run.
        """
        if not self._may_skip(plan, layer, images):
            given = images()
            with self._replaced_last_output(plan.seen, layer, output):
                return self._call(given)
        with self._skipped(plan.seen, layer, output):
            return self._call(_nothing(output, (len(output), *plan.seen.example)))

    def _takes_channels_last(self, example: Tensor) -> bool:
        """Whether the model runs on a CPU with channels-last images: `x.view(len(x), -1)`, for one, does not."""
        if example.device.type != "cpu":
            return False
        try:
            self._call(example.contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return False
        return True

    def _call(self, images: Tensor) -> Tensor:
        """Run the model and return its logits. bfloat16 is for the model alone: what is made of its layers is float32."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return select(self.model(images), self._output)

    def _may_skip(self, plan: Plan, layer: str, images: Callable[[], Tensor]) -> bool:
        """Whether what follows `layer` reads nothing but its output: tried with one image and NaN everywhere else."""
        key = (layer, plan.seen.example)
        if key not in self._isolated:
            self._isolated[key] = plan.seen.runs[layer] == 1 and self._try_to_skip(plan, layer, images()[:1])
        return self._isolated[key]

    def _try_to_skip(self, plan: Plan, layer: str, image: Tensor) -> bool:
        if layer not in plan.seen.plain:  # what else it returns may depend on the image
            return False
        known = self.run(image, replace(plan, layers={layer: plan.layers[layer]}, head=None), graph=False)
        try:
            self._call(_nothing(image, image.shape))  # what a module keeps for a later one is NaN then, too
            with self._skipped(plan.seen, layer, known.leaves[layer]):
                alone = self._call(_nothing(image, image.shape))
        except Exception:  # whatever a model says of placeholders: it reads them
            return False
        return torch.allclose(alone, known.output, rtol=1e-4, atol=1e-5)  # NaN is never close

    @contextmanager
    def _skipped(self, seen: Trace, layer: str, output: Tensor) -> Iterator[None]:
        """For the time of `with`, let `layer` return `output`, and what runs before it NaN placeholders at no cost."""
        substitutes = {layer: output}
        for name in _trunk(seen, layer):
            substitutes[name] = _nothing(output, (len(output), *seen.outputs[name].shape[1:]))
        modules = {self.model.get_submodule(name): value for name, value in substitutes.items()}
        own = {module: module.__dict__["forward"] for module in modules if "forward" in module.__dict__}
        try:
            for module, value in modules.items():
                module.__dict__["forward"] = _returning(value)
            yield
        finally:
            for module in modules:
                module.__dict__.pop("forward", None)
            for module, forward in own.items():
                module.__dict__["forward"] = forward

    @contextmanager
    def _replaced_last_output(self, seen: Trace, layer: str, output: Tensor) -> Iterator[None]:
        runs = iter(range(1, seen.runs[layer] + 1))

        def hook(module: nn.Module, inputs: object, whole: Any) -> Any:
            return with_first_tensor(whole, output) if next(runs) == seen.runs[layer] else whole

        with self.model.get_submodule(layer).register_forward_hook(hook):
            yield

    def _head(self, seen: Trace, logits: Tensor) -> nn.Linear | None:
        """Return the linear layer whose output the logits are, if there is one that takes (N, K)."""
        for name, output in seen.outputs.items():
            module = self.model.get_submodule(name)
            if output is logits and isinstance(module, nn.Linear) and seen.runs[name] == 1:
                return module
        return None

    def _is_linear(self, seen: Trace, name: str, form: Form, head: nn.Linear, logits: Tensor) -> bool:
        """Whether the gradient of each logit is the same in all cells, namely head.weight / cells."""
        cells = form.cells(seen.outputs[name])
        if cells.shape[1] != head.in_features or form.prefix:
            return False
        cotangent = _ramp(logits)
        (gradient,) = torch.autograd.grad(logits, seen.outputs[name], cotangent[None], retain_graph=True)
        expected = (cotangent @ head.weight)[None, :, None, None] / cells[0, 0].numel()
        rounding = _rounding(logits)
        least = rounding / 100 * float(expected.abs().max())
        return torch.allclose(form.cells(gradient), expected.expand_as(cells), rtol=rounding, atol=least)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and torch.compile: they don't run hooks as they should."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def select(result: Any, output: Output) -> Tensor:
    """Return the logits (N, classes) among what a model returned.

    output: a key or attribute, a position, a function of the result; None: the only tensor of two dimensions, or `logits`.
    Raises RecipeError if there is none, or several.
    """
    logits: Any
    if callable(output):
        logits = output(result)
    elif output is not None:
        logits = _part(result, output)
    elif isinstance(result, Tensor):
        logits = result
    else:
        parts = _parts(result)
        only = next(iter(parts.values())) if len(parts) == 1 else None
        logits = parts.get("logits", only)
        if logits is None:
            choices = f": tell which one are the logits, output={' or '.join(map(repr, parts))}" if parts else ""
            raise RecipeError(f"the model returns a {type(result).__name__} with {len(parts)} tensors (N, classes){choices}")
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        found = f"a tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise RecipeError(f"heatmaps need logits (N, classes), and the model returns {found}: tell which with output=")
    return logits


def _part(result: Any, output: str | int) -> Any:
    try:
        attribute = isinstance(output, str) and not isinstance(result, Mapping) and hasattr(result, output)
        return getattr(result, str(output)) if attribute else result[output]
    except (KeyError, IndexError, TypeError, AttributeError):
        choices = " or ".join(map(repr, _parts(result))) or "nothing with two dimensions"
        raise RecipeError(f"the model's output has no {output!r}: it has {choices}") from None


def _parts(result: Any) -> dict[str | int, Tensor]:
    """Return the tensors of two dimensions in a model's output, by key, attribute or position."""
    items: Any = enumerate(result) if isinstance(result, (tuple, list)) else ()
    if isinstance(result, Mapping):
        items = result.items()
    elif hasattr(result, "_asdict"):
        items = result._asdict().items()
    elif hasattr(result, "__dict__") and not isinstance(result, (tuple, list)):
        items = vars(result).items()
    return {key: value for key, value in items if isinstance(value, Tensor) and value.ndim == 2}


def _trunk(seen: Trace, layer: str) -> list[str]:
    """Return the outermost modules that are done, once and for all, before `layer` begins, and return a row an image."""
    before = {
        name
        for name, output in seen.outputs.items()
        if seen.left[name] < seen.entered[layer] and seen.runs[name] == 1 and name in seen.plain and output.shape[:1] == (1,)
    }
    return [name for name in before if not any(name.startswith(f"{other}.") for other in before)]


def _nothing(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A placeholder: NaN of any shape, at no cost."""
    return like.new_full((), torch.nan).expand(*shape)


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *inputs, **options: value


def _without_values(seen: Trace) -> Trace:
    """Let go of the graph and the activations: only the outputs' shapes are needed later, and there is a plan an image size."""
    seen.outputs = {name: output.new_empty(()).expand(output.shape) for name, output in seen.outputs.items()}
    seen.result = None
    return seen


def _ramp(logits: Tensor) -> Tensor:
    """A different weight for each class."""
    return torch.linspace(1, 2, logits.shape[1]).to(logits)


def _rounding(tensor: Tensor) -> float:
    """The relative error to expect of numbers that were made in a tensor's arithmetic."""
    return 2e-2 if torch.finfo(tensor.dtype).bits == 16 else 1e-4


def _check_finite(name: str, tensor: Tensor, first: int) -> None:
    broken = ~tensor.detach().isfinite().flatten(1).all(1)
    if broken.any():
        where = name if name.startswith("the ") else f"layer '{name}'"
        kind = "NaN" if tensor.detach().isnan().any() else "infinite"
        image = f"image {first + int(broken.nonzero()[0])} of the batch"
        raise DataError(f"{where} has {kind} values for {image}: they aren't finite; check its pixels and the weights")
