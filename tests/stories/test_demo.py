"""The first thing that a newcomer runs: it comes to an end, shows figures and pictures, and can be run again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


def figures_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results" / "figures.json").read_text())
    return found


def numbers(figures: dict[str, Any], path: str = "") -> dict[str, float]:
    """Each of them by where it stands, without the seconds."""
    found: dict[str, float] = {}
    for key, value in figures.items():
        if key == "seconds":
            continue
        if isinstance(value, dict):
            found |= numbers(value, f"{path}/{key}")
        else:
            found[f"{path}/{key}"] = value
    return found


def test_it_prints_a_table_and_the_path_of_the_page(plant) -> None:
    page = plant.demo / "results" / "index.html"
    assert plant.said.out.splitlines()[-1] == str(page)
    assert page.stat().st_size > 0
    for word in ("chip", "contamination", "dent", "scratch", "refined", "gt_boxes", "auroc"):
        assert word in plant.said.out.lower()


def test_the_drawn_defects_are_found_and_outlined(plant) -> None:
    figures = figures_of(plant.demo)
    assert figures["count"]["defective"] == 20
    assert figures["image"]["auroc"] > 0.9
    ious = {column: figures["masks"][column]["mean_iou"] for column in ("refined", "heatmap", "heatmap_oracle")}
    assert ious["refined"] > max(ious["heatmap"], ious["heatmap_oracle"])


def test_each_defective_part_has_its_pictures(plant) -> None:
    lines = (plant.demo / "results" / "results.jsonl").read_text().splitlines()
    inspected = {Path(json.loads(line)["image"]) for line in lines}
    assert inspected == set((plant.product / "test").glob("*/*.png"))
    for image in inspected:
        assert (plant.demo / "results" / "masks" / image.parent.name / f"{image.stem}.png").exists()


@pytest.mark.slow
def test_a_newcomers_demo_is_of_the_default_recipe(sam_inspect, tmp_path: Path) -> None:
    answer = sam_inspect("demo", "--out", tmp_path / "demo")
    assert answer.status == 0, answer.err
    figures = figures_of(tmp_path / "demo")
    assert figures["image"]["auroc"] > 0.99
    assert figures["pixel"]["au_pro_30"] > 0.98
    assert figures["masks"]["refined"]["mean_iou"] > 0.6


@pytest.mark.slow
def test_it_can_be_run_again_where_it_was_interrupted_or_spoilt(plant, small, sam_inspect, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(plant.demo, folder)
    before = figures_of(folder)
    spoilt = folder / "product" / "train" / "good" / "003.png"
    whole = spoilt.read_bytes()
    spoilt.write_bytes(whole[:5000])
    next((folder / "recipe").glob("*.safetensors")).unlink()
    answer = sam_inspect("demo", "--config", small, "--out", folder, "--quiet")
    assert answer.status == 0, answer.err
    assert spoilt.read_bytes() == whole
    assert numbers(figures_of(folder)) == pytest.approx(numbers(before), rel=1e-6)  # another runtime may be the fastest


@pytest.mark.parametrize("name", ["product", "recipe", "results"])
def test_ones_own_work_is_not_written_over(sam_inspect, tmp_path: Path, name: str) -> None:
    mine = tmp_path / name / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("a week's work")
    answer = sam_inspect("demo", "--out", tmp_path)
    assert answer.status == 2
    assert str(mine.parent) in answer.error()
    assert "choose another folder" in answer.error()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
