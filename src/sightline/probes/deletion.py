"""May heatmaps propose anything here? Their hottest places are removed, beside the same area elsewhere."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..augment import Blur
from ..heatmaps import upsample
from .evidence import FEWEST, Finding, found, nothing, paired
from .sensitivity import choice, surest
from .subject import Subject

IMAGES = 200
REMOVED = 0.2  # of the pixels
BLUR = 1 / 4  # standard deviation, of the side: nothing is left to be recognised
FILLS = ("blur", "patch")


def deletion(subject: Subject, random: np.random.Generator, maps: NDArray[np.float32] | None) -> list[Finding]:
    """Return a finding a fill: the share of images whose prediction changes without the hottest fifth of the pixels.

    maps: (N, h, w), of the predicted class. The sham is the same region moved round the image to elsewhere: of the same area
    and shape. Fills: the image heavily blurred, and the same place of another image. These findings speak for no cause; they
    say whether heatmaps may propose one. detail: cold, the share without the coldest fifth.
    """
    rows = choice(random, np.arange(len(subject)), IMAGES)
    if maps is None or len(rows) < FEWEST:
        note = "the model has no heatmaps" if maps is None else f"{len(rows)} images; at least {FEWEST} are needed"
        return [nothing(f"deletion:{fill}", "gate", None, note) for fill in FILLS]
    heat, images = upsample(maps[rows], subject.size), subject.images(rows)
    hot, cold = (extreme(sign * heat).to(subject.device) for sign in (1, -1))
    regions = (hot, cold, moved_round(hot, random))
    sigma = torch.full((len(rows),), BLUR * min(subject.size))
    others = subject.images(random.permutation(rows))
    findings = []
    for fill, content in zip(FILLS, (Blur().apply(images, sigma), others), strict=True):
        changed = [subject.calls(torch.where(region, content, images)) != subject.predicted[rows] for region in regions]
        effect, shown = paired(changed[0], changed[2][:, None]), rows[changed[0] & ~changed[2]]
        shown = surest(subject.margins, shown)
        findings.append(found(f"deletion:{fill}", "gate", None, effect, rows=shown, cold=float(changed[1].mean())))
    return findings


def extreme(heat: NDArray[np.float32]) -> Tensor:
    """Return where heat (N, H, W) is the highest, exactly a share REMOVED of the pixels: (N, 1, H, W) bool; ties by place."""
    flat = heat.reshape(len(heat), -1)
    first = np.argsort(-flat, axis=1, kind="stable")[:, : round(REMOVED * flat.shape[1])]
    region = np.zeros(flat.shape, bool)
    np.put_along_axis(region, first, True, axis=1)
    return torch.from_numpy(region.reshape(len(heat), 1, *heat.shape[1:]))


def moved_round(regions: Tensor, random: np.random.Generator) -> Tensor:
    """Return each region (N, 1, H, W) moved by a quarter to three quarters of both sides, round the image's edges."""
    moves = [[int(random.integers(side // 4, side - side // 4 + 1)) for side in regions.shape[2:]] for _ in regions]
    return torch.stack([region.roll(move, (1, 2)) for region, move in zip(regions, moves, strict=True)])
