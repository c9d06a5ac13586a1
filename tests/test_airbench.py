"""The benchmarks' airbench94-muon, against loops by hand: a wrong reference would make every comparison with it wrong."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sightline.datasets import Split
from sightline.precision import has_bfloat16

FILE = Path(__file__).parent.parent / "benchmarks" / "airbench.py"
airbench: Any = SimpleNamespace(**run_path(str(FILE)))
CPU = torch.device("cpu")
ARITHMETIC = torch.bfloat16 if has_bfloat16(CPU) else torch.float32  # emulated bfloat16 would take minutes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def newton_schulz(matrix: Tensor) -> NDArray[np.float64]:
    """Three steps of a x + b (x xᵀ) x + c (x xᵀ)² x from x / |x|, in float64."""
    x: NDArray[np.float64] = matrix.double().numpy()
    x = x / np.sqrt((x**2).sum())
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


def apart(found: Tensor, wanted: NDArray[np.float64]) -> float:
    """The relative distance of two arrays."""
    return float(np.linalg.norm(found.double().numpy() - wanted) / np.linalg.norm(wanted))


def planted(n: int) -> tuple[Tensor, Tensor]:
    """Noise whose brightness in one of ten rows says the class: images (n, 3, 32, 32) in ARITHMETIC, labels (n,)."""
    labels = torch.arange(n) % 10
    images = torch.randn(n, 3, 32, 32)
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 4] += 2
    return images.to(ARITHMETIC), labels


@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (96, 96)])
def test_newton_schulz_equals_a_float64_loop(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    found, wanted = airbench.orthogonalise(matrix), newton_schulz(matrix)
    assert apart(found, wanted) < 0.02  # eight bits
    assert (found.double().numpy() * wanted).sum() / (wanted**2).sum() == pytest.approx(1, abs=0.004)  # but no bias


def test_in_float32_newton_schulz_and_a_training_are_exact() -> None:
    matrix = torch.randn(96, 160)
    assert apart(airbench.orthogonalise(matrix, torch.float32), newton_schulz(matrix)) < 1e-5
    images, labels = planted(8)
    net, features = airbench.make_net(images.float()), []
    net.stages.register_forward_hook(lambda module, args, out: features.append(out))
    p, before = net.stages[2][0].weight, net.stages[2][0].weight.detach().clone()
    next(airbench.train_steps(net, images.float(), labels, epochs=1, batch=8))
    assert features[0].dtype == torch.float32
    values = torch.linalg.svdvals(((before * 256**0.5 / before.norm() - p.detach()) / 0.24).flatten(1))
    assert values.max() < 1.5


def test_newton_schulz_brings_the_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(airbench.orthogonalise(torch.randn(24, 60)).float())
    assert values.min() > 0.5 and values.max() < 1.5


def test_whitened_patches_have_identity_covariance() -> None:
    images = F.avg_pool2d(torch.randn(50, 3, 21, 21), 4, 1)  # neighbouring pixels resemble each other, as in photographs
    images[:, 1] += images[:, 0]
    net = airbench.Net()
    airbench.set_whitening(net, images, eps=1e-9)
    features = F.conv2d(images, net.whiten.weight.detach()).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(features[:12] @ features[:12].T / features.shape[1], torch.eye(12).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(features[12:], -features[:12])


def test_the_net_has_the_parameters_of_airbench94_muon() -> None:
    net = airbench.Net()
    widths = ((24, 64), (64, 64), (64, 256), (256, 256), (256, 256), (256, 256))
    count = 24 * 12 + 24 + sum(9 * a * b + 2 * b for a, b in widths) + 2560
    assert sum(p.numel() for p in net.parameters()) == count == 1_972_792
    frozen = 24 * 12 + sum(b for _, b in widths)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == count - frozen


def test_a_fresh_convolution_passes_its_input_through() -> None:
    x = torch.randn(2, 24, 8, 8)
    torch.testing.assert_close(airbench.Conv(24, 64)(x)[:, :24], x)


def test_the_fresh_head_has_deviation_one_and_its_logits_are_divided_by_the_width() -> None:
    net = airbench.Net().eval()
    torch.testing.assert_close(net.head.weight.std(), torch.tensor(1.0))
    x = torch.randn(4, 3, 32, 32)
    features = net.stages(F.conv2d(x, net.whiten.weight, net.whiten.bias)).flatten(1)
    torch.testing.assert_close(net(x), features @ net.head.weight.T / 256)


def test_batch_norm_in_bfloat16_divides_by_deviations_far_below_the_usual_epsilon() -> None:
    norm = airbench.BatchNorm(3)
    x = (1e-4 * torch.randn(16, 3, 8, 8)).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x)
    exact = x.double()
    wanted = (exact - exact.mean((0, 2, 3), keepdim=True)) / exact.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(found.double(), wanted, atol=0.02, rtol=0.01)
    torch.testing.assert_close(norm.running_mean.double(), 0.4 * exact.mean((0, 2, 3)), atol=1e-8, rtol=1e-3)


def test_images_are_normalised_with_the_published_figures() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    split = Split(images, np.zeros(2, np.int64), ("a",), ("1", "2"))
    wanted = (images / 255 - (0.4914, 0.4822, 0.4465)) / (0.2470, 0.2435, 0.2616)
    found = airbench.normalise(split, CPU).double().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, wanted, rtol=2**-8, atol=1e-4)


def test_crops_are_windows_of_the_padded_image_at_every_shift() -> None:
    images = torch.randn(1, 3, 6, 6)
    padded = F.pad(images, (2,) * 4, "reflect")
    np.testing.assert_array_equal(padded[0].numpy(), np.pad(images[0].numpy(), ((0, 0), (2, 2), (2, 2)), "reflect"))
    windows = [padded[0, :, y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
    crops = airbench.crop(padded.expand(2500, -1, -1, -1), 6)
    shifts = [[i for i, window in enumerate(windows) if torch.equal(crop, window)] for crop in crops]
    counts = np.bincount([shift for (shift,) in shifts], minlength=25)  # exactly one fits each
    assert counts.min() > 50 and counts.max() < 150  # 100 each, five standard deviations


def test_who_is_mirrored_is_drawn_once_and_all_turn_round_every_other_epoch() -> None:
    images = torch.zeros(200, 3, 16, 16)
    images[..., :8] = 1  # the left is bright, whatever the shift
    epochs = np.zeros((4, 200), bool)
    batches = airbench.batches(images.bfloat16(), torch.arange(200), epochs=4, batch=50)
    for i, (x, chosen) in enumerate(batches):
        epochs[i // 4, chosen] = (x[..., :8].sum((1, 2, 3)) > x[..., 8:].sum((1, 2, 3))).numpy()
    assert 65 < epochs[0].sum() < 135
    np.testing.assert_array_equal(epochs, [epochs[0], ~epochs[0], epochs[0], ~epochs[0]])


def test_an_epoch_shows_no_image_twice_and_drops_the_partial_batch() -> None:
    batches = list(airbench.batches(torch.zeros(25, 3, 8, 8), torch.arange(25), epochs=2, batch=10))
    assert [len(y) for _, y in batches] == [10] * 4
    orders = [torch.cat([y for _, y in batches[i : i + 2]]).tolist() for i in (0, 2)]
    assert len(set(orders[0])) == len(set(orders[1])) == 20 and orders[0] != orders[1]


def test_two_steps_of_muon_equal_those_by_hand() -> None:
    p = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    muon, momentum, wanted = airbench.Muon([p]), np.zeros(p.shape), p.detach().double().numpy()
    for lr in (0.24, 0.12):
        p.grad = torch.randn(p.shape)
        gradient = p.grad.double().numpy()
        momentum = 0.6 * momentum + gradient
        update = newton_schulz(torch.from_numpy(gradient + 0.6 * momentum).reshape(8, 36)).reshape(p.shape)
        wanted = wanted * np.sqrt(8) / np.linalg.norm(wanted) - lr * update
        muon.step(lr)
        assert apart(muon.momenta[0], momentum) < 1e-6
        assert apart(p.detach(), wanted) < 0.01


def test_biases_and_head_follow_nesterov_with_decay_towards_rates_of_zero() -> None:
    """Four epochs of two steps: the whitening bias learns in the first three only."""
    images, labels = planted(8)
    net = airbench.make_net(images)
    norm = net.stages[2][5].bias  # a norm of the second stage
    gradients: dict[Tensor, list[Tensor]] = {p: [] for p in (net.whiten.bias, norm, net.head.weight)}
    wanted = {p: p.detach().double() for p in gradients}
    for p, seen in gradients.items():
        p.register_hook(lambda gradient, seen=seen: seen.append(gradient.double()))
    momenta = {p: torch.zeros_like(w) for p, w in wanted.items()}
    for step, _ in enumerate(airbench.train_steps(net, images, labels, epochs=4, batch=4)):
        for p, peak, steps in ((net.whiten.bias, 0.053, 6), (norm, 0.053, 8), (net.head.weight, 0.67, 8)):
            if step < steps:
                g = gradients[p][step] + 2e-6 * 4 / peak * wanted[p]
                momenta[p] = 0.85 * momenta[p] + g
                wanted[p] = wanted[p] - peak * (1 - step / steps) * (g + 0.85 * momenta[p])
            torch.testing.assert_close(p.detach().double(), wanted[p], atol=1e-5, rtol=1e-4)
    assert [len(seen) for seen in gradients.values()] == [6, 8, 8]


def test_filters_take_muon_steps_at_rates_that_decay_to_zero() -> None:
    images, labels = planted(8)
    net = airbench.make_net(images)
    p, momentum = net.stages[2][0].weight, np.zeros((256, 64 * 9))
    gradients: list[Tensor] = []
    p.register_hook(lambda gradient: gradients.append(gradient.clone()))
    before = p.detach().clone()
    for step, _ in enumerate(airbench.train_steps(net, images, labels, epochs=1, batch=2)):
        gradient = gradients[step].flatten(1).double().numpy()
        momentum = 0.6 * momentum + gradient
        update = newton_schulz(torch.from_numpy(gradient + 0.6 * momentum))
        change = (before * 256**0.5 / before.norm() - p.detach()).flatten(1)
        assert apart(change, 0.24 * (1 - step / 4) * update) < 0.03
        before = p.detach().clone()
    assert step == 3


def test_the_loss_is_the_smoothed_cross_entropy_summed() -> None:
    images, labels = planted(4)
    net = airbench.make_net(images)
    seen: list[Tensor] = []
    net.register_forward_hook(lambda module, args, logits: seen.append(logits.detach()))
    torch.manual_seed(1)
    loss, right = next(airbench.train_steps(net, images, labels, epochs=1, batch=4))
    torch.manual_seed(1)
    _, y = next(airbench.batches(images, labels, epochs=1, batch=4))
    logs = seen[0].double() - seen[0].double().exp().sum(1, keepdim=True).log()
    targets = 0.8 * torch.eye(10).double()[y] + 0.2 / 10
    assert loss.item() == pytest.approx(-(targets * logs).sum().item(), rel=1e-5)
    assert right.item() == (seen[0].argmax(1) == y).sum().item()


def test_six_views_are_weighted_as_published() -> None:
    x, weights = torch.randn(5, 3, 32, 32), torch.randn(3 * 32 * 32, 10)
    single, mirror, six = airbench.views(lambda images: images.flatten(1) @ weights, x)

    def by_hand(images: NDArray[np.float32], turned: bool) -> NDArray[np.float64]:
        logits: NDArray[np.float64] = (images[..., ::-1] if turned else images).reshape(5, -1) @ weights.double().numpy()
        return logits

    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), "reflect")
    sums = [by_hand(v, False) + by_hand(v, True) for v in (x.numpy(), padded[..., :32, :32], padded[..., 2:, 2:])]
    np.testing.assert_allclose(single, by_hand(x.numpy(), False), atol=1e-3)
    np.testing.assert_allclose(mirror, sums[0] / 2, atol=1e-3)
    np.testing.assert_allclose(six, sums[0] / 4 + sums[1] / 8 + sums[2] / 8, atol=1e-3)


def test_training_learns_planted_images() -> None:
    rows: list[dict[str, float]] = []
    net = airbench.train(*planted(200), epochs=2, batch=20, on_epoch=rows.append)
    assert rows[1]["train_loss"] < rows[0]["train_loss"] - 0.3
    rates = airbench.accuracies(net, *planted(50))
    assert rates.keys() == {"single_view", "mirror", "six_views"} and min(rates.values()) > 0.5
