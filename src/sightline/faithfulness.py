"""May a heatmap be believed? Its hottest pixels are removed, and the model is asked again.

For each map, by `judge`: deletion and insertion curves (RISE, Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421) with three
fills, one of which is that of ROAD (Rong et al. 2022, https://arxiv.org/abs/2202.00449), against shams and against the reversed
map; from these a verdict. For each model: `randomisation` (Adebayo et al. 2018, https://arxiv.org/abs/1810.03292), `stability`
over input noise and `agreement` of several runs. Where masks of the objects are known: `energy_inside` and `pointing_game`.

A *sham* is the same map cyclically shifted: its regions have the same area, shape and smoothness, elsewhere. Random pixels would
be another kind of damage: holes all over a picture harm a model otherwise than a patch that is gone, so maps would win or lose
against them for reasons that have nothing to do with where they point.

The score is what the map explains: a class's logit, or the difference of two for a margin. It isn't the probability, nor its
logarithm: those move with all other classes as well, and hardly at all while the model is sure.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse, stats
from scipy.sparse.linalg import splu
from torch import Tensor, nn

from .exceptions import DataError, RecipeError, nearest
from .heatmaps import no_evidence, upsample

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Verdict = Literal["supported", "weak", "no evidence"]
Explain = Callable[[nn.Module, Tensor], NDArray[np.float32]]  # images (N, C, H, W) → maps (N, h, w)

FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the pixels; symmetric, so that the reversed map's curves are the same passes
FILLS = ("blur", "patch", "road")
BLUR = 0.25  # standard deviation of the blur, of each side: no object is left to be recognised
ROAD_NOISE = 0.01  # standard deviation, in units of the normalised input, as in its authors' code
FAR = 0.25  # shams are shifted by at least this much of a side, down or across: less would be nearly the map itself
# Of the score's whole fall. From benchmarks/trust.py: at most one in twenty maps of each negative control is to get past it (of a
# net with random weights; of another image, where they miss this one's object; of a mark that the net has never seen). That
# asked for 0.07 with 10 images a control and for 0.04 with 60; above both, at most one in 60 passes (docs/heatmaps.md).
SUPPORTED = 0.1


class Estimate(NamedTuple):
    """A mean and its 95 % interval by Student's t, arrays of one shape."""

    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Curves:
    """Scores of N images while pixels are removed, in logits.

    deletion: (N, fills, 1 + shams, F) float64, without the hottest fraction f of FRACTIONS; by the map itself, then by each sham.
    insertion: the same where nothing but the hottest f is left.  intact: (N,) the score of the image as it is.  scale: (N,) what
    effects are fractions of: the score's fall when the whole image is blurred, or the deviation of the image's logits if that is
    more (a margin of a mistake may have nowhere to fall).
    """

    deletion: Floats
    insertion: Floats
    intact: Floats
    scale: Floats
    fills: tuple[str, ...]


@dataclass(frozen=True)
class Trust:
    """How far N maps may be believed.

    verdicts: N of "supported", "weak", "no evidence".  deletion, insertion: (N, fills), the mean over FRACTIONS of how much lower
    (insertion: higher) the score is by the map than by its shams, as a fraction of `curves.scale`; the interval is of the mean
    over all shams, and says nothing of other images or trainings.  against_reverse: (N, fills), the same against the reversed
    map, coldest pixels first, which is one number for deletion and insertion.  empty: (N,) class maps that argue for their class
    nowhere.
    """

    verdicts: tuple[Verdict, ...]
    deletion: Estimate
    insertion: Estimate
    against_reverse: Floats
    empty: Bools
    curves: Curves


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of N maps with others of the same images, in S stages.

    stages: S names.  correlations: (S, N), Spearman's, 0 where either map is constant.  estimate: (S,), over the images.
    """

    stages: tuple[str, ...]
    correlations: Floats
    estimate: Estimate


def judge(
    model: nn.Module,
    images: Tensor,
    raw: NDArray[np.float32],
    cotangents: Tensor,
    *,
    pool: Tensor,
    fills: Sequence[str] = FILLS,
    shams: int = 8,
    seed: int = 0,
    batch_size: int = 256,
) -> Trust:
    """Return a verdict for each map, with its evidence; the arguments are those of `curves`.

    "no evidence": a class map with nothing above zero, or one whose deletion beats the shams' with no fill. "supported": its
    deletion beats them with every fill, by more than SUPPORTED of the whole fall at the lower end of the 95 % interval. "weak":
    what lies between. A margin has places that argue for either side, so nothing above zero is no criterion there.
    """
    measured = curves(model, images, raw, cotangents, pool=pool, fills=fills, shams=shams, seed=seed, batch_size=batch_size)
    scale = measured.scale[:, None]
    lost, kept = measured.deletion.mean(-1), measured.insertion.mean(-1)
    deletion = _estimate((lost[..., 1:] - lost[..., :1]) / scale[..., None])
    insertion = _estimate((kept[..., :1] - kept[..., 1:]) / scale[..., None])
    empty = no_evidence(raw) & (cotangents >= 0).all(1).cpu().numpy()
    return Trust(
        verdicts=_verdicts(deletion.low, empty),
        deletion=deletion,
        insertion=insertion,
        against_reverse=(kept[..., 0] - lost[..., 0]) / scale,
        empty=empty,
        curves=measured,
    )


def describe(trust: Trust, i: int, score: str = "the score") -> str:
    """Return the verdict on map `i` in words; `score` is what it explains, such as "the dog–cat margin"."""
    verdict = trust.verdicts[i]
    if trust.empty[i]:
        return f"no evidence: no place argues for it, and deletion can't show on what {score} rests"
    lows = trust.deletion.low[i]
    fill = int(lows.argmax() if verdict == "no evidence" else lows.argmin())
    mean, low, high = (float(values[i, fill] * trust.curves.scale[i]) for values in trust.deletion)
    shown = f"deleting the hottest {FRACTIONS[0]:.0%}–{FRACTIONS[-1]:.0%}".replace("%–", "–").replace("%", " %")
    place = "most" if verdict == "no evidence" else "least"
    interval = f"95 %: {low:+.2f} to {high:+.2f}; fill '{trust.curves.fills[fill]}', the {place} favourable one"
    if verdict == "no evidence":
        return f"{verdict}: {shown} doesn't clearly lower {score} more than equal areas elsewhere do: by {mean:+.2f} ({interval})"
    return f"{verdict}: {shown} lowers {score} by {mean:.2f} more than equal areas elsewhere do ({interval})"


def curves(
    model: nn.Module,
    images: Tensor,
    raw: NDArray[np.float32],
    cotangents: Tensor,
    *,
    pool: Tensor,
    fills: Sequence[str] = FILLS,
    shams: int = 8,
    seed: int = 0,
    batch_size: int = 256,
) -> Curves:
    """Remove pixels by each map and by `shams` shifted copies of it, and return the scores.

    model: images → logits (N, classes).  images: (N, C, H, W) float, normalised as in training, on the model's device.
    raw: (N, h, w) maps, signed.  cotangents: (N, classes), the score is Σ cotangent · logit: 1 at a class, or 1 and −1 for a
    margin.  pool: (M, C, H, W), images like those, to take patches from.

    Pixels are ranked by the upsampled signed map, ties by their place, and exactly the wanted number is removed. fills, what is
    put in their place: "blur", the image heavily blurred; "patch", the same place of other images, one of `pool` a fraction;
    "road", noisy linear imputation (see `impute`; on large images by far the slowest). The shifts, the choice from the pool and
    the noise follow from `seed` and are the same for all images: a map's curves don't depend on those beside it, nor on
    `batch_size`. The model comes back as it was.

    Raises DataError for maps, images, cotangents or a pool that don't fit, RecipeError for unknown fills or fewer than two shams.
    """
    _check(images, raw, cotangents, pool, fills, shams)
    random = np.random.default_rng(seed)
    shifts = _shifts(random, images.shape[2:], shams)
    others = _others(images, pool[torch.from_numpy(random.permutation(len(pool))[: 2 * len(FRACTIONS)]).to(pool.device)])
    noise = random.normal(0, ROAD_NOISE, images.shape[1:])
    blurred = _blurred(images)
    measured, weights = [], cotangents.cpu().double()
    with _evaluating(model, images):
        logits, bare = (_logits(model, x, batch_size) for x in (images, blurred))
        for i, heat in enumerate(upsample(raw, images.shape[2:])):
            gone = _removed(heat, shifts)
            contents = (_content(fill, images[i], blurred[i], others[i], gone, noise) for fill in fills)
            holes = torch.from_numpy(gone).to(images.device)[:, :, None]
            filled = torch.stack([torch.where(holes, content, images[i]) for content in contents])
            scores = _logits(model, filled.flatten(0, 2), batch_size) @ weights[i]
            measured.append(scores.reshape(len(fills), 1 + shams, 2, len(FRACTIONS)))
    intact = (logits * weights).sum(1)
    scale = torch.maximum(intact - (bare * weights).sum(1), logits.std(1)).clamp_min(torch.finfo(torch.float32).eps)
    both = torch.stack(measured).numpy()
    return Curves(both[..., 0, :], both[..., 1, :], intact.numpy(), scale.numpy(), tuple(fills))


def impute(image: Tensor, removed: Bools, noise: Floats | float = 0.0) -> Tensor:
    """Return `image` (C, H, W) with the pixels in `removed` (H, W) imputed: linear imputation of ROAD (Rong et al. 2022).

    Each is the mean of its neighbours, known or imputed, of weight 1/6 beside and 1/12 across a corner (those outside the image
    count for nothing), which is one sparse linear system; then `noise` (C, H, W) is added to it. At least one pixel is left.
    """
    laplacian = _laplacian(*removed.shape)
    gone, left = np.flatnonzero(removed), np.flatnonzero(~removed)
    rows = laplacian[gone]
    known: Floats = image.flatten(1).T.cpu().numpy().astype(np.float64)
    # The system is symmetric and positive definite: no pivoting, and an order that keeps it sparse.
    system = splu(rows[:, gone].tocsc(), "MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
    everywhere = np.broadcast_to(noise, image.shape).reshape(len(image), -1)
    known[gone] = system.solve(-(rows[:, left] @ known[left])) + everywhere.T[gone]
    return torch.from_numpy(known.T.reshape(image.shape)).to(image.dtype).to(image.device)


def randomisation(model: nn.Module, images: Tensor, explain: Explain, *, seed: int = 0) -> Agreement:
    """Return how maps change while a copy of the model loses its weights, module by module from the head down.

    Cascading randomisation of Adebayo et al. 2018: each module's parameters are replaced by a random permutation of their own
    entries, which keeps their scale and suits any module; after each, all maps are compared with the original ones. Maps that
    stay as they are show the image, not what the model has learned. Modules are taken in the reverse order of their definition.

    explain: the maps (N, h, w) of a model and images; it has to keep to the same classes, or the maps differ for another reason.
    Raises DataError for fewer than two images: an interval needs them.
    """
    original, scrambled = explain(model, images), copy.deepcopy(model)
    draws = torch.Generator().manual_seed(seed)
    stages = [(name or "model", module) for name, module in scrambled.named_modules() if list(module.parameters(False))][::-1]
    maps = (explain(_scrambled(scrambled, module, draws), images) for _, module in stages)
    return _agreement([name for name, _ in stages], [(original, changed) for changed in maps])


def stability(
    model: nn.Module, images: Tensor, explain: Explain, *, sigmas: Sequence[float] = (0.05, 0.1, 0.2), seed: int = 0
) -> Agreement:
    """Return how maps change under Gaussian noise on the input, of deviations `sigmas` in units of the normalised input.

    explain: as for `randomisation`; it has to keep to the same classes. Raises DataError for fewer than two images.
    """
    draws = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=draws).to(images)
    original = explain(model, images)
    return _agreement([f"noise {sigma:g}" for sigma in sigmas], [(original, explain(model, images + s * noise)) for s in sigmas])


def agreement(maps_of_runs: Sequence[NDArray[np.float32]]) -> Agreement:
    """Return how the maps (N, h, w) of several runs agree on the same images, a stage a pair of runs.

    Raises DataError for fewer than two runs or images, or for maps of different shapes.
    """
    if len(maps_of_runs) < 2 or len({maps.shape for maps in maps_of_runs}) > 1:
        shapes = ", ".join(str(maps.shape) for maps in maps_of_runs)
        raise DataError(f"agreement needs the maps of two or more runs in one shape, not {shapes}: use the same images and layer")
    pairs = [(i, j) for j in range(len(maps_of_runs)) for i in range(j)]
    return _agreement([f"{i}–{j}" for i, j in pairs], [(maps_of_runs[i], maps_of_runs[j]) for i, j in pairs])


def rank_correlation(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> Floats:
    """Return Spearman's correlation (N,) of maps (N, h, w), ties by their mean rank; 0 where either map is constant."""
    ranks = (stats.rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (a, b))
    x, y = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    norm = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    correlation: Floats = (x * y).sum(1) / np.where(norm > 0, norm, 1)
    return correlation


def energy_inside(raw: NDArray[np.float32], masks: Bools) -> Floats:
    """Return the share (N,) of each map's positive part that lies in its mask; NaN where nothing is positive.

    raw: (N, h, w), upsampled to masks (N, H, W). By chance it is the mask's share of the image. The energy-based pointing game of
    Score-CAM (Wang et al. 2020, https://arxiv.org/abs/1910.01279), on the signed map. Raises DataError if they don't fit.
    """
    heat = np.maximum(_on(masks, raw), 0)
    total, inside = heat.sum((1, 2)), (heat * masks).sum((1, 2))
    share: Floats = np.divide(inside, total, out=np.full(len(raw), np.nan), where=total > 0)
    return share


def pointing_game(raw: NDArray[np.float32], masks: Bools) -> Floats:
    """Return (N,) whether each map's hottest pixel lies in its mask, 0 or 1; a share where several are as hot.

    raw: (N, h, w), upsampled to masks (N, H, W). By chance it is the mask's share of the image. Zhang et al. 2016
    (https://arxiv.org/abs/1608.00507), without their tolerance of 15 pixels. Raises DataError if they don't fit.
    """
    heat = _on(masks, raw)
    hottest = heat == heat.max((1, 2), keepdims=True)
    share: Floats = (hottest & masks).sum((1, 2)) / hottest.sum((1, 2))
    return share


# --- verdicts


def _verdicts(lows: Floats, empty: Bools) -> tuple[Verdict, ...]:
    """Verdicts from the lower ends (N, fills) of the deletion effects."""
    nothing: Bools = empty | ~np.any(lows > 0, axis=1)
    supported: Bools = np.all(lows > SUPPORTED, axis=1)
    return tuple(
        "no evidence" if none else "supported" if all_ else "weak" for none, all_ in zip(nothing, supported, strict=True)
    )


def _estimate(values: Floats) -> Estimate:
    """Mean and interval over the last axis."""
    n = values.shape[-1]
    mean: Floats = values.mean(-1)
    half = stats.t.ppf(0.975, n - 1) * values.std(-1, ddof=1) / np.sqrt(n)
    return Estimate(mean, mean - half, mean + half)


def _agreement(stages: Sequence[str], pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> Agreement:
    if any(len(first) < 2 for first, _ in pairs):
        raise DataError("an interval of the agreement needs maps of at least two images: give more")
    correlations = np.stack([rank_correlation(first, second) for first, second in pairs])
    return Agreement(tuple(stages), correlations, _estimate(correlations))


# --- pixels removed and filled


def _shifts(random: np.random.Generator, size: Sequence[int], count: int) -> NDArray[np.int64]:
    """Draw `count` cyclic shifts (down, across) of at least FAR of a side, either way round."""
    down, across = (np.minimum(np.arange(side), side - np.arange(side)) / side for side in size)
    far = np.argwhere(np.maximum.outer(down, across) >= FAR)
    return far[random.integers(len(far), size=count)]


def _removed(heat: NDArray[np.float32], shifts: NDArray[np.int64]) -> Bools:
    """Return which pixels go, (1 + shams, 2 F, H, W): the hottest fractions, then all but the hottest fractions.

    The rows are the map itself and its shams. Ties go by the pixel's place for all, so a constant map equals its shams.
    """
    maps = np.stack([heat, *(np.roll(heat, shift, (0, 1)) for shift in shifts)])
    order = np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable")
    ranks = np.argsort(order, axis=1).reshape(maps.shape)
    counts = [min(max(round(fraction * heat.size), 1), heat.size - 1) for fraction in FRACTIONS]
    return np.stack([ranks < n for n in counts] + [ranks >= n for n in counts], 1)


def _others(images: Tensor, candidates: Tensor) -> Tensor:
    """Return F images (N, F, C, H, W) for each of `images`: the first of the candidates that aren't the image itself."""
    count = len(FRACTIONS)
    same = torch.stack([(candidates == image).flatten(1).all(1) for image in images])
    if (~same).sum(1).min() < count:
        raise DataError(f"the pool needs at least {count} images other than the one explained: give more of the data set")
    return candidates[same.int().argsort(dim=1, stable=True)[:, :count]]


def _content(fill: str, image: Tensor, blurred: Tensor, others: Tensor, gone: Bools, noise: Floats) -> Tensor:
    """Return what is put in the place of removed pixels: something that broadcasts to (1 + shams, 2 F, C, H, W)."""
    if fill == "blur":
        return blurred
    if fill == "patch":
        return others.repeat(2, 1, 1, 1)
    return torch.stack([torch.stack([impute(image, mask, noise) for mask in masks]) for masks in gone])


def _blurred(images: Tensor) -> Tensor:
    """Blur images (N, C, H, W) by a Gaussian of BLUR of each side, of which what lies outside the image is left out."""
    rows, columns = (_gaussian(side).to(images) for side in images.shape[2:])
    return rows @ images @ columns.T


def _gaussian(side: int) -> Tensor:
    """Weights (side, side): row i is those of pixel i's neighbourhood."""
    places = torch.arange(side) / (BLUR * side)
    weights = torch.exp(-((places[:, None] - places) ** 2) / 2)
    return weights / weights.sum(1, keepdim=True)


@lru_cache(maxsize=4)
def _laplacian(height: int, width: int) -> sparse.csr_array:
    """Row i of this (H·W)² matrix is zero where pixel i is the weighted mean of its neighbours."""
    down, across = (sparse.diags_array([1.0, 1.0], offsets=[-1, 1], shape=(side, side)) for side in (height, width))
    beside = sparse.kron(down, sparse.eye_array(width)) + sparse.kron(sparse.eye_array(height), across)
    weights = beside / 6 + sparse.kron(down, across) / 12
    return sparse.csr_array(sparse.diags_array(weights.sum(1)) - weights)


# --- the model


@contextmanager
def _evaluating(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Evaluation mode and inference mode for the time of `with`; every module gets back the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _logits(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Return logits (N, classes), float64 and on the CPU. Raises DataError if they aren't of that form or aren't finite."""
    logits = [model(batch) for batch in images.split(batch_size)]
    if not all(isinstance(part, Tensor) and part.ndim == 2 for part in logits):
        raise DataError("judging maps needs a model that returns logits (N, classes): wrap it in a module that does")
    if not all(part.isfinite().all() for part in logits):
        raise DataError("the model returns logits that aren't finite for images with pixels removed: check its weights")
    return torch.cat(logits).cpu().double()


def _scrambled(model: nn.Module, module: nn.Module, draws: torch.Generator) -> nn.Module:
    """Permute the entries of each of the module's own parameters, and return the model that it belongs to."""
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            order = torch.randperm(parameter.numel(), generator=draws).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
    return model


# --- checks


def _check(images: Tensor, raw: NDArray[np.float32], cotangents: Tensor, pool: Tensor, fills: Sequence[str], shams: int) -> None:
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        found = f"{images.dtype} of shape {tuple(images.shape)}"
        raise DataError(f"judging maps needs float images (N, C, H, W), not {found}: normalise as in training")
    if raw.ndim != 3 or len(raw) != len(images) or not np.isfinite(raw).all():
        raise DataError(f"{len(images)} images need as many finite maps (N, h, w), not {raw.shape}: give one target at a time")
    if cotangents.ndim != 2 or len(cotangents) != len(images):
        raise DataError(f"the cotangents are {tuple(cotangents.shape)}: give ({len(images)}, classes), a row an image")
    if pool.shape[1:] != images.shape[1:]:
        shapes = f"{tuple(pool.shape)}, the images {tuple(images.shape)}"
        raise DataError(f"the pool is {shapes}: give it images of the same channels and size")
    unknown = [fill for fill in fills if fill not in FILLS]
    if unknown or not fills:
        raise RecipeError(f"unknown fill '{''.join(unknown[:1])}': {nearest(''.join(unknown[:1]), FILLS)}")
    if shams < 2:
        raise RecipeError(f"{shams} shams give no interval: use at least 2")


def _on(masks: Bools, raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Upsample maps to the masks' size."""
    if raw.ndim != 3 or masks.ndim != 3 or len(raw) != len(masks):
        raise DataError(f"maps {raw.shape} and masks {masks.shape} don't fit: give (N, h, w) and (N, H, W)")
    return upsample(raw, masks.shape[1:])
