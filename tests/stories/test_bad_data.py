"""Data sets, boxes, configs and recipes as they come: each fault is one line that names it and the way out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image


@pytest.fixture
def copy(plant, tmp_path: Path) -> Path:
    """The product, to be spoilt."""
    return Path(shutil.copytree(plant.product, tmp_path / "data"))


@pytest.fixture
def recipe(plant, tmp_path: Path) -> Path:
    """The recipe, to be spoilt."""
    return Path(shutil.copytree(plant.recipe, tmp_path / "recipe"))


def refused(answer, *words: str, status: int = 2) -> None:
    assert answer.status == status, answer.err
    line = answer.error()
    assert [word for word in words if word not in line] == []
    assert "; " in line, f"says no remedy: {line}"


def test_training_on_an_empty_folder(sam_inspect, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(sam_inspect("train", tmp_path / "empty", "--recipe", tmp_path / "r"), "empty")


def test_training_on_a_folder_that_does_not_exist(sam_inspect, tmp_path: Path) -> None:
    refused(sam_inspect("train", tmp_path / "nowhere", "--recipe", tmp_path / "r"), "nowhere")


def test_training_on_only_one_good_image(plant, sam_inspect, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(sorted(plant.product.glob("train/good/*"))[0], tmp_path / "one")
    refused(sam_inspect("train", tmp_path / "one", "--recipe", tmp_path / "r"), "one")
    assert not (tmp_path / "r" / "recipe.yaml").exists()


def test_training_where_no_image_can_be_read(sam_inspect, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.png").write_text("not a picture")
    answer = sam_inspect("train", tmp_path / "bad", "--recipe", tmp_path / "r")
    assert answer.status in (1, 2)
    assert "0.png" in answer.error()


def test_evaluating_without_ground_truth(plant, sam_inspect, copy: Path) -> None:
    shutil.rmtree(copy / "ground_truth")
    refused(sam_inspect("evaluate", copy, "--recipe", plant.recipe), "ground_truth")


def test_evaluating_a_defect_type_without_masks(plant, sam_inspect, copy: Path) -> None:
    kind = sorted((copy / "ground_truth").iterdir())[0]
    shutil.rmtree(kind)
    refused(sam_inspect("evaluate", copy, "--recipe", plant.recipe), kind.name)


def test_evaluating_against_a_mask_of_another_size(plant, sam_inspect, copy: Path) -> None:
    mask = sorted((copy / "ground_truth").glob("*/*"))[0]
    Image.open(mask).resize((31, 17)).save(mask)
    refused(sam_inspect("evaluate", copy, "--recipe", plant.recipe), mask.name, "31")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("PART,50,60,40,90", ["x"]),
        ("PART,100000,100000,100050,100090", ["outside"]),
        ("PART,a,60,40,90", ["a"]),
    ],
)
def test_boxes_that_cannot_be(sam_inspect, good: Path, tmp_path: Path, row: str, words: list[str]) -> None:
    part = sorted(good.iterdir())[0].name
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(f"image,x0,y0,x1,y1\n{row.replace('PART', part)}\n")
    refused(sam_inspect("inspect", good, "--boxes", boxes, "--out", tmp_path / "out"), "boxes.csv", *words)


def test_neither_recipe_nor_boxes(sam_inspect, good: Path, tmp_path: Path) -> None:
    refused(sam_inspect("inspect", good, "--out", tmp_path / "out"), "--recipe", "--boxes")


def test_a_misspelt_key_of_a_config(plant, sam_inspect, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("judge:\n  min_area_pix: 5\n")
    line = ["train", plant.product, "--recipe", tmp_path / "r", "--config", tmp_path / "mine.yaml"]
    refused(sam_inspect(*line), "mine.yaml", "min_area_pix", "did you mean 'min_area_px'?")


def test_a_misspelt_name_of_a_config(plant, sam_inspect, tmp_path: Path) -> None:
    line = ["train", plant.product, "--recipe", tmp_path / "r", "--config", "defualt"]
    refused(sam_inspect(*line), "defualt", "default")


def test_a_recipe_folder_that_does_not_exist(sam_inspect, good: Path, tmp_path: Path) -> None:
    refused(sam_inspect("inspect", good, "--recipe", tmp_path / "nowhere", "--out", tmp_path / "out"), "nowhere")


def test_a_recipe_of_a_newer_program(sam_inspect, recipe: Path, good: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((recipe / "recipe.yaml").read_text())
    key = next(key for key in content if "schema" in key or key == "version")
    (recipe / "recipe.yaml").write_text(yaml.safe_dump(content | {key: 99}))
    refused(sam_inspect("inspect", good, "--recipe", recipe, "--out", tmp_path / "out"), "recipe.yaml", "99")


@pytest.mark.parametrize("spoil", ["missing", "cut", "other bytes"])
def test_a_recipe_with_a_file_missing_cut_or_changed(
    sam_inspect, recipe: Path, good: Path, tmp_path: Path, spoil: str
) -> None:
    tensors = next(recipe.glob("*.safetensors"))
    whole = tensors.read_bytes()
    tensors.unlink()
    if spoil == "cut":
        tensors.write_bytes(whole[: len(whole) // 2])
    elif spoil == "other bytes":
        tensors.write_bytes(b"\x80\x04" + whole[2:])
    refused(sam_inspect("inspect", good, "--recipe", recipe, "--out", tmp_path / "out"), tensors.name)


def test_a_recipe_of_an_older_program(sam_inspect, recipe: Path, good: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((recipe / "recipe.yaml").read_text())
    for bank in content["localizer_facts"]["banks"]:
        del bank["rare"]
    (recipe / "recipe.yaml").write_text(yaml.safe_dump(content))
    run = sam_inspect("inspect", good, "--recipe", recipe, "--out", tmp_path / "out")
    refused(run, f"{recipe}: its memory bank lacks 'rare'; train it again")


def test_a_recipe_that_is_no_yaml(sam_inspect, recipe: Path, good: Path, tmp_path: Path) -> None:
    (recipe / "recipe.yaml").write_text("{ not: [yaml\n")
    refused(sam_inspect("inspect", good, "--recipe", recipe, "--out", tmp_path / "out"), "recipe.yaml")


def test_groups_that_cannot_be_read(plant, sam_inspect, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("picture\nx\n")
    line = ["evaluate", plant.product, "--recipe", plant.recipe, "--groups", tmp_path / "groups.csv"]
    refused(sam_inspect(*line), "groups.csv")


def test_json_that_cannot_be_written(plant, sam_inspect, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = ["evaluate", plant.product, "--recipe", plant.recipe, "--json", tmp_path / "file" / "figures.json"]
    refused(sam_inspect(*line), "file", "cannot be written", status=1)
    line[-1] = tmp_path
    refused(sam_inspect(*line), "cannot be written (Is a directory)", status=1)
