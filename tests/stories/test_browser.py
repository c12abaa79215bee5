"""The SAM of an export in a browser alone: clicks on a picture, and the mask that sam_inspect's own decoder draws."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime import InferenceSession

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/browser"
HW = (384, 512)
ON, BESIDE, BOX = (200, 150), (40, 340), ((140, 90), (260, 210))
Points = list[tuple[tuple[int, int], int]]


@pytest.fixture(scope="module")
def site(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The example with its package and an export, behind a static server: its address."""
    if (npm := shutil.which("npm")) is None:
        pytest.skip("no npm on this machine: onnxruntime-web cannot be had")
    folder = tmp_path_factory.mktemp("site")
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    install = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0"]
    try:
        subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot install onnxruntime-web here: {str(error.stderr).strip()[-300:]}")
    (folder / "export").symlink_to(export)
    serve = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split("(")[1].split(")")[0]
        server.terminate()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A dark disc on a noisy plate, where the clicks are."""
    pixels = np.random.default_rng(0).normal(150, 6, (*HW, 1)).repeat(3, 2)
    cv2.circle(pixels, ON, 45, (50, 60, 70), -1)
    cv2.imwrite(str(tmp_path / "plate.png"), pixels.clip(0, 255).astype(np.uint8))
    return tmp_path / "plate.png"


def own_mask(export: Path, picture: Path, points: Points) -> NDArray[np.bool_]:
    """The decoder's, of points and what each means."""
    recipe = json.loads((export / "recipe.json").read_text())
    encoder, decoder = (InferenceSession(export / recipe[name]["file"]) for name in ("encoder", "decoder"))
    side = recipe["encoder"]["side_px"]
    assert side == HW[1]
    view = np.tile(np.array(recipe["encoder"]["pad_with"], np.float32), (side, side, 1))
    view[: HW[0]] = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
    (features,) = encoder.run(None, {"input_0": view.transpose(2, 0, 1)[None]})
    places, labels = (np.array([each], np.float32) for each in zip(*points, strict=True))
    logits, iou = decoder.run(None, {"input_0": features, "input_1": places, "input_2": labels})
    one_click = [on for _, on in points] == [1, -1]
    place = 1 + int(iou[0, 1:].argmax()) if one_click else 0
    return cv2.resize(logits[0, place], (side, side))[: HW[0]] > 0


def drawn_mask(page: Any, picture: Path) -> NDArray[np.bool_]:
    """What is reddened on the canvas."""
    encoded = page.evaluate("document.getElementById('canvas').toDataURL('image/png').split(',')[1]")
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)
    return shown[..., 2].astype(int) > cv2.imread(str(picture))[..., 2].astype(int) + 20


def on_screen(page: Any, place: tuple[int, int]) -> tuple[float, float]:
    box = page.locator("#canvas").bounding_box()
    return box["x"] + place[0] * box["width"] / HW[1], box["y"] + place[1] * box["height"] / HW[0]


def assert_drawn(page: Any, export: Path, picture: Path, points: Points) -> None:
    """The mask on the canvas is the decoder's, but for the clicks' own dots and the box's line."""
    page.wait_for_selector("#said:has-text('pixels')", timeout=60_000)
    expected, drawn = own_mask(export, picture, points), drawn_mask(page, picture)
    for mask in (expected, drawn):
        for x, y in (ON, BESIDE):
            mask[y - 5 : y + 6, x - 5 : x + 6] = False
        cv2.rectangle(mask.view(np.uint8), *BOX, 0, 5)
    assert expected.sum() > 500
    assert (drawn & expected).sum() > 0.99 * (drawn | expected).sum()


def test_clicks_and_a_box_in_a_browser_draw_the_mask_that_the_decoder_draws_here(
    browser: Any, site: str, export: Path, picture: Path
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(site)
    page.wait_for_selector("#picture:not([disabled])", timeout=60_000)
    page.set_input_files("#picture", str(picture))
    page.wait_for_selector("#said:has-text('Encoding: ')", timeout=60_000)
    page.mouse.click(*on_screen(page, ON))
    assert_drawn(page, export, picture, [(ON, 1), ((0, 0), -1)])
    page.mouse.click(*on_screen(page, BESIDE), button="right")
    assert_drawn(page, export, picture, [(ON, 1), (BESIDE, 0), ((0, 0), -1)])
    page.click("#again")
    page.mouse.move(*on_screen(page, BOX[0]))
    page.mouse.down()
    page.mouse.move(*on_screen(page, BOX[1]))
    page.mouse.up()
    assert_drawn(page, export, picture, [(BOX[0], 2), (BOX[1], 3)])
    assert problems == []
    page.goto(f"{site}?export=nowhere")
    page.wait_for_selector("#said:has-text('nowhere/recipe.json: 404')")
    page.close()
