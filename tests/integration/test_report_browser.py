"""The report in a real browser: no errors, every width, and everything in reach of the keyboard."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from align.report.html import render
from align.report.html.serve import LivePage, server
from tests.unit.full_store import full
from tests.unit.stores import GOOD, made

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no browser: apt-get install chromium chromium-driver",
)
WIDTHS = (390, 1600)


EVIL = (
    "<script>hacked = 1</script><img src=x onerror='hacked = 1'><b onmouseover=\"hacked = 1\">&amp;"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of three rounds with everything that can happen, and a text that wants to be markup."""
    folder = tmp_path_factory.mktemp("browser")
    file = folder / "report.html"
    file.write_text(render(full(folder, EVIL)))
    return file


@contextmanager
def browser(width: int, *, dark: bool = False) -> Iterator[Any]:
    """Chromium without a window, cut off from every host but this one."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()


def requests(driver: Any) -> list[str]:
    """Addresses that the page asked for."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def open_all(driver: Any) -> None:
    driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_says_no_error(page: Path, width: int) -> None:
    with browser(width) as driver:
        driver.get(page.as_uri())
        open_all(driver)
        assert driver.get_log("browser") == []
        assert driver.execute_script(
            "return window.hacked === undefined && !document.scripts.length"
        )
        assert EVIL in driver.find_element("css selector", ".answer").get_property("textContent")
        assert [url for url in requests(driver) if not url.startswith(("file:", "data:"))] == []
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
        outside = driver.execute_script(
            "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .skip')"
            " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
        )
        assert outside == []
        charts = driver.execute_script(
            "return [...document.querySelectorAll('figure > svg')]"
            ".map(e => e.getBoundingClientRect().height)"
        )
        assert len(charts) > 10 and min(charts) > 80
        for part in (
            "answer",
            "scores",
            "retention",
            "gate",
            "time",
            "lineage",
            "rounds",
            "signals",
            "trail",
            "cost",
            "environment",
        ):
            assert driver.find_element("id", part).is_displayed()


@pytest.mark.parametrize(("width", "shown"), [(390, True), (1600, False)])
def test_a_matrix_that_does_not_fit_says_so(page: Path, width: int, shown: bool) -> None:
    with browser(width) as driver:
        driver.get(page.as_uri())
        scroll = "document.querySelector('#scores .scroll')"
        wider = driver.execute_script(f"return {scroll}.scrollWidth > {scroll}.clientWidth")
        hint = driver.find_element("css selector", "#scores .sideways")
        assert (wider, hint.is_displayed()) == (shown, shown)
        driver.execute_script(f"{scroll}.scrollLeft = 1e6")
        assert (driver.execute_script(f"return {scroll}.scrollLeft") > 0) == shown
        head = driver.find_element("css selector", "#scores tbody th")
        assert head.rect["x"] >= 0  # The names of rounds stay in sight.


def test_marks_of_the_gate_lie_in_their_cells(page: Path) -> None:
    with browser(390) as driver:
        driver.get(page.as_uri())
        outside = driver.execute_script(
            "return [...document.querySelectorAll('#gate td.drawn')].filter(cell => {"
            " const c = cell.getBoundingClientRect();"
            " return [...cell.querySelectorAll('circle, .miss rect')].some(mark => {"
            " const m = mark.getBoundingClientRect();"
            " return m.left < c.left - 1 || m.right > c.right + 1 || m.top < c.top - 1"
            " || m.bottom > c.bottom + 1 }) }).map(cell => cell.outerHTML.slice(0, 200))"
        )
        assert outside == []


def test_everything_is_reached_by_keyboard_and_shows_it(page: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    with browser(1600) as driver:
        driver.get(page.as_uri())

        def press(key: str) -> dict[str, Any]:
            ActionChains(driver).send_keys(key).perform()
            found: dict[str, Any] = driver.execute_script(
                "const e = document.activeElement, s = getComputedStyle(e), b = e.getBoundingClientRect();"
                "return {tag: e.tagName, text: e.textContent.trim().slice(0, 40), href: e.hash || '',"
                " label: e.getAttribute('aria-label'), outline: s.outlineStyle, left: b.left}"
            )
            return found

        first = press(Keys.TAB)
        assert (first["tag"], first["href"]) == ("A", "#main")
        assert first["left"] >= 0 and first["outline"] == "solid"
        assert press(Keys.ENTER)["tag"] == "MAIN"
        driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
        driver.get(page.as_uri())
        open_all(driver)
        reached = []
        while (at := press(Keys.TAB))["tag"] != "BODY" and len(reached) < 200:
            assert at["outline"] == "solid", at
            reached.append(at)
        number = driver.execute_script(
            "return document.querySelectorAll('a, summary, [tabindex=\"0\"]').length"
        )
        assert len(reached) == number
        assert all(at["label"] for at in reached if at["tag"] == "DIV")
        summary = driver.find_element("css selector", "details.round summary")
        driver.execute_script("arguments[0].focus()", summary)
        press(Keys.ENTER)
        assert not driver.find_element("css selector", "details.round").get_property("open")


CONTRAST = """
const luminance = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v / 12.92
  : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
const rgb = (css, under) => { canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
  canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3) };
const paper = getComputedStyle(document.body).backgroundColor;
const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (c !== 'rgba(0, 0, 0, 0)') return c } return paper };
return [...document.querySelectorAll('main *')].filter(e => e.checkVisibility() && !e.closest('svg, meter')
  && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).map(e => {
  const [a, b] = [rgb(getComputedStyle(e).color, paper), rgb(behind(e), paper)].map(luminance);
  return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.outerHTML.slice(0, 90)]
}).sort((x, y) => x[0] - y[0])[0]
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_in_light_and_dark(page: Path, dark: bool) -> None:
    """WCAG 2.2, 1.4.3: contrast of at least 4.5 to 1."""
    with browser(1600, dark=dark) as driver:
        driver.get(page.as_uri())
        open_all(driver)
        paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") is not dark
        ratio, where = driver.execute_script(CONTRAST)
        assert ratio >= 4.5, where


def test_print_shows_closed_rounds_too(page: Path) -> None:
    with browser(1600) as driver:
        driver.get(page.as_uri())
        driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = false)")
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        seen = "return document.querySelector('details.round table').checkVisibility()"
        assert driver.execute_script(seen)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen"})
        assert not driver.execute_script(seen)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert not driver.find_element("css selector", "nav").is_displayed()


def test_a_live_page_loads_itself_again(tmp_path: Path) -> None:
    from selenium.webdriver.support.expected_conditions import staleness_of
    from selenium.webdriver.support.ui import WebDriverWait

    store = made(tmp_path, GOOD)
    with server(LivePage(store.config, 1), 0, 1) as running, browser(1600) as driver:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            driver.get(f"http://127.0.0.1:{running.server_port}/")
            assert driver.find_element("css selector", "h1").text == "small"
            old = driver.find_element("css selector", "html")
            WebDriverWait(driver, 30).until(staleness_of(old))
            assert driver.find_element("css selector", "h1").text == "small"
            assert [e for e in driver.get_log("browser") if e["level"] == "SEVERE"] == []
        finally:
            driver.quit()
            running.shutdown()
            thread.join()
