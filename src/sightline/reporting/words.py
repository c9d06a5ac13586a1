"""Numbers and places in words."""

from __future__ import annotations

from pathlib import Path


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


def short_names(a: Path, b: Path) -> tuple[str, str]:
    """Return what two folders are called where they are compared: their names, with as much above as tells them apart."""
    for depth in range(1, 1 + max(len(a.parts), len(b.parts))):
        names = tuple("/".join(path.absolute().parts[-depth:]) for path in (a, b))
        if names[0] != names[1]:
            return names[0], names[1]
    return str(a), str(b)


def points(fraction: float, digits: int = 1) -> str:
    """Return a difference of fractions in points, signed: "+1.2", "−0.3"; "0.0" where it rounds to none."""
    text = f"{100 * fraction:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def span(low: float, high: float, digits: int = 1) -> str:
    """Return an interval of a difference in points: "−0.3 to +2.1"."""
    return f"{points(low, digits)} to {points(high, digits)}"


def chance(symbol: str, value: float) -> str:
    """Return a p- or q-value: "p = 0.012", "q < 0.001"."""
    return f"{symbol} < 0.001" if value < 0.001 else f"{symbol} = {value:.2g}"
