"""A cause's edits tried, the best one proved: stages on disk, so that a killed fix goes on.

FOLDER/fix.json              what each stage that is done has found; at the end, the result
FOLDER/tuned/…/seed-S/       short fine-tunes of the run, with each edit and with the recipe as it is (the sham)
FOLDER/plan.json             what will be claimed, and how it will be judged; written before the test set is opened
FOLDER/recipe.json           the edited recipe, for `sightline train -r`
FOLDER/variety.json          that of the arm with more variety, where there is one
FOLDER/albumentations.json   its augmentation, for `albumentations.load`, where it can be said in these words
FOLDER/ARM/seed-S/           full trainings with fresh seeds
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import runs
from ..datasets import Dataset
from ..diagnosis import Cause, Diagnosis, diagnose
from ..exceptions import DataError, RecipeError, RunError, nearest
from ..models import device_of
from ..precision import machine
from ..probes import PROBES
from ..recipe import Recipe
from ..runs import Run
from .edits import Edit, edits, refuse_unknown
from .ground import Ground, Journal, OnStep, Step
from .plan import PROVED, VARIETY, Budget, Costs, clock, plan_budget, verdict
from .proof import exported, interval_of, promised, proved, retrained, summary
from .pruning import pruned, tuning_epochs
from .variety import variety

Candidate = tuple[Cause, Edit]
Candidates = Sequence[Candidate]

NOTHING = "no cause found: nothing to fix"
NO_EDIT = "no edit to try"


@dataclass(frozen=True)
class Fix:
    """What came of a fix; all values are JSON-ready.

    verdict: a `plan.Outcome`, or that there was nothing to fix or to try.  summary: a sentence with the numbers.  cause, edit:
    what the proof is about, None where nothing came that far.  trials: every edit that was tried, as `pruning.Trial`.  plan:
    what was claimed before the test set was opened.  measures: see `proof.proved`.  albumentations: the file's name, or why
    there is none.  seconds: what all of it took.
    """

    verdict: str
    summary: str
    folder: str
    cause: dict[str, Any] | None = None
    edit: dict[str, Any] | None = None
    trials: tuple[dict[str, Any], ...] = ()
    plan: dict[str, Any] | None = None
    measures: dict[str, Any] | None = None
    albumentations: str | None = None
    seconds: float = 0.0

    @property
    def proved(self) -> bool:
        """Whether the edit does what it is for, whatever else it does."""
        return self.verdict in PROVED

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    def _repr_html_(self) -> str:
        """Show the verdict and what was tried in a notebook."""
        from ..notebook import of_fix

        return of_fix(self)


def fix(
    run: Run | Sequence[Run],
    data: Dataset | None,
    folder: str | Path,
    *,
    budget: float | None = None,
    seeds: int | None = None,
    forbidden: Sequence[str] = (),
    against: str | None = None,
    diagnosis: Diagnosis | None = None,
    field: NDArray[np.uint8] | None = None,
    device: str | None = None,
    on_progress: OnStep = lambda step: None,
) -> Fix:
    """Try edits of the recipe against the causes of a run's mistakes, and prove the best one by full trainings.

    run: a run, or several seeds of one recipe.  data: theirs, loaded by its name if not given.  folder: where everything is kept;
    a killed fix goes on from there when called again with the same arguments.  budget: seconds for everything; arms, and seeds
    where they aren't given, are fitted to it.  forbidden: names from `edits.INVARIANCES` that the images don't have.
    against: the id of a cause, or "variety": only that is tried, all of them in the order of their gravity if not given.
    diagnosis: of `run`; else the one in its folder, else it is made.  field: images from where the model is used, see `diagnose`.

    The gravest cause comes first: its edits are tried by short fine-tunes beside a sham, and if one is promising it alone is
    proved, by fresh seeds of the current recipe, of the same again (the sham), of the edited one, of TrivialAugment + Cutout,
    and of what `variety` finds lacking. Where no edit is promising, variety is what is proved.
    Raises RunError for a run that can't be trained again here or has no dev images, and for a folder with something else;
    RecipeError for an unknown invariance or cause; TrainingError for a budget that is too short.
    """
    given = (run,) if isinstance(run, Run) else tuple(run)
    refuse_unknown(forbidden)
    recipe = _recipe_of(given)
    data = given[0].dataset() if data is None else data
    _refuse_unfit(given, data)
    ground = Ground(given, data, recipe, Path(folder), device, on_progress, field)
    diagnosis = diagnosis or _diagnosis(ground)
    if field is None and diagnosis.field:
        raise DataError(f"the diagnosis looked at {diagnosis.field} images from the field too: give them again with --field")
    causes, more = _aims(diagnosis, against), variety(diagnosis, recipe, size=ground.size, forbidden=forbidden)
    found = [(cause, edit) for cause in causes for edit in edits(cause, recipe, size=ground.size, forbidden=forbidden)]
    if not diagnosis.causes and more is None:
        return Fix(NOTHING, f"{diagnosis.mistakes} mistakes in {diagnosis.n} images, and no probe found a cause", str(folder))
    if not found and more is None:
        names = ", ".join(dict.fromkeys(cause.id for cause in causes)) or "a lack of variety"
        return Fix(NO_EDIT, f"nothing in training helps against {names} within the declared invariances", str(folder))
    settings = {
        "recipe": recipe.to_dict(),
        "data": [data.content_hash, *data.left_out] if data.left_out else data.content_hash,
        "runs": [net.info["seed"] for net in given],
        "budget": budget,
        "seeds": seeds,
        "forbidden": sorted(forbidden),
        "field": None if field is None else hashlib.sha256(field.tobytes()).hexdigest(),
        "candidates": [[cause.id, cause.classes, edit.name] for cause, edit in found],
        "variety": None if more is None else more[1].name,
    }
    journal = Journal(ground.folder, settings)
    if "result" not in journal:
        with runs.locked(ground.folder):
            if "budget" not in journal:
                journal.keep("budget", asdict(_planned(ground, diagnosis, len(found), bool(found and more), budget, seeds)))
            _campaign(ground, journal, diagnosis, found, more)
    result = journal["result"]
    return Fix(**{**result, "folder": str(folder), "trials": tuple(result["trials"]), "seconds": journal["seconds"]})


def _campaign(ground: Ground, journal: Journal, diagnosis: Diagnosis, candidates: Candidates, more: Candidate | None) -> None:
    """All stages after the first; those that the journal holds are not done again."""
    plan = Budget(**{**journal["budget"], "arms": tuple(journal["budget"]["arms"])})
    if "pruned" not in journal:
        trials, best = pruned(ground, plan.seeds, candidates[: plan.candidates], diagnosis) if candidates else ([], None)
        journal.keep("pruned", {"trials": [asdict(trial) for trial in trials], "best": best})
    tried, chosen = journal["pruned"]["trials"], journal["pruned"]["best"]
    vain = f"of {len(tried)} tried in short fine-tunes, no edit did more than the sham without costing too much accuracy"
    proving = more if chosen is None else candidates[chosen]
    if proving is None:
        journal.keep("result", asdict(Fix("no effect", vain, "", trials=tuple(tried))))
        return
    cause, edit = proving
    if proving is more:  # what is proved needs no arm of its own beside
        plan = replace(plan, arms=tuple(arm for arm in plan.arms if arm != VARIETY))
    beside = more[1] if more and VARIETY in plan.arms else None
    claim = promised(ground, plan, cause, edit, beside, diagnosis)
    albumentations = exported(ground, edit, beside)
    nets = retrained(ground, plan, edit, beside)
    ground.on_progress(Step("verify", "the test set, and all probes again"))
    measures = proved(ground, nets, cause, claim)
    gain, change = interval_of(measures["gain"]), interval_of(measures["change"])
    outcome = verdict(cause.kind, gain, change, measures["worse"], claim["least"])
    told = [summary(outcome, cause, edit, measures), *([vain] if tried and chosen is None else [])]
    known = {key: value for key, value in asdict(cause).items() if key not in ("detail", "images")}
    journal.keep(
        "result", asdict(Fix(outcome, "; ".join(told), "", known, edit.to_dict(), tuple(tried), claim, measures, albumentations))
    )


def _recipe_of(given: Sequence[Run]) -> Recipe:
    """The runs' recipe, at the rate that was used. Raises RunError where the weights don't come from it alone."""
    if not given:
        raise RunError("there is no run to fix; name one")
    info = given[0].info
    for run in given:
        if not run.info["recipe"] or run.info.get("weights"):
            raise RunError(
                f"{run.folder} can't be trained again here, since its weights came from elsewhere: diagnosis yes, fix no; "
                "train it from a recipe with `sightline train`"
            )
        if run.info["recipe"] != info["recipe"]:
            raise RunError(f"{run.folder} and {given[0].folder} have other recipes; fix seeds of one recipe together")
    return Recipe.from_dict(info["recipe"]).with_(max_lr=info["max_lr"])


def _aims(diagnosis: Diagnosis, against: str | None) -> tuple[Cause, ...]:
    """The causes that edits are tried against. Raises RecipeError where there is none of that name."""
    if against is None:
        return diagnosis.causes
    names = [*dict.fromkeys(cause.id for cause in diagnosis.causes), VARIETY]
    if against not in names:
        raise RecipeError(f"the diagnosis found no cause '{against}': {nearest(against, names)}")
    return tuple(cause for cause in diagnosis.causes if cause.id == against)


def _refuse_unfit(given: Sequence[Run], data: Dataset) -> None:
    for run in given:
        run.check(data)
        if run.judged != "dev":
            raise RunError(f"{run.folder} has no dev images, and the test set is not for choosing; train again with --dev 0.1")
    if data.dev is None:
        raise DataError(f"{data.name} has no dev images; load it as the run did: run.dataset()")


def _diagnosis(ground: Ground) -> Diagnosis:
    """The diagnosis in the first run's folder, if it is of as many runs; else a new one."""
    path = ground.runs[0].folder / "diagnosis.json"
    found = Diagnosis.read(path) if path.exists() else None
    if found and len(found.runs) == len(ground.runs) and (ground.field is None or found.field == len(ground.field)):
        return found

    def say(label: str, done: int, total: int) -> None:
        ground.on_progress(Step("diagnose", label, done, total))

    return diagnose(ground.runs, ground.data, field=ground.field, device=ground.device, on_progress=say)


def _planned(
    ground: Ground, diagnosis: Diagnosis, candidates: int, variety: bool, budget: float | None, seeds: int | None
) -> Budget:
    """Fit the fix to the budget, by what the run and its diagnosis took, and say what it will take."""
    info = ground.runs[0].info
    training, probes = float(info["results"]["seconds"]), diagnosis.seconds / len(ground.runs)
    share = tuning_epochs(ground.recipe.epochs) / ground.recipe.passes
    costs = Costs(training, training * share, probes / len(PROBES), probes)
    plan = plan_budget(costs, candidates, variety=variety, budget=budget, seeds=seeds)
    same = info["machine"] == machine(device_of(ground.device))
    tuned, trained = plan.seeds * (plan.candidates + bool(candidates)), plan.seeds * len(plan.arms)
    tunes = f"at most {tuned} short fine-tunes ({clock(costs.tuning)} each) and " if tuned else ""
    text = (
        f"{tunes}{trained} full trainings ({clock(costs.training)} each), {plan.seeds} of each of {', '.join(plan.arms)}: "
        f"about {clock(plan.seconds)} {'on this machine' if same else 'if this machine is as fast as ' + info['machine']}"
    )
    ground.on_progress(Step("cost", text))
    return plan
