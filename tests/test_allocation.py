"""Freed memory that stays with the process while it is needed again, and goes back afterwards."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from sightline.allocation import kept_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")

# In a process of its own, whose allocator nothing has told anything yet.
COUNTED = """
    import resource
    from pathlib import Path
    import torch
    from sightline.allocation import give_back, kept_memory

    PAGES = 64 * 2**20 // resource.getpagesize()

    def faults():
        "Page faults of five blocks of 64 MB, one after the other, by the pages of one."
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(16 * 2**20)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / PAGES

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) / PAGES

    without = faults()
    start = resident()
    with kept_memory():
        for _ in range(4):  # alignment leaves gaps that the next block doesn't fit into, until there are enough of them
            faults()
        with kept_memory():
            pass
        within = faults()
        kept = resident()
        give_back()
        given = resident()
        torch.ones(16 * 2**20)
        again = resident()
    print(without, within, kept - start, given - start, again - start, resident() - start)
"""


@glibc
def test_pages_are_cleared_once_and_go_back_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(COUNTED)], capture_output=True, text=True, check=True)
    without, within, kept, given, again, after = map(float, done.stdout.split())
    assert without > 4.5  # each block comes empty
    assert within < 0.1  # no page of a block is new, though an inner `with` has ended
    assert 0.9 < kept < 12
    assert given < 0.2 and again > 0.9  # given back when asked to be, and kept anew
    assert after < 0.2


def test_what_is_computed_is_the_same() -> None:
    results = []
    for context in (nullcontext(), kept_memory()):
        with context:
            torch.manual_seed(0)
            images = torch.randn(64, 16, 32, 32, requires_grad=True)
            F.conv2d(images, torch.randn(32, 16, 3, 3), padding=1).relu().sum().backward()
            results.append(images.grad)
    assert results[0] is not None and results[1] is not None
    assert torch.equal(results[0], results[1])


def test_a_function_may_be_decorated_and_its_error_comes_through() -> None:
    @kept_memory()
    def halve(value: int) -> float:
        if value < 0:
            raise ValueError("negative")
        return value / 2

    assert halve(3) == 1.5
    with pytest.raises(ValueError, match="negative"):
        halve(-1)
    assert halve(5) == 2.5
