"""Batches of images: the same pixels from memory and from disk, and no process left behind."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections import abc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from sightline import batches, datasets
from sightline.augment import CoarseDropout, ColorJitter, HorizontalFlip, Noise, RandomCrop, Transform, augment, bind
from sightline.batches import Resident, Streamed, source
from sightline.exceptions import DataError

CPU = torch.device("cpu")
N = 23


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (N, 6, 5, 3), dtype=np.uint8)


@pytest.fixture
def mapped(tmp_path: Path, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same images on disk."""
    np.save(tmp_path / "images.npy", images)
    return np.lib.format.open_memmap(tmp_path / "images.npy", mode="r")


@pytest.fixture(params=["memory", "no worker", "one worker", "two workers"])
def each(request: pytest.FixtureRequest, images: NDArray[np.uint8], mapped: NDArray[np.uint8]) -> Resident | Streamed:
    workers = {"memory": None, "no worker": 0, "one worker": 1, "two workers": 2}[request.param]
    return source(images, CPU) if workers is None else source(mapped, CPU, workers=workers)


def check(found: Tensor, images: NDArray[np.uint8], places: list[int]) -> None:
    """Compare a batch with the images at `places`, one after the other."""
    assert found.shape == (len(places), 3, 6, 5) and found.dtype == torch.uint8
    assert found.permute(0, 2, 3, 1).is_contiguous()  # channels last in memory
    for image, place in zip(found, places, strict=True):
        np.testing.assert_array_equal(image.numpy(), images[place].transpose(2, 0, 1))


def test_batches_follow_the_order_and_the_partial_one_is_dropped(each: Resident | Streamed, images: NDArray[np.uint8]) -> None:
    assert len(each) == N and each.shape == (6, 5)
    order = torch.randperm(N, generator=Generator().manual_seed(0))
    found = list(each.batches(order, 4))
    assert [chosen.tolist() for chosen, _ in found] == [order[i : i + 4].tolist() for i in (0, 4, 8, 12, 16)]
    for chosen, batch in found:
        assert chosen.dtype == torch.int64
        check(batch, images, chosen.tolist())


@pytest.mark.parametrize(("n", "sizes"), [(8, [4, 4]), (7, [4]), (3, []), (0, [])])
def test_only_whole_batches_are_given(mapped: NDArray[np.uint8], images: NDArray[np.uint8], n: int, sizes: list[int]) -> None:
    for each in (source(images, CPU), source(mapped, CPU, workers=0)):
        assert [len(batch) for _, batch in each.batches(torch.arange(n), 4)] == sizes


def test_an_order_may_repeat_images(each: Resident | Streamed, images: NDArray[np.uint8]) -> None:
    ((_, batch),) = each.batches(torch.tensor([5, 5, 0, 22, 5]), 5)
    check(batch, images, [5, 5, 0, 22, 5])


def test_take_gives_the_chosen_images(each: Resident | Streamed, images: NDArray[np.uint8]) -> None:
    check(each.take(torch.tensor([3, 20, 3])), images, [3, 20, 3])


def test_two_epochs_at_a_time_do_not_mix(mapped: NDArray[np.uint8], images: NDArray[np.uint8]) -> None:
    streamed = source(mapped, CPU, workers=1)
    forward, backward = torch.arange(N), torch.arange(N).flip(0)
    for (a, one), (b, other) in zip(streamed.batches(forward, 8), streamed.batches(backward, 8), strict=True):
        check(one, images, a.tolist())
        check(other, images, b.tolist())
        assert (a + b == N - 1).all()


def test_a_batch_can_be_written_to(each: Resident | Streamed, images: NDArray[np.uint8]) -> None:
    before = images.copy()
    for _, batch in each.batches(torch.arange(N), 4):
        batch.fill_(7)
    each.take(torch.arange(4)).fill_(7)
    np.testing.assert_array_equal(images, before)
    check(each.take(torch.arange(N)), images, list(range(N)))


# ---------------------------------------------------------------- where images come from


def test_a_memory_map_is_streamed_and_everything_else_resident(mapped: NDArray[np.uint8], images: NDArray[np.uint8]) -> None:
    assert isinstance(source(mapped, CPU), Streamed)
    for array in (images, np.array(mapped), mapped[[1, 2]]):
        assert isinstance(source(array, CPU), Resident)


@pytest.mark.parametrize("cut", [slice(4, 9), slice(None, None, -1), slice(None, 5)])
def test_a_slice_of_a_memory_map_is_copied_right(mapped: NDArray[np.uint8], images: NDArray[np.uint8], cut: slice) -> None:
    part = source(mapped[cut], CPU)
    assert isinstance(part, Resident)
    check(part.take(torch.arange(5)), images[cut], list(range(5)))
    with pytest.raises(ValueError, match="memory map of a whole file"):
        Streamed(mapped[cut], CPU)


def test_resident_images_on_the_cpu_are_the_array_itself(images: NDArray[np.uint8]) -> None:
    resident = source(images, CPU)
    assert isinstance(resident, Resident)
    assert resident.images_NHWC.data_ptr() == images.ctypes.data


def test_half_of_a_gpus_free_memory_is_for_images(monkeypatch: pytest.MonkeyPatch, images: NDArray[np.uint8]) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    cuda = torch.device("cuda")
    assert batches._fits(500, cuda) and not batches._fits(501, cuda) and batches._fits(10**15, CPU)
    # Images that don't fit stay in the host's memory, where a machine without a GPU can have them too.
    assert Resident(images, cuda).images_NHWC.device == CPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_reach_a_gpu(mapped: NDArray[np.uint8], images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    resident, streamed = source(images, cuda), source(mapped, cuda, workers=1)
    monkeypatch.setattr(batches, "_fits", lambda size, device: False)
    for each in (resident, streamed, source(images, cuda)):
        for chosen, batch in each.batches(torch.arange(N), 4):
            assert batch.device.type == "cuda" and chosen.device == CPU
            check(batch.cpu(), images, chosen.tolist())


# ---------------------------------------------------------------- worker processes


def test_a_worker_is_sent_the_place_of_the_images_and_no_pixel(tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", np.ones((1000, 10, 10, 3), np.uint8))
    sent = pickle.dumps(Streamed(np.load(tmp_path / "many.npy", mmap_mode="r"), CPU).file)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)[np.array([999, 0])], np.ones((2, 10, 10, 3)))


def test_the_images_may_begin_anywhere_in_the_file(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    (tmp_path / "raw").write_bytes(b"x" * 5001 + images.tobytes() + b"the end")
    streamed = source(np.memmap(tmp_path / "raw", np.uint8, "r", 5001, images.shape), CPU, workers=1)
    for chosen, batch in streamed.batches(torch.arange(N), 8):
        check(batch, images, chosen.tolist())


def workers_left() -> list[int | None]:
    return [process.pid for process in multiprocessing.active_children()]


def some(streamed: Resident | Streamed) -> abc.Generator[tuple[Tensor, Tensor], None, None]:
    return streamed.batches(torch.arange(N).repeat(20), 4)


def test_no_process_is_left_when_the_consumer_stops_early(mapped: NDArray[np.uint8]) -> None:
    streamed = source(mapped, CPU, workers=2)
    for _ in some(streamed):
        assert len(workers_left()) == 2
        break
    assert workers_left() == []


def test_no_process_is_left_when_the_consumer_raises(mapped: NDArray[np.uint8]) -> None:
    streamed = source(mapped, CPU, workers=2)
    with pytest.raises(ZeroDivisionError) as caught, closing(some(streamed)) as found:
        for _ in found:
            assert len(workers_left()) == 2
            _ = 1 / 0
    assert workers_left() == []
    assert caught.tb is not None  # which keeps the frames of the loop


def test_no_process_is_left_after_the_last_batch(mapped: NDArray[np.uint8]) -> None:
    found = source(mapped, CPU, workers=1).batches(torch.arange(N), 4)
    assert len(list(found)) == 5
    assert workers_left() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_has_gone_is_named(mapped: NDArray[np.uint8], tmp_path: Path, workers: int) -> None:
    streamed = source(mapped, CPU, workers=workers)
    (tmp_path / "images.npy").unlink()
    for read in (lambda: list(some(streamed)), lambda: [streamed.take(torch.arange(2))]):
        with pytest.raises(DataError, match=rf"cannot read images from {tmp_path}/images.npy .*No such file") as caught:
            read()
        assert "\n" not in str(caught.value)
        assert workers_left() == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_a_worker_that_is_killed_ends_the_epoch_with_an_error(mapped: NDArray[np.uint8]) -> None:
    found = some(source(mapped, CPU, workers=1))
    next(found)
    (pid,) = workers_left()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"cannot read images from .*--shm-size") as caught:
        list(found)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 1), (3, 2), (4, 3), (64, 4)])
def test_a_core_is_left_to_the_training(
    mapped: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, cores: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert Streamed(mapped, torch.device("cuda")).workers == workers
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert Streamed(mapped, torch.device("cuda")).workers == workers
    assert Streamed(mapped, CPU).workers == 0


# ---------------------------------------------------------------- the same training either way


def test_streamed_training_sees_the_same_augmented_batches_bit_for_bit(images_folder: Path) -> None:
    in_memory, on_disk = datasets.load(images_folder), datasets.load(images_folder, memory=0)
    assert in_memory.content_hash == on_disk.content_hash and in_memory.normalisation == on_disk.normalisation
    assert in_memory.train.ids == on_disk.train.ids and in_memory.test.ids == on_disk.test.ids
    assert in_memory.train.labels.tolist() == on_disk.train.labels.tolist()
    resident, streamed = source(in_memory.train.images, CPU), source(on_disk.train.images, CPU, workers=2)
    assert isinstance(resident, Resident) and isinstance(streamed, Streamed)

    mean, _ = in_memory.normalisation
    policy = bind((RandomCrop(2), HorizontalFlip(), ColorJitter(), CoarseDropout(6, 0.7), Noise()), mean)
    one, other = trained(resident, policy), trained(streamed, policy)
    assert len(one) == len(other) == 2 * (len(in_memory.train) // 7)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
    assert not torch.equal(one[0], one[4])  # the policy does something, and another thing in each epoch


def trained(images: Resident | Streamed, policy: tuple[Transform, ...]) -> list[Tensor]:
    """The batches of two epochs of seven images, augmented and dropped out, as a training would see them."""
    generator, found = Generator().manual_seed(4), []
    torch.manual_seed(5)
    for epoch in range(2):
        order = torch.randperm(len(images), generator=Generator().manual_seed(epoch))
        for chosen, batch in images.batches(order, 7):
            augmented = augment(policy, batch, generator, chosen, epoch)
            found.append(torch.nn.functional.dropout(augmented.float(), 0.1))  # draws from torch's global state
    return found


@pytest.fixture
def images_folder(tmp_path: Path) -> Path:
    """Forty noise images in two class folders."""
    random = np.random.default_rng(2)
    for i in range(40):
        file = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return tmp_path / "data"
