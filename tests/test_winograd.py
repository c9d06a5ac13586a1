"""Convolutions with fewer products: torch's numbers and gradients but for rounding, and torch's own where they don't pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline import winograd
from sightline.datasets import Dataset
from sightline.models import build
from sightline.precision import NAMED
from sightline.recipe import RECIPES
from sightline.training import train
from sightline.winograd import Tiling, Winograd, convolved

# The paper's, of F(4×4, 3×3).
B_T = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
B_T += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
A_T = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def noise(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def close(found: Tensor | None, expected: Tensor | None) -> bool:
    assert found is not None and expected is not None and found.dtype == torch.float32 and found.shape == expected.shape
    return bool((found - expected).abs().max() < 2e-5 * expected.abs().max())


@pytest.mark.parametrize(
    "transform, matrix", [("of_inputs", B_T), ("of_products", A_T), ("of_gradients", list(zip(*A_T, strict=True)))]
)
def test_a_transform_is_the_paper_s_matrix(transform: str, matrix: Sequence[Sequence[float]]) -> None:
    rows = torch.tensor(matrix, dtype=torch.float64)
    x, out = torch.randn(rows.shape[1], 7, dtype=torch.float64), torch.full((len(rows), 7), torch.nan, dtype=torch.float64)
    getattr(winograd, transform)(x.unbind(), out.unbind())
    torch.testing.assert_close(out, rows @ x)


def test_a_tile_of_these_matrices_is_a_convolution() -> None:
    """In float64, without a detour: Aᵀ (G g Gᵀ ∘ Bᵀ d B) A, each matrix written out."""
    at, bt = (torch.tensor(each, dtype=torch.float64) for each in (A_T, B_T))
    g, d = torch.randn(3, 3, dtype=torch.float64), torch.randn(6, 6, dtype=torch.float64)
    seen = winograd.G.double()
    tile = at @ ((seen @ g @ seen.T) * (bt @ d @ bt.T)) @ at.T
    torch.testing.assert_close(tile, F.conv2d(d[None, None], g[None, None])[0, 0], rtol=1e-6, atol=1e-6)  # G is in float32


@pytest.mark.parametrize("channels, made", [(192, 200), (64, 70), (64, 256), (256, 65)])
@pytest.mark.parametrize("images, size", [(5, (7, 7)), (37, (5, 6)), (40, (13, 15)), (3, (16, 32)), (18, (3, 3)), (1, (1, 1))])
def test_results_and_gradients_are_those_of_a_convolution(
    images: int, size: tuple[int, int], channels: int, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "TILES", 40)  # in several parts, the last of them not whole
    x, weight, bias = noise(images, channels, *size), noise(made, channels, 3, 3, seed=1), noise(made, seed=2)
    mine, exact = (
        [each.detach().to(dtype, copy=True).requires_grad_() for each in (x, weight, bias)]
        for dtype in (torch.float32, torch.float64)
    )
    result, expected = convolved(*mine, padding=1), F.conv2d(*exact, padding=1)
    assert close(result, expected) and result.is_contiguous(memory_format=torch.channels_last)
    assert result.grad_fn is not None and result.grad_fn.next_functions[0][0].name() == "_ConvolvedBackward"
    grad = torch.randn(expected.shape)  # channels first
    result.backward(grad)
    expected.backward(grad.double())
    assert all(close(a.grad, b.grad) for a, b in zip(mine, exact, strict=True))


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_learns_nothing_gets_no_gradient(frozen: int) -> None:
    pair = [noise(4, 192, 8, 8), noise(192, 192, 3, 3, seed=1)]
    pair[1 - frozen].requires_grad_()
    convolved(*pair, padding=1).sum().backward()
    assert pair[frozen].grad is None
    exact = [each.detach().double() for each in pair]
    exact[1 - frozen].requires_grad_()
    F.conv2d(*exact, padding=1).sum().backward()
    assert close(pair[1 - frozen].grad, exact[1 - frozen].grad)


OTHERS: dict[str, Callable[[Callable[..., Tensor]], Tensor]] = {
    "a step": lambda conv: conv(noise(2, 192, 9, 9), noise(192, 192, 3, 3), stride=2, padding=1),
    "no border": lambda conv: conv(noise(2, 192, 9, 9), noise(192, 192, 3, 3)),
    "a border by name": lambda conv: conv(noise(2, 192, 9, 9), noise(192, 192, 3, 3), padding="same"),
    "a wide border": lambda conv: conv(noise(2, 192, 9, 9), noise(192, 192, 3, 3), padding=(1, 2)),
    "gaps": lambda conv: conv(noise(2, 192, 9, 9), noise(192, 192, 3, 3), padding=1, dilation=2),
    "groups": lambda conv: conv(noise(2, 384, 9, 9), noise(192, 192, 3, 3), None, 1, 1, 1, 2),
    "few channels": lambda conv: conv(noise(2, 63, 9, 9), noise(192, 63, 3, 3), padding=1),
    "few results": lambda conv: conv(noise(2, 192, 9, 9), noise(63, 192, 3, 3), padding=1),
    "other filters": lambda conv: conv(noise(2, 192, 9, 9), noise(192, 192, 1, 3), padding=1),
    "channels first": lambda conv: conv(noise(2, 192, 9, 9).contiguous(), noise(192, 192, 3, 3), padding=1),
    "bfloat16": lambda conv: conv(noise(2, 192, 9, 9).bfloat16(), noise(192, 192, 3, 3).bfloat16(), padding=1),
    "float64": lambda conv: conv(noise(2, 192, 9, 9).double(), noise(192, 192, 3, 3).double(), padding=1),
    "no images": lambda conv: conv(noise(0, 192, 9, 9), noise(192, 192, 3, 3), padding=1),
    "one image alone": lambda conv: conv(noise(2, 192, 9, 9)[0], noise(192, 192, 3, 3), padding=1),
}


@pytest.mark.parametrize("case", OTHERS)
def test_all_else_is_torch_s_own_bit_for_bit(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_results", lambda *_: pytest.fail("made of tiles"))
    assert torch.equal(OTHERS[case](convolved), OTHERS[case](F.conv2d))


def test_arguments_may_be_named_as_torch_names_them() -> None:
    x, weight, bias = noise(2, 192, 9, 9), noise(192, 192, 3, 3, seed=1), noise(192, seed=2)
    with Winograd():
        named = F.conv2d(input=x, weight=weight, bias=bias, stride=1, padding=1, dilation=1, groups=1)
    assert close(named, F.conv2d(x.double(), weight.double(), bias.double(), padding=1))


def test_it_is_in_float32_whatever_the_default_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd.room, "memory", {})
    torch.set_default_dtype(torch.float64)
    try:
        result = convolved(noise(2, 192, 9, 9).float(), noise(192, 192, 3, 3, seed=1).float(), padding=1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.dtype == torch.float32 and result.isfinite().all()


def test_few_channels_take_tiles_for_the_filters_gradient_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_results", lambda *_: pytest.fail("made of tiles"))
    x, weight = noise(2, 64, 9, 9).requires_grad_(), noise(64, 64, 3, 3, seed=1).requires_grad_()
    other, same = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    result, expected = convolved(x, weight, padding=1), F.conv2d(other, same, padding=1)
    assert torch.equal(result, expected)
    result.sum().backward()
    expected.sum().backward()
    assert x.grad is not None and other.grad is not None and torch.equal(x.grad, other.grad)
    assert close(weight.grad, same.grad) and not torch.equal(weight.grad, same.grad)  # type: ignore[arg-type]


def test_it_acts_within_with_and_on_the_way_back_from_there() -> None:
    net = build("fastnet", classes=3).to(memory_format=torch.channels_last).eval()
    x = noise(4, 3, 32, 32)
    gradients = []
    for context in (nullcontext(), Winograd(), NAMED["fp32-winograd"].autocast(x.device), nullcontext()):
        net.zero_grad()
        with context:
            logits = net(x)
        logits.square().sum().backward()
        gradients.append([each.grad.clone() for each in net.parameters() if each.grad is not None])
    plain, tiled, named, after = gradients
    assert all(map(torch.equal, plain, after)) and all(map(torch.equal, tiled, named))
    assert all(map(close, tiled, plain)) and not any(map(torch.equal, tiled[1:4], plain[1:4]))


@pytest.mark.parametrize(
    "size, side, tiles",
    [((4, 4), 1, 1.0), ((7, 7), 1, 4.0), ((8, 8), 1, 4.0), ((5, 5), 2, 2.25), ((6, 6), 4, 49 / 16), ((32, 16), 1, 32.0)],
)
def test_images_lie_in_the_mosaic_that_takes_the_fewest_tiles(size: tuple[int, int], side: int, tiles: float) -> None:
    tiling = Tiling.of(*size)
    assert (tiling.side, tiling.rows * tiling.columns / tiling.side**2) == (side, tiles)


@pytest.mark.parametrize("images", [1, 16, 17, 150])
@pytest.mark.parametrize("size", [(5, 5), (6, 5), (7, 7), (13, 6)])
def test_images_come_out_of_their_mosaics_as_they_were_and_are_apart(images: int, size: tuple[int, int]) -> None:
    x, tiling = torch.rand(images, *size, 3) + 1, Tiling.of(*size)
    out, ones = torch.zeros_like(x), 0.0
    for mosaics, into in zip(tiling.mosaics(x, "inputs"), out.split(tiling.at_a_time), strict=True):
        # Nothing but the images, and no image touches another, or the border: what is between them stays 0.
        assert mosaics[mosaics != 0].sum() == pytest.approx(float(x[int(ones) : int(ones) + len(into)].sum()), rel=1e-5)
        spread = F.max_pool2d((mosaics[..., 0] > 0).float()[:, None], 3, 1, 1)[:, 0]
        alone = F.max_pool2d(F.pad(torch.ones(1, 1, *size), (1, 1, 1, 1)), 3, 1, 1).sum()
        assert spread.sum() <= len(into) * alone and not mosaics[:, 0].any() and not mosaics[:, :, -1].any()
        tiling.images(mosaics[:, 1:-1, 1:-1], into)
        ones += len(into)
    assert torch.equal(out, x)


def test_a_training_so_goes_as_a_plain_one_is_the_same_each_time_and_says_so(blobs: Dataset, tmp_path: Path) -> None:
    """Beside a plain one it ends elsewhere, as any two do that round otherwise: a maximum that moves is a step of its own."""
    recipe = RECIPES["fast"].with_(epochs=1, batch_size=60)
    precisions = {"plain": "fp32-channels-last", "tiled": "fp32-winograd", "again": "fp32-winograd"}
    plain, tiled, again = (train(blobs, tmp_path / name, recipe=recipe, precision=how) for name, how in precisions.items())
    a, b, c = (run.model().state_dict() for run in (plain, tiled, again))
    assert all(torch.equal(b[name], c[name]) for name in b) and not torch.equal(a["layer3.0.weight"], b["layer3.0.weight"])
    assert tiled.info["arithmetic"] == {"dtype": "float32", "channels_last": True, "compiled": False, "winograd": True}
    assert tiled.history[0]["train_loss"] == pytest.approx(plain.history[0]["train_loss"], rel=0.05)


def test_a_training_may_follow_a_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd.room, "memory", {})
    x, weight = noise(4, 192, 8, 8), noise(192, 192, 3, 3, seed=1).requires_grad_()
    with torch.inference_mode():
        predicted = convolved(x, weight, padding=1)
    result = convolved(x, weight, padding=1)
    result.sum().backward()
    with torch.inference_mode():
        assert torch.equal(predicted, result) and torch.equal(predicted, convolved(x, weight, padding=1))


def test_threads_have_rooms_of_their_own_and_keep_them() -> None:
    inputs = [(noise(30, 192, 6, 6, seed=each), noise(192, 192, 3, 3, seed=each + 9).requires_grad_()) for each in range(2)]

    def both(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, set[int]]:
        for _ in range(8):
            result = convolved(*pair, padding=1)
            gradient = torch.autograd.grad(result.square().sum(), pair[1])[0]
        return result, gradient, {each.data_ptr() for each in winograd.room.memory.values()}

    alone = [both(pair) for pair in inputs]
    assert alone[0][2] == alone[1][2]  # no other memory, though sixteen passes went through
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(both, inputs))
    for mine, other in zip(alone, together, strict=True):
        assert torch.equal(mine[0], other[0]) and torch.equal(mine[1], other[1]) and not mine[2] & other[2]


def test_dropout_and_other_functions_are_untouched_within_with() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3))
    x = torch.ones(5, 3, 2, 2)
    torch.manual_seed(0)
    expected = net(x)
    torch.manual_seed(0)
    with Winograd():
        assert torch.equal(net(x), expected)
