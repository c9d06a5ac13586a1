"""A name or a path → a `Dataset` of uint8 images, in memory or, where they are too many, in a memory-mapped file.

Three splits: a model learns from `train`; `dev`, a part of the training images that is held out of it, is what may be looked at,
probed and chosen on; `test` is for the last word.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import mmap
import os
import pickle
import re
import shutil
import ssl
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import PIL
import platformdirs
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .exceptions import DataError, nearest


@dataclass(frozen=True)
class Split:
    """Images of one split, in a fixed order.

    images: (N, H, W, 3) uint8, RGB; a read-only np.memmap where `load` found no room for them in memory.  labels: (N,)
    int64, indices into `classes`.  ids: N names, unique in the data set, such as "test/123" or "test/cat/tabby.png".
    masks: (N, H, W) bool, True on the object, where the data set knows it.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    masks: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set: what the model learns from (`train`), what is looked at meanwhile (`dev`), and the last word (`test`).

    name: "cifar10", "planted…" or a folder's absolute path.  skipped: ids of the image files that could not be read.
    options: what `load` must be given besides the name to give the same again: size, skip_bad, seed and dev; and, where images
    were left out of it, their ids, sorted, as "without".  dev: None where nothing is held out.  whole: the content hash from
    before images were left out; "" where none were.
    """

    name: str
    train: Split
    test: Split
    skipped: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=lambda: {"size": None, "skip_bad": False, "seed": 0, "dev": 0.0})
    dev: Split | None = None
    whole: str = ""

    @property
    def judged(self) -> tuple[str, Split]:
        """What a training is judged on, and its name: "dev" where there is such a split, else "test"."""
        return ("dev", self.dev) if self.dev is not None else ("test", self.test)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over images, labels, class names and ids of all splits, in hexadecimal; images left out count too."""
        if self.whole:
            return self.whole
        digest = hashlib.sha256()
        for split in (self.train, self.test, *([] if self.dev is None else [self.dev])):
            digest.update(repr((split.images.shape, split.classes, split.ids)).encode())
            for piece in _pieces(split.images):
                digest.update(np.ascontiguousarray(piece).data)
            digest.update(np.ascontiguousarray(split.labels.astype("<i8")).data)
        return digest.hexdigest()

    @property
    def left_out(self) -> tuple[str, ...]:
        """The ids of the images that were left out, sorted."""
        return tuple(self.options.get("without", ()))

    def without(self, ids: Iterable[str]) -> Dataset:
        """Return the data set without some images of train and dev; the others stay where they are, and so does the content hash.

        Raises DataError for an image of test, since nothing is chosen on these, for an id that neither split has, and where no
        image of a class would be left in one of them.
        """
        wanted = set(ids)
        if not wanted:
            return self
        _refuse_others(self, wanted)
        train = _thinned(self.train, wanted, f"{self.name}: no train image")
        dev = None if self.dev is None else _thinned(self.dev, wanted, f"{self.name}: no dev image")
        options = {**self.options, "without": sorted(wanted.union(self.left_out))}
        return replace(self, train=train, dev=dev, options=options, whole=self.content_hash)

    @cached_property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation a channel of the training images, on the 0–1 scale.

        Exact: computed from the histogram of the 256 levels.
        """
        channels = self.train.images.shape[-1]
        counts = np.zeros((channels, 256), np.int64)
        for piece in _pieces(self.train.images):
            for channel in range(channels):
                counts[channel] += np.bincount(piece[..., channel].ravel(), minlength=256)
        levels = np.arange(256) / 255
        means, deviations = [], []
        for count in counts:
            mean = float((count * levels).sum() / count.sum())
            variance = float((count * (levels - mean) ** 2).sum() / count.sum())
            means.append(mean)
            deviations.append(max(variance**0.5, 1e-6))
        return tuple(means), tuple(deviations)


def _pieces(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The images a million pixels at a time: what is made of a piece, such as an int64 copy, needs little memory."""
    step = max(1, 2**20 // max(1, images.shape[1] * images.shape[2]))
    return (images[start : start + step] for start in range(0, len(images), step))


Progress = Callable[[str, int, int], None]

NAMES = ("cifar10", "planted", "planted:clean")

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_FILE_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
TEST_FOLDERS = ("test", "val", "valid", "validation")
TEST_FRACTION = 0.2
DEV = 0.1  # the share of the training images that `train` holds out unless it is told otherwise
MOST_DEV = 0.5
UNTOLD_MEMORY = 8 * 2**30  # bytes that a machine is taken to have where its system doesn't tell


def load(
    data: str | Path,
    *,
    data_dir: Path | None = None,
    size: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
    seed: int = 0,
    dev: float = 0.0,
    memory: int | None = None,
) -> Dataset:
    """Load a data set by its name, or from a folder with one sub-folder a class.

    `data` is "cifar10", "planted", "planted:clean" or a folder's path; a `Path`, or "./cifar10", is always a folder.

    - cifar10 (https://www.cs.toronto.edu/~kriz/cifar.html) is looked for in `data_dir`, in the folder that
      SIGHTLINE_DATA names, and in the platform's cache folder, unpacked or as the archive; else it is downloaded
      into the first of these that is given.
    - planted is generated from `seed`, `size` (32) pixels wide.
    - A folder holds `train` beside `test`, `val`, `valid` or `validation` (the first of these that is there), each with
      a sub-folder a class; or the class folders themselves, and then a fifth of each class is held out for the test,
      chosen by a hash of the file's path in the folder: the same files on every machine. Ids are these paths.

    Images are the PNG, JPEG, WebP, BMP and GIF files that lie directly in a class folder; other and hidden files are
    ignored. They become 8-bit RGB: turned upright as their EXIF orientation says, of animations the first frame, grey
    repeated in all channels, transparency laid over white, of 16-bit values the high byte, CMYK by Pillow's formula,
    colour profiles ignored. With `size` (pixels) the short side is resized to it (bicubic, antialiased) and the centre
    square cut out; without, all images must be of one size. With `skip_bad`, files that cannot be read are listed in
    `Dataset.skipped`, and the rest is used.

    Where a folder's images need more than `memory` bytes (None: half of the machine's), they are decoded once, into files
    in `images/` of the platform's cache folder; `Split.images` is then a read-only memory map, and loading the same files
    again decodes nothing. Those files may be deleted whenever no program uses them.

    `dev` is the share of each class's training images that is held out of them as `Dataset.dev`: those whose ids have the
    smallest SHA-256, so the same images on every machine and in every run.

    `progress` is called with a label, what is done and what there is to do (0: unknown), in bytes or images.

    Raises DataError for anything missing, damaged or unusable; its message says what to do.
    """
    if size is not None and size < 1:
        raise DataError(f"the image size {size} is not a number of pixels; give --size 1 or more")
    if not 0 <= dev <= MOST_DEV:
        raise DataError(f"the share {dev} of images to hold out is not between 0 and {MOST_DEV}; give --dev 0.1, or 0 for none")
    progress = progress or _ignore
    if data == "cifar10":
        if size not in (None, 32):
            raise DataError(f"cifar10 images are 32 pixels wide, not {size}; leave out --size")
        loaded = _load_cifar10(data_dir, progress)
    elif isinstance(data, str) and data.partition(":")[0] == "planted":
        from .planted import planted

        loaded = planted(data, seed=seed, size=size or 32)
    else:
        root = os.path.expanduser(data)
        if not os.path.isdir(root):
            raise DataError(f"{str(data)!r} is neither a data set nor a folder; {nearest(str(data), NAMES)}, or a folder's path")
        memory = _physical_memory() // 2 if memory is None else memory
        loaded = _load_folder(Path(root).resolve(), size, skip_bad, dev, memory, progress)
    if dev and loaded.dev is None:
        loaded = hold_out(loaded, dev)
    return replace(loaded, options={"size": size, "skip_bad": skip_bad, "seed": seed, "dev": dev})


def hold_out(data: Dataset, share: float) -> Dataset:
    """Return the data set with `share` of each class's training images as `dev`, chosen as in `load`.

    Raises DataError for a class with a single image, or where images are held out already.
    """
    if data.dev is not None:
        raise DataError(f"{data.name}: images are held out already; take the data set as it was before")
    if data.left_out:  # a share of what is left would be other images
        raise DataError(f"{data.name}: images are left out already; hold out first, and leave out then")
    split = data.train
    chosen = np.zeros(len(split), bool)
    for label, name in enumerate(split.classes):
        rows = np.flatnonzero(split.labels == label)
        if not len(rows):  # a class without training images has none to hold out
            continue
        held = set(_lowest([split.ids[i] for i in rows], share, f"{data.name}: the class '{name}'"))
        chosen[[i for i in rows if split.ids[i] in held]] = True
    return replace(data, train=_rows(split, ~chosen), dev=_rows(split, chosen), options={**data.options, "dev": share})


def _refuse_others(data: Dataset, wanted: set[str]) -> None:
    """Raise DataError where an id isn't one of train or dev."""
    held_out = () if data.dev is None else data.dev.ids
    strange = min(wanted.difference(data.train.ids, held_out, data.left_out), default=None)
    if strange is None:
        return
    if strange in set(data.test.ids):
        raise DataError(f"{data.name}: {strange!r} is a test image, and nothing is chosen on these; leave out others only")
    raise DataError(f"{data.name} has no image {strange!r} that could be left out; bring it back, or don't name it")


def _thinned(split: Split, wanted: set[str], none: str) -> Split:
    """The images of a split that are not `wanted`. Raises DataError, which begins with `none`, where that empties a class."""
    kept = np.array([name not in wanted for name in split.ids], bool)
    if kept.all():
        return split
    counts = np.bincount(split.labels[kept], minlength=len(split.classes))
    if lost := [c for c in np.unique(split.labels) if not counts[c]]:
        raise DataError(f"{none} of the class '{split.classes[lost[0]]}' would be left; leave out fewer")
    return _rows(split, kept)


def _rows(split: Split, chosen: NDArray[np.bool_]) -> Split:
    ids = tuple(name for name, keep in zip(split.ids, chosen, strict=True) if keep)
    masks = None if split.masks is None else split.masks[chosen]
    mapped = isinstance(split.images, np.memmap) and isinstance(split.images.base, mmap.mmap)  # where memory has no room for them
    images = _copied_on_disk(split.images, chosen) if mapped else split.images[chosen]
    return Split(images, split.labels[chosen], split.classes, ids, masks)


def _lowest(names: Sequence[str], share: float, what: str) -> list[str]:
    """The `share` of the names, at least one, with the smallest SHA-256. Raises DataError if none would be left."""
    if len(names) < 2:
        raise DataError(f"{what} has one image; two are needed, one of them to be held out")
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return ranked[: max(1, round(share * len(names)))]


def _ignore(label: str, done: int, total: int) -> None:
    """The progress that nobody watches."""


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, other systems not each of its names
        return UNTOLD_MEMORY


@contextmanager
def _disk(doing: str, advice: str) -> Iterator[None]:
    """Turn an error of the file system into a DataError: cannot `doing`, because …; `advice`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot {doing} ({error.strerror or error}); {advice}") from error


def _writing_to(folder: Path) -> AbstractContextManager[None]:
    return _disk(f"write to {folder}", "free some space or permit writing there, or choose another folder with --data-dir")


# ---------------------------------------------------------------- CIFAR-10


def _load_cifar10(data_dir: Path | None, progress: Progress) -> Dataset:
    given = (data_dir, os.environ.get("SIGHTLINE_DATA"), platformdirs.user_cache_path("sightline"))
    places = [Path(os.path.expanduser(place)) for place in given if place]
    found = (p for p in places if os.path.isdir(p / CIFAR10_FOLDER) or os.path.isfile(p / CIFAR10_ARCHIVE))
    home = next(found, places[0])
    if not os.path.isdir(home / CIFAR10_FOLDER):
        _obtain_archive(home / CIFAR10_ARCHIVE, progress)
        _extract(home / CIFAR10_ARCHIVE)
    return _read_cifar10(home / CIFAR10_FOLDER)


def _obtain_archive(archive: Path, progress: Progress) -> None:
    if not os.path.isfile(archive):
        _download(archive, progress)
    elif (md5 := _file_md5(archive)) != CIFAR10_MD5:
        raise DataError(f"{archive} is damaged or incomplete: MD5 {md5}, not {CIFAR10_MD5}; delete it and run again")


def _file_md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with _disk(f"read {path}", "check its permissions"), path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _download(archive: Path, progress: Progress) -> None:
    """Download the archive; what has arrived waits in a `.part` file, from which the next call goes on."""
    part = archive.with_name(archive.name + ".part")
    otherwise = f"or put {archive.name} into {archive.parent} yourself"
    with _writing_to(archive.parent):
        archive.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fetch(part, progress)
        except (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            message = f"cannot download {CIFAR10_URL} ({error}); run again to go on where it stopped, {otherwise}"
            raise DataError(message) from error
        if (md5 := _file_md5(part)) != CIFAR10_MD5:
            part.unlink()
            raise DataError(f"{CIFAR10_URL} sent MD5 {md5}, not {CIFAR10_MD5}, so it was deleted; run again, {otherwise}")
        part.replace(archive)


def _fetch(part: Path, progress: Progress) -> None:
    """Append to `part` what it lacks; start over where the server ignores the range asked for."""
    done = part.stat().st_size if part.exists() else 0
    request = Request(CIFAR10_URL, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urlopen(request, timeout=30)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # nothing follows what is there already: the MD5 tells whether that is the whole
            return
        raise
    with response, part.open("ab" if response.status == 206 else "wb") as file:
        done = file.tell()
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else 0
        while chunk := response.read(1 << 16):
            file.write(chunk)
            done += len(chunk)
            progress("downloading cifar10", done, total)
    if done < total:  # urllib ends quietly when the connection is cut
        raise ConnectionError(f"the connection was cut after {done} of {total} bytes")


def _extract(archive: Path) -> None:
    """Unpack the archive beside itself, by way of a temporary folder: all or nothing."""
    damaged = f"{archive} is damaged; delete it and run again"
    with _writing_to(archive.parent), tempfile.TemporaryDirectory(prefix=".cifar10-", dir=archive.parent) as temporary:
        try:
            _unpack(archive, Path(temporary))
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{damaged} ({error})") from error
        folder = Path(temporary, CIFAR10_FOLDER)
        if missing := [name for name in CIFAR10_FILE_MD5 if not (folder / name).is_file()]:
            raise DataError(f"{damaged} (it lacks {', '.join(missing)})")
        _rename(folder, archive.parent / CIFAR10_FOLDER)


def _rename(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():  # it is there where another process unpacked the same archive meanwhile
            raise


def _unpack(archive: Path, target: Path) -> None:
    """Write the files that we know, and refuse the whole archive if any member is not where it belongs."""
    (target / CIFAR10_FOLDER).mkdir()
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if parts[:1] != (CIFAR10_FOLDER,) or ".." in parts or not (member.isfile() or member.isdir()):
                raise DataError(f"{archive}: '{member.name}' is no file in {CIFAR10_FOLDER}/, so nothing was unpacked; delete it")
            if parts[1:] in {(name,) for name in CIFAR10_FILE_MD5} and (source := tar.extractfile(member)):
                with Path(target, *parts).open("wb") as file:
                    shutil.copyfileobj(source, file)


def _read_cifar10(folder: Path) -> Dataset:
    classes = tuple(_read_pickle(folder / "batches.meta")["label_names"])

    def split(name: str, files: list[str]) -> Split:
        batches = [_read_pickle(folder / file) for file in files]
        images_NCHW = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([np.array(batch["labels"], np.int64) for batch in batches])
        ids = tuple(f"{name}/{i}" for i in range(len(labels)))
        return Split(np.ascontiguousarray(images_NCHW.transpose(0, 2, 3, 1)), labels, classes, ids)

    return Dataset("cifar10", split("train", [f"data_batch_{i}" for i in range(1, 6)]), split("test", ["test_batch"]))


def _read_pickle(path: Path) -> dict[str, Any]:
    """Read one file of CIFAR-10: checked by its MD5, and unpickled by an unpickler that knows NumPy arrays only."""
    advice = f"delete {path.parent} and run again"
    with _disk(f"read {path}", advice):
        content = path.read_bytes()
    if (md5 := hashlib.md5(content, usedforsecurity=False).hexdigest()) != CIFAR10_FILE_MD5[path.name]:
        raise DataError(f"{path} is damaged: MD5 {md5}, not {CIFAR10_FILE_MD5[path.name]}; {advice}")
    try:
        unpickled: dict[str, Any] = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a broken pickle can raise anything
        raise DataError(f"{path} is no pickle of NumPy arrays ({error}); {advice}") from error
    return unpickled


def _dtype(spec: str, align: int, copy: int) -> np.dtype[Any]:
    # The published pickles say align=0, at which NumPy warns: it wants a bool.
    return np.dtype(spec, align=bool(align), copy=bool(copy))


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, strings, numbers and NumPy arrays: a pickle that names anything else is refused."""

    # NumPy 2 renamed the module of _reconstruct; asking an array for it works on every version, and without a warning.
    reconstruct: Any = np.empty(0).__reduce__()[0]
    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.allowed[module, name]


# ---------------------------------------------------------------- folders of images


def _load_folder(root: Path, size: int | None, skip_bad: bool, dev: float, memory: int, progress: Progress) -> Dataset:
    _check_name(root, str(root))
    with _disk(f"read {root}", "check its permissions"):
        train_files, test_files = _find_files(root)
    if len(train_files) < 2:
        raise DataError(f"{root} has {len(train_files)} class sub-folders; a classifier needs two or more, with images in each")
    if not test_files:
        raise DataError(f"{root}: the test folder has no class sub-folders; fill it, or remove it to hold out a fifth")
    if unknown := sorted(set(test_files) - set(train_files)):
        raise DataError(f"{root}: the test has a class '{unknown[0]}' that train lacks; add its images there, or remove it")

    classes = tuple(sorted(train_files))
    paths = [path for files in (train_files, test_files) for c in files.values() for path in c]
    needed = len(paths) * 3 * _pixels(paths, size)
    read: Reader = _read_images if needed <= memory else partial(_read_once, root, needed)
    read = partial(read, size=size, skip_bad=skip_bad, progress=progress)
    train_files, dev_files = _hold_out(train_files, root, dev) if dev else (train_files, {})
    train, bad_train = _read_split("train", train_files, classes, root, read)
    test, bad_test = _read_split("test", test_files, classes, root, read)
    held_out, bad_dev = _read_split("dev", dev_files, classes, root, read) if dev else (None, ())
    for other in (test, *([held_out] if held_out else [])):
        _check_same_size(root / train.ids[0], train.images[0], root / other.ids[0], other.images[0])
    return Dataset(str(root), train, test, bad_train + bad_dev + bad_test, dev=held_out)


Files = dict[str, list[Path]]  # the image files of each class
Bad = dict[int, str]  # which paths of a list cannot be read, and why
Reader = Callable[..., tuple[NDArray[np.uint8], Bad]]


def _find_files(root: Path) -> tuple[Files, Files]:
    folders = {folder.name.lower(): folder for folder in _subfolders(root)}
    test = next((folders[name] for name in TEST_FOLDERS if name in folders), None)
    if "train" in folders and test:
        return _files_by_class(folders["train"]), _files_by_class(test)
    return _hold_out(_files_by_class(root), root, TEST_FRACTION)


def _subfolders(folder: Path) -> list[Path]:
    return _named(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files_by_class(folder: Path) -> Files:
    files = {sub.name: _image_files(sub) for sub in _subfolders(folder)}
    for name, images in files.items():
        if not images:
            raise DataError(
                f"the class folder {folder / name} has no images directly in it; add some, or remove it; "
                "or give the path of a folder with one sub-folder a class"
            )
    return files


def _image_files(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return _named(path for path in found if not path.name.startswith("."))


def _named(paths: Iterable[Path]) -> list[Path]:
    """Return the paths in order of their names; raise DataError for a name that can't be written as text."""
    listed = sorted(paths, key=lambda path: path.name)
    for path in listed:
        _check_name(path, path.name)
    return listed


def _check_name(path: Path, name: str) -> None:
    # Control characters would break lines, and what isn't UTF-8 comes as surrogates, which no file can be written with.
    # Anything else is somebody's alphabet or emoji.
    if re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):
        raise DataError(f"the name of {str(path)!a} has characters that cannot be written as text; rename it")


def _hold_out(files: Files, root: Path, share: float) -> tuple[Files, Files]:
    """Split each class by the SHA-256 of the relative paths: no random state, the same on every machine."""
    left, held = {}, {}
    for name, images in files.items():
        names = {path.relative_to(root).as_posix(): path for path in images}
        chosen = {names[n] for n in _lowest(list(names), share, f"the class folder {root / name}")}
        left[name] = [path for path in images if path not in chosen]
        held[name] = [path for path in images if path in chosen]
    return left, held


def _read_split(name: str, files: Files, classes: tuple[str, ...], root: Path, read: Reader) -> tuple[Split, tuple[str, ...]]:
    """Read the images of one split, class by class; also return the ids of the bad files."""
    listed = [(path, label) for label, c in enumerate(classes) for path in files.get(c, [])]
    ids = [path.relative_to(root).as_posix() for path, _ in listed]
    images, bad = read([path for path, _ in listed], f"reading {name} images")

    kept = [i for i in range(len(listed)) if i not in bad]
    labels = np.array([label for _, label in listed], np.int64)[kept]
    for c in files:
        if classes.index(c) not in labels:
            raise DataError(f"{root}: no {name} image of the class '{c}' can be read; replace them, or remove the folder")
    return Split(images, labels, classes, tuple(ids[i] for i in kept)), tuple(sorted(ids[i] for i in bad))


@contextmanager
def _bombs_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _pixels(paths: list[Path], size: int | None) -> int:
    """The number of pixels that each image will have; of the first that can be opened, for all must be of one size."""
    if size is not None:
        return size * size
    with _bombs_are_errors():
        for path in paths:
            with suppress(Exception), Image.open(path, formats=IMAGE_FORMATS) as image:  # as many kinds as in `read_image`
                pixels: int = image.width * image.height
                return pixels
    return 0


def _room(n: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        return np.empty((n, *shape), np.uint8)
    except MemoryError:
        height, width, channels = shape
        gigabytes = n * height * width * channels / 1e9
        raise DataError(
            f"{n} images of {width}×{height} pixels need {gigabytes:,.1f} GB of memory, which is not there; "
            "make them smaller, such as --size 64"
        ) from None


def _read_images(
    paths: list[Path],
    doing: str,
    *,
    size: int | None,
    skip_bad: bool,
    progress: Progress,
    room: Callable[[int, tuple[int, ...]], NDArray[np.uint8]] = _room,
) -> tuple[NDArray[np.uint8], Bad]:
    """Return the images that can be read, (N, H, W, 3), in an array that `room` makes, and the bad files."""
    images = np.empty((0, 0, 0, 3), np.uint8)
    kept: list[int] = []
    bad: Bad = {}
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # Pillow decodes without the GIL
    try:
        with _bombs_are_errors():
            for i, image in enumerate(pool.map(partial(read_image, size=size), paths)):
                if isinstance(image, np.ndarray):
                    if not kept:
                        images = room(len(paths), image.shape)
                    kept.append(i)
                    _check_same_size(paths[kept[0]], images[0], paths[i], image)
                    images[len(kept) - 1] = image
                elif skip_bad:
                    bad[i] = str(image)
                else:
                    raise image
                progress(doing, i + 1, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    return images[: len(kept)], bad


def _read_once(
    root: Path, needed: int, paths: list[Path], doing: str, *, size: int | None, skip_bad: bool, progress: Progress
) -> tuple[NDArray[np.uint8], Bad]:
    """Like `_read_images`, but the images lie in a file of the cache folder, where the first call for these files puts them."""
    folder = platformdirs.user_cache_path("sightline") / "images"
    file = folder / f"{_fingerprint(root, paths, size)}.npy"
    room = f"the decoded images need {needed / 1e9:,.1f} GB there: free as much, or make them smaller, such as --size 64"
    if not os.path.isfile(file):
        with _disk(f"write to {folder}", room):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
                part = Path(temporary, file.name)
                images, bad = _read_images(
                    paths, doing, size=size, skip_bad=skip_bad, progress=progress, room=partial(_room_on_disk, part)
                )
                if not isinstance(images, np.memmap):
                    return images, bad  # not one could be read, so there is no file
                images.flush()
                del images  # Windows renames no file that is mapped
                part.with_suffix(".json").write_text(json.dumps(list(bad.items())), encoding="utf-8")
                part.with_suffix(".json").replace(file.with_suffix(".json"))
                part.replace(file)  # last: where the images are, all is there
    images, bad = _open_decoded(file)
    if bad and not skip_bad:
        raise DataError(next(iter(bad.values())))
    return images, bad


def _fingerprint(root: Path, paths: list[Path], size: int | None) -> str:
    """SHA-256 over what decides the decoded images, without reading a file: names, sizes, times, and who decodes them how."""
    digest = hashlib.sha256(repr((str(root), size, PIL.__version__)).encode())
    with _disk(f"read {root}", "check its permissions"):
        for path in paths:
            status = path.stat()
            digest.update(repr((path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _room_on_disk(file: Path, n: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A new .npy file's memory map. Raises OSError where there is no space, which would kill the process at a later write."""
    images: NDArray[np.uint8] = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(n, *shape))
    if hasattr(os, "posix_fallocate"):
        with file.open("rb+") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    elif shutil.disk_usage(file.parent).free < images.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return images


def _open_decoded(file: Path) -> tuple[NDArray[np.uint8], Bad]:
    """The read-only memory map of the good images in a file that `_read_once` wrote, and the bad files."""
    try:
        bad: Bad = dict(json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
        whole = np.lib.format.open_memmap(file, mode="r")
        n, *shape = whole.shape
        # The last rows are empty where files were bad. Not a slice: only a map of its own knows its place in the file.
        return np.memmap(file, np.uint8, "r", whole.offset, (n - len(bad), *shape)), bad
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file} is damaged or cannot be read ({error}); delete it and run again") from error


def _copied_on_disk(images: NDArray[np.uint8], chosen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The chosen images of a memory map as another one, of a file in the cache folder that the first call makes."""
    assert isinstance(images, np.memmap)
    source, folder = Path(str(images.filename)), platformdirs.user_cache_path("sightline") / "images"
    with _disk(f"read {source}", "run again"):
        status = source.stat()
    known = repr((str(source), status.st_size, status.st_mtime_ns, images.offset, images.shape)).encode()
    file = folder / f"{hashlib.sha256(known + chosen.tobytes()).hexdigest()}.npy"
    rows, needed = np.flatnonzero(chosen), int(chosen.sum()) * int(np.prod(images.shape[1:]))
    step = max(1, 2**24 // max(1, int(np.prod(images.shape[1:]))))
    if not os.path.isfile(file):
        with _disk(f"write to {folder}", f"the images that are kept need {needed / 1e9:,.1f} GB there: free as much"):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
                part = Path(temporary, file.name)
                copy = _room_on_disk(part, len(rows), images.shape[1:])
                for start in range(0, len(rows), step):
                    copy[start : start + step] = images[rows[start : start + step]]
                copy.flush()  # type: ignore[attr-defined]
                del copy  # Windows renames no file that is mapped
                file.with_suffix(".json").write_text("[]", encoding="utf-8")  # none of them is bad
                part.replace(file)
    return _open_decoded(file)[0]


def _check_same_size(path: Path, image: NDArray[np.uint8], other_path: Path, other: NDArray[np.uint8]) -> None:
    if image.shape != other.shape:
        (height, width, _), (other_height, other_width, _) = image.shape, other.shape
        raise DataError(
            f"{path} is {width}×{height} pixels, but {other_path} is {other_width}×{other_height}; "
            "give one size for all, such as --size 64"
        )


def read_image(path: Path, size: int | None) -> NDArray[np.uint8] | DataError:
    """Return the image, (H, W, 3), or the error for the caller to raise or to pass over."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            rgb = _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more on damaged files
        return DataError(f"{path} cannot be read as an image ({error}); replace or remove it, or pass over it with --skip-bad")
    if size is not None:
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC)
    return np.array(rgb)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
