"""Cards of causes: their numbers, bars, pictures and edits are read back; names in them stay names."""

from __future__ import annotations

import base64
import io
import shlex
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sightline import figures
from sightline.augment import HorizontalFlip
from sightline.datasets import Split
from sightline.diagnosis import ALPHA, LEAST, Cause, Diagnosis, ranked
from sightline.prescription.edits import edits
from sightline.probes.sensitivity import CURVES
from sightline.recipe import Recipe
from sightline.reporting import causes
from sightline.reporting.causes import CauseCard, cards, curves_of, nothing_found, variety_card
from test_report_change import HOSTILE, Reader, element, path_of, render, texts

CLASSES = ("cat", HOSTILE, "\u202eסוס")
RECIPE = Recipe("quick", "smallnet", augment=())
SVG = "{http://www.w3.org/2000/svg}"


def cause(name: str, probe: str, effect: float, **values: Any) -> Cause:
    given = {"classes": (), "kind": "risk", "low": effect - 0.1, "high": effect + 0.08, "q": 0.0123, "n": 300, "repaired": 0.0}
    given |= {"rate": effect + 0.02, "sham": 0.02, "images": (), "detail": {"also": []}, **values}
    return Cause(name, probe=probe, effect=effect, **given)


def finding(
    probe: str, about: str, label: int | None, effect: float | None, q: float, n: int = 150, **values: Any
) -> dict[str, Any]:
    low, high = (-1.0, 1.0) if effect is None else (effect - 0.1, effect + 0.1)
    given = {"probe": probe, "cause": about, "label": label, "rate": 0.2, "sham": 0.1, "effect": effect, "low": low, "high": high}
    return {**given, "p": q, "n": n, "repaired": 0.0, "q": q, **values}


MARK = cause(
    "mark",
    "patch",
    0.5,
    classes=(1,),
    detail={"also": [], "box": [2, 3, 4, 5], "patch": [[[9] * 3] * 5] * 4, "held": 0.9, "elsewhere": 0.01},
)
SCALE = cause("scale", "larger", 0.3, kind="cost", repaired=0.04, detail={"also": ["smaller"], "knee": 1.15, "reference": 1.6})
BLUR = cause("blur_noise", "blur", 0.6, kind="cost", repaired=0.03)
FLIP = cause("missing_flip", "flip", 0.06, kind="risk")
CURVE = {"magnitudes": [70, 40, 20], "breaks": [0.04, 0.1, 0.3], "sham": [0.01, 0.02, 0.03]}


def diagnosis(*found: Cause, findings: tuple[dict[str, Any], ...] = (), mistakes: int = 20) -> Diagnosis:
    groups = {"scale": tuple("abcdefg"), "blur_noise": ("h",), "mark": (), "unexplained": tuple("ijklmnopqrst")}
    return Diagnosis(("run",), CLASSES, 400, mistakes, found, findings, groups, 1.0)


def split(n: int = 14, shape: tuple[int, int] = (8, 6)) -> Split:
    images = np.random.default_rng(0).integers(0, 256, (n, *shape, 3), dtype=np.uint8)
    return Split(images, np.arange(n) % 3, CLASSES, tuple(f"dev/{i}" for i in range(n)))


def card(one: Cause, **values: Any) -> CauseCard:
    given = {"recipe": RECIPE, "size": 32, "images": None, "fix": None, **values}
    return cards(diagnosis(one), given.pop("recipe"), given.pop("size"), given.pop("images"), given.pop("fix"), **given)[0]


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_every_cause_and_probe_has_its_words() -> None:
    assert set(causes.TITLES) == set(LEAST)
    own = {curve.probe for curve in CURVES}
    assert set(figures.MAGNITUDES) == own
    others = {"patch", "frame", "tint", "background", "background kept", "place", "place kept", "texture", "shuffle"}
    assert set(causes.EVIDENCE) == own | others | {"confident learning", "pairs", "field"}


@pytest.mark.parametrize(
    ("probe", "reference", "said"),
    [
        ("shift", 1 / 8, "an eighth of the side"),
        ("smaller", 0.75, "×0.75"),
        ("larger", 1.6, "×1.6"),
        ("rotation", 10, "10 degrees"),
        ("darker", -0.3, "darker by 30 %"),
        ("brighter", 0.3, "brighter by 30 %"),
        ("less contrast", -0.3, "30 % less"),
        ("more contrast", 0.3, "30 % more"),
        ("hue", 0.1, "a tenth of the circle"),
        ("blur", 1, "1 pixel"),
        ("noise", 0.04, "4 % of the levels"),
        ("jpeg", 40, "quality 40"),
        ("occlusion", 1 / 4, "a quarter of the side"),
    ],
)
def test_magnitudes_in_words_are_those_of_the_probes(probe: str, reference: float, said: str) -> None:
    curve = next(curve for curve in CURVES if curve.probe == probe)
    assert curve.reference == reference and said in causes.EVIDENCE[probe]


def test_causes_come_by_kind_then_by_evidence_times_mistakes() -> None:
    given = (FLIP, MARK, BLUR, SCALE)
    groups = {"scale": tuple("abcdefg"), "blur_noise": ("h",), "missing_flip": tuple("abcdefghij")}
    weights = {c.id: c.effect / LEAST[c.id] * (len(groups[c.id]) if c.kind == "cost" else 1) for c in given}
    literal = sorted(given, key=lambda c: (c.kind == "risk", -weights[c.id]))
    # Blur has more evidence than scale, and fewer mistakes; the flip repairs more than the mark, but breaks as much.
    assert list(ranked(given, groups)) == literal == [SCALE, BLUR, MARK, FLIP]


def test_evidence_says_the_probe_its_sham_and_the_interval() -> None:
    shown = card(SCALE)
    assert shown.evidence == (
        "32.0 % of 300 right images are wrong once made larger (×1.6); moved by one pixel, 2.0 %. "
        "Difference +30.0 points, 95 % interval +20.0 to +38.0; q = 0.012."
    )
    assert shown.detail == "The mildest change that breaks more than its sham: 1.15 factor of the size."
    assert shown.repaired == (
        "Undoing it repairs 7 of 20 mistakes (beyond the sham, less what it breaks: 4.0 % of the mistakes tried)."
    )
    assert (shown.title, shown.kind_words, shown.classes) == ("Larger or smaller things are lost", "costs accuracy now", ())
    marked = card(MARK)
    assert marked.detail == (
        "The mark: 4 × 5 pixels, from row 2 and column 3; 90.0 % of the class's images hold it, 1.0 % of the others."
    )
    assert marked.repaired == "Undoing it repairs none of the 20 mistakes."
    assert marked.classes == (HOSTILE,) and HOSTILE not in marked.evidence


def test_a_cause_from_the_field_says_how_much_of_it_looks_so() -> None:
    looks = {"also": [], "share": 0.83, "change": "darker", "magnitude": -0.75, "knee": -0.75, "reference": -0.75, "alike": 0.1}
    shown = card(cause("lighting", "field", 0.07, detail=looks))
    assert shown.evidence.startswith(
        "Where the model is used, by 300 images from there, 9.0 % of the answers are lost to it; dev images in their place would "
        "say 2.0 %. Difference +7.0 points"
    )
    assert shown.detail == (
        "83.0 % of the images from the field look like dev images that were changed so; the costliest change: darker, −0.75 of "
        "the brightness."
    )


def test_doubts_are_said() -> None:
    assert card(replace(SCALE, n=7)).evidence == "n = 7: too few to say."
    unsure = card(replace(SCALE, low=-0.01))
    assert unsure.evidence.endswith("The interval holds 0: not beyond doubt.") and not unsure.sure
    assert card(SCALE).sure
    both = card(replace(MARK, classes=(0, 1)))
    assert both.evidence.startswith("Of the strongest of its 2 classes: 52.0 % of 300 other images")
    assert "the probe {odd} makes".replace("{", "(").replace("}", ")") in card(replace(SCALE, probe="{odd}")).evidence
    two = cards(diagnosis(MARK, replace(MARK, classes=(0,))), None, 32, None, None)
    assert all("together with the other causes of this kind" in each.repaired for each in two)
    assert cards(diagnosis(SCALE, mistakes=0), None, 32, None, None)[0].repaired == "There are no mistakes that it could explain."


@pytest.mark.parametrize(
    ("rate", "sham", "low", "high"), [(0.5, 0.1, 0.3, 0.45), (0.02, 0.2, -0.25, -0.1), (-0.1, 0.3, -0.5, -0.3)]
)
def test_bars_and_whisker_are_to_scale(rate: float, sham: float, low: float, high: float) -> None:
    svg = figures.evidence(rate, sham, low, high, "cause-7")
    bars = [path_of(svg, f"cause-7-{key}")[:, 0] for key in ("probe", "sham")]
    zero = bars[1].min()  # the sham's bar grows to the right
    scale = np.ptp(bars[1]) / sham
    assert np.ptp(bars[0]) / scale == pytest.approx(abs(rate), rel=1e-4)
    assert (bars[0].max() > zero + 1e-3) == (rate > 0)
    ends = (path_of(svg, "cause-7-interval")[:, 0] - zero) / scale
    np.testing.assert_allclose(ends, [sham + low, sham + high], atol=1e-5)
    assert {f"probe {100 * rate:.1f} %", f"sham {100 * sham:.1f} %"} <= set(texts(svg))


def test_sheet_holds_the_images_pixel_by_pixel() -> None:
    images = split()
    names = ("dev/5", "dev/0", "gone", *(f"dev/{i}" for i in range(6, 13)))
    shown = card(replace(SCALE, images=names), images=images).sheet
    assert shown is not None and shown.pixels
    pixels = np.asarray(picture(shown.uri))
    chosen = [5, 0, *range(6, 13)]
    for k, i in enumerate(chosen):
        top, left = k // 6 * 9, k % 6 * 7  # a gap of one pixel
        np.testing.assert_array_equal(pixels[top : top + 8, left : left + 6, :3], images.images[i])
        assert (pixels[top : top + 8, left : left + 6, 3] == 255).all()
    assert pixels.shape == (17, 41, 4)
    assert pixels[8].max() == 0 and pixels[9:, 20:].max() == 0  # what holds no image is transparent
    assert (shown.width, shown.height) == (41 * 12, 17 * 12)
    row = [CLASSES[i % 3] for i in chosen]
    assert shown.alt == f"9 images that show it, labelled, row by row: {', '.join(row[:6])}; {', '.join(row[6:])}"
    assert shown.labels == ()


def test_labels_are_shown_where_the_cause_is_about_them() -> None:
    wrong = cause("label_errors", "confident learning", 0.1, images=("dev/1", "dev/0"))
    shown = card(wrong, images=split())
    assert shown.sheet is not None and shown.sheet.labels == (HOSTILE, "cat")
    assert "label is probably wrong" in shown.caption and shown.repaired.startswith("Mending the labels")
    smooth = card(wrong, recipe=RECIPE.with_(label_smoothing=0.1))
    assert smooth.edits == () and "look at these images and their labels" in smooth.edits_note
    pair = card(cause("ambiguous", "pairs", 0.3, classes=(0, 1)))
    assert pair.repaired == "No change of the images repairs these mistakes." and pair.edits == ()


def test_large_images_are_scaled_down() -> None:
    images = split(3, (300, 150))
    shown = card(replace(SCALE, images=("dev/2",)), images=images).sheet
    assert shown is not None and not shown.pixels and shown.uri.startswith("data:image/webp;")
    assert picture(shown.uri).size == (shown.width, shown.height) == (48, 96)


def test_no_sheet_without_images() -> None:
    assert card(SCALE, images=split()).sheet is None
    assert card(replace(SCALE, images=("gone",)), images=split()).sheet is None
    assert card(replace(SCALE, images=("dev/1",))).sheet is None


@pytest.mark.parametrize("size", [32, (40, 24)])
def test_edits_are_those_of_the_prescription(size: int | tuple[int, int]) -> None:
    for one in (SCALE, MARK, BLUR, FLIP):
        expected = edits(one, RECIPE, size=(size, size) if isinstance(size, int) else size)
        assert [(row.name, row.why) for row in card(one, size=size).edits] == [(edit.name, edit.why) for edit in expected] != []
    assert card(SCALE, recipe=None).edits == () and "without a recipe" in card(SCALE, recipe=None).edits_note


def proved(about: Cause) -> dict[str, Any]:
    measures = {"accuracy": {"current": 0.8, "prescription": 0.9}, "beyond_generic": {"value": 0.02, "low": -0.01, "high": 0.05}}
    trial = {"cause": about.id, "edit": "erase", "effect": 0.4, "group": 0.1, "accuracy": -0.02, "worst_class": 0.0, "score": 0.4}
    known = {"id": about.id, "classes": list(about.classes)}
    return {"verdict": "traded", "summary": "it", "folder": "my fix", "cause": known, "trials": [trial], "measures": measures}


def test_proof_stands_on_the_card_of_its_cause() -> None:
    fix = proved(MARK)
    shown = cards(diagnosis(SCALE, MARK, replace(MARK, classes=(0,))), RECIPE, 32, None, fix, data="my data")
    assert [each.proof is not None for each in shown] == [False, True, False]
    proof = shown[1].proof
    assert proof is not None and (proof.verdict, proof.summary) == ("traded", "it")
    assert proof.arms == (("the recipe as it is", 0.8), ("with the edit", 0.9))
    assert proof.beyond == "+2.0 points (−1.0 to +5.0)"
    assert shlex.split(proof.command) == ["sightline", "train", "my data", "-r", "my fix/recipe.json"]
    tried = {row.name: row.tried for row in shown[1].edits}
    assert tried["erase"] == (
        "Tried in short fine-tunes, beyond a sham: the probe’s effect −40.0 points, accuracy on its images held back +10.0, "
        "dev accuracy −2.0."
    )
    assert tried["stamp"] == ""


def test_the_caption_of_a_flip_says_what_is_judged() -> None:
    assert "loses the most probability" in causes._caption(FLIP)
    assert "answer the probe changes" in causes._caption(SCALE)


def test_a_fix_that_proved_nothing_is_said_too() -> None:
    fix = {**proved(MARK), "verdict": "no effect", "cause": None, "measures": None}
    shown = cards(diagnosis(SCALE, MARK), RECIPE, 32, None, fix)
    assert [each.proof and (each.proof.verdict, each.proof.command) for each in shown] == [None, ("no effect", "")]
    unproved = card(MARK, fix={**proved(MARK), "verdict": "cannot tell"}).proof
    assert unproved is not None and (unproved.verdict, unproved.command) == ("cannot tell", "")
    folderless = card(MARK, fix={**proved(MARK), "folder": ""}).proof
    assert folderless is not None and folderless.command == "sightline train DATA -r FOLDER/recipe.json"


@pytest.mark.parametrize(
    ("change", "verdict", "command"),
    [
        ({"value": 0.015, "low": 0.008, "high": 0.023}, "accuracy rises", ["train", "my data", "-r", "my fix/variety.json"]),
        ({"value": -0.01, "low": -0.02, "high": -0.001}, "accuracy falls", None),
        ({"value": 0.001, "low": -0.002, "high": 0.004}, "cannot tell", None),
    ],
)
def test_variety_has_a_card_of_its_own(change: dict[str, float], verdict: str, command: list[str] | None) -> None:
    found = diagnosis(MARK, findings=FINDINGS)
    fix = proved(MARK)
    fix["measures"]["accuracy"] |= {"sham": 0.81, "variety": 0.83}
    fix["measures"]["variety"] = {"edit": "hflip", "change": change}
    shown = variety_card(found, RECIPE, 32, fix, data="my data")
    assert shown is not None and shown.proof is not None
    assert (shown.kind, [edit.name for edit in shown.edits], shown.sheet) == ("variety", ["hflip"], None)
    assert "300 right images lose 20.0 % of their class's probability" in shown.evidence
    assert (shown.proof.verdict, [value for _, value in shown.proof.arms]) == (verdict, [0.8, 0.81, 0.83])
    assert shlex.split(shown.proof.command) == (["sightline", *command] if command else [])
    assert [c.proof is not None for c in cards(found, RECIPE, 32, None, fix)] == [True]
    assert sum("More variety" in text for text in whole(found, (), shown).texts) == 1


def test_where_variety_is_what_was_proved_its_card_says_so() -> None:
    found = diagnosis(MARK, findings=FINDINGS)
    fix = proved(FLIP)
    shown = variety_card(found, RECIPE, 32, {**fix, "verdict": "fixed"})
    assert shown is not None and shown.proof is not None
    assert (shown.proof.verdict, shown.proof.summary, len(shown.proof.arms)) == ("fixed", "it", 2)
    assert shown.proof.command == "sightline train DATA -r 'my fix/recipe.json'"
    unproved = variety_card(found, RECIPE, 32, None)
    assert unproved is not None and unproved.proof is None
    assert variety_card(found, RECIPE.with_(augment=(HorizontalFlip(),)), 32, None) is None
    assert variety_card(found, None, 32, None) is None


def test_an_edit_that_costs_too_much_accuracy_says_so() -> None:
    fix = proved(MARK)
    fix["trials"][0]["harmful"] = True
    tried = {row.name: row.tried for row in card(MARK, fix=fix).edits}
    assert tried["erase"].endswith("dev accuracy −2.0. It costs too much accuracy.")


FINDINGS = (
    finding("deletion:blur", "gate", None, 0.5, 1.0),
    finding("patch", "mark", 0, None, 1.0, 0, curve={"note": "no patch recurs"}),
    finding("patch", "mark", 1, 0.5, 1e-9),  # the declared one
    finding("patch", "mark", 2, None, 1.0, 0, curve={"note": "no patch recurs"}),
    finding("frame", "tint_frame", 1, -0.02, 0.7),
    finding("frame", "tint_frame", 2, 0.01, 0.2, 7),
    finding("tint", "tint_frame", 2, 0.3, 0.02),  # enough, but declared in no other seed
    finding("jpeg", "blur_noise", None, None, 1.0, 300, curve=CURVE),
    finding("flip", "missing_flip", None, 0.02, 0.05, 300, curve={"magnitudes": [1], "breaks": [0.1], "sham": [0.05]}),
)


def test_what_found_nothing_is_listed() -> None:
    probes = nothing_found(diagnosis(MARK, findings=FINDINGS))
    assert (probes.tested, probes.unmade, probes.alpha, probes.empty) == (8, 2, ALPHA, 5)
    assert (probes.n, probes.mistakes, probes.unexplained) == (400, 20, 12)
    said = [(row.probe, row.label, row.effect, row.n, row.q, row.note, row.times) for row in probes.rows]
    assert said == [
        ("tint", CLASSES[2], "+30.0 (+20.0 to +40.0)", 150, "q = 0.02", "found, but not in the other seeds", 1),
        ("flip", "", "+2.0 (−8.0 to +12.0)", 300, "q = 0.05", "", 1),
        ("frame", CLASSES[2], "–", 7, "q = 0.2", "n = 7: too few to say", 1),
        ("frame", HOSTILE, "−2.0 (−12.0 to +8.0)", 150, "q = 0.7", "", 1),
        ("jpeg", "", "–", 300, "q = 1", "", 1),
        ("patch", "", "", 0, "", "no patch recurs", 2),
    ]


@pytest.mark.parametrize(("masks", "note"), [({}, "found, but not in the other seeds"), ({"masks": False}, "")])
def test_where_objects_are_guessed_more_is_needed_here_too(masks: dict[str, bool], note: str) -> None:
    found = diagnosis(findings=(finding("background", "background", 1, 0.2, 0.02, **masks),))
    assert [row.note for row in nothing_found(found).rows] == [note]


def test_many_probes_are_cut_short() -> None:
    many = tuple(finding("frame", "tint_frame", i % 3, 0.01, i / 1000) for i in range(900))
    probes = nothing_found(diagnosis(findings=many))
    assert probes.empty == 900 and len(probes.rows) == causes.ROWS
    assert {row.q for row in probes.rows[1:3]} == {"q = 0.001", "q = 0.002"}
    page = render("nothing.html", probes=probes)
    assert "200 of 900, the others are in diagnosis.json" in page and len(page) < 60_000


def points_drawn(svg: str, name: str) -> NDArray[np.float64]:
    return np.array([[float(e.attrib[key]) for key in "xy"] for e in element(svg, name).iter(f"{SVG}use")])


def test_sensitivity_curves_share_their_height() -> None:
    curves = curves_of(diagnosis(findings=FINDINGS))
    assert set(curves) == {"jpeg", "flip"} and curves["jpeg"] == CURVE
    svg = figures.sensitivity(curves)
    assert svg == figures.sensitivity(curves)
    drawn, shares = [], []
    for i, curve in enumerate(curves.values()):
        for key in ("breaks", "sham"):
            spots = points_drawn(svg, f"sensitivity-{key}-{i}")
            assert (np.diff(spots[:, 0]) > 0).all()  # the mildest to the left, also of qualities that fall
            drawn += spots[:, 1].tolist()
            shares += list(curve[key])
    slope, start = np.polyfit(shares, drawn, 1)
    assert slope < 0  # upwards
    np.testing.assert_allclose(drawn, slope * np.array(shares) + start, atol=1e-3)
    assert {"jpeg", "flip", "quality", "mirrored", "% wrong", "changed", "sham", "70", "40", "20"} <= set(texts(svg))
    assert figures.sensitivity({}) == ""


def test_points_of_curves_are_in_the_table() -> None:
    points = nothing_found(diagnosis(findings=FINDINGS)).curves
    assert [tuple(p) for p in points[:3]] == [("jpeg", "quality", m, b, s) for m, b, s in zip(*CURVE.values(), strict=True)]
    assert points[3] == ("flip", "mirrored", 1, 0.1, 0.05)


def whole(found: Diagnosis, shown: tuple[CauseCard, ...], variety: CauseCard | None = None) -> Reader:
    sensitivity = figures.sensitivity(curves_of(found))
    page = SimpleNamespace(causes=shown, variety=variety, probes=nothing_found(found), sensitivity=sensitivity)
    return Reader("".join(render(f"{part}.html", **vars(page)) for part in ("causes", "sensitivity", "nothing")))


def test_sections_are_text_and_whole() -> None:
    given = replace(MARK, images=("dev/0", "dev/1"))
    wrong = cause("label_errors", "confident learning", 0.1, kind="cost", images=("dev/1",))
    found = diagnosis(SCALE, given, wrong, findings=FINDINGS)
    fix = {**proved(MARK), "summary": HOSTILE, "verdict": HOSTILE, "folder": HOSTILE}
    shown = cards(found, RECIPE, 32, split(), fix, data=HOSTILE)
    assert shown == cards(found, RECIPE, 32, split(), fix, data=HOSTILE)
    more = variety_card(found, RECIPE, 32, fix, data=HOSTILE)
    assert more is not None
    page = whole(found, shown, more)
    assert "script" not in page.tags and page.tags.count("img") == 2
    assert sum(HOSTILE in text for text in page.texts) >= 5
    commands = whole(found, cards(found, RECIPE, 32, split(), {**fix, "verdict": "fixed"}, data=HOSTILE))
    assert "script" not in commands.tags and sum(HOSTILE in text for text in commands.texts) >= 5
    assert len(page.ids) == len(set(page.ids)) > 50
    assert {"causes", "sensitivity", "nothing"} <= set(page.ids)
    said = " ".join(page.texts)
    assert "Unexplained: 12 of 20 mistakes" in said and "of the 400 dev images that were probed" in said and "near a tie" in said
    assert "8 probes tested" in said and "q = 0.10" in said


def test_pages_without_causes_or_mistakes_or_a_diagnosis() -> None:
    found = diagnosis(mistakes=0)
    said = " ".join(whole(found, cards(found, RECIPE, 32, None, None)).texts)
    assert "None found, in 0 tests on 400 dev images" in said and "Unexplained" not in said
    page = Reader(render("causes.html", causes=(), variety=None, probes=None))
    assert any("Not looked for yet" in text for text in page.texts)
    assert Reader(render("nothing.html", probes=None)).tags == Reader(render("sensitivity.html", sensitivity="")).tags == []


def test_cause_of_many_classes_names_some() -> None:
    names = tuple(f"class {i}" for i in range(200))
    many = replace(diagnosis(replace(MARK, classes=tuple(range(200)))), classes=names)
    page = whole(many, cards(many, None, 32, None, None))
    assert any("and 188 more" in text for text in page.texts)


def test_the_less_favourable_fill_says_whether_heatmaps_can_be_relied_on() -> None:
    good, bad = (
        finding(f"deletion:{fill}", "gate", None, effect, 1.0, rate=0.5) for fill, effect in (("blur", 0.4), ("patch", 0.05))
    )
    assert causes.gate(diagnosis(findings=(good,))).endswith("show what it looks at.")
    both = causes.gate(diagnosis(findings=(good, bad)))
    assert "50.0 % of 150 images" in both and "10.0 % (−5.0 to +15.0 points at 95 %)" in both
    assert both.endswith("do not rely on the heatmaps of this model.")
    assert causes.gate(diagnosis(findings=(finding("deletion:blur", "gate", None, None, 1.0, n=0),))) == ""
