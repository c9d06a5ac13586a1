"""Errors that a person can act on.

    SightlineError            anything below; `cli` prints it as one line and exits with 1
    ├── RecipeError           an unknown recipe, field or value
    ├── DataError             a data set that is missing, damaged or unusable
    ├── RunError              a run folder that is missing, unfinished, finished or too new
    └── TrainingError         a training that cannot go on, such as a loss that is not finite

A message says what is wrong, where, and what to do, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SightlineError(Exception):
    """Base of every error that Sightline raises on purpose."""


class RecipeError(SightlineError):
    """An unknown recipe, field or value."""


class DataError(SightlineError):
    """A data set that is missing, damaged or unusable."""


class RunError(SightlineError):
    """A run folder that is missing, unfinished, finished or made by a newer version."""


class TrainingError(SightlineError):
    """A training that cannot go on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'? " for the closest of `known`, then the list of all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(names)}"
