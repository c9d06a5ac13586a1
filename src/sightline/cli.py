"""The command line: one short function a command; the only place that prints and chooses an exit code.

0 done, 1 a SightlineError (one line on stderr: what, where, what to do), 2 usage, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .exceptions import DataError, RecipeError, RunError, SightlineError
from .terminal import WORDS, Bars, epoch_table, err, out, printable, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .comparison import Comparison, Difference
    from .datasets import Dataset
    from .diagnosis import Diagnosis
    from .prescription import Fix
    from .recipe import Recipe
    from .runs import Run
    from .training import Reproduction

app = typer.Typer(
    help="Why is an image classifier wrong, and what to change: train, see the mistakes, see where the model looked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Data = Annotated[
    str, typer.Argument(help="cifar10, planted, planted:clean, or a folder with one sub-folder a class", metavar="DATA")
]
RunFolder = Annotated[Path, typer.Argument(help="the folder of a finished run", metavar="RUN")]
Seeds = Annotated[Path, typer.Argument(help="a run, or a folder of runs: seeds of one recipe", metavar="RUN")]
DataDir = Annotated[Path | None, typer.Option(help="where named data sets lie (else SIGHTLINE_DATA, else the cache folder)")]
Size = Annotated[int | None, typer.Option(min=8, help="resize a folder's images to SIZE×SIZE pixels")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="leave out image files that can't be read, and count them")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
RecipeName = Annotated[str, typer.Option("-r", "--recipe", help="a built-in recipe (classic, strong, fast) or a .json file")]
Augment = Annotated[Path | None, typer.Option(help="an augmentation saved by albumentations.save, instead of the recipe's")]
Width = Annotated[float | None, typer.Option(min=0.01, help="times the channels of a built-in model, instead of the recipe's")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …; the best there is if not given")]
PrecisionName = Annotated[
    str, typer.Option(help="auto, fp32 (also -channels-last, -winograd), bf16, fp16, or one of these three with -compiled")
]
Field = Annotated[
    Path | None,
    typer.Option(help="a folder of images from where the model is used, without labels: what sets them apart is looked for too"),
]
VERDICTS = ("supported", "weak", "no evidence")  # of `faithfulness`
Dev = Annotated[float, typer.Option(min=0, max=0.5, help="share of the training images held out to be looked at; 0: none")]
Seed = Annotated[int, typer.Option(help="of every random number")]


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Option("-o", "--out", help="the run folder; a new one under runs/ if not given")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Tell the whole story on generated data: train, find the mistakes and their cause, mend it, and prove that it is mended."""
    from .diagnosis import diagnose
    from .heatmaps import explain
    from .prescription import fix
    from .recipe import load_recipe
    from .reporting import report
    from .training import train

    folder = folder or _new_folder(Path("runs/demo"))
    mended = folder.with_name(f"{folder.name}-fix")
    quick = load_recipe("fast").with_(width=0.25, epochs=8)  # it is trained five times
    with Bars() as bars:
        run = train("planted", folder, recipe=quick, seed=seed, on_progress=bars.training)
        data = run.dataset()
        explain(run, data, progress=lambda done, total: bars.step("heatmaps", done, total))
        found = diagnose(run, data, on_progress=bars.step)
        proof = fix(run, data, mended, seeds=1, diagnosis=found, on_progress=bars.fixing)
        page = report(run, data, fix=mended if proof.plan else None)
    after = sorted(mended.glob("prescription/seed-*"))
    effects = [_mark_effect(each, data) for each in (run, *map(type(run).open, after))]
    findings = [*_findings(run), *(f"{when}: {effect}" for when, effect in zip(("Before", "After"), effects, strict=False))]
    if as_json:
        results = {"findings": findings, "results": dict(run.info["results"])}
        _print_json({"run": str(folder), "report": str(page), **results, "diagnosis": found.to_dict(), "fix": proof.to_dict()})
        return
    _say(epoch_table(run.history), *findings[:2], *_diagnosed(found), *_fixed(proof), *findings[2:], f"The report: {page}")


@app.command()
def data(
    name: Data,
    recipe: RecipeName = "classic",
    augment: Augment = None,
    picture: Annotated[Path, typer.Option("-o", "--out", help="where to write the sheet of samples")] = Path("samples.png"),
    data_dir: DataDir = None,
    size: Size = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Count the images a class, and draw some before and after augmentation."""
    import numpy as np

    from .figures import write_samples

    policy = _recipe(recipe, augment=augment).augment
    loaded = _load(name, data_dir, size, skip_bad)
    write_samples(loaded, policy, picture, seed=seed)
    counts = [np.bincount(split.labels, minlength=len(loaded.classes)) for split in (loaded.train, loaded.test)]
    rows = [(c, int(counts[0][i]), int(counts[1][i])) for i, c in enumerate(loaded.classes)]
    mean, std = loaded.normalisation
    shape = loaded.train.images.shape[1:]
    if as_json:
        described = {
            "name": loaded.name,
            "hash": loaded.content_hash,
            "shape": shape,
            "mean": mean,
            "std": std,
            "skipped": loaded.skipped,
        }
        _print_json({**described, "classes": {c: {"train": a, "test": b} for c, a, b in rows}, "samples": str(picture)})
        return
    totals = ("all", sum(row[1] for row in rows), sum(row[2] for row in rows))
    _say(
        table(("class", "train", "test"), [*rows, totals], left=("class",)),
        f"{shape[1]}×{shape[0]} pixels; mean {_numbers(mean)}, standard deviation {_numbers(std)}",
        *_rates(policy, loaded),
        f"Samples before and after augmentation: {picture}",
    )


@app.command()
def summary(
    model: Annotated[str, typer.Argument(help="resnet18 … resnet152, smallnet, or package.module:factory", metavar="MODEL")],
    classes: Annotated[int, typer.Option(min=2)] = 10,
    size: Annotated[int, typer.Option(min=8, help="side of the input images, in pixels")] = 32,
    as_json: AsJson = False,
) -> None:
    """Print a model's layers, output shapes and parameters."""
    from .models import build, layers

    network = build(model, classes=classes)
    rows, total = layers(network, size), sum(p.numel() for p in network.parameters())
    if as_json:
        _print_json({"model": model, "parameters": total, "layers": [row._asdict() for row in rows]})
        return
    drawn = [("  " * row.depth + row.name, row.kind, row.shape, f"{row.parameters:,}" if row.parameters else "") for row in rows]
    _say(
        table(("layer", "type", "output", "parameters"), drawn, left=("layer", "type")),
        f"{total:,} parameters",
    )


@app.command()
def lr(
    name: Data,
    recipe: RecipeName = "classic",
    sweeps: Annotated[int, typer.Option(min=1, help="how many sweeps; the median counts")] = 3,
    steps: Annotated[int | None, typer.Option(min=20, help="steps a sweep; else a tenth of the training's, 60 to 200")] = None,
    picture: Annotated[Path, typer.Option("-o", "--out", help="where to draw the curve")] = Path("lr.svg"),
    model: Annotated[str | None, typer.Option(help="instead of the recipe's")] = None,
    width: Width = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="instead of the recipe's")] = None,
    seed: Seed = 0,
    precision: PrecisionName = "auto",
    device: Device = None,
    data_dir: DataDir = None,
    size: Size = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Run the learning-rate range test: draw the curve and suggest rates."""
    from .figures import write_range_test
    from .training import range_tests, suggested

    chosen = _recipe(recipe, model=model, width=width, batch_size=batch_size)
    loaded = _load(name, data_dir, size, skip_bad)
    with Bars() as bars:
        tests = range_tests(
            loaded, chosen, sweeps=sweeps, steps=steps, seed=seed, precision=precision, device=device, on_progress=bars.training
        )
    write_range_test(tests, picture)
    max_lr, together = suggested(tests)
    if as_json:
        sweeps_found = [test.to_dict() for test in tests]
        _print_json({"max_lr": max_lr, **together.to_dict(), "sweeps": sweeps_found, "curve": str(picture)})
        return
    rows: list[tuple[object, ...]] = [
        (i + 1, len(test.lrs), *map(_rate, (test.steepest, test.valley, test.peak))) for i, test in enumerate(tests)
    ]
    medians = (together.steepest, together.valley, together.peak)
    rows.append(("median", "", *(_rate(m.lr if m else None) for m in medians)))
    rows.append(("± decades", "", *(f"{m.spread:.2f}" if m and m.spread is not None else "–" for m in medians)))
    _say(
        table(("sweep", "steps taken", "steepest", "valley", "peak"), rows),
        f"For one-cycle: --max-lr {max_lr:.3g} (the median of the peaks). The curve: {picture}",
        *_doubts(together.to_dict()),
    )


@app.command()
def train(
    name: Data,
    folder: Annotated[Path, typer.Option("-o", "--out", help="the run folder; an unfinished one is gone on with")],
    recipe: RecipeName = "classic",
    model: Annotated[str | None, typer.Option(help="instead of the recipe's: a name or package.module:factory")] = None,
    width: Width = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="instead of the recipe's")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="instead of the recipe's")] = None,
    max_lr: Annotated[float | None, typer.Option(help="instead of the recipe's, or of the range test")] = None,
    augment: Augment = None,
    seed: Seed = 0,
    precision: PrecisionName = "auto",
    device: Device = None,
    data_dir: DataDir = None,
    size: Size = None,
    skip_bad: SkipBad = False,
    dev: Dev = 0.1,
    without: Annotated[
        list[Path] | None,
        typer.Option(help="a run whose confirmed label errors (see import) are left out, repeatable", metavar="RUN"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model, and leave a run folder; the same command goes on where a stopped one was."""
    from . import runs, training
    from .reporting import duration

    runs.prepare(folder)
    changes = {"model": model, "width": width, "epochs": epochs, "batch_size": batch_size, "max_lr": max_lr}
    chosen = _recipe(recipe, **changes, augment=augment)
    loaded = _without(_load(name, data_dir, size, skip_bad, dev), without or ())
    for line in _rates(chosen.augment, loaded):
        err.print(line)
    try:
        with Bars() as bars:
            run = training.train(
                loaded,
                folder,
                recipe=chosen,
                seed=seed,
                precision=precision,
                device=device,
                on_progress=bars.training,
            )
    except KeyboardInterrupt:
        _stopped(folder)
    if as_json:
        _print_json({"run": str(folder), **run.info})
        return
    results = run.info["results"]
    long = "one epoch" if results["epoch"] == 1 else f"{results['epoch']} epochs"
    _say(
        epoch_table(run.history),
        f"{run.judged.capitalize()} accuracy {_accuracy(run)} after {long} and {duration(results['seconds'])}"
        f" on {run.info['device']} ({run.info['arithmetic']['dtype']}).",
        *([f"With more views of each image: {results['views_accuracy']:.2%}."] if "views_accuracy" in results else []),
        *_doubts(run.info["suggestion"]),
        f"The run: {folder}. Next: sightline report {folder}",
    )


@app.command()
def reproduce(
    folder: RunFolder,
    out_folder: Annotated[Path, typer.Option("-o", "--out", help="the new run's folder; an unfinished one is gone on with")],
    device: Annotated[str | None, typer.Option(help="another than the run's")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Train a finished run again as its run.json says, and compare history and weights byte for byte."""
    from . import runs, training

    run = runs.Run.open(folder)
    runs.prepare(out_folder)
    try:
        with Bars() as bars:
            found = training.reproduce(run, out_folder, device=device, data_dir=data_dir, on_progress=bars.training)
    except KeyboardInterrupt:
        _stopped(out_folder)
    if as_json:
        told = {"same": found.same, "epochs": found.epochs, "differs": found.differs, "changed": found.changed}
        _print_json({"run": str(out_folder), **told, "weights": dict(zip(("then", "now"), found.weights, strict=True))})
        return
    _say(*_reproduced(run, found))


@app.command()
def mistakes(
    folder: RunFolder,
    n: Annotated[int, typer.Option("-n", min=1, help="rows to show")] = 20,
    file: Annotated[Path | None, typer.Option("-o", "--out", help="write all of them to a .csv, .json or .parquet file")] = None,
    as_json: AsJson = False,
) -> None:
    """List a run's mistakes, the highest loss first, and the classes most often confused."""
    from . import mistakes as found
    from .runs import Run

    run = Run.open(folder)
    rows = found.table(run.predictions)
    confused = found.most_confused(run.predictions, 10)
    if file:
        found.write_table(rows, file)
    if as_json:
        _print_json({"mistakes": rows, "most_confused": [pair._asdict() for pair in confused]})
        return
    drawn = [
        (r["id"], r["predicted"], r["true"], f"{r['confidence']:.1%}", f"{r['loss']:.3f}", f"{r['margin']:.2f}") for r in rows[:n]
    ]
    pairs = [(pair.true, pair.predicted, pair.count, f"{pair.share:.1%}") for pair in confused]
    _say(
        f"{run.judged.capitalize()} accuracy {_accuracy(run)}.",
        table(("image", "predicted", "actual", "confidence", "loss", "margin"), drawn, left=("image", "predicted", "actual")),
        f"Showing {min(n, len(rows))} of {len(rows)} mistakes.",
        table(("actual", "taken for", "images", "of its class"), pairs, left=("actual", "taken for")),
        *([f"All of them: {file}"] if file else []),
    )


@app.command()
def explain(
    folder: RunFolder,
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="image files or folders, instead of the run's mistakes", metavar="[IMAGE]…"),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="of image files, repeatable: predicted, a class, true:CLASS, margin, or margin:CLASS,CLASS"),
    ] = None,
    method: Annotated[str, typer.Option(help="gradcam, layercam, … (--sheet shows all), or captum:NAME")] = "gradcam",
    layer: Annotated[
        list[str] | None, typer.Option(help="a layer's name, repeatable; if not given, the last with more than 4×4 cells")
    ] = None,
    fuse: Annotated[str, typer.Option(help="how the maps of several layers become one: mean or max")] = "mean",
    aug_smooth: Annotated[bool, typer.Option("--aug-smooth", help="average over flipped and scaled inputs")] = False,
    eigen_smooth: Annotated[bool, typer.Option("--eigen-smooth", help="first principal component only")] = False,
    precision: Annotated[str, typer.Option(help="fp32, bf16, or auto: the faster, if it says the same")] = "fp32",
    trust: Annotated[int, typer.Option(min=0, help="mistakes, the highest losses first, whose heatmaps are put to the test")] = 0,
    sheet: Annotated[bool, typer.Option("--sheet", help="one image under all methods, side by side: OUT/methods.png")] = False,
    out_folder: Annotated[
        Path | None, typer.Option("-o", "--out", help="where the pictures of image files go; a new folder explained if not given")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Compute heatmaps of a run's mistakes (predicted class, true class, margin: RUN/heatmaps.npz), or of any image files."""
    from .runs import Run

    run = Run.open(folder)
    how: dict[str, Any] = {"layer": layer or "auto", "fuse": fuse, "precision": precision}
    ways = {"method": method, "aug_smooth": aug_smooth, "eigen_smooth": eigen_smooth}
    if not images:
        if target or sheet:
            raise RecipeError("--target and --sheet are for image files: name some after the run's folder, or leave them out")
        _explain_mistakes(run, {**how, **ways}, trust, data_dir, as_json)
        return
    if trust:
        raise RecipeError("--trust is for a run's mistakes: leave it out, or leave out the image files")
    out_folder = out_folder or _new_folder(Path("explained"), taken="")
    if sheet:
        _explain_by_all_methods(run, images, {**how, **({"targets": target} if target else {})}, out_folder, as_json)
        return
    _explain_files(run, images, target or ["predicted"], {**how, **ways}, out_folder, as_json)


@app.command()
def report(
    folder: RunFolder,
    n: Annotated[int, typer.Option("-n", min=1, help="mistakes to show: of every kind of confusion the gravest")] = 500,
    weight: Annotated[float, typer.Option(min=0, max=1, help="the image's share where a heatmap lies over it")] = 0.725,
    fix: Annotated[Path | None, typer.Option(help="the folder of a finished `sightline fix`, to show what it proved")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Write RUN/report.html, one file that needs no network; heatmaps are made first if there are none."""
    from . import reporting
    from .heatmaps import explain
    from .runs import Run

    run = Run.open(folder)
    with Bars() as bars:
        bars.step(WORDS["load"], 0, None)
        loaded, no_pictures, no_heatmaps = None, "", ""
        try:
            loaded = run.dataset(data_dir)
        except DataError as error:
            no_pictures = str(error)
        except RunError:  # other data, or some of it is gone: the report knows
            pass
        if loaded is not None and not (folder / "heatmaps.npz").exists():
            try:
                explain(run, loaded, progress=lambda done, total: bars.step("heatmaps", done, total))
            except (RecipeError, DataError) as error:  # a model without places to look at, or that isn't finite
                no_heatmaps = str(error)
        bars.step("report", 0, None)
        page = reporting.report(
            run, loaded, n=n, weight=weight, data_dir=data_dir, fix=fix, no_pictures=no_pictures, no_heatmaps=no_heatmaps
        )
    for what, why in (("pictures", no_pictures), ("heatmaps", no_heatmaps)):
        if why:
            err.print(f"without {what}: {why}", markup=False, soft_wrap=True)
    if as_json:
        _print_json({"report": str(page), **reporting.report_json(run, n)})
        return
    _say(f"The report: {page}")


@app.command("import")
def import_(
    folder: RunFolder,
    file: Annotated[Path, typer.Argument(help="the marks that the report's page exported", metavar="MARKS")],
    as_json: AsJson = False,
) -> None:
    """Take back what was marked in a run's report, label errors and causes; of two marks of one image the later counts."""
    from . import marks
    from .runs import Run

    run = Run.open(folder)
    taken = marks.take(run, file)
    if as_json:
        counts = {key: getattr(taken, key) for key in ("new", "changed", "kept", "removed")}
        found = {"label_errors": taken.label_errors, "causes": taken.causes}
        _print_json({"marks": str(folder / "marks.json"), "split": taken.split, **counts, **found})
        return
    causes = ", ".join(f"{cause} {len(ids)}" for cause, ids in taken.causes.items())
    _say(
        f"{folder / 'marks.json'} has {len(taken)} marks: {taken.new} new, {taken.changed} changed, {taken.kept} as they were; "
        f"{taken.removed} taken back.",
        f"Label errors: {len(taken.label_errors)}. Causes: {causes or 'none'}.",
        *_next_without(run, taken.label_errors),
    )


@app.command()
def export(
    folder: RunFolder,
    to: Annotated[str, typer.Option("--to", help="csv, coco, fiftyone or tensorboard", metavar="FORMAT")],
    path: Annotated[
        Path, typer.Option("-o", "--out", help="the file (csv) or the folder to write, new or empty", metavar="PATH")
    ],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's predictions, causes, trust and marks for other programs: as a table, or for COCO, FiftyOne or TensorBoard."""
    from . import exports
    from .runs import Run

    with Bars() as bars:
        found = exports.export(Run.open(folder), to, path, data_dir=data_dir, on_progress=bars.step)
    if found.without:
        err.print(printable(f"without {found.without}"), markup=False, soft_wrap=True)
    if as_json:
        _print_json({"to": to, "path": str(found.path), "images": found.rows, "without": found.without})
        return
    _say(f"{found.rows:,} images: {found.path}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="a run, or a folder of runs: seeds of one recipe", metavar="RUN_A")],
    b: Annotated[Path, typer.Argument(help="what it is compared with, likewise", metavar="RUN_B")],
    n: Annotated[int, typer.Option("-n", min=0, help="fixed and broken images to name")] = 10,
    page: Annotated[bool, typer.Option("--report", help="write RUN_B/comparison.html, before and after side by side")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say whether B is better than A on the test images, what it fixed and broke, and what chance alone would have."""
    from . import comparison
    from .runs import open_seeds

    arms, written = [open_seeds(folder) for folder in (a, b)], None
    with Bars() as bars:
        bars.step(WORDS["load"], 0, None)
        data = arms[0][0].dataset(data_dir)
        found = comparison.compare(arms[0], arms[1], data)
        if page:
            from .heatmaps import explain_images
            from .reporting import report_change

            explained = partial(explain_images, progress=lambda done, total: bars.step("heatmaps", done, total))
            written = report_change(arms[0][0], arms[1][0], found, data, explain=explained)
    if as_json:
        _print_json({**found.to_dict(), "report": str(written) if written else None})
        return
    _say(*_compared(found, n), *([f"The report: {written}"] if written else []))


@app.command()
def diagnose(
    folder: Seeds,
    field: Field = None,
    seed: Seed = 0,
    device: Device = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Find the causes of a run's mistakes by intervention, on images that were held out; writes RUN/diagnosis.json."""
    from . import diagnosis
    from .runs import open_seeds

    runs = open_seeds(folder)
    with Bars() as bars:
        bars.step(WORDS["load"], 0, None)
        data, there = runs[0].dataset(data_dir), _from_the_field(runs[0], field)
        found = diagnosis.diagnose(runs, data, field=there, seed=seed, device=device, on_progress=bars.step)
    if as_json:
        _print_json(json.loads((runs[0].folder / "diagnosis.json").read_text(encoding="utf-8")))
        return
    further = ["--field", str(field)] if field else []
    command = shlex.join(["sightline", "fix", str(folder), *further, "-o", "FOLDER"])
    _say(*_diagnosed(found), *_lacking(runs[0], found), f"All of it: {runs[0].folder / 'diagnosis.json'}. Next: {command}")


@app.command()
def fix(
    folder: Seeds,
    out_folder: Annotated[Path, typer.Option("-o", "--out", help="where everything is kept; an unfinished fix is gone on with")],
    budget: Annotated[
        str | None, typer.Option(help="time for all of it, such as 90s, 30m or 2h: arms and seeds are fitted")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="trainings of each arm; 3, or what the budget allows")] = None,
    forbidden: Annotated[
        list[str] | None,
        typer.Option("--not", help="what these pictures can't undergo and keep their class, repeatable: hflip, …"),
    ] = None,
    against: Annotated[str | None, typer.Option(help="the one cause to mend, or variety; else the gravest that can be")] = None,
    field: Field = None,
    device: Device = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Try edits of the recipe against the causes of a run's mistakes, and prove the best one by retraining."""
    from . import prescription
    from .runs import open_seeds

    runs, time = open_seeds(folder), None if budget is None else _seconds(budget)
    try:
        with Bars() as bars:
            bars.step(WORDS["load"], 0, None)
            data = runs[0].dataset(data_dir)
            found = prescription.fix(
                runs,
                data,
                out_folder,
                budget=time,
                seeds=seeds,
                forbidden=forbidden or (),
                against=against,
                field=_from_the_field(runs[0], field),
                device=device,
                on_progress=bars.fixing,
            )
    except KeyboardInterrupt:
        err.print(f"stopped; the same command with -o {out_folder} goes on", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        _print_json(found.to_dict())
        return
    _say(*_fixed(found))


def main() -> None:
    """Run the command line."""
    try:
        app()
    except SightlineError as error:
        err.print(printable(f"error: {error}"), markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _recipe(name: str, *, augment: Path | None = None, **changes: Any) -> Recipe:
    """The recipe called `name` with what the command line changes in it."""
    from .augment import from_albumentations
    from .recipe import load_recipe

    return load_recipe(name).with_(**changes, augment=from_albumentations(augment) if augment else None)


def _doubts(suggestion: dict[str, Any] | None) -> list[str]:
    """What makes a range test's suggestion unsure."""
    return [f"The range test is unsure: {'; '.join(suggestion['doubts'])}."] if suggestion and suggestion["doubts"] else []


def _load(name: str, data_dir: Path | None, size: int | None, skip_bad: bool, dev: float = 0) -> Dataset:
    from .datasets import load

    with Bars() as bars:
        loaded = load(name, data_dir=data_dir, size=size, skip_bad=skip_bad, dev=dev, progress=bars.step)
    _left_out(loaded.skipped)
    return loaded


def _without(data: Dataset, sources: Sequence[Path]) -> Dataset:
    """The data without what is left out at the wish of a person, who is told how much it is."""
    from .marks import left_out

    thinned = data.without(left_out(sources, data)) if sources else data
    if thinned.left_out:
        less = [len(was) - len(now) for was, now in ((data.train, thinned.train), (data.dev, thinned.dev)) if was and now]
        counts = " and ".join(f"{n} {split}" for n, split in zip(less, ("train", "dev"), strict=False))
        err.print(f"left out for their labels: {counts} images", markup=False)
    return thinned


def _next_without(run: Run, label_errors: Sequence[str]) -> list[str]:
    """What to do with the label errors that were marked, and what that is good for."""
    if not label_errors:
        return []
    if run.judged == "test":
        return ["They are of test images, which are never left out: nothing is chosen on these. Train with --dev 0.1 for others."]
    command = ["sightline", "train", run.info["data"]["name"], "--without", str(run.folder), "-o", "NEW"]
    return [
        f"Next: {shlex.join(command)}",
        "They are dev images, held out of the training: with the same --dev the next model learns from the same images as this "
        "one, and its dev accuracy, of fewer, can't be compared; with --dev 0 it learns from all images but these.",
    ]


def _rates(policy: Any, data: Dataset) -> list[str]:
    """A line for each transform that runs image by image: it may be what a training waits for."""
    from torch import Generator

    from .augment import PerSample, bind, rates
    from .models import to_device

    if not any(isinstance(transform, PerSample) for transform in policy):
        return []
    images = to_device(data.train.images[:256])
    measured = rates(bind(policy, data.normalisation[0]), images, Generator().manual_seed(0))
    return [f"{name}: {rate:,.0f} images/s" for name, rate in measured]


def _explain_mistakes(run: Run, how: dict[str, Any], trust: int, data_dir: Path | None, as_json: bool) -> None:
    from . import faithfulness, heatmaps
    from .runs import SavedMaps

    with Bars() as bars:
        bars.step(WORDS["load"], 0, None)
        path = heatmaps.explain(
            run,
            run.dataset(data_dir),
            **how,
            trust=trust,
            judge=faithfulness.judge,
            progress=lambda done, total: bars.step("heatmaps", done, total),
        )
    saved = SavedMaps.read(path)
    verdicts = {name: _counts(saved.verdicts[:, t]) for t, name in enumerate(saved.targets)} if trust else {}
    if as_json:
        found = {"layer": saved.layer, "method": saved.method, "precision": saved.precision, "images": len(saved.ids)}
        _print_json({"heatmaps": str(path), **found, "targets": saved.targets, "verdicts": verdicts})
        return
    judged = [(name, *(counts[word] for word in VERDICTS)) for name, counts in verdicts.items()]
    _say(
        *([table(("heatmap of", *VERDICTS), judged, left=("heatmap of",))] if judged else []),
        f"Heatmaps of {len(saved.ids)} mistakes by {saved.method} at {saved.layer}: {path}. Next: sightline report {run.folder}",
    )


def _explain_files(run: Run, images: list[Path], targets: list[str], how: dict[str, Any], folder: Path, as_json: bool) -> None:
    from .heatmaps import sweep

    with Bars() as bars:
        found = sweep.explain_files(
            run, images, folder, targets=targets, **how, progress=lambda done, total: bars.step("heatmaps", done, total)
        )
    _left_out(found.unreadable)
    if as_json:
        rows = [
            {
                **row._asdict(),
                "picture": str(row.picture),
                "scores": dict(zip(targets, row.scores, strict=True)),
                "completeness": {t: c for t, c in zip(targets, row.completeness, strict=True) if math.isfinite(c)},
            }
            for row in found.rows
        ]
        files = {"heatmaps": str(found.heatmaps), "sheet": str(found.sheet), "unreadable": found.unreadable}
        _print_json({**files, "images": rows})
        return
    drawn = [(r.file, r.predicted, f"{r.confidence:.1%}", *map(_explained, r.completeness)) for r in found.rows]
    _say(
        table(("image", "predicted", "confidence", *(f"{t}: explained" for t in targets)), drawn, left=("image", "predicted")),
        "“Explained”: the share of the score that the map sums to; “–” where the method's maps don't sum to it.",
        f"The pictures: {found.rows[0].picture.parent}; all in one: {found.sheet}; the values: {found.heatmaps}",
    )


def _explain_by_all_methods(run: Run, images: list[Path], how: dict[str, Any], folder: Path, as_json: bool) -> None:
    from .heatmaps import sweep

    if len(images) != 1:
        raise RecipeError(f"--sheet shows one image under all methods, not {len(images)}: name one")
    path = folder / "methods.png"
    with Bars() as bars:
        failed = sweep.compare_methods(
            run, images[0], path, **how, progress=lambda done, total: bars.step("methods", done, total)
        )
    if as_json:
        _print_json({"sheet": str(path), "left_out": failed})
        return
    _say(*(f"without {what}: {why}" for what, why in failed.items()), f"All methods, each on its own scale: {path}")


def _explained(completeness: float) -> str:
    """The share of a score that a map's sum explains: "97 %"."""
    if math.isnan(completeness):
        return "–"
    return f"{100 * (1 - completeness):.0f} %" if completeness <= 1 else f"off by {100 * completeness:.0f} %"


def _counts(verdicts: Any) -> dict[str, int]:
    return {word: int((verdicts == word).sum()) for word in VERDICTS}


def _from_the_field(run: Run, folder: Path | None) -> NDArray[np.uint8] | None:
    """Images of a folder as large as the run's, spread over all of them where they are many."""
    if folder is None:
        return None
    from .imagefiles import image_files, read_images, readable, spread
    from .probes.field import IMAGES

    height, width, _ = run.info["data"]["shape"]
    good, images, bad = read_images(spread(image_files([folder]), IMAGES), height, width)
    _left_out([readable(path) for path in bad])
    if not good:
        raise DataError(f"no image can be read in {folder}; give a folder of PNG, JPEG, WebP, BMP or GIF files")
    return images


def _left_out(files: Sequence[str]) -> None:
    if files:
        some = ", ".join(files[:3]) + " …" * (len(files) > 3)
        err.print(printable(f"left out {len(files)} unreadable files: {some}"), markup=False)


def _compared(found: Comparison, n: int) -> list[Any]:
    """The verdict, the figures behind it, the classes that changed, and the images."""
    d, flips = found.difference, found.flips
    lines = [
        f"{found.verdict[0].upper()}{found.verdict[1:]}.",
        f"A is right on {found.accuracy[0]:.2%} of {found.n:,} test images, B on {found.accuracy[1]:.2%}: {_points(d.value)} "
        f"points ({_span(d)} at 95 %, {found.runs[0]} and {found.runs[1]} runs).",
        f"B fixes {flips.fixed:,.0f} images and breaks {flips.broken:,.0f}; two runs of one recipe fix and break "
        f"{flips.churn:,.0f} each ({'measured between seeds' if flips.source == 'seeds' else flips.source}).",
    ]
    if found.mcnemar is not None:
        lines.append(f"As two checkpoints, whatever their recipes: p = {found.mcnemar:.2g} by McNemar's exact test.")
    for word, some in (("In nearly all seeds", found.reliable), ("In all seeds", found.unanimous)):
        if some.fixed_by_chance is not None or some.broken_by_chance is not None:
            shares = (some.fixed_by_chance, some.broken_by_chance)
            fixed, broken = (f"{share:.0%}" if share is not None else "–" for share in shares)
            lines.append(f"{word} it fixes {some.fixed:,} ({fixed} by chance) and breaks {some.broken:,} ({broken}).")
    rows = [
        (c.name, c.n, _points(c.difference.value), _span(c.difference), f"{c.holm:.2g}")
        for c in found.classes
        if c.difference is not None and c.holm is not None
    ]
    for word, ids in (("Fixed", found.fixed), ("Broken", found.broken)):
        if ids[:n]:
            lines.append(f"{word}, the surest first: {', '.join(ids[:n])}{' …' * (len(ids) > n)}")
    return [
        *lines,
        table(("class", "images", "change, points", "95 %", "p, by Holm"), rows, left=("class",)),
        f"Calibration error: A {found.ece[0]:.2%}, B {found.ece[1]:.2%}.",
    ]


def _span(difference: Difference) -> str:
    return f"{_points(difference.low)} to {_points(difference.high)}"


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.2f}"


def _diagnosed(found: Diagnosis) -> list[Any]:
    """The causes with their evidence, the mistakes by what repairs them, and what was looked for and not found."""
    from .diagnosis import LEAST

    rows = [
        (
            cause.id,
            ", ".join(found.classes[label] for label in cause.classes) or "all",
            cause.probe,
            f"{cause.rate:.1%}",
            f"{cause.sham:.1%}",
            f"{100 * cause.low:.1f} to {100 * cause.high:.1f}",
            f"{cause.n:,}",
            f"{cause.q:.1g}",
            "costs now" if cause.kind == "cost" else "a risk",
        )
        for cause in found.causes
    ]
    columns = ("cause", "classes", "probe", "with it", "sham", "effect, 95 %", "images", "q", "kind")
    repaired = [(key, len(ids), f"{len(ids) / max(found.mistakes, 1):.0%}") for key, ids in found.groups.items()]
    declared = {cause.id for cause in found.causes}
    absent = [cause for cause in LEAST if cause not in declared]
    return [
        f"{found.n:,} dev images, {found.mistakes:,} of them mistakes; {len(found.findings)} probes in {found.seconds:.0f} s.",
        table(columns, rows, left=("cause", "classes", "probe", "kind")) if rows else "No cause found.",
        *([table(("mistakes repaired by", "images", "share"), repaired, left=("mistakes repaired by",))] if rows else []),
        f"Looked for and not found: {', '.join(absent)}." if absent else "",
    ]


def _lacking(run: Run, found: Diagnosis) -> list[str]:
    """What no cause asks for, and may help."""
    from .prescription import variety
    from .recipe import Recipe

    info = run.info
    more = variety(found, Recipe.from_dict(info["recipe"]), size=tuple(info["data"]["shape"][:2])) if info["recipe"] else None
    if more is None:
        return []
    what = more[1].name
    return [
        f"No cause, and may help: {what}. The model bears it and training never shows it; `sightline fix` says what it is worth."
    ]


def _fixed(found: Fix) -> list[Any]:
    """What was tried, the proof, and where the edited recipe is."""
    from .prescription.plan import ARM_WORDS

    tried = [
        (
            trial["edit"],
            trial["cause"],
            f"{100 * trial['effect']:+.1f}",
            "–" if trial["group"] is None else f"{100 * trial['group']:+.1f}",
            f"{100 * trial['accuracy']:+.1f}",
            f"{100 * trial['worst_class']:+.1f}",
        )
        for trial in found.trials
    ]
    columns = (
        "edit, in a short fine-tune beside a sham",
        "against",
        "effect less",
        "its mistakes",
        "dev accuracy",
        "worst class",
    )
    lines: list[Any] = [table(columns, tried, left=columns[:2])] if tried else []
    if found.measures is not None:
        arms = [(ARM_WORDS.get(arm, arm), f"{accuracy:.2%}") for arm, accuracy in found.measures["accuracy"].items()]
        lines.append(table(("arm, trained anew", "test accuracy"), arms, left=("arm, trained anew",)))
    lines.append(f"{found.summary[0].upper()}{found.summary[1:]}.")
    if found.edit is not None:
        what = "The edited recipe, for sightline train -r" if found.proved else "The recipe that was tried"
        lines.append(f"{what}: {found.folder}/recipe.json. {found.edit['why'][0].upper()}{found.edit['why'][1:]}.")
        more = found.measures and found.measures.get("variety")
        if more and more["change"]["low"] > 0:
            lines.append(f"That with more variety: {found.folder}/variety.json.")
    return lines


def _seconds(text: str) -> float:
    """A time such as "90s", "30m" or "2h" in seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        seconds = -1.0
    if not 0 < seconds < math.inf:
        raise RecipeError(f"'{text}' is no time; write it like 90s, 30m or 2h")
    return seconds


def _findings(run: Run) -> list[str]:
    """How well the demo's model does, in two lines."""
    from .mistakes import most_confused

    worst = most_confused(run.predictions, 1)
    pair = f"the commonest: {worst[0].true} taken for {worst[0].predicted} ({worst[0].count} times)" if worst else "none"
    wrong = int((run.predictions.predicted != run.predictions.labels).sum())
    return [
        f"The model is right on {_accuracy(run)} of the {run.judged} images.",
        f"It makes {wrong} mistakes; {pair}.",
    ]


def _mark_effect(run: Run, data: Dataset) -> str:
    """What the planted mark does to the model: the class it was planted on, said of other test images with and without it."""
    import numpy as np

    from .evaluation import open_test
    from .mistakes import newcombe
    from .planted import marked, plant_of

    plant = plant_of(data.name)
    if plant is None or plant.kind != "mark":
        return "no mark was planted."
    label = plant.labels[0]
    others, taken = data.test.labels != label, open_test(run, data).predicted == label
    groups = [others & marked(data.test), others & ~marked(data.test)]
    said, n = [int(np.sum(taken[group])) for group in groups], [int(np.sum(group)) for group in groups]
    low, high = (round(100 * limit) for limit in newcombe((said[0], said[1]), (n[0], n[1])))
    return (
        f"of other classes' test images it calls {said[0] / n[0]:.0%} '{data.classes[label]}' if the mark is in the corner, "
        f"{said[1] / n[1]:.0%} if not (difference {low} to {high} points at 95 %, n = {n[0]} and {n[1]})."
    )


def _accuracy(run: Run) -> str:
    from .mistakes import accuracy

    rate = accuracy(run.predictions)
    return f"{rate.accuracy or 0:.2%} (95 % interval {rate.low:.2%} to {rate.high:.2%}, n = {rate.n:,})"


def _stopped(folder: Path) -> NoReturn:
    done = "from its last checkpoint, at most a minute back" if (folder / "resume").exists() else "from the start"
    err.print(f"stopped; the same command with -o {folder} goes on {done}", markup=False, soft_wrap=True)
    raise typer.Exit(130)


def _reproduced(old: Run, found: Reproduction) -> list[str]:
    """Whether the same came out, and what may be why it didn't."""
    then, now = found.weights
    if found.same:
        return [f"The same, byte for byte: the history, epochs 1 to {found.epochs}, and the weights (SHA-256 {now})."]
    history = "is the same" if found.differs is None else f"differs from epoch {found.differs} on"
    weights = f"are the same (SHA-256 {now})" if then == now else f"differ (SHA-256 {then} then, {now} now)"
    return [
        f"Not the same: the history {history}; the weights {weights}. {found.run.judged.capitalize()} accuracy {_accuracy(old)} "
        f"then, {_accuracy(found.run)} now; whether that is more than chance: sightline compare {old.folder} {found.run.folder}",
        f"Not as it was then: {'; '.join(found.changed) or 'nothing that run.json knows of'}.",
    ]


def _new_folder(wanted: Path, taken: str = "run.json") -> Path:
    """`wanted`, or the first of wanted-2, wanted-3, … that holds no file `taken`: a finished run, or "" for any folder."""
    folder, i = wanted, 1
    while (folder / taken).exists():
        i += 1
        folder = wanted.with_name(f"{wanted.name}-{i}")
    return folder


def _say(*lines: Any) -> None:
    for line in lines:
        out.print(printable(line) if isinstance(line, str) else line, soft_wrap=isinstance(line, str), markup=False)


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False, default=list)
    print()


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def _rate(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
