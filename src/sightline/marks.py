"""What a person marked in the report, label errors and causes: from the page into RUN/marks.json, and out of the next training.

    {"schema": 1, "run": "<Run.digest>", "split": "dev", "marks": [{"id": "…", "label_error": true, "cause": "texture"}, …]}

A browser writes that file and anybody may have changed it, so nothing of it is used before all of it was looked at. A mark
that says nothing (`"label_error": false`, and no cause) takes an earlier one of the same image back.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .datasets import Dataset
from .diagnosis import LEAST
from .exceptions import RunError, nearest
from .runs import SPLITS, Run, write_json

SCHEMA = 1
MOST_BYTES = 16 * 2**20  # of a file: some hundred thousand marks
SHOWN = 80  # characters of something unknown, in an error


@dataclass(frozen=True)
class Mark:
    """What a person says of an image: that its label is wrong, or why the model is wrong (a key of LEAST), or both."""

    id: str
    label_error: bool = False
    cause: str | None = None

    @property
    def says_something(self) -> bool:
        """Whether it says anything; if not, it takes an earlier mark back."""
        return self.label_error or self.cause is not None

    def to_dict(self) -> dict[str, Any]:
        """The mark as the file has it."""
        said = {"label_error": True} if self.label_error else {}
        return {"id": self.id, **said, **({"cause": self.cause} if self.cause else {})}


@dataclass(frozen=True)
class Marks:
    """The marks of one run's images, at most one an image.

    run: the run's digest.  split: what its images are of, "dev" or "test".  new, changed, kept, removed: after `take`, how many
    images' marks weren't there before, were other ones, stayed as they were, and were taken back.
    """

    run: str
    split: str
    marks: tuple[Mark, ...]
    new: int = 0
    changed: int = 0
    kept: int = 0
    removed: int = 0

    def __len__(self) -> int:
        return len(self.marks)

    @property
    def label_errors(self) -> tuple[str, ...]:
        """The ids of the images whose label is wrong."""
        return tuple(mark.id for mark in self.marks if mark.label_error)

    @property
    def causes(self) -> dict[str, tuple[str, ...]]:
        """The ids of the images that each cause was given to; causes that none was given to are left out."""
        ids = {cause: tuple(mark.id for mark in self.marks if mark.cause == cause) for cause in LEAST}
        return {cause: some for cause, some in ids.items() if some}


def read(path: str | Path) -> Marks:
    """Read a file of marks, the page's or a run's. Raises RunError unless all of it is what the head of this file says."""
    path = Path(path)
    content = _json(path)
    if not isinstance(content, dict) or type(schema := content.get("schema")) is not int:
        raise _bad(path, "it doesn't say its schema")
    if schema > SCHEMA:
        raise RunError(f"{path} was made by a newer Sightline (schema {str(schema)[:SHOWN]}, not {SCHEMA}); upgrade sightline")
    if schema != SCHEMA:
        raise _bad(path, f"there is no schema {str(schema)[:SHOWN]}")
    _refuse_keys(path, content, ("schema", "run", "split", "marks"), "it")
    run, split, given = content.get("run"), content.get("split"), content.get("marks")
    if not isinstance(run, str) or not re.fullmatch("[0-9a-f]{16}", run):
        raise _bad(path, "it doesn't say which run it is of")
    if split not in SPLITS:
        raise _bad(path, f"its split is neither {' nor '.join(SPLITS)}")
    if not isinstance(given, list):
        raise _bad(path, "it has no list of marks")
    marks = tuple(_mark(path, number, one) for number, one in enumerate(given, 1))
    name, most = next(iter(Counter(mark.id for mark in marks).most_common(1)), ("", 0))
    if most > 1:
        raise _bad(path, f"the image {name[:SHOWN]!r} has {most} marks")
    return Marks(run, split, marks)


def of(run: Run) -> Marks:
    """Return what RUN/marks.json says, no marks where there is none. Raises RunError where it is damaged or another run's."""
    path = _home(run)
    if not path.exists():
        return Marks(run.digest, run.judged, ())
    marks = read(path)
    _refuse_strangers(run, marks, path)
    return marks


def take(run: Run, path: str | Path) -> Marks:
    """Add a file's marks to RUN/marks.json; of two marks of one image the later one counts. Return all that there are now.

    Raises RunError, and changes nothing, for a file that isn't right (see `read`), for marks of another run, and for an image
    that the run isn't judged on.
    """
    given = read(path)
    _refuse_strangers(run, given, Path(path))
    before = {mark.id: mark for mark in of(run).marks}
    merged = before | {mark.id: mark for mark in given.marks}
    # In the order of the run's images: the same marks give the same file, whichever came first.
    after = {name: merged[name] for name in run.predictions.ids if name in merged and merged[name].says_something}
    marks = tuple(after.values())
    content = {"schema": SCHEMA, "run": run.digest, "split": run.judged, "marks": [mark.to_dict() for mark in marks]}
    write_json(_home(run), content)
    new, same = len(after.keys() - before.keys()), sum(before.get(name) == mark for name, mark in after.items())
    return Marks(run.digest, run.judged, marks, new, len(after) - new - same, same, len(before.keys() - after.keys()))


def left_out(sources: Iterable[str | Path], data: Dataset) -> tuple[str, ...]:
    """Return the ids of the images that a training on `data` is to be without, sorted: for `Dataset.without`.

    A source is the folder of a run: the label errors that a person confirmed in it, and what it was itself trained without; or
    a run's run.json: what that run was trained without, and nothing else, so that it can be trained again.
    Raises RunError for a source with nothing to leave out, for a run on other data, and for marks on test images: without the
    images that are hard to get right, any figure on the others is too good.
    """
    found: set[str] = set()
    for source in map(Path, sources):
        again = source.name == "run.json" and source.is_file()
        if source.is_file() and not again:
            raise RunError(f"{source} is a file; name the run's folder, after: sightline import RUN {source}")
        run = Run.open(source.parent if again else source)
        _refuse_other_data(run, data)
        ids = run.left_out if again else (*run.left_out, *_confirmed(run))
        if not ids:
            wanted = "was trained with all images" if again else "has no label errors that a person confirmed"
            raise RunError(f"{source} {wanted}; leave out --without, or mark some in its report: sightline import RUN marks.json")
        found.update(ids)
    return tuple(sorted(found))


def _confirmed(run: Run) -> tuple[str, ...]:
    marks = of(run)
    if marks.label_errors and marks.split == "test":
        raise RunError(
            f"the label errors in {run.folder} were marked on test images, and nothing is chosen on these; "
            "train with --dev 0.1 and mark those of its report"
        )
    return marks.label_errors


def _refuse_other_data(run: Run, data: Dataset) -> None:
    was = run.info["data"]
    if data.content_hash != was["hash"] and data.name != was["name"]:  # other --dev or --size: the same ids, another hash
        raise RunError(f"{run.folder} was trained on {was['name']}, not on {data.name}; name runs on the same data")


def _refuse_strangers(run: Run, marks: Marks, path: Path) -> None:
    """Raise RunError unless the marks are of this run and of images that it is judged on."""
    if marks.run != run.digest:
        raise RunError(
            f"{path} has the marks of the run {marks.run}, and {run.folder} is {run.digest}; "
            "give the run whose report they were made in"
        )
    if marks.split != run.judged:
        raise RunError(f"{path} marks {marks.split} images, and {run.folder} is judged on {run.judged}; export the marks again")
    known = set(run.predictions.ids)
    strange = next((mark.id for mark in marks.marks if mark.id not in known), None)
    if strange is not None:
        raise RunError(f"{path} marks {strange[:SHOWN]!r}, no {run.judged} image of {run.folder}; export the marks again")


def _home(run: Run) -> Path:
    return run.folder / "marks.json"


def _json(path: Path) -> Any:
    """What a JSON file says, if it is one, of a size that marks may have, and says nothing twice."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES // 2**20} MiB")
        return json.loads(content.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse_constant)
    except OSError as error:
        raise RunError(f"cannot read {path} ({error.strerror or error}); name the file that the report exported") from None
    except (ValueError, RecursionError) as error:
        raise _bad(path, str(error)) from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it says the same thing twice")
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _mark(path: Path, number: int, given: Any) -> Mark:
    """A mark as the file has it, the `number`th from 1."""
    where = f"mark {number}"
    if not isinstance(given, dict):
        raise _bad(path, f"{where} is no object")
    _refuse_keys(path, given, ("id", "label_error", "cause"), where)
    name, wrong, cause = given.get("id"), given.get("label_error", False), given.get("cause")
    if not isinstance(name, str) or not name:
        raise _bad(path, f"{where} names no image")
    if not isinstance(wrong, bool):
        raise _bad(path, f"{where}: label_error is neither true nor false")
    if cause is not None and (not isinstance(cause, str) or cause not in LEAST):
        raise _bad(path, f"{where}: unknown cause {str(cause)[:SHOWN]!r}; {nearest(str(cause)[:SHOWN], LEAST)}")
    if not {"label_error", "cause"} & given.keys():
        raise _bad(path, f"{where} says nothing of its image")
    return Mark(name, wrong, cause)


def _refuse_keys(path: Path, given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    strange = next((key for key in given if key not in known), None)
    if strange is not None:
        raise _bad(path, f"{what} has an unknown entry {strange[:SHOWN]!r}")


def _bad(path: Path, why: str) -> RunError:
    return RunError(f"{path} is no file of marks ({why}); export it again from the report")
