"""Cloth: a ground that is the same all over, where a strong defect lifts all that the network sees with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sam_inspect.masks import from_rle, union

SIDE = 600
GOOD = 20


def soft(draw: np.random.Generator, sigma: float, amount: float) -> NDArray[np.float32]:
    """Noise of a size."""
    noise = cv2.GaussianBlur(draw.normal(0, 1, (SIDE, SIDE)).astype(np.float32), (0, 0), sigma)
    return np.asarray(amount * noise / noise.std(), np.float32)


def cloth(number: int) -> NDArray[np.float32]:
    """A fine twill as a camera sees it: never at the same place, a little stretched, a little unevenly lit."""
    draw = np.random.default_rng(number)
    rows, columns = np.mgrid[:SIDE, :SIDE] + draw.uniform(0, 100, (2, 1, 1))
    u, v = columns + soft(draw, 40, 0.7), rows + soft(draw, 40, 0.7)
    twill = 0.5 + 0.5 * np.sin(2 * np.pi * (u + v) / 20) * np.sin(2 * np.pi * (u - v) / 40)
    shade = 0.45 + 0.4 * twill + soft(draw, 1, 0.03) + soft(draw, 90, 0.02)
    return np.asarray(shade[..., None] * (195, 182, 169) + draw.normal(0, 2, (SIDE, SIDE, 3)), np.float32)


def blot(x: int, y: int, radius: int) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    angle = np.arctan2(rows - y, columns - x)
    return np.asarray(np.hypot(columns - x, rows - y) < radius * (1 + 0.1 * np.cos(3 * angle)))


@pytest.fixture(scope="module")
def defects(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, NDArray[np.bool_]]:
    """Twenty good pieces to learn from, and where the defects of a burnt, a stained and a labelled one are."""
    root = tmp_path_factory.mktemp("cloth")
    (root / "good").mkdir()
    (root / "test").mkdir()
    for number in range(GOOD):
        cv2.imwrite(str(root / "good" / f"{number:02d}.png"), cloth(number).clip(0, 255))
    label = np.zeros((SIDE, SIDE), bool)
    label[180:300, 330:480] = True
    masks = {"burnt": blot(400, 150, 25), "stained": blot(220, 330, 60), "labelled": label}
    spoilt = {"burnt": lambda image: 0.15 * image, "stained": lambda image: 0.6 * image, "labelled": lambda _: 210.0}
    for number, (name, mask) in enumerate(masks.items()):
        image = cloth(GOOD + number)
        image = np.where(mask[..., None], spoilt[name](image), image)
        cv2.imwrite(str(root / "test" / f"{name}.png"), image.clip(0, 255))
    return {root / "test" / f"{name}.png": mask for name, mask in masks.items()}


@pytest.mark.slow
def test_a_burn_a_stain_and_a_label_on_cloth_are_one_defect_each_with_their_own_outline(
    defects: dict[Path, NDArray[np.bool_]], sam_inspect: Callable[..., Any], results: Callable[..., Any], tmp_path: Path
) -> None:
    folder = next(iter(defects)).parent
    assert sam_inspect("train", folder.parent / "good", "--recipe", tmp_path / "recipe").status == 0
    assert sam_inspect("inspect", folder, "--recipe", tmp_path / "recipe", "--out", tmp_path / "out").status == 0
    found = results(tmp_path / "out")
    for path, mask in defects.items():
        row = found[path.name]
        assert row["verdict"] == "fail"
        (defect,) = row["defects"]
        outlined = from_rle(defect["mask"])
        assert outlined is not None
        pred_mask = union([outlined], (SIDE, SIDE))
        assert (pred_mask & mask).sum() / (pred_mask | mask).sum() > 0.6, path.name
