"""What no cause asks for: pictures that the model bears, and that training never shows it.

Where mirror images or small moves cost the model next to nothing, a picture keeps its class under them; where the policy makes
none, each is one picture more to learn from. Both are needed: likeness to the data and diversity (Gontijo-Lopes et al. 2021,
https://arxiv.org/abs/2002.08973). What it is worth no probe can show, and no short fine-tune: only whole trainings do. So
variety isn't pruned. It is an arm of the proof, beside a cause's edit; where there is none, it is what is proved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..augment import HorizontalFlip, PerSample, RandomCrop, Shift, Transform, TrivialAugmentWide
from ..diagnosis import Cause, Diagnosis, least
from ..probes.evidence import FEWEST
from ..recipe import Recipe
from .edits import Edit, Size, refuse_unknown, with_transforms

WHY = "the model bears it, so a picture keeps its class, and training shows none: each is one picture more to learn from"

# In pipelines that run through Albumentations, of its versions 1 and 2.
FLIPS = frozenset(("HorizontalFlip", "Flip", "D4", "SquareSymmetry"))
MOVES = frozenset(("Affine", "CropAndPad", "ElasticTransform", "GridDistortion", "Perspective", "RandomCrop")) | frozenset(
    ("RandomCropFromBorders", "RandomResizedCrop", "RandomScale", "RandomSizedCrop", "SafeRotate", "ShiftScaleRotate")
)


class _Kind(NamedTuple):
    """A kind of variety: its invariance, what makes it already, Sightline's and Albumentations', and what would."""

    needs: str
    made: tuple[type[Transform], ...]
    elsewhere: frozenset[str]
    name: str
    transform: Transform

    def lacks(self, recipe: Recipe) -> bool:
        """Whether no transform of the recipe makes it."""
        return not any(
            isinstance(t, self.made) or (isinstance(t, PerSample) and self.elsewhere & t.inside) for t in recipe.augment
        )


def variety(
    diagnosis: Diagnosis, recipe: Recipe, *, size: Size = (32, 32), forbidden: Sequence[str] = ()
) -> tuple[Cause, Edit] | None:
    """Return the edit that adds the variety that `recipe` lacks, with what the probe of it found; None where it lacks none.

    The cause is of the kind "variety", which no diagnosis declares: its probe found too little to be one. size: height and width
    of the images, in pixels.  forbidden: names from `edits.INVARIANCES`. Raises RecipeError for an unknown one.
    """
    refuse_unknown(forbidden)
    declared = {cause.id for cause in diagnosis.causes}
    borne = {f["probe"]: f for f in diagnosis.findings if f["probe"] in ("flip", "shift") and _borne(f, declared)}
    kinds = {probe: kind for probe, kind in _kinds(recipe, size).items() if probe in borne and kind.needs not in forbidden}
    lacking = {probe: kind for probe, kind in kinds.items() if kind.lacks(recipe)}
    if not lacking:
        return None
    cause = _as_cause(borne[next(iter(lacking))])
    policy = with_transforms(recipe.augment, [kind.transform for kind in lacking.values()], size)
    return cause, Edit(" and ".join(kind.name for kind in lacking.values()), cause.id, policy, WHY)


def _kinds(recipe: Recipe, size: Size) -> dict[str, _Kind]:
    pixels = max(1, min(size) // 8)  # of CIFAR-10 the usual four
    flip, crop = HorizontalFlip(alternating=recipe.optimizer == "muon"), RandomCrop(pixels)
    return {
        "flip": _Kind("hflip", (HorizontalFlip,), FLIPS, "hflip", flip),
        "shift": _Kind("shift", (RandomCrop, Shift, TrivialAugmentWide), MOVES, f"crop {pixels} px", crop),
    }


def _borne(finding: Mapping[str, Any], declared: set[str]) -> bool:
    """Whether enough images were tried, and so few are lost that it couldn't be a cause, however sure."""
    if finding.get("n", 0) < FEWEST or finding["cause"] in declared:
        return False
    return bool(finding["effect"] < least(finding["probe"], finding["cause"]))


def _as_cause(finding: Mapping[str, Any]) -> Cause:
    figures = {key: finding[key] for key in ("probe", "effect", "low", "high", "q", "rate", "sham", "n")}
    return Cause(finding["cause"], (), "variety", repaired=0.0, images=(), detail={}, **figures)
