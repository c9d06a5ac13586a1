"""Which edit is worth full trainings: each in a short fine-tune of the run's weights, beside a sham on the old policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ..comparison import recipe_difference
from ..diagnosis import Cause, Diagnosis
from ..exceptions import RecipeError
from ..recipe import Recipe
from ..runs import Run
from .edits import Edit
from .ground import Ground, Step
from .measures import Standing, held_back, standing
from .plan import LEAST_ACCURACY

TUNED = 0.1  # of the epochs
RATE = 0.1  # of the run's own peak rate
LEAST_GROUP = 10  # images held back: of fewer, only the probe is judged
FULL_GROUP = 100  # images of which a gain of ten points can be told: of fewer it counts in proportion
HARM = 0.05  # of dev's accuracy: what a short fine-tune may lose, which a full training has the time to win back
NEARLY = 0.9  # of the best score: less of a difference is chance, and the edits' order says more


@dataclass(frozen=True)
class Trial:
    """An edit after a short fine-tune, beside the sham: gains are above 0.

    effect: what the cause's probe finds less.  group: the gain of the accuracy on the cause's images that were held back; None
    where they are too few.  accuracy, worst_class: the change of dev's, as in `Standing`.  score: what edits are ranked by, the
    mean of the first two, the second weighed by how many images it is of.  harmful: what accuracy it costs is too much.
    """

    cause: str
    edit: str
    effect: float
    group: float | None
    accuracy: float
    worst_class: float
    score: float
    harmful: bool

    @property
    def promising(self) -> bool:
        """Whether full trainings are worth their time."""
        return self.score > 0 and not self.harmful


def tuning_epochs(epochs: int) -> int:
    """The epochs of a short fine-tune after a training of so many."""
    return max(1, round(TUNED * epochs))


def tuning(recipe: Recipe) -> Recipe:
    """Return the recipe of a short fine-tune: a small rate that falls to nothing, all images at their full size.

    Raises RecipeError where the rate of the training before it is left open.
    """
    if recipe.max_lr == "auto":
        raise RecipeError(f"recipe '{recipe.name}': a fine-tune needs the rate of the training before it; give max_lr")
    return recipe.with_(
        epochs=tuning_epochs(recipe.epochs),
        max_lr=RATE * recipe.max_lr,
        peak=0.01,
        start_lr=1.0,
        anneal="linear",
        ema=0.0,
        sizes=(),
        keep=(),
        views="none",
        test_epochs="last",
    )


def pruned(
    ground: Ground, seeds: int, candidates: Sequence[tuple[Cause, Edit]], diagnosis: Diagnosis
) -> tuple[list[Trial], int | None]:
    """Try the edits of one cause after the other until one is promising; return all trials, and the place of the best one.

    The candidates of a cause lie together, those of the gravest first. The trials are in the order of the candidates.
    """
    sham = _tuned(ground, "sham", ground.recipe, seeds)
    trials: list[Trial] = []
    for cause, some in groupby(candidates, lambda pair: pair[0]):
        first, group = len(trials), group_of(cause, diagnosis)
        before = _standing(ground, sham, cause, group)
        for _, edit in some:
            nets = _tuned(ground, f"edit {len(trials) + 1}, {edit.name}", edit.apply(ground.recipe), seeds)
            trials.append(judged(cause, edit, before, _standing(ground, nets, cause, group), len(group)))
        promising = [i for i in range(first, len(trials)) if trials[i].promising]
        if promising:
            enough = NEARLY * max(trials[i].score for i in promising)
            return trials, next(i for i in promising if trials[i].score >= enough)
    return trials, None


def group_of(cause: Cause, diagnosis: Diagnosis) -> tuple[str, ...]:
    """The ids of the mistakes that the cause's counterfactual repairs and that are held back."""
    return tuple(name for name in diagnosis.groups.get(cause.id, ()) if held_back(name))


def judged(cause: Cause, edit: Edit, sham: Standing, after: Standing, group: int) -> Trial:
    """Compare the nets that were tuned with an edit with those of the sham; `group` images were held back."""
    effect, change = sham.effect.value - after.effect.value, recipe_difference(sham.right, after.right)
    gain, weight = None, min(1.0, group / FULL_GROUP)
    if group >= LEAST_GROUP and sham.group is not None and after.group is not None:
        gain = after.group - sham.group
    return Trial(
        cause.id,
        edit.name,
        effect,
        gain,
        change.value,
        after.worst_class - sham.worst_class,
        effect if gain is None else (effect + weight * gain) / (1 + weight),
        # An edit for the sake of accuracy that surely loses some has missed its aim before the trainings begin.
        change.value <= -HARM or (cause.kind == "cost" and change.high < -LEAST_ACCURACY),
    )


def _standing(ground: Ground, nets: Sequence[Run], cause: Cause, group: Sequence[str]) -> Standing:
    return standing(nets, ground.data, cause, group, field=ground.field, device=ground.device)


def _tuned(ground: Ground, name: str, recipe: Recipe, seeds: int) -> list[Run]:
    nets = []
    for k in range(seeds):
        begin = ground.runs[k % len(ground.runs)]
        step = Step("prune", f"fine-tune, {name}, seed {k + 1} of {seeds}", k, seeds)
        place = f"tuned/{name.partition(',')[0].replace(' ', '-')}/seed-{ground.fresh + k}"
        nets.append(ground.trained(place, tuning(recipe), ground.fresh + k, step, begin.folder / "model.safetensors"))
    return nets
