"""What many tests need: where the shared pictures lie, pretrained weights, and small drawn plates."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from sam_inspect.errors import WeightsMissing
from sam_inspect.weights import LoadedWeights, load_weights

# No test depends on how busy the machine is.
settings.register_profile("any_speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_speed")

# Without these Chromium asks for its maker's hosts at every start, and waits where it cannot reach them.
BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The stories wait for a product and its recipe: the first file makes them while others do what needs neither."""
    first, stories = items[0].path if items else None, Path(__file__).parent / "stories"
    items.sort(key=lambda item: item.path.parent == stories and item.path != first)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real pictures beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real pictures here: {SHARED / 'data'} is absent")
    return SHARED


@pytest.fixture(scope="session")
def weights() -> Callable[[str], LoadedWeights]:
    """Known weights by name, out of the user's cache; a test that needs absent ones is skipped."""

    def known(name: str) -> LoadedWeights:
        try:
            return load_weights(name)
        except WeightsMissing as error:
            pytest.skip(str(error))

    return known


@pytest.fixture(scope="session")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MVTec layout of plates, 96 x 128 pixels: six good to learn, two good and four with a hole to test."""
    root = tmp_path_factory.mktemp("plates")
    for number in range(12):
        rng = np.random.default_rng(number)
        pixels, mask = rng.normal(140, 6, (96, 128, 3)), np.zeros((96, 128), np.uint8)
        if number >= 8:
            y, x = (int(v) for v in rng.integers(10, 60, 2))
            mask[y : y + 18, x : x + 24] = 255
            pixels[mask > 0] = 25
        part = "train/good" if number < 6 else "test/good" if number < 8 else "test/hole"
        for folder in (root / part, root / "ground_truth/hole"):
            folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / part / f"{number:03d}.png")
        if number >= 8:
            Image.fromarray(mask).save(root / "ground_truth/hole" / f"{number:03d}_mask.png")
    return root


@pytest.fixture(scope="session")
def good_plates(plates: Path) -> list[Path]:
    """Those to learn from."""
    return sorted((plates / "train/good").iterdir())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real headless Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine: the pages are not looked at")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=BROWSER_FLAGS)
        yield opened
        opened.close()
