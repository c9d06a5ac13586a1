"""3×3 convolutions on a CPU in float32 with a quarter of the products: F(4×4, 3×3) of A. Lavin & S. Gray, after S. Winograd.

See https://arxiv.org/abs/1509.09308. Results are made in tiles of 4×4, each of 6×6 inputs. Seen as Bᵀ d B and G g Gᵀ, a tile's
inputs d and a filter g meet in 36 products, not 144, and Aᵀ (…) A of them is the tile. The products of all tiles and channels are
36 products of matrices. Seeing so takes only sums, but of all that is in memory: their time grows with the channels, that of the
products with the channels' square. So few channels aren't worth it.

Numbers are torch's but for rounding: to some 1e-5 of the largest; torch's own are to 1e-6, bfloat16's to 4e-3.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

RESULTS_FROM = 192  # channels, the fewer of those in and out, from which results and the inputs' gradients are faster so
FILTERS_FROM = 64  # and the filters' gradient, for which torch's own way takes longest
TILES = 256  # at a time: few enough to stay in the cache, enough for products at full speed
ON: Any = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults are set to
G = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], **ON) / 24
SEEN = torch.kron(G, G)  # a filter as its 36 factors, (36, 9)

Transform = Callable[[Sequence[Tensor], Sequence[Tensor]], None]


class Winograd(TorchFunctionMode):
    """Within `with`, a forward pass's convolutions are computed so where it is faster, there and on the way back.

    Those are the 3×3 ones with a step and a border of one pixel, of float32 images that lie channels last on a CPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return convolved(*args, **kwargs) if func is torch.conv2d else func(*args, **kwargs)


def convolved(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Return torch.conv2d's result, (N, C, H, W) and (K, C, 3, 3) → (N, K, H, W); what this module isn't for is torch's own."""
    plain = all(value in (1, (1, 1), [1, 1]) for value in (stride, padding, dilation)) and groups == 1
    if not plain or not _suits(input, weight):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    result: Tensor = _Convolved.apply(input, weight)  # type: ignore[no-untyped-call]
    return result if bias is None else result + bias[:, None, None]


def _suits(x: Tensor, weight: Tensor) -> bool:
    learns = torch.is_grad_enabled() and weight.requires_grad
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.ndim == 4
        and x.numel() > 0
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= (FILTERS_FROM if learns else RESULTS_FROM)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class _Convolved(torch.autograd.Function):
    """The convolution, by torch's own where there are too few channels, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _results(x, weight) if min(weight.shape[:2]) >= RESULTS_FROM else F.conv2d(x, weight, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        to_x, to_weight = ctx.needs_input_grad
        of_x = None
        if to_x and min(weight.shape[:2]) >= RESULTS_FROM:
            of_x = _results(grad, weight.flip(2, 3).transpose(0, 1))
        elif to_x:
            of_x = conv2d_input(x.shape, weight, grad, padding=1)
        return of_x, _filters_gradient(x, grad) if to_weight else None


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles: side × side of them, a pixel apart, are a mosaic of rows × columns tiles.

    Alone, an image of 5×5 pixels would take four tiles, as many as one of 8×8; of four in a mosaic each takes 2¼.
    """

    height: int
    width: int
    side: int
    rows: int
    columns: int

    @classmethod
    @cache
    def of(cls, height: int, width: int) -> Tiling:
        """The one with the fewest tiles an image, and of equals the simplest."""

        def over(length: int, side: int) -> int:
            return -(-(side * (length + 1) - 1) // 4)

        tilings = [cls(height, width, side, over(height, side), over(width, side)) for side in (1, 2, 4)]
        return min(tilings, key=lambda tiling: tiling.rows * tiling.columns / tiling.side**2)

    @property
    def at_a_time(self) -> int:
        """How many images have about TILES tiles: whole mosaics."""
        return max(TILES // (self.rows * self.columns), 1) * self.side**2

    def mosaics(self, images: Tensor, name: str) -> Iterator[Tensor]:
        """Images (N, H, W, C) as mosaics with a border of a pixel, (M, 4·rows + 2, 4·columns + 2, C), `at_a_time` images each.

        All in the room of that name: one must be done with before the next is taken.
        """
        whole = self.side**2
        count = -(-min(len(images), self.at_a_time) // whole)
        made = room(name, count, 4 * self.rows + 2, 4 * self.columns + 2, images.shape[3]).zero_()
        for some in images.split(self.at_a_time):
            count = -(-len(some) // whole)
            if len(some) < count * whole:
                made.zero_()
            for all_there, these in self._places(made[:count, 1:-1, 1:-1], some):
                all_there.copy_(these)
            yield made[:count]

    def images(self, mosaics: Tensor, into: Tensor) -> None:
        """Write the images in mosaics without a border, (M, 4·rows, 4·columns, C), into (N, H, W, C)."""
        for all_there, some in self._places(mosaics, into):
            some.copy_(all_there)

    def _places(self, mosaics: Tensor, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The part of each mosaic at a place, and the images there, for each of the side × side places."""
        pairs = []
        for place in range(self.side**2):
            some = images[place :: self.side**2]
            top, left = place // self.side * (self.height + 1), place % self.side * (self.width + 1)
            pairs.append((mosaics[: len(some), top : top + self.height, left : left + self.width], some))
        return pairs


def _results(x: Tensor, weight: Tensor) -> Tensor:
    """The convolution of (N, C, H, W) with (K, C, 3, 3), both and the result channels last."""
    images, channels = x.permute(0, 2, 3, 1), weight.shape[0]
    filters = (SEEN @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, -1, channels)
    results = images.new_empty(*images.shape[:3], channels)
    tiling = Tiling.of(*images.shape[1:3])
    for some, into in zip(tiling.mosaics(images, "inputs"), results.split(tiling.at_a_time), strict=True):
        seen = _seen(some, 6, of_inputs, "seen inputs")
        products = torch.bmm(seen, filters, out=room("products", 36, seen.shape[1], channels))
        tiling.images(_joined(products, tiling), into)
    return results.permute(0, 3, 1, 2)


def _filters_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the filters, (K, C, 3, 3): what follows from inputs (N, C, H, W) and the results' gradient (N, K, H, W)."""
    inputs, results = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    channels, made = inputs.shape[3], results.shape[3]
    total = inputs.new_zeros(36, channels, made)
    tiling = Tiling.of(*inputs.shape[1:3])
    for some, their in zip(tiling.mosaics(inputs, "inputs"), tiling.mosaics(results, "results"), strict=True):
        seen = _seen(some, 6, of_inputs, "seen inputs")
        total.baddbmm_(seen.transpose(1, 2), _seen(their[:, 1:-1, 1:-1], 4, of_gradients, "seen results"))
    return (SEEN.T @ total.view(36, -1)).view(3, 3, channels, made).permute(3, 2, 0, 1)


def _seen(mosaics: Tensor, taken: int, transform: Transform, name: str) -> Tensor:
    """The 36 factors of each tile, (36, M·rows·columns, C), from its `taken`² pixels: over the rows, then over the columns.

    They are in the room of that name.
    """
    count, height, width, channels = mosaics.shape
    rows, columns = 1 + (height - taken) // 4, 1 + (width - taken) // 4
    half = room("half", 6, count, rows, width, channels)
    transform([mosaics[:, i : i + 4 * rows - 3 : 4] for i in range(taken)], half.unbind())
    seen = room(name, 6, 6, count, rows, columns, channels)
    transform([half[:, :, :, i : i + 4 * columns - 3 : 4] for i in range(taken)], seen.unbind(1))
    return seen.view(36, -1, channels)


def _joined(products: Tensor, tiling: Tiling) -> Tensor:
    """Mosaics without a border, (M, 4·rows, 4·columns, K), from the products of their tiles, (36, M·rows·columns, K)."""
    products = products.view(6, 6, -1, tiling.rows, tiling.columns, products.shape[2])
    half = room("half", 4, *products.shape[1:])
    of_products(products.unbind(), half.unbind())
    count, rows, columns, channels = products.shape[2:]
    joined = room("joined", count, rows, 4, columns, 4, channels)
    of_products(half.unbind(1), [joined[:, :, :, :, i].permute(2, 0, 1, 3, 4) for i in range(4)])
    return joined.view(count, 4 * rows, 4 * columns, channels)


class _Rooms(threading.local):
    """Memory for what is of some tiles only: kept, each thread's own.

    Freed and taken anew beside what stays until the way back, it would leave gaps everywhere.
    """

    def __init__(self) -> None:
        self.memory: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """The room of that name, float32, for the time being; what was in it is lost."""
        size = math.prod(shape)
        if name not in self.memory or self.memory[name].numel() < size:
            self.memory.pop(name, None)
            with torch.inference_mode(False):  # or no training could write there after a prediction
                self.memory[name] = torch.empty(size, **ON)
        return self.memory[name][:size].view(shape)


room = _Rooms()


def of_inputs(d: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Bᵀ d: six numbers as six others, with the sums that rows of Bᵀ share made once."""
    even, odd = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(d[4], d[2], out=even)
    torch.sub(d[3], d[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.sub(d[4], d[2], alpha=5, out=out[0]).add_(d[0], alpha=4)
    torch.sub(d[5], d[3], alpha=5, out=out[5]).add_(d[1], alpha=4)


def of_products(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Aᵀ m: six numbers as four."""
    near, far = m[1] + m[2], m[3] + m[4]
    torch.add(near, far, out=out[0]).add_(m[0])
    torch.add(near, far, alpha=4, out=out[2])
    torch.sub(m[1], m[2], out=near)
    torch.sub(m[3], m[4], out=far)
    torch.add(near, far, alpha=2, out=out[1])
    torch.add(near, far, alpha=8, out=out[3]).add_(m[5])


def of_gradients(y: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """A y: four numbers as six, the way back through Aᵀ."""
    out[0].copy_(y[0])
    out[5].copy_(y[3])
    even, odd = y[0] + y[2], y[1] + y[3]
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.add(y[0], y[2], alpha=4, out=even)
    torch.add(y[1], y[3], alpha=4, out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
