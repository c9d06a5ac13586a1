"""Numbers and places in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def percent(fraction: float, digits: int = 1) -> str:
    """Return a fraction in per cent; one that would read as none or all but isn't as "<0.1 %" or ">99.9 %"."""
    text, least = f"{100 * fraction:.{digits}f}", f"{10**-digits:.{digits}f}"
    if fraction > 0 and float(text) == 0:
        return f"<{least} %"
    if fraction < 1 and float(text) == 100:
        return f">{100 - 10**-digits:.{digits}f} %"
    return f"{text} %"


def duration(seconds: float) -> str:
    """Return a time in words: "42 s", "3 min 5 s", "2 h 14 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def where(raw: NDArray[np.float32]) -> str:
    """Say in words where a map (h, w) is strongest."""
    if raw.max() <= 0:
        return "no evidence"
    row, column = np.unravel_index(raw.argmax(), raw.shape)
    vertical = ("upper", "middle", "lower")[int(3 * (row + 0.5) / raw.shape[0])]
    horizontal = ("left", "centre", "right")[int(3 * (column + 0.5) / raw.shape[1])]
    return f"strongest at the {vertical} {horizontal}"
