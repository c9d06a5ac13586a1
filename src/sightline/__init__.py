"""Sightline: why is an image classifier wrong, and what to change.

    import sightline
    run = sightline.train("cifar10", "runs/classic", recipe="classic")
    sightline.explain(run)      # heatmaps for its mistakes
    sightline.report(run)       # runs/classic/report.html

Importing this imports no torch: the names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import compare as compare
    from .datasets import load as load
    from .diagnosis import diagnose as diagnose
    from .exceptions import SightlineError as SightlineError
    from .heatmaps import Heatmaps as Heatmaps
    from .heatmaps import explain as explain
    from .prescription import fix as fix
    from .recipe import Recipe as Recipe
    from .reporting import report as report
    from .runs import Run as Run
    from .training import train as train

_HOMES = {
    "Heatmaps": "heatmaps",
    "Recipe": "recipe",
    "Run": "runs",
    "SightlineError": "exceptions",
    "compare": "comparison",
    "diagnose": "diagnosis",
    "explain": "heatmaps",
    "fix": "prescription",
    "load": "datasets",
    "report": "reporting",
    "train": "training",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sightline' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
