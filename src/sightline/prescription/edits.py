"""A cause → edits of the augmentation policy, best first.

A magnitude comes from the probe's curve. Its knee is where the model begins to break: a transform that draws uniformly up to
twice the knee has its mean draw there, so that one comes first, and the one that only just reaches the knee second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import reduce
from typing import Any, NamedTuple

from ..augment import (
    Backdrop,
    Blur,
    CoarseDropout,
    ColorJitter,
    CutMix,
    Erase,
    Frame,
    Grey,
    HorizontalFlip,
    Jpeg,
    MixUp,
    Noise,
    RandomCrop,
    RandomErasing,
    Recombine,
    Restyle,
    Rotate,
    Scale,
    Shift,
    Stamp,
    Tint,
    Transform,
    TrivialAugmentWide,
    VerticalFlip,
    is_number,
    to_dicts,
)
from ..diagnosis import LEAST, Cause
from ..exceptions import RecipeError, nearest
from ..recipe import Recipe

MOST = 3  # edits a cause
OFTEN = 0.8  # most images are changed, and some are seen as they are
SMOOTHING = 0.1  # of labels of which some are wrong
DEFAULT_CAST = 25.0  # levels
INVARIANCES = (  # what a picture may undergo and keep its class, unless its owner says otherwise
    *("hflip", "vflip", "shift", "scale", "rotation", "brightness", "hue", "grey", "blur", "noise", "jpeg", "erase"),
    *("background", "texture"),
)
# Where a transform stands in a policy. What concerns a place in the data's own images comes before anything moves that place.
STAGES: tuple[tuple[type[Any], ...], ...] = (
    (Erase, Stamp, Frame),
    (RandomCrop, Shift, Scale, Rotate, HorizontalFlip, VerticalFlip),
    (Backdrop, Recombine),
    (ColorJitter, Grey, Tint, Restyle, TrivialAugmentWide),
    (Blur, Noise, Jpeg),
    (CoarseDropout, RandomErasing),
    (MixUp, CutMix),
)
RANGES = ("factor", "sigma", "std", "quality")  # arguments that are a pair (low, high) to draw from

Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class Edit:
    """One change of a recipe, for one cause.

    name: "hflip", "shift 1/8".  cause: its id.  policy: the whole augmentation, as edited.  why: a sentence.  changes: fields
    of the recipe besides `augment`.
    """

    name: str
    cause: str
    policy: tuple[Transform, ...]
    why: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, recipe: Recipe) -> Recipe:
        """Return the recipe as edited, its name with the edit's."""
        return recipe.with_(name=f"{recipe.name} + {self.name}", augment=self.policy, **self.changes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "name": self.name,
            "cause": self.cause,
            "why": self.why,
            "policy": to_dicts(self.policy),
            "changes": dict(self.changes),
        }


class _Idea(NamedTuple):
    """An edit before it meets a policy: transforms to add, and the invariances that they rely on."""

    name: str
    transforms: tuple[Transform, ...]
    needs: tuple[str, ...]
    why: str
    changes: Mapping[str, Any] = {}


def edits(cause: Cause, recipe: Recipe, *, size: Size = (32, 32), forbidden: Sequence[str] = ()) -> tuple[Edit, ...]:
    """Return at most three edits of `recipe` that could remove `cause`, best first; none where no training will help.

    size: height and width of the images, in pixels.  forbidden: names from INVARIANCES that these images don't have, so that
    nothing that relies on them is proposed. A transform of the same kind that the policy has already is made stronger, never
    doubled; an edit that would change nothing is left out.
    Raises RecipeError for an unknown cause or invariance.
    """
    refuse_unknown(forbidden)
    found: list[Edit] = []
    for idea in _ideas(cause, recipe, size):
        policy = with_transforms(recipe.augment, idea.transforms, size)
        edit = Edit(idea.name, cause.id, policy, idea.why, idea.changes)
        changed = recipe.with_(augment=policy, **idea.changes)
        known = [recipe, *(recipe.with_(augment=other.policy, **other.changes) for other in found)]
        if changed not in known and not set(idea.needs) & set(forbidden):
            found.append(edit)
    return tuple(found[:MOST])


def generic(recipe: Recipe, size: Size = (32, 32)) -> Recipe:
    """Return `recipe` with TrivialAugment and a hole of half the side (Cutout's for CIFAR-10): what needs no diagnosis.

    Müller and Hutter 2021, https://arxiv.org/abs/2103.10158; DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552.
    """
    both = (TrivialAugmentWide(), CoarseDropout(max(1, min(size) // 2), 1.0))
    return recipe.with_(name=f"{recipe.name} + TrivialAugment + Cutout", augment=with_transforms(recipe.augment, both, size))


def refuse_unknown(forbidden: Sequence[str]) -> None:
    """Raise RecipeError for a name that is no invariance."""
    for name in forbidden:
        if name not in INVARIANCES:
            raise RecipeError(f"unknown invariance '{name}': {nearest(name, INVARIANCES)}")


# What is there already


def with_transforms(policy: Sequence[Transform], new: Sequence[Transform], size: Size) -> tuple[Transform, ...]:
    """Return `policy` with each of `new`: joined with one of its kind that is there, else put where its stage belongs."""
    return reduce(lambda before, transform: _with(before, transform, size), new, tuple(policy))


def _with(policy: tuple[Transform, ...], new: Transform, size: Size) -> tuple[Transform, ...]:
    alike = [i for i, old in enumerate(policy) if _kind(old) == _kind(new)]
    if alike:
        i = min(alike, key=lambda i: type(policy[i]) is not type(new))  # of the same type rather than only of the same kind
        return (*policy[:i], _stronger(policy[i], new, size), *policy[i + 1 :])
    place = next((i for i, old in enumerate(policy) if _stage(old) > _stage(new)), len(policy))
    return (*policy[:place], new, *policy[place:])


def _stage(transform: Transform) -> int:
    """The place in STAGES; what is not known there counts as geometry, which most has to come after."""
    return next((i for i, types in enumerate(STAGES) if isinstance(transform, types)), 1)


def _kind(transform: Transform) -> object:
    """What a policy has at most once: a crop moves as a shift does; marks at two places are two things."""
    match transform:
        case RandomCrop() | Shift():
            return "shift"
        case CoarseDropout() | RandomErasing():
            return "hole"
        case Stamp() | Erase():
            return type(transform), transform.top, transform.left
    return type(transform)


def _stronger(old: Transform, new: Transform, size: Size) -> Transform:
    """One transform that does what both do, or the stronger where no one can."""
    match old, new:
        case (HorizontalFlip(), HorizontalFlip()) if old.p == 0.5:
            return old
        case (HorizontalFlip(), _) | (Stamp(), _):
            return new
        case (Shift(), _) | (RandomCrop(), Shift()):  # two shifts may be in other units
            return max(old, new, key=lambda transform: _reach(transform, size))
        case _ if type(old) is type(new):
            return _union(old, new)
    return max(old, new, key=lambda transform: _hidden(transform, size))


def _union(old: Any, new: Any) -> Transform:
    values: dict[str, Any] = {}
    for f in fields(old):
        a, b = getattr(old, f.name), getattr(new, f.name)
        if f.name in RANGES:
            values[f.name] = (min(a[0], b[0]), max(a[1], b[1]))
        elif is_number(a) and is_number(b):
            values[f.name] = max(a, b)
    joined: Transform = replace(old, **values)
    return joined


def _reach(transform: Any, size: Size) -> float:
    """How far a RandomCrop or a Shift moves an image at most, in pixels."""
    if isinstance(transform, RandomCrop):
        return transform.padding
    return float(transform.limit) * (min(size) if transform.unit == "fraction" else 1)


def _hidden(transform: Any, size: Size) -> float:
    """The mean share of an image that a CoarseDropout or a RandomErasing hides."""
    share = sum(transform.area) / 2 if isinstance(transform, RandomErasing) else transform.size**2 / (size[0] * size[1])
    return float(transform.p * share)


# What could help


def _ideas(cause: Cause, recipe: Recipe, size: Size) -> list[_Idea]:
    match cause.id:
        case "missing_flip":
            flip = HorizontalFlip(alternating=recipe.optimizer == "muon")
            return [_Idea("hflip", (flip,), ("hflip",), "mirror images are as good as these, and the model was shown none")]
        case "position":
            return _position(cause, recipe, size)
        case "scale":
            why = "the same thing larger or smaller is lost, so its size is varied in training"
            factors = [math.exp(v) for v in _strengths(cause, 1.33, math.log(2), by=lambda v: abs(math.log(v)))]
            return [_Idea(f"scale ×{f:.3g}", (Scale((1 / f, f), OFTEN),), ("scale",), why) for f in factors]
        case "rotation":
            why = "the same thing a little turned is lost, so it is turned in training"
            return [_Idea(f"rotate {v:.3g}°", (Rotate(v, OFTEN),), ("rotation",), why) for v in _strengths(cause, 10, 45)]
        case "lighting":
            why = "the same thing in another light is lost, so the light is varied in training"
            jitters = [(v, ColorJitter(v, v, 0, 0, OFTEN)) for v in _strengths(cause, 0.3, 0.9)]
            return [_Idea(f"light ±{100 * v:.3g} %", (jitter,), ("brightness",), why) for v, jitter in jitters]
        case "colour":
            return _colour(cause)
        case "blur_noise":
            return _quality(cause)
        case "occlusion":
            return _occlusion(cause, size)
        case "background":
            why = "the background tells the class, so behind each thing is put another image's, whatever its class"
            backdrops = [_Idea(f"backdrop {100 * p:.0f} %", (Backdrop(p=p),), ("background",), why) for p in (OFTEN, 0.5)]
            return [_recombined("the background"), *backdrops]
        case "mark":
            return _mark(cause, size)
        case "tint_frame":
            return _tint_frame(cause, size)
        case "texture":
            why = "the texture tells the class, so it is changed at random in training, and the shape must tell"
            return [
                _recombined("the texture"),
                _Idea("restyle 1", (Restyle(1.0, OFTEN),), ("texture", "hue"), why),
                _Idea("blur 1.5 px", (Blur((0, 1.5), OFTEN),), ("blur",), "a blur takes the texture's detail away"),
            ]
        case "label_errors":
            why = "no augmentation mends a wrong label: look at these images' labels; until then, each is trusted less"
            return [_Idea("label smoothing", (), (), why, {"label_smoothing": max(SMOOTHING, recipe.label_smoothing)})]
        case "ambiguous":
            return []
    raise RecipeError(f"unknown cause '{cause.id}': {nearest(cause.id, LEAST)}")


def _strengths(cause: Cause, default: float, most: float, by: Callable[[float], float] = abs) -> list[float]:
    """Magnitudes to draw up to, best first, none above `most`; `default` is the knee where the probe has no curve.

    Twice the knee, but at least the magnitude that the cause was judged at; the knee; and, for a policy that reaches as far
    already, twice the magnitude judged at. by: turns what the curve is over into a strength, which is 0 where nothing changes.
    """
    knee = by(cause.detail.get("knee") or default)
    judged = by(cause.detail.get("reference") or default)
    # Rounded, so that equal strengths of two logarithms are one.
    return list(dict.fromkeys(round(min(v, most), 9) for v in (max(2 * knee, judged), knee, 2 * judged)))


def _recombined(what: str) -> _Idea:
    """Amplitudes of any other image: half of the images keep their own, or nothing would look as it is."""
    why = f"{what} tells the class, so colours and textures are exchanged between images, and where things are must tell"
    return _Idea("recombine 50 %", (Recombine(0.5),), ("texture", "hue"), why)


def _position(cause: Cause, recipe: Recipe, size: Size) -> list[_Idea]:
    why = "the same thing elsewhere in the picture is lost, so it is moved about in training"
    crops = any(isinstance(transform, RandomCrop) for transform in recipe.augment)
    ideas = []
    for v in _strengths(cause, 0.25, 0.5):  # a place that stands for a class has no curve: half of the picture's width, then
        part, pixels = Fraction(v).limit_denominator(16), round(v * min(size))
        name, transform = (f"crop {pixels} px", RandomCrop(pixels)) if crops else (f"shift {part}", Shift(v, p=OFTEN))
        ideas.append(_Idea(name, (transform,), ("shift",), why))
    return ideas


def _colour(cause: Cause) -> list[_Idea]:
    why = "the colour tells the class, so it is varied in training"
    probe = cause.detail.get("change", cause.probe)
    turns = [0.5] if probe == "grey" else _strengths(cause, 0.1, 0.5)
    jitters = [(v, ColorJitter(0, 0, min(1.0, 4 * v), v, OFTEN)) for v in turns]
    hue = [_Idea(f"hue ±{v:.3g}", (jitter,), ("hue",), why) for v, jitter in jitters]
    grey = _Idea("grey", (Grey(0.5),), ("grey",), "the colour tells the class, so half of the images are shown without any")
    return [grey, *hue] if probe == "grey" else [hue[0], grey, *hue[1:]]


def _quality(cause: Cause) -> list[_Idea]:
    why = "a picture of lesser quality is lost, so the quality is lowered in training"
    probe = cause.detail.get("change", cause.probe)
    if probe == "noise":
        return [_Idea(f"noise {v:.3g}", (Noise((0, v), OFTEN),), ("noise",), why) for v in _strengths(cause, 0.04, 0.3)]
    if probe == "jpeg":
        qualities = [round(100 - loss) for loss in _strengths(cause, 40, 95, by=lambda quality: 100 - quality)]
        return [_Idea(f"jpeg {q}", (Jpeg((q, 100), OFTEN),), ("jpeg",), why) for q in qualities]
    return [_Idea(f"blur {v:.3g} px", (Blur((0, v), OFTEN),), ("blur",), why) for v in _strengths(cause, 1.0, 3.0)]


def _occlusion(cause: Cause, size: Size) -> list[_Idea]:
    why = "a thing that is partly hidden is lost, so a part of the picture is hidden in training"
    share = _strengths(cause, 3 / 8, 1 / 2)[0]
    pixels = max(1, round(share / 2 * min(size)))  # a hole as large as what may hide a thing teaches that nothing is to be seen
    return [
        _Idea(f"hole {pixels} px", (CoarseDropout(pixels, OFTEN),), ("erase",), why),
        _Idea("random erasing", (RandomErasing((0.02, 2 * share**2), p=OFTEN),), ("erase",), why),
        _Idea("cutmix", (CutMix(p=0.5),), ("erase",), "a thing that is partly hidden is lost, so parts of other images hide it"),
    ]


def _mark(cause: Cause, size: Size) -> list[_Idea]:
    """Of a mark whose place is known: hidden and put on every class alike, or one of the two; else holes anywhere."""
    if "box" not in cause.detail:
        side = max(1, min(size) // 4)
        why = "something small tells the class, so holes at random places hide it at times"
        return [_Idea(f"hole {side} px", (CoarseDropout(side, OFTEN),), ("erase",), why)]
    top, left, height, width = cause.detail["box"]
    margin = max(1, min(height, width) // 4)  # of what the probe's box may have missed
    first, start = max(0, top - margin), max(0, left - margin)
    last, end = min(size[0], top + height + margin), min(size[1], left + width + margin)
    erase = Erase(first, start, last - first, end - start, fill="noise", size=size)
    patch = tuple(tuple(tuple(int(v) for v in pixel) for pixel in row) for row in cause.detail["patch"])
    stamp = Stamp(patch, top, left, p=0.5, size=size)
    hidden, alike = "its place is filled with noise in every image", "half of all images get it, whatever their class"
    return [
        _Idea("erase and stamp", (erase, stamp), ("erase",), f"a mark tells the class: {hidden}, and then {alike}"),
        _Idea("erase", (erase,), ("erase",), f"a mark tells the class: {hidden}"),
        _Idea("stamp", (stamp,), ("erase",), f"a mark tells the class: {alike}"),
    ]


def _tint_frame(cause: Cause, size: Size) -> list[_Idea]:
    if cause.detail.get("form") == "frame":
        width = int(cause.detail.get("width") or max(1, min(size) // 16))
        why = "a frame tells the class, so every image gets one of a random colour"
        return [_Idea(f"frame {w} px", (Frame(w, 1.0),), ("erase",), why) for w in (width, 2 * width)]
    why = "a cast of colour tells the class, so every image gets a random one that drowns it"
    cast = round(max(map(abs, cause.detail.get("levels") or [DEFAULT_CAST])) / 255, 4)
    return [_Idea(f"tint ±{100 * v:.3g} %", (Tint(v, 1.0),), ("hue",), why) for v in (min(2 * cast, 0.5), min(4 * cast, 0.5))]
