"""Evidence → causes: what the probes found, held to one rule, and each mistake beside what repairs it.

A cause is declared where a probe's effect is at least `LEAST` (set on other data than it is scored on), is told apart
from nothing at a false discovery rate of `ALPHA` over all probes and classes tried (Benjamini and Hochberg 1995), and, with K
seeds of a recipe, is so in at least K − 1 of them. Everything else that was tried is kept too: what was looked for and not
found is part of the answer.

A cause is one of two kinds. It *costs* accuracy now where undoing it repairs mistakes that its sham leaves; else it is a *risk*:
images that are like those at hand can't show it, others will.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import mistakes
from .allocation import kept_memory
from .datasets import Dataset
from .exceptions import DataError, RunError
from .probes import Finding, Subject, probe
from .runs import Run, write_json

ALPHA = 0.10
FEWEST = 100  # images of which less can be said than a probe needs
LEAST = {  # the least effect of each cause, as a share of the images that its probe is made on; of a flip, of the probability
    "missing_flip": 0.06,
    "position": 0.10,
    "scale": 0.63,
    "rotation": 0.20,
    "lighting": 0.10,
    "colour": 0.10,
    "blur_noise": 0.33,
    "occlusion": 0.28,
    "background": 0.10,
    "mark": 0.10,
    "tint_frame": 0.10,
    "texture": 0.35,
    "label_errors": 0.02,
    "ambiguous": 0.10,
}
# Classes differ in what they lose when a part of the image is taken away by far more than in what one thing draws to them.
# What the field says is accuracy that is lost where the model is used: of that, little matters.
LEAST_BY_PROBE = {
    "shuffle": 0.40,
    "place kept": 0.06,
    "background kept": 0.17,
    "tint": 0.05,
    "less contrast": 0.15,
    "field": 0.05,
}
# Where an object's outline is guessed, what is left of it outside of the guess speaks for its class as a background would, and a
# move or another size changes the picture around it as well.
LEAST_BY_GUESS = {"background": 0.25, "background kept": 0.45, "place kept": 0.10, "larger": 0.70}
REPAIRED = 0.02  # the share of the mistakes that a cause repairs beyond its sham, from which on it costs accuracy now
SHOWN = 12  # images of a cause


@dataclass(frozen=True)
class Cause:
    """Why the model is wrong, or will be, and how that is known.

    id: a key of LEAST.  classes: those that it is tied to; () for all.  kind: "cost" or "risk"; "variety" is for
    `prescription.variety` alone, and never declared.  probe: the name of the probe.
    effect: of the probe beyond its sham, a share of `n` images, with its 95 % interval low to high; rate, sham: the two shares.
    q: the false discovery rate at which it is declared.  repaired: the share of the mistakes that undoing it repairs, beyond
    the sham.  images: up to 12 ids that show it.  detail: the probe's own, JSON-ready.
    """

    id: str
    classes: tuple[int, ...]
    kind: Literal["cost", "risk", "variety"]
    probe: str
    effect: float
    low: float
    high: float
    q: float
    rate: float
    sham: float
    n: int
    repaired: float
    images: tuple[str, ...]
    detail: dict[str, Any]


@dataclass(frozen=True)
class Diagnosis:
    """What was found: `causes`, the gravest first (see `ranked`), and every finding of the first run's probes with its q.

    groups: cause id → ids of the mistakes that its counterfactual repairs; "unexplained" → the others. A mistake may be in
    several.  runs: the folders.  seconds: what it took.  field: how many images from where the model is used were looked at.
    """

    runs: tuple[str, ...]
    classes: tuple[str, ...]
    n: int
    mistakes: int
    causes: tuple[Cause, ...]
    findings: tuple[dict[str, Any], ...]
    groups: dict[str, tuple[str, ...]]
    seconds: float
    field: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; `from_dict` gives the diagnosis back."""
        values = asdict(self)
        for cause in values["causes"]:
            cause["classes"] = [self.classes[label] for label in cause["classes"]]
        return values

    def _repr_html_(self) -> str:
        """Show the causes as a table in a notebook."""
        from .notebook import of_diagnosis

        return of_diagnosis(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Diagnosis:
        """Read `to_dict`'s form."""
        names = tuple(values["classes"])

        def cause(given: Mapping[str, Any]) -> Cause:
            return Cause(**{**given, "classes": tuple(map(names.index, given["classes"])), "images": tuple(given["images"])})

        return cls(
            tuple(values["runs"]),
            names,
            values["n"],
            values["mistakes"],
            tuple(map(cause, values["causes"])),
            tuple(values["findings"]),
            {key: tuple(ids) for key, ids in values["groups"].items()},
            values["seconds"],
            values.get("field", 0),
        )

    @classmethod
    def read(cls, path: Path) -> Diagnosis:
        """Read RUN/diagnosis.json. Raises RunError where it is damaged."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"cannot read {path} ({error}); make it again with: sightline diagnose {path.parent}") from None


@kept_memory()
def diagnose(
    run: Run | Sequence[Run],
    data: Dataset | None = None,
    *,
    field: NDArray[np.uint8] | None = None,
    seed: int = 0,
    device: str | None = None,
    on_progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> Diagnosis:
    """Probe a run, or several seeds of one recipe, on the dev images, and write RUN/diagnosis.json of the first.

    data: the run's data set, loaded by its name if not given.  field: images from where the model is used, without labels,
    (M, H, W, 3) as large as the data's; what sets them apart is looked for too, see `probes.field`.
    Raises RunError where runs differ in more than their seed, DataError where there are too few dev images for any conclusion.
    """
    begun = time.perf_counter()
    given = [run] if isinstance(run, Run) else list(run)
    _refuse_strangers(given)
    data = data if data is not None else given[0].dataset()
    for each in given:
        each.check(data)
    subjects, found = [], []
    for k, each in enumerate(given):
        subject = Subject.of(each, data, device=device)
        if len(subject.split) < FEWEST:
            raise DataError(
                f"{data.name} has {len(subject.split)} dev images; at least {FEWEST} are needed for any conclusion: "
                "train with a larger --dev"
            )
        label = "probes" if len(given) == 1 else f"probes, seed {k + 1} of {len(given)}"
        found.append(probe(subject, seed=seed, field=field, on_progress=partial(on_progress, label)))
        subjects.append(subject)
    diagnosis = replace(
        concluded(given, subjects, found, lambda: time.perf_counter() - begun), field=0 if field is None else len(field)
    )
    write_json(given[0].folder / "diagnosis.json", _plain(diagnosis.to_dict()))
    return diagnosis


def concluded(
    runs: Sequence[Run], subjects: Sequence[Subject], found: Sequence[Sequence[Finding]], seconds: Callable[[], float]
) -> Diagnosis:
    """Draw the conclusions from the findings of each run's probes."""
    q = [false_discovery_rates(findings) for findings in found]
    declared = [
        i
        for i, finding in enumerate(found[0])
        if finding.cause in LEAST and sum(_declared(f[i], r[i]) for f, r in zip(found, q, strict=True)) >= max(1, len(runs) - 1)
    ]
    ids, first = subjects[0].split.ids, found[0]
    causes = [
        _cause([first[i] for i in group], [float(q[0][i]) for i in group], ids) for group in _grouped(declared, first).values()
    ]
    wrong = np.flatnonzero(~subjects[0].right)
    groups = _groups(declared, first, wrong, ids)
    return Diagnosis(
        tuple(str(run.folder) for run in runs),
        runs[0].classes,
        len(ids),
        len(wrong),
        ranked(causes, groups),
        tuple({**_summary(finding), "q": float(rate)} for finding, rate in zip(first, q[0], strict=True)),
        groups,
        seconds(),
    )


def ranked(causes: Sequence[Cause], groups: Mapping[str, Sequence[str]]) -> tuple[Cause, ...]:
    """Return the causes, the gravest first: those that cost accuracy now before risks.

    The former are in the order of the effect, in multiples of the least that counts, times the number of mistakes in the cause's
    group. Of a risk the effect alone counts: what it repairs it breaks elsewhere, or it repairs nothing.
    """

    def order(cause: Cause) -> tuple[bool, float]:
        evidence = cause.effect / least_of(cause)
        return cause.kind != "cost", -evidence * (len(groups.get(cause.id, ())) if cause.kind == "cost" else 1)

    return tuple(sorted(causes, key=order))


def false_discovery_rates(findings: Sequence[Finding]) -> list[float]:
    """The q-value of each finding, by Benjamini and Hochberg over those that could speak for a cause; 1 for the others."""
    tested = [i for i, finding in enumerate(findings) if finding.cause in LEAST]
    rates = [1.0] * len(findings)
    if tested:
        for i, rate in zip(tested, mistakes.false_discovery_rates(np.array([findings[i].p for i in tested])), strict=True):
            rates[i] = float(rate)
    return rates


def least(probe: str, cause: str, masks: bool = True) -> float:
    """The least effect of a probe that is enough for its cause; masks: whether it knew where the objects are."""
    known = LEAST_BY_PROBE.get(probe, LEAST[cause])
    return known if masks else LEAST_BY_GUESS.get(probe, known)


def least_of(found: Finding | Cause) -> float:
    """The least effect that is enough for what was found."""
    return least(found.probe, found.cause if isinstance(found, Finding) else found.id, found.detail.get("masks", True))


def holds(probe: str, cause: str, effect: float, q: float, masks: bool = True) -> bool:
    """Whether a finding is enough to declare its cause, as far as one seed goes."""
    return q <= ALPHA and effect >= least(probe, cause, masks)


def _declared(finding: Finding, q: float) -> bool:
    return holds(finding.probe, finding.cause, finding.effect, q, finding.detail.get("masks", True))


def _grouped(declared: Sequence[int], findings: Sequence[Finding]) -> dict[tuple[Any, ...], list[int]]:
    """The declared findings that are one cause: a mark has a place, and so is a class's own; others may be of several classes."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i in declared:
        finding = findings[i]
        groups.setdefault((finding.cause, finding.label if finding.cause == "mark" else None), []).append(i)
    return groups


def _cause(findings: Sequence[Finding], q: Sequence[float], ids: Sequence[str]) -> Cause:
    """One cause of the findings that speak for it: the figures are those of the strongest, in multiples of what is enough."""
    best = max(range(len(findings)), key=lambda i: findings[i].effect / least_of(findings[i]))
    strongest = findings[best]
    labels = () if any(f.label is None for f in findings) else tuple(sorted({f.label for f in findings if f.label is not None}))
    repaired = max(finding.repaired for finding in findings)
    return Cause(
        strongest.cause,
        labels,
        "cost" if repaired >= REPAIRED else "risk",
        strongest.probe,
        strongest.effect,
        strongest.low,
        strongest.high,
        q[best],
        strongest.rate,
        strongest.sham,
        strongest.n,
        repaired,
        tuple(ids[row] for row in strongest.rows[:SHOWN]),
        {**strongest.detail, "also": [finding.probe for i, finding in enumerate(findings) if i != best]},
    )


def _groups(
    declared: Sequence[int], findings: Sequence[Finding], wrong: Sequence[int] | np.ndarray[Any, Any], ids: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The mistakes that each declared cause's counterfactual repairs; those that none repairs are unexplained."""
    mistakes = {int(row) for row in wrong}
    groups: dict[str, set[int]] = {}
    for i in declared:
        groups.setdefault(findings[i].cause, set()).update(mistakes.intersection(findings[i].repairs))
    left = mistakes.difference(*groups.values())
    return {key: tuple(ids[row] for row in sorted(rows)) for key, rows in {**groups, "unexplained": left}.items()}


def _summary(finding: Finding) -> dict[str, Any]:
    """A finding for the disk: its figures, without what only the cause that comes of it needs."""
    keys = ("probe", "cause", "label", "rate", "sham", "effect", "low", "high", "p", "n", "repaired")
    curves = {key: finding.detail[key] for key in ("magnitudes", "breaks", "sham", "note") if key in finding.detail}
    guessed = {} if finding.detail.get("masks", True) else {"masks": False}
    return {**{key: getattr(finding, key) for key in keys}, **({"curve": curves} if curves else {}), **guessed}


def _refuse_strangers(runs: Sequence[Run]) -> None:
    """Raise RunError unless all runs are seeds of one recipe on one data set."""
    if not runs:
        raise RunError("there is no run to diagnose; name one")
    for other in runs[1:]:
        for key in ("recipe", "data"):
            if other.info[key] != runs[0].info[key]:
                raise RunError(f"{other.folder} and {runs[0].folder} have another {key}; diagnose seeds of one recipe together")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no NumPy numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
