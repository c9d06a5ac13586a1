"""The run folder: the only contract on disk between training and everything after it.

    RUN/run.json              what the run is; written last, so a folder without it is an unfinished run
    RUN/history.csv           one row an epoch
    RUN/model.safetensors     the weights
    RUN/predictions.parquet   one row an image that the run is judged on: of dev, or of test where nothing was held out
    RUN/test.parquet          the same of test, for a run judged on dev, once the test was opened
    RUN/heatmaps.npz          raw signed maps at layer resolution (made by `explain`)
    RUN/heatmaps.parts/       what a killed `explain` needs to go on; gone when heatmaps.npz is there
    RUN/marks.json            what a person marked in the report (made by `import`)
    RUN/resume/               what a killed run needs to go on; gone when the run is finished
    RUN/figures/, RUN/report.html

Schema 1. Files are written beside their place and renamed, so a reader never sees half a file.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from .exceptions import RunError

if TYPE_CHECKING:
    import torch

    from .datasets import Dataset

SCHEMA = 1
REQUIRED = ("recipe", "data", "normalisation", "results", "device", "seed", "precision", "arithmetic", "versions", "machine")
MAP_ARRAYS = ("raw", "scores", "completeness", "verdicts", "effects")  # of heatmaps.npz: one row an image
MAP_NAMES = ("layer", "method", "precision")
SPLITS = ("test", "dev")  # what a run may be judged on


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, and rename it to `path` when the block ends well.

    Raises RunError for a full disk or a folder that can't be written to; nothing half-written is left.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; free some space or choose another folder") from None
    finally:
        with suppress(OSError):
            part.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with writing(path) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; NaN and infinity are refused."""
    write_text(path, _json(value))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Predictions:
    """What a model said of N images of one split, with K classes.

    ids: N names.  labels, predicted: (N,) int64.  losses: (N,) float32, cross entropy in nats.  probabilities: (N, K) float32.
    margins: (N,) float32, the best wrong class's logit minus the true class's: above 0 on a mistake, below 0 on a right answer.
    """

    ids: tuple[str, ...]
    split: str
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    losses: NDArray[np.float32]
    margins: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_logits(
        cls,
        logits: NDArray[np.float32],
        labels: NDArray[np.int64],
        ids: Sequence[str],
        classes: Sequence[str],
        split: str,
    ) -> Predictions:
        """Derive everything from logits (N, K)."""
        z = logits.astype(np.float64)
        z -= z.max(1, keepdims=True)
        log_probabilities = z - np.log(np.exp(z).sum(1, keepdims=True))
        rows = np.arange(len(labels))
        others = z.copy()
        others[rows, labels] = -np.inf
        return cls(
            tuple(ids),
            split,
            labels,
            z.argmax(1),
            (-log_probabilities[rows, labels]).astype(np.float32),
            (others.max(1) - z[rows, labels]).astype(np.float32),
            np.exp(log_probabilities).astype(np.float32),
            tuple(classes),
        )

    def write(self, folder: Path, name: str = "predictions.parquet") -> None:
        """Write folder/name: id, split, label, predicted, loss, margin and one column `p_<class>` a class."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {
            "id": list(self.ids),
            "split": [self.split] * len(self),
            "label": self.labels,
            "predicted": self.predicted,
            "loss": self.losses,
            "margin": self.margins,
        }
        columns |= {f"p_{name}": self.probabilities[:, i] for i, name in enumerate(self.classes)}
        with writing(folder / name) as part:
            pq.write_table(pa.table(columns), part, compression="zstd")

    @classmethod
    def read(cls, path: Path, classes: Sequence[str]) -> Predictions:
        """Read what `write` wrote."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            column = {name: table.column(name).to_numpy() for name in table.column_names}
            return cls(
                tuple(column["id"]),
                str(column["split"][0]) if len(table) else "test",
                column["label"],
                column["predicted"],
                column["loss"],
                column["margin"],
                np.stack([column[f"p_{name}"] for name in classes], 1),
                tuple(classes),
            )
        except (OSError, pa.ArrowException, KeyError) as error:
            raise RunError(f"cannot read {path} ({error}); train again, or copy the run folder again") from None


@dataclass(frozen=True)
class SavedMaps:
    """What heatmaps.npz holds: T heatmaps of each of N images.

    ids: N names.  targets: T names, such as "predicted", "true" and "margin".  raw: (N, T, h, w) float32, signed, at layer
    resolution.  scores: (N, T) float32, the logits or differences of logits that are explained.  completeness: (N, T)
    float32, the share of the score that the map doesn't account for; NaN where the method's maps don't sum to it.
    verdicts: (N, T) text, and effects: (N, T) float32, as `faithfulness` judged; "" and NaN where it didn't.
    layer, method, precision: names.
    """

    ids: tuple[str, ...]
    targets: tuple[str, ...]
    raw: NDArray[np.float32]
    scores: NDArray[np.float32]
    completeness: NDArray[np.float32]
    verdicts: NDArray[np.str_]
    effects: NDArray[np.float32]
    layer: str
    method: str
    precision: str

    @classmethod
    def read(cls, path: Path) -> SavedMaps:
        """Read what `MapParts.finish` wrote. Raises RunError if it is damaged, or older than this form."""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return cls(
                    tuple(map(str, file["ids"])),
                    tuple(map(str, file["targets"])),
                    *(file[name] for name in MAP_ARRAYS),
                    *(str(file[name]) for name in MAP_NAMES),
                )
        except (OSError, EOFError, ValueError, TypeError, KeyError, BadZipFile) as error:
            raise RunError(f"cannot read {path} ({error}); make it again with: sightline explain {path.parent}") from None


class MapParts:
    """Heatmaps on their way to FOLDER/heatmaps.npz: they wait in FOLDER/heatmaps.parts/ until all are made.

    settings: what the maps depend on, as JSON-ready values. Parts that are there already are kept if they were made with
    equal settings and thrown away otherwise, as always where `settings` is None.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        self._path, self._parts = folder / "heatmaps.npz", folder / "heatmaps.parts"
        self._settings, self._manifest = _json(settings), self._parts / "settings.json"
        known = self._manifest.read_text(encoding="utf-8") if settings is not None and self._manifest.exists() else None
        if known != self._settings:
            shutil.rmtree(self._parts, ignore_errors=True)

    def __len__(self) -> int:
        """How many parts are done."""
        return len(self._files())

    @property
    def names(self) -> dict[str, str]:
        """The layer, the method and the precision of the parts that are done; empty where none is."""
        return {name: str(_member(self._files()[0], name)) for name in MAP_NAMES} if len(self) else {}

    def add(self, arrays: Mapping[str, NDArray[Any]], *, layer: str, method: str, precision: str) -> None:
        """Write the next part. arrays: `MAP_ARRAYS` of the next images."""
        if not len(self):
            write_text(self._manifest, self._settings)
        content: dict[str, Any] = {**arrays, "layer": layer, "method": method, "precision": precision}
        with writing(self._parts / f"{len(self):06}.npz") as part, part.open("wb") as file:
            np.savez(file, **content)

    def finish(self, ids: Sequence[str], targets: Sequence[str]) -> Path:
        """Join the parts into heatmaps.npz, remove them, and return its path; one part at a time is in memory.

        ids: the images' names, in the order of the parts. The same arguments and parts give the same bytes.
        """
        with writing(self._path) as path, ZipFile(path, "w") as archive:
            for name, value in {"ids": list(ids), "targets": list(targets), **self.names}.items():
                array = np.array(value, dtype=str)
                _write_member(archive, name, array.dtype, array.shape, [array])
            for name in MAP_ARRAYS:
                first = _member(self._files()[0], name)
                pieces = (_member(file, name) for file in self._files())
                _write_member(archive, name, first.dtype, (len(ids), *first.shape[1:]), pieces)
        shutil.rmtree(self._parts)
        return self._path

    def _files(self) -> list[Path]:
        return sorted(self._parts.glob("*.npz"))


def _member(path: Path, name: str) -> NDArray[Any]:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        array: NDArray[Any] = file[name]
        return array


def _write_member(
    archive: ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], pieces: Iterable[NDArray[Any]]
) -> None:
    """Write one array of an .npz file, given in pieces along its first axis."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(piece.tobytes())


@dataclass(frozen=True)
class Run:
    """A finished run on disk: `Run.open(folder)`."""

    folder: Path
    info: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open a finished run. Raises RunError if it is missing, unfinished, damaged or made by a newer version."""
        folder = Path(folder)
        path = folder / "run.json"
        try:
            if not folder.is_dir():
                raise RunError(f"there is no run folder {folder}; make one with: sightline train DATA -o {folder}")
            if not path.exists():
                unfinished = (folder / "resume").exists()
                hint = "finish it with the same `sightline train` command" if unfinished else "it has no run.json"
                raise RunError(f"{folder} is not a finished run: {hint}")
            info = json.loads(path.read_text(encoding="utf-8"))
            schema = int(info["schema"])
            missing = [key for key in REQUIRED if key not in info] if schema <= SCHEMA else []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"cannot read {path} ({error}); copy the run folder again") from None
        if schema > SCHEMA:
            raise RunError(f"{folder} was made by a newer Sightline (schema {schema}, not {SCHEMA}); upgrade sightline")
        if missing:
            raise RunError(f"{path} lacks '{missing[0]}'; copy the run folder again")
        return cls(folder, info)

    def _repr_html_(self) -> str:
        """Show the report, or the accuracy and what to call next, in a notebook."""
        from .notebook import of_run

        return of_run(self)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.info["data"]["classes"])

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that tell this run from others, wherever it was copied to, and whether or not test was opened."""
        told = {key: value for key, value in self.info.items() if key != "test_opened"}
        return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]

    @property
    def left_out(self) -> tuple[str, ...]:
        """The ids of the images that its training and its dev images were without."""
        return tuple(self.info["data"].get("without", ()))

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """The rows of history.csv, one an epoch, keys as `history_columns` gives them."""
        return read_history(self.folder / "history.csv")

    @cached_property
    def predictions(self) -> Predictions:
        """What the final model said of the images that the run is judged on: those of dev, or of test."""
        return Predictions.read(self.folder / "predictions.parquet", self.classes)

    @property
    def judged(self) -> str:
        """What the run is judged on: "dev", or "test" where nothing was held out of the training images."""
        return "dev" if self.info["data"].get("dev") else "test"

    @property
    def heatmaps(self) -> SavedMaps | None:
        """The saved heatmaps, or None where `explain` hasn't made any."""
        path = self.folder / "heatmaps.npz"
        return SavedMaps.read(path) if path.exists() else None

    def dataset(self, data_dir: Path | None = None) -> Dataset:
        """Load the data that the run was trained on. Raises DataError where it isn't found, RunError where it has changed."""
        from .datasets import load

        was = self.info["data"]
        options = {key: was[key] for key in ("size", "skip_bad", "seed")}
        data = load(was["name"], data_dir=data_dir, **options, dev=was.get("dev", 0.0))
        self.check(data, left_out=False)
        return data.without(self.left_out)

    def check(self, data: Dataset, *, left_out: bool = True) -> None:
        """Raise RunError unless `data` is what the run was trained on.

        left_out: whether the same images must be left out of it; who uses its test images alone needn't care.
        """
        was = self.info["data"]
        if data.content_hash != was["hash"]:
            raise RunError(
                f"the data set {data.name} isn't what {self.folder} was trained on ({len(data.train)} + {len(data.test)} images, "
                f"{was['n_train']} + {was['n_test']} then; contents differ); bring the old one back or train again"
            )
        if left_out and (differ := set(data.left_out).symmetric_difference(self.left_out)):
            raise RunError(
                f"{self.folder} was trained without {len(self.left_out)} images, and {data.name} is given without "
                f"{len(data.left_out)}: they differ in {min(differ)!r}; load it as the run did: run.dataset()"
            )

    def model(self) -> torch.nn.Module:
        """Build the run's model with its final weights, in evaluation mode, on the CPU; a factory of your own is imported."""
        from .models import build

        name, width = self.info["recipe"]["model"], self.info["recipe"].get("width", 1.0)
        self._refuse_code_inside(name)
        model = build(name, classes=len(self.classes), width=width)
        read_weights(self.folder / "model.safetensors", model)
        return model.eval()

    def _refuse_code_inside(self, name: str) -> None:
        """A run may come from anybody: one that names a factory must not bring the factory's file along."""
        parts = name.partition(":")[0].split(".") if ":" in name else []
        places = [place.joinpath(*parts[: i + 1]) for place in (Path.cwd(), *map(Path, sys.path)) for i in range(len(parts))]
        for path in (*places, *(place.with_name(f"{place.name}.py") for place in places)):
            if path.exists() and path.resolve().is_relative_to(self.folder.resolve()):
                raise RunError(
                    f"{self.folder} names a model in its own folder, '{name}'; move that file elsewhere if you trust it"
                )


def open_seeds(folder: str | Path) -> list[Run]:
    """Open a run, or all runs that lie directly in a folder, in the order of their names: the seeds of one recipe.

    Raises RunError where there is none, or one that is no finished run.
    """
    folder = Path(folder)
    inside = sorted(path.parent for path in folder.glob("*/run.json")) if not (folder / "run.json").exists() else []
    return [Run.open(path) for path in inside or [folder]]


def history_columns(judged: str) -> tuple[str, ...]:
    """The columns of history.csv where a run is judged on "dev" or "test"."""
    return ("epoch", "lr", "train_loss", "train_accuracy", f"{judged}_loss", f"{judged}_accuracy", "seconds")


def judged_on(row: Mapping[str, float]) -> str:
    """What a row of history.csv was judged on: "dev" or "test"."""
    return next(split for split in SPLITS if f"{split}_loss" in row)


def read_history(path: Path) -> list[dict[str, float]]:
    """Read a history.csv: one row of numbers an epoch."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns = tuple(reader.fieldnames or ())
            if columns not in map(history_columns, SPLITS):
                raise ValueError("its first line doesn't name the columns")
            return [{key: float(row[key]) for key in columns} for row in reader]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"cannot read {path} ({error}); copy the run folder again") from None


def write_history(folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write history.csv whole; numbers are written so that reading gives the same floats."""
    with writing(folder / "history.csv") as part, part.open("w", encoding="utf-8", newline="") as file:
        columns = history_columns(judged_on(rows[0]))
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: repr(row[key]) for key in columns} for row in rows)


def save_state(folder: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Write what a killed run needs, as one file so that it is always consistent."""
    _save(tensors, folder / "resume" / "state.safetensors", {"state": json.dumps(state)})


def load_state(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Read what `save_state` wrote, or None where there is nothing. Raises RunError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    path = folder / "resume" / "state.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["state"])  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"cannot read {path} ({error}); delete {folder} to start again") from None


def write_weights(folder: Path, model: torch.nn.Module) -> None:
    """Write folder/model.safetensors."""
    _save(model.state_dict(), folder / "model.safetensors", {})


def read_weights(path: Path, model: torch.nn.Module) -> None:
    """Put the weights that `write_weights` wrote into `model`. Raises RunError if they are damaged or another model's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read the weights {path} ({error}); copy the run folder again") from None
    except RuntimeError as error:
        mismatch = textwrap.shorten(str(error).splitlines()[-1], 100, placeholder=" …")
        why = "they are of another model, or of this one in another version of Sightline; train it again"
        raise RunError(f"the weights {path} don't fit the model ({mismatch}): {why}") from None


def _save(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(path, save(copies, metadata))


def prepare(folder: Path) -> None:
    """Raise RunError unless `folder` may be trained into: never over a finished run, nor over files of another kind."""
    try:
        if (folder / "run.json").exists():
            raise RunError(f"{folder} is a finished run and is never overwritten; choose another -o, or delete it")
        strangers = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
        above = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        writable = above.is_dir() and os.access(above, os.W_OK)
    except OSError as error:
        raise RunError(f"cannot use {folder} as a run folder: {error.strerror}; choose another -o") from None
    if strangers and strangers != ["resume"] and not (folder / "resume" / "state.safetensors").exists():
        raise RunError(f"{folder} holds other files ({strangers[0]}); choose an empty or new folder with -o")
    if not writable:
        raise RunError(f"cannot write to {above}; choose another -o")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training into `folder`; the operating system lets go of it when this one dies.

    Raises RunError where another process trains into it. What is still empty at the end is taken away.
    """
    path = folder / "resume" / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}; choose another -o") from None
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # not on Windows: there two processes must be kept apart by their user
            pass
        except OSError:
            raise RunError(f"another process is training into {folder}; wait for it, or choose another -o") from None
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)
                path.parent.rmdir()
                folder.rmdir()


def count_opening(run: Run) -> Run:
    """Write into run.json that the test set was opened once more for this run, and return the run as it now is."""
    info = Run.open(run.folder).info  # as it is now: others may have counted since
    write_json(run.folder / "run.json", {**info, "test_opened": int(info.get("test_opened", 0)) + 1})
    return Run.open(run.folder)


def finish(folder: Path, info: Mapping[str, Any]) -> Run:
    """Seal the run: write run.json, then drop what was needed for resuming."""
    write_json(folder / "run.json", {"schema": SCHEMA, **info})
    shutil.rmtree(folder / "resume", ignore_errors=True)
    return Run.open(folder)
