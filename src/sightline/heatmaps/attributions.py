"""Any captum attribution (https://captum.ai, Kokhlikyan et al. 2020, https://arxiv.org/abs/2009.07896) as a heatmap's method.

captum explains one number an image. Here it is Σ_c cotangent_c · logit_c, so that a class (a one-hot cotangent), a margin (1 and
−1) and anything else that is linear in the logits go through the same door.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..exceptions import RecipeError, SightlineError, nearest
from .layers import Form, first_tensor
from .network import Network

PREFIX = "captum:"
SQUARES = 8  # a side: what captum would vary pixel by pixel, in thousands of passes, is varied in 8×8 squares
ROWS = 128  # at a time, where captum lets us choose: it would pass all steps of all images at once
NO_CHANNELS = ("LayerGradCam", "GuidedGradCam")  # they take dimension 1 for the channels, whatever the layer
OURS = {"forward_func", "model", "layer", "attribution_method", "inputs", "target", "additional_forward_args"}
OURS |= {"device_ids", "return_convergence_delta", "return_input_shape", "show_progress", "kwargs"}


@dataclass(frozen=True)
class CaptumMethod:
    """A captum attribution and its options, as `captum_method` makes and checks it; pass it as `method=` to `Heatmaps`."""

    name: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return PREFIX + self.name

    def attribute(self, network: Network, images: Tensor, cotangents: Tensor, layer: str, form: Form) -> Tensor:
        """Return maps (N, T, h, w) of images (N, C, H, W), signed, channels summed, at the layer's or the input's resolution.

        cotangents: (N, T, classes); map t of an image explains (cotangents[:, t] * logits).sum(1). A callable target is thereby
        replaced by its tangent at these logits.  layer, form: where a class attributes to a layer, and how to read it.

        Random numbers come from seed 0, for each target anew. The model, the images and the generators are left as they were.

        Raises RecipeError, in one line, for whatever captum raises.
        """
        core = self.options.get("of", self)
        if core.name in NO_CHANNELS and form.kind != "first":
            raise RecipeError(f"captum's {core.name} misreads layer '{layer}', whose channels aren't first: use 'gradcam'")
        if "LRP" in core.name and not (cotangents.count_nonzero(2) == 1).all():  # it scales all relevance by the one score
            raise RecipeError(f"captum's {core.name} explains single classes only: give classes, or use DeepLift")
        images = images.detach().clone()  # captum would switch on the caller's own `requires_grad`
        try:
            if "model" in inspect.signature(_class(core.name)).parameters:
                network = copy.deepcopy(network)  # these rewrite weights and hang attributes on modules, and may fail half-way
            attribution = self._build(_Score(network), network.model.get_submodule(layer))
            options = self._call_options(images)
            maps = []
            for cotangent in cotangents.detach().unbind(1):
                with _quiet_and_repeatable(images.device):
                    output = attribution.attribute(images, additional_forward_args=(cotangent,), **options)
                maps.append(_map(output, form, core.name))
            return torch.stack(maps, 1)
        except SightlineError:
            raise
        except Exception as error:  # captum checks by assertions, and lets whatever torch raises through
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RecipeError(
                f"captum's {self.name} failed at layer '{layer}' ({reason}): check its options, or use another"
            ) from error

    def _build(self, score: nn.Module, layer: nn.Module) -> Any:
        cls = _class(self.name)
        if self.name == "NoiseTunnel":
            return cls(self.options["of"]._build(score, layer))
        parameters = inspect.signature(cls).parameters
        where = {"layer": layer} if "layer" in parameters else {}
        return cls(score, **where, **{name: value for name, value in self.options.items() if name in parameters})

    def _call_options(self, images: Tensor) -> dict[str, Any]:
        parameters = inspect.signature(_class(self.name).attribute).parameters
        inner = self.options["of"]._call_options(images) if self.name == "NoiseTunnel" else {}
        given = {name: value for name, value in self.options.items() if name in parameters}
        defaults = _defaults(images, 2 if self.name == "ShapleyValues" else SQUARES)  # 4 squares have 24 orders, 64 too many
        if "sliding_window_shapes" in given:
            del defaults["strides"]
        if "baselines" in parameters and parameters["baselines"].default is None:
            del defaults["baselines"]
        return {**inner, **{name: value for name, value in defaults.items() if name in parameters}, **given}


def captum_method(name: str, **options: Any) -> CaptumMethod:
    """Return captum's attribution `name`, such as "IntegratedGradients" or "LayerConductance", as a method of `Heatmaps`.

        h(images, targets, method=captum_method("IntegratedGradients", n_steps=32))

    options: those of captum's class and of its `attribute`. For "NoiseTunnel", `of` is the method that the noise is put on: a
    name or another `captum_method`; "Saliency" if not given, which makes it SmoothGrad.

    captum's own defaults hold, but for these: `abs=False`, so that Saliency keeps its sign; pixels are occluded, ablated and
    permuted in 8×8 squares a side; where captum insists on `baselines` they are zero, the mean colour of normalised images; and
    steps run 128 rows at a time (or a batch, if that is more), so that memory stays flat.

    Raises RecipeError for names and options that captum doesn't have, and if captum isn't installed.
    """
    _class(name)
    if name == "NoiseTunnel":
        of = options.get("of", "Saliency")
        options["of"] = of if isinstance(of, CaptumMethod) else captum_method(of)
    known = _options(name)
    for option in options:
        if option not in known:
            raise RecipeError(f"captum's {name} has no option '{option}': {nearest(option, known) if known else 'it has none'}")
    return CaptumMethod(name, options)


def method_of(text: str) -> str | CaptumMethod:
    """Return "captum:Occlusion" as a `captum_method`, and any other text, such as "gradcam", as it is.

    Raises RecipeError for names that captum doesn't have, and if captum isn't installed.
    """
    return captum_method(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else text


class _Score(nn.Module):
    """Σ_c cotangents[n, c] · logits[n, c]: (N,). A module, for captum's classes that hook the modules below theirs.

    captum repeats and splits additional arguments together with the images, so that rows and cotangents stay pairs.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model, self.logits = network.model, network.logits

    def forward(self, images: Tensor, cotangents: Tensor) -> Tensor:
        return (cotangents * self.logits(images)).sum(1)


def _classes() -> dict[str, Any]:
    """Return captum's attributions of one number to an input or a layer; those of neurons and of language models are left out."""
    try:
        import captum.attr
    except ImportError:
        raise RecipeError("captum isn't installed: pip install 'sightline[captum]'") from None
    found = {name: cls for name, cls in vars(captum.attr).items() if inspect.isclass(cls) and hasattr(cls, "attribute")}
    ours = ("forward_func", "model", "attribution_method")
    return {
        name: cls
        for name, cls in found.items()
        if not name.startswith("Neuron") and next(iter(inspect.signature(cls).parameters)) in ours
    }


def _class(name: str) -> Any:
    classes = _classes()
    if name not in classes:
        raise RecipeError(f"captum has no attribution '{name}' for images: {nearest(name, classes)}")
    return classes[name]


def _options(name: str) -> set[str]:
    cls = _class(name)
    parameters = {*inspect.signature(cls).parameters, *inspect.signature(cls.attribute).parameters}
    return parameters - OURS - {"self"} | ({"of"} if name == "NoiseTunnel" else set())


def _defaults(images: Tensor, squares: int) -> dict[str, Any]:
    """Return our choices for captum's options, whichever of them a class has."""
    n, channels, height, width = images.shape
    rows, columns = ceil(height / squares), ceil(width / squares)
    row, column = (torch.arange(size, device=images.device) // step for size, step in ((height, rows), (width, columns)))
    window = (channels, rows, columns)
    return {
        "abs": False,
        "baselines": images.new_zeros(2, channels, height, width),  # two, since DeepLiftShap wants more than one
        "feature_mask": (row[:, None] * ceil(width / columns) + column)[None, None],
        "sliding_window_shapes": window,
        "strides": window,
        "internal_batch_size": max(n, ROWS),
    }


def _map(output: Any, form: Form, name: str) -> Tensor:
    """Sum captum's output over the channels: (N, h, w)."""
    tensor = first_tensor(output)
    assert tensor is not None
    layered = name.startswith("Layer") or name == "InternalInfluence"
    return (form.cells(tensor) if layered else tensor).detach().float().sum(1)


@contextmanager
def _quiet_and_repeatable(device: torch.device) -> Iterator[None]:
    """Seed torch's and NumPy's generators and put them back; hush captum, which announces its hooks and its loops."""
    numpy_state = np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
