"""Somebody else's localizer, as the docs show it, installed into an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_inspect.segment.sam import MobileSam
from sam_inspect.testing import check_localizer, check_segmenter

DOCS = Path(__file__).resolve().parents[2] / "docs" / "plugins.md"
CHECK = """
from pathlib import Path
from plant_localizers import MeanImage
from sam_inspect.testing import check_localizer
check_localizer(MeanImage, sorted(Path("good").glob("*.png")))
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good plates, and an environment with the docs' package beside all that is installed here."""
    root = tmp_path_factory.mktemp("plant")
    (root / "good").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).normal(140, 6, (96, 128, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / "good" / f"{number}.png")
    package = root / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text(blocks("toml")[0])
    (package / "plant_localizers.py").write_text(blocks("python")[0])
    venv.create(root / "env", with_pip=True)
    here = sysconfig.get_paths()["purelib"]
    own = sysconfig.get_path("purelib", vars={"base": str(root / "env")})
    Path(own, "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    python(root, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", str(package))
    return root


def python(root: Path, *words: str) -> str:
    exe = root / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(exe), *words], cwd=root, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_docs_localizer_keeps_the_contract_and_is_used(plant: Path, weights: Callable[[str], object]) -> None:
    python(plant, "-c", CHECK)
    (plant / "mine.yaml").write_text("localizer: {name: mean_image}\n")
    python(plant, "-m", "sam_inspect", "train", "good", "--recipe", "recipe", "--config", "mine.yaml", "--quiet")
    assert "mean_image" in python(plant, "-m", "sam_inspect", "doctor")
    weights("mobile_sam")
    python(plant, "-m", "sam_inspect", "inspect", "good", "--recipe", "recipe", "--out", "out", "--quiet")
    assert len((plant / "out" / "results.jsonl").read_text().splitlines()) == 6


class Forgetful:
    """Answers with another map every time."""

    def __init__(self) -> None:
        self.calls = 0

    def localize(self, image: np.ndarray) -> object:  # type: ignore[type-arg]
        from sam_inspect.records import Localization

        self.calls += 1
        return Localization(image.shape[:2], float(self.calls), anomaly_map=np.full((4, 4), self.calls, np.float32))


def test_a_localizer_that_breaks_its_promise_is_told_which(plant: Path) -> None:
    with pytest.raises(AssertionError, match="twice the same image, two maps"):
        check_localizer(Forgetful, sorted((plant / "good").glob("*.png")))


def test_our_own_segmenter_keeps_the_contract(weights: Callable[[str], object]) -> None:
    weights("mobile_sam")
    check_segmenter(MobileSam.from_config({}, device="cpu"))
