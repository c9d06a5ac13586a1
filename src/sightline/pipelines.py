"""Saved Albumentations pipelines: read from whatever holds one, checked, and in the words of Albumentations 2.

Albumentations itself only warns of an argument that it doesn't know, and takes defaults for what is missing; here both
are errors. What a pipeline's transforms mean to Sightline is for `augment` to know.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
from enum import Enum
from pathlib import Path
from typing import Any

from .exceptions import RecipeError, nearest

BORDER_CONSTANT, BORDER_REFLECT_101, INTER_LINEAR = 0, 4, 1  # OpenCV's numbers, which saved pipelines hold


def albumentations() -> Any:
    """Return the package; raises RecipeError where it is missing."""
    # Without this its import asks PyPI for a newer version: nothing here goes to the network unasked.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    try:
        return importlib.import_module("albumentations")
    except ImportError as error:
        hint = "pip install 'sightline[albumentations]'"
        raise RecipeError(f"this policy needs Albumentations, which is missing here ({error}); {hint}") from None


def read(pipeline: Any) -> list[dict[str, Any]]:
    """Return a pipeline's transforms, one dictionary each, as Albumentations 2 saves them, every argument written out.

    `pipeline` is an object of Albumentations, the dictionary that its `to_dict` returns, or the path of a file that
    `albumentations.save` wrote, of version 1 or 2. A `Compose` that runs only sometimes stays one item.

    Raises RecipeError for a file that can't be read, and for what Albumentations doesn't know, refuses or can't save.
    """
    # Through Albumentations and back: it refuses wrong values and writes the defaults that were left out.
    items: list[dict[str, Any]] = plain(_saved(build(_dictionary(pipeline))))["transform"]["transforms"]
    return items


def spec(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what `albumentations.to_dict` returns for a `Compose` of the transforms `items`."""
    compose = {"__class_fullname__": "Compose", "p": 1.0, "transforms": items}
    return {"__version__": albumentations().__version__, "transform": compose}


def build(saved: dict[str, Any]) -> Any:
    """Return the `albumentations.Compose` that a dictionary `saved` describes; raises RecipeError as `read` does."""
    A = albumentations()
    modern = _modern(saved)
    try:
        return A.from_dict(modern)
    except Exception as error:  # what its constructors don't check fails somewhere inside: ZeroDivisionError, KeyError, …
        raise RecipeError(f"Albumentations refuses the pipeline: {line(error)}; correct the value") from error


def is_spec(value: Any) -> bool:
    """Say whether `value` has the form of what `albumentations.to_dict` returns; its transforms are not looked at."""
    return isinstance(value, dict) and isinstance(value.get("transform"), dict)


def plain(value: Any) -> dict[str, Any]:
    """Return a dictionary as JSON would give it back: lists for tuples, values for enums. Raises RecipeError."""
    try:
        written: dict[str, Any] = json.loads(json.dumps(value, default=_enum_value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"Albumentations pipeline: {line(error)}; remove what can't be saved as JSON") from None
    return written


def line(error: BaseException) -> str:
    """Return an error's message in one line; its type where it has none or where that is only a key."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__} {message}".strip() if isinstance(error, KeyError) or not message else message


def _enum_value(value: object) -> Any:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} has no JSON form")


# From any form to a dictionary


def _dictionary(pipeline: Any) -> dict[str, Any]:
    """Return the dictionary of a pipeline given as an object, a dictionary or a path."""
    if isinstance(pipeline, (str, os.PathLike)):
        pipeline = _load(Path(pipeline))
    elif hasattr(pipeline, "to_dict"):
        _refuse_ignored(pipeline)
        pipeline = _saved(pipeline)
    if not is_spec(pipeline):
        kind = type(pipeline).__name__
        raise RecipeError(f"from_albumentations: {kind} is no pipeline; give a Compose, its to_dict, or a saved file")
    return plain(pipeline)


def _load(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml"):
            return importlib.import_module("yaml").safe_load(text)  # Albumentations depends on it
        return json.loads(text)
    except OSError as error:
        raise RecipeError(f"cannot read the pipeline {path}: {error.strerror}; give a saved .json or .yaml") from None
    except Exception as error:  # PyYAML's errors have no common base with JSON's
        raise RecipeError(f"the pipeline {path} is damaged ({line(error)}); save it again with albumentations.save") from None


def _saved(pipeline: Any) -> Any:
    try:
        return pipeline.to_dict()
    except Exception as error:  # NotImplementedError, ValueError, TypeError: each transform has its own way
        raise RecipeError(f"from_albumentations: the pipeline can't be saved ({line(error)}); remove that part") from None


def _refuse_ignored(transform: Any) -> None:
    """Raise RecipeError where Albumentations only warned that it ignores an argument."""
    for argument in getattr(transform, "invalid_args", ()):
        raise _unknown_argument(type(transform), argument)
    for child in getattr(transform, "transforms", ()):
        _refuse_ignored(child)


# Checked, and in the words of version 2


def _modern(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the dictionary of a `Compose` that always runs: `saved` itself, checked, or one around it."""
    old = str(saved.get("__version__", "2")).split(".")[0] in ("0", "1")
    top = _checked(saved["transform"], old)
    whole = top["__class_fullname__"] == "Compose" and top.get("p", 1) == 1
    return {**saved, "transform": top} if whole else spec([top])


def _checked(item: Any, old: bool) -> dict[str, Any]:
    """Return one transform's dictionary in the words of Albumentations 2; raise RecipeError for what it lacks."""
    name, cls = _class(item)
    known = inspect.signature(cls).parameters
    arguments = {k: v for k, v in item.items() if k != "__class_fullname__"}
    if old:
        arguments = _renamed(name, arguments, set(known))
    _check_probability(name, arguments)
    _check_arguments(cls, arguments)
    arguments = {k: v for k, v in arguments.items() if k in known}
    if "transforms" in known:
        arguments["transforms"] = [_checked(child, old) for child in _children(name, arguments)]
    return {"__class_fullname__": name, **arguments}


def _class(item: Any) -> tuple[str, Any]:
    """Return a transform's name in the registry of Albumentations, and its class."""
    full = item.get("__class_fullname__") if isinstance(item, dict) else None
    if not isinstance(full, str):
        raise RecipeError(f'Albumentations: {item!r} is no transform; write {{"__class_fullname__": "Blur", "p": 0.5}}')
    registry = albumentations().core.serialization.SERIALIZABLE_REGISTRY
    name = full.rpartition(".")[2] if full.startswith("albumentations.") else full
    if name not in registry:
        close = difflib.get_close_matches(name, registry, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "its name is the class's, and the class must be imported"
        raise RecipeError(f"Albumentations has no transform {name!r}: {hint}")
    return name, registry[name]


def _check_probability(name: str, arguments: dict[str, Any]) -> None:
    if "p" not in arguments:
        if name not in ("Compose", "Sequential"):
            raise RecipeError(f"Albumentations {name}: 'p' is missing; Albumentations would take 0.5 unasked: write it")
    # A Compose takes any p, and fails when it runs
    elif not isinstance(arguments["p"], (int, float)) or not 0 <= arguments["p"] <= 1:
        raise RecipeError(f"Albumentations {name}: p is {arguments['p']!r}; it must be a number between 0 and 1")


def _check_arguments(cls: Any, arguments: dict[str, Any]) -> None:
    known = inspect.signature(cls).parameters
    # to_dict also writes what only a parent class takes (PadIfNeeded's "padding"); it has no effect
    inherited = {p for base in cls.__mro__ if base is not object for p in inspect.signature(base.__init__).parameters}
    for argument, value in arguments.items():
        if argument not in known and argument not in inherited - {"self", "args", "kwargs"}:
            raise _unknown_argument(cls, argument)
        # A transform's to_dict leaves out what is empty, and the default would come in its place
        if value in ([], {}) and "transforms" not in known:
            raise RecipeError(f"Albumentations {cls.__name__}: {argument!r} is empty; give it a value, or leave it out")


def _children(name: str, arguments: dict[str, Any]) -> list[Any]:
    children = arguments.get("transforms")
    if not isinstance(children, list):
        raise RecipeError(f"Albumentations {name}: 'transforms' is {children!r}; it must be a list of transforms")
    return children


def _unknown_argument(cls: type, argument: str) -> RecipeError:
    known = inspect.signature(cls).parameters
    return RecipeError(f"Albumentations {cls.__name__}: unknown argument {argument!r}: {nearest(argument, known)}")


def _renamed(name: str, arguments: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """Return arguments that Albumentations 1 wrote in the words of 2."""
    arguments = dict(arguments)
    if arguments.pop("always_apply", False):
        arguments["p"] = 1.0
    if name in ("PadIfNeeded", "Rotate", "SafeRotate", "ShiftScaleRotate"):
        arguments.setdefault("border_mode", BORDER_REFLECT_101)  # the default then; a constant since 2.0
    for before, after in (
        ("value", "fill"),
        ("fill_value", "fill"),
        ("mask_value", "fill_mask"),
        ("mask_fill_value", "fill_mask"),
    ):
        if before in arguments and before not in known and after in known:
            value = arguments.pop(before)
            if value is not None:
                arguments.setdefault(after, value)
    if name == "CoarseDropout" and "num_holes_range" not in arguments:
        for part, after in (
            ("holes", "num_holes_range"),
            ("height", "hole_height_range"),
            ("width", "hole_width_range"),
        ):
            high = arguments.pop(f"max_{part}", 8)
            low = arguments.pop(f"min_{part}", None)
            arguments[after] = [high if low is None else low, high]
    return arguments
