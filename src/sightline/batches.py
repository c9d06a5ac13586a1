"""Where a training's images come from: one tensor that holds them all, or a file on disk that worker processes read.

Both give whole batches of the images as they are; augmentation comes after, in the training's own process, and is so the
same either way.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .exceptions import DataError

MOST_WORKERS = 4  # more only wait: one of them copies images faster than most nets learn from them


class Resident:
    """All images in one tensor: on `device`, or in the host's memory where the device has no room for them."""

    def __init__(self, images: NDArray[np.uint8], device: torch.device) -> None:
        # Torch wants an array that may be written to; most are, and only others are copied here.
        images_NHWC = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        self.images_NHWC = images_NHWC.to(device) if _fits(images.nbytes, device) else images_NHWC
        self.device = device

    def __len__(self) -> int:
        return len(self.images_NHWC)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of each image."""
        _, height, width, _ = self.images_NHWC.shape
        return height, width

    def batches(self, order: Tensor, size: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield each `size` places of `order` (N,) int64 on the CPU, and the images there, as `take` gives them.

        A last, partial batch is dropped.
        """
        for chosen in _whole(order, size):
            yield chosen, self.take(chosen)

    def take(self, chosen: Tensor) -> Tensor:
        """Return the images at the places `chosen` (B,) int64: (B, 3, H, W) uint8 on `device`, channels last in memory."""
        images = self.images_NHWC.index_select(0, chosen.to(self.images_NHWC.device))
        return images.to(self.device).permute(0, 3, 1, 2)


class Streamed:
    """Images that stay on disk: `workers` processes copy each batch out of the file ahead of time (0: none, and no time).

    images: (N, H, W, 3) uint8, the memory map of a file as `np.memmap` or `np.load` made it, not a slice of one.
    workers: None for one less than this process may use cores, at most MOST_WORKERS; on a CPU, none.
    """

    def __init__(self, images: NDArray[np.uint8], device: torch.device, workers: int | None = None) -> None:
        self.file = _MappedFile.of(images)
        self.device = device
        self.workers = _sensible_workers(device) if workers is None else workers

    def __len__(self) -> int:
        return self.file.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of each image."""
        return self.file.shape[1:3]

    def batches(self, order: Tensor, size: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield what `Resident.batches` yields.

        The workers live as long as this iterator: to be sure that they end with a loop that may raise, close it
        (`contextlib.closing`). Raises DataError where they can't read the images.
        """
        order_NB = list(_whole(order, size))
        for chosen, images in zip(order_NB, self._gathered(order_NB), strict=True):
            yield chosen, self._on_device(images)

    def take(self, chosen: Tensor) -> Tensor:
        """Return what `Resident.take` returns, read in this process. Raises DataError where the file can't be read."""
        try:
            return self._on_device(self.file[chosen.cpu().numpy()])
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def _gathered(self, order_NB: list[Tensor]) -> Iterator[Tensor]:
        """Yield the images (B, H, W, 3) of each batch, in order."""
        loader = DataLoader(
            self.file,
            batch_size=None,  # each item is a whole batch already
            sampler=[chosen.numpy() for chosen in order_NB],
            num_workers=self.workers,
            multiprocessing_context=_start_method() if self.workers else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # its own: the caller's random state must not depend on where images come from
        )
        try:
            yield from loader
        except (OSError, EOFError, RuntimeError, ValueError) as error:  # EOFError: a worker died while it sent
            # Its traceback holds the loader, with which the workers would live on.
            raise self._unreadable(error) from error.with_traceback(None)

    def _on_device(self, images_NHWC: Tensor) -> Tensor:
        # Only what is pinned may be copied while its memory goes back to whoever needs it next.
        return images_NHWC.to(self.device, non_blocking=images_NHWC.is_pinned()).permute(0, 3, 1, 2)

    def _unreadable(self, error: Exception) -> DataError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return DataError(
            f"cannot read images from {self.file.path} ({reason}); check that it is still there and that worker processes can "
            "run: they need shared memory (Docker's --shm-size), and a script an `if __name__ == '__main__':` around its work"
        )


@dataclass(frozen=True)
class _MappedFile(Dataset[Tensor]):
    """The images of a file, by their place in it: what a worker is sent, instead of pixels."""

    path: Path
    offset: int
    shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> _MappedFile:
        if not _is_mapped(images):
            raise ValueError(f"images must be the memory map of a whole file, not a {type(images).__name__} of other origin")
        return cls(Path(str(images.filename)), images.offset, images.shape)

    def __getitem__(self, chosen: NDArray[np.int64]) -> Tensor:
        # Mapped anew for each batch, which costs little, so that pages once read don't count as this process's for ever.
        images = np.memmap(self.path, np.uint8, "r", self.offset, self.shape)
        return torch.from_numpy(images[chosen])


def source(images: NDArray[np.uint8], device: torch.device, *, workers: int | None = None) -> Resident | Streamed:
    """Return where to take batches of `images` (N, H, W, 3) from: `Streamed` for a file's memory map, else `Resident`.

    A slice of a memory map doesn't know its place in the file: it is copied into memory.
    """
    return Streamed(images, device, workers) if _is_mapped(images) else Resident(images, device)


def _is_mapped(images: NDArray[np.uint8]) -> TypeGuard[np.memmap[Any, np.dtype[np.uint8]]]:
    """Say whether the array knows its own place in a file: a slice keeps the `offset` of what it was cut from."""
    return isinstance(images, np.memmap) and isinstance(images.base, mmap.mmap)


def _fits(size: int, device: torch.device) -> bool:
    """Say whether `device` has room for `size` bytes of images: half of a GPU's free memory is for the net."""
    return device.type != "cuda" or size <= torch.cuda.mem_get_info(device)[0] // 2


def _whole(order: Tensor, size: int) -> Iterator[Tensor]:
    """Each `size` places of `order`, without a last, partial piece."""
    return (order[start : start + size] for start in range(0, len(order) - size + 1, size))


def _sensible_workers(device: torch.device) -> int:
    """As many as leave this process a core: those that it may use, which on a shared machine are not all.

    None beside a training on the CPU, which needs all the cores: this process copies rows several times as fast as it
    could take them from another.
    """
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores - 1))


def _start_method() -> BaseContext:
    """How worker processes start: never as a copy of this one, whose threads and GPU a copy can't take along.

    A small server process that has imported torch starts them at once; where there is no such thing each imports it anew.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
