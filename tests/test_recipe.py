"""Recipes: what they hold, how they are written down, and how wrong ones are refused."""

import json
from pathlib import Path

import pytest

from sightline.augment import CoarseDropout, HorizontalFlip, RandomCrop
from sightline.exceptions import RecipeError
from sightline.recipe import RECIPES, Recipe, load_recipe
from sightline.training.rate import sweep_steps


def test_classic_is_the_system_that_sightline_starts_from() -> None:
    classic = load_recipe("classic")
    assert (classic.model, classic.epochs, classic.batch_size) == ("resnet18", 20, 512)
    assert (classic.weight_decay, classic.max_lr, classic.anneal) == (1e-4, "auto", "linear")
    assert (classic.peak, classic.start_lr, classic.final_lr) == (5 / 20, 1 / 100, 1 / 100 / 100)
    assert classic.augment == (RandomCrop(4), CoarseDropout(16, 0.5, "mean"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name: str) -> None:
    recipe = RECIPES[name]
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_recipe_is_read_from_a_file_and_changed_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"epochs": 3, "augment": [{"transform": "HorizontalFlip", "p": 0.25}]}))
    recipe = load_recipe(path).with_(epochs=None, batch_size=64)
    assert (recipe.name, recipe.epochs, recipe.batch_size, recipe.augment) == ("mine", 3, 64, (HorizontalFlip(0.25),))


def test_a_pipeline_of_the_user_s_own_is_taken_as_it_is() -> None:
    import albumentations as A

    recipe = Recipe(augment=A.Compose([A.HorizontalFlip(p=0.25)]))
    assert recipe.augment == (HorizontalFlip(0.25),)
    assert Recipe().with_(augment=A.HorizontalFlip(p=1)).augment == (HorizontalFlip(1),)


@pytest.mark.parametrize("n, batch", [(50_000, 500), (16_000, 500), (4000, 125), (300, 9), (200, 8), (5, 5)])
def test_few_images_are_learned_in_smaller_batches(n: int, batch: int) -> None:
    assert Recipe(batch_size=500, least_steps=32).batch(n) == batch
    assert Recipe(batch_size=500).batch(n) == min(500, n)


@pytest.mark.parametrize(("name", "batch"), [("classic", 512), ("strong", 128), ("fast", 500)])
def test_a_named_recipe_takes_enough_steps_of_few_images(name: str, batch: int) -> None:
    recipe = load_recipe(name)
    assert recipe.batch(50_000) == batch
    assert min(recipe.steps(1000)) >= 32 * recipe.kept(recipe.epochs - 1) - 1


def test_the_steps_of_each_epoch_are_whole_batches_of_what_it_takes() -> None:
    recipe = Recipe(epochs=4, batch_size=30, keep=((0.5, 0.8), (0.75, 0.2)))
    assert recipe.steps(100) == [3, 3, 2, 1]  # of 100, 100, 80 and 20 images: a batch at least
    assert sweep_steps(sum(recipe.steps(100))) == 60
    assert [sweep_steps(total) for total in (999, 1940, 10**6)] == [99, 194, 200]


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'classic'"):
        load_recipe("clasic")


def test_an_unknown_field_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"epoch": 3}')
    with pytest.raises(RecipeError, match=r"'epoch'.*did you mean 'epochs'"):
        load_recipe(path)


@pytest.mark.parametrize(
    "field, value",
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", True),
        ("batch_size", 1),
        ("max_lr", -0.1),
        ("max_lr", "high"),
        ("max_lr", float("nan")),
        ("max_lr", float("inf")),
        ("peak", 1.0),
        ("start_lr", 0),
        ("final_lr", 2),
        ("anneal", "exponential"),
        ("weight_decay", -1),
        ("weight_decay", float("nan")),
        ("model", 3),
        ("width", 0),
        ("least_steps", 0),
        ("optimizer", "adamw"),
        ("momentum", 1.0),
        ("decay_all", 1),
        ("label_smoothing", 1.0),
        ("ema", -0.1),
        ("sizes", [[0.5, 1.5]]),
        ("sizes", [[0.5, 0.5], [0.25, 0.75]]),
        ("sizes", [0.5]),
        ("keep", "half"),
        ("keep", [[0.5, 0]]),
        ("views", "all"),
        ("test_epochs", 3),
    ],
)
def test_a_wrong_value_is_refused_and_named(field: str, value: object) -> None:
    with pytest.raises(RecipeError, match=field):
        Recipe.from_dict({field: value})


@pytest.mark.parametrize("text", ["", "{", "[1]", '"classic"', "\x00"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"mine\.json"):
        load_recipe(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read"):
        load_recipe(tmp_path / "none.json")


@pytest.mark.parametrize(
    "augment", ["RandomCrop", 3, [3], [{}], [{"transform": "RandomCrop", "pad": 4}], {"transform": "RandomCrop"}]
)
def test_an_augmentation_that_is_none_is_refused(augment: object) -> None:
    with pytest.raises(RecipeError):
        Recipe.from_dict({"augment": augment})


def test_small_images_and_hard_ones_first_make_a_training_shorter() -> None:
    assert RECIPES["classic"].passes == 20
    small = Recipe("r", epochs=10, sizes=((0.2, 0.5), (0.5, 0.75)), keep=((0.4, 0.8), (0.5, 0.65)))
    # Epoch by epoch: two at half the side, three at three quarters, of which the last takes 0.8 of the images, five at 0.65.
    assert small.passes == pytest.approx(2 * 0.25 + 2 * 0.5625 + 0.5625 * 0.8 + 5 * 0.65)
