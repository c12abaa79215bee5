"""The report page as a person at the line uses it, in a real headless Chromium."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from sam_inspect import masks
from sam_inspect.records import Defect, Inspection
from sam_inspect.report import PictureWriter, output_names, write_page
from sam_inspect.report.page import script_json, svg_path

HW = (60, 90)
THRESHOLD = 1.0
EVIL = "</script><img src=x onerror=window.broken=1>.png"


Boxes = tuple[tuple[int, int, int, int], ...]


def part(image: str, score: float, boxes: Boxes = (), label: str | None = None) -> Inspection:
    """One inspected part with a heatmap; it fails where it has boxes."""
    defects = []
    for x0, y0, x1, y1 in boxes:
        mask = masks.filled_box((x0, y0, x1, y1))
        defects.append(Defect(mask, score, "sam", mask.area_px, float(x1 - x0), mask.area_px * 0.01, label))
    heat = np.full((6, 9), 0.2, np.float32)
    heat[3, 4] = score
    timings = {"read": 5.0, "localize": 15.0, "segment": 20.0 if boxes else 0.0}
    verdict = "fail" if boxes else "pass"
    return Inspection(image, verdict, score, THRESHOLD, tuple(defects), HW, None, timings, heat)


def a_shift() -> list[Inspection]:
    """A night's parts: two kinds of defects, good ones, one that could not be read, one with an odd name."""
    return [
        part("line/crack/03.png", 1.4, ((10, 10, 60, 14),), "crack"),
        part("line/crack/10.png", 2.5, ((5, 5, 25, 25), (40, 20, 44, 30)), "crack"),
        part("line/stain/01.png", 1.2, ((20, 20, 60, 50),), "stain"),
        part("line/good/01.png", 0.4),
        part("line/good/02.png", 0.6),
        part(f"line/good/{EVIL}", 0.5),
        Inspection("line/good/cut.png", "error", error="line/good/cut.png: ends in the middle; copy it again"),
    ]


def a_report(out: Path, inspections: list[Inspection], **options: Any) -> Path:
    names = output_names([inspection.image for inspection in inspections])
    writer = PictureWriter(out, {"report", "overlays", "masks"}, names)
    image = np.random.default_rng(0).integers(0, 256, (*HW, 3), np.uint8)
    for inspection in inspections:
        writer.write(image, inspection)
    return write_page(out, inspections, names=names, **options)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scores = np.random.default_rng(0).normal(0.5, 0.1, 80).astype(np.float32)
    return a_report(
        tmp_path_factory.mktemp("out"),
        a_shift(),
        calibration_scores=scores,
        title="Night <shift>",
        recipe_name="bottle",
    )


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; what it printed as an error fails the test."""
    opened: list[tuple[Any, list[str]]] = []

    def open_page(file: Path, address: str = "", **options: Any) -> Any:
        page = browser.new_page(viewport={"width": 1280, "height": 800}, **options)
        told: list[str] = []
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
        page.on(
            "request", lambda request: None if request.url.startswith(("file:", "data:")) else told.append(request.url)
        )
        page.goto(file.as_uri() + address)
        opened.append((page, told))
        return page

    yield open_page
    for page, told in opened:
        page.close()
        assert told == []


def until(page: Any, true: str, seconds: float = 10) -> None:
    """Waits for a condition of the page. Playwright's own waiting is what our policy forbids: eval."""
    end = time.monotonic() + seconds
    while not page.evaluate(true):
        assert time.monotonic() < end, f"never true: {true}"
        page.wait_for_timeout(20)


def cards(page: Any) -> list[str]:
    return page.eval_on_selector_all("#list article .title b", "all => all.map(b => b.textContent)")


def status(page: Any) -> str:
    return page.inner_text("#shown")


# ---- what is on it --------------------------------------------------------------------------------------------------


def test_the_head_counts_the_shift(report: Path, visit: Any) -> None:
    page = visit(report)
    text = page.inner_text("header")
    assert page.title() == "Night <shift>" and "Night <shift>" in text
    facts = dict(
        zip(page.locator("#counts dt").all_inner_texts(), page.locator("#counts dd").all_inner_texts(), strict=True)
    )
    assert facts["Fail"].split() == ["3", "50.0", "%", "fail", "rate"]
    assert (facts["Pass"], facts["Error"], facts["Images"], facts["Threshold"]) == ("3", "1", "7", "1")
    assert facts["Time an image"].split() == ["30", "ms", "33.3", "a", "second"]
    assert "bottle" in text and "80 good parts" in text


def test_each_image_shows_its_three_pictures_and_its_defects(report: Path, visit: Any) -> None:
    page = visit(report)
    worst = page.locator("#list article").first
    worst.locator("img.photo").first.scroll_into_view_if_needed()
    until(page, "document.querySelector('#list article img.photo').naturalWidth > 0")
    assert worst.locator(".pane").count() == 3
    assert worst.locator("svg path.outline.sam").count() == 2
    assert [image.get_attribute("alt") for image in worst.locator("img.photo").all()] == [
        "10.png: original",
        "10.png: heatmap",
        "10.png: outlines",
    ]
    assert "FAIL" in worst.inner_text() and "2.5" in worst.inner_text()
    rows = [row.split() for row in worst.locator("tbody tr").all_inner_texts()]
    assert rows[0] == ["1", "400", "4", "20", "2.5", "sam", "crack", "5,", "5,", "25,", "25"]
    assert len(rows) == 2


def test_an_unreadable_image_shows_its_remedy(report: Path, visit: Any) -> None:
    page = visit(report, "#verdict=error")
    assert cards(page) == ["cut.png"]
    assert "ends in the middle; copy it again" in page.inner_text("#list")


def test_a_heatmap_lies_exactly_over_its_image(report: Path, visit: Any) -> None:
    page = visit(report)
    boxes = page.evaluate(
        "[...document.querySelectorAll('#list article .pane:nth-child(2) .pic')[0].children].map(e => {"
        "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height].map(Math.round) })"
    )
    assert len(boxes) == 2 and boxes[0] == boxes[1]
    assert abs(boxes[0][2] / boxes[0][3] - 90 / 60) < 0.02


def test_the_histogram_marks_threshold_and_good_parts(report: Path, visit: Any) -> None:
    page = visit(report)
    bars = {kind: page.locator(f"#histogram rect.{kind}").count() for kind in ("fail", "pass", "good")}
    assert bars["fail"] == 3 and bars["pass"] >= 2 and bars["good"] > 5
    line = float(page.get_attribute("#histogram line.threshold", "x1"))
    below = [float(bar.get_attribute("x")) for bar in page.locator("#histogram rect.pass").all()]
    above = [float(bar.get_attribute("x")) for bar in page.locator("#histogram rect.fail").all()]
    assert max(below) < line < min(above)
    assert page.text_content("#histogram text.limit") == "threshold 1"


def test_metrics_of_an_evaluation_stand_in_tables(tmp_path: Path, visit: Any) -> None:
    metrics = {
        "image": {"auroc": 0.9871, "ap": 0.5, "f1_max": None},
        "pixel": {"auroc": 0.95, "au_pro_30": 0.93},
        "masks": {"heatmap": {"mean_iou": 0.41}, "refined": {"mean_iou": 0.62}},
        "per_defect": {"broken_<b>": {"image": {"auroc": 0.75}, "masks": {"refined": {"mean_iou": 0.25}}}},
        "count": {"good": 3},
        "seconds": {"total": 1.0},
    }
    page = visit(a_report(tmp_path, a_shift(), metrics=metrics))
    assert "0.987" in page.inner_text("summary") and "0.620" in page.inner_text("summary")
    page.click("summary")
    tables = page.inner_text(".tables")
    assert "mean iou" in tables and "broken <b>" in tables and "0.250" in tables and "–" in tables


# ---- filter, sort, search -------------------------------------------------------------------------------------------


def test_verdict_and_type_filters_work_together(report: Path, visit: Any) -> None:
    page = visit(report)
    page.click("[data-verdict=fail]")
    assert cards(page) == ["10.png", "03.png", "01.png"] and status(page) == "3 of 7 images"
    page.select_option("#type", "folder:crack")
    assert cards(page) == ["10.png", "03.png"]
    assert [button.split() for button in page.locator("#verdicts button").all_inner_texts()] == [
        ["All", "2"],
        ["Fail", "2"],
        ["Pass", "0"],
        ["Error", "0"],
    ]
    page.select_option("#type", "defect:stain")
    assert cards(page) == ["01.png"]
    page.click("[data-verdict=pass]")
    assert cards(page) == [] and page.is_visible("#none")
    page.click("#reset")
    assert status(page) == "7 images"


def test_an_address_that_is_out_of_date_shows_all(report: Path, visit: Any) -> None:
    page = visit(report, "#type=folder:gone&sort=constructor")
    assert status(page) == "7 images"
    assert (page.input_value("#type"), page.input_value("#sort")) == ("", "score")


def test_sorting_by_score_area_and_name(report: Path, visit: Any) -> None:
    page = visit(report, "#verdict=fail")
    assert cards(page) == ["10.png", "03.png", "01.png"]
    page.click("#direction")
    assert cards(page) == ["01.png", "03.png", "10.png"]
    page.select_option("#sort", "area")
    assert cards(page) == ["01.png", "10.png", "03.png"]
    page.select_option("#sort", "name")
    assert cards(page) == ["03.png", "10.png", "01.png"]


def test_search_finds_by_path(report: Path, visit: Any) -> None:
    page = visit(report)
    page.keyboard.press("/")
    page.keyboard.type("STAIN")
    assert cards(page) == ["01.png"]
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    assert page.input_value("#search") == "STAIN", "keys act on the list again, not on the field"


def test_dragging_over_the_histogram_filters_by_score(report: Path, visit: Any) -> None:
    page = visit(report)
    box = page.locator("#histogram svg").bounding_box()
    line = box["x"] + float(page.get_attribute("#histogram line.threshold", "x1"))
    page.mouse.move(line, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"], box["y"] + 60, steps=4)
    page.mouse.up()
    assert cards(page) == ["10.png", "03.png", "01.png"]
    page.click("#range")
    assert status(page) == "7 images"


def test_the_address_keeps_the_view(report: Path, visit: Any) -> None:
    page = visit(report)
    page.click("[data-verdict=pass]")
    page.select_option("#sort", "name")
    page.keyboard.press("g")
    page.reload()
    assert page.get_attribute("[data-verdict=pass]", "aria-pressed") == "true"
    assert page.input_value("#sort") == "name"
    assert page.get_attribute("[data-layout=grid]", "aria-pressed") == "true"
    visit(report, "#verdict=nonsense&sort=x&layout=&type=folder:gone")


# ---- keys and the enlarged image ------------------------------------------------------------------------------------


def test_the_keyboard_alone_is_enough(report: Path, visit: Any) -> None:
    page = visit(report)
    page.keyboard.press("f")
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused) == "03.png, fail, score 1.4, 1 defect"
    assert page.locator("article.current").count() == 1
    page.keyboard.press("e")
    assert cards(page) == ["cut.png"]
    page.keyboard.press("p")
    assert len(cards(page)) == 3
    page.keyboard.press("a")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")


def test_layers_switch_off_and_on(report: Path, visit: Any) -> None:
    page = visit(report)
    first = page.locator("#list article").first
    page.keyboard.press("h")
    assert first.locator(".pane").count() == 2
    page.keyboard.press("m")
    assert first.locator(".pane").count() == 1
    assert page.get_attribute(".toolbar [data-toggle=mask]", "aria-pressed") == "false"
    page.keyboard.press("g")
    assert first.locator(".pane").count() == 1 and first.locator("svg").count() == 1
    page.keyboard.press("h")
    assert first.locator("img").count() == 2


def test_an_image_enlarged(report: Path, visit: Any) -> None:
    page = visit(report)
    page.locator("#list article").first.click()
    assert page.is_visible("#detail") and page.inner_text("#detail-file") == "10.png"
    until(page, "document.querySelector('.stage img.photo').naturalWidth === 90")
    assert page.locator(".stage .tag").all_inner_texts() == ["1 crack 2.5", "2 crack 2.5"]
    before = page.locator(".stage .pic").bounding_box()
    page.keyboard.press("2")
    after = page.locator(".stage .pic").bounding_box()
    stage = page.locator(".stage").bounding_box()
    assert after["width"] > 2 * before["width"]
    x = after["x"] + 42 / 90 * after["width"]
    assert abs(x - (stage["x"] + stage["width"] / 2)) < 3, "the defect is in the middle"
    page.keyboard.press("0")
    assert page.locator(".stage .pic").bounding_box() == before
    page.keyboard.press("c")
    assert page.locator(".stage").count() == 3
    page.keyboard.press("j")
    assert page.inner_text("#detail-file") == "03.png"
    assert "threshold 1" in page.inner_text("#side")
    page.keyboard.press("Escape")
    assert page.locator("article.current .title b").inner_text() == "03.png"


def test_the_wheel_zooms_where_it_points_and_a_drag_moves(report: Path, visit: Any) -> None:
    page = visit(report)
    page.keyboard.press("Enter")
    stage = page.locator(".stage").bounding_box()
    before = page.locator(".stage .pic").bounding_box()
    x, y = stage["x"] + stage["width"] * 0.3, stage["y"] + stage["height"] / 2
    share = (x - before["x"]) / before["width"]
    page.mouse.move(x, y)
    page.mouse.wheel(0, -800)
    until(page, "document.getElementById('zoom').textContent !== 'fit'")
    after = page.locator(".stage .pic").bounding_box()
    assert after["width"] > 3 * before["width"]
    assert abs((x - after["x"]) / after["width"] - share) < 0.02
    page.mouse.down()
    page.mouse.move(x - 50, y - 20, steps=3)
    page.mouse.up()
    moved = page.locator(".stage .pic").bounding_box()
    assert abs(moved["x"] - (after["x"] - 50)) < 2 and abs(moved["y"] - (after["y"] - 20)) < 2


def test_an_error_can_be_enlarged_too(report: Path, visit: Any) -> None:
    page = visit(report, "#verdict=error")
    page.keyboard.press("Enter")
    assert "ends in the middle" in page.inner_text("#stages-large")
    page.keyboard.press("1")
    page.keyboard.press("+")
    page.keyboard.press("f")
    assert page.inner_text("#detail-file") == "10.png"


# ---- light, dark, narrow, hostile, long ------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "turned"), [("light", "dark"), ("dark", "light")])
def test_light_and_dark(report: Path, visit: Any, scheme: str, turned: str) -> None:
    page = visit(report, color_scheme=scheme)
    assert page.get_attribute("html", "data-theme") == scheme
    page.keyboard.press("t")
    assert page.get_attribute("html", "data-theme") == turned
    page.reload()
    until(page, f"document.documentElement.dataset.theme === '{turned}'")


CONTRAST = """() => {
  const channel = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = (c) => { const [r, g, b] = c.map(channel); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll("header *, .toolbar *, #list *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.checkVisibility() || e.closest("svg, .verdict, option, small")) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color).slice(0, 3)), light(ground(e).slice(0, 3))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${e.textContent} ${ratio.toFixed(2)}`);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks(report: Path, visit: Any, scheme: str) -> None:
    page = visit(report, color_scheme=scheme)
    assert page.evaluate(CONTRAST) == []


def test_a_phone_needs_no_sideways_scrolling(report: Path, visit: Any) -> None:
    page = visit(report)
    page.set_viewport_size({"width": 390, "height": 800})
    until(page, "document.querySelector('article.narrow')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_hostile_name_is_only_text(report: Path, visit: Any) -> None:
    page = visit(report, "#verdict=pass")
    assert EVIL.split("/")[-1] in cards(page)
    page.click("#list article >> nth=0")
    assert page.evaluate("window.broken") is None
    text = script_json([EVIL, "<!--", "&"])
    assert not set(text) & set("<>&")


def test_a_name_with_odd_characters_still_finds_its_pictures(tmp_path: Path, visit: Any) -> None:
    page = visit(a_report(tmp_path, [part("line/Größe 100% #1?/Bild é&.png", 0.3)]))
    until(page, "document.querySelector('#list img.photo').naturalWidth > 0")


def test_two_thousand_images_keep_few_cards_in_the_document(tmp_path: Path, visit: Any) -> None:
    shift = [
        part(
            f"line/{'bad' if n % 4 == 0 else 'good'}/{n:04}.png", 0.2 + n / 1000, ((1, 1, 9, 9),) if n % 4 == 0 else ()
        )
        for n in range(2000)
    ]
    shift[1234] = Inspection("line/bad/1234.png", "error", error="x: is cut; copy it")
    page = visit(a_report(tmp_path, shift))
    assert status(page) == "2,000 images"
    assert page.locator("#list article").count() < 20
    page.keyboard.press("End")
    assert page.locator("article.current").get_attribute("aria-posinset") == "2000"
    assert page.locator("article.current").is_visible()
    assert page.locator("#list article").count() < 20
    page.keyboard.press("f")
    assert status(page) == "500 of 2,000 images"
    page.keyboard.press("g")
    page.evaluate("scrollTo(0, 3000)")
    until(page, "document.querySelector('#list article').getAttribute('aria-posinset') > 10")
    assert page.locator("#list article").count() < 80
    until(page, "[...document.querySelectorAll('#list img.photo')].some(i => i.naturalWidth > 0)")
    page.fill("#search", "1996")
    assert cards(page) == ["1996.png"]


def test_without_pictures_and_without_scores_the_page_still_says_all(tmp_path: Path, visit: Any) -> None:
    given = part("p/1.png", 1.0, ((1, 2, 30, 40),))
    boxes = Inspection("p/2.png", "fail", None, None, given.defects, HW)
    page = visit(write_page(tmp_path, [boxes]))
    assert cards(page) == ["2.png"] and "no picture saved" in page.inner_text("#list")
    assert not page.is_visible("#histogram")
    page.keyboard.press("Enter")
    page.keyboard.press("1")
    page.keyboard.press("Escape")
    empty = visit(write_page(tmp_path, []))
    assert status(empty) == "0 images" and empty.is_visible("#none")


def test_an_outline_follows_the_mask_and_its_hole() -> None:
    ring = np.zeros((20, 20), bool)
    ring[2:18, 2:18] = True
    ring[8:12, 8:12] = False
    mask = masks.from_full(ring)
    assert mask is not None
    path = svg_path(mask, 20)
    assert path.count("M") == path.count("Z") == 2
    assert path.startswith("M2 2L2 17L17 17L17 2Z")
    assert svg_path(masks.filled_box((5, 6, 6, 7)), 20) == "M5 6Z"


def test_a_small_mask_of_a_large_image_keeps_its_shape() -> None:
    y, x = np.mgrid[0:31, 0:31]
    disc = masks.from_full(np.hypot(x - 15, y - 15) < 15)
    assert disc is not None
    corners = np.array(re.findall(r"(\d+) (\d+)", svg_path(disc, 30_000)), np.int32)
    assert cv2.contourArea(corners) > 0.9 * disc.area_px
