"""The page in Debian's Chromium: what it shows is compared with the predictions, its pictures with NumPy's, pixel by pixel."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import matplotlib
import numpy as np
import pytest

from sightline import datasets, marks, mistakes, reporting, runs
from sightline.comparison import Comparison, compare_predictions
from sightline.diagnosis import Cause, Diagnosis
from sightline.heatmaps import drawing
from sightline.runs import Predictions, Run, SavedMaps
from test_reporting import CLASSES, make_data, make_heatmaps, make_run, wrong

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
NAMES = ('{}/"><script>alert({})</script>.png', "{}/'a' & \"b\" {}.png", "{}/😀 {}.jpg", "{}/\u202egnp.{}.png")
TARGETS = ("predicted", "true", "margin")
N = 60
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
]


# --- a run judged on dev images, with everything that a page can show, and another before it


@dataclass(frozen=True)
class Case:
    """A page, and what it is of. rows: of the predictions, as the page should show them at first."""

    path: Path
    run: Run
    images: datasets.Split
    now: Predictions
    maps: SavedMaps
    rows: list[int]
    causes: Mapping[str, Sequence[str]]
    before: Predictions | None = None
    maps_before: SavedMaps | None = None
    comparison: Comparison | None = None

    @property
    def everything(self) -> list[str]:
        return [self.now.ids[i] for i in self.rows]

    def where(self, holds: Callable[[int], Any]) -> list[str]:
        """The ids of the rows for which `holds`, in the page's first order."""
        return [self.now.ids[i] for i in self.rows if holds(i)]

    def by(self, value: Callable[[int], float]) -> list[str]:
        """All ids, the highest value first, equals in the page's first order."""
        return [self.now.ids[i] for i in sorted(self.rows, key=lambda i: -value(i))]


def hostile(split: datasets.Split, part: str) -> datasets.Split:
    return replace(split, ids=tuple(NAMES[i % len(NAMES)].format(part, i) for i in range(len(split))))


def judged_on_dev(run: Run, data: datasets.Dataset, test: Predictions) -> Run:
    """Make of a run whose "test" images were `data.dev` one that is judged on these; `test`: what it says of the test images."""
    info = json.loads((run.folder / "run.json").read_text())
    replace(run.predictions, split="dev").write(run.folder)
    test.write(run.folder, "test.parquet")
    rows = [{key.replace("test_", "dev_"): value for key, value in row.items()} for row in run.history]
    runs.write_history(run.folder, rows)
    results = {key.replace("test_", "dev_"): value for key, value in info["results"].items()}
    counts = {"hash": data.content_hash, "dev": 0.5, "n_dev": len(data.dev or ()), "n_test": len(data.test)}
    runs.write_json(run.folder / "run.json", {**info, "results": results, "data": {**info["data"], **counts}})
    return Run.open(run.folder)


def said_of(split: datasets.Split, seed: int) -> Predictions:
    """Random logits that lean to the true class, confidences from low to high."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(len(split), len(split.classes))).astype(np.float32)
    logits[np.arange(len(split)), split.labels] += 1
    logits *= random.uniform(0.3, 6, (len(split), 1)).astype(np.float32)
    return Predictions.from_logits(logits, split.labels, split.ids, split.classes, "test")


def some_maps(predictions: Predictions, ids: Sequence[str], seed: int) -> SavedMaps:
    """Maps of most of these images; half of them are judged, and every third map of a true class speaks against it."""
    random, kept = np.random.default_rng(seed), [name for k, name in enumerate(ids) if k % 7 != 3]
    n = len(kept)
    raw = random.normal(size=(n, 3, 8, 8)).astype(np.float32)
    raw[::3, 1] = -np.abs(raw[::3, 1])
    judged = np.arange(n)[:, None] % 2 == 0
    verdicts = np.where(judged, random.choice(["supported", "weak", "no evidence"], (n, 3)), "").astype("<U16")
    effects = np.where(judged, random.uniform(-0.9, 0.9, (n, 3)), np.nan).astype(np.float32)
    zeros = np.zeros((n, 3), np.float32)
    return SavedMaps(tuple(kept), TARGETS, raw, zeros, zeros, verdicts, effects, "layer3", "Grad-CAM", "fp32")


def write_maps(folder: Path, maps: SavedMaps) -> None:
    parts = runs.MapParts(folder)
    arrays = {name: getattr(maps, name) for name in runs.MAP_ARRAYS}
    parts.add(arrays, layer=maps.layer, method=maps.method, precision=maps.precision)
    parts.finish(maps.ids, maps.targets)


def some_diagnosis(run: Run) -> Diagnosis:
    """Two causes; some mistakes are repaired by both, some by neither."""
    ids = [run.predictions.ids[i] for i in wrong(run)]
    groups = {"missing_flip": tuple(ids[::3]), "lighting": tuple(ids[::4])}
    rest = tuple(name for name in ids if not any(name in some for some in groups.values()))
    numbers: dict[str, Any] = {"effect": 0.3, "low": 0.2, "high": 0.4, "q": 0.01, "rate": 0.4, "sham": 0.1, "n": N, "detail": {}}
    causes = tuple(
        Cause(id=key, classes=(), kind="cost", probe=probe, repaired=0.2, images=groups[key][:6], **numbers)
        for key, probe in (("missing_flip", "flip"), ("lighting", "brightness"))
    )
    return Diagnosis((str(run.folder),), run.classes, N, len(ids), causes, (), {**groups, "unexplained": rest}, 2.0)


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    plain, more = make_data(), make_data(n=2 * N)
    test = replace(more.test, images=more.test.images[N:], labels=more.test.labels[N:])
    return replace(plain, test=hostile(test, "test"), dev=hostile(plain.test, "dev"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, data: datasets.Dataset) -> tuple[Run, Run]:
    """Two runs on the same data, judged on dev, asked about test: nothing is predicted again."""
    folder, shown = tmp_path_factory.mktemp("browser"), replace(data, test=data.dev, dev=None)
    made = [make_run(folder / name, shown, sweep=True) for name in ("a", "b")]
    return judged_on_dev(made[0], data, said_of(data.test, 5)), judged_on_dev(made[1], data, said_of(data.test, 6))


@pytest.fixture(scope="module")
def single(pair: tuple[Run, Run], data: datasets.Dataset) -> Case:
    """The report of the second run."""
    run = pair[1]
    replace(said_of(data.dev or data.test, 7), split="dev").write(run.folder)
    run = Run.open(run.folder)
    maps, diagnosis = some_maps(run.predictions, run.predictions.ids, 2), some_diagnosis(run)
    write_maps(run.folder, maps)
    runs.write_json(run.folder / "diagnosis.json", diagnosis.to_dict())
    path = reporting.report(run, data)
    assert data.dev is not None
    return Case(path, run, data.dev, run.predictions, maps, wrong(run), diagnosis.groups)


@pytest.fixture(scope="module")
def double(pair: tuple[Run, Run], single: Case, data: datasets.Dataset) -> Case:
    """The page of both runs on the test images."""
    a, b = (Predictions.read(run.folder / "test.parquet", run.classes) for run in pair)
    found = compare_predictions([a], [b])
    shown = [i for i in np.argsort(-b.losses, kind="stable") if a.predicted[i] != a.labels[i] or b.predicted[i] != b.labels[i]]
    maps = {pair[0].folder: some_maps(a, a.ids, 3), pair[1].folder: some_maps(b, b.ids, 4)}
    path = reporting.report_change(*pair, found, data, explain=lambda run, *_: maps[run.folder])
    return Case(path, pair[1], data.test, b, maps[pair[1].folder], shown, {}, a, maps[pair[0].folder], found)


# --- a browser, and a page that must never do what it shouldn't


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


class Watched:
    """A page in a context of its own. seen: what it should never do: requests, errors, dialogs."""

    def __init__(self, browser: sync_api.Browser, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **options})
        self.seen: list[str] = []
        self.page = self.new_page()

    def new_page(self) -> sync_api.Page:
        page = self.context.new_page()

        def dialog(opened: sync_api.Dialog) -> None:
            self.seen.append(f"dialog {opened.message}")
            opened.dismiss()

        page.on("console", lambda message: self.seen.append(message.text))
        page.on("pageerror", lambda error: self.seen.append(str(error)))
        page.on("dialog", dialog)
        own = ("file:", "data:image/", "blob:", "about:")
        page.on("request", lambda r: None if r.url.startswith(own) else self.seen.append(r.url))
        return page

    def close(self) -> None:
        self.context.close()


def go(page: sync_api.Page, path: Path, hash_: str = "") -> sync_api.Page:
    """Open the page anew, whatever it shows now, and wait until its script has drawn it."""
    page.goto("about:blank")
    page.goto(path.as_uri() + hash_)
    page.wait_for_selector("html[data-ready]", state="attached")
    return page


def until(page: sync_api.Page, expression: str) -> None:
    """Wait until it holds. Playwright's own waiting compiles text in the page, which the policy forbids."""
    for _ in range(500):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"never: {expression}")


@pytest.fixture(scope="module")
def windows(browser: sync_api.Browser, single: Case, double: Case) -> Iterator[dict[str, Watched]]:
    """One window a page, which tests share; `page` and `both` bring them back to how they opened."""
    opened = {"single": Watched(browser), "double": Watched(browser)}
    go(opened["single"].page, single.path)
    go(opened["double"].page, double.path)
    yield opened
    for window in opened.values():
        window.close()


@pytest.fixture
def page(windows: dict[str, Watched], single: Case) -> Iterator[sync_api.Page]:
    yield from as_new(windows["single"], single)


@pytest.fixture
def both(windows: dict[str, Watched], double: Case) -> Iterator[sync_api.Page]:
    yield from as_new(windows["double"], double)


def as_new(window: Watched, case: Case) -> Iterator[sync_api.Page]:
    window.page.evaluate("localStorage.clear()")
    window.seen.clear()
    go(window.page, case.path)
    yield window.page
    assert window.seen == []


def shown(page: sync_api.Page) -> list[str]:
    """The ids of the cards that can be seen, in their order; all of them are fetched into the page first."""
    for _ in range(50):
        told, there = page.evaluate(
            "[parseInt(document.querySelector('output').value), document.querySelectorAll('#cards .card').length]"
        )
        if there >= told:
            break
        page.evaluate("document.getElementById('cards').lastElementChild.scrollIntoView()")
        page.wait_for_timeout(50)
    ids: list[str] = page.evaluate(
        "[...document.querySelectorAll('.card')].filter((c) => c.checkVisibility())"
        ".map((c) => c.querySelector('.id').textContent)"
    )
    return ids


def choose(page: sync_api.Page, **values: str) -> None:
    """Choose values in the form's lists, type into its search, by the fields' names."""
    for name, value in values.items():
        field = page.locator(f"#controls [name={name}]")
        if name == "q":
            field.fill(value)
        elif name in ("opacity", "threshold"):
            field.evaluate("(f, v) => { f.value = v; f.dispatchEvent(new Event('input', { bubbles: true })) }", value)
        elif name in ("heat", "cells"):
            field.set_checked(value == "1")
        else:
            # By its value alone: Playwright would take a label, too.
            field.select_option(element=field.locator(f'option[value="{value}"]').element_handle())


def form(page: sync_api.Page) -> dict[str, str]:
    """The form's values by name."""
    return page.evaluate(
        "Object.fromEntries([...document.getElementById('controls').elements].filter((f) => f.name)"
        ".map((f) => [f.name, f.type === 'checkbox' ? String(f.checked) : f.value]))"
    )


def click_pair(page: sync_api.Page, target: sync_api.Locator, true: int, predicted: int) -> None:
    """Click until that pair of classes is chosen: on a busy machine the page still scrolls, and a click misses."""
    for _ in range(10):
        target.click()
        if (form(page)["true"], form(page)["predicted"]) == (str(true), str(predicted)):
            return
    raise AssertionError(f"never chosen: {true}, {predicted}")


def reset(page: sync_api.Page) -> None:
    page.get_by_role("button", name="Show all").click()
    until(page, "!location.hash.includes('&')")


# --- which images are shown


def verdict(case: Case, i: int, target: str) -> str:
    """What stands under a map, in the test's own words: no map, no positive cell, or what the file says."""
    if case.now.ids[i] not in case.maps.ids:
        return ""
    row, t = case.maps.ids.index(case.now.ids[i]), TARGETS.index(target)
    return "no evidence" if target != "margin" and not (case.maps.raw[row, t] > 0).any() else str(case.maps.verdicts[row, t])


def effect(case: Case, i: int, target: str) -> float:
    """What the sort by trust goes by: unjudged maps after all judged ones, images without any last."""
    if case.now.ids[i] not in case.maps.ids:
        return -2.0
    value = float(case.maps.effects[case.maps.ids.index(case.now.ids[i]), TARGETS.index(target)])
    return -1.0 if np.isnan(value) else value


def filters(case: Case) -> dict[tuple[str, str], Callable[[int], Any]]:
    """Each value of each filter, and which rows it should leave."""
    p, kinds = case.now, mistakes.kinds([case.now]).kinds
    sure = p.probabilities.max(1)
    found: dict[tuple[str, str], Callable[[int], Any]] = {}
    for k in range(len(CLASSES)):
        found["true", str(k)] = lambda i, k=k: p.labels[i] == k
        found["predicted", str(k)] = lambda i, k=k: p.predicted[i] == k
    for k, cause in enumerate(case.causes):
        found["cause", str(k)] = lambda i, cause=cause: p.ids[i] in case.causes[cause]
    for word in ("supported", "weak", "no evidence"):
        found["trust", word] = lambda i, word=word: verdict(case, i, "predicted") == word
    for text, low, high in (("0.9", 0.9, 1.1), ("0.5", 0.5, 0.9), ("0", 0, 0.5)):
        found["sure", text] = lambda i, low=low, high=high: low <= sure[i] < high
    order = list(dict.fromkeys(kinds[case.rows]))
    for k, kind in enumerate(order if len(order) > 1 else ()):
        found["kind", str(k)] = lambda i, kind=kind: kinds[i] == kind
    for text in ("cat", "CAT", "onerror=", "😀", "script>alert(1", "סוס", "nothing of this name"):

        def holds(i: int, text: str = text) -> bool:
            return text.lower() in f"{p.ids[i]} {p.classes[p.labels[i]]} {p.classes[p.predicted[i]]}".lower()

        found["q", text] = holds
    if case.before is not None:
        was, now = case.before.predicted == p.labels, p.predicted == p.labels
        for word, flags in (("fixed", ~was & now), ("broken", was & ~now), ("still wrong", ~was & ~now)):
            found["flip", word] = lambda i, flags=flags: flags[i]
    return found


@pytest.mark.parametrize("which", ["single", "double"])
def test_each_filter_leaves_what_matches(which: str, request: pytest.FixtureRequest) -> None:
    """Every value that the form offers, and what the count beside it says."""
    case: Case = request.getfixturevalue(which)
    page = request.getfixturevalue("page" if which == "single" else "both")
    expected = filters(case)
    offered = page.evaluate(
        "[...document.querySelectorAll('#controls select')].flatMap((f) => [...f.options].map((o) => [f.name, o.value]))"
    )
    views = ("of", "side", "colours", "sort", "marked")
    assert {(name, value) for name, value in offered if value and name not in views} == {k for k in expected if k[0] != "q"}
    some = 0
    for (name, value), holds in expected.items():
        choose(page, **{name: value})
        left = case.where(holds)
        assert sorted(shown(page)) == sorted(left), (name, value)
        assert page.locator("output").inner_text() == f"{len(left)} of {len(case.rows)} shown here"
        some += 0 < len(left) < len(case.rows)
        choose(page, **{name: ""})
    assert some > 15
    assert sorted(shown(page)) == sorted(case.everything)


def test_filters_narrow_each_other_and_show_all_undoes_them(page: sync_api.Page, single: Case) -> None:
    expected = filters(single)
    assert shown(page) == single.everything
    chosen = {"true": "1", "sure": "0.5", "cause": "2", "q": "png"}
    holding = [expected[key] for key in chosen.items() if key[0] != "q"]
    choose(page, **chosen)
    left = single.where(lambda i: all(holds(i) for holds in holding) and "png" in single.now.ids[i])
    assert shown(page) == left and left
    reset(page)
    assert shown(page) == single.everything and "&" not in page.url


def test_verdicts_are_those_of_the_map_that_is_shown(page: sync_api.Page, single: Case) -> None:
    for target in TARGETS:
        for word in ("supported", "weak", "no evidence"):
            choose(page, of=target, trust=word)
            assert shown(page) == single.where(lambda i, t=target, w=word: verdict(single, i, t) == w), (target, word)


@pytest.mark.parametrize("which", ["single", "double"])
def test_each_order_is_that_of_the_values(which: str, request: pytest.FixtureRequest) -> None:
    case: Case = request.getfixturevalue(which)
    page, p = request.getfixturevalue("page" if which == "single" else "both"), case.now
    orders: dict[str, Callable[[int], float]] = {
        "loss": lambda i: p.losses[i],
        "margin": lambda i: p.margins[i],
        "sure": lambda i: p.probabilities[i].max(),
        "trust": lambda i: effect(case, i, "predicted"),
    }
    if case.comparison is not None:
        ranks = {name: 1 - k / len(ids) for ids in (case.comparison.fixed, case.comparison.broken) for k, name in enumerate(ids)}
        orders["surest"] = lambda i: ranks.get(p.ids[i], 0)
        assert shown(page) == case.by(orders["surest"]) != case.everything  # this page's first order
    offered = page.locator("#controls [name=sort] option").evaluate_all("(all) => all.map((o) => o.value)")
    assert set(offered) == set(orders)
    for name, value in orders.items():
        choose(page, sort=name)
        assert shown(page) == case.by(value), name
    choose(page, sort="trust", of="margin")
    assert shown(page) == case.by(lambda i: effect(case, i, "margin"))


def test_a_cell_of_the_matrix_shows_as_many_images_as_it_says(page: sync_api.Page, single: Case) -> None:
    """The numbers in the figure are drawn in the order of the cells that aren't empty, after the axes' nine words."""
    matrix = mistakes.confusion_matrix(single.now)
    first = 2 * (len(CLASSES) + 1) + 1
    for k, (i, j) in enumerate(np.argwhere(matrix)):
        if i == j and k:
            continue
        click_pair(page, page.locator(f"[id=confusion-text_{first + k}]"), i, j)  # in its middle
        expected = single.where(lambda n, i=i, j=j: (single.now.labels[n], single.now.predicted[n]) == (i, j))
        assert shown(page) == expected and (i == j or len(expected) == matrix[i, j])


def test_a_pair_of_the_table_shows_its_images(page: sync_api.Page, single: Case) -> None:
    for row, pair in enumerate(mistakes.most_confused(single.now)[:3]):
        line = page.locator("#confusion tbody tr").nth(row)
        assert line.locator("td").nth(1).inner_text() == str(pair.count)
        wanted = (CLASSES.index(pair.true), CLASSES.index(pair.predicted))
        click_pair(page, line.get_by_role("button"), *wanted)
        expected = single.where(lambda n, w=wanted: (single.now.labels[n], single.now.predicted[n]) == w)
        assert shown(page) == expected and len(expected) == pair.count


# --- what a card says and shows


def test_cards_say_what_the_run_said(page: sync_api.Page, single: Case) -> None:
    p, drawn = single.now, drawn_cards(page)
    texts, numbers = (page.locator(part).all_text_contents() for part in (".card", ".card .numbers"))
    for i, text, figures in zip(single.rows, texts, numbers, strict=True):
        sure, loss = p.probabilities[i].max(), p.losses[i]
        told, lost = re.search(r"([<>]?[\d.]+) % sure .* loss ([\d.]+)", figures).groups()
        assert told == ">99.9" if sure >= 0.9995 else abs(float(told) - 100 * sure) < 0.06  # the page has 4 digits
        assert abs(float(lost) - loss) < 0.0051
        for key, ids in single.causes.items():
            assert (key.replace("_", " ") in text) == (p.ids[i] in ids), key
        label = drawn[p.ids[i]]["after"]["label"]
        assert label.startswith(f"{p.ids[i]}: true {CLASSES[p.labels[i]]}, predicted {CLASSES[p.predicted[i]]}, {sure:.2f}; ")
        word = verdict(single, i, "predicted")
        assert label.endswith(f"; heatmap: {word}") if word else "; heatmap: " not in label
        assert drawn[p.ids[i]]["after"]["caption"].endswith(f": {word}" if word else CLASSES[p.predicted[i]]) or (
            p.ids[i] not in single.maps.ids and drawn[p.ids[i]]["after"]["caption"].endswith(": no heatmap")
        )


def drawn_cards(page: sync_api.Page) -> dict[str, dict[str, dict[str, Any]]]:
    """Each shown card's figures by kind: canvas (H, W, 3) uint8, its label, its caption. All are brought on the screen first."""
    size = page.viewport_size
    shown(page)  # all are in the page then
    height = page.evaluate("document.getElementById('mistakes').scrollHeight + 400")
    page.set_viewport_size({"width": 1280, "height": min(int(height), 12_000)})
    page.evaluate("document.getElementById('mistakes').scrollIntoView()")
    until(page, "[...document.querySelectorAll('.card')].every((c) => !c.checkVisibility() || c.dataset.drawn)")
    found = page.evaluate(
        """() => [...document.querySelectorAll(".card")].filter((card) => card.checkVisibility()).map((card) => [
          card.querySelector(".id").textContent,
          [...card.querySelectorAll("figure")].filter((figure) => !figure.hidden).map((figure) => {
            const canvas = figure.querySelector("canvas");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const pixels = btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""));
            const words = { label: canvas.getAttribute("aria-label"), caption: figure.querySelector("figcaption").innerText };
            return [figure.dataset.kind, { ...words, pixels, size: [canvas.height, canvas.width] }];
          }),
        ])"""
    )
    page.set_viewport_size(size or {"width": 1280, "height": 900})

    def decoded(figure: dict[str, Any]) -> dict[str, Any]:
        pixels = np.frombuffer(base64.b64decode(figure["pixels"]), np.uint8).reshape(*figure["size"], 4)
        return {**figure, "pixels": pixels[..., :3]}

    return {name: {kind: decoded(figure) for kind, figure in figures} for name, figures in found}


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and int(np.abs(found.astype(int) - expected.astype(int)).max()) <= 1


def rendering(maps: SavedMaps, name: str, image: np.ndarray, target: str) -> np.ndarray:
    """The NumPy rendering of one map as the file has it, or the image alone where there is none."""
    if name not in maps.ids:
        return image
    raw = maps.raw[[maps.ids.index(name)]]
    if target == "margin":
        return drawing.diverging(raw[:, 2], image[None])[0]
    return drawing.overlay(raw[:, :2], image[None])[0, TARGETS.index(target)]


@pytest.mark.parametrize("target", TARGETS)
def test_every_pixel_is_that_of_the_numpy_rendering(page: sync_api.Page, single: Case, target: str) -> None:
    choose(page, of=target)
    drawn = drawn_cards(page)
    assert list(drawn) == single.everything
    for name, figures in drawn.items():
        image = single.images.images[single.images.ids.index(name)]
        np.testing.assert_array_equal(figures["image"]["pixels"], image)
        assert close(figures["after"]["pixels"], rendering(single.maps, name, image, target)), name


def test_both_runs_maps_are_drawn_each_on_its_own_scale(both: sync_api.Page, double: Case) -> None:
    assert double.maps_before is not None
    choose(both, of="true")
    drawn = drawn_cards(both)
    assert sorted(drawn) == sorted(double.everything)
    for name, figures in drawn.items():
        image = double.images.images[double.images.ids.index(name)]
        assert close(figures["before"]["pixels"], rendering(double.maps_before, name, image, "true")), name
        assert close(figures["after"]["pixels"], rendering(double.maps, name, image, "true")), name


def literal(
    image: np.ndarray, raw: np.ndarray, target: str, *, strength: float, threshold: float, colours: str, cells: bool
) -> np.ndarray:
    """One pixel after the other, from the 16-bit grid that the page has. raw: (3, 8, 8)."""
    kin = [2] if target == "margin" else [0, 1]
    grid = np.round(32767 * raw[kin] / np.abs(raw[kin]).max())
    own = TARGETS.index(target) - kin[0]
    if target != "margin":
        grid = np.maximum(grid, 0)
        if not grid[own].any():
            return image
    side, n = len(image), grid.shape[1]

    def at(values: np.ndarray, y: int, x: int) -> float:
        if cells:
            return float(values[y * n // side, x * n // side])
        v, u = (min(max((k + 0.5) * n / side - 0.5, 0), n - 1) for k in (y, x))
        total = 0.0
        for row in range(n):
            for column in range(n):
                total += max(0, 1 - abs(v - row)) * max(0, 1 - abs(u - column)) * values[row, column]
        return total

    heat = np.array([[[at(values, y, x) for x in range(side)] for y in range(side)] for values in grid])
    heat = heat[own] / np.abs(heat).max()
    picture = image.astype(float)
    for y in range(side):
        for x in range(side):
            value = heat[y, x]
            if abs(value) < threshold:
                continue
            if target == "margin":
                colour, alpha = np.array((213, 94, 0) if value > 0 else (0, 114, 178)), strength * abs(value)
            else:
                rgb = matplotlib.colormaps[colours].colors[min(255, int(256 * value))]
                colour, alpha = 255 * np.array(rgb), strength
            picture[y, x] = (1 - alpha) * picture[y, x] + alpha * colour
    return picture.round().astype(np.uint8)


@pytest.mark.parametrize(
    ("target", "strength", "threshold", "colours", "cells"),
    [
        ("predicted", 1.0, 0.0, "viridis", False),
        ("predicted", 0.5, 0.5, "cividis", False),
        ("true", 0.8, 0.3, "inferno", True),
        ("true", 0.0, 0.0, "inferno", False),
        ("margin", 1.0, 0.25, "inferno", False),
        ("margin", 0.7, 0.0, "viridis", True),
    ],
)
def test_strength_threshold_colours_and_cells_are_as_said(
    page: sync_api.Page, single: Case, target: str, strength: float, threshold: float, colours: str, cells: bool
) -> None:
    names = [name for name in single.everything if name in single.maps.ids][:3]
    choose(page, of=target, threshold=str(threshold), colours=colours, cells=str(int(cells)))
    if (target, strength) != ("margin", 0.7):  # the margin's own strength, until another is chosen
        choose(page, opacity=str(strength))
    drawn = drawn_cards(page)
    for name in names:
        image = single.images.images[single.images.ids.index(name)]
        raw = single.maps.raw[single.maps.ids.index(name)].astype(float)
        expected = literal(image, raw, target, strength=strength, threshold=threshold, colours=colours, cells=cells)
        assert close(drawn[name]["after"]["pixels"], expected), name


def test_a_change_is_drawn_at_once_on_the_cards_in_sight(page: sync_api.Page, single: Case) -> None:
    """Without scrolling: what is on the screen is repainted."""
    name = single.everything[0]
    image = single.images.images[single.images.ids.index(name)]
    for target in ("margin", "true", "predicted"):
        choose(page, of=target)
        assert close(drawn_cards(page)[name]["after"]["pixels"], rendering(single.maps, name, image, target))


# --- keys


def test_keys_move_between_the_images_that_are_shown(page: sync_api.Page, single: Case) -> None:
    choose(page, true="1")
    left = single.where(lambda i: single.now.labels[i] == 1)
    page.evaluate("document.activeElement.blur()")

    def focused() -> str:
        return page.locator(".card:focus .id").text_content() or ""

    for key, place in (("j", 0), ("j", 1), ("j", 2), ("k", 1), ("k", 0), ("k", 0)):
        page.keyboard.press(key)
        assert focused() == left[place]
        page.wait_for_timeout(150)
        box = page.locator(".card:focus").bounding_box()
        assert box is not None and box["y"] >= 0 and box["y"] + box["height"] <= 900
    for _ in range(len(left) + 2):
        page.keyboard.press("j")
    assert focused() == left[-1]


def test_keys_change_the_picture(page: sync_api.Page, single: Case) -> None:
    name = single.everything[0]
    image = single.images.images[single.images.ids.index(name)]
    start = form(page)
    for key, field, values in (
        ("m", "of", ["true", "margin", "predicted"]),
        ("h", "heat", ["false", "true"]),
        ("c", "cells", ["true", "false"]),
        ("]", "opacity", ["0.325", "0.375"]),
        ("[", "opacity", ["0.325", "0.275", "0.225", "0.175", "0.125", "0.075", "0.025", "0", "0"]),
    ):
        for value in values:
            page.keyboard.press(key)
            assert form(page) == {**start, field: value}, (key, value)
            if key == "m":
                assert close(drawn_cards(page)[name]["after"]["pixels"], rendering(single.maps, name, image, value))
            if key == "h":
                assert set(drawn_cards(page)[name]) == ({"image"} if value == "false" else {"image", "after"})
    np.testing.assert_array_equal(drawn_cards(page)[name]["after"]["pixels"], image)  # strength 0


def test_b_shows_both_runs_one_or_the_other(both: sync_api.Page, double: Case) -> None:
    assert double.before is not None
    name = shown(both)[0]
    i = double.now.ids.index(name)
    for key, side in (("", "both"), ("b", "before"), ("b", "after"), ("b", "both")):
        if key:
            both.keyboard.press(key)
        assert form(both)["side"] == side
        kinds = {"both": {"image", "before", "after"}}.get(side, {"image", side})
        assert set(drawn_cards(both)[name]) == kinds
        said = double.before if side == "before" else double.now
        title = both.locator(".card .p").first.text_content()
        assert title == CLASSES[said.predicted[i]]
    choose(both, side="before", predicted="2")
    assert sorted(shown(both)) == sorted(double.where(lambda i: double.before.predicted[i] == 2))
    choose(both, predicted="")
    order, sureness = shown(both), double.before.probabilities.max(1)
    for low, high, band in ((-1.0, 0.5, "0"), (0.5, 0.9, "0.5"), (0.9, 2.0, "0.9")):
        choose(both, sure=band)
        assert sorted(shown(both)) == sorted(double.where(lambda i, low=low, high=high: low <= sureness[i] < high))
    choose(both, sure="", side="after")
    assert shown(both) == order  # that of the losses afterwards, whichever answers are shown


def test_search_and_help_open_by_key_and_letters_in_the_search_are_letters(page: sync_api.Page, single: Case) -> None:
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "q"
    page.keyboard.type("mhx1")
    assert form(page)["q"] == "mhx1" and form(page)["of"] == "predicted" and form(page)["heat"] == "true"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("m")
    assert form(page)["of"] == "predicted"  # the list is open: keys are off
    page.locator("#keys-on").uncheck()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.keyboard.press("m")
    page.keyboard.press("Control+m")
    assert form(page)["of"] == "predicted"
    page.locator("#keys").click()
    page.locator("#keys-on").check()
    page.locator("#close").click()
    page.keyboard.press("m")
    assert form(page)["of"] == "true"


# --- the state is in the address


def view(page: sync_api.Page) -> tuple[dict[str, str], list[str]]:
    return form(page), shown(page)


@pytest.mark.parametrize(
    "values",
    [
        {"true": "1", "sure": "0.5", "sort": "margin"},
        {"q": "a & b=c #😀 </script>", "kind": "0"},
        {"of": "margin", "opacity": "0.9", "threshold": "0.25", "colours": "cividis", "cells": "1", "cause": "1"},
        {"heat": "0", "trust": "weak", "marked": "none"},
    ],
)
def test_a_view_comes_back_from_its_address(
    page: sync_api.Page, windows: dict[str, Watched], single: Case, values: dict[str, str]
) -> None:
    choose(page, **values)
    wanted = view(page)
    until(page, "location.hash.includes('&')")
    page.wait_for_timeout(200)  # each change gives another address, a moment later
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert view(page) == wanted
    other = go(windows["single"].new_page(), single.path, f"#mistakes&{urlencode(values)}")
    assert view(other) == wanted
    assert other.evaluate("Math.abs(document.getElementById('mistakes').getBoundingClientRect().top) < 2")
    other.close()


@pytest.mark.parametrize(
    "address",
    [
        "#mistakes&true=99&predicted=x&sort=zzz&cause=-1&of=nobody&colours=jet&side=3&sure=7&kind=__proto__&marked=toString",
        '#"><img src=x onerror=alert(1)>',
        "#mistakes&q=%E0%A4%A&&&=&==&%%%",
        "#constructor&toString=1&__proto__=2",
        "#",
    ],
)
def test_an_address_without_sense_does_no_harm(page: sync_api.Page, single: Case, address: str) -> None:
    start = form(page)
    go(page, single.path, address)
    left = form(page)
    assert {**left, "q": ""} == {**start, "q": ""}
    assert sorted(shown(page)) == sorted(single.everything) or left["q"]
    choose(page, q="", true="1")
    assert shown(page) == single.where(lambda i: single.now.labels[i] == 1)


def test_numbers_in_an_address_stay_in_their_bounds(page: sync_api.Page, single: Case) -> None:
    go(page, single.path, "#mistakes&opacity=5&threshold=-3")
    assert (form(page)["opacity"], form(page)["threshold"]) == ("1", "0")


def test_a_link_within_the_page_keeps_the_filters_and_back_undoes_them(page: sync_api.Page, single: Case) -> None:
    choose(page, true="1")
    left = single.where(lambda i: single.now.labels[i] == 1)
    page.locator("nav a[href='#curves']").click()
    assert shown(page) == left
    until(page, "location.hash === '#mistakes&true=1'")
    page.evaluate("location.hash = '#mistakes&true=2'")
    until(page, "document.querySelector('[name=true]').value === '2'")
    page.go_back()
    until(page, "document.querySelector('[name=true]').value === '1'")
    assert shown(page) == left


# --- marks


def mark(page: sync_api.Page, name: str, *keys: str) -> None:
    page.locator(".card").nth(shown(page).index(name)).focus()
    for key in keys:
        page.keyboard.press(key)


def exported(page: sync_api.Page, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator("#export").click()
    assert waiting.value.suggested_filename == "marks.json"
    waiting.value.save_as(folder / "marks.json")
    return folder / "marks.json"


def test_marks_are_kept_filtered_and_exported_for_import(
    page: sync_api.Page, windows: dict[str, Watched], single: Case, double: Case, tmp_path: Path
) -> None:
    ids = single.everything
    assert page.locator("#export").is_disabled()
    mark(page, ids[0], "x")
    mark(page, ids[1], "1")
    mark(page, ids[2], "x", "2")
    mark(page, ids[3], "x", "x")  # and taken back
    mark(page, ids[4], "1", "2", "3", "3")
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    keys = page.locator("#help tr").evaluate_all("(all) => all.map((r) => r.innerText.split('“')[1]?.split('”')[0])")
    one, two = [key.replace(" ", "_") for key in keys if key][:2]
    expected = [
        {"id": ids[0], "label_error": True},
        {"id": ids[1], "cause": one},
        {"id": ids[2], "label_error": True, "cause": two},
        *({"id": name, "label_error": False} for name in ids[3:5]),  # taken back, should they have been imported before
    ]
    assert [one, two] == ["missing_flip", "lighting"]
    content = json.loads((path := exported(page, tmp_path)).read_text(encoding="utf-8"))
    assert {**content, "marks": sorted(content["marks"], key=lambda m: ids.index(m["id"]))} == {
        "schema": 1,
        "run": single.run.digest,
        "split": "dev",
        "marks": expected,
    }
    assert {m.id: m.to_dict() for m in marks.read(path).marks if m.says_something} == {m["id"]: m for m in expected[:3]}
    assert len(marks.take(replace_folder(single.run, tmp_path), path)) == 3
    for how, left in (("any", ids[:3]), ("label", [ids[0], ids[2]]), ("none", ids[3:])):
        choose(page, marked=how)
        assert shown(page) == left, how
    choose(page, marked="")
    words = page.locator(".card .marks").all_text_contents()
    assert words[:4] == ["✗ marked as a label error", "marked: missing flip", "✗ marked as a label error · marked: lighting", ""]
    other = go(windows["single"].new_page(), double.path)  # in the same browser, of the same run but other images
    assert other.locator("#export").is_disabled()
    other.close()


def replace_folder(run: Run, folder: Path) -> Run:
    """The same run elsewhere, to write into."""
    for name in ("run.json", "predictions.parquet"):
        (folder / name).write_bytes((run.folder / name).read_bytes())
    return Run.open(folder)


@pytest.mark.parametrize("content", ["null", "5", "[1]", '{"a": null, "b": 3}', "{", '{"__proto__": {"label_error": "yes"}}'])
def test_marks_that_something_else_spoiled_do_no_harm(page: sync_api.Page, single: Case, tmp_path: Path, content: str) -> None:
    page.evaluate("(text) => localStorage.setItem(`sightline:${text[0]}:dev`, text[1])", [single.run.digest, content])
    go(page, single.path)
    mark(page, single.everything[0], "x")
    found = json.loads(exported(page, tmp_path).read_text(encoding="utf-8"))["marks"]
    assert found == [{"id": single.everything[0], "label_error": True}]


def test_another_run_s_page_does_not_see_the_marks(
    page: sync_api.Page, windows: dict[str, Watched], single: Case, data: datasets.Dataset, tmp_path: Path
) -> None:
    mark(page, single.everything[0], "x")
    run = make_run(tmp_path / "run", replace(data, test=single.images, dev=None), epochs=3)
    other = go(windows["single"].new_page(), reporting.report(run, data=replace(data, test=single.images, dev=None)))
    assert set(shown(other)) & set(single.everything) and other.locator("#export").is_disabled()
    other.close()


# --- hostile names, no network


def test_the_policy_stops_what_an_attacker_could_add(page: sync_api.Page, windows: dict[str, Watched]) -> None:
    page.evaluate("fetch('https://example.org').catch(() => { window.stopped = true })")
    until(page, "window.stopped")
    inside = '<img src=x onerror="window.hacked = 1"><a id=bad href="javascript:window.hacked = 2">x</a>'
    page.evaluate("(html) => document.body.insertAdjacentHTML('beforeend', html)", inside)
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.hacked = 3' }))")
    page.evaluate("document.getElementById('bad').click()")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    seen = windows["single"].seen
    assert len(seen) >= 4 and all("Content Security Policy" in line or "Failed to fetch" in line for line in seen), seen
    seen.clear()


@pytest.mark.parametrize("which", ["page", "both"])
def test_names_are_text_everywhere(which: str, request: pytest.FixtureRequest) -> None:
    """No element but those of our own making; the title is the names' own text."""
    page = request.getfixturevalue(which)
    assert page.locator("script").count() == 2  # the data and the script
    assert page.evaluate("document.querySelectorAll('[onerror], [onfocus], iframe, object, embed, link, base').length") == 0
    broken = "[...document.images].filter((image) => !image.src.startsWith('data:image/') || !image.naturalWidth).length"
    assert page.evaluate(broken) == 0
    names = page.locator(".card .p").evaluate_all("(all) => [...new Set(all.map((b) => b.textContent))]")
    assert set(names) <= set(CLASSES) and CLASSES[1] in names
    assert page.evaluate("window.alert.toString().includes('native code')")


# --- for everyone


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["page", "both"])
def test_axe_finds_nothing(which: str, scheme: str, width: int, request: pytest.FixtureRequest) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    page = request.getfixturevalue(which)
    try:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate("for (const closed of document.querySelectorAll('details')) closed.open = true")
        mark(page, shown(page)[0], "x")
        options = {"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations"]}
        found = axe.run(page, options=options)
        assert found.response["passes"] and found.violations_count == 0, found.generate_report()
        page.locator("#keys").click()
        found = axe.run(page, context="#help", options=options)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 1280, "height": 900})


def test_the_keyboard_alone_reaches_everything_and_shows_where_it_is(page: sync_api.Page) -> None:
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(200):
        page.keyboard.press("Tab")
        where = page.evaluate(
            """() => {
              const at = document.activeElement, style = getComputedStyle(at), box = at.getBoundingClientRect();
              window.met = window.met || new Set();
              if (at === document.body || window.met.has(at)) return null;
              window.met.add(at);
              const name = at.name || at.id || at.getAttribute("href") || at.getAttribute("aria-label") || at.textContent.trim();
              const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
              return [name, ring, box.right > 0 && box.bottom > 0 && box.top < innerHeight && box.width > 0];
            }"""
        )
        if where is None:
            break
        reached.append(where)
    names = [name for name, *_ in reached]
    assert [name for name, ring, seen in reached if not (ring and seen)] == []
    wanted = page.evaluate(
        """() => [...document.querySelectorAll("a, button, select, input, summary")]
          .filter((e) => e.checkVisibility() && !e.disabled)
          .map((e) => e.name || e.id || e.getAttribute("href") || e.getAttribute("aria-label") || e.textContent.trim())"""
    )
    assert {"#mistakes", "q", "true", "opacity", "cells", "keys"} <= set(wanted) <= set(names)


def test_the_skip_link_leads_to_the_mistakes(page: sync_api.Page) -> None:
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the mistakes"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator(":focus").get_attribute("name") == "q"


def test_without_script_the_gravest_mistakes_are_a_table(browser: sync_api.Browser, single: Case) -> None:
    window = Watched(browser, java_script_enabled=False)
    window.page.goto(single.path.as_uri())
    rows = window.page.locator("noscript tbody tr").all_inner_texts()
    assert [row.split("\t")[-1] for row in rows] == single.everything[:24]
    p, first = single.now, single.rows[0]
    assert rows[0].split("\t")[:2] == [CLASSES[p.predicted[first]], CLASSES[p.labels[first]]]
    assert not window.page.locator("#controls").is_visible() and not window.page.locator(".pair").first.is_visible()
    assert window.seen == []
    window.close()


def test_print_has_no_controls_and_the_first_cards_with_their_pictures(page: sync_api.Page, single: Case) -> None:
    """As a person prints: what is chosen by a filter, whether or not it was scrolled to."""
    choose(page, predicted=str(single.now.predicted[single.rows[-1]]))
    left = shown(page)
    for expected, change in ((left[:24], {}), (single.everything[:24], {"predicted": ""})):
        choose(page, **change)
        page.emulate_media(media="print")
        page.pdf()
        assert shown(page) == expected
        empty = "[...document.querySelectorAll('.card')].filter((c) => c.checkVisibility() && !c.dataset.drawn).length"
        assert page.evaluate(empty) == 0
        for selector in ("nav", "#controls", "#export", ".skip", ".pair"):
            assert not page.locator(selector).first.is_visible(), selector
        page.emulate_media(media="screen")
    assert len(single.everything) > 24


# --- other runs


def test_a_run_without_mistakes_has_no_gallery(browser: sync_api.Browser, tmp_path: Path) -> None:
    data = make_data()
    window = Watched(browser)
    window.page.goto(reporting.report(make_run(tmp_path / "run", data, right=True), data).as_uri())
    assert window.page.locator("#mistakes").inner_text().endswith(f"None: all {N} test images were classified correctly.")
    assert window.page.locator(".card, form").count() == 0 and window.seen == []
    window.close()


def test_a_run_without_heatmaps_shows_the_images_alone(browser: sync_api.Browser, tmp_path: Path) -> None:
    data = make_data()
    run = make_run(tmp_path / "run", data)
    window = Watched(browser)
    page = go(window.page, reporting.report(run, data))
    assert page.locator("[name=of], [name=trust], [name=opacity]").count() == 0
    drawn = drawn_cards(page)
    assert list(drawn) == [run.predictions.ids[i] for i in wrong(run)]
    for name, figures in drawn.items():
        np.testing.assert_array_equal(figures["image"]["pixels"], data.test.images[data.test.ids.index(name)])
        assert set(figures) == {"image"}
    page.keyboard.type("hmcb[]")
    assert window.seen == []
    window.close()


def test_one_class_is_enough(browser: sync_api.Browser, tmp_path: Path) -> None:
    data = make_data(n=4, classes=("one", "none"))
    splits = [replace(s, classes=("one",), labels=np.zeros(4, np.int64)) for s in (data.train, data.test)]
    data = replace(data, train=splits[0], test=splits[1])
    window = Watched(browser)
    window.page.goto(reporting.report(make_run(tmp_path / "run", data), data).as_uri())
    assert "None: all 4 test images" in window.page.locator("#mistakes").inner_text() and window.seen == []
    window.close()


def test_a_thousand_classes_fit(browser: sync_api.Browser, tmp_path: Path) -> None:
    data = make_data(n=300, classes=tuple(f"class {i}" for i in range(1000)), pixels=16)
    run = make_run(tmp_path / "run", data)
    make_heatmaps(run)
    path = reporting.report(run, data)
    window = Watched(browser, viewport={"width": 390, "height": 900})
    page = go(window.page, path)
    ids = [run.predictions.ids[i] for i in wrong(run)]
    assert page.locator(".card").count() == 24 < 60 < len(ids)  # the others come when they are wanted
    for _ in range(60):
        page.keyboard.press("j")
    assert page.locator(".card:focus .id").text_content() == ids[59]
    assert shown(page) == ids and page.evaluate("document.documentElement.scrollWidth") <= 390
    choose(page, q="test/7")
    assert shown(page) == [name for name in ids if "test/7" in name]
    choose(page, q="")
    assert page.locator(".card").count() == 24 and shown(page) == ids
    i = wrong(run)[5]
    choose(page, true=str(run.predictions.labels[i]), predicted=str(run.predictions.predicted[i]))
    assert ids[5] in shown(page) and len(shown(page)) < 10
    assert path.stat().st_size < 3_000_000 and window.seen == []
    window.close()


def test_large_images_become_small_and_keep_their_shape(browser: sync_api.Browser, tmp_path: Path) -> None:
    images = np.zeros((1, 3000, 4000, 3), np.uint8)
    images[0, :, 2000:] = (250, 0, 0)
    images[0, 1500:, 2000:] = (0, 0, 250)
    splits = [datasets.Split(images, np.zeros(1, np.int64), ("a", "b"), (f"{part}/0",)) for part in ("train", "test")]
    data = datasets.Dataset("large", *splits)
    run = make_run(tmp_path / "run", data)
    logits = np.array([[0, 2]], np.float32)
    Predictions.from_logits(logits, splits[1].labels, splits[1].ids, data.classes, "test").write(run.folder)
    window = Watched(browser)
    drawn = drawn_cards(go(window.page, reporting.report(Run.open(run.folder), data)))
    picture = drawn["test/0"]["image"]["pixels"].astype(int)
    assert picture.shape == (96, 128, 3)
    for part, colour in ((picture[:, :56], 0), (picture[:40, 72:], (250, 0, 0)), (picture[56:, 72:], (0, 0, 250))):
        assert np.abs(part - colour).max() < 16
    assert window.seen == []
    window.close()


def test_missing_images_are_shown_as_missing(browser: sync_api.Browser, tmp_path: Path) -> None:
    data = make_data()
    run = make_run(tmp_path / "run", data)
    make_heatmaps(run)
    rows = wrong(run)
    gone, there = run.predictions.ids[rows[2]], run.predictions.ids[rows[3]]
    known = np.array([name != gone for name in data.test.ids])
    path = tmp_path / "page.html"
    left = replace(
        data.test, images=data.test.images[known], labels=data.test.labels[known], ids=tuple(np.array(data.test.ids)[known])
    )
    write_page(path, run, left)
    window = Watched(browser)
    page = go(window.page, path)
    assert page.locator(".missing").all_text_contents() == ["this image is missing"]
    assert page.locator(".card").nth(2).locator(".missing").count() == 1
    drawn = drawn_cards(page)
    assert drawn[gone] == {} and close(drawn[there]["image"]["pixels"], data.test.images[data.test.ids.index(there)])
    mark(page, gone, "x")
    page.keyboard.type("hhmmcjk[]")
    assert window.seen == []
    window.close()


def write_page(path: Path, run: Run, images: datasets.Split | None) -> None:
    """A page of a run whose images are those given, whatever its data set was."""
    from sightline.reporting.gallery import Said

    gone = "the data set was not found" if images is None else ""
    story = reporting.Story(run, Said(run.predictions, run.heatmaps), images, no_pictures=gone)
    path.write_text(reporting.render(reporting.page_of(story), reporting.draw(story)), encoding="utf-8")


def test_without_any_images_the_cards_say_so(browser: sync_api.Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_data())
    make_heatmaps(run)
    write_page(tmp_path / "page.html", run, None)
    window = Watched(browser)
    page = go(window.page, tmp_path / "page.html")
    assert shown(page) == [run.predictions.ids[i] for i in wrong(run)]
    assert page.locator(".missing").all_text_contents() == ["no picture"] * len(wrong(run))
    assert page.locator("[name=of], canvas").count() == 0
    page.keyboard.type("hmcb[]jx")
    assert page.locator(".card .marks").first.inner_text() == "✗ marked as a label error" and window.seen == []
    window.close()
