"""The memory bank: exact distances, and a planted defect comes back where it was planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sam_inspect.images import read_image
from sam_inspect.localize.memory_bank import MemoryBank
from sam_inspect.localize.nearest import NearestPatches
from sam_inspect.progress import silent
from sam_inspect.weights import LoadedWeights

ARGS = {"bank_patches": 2000}


def test_distances_are_those_of_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(500, 64, generator=generator), torch.randn(300, 64, generator=generator)
    queries[:10] = bank[:10]
    found, exact = NearestPatches(bank).distances(queries), torch.cdist(queries.double(), bank.double()).amin(1)
    assert found[:10].max() == 0
    assert (found - exact).min() > -1e-3
    assert ((found - exact)[10:] / exact[10:]).max() < 0.01


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Good parts of 240 x 400: a smooth plate with noise."""
    folder = tmp_path_factory.mktemp("plates")
    draw = np.random.default_rng(0)
    for number in range(8):
        plate = (
            np.full((240, 400, 3), 130.0) + np.linspace(0, 30, 400)[None, :, None] + draw.normal(0, 4, (240, 400, 1))
        )
        cv2.imwrite(str(folder / f"{number}.png"), plate.clip(0, 255).astype(np.uint8))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def bank(images: list[Path], weights: Callable[[str], LoadedWeights]) -> MemoryBank:
    weights("mobile_sam")
    localizer, fit = MemoryBank.fit(images[:6], ARGS, device="cpu", progress=silent)
    assert len(fit.calibration_scores) == 6
    return localizer


@pytest.mark.parametrize("centre", [(30, 30), (370, 30), (30, 210), (370, 210), (200, 120)])
def test_a_planted_defect_comes_back_at_its_place(
    bank: MemoryBank, images: list[Path], centre: tuple[int, int]
) -> None:
    image = read_image(images[7]).copy()
    cv2.circle(image, centre, 9, (20, 20, 20), -1)
    found = bank.localize(image)
    assert found.anomaly_map is not None
    rows, columns = found.anomaly_map.shape
    row, column = np.unravel_index(int(found.anomaly_map.argmax()), (rows, columns))
    place = ((column + 0.5) * 400 / columns, (row + 0.5) * 240 / rows)
    assert np.hypot(place[0] - centre[0], place[1] - centre[1]) < 10
    assert found.pred_score > 2 * bank.localize(read_image(images[7])).pred_score


def test_a_bank_from_its_state_gives_the_same_map(bank: MemoryBank, images: list[Path]) -> None:
    again = MemoryBank.from_state(ARGS, *bank.state(), device="cpu")
    image = read_image(images[7])
    np.testing.assert_array_equal(again.localize(image).anomaly_map, bank.localize(image).anomaly_map)


def test_a_defect_in_a_long_picture_is_found_in_its_tile(bank: MemoryBank, images: list[Path]) -> None:
    long = np.tile(read_image(images[7]), (1, 4, 1))
    cv2.circle(long, (1230, 100), 9, (20, 20, 20), -1)
    found = bank.localize(long).anomaly_map
    assert found is not None
    assert found.shape[1] > 5 * found.shape[0]
    column = int(found.max(0).argmax())
    assert abs((column + 0.5) * 1600 / found.shape[1] - 1230) < 15
