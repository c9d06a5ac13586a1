"""How to train: one frozen dataclass, and the built-in recipes.

classic   ResNet-18, Adam, RandomCrop + CoarseDropout, One-Cycle, 20 epochs: the system that Sightline starts from.
          `sightline train cifar10 -r classic --max-lr 0.0163 --dev 0 -o RUN`: 3 hours on two CPU cores (AVX-512, bfloat16);
          92.12 % of the test images (n = 1 seed).
strong    The same ResNet-18 and 20 epochs with orthogonalised updates, flips, mild holes, label smoothing and averaged weights.
          Images grow during its first half. `sightline train cifar10 -r strong --dev 0 -o RUN`: 80 minutes on two CPU cores of
          2024 (Zen 5, bfloat16); 94.88 %, with the mirror image 95.11 % (n = 1 seed). With `--width 0.5` 2 hours on two cores
          without bfloat16 (AVX2); 93.63 and 93.93 % (n = 1). With SGD in place of such updates, the whole width, and smaller
          images 93.19 and 93.82 % (n = 1).
fast      A small, wide net, orthogonalised updates, images that grow and, towards the end, the hardest of them only.
          `sightline train cifar10 -r fast --epochs 9 --dev 0 -o RUN`: 4½ minutes on two CPU cores of 2024 (Zen 5, bfloat16);
          92.94 ± 0.17 %, with more views of unsure images 93.71 ± 0.10 %; 22 minutes on two without bfloat16 (AVX2); 92.77 ±
          0.19 and 93.70 ± 0.10 %. Ten epochs, which it has if not told otherwise, 92.65 and 93.83 % (n = 1 seed); with `--width
          1.25` 14 minutes on the cores of `classic`; 93.42 ± 0.05 and 94.18 ± 0.12 % (mean ± standard deviation of n = 3).
          `sightline reproduce RUN -o NEW` gives the same history and weights, byte for byte.
small     A plain small net, Adam: for trying things out.
          `sightline train planted:clean -r small --dev 0 -o RUN`: 15 s; 91.67 % (n = 3).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from .augment import (
    CoarseDropout,
    HorizontalFlip,
    RandomCrop,
    Transform,
    from_albumentations,
    from_dicts,
    is_number,
    is_whole,
    to_dicts,
)
from .exceptions import RecipeError, nearest

Pairs = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is learned, apart from the data and the seed.

    model     a name that `models.build` knows, or "package.module:function" of your own
    width     times the channels of a built-in model
    least_steps   how many steps an epoch takes at least: of few images, batches are smaller (but not below 8)
    optimizer "adam"; "sgd", with Nesterov's momentum; or "muon": orthogonalised updates of filters, for nets whose convolutions
              are followed by norms (see `training.optimizers`)
    max_lr    the peak of the one-cycle policy, or "auto": by range test
    peak      the share of the training after which the rate is at its peak
    start_lr, final_lr   first and last rate, as fractions of max_lr
    anneal    "linear" or "cosine"
    momentum  of sgd and muon
    weight_decay   of adam and sgd added to the gradient (L2), as in torch.optim; of muon see `training.optimizers`
    decay_all whether norms and biases are decayed too
    label_smoothing   the share of each label that is spread over all classes
    ema       the share that an average of the weights keeps at each step, which then is the result (less in a training so short
              that it would reach back over more than a fifteenth of it); 0: the last weights are
    sizes     pairs (until, scale): up to this share of the epochs, images are scaled to this share of their side
    keep      pairs (from, share): from this share of the epochs on, an epoch takes only this share of the images, those with
              the highest loss when they were last seen
    views     how the test is looked at a second time: "mirror", or "shifted", mirrored and moved by a pixel; or "none"
    test_epochs   "all", or "last": no time is spent on testing before
    augment   Sightline's transforms in their order, or anything that `augment.from_albumentations` takes
    """

    name: str = "classic"
    model: str = "resnet18"
    width: float = 1.0
    epochs: int = 20
    batch_size: int = 512
    least_steps: int = 1
    optimizer: Literal["adam", "sgd", "muon"] = "adam"
    max_lr: float | Literal["auto"] = "auto"
    peak: float = 0.25
    start_lr: float = 0.01
    final_lr: float = 0.0001
    anneal: Literal["linear", "cosine"] = "linear"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_all: bool = True
    label_smoothing: float = 0.0
    ema: float = 0.0
    sizes: Pairs = ()
    keep: Pairs = ()
    views: Literal["none", "mirror", "shifted"] = "none"
    test_epochs: Literal["all", "last"] = "all"
    augment: Sequence[Transform] = field(default=(RandomCrop(4), CoarseDropout(16, 0.5, "mean")))

    def __post_init__(self) -> None:
        policy = self.augment if isinstance(self.augment, (list, tuple)) else from_albumentations(self.augment)
        object.__setattr__(self, "augment", tuple(policy))
        for name in ("sizes", "keep"):  # JSON has no tuples
            object.__setattr__(self, name, _tuples(getattr(self, name)))
        pairs = "pairs of numbers above 0 and at most 1, such as [[0.5, 0.75]], the first of each rising"
        for name, good, want in (
            ("model", isinstance(self.model, str), "a name, or package.module:factory"),
            ("width", _positive(self.width), "a positive number"),
            ("epochs", is_whole(self.epochs) and self.epochs >= 1, "a whole number of at least 1"),
            ("batch_size", is_whole(self.batch_size) and self.batch_size >= 2, "a whole number of at least 2"),
            ("least_steps", is_whole(self.least_steps) and self.least_steps >= 1, "a whole number of at least 1"),
            ("optimizer", self.optimizer in ("adam", "sgd", "muon"), "'adam', 'sgd' or 'muon'"),
            ("max_lr", self.max_lr == "auto" or _positive(self.max_lr), "a positive number or 'auto'"),
            ("peak", is_number(self.peak) and 0 < self.peak < 1, "a number between 0 and 1"),
            ("start_lr", _positive(self.start_lr) and self.start_lr <= 1, "a number above 0 and at most 1"),
            ("final_lr", _positive(self.final_lr) and self.final_lr <= 1, "a number above 0 and at most 1"),
            ("anneal", self.anneal in ("linear", "cosine"), "'linear' or 'cosine'"),
            ("momentum", _share(self.momentum), "a number of at least 0 and below 1"),
            ("weight_decay", is_number(self.weight_decay) and 0 <= self.weight_decay < float("inf"), "a number of at least 0"),
            ("decay_all", isinstance(self.decay_all, bool), "true or false"),
            ("label_smoothing", _share(self.label_smoothing), "a number of at least 0 and below 1"),
            ("ema", _share(self.ema), "a number of at least 0 and below 1, such as 0.999"),
            ("sizes", _are_pairs(self.sizes), pairs),
            ("keep", _are_pairs(self.keep), pairs),
            ("views", self.views in ("none", "mirror", "shifted"), "'none', 'mirror' or 'shifted'"),
            ("test_epochs", self.test_epochs in ("all", "last"), "'all' or 'last'"),
        ):
            if not good:
                raise RecipeError(f"recipe '{self.name}': {name} is {getattr(self, name)!r}; it must be {want}")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON-ready values; `from_dict` gives it back."""
        return {**{k: v for k, v in asdict(self).items() if k != "augment"}, "augment": to_dicts(self.augment)}

    @property
    def cycle(self) -> dict[str, Any]:
        """The shape of the one-cycle policy, as `schedule.one_cycle` takes it."""
        return {"peak": self.peak, "start": self.start_lr, "final": self.final_lr, "anneal": self.anneal}

    def batch(self, n: int) -> int:
        """The images of a batch, of `n` training images."""
        return min(n, self.batch_size, max(8, n // self.least_steps))

    def steps(self, n: int) -> list[int]:
        """The steps of each epoch, of `n` training images."""
        # The last, partial batch of an epoch is dropped: other images each time, and a single shape to compile for.
        return [max(1, int(self.kept(epoch) * n) // self.batch(n)) for epoch in range(self.epochs)]

    def scale(self, epoch: int) -> float:
        """The share of their side that images have in this epoch, counted from 0."""
        return next((scale for until, scale in self.sizes if epoch < until * self.epochs), 1.0)

    def kept(self, epoch: int) -> float:
        """The share of the images that this epoch takes, counted from 0."""
        return next((share for start, share in reversed(self.keep) if epoch >= start * self.epochs), 1.0)

    @property
    def passes(self) -> float:
        """The epochs of all images at full size that a training amounts to, by the pixels that it sees."""
        return sum(self.scale(epoch) ** 2 * self.kept(epoch) for epoch in range(self.epochs))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Build a recipe from `to_dict`'s form. Raises RecipeError for an unknown field or a wrong value."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise RecipeError(f"unknown recipe field '{key}': {nearest(key, known)}")
        policy = {"augment": from_dicts(values["augment"])} if "augment" in values else {}
        return cls(**{**values, **policy})

    def with_(self, **changes: Any) -> Recipe:
        """Return a copy with the fields in `changes` that aren't None replaced."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and is_number(value) and 0 < value < float("inf")


def _share(value: object) -> bool:
    return isinstance(value, (int, float)) and is_number(value) and 0 <= value < 1


def _tuples(pairs: Any) -> Any:
    return tuple(tuple(pair) if isinstance(pair, list) else pair for pair in pairs) if isinstance(pairs, list) else pairs


def _are_pairs(pairs: Any) -> bool:
    if not isinstance(pairs, tuple) or not all(isinstance(p, tuple) and len(p) == 2 and all(map(_positive, p)) for p in pairs):
        return False
    places = [place for place, _ in pairs]
    return places == sorted(set(places)) and all(place <= 1 and value <= 1 for place, value in pairs)


LEAST_STEPS = 32  # of an epoch: a net learns by steps, and a batch of 512 leaves a folder of 1,000 images one
RECIPES = {
    "classic": Recipe(least_steps=LEAST_STEPS),
    "strong": Recipe(
        "strong",
        batch_size=128,
        least_steps=LEAST_STEPS,
        optimizer="muon",
        max_lr=0.02,
        start_lr=0.2,
        weight_decay=4e-7,
        decay_all=False,
        label_smoothing=0.1,
        ema=0.998,
        sizes=((0.5, 0.75),),
        views="mirror",
        augment=(RandomCrop(4), HorizontalFlip(alternating=True), CoarseDropout(8, 1.0, "mean")),
    ),
    "fast": Recipe(
        "fast",
        "fastnet",
        epochs=10,
        batch_size=500,
        least_steps=LEAST_STEPS,
        optimizer="muon",
        max_lr=0.12,
        peak=0.01,
        start_lr=1.0,
        momentum=0.75,
        weight_decay=2e-6,
        label_smoothing=0.1,
        sizes=((0.2, 0.5), (0.4, 0.625), (0.5, 0.75)),
        keep=((0.4, 0.8), (0.5, 0.65)),
        views="shifted",
        test_epochs="last",
        augment=(RandomCrop(2), HorizontalFlip(alternating=True)),
    ),
    "small": Recipe("small", "smallnet", epochs=20, batch_size=128, max_lr=0.01, augment=(RandomCrop(4), HorizontalFlip())),
}


def load_recipe(name: str | Path) -> Recipe:
    """Return the built-in recipe called `name`, or the one in the JSON file at that path.

    Raises RecipeError for an unknown name, an unreadable file, an unknown field or a wrong value.
    """
    if str(name) in RECIPES:
        return RECIPES[str(name)]
    path = Path(name)
    if path.suffix != ".json" and not path.exists():
        raise RecipeError(f"unknown recipe '{name}': {nearest(str(name), RECIPES)}; or give the path of a .json file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}; give a name or a .json file") from None
    except ValueError as error:
        raise RecipeError(f"the recipe {path} is not valid JSON ({error}); mend it there") from None
    if not isinstance(values, dict):
        raise RecipeError(f'the recipe {path} must be a JSON object with fields such as "epochs"')
    return Recipe.from_dict({"name": path.stem, **values})
