"""Memory that freed tensors leave behind, kept for the next ones.

On Linux the C library takes each large block from the system and gives it back as soon as it is freed. The pages of the next
one come empty and are cleared at their first touch, one by one; a net on a CPU can wait for that as long as it computes.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

MXFAST, TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = 1, -1, -3, -4  # of glibc's malloc.h
_inside = 0  # how many `with` are open: the last to close gives the memory back


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within `with`, or in a function that it decorates, freed memory stays with the process; at the end the system has it back.

    What is computed is the same. Does nothing where the C library isn't glibc. See mallopt(3).
    """
    global _inside
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    if not _inside:
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, -1)  # never
        libc.mallopt(MXFAST, 0)  # join the crumbs that aligned blocks leave, or the next block of their size fits nowhere
    _inside += 1
    try:
        yield
    finally:
        _inside -= 1
        if not _inside:
            # The defaults, with the thresholds where glibc itself would have raised them to.
            libc.mallopt(MMAP_MAX, 65536)
            libc.mallopt(MMAP_THRESHOLD, 32 * 2**20)
            libc.mallopt(TRIM_THRESHOLD, 64 * 2**20)
            libc.mallopt(MXFAST, 16 * ctypes.sizeof(ctypes.c_size_t))
            libc.malloc_trim(0)


def give_back() -> None:
    """Give the system what is free, also within `kept_memory`: before work whose blocks have other sizes, which fit few gaps."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
