"""The drawn product: the same in every place, laid out as MVTec's, with ground truth where the picture changed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from sam_inspect import datasets
from sam_inspect.errors import OutputError, UsageError
from sam_inspect.images import read_image
from sam_inspect.synth import DEFECTS, FLANGE, IMAGE_HW, draw_part, write_product
from sam_inspect.synth_bottle import BOTTLE, BOTTLE_DEFECTS, draw_bottle


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_product(tmp_path_factory.mktemp("drawn") / "product", FLANGE)


def test_it_is_laid_out_as_mvtec(product: Path) -> None:
    assert len(datasets.good_images(product)) == 24
    samples = datasets.test_samples(product)
    datasets.check_ground_truth(samples)
    counts = {kind: sum(sample.defect_type == kind for sample in samples) for kind in ("good", *DEFECTS)}
    assert counts == {"good": 10, "chip": 5, "contamination": 5, "dent": 5, "scratch": 5}
    for sample in samples:
        if sample.mask_path is not None:
            assert sample.mask_path == product / "ground_truth" / sample.defect_type / f"{sample.image.stem}_mask.png"


def test_pictures_are_small_colour_and_not_square(product: Path) -> None:
    for path in product.glob("*/*/*.png"):
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert pixels.shape[:2] == IMAGE_HW == (320, 400)
        assert pixels.ndim == (2 if "ground_truth" in path.parts else 3)
    assert sum(path.stat().st_size for path in product.rglob("*.png")) < 20e6


def test_ground_truth_is_black_and_white_and_of_varied_size(product: Path) -> None:
    for kind in DEFECTS:
        areas = []
        for path in (product / "ground_truth" / kind).iterdir():
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert set(np.unique(mask)) == {0, 255}
            areas.append(np.count_nonzero(mask))
        assert min(areas) >= 20
        assert max(areas) < 0.03 * 320 * 400
        assert max(areas) > 1.3 * min(areas)


def test_the_same_seed_gives_the_same_picture_and_another_seed_or_number_another() -> None:
    first = draw_part(0, 0).image
    assert np.array_equal(first, draw_part(0, 0).image)
    assert not np.array_equal(first, draw_part(1, 0).image)
    assert not np.array_equal(first, draw_part(0, 1).image)


def test_what_is_written_is_what_is_drawn(product: Path) -> None:
    assert np.array_equal(read_image(product / "train" / "good" / "000.png"), draw_part(0, 0).image)
    part = draw_part(0, 24 + 10, "chip")
    assert np.array_equal(read_image(product / "test" / "chip" / "034.png"), part.image)
    mask = cv2.imread(str(product / "ground_truth" / "chip" / "034_mask.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(mask > 127, part.mask)


@pytest.mark.parametrize("defect", sorted(DEFECTS))
@pytest.mark.parametrize("number", range(4))
def test_the_picture_changed_where_the_ground_truth_is_and_nowhere_else(defect: str, number: int) -> None:
    good, bad = draw_part(5, number), draw_part(5, number, defect)
    assert not good.mask.any()
    change = np.abs(bad.image.astype(int) - good.image).max(axis=2)
    around = cv2.dilate(bad.mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))) > 0
    # Where a chip let the light through, its shadow on the belt beside the part changes a little too.
    limit = 45 if defect == "chip" else 12
    assert change[~around].max() <= limit
    visible = (change > 8).mean(where=bad.mask)
    assert visible > 0.45
    assert change[bad.mask].max() > 25


def test_a_defect_is_on_the_part(product: Path) -> None:
    """A person sees metal around each: brighter than the belt."""
    for sample in datasets.test_samples(product):
        if sample.mask_path is None:
            continue
        mask = cv2.imread(str(sample.mask_path), cv2.IMREAD_UNCHANGED)
        ring = (cv2.dilate(mask, np.ones((9, 9))) > 0) & (mask == 0)
        grey = read_image(sample.image).mean(axis=2)
        assert np.mean(grey[ring] > 120) > 0.3


def test_parts_differ_in_pose_and_texture_and_not_in_kind() -> None:
    parts = [draw_part(0, number).image.astype(float).mean(axis=2) for number in range(6)]
    for number, one in enumerate(parts):
        for other in parts[:number]:
            assert np.abs(one - other).mean() > 2
            assert abs(np.median(one) - np.median(other)) < 12


def test_an_interrupted_or_spoilt_product_is_made_whole_and_what_is_the_same_byte_for_byte_is_left(
    product: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(product, tmp_path / "product"))
    cut, lost = (folder / "test" / "good" / f"{number:03d}.png" for number in (24, 25))
    cut.write_bytes(cut.read_bytes()[:1000])
    lost.unlink()
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert write_product(folder, FLANGE) == folder
    assert digests(folder) == digests(product)
    assert [path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp] == [cut]


def test_a_folder_of_ones_own_is_not_drawn_over(tmp_path: Path) -> None:
    mine = tmp_path / "product" / "train" / "good" / "000.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("my own picture")
    with pytest.raises(UsageError, match="product: holds files, but no drawn product; choose another folder"):
        write_product(tmp_path / "product", FLANGE)
    assert mine.read_text() == "my own picture"


def test_a_file_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_product(tmp_path / "file" / "product", FLANGE)


@pytest.mark.parametrize("defect", BOTTLE_DEFECTS)
def test_a_bottle_differs_from_its_whole_self_where_its_mask_says(defect: str) -> None:
    for number in range(3):
        whole, spoilt = draw_bottle(1, number), draw_bottle(1, number, defect)
        assert not whole.mask.any()
        assert 20 < spoilt.mask.sum() < spoilt.mask.size / 8
        change = np.abs(whole.image.astype(int) - spoilt.image).max(axis=2)
        outside = cv2.dilate(spoilt.mask.astype(np.uint8), np.ones((7, 7))) == 0
        assert (change[spoilt.mask] > 8).mean() > 0.8
        assert (change[outside] > 2).mean() < 1e-3  # wisps thinner than half a pixel


def test_broken_bottles_are_drawn_in_a_folder_of_their_own(tmp_path: Path) -> None:
    write_product(tmp_path / "bottles", BOTTLE)
    assert {path.name for path in (tmp_path / "bottles" / "ground_truth").iterdir()} == set(BOTTLE_DEFECTS)
    with pytest.raises(UsageError, match="another drawn product"):
        write_product(tmp_path / "bottles", FLANGE)
