"""The page of a station in a real browser: a picture in, its verdict, its mask corrected by clicks, its label out."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import requests
from PIL import Image
from pycocotools import mask as rle

from sam_inspect.datasets import test_samples as read_samples


@pytest.fixture(scope="module")
def service(export: Path, serving: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with serving("--recipe", export, "--data", tmp_path_factory.mktemp("station")) as found:
        yield found


@pytest.fixture
def page(browser: Any, service: Any) -> Iterator[Any]:
    with on_screen(browser, service) as opened:
        yield opened


@contextmanager
def on_screen(browser: Any, service: Any) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 800})
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.goto(service.url)
    opened.wait_for_selector("#link.on")
    yield opened
    assert problems == []
    opened.close()


def parts(good: Path, fine: bool) -> list[Path]:
    return [path for path in sorted(good.iterdir()) if path.name.startswith("good") == fine]


def on_image(page: Any, x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
    """Where a pixel of the image lies on the screen."""
    box = page.locator("#canvas").bounding_box()
    scale = min(box["width"] / size[0], box["height"] / size[1])
    left, top = (box["width"] - size[0] * scale) / 2, (box["height"] - size[1] * scale) / 2
    return box["x"] + left + x * scale, box["y"] + top + y * scale


def upload(page: Any, image: Path) -> None:
    before = page.locator("#list li").count()
    page.set_input_files("#upload", str(image))
    page.wait_for_selector(f"#list li.fail[aria-current=true]:nth-last-child({before + 1})")
    assert page.inner_text("#verdict") == "FAIL"
    assert page.locator("#defects tr").count() >= 1


def correct_by_hand(page: Any, truth: np.ndarray[Any, Any]) -> None:
    """Takes SAM's masks away, and outlines the defect by a box and a click beside it."""
    (y0, x0), (y1, x1) = np.argwhere(truth).min(0), np.argwhere(truth).max(0)
    size = (truth.shape[1], truth.shape[0])
    page.keyboard.press("e")
    while page.locator("#defects tr").count():
        page.locator("#defects tr button").first.click()
    page.mouse.move(*on_image(page, x0 - 4, y0 - 4, size))
    page.mouse.down()
    page.mouse.move(*on_image(page, (x0 + x1) / 2, (y0 + y1) / 2, size))
    page.mouse.move(*on_image(page, x1 + 4, y1 + 4, size))
    page.mouse.up()
    page.wait_for_selector("#keep:not([disabled])")
    page.mouse.click(*on_image(page, max(2, x0 - 30), max(2, y0 - 30), size), button="right")
    page.wait_for_timeout(500)
    page.fill("#type", "dent")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Enter")
    assert page.inner_text("#defects tr td:nth-child(2)") == "dent"
    with page.expect_event("dialog") as asked:
        page.once("dialog", lambda dialog: dialog.dismiss())
        page.keyboard.press("j")
    assert "not saved" in asked.value.message
    assert page.inner_text("#defects tr td:nth-child(2)") == "dent", "another part took the mask away"
    page.keyboard.press("s")
    page.wait_for_selector("#review:has-text('masks by hand')")


def test_pictures_are_uploaded_judged_corrected_and_become_labels_to_tune_on(
    page: Any,
    service: Any,
    plant: Any,
    good: Path,
    tmp_path: Path,
    sam_inspect: Callable[..., Any],
) -> None:
    first, second = parts(good, fine=False)
    kind, stem = first.name.rpartition("_")[0], first.stem.rpartition("_")[2]
    truth = np.array(Image.open(plant.product / "ground_truth" / kind / f"{stem}_mask.png")) > 0
    upload(page, second)
    page.keyboard.press("s")
    page.keyboard.press("c")
    page.wait_for_selector("#review:has-text('Confirmed')")
    upload(page, first)
    correct_by_hand(page, truth)

    with page.expect_download() as download:
        page.click("#labels")
    zipfile.ZipFile(download.value.path()).extractall(tmp_path / "labels")
    samples = {sample.defect_type: sample for sample in read_samples(tmp_path / "labels")}
    assert set(samples) == {"dent", "defect"}
    drawn = np.array(Image.open(samples["dent"].mask_path)) > 0
    assert (drawn & truth).sum() > 0.4 * (drawn | truth).sum()

    page.keyboard.press("o")
    page.wait_for_selector("#review:has-text('Overruled')")
    assert "masks by hand" not in page.inner_text("#review"), "who changes their mind does not keep its masks"

    recipe = Path(shutil.copytree(plant.recipe, tmp_path / "recipe"))
    tuned = sam_inspect("finetune", tmp_path / "labels", "--recipe", recipe, "--epochs", "0.1")
    assert tuned.status == 0, tuned.err
    assert (recipe / "finetune" / "compare.html").is_file()


def test_results_of_the_line_appear_by_themselves_and_are_reviewed_by_keys(page: Any, service: Any, good: Path) -> None:
    for serial, image in enumerate(parts(good, fine=True)):
        answer = service.send(image, params={"serial": f"L-{serial}"})
        assert answer.status_code == 200
    page.wait_for_selector("#list li:first-child b:text('L-1')")
    page.wait_for_selector("#facts:has-text('L-1')")
    assert page.inner_text("#verdict") == "PASS"
    page.keyboard.press("c")
    page.wait_for_selector("#review:has-text('Confirmed')")
    page.keyboard.press("j")
    page.wait_for_selector("#facts:has-text('L-0')")
    page.keyboard.press("h")
    page.wait_for_selector("#heat-button[aria-pressed=true]")
    page.select_option("[name=reviewed]", "true")
    page.wait_for_selector("#list b:text('L-0')", state="detached")
    page.select_option("[name=reviewed]", "")
    page.select_option("[name=verdict]", "pass")
    page.wait_for_selector("#list li.fail", state="detached")


def test_what_one_screen_says_of_a_part_the_other_shows(page: Any, browser: Any, service: Any, good: Path) -> None:
    service.send(parts(good, fine=False)[0], params={"serial": "both"})
    with on_screen(browser, service) as other:
        for screen in (page, other):
            screen.click("#list li:has(b:text('both'))")
            screen.wait_for_selector("#facts:has-text('both')")
        other.click("#defects tr button")
        page.keyboard.press("o")
        other.wait_for_selector("#review:has-text('Overruled')")
        other.wait_for_selector("#list li:has(b:text('both')):has-text('overrule')")
        assert other.locator("#save").is_visible(), "masks that were not saved are gone"
        other.keyboard.press("s")
        page.wait_for_selector("#review:has-text('masks by hand')")


SLOW_WITHOUT_VERDICT = """() => {
  const prompt = window.fetch;
  window.fetch = async (path, options) => {
    const answer = await prompt(path, options);
    if (/inspections\\?/.test(path) && !/verdict=/.test(path)) {
      await new Promise((resolve) => setTimeout(resolve, 800));
      document.body.dataset.late = "come";
    }
    return answer;
  };
}"""


def test_a_late_answer_to_an_older_filter_does_not_undo_the_newer(page: Any, service: Any, good: Path) -> None:
    service.send(parts(good, fine=False)[0], params={"serial": "late"})
    page.wait_for_selector("#list li.fail")
    page.evaluate(SLOW_WITHOUT_VERDICT)
    page.select_option("[name=reviewed]", "false")
    page.select_option("[name=reviewed]", "")
    page.select_option("[name=verdict]", "pass")
    page.wait_for_selector("#list li.fail", state="detached")
    page.wait_for_selector("body[data-late=come]")
    page.wait_for_timeout(300)
    assert page.locator("#list li.fail").count() == 0


HELD = """() => {
  const prompt = window.fetch;
  window.fetch = async (path, options) => {
    const answer = await prompt(path, options);
    if (/inspections\\?/.test(path)) {
      document.body.dataset.held = "yes";
      while (!document.body.dataset.go) await new Promise((resolve) => setTimeout(resolve, 20));
    }
    return answer;
  };
}"""


def test_what_the_line_sends_while_the_list_is_read_is_not_lost(page: Any, service: Any, good: Path) -> None:
    page.evaluate(HELD)
    page.select_option("[name=reviewed]", "false")
    page.wait_for_selector("body[data-held=yes]")
    service.send(parts(good, fine=False)[0], params={"serial": "meanwhile"})
    page.wait_for_selector("#list b:text('meanwhile')")
    page.evaluate("document.body.dataset.go = 'yes'")
    page.wait_for_timeout(300)
    assert page.locator("#list b:text('meanwhile')").count() == 1


COLOURED = """async (mask) => {
  const { coloured } = await import("./page/masks.js");
  const { x, y, width, height, area, paint } = coloured(mask, [1, 2, 3]);
  const { data } = paint.getContext("2d").getImageData(0, 0, width, height);
  return { x, y, width, height, area, on: [...data].filter((_, place) => place % 4 === 3).map((alpha) => alpha > 0) };
}"""


@pytest.mark.parametrize("place", [np.s_[3:9, 5:6], np.s_[:, 8:30], np.s_[2:3, 4:40], np.s_[0:0, 0:0], np.s_[:, :]])
def test_a_mask_is_painted_where_it_is_and_takes_no_more_room_than_its_box(page: Any, place: Any) -> None:
    mask = np.zeros((20, 40), np.uint8)
    mask[place] = np.random.default_rng(0).random(mask[place].shape) < 0.7
    packed = rle.encode(np.asfortranarray(mask))
    found = page.evaluate(COLOURED, {"size": packed["size"], "counts": packed["counts"].decode()})
    x, y, width, height = cv2.boundingRect(mask)
    assert found["area"] == mask.sum()
    assert (found["width"], found["height"]) == (max(width, 1), max(height, 1))
    assert found["on"] == mask[y : y + max(height, 1), x : x + max(width, 1)].astype(bool).ravel().tolist()
    assert (found["x"], found["y"]) == (x, y)


def test_dark_and_narrow(page: Any, good: Path) -> None:
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.set_viewport_size({"width": 820, "height": 1180})
    assert page.evaluate("document.documentElement.scrollWidth") <= 820
    page.keyboard.press("?")
    page.wait_for_selector("#help[open]")


def test_a_page_that_needs_a_key_asks_for_it(
    browser: Any, export: Path, serving: Callable[..., Any], tmp_path: Path, sam_inspect: Callable[..., Any]
) -> None:
    ring = tmp_path / "keys.json"
    secret = sam_inspect("keys", "add", "page", "--keys", ring).out.strip()
    with serving("--recipe", export, "--data", tmp_path, "--keys", ring) as service:
        opened = browser.new_page()
        opened.goto(service.url)
        opened.wait_for_selector("#key-dialog[open]")
        opened.fill("#key", secret)
        opened.keyboard.press("Enter")
        opened.wait_for_selector("#link.on")
        assert requests.get(f"{service.url}/v1/recipes", timeout=10).status_code == 401
        opened.close()
