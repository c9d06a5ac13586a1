"""The whole page beside a kept one, without what changes from run to run: a change of the page shows as a change of that file.

After a change that is meant: SIGHTLINE_GOLDEN=write pytest tests/test_report_golden.py, and look at the difference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sightline import reporting
from sightline.comparison import compare_predictions
from test_report_causes import BLUR, CURVE, MARK, diagnosis, finding
from test_reporting import make_data, make_heatmaps, make_run

GOLDEN = Path(__file__).with_name("golden")
SCRUBBED = (
    (r"<style>.*?</style>", "<style>…</style>"),
    (r"<script>.*?</script>", "<script>…</script>"),
    (r'(<script type="application/json" id="data">).*?(</script>)', r"\1…\2"),
    (r"<svg.*?</svg>", "<svg>…</svg>"),  # how a figure is drawn depends on matplotlib's version
    (r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "data:…"),
    (r"'sha256-[^']+'", "'sha256-…'"),
    (r"[0-9a-f]{64}", "…"),
)


def scrubbed(page: str) -> str:
    for pattern, kept in SCRUBBED:
        page = re.sub(pattern, kept, page, flags=re.DOTALL)
    return re.sub(r"\n\s*\n+", "\n", page)


def beside_the_kept(name: str, page: str) -> None:
    path, text = GOLDEN / name, scrubbed(page)
    if os.environ.get("SIGHTLINE_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_report_is_the_kept_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    run = make_run(tmp_path / "run", data, sweep=True)
    make_heatmaps(run)
    curve = finding("blur", "blur_noise", None, 0.6, 0.01, curve=CURVE)
    nothing = (finding("flip", "missing_flip", None, 0.0, 0.9), finding("deletion:blur", "gate", None, 0.5, 1.0, rate=0.6))
    found = diagnosis(BLUR, MARK, findings=(curve, *nothing))
    monkeypatch.setattr(reporting, "_diagnosis", lambda run: found)
    beside_the_kept("report.html", reporting.report(run, data, n=30).read_text(encoding="utf-8"))


def test_comparison_is_the_kept_one(tmp_path: Path) -> None:
    data = make_data()
    a, b = make_run(tmp_path / "a", data), make_run(tmp_path / "b", data, right=True)
    found = compare_predictions([a.predictions], [b.predictions])
    beside_the_kept("comparison.html", reporting.report_change(a, b, found, data).read_text(encoding="utf-8"))
