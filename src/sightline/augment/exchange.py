"""Albumentations in and out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from .. import pipelines
from ..exceptions import RecipeError
from .base import Transform, rounded
from .colour import ColorJitter, Grey
from .erasing import CoarseDropout, RandomErasing
from .geometry import HorizontalFlip, RandomCrop, Rotate, Scale, Shift, VerticalFlip
from .persample import PerSample
from .policy import from_dicts, to_dicts
from .quality import Blur, Jpeg, Noise
from .remedies import Erase, Frame, Restyle, Stamp, Tint


def from_albumentations(pipeline: Any) -> tuple[Transform, ...]:
    """Return the policy that does what an Albumentations pipeline does.

    `pipeline` is an `albumentations.Compose` (or a single transform), the dictionary that `albumentations.to_dict`
    makes of one, or the path of a .json, .yaml or .yml file that `albumentations.save` wrote; of Albumentations 1 or 2.

    - Pad or PadIfNeeded (centred, by reflection or a constant) followed by RandomCrop becomes Sightline's own.
    - So do HorizontalFlip, VerticalFlip, ColorJitter, ToGray, GaussianBlur, GaussNoise, ImageCompression (JPEG) and
      Erasing; RGBShift with the same limits for all; CoarseDropout with one square hole of a fixed size in pixels;
      RandomBrightnessContrast without brightness; what `to_albumentations` wrote of transforms that only Sightline has;
      Affine, Rotate and ShiftScaleRotate where they do only one of the three, bilinearly, the same to both sides or
      axes, with border_mode=4 (a shift also with a constant). Each needs limits and methods that Sightline's has.
    - NoOp is left out, and so are Normalize, ToFloat and ToTensorV2 at the end: Sightline normalises by itself, with
      the training images' mean and standard deviation. Elsewhere they are refused: all here works on uint8 images.
    - All from the first other transform to the last becomes one `PerSample`, what is between them included: a padding
      there may need a crop further on.

    Raises RecipeError for a file that can't be read, an unknown transform, an argument that a transform doesn't know
    (Albumentations itself only warns), and where the package is missing.
    """
    _wrapper()  # Albumentations reads only classes that it has seen
    steps = _steps(_images_only(pipelines.read(pipeline)))
    unknown = [i for i, (transform, _) in enumerate(steps) if transform is None]
    first, last = (unknown[0], unknown[-1] + 1) if unknown else (len(steps), len(steps))
    slow = [item for _, items in steps[first:last] for item in items]
    middle = [PerSample(pipelines.spec(slow))] if slow else []
    known = [[t for t, _ in part if t is not None] for part in (steps[:first], steps[last:])]
    return (*known[0], *middle, *known[1])


def to_albumentations(policy: Sequence[Transform], size: tuple[int, int] = (32, 32)) -> Any:
    """Return an `albumentations.Compose` with the distribution of `policy` on images of `size` (height, width).

    Stamp, Erase, Frame and Restyle, which Albumentations lacks, become a `SightlineTransform`: to load them from a file
    that `albumentations.save` wrote, import `sightline.augment.imagewise` first.

    Raises RecipeError for a fill of "mean", which `bind` replaces; for TrivialAugmentWide, MixUp, CutMix, Backdrop and
    flips that alternate, which Albumentations can't do; and where Albumentations is missing.
    """
    A = pipelines.albumentations()
    return A.Compose([out for transform in policy for out in _export(A, transform, size)])


def _export(A: Any, transform: Transform, size: tuple[int, int]) -> list[Any]:
    reflected = {"border_mode": pipelines.BORDER_REFLECT_101}
    match transform:
        case RandomCrop(padding, fill, own):
            border = reflected if fill is None else {"fill": _exported(fill)}
            return [A.Pad(padding=padding, **border), A.RandomCrop(*(own or size))]
        case Shift(limit, unit, fill, p):
            border = reflected if fill is None else {"fill": _exported(fill)}
            name = "translate_px" if unit == "pixels" else "translate_percent"
            return [A.Affine(**{name: {"x": (-limit, limit), "y": (-limit, limit)}}, **border, p=p)]
        case Scale(factor, p):
            return [A.Affine(scale=factor, keep_ratio=True, **reflected, p=p)]
        case Rotate(limit, p):
            return [A.Rotate((-limit, limit), **reflected, p=p)]
        case HorizontalFlip(p, False):
            return [A.HorizontalFlip(p=p)]
        case VerticalFlip(p):
            return [A.VerticalFlip(p=p)]
        case CoarseDropout(side, p, fill) if not isinstance(fill, str):
            hole = {"hole_height_range": (side, side), "hole_width_range": (side, side), "num_holes_range": (1, 1)}
            return [A.CoarseDropout(**hole, fill=_exported(fill), p=p)]
        case RandomErasing(area, ratio, fill, p) if not isinstance(fill, str):
            return [A.Erasing(area, ratio, fill=_exported(fill), p=p)]
        case ColorJitter(brightness, contrast, saturation, hue, p):
            return [A.ColorJitter(brightness, contrast, saturation, hue, p=p)]
        case Tint(strength, p):
            return [A.RGBShift(strength, strength, strength, p=p)]
        case Grey(p):
            return [A.ToGray(p=p)]
        case Blur(sigma, p):
            return [A.GaussianBlur(blur_limit=0, sigma_limit=sigma, p=p)]
        case Noise(std, p):
            return [A.GaussNoise(std, p=p)]
        case Jpeg(quality, p):
            return [A.ImageCompression("jpeg", quality, p=p)]
        case PerSample():
            return [transform.compose]
        case CoarseDropout() | RandomErasing() | Erase(fill="mean"):
            raise RecipeError(f"to_albumentations: {transform} has no form there; call bind(policy, mean) first")
        case Stamp() | Erase() | Frame() | Restyle():
            (item,) = to_dicts([transform])
            p = item.pop("p")
            return [_wrapper()(item, p)]
    raise RecipeError(f"to_albumentations: {transform} has no form there; leave it out, or train with Sightline")


def _wrapper() -> Any:
    """Return the class SightlineTransform; its import needs Albumentations, and makes that know the class."""
    from .imagewise import SightlineTransform

    return SightlineTransform


def _exported(fill: tuple[float, ...]) -> int | tuple[int, ...]:
    levels = rounded(fill)
    return levels[0] if len(levels) == 1 else levels


CONVERSIONS = ("Normalize", "ToFloat", "ToTensorV2")


def _images_only(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out NoOp, and the conversions at the end; raise RecipeError for a conversion before anything else."""
    items = [item for item in items if item["__class_fullname__"] != "NoOp"]
    while items and items[-1]["__class_fullname__"] in CONVERSIONS and items[-1]["p"] == 1:
        items.pop()
    for item in items:
        if item["__class_fullname__"] in CONVERSIONS:
            raise RecipeError(
                f"Albumentations {item['__class_fullname__']}: it stands before another transform or has p < 1; "
                "Sightline augments uint8 images and normalises them itself: move it to the end, or remove it"
            )
    return items


def _steps(items: list[dict[str, Any]]) -> list[tuple[Transform | None, list[dict[str, Any]]]]:
    """Return the batched transforms, None where there is none, each with the dictionaries that it stands for."""
    steps: list[tuple[Transform | None, list[dict[str, Any]]]] = []
    while items:
        pair = _crop(*items[:2]) if len(items) > 1 else None
        taken = 2 if pair else 1
        steps.append((pair or _single(items[0]), items[:taken]))
        items = items[taken:]
    return steps


def _single(item: dict[str, Any]) -> Transform | None:
    """Return the batched form of one transform, None where there is none."""
    p = item["p"]
    match item["__class_fullname__"]:
        case "HorizontalFlip":
            return HorizontalFlip(p)
        case "VerticalFlip":
            return VerticalFlip(p)
        case "CoarseDropout":
            return _dropout(item)
        case "Erasing":
            return _erasing(item)
        case "Affine" | "Rotate" | "ShiftScaleRotate":
            return _affine(_as_affine(item))
        case "ColorJitter":
            return _jitter(item)
        case "RandomBrightnessContrast":
            gain = _symmetric(item["contrast_limit"])
            alone = _symmetric(item["brightness_limit"]) == 0 and not item["ensure_safe_range"]
            return ColorJitter(gain, 0.0, 0.0, 0.0, p) if alone and gain is not None and gain <= 1 else None
        case "RGBShift":
            return _tint(item)
        case "ToGray" if (item["method"], item["num_output_channels"]) == ("weighted_average", 3):
            return Grey(p)
        case "GaussianBlur" if item["blur_limit"] == [0, 0]:
            return Blur(tuple(item["sigma_limit"]), p)
        case "GaussNoise" if item["mean_range"] == [0, 0] and item["per_channel"] and item["noise_scale_factor"] == 1:
            return Noise(tuple(item["std_range"]), p)
        case "ImageCompression" if item["compression_type"] == "jpeg":
            return Jpeg(tuple(item["quality_range"]), p)
        case name if name == _wrapper().get_class_fullname():
            return from_dicts([{**item["transform"], "p": p}])[0]
    return None


def _dropout(item: dict[str, Any]) -> CoarseDropout | None:
    sides, fill = {*item["hole_height_range"], *item["hole_width_range"]}, _fill(item)
    side = sides.pop()
    # Albumentations reads a list of whole numbers as floats, and takes what is at least 1 for pixels
    if item["num_holes_range"] != [1, 1] or sides or side < 1 or side % 1 or fill is None:
        return None
    return CoarseDropout(int(side), item["p"], tuple(int(v) for v in fill))  # Albumentations cuts the decimals off


def _erasing(item: dict[str, Any]) -> RandomErasing | None:
    fill = _fill(item)
    if fill is None or item["scale"][1] > 1:
        return None
    return RandomErasing(tuple(item["scale"]), tuple(item["ratio"]), tuple(int(v) for v in fill), item["p"])


def _jitter(item: dict[str, Any]) -> ColorJitter | None:
    brightness, contrast, saturation = (_spread(item[name]) for name in ("brightness", "contrast", "saturation"))
    hue = _symmetric(item["hue"])
    if brightness is None or contrast is None or saturation is None or hue is None:
        return None
    return ColorJitter(brightness, contrast, saturation, hue, item["p"])


def _tint(item: dict[str, Any]) -> Tint | None:
    """Return the batched form of an RGBShift, None where the limits of its channels or directions differ."""
    limits = [item[f"{channel}_shift_limit"] for channel in "rgb"]
    limit = _symmetric(limits[0]) if limits[0] == limits[1] == limits[2] else None
    # up to 1 it is a fraction, else levels
    return None if limit is None else Tint(limit / 255 if limit > 1 else limit, item["p"])


def _spread(limits: list[float]) -> float | None:
    """Return x where the limits are max(0, 1 - x) and 1 + x, None where there is no such x."""
    low, high = limits
    spread = round(high - 1, 9)  # 1.2 - 1 is 0.19999999999999996
    return spread if spread >= 0 and math.isclose(low, max(0, 1 - spread), abs_tol=1e-9) else None


STILL: dict[str, Any] = {
    **{"scale": {"x": [1, 1], "y": [1, 1]}, "keep_ratio": False, "balanced_scale": False, "fit_output": False},
    **{"translate_px": None, "translate_percent": None, "rotate": [0, 0], "shear": {"x": [0, 0], "y": [0, 0]}},
}


def _as_affine(item: dict[str, Any]) -> dict[str, Any]:
    """Return an Affine, Rotate or ShiftScaleRotate in the words of Affine."""
    match item["__class_fullname__"]:
        case "Rotate":
            return {**STILL, **item, "rotate": item["limit"], "fit_output": item["crop_border"]}
        case "ShiftScaleRotate":
            shift = {"x": item["shift_limit_x"], "y": item["shift_limit_y"]}
            factor = [1 + limit for limit in item["scale_limit"]]
            return {
                **STILL,
                **item,
                **{"translate_percent": shift, "scale": {"x": factor, "y": factor}, "rotate": item["rotate_limit"]},
            }
    return item


def _affine(item: dict[str, Any]) -> Shift | Scale | Rotate | None:
    """Return the batched form of an Affine, None where there is none or it does more than one thing."""
    shift, scale, turn = _shift(item), _factor(item), _symmetric(item["rotate"])
    plain = all(item[key] == STILL[key] for key in ("shear", "fit_output", "balanced_scale"))
    if not plain or item["interpolation"] != pipelines.INTER_LINEAR or shift is None or scale is None or turn is None:
        return None
    reflected = item["border_mode"] == pipelines.BORDER_REFLECT_101
    match shift[0] != 0, scale != (1, 1), turn != 0:
        case True, False, False:
            fill = _whole_fill(item)
            return Shift(*shift, None if reflected else fill, item["p"]) if reflected or fill else None
        case False, True, False if reflected:
            return Scale(scale, item["p"])
        case False, False, True if reflected:
            return Rotate(turn, item["p"])
    return None


def _shift(item: dict[str, Any]) -> tuple[float, Literal["fraction", "pixels"]] | None:
    """Return a shift's limit and unit, None where the axes or the directions differ."""
    pixels = item["translate_percent"] is None
    axes = (item["translate_px"] if pixels else item["translate_percent"]) or {"x": [0, 0], "y": [0, 0]}
    limit = _symmetric(axes["x"]) if axes["x"] == axes["y"] else None
    if limit is None or (limit > 1 and not pixels):
        return None
    return (int(limit), "pixels") if pixels else (limit, "fraction")


def _factor(item: dict[str, Any]) -> tuple[float, float] | None:
    """Return the limits of the one factor for both axes, None where each axis draws its own."""
    low, high = item["scale"]["x"]
    return (low, high) if item["scale"]["y"] == [low, high] and (item["keep_ratio"] or low == high) else None


def _symmetric(limits: list[float]) -> float | None:
    """Return the upper of two limits, None where the lower one isn't its negative."""
    low, high = limits
    return high if high == -low and high >= 0 else None


def _crop(pad: dict[str, Any], crop: dict[str, Any]) -> RandomCrop | None:
    """Return the batched form of a padding followed by a crop, None where there is none."""
    if crop["__class_fullname__"] != "RandomCrop" or pad["p"] != 1 or crop["p"] != 1:
        return None
    size = crop["height"], crop["width"]
    padding = _padding(pad, *size)
    if padding is None:
        return None
    if pad["border_mode"] == pipelines.BORDER_REFLECT_101:
        return RandomCrop(padding, size=size)
    fill = _whole_fill(pad)
    return RandomCrop(padding, fill, size) if fill else None


def _padding(pad: dict[str, Any], height: int, width: int) -> int | None:
    """Return the padding that is the same on all sides of an image of height × width, None where there is no such."""
    if pad["__class_fullname__"] == "Pad":
        sides = set(pad["padding"]) if isinstance(pad["padding"], list) else {pad["padding"]}
    elif pad["__class_fullname__"] == "PadIfNeeded" and pad["min_height"] and pad["min_width"]:
        if pad["pad_height_divisor"] or pad["pad_width_divisor"] or pad["position"] != "center":
            return None
        both = {max(pad["min_height"] - height, 0), max(pad["min_width"] - width, 0)}
        if any(extra % 2 for extra in both):
            return None
        sides = {extra // 2 for extra in both}
    else:
        return None
    side = sides.pop()
    return side if not sides and side >= 0 else None


def _whole_fill(item: dict[str, Any]) -> tuple[float, ...] | None:
    """Return the fill of a constant border, None where it has decimals: OpenCV rounds them, unlike those of a hole."""
    fill = _fill(item)
    return fill if item["border_mode"] == pipelines.BORDER_CONSTANT and fill and all(v % 1 == 0 for v in fill) else None


def _fill(item: dict[str, Any]) -> tuple[float, ...] | None:
    """Return a transform's fill, one level or one a channel; None where it isn't a number ("random", "inpaint_ns")."""
    fill = item["fill"]
    if isinstance(fill, str):
        return None
    return tuple(fill) if isinstance(fill, list) else (fill,)
