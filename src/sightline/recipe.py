"""How to train: one frozen dataclass, and the built-in recipes.

classic   ResNet-18, Adam, RandomCrop + CoarseDropout, One-Cycle, 20 epochs: the system that Sightline starts from
demo      a small net for generated data, under a minute on two CPU cores
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


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is learned, apart from the data and the seed.

    max_lr    the peak of the one-cycle policy, or "auto": by range test
    peak      the share of the training after which the rate is at its peak
    start_lr, final_lr   first and last rate, as fractions of max_lr
    anneal    "linear" or "cosine"
    model     a name that `models.build` knows, or "package.module:function" of your own
    weight_decay   added to the gradient (L2), as torch.optim.Adam does
    augment   Sightline's transforms in their order, or anything that `augment.from_albumentations` takes
    """

    name: str = "classic"
    model: str = "resnet18"
    epochs: int = 20
    batch_size: int = 512
    max_lr: float | Literal["auto"] = "auto"
    peak: float = 0.25
    start_lr: float = 0.01
    final_lr: float = 0.0001
    anneal: Literal["linear", "cosine"] = "linear"
    weight_decay: float = 1e-4
    augment: Sequence[Transform] = field(default=(RandomCrop(4), CoarseDropout(16, 0.5, "mean")))

    def __post_init__(self) -> None:
        policy = self.augment if isinstance(self.augment, (list, tuple)) else from_albumentations(self.augment)
        object.__setattr__(self, "augment", tuple(policy))
        for name, good, want in (
            ("model", isinstance(self.model, str), "a name, or package.module:factory"),
            ("epochs", is_whole(self.epochs) and self.epochs >= 1, "a whole number of at least 1"),
            ("batch_size", is_whole(self.batch_size) and self.batch_size >= 2, "a whole number of at least 2"),
            ("max_lr", self.max_lr == "auto" or _positive(self.max_lr), "a positive number or 'auto'"),
            ("peak", is_number(self.peak) and 0 < self.peak < 1, "a number between 0 and 1"),
            ("start_lr", _positive(self.start_lr) and self.start_lr <= 1, "a number above 0 and at most 1"),
            ("final_lr", _positive(self.final_lr) and self.final_lr <= 1, "a number above 0 and at most 1"),
            ("anneal", self.anneal in ("linear", "cosine"), "'linear' or 'cosine'"),
            ("weight_decay", is_number(self.weight_decay) and 0 <= self.weight_decay < float("inf"), "a number of at least 0"),
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


RECIPES = {
    "classic": Recipe(),
    "demo": Recipe("demo", "smallnet", epochs=20, batch_size=128, max_lr=0.01, augment=(RandomCrop(4), HorizontalFlip())),
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
