"""Which arithmetic is fastest here: found by timing real training steps, remembered a machine and model.

The weights are always float32; only the products of a step may run in bfloat16 (torch.autocast), or, on an NVIDIA GPU that has
none, such as the T4, in float16. That has more digits and a smaller range: the loss is scaled so that gradients stay in it.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from platformdirs import user_cache_path
from torch import Tensor, nn

from .exceptions import RecipeError, SightlineError
from .runs import write_json
from .winograd import Winograd

COMPILE_WORTH = 1800.0  # seconds of training from which a minute of compilation is worth trying
CLEARLY = 0.95  # a candidate must take less than this share of the simpler one's time
HOPELESS = 8.0  # times as long as in float32: a matrix product that takes more in bfloat16 is emulated
PART = 128  # images of a batch that stand for the whole on a CPU: of fewer too much stays in its cache
TRY_SECONDS = 3.0  # of a candidate's steps, after which no other is taken; two are at least


@dataclass(frozen=True)
class Precision:
    """How a training step is computed: dtype of the products (float32, bfloat16 or float16), memory format, compiled or not.

    winograd: whether 3×3 convolutions take fewer products (sightline.winograd): in float32, channels last, on a CPU.
    """

    dtype: str = "float32"
    channels_last: bool = False
    compiled: bool = False
    winograd: bool = False

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return `model` in this memory format (in place), and compiled if asked.

        Raises RecipeError for a model in training mode that can't be trained so.
        """
        if self.channels_last:
            if model.training:
                _refuse_overrun(model)
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not self.compiled:
            return model
        # Dropped partial batches keep one shape, so one graph is enough.
        return cast(nn.Module, torch.compile(model, dynamic=False))

    def format(self, images: Tensor) -> Tensor:
        """Return a batch (N, C, H, W) in this memory format."""
        return images.contiguous(memory_format=self.memory_format)

    @property
    def memory_format(self) -> torch.memory_format:
        """How the model and its images lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context in which the model's forward pass runs."""
        if self.winograd:
            return Winograd()
        lower = self.dtype != "float32"
        return torch.autocast(device.type, getattr(torch, self.dtype) if lower else None, enabled=lower)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """The loss's scaler: keeps float16's gradients in its range and skips steps that aren't finite; else does nothing."""
        return torch.amp.GradScaler(device.type, enabled=self.dtype == "float16")

    @property
    def name(self) -> str:
        """Its name in NAMED."""
        return next(name for name, precision in NAMED.items() if precision == self)

    def __str__(self) -> str:
        ways = {"channels-last": self.channels_last, "compiled": self.compiled, "Winograd": self.winograd}
        return ", ".join([self.dtype, *(way for way, taken in ways.items() if taken)])


NAMED = {
    "fp32": Precision(),
    "fp32-channels-last": Precision("float32", channels_last=True),
    "fp32-winograd": Precision("float32", channels_last=True, winograd=True),
    "bf16": Precision("bfloat16", channels_last=True),
    "fp16": Precision("float16", channels_last=True),
    "fp32-compiled": Precision("float32", channels_last=True, compiled=True),
    "bf16-compiled": Precision("bfloat16", channels_last=True, compiled=True),
    "fp16-compiled": Precision("float16", channels_last=True, compiled=True),
}
TRIED = ("fp32", "fp32-channels-last", "fp32-winograd", "bf16", "fp16")  # the simplest first


def _refuse_overrun(model: nn.Module) -> None:
    """Raise RecipeError for a convolution whose gradient a CPU's channels-last kernel writes past its memory for.

    The process crashes, hangs or learns from wrong numbers: https://github.com/uxlfoundation/oneDNN/issues/6035. It is
    so for steps over single pixels with fewer input channels than a block of the kernel: 8 with AVX2, 16 with AVX-512.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1} and max(module.stride) > 1:
            channels = module.in_channels // module.groups
            if channels < 16 and module.weight.device.type == "cpu":
                raise RecipeError(
                    f"'{name}', a 1×1 convolution with a stride and {channels} input channels, can't be trained channels last on "
                    "a CPU: the library's kernel overruns its memory; take --precision fp32, or at least 16 channels there"
                )


def choose(
    name: str,
    build: Callable[[], nn.Module],
    *,
    key: str,
    shape: tuple[int, int, int, int],
    classes: int,
    steps: int,
    device: torch.device,
) -> Precision:
    """Return the precision called `name`, or for "auto" the fastest for this model on this machine.

    `build` makes a fresh model, `shape` is that of a training batch (N, C, H, W), `steps` how many the training will take:
    compiling is tried only where it can pay. The choice is kept in the cache folder under `key`, so that a seed gives the same
    weights next time, and trainings of other lengths the same arithmetic.
    Raises RecipeError for an unknown name.
    """
    if name != "auto":
        if name not in NAMED:
            raise RecipeError(f"unknown precision '{name}': known: auto, {', '.join(NAMED)}")
        lower = NAMED[name].dtype
        if (lower == "bfloat16" and not has_bfloat16(device)) or (lower == "float16" and device.type == "cpu"):
            logging.getLogger(__name__).warning("%s is emulated on this machine, many times slower than --precision auto", lower)
        return NAMED[name]
    seconds = partial(_seconds, build=build, shape=shape, classes=classes, device=device)
    key = "|".join((machine(device), torch.__version__, key, "x".join(map(str, shape))))
    best, a_step = _remembered(key, [NAMED[each] for each in TRIED], seconds)
    if steps * a_step <= COMPILE_WORTH:
        return best
    return _remembered(f"{key}|long", (best, replace(best, channels_last=True, compiled=True, winograd=False)), seconds)[0]


def _remembered(key: str, candidates: Sequence[Precision], seconds: Callable[[Precision], float]) -> tuple[Precision, float]:
    """The fastest of the candidates, the simplest first, and the seconds of a step: as timed at first under this key."""
    path = user_cache_path("sightline") / "precision.json"
    known = _read(path)
    if key in known:
        values = known[key]
        return Precision(**{name: values[name] for name in asdict(Precision())}), values["seconds"]
    with _random_state():
        best, a_step = _fastest(candidates, seconds)
    if math.isfinite(a_step):
        try:
            write_json(path, {**_read(path), key: {**asdict(best), "seconds": a_step}})
        except SightlineError:
            logging.getLogger(__name__).warning("the chosen precision could not be remembered in %s", path)
    return best, a_step


def _fastest(candidates: Sequence[Precision], seconds: Callable[[Precision], float]) -> tuple[Precision, float]:
    best, best_time = candidates[0], seconds(candidates[0])
    for candidate in candidates[1:]:
        if candidate.dtype == "float16" and best.dtype == "bfloat16":  # as fast where there are both, and it has float32's range
            continue
        time_of_it = seconds(candidate)
        if time_of_it < CLEARLY * best_time:
            best, best_time = candidate, time_of_it
    return best, best_time


@cache
def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is worth trying on this device.

    Without instructions for it, as on most laptops' CPUs, a step of training takes 12 to 20 times as long as in float32, minutes
    of ResNet-18. Matrix products of 256² numbers tell it, in half a second at most.
    """
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    try:
        for dtype in 20 * tuple(seconds):  # in turn, as threads that have to wait for a core take fifty times as long, too
            a = torch.ones(256, 256, device=device, dtype=dtype)
            start = time.perf_counter()
            (a @ a)[0, 0].item()
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    except (RuntimeError, TypeError):  # a device that doesn't know it
        return False
    return seconds[torch.bfloat16] < HOPELESS * seconds[torch.float32]


def _seconds(
    precision: Precision,
    build: Callable[[], nn.Module],
    shape: tuple[int, int, int, int],
    classes: int,
    device: torch.device,
) -> float:
    """Seconds of a training step; infinite where it isn't to be tried. On a CPU a part of the batch stands for the whole."""
    if (
        (precision.dtype == "bfloat16" and not has_bfloat16(device))
        or (precision.dtype == "float16" and device.type != "cuda")
        or (precision.winograd and device.type != "cpu")
    ):
        return math.inf
    n, *rest = shape
    part = min(n, PART) if device.type == "cpu" else n
    images = precision.format(torch.randn(part, *rest, device=device))
    labels = torch.randint(classes, (part,), device=device)
    try:
        model = build().to(device).train()
        net = precision.prepare(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)
        times: list[float] = []
        while len(times) < 2 or (len(times) < 5 and sum(times) < TRY_SECONDS):
            start = time.perf_counter()
            with precision.autocast(device):
                logits = net(images)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            wait(device)
            times.append(time.perf_counter() - start)
    except Exception as error:  # no compiler, an operator without bfloat16, …: then it is simply not a candidate
        logging.getLogger(__name__).info("%s does not run here: %s", precision, error)
        return float("inf")
    return min(times[1:]) * n / part  # the first allocates, and may compile; others may have waited for a core


def wait(device: torch.device) -> None:
    """Wait for all that an accelerator was asked to do: a call returns before its work is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What is remembered, less what isn't of this version's form."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in known.items() if value.keys() == {*asdict(Precision()), "seconds"}}
    except (OSError, ValueError, AttributeError):
        return {}


def machine(device: torch.device) -> str:
    """What computes here, in words: the accelerator's name, or the CPU's vector instructions and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.system()} {platform.machine()}, {device.type} ({capability}), {torch.get_num_threads()} threads"


@contextmanager
def _random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        yield
