"""The page to watch in a browser: what it shows, and what keyboard, pointer and touch do.

The browser is Chromium or Chrome, found on the PATH, or named by the variable GFLOW_BROWSER.
"""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import gflow
from tests.helpers import kink_problems

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright, of the group test")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("GFLOW_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(
            f"no browser: none of {', '.join(NAMES)} is on the PATH; GFLOW_BROWSER names one"
        )
    with sync_api.sync_playwright() as driver:
        # Containers often forbid the sandbox. The only page is our own.
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def problem():
    return kink_problems.small_problem()


@pytest.fixture(scope="module")
def flow(problem):
    return kink_problems.watched_flow(problem)


@pytest.fixture(scope="module")
def explorer(problem, flow):
    risk, net = problem
    descents = {
        f"h = {h}": gflow.descend(risk, net, step_size=h, num_steps=round(12 / h))
        for h in (0.2, 0.1, 0.05)
    }
    return gflow.plots.explore({"flow": flow} | descents, risk.x, risk.y, critical_value=0.01)


@pytest.fixture(scope="module")
def path(explorer, tmp_path_factory) -> Path:
    return explorer.save(tmp_path_factory.mktemp("page") / "flow.html")


@pytest.fixture
def opened(browser, path):
    """A function that opens the page, in a window as it is asked for. At the end nothing was said
    on the console, no error was raised, and nothing was asked for but the page."""
    trouble, contexts = [], []

    def visit(page_path: Path = path, **options):
        size = {"width": 1200, "height": 900}
        context = browser.new_context(**{"viewport": size} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: trouble.append(request.url))
        page.goto(page_path.as_uri())
        page.wait_for_function("() => document.getElementById('now')?.textContent || frames.length")
        trouble.remove(page_path.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert trouble == []


def frame_drawn(page) -> None:
    """Waits until what was asked for is drawn."""
    page.evaluate("() => new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))")


def number(text: str) -> float:
    """A number as the page writes it, such as 3.2·10⁻⁵."""
    digits = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
    found = re.fullmatch(r"(?:(.*?)·)?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text)
    if found is None:
        return float(text.translate(digits))
    return float(found[1] or 1) * 10.0 ** int(found[2].translate(digits))


def time_shown(page) -> float:
    frame_drawn(page)
    text = page.text_content("#now")
    assert page.get_attribute("#time", "aria-valuetext") == text
    return number(text.removeprefix("t = "))


def cell(page, name: str, row: int = 0) -> float:
    return number(
        page.locator("#readout tbody tr").nth(row).locator(f"[data-name={name}]").text_content()
    )


def figure(page, title: str):
    """The drawing of a figure, scrolled into view, and where it is."""
    drawing = page.locator("figure", has_text=title).locator(".drawing").first
    drawing.scroll_into_view_if_needed()
    return drawing, drawing.bounding_box()


def test_keys_move_the_time_and_the_table_says_what_is_drawn(opened, flow):
    page = opened()
    ts = np.asarray(flow.ts)
    assert time_shown(page) == 0
    page.locator("#time").focus()
    for key, k in (
        ("ArrowRight", 1),
        ("PageUp", 11),
        ("ArrowDown", 10),
        ("End", 59),
        ("ArrowUp", 59),
    ):
        page.keyboard.press(key)
        assert time_shown(page) == pytest.approx(ts[k], rel=1e-3), key
        assert cell(page, "risk") == pytest.approx(float(flow.risk[k]), rel=1e-3)
        net = flow[k]
        places = np.unique((-net.b / net.w[:, 0]).round(9))
        assert cell(page, "breakpoints") == np.sum(np.abs(places) <= 1)
        assert cell(page, "kinks") == np.sum(np.asarray(flow.kinks.time) <= ts[k])
        assert cell(page, "sliding") == len(flow.kinks.sliding_at(ts[k]))
    page.keyboard.press("Home")
    assert time_shown(page) == 0
    # Away from the slider they do the same, unless they scroll.
    page.locator("#play").focus()
    page.keyboard.press("ArrowRight")
    assert time_shown(page) == pytest.approx(ts[1])
    page.keyboard.press("ArrowDown")
    assert time_shown(page) == pytest.approx(ts[1])


def test_the_space_key_plays_and_pauses(opened, flow):
    page = opened()
    page.locator("#time").focus()
    page.keyboard.press("Space")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    page.wait_for_function("() => Number(document.getElementById('time').value) >= 3")
    page.keyboard.press("Space")
    paused = time_shown(page)
    assert page.get_attribute("#play", "aria-label") == "Play" and paused > 0
    # From the end it begins anew, and at the end it stops.
    page.keyboard.press("End")
    page.locator("#play").click()
    page.wait_for_function("() => Number(document.getElementById('time').value) < 30")
    page.keyboard.press("End")
    assert time_shown(page) == pytest.approx(12)
    assert page.get_attribute("#play", "aria-label") == "Play"


def test_where_less_motion_is_wanted_it_plays_in_few_steps(opened):
    page = opened(reduced_motion="reduce")
    page.locator("#play").click()
    page.wait_for_function("() => Number(document.getElementById('time').value) > 0")
    assert page.evaluate("Number(document.getElementById('time').value)") == 3


def test_pointers_move_the_slider_and_drag_the_time_in_figures(opened, flow):
    page = opened()
    slider = page.locator("#time").bounding_box()
    page.mouse.click(slider["x"] + slider["width"] / 2, slider["y"] + slider["height"] / 2)
    assert time_shown(page) == pytest.approx(float(flow.ts[30]), rel=0.3)
    for title in ("Risk", "flow: kinks of the units"):
        _, box = figure(page, title)
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 48, middle)
        page.mouse.down()
        assert time_shown(page) <= 0.01
        # From the first to the last time, on a logarithmic axis, half of the way.
        page.mouse.move(box["x"] + 48 + (box["width"] - 64) / 2, middle, steps=3)
        assert time_shown(page) == pytest.approx((0.01 * 12) ** 0.5, rel=0.1)
        page.mouse.up()
        page.mouse.move(box["x"] + 60, middle)
        assert time_shown(page) == pytest.approx((0.01 * 12) ** 0.5, rel=0.1)


def test_fingers_drag_the_time_and_tap_kinks(opened, flow):
    page = opened(viewport={"width": 400, "height": 800}, has_touch=True)
    # Nothing is wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    # A finger that scrolls leaves the time as it is.
    drawing, box = figure(page, "Risk")
    down = {"pointerType": "touch", "pointerId": 7, "clientX": box["x"] + 200, "clientY": 300}
    drawing.evaluate(
        """(element, down) => {
            element.setPointerCapture = () => {};
            element.dispatchEvent(new PointerEvent("pointerdown", down));
            element.dispatchEvent(new PointerEvent("pointercancel", down));
        }""",
        down,
    )
    assert time_shown(page) == 0
    assert drawing.evaluate("e => getComputedStyle(e).touchAction") == "pan-y"
    page.touchscreen.tap(box["x"] + box["width"] - 16, box["y"] + box["height"] / 2)
    assert time_shown(page) == pytest.approx(12)


def test_kinks_are_told_one_by_one_and_under_the_pointer(opened, flow):
    page = opened()
    log = list(flow.kinks)

    def told(kink):
        return f"unit {kink.unit}, row {kink.datum}, t = {kink.time:.4g}: {kink.kind.label}"

    page.locator("#after").click()
    assert page.text_content("#event") == told(log[0])
    assert time_shown(page) == pytest.approx(log[0].time, rel=0.2)
    page.locator("#after").click()
    page.locator("#after").click()
    page.locator("#before").click()
    assert page.text_content("#event") == told(log[1])
    _, box = figure(page, "flow: kinks of the units")
    units = sorted({kink.unit for kink in log})
    low, high = units[0] - 0.7, units[-1] + 0.7
    kink = log[-1]
    left, width = box["x"] + 48, box["width"] - 64
    top, height = box["y"] + 20, box["height"] - 54
    along = np.log(kink.time / 0.01) / np.log(12 / 0.01)
    page.mouse.move(left + width * along, top + height * (high - kink.unit) / (high - low))
    assert page.text_content("#tip") == told(kink) and page.locator("#tip").is_visible()
    page.mouse.move(5, 5)
    assert not page.locator("#tip").is_visible()


def test_trajectories_are_shown_beside_one_another_as_chosen(opened):
    page = opened()
    shown = lambda: page.locator("figcaption:visible").all_text_contents()
    functions = [f"{label}: the function" for label in ("flow", "h = 0.2", "h = 0.1")]
    assert shown() == [*functions, "flow: kinks of the units", "Risk"]
    page.get_by_label("h = 0.05", exact=True).check()
    page.get_by_label("flow", exact=True).uncheck()
    frame_drawn(page)
    assert shown() == [f"h = {h}: the function" for h in (0.2, 0.1, 0.05)] + ["Risk"]
    # Canvases of figures that were not shown before have been drawn.
    drawn = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)"
    canvases = page.locator("figure:visible canvas").all()
    assert len(canvases) == 8 and all(canvas.evaluate(drawn) for canvas in canvases)


def test_colours_follow_the_scheme_of_the_system(opened):
    page = opened(color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    curve = "document.querySelectorAll('canvas')[1].toDataURL()"
    frame_drawn(page)
    dark, drawn = page.evaluate(background), page.evaluate(curve)
    page.emulate_media(color_scheme="light")
    frame_drawn(page)
    assert dark != page.evaluate(background) == "rgb(255, 255, 255)"
    assert page.evaluate(curve) != drawn


def test_in_a_notebook_two_pages_have_their_own_styles_and_times(opened, explorer, flow, tmp_path):
    other = gflow.plots.explore(flow, title="Another")
    style = "<style>* { color: red !important; font-size: 40px !important }</style>"
    outputs = "".join(f"<div>{page._repr_html_()}</div>" for page in (explorer, other))
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><meta charset=utf-8>{style}{outputs}", encoding="utf-8")
    page = opened(notebook)
    page.mouse.wheel(0, 3000)
    first, second = page.frames[1:]
    for frame in (first, second):
        frame.wait_for_function("() => document.getElementById('now').textContent")
    first.locator("#time").focus()
    page.keyboard.press("End")
    frame_drawn(first)
    assert first.text_content("#now") == "t = 12" and second.text_content("#now") == "t = 0"
    assert second.evaluate("getComputedStyle(document.body).fontSize") == "15px"
    # Each frame is as high as its page.
    for frame in (first, second):
        assert frame.evaluate("document.documentElement.scrollHeight <= innerHeight + 1")
