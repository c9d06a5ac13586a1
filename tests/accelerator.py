"""An accelerator for machines that have none: the CPU, as strict as Apple's GPUs are.

Inside `with Pretended():` there is a device "pretended". Its tensors are computed by the CPU, bit for bit, but an operation is
refused that such a device refuses: float64, a mixture with tensors on the CPU (single numbers and indices go), `numpy()`, and
what torch's own table of operations has no kernel for on Apple's GPUs.

The device is made of torch's own means for devices written in Python, which it calls experimental; where it has none, `Pretended`
is None.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchgen
import yaml
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
aten = torch.ops.aten
ACROSS = (aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default)  # what goes from one device to another
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)  # indices may lie on the CPU


class OnDevice(torch.Tensor):
    """A tensor that says it is on the device; what is in it lies in `inner`, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"the device has no {inner.dtype}")
        place = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        outer: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=torch.device(NAME, 0), **place
        )
        outer.inner = inner
        return outer

    def __init__(self, inner: Tensor) -> None: ...

    def tolist(self) -> Any:
        """As of any tensor: torch refuses it for its own subclasses."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


@cache
def _without_kernel() -> frozenset[str]:
    """The operations that can't run on Apple's GPUs, by torch's table."""
    text = (Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml").read_text(encoding="utf-8")
    table = {row["func"].partition("(")[0]: row for row in yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))}

    def places(row: dict[str, Any]) -> set[str]:
        rows = [row, table[row["structured_delegate"]]] if "structured_delegate" in row else [row]
        return {place.strip() for each in rows for places in each.get("dispatch", {}) for place in places.split(",")}

    return frozenset(
        name
        for name, row in table.items()
        if (there := places(row)) and "MPS" not in there and not any(place.startswith("Composite") for place in there)
    )


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = any(isinstance(tensor, OnDevice) for tensor in tensors)
    elsewhere = [tuple(t.shape) for t in tensors if not isinstance(t, OnDevice) and t.ndim]
    if here and elsewhere and func not in (*ACROSS, *INDEXED):
        raise RuntimeError(f"{func}: {elsewhere} on the CPU, others on the device")
    inner: Callable[[Any], Any] = lambda leaf: leaf.inner if isinstance(leaf, OnDevice) else leaf  # noqa: E731
    inside = tree_map(inner, kwargs)
    goes_to = kwargs.get("device")
    stays = here if goes_to is None else torch.device(goes_to).type == NAME
    if func is aten.copy_.default:
        stays = isinstance(args[0], OnDevice)
    name = func._schema.name.removeprefix("aten::") + (f".{func._schema.overload_name}" if func._schema.overload_name else "")
    if stays and name in _without_kernel():
        raise NotImplementedError(f"{name}: torch has no kernel of it for Apple's GPUs")
    if stays and goes_to is not None:
        inside["device"] = torch.device("cpu")
    result = func(*tree_map(inner, args), **inside)
    if not stays:
        return result
    result = tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, Tensor) else leaf, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if here else result


class _Mode(TorchDispatchMode):
    """The device, there for as long as the context lasts."""

    inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})

    def __enter__(self) -> _Mode:
        _Mode.inside = True
        self.before = torch._C._only_lift_cpu_tensors(), torch.inference_mode
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) makes them on the CPU, and sends them over
        torch.inference_mode = lambda mode=True: torch.no_grad()  # type: ignore[assignment,misc]  # which subclasses can't bear
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        lifted, torch.inference_mode = self.before  # type: ignore[misc]
        torch._C._set_only_lift_cpu_tensors(lifted)
        _Mode.inside = False


def _registered() -> bool:
    """Tell torch of the device, once a process; False where it can't be told."""
    try:
        made = backend_registration._setup_privateuseone_for_python_backend
        hooks, module = backend_registration._DummyPrivateUse1Hook, backend_registration._DummyBackendModule
    except AttributeError:
        return False

    class Hooks(hooks):  # type: ignore[misc,valid-type]
        def is_available(self) -> bool:
            return _Mode.inside

    class Module(module):  # type: ignore[misc,valid-type]
        def is_available(self) -> bool:
            return _Mode.inside

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.float16, torch.bfloat16]

        def get_rng_state(self, device: Any = None) -> Tensor:
            return torch.get_rng_state()

        def set_rng_state(self, state: Tensor, device: Any = None) -> None:
            torch.set_rng_state(state)

    made(NAME, Module(), Hooks())
    return True


Pretended = _Mode if _registered() else None
