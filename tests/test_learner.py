"""What a batch becomes: mixed labels, sizes, alternating flips, hard images, other views; each against the plain formula."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sightline.augment import CutMix, HorizontalFlip, MixUp, RandomCrop
from sightline.datasets import Dataset
from sightline.evaluation import predict, predict_views
from sightline.models import Normalise, build, to_device
from sightline.precision import Precision
from sightline.recipe import Recipe
from sightline.training import Learner, train
from sightline.training.learner import scaled
from sightline.training.state import State

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def learner(data: Dataset, recipe: Recipe) -> Learner:
    return Learner.make(data, recipe, Precision(), seed=0, device=CPU)


@pytest.mark.parametrize("mixing", [MixUp(0.5), CutMix()])
def test_mixed_images_are_learned_with_mixed_labels(mixing: MixUp | CutMix, blobs: Dataset, quick: Recipe) -> None:
    ours = learner(blobs, replace(quick, augment=(mixing,), label_smoothing=0.1))
    ours.model.eval()
    chosen = torch.arange(20)
    loss = ours.loss(ours.model, chosen, ours.images.take(chosen), Generator().manual_seed(3))

    generator = Generator().manual_seed(3)
    torch.randint(1, (), generator=generator)  # which of the one
    mixed, partner, share = mixing.mix(to_device(blobs.train.images[:20]), generator)
    logits = ours.model(Normalise(*blobs.normalisation)(mixed)).detach().double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = np.eye(3)[blobs.train.labels[:20]]
    target = share.numpy()[:, None] * labels + (1 - share.numpy()[:, None]) * labels[partner.numpy()]
    target = 0.9 * target + 0.1 / 3
    assert loss.mean.item() == pytest.approx(-(target * log_p).sum(1).mean(), rel=1e-5)
    np.testing.assert_allclose(loss.each, -(labels * log_p).sum(1), rtol=1e-4, atol=1e-6)
    assert int(loss.right) == (logits.argmax(1) == blobs.train.labels[:20]).sum()


def test_flips_alternate_over_the_epochs_of_a_training(blobs: Dataset, quick: Recipe) -> None:
    ours = learner(blobs, replace(quick, augment=(HorizontalFlip(alternating=True),)))
    chosen = torch.tensor([5, 99, 7, 31])
    plain = Normalise(*blobs.normalisation)(to_device(blobs.train.images[chosen]))
    seen = [ours.inputs(chosen, ours.images.take(chosen), Generator(), epoch)[0] for epoch in range(4)]
    for image, *epochs in zip(plain, *seen, strict=True):
        mirrored = [bool(torch.equal(x, image.flip(2))) for x in epochs]
        assert mirrored in ([True, False] * 2, [False, True] * 2)
        assert all(torch.equal(x, image.flip(2) if flip else image) for x, flip in zip(epochs, mirrored, strict=True))


def triangle(n: int, m: int) -> np.ndarray:
    """The matrix that resamples n pixels to m < n with the triangle filter stretched to the new pixels' size."""
    centres, positions = (np.arange(m) + 0.5) * n / m, np.arange(n) + 0.5
    weights = np.maximum(0, 1 - np.abs(positions - centres[:, None]) * m / n)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("scale, sides", [(0.5, (16, 12)), (0.75, (24, 18)), (0.1, (8, 8))])
def test_smaller_images_are_triangle_filtered(scale: float, sides: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 32, 24)
    rows, columns = (triangle(n, m) for n, m in zip((32, 24), sides, strict=True))
    expected = np.einsum("ih,nchw,jw->ncij", rows, x.numpy(), columns)
    np.testing.assert_allclose(scaled(x, scale), expected, atol=1e-5)


def test_full_size_and_images_that_are_tiny_already_stay_as_they_are() -> None:
    for x, scale in ((torch.randn(2, 3, 20, 20), 1.0), (torch.randn(2, 3, 6, 6), 0.5)):
        assert scaled(x, scale) is x


def test_an_epoch_takes_the_images_with_the_highest_losses() -> None:
    model = nn.Linear(2, 2)
    state = State(
        model, torch.optim.SGD(model.parameters()), Precision().scaler(CPU), None, torch.tensor([0.5, 3.0, 0.1, 2.0, 0.9, 0.5])
    )
    state.draw_order(0.5, 3, Generator().manual_seed(0))
    assert sorted(state.order.tolist()) == [1, 3, 4]
    state.draw_order(1.0, 6, Generator().manual_seed(0))
    assert sorted(state.order.tolist()) == list(range(6))


def test_the_shares_of_sizes_and_of_kept_images_go_by_epochs() -> None:
    recipe = Recipe(epochs=8, sizes=((0.25, 0.5), (0.5, 0.75)), keep=((0.5, 0.8), (0.75, 0.6)))
    assert [recipe.scale(epoch) for epoch in range(8)] == [0.5, 0.5, 0.75, 0.75, 1, 1, 1, 1]
    assert [recipe.kept(epoch) for epoch in range(8)] == [1, 1, 1, 1, 0.8, 0.8, 0.6, 0.6]


def test_hard_images_are_those_of_the_last_look(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    recipe = replace(quick, epochs=2, batch_size=20, keep=((0.5, 0.25),))
    taken: list[Tensor] = []

    class Watched(type(learner(blobs, recipe).images)):  # type: ignore[misc]
        def batches(self, order: Tensor, size: int):  # type: ignore[no-untyped-def]
            taken.append(order.clone())
            return super().batches(order, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sightline.training.learner.source", Watched)
        train(blobs, tmp_path / "run", recipe=recipe, precision="fp32")
    first, second = taken
    assert sorted(first.tolist()) == list(range(240)) and len(set(second.tolist())) == 60


class Moved(nn.Module):
    """Logits that tell views apart: the image's own top left, top right and bottom right pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack((x[:, 0, 0, 0], x[:, 0, 0, -1], x[:, 0, -1, -1]), 1)


def views_by_hand(x: Tensor) -> Tensor:
    """0.5 · mean(image, mirrored) + 0.25 · the same of each of two moved images."""
    model, padded = Moved(), F.pad(x, (1, 1, 1, 1), "reflect")
    both = [(model(v) + model(v.flip(3))) / 2 for v in (x, padded[:, :, :-2, :-2], padded[:, :, 2:, 2:])]
    return 0.5 * both[0] + 0.25 * both[1] + 0.25 * both[2]


def test_views_are_the_weighted_mean_where_the_model_is_unsure(blobs: Dataset) -> None:
    normalise = Normalise(*blobs.normalisation)
    x = normalise(to_device(blobs.test.images))
    plain = predict(Moved(), blobs.test, normalise, Precision())
    seen = predict_views(Moved(), blobs.test, normalise, Precision(), plain, "shifted")
    sureness = F.softmax(torch.from_numpy(plain), 1).amax(1)
    unsure = sureness.argsort()[:15]
    np.testing.assert_allclose(seen[unsure], views_by_hand(x)[unsure], atol=1e-5)
    sure = np.setdiff1d(np.arange(60), unsure)
    np.testing.assert_array_equal(seen[sure], plain[sure])
    mirror = predict_views(Moved(), blobs.test, normalise, Precision(), plain, "mirror")
    np.testing.assert_allclose(mirror, (Moved()(x) + Moved()(x.flip(3))) / 2, atol=1e-5)


def test_a_run_with_views_says_their_accuracy_beside_that_of_the_plain_image(
    blobs: Dataset, quick: Recipe, tmp_path: Path
) -> None:
    run = train(blobs, tmp_path / "run", recipe=replace(quick, epochs=1, views="mirror"), precision="fp32")
    x = Normalise(*blobs.normalisation)(to_device(blobs.test.images))
    logits = run.model()(x) + run.model()(x.flip(3))
    right = (logits.argmax(1).numpy() == blobs.test.labels).mean()
    assert run.info["results"]["views_accuracy"] == pytest.approx(right)
    assert run.info["results"]["test_accuracy"] == (run.predictions.predicted == blobs.test.labels).mean()


EVERYTHING = {
    "model": "fastnet",
    "width": 0.125,
    "optimizer": "muon",
    "max_lr": 0.1,
    "momentum": 0.6,
    "weight_decay": 1e-6,
    "label_smoothing": 0.1,
    "ema": 0.9,
    "sizes": ((0.5, 0.75),),
    "keep": ((0.3, 0.6),),
    "views": "shifted",
    "test_epochs": "last",
    "augment": (RandomCrop(2), HorizontalFlip(alternating=True), MixUp(0.2, 0.5), CutMix(1.0, 0.5)),
}
BY_SGD = {"optimizer": "sgd", "decay_all": False, "model": "smallnet", "width": 0.5}


@pytest.mark.parametrize("precision, changes", [("bf16", {}), ("bf16", BY_SGD), ("fp16", BY_SGD)])
def test_a_run_with_everything_that_stopped_anywhere_ends_as_if_it_had_not(
    precision: str, changes: dict[str, object], blobs: Dataset, quick: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.training.loop.CHECKPOINT_SECONDS", 0.0)
    # In float16 the loss's scale has to be remembered, too: it goes up and down all the time.
    restless = partial(torch.amp.GradScaler, init_scale=2.0**20, growth_interval=2)
    monkeypatch.setattr(Precision, "scaler", lambda self, device: restless(device.type, enabled=self.dtype == "float16"))
    recipe = replace(quick, epochs=4, **{**EVERYTHING, **changes})  # type: ignore[arg-type]
    whole = train(blobs, tmp_path / "whole", recipe=recipe, precision=precision)
    assert sum(np.isfinite(row["test_accuracy"]) for row in whole.history) == 1
    stops = (2, 9, 13, 19)
    for at in stops:
        steps = 0

        def kill(now: object, at: int = at) -> None:
            nonlocal steps
            steps += getattr(now, "stage", "") == "train"
            if steps == at:
                raise KeyboardInterrupt

        folder = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            train(blobs, folder, recipe=recipe, precision=precision, on_progress=kill)
        again = train(blobs, folder, recipe=recipe, precision=precision)
        assert (again.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
        assert again.info["results"]["views_accuracy"] == whole.info["results"]["views_accuracy"]


def test_what_is_saved_with_an_average_is_the_average(blobs: Dataset, quick: Recipe, tmp_path: Path) -> None:
    """With a decay so small that the average is the last weights, the run's weights are those of one without an average."""
    plain = train(blobs, tmp_path / "plain", recipe=quick, precision="fp32")
    nearly = train(blobs, tmp_path / "nearly", recipe=replace(quick, ema=1e-9), precision="fp32")
    slow = train(blobs, tmp_path / "slow", recipe=replace(quick, ema=0.9), precision="fp32")
    for name, value in plain.model().named_parameters():
        torch.testing.assert_close(dict(nearly.model().named_parameters())[name], value, rtol=1e-5, atol=1e-7)
        if name == "fc.weight":
            assert not torch.allclose(dict(slow.model().named_parameters())[name], value, rtol=1e-3)


def test_the_fast_net_is_whitened_by_the_training_images(blobs: Dataset, quick: Recipe) -> None:
    ours = learner(blobs, replace(quick, model="fastnet", width=0.125))
    x = Normalise(*blobs.normalisation)(to_device(blobs.train.images))
    features = ours.model.whiten(x).transpose(0, 1).flatten(1).double()  # type: ignore[operator]
    moments = features @ features.T / features.shape[1]
    torch.testing.assert_close(moments[:12, :12], torch.eye(12).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(features[12:], -features[:12])
    assert not ours.model.whiten.weight.requires_grad  # type: ignore[union-attr]


def test_an_own_model_takes_no_width() -> None:
    from sightline.exceptions import RecipeError

    with pytest.raises(RecipeError, match="set its width there"):
        build("torch.nn:Identity", classes=3, width=2)
