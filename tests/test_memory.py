"""Batches that don't fit: reckoned before, found out after, and said in one line with the largest that does."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sightline.exceptions import TrainingError
from sightline.planted import planted
from sightline.recipe import RECIPES
from sightline.training import memory, train

CPU = torch.device("cpu")


def test_what_a_forward_pass_keeps_is_counted_to_the_byte() -> None:
    model = nn.Sequential(nn.Linear(100, 200), nn.Tanh(), nn.Linear(200, 10))

    def forward(images: int) -> Tensor:
        logits: Tensor = model(torch.ones(images, 100))
        return logits

    an_image, besides = memory.kept_bytes(forward)
    assert an_image == 4 * (100 + 200)  # the input, and tanh's output, which the next layer keeps too
    assert besides == 4 * 200 * 10  # the last matrix, for the gradient of its input


@pytest.mark.parametrize("fits", [0, 1, 2, 37, 500, 999])
def test_the_largest_batch_is_found_by_halving(fits: int) -> None:
    def step(images: int) -> None:
        if images > fits:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried …")

    found = memory.largest(step, 1000)
    assert fits - max(1, fits // 16) <= found <= fits


@pytest.mark.parametrize(
    "said", ["[…] can't allocate memory: you tried …", "MPS backend out of memory (MPS allocated: 17.90 GiB …)"]
)
def test_what_says_that_memory_ran_out_is_understood(said: str) -> None:
    assert memory.is_out_of_memory(RuntimeError(said))


def test_another_error_is_not_taken_for_it() -> None:
    def step(images: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"), memory.explained(step, 10, CPU):
        step(10)
    with pytest.raises(TrainingError, match="the largest that fits is 7: give --batch-size 7"):
        raise memory.too_large(10, 7, CPU)


def test_available_memory_is_a_sensible_number_or_unknown() -> None:
    free = memory.available(CPU)
    assert free is None or 10**7 < free < 10**14
    assert memory.available(torch.device("meta")) is None


def test_a_batch_that_is_certain_not_to_fit_is_refused_and_one_that_may_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = planted("planted:clean", n_train=200, n_test=20)
    recipe = RECIPES["fast"].with_(width=0.25, epochs=1, batch_size=100, least_steps=1, sizes=(), keep=())
    # What the whitening gives, and each norm and each activation; where the maxima of the poolings, and of all, lay; the head's.
    an_image = 4 * (24 * 31**2 + 4 * 16 * 15**2 + 8 * 64 * 7**2 + 64) + 2 * (16 * 15**2 + 64 * 7**2) + 8 * 64
    weights = []
    for free in (None, 101 * an_image + 10**6, 100 * an_image - 1):
        monkeypatch.setattr(memory, "available", lambda device, free=free: free)
        try:
            run = train(data, tmp_path / str(free), recipe=recipe, precision="fp32")
            weights.append(run.model().state_dict())
        except TrainingError as error:
            assert free == 100 * an_image - 1 and "the largest that fits is 7" in str(error)  # 79 less what the weights take
    assert len(weights) == 2 and all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


LIMITED = """
    import resource, sys
    import pyarrow.parquet
    import torch
    from sightline.exceptions import TrainingError
    from sightline.planted import planted
    from sightline.recipe import RECIPES
    from sightline.training import memory, train
    torch.set_num_threads(1)
    data = planted("planted:clean", n_train=1500, n_test=50, size=64)
    recipe = RECIPES["small"].with_(epochs=1, batch_size=int(sys.argv[2]))
    memory.available = lambda device: None  # so that the allocation itself fails
    used = 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + 400_000_000, used + 400_000_000))
    try:
        train(data, sys.argv[1], recipe=recipe, precision="fp32")
    except TrainingError as error:
        print(error)
"""


# Arrow's own allocators die of a limit that torch reports; glibc reserves another 64 MB for each thread that allocates.
ONE_ALLOCATOR = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's data as Linux does")
def test_a_training_that_runs_out_of_memory_names_a_batch_that_then_fits(tmp_path_factory: pytest.TempPathFactory) -> None:
    def run(batch: int) -> str:
        folder = tmp_path_factory.mktemp("run") / "run"
        command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(folder), str(batch)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ONE_ALLOCATOR)
        assert done.returncode == 0, done.stderr[-500:]
        return done.stdout

    said = run(1500)
    assert said.startswith("a batch of 1500 images needs more memory than cpu has left; the largest that fits is ")
    fits = int(said.split("give --batch-size ")[1].split(",")[0])
    assert 20 < fits < 1400
    assert run(int(0.8 * fits)) == ""  # a training holds a little more than a single trial step
