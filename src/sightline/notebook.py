"""How results show themselves in a notebook: a run as its report, or a small table; the others as small tables.

The report stands in an <iframe> with a sandbox: its own script runs there, but reaches neither the notebook nor its server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import mistakes
from .reporting import percent

if TYPE_CHECKING:
    from .comparison import Comparison
    from .diagnosis import Diagnosis
    from .prescription import Fix
    from .runs import Run

FRAME = (
    '<iframe srcdoc="{{ page }}" sandbox="allow-scripts allow-downloads" title="The report" '
    'style="width:100%;height:720px;border:1px solid #8888"></iframe>'
)
TABLE = """<div><p><strong><bdi>{{ title }}</bdi></strong></p>
<table><thead><tr>{% for c in columns %}<th scope="col">{{ c }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td><bdi>{{ cell }}</bdi></td>{% endfor %}</tr>{% endfor %}</tbody></table>
{% for line in lines %}<p><bdi>{{ line }}</bdi></p>{% endfor %}</div>"""


def of_run(run: Run) -> str:
    """Return RUN/report.html in a frame where it is newer than run.json, else the accuracy and what to call next."""
    page, made = run.folder / "report.html", run.folder / "run.json"
    if page.exists() and page.stat().st_mtime_ns >= made.stat().st_mtime_ns:
        return _rendered(FRAME, page=page.read_text(encoding="utf-8"))
    p, recipe = run.predictions, run.info["recipe"]
    overall = mistakes.accuracy(p)
    rows = [
        (f"{run.judged} accuracy", f"{percent(overall.correct / max(overall.n, 1), 2)}, {_range(overall.low, overall.high)}"),
        ("mistakes", f"{overall.n - overall.correct:,} of {overall.n:,}"),
        ("recipe", f"{recipe['name']}: {recipe['model']}, {recipe['epochs']} epochs"),
        *((f"{pair.true} taken for {pair.predicted}", f"{pair.count:,}") for pair in mistakes.most_confused(p, 3)),
    ]
    before = [] if run.heatmaps is not None else ["sightline.explain(run)"]
    calls = " and ".join([*before, "sightline.report(run)"])
    return _table(
        f"{run.folder}, on {run.info['data']['name']}", ("", ""), rows, [f"Next: {calls}; then `run` shows the report."]
    )


def of_comparison(found: Comparison) -> str:
    """Return the verdict, the two accuracies, the difference with its interval, and what was fixed and broken."""
    d = found.difference
    rows = [
        ("A is right on", percent(found.accuracy[0], 2)),
        ("B is right on", percent(found.accuracy[1], 2)),
        ("difference, points", f"{100 * d.value:+.2f}, 95 % interval {100 * d.low:+.2f} to {100 * d.high:+.2f}"),
        ("fixed", f"{found.flips.fixed:,.0f}"),
        ("broken", f"{found.flips.broken:,.0f}"),
        ("each of these, between runs of one recipe", f"{found.flips.churn:,.0f}"),
    ]
    return _table(found.verdict, ("", f"{found.n:,} {found.split} images"), rows)


def of_diagnosis(found: Diagnosis) -> str:
    """Return the causes with their evidence beside the sham's."""
    rows = [
        (
            cause.id,
            ", ".join(found.classes[label] for label in cause.classes) or "all",
            percent(cause.rate),
            percent(cause.sham),
            f"{100 * cause.low:+.1f} to {100 * cause.high:+.1f}",
            "costs now" if cause.kind == "cost" else "a risk",
        )
        for cause in found.causes
    ]
    title = f"{found.mistakes:,} mistakes in {found.n:,} images: " + (f"{len(rows)} causes" if rows else "no cause found")
    return _table(title, ("cause", "classes", "with it", "sham", "effect, 95 %", "kind"), rows)


def of_fix(found: Fix) -> str:
    """Return the verdict, and each edit that was tried."""
    rows = [
        (trial["edit"], trial["cause"], f"{100 * trial['effect']:+.1f}", f"{100 * trial['accuracy']:+.1f}")
        for trial in found.trials
    ]
    lines = [] if found.edit is None else [f"The edited recipe: {found.folder}/recipe.json"]
    return _table(found.summary, ("edit", "against", "effect less", "dev accuracy"), rows, lines)


def _range(low: float, high: float) -> str:
    return f"95 % interval {percent(low, 2)} to {percent(high, 2)}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str] = ()) -> str:
    return _rendered(TABLE, title=title, columns=columns, rows=rows, lines=lines)


def _rendered(template: str, **values: object) -> str:
    import jinja2

    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template).render(**values)
