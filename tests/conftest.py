"""Data and runs that several test files share: small, made in memory, no network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.datasets import Dataset, Split
from sightline.recipe import Recipe

for size in ("COLUMNS", "LINES"):  # a worker of pytest-xdist has those of a terminal that it hasn't, and rich reads them once
    os.environ.pop(size, None)
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side, on a core each; so do processes that a test starts
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is remembered between runs out of the person's own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: for tiny nets, more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def blobs() -> Dataset:
    """Three classes of 16×16 images, told apart by where a bright square lies: 240 to train on, 60 to test on."""
    return Dataset("blobs", _blobs("train", 240), _blobs("test", 60))


def _blobs(which: str, n: int) -> Split:
    random = np.random.default_rng(len(which))
    images = random.integers(0, 120, (n, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(n) % 3
    for image, label in zip(images, labels, strict=True):
        image[4:12, 5 * label : 5 * label + 5] += 110
    return Split(images, labels, ("left", "middle", "right"), tuple(f"{which}/{i}" for i in range(n)))


@pytest.fixture(scope="session")
def quick() -> Recipe:
    """A recipe that learns `blobs` in two seconds."""
    return Recipe("quick", "smallnet", epochs=3, batch_size=32, max_lr=0.01, augment=())


@pytest.fixture(scope="session")
def cifar10_folder() -> Path:
    """The folder that holds the real CIFAR-10; tests on it skip where there is none."""
    folder = Path(os.environ.get("SIGHTLINE_DATA", ""))
    if not (folder / "cifar-10-batches-py").is_dir():
        pytest.skip("needs CIFAR-10: set SIGHTLINE_DATA to the folder that holds cifar-10-batches-py")
    return folder
