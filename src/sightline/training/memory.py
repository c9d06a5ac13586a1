"""Will a batch fit? Told before the training where it can be reckoned, and found out where it didn't."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from ..exceptions import TrainingError


def available(device: torch.device) -> int | None:
    """Bytes that can still be had on `device`: of an accelerator's memory, or of the machine's or container's; None: unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
        with suppress(OSError, ValueError):  # "max" where the container has no limit
            group = Path("/sys/fs/cgroup")
            limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
            free = min(free, limit - used)
        return free
    return None


def kept_bytes(forward: Callable[[int], Tensor]) -> tuple[int, int]:
    """Bytes that `forward(n)` of n images keeps for the backward pass: (an image, besides). From two images and from four."""

    def kept(images: int) -> int:
        parts: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            parts[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = forward(images)
        del logits
        return sum(parts.values())

    two, four = kept(2), kept(4)
    return (four - two) // 2, 2 * two - four


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; on a CPU and on Apple's GPUs torch raises a plain RuntimeError."""
    words = (
        *("can't allocate memory", "not enough memory", "out of memory"),
        *("could not create a primitive", "could not create a memory object"),
    )
    out_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return out_of_memory or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


def largest(step: Callable[[int], object], batch: int) -> int:
    """The largest number of images below `batch`, to about a sixteenth, for which `step` does not run out of memory; or 0.

    Sought from below, by doubling and then by halving what is left: a step that failed may leave memory in pieces that none
    of its size fits into any more, so those that are known to fit come first.
    """
    low, high = 0, batch
    while high - low > max(1, low // 16):
        gc.collect()  # a step that failed can be held by cycles, and all of its memory with it
        doubled = max(1, 2 * low)
        middle = doubled if high == batch and doubled < high else (low + high) // 2
        try:
            step(middle)
            low = middle
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            high = middle
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return low


@contextmanager
def explained(step: Callable[[int], object], batch: int, device: torch.device) -> Iterator[None]:
    """Turn running out of memory into a TrainingError that names the largest batch that fits, found by trying `step`."""
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler: the error's traceback would hold the step's memory.
    raise too_large(batch, largest(step, batch), device)


def too_large(batch: int, fits: int, device: torch.device, said: str = "") -> TrainingError:
    """The error for a batch of which only `fits` images fit; `said` is what torch said of it."""
    cause = f" ({said})" if said else ""
    advice = (
        f"the largest that fits is {fits}: give --batch-size {fits}" if fits > 1 else "take smaller images or a smaller model"
    )
    return TrainingError(f"a batch of {batch} images needs more memory than {device} has left{cause}; {advice}, with another -o")
