"""The memory bank: exact distances, and a planted defect comes back where it was planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sam_inspect.config import PromptConfig
from sam_inspect.images import read_image
from sam_inspect.localize import memory_bank
from sam_inspect.localize.drawn_maps import fit_of, located, measured
from sam_inspect.localize.looks import SURE
from sam_inspect.localize.memory import spread_out
from sam_inspect.localize.memory_bank import Bank, MemoryBank
from sam_inspect.localize.nearest import NearestPatches
from sam_inspect.localize.patches import BackboneConfig, PatchGrid, product_scale
from sam_inspect.networks import runtime
from sam_inspect.networks.loaded import load_backbone
from sam_inspect.progress import silent
from sam_inspect.prompt import find_regions
from sam_inspect.weights import LoadedWeights

ARGS: dict[str, Any] = {"bank_patches": 2000}


def test_distances_are_those_of_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(500, 64, generator=generator), torch.randn(300, 64, generator=generator)
    queries[:10] = bank[:10]
    found, exact = NearestPatches(bank).distances(queries), torch.cdist(queries.double(), bank.double()).amin(1)
    assert found[:10].max() == 0
    assert (found - exact).min() > -1e-3
    assert ((found - exact)[10:] / exact[10:]).max() < 0.01


def test_rare_good_patches_are_remembered_beside_the_usual_ones() -> None:
    """Ten patches of a stain among ten thousand of a surface: a random hundredth would mostly miss them."""
    generator = torch.Generator().manual_seed(0)
    surface, stain = torch.randn(10_000, 8, generator=generator), 40 + torch.randn(10, 8, generator=generator)
    rows = torch.cat([surface, stain])
    chosen = spread_out(rows, 100, torch.Generator().manual_seed(1))
    assert len(set(chosen.tolist())) == 100
    assert 1 <= int((chosen >= 10_000).sum()) <= 10
    assert torch.equal(chosen, spread_out(rows, 100, torch.Generator().manual_seed(1)))

    def farthest(indices: torch.Tensor) -> float:
        return float(torch.cdist(rows, rows[indices]).amin(1).max())

    assert farthest(chosen) < 0.5 * farthest(torch.randperm(10_000, generator=generator)[:100])


@pytest.mark.parametrize("count", [1, 7, 10, 11, 60, 99])
def test_exactly_so_many_are_remembered(count: int) -> None:
    rows = torch.zeros(60, 4)  # nothing tells them apart
    chosen = spread_out(rows, count, torch.Generator().manual_seed(0))
    assert len(set(chosen.tolist())) == len(chosen) == min(count, 60)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Good parts of 240 x 300: a smooth plate with noise."""
    folder = tmp_path_factory.mktemp("plates")
    draw = np.random.default_rng(0)
    for number in range(8):
        plate = (
            np.full((240, 300, 3), 130.0) + np.linspace(0, 30, 300)[None, :, None] + draw.normal(0, 4, (240, 300, 1))
        )
        cv2.imwrite(str(folder / f"{number}.png"), plate.clip(0, 255).astype(np.uint8))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def bank(images: list[Path], weights: Callable[[str], LoadedWeights]) -> MemoryBank:
    weights("mobile_sam")
    localizer, fit = MemoryBank.fit(images[:4], ARGS, device="cpu", progress=silent)
    assert len(fit.calibration_scores) == 4
    assert fit.images == images[:4]
    return localizer


def test_good_parts_beyond_what_can_be_held_are_learned_from_all_the_same(
    images: list[Path], weights: Callable[[str], LoadedWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More at 256 pixels than at 160: every look holds the same ones, or their maps would not fit together."""
    weights("mobile_sam")
    monkeypatch.setattr(memory_bank, "HELD_BYTES", 3_000_000)
    looks = [{"size_px": size, "cell_px": 8} for size in (256, 160)]
    _, fit = MemoryBank.fit(images[:5], ARGS | {"backbones": looks}, device="cpu", progress=silent)
    assert 2 <= len(fit.calibration_scores) == len(fit.images) < 5


@pytest.mark.parametrize("centre", [(30, 30), (270, 30), (30, 210), (270, 210), (150, 120)])
def test_a_planted_defect_comes_back_at_its_place(
    bank: MemoryBank, images: list[Path], centre: tuple[int, int]
) -> None:
    image = read_image(images[7]).copy()
    cv2.circle(image, centre, 9, (20, 20, 20), -1)
    found = bank.localize(image)
    assert found.anomaly_map is not None
    rows, columns = found.anomaly_map.shape
    row, column = np.unravel_index(int(found.anomaly_map.argmax()), (rows, columns))
    place = ((column + 0.5) * 300 / columns, (row + 0.5) * 240 / rows)
    assert np.hypot(place[0] - centre[0], place[1] - centre[1]) < 10
    assert found.pred_score > 2 * bank.localize(read_image(images[7])).pred_score


def test_a_bank_from_its_state_gives_the_same_map(bank: MemoryBank, images: list[Path]) -> None:
    again = MemoryBank.from_state(ARGS, *bank.state(), device="cpu")
    image = read_image(images[7])
    np.testing.assert_array_equal(again.localize(image).anomaly_map, bank.localize(image).anomaly_map)


def test_a_defect_in_a_long_picture_is_found_in_its_tile(bank: MemoryBank, images: list[Path]) -> None:
    long = np.tile(read_image(images[7]), (1, 5, 1))
    cv2.circle(long, (1230, 100), 9, (20, 20, 20), -1)
    found = bank.localize(long).anomaly_map
    assert found is not None
    assert found.shape[1] > 5 * found.shape[0]
    column = int(found.max(0).argmax())
    assert abs((column + 0.5) * 1500 / found.shape[1] - 1230) < 15


def test_images_in_one_batch_have_the_maps_that_each_has_alone(
    bank: MemoryBank, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [read_image(path) for path in images[:7]]
    together = MemoryBank(bank.args, [drawing(bank.banks[1]), bank.banks[2]])
    assert together.at_once((240, 300)) == 1
    monkeypatch.setitem(runtime.IMAGES_AT_ONCE, "cpu", 4)
    assert together.at_once((240, 300)) == 4
    assert together.at_once((240, 3000)) == 1
    for image, found in zip(several, together.localize_many(several), strict=True):
        alone = together.localize(image)
        np.testing.assert_allclose(found.anomaly_map, alone.anomaly_map, atol=1e-4)
        assert found.pred_score == pytest.approx(alone.pred_score, abs=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_patch_is_three_cells_wide_in_every_layer(layer: int, weights: Callable[[str], LoadedWeights]) -> None:
    weights("mobile_sam")
    config = BackboneConfig(layers=(layer,), size_px=256)
    backbone, _ = load_backbone(config, "cpu")
    grid = PatchGrid(backbone, config, 1.0)
    stride = (4, 8, 16, 16)[layer]
    spot = torch.zeros(1, 1, 256 // stride, 256 // stride)
    spot[..., 128 // stride, 128 // stride] = 1
    rows, columns = np.nonzero(grid.on_cells(spot, (256, 256))[0, ..., 0].numpy())
    assert (sorted(set(rows)), sorted(set(columns))) == ([7, 8, 9], [7, 8, 9])


def test_what_a_smaller_look_sees_scales_the_map_but_does_not_draw_it(bank: MemoryBank, images: list[Path]) -> None:
    image = read_image(images[7])
    alone, together = MemoryBank(bank.args, bank.banks[:1]).localize(image), bank.localize(image)
    unsmoothed = bank.args.model_copy(update={"smooth": 0.0})
    peaks = [MemoryBank(unsmoothed, [drawing(one)]).localize(image).pred_score for one in bank.banks]
    assert alone.anomaly_map is not None
    assert together.anomaly_map is not None
    assert max(peaks) < SURE
    shares = np.array(peaks) / [one.rare for one in bank.banks]
    score = np.mean([one.rare for one in bank.banks]) * np.mean(shares**8) ** (1 / 8)
    assert together.pred_score == pytest.approx(score, rel=1e-4)
    scale = together.pred_score / alone.pred_score
    np.testing.assert_allclose(together.anomaly_map, alone.anomaly_map * scale, rtol=1e-4)


def drawing(bank: Bank) -> Bank:
    """The same bank, as one that draws."""
    return replace(bank, grid=replace(bank.grid, config=bank.grid.config.model_copy(update={"draws": True})))


def test_a_defect_beyond_doubt_keeps_the_map_as_it_was_drawn(bank: MemoryBank, images: list[Path]) -> None:
    image = read_image(images[7]).copy()
    cv2.circle(image, (150, 120), 40, (20, 20, 20), -1)
    alone, together = MemoryBank(bank.args, bank.banks[:1]).localize(image), bank.localize(image)
    assert min(MemoryBank(bank.args, [drawing(one)]).localize(image).pred_score for one in bank.banks) > SURE
    np.testing.assert_array_equal(together.anomaly_map, alone.anomaly_map)


class FarFromZero:
    """Draws 8 on ordinary pixels, as distances of Mahalanobis do, and the darkness of an image above that."""

    def distances(self, image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        dark = cv2.GaussianBlur(255 - image[..., 0].astype(np.float32), (0, 0), 4)
        return [8 + cv2.resize(dark, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA) / 16]


def test_a_map_that_is_never_near_zero_shows_only_the_defect(tmp_path: Path) -> None:
    good, spoilt = np.full((240, 320, 3), 250, np.uint8), np.full((240, 320, 3), 250, np.uint8)
    spoilt[100:140, 200:250] = 60
    Image.fromarray(good).save(tmp_path / "good.png")
    model = FarFromZero()
    maps = model.distances(good)
    place = measured(model, [tmp_path / "good.png"], maps)
    found = located(model.distances(spoilt)[0], (240, 320), place)
    fit = fit_of(maps, place.base, {}, [tmp_path / "good.png"])
    threshold = float(fit.calibration_scores.max()) + 3
    (region,) = find_regions(found.anomaly_map, (240, 320), threshold, PromptConfig())
    x0, y0, x1, y1 = region.box_xyxy
    assert abs(x0 - 200) + abs(y0 - 100) + abs(x1 - 250) + abs(y1 - 140) < 40


def test_a_small_picture_is_enlarged_as_far_as_its_recipe_asks() -> None:
    tile, speck, bottle, panel = (252, 340), (100, 100), (900, 900), (2000, 3000)
    for size_px, scales in ((512, (2, 2, 512 / 900, 1)), (768, (3, 3, 768 / 900, 1))):
        found = [product_scale([hw], BackboneConfig(size_px=size_px)) for hw in (tile, speck, bottle, panel)]
        assert found == pytest.approx(scales, rel=0.02)
