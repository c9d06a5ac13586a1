"""Data sets: values against literal decodings, and every kind of bad input."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import tarfile
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sightline import datasets
from sightline.datasets import load
from sightline.exceptions import DataError

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


@pytest.fixture(autouse=True)
def _no_data_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGHTLINE_DATA", raising=False)
    monkeypatch.setattr(datasets.platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(datasets, "CIFAR10_URL", "http://127.0.0.1:9/nothing-listens-here")


@contextmanager
def fails(message: str) -> Iterator[None]:
    """Expect a DataError of one line that contains the regular expression `message`."""
    with pytest.raises(DataError, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- CIFAR-10: a small one, in the published form


def published_pickle(rows: NDArray[np.uint8], labels: list[int]) -> bytes:
    """A batch as Python 2 and NumPy 1 wrote it, opcode by opcode: {"labels": [...], "data": uint8 array}."""
    pixels = rows.tobytes()
    return (
        b"\x80\x02}(U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eU\x04data"
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K" + bytes([len(rows)]) + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + len(pixels).to_bytes(4, "little") + pixels + b"tbu."
    )


@dataclass
class SmallCifar:
    rows: dict[str, NDArray[np.uint8]]
    labels: dict[str, list[int]]
    files: dict[str, bytes]
    archive: bytes = b""

    def check(self, data: datasets.Dataset) -> None:
        """Compare `data` with a pixel-by-pixel decoding."""
        assert data.name == "cifar10" and data.classes == ("cat", "dog", "emu")
        for split, name, batches in ((data.train, "train", BATCHES[:5]), (data.test, "test", BATCHES[5:])):
            rows = np.concatenate([self.rows[b] for b in batches])
            assert split.images.shape == (len(rows), 32, 32, 3) and split.images.dtype == np.uint8
            for n, y, x, c in np.ndindex(len(rows), 32, 32, 3):
                assert split.images[n, y, x, c] == rows[n, c * 1024 + y * 32 + x]
            assert split.labels.tolist() == [label for b in batches for label in self.labels[b]]
            assert split.ids == tuple(f"{name}/{i}" for i in range(len(rows)))


def tar_gz(files: dict[str, bytes], extra: tarfile.TarInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if extra:
            tar.addfile(extra)
    return buffer.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> SmallCifar:
    random = np.random.default_rng(0)
    rows = {b: random.integers(0, 256, (2, 3072), dtype=np.uint8) for b in BATCHES}
    labels = {b: random.integers(0, 3, 2).tolist() for b in BATCHES}
    files = {b: published_pickle(rows[b], labels[b]) for b in BATCHES}
    files["batches.meta"] = pickle.dumps({"label_names": ["cat", "dog", "emu"]}, protocol=2)
    small = SmallCifar(rows, labels, files)
    small.archive = tar_gz({f"{FOLDER}/{name}": content for name, content in files.items()} | {f"{FOLDER}/a.html": b""})
    monkeypatch.setattr(datasets, "CIFAR10_FILE_MD5", {name: md5(content) for name, content in files.items()})
    monkeypatch.setattr(datasets, "CIFAR10_MD5", md5(small.archive))
    return small


@pytest.fixture
def put_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def put(content: bytes) -> None:
        (tmp_path / ARCHIVE).write_bytes(content)
        monkeypatch.setattr(datasets, "CIFAR10_MD5", md5(content))

    return put


def write_unpacked(cifar: SmallCifar, home: Path) -> None:
    (home / FOLDER).mkdir(parents=True)
    for name, content in cifar.files.items():
        (home / FOLDER / name).write_bytes(content)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_unpacked_batches_are_decoded_as_rgb_images(cifar: SmallCifar, tmp_path: Path) -> None:
    write_unpacked(cifar, tmp_path)
    cifar.check(load("cifar10", data_dir=tmp_path))


def test_an_archive_is_unpacked_once_and_leaves_nothing_else(cifar: SmallCifar, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(cifar.archive)
    cifar.check(load("cifar10", data_dir=tmp_path))
    assert names_in(tmp_path) == {ARCHIVE, FOLDER}
    assert names_in(tmp_path / FOLDER) == set(cifar.files)
    (tmp_path / ARCHIVE).unlink()
    cifar.check(load("cifar10", data_dir=tmp_path))


@pytest.mark.parametrize("place", ["data_dir", "variable", "cache"])
def test_cifar10_is_found_in_each_of_its_places(
    cifar: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path / "variable"))
    write_unpacked(cifar, tmp_path / ("cache/sightline" if place == "cache" else place))
    cifar.check(load("cifar10", data_dir=tmp_path / "data_dir"))


def test_data_dir_comes_before_the_variable(cifar: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_unpacked(cifar, tmp_path / "data_dir")
    (tmp_path / "variable" / FOLDER).mkdir(parents=True)  # reading this would fail
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path / "variable"))
    cifar.check(load("cifar10", data_dir=tmp_path / "data_dir"))


def test_another_image_size_of_cifar10_is_refused() -> None:
    with fails("32 pixels wide, not 64"):
        load("cifar10", size=64)


def test_a_damaged_batch_file_is_named(cifar: SmallCifar, tmp_path: Path) -> None:
    write_unpacked(cifar, tmp_path)
    damaged = tmp_path / FOLDER / "data_batch_3"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with fails(f"{damaged} is damaged: MD5 .*; delete .*{FOLDER} and run again"):
        load("cifar10", data_dir=tmp_path)


def test_a_missing_batch_file_is_named(cifar: SmallCifar, tmp_path: Path) -> None:
    write_unpacked(cifar, tmp_path)
    (tmp_path / FOLDER / "test_batch").unlink()
    with fails("cannot read .*test_batch .No such file or directory.; delete"):
        load("cifar10", data_dir=tmp_path)


class Evil:
    def __init__(self, call: tuple[Callable[..., object], tuple[object, ...]]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", ["os.mkdir", "builtins.eval", "numpy.save"])
def test_a_pickle_with_anything_but_arrays_runs_nothing(
    cifar: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, function: str
) -> None:
    victim = tmp_path / "victim.npy"
    calls: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
        "os.mkdir": (os.mkdir, (str(victim),)),
        "builtins.eval": (eval, (f"open({str(victim)!r}, 'w')",)),
        "numpy.save": (np.save, (str(victim), 0)),
    }
    evil = pickle.dumps({"labels": [0], "data": Evil(calls[function])}, protocol=protocol)
    cifar.files["data_batch_1"] = evil
    write_unpacked(cifar, tmp_path)
    monkeypatch.setitem(datasets.CIFAR10_FILE_MD5, "data_batch_1", md5(evil))
    with fails("data_batch_1 is no pickle of NumPy arrays .it asks for"):
        load("cifar10", data_dir=tmp_path)
    assert not victim.exists()


def test_a_cut_pickle_is_an_error(cifar: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar.files["test_batch"] = cifar.files["test_batch"][:1000]
    write_unpacked(cifar, tmp_path)
    monkeypatch.setitem(datasets.CIFAR10_FILE_MD5, "test_batch", md5(cifar.files["test_batch"]))
    with fails("test_batch is no pickle of NumPy arrays"):
        load("cifar10", data_dir=tmp_path)


# ---------------------------------------------------------------- CIFAR-10: the archive


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../evil", tarfile.REGTYPE),
        member(f"{FOLDER}/../../evil", tarfile.REGTYPE),
        member("/tmp/evil", tarfile.REGTYPE),
        member("evil", tarfile.REGTYPE),
        member("../evil", tarfile.DIRTYPE),
        member(f"{FOLDER}/test_batch", tarfile.SYMTYPE, "/etc/passwd"),
        member(f"{FOLDER}/test_batch", tarfile.LNKTYPE, "../../evil"),
        member(f"{FOLDER}/test_batch", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_an_archive_member_that_would_leave_the_folder_is_refused(
    cifar: SmallCifar, tmp_path: Path, put_archive: Callable[[bytes], None], bad: tarfile.TarInfo
) -> None:
    put_archive(tar_gz({f"{FOLDER}/{name}": content for name, content in cifar.files.items()}, extra=bad))
    before = names_in(tmp_path.parent)
    with fails(re.escape(f"'{bad.name}' is no file in {FOLDER}/, so nothing was unpacked")):
        load("cifar10", data_dir=tmp_path)
    assert names_in(tmp_path) == {ARCHIVE} and names_in(tmp_path.parent) == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_a_truncated_archive_leaves_nothing_behind(
    cifar: SmallCifar, tmp_path: Path, put_archive: Callable[[bytes], None], share: float
) -> None:
    put_archive(cifar.archive[: int(share * len(cifar.archive))])
    with fails(f"{ARCHIVE} is damaged; delete it and run again"):
        load("cifar10", data_dir=tmp_path)
    assert names_in(tmp_path) == {ARCHIVE}


def test_an_archive_without_one_of_the_files_is_refused(
    cifar: SmallCifar, tmp_path: Path, put_archive: Callable[[bytes], None]
) -> None:
    del cifar.files["data_batch_4"]
    put_archive(tar_gz({f"{FOLDER}/{name}": content for name, content in cifar.files.items()}))
    with fails("it lacks data_batch_4"):
        load("cifar10", data_dir=tmp_path)
    assert names_in(tmp_path) == {ARCHIVE}


def test_an_archive_with_another_md5_is_not_opened(cifar: SmallCifar, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(cifar.archive + b"\0")
    with fails(f"{ARCHIVE} is damaged or incomplete: MD5 {md5(cifar.archive + bytes(1))}, not {md5(cifar.archive)}"):
        load("cifar10", data_dir=tmp_path)
    assert names_in(tmp_path) == {ARCHIVE}


def test_an_archive_that_another_process_unpacks_meanwhile_is_read(
    cifar: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ARCHIVE).write_bytes(cifar.archive)
    unpack = datasets._unpack

    def slowly(archive: Path, target: Path) -> None:
        unpack(archive, target)
        write_unpacked(cifar, tmp_path)  # the other process is done first

    monkeypatch.setattr(datasets, "_unpack", slowly)
    cifar.check(load("cifar10", data_dir=tmp_path))
    assert names_in(tmp_path) == {ARCHIVE, FOLDER}


def test_a_folder_that_cannot_be_renamed_is_an_error(cifar: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ARCHIVE).write_bytes(cifar.archive)
    monkeypatch.setattr(datasets.Path, "rename", failing(errno.EACCES))
    with fails(f"cannot write to {tmp_path} .Permission denied."):
        load("cifar10", data_dir=tmp_path)
    assert names_in(tmp_path) == {ARCHIVE}


def failing(code: int) -> Callable[..., None]:
    def fail(*args: object, **keywords: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_disk_that_fills_up_while_unpacking_leaves_nothing_behind(
    cifar: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ARCHIVE).write_bytes(cifar.archive)
    monkeypatch.setattr(datasets.shutil, "copyfileobj", failing(errno.ENOSPC))
    with fails(f"cannot write to {tmp_path} .No space left on device.; .*--data-dir"):
        load("cifar10", data_dir=tmp_path)
    assert names_in(tmp_path) == {ARCHIVE}


def test_an_archive_in_a_read_only_folder_is_an_error(cifar: SmallCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ARCHIVE).write_bytes(cifar.archive)
    monkeypatch.setattr(datasets.tempfile, "mkdtemp", failing(errno.EROFS))
    with fails(f"cannot write to {tmp_path} .Read-only file system.; .*--data-dir"):
        load("cifar10", data_dir=tmp_path)


# ---------------------------------------------------------------- CIFAR-10: the download


@dataclass
class Server:
    """Serves `content`; `cut_at` ends the next answer early; without `ranges` the Range header is ignored."""

    content: bytes
    ranges: bool = True
    cut_at: int | None = None
    asked: list[str | None] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        if start >= len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.cut_at])
        self.cut_at = None


@pytest.fixture
def server(cifar: SmallCifar, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server(cifar.archive)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(datasets, "CIFAR10_URL", f"http://127.0.0.1:{http.server_port}/{ARCHIVE}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield served
        http.shutdown()
        thread.join()


def test_the_download_reports_its_progress_in_bytes(cifar: SmallCifar, server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    home = tmp_path / "not" / "there" / "yet"
    cifar.check(load("cifar10", data_dir=home, progress=lambda *step: seen.append(step)))
    size = len(cifar.archive)
    assert server.asked == [None]
    assert {(label, total) for label, _, total in seen} == {("downloading cifar10", size)}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen) and seen[-1][1] == size
    assert names_in(home) == {ARCHIVE, FOLDER}


def test_a_download_that_was_cut_goes_on_where_it_stopped(cifar: SmallCifar, server: Server, tmp_path: Path) -> None:
    server.cut_at = 10_000
    with fails(f"cannot download .* cut after 10000 of {len(cifar.archive)} bytes.*; run again to go on"):
        load("cifar10", data_dir=tmp_path)
    assert (tmp_path / f"{ARCHIVE}.part").read_bytes() == cifar.archive[:10_000]
    assert names_in(tmp_path) == {f"{ARCHIVE}.part"}

    seen: list[int] = []
    cifar.check(load("cifar10", data_dir=tmp_path, progress=lambda label, done, total: seen.append(total)))
    assert server.asked == [None, "bytes=10000-"]
    assert set(seen) == {len(cifar.archive)}
    assert names_in(tmp_path) == {ARCHIVE, FOLDER}


def test_a_server_that_ignores_the_range_starts_over(cifar: SmallCifar, server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / f"{ARCHIVE}.part").write_bytes(cifar.archive[:10_000])
    cifar.check(load("cifar10", data_dir=tmp_path))
    assert server.asked == ["bytes=10000-"]


def test_a_whole_part_file_needs_no_more_bytes(cifar: SmallCifar, server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{ARCHIVE}.part").write_bytes(cifar.archive)  # killed just before the renaming
    cifar.check(load("cifar10", data_dir=tmp_path))
    assert names_in(tmp_path) == {ARCHIVE, FOLDER}


@pytest.mark.parametrize("begun", [b"", b"wrong from the start"])
def test_a_download_with_the_wrong_md5_is_deleted(server: Server, tmp_path: Path, begun: bytes) -> None:
    server.content = server.content if begun else server.content + b"\0"
    if begun:
        (tmp_path / f"{ARCHIVE}.part").write_bytes(begun)
    with fails(f"sent MD5 .*, not {datasets.CIFAR10_MD5}, so it was deleted; run again, or put {ARCHIVE} into {tmp_path}"):
        load("cifar10", data_dir=tmp_path)
    assert names_in(tmp_path) == set()


def test_without_a_network_the_message_says_where_to_put_the_archive(tmp_path: Path) -> None:
    with fails(f"cannot download http.*refused.*put {ARCHIVE} into {tmp_path} yourself"):
        load("cifar10", data_dir=tmp_path)
    assert names_in(tmp_path) == set()


def test_an_error_of_the_server_is_told(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "answer", lambda self, request: request.send_error(404))
    with fails(f"cannot download .*404.*put {ARCHIVE} into {tmp_path} yourself"):
        load("cifar10", data_dir=tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_while_downloading_is_an_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{ARCHIVE}.part").symlink_to("/dev/full")
    with fails(f"cannot write to {tmp_path} .No space left on device.; .*--data-dir"):
        load("cifar10", data_dir=tmp_path)
    assert names_in(tmp_path) == {f"{ARCHIVE}.part"}


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with fails(f"cannot write to {tmp_path}/file/data .Not a directory.; .*--data-dir"):
        load("cifar10", data_dir=tmp_path / "file" / "data")


@pytest.mark.parametrize("home", ["~nobody9/x", "n" * 300])
def test_a_data_folder_that_cannot_be_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.chdir(tmp_path)
    with fails(f"cannot .*{home}"):
        load("cifar10", data_dir=Path(home))


# ---------------------------------------------------------------- CIFAR-10: the real one


REAL = Path(os.environ.get("SIGHTLINE_DATA") or "unset") / FOLDER


@pytest.fixture(scope="module")
def real() -> datasets.Dataset:
    if not REAL.is_dir():
        pytest.skip(f"SIGHTLINE_DATA is unset or lacks {FOLDER}/")
    return load("cifar10", data_dir=REAL.parent)


def test_the_real_cifar10_has_its_published_counts_and_statistics(real: datasets.Dataset) -> None:
    assert np.bincount(real.train.labels).tolist() == [5000] * 10
    assert np.bincount(real.test.labels).tolist() == [1000] * 10
    assert " ".join(real.classes) == "airplane automobile bird cat deer dog frog horse ship truck"
    mean, deviation = real.normalisation
    assert mean == pytest.approx((0.49140, 0.48216, 0.44653), abs=1e-4)
    assert deviation == pytest.approx((0.24703, 0.24349, 0.26159), abs=1e-4)


def test_a_real_row_is_decoded_as_its_authors_describe(real: datasets.Dataset) -> None:
    content = (REAL / "data_batch_2").read_bytes()
    start = content.index(b"T\x00\xc0\xd4\x01") + 5 + 7 * 3072  # the opcode of the 30,720,000 pixel bytes; row 7
    row = content[start : start + 3072]  # 1024 red, then green, then blue values, line by line
    for y, x in np.ndindex(32, 32):
        assert tuple(real.train.images[10_007, y, x]) == tuple(row[c * 1024 + y * 32 + x] for c in range(3))


# ---------------------------------------------------------------- names


def test_an_unknown_name_gets_the_nearest_known_one() -> None:
    with fails("'cifar11' is neither a data set nor a folder; did you mean 'cifar10'"):
        load("cifar11")


@pytest.mark.parametrize("name", ["~nobody9/x", "n" * 300, "a\nb", "a\0b", "\udcff"])
def test_a_name_that_cannot_be_a_folder_is_no_data_set(name: str) -> None:
    for data in (name, Path(name)):
        with fails(re.escape(f"{name!r} is neither a data set nor a folder")):
            load(data)


def test_a_folder_that_may_not_be_looked_into_is_no_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "stat", failing(errno.EACCES))
    with fails("'secret/data' is neither a data set nor a folder"):
        load("secret/data")


def test_planted_data_is_what_planted_makes() -> None:
    from sightline.planted import planted

    assert load("planted:clean", seed=3, size=16).content_hash == planted("planted:clean", seed=3, size=16).content_hash


def test_a_path_is_always_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "cifar10", {f"{c}/{i}.png": picture(i) for c in "ab" for i in range(2)})
    monkeypatch.chdir(tmp_path)
    assert load(Path("cifar10")).name == load("./cifar10").name == str(tmp_path / "cifar10")


def test_the_normalisation_is_exact_in_little_memory() -> None:
    images = noise(300, 64, 100, 3).astype(np.uint8)  # 1.9 million pixels: more than one piece
    split = datasets.Split(images, np.zeros(300, np.int64), ("a",), ())
    tracemalloc.start()
    mean, deviation = datasets.Dataset("noise", split, split).normalisation
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(deviation, images.std((0, 1, 2)) / 255, rtol=1e-12)
    assert peak < 10e6  # an int64 copy of a whole channel is 15 MB


def test_a_size_below_one_is_refused(tmp_path: Path) -> None:
    with fails("the image size 0 is not"):
        load(tmp_path, size=0)


def test_loading_imports_no_torch() -> None:
    code = "import sys, sightline.datasets; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}).returncode == 0
    )


# ---------------------------------------------------------------- folders


def picture(seed: int, height: int = 8, width: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_folder(root: Path, images: dict[str, Image.Image]) -> Path:
    for name, image in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    return root


def train_test_folder(root: Path, test: str = "test") -> Path:
    """Two pictures of each of two classes to train on and one to test on; the picture's seed is its place."""
    names = [f"train/{c}/{i}.png" for c in ("owl", "Eel") for i in (1, 0)] + [f"{test}/{c}/7.png" for c in ("owl", "Eel")]
    return write_folder(root, {name: picture(seed) for seed, name in enumerate(names)})


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation", "Test"])
def test_a_folder_with_train_and_test_is_read_in_order_of_names(tmp_path: Path, test: str) -> None:
    data = load(str(train_test_folder(tmp_path, test)))
    assert data.name == str(tmp_path) and data.classes == data.test.classes == ("Eel", "owl") and data.skipped == ()
    assert data.train.ids == ("train/Eel/0.png", "train/Eel/1.png", "train/owl/0.png", "train/owl/1.png")
    assert data.test.ids == (f"{test}/Eel/7.png", f"{test}/owl/7.png")
    assert data.train.labels.tolist() == [0, 0, 1, 1] and data.test.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(data.train.images, [np.asarray(picture(seed)) for seed in (3, 2, 1, 0)])
    np.testing.assert_array_equal(data.test.images, [np.asarray(picture(seed)) for seed in (5, 4)])


def test_the_test_folder_comes_before_val(tmp_path: Path) -> None:
    root = train_test_folder(train_test_folder(tmp_path, "val"), "test")
    assert load(root).test.ids == ("test/Eel/7.png", "test/owl/7.png")


def test_a_fifth_of_each_class_is_held_out_by_the_hash_of_the_path(tmp_path: Path) -> None:
    counts = {"a": 2, "b": 13, "c é": 10}
    ids = {c: [f"{c}/{i}.png" for i in range(n)] for c, n in counts.items()}
    write_folder(tmp_path, {name: picture(0) for names in ids.values() for name in names})
    data = load(tmp_path)
    held_out: list[str] = []
    for names, n in zip(ids.values(), (1, 3, 2), strict=True):
        held_out += sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:n]
    assert set(data.test.ids) == set(held_out)
    assert set(data.train.ids) == {name for names in ids.values() for name in names} - set(held_out)
    for split in (data.train, data.test):
        assert [split.classes[label] for label in split.labels] == [name.split("/")[0] for name in split.ids]


def test_the_hash_of_a_path_is_pinned(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"{c}/{i}.png": picture(0) for c in ("cat", "dog") for i in range(5)})
    assert load(tmp_path).test.ids == ("cat/0.png", "dog/4.png")  # as `sha256sum` sorts the paths


def test_hidden_files_and_other_files_are_ignored(tmp_path: Path) -> None:
    root = train_test_folder(tmp_path)
    for name in ("train/owl/.hidden.png", "train/owl/notes.txt", "train/owl/Thumbs.db", "train/readme.png"):
        (root / name).write_text("no image")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "owl" / "folder.png").mkdir()
    data = load(root)
    assert len(data.train) == 4 and data.classes == ("Eel", "owl") and data.skipped == ()


def test_a_name_in_any_alphabet_is_read(tmp_path: Path) -> None:
    classes = ("שלום", "a\u202eb", "👩\u200d🔬", "ñandú", "雪")  # with a right-to-left mark and a zero-width joiner
    write_folder(tmp_path, {f"{c}/{c} {i}.png": picture(0) for c in classes for i in range(2)})
    data = load(tmp_path)
    assert data.classes == tuple(sorted(classes))
    assert {*data.train.ids, *data.test.ids} == {f"{c}/{c} {i}.png" for c in classes for i in range(2)}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("bad", ["a\nb", "a\x1b[2Jb", "a\x85b", os.fsdecode(b"caf\xe9")])
@pytest.mark.parametrize("where", ["root", "class", "file", "test file"])
def test_a_name_that_cannot_be_written_as_text_is_refused(tmp_path: Path, bad: str, where: str) -> None:
    root = train_test_folder(tmp_path / (bad if where == "root" else "data"))
    name = {"class": f"train/{bad}/0.png", "file": f"train/owl/{bad}.png", "test file": f"test/owl/{bad}.png"}.get(where)
    if name:  # not by Pillow, which can't write to such a name itself
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes((root / "train/owl/0.png").read_bytes())
    with fails(rf"the name of '{tmp_path}/.*{re.escape(ascii(bad)[1:-1])}.*' has characters .*; rename it"):
        load(root)


def test_control_characters_and_surrogates_alone_are_refused() -> None:
    accepted = []
    for character in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(character) not in ("Cc", "Cs"):
            accepted.append(character)
        else:
            with fails("rename it"):
                datasets._check_name(Path("x"), f"a{character}b")
    datasets._check_name(Path("x"), "".join(accepted))


def test_images_that_do_not_fit_into_memory_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fails(r"10000000 images of 20000×10000 pixels need 6,000,000.0 GB of memory, .*--size"):
        datasets._room(10**7, (10_000, 20_000, 3))

    empty = np.empty

    def full(shape: tuple[int, ...], dtype: type[np.uint8]) -> NDArray[np.uint8]:
        if shape[0]:
            raise MemoryError
        return empty(shape, dtype)

    root = train_test_folder(tmp_path)
    monkeypatch.setattr(datasets.np, "empty", full)
    with fails("4 images of 8×8 pixels need .* GB of memory"):
        load(root)


def test_reading_reports_its_progress_in_images(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    load(train_test_folder(tmp_path), progress=lambda *step: seen.append(step))
    train = [("reading train images", i, 4) for i in range(1, 5)]
    assert seen == [*train, ("reading test images", 1, 2), ("reading test images", 2, 2)]


@pytest.mark.parametrize("classes", [[], ["owl"]])
def test_a_folder_with_one_class_or_none_is_refused(tmp_path: Path, classes: list[str]) -> None:
    write_folder(tmp_path, {f"{c}/{i}.png": picture(0) for c in classes for i in range(3)} | {"loose.png": picture(0)})
    with fails(f"{tmp_path} has {len(classes)} class sub-folders; a classifier needs two"):
        load(tmp_path)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    (train_test_folder(tmp_path) / "test" / "yak").mkdir()
    with fails(f"the class folder {tmp_path}/test/yak has no images"):
        load(tmp_path)


def test_a_class_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a/0.png": picture(0), "b/0.png": picture(0), "b/1.png": picture(0)})
    with fails(f"the class folder {tmp_path}/a has one image; two are needed"):
        load(tmp_path)


def test_a_test_class_that_train_lacks_is_named(tmp_path: Path) -> None:
    write_folder(train_test_folder(tmp_path), {"test/yak/0.png": picture(0)})
    with fails("the test has a class 'yak' that train lacks"):
        load(tmp_path)


def test_a_test_folder_without_classes_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"train/{c}/0.png": picture(0) for c in "ab"} | {"test/loose.png": picture(0)})
    with fails("the test folder has no class sub-folders"):
        load(tmp_path)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.Path, "iterdir", failing(errno.EACCES))
    with fails(f"cannot read {tmp_path} .Permission denied."):
        load(tmp_path)


@pytest.mark.parametrize("where", ["train/owl/1.png", "test/owl/7.png"])
def test_images_of_different_sizes_are_named_with_their_sizes(tmp_path: Path, where: str) -> None:
    write_folder(train_test_folder(tmp_path), {where: picture(0, height=9, width=12)})
    with fails(f"{tmp_path}/.*png is 8×8 pixels, but {tmp_path}/{where} is 12×9; .*--size"):
        load(tmp_path)
    assert load(tmp_path, size=8).train.images.shape == (4, 8, 8, 3)


# ---------------------------------------------------------------- bad image files


def damaged_files() -> dict[str, bytes]:
    whole = {}
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        picture(0, 64, 64).save(buffer, kind)
        whole[kind] = buffer.getvalue()
    cut = {f"cut-{kind}": content[: len(content) // 2] for kind, content in whole.items()}
    return cut | {
        "empty": b"",
        "text": b"<html>404</html>",
        "another format": whole["TIFF"],
    }


@pytest.mark.parametrize("kind", damaged_files())
def test_a_bad_image_file_is_named_or_passed_over(tmp_path: Path, kind: str) -> None:
    root = train_test_folder(tmp_path)
    for name in ("train/owl/0.png", "test/owl/bad.jpg"):
        (root / name).write_bytes(damaged_files()[kind])
    with fails(f"{tmp_path}/train/owl/0.png cannot be read as an image .*--skip-bad"):
        load(root)
    data = load(root, skip_bad=True)
    assert data.skipped == ("train/owl/0.png", "test/owl/bad.jpg")
    assert data.train.ids == ("train/Eel/0.png", "train/Eel/1.png", "train/owl/1.png")
    assert data.train.labels.tolist() == [0, 0, 1] and data.test.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(data.train.images, [np.asarray(picture(seed)) for seed in (3, 2, 0)])


def test_a_class_whose_images_are_all_bad_is_named(tmp_path: Path) -> None:
    (train_test_folder(tmp_path) / "test" / "owl" / "7.png").write_bytes(b"")
    with fails("no test image of the class 'owl' can be read"):
        load(tmp_path, skip_bad=True)


@pytest.mark.parametrize("limit", [40, 20])  # Pillow warns above its limit, and raises above twice of it
def test_a_decompression_bomb_is_a_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with fails(f"{tmp_path}/train/Eel/0.png cannot be read as an image .*decompression bomb"):
        load(train_test_folder(tmp_path))


# ---------------------------------------------------------------- conversions


def loaded(file: Path, size: int | None = None) -> NDArray[np.int64]:
    """The image that `load` makes of the file, (H, W, 3)."""
    root = file.parent / "root"
    for copy in ("a/0", "a/1", "b/0", "b/1"):
        (root / copy).parent.mkdir(parents=True, exist_ok=True)
        (root / copy).with_suffix(file.suffix).write_bytes(file.read_bytes())
    data = load(root, size=size)
    assert data.train.images.dtype == np.uint8
    return data.train.images[0].astype(np.int64)


def noise(*shape: int, high: int = 256) -> NDArray[np.int64]:
    return np.random.default_rng(5).integers(0, high, shape)


def saved(path: Path, values: NDArray[np.int64], mode: str, **options: object) -> Path:
    bands = Image.fromarray(values.astype(np.uint8)) if mode != "CMYK" else None
    image = bands or Image.frombytes("CMYK", values.shape[1::-1], values.astype(np.uint8).tobytes())
    assert image.mode == mode
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif"])
def test_grey_is_repeated_in_all_channels(tmp_path: Path, suffix: str) -> None:
    grey = noise(6, 5)
    np.testing.assert_array_equal(loaded(saved(tmp_path / f"x{suffix}", grey, "L")), np.stack([grey] * 3, axis=-1))


def test_black_and_white_become_0_and_255(tmp_path: Path) -> None:
    bits = noise(6, 5, high=2)
    Image.fromarray(bits.astype(np.bool_)).save(tmp_path / "x.png")
    np.testing.assert_array_equal(loaded(tmp_path / "x.png"), np.stack([bits * 255] * 3, axis=-1))


def over_white(rgb: NDArray[np.int64], alpha: NDArray[np.int64]) -> NDArray[np.float64]:
    a = alpha[..., None] / 255
    return rgb * a + 255 * (1 - a)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_alpha_is_laid_over_white(tmp_path: Path, suffix: str) -> None:
    rgba = noise(16, 16, 4)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    file = saved(tmp_path / f"x{suffix}", rgba, "RGBA", lossless=True, exact=True)
    np.testing.assert_allclose(loaded(file), over_white(rgba[..., :3], rgba[..., 3]), atol=1)


def test_grey_with_alpha_is_laid_over_white(tmp_path: Path) -> None:
    grey, alpha = noise(6, 5, 2)[..., 0], noise(6, 5, 2)[..., 1]
    file = saved(tmp_path / "x.png", np.stack([grey, alpha], axis=-1), "LA")
    np.testing.assert_allclose(loaded(file), over_white(np.stack([grey] * 3, axis=-1), alpha), atol=1)


@pytest.mark.parametrize("suffix", [".png", ".gif"])
@pytest.mark.parametrize("transparent", [None, 2])
def test_a_palette_becomes_its_colours_and_transparent_ones_white(tmp_path: Path, suffix: str, transparent: int | None) -> None:
    palette, indices = noise(4, 3), noise(6, 5, high=4)
    image = Image.frombytes("P", (5, 6), indices.astype(np.uint8).tobytes())
    image.putpalette(palette.ravel().tolist())
    image.save(tmp_path / f"x{suffix}", **({} if transparent is None else {"transparency": transparent}))
    if transparent is not None:
        palette[transparent] = 255
    np.testing.assert_array_equal(loaded(tmp_path / f"x{suffix}"), palette[indices])


def test_several_transparent_palette_entries_raise_no_warning(tmp_path: Path) -> None:
    image = Image.frombytes("P", (2, 1), b"\0\1")
    image.putpalette([200, 100, 0, 10, 20, 30])
    image.save(tmp_path / "x.png", transparency=b"\x80\x00")
    np.testing.assert_allclose(loaded(tmp_path / "x.png"), [[[227, 177, 127], [255, 255, 255]]], atol=1)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (6, 5, 4)], ids=["grey", "rgb", "rgba"])
def test_16_bit_values_keep_their_high_byte(tmp_path: Path, shape: tuple[int, ...]) -> None:
    cv2 = pytest.importorskip("cv2", reason="writes 16-bit PNG files")
    values = noise(*shape, high=65536)
    values.flat[:2] = 0, 65535
    if len(shape) == 3:
        values[..., 3:] = 65535  # opaque
    reordered = values if values.ndim == 2 else values[..., [2, 1, 0, 3][: shape[2]]]  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "x.png"), reordered.astype(np.uint16))
    rgb = np.stack([values] * 3, axis=-1) if values.ndim == 2 else values[..., :3]
    np.testing.assert_array_equal(loaded(tmp_path / "x.png"), rgb // 256)


def test_cmyk_becomes_the_product_of_its_inverses(tmp_path: Path) -> None:
    cmyk = np.broadcast_to(noise(4), (16, 16, 4))  # one colour, which JPEG keeps almost exactly
    file = saved(tmp_path / "x.jpg", cmyk, "CMYK", quality=100)
    c, m, y, k = cmyk[0, 0] / 255
    expected = 255 * (1 - np.array([c, m, y])) * (1 - k)
    np.testing.assert_allclose(loaded(file), np.broadcast_to(expected, (16, 16, 3)), atol=3)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("#ff0000", "#0000ff", "#00ff00")]
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(tmp_path / f"x{suffix}") as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]
    np.testing.assert_array_equal(loaded(tmp_path / f"x{suffix}"), np.broadcast_to([255, 0, 0], (16, 16, 3)))


# What a viewer does for each orientation: https://www.cipa.jp/std/documents/e/DC-008-Translation-2023-E.pdf, 4.6.5.1.6.
UPRIGHT: dict[int, Callable[[NDArray[np.int64]], NDArray[np.int64]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = noise(6, 5, 3)
    file = saved(tmp_path / "x.webp", rgb, "RGB", lossless=True, exif=exif)
    np.testing.assert_array_equal(loaded(file), UPRIGHT[orientation](rgb))


def test_a_jpeg_named_png_is_read_by_its_content(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.PNG", np.full((8, 8, 3), 77), "RGB", format="JPEG", quality=100)
    np.testing.assert_allclose(loaded(file), 77, atol=1)


@pytest.mark.parametrize(("shape", "size"), [((60, 90), 20), ((48, 30), 10), ((40, 40), 24), ((8, 12), 32)])
def test_the_short_side_is_resized_and_the_centre_cut_out(tmp_path: Path, shape: tuple[int, int], size: int) -> None:
    from torch import from_numpy
    from torch.nn.functional import interpolate

    rgb = 64 + noise(*shape, 3, high=128)  # Pillow clips between its two passes: leave room to overshoot
    height, width = (side * size // min(shape) for side in shape)
    whole = interpolate(
        from_numpy(rgb.transpose(2, 0, 1)[None].astype(np.float32)), (height, width), mode="bicubic", antialias=True
    )[0].numpy()
    top, left = (height - size) // 2, (width - size) // 2
    expected = whole[:, top : top + size, left : left + size].transpose(1, 2, 0)
    np.testing.assert_allclose(loaded(saved(tmp_path / "x.png", rgb, "RGB"), size), expected, atol=1.5)


# ---------------------------------------------------------------- more images than memory


def on_disk(tmp_path: Path) -> set[str]:
    """The endings of the names in the cache folder of decoded images."""
    folder = tmp_path / "cache" / "sightline" / "images"
    return {path.suffix for path in folder.iterdir()} if folder.exists() else set()


def undecodable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every decoding from now on fail the test."""
    monkeypatch.setattr(datasets, "read_image", lambda path, size: pytest.fail(f"{path} is decoded again"))


def old_content_hash(data: datasets.Dataset) -> str:
    """The hash as it was before it went in pieces."""
    digest = hashlib.sha256()
    for split in (data.train, data.test):
        digest.update(repr((split.images.shape, split.classes, split.ids)).encode())
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(np.ascontiguousarray(split.labels.astype("<i8")).data)
    return digest.hexdigest()


def test_the_content_hash_is_that_of_the_whole_arrays() -> None:
    images = noise(300, 64, 100, 3).astype(np.uint8)  # more than one piece
    for view in (images, images[::-1, :, ::2], np.asfortranarray(images[:7])):
        split = datasets.Split(view, np.arange(len(view)), ("a", "b"), ("x",))
        data = datasets.Dataset("noise", split, split)
        assert data.content_hash == old_content_hash(data)


@pytest.mark.parametrize("size", [None, 6])
def test_streamed_images_are_the_same_data_set(tmp_path: Path, size: int | None) -> None:
    root = train_test_folder(tmp_path / "data")
    for name in ("train/Eel/0.png", "test/owl/bad.jpg"):
        (root / name).write_bytes(b"bad")
    expected = load(root, size=size, skip_bad=True)
    assert not on_disk(tmp_path)
    for data in (load(root, size=size, skip_bad=True, memory=0) for _ in range(2)):
        for split, other in ((data.train, expected.train), (data.test, expected.test)):
            assert isinstance(split.images, np.memmap) and not split.images.flags.writeable
            np.testing.assert_array_equal(split.images, other.images)
            assert split.labels.tolist() == other.labels.tolist() and split.ids == other.ids
        assert data.content_hash == expected.content_hash == old_content_hash(expected)
        assert data.normalisation == expected.normalisation
        assert data.skipped == expected.skipped == ("train/Eel/0.png", "test/owl/bad.jpg")
        assert data.options == expected.options == {"size": size, "skip_bad": True, "seed": 0, "dev": 0.0}


@pytest.mark.parametrize(("memory", "streamed"), [(1152, False), (1151, True)])
def test_the_budget_is_for_train_and_test_together(tmp_path: Path, memory: int, streamed: bool) -> None:
    data = load(train_test_folder(tmp_path), memory=memory)  # 6 images of 8×8 pixels
    assert isinstance(data.train.images, np.memmap) == isinstance(data.test.images, np.memmap) == streamed


def test_with_a_size_the_budget_is_for_the_resized_images(tmp_path: Path) -> None:
    root = train_test_folder(tmp_path)
    assert not isinstance(load(root, size=4, memory=6 * 4 * 4 * 3).train.images, np.memmap)
    assert isinstance(load(root, size=16, memory=1152).train.images, np.memmap)


def test_a_bad_first_file_does_not_decide_the_budget(tmp_path: Path) -> None:
    root = train_test_folder(tmp_path)
    (root / "train/Eel/0.png").write_bytes(b"bad")
    assert isinstance(load(root, skip_bad=True, memory=1151).train.images, np.memmap)


def test_the_budget_is_half_of_the_machines_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = train_test_folder(tmp_path)
    for pages, streamed in ((2304, False), (2303, True)):
        answers = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": pages}
        monkeypatch.setattr(os, "sysconf", answers.__getitem__)
        assert isinstance(load(root).train.images, np.memmap) == streamed
    monkeypatch.delattr(os, "sysconf")
    for told, streamed in ((2304, False), (2303, True)):
        monkeypatch.setattr(datasets, "UNTOLD_MEMORY", told)
        assert isinstance(load(root).train.images, np.memmap) == streamed


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs /proc, which Linux has")
def test_the_machines_memory_is_what_the_system_says() -> None:
    (kilobytes,) = re.findall(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert datasets._physical_memory() == pytest.approx(int(kilobytes) * 1024, rel=0.01)


def test_the_same_files_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = train_test_folder(tmp_path / "data")
    seen: list[tuple[str, int, int]] = []
    first = load(root, memory=0, progress=lambda *step: seen.append(step))
    assert [label for label, _, _ in seen] == ["reading train images"] * 4 + ["reading test images"] * 2
    undecodable(monkeypatch)
    again = load(root, memory=0)
    assert again.content_hash == first.content_hash and again.train.ids == first.train.ids
    assert on_disk(tmp_path) == {".npy", ".json"}


@pytest.mark.parametrize("change", ["content", "time", "name", "place", "size", "one more"])
def test_changed_files_are_decoded_anew(tmp_path: Path, change: str) -> None:
    root = train_test_folder(tmp_path / "data")
    load(root, memory=0)
    file, size = root / "train/owl/0.png", None
    if change == "content":
        picture(9).save(file)
    elif change == "time":  # other pixels in as many bytes, as in a file that isn't compressed
        picture(9).save(file, compress_level=0)
        load(root, memory=0)
        status = file.stat()
        picture(10).save(file, compress_level=0)
        assert file.stat().st_size == status.st_size
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    elif change == "name":
        file.rename(file.with_name("2.png"))
    elif change == "place":
        root = root.rename(tmp_path / "elsewhere")
        picture(9).save(root / "train/owl/0.png")
    elif change == "size":
        size = 5
    else:
        picture(9).save(root / "test/owl/8.png")
    expected = load(root, size=size)
    found = load(root, size=size, memory=0)
    assert found.content_hash == expected.content_hash


def test_a_bad_file_is_an_error_again_without_a_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = train_test_folder(tmp_path / "data")
    for name in ("train/owl/0.png", "train/owl/2.png"):
        (root / name).write_bytes(b"bad")
    message = f"{root}/train/owl/0.png cannot be read as an image .*--skip-bad"
    with fails(message):
        load(root, memory=0)
    assert on_disk(tmp_path) == set()  # nothing half made is left
    load(root, skip_bad=True, memory=0)
    undecodable(monkeypatch)
    with fails(message):
        load(root, memory=0)
    assert load(root, skip_bad=True, memory=0).skipped == ("train/owl/0.png", "train/owl/2.png")


def test_streamed_classes_without_a_good_image_are_named(tmp_path: Path) -> None:
    root = train_test_folder(tmp_path)
    for c in ("owl", "Eel"):
        (root / "test" / c / "7.png").write_bytes(b"")
    with fails("no test image of the class 'Eel' can be read"):
        load(root, skip_bad=True, memory=0)


def test_streamed_images_of_different_sizes_are_named(tmp_path: Path) -> None:
    write_folder(train_test_folder(tmp_path / "data"), {"train/owl/1.png": picture(0, height=9, width=12)})
    with fails("png is 8×8 pixels, but .*owl/1.png is 12×9"):
        load(tmp_path / "data", memory=0)
    assert on_disk(tmp_path) == set()


@pytest.mark.parametrize("way", ["reserved", "asked"])
def test_a_disk_without_space_for_the_images_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    root = train_test_folder(tmp_path / "data")
    if way == "reserved":
        monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC), raising=False)
    else:  # macOS and Windows can't reserve
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        assert load(root, size=7, memory=0).train.images.shape == (4, 7, 7, 3)
        free = type("Usage", (), {"free": 4 * 4000 * 4000 * 3 - 1})
        monkeypatch.setattr(datasets.shutil, "disk_usage", lambda folder: free)
    before = on_disk(tmp_path)
    with fails(f"cannot write to {tmp_path}/cache/sightline/images .No space left on device.; .* need 0.3 GB .*free .*--size"):
        load(root, size=4000, memory=0)
    assert on_disk(tmp_path) == before


def test_a_cache_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with fails(f"cannot write to {tmp_path}/cache/sightline/images .Not a directory.; .*GB"):
        load(train_test_folder(tmp_path / "data"), memory=0)


@pytest.mark.parametrize("damage", ["cut", "no list", "broken list"])
def test_damaged_decoded_images_are_named(tmp_path: Path, damage: str) -> None:
    root = train_test_folder(tmp_path / "data")
    file = Path(load(root, memory=0).train.images.filename)  # type: ignore[attr-defined]
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "no list":
        file.with_suffix(".json").unlink()
    else:
        file.with_suffix(".json").write_text("[1")
    with fails(f"{re.escape(str(file))} is damaged .*delete it and run again"):
        load(root, memory=0)
    file.unlink()
    assert load(root, memory=0).content_hash == load(root).content_hash


def test_hash_and_normalisation_of_a_file_need_little_memory(tmp_path: Path) -> None:
    file = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(2000, 64, 100, 3))
    file[:] = noise(2000, 1, 1, 1).astype(np.uint8)
    images = np.lib.format.open_memmap(tmp_path / "x.npy", mode="r")
    split = datasets.Split(images, np.zeros(2000, np.int64), ("a",), ())
    data = datasets.Dataset("noise", split, split)
    tracemalloc.start()
    mean, _ = data.normalisation
    assert data.content_hash == old_content_hash(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(mean, np.full(3, noise(2000, 1, 1, 1).mean() / 255), rtol=1e-12)
    assert peak < 15e6  # the images are 38 MB


# ---------------------------------------------------------------- what is held out


def literally_held_out(split: datasets.Split, share: float) -> set[str]:
    """Of each class the ids with the smallest SHA-256."""
    held: set[str] = set()
    for label in range(len(split.classes)):
        ids = [name for name, own in zip(split.ids, split.labels, strict=True) if own == label]
        ids.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        held.update(ids[: max(1, round(share * len(ids)))])
    return held


def test_dev_is_the_same_part_of_each_class_on_every_machine() -> None:
    whole, data = load("planted:clean"), load("planted:clean", dev=0.1)
    assert data.dev is not None and data.dev.masks is not None and whole.train.masks is not None
    assert set(data.dev.ids) == literally_held_out(whole.train, 0.1)
    assert np.bincount(data.dev.labels).tolist() == [40] * 10 and len(data.train) == 3600
    place = {name: i for i, name in enumerate(whole.train.ids)}
    for split in (data.train, data.dev):
        rows = [place[name] for name in split.ids]
        np.testing.assert_array_equal(split.images, whole.train.images[rows])
        np.testing.assert_array_equal(split.labels, whole.train.labels[rows])
        assert split.masks is not None
        np.testing.assert_array_equal(split.masks, whole.train.masks[rows])
    assert not set(data.train.ids) & set(data.dev.ids) and data.test.ids == whole.test.ids
    assert data.content_hash != whole.content_hash and data.judged == ("dev", data.dev) and whole.judged == ("test", whole.test)


@pytest.mark.parametrize("memory", [None, 0])
def test_files_are_held_out_before_they_are_read(tmp_path: Path, memory: int | None) -> None:
    root = tmp_path / "pictures"
    for k, name in enumerate("ab"):
        for i in range(20):
            (root / "train" / name).mkdir(parents=True, exist_ok=True)
            (root / "test" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (10 * i, 100 * k, 0)).save(root / "train" / name / f"{i}.png")
            Image.new("RGB", (8, 8), (10 * i, 100 * k, 9)).save(root / "test" / name / f"{i}.png")
    whole, data = load(root), load(root, dev=0.25, memory=memory)
    assert data.dev is not None and set(data.dev.ids) == literally_held_out(whole.train, 0.25) and len(data.dev) == 10
    place = {name: i for i, name in enumerate(whole.train.ids)}
    np.testing.assert_array_equal(data.dev.images, whole.train.images[[place[name] for name in data.dev.ids]])
    assert isinstance(data.train.images, np.memmap) == (memory == 0)


def test_what_cannot_be_held_out_is_an_error() -> None:
    with fails("not between 0 and 0.5; give --dev 0.1"):
        load("planted:clean", dev=0.6)
    with fails("held out already"):
        datasets.hold_out(load("planted:clean", dev=0.1), 0.1)
    one = datasets.Split(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), ("a", "b"), ("1", "2"))
    with fails("class 'a' has one image"):
        datasets.hold_out(datasets.Dataset("two", one, one), 0.1)
