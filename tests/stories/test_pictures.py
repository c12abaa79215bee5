"""Cameras, network drives and colleagues leave all kinds of files in the folder that is to be inspected."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

UNREADABLE = {"cut.png": "cut", "text.png": "not a picture", "empty.png": "empty"}


@pytest.fixture(scope="module")
def mixed(plant, sam_inspect, results, tmp_path_factory) -> SimpleNamespace:
    """One defective part as every kind of file, with files among them that cannot be read; inspected in one go."""
    base = tmp_path_factory.mktemp("mixed")
    images = base / "images"
    images.mkdir()
    kind = next(folder for folder in sorted(plant.product.glob("test/*")) if folder.name != "good")
    part = sorted(kind.iterdir())[0]
    write_every_kind(part, images)
    answer = sam_inspect(
        "inspect", images, "--recipe", plant.recipe, "--out", base / "out", "--save", "results,masks,report"
    )
    return SimpleNamespace(answer=answer, rows=results(base / "out"), out=base / "out", images=images)


def write_every_kind(part: Path, folder: Path) -> None:
    picture = Image.open(part).convert("RGB")
    pixels = np.asarray(picture)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    picture.save(folder / "rgb.png")
    picture.convert("RGBA").save(folder / "rgba.png")
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    Image.fromarray(grey).save(folder / "grey.png")
    cv2.imwrite(str(folder / "grey16.png"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "rgb16.png"), pixels[..., ::-1].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: to be seen turned by 90 degrees clockwise
    picture.rotate(90, expand=True).save(folder / "turned.png", exif=exif)
    Image.new("RGB", (1, 1), (120, 90, 60)).save(folder / "dot.png")
    whole = part.read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("see the other folder\n")
    (folder / "empty.png").write_bytes(b"")


def test_files_that_cannot_be_read_set_the_exit_status_and_stop_nothing(mixed) -> None:
    assert mixed.answer.status == 1
    assert "Traceback" not in mixed.answer.err
    assert sorted(mixed.rows) == sorted(path.name for path in mixed.images.iterdir())
    assert {name for name, row in mixed.rows.items() if row["verdict"] == "error"} == set(UNREADABLE)


@pytest.mark.parametrize(("name", "reason"), UNREADABLE.items())
def test_each_unread_file_says_why_and_what_to_do(mixed, name: str, reason: str) -> None:
    row = mixed.rows[name]
    problem, _, remedy = row["error"].partition("; ")
    assert name in problem
    assert reason in problem
    assert remedy
    assert (row["score"], row["defects"]) == (None, [])
    assert row["error"] in mixed.answer.err


@pytest.mark.parametrize("name", ["rgba.png", "rgb16.png", "turned.png"])
def test_the_same_part_in_another_format_gets_the_same_answer(mixed, name: str) -> None:
    row, plain = mixed.rows[name], mixed.rows["rgb.png"]
    assert plain["verdict"] == "fail"
    assert row["score"] == pytest.approx(plain["score"], rel=1e-4)
    assert [defect["box"] for defect in row["defects"]] == [defect["box"] for defect in plain["defects"]]


def test_sixteen_bits_of_grey_are_the_eight_bits(mixed) -> None:
    assert mixed.rows["grey16.png"]["score"] == pytest.approx(mixed.rows["grey.png"]["score"], rel=1e-4)


@pytest.mark.parametrize("name", ["palette.png", "grey.png", "dot.png"])
def test_odd_but_readable_pictures_get_a_verdict(mixed, name: str) -> None:
    assert mixed.rows[name]["verdict"] in ("pass", "fail")


def test_masks_have_the_size_in_which_the_part_is_seen(mixed) -> None:
    size = mixed.rows["rgb.png"]["size"]
    for name in ("rgb", "turned", "grey16"):
        assert mixed.rows[f"{name}.png"]["size"] == size
        mask = Image.open(next(mixed.out.glob(f"masks/*/{name}.png")))
        assert [mask.height, mask.width] == size
        assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_an_empty_folder_is_wrong_usage(plant, sam_inspect, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    answer = sam_inspect("inspect", tmp_path / "images", "--recipe", plant.recipe, "--out", tmp_path / "out")
    assert answer.status == 2
    assert "images: holds no picture" in answer.error()


def test_no_readable_image_at_all_is_an_error_for_each(plant, sam_inspect, results, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not a picture")
    answer = sam_inspect("inspect", tmp_path / "a.png", "--recipe", plant.recipe, "--out", tmp_path / "out")
    assert answer.status == 1
    assert results(tmp_path / "out")["a.png"]["verdict"] == "error"
    assert (tmp_path / "out" / "index.html").exists()


def test_an_unread_image_counts_before_a_defect(plant, sam_inspect, good: Path, tmp_path: Path) -> None:
    line = ["inspect", good, "--recipe", plant.recipe, "--out", tmp_path / "out", "--fail-on-defect", "--save", ""]
    assert sam_inspect(*line).status == 3
    (good / "cut.png").write_text("")
    assert sam_inspect(*line).status == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_picture_of_108_million_pixels_takes_less_than_4_gb(plant, sam_inspect, results, tmp_path: Path) -> None:
    part = np.asarray(Image.open(sorted(plant.product.glob("test/good/*"))[0]).convert("RGB"))
    side = -(-12_000 // part.shape[1]), -(-9_000 // part.shape[0])
    huge = np.tile(part, (side[1], side[0], 1))[:9_000, :12_000]
    cv2.imwrite(str(tmp_path / "huge.jpg"), huge[..., ::-1])
    del huge
    answer = sam_inspect("inspect", tmp_path / "huge.jpg", "--recipe", plant.recipe, "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    assert results(tmp_path / "out")["huge.jpg"]["size"] == [9_000, 12_000]
    assert answer.peak_bytes < 4e9


def test_an_out_folder_below_a_file_cannot_be_written(plant, sam_inspect, good: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    answer = sam_inspect("inspect", good, "--recipe", plant.recipe, "--out", tmp_path / "file" / "out")
    assert answer.status == 1
    assert "cannot be written" in answer.error()


def test_results_that_lie_among_the_images_are_not_inspected(plant, sam_inspect, results, good: Path) -> None:
    line = ["inspect", good, "--recipe", plant.recipe, "--out", good / "out"]
    for _ in range(2):
        assert sam_inspect(*line).status == 0
        assert len(results(good / "out")) == 4


def test_folders_files_and_globs_each_once(plant, sam_inspect, results, good: Path, tmp_path: Path) -> None:
    first = sorted(good.iterdir())[0]
    shutil.copy(first, tmp_path / "extra.PNG")
    line = ["inspect", first, f"{good}/*.png", tmp_path / "extra.PNG", good]
    assert sam_inspect(*line, "--recipe", plant.recipe, "--out", tmp_path / "out").status == 0
    assert len(results(tmp_path / "out")) == 5
