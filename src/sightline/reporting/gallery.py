"""The gallery: which images the page shows, their pictures as sprite sheets, and their heatmaps as raw grids.

`templates/report.js` reads what `payload` says and paints: a picture is cut out of its sheet, its heatmap is a grid of a few
cells that the page scales up, colours and blends as `heatmaps.drawing` does. So opacity, threshold, colour map, class and
sharpness change at once, and a heatmap takes 2 bytes a cell instead of a picture.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..runs import Predictions, SavedMaps
from .pictures import encoded, joined, tile_of, uri

if TYPE_CHECKING:
    from ..datasets import Split

SCHEMA = 1  # of the payload
EXACT = 64  # pixels: up to this side pictures are shown with their own pixels
TILES = 400  # pictures of a sheet: 20 × 20, below the 16,383 pixels that a WebP may have
COLUMNS = 20
CELLS = 14  # of a heatmap's side: finer grids are averaged down to at most so many
BUDGET = 2_400_000  # bytes of all sheets; base64 makes a third more of them
FORMS = ((128, 75), (112, 65), (96, 55), (64, 50), (48, 40))  # longest side and quality of pictures that aren't shown exactly
FULL = 32767  # of int16: the largest value among an image's maps


@dataclass(frozen=True)
class Said:
    """What one run said of the images, and where it looked; `maps` may be None, or lack some of the images."""

    predictions: Predictions
    maps: SavedMaps | None


def choose(strata: NDArray[np.int64], losses: NDArray[np.floating[Any]], n: int, first: Sequence[int] = ()) -> NDArray[np.int64]:
    """Return the positions of at most `n` images, so that every stratum is seen: all strata's worst, then their second worst, …

    strata: (N,), such as the cell of the confusion matrix.  losses: (N,).  first: positions that are shown in any case.
    Among images of the same rank the highest loss comes first. Returned in the order of the losses, the highest first.
    """
    order = np.argsort(-losses, kind="stable")
    rank = np.empty(len(order), np.int64)
    seen: dict[int, int] = {}
    for i in order:
        rank[i] = seen.get(int(strata[i]), 0)
        seen[int(strata[i])] = int(rank[i]) + 1
    rank[list(first)] = -1
    chosen = np.lexsort((-losses, rank))[:n]
    return chosen[np.argsort(-losses[chosen], kind="stable")]


def payload(
    now: Said,
    rows: NDArray[np.int64],
    images: Split | None,
    *,
    run: str,
    total: int,
    before: Said | None = None,
    names: Sequence[str] = (),
    causes: Mapping[str, Sequence[str]] | None = None,
    marking: Sequence[str] = (),
    kinds: Sequence[str] | None = None,
    surest: Mapping[str, float] | None = None,
    weight: float = 0.725,
) -> dict[str, Any]:
    """Return what the page's script needs to show `rows` of the predictions, JSON-ready.

    images: of all predictions, found by id; None, or an image that is missing: shown as missing.  run: `Run.digest`, for marks.
    total: how many images there would be to show.  before: what another run said of the same images.  names: of the two runs.
    causes: of the diagnosis, id → ids of the mistakes that it explains.  marking: ids of causes that a person can choose, by
    the keys 1 to 9.  kinds: of each row, as in `mistakes.kinds`.  surest: id → how reliably it was fixed or broken.  weight:
    the image's share where a heatmap lies over it.
    """
    said, ids = now.predictions, [now.predictions.ids[i] for i in rows]
    flip = None if before is None else _flips(before.predictions, said, rows)
    groups = causes or {}
    members = {key: set(some) for key, some in groups.items()}
    sheets, tile, there, exact = sprites(images, ids)
    return {
        "schema": SCHEMA,
        "run": run,
        "split": said.split,
        "classes": list(said.classes),
        "total": total,
        "names": list(names),
        "sheets": sheets,
        "tile": list(tile),
        "exact": exact,
        "columns": COLUMNS,
        "tiles": TILES,
        "causes": list(groups),
        "marking": list(marking),
        "kinds": list(dict.fromkeys(kinds)) if kinds else [],
        "weight": weight,
        "colours": colours() if now.maps is not None else {},
        "items": {
            "id": ids,
            "true": said.labels[rows].tolist(),
            "missing": [not found for found in there],
            "causes": [[k for k, key in enumerate(groups) if name in members[key]] for name in ids],
            **({"kind": [list(dict.fromkeys(kinds)).index(kind) for kind in kinds]} if kinds else {}),
            **({"flip": flip} if flip is not None else {}),
            **({"surest": [round(surest.get(name, 0.0), 4) for name in ids]} if surest is not None else {}),
        },
        "now": _said(now, rows),
        **({"before": _said(before, rows)} if before is not None else {}),
    }


def sprites(images: Split | None, ids: Sequence[str]) -> tuple[list[str], tuple[int, int], list[bool], bool]:
    """Return sheets as data: URIs, a tile's width and height, which images there are, and whether pixels are the images' own.

    Small images are kept as they are, without loss; larger ones, and small ones that take too much, are made smaller, in steps,
    until all sheets together take at most `BUDGET` bytes.
    """
    place = {} if images is None else {name: i for i, name in enumerate(images.ids)}
    there = [name in place for name in ids]
    if images is None or not any(there):
        return [], (EXACT, EXACT), there, False
    pixels = images.images
    cells = [pixels[place[name]] if name in place else None for name in ids]
    longest = max(pixels.shape[1:3])
    for side, quality in [(longest, 0)] * (longest <= EXACT) + list(FORMS):
        tile = tile_of(pixels, side)
        files = [encoded(joined(cells[start : start + TILES], tile, COLUMNS), quality) for start in range(0, len(cells), TILES)]
        if sum(map(len, files)) <= BUDGET:
            break
    return [uri(file) for file in files], tile, there, longest <= EXACT and max(tile) == longest


def colours(names: Sequence[str] = ("inferno", "viridis", "cividis")) -> dict[str, str]:
    """Return colour maps as base64 of 256 × 3 bytes, by name."""
    import matplotlib

    tables = {name: matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3] for name in names}
    return {name: base64.b64encode(np.ascontiguousarray(table).tobytes()).decode() for name, table in tables.items()}


def grids(raw: NDArray[np.float32], signed: Sequence[bool]) -> tuple[NDArray[np.int16], tuple[int, int]]:
    """Return maps (N, T, h, w) as whole numbers of −32,767 to 32,767, at most `CELLS` cells a side, and those cells.

    Signed maps share one scale in each image, and so do the others: `FULL` is the largest absolute value among them.
    """
    height, width = raw.shape[2:]
    cells = (min(height, CELLS), min(width, CELLS))
    small = raw if cells == (height, width) else _averaged(raw, cells)
    whole = np.zeros(small.shape, np.int16)
    kind = np.array(signed, bool)
    for some in (kind, ~kind):
        if some.any() and len(raw):
            peak = np.abs(small[:, some]).max((1, 2, 3), keepdims=True)
            whole[:, some] = np.round(FULL * small[:, some] / np.where(peak > 0, peak, 1))
    return whole, cells


def _averaged(raw: NDArray[np.float32], cells: tuple[int, int]) -> NDArray[np.float32]:
    """Average maps (…, h, w) down to fewer cells, each by the area that it covers."""
    weights = [_shares(old, new) for old, new in zip(raw.shape[-2:], cells, strict=True)]
    averaged: NDArray[np.float32] = weights[0] @ raw @ weights[1].T
    return averaged


def _shares(old: int, new: int) -> NDArray[np.float32]:
    """Return (new, old): the share of each old cell in each new one; rows sum to 1."""
    edges = np.arange(new + 1) * old / new
    low, high = np.maximum(edges[:-1, None], np.arange(old)), np.minimum(edges[1:, None], np.arange(old) + 1)
    shares: NDArray[np.float32] = (np.maximum(high - low, 0) * new / old).astype(np.float32)
    return shares


def _said(said: Said, rows: NDArray[np.int64]) -> dict[str, Any]:
    """What one run said of some rows."""
    predictions, count = said.predictions, np.arange(len(rows))
    probabilities = predictions.probabilities[rows]
    chosen = predictions.predicted[rows]
    values = {
        "confidence": probabilities[count, chosen],
        "p_true": probabilities[count, predictions.labels[rows]],
        "loss": predictions.losses[rows],
        "margin": predictions.margins[rows],
    }
    rounded = {key: [round(float(value), 6) for value in some] for key, some in values.items()}
    return {"predicted": chosen.tolist(), **rounded, **_maps(said.maps, [predictions.ids[i] for i in rows])}


def _maps(saved: SavedMaps | None, ids: Sequence[str]) -> dict[str, Any]:
    """The maps of some images: `mapped` says which images have some, `maps` holds those of these, little-endian int16."""
    place = {} if saved is None else {name: i for i, name in enumerate(saved.ids)}
    rows = [place[name] for name in ids if name in place]
    if saved is None or not rows:
        return {"targets": [], "grid": [0, 0], "mapped": [], "maps": "", "trust": [], "effect": []}
    signed = [target == "margin" for target in saved.targets]
    whole, cells = grids(saved.raw[rows], signed)
    judged = bool(saved.verdicts[rows].any())
    return {
        "targets": list(saved.targets),
        "grid": list(cells),
        "mapped": [name in place for name in ids],
        "maps": base64.b64encode(whole.astype("<i2").tobytes()).decode(),
        "trust": saved.verdicts[rows].tolist() if judged else [],
        "effect": [[_number(value) for value in row] for row in saved.effects[rows]] if judged else [],
    }


def _number(value: np.floating[Any]) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _flips(before: Predictions, now: Predictions, rows: NDArray[np.int64]) -> list[str]:
    """Say of each image whether the second run fixed or broke it."""
    was, is_ = (said.predicted[rows] == said.labels[rows] for said in (before, now))
    flips: list[str] = np.select([~was & is_, was & ~is_, ~was & ~is_], ["fixed", "broken", "still wrong"], "right").tolist()
    return flips


def strata_of(predictions: Predictions) -> NDArray[np.int64]:
    """Return the cell of the confusion matrix of each image, as one number."""
    return predictions.labels * len(predictions.classes) + predictions.predicted
