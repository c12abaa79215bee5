"""Folders as they come: MVTec's layout and plain ones, and what is said where something is not in its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sam_inspect import datasets
from sam_inspect.errors import DatasetError

HW = (12, 16)


def picture(path: Path, pixels: NDArray[np.uint8] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*HW, 3), 90, np.uint8) if pixels is None else pixels).save(path)
    return path


def drawn(value: int = 255) -> NDArray[np.uint8]:
    mask = np.zeros(HW, np.uint8)
    mask[3:6, 4:9] = value
    return mask


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """Two good parts to learn from, one to test on, two scratched and one dented."""
    data = tmp_path / "product"
    for name in ("train/good/10.png", "train/good/9.png", "test/good/0.png", "test/scratch/0.png", "test/dent/a.jpg"):
        picture(data / name)
    picture(data / "test/scratch/1.JPG".lower())
    picture(data / "ground_truth/scratch/0_mask.png", drawn())
    picture(data / "ground_truth/scratch/1.png", drawn())
    picture(data / "ground_truth/dent/a_mask.bmp", drawn())
    return data


def refused(problem: object, *words: str) -> None:
    assert [word for word in words if word not in str(problem)] == []
    assert "; " in str(problem)


def test_good_images_are_those_of_train_good(product: Path) -> None:
    assert datasets.good_images(product) == [product / "train/good/9.png", product / "train/good/10.png"]


def test_good_images_of_a_plain_folder(product: Path) -> None:
    plain = product / "train" / "good"
    assert datasets.good_images(plain) == datasets.good_images(product) == datasets.good_images(product / "train")


def test_folders_of_a_plain_folder_are_named_since_all_of_them_count_as_good(
    product: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasets.good_images(product / "train")
    assert not caplog.text
    picture(product / "train" / "bad" / "0.png")
    datasets.good_images(product / "train")
    assert "count as good: bad, good" in caplog.text


def test_nobody_learns_good_parts_from_a_test_set(product: Path) -> None:
    shutil.rmtree(product / "train")
    for folder in (product, product.parent):
        with pytest.raises(DatasetError) as error:
            datasets.good_images(folder)
        refused(error.value, str(folder), "train/good")


def test_a_folder_that_is_empty_or_absent(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        with pytest.raises(DatasetError) as error:
            datasets.good_images(tmp_path / name)
        refused(error.value, name)


def test_every_test_image_comes_with_its_ground_truth(product: Path) -> None:
    samples = datasets.test_samples(product)
    assert [(s.image.name, s.defect_type, s.mask_path and s.mask_path.name) for s in samples] == [
        ("a.jpg", "dent", "a_mask.bmp"),
        ("0.png", "good", None),
        ("0.png", "scratch", "0_mask.png"),
        ("1.jpg", "scratch", "1.png"),
    ]
    datasets.check_ground_truth(samples)
    for sample in samples:
        mask = datasets.read_gt_mask(sample, HW)
        assert mask.dtype == bool
        assert np.array_equal(mask, drawn() > 0 if sample.mask_path else np.zeros(HW, bool))


@pytest.mark.parametrize(("value", "is_defect"), [(127, False), (128, True), (255, True)])
def test_ground_truth_is_what_lies_above_127(product: Path, value: int, is_defect: bool) -> None:
    path = picture(product / "ground_truth/scratch/0_mask.png", drawn(value))
    mask = datasets.read_gt_mask(datasets.Sample(product / "test/scratch/0.png", "scratch", path), HW)
    assert mask.any() == is_defect


def test_ground_truth_drawn_in_colour_or_one_bit(product: Path) -> None:
    red = np.zeros((*HW, 3), np.uint8)
    red[..., 0] = drawn()
    path = picture(product / "ground_truth/scratch/0_mask.png", red)
    sample = datasets.Sample(product / "test/scratch/0.png", "scratch", path)
    assert np.array_equal(datasets.read_gt_mask(sample, HW), drawn() > 0)
    Image.fromarray(drawn()).convert("1").save(path)
    assert np.array_equal(datasets.read_gt_mask(sample, HW), drawn() > 0)


def test_images_in_folders_below_a_type_have_their_truth_below_it_too(product: Path) -> None:
    picture(product / "test/scratch/left/0.png")
    picture(product / "ground_truth/scratch/left/0_mask.png", drawn())
    found = {sample.image: sample.mask_path for sample in datasets.test_samples(product)}
    assert found[product / "test/scratch/left/0.png"] == product / "ground_truth/scratch/left/0_mask.png"
    assert found[product / "test/scratch/0.png"] == product / "ground_truth/scratch/0_mask.png"


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("test", ["test", "is not there"]),
        ("ground_truth", ["ground_truth", "is not there"]),
        ("ground_truth/dent", ["ground_truth/dent", "1 images"]),
        ("ground_truth/scratch/1.png", ["ground_truth/scratch", "1.jpg", "1_mask.png"]),
    ],
)
def test_what_is_missing_is_named(product: Path, missing: str, words: list[str]) -> None:
    path = product / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DatasetError) as error:
        datasets.test_samples(product)
    refused(error.value, *words)


def test_a_test_set_without_defects_or_with_an_empty_type(product: Path) -> None:
    (product / "test/crack").mkdir()
    with pytest.raises(DatasetError) as error:
        datasets.test_samples(product)
    refused(error.value, "crack")
    for kind in ("crack", "scratch", "dent"):
        shutil.rmtree(product / "test" / kind)
    with pytest.raises(DatasetError) as error:
        datasets.test_samples(product)
    refused(error.value, "no folder of defective images")


def test_ground_truth_of_another_size_is_seen_before_the_work(product: Path) -> None:
    Image.new("L", (31, 17)).save(product / "ground_truth/scratch/0_mask.png")
    samples = datasets.test_samples(product)
    for check in (lambda: datasets.check_ground_truth(samples), lambda: datasets.read_gt_mask(samples[2], HW)):
        with pytest.raises(DatasetError) as error:
            check()
        refused(error.value, "0_mask.png", "31 x 17", "16 x 12", "test/scratch/0.png")


def test_ground_truth_that_cannot_be_read(product: Path) -> None:
    (product / "ground_truth/scratch/0_mask.png").write_text("not a picture")
    samples = datasets.test_samples(product)
    for check in (lambda: datasets.check_ground_truth(samples), lambda: datasets.read_gt_mask(samples[2], HW)):
        with pytest.raises(DatasetError) as error:
            check()
        refused(error.value, "0_mask.png")


def test_an_image_that_cannot_be_read_is_left_to_its_inspection(product: Path) -> None:
    (product / "test/scratch/0.png").write_text("not a picture")
    datasets.check_ground_truth(datasets.test_samples(product))


def test_groups_by_image(tmp_path: Path) -> None:
    file = tmp_path / "groups.csv"
    file.write_bytes("\ufeffimage,note,group\r\ntest/good/a.png,,p1\r\n./test\\good\\b.png,x,p1\r\n".encode())
    assert datasets.read_groups(file) == {"test/good/a.png": "p1", "test/good/b.png": "p1"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("picture\nx\n", ["picture"]),
        ("", ["[]"]),
        ("image,group\na.png\n", ["line 2"]),
        ("image,group\na.png,1\na.png,2\n", ["line 3", "a.png"]),
        (b"image,group\n\xff\xfe,1\n", ["cannot be read"]),
    ],
)
def test_groups_that_cannot_be_used(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    file = tmp_path / "groups.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError) as error:
        datasets.read_groups(file)
    refused(error.value, "groups.csv", *words)


def test_groups_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as error:
        datasets.read_groups(tmp_path / "absent.csv")
    refused(error.value, "absent.csv")


def test_the_real_data_sets(shared: Path) -> None:
    for name, good, tested, defective in (("mvtec_bottle", 70, 42, 32), ("magnetic_tile", 360, 272, 192)):
        data = shared / "data" / name
        samples = datasets.test_samples(data)
        datasets.check_ground_truth(samples)
        assert len(datasets.good_images(data)) == good
        assert (len(samples), sum(sample.mask_path is not None for sample in samples)) == (tested, defective)
    groups = datasets.read_groups(data / "groups.csv")
    assert all(sample.image.relative_to(data).as_posix() in groups for sample in samples)
