"""How good the picture is: blur, noise, JPEG."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from .base import (
    across,
    change,
    happens,
    is_whole,
    reflect,
    require,
    require_colour,
    require_p,
    require_range,
    to_uint8,
    uniform,
)


@dataclass(frozen=True)
class Blur:
    """With probability `p`, a Gaussian blur whose standard deviation in pixels is drawn uniformly from the pair `sigma`.

    The kernel ends at int(3.5 sigma) pixels; at the edge the image is reflected, the edge not repeated.

    In Albumentations 2: GaussianBlur(blur_limit=0, sigma_limit=sigma). At most 1 level apart.
    """

    sigma: tuple[float, float] = (0.5, 1.5)
    p: float = 0.5

    def __post_init__(self) -> None:
        require_range(self, "sigma", 0, 100)
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n = len(images)
        return self.apply(images, happens(self.p, n, generator) * uniform(self.sigma, n, generator))

    def apply(self, images: Tensor, sigmas: Tensor) -> Tensor:
        """Blur by sigmas (N,) pixels; 0 leaves an image as it is."""

        def blur(some: Tensor, rows: Tensor) -> Tensor:
            down, across = (_smoothing(sigmas[rows].to(some.device), size)[:, None] for size in some.shape[2:])
            return to_uint8(down @ some.float() @ across.transpose(2, 3))

        return change(images.clone(), sigmas > 0, blur)


@dataclass(frozen=True)
class Noise:
    """With probability `p`, add Gaussian noise, independent in every pixel and channel.

    Its standard deviation is drawn uniformly from the pair `std`, as a fraction of 255 levels.

    In Albumentations 2: GaussNoise(std_range=std), which cuts the noise's decimals off: at most 1 level apart.
    """

    std: tuple[float, float] = (0.02, 0.1)
    p: float = 0.5

    def __post_init__(self) -> None:
        require_range(self, "std", 0, 1)
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n = len(images)
        stds = happens(self.p, n, generator) * uniform(self.std, n, generator)
        return self.apply(images, stds, torch.randn(images.shape, generator=generator))

    def apply(self, images: Tensor, stds: Tensor, field: Tensor) -> Tensor:
        """Add 255 · stds (N,) · field (N, C, H, W), a standard normal draw; the same field gives a curve over stds."""

        def add(some: Tensor, rows: Tensor) -> Tensor:
            return to_uint8(some + 255 * across(stds[rows], some) * field[rows].to(some.device))

        return change(images.clone(), stds > 0, add)


@dataclass(frozen=True)
class Jpeg:
    """With probability `p`, write and read the image as JPEG, image by image on the CPU, by Pillow (4:2:0).

    The quality, 1–100, is a whole number drawn uniformly from the pair `quality`. Images have three channels or one.

    In Albumentations 2: ImageCompression("jpeg", quality_range=quality), which takes red for blue: equal to the last
    bit where these two are exchanged before and after.
    """

    quality: tuple[int, int] = (30, 90)
    p: float = 0.5

    def __post_init__(self) -> None:
        require_range(self, "quality", 1, 100)
        require(all(is_whole(q) for q in self.quality), self, "quality", "a pair of whole numbers")
        require_p(self)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, (low, high) = len(images), self.quality
        qualities = torch.randint(low, high + 1, (n,), generator=generator)
        return self.apply(images, happens(self.p, n, generator) * qualities)

    def apply(self, images: Tensor, qualities: Tensor) -> Tensor:
        """Compress with qualities (N,) int64, 1–100; 0 leaves an image as it is."""
        require_colour(self, images)

        def compress(some: Tensor, rows: Tensor) -> Tensor:
            pictures = some.permute(0, 2, 3, 1).cpu().numpy()
            done = [_through_jpeg(picture, quality) for picture, quality in zip(pictures, qualities[rows].tolist(), strict=True)]
            return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2).to(some.device)

        return change(images.clone(), qualities > 0, compress)


def _smoothing(sigmas: Tensor, size: int) -> Tensor:
    """Return matrices (N, size, size) that blur an axis of `size` pixels: cheaper here than a convolution an image."""
    radius = int(3.5 * float(sigmas.max()))
    offsets = torch.arange(-radius, radius + 1, device=sigmas.device)
    weights = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2) * (offsets.abs() <= (3.5 * sigmas).floor()[:, None])
    weights = weights / weights.sum(1, keepdim=True)
    sources = reflect(torch.arange(size, device=sigmas.device)[:, None] + offsets, size)
    matrices = torch.zeros(len(sigmas), size, size, device=sigmas.device)
    return matrices.scatter_add_(2, sources.expand(len(sigmas), -1, -1), weights[:, None].expand(-1, size, -1))


def _through_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """Return a picture (H, W, 3 or 1) uint8 as JPEG of that quality shows it."""
    file = BytesIO()
    Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file, formats=["JPEG"])).reshape(picture.shape)
