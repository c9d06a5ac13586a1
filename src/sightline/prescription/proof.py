"""One edit proved: a plan before the test set is opened, full trainings of every arm, and the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .. import pipelines
from ..augment import HorizontalFlip, bind, to_albumentations
from ..comparison import compare_predictions, recipe_difference
from ..diagnosis import Cause, Diagnosis, least_of
from ..evaluation import open_test
from ..exceptions import RecipeError
from ..probes import Finding, Subject, probe
from ..runs import Predictions, Run, write_json
from .edits import Edit, generic
from .ground import Ground, Step, read_json
from .measures import collateral, effect_of, right_on, worst_class
from .plan import LEAST_ACCURACY, LEAST_GAIN, PROVED, Budget, Interval
from .pruning import FULL_GROUP, group_of

ALPHA = 0.05
BESIDE = "accuracy on test images, variety - current and sham; beside the primary measure, each at its own interval"


def promised(ground: Ground, plan: Budget, cause: Cause, edit: Edit, beside: Edit | None, diagnosis: Diagnosis) -> dict[str, Any]:
    """Write plan.json, what will be claimed and how it will be judged, unless it is there already; return it."""
    path = ground.folder / "plan.json"
    if not path.exists():
        ground.on_progress(Step("plan", _aim(edit, cause)))
        group = group_of(cause, diagnosis)
        primary = "probe" if cause.kind == "risk" else "group" if len(group) >= FULL_GROUP else "accuracy"
        measures = {
            "probe": f"effect of the probe {cause.probe} on dev images, current and sham - prescription",
            "group": "accuracy on the cause's images that were held back, prescription - current minus sham - current",
            "accuracy": "accuracy on test images, prescription - current and sham",
        }
        content = {
            "hypothesis": f"{edit.name} {'raises accuracy' if cause.kind == 'variety' else f'removes {cause.id}'}: {edit.why}",
            "cause": cause.id,
            "classes": [ground.data.classes[label] for label in cause.classes],
            "kind": cause.kind,
            "edit": edit.name,
            "primary": primary,
            "measure": measures[primary],
            "group": list(group),
            "least": {"probe": least_of(cause), "group": LEAST_GAIN, "accuracy": LEAST_ACCURACY}[primary],
            "variety": {"edit": beside.name, "measure": BESIDE} if beside else None,
            "alpha": ALPHA,
            "seeds": {arm: seeds_of(ground, plan, arm) for arm in plan.arms},
        }
        write_json(path, content)
    return read_json(path)


def seeds_of(ground: Ground, plan: Budget, arm: str) -> list[int]:
    """The seeds of an arm, which no other arm and no earlier run has."""
    first = ground.fresh + plan.arms.index(arm) * plan.seeds
    return list(range(first, first + plan.seeds))


def retrained(ground: Ground, plan: Budget, edit: Edit, beside: Edit | None = None) -> dict[str, list[Run]]:
    """Train every arm from the beginning; one seed of each before the next, so that what is cut short is still balanced."""
    recipes = {
        "current": ground.recipe,
        "sham": ground.recipe,
        "prescription": edit.apply(ground.recipe),
        "generic": generic(ground.recipe, ground.size),
        **({"variety": beside.apply(ground.recipe)} if beside else {}),
    }
    nets: dict[str, list[Run]] = {arm: [] for arm in plan.arms}
    for k in range(plan.seeds):
        for i, arm in enumerate(plan.arms):
            seed, count = seeds_of(ground, plan, arm)[k], len(plan.arms)
            step = Step("train", f"{arm}, seed {k + 1} of {plan.seeds}", k * count + i, plan.seeds * count)
            nets[arm].append(ground.trained(f"{arm}/seed-{seed}", recipes[arm], seed, step))
    return nets


def proved(ground: Ground, nets: Mapping[str, Sequence[Run]], cause: Cause, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Open the test set, probe again, and return the numbers, JSON-ready; differences are gains where they are above 0.

    plan: what plan.json says.
    primary: "group", "probe" or "accuracy".  gain: of that measure.  group: of the images held back: `n`, each arm's accuracy,
    the `gain` and the `null`. (prescription - current) minus (sham - current) is prescription - sham; sham - current, of one
    recipe, is the null.  effect: what the cause's probe finds in the nets of current and sham (before) and in the
    prescription's (after).
    accuracy: of each arm on test.  change: the prescription's over that of current and sham together, with one seed an arm over
    the sham's.  variety: the same of that arm, with its edit.  beyond_generic: over that of the generic arm.  worst_class: name
    and accuracy on test.  worse: classes (Holm) and other probes that got worse.
    """
    tests = {arm: [open_test(net, ground.data) for net in some] for arm, some in nets.items()}
    after = tests["prescription"]
    # Three single runs would leave one degree of freedom for what seeds do: of single ones `compare` takes the usual deviation.
    before = [*tests["current"], *tests["sham"]] if len(after) > 1 else tests["sham"]
    whole = compare_predictions(before, after)
    found_before = [_all_probes(ground, net) for net in (*nets["current"], *nets["sham"])]
    found_after = [_all_probes(ground, net) for net in nets["prescription"]]
    effect_before, effect_after = effect_of(found_before, cause), effect_of(found_after, cause)
    group = _on_group(nets, plan["group"])
    less = asdict(effect_before.minus(effect_after))
    lost = [c.name for c in whole.classes if c.difference and c.holm is not None and c.holm <= ALPHA and c.difference.value < 0]
    worse = collateral(found_before, found_after, cause)
    change = asdict(whole.difference)
    more = asdict(compare_predictions(before, tests["variety"]).difference) if "variety" in tests else None
    return {
        "primary": plan["primary"],
        "gain": {"group": group.get("gain"), "probe": less, "accuracy": change}[plan["primary"]],
        "group": group,
        "effect": {"before": asdict(effect_before), "after": asdict(effect_after)},
        "accuracy": {arm: _accuracy(some) for arm, some in tests.items()},
        "change": change,
        "variety": {"edit": plan["variety"]["edit"], "change": more} if more else None,
        "beyond_generic": asdict(compare_predictions(tests["generic"], after).difference) if "generic" in tests else None,
        "worst_class": {"before": worst_class(before), "after": worst_class(after)},
        "worse": [*lost, *(_called(finding, ground.data.classes) for finding in worse)],
    }


def summary(outcome: str, cause: Cause, edit: Edit, measures: Mapping[str, Any]) -> str:
    """A verdict in a sentence, with its numbers."""
    gain, change = interval_of(measures["gain"]), interval_of(measures["change"])
    before, after = (100 * measures["effect"][when]["value"] for when in ("before", "after"))
    primary = {
        "group": f"accuracy on {measures['group']['n']} images held back {_points(gain)}",
        "probe": f"the effect of the probe {cause.probe} goes from {before:.1f} to {after:.1f} %, a gain of {_points(gain)}",
        "accuracy": f"test accuracy {_points(change)}",
    }
    parts = [
        f"{_aim(edit, cause)}: {outcome}",
        primary[measures["primary"]],
        *([primary["accuracy"]] if measures["primary"] != "accuracy" else []),
        *([f"worse: {', '.join(measures['worse'])}"] if measures["worse"] else []),
        *([f"smallest effect that could be told: {100 * gain.detectable:.1f} points"] if outcome == "cannot tell" else []),
        *_of_variety(measures.get("variety")),
        *([_instead(measures.get("variety"))] if outcome not in PROVED and change.high < 0 else []),
    ]
    return "; ".join(parts)


def _aim(edit: Edit, cause: Cause) -> str:
    return f"{edit.name} for variety" if cause.kind == "variety" else f"{edit.name} against {cause.id}"


def _of_variety(found: Mapping[str, Any] | None) -> list[str]:
    if not found:
        return []
    change = interval_of(found["change"])
    return [f"{found['edit']} for variety in its place: test accuracy {_points(change)}"]


def _instead(found: Mapping[str, Any] | None) -> str:
    better = found is not None and found["change"]["low"] > 0
    return f"accuracy is lost: {'take the variety in its place' if better else 'keep the recipe as it is'}"


def interval_of(values: Mapping[str, Any]) -> Interval:
    """The interval in a dictionary that holds more."""
    return Interval(values["value"], values["low"], values["high"])


def exported(ground: Ground, edit: Edit, beside: Edit | None = None) -> str:
    """Write recipe.json, variety.json and albumentations.json; return the latter's name, or why there is none."""
    recipe = edit.apply(ground.recipe)
    write_json(ground.folder / "recipe.json", recipe.to_dict())
    if beside:
        write_json(ground.folder / "variety.json", beside.apply(ground.recipe).to_dict())
    path = ground.folder / "albumentations.json"
    # Flips that alternate are flips of half of the images, too; only which epoch shows which side is lost.
    drawn = [HorizontalFlip() if isinstance(t, HorizontalFlip) and t.alternating else t for t in recipe.augment]
    try:
        compose = to_albumentations(bind(drawn, ground.data.normalisation[0]), ground.size)
        write_json(path, pipelines.plain(compose.to_dict()))
    except RecipeError as error:
        return str(error)
    return path.name


def _on_group(nets: Mapping[str, Sequence[Run]], ids: Sequence[str]) -> dict[str, Any]:
    if not ids:
        return {"n": 0}
    right = {arm: right_on([net.predictions for net in some], ids) for arm, some in nets.items()}
    share = len(ids) / len(nets["sham"][0].predictions)
    return {
        "n": len(ids),
        "accuracy": {arm: float(some.mean()) for arm, some in right.items()},
        "gain": asdict(recipe_difference(right["sham"], right["prescription"], share)),
        "null": asdict(recipe_difference(right["current"], right["sham"], share)),
    }


def _all_probes(ground: Ground, net: Run) -> list[Finding]:
    return probe(Subject.of(net, ground.data, device=ground.device), field=ground.field)


def _accuracy(predictions: Iterable[Predictions]) -> float:
    shares = [float((p.predicted == p.labels).mean()) for p in predictions]
    return sum(shares) / len(shares)


def _called(finding: Finding, classes: Sequence[str]) -> str:
    return f"{finding.probe} ({finding.cause})" + ("" if finding.label is None else f" of {classes[finding.label]}")


def _points(interval: Interval) -> str:
    value, low, high = (100 * v for v in (interval.value, interval.low, interval.high))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"
