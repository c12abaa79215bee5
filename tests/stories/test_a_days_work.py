"""What a vision engineer does on the first day: train, inspect, look, evaluate, and use it from Python."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

MASK_COLUMNS = [
    "heatmap",
    "heatmap_oracle",
    "refined",
    "gt_boxes",
    "gt_boxes_filled",
    "gt_boxes_otsu",
    "gt_boxes_grabcut",
]
MASK_FIGURES = [
    "mean_iou",
    "mean_dice",
    "boundary_iou",
    "iou_over_75",
    "iou_over_90",
    "region_f1",
    "seconds",
]


def test_training_says_where_the_recipe_is_what_to_look_at_and_what_comes_next(
    sam_inspect, good_plates: list[Path], plates: Path, tmp_path: Path
) -> None:
    parts, recipe = tmp_path / "parts", tmp_path / "recipe"
    parts.mkdir()
    for part in (*good_plates, plates / "test/hole/008.png"):  # somebody took a hole for good
        shutil.copy(part, parts)
    trained = sam_inspect("train", parts, "--recipe", recipe)
    assert trained.status == 0, trained.err
    assert trained.out.strip() == str(recipe)
    assert "these good images look most like defects: 008.png " in trained.err
    assert f"sam-inspect inspect IMAGES --recipe {recipe}" in trained.err
    assert (recipe / "recipe.yaml").exists()
    assert list(recipe.glob("*.safetensors"))


@pytest.fixture(scope="module")
def parts(plant, tmp_path_factory) -> Path:
    """Three good parts and two of each type of defect, in folders by type."""
    folder = tmp_path_factory.mktemp("parts")
    for kind in (plant.product / "test").iterdir():
        for part in sorted(kind.iterdir())[: 3 if kind.name == "good" else 2]:
            (folder / kind.name).mkdir(exist_ok=True)
            shutil.copy(part, folder / kind.name)
    return folder


@pytest.fixture(scope="module")
def inspected(plant, parts: Path, sam_inspect, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("inspected") / "out"
    line = ["inspect", parts, "--recipe", plant.recipe, "--out", out]
    answer = sam_inspect(*line, "--save", "results,overlays,masks,maps,report")
    assert answer.status == 0, answer.err
    assert answer.out.strip().endswith(str(out / "index.html"))
    return out


def test_a_line_of_results_is_the_contract(inspected: Path, results) -> None:
    for row in results(inspected).values():
        assert {"image", "verdict", "score", "threshold", "defects", "error", "timings_ms", "size"} <= row.keys()
        assert (row["verdict"] == "fail") == bool(row["defects"]) == (row["score"] > row["threshold"])
        assert row["error"] is None
        assert {"read", "localize"} <= row["timings_ms"].keys()
        for defect in row["defects"]:
            assert {"box", "area_px", "area_mm2", "length_px", "score", "mask", "source"} <= defect.keys()
            assert defect["source"] in ("sam", "heatmap")
            assert defect["mask"]["size"] == row["size"]


def test_every_form_of_the_results_says_the_same(inspected: Path) -> None:
    rows = [json.loads(line) for line in (inspected / "results.jsonl").read_text().splitlines()]
    with (inspected / "summary.csv").open() as file:
        summary = {row["image"]: row for row in csv.DictReader(file)}
    coco = COCO(inspected / "coco.json")
    image_ids = {image["file_name"]: image["id"] for image in coco.dataset["images"]}
    for row in rows:
        assert summary[row["image"]]["verdict"] == row["verdict"]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_ids[row["image"]]))
        assert sorted(a["area"] for a in annotations) == sorted(d["area_px"] for d in row["defects"])
        image = Path(row["image"])
        mask = np.asarray(Image.open(inspected / "masks" / image.parent.name / f"{image.stem}.png"))
        union = np.zeros(row["size"], bool)
        for annotation in annotations:
            union |= coco.annToMask(annotation).astype(bool)
        assert np.array_equal(mask > 127, union)


def test_defects_are_found_and_good_parts_pass(inspected: Path) -> None:
    rows = [json.loads(line) for line in (inspected / "results.jsonl").read_text().splitlines()]
    good = [row["score"] for row in rows if Path(row["image"]).parent.name == "good"]
    bad = [row["score"] for row in rows if Path(row["image"]).parent.name != "good"]
    assert np.mean([[b > g for g in good] for b in bad]) > 0.9  # the area under the ROC curve


def test_a_limit_of_ones_own(plant, inspected: Path, sam_inspect, results, good: Path, tmp_path: Path) -> None:
    line = ["inspect", sorted(good.iterdir())[1], "--recipe", plant.recipe, "--save", "results"]
    assert sam_inspect(*line, "--out", tmp_path / "a", "--threshold", "0", "--min-area", "5").status == 0
    assert {row["threshold"] for row in results(tmp_path / "a").values()} == {0}
    assert all(d["area_px"] >= 5 for row in results(tmp_path / "a").values() for d in row["defects"])
    assert sam_inspect(*line, "--out", tmp_path / "b", "--false-reject-rate", "0.5").status == 0
    low, high = (next(iter(results(out).values()))["threshold"] for out in (tmp_path / "b", inspected))
    assert low < high
    both = sam_inspect(*line, "--out", tmp_path / "c", "--threshold", "1", "--false-reject-rate", "0.1")
    assert both.status == 2
    assert "--threshold" in both.error()


def test_only_what_save_names_is_written(plant, sam_inspect, good: Path, tmp_path: Path) -> None:
    line = ["inspect", good, "--recipe", plant.recipe, "--out", tmp_path / "out"]
    assert sam_inspect(*line, "--save", "masks").status == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["masks", "results.jsonl"]
    misspelt = sam_inspect(*line, "--save", "mask")
    assert misspelt.status == 2
    assert "did you mean masks?" in misspelt.error()


def test_python_gives_what_the_command_gives(plant, inspected: Path, results) -> None:
    from sam_inspect.pipeline import Inspector

    inspector = Inspector.from_recipe(plant.recipe, "cpu")
    name, row = next((name, row) for name, row in results(inspected).items() if row["verdict"] == "fail")
    path = Path(row["image"])
    for source in (path, path.read_bytes(), np.asarray(Image.open(path).convert("RGB"))):
        inspection = inspector.inspect(source, name)
        assert inspection.verdict == "fail"
        assert inspection.score == pytest.approx(row["score"], rel=1e-3)
        assert [list(defect.box_xyxy) for defect in inspection.defects] == [d["box"] for d in row["defects"]]


def test_evaluation_writes_the_figures_that_others_read(labelled: Path, sam_inspect, tmp_path: Path) -> None:
    line = ["evaluate", labelled, "--recipe", tmp_path / "recipe", "--json", tmp_path / "figures.json"]
    answer = sam_inspect(*line, "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    figures = json.loads((tmp_path / "figures.json").read_text())
    types = {folder.name for folder in labelled.glob("test/*")} - {"good"}
    assert set(figures["per_defect"]) == types
    for part in (figures, *figures["per_defect"].values()):
        assert {"auroc", "ap", "f1_max", "false_reject_rate", "miss_rate"} <= part["image"].keys()
        assert {"auroc", "ap", "f1_max", "iou_max", "au_pro_30", "au_pro_05"} <= part["pixel"].keys()
        assert set(MASK_COLUMNS) <= part["masks"].keys()
        assert all(set(MASK_FIGURES) <= part["masks"][column].keys() for column in MASK_COLUMNS)
    assert figures["image"]["auroc"] > 0.9
    assert figures["masks"]["refined"]["mean_iou"] > figures["masks"]["gt_boxes_otsu"]["mean_iou"] * 0.5
    assert {"count", "seconds"} <= figures.keys()
    for column in MASK_COLUMNS:
        assert column in answer.out
    assert (tmp_path / "out" / "index.html").exists()


def test_json_logs_leave_stdout_to_the_results(plant, sam_inspect, good: Path, tmp_path: Path) -> None:
    (good / "cut.png").write_text("")
    line = ["inspect", good, "--recipe", plant.recipe, "--out", tmp_path / "out", "--json-logs"]
    answer = sam_inspect(*line)
    logs = [json.loads(line) for line in answer.err.splitlines()]
    assert any(log["level"] == "warning" and "cut.png" in log["message"] for log in logs)
    assert "inspected" in answer.out


def test_quiet_says_nothing_beside_the_result(plant, sam_inspect, good: Path, tmp_path: Path) -> None:
    line = ["inspect", good, "--recipe", plant.recipe, "--out", tmp_path / "out", "--quiet"]
    assert sam_inspect(*line).err == ""


def test_boxes_from_elsewhere_need_no_recipe(
    parts: Path, sam_inspect, results, inspected: Path, tmp_path: Path
) -> None:
    shutil.copytree(parts, tmp_path / "test")
    line = ["inspect", tmp_path / "test", "--boxes", inspected / "coco.json", "--out", tmp_path / "out"]
    answer = sam_inspect(*line)
    assert answer.status == 0, answer.err
    given = json.loads((inspected / "coco.json").read_text())
    found = results(tmp_path / "out")
    assert sum(len(row["defects"]) for row in found.values()) >= 0.8 * len(given["annotations"])
    assert {row["score"] for row in found.values() if row["verdict"] == "pass"} <= {None, 0.0}
