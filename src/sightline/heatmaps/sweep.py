"""Heatmaps of many images: of a run's mistakes, to RUN/heatmaps.npz, and of any image files, to pictures."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..allocation import kept_memory
from ..exceptions import DataError, RecipeError, SightlineError, nearest
from ..imagefiles import cut_out, image_files, original, read_images, readable
from ..mistakes import top_mistakes
from ..models import Normalise, best_device, to_device
from ..runs import MAP_ARRAYS, MapParts, Predictions, Run, SavedMaps, write_bytes, writing
from .attributions import method_of
from .batch import Method
from .drawing import fitted, pictures, sheet
from .engine import Heatmaps, Maps
from .methods import METHODS
from .targets import Margin, Target, parse

if TYPE_CHECKING:
    from ..datasets import Dataset, Split

TARGETS = ("predicted", "true", "margin")  # of a run's mistakes, in the order in which they are saved
SHEET_ROWS = 50  # files in sheet.png: more would be a picture that no viewer opens
SIDE = 192  # pixels of a picture in a sheet
COLUMNS = 7  # pictures in a row of `compare_methods`
POOL = 64  # test images, spread over all, from which judging takes patches
JUDGED = 8  # images that are judged between two reports of progress

Item = TypeVar("Item")
Progress = Callable[[int, int], None]


class Judge(Protocol):
    """`faithfulness.judge`, which stands above this module: N verdicts, and deletion effects with a mean (N, fills)."""

    def __call__(
        self, model: nn.Module, images: Tensor, raw: NDArray[np.float32], cotangents: Tensor, *, pool: Tensor
    ) -> Any: ...


class Explained(NamedTuple):
    """What was found for one image file.

    confidence: of the predicted class, a fraction.  scores: one a target, in logits.  completeness: one a target, the share of
    the score that the map doesn't account for, NaN where the method's maps don't sum to it.  picture: the overlays.
    """

    file: str
    predicted: str
    confidence: float
    scores: tuple[float, ...]
    completeness: tuple[float, ...]
    picture: Path


class Explanations(NamedTuple):
    """What `explain_files` found: a row for each image, the files that could not be read, and what it wrote."""

    rows: list[Explained]
    unreadable: list[str]
    heatmaps: Path
    sheet: Path


def explain(
    run: Run,
    data: Dataset | None = None,
    *,
    layer: str | Sequence[str] = "auto",
    method: str = "gradcam",
    fuse: str = "mean",
    precision: str = "fp32",
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    batch_size: int = 128,
    trust: int = 0,
    judge: Judge | None = None,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Write RUN/heatmaps.npz and return its path: for each mistake the maps of its predicted and true class, and of the margin.

    The classes are those of the predictions on disk, the mistakes with the highest losses come first; `run.heatmaps` reads
    the file. Memory is that of one batch. What a killed call has done is kept in RUN/heatmaps.parts/: the same call goes on
    from there, one with other settings starts anew.

    data: the run's data set, loaded by its name if not given.  method: its name, "captum:NAME" for captum's; beside Grad-CAM
    a margin is by gradient × activation (HiResCAM), whose sum can be held against it.  layer, fuse, precision, aug_smooth,
    eigen_smooth: see `Heatmaps`.  judge: `faithfulness.judge`, which then judges the maps of the first `trust` mistakes.
    `progress(done, total)` is called after each batch.

    Raises RunError for other data than the run's, RecipeError and DataError as `Heatmaps` does.
    """
    if data is None:
        data = run.dataset()
    run.check(data)
    predictions, wrong, (_, judged) = run.predictions, top_mistakes(run.predictions), data.judged
    place = {name: i for i, name in enumerate(judged.ids)}
    targets = TARGETS[:2] if method == "finercam" else TARGETS  # whose map is a comparison with other classes already
    layers = [layer] if isinstance(layer, str) else list(layer)
    settings: dict[str, Any] = {"layers": layers, "method": method, "fuse": fuse, "precision": precision}
    smooth = [aug_smooth, eigen_smooth]
    settings |= {"smooth": smooth, "batch_size": batch_size, "trust": trust if judge else 0}
    parts = MapParts(run.folder, {**settings, "model": _fingerprint(run)})
    precision = parts.names.get("precision", precision)  # what "auto" chose for the first part holds for the others
    with _opened(run, layer, precision, batch_size) as (model, heatmaps, normalised):
        signed = [word == "margin" for word in targets]
        compute = _computing(heatmaps, _methods(method, signed), fuse, aug_smooth, eigen_smooth)
        pool = normalised(judged.images[:: -(-len(judged) // POOL)])
        shown = wrong if len(wrong) else np.arange(1)  # an image of which nothing is kept tells the layer and the resolution
        for start in range(len(parts) * batch_size, len(shown), batch_size):
            rows = shown[start : start + batch_size]
            images = normalised(judged.images[[place[predictions.ids[i]] for i in rows]])
            predicted, true = predictions.predicted[rows], predictions.labels[rows]
            wanted = _spread((predicted, true, Margin(predicted, true))[: len(targets)], len(rows))
            maps = compute(images, wanted)
            arrays = _arrays(maps)
            if judge is not None:
                for i in range(0, min(trust - start, len(rows)), JUDGED):
                    some = slice(i, min(i + JUDGED, trust - start))
                    _judge_into(arrays, some, judge, model, images, _cotangents(wanted, maps), pool)
                    progress(start + i, len(wrong))
            parts.add({name: array[: len(wrong) - start] for name, array in arrays.items()}, **_names(heatmaps, maps, smooth))
            progress(min(start + batch_size, len(wrong)), len(wrong))
    return parts.finish([predictions.ids[i] for i in wrong], targets)


def explain_images(
    run: Run,
    images: Split,
    predictions: Predictions,
    ids: Sequence[str],
    *,
    batch_size: int = 128,
    progress: Progress = lambda done, total: None,
) -> SavedMaps:
    """Return the maps that `explain` makes by default, of any images: nothing is written, nothing is judged.

    images: those of `predictions`, found by id.  ids: of the images wanted. The margin of a right answer is that of the next
    best class over it.
    """
    place, row = ({name: i for i, name in enumerate(some)} for some in (images.ids, predictions.ids))
    done: dict[str, list[NDArray[Any]]] = {}
    names: dict[str, Any] = {"layer": "", "method": "", "precision": "fp32"}
    with _opened(run, "auto", "fp32", batch_size) as (_, heatmaps, normalised):
        compute = _computing(
            heatmaps, _methods("gradcam", [word == "margin" for word in TARGETS]), "mean", aug=False, eigen=False
        )
        for start in range(0, len(ids), batch_size):
            some = ids[start : start + batch_size]
            rows = [row[name] for name in some]
            predicted, true = predictions.predicted[rows], predictions.labels[rows]
            others = predictions.probabilities[rows].copy()
            others[np.arange(len(rows)), true] = -1
            maps = compute(
                normalised(images.images[[place[name] for name in some]]),
                _spread((predicted, true, Margin(others.argmax(1), true)), len(rows)),
            )
            for key, array in _arrays(maps).items():
                done.setdefault(key, []).append(array)
            names = _names(heatmaps, maps, [False, False])
            progress(min(start + batch_size, len(ids)), len(ids))
    nothing = np.zeros((0, len(TARGETS), 1, 1), np.float32)
    arrays: dict[str, Any] = {key: np.concatenate(done[key]) if done else nothing for key in MAP_ARRAYS}
    return SavedMaps(ids=tuple(ids), targets=TARGETS, **arrays, **names)


def explain_files(
    run: Run,
    paths: Iterable[str | Path],
    out: Path,
    *,
    targets: Sequence[str] = ("predicted",),
    layer: str | Sequence[str] = "auto",
    method: str = "gradcam",
    fuse: str = "mean",
    precision: str = "fp32",
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    batch_size: int = 32,
    progress: Progress = lambda done, total: None,
) -> Explanations:
    """Explain image files of any size: write OUT/NUMBER-NAME.png for each, OUT/heatmaps.npz and OUT/sheet.png.

    paths: files, and folders, of which all images at any depth are meant. They are read as `datasets.load` reads a folder's,
    and brought to the size of the run's images like there: the short side resized, the centre cut out. The pictures are as
    large as the files, one overlay beside the other; what the model doesn't see of an image is pale.

    targets: "predicted", a class's name or "true:NAME" for a map of it; "margin:NAME,NAME" for the difference of two, and
    "margin" for that between the predicted and the true class, or the second best where no "true:NAME" is among the targets.

    Files that can't be read are left out and named in the result. The other arguments are those of `explain`.

    Raises DataError where no file can be read, RecipeError for unknown classes, which names the nearest, or if OUT is a run's
    folder, whose heatmaps.npz is its mistakes'.
    """
    if (out / "run.json").exists():
        raise RecipeError(f"{out} is a run's folder and has heatmaps of its own: choose another for those of the files")
    found, wanted, signed = image_files(paths), _targets(targets, run.classes), [_is_margin(word) for word in targets]
    parts, rows, unreadable = MapParts(out), list[Explained](), list[str]()
    gallery: list[list[NDArray[np.uint8]]] = []
    with _opened(run, layer, precision, batch_size) as (_, heatmaps, normalised):
        compute = _computing(heatmaps, _methods(method, signed), fuse, aug_smooth, eigen_smooth)
        for start in range(0, len(found), batch_size):
            files, images_NHWC, bad = read_images(found[start : start + batch_size], *run.info["data"]["shape"][:2])
            unreadable += map(readable, bad)
            if files:
                maps = compute(normalised(images_NHWC), _spread(wanted, len(files)))
                parts.add(_arrays(maps), **_names(heatmaps, maps, [aug_smooth, eigen_smooth]))
                new = _rows(run, files, maps, out, len(rows))
                for file, raw, row in zip(files, maps.raw, new, strict=True):
                    shown = _draw(file, raw, signed, images_NHWC.shape[1:3], row.picture)
                    gallery += [shown] * (len(gallery) < SHEET_ROWS)
                rows += new
            progress(min(start + batch_size, len(found)), len(found))
    if not rows:
        some = readable(found[0]) if found else ", ".join(map(str, paths))
        raise DataError(f"no image can be read, such as {some}; give PNG, JPEG, WebP, BMP or GIF files, or folders of them")
    path = out / "sheet.png"
    write_bytes(path, sheet(gallery, [_titles(row, targets) for row in rows[:SHEET_ROWS]], SIDE))
    return Explanations(rows, unreadable, parts.finish([row.file for row in rows], targets), path)


def compare_methods(
    run: Run,
    file: str | Path,
    path: Path,
    *,
    targets: Sequence[str] = ("predicted", "margin"),
    layer: str | Sequence[str] = "auto",
    fuse: str = "mean",
    precision: str = "fp32",
    progress: Progress = lambda done, total: None,
) -> dict[str, str]:
    """Write a PNG of one image file under all methods, a row a target; return the methods that can't explain it, and why.

    The arguments are those of `explain_files`. Each method has its own scale: the methods' units differ.
    """
    whole, wanted = original(Path(file)), _targets(targets, run.classes)
    image = cut_out(whole, *run.info["data"]["shape"][:2])
    rows = [[whole] for _ in targets]
    titles = [[target] for target in targets]
    failed = {}
    with _opened(run, layer, precision, 1) as (_, heatmaps, normalised):
        images = normalised(image[None])
        for i, method in enumerate(METHODS):
            for row, title, word, target in zip(rows, titles, targets, wanted, strict=True):
                try:
                    raw = heatmaps(images, _spread([target], 1), method, fuse=fuse).raw[0]
                except SightlineError as error:
                    failed[f"{method} of {word}"] = str(error)
                else:
                    row.append(_over(whole, raw, [_is_margin(word)], image.shape[:2])[0])
                    title.append(method)
            progress(i + 1, len(METHODS))
    if all(len(row) == 1 for row in rows):
        raise RecipeError(next(iter(failed.values())))
    write_bytes(path, sheet(_wrapped(rows), _wrapped(titles), SIDE))
    return failed


@contextmanager
def _opened(
    run: Run, layer: str | Sequence[str], precision: str, batch_size: int
) -> Iterator[tuple[nn.Module, Heatmaps, Callable[[NDArray[np.uint8]], Tensor]]]:
    """Open the run's model on the best device, and give it with what turns images (N, H, W, 3) uint8 into its input."""
    device = best_device()
    normalise = Normalise(run.info["normalisation"]["mean"], run.info["normalisation"]["std"], device)
    model = run.model().to(device)
    with kept_memory(), Heatmaps(model, layer, precision=precision, batch_size=batch_size) as heatmaps:
        yield model, heatmaps, lambda images_NHWC: normalise(to_device(images_NHWC, device))


def _computing(heatmaps: Heatmaps, methods: Sequence[Method], fuse: str, aug: bool, eigen: bool) -> Callable[[Tensor, Any], Maps]:
    return lambda images, targets: heatmaps(images, targets, methods, aug_smooth=aug, eigen_smooth=eigen, fuse=fuse)


def _methods(method: str, signed: Sequence[bool]) -> list[Method]:
    """Return each target's method: beside Grad-CAM, a margin is by gradient × activation, whose sum can be held against it."""
    chosen = method_of(method)
    return ["hirescam" if margin and chosen == "gradcam" else chosen for margin in signed]


def _arrays(maps: Maps) -> dict[str, NDArray[Any]]:
    """Return what heatmaps.npz keeps of a batch, of which nothing is judged yet."""
    return {
        "raw": maps.raw,
        "scores": maps.scores,
        "completeness": maps.completeness,
        "verdicts": np.full(maps.scores.shape, "", "<U16"),
        "effects": np.full(maps.scores.shape, np.nan, np.float32),
    }


def _cotangents(targets: Any, maps: Maps) -> list[Tensor]:
    """Return each target's gradient with respect to the logits, (N, classes)."""
    logits = torch.from_numpy(maps.logits)
    wanted, _ = parse(targets, len(logits), labels=False)
    return [target.settle(logits, None).cotangent(logits) for target in wanted]


def _judge_into(
    arrays: dict[str, NDArray[Any]],
    some: slice,
    judge: Judge,
    model: nn.Module,
    images: Tensor,
    cotangents: Sequence[Tensor],
    pool: Tensor,
) -> None:
    """Judge the maps of some images of a batch, a target after the other; a map's effect is that of its least favourable fill."""
    for t, cotangent in enumerate(cotangents):
        trust = judge(model, images[some], arrays["raw"][some, t], cotangent[some].to(images.device), pool=pool)
        arrays["verdicts"][some, t] = trust.verdicts
        arrays["effects"][some, t] = trust.deletion.mean.min(1)


def _names(heatmaps: Heatmaps, maps: Maps, smooth: Sequence[bool]) -> dict[str, str]:
    """Say in words how the maps were made."""
    ways = [word for word, on in zip(("flip and scale smoothing", "eigen smoothing"), smooth, strict=True) if on]
    both = maps.method == "gradcam+hirescam"
    method = "Grad-CAM, the margin by HiResCAM" if both else METHODS.get(maps.method, maps.method).partition(": ")[0]
    return {"layer": maps.layer, "method": ", ".join([method, *ways]), "precision": heatmaps.precision}


def _fingerprint(run: Run) -> str:
    """Return what tells a run from another that was trained in its folder."""
    return hashlib.sha256(repr((run.info["results"], run.info["data"]["hash"], run.predictions.ids)).encode()).hexdigest()


# --- targets ---


def _targets(words: Sequence[str], classes: Sequence[str]) -> list[Target]:
    """Return what the words of `explain_files` mean. Raises RecipeError for unknown classes."""
    true = [_class(word[5:], classes) for word in words if word.startswith("true:")]
    return [_target(word, classes, true) for word in words]


def _target(word: str, classes: Sequence[str], true: Sequence[int]) -> Target:
    kind, _, rest = word.partition(":")
    if word == "predicted":
        return word
    if word == "margin":
        return Margin("predicted", true[0]) if true else _lead
    if word == "true":
        raise RecipeError("the true class of a file isn't known: say it, as in true:NAME")
    if kind == "margin":
        return Margin(*(_class(name, classes) for name in _pair(rest, classes)))
    return _class(rest if kind == "true" else word, classes)


def _is_margin(word: str) -> bool:
    return word.partition(":")[0] == "margin"


def _lead(logits: Tensor) -> Tensor:
    """The margin of the predicted class over the second best."""
    best = logits.topk(2, 1).values
    return best[:, 0] - best[:, 1]


def _pair(text: str, classes: Sequence[str]) -> tuple[str, str]:
    """Split "a,b" into two names, at the comma that leaves two classes: names may hold commas too."""
    pairs = [(text[:i], text[i + 1 :]) for i, character in enumerate(text) if character == ","]
    if not pairs:
        raise RecipeError(f"a margin is between two classes, as in margin:{classes[0]},{classes[1]}, not 'margin:{text}'")
    return next((pair for pair in pairs if set(pair) <= set(classes)), pairs[0])


def _class(name: str, classes: Sequence[str]) -> int:
    if name not in classes:
        raise RecipeError(f"unknown class '{name}': {nearest(name, classes)}")
    return classes.index(name)


def _spread(targets: Sequence[Any], n: int) -> Any:
    """Return targets, one for all of `n` images or classes (N,), in the form that means T maps an image."""
    if all(isinstance(target, (int, np.ndarray)) for target in targets):
        return np.stack([np.broadcast_to(target, n) for target in targets], 1)
    return tuple(targets)


# --- files ---


def _rows(run: Run, files: Sequence[Path], maps: Maps, out: Path, done: int) -> list[Explained]:
    """Return the rows of the result for some files, of which `done` others came before."""
    probabilities = np.exp(maps.logits - maps.logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    return [
        Explained(
            readable(file),
            run.classes[maps.logits[i].argmax()],
            float(probabilities[i].max()),
            tuple(maps.scores[i].tolist()),
            tuple(maps.completeness[i].tolist()),
            out / f"{done + i + 1:04}-{_plain(file.stem)}.png",
        )
        for i, file in enumerate(files)
    ]


def _plain(stem: str) -> str:
    """Return what of a name any file system takes."""
    return re.sub(r"[^\w .()-]", "_", stem)[:40]


# --- pictures of files ---


def _over(
    original_HWC: NDArray[np.uint8], raw: NDArray[np.float32], signed: Sequence[bool], size: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Draw maps (T, h, w) over an image at its own size, (T, H, W, 3); what an input of `size` doesn't show of it is pale."""
    rows, columns = _seen(original_HWC.shape[:2], size)
    drawn = np.repeat((original_HWC // 4 + 191)[None], len(raw), 0)
    drawn[:, rows, columns] = pictures(raw[None], original_HWC[None, rows, columns], signed)[0]
    return drawn


def _seen(whole: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the rows and columns that are left of an image of `whole` (H, W) when it is fitted to `size` (H, W)."""
    scale = min(w / s for w, s in zip(whole, size, strict=True))
    kept = [max(1, round(s * scale)) for s in size]
    starts = [(w - k) // 2 for w, k in zip(whole, kept, strict=True)]
    rows, columns = (slice(start, start + k) for start, k in zip(starts, kept, strict=True))
    return rows, columns


def _titles(row: Explained, targets: Sequence[str]) -> list[str]:
    """Return the titles of a row of the sheet: the file, then what each map shows."""
    words = [f"predicted {row.predicted}" if target == "predicted" else target for target in targets]
    return [row.file.rpartition("/")[2], *words]


def _wrapped(rows: Sequence[list[Item]]) -> list[list[Item]]:
    """Break rows that are too long for a screen."""
    return [row[start : start + COLUMNS] for row in rows for start in range(0, len(row), COLUMNS)]


def _draw(
    file: Path, raw: NDArray[np.float32], signed: Sequence[bool], size: tuple[int, ...], path: Path
) -> list[NDArray[np.uint8]]:
    """Write a file's overlays, one beside the other, as a PNG, and return it and them as small as a sheet shows them."""
    whole = original(file)
    drawn = _over(whole, raw, signed, size)
    with writing(path) as part:
        Image.fromarray(np.concatenate(drawn, 1)).save(part, "PNG")
    return [fitted(picture, SIDE) for picture in (whole, *drawn)]
