"""The page in Debian's Chromium: it stays offline, its filters work, and hostile names do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sightline import reporting
from sightline.runs import Run
from test_reporting import make_data, make_heatmaps, make_run, wrong

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
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    data = make_data()
    run = make_run(tmp_path_factory.mktemp("browser") / "run", data, sweep=True)
    make_heatmaps(run)
    reporting.report(run, data)
    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def seen() -> list[str]:
    """What the page should never do, filled while a test uses `page`."""
    return []


@pytest.fixture
def page(run: Run, browser: sync_api.Browser, seen: list[str]) -> Iterator[sync_api.Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})

    def dialog(opened: sync_api.Dialog) -> None:
        seen.append(f"dialog {opened.message}")
        opened.dismiss()

    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("dialog", dialog)
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:image/")) else seen.append(r.url))
    page.goto((run.folder / "report.html").as_uri())
    yield page
    page.close()
    assert seen == []


def shown(page: sync_api.Page) -> list[tuple[str, str]]:
    cards = page.locator(".card:not([hidden])").all()
    return [(card.get_attribute("data-true") or "", card.get_attribute("data-predicted") or "") for card in cards]


def test_page_is_drawn_without_errors_and_without_requests(page: sync_api.Page) -> None:
    assert page.title() == "small on planted – Sightline report"
    assert page.locator("script").count() == 1
    assert page.evaluate("[...document.images].every((image) => image.decode && image.naturalWidth > 0)")


def test_policy_stops_what_an_attacker_could_add(page: sync_api.Page, seen: list[str]) -> None:
    page.evaluate("fetch('https://example.org').catch(() => { window.stopped = true })")
    page.wait_for_function("window.stopped")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">')")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert seen and all("Content Security Policy" in line or "Failed to fetch" in line for line in seen)
    seen.clear()


def test_filters_leave_the_matching_mistakes(run: Run, page: sync_api.Page) -> None:
    predictions = run.predictions
    everything = [(str(predictions.labels[i]), str(predictions.predicted[i])) for i in wrong(run)]
    assert shown(page) == everything
    page.get_by_label("Actual class").select_option("1")
    expected = [pair for pair in everything if pair[0] == "1"]
    assert shown(page) == expected
    assert page.locator("output").inner_text() == f"{len(expected)} of these {len(everything)} match"
    assert page.locator("#more").get_attribute("open") is not None
    page.get_by_label("Predicted class").select_option("2")
    assert shown(page) == [pair for pair in everything if pair == ("1", "2")] != expected
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function("document.querySelector('output').value === ''")
    assert shown(page) == everything


def test_a_confused_pair_shows_its_mistakes(run: Run, page: sync_api.Page) -> None:
    button = page.locator(".pair").first
    pair = (button.get_attribute("data-true"), button.get_attribute("data-predicted"))
    button.click()
    count = int(page.locator("#confusion tbody tr").first.locator("td").nth(1).inner_text())
    assert shown(page) == [pair] * count


def test_filters_work_with_the_keyboard_alone(page: sync_api.Page) -> None:
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the mistakes"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator(":focus").get_attribute("name") == "true"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('output').value !== ''")
    assert {true for true, _ in shown(page)} == {"0"}


def test_page_is_whole_without_script(run: Run, browser: sync_api.Browser) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto((run.folder / "report.html").as_uri())
    assert page.locator(".card").count() == len(wrong(run))
    assert not page.locator("#filters").is_visible() and not page.locator(".pair").first.is_visible()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1600])
def test_page_fits_the_screen_and_its_text_has_contrast(
    run: Run, browser: sync_api.Browser, tmp_path: Path, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto((run.folder / "report.html").as_uri())
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in (".answer", ".muted", "nav a", ".card p", "figcaption", "button", "#loss-text_1 text"):
        assert contrast(page, selector) >= 4.5, selector
    page.close()


def contrast(page: sync_api.Page, selector: str) -> float:
    """WCAG 2's contrast ratio of the first such element's text and the background it stands on."""
    colours = page.locator(selector).first.evaluate(
        """(element) => {
          const style = getComputedStyle(element);
          const text = element instanceof SVGElement ? style.fill : style.color;
          let under = element;
          while (getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)") under = under.parentElement;
          return [text, getComputedStyle(under).backgroundColor].map((c) => c.match(/[\\d.]+/g).slice(0, 3).map(Number));
        }"""
    )
    light, dark = sorted((luminance(colour) for colour in colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[float]) -> float:
    linear = [c / 255 / 12.92 if c <= 0.03928 * 255 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
