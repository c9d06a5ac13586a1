"""Figures: numbers in, SVG text or PNG bytes out; the two that commands ask for are written to a file.

SVG figures keep their text as text and their ink as `currentColor`, so that in a page they follow its colours, light or
dark; `standalone` adds a style that does the same for a file of its own. Every id starts with the figure's name, so that
several figures can stand in one page. The same input gives the same bytes. Colours are those of Okabe and Ito
(https://jfly.uni-koeln.de/color/) and cividis, which readers with any kind of colour vision can tell apart; markers differ too.
"""

from __future__ import annotations

import io
import math
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .mistakes import Accuracy, Calibration
from .runs import judged_on, write_text, writing
from .schedule import RangeTest, combine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .augment import Transform
    from .comparison import ClassChange
    from .datasets import Dataset

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
INK = "#010203"  # stands for the page's own text colour until the SVG is written
STYLE = (
    "<style>svg{color:#1c1e21;background:#fff;stroke-linejoin:round}"
    "@media(prefers-color-scheme:dark){svg{color:#e8eaed;background:#121417}}</style>"
)
MANY = 20  # classes up to which numbers fit the cells of a confusion matrix
MAGNITUDES = {  # what the magnitudes of a probe's curve are
    "flip": "mirrored",
    "shift": "of the side",
    "smaller": "factor of the size",
    "larger": "factor of the size",
    "rotation": "degrees",
    "darker": "of the brightness",
    "brighter": "of the brightness",
    "less contrast": "of the contrast",
    "more contrast": "of the contrast",
    "hue": "turns of the colour circle",
    "grey": "without colour",
    "blur": "pixels",
    "noise": "of the levels",
    "jpeg": "quality",
    "occlusion": "of the side, a square",
}
_LOCK = threading.Lock()


def standalone(svg: str) -> str:
    """Return an SVG figure as a file of its own, readable on light and on dark."""
    return '<?xml version="1.0" encoding="utf-8"?>\n' + svg.replace(">", f">{STYLE}", 1)


def curves(history: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Draw the rows of history.csv over epochs: SVGs called "loss", "accuracy" (per cent) and "rate"."""
    epochs, judged = [row["epoch"] for row in history], judged_on(history[0])
    drawn = {}
    for name, label, scale in (("loss", "cross entropy, nats", 1), ("accuracy", "accuracy, %", 100)):
        figure, axes = _axes(4.6, 3.1, "epoch", label)
        for part, colour, marker, line in (("train", BLUE, "o", "--"), (judged, ORANGE, "s", "-")):
            # An epoch without a test leaves no gap in the line.
            points = [(row["epoch"], scale * value) for row in history if math.isfinite(value := row[f"{part}_{name}"])]
            axes.plot(*zip(*points, strict=True), line, color=colour, marker=marker, markersize=3.5, label=part)
        _legend(axes)
        _whole_epochs(axes, epochs)
        drawn[name] = _svg(figure, name)
    figure, axes = _axes(4.6, 3.1, "epoch", "learning rate of the last step")
    axes.plot(epochs, [row["lr"] for row in history], color=GREEN, marker="o", markersize=3.5)
    _whole_epochs(axes, epochs)
    return {**drawn, "rate": _svg(figure, "rate")}


def confusion(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Draw counts (K, K), rows the true class, as shares of each row; with the counts up to 20 classes."""
    from matplotlib.colors import PowerNorm

    k = len(classes)
    side = min(2.2 + 0.46 * k, 9.0)
    figure, axes = _axes(side, side if k <= MANY else 0.86 * side, "predicted", "true")
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    # Mistakes are rare beside right answers: the root makes a share of 1 % visible.
    norm = PowerNorm(0.5, 0, 1)
    mesh = axes.pcolormesh(share, cmap="cividis", norm=norm, edgecolors="face", linewidth=0.3, rasterized=k > MANY)
    _name_cells(axes, classes)
    if k <= MANY:
        for i, j in np.argwhere(matrix):
            colour = "white" if share[i, j] < 0.25 else "black"
            axes.text(j + 0.5, i + 0.5, str(matrix[i, j]), color=colour, ha="center", va="center", fontsize=8)
    else:
        bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.6, label="share of the true class")
        bar.ax.tick_params(colors=INK)
        bar.ax.yaxis.label.set_color(INK)
    return _svg(figure, "confusion")


def class_accuracy(accuracies: Mapping[str, Accuracy], worst: int = 40) -> str:
    """Draw the accuracy of the `worst` classes with their 95 % intervals, lowest first; classes without images last."""
    order = sorted(accuracies.items(), key=lambda item: 2.0 if item[1].accuracy is None else item[1].accuracy)[:worst]
    figure, axes = _axes(5.4, 1.0 + 0.27 * len(order), "accuracy, %", "")
    for y, (_, accuracy) in enumerate(order):
        axes.plot([100 * accuracy.low, 100 * accuracy.high], [y, y], color=BLUE, linewidth=2, alpha=0.6)
        if accuracy.accuracy is not None:
            axes.plot(100 * accuracy.accuracy, y, "o", color=BLUE, markersize=5)
    axes.set_yticks(range(len(order)), [_short(name) for name, _ in order], parse_math=False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    return _svg(figure, "classes")


def reliability(calibration: Calibration) -> str:
    """Draw accuracy over confidence a bin, beside a calibrated model's diagonal; a dot's area follows its images."""
    figure, axes = _axes(4.2, 3.8, "confidence, %", "accuracy, %")
    axes.plot([0, 100], [0, 100], ":", color=INK, linewidth=1)
    filled = calibration.counts > 0
    area = 20 + 280 * calibration.counts[filled] / max(calibration.counts.max(), 1)
    sure, right = 100 * calibration.confidence[filled], 100 * calibration.accuracy[filled]
    axes.plot(sure, right, color=ORANGE, linewidth=1)
    axes.scatter(sure, right, s=area, color=ORANGE, alpha=0.75, linewidths=0)
    axes.set(xlim=(0, 104), ylim=(0, 104))
    return _svg(figure, "reliability")


def range_test(tests: Sequence[RangeTest]) -> str:
    """Draw the sweeps of a range test: losses and their fits over the rate, each suggestion's median with its spread as a band.

    A dot on a fit is that sweep's own suggestion. Above stands what speaks against the peak, if anything does.
    """
    figure, axes = _axes(6.0, 3.9, "learning rate", "training loss, nats")
    together = combine(tests)
    for name, colour, line in (("steepest", GREEN, ":"), ("valley", ORANGE, "--"), ("peak", INK, "-")):
        estimate = getattr(together, name)
        if estimate is None:
            continue
        spread = "" if estimate.spread is None else f" ± {estimate.spread:.1f}"
        axes.axvspan(*estimate.band, color=colour, alpha=0.12, linewidth=0)
        axes.axvline(estimate.lr, color=colour, linestyle=line, linewidth=1.4, label=f"{name} {estimate.lr:.2e}{spread}")
        dots = [(getattr(test, name), test) for test in tests if getattr(test, name) is not None]
        heights = [np.interp(rate, test.lrs, test.smooth) for rate, test in dots]
        axes.plot([rate for rate, _ in dots], heights, "o", color=colour, markersize=4.5, zorder=3)
    for test in tests:
        axes.plot(test.lrs, test.losses, color=INK, alpha=0.2, linewidth=0.8)
        axes.plot(test.lrs, test.smooth, color=BLUE, linewidth=1.6)
    axes.set_xscale("log")
    smooth = np.concatenate([test.smooth for test in tests])
    low, high = (float(smooth.min()), float(np.quantile(smooth, 0.95))) if len(smooth) else (0.0, 1.0)
    axes.set_ylim(low - 0.1 * (high - low) - 1e-6, high + 0.3 * (high - low) + 1e-6)  # the divergence would dwarf the descent
    if together.doubts:
        axes.set_title("Unsure: " + ";\n".join(together.doubts), color=INK, fontsize=8, loc="left")
    if axes.get_legend_handles_labels()[0]:
        below = figure.legend(
            loc="outside lower center", ncols=3, columnspacing=1.2, handlelength=1.6, labelcolor=INK, frameon=False, fontsize=8
        )
        below.set_title("median of the sweeps ± decades")
        below.get_title().set(color=INK, fontsize=8)
    return _svg(figure, "range")


def evidence(rate: float, sham: float, low: float, high: float, name: str = "evidence") -> str:
    """Draw a probe's share beside its sham's as bars, in per cent.

    The whisker is the 95 % interval low to high of their difference, laid on the sham's share: an end beyond the sham's bar is
    an effect. name: of the figure, so that several can stand in one page.
    """
    figure, axes = _axes(4.4, 1.2, "%", "")
    values = {"probe": (100 * rate, BLUE), "sham": (100 * sham, ORANGE)}
    for y, (key, (value, colour)) in enumerate(values.items()):
        axes.barh(y, value, 0.62, color=colour).patches[0].set_gid(key)
    ends = [100 * min(1.0, max(-1.0, sham + end)) for end in (low, high)]
    axes.plot(ends, [0, 0], color=INK, linewidth=1.6, marker="|", markersize=8, gid="interval")
    axes.set_yticks(range(2), [f"{key} {value:.1f} %" for key, (value, _) in values.items()])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(min(0.0, 1.05 * min(ends), 100 * rate, 100 * sham), max(1.0, 1.05 * max(*ends, 100 * rate, 100 * sham)))
    axes.set_ylim(1.5, -0.5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.grid(visible=False, axis="y")
    return _svg(figure, name)


def sensitivity(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Draw by probe the shares "breaks" and "sham" over "magnitudes", the mildest to the left, in per cent: "" without curves.

    All share one vertical axis, so that the heights of different changes may be compared.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    if not curves:
        return ""
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure((2.35 * columns + 0.3, 1.75 * rows + 0.5), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for i, (probe, curve) in enumerate(curves.items()):
        axes, magnitudes = panels.flat[i], curve["magnitudes"]
        _plain(axes, MAGNITUDES.get(probe, ""), "% wrong" if i % columns == 0 else "")
        axes.set_title(probe, color=INK, fontsize=9, parse_math=False)
        axes.xaxis.label.set_size(8)
        for key, word, colour, style in (("sham", "sham", ORANGE, "s--"), ("breaks", "changed", BLUE, "o-")):
            heights = [100 * value for value in curve[key]]
            axes.plot(magnitudes, heights, style, color=colour, markersize=4, linewidth=1.4, label=word, gid=f"{key}-{i}")
        if magnitudes[0] > magnitudes[-1]:
            axes.invert_xaxis()
        axes.set_xticks(magnitudes, [f"{value:g}" for value in magnitudes], fontsize=8)
        if len(magnitudes) == 1:
            axes.set_xticks([])
    for axes in panels.flat[len(curves) :]:
        axes.set_axis_off()
    panels.flat[0].set_ylim(bottom=0)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, labelcolor=INK, frameon=False, fontsize=9)
    return _svg(figure, "sensitivity")


def flips(fixed: float, broken: float, churn: float) -> str:
    """Draw how many images are fixed and broken as bars, and how many chance alone would give of each as a line across both."""
    figure, axes = _axes(4.6, 1.7, "images", "")
    values = {"fixed": (fixed, GREEN), "broken": (broken, ORANGE)}
    for y, (key, (value, colour)) in enumerate(values.items()):
        axes.barh(y, value, 0.62, color=colour).patches[0].set_gid(key)
    label = f"expected of two runs of one recipe: {churn:,.0f}"
    axes.plot([churn, churn], [-0.5, 1.5], "--", color=INK, linewidth=1.6, label=label, gid="churn")
    axes.set_yticks(range(2), [f"{key} {value:,.0f}" for key, (value, _) in values.items()])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, max(1.0, 1.08 * max(fixed, broken, churn)))
    axes.set_ylim(1.5, -0.5)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", labelcolor=INK, frameon=False, fontsize=9)
    return _svg(figure, "flips")


def class_changes(changes: Sequence[ClassChange], most: int = 40, few: int = 20, alpha: float = 0.05) -> str:
    """Draw the change in the accuracy of the `most` classes that changed the most, with 95 % intervals, the best first.

    Triangles mark those that Holm's p tells apart at `alpha`: up for better, down for worse. Classes of less than `few` images
    are hollow and faint, say so, and come only where there is room; those without images are left out.
    """
    known = [(change, change.difference) for change in changes if change.difference is not None]
    largest = sorted(known, key=lambda item: (item[0].n < few, -abs(item[1].value)))[:most]
    order = sorted(largest, key=lambda item: -item[1].value)
    figure, axes = _axes(5.6, 1.0 + 0.27 * len(order), "change in accuracy, points", "")
    axes.axvline(0, color=INK, linewidth=1)
    for y, (change, difference) in enumerate(order):
        told = change.holm is not None and change.holm <= alpha
        better = difference.value > 0
        colour, marker = (GREEN if better else ORANGE, "^" if better else "v") if told else (INK, "o")
        faint = change.n < few
        ends = [100 * difference.low, 100 * difference.high]
        axes.plot(ends, [y, y], color=colour, linewidth=2, alpha=0.3 if faint else 0.65, gid=f"interval-{y}")
        fill = "none" if faint else colour
        axes.plot(
            100 * difference.value,
            y,
            marker,
            color=colour,
            markerfacecolor=fill,
            markersize=6.5 if told else 5,
            gid=f"change-{y}",
        )
    names = [_short(c.name) + f" (n = {c.n}: too few to say)" * (c.n < few) for c, _ in order]
    axes.set_yticks(range(len(order)), names, parse_math=False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    return _svg(figure, "class-changes")


def confusion_change(change: NDArray[np.float64], classes: Sequence[str]) -> str:
    """Draw the change of rates (K, K), rows the true class: orange where it is more often, blue less; NaN is hatched.

    Up to 20 classes the cells say it in points.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    k = len(classes)
    side = min(2.2 + 0.46 * k, 9.0)
    figure, axes = _axes(side, side if k <= MANY else 0.86 * side, "predicted", "true")
    points = np.ma.masked_invalid(100 * np.asarray(change, np.float64))
    most = max(float(np.abs(points).max()) if points.count() else 0.0, 0.1)  # centred at 0: no change is white
    colours = LinearSegmentedColormap.from_list("change", [BLUE, "white", ORANGE])
    mesh = axes.pcolormesh(
        points, cmap=colours, vmin=-most, vmax=most, edgecolors="face", linewidth=0.3, rasterized=k > MANY, gid="cells"
    )
    for row in np.flatnonzero(np.ma.getmaskarray(points).all(1)):
        axes.add_patch(Rectangle((0, int(row)), k, 1, fill=False, hatch="////", linewidth=0, edgecolor=INK, alpha=0.4))
    _name_cells(axes, classes)
    if k <= MANY:
        for i, j in np.argwhere(np.ma.filled(points, 0.0)):
            value = float(points[i, j])
            text = f"{value:+.1f}" if abs(value) < 9.95 else f"{value:+.0f}"
            ink = "white" if value < -0.93 * most else "black"  # what has more contrast
            axes.text(j + 0.5, i + 0.5, text.replace("-", "−"), color=ink, ha="center", va="center", fontsize=7)
    else:
        bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.6, label="points of the true class")
        bar.ax.tick_params(colors=INK)
        bar.ax.yaxis.label.set_color(INK)
    return _svg(figure, "confusion-change")


def samples(before_NHWC: NDArray[np.uint8], after_RNHWC: NDArray[np.uint8], titles: Sequence[str]) -> bytes:
    """Draw N images, each above R augmented versions of itself (R, N, H, W, 3) uint8, under its title: a PNG."""
    return _grid(_side_by_side([before_NHWC, *after_RNHWC], axis=1), titles, columns=len(before_NHWC))


def write_range_test(tests: Sequence[RangeTest], path: Path) -> None:
    """Write `range_test` as an SVG file. Raises RunError for an unwritable place."""
    write_text(path, standalone(range_test(tests)))


def write_samples(data: Dataset, policy: Sequence[Transform], path: Path, *, seed: int = 0, versions: int = 3) -> None:
    """Write a PNG: a training image of each of the first ten classes, above `versions` of it as augmented by `policy`."""
    from torch import Generator

    from .augment import bind, look
    from .models import to_device

    found, first = np.unique(data.train.labels, return_index=True)
    before = data.train.images[first[:10]]
    titles = [_short(data.classes[label]) for label in found[:10]]
    # All versions are one batch: a policy draws anew for each image of a batch.
    batch = to_device(np.tile(before, (versions, 1, 1, 1)))
    after = look(bind(policy, data.normalisation[0]), batch, Generator().manual_seed(seed)).permute(0, 2, 3, 1).numpy()
    with writing(path) as part:
        part.write_bytes(samples(before, after.reshape(versions, *before.shape), titles))


def _side_by_side(parts: Sequence[NDArray[np.uint8]], axis: int) -> NDArray[np.uint8]:
    """Join batches of images along their height (1) or width (2), a white gap between them."""
    shape = list(parts[0].shape)
    shape[axis] = max(1, shape[axis] // 16)
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([parts[0], *(part for more in parts[1:] for part in (gap, more))], axis)


def _grid(images_NHWC: NDArray[np.uint8], titles: Sequence[str], columns: int) -> bytes:
    """Draw images of one size in rows of `columns`, titled."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n, height, width, _ = images_NHWC.shape
    columns = max(1, min(columns, n))
    rows = max(1, -(-n // columns))
    cell = max(1.25, 1.1 * width / height)
    figure = Figure((cell * columns, (cell * height / width + 0.36) * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if i < n:
            axes.imshow(images_NHWC[i], interpolation="nearest")
            axes.set_title(titles[i], fontsize=8, parse_math=False)
    file = io.BytesIO()
    with _drawing():
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _axes(width: float, height: float, x: str, y: str) -> tuple[Figure, Axes]:
    """Return a transparent figure of width × height inches with plain axes; pyplot, being global, is not used."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    _plain(axes, x, y)
    return figure, axes


def _plain(axes: Axes, x: str, y: str) -> None:
    """Make axes transparent, in ink, with labels and a faint grid."""
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(which="both", colors=INK, labelcolor=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)


def _name_cells(axes: Axes, classes: Sequence[str]) -> None:
    """Make axes those of a matrix, the first row at the top, with the classes' names where they fit."""
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])
    if len(classes) <= 3 * MANY:
        places, size = np.arange(len(classes)) + 0.5, 9 if len(classes) <= MANY else 5
        axes.set_xticks(places, map(_short, classes), rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(places, map(_short, classes), fontsize=size, parse_math=False)


def _legend(axes: Axes) -> None:
    axes.legend(labelcolor=INK, frameon=False, fontsize=9)


def _whole_epochs(axes: Axes, epochs: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)


def _short(name: str) -> str:
    """A class name that leaves room for the figure."""
    return name if len(name) <= 24 else name[:23] + "…"


def _svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element: without a date, ids starting with `name`, ink and font those of the page."""
    file = io.StringIO()
    with _drawing(name):
        figure.savefig(file, format="svg", dpi=160, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)

    def mend(tag: re.Match[str]) -> str:
        text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", tag[0])
        return re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text.replace(INK, "currentColor"))

    return re.sub(r"<[^>]+>", mend, svg)  # in tags only: in texts, where "<" is escaped, nothing changes


@contextmanager
def _drawing(salt: str = "") -> Iterator[None]:
    """Let one thread at a time draw, with texts as texts, and without complaints about characters that the font lacks."""
    import matplotlib

    settings = matplotlib.RcParams({"svg.fonttype": "none", "svg.hashsalt": salt})
    with _LOCK, warnings.catch_warnings(), matplotlib.rc_context(settings):
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        yield
