"""A recipe as graphs: what they answer is what sam_inspect answers, and a program without it finds the same defects."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from PIL import Image
from pycocotools import mask as rle

from sam_inspect.images import read_image
from sam_inspect.localize import nearest
from sam_inspect.pipeline import Inspector
from sam_inspect.records import Prompt, View
from sam_inspect.segment.sam import Sam

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/run_exported.py"


def sessions(folder: Path) -> tuple[dict[str, Any], dict[str, InferenceSession]]:
    recipe = json.loads((folder / "recipe.json").read_text())
    return recipe, {name: InferenceSession(folder / recipe[name]["file"]) for name in ("heatmap", "encoder", "decoder")}


def planes(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)


def test_the_graphs_answer_as_sam_inspect_does(
    plant: Any, good: Path, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "_fast_dtype", lambda device: torch.float32)
    inspector = Inspector.from_recipe(plant.recipe, "cpu", runtime="torch")
    recipe, graphs = sessions(export)
    assert recipe["threshold"] == pytest.approx(inspector.threshold)
    for path in sorted(good.iterdir()):
        image = read_image(path)
        looks = {}
        for look in recipe["heatmap"]["inputs"]:
            by = cv2.INTER_AREA if look["height"] < image.shape[0] else cv2.INTER_LINEAR
            looks[look["name"]] = planes(cv2.resize(image, (look["width"], look["height"]), interpolation=by))
        (found,) = graphs["heatmap"].run(None, looks)
        assert inspector.localizer is not None
        np.testing.assert_allclose(found, inspector.localizer.localize(image).anomaly_map, atol=1e-3)

    sam, side = inspector.segmenter, recipe["encoder"]["side_px"]
    assert isinstance(sam, Sam)
    square = np.ascontiguousarray(image[:200, :200])
    view = View((0, 0, 200, 200), side, ())
    (embedding,) = sam.encode(square, [view])
    shown = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BILINEAR))
    (features,) = graphs["encoder"].run(None, {"input_0": planes(shown)})
    np.testing.assert_allclose(features, embedding.features.numpy(), atol=1e-3)
    box = Prompt(box_xyxy=(40.0, 50.0, 120.0, 130.0))
    click = Prompt(points_xy=np.array([[80, 90]], np.float32), point_labels=np.array([1]))
    scale = side / 200
    asked = {
        "box": (np.float32([[[40, 50], [120, 130]]]) * scale, np.float32([[2, 3]]), box),
        "click": (np.float32([[[80 * scale, 90 * scale], [0, 0]]]), np.float32([[1, -1]]), click),
    }
    for points, labels, prompt in asked.values():
        logits, iou = graphs["decoder"].run(None, {"input_0": features, "input_1": points, "input_2": labels})
        (own,) = sam.decode(embedding, [prompt])
        np.testing.assert_allclose(logits[0], own.low_res_logits, atol=1e-3 * np.abs(own.low_res_logits).max())
        np.testing.assert_allclose(iou[0], own.predicted_iou, atol=1e-3)


def test_a_program_without_sam_inspect_finds_the_same_defects(
    plant: Any,
    good: Path,
    export: Path,
    tmp_path: Path,
    sam_inspect: Callable[..., Any],
    results: Callable[[Path], Any],
) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 80
    parts = sorted(good.iterdir())[1:3]
    assert sam_inspect("inspect", *parts, "--recipe", plant.recipe, "--out", tmp_path / "out").status == 0
    assert {row["verdict"] for row in results(tmp_path / "out").values()} == {"pass", "fail"}
    agree(export, parts, results(tmp_path / "out"), tmp_path)


def test_it_sees_mirror_images_too_where_a_tuned_recipe_says_so(
    good: Path, export: Path, tmp_path: Path, sam_inspect: Callable[..., Any], results: Callable[[Path], Any]
) -> None:
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    for file in export.iterdir():
        (tuned / file.name).symlink_to(file)
    recipe = json.loads((export / "recipe.json").read_text())
    recipe["choose"]["mirrored"] = True
    (tuned / "recipe.json").unlink()
    (tuned / "recipe.json").write_text(json.dumps(recipe))
    part = sorted(good.iterdir())[0]
    assert sam_inspect("inspect", part, "--recipe", tuned, "--out", tmp_path / "out").status == 0
    own = results(tmp_path / "out")
    assert own[part.name]["defects"]
    agree(tuned, [part], own, tmp_path)


def agree(export: Path, parts: list[Path], own: Any, folder: Path) -> None:
    """Runs the example and holds its verdicts, scores and masks against those of `inspect`."""
    command = [sys.executable, str(EXAMPLE), str(export), *map(str, parts)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=True)
    rows = {Path(row["image"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    assert len(rows) == len(parts)
    for name, row in rows.items():
        assert row["verdict"] == own[name]["verdict"]
        assert row["score"] == pytest.approx(own[name]["score"], rel=0.05)
        drawn = np.array(Image.open(folder / f"{Path(name).stem}_mask.png")) > 0
        found = np.any([np.zeros_like(drawn), *(rle.decode(defect["mask"]) for defect in own[name]["defects"])], 0)
        assert (drawn & found).sum() > 0.95 * (drawn | found).sum() or not (drawn | found).any()


def test_what_cannot_be_exported_is_named(plant: Any, tmp_path: Path, sam_inspect: Callable[..., Any]) -> None:
    tiled = sam_inspect("export", plant.recipe, "--out", tmp_path, "--size", "4000x300")
    assert tiled.status == 2
    assert "images of 4000 x 300 pixels are cut into tiles" in tiled.error()
    wrong = sam_inspect("export", plant.recipe, "--out", tmp_path, "--size", "big")
    assert wrong.status == 2
    assert "--size big: is not a size" in wrong.error()
    assert not list(tmp_path.iterdir())


def test_openvino_takes_the_export(plant: Any, tmp_path: Path, sam_inspect: Callable[..., Any]) -> None:
    import openvino

    answer = sam_inspect("export", plant.recipe, "--out", tmp_path, "--format", "openvino")
    assert answer.status == 0, answer.err
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    model = openvino.Core().read_model(tmp_path / recipe["heatmap"]["file"])
    assert [list(port.shape)[2:] for port in model.inputs] == [
        [look["height"], look["width"]] for look in recipe["heatmap"]["inputs"]
    ]
    assert {path.name for path in tmp_path.iterdir()} == {*recipe["sha256"], "recipe.json"}


@pytest.mark.slow
def test_a_station_runs_an_export_in_int8(
    plant: Any, good: Path, tmp_path: Path, sam_inspect: Callable[..., Any], results: Callable[[Path], Any]
) -> None:
    recipe = tmp_path / "recipe"
    assert sam_inspect("train", plant.product, "--recipe", recipe).status == 0
    answer = sam_inspect("export", recipe, "--out", tmp_path / "int8", "--format", "openvino", "--int8")
    assert answer.status == 0, answer.err
    assert answer.out.strip() == str(tmp_path / "int8/recipe.json")
    said = json.loads((tmp_path / "int8/recipe.json").read_text())["encoder"]["int8"]
    assert said["mask_iou_mean"] >= 0.97
    assert f"by {said['mask_iou_mean']:.3f} on average" in answer.err
    assert sam_inspect("inspect", good, "--recipe", tmp_path / "int8", "--out", tmp_path / "out").status == 0
    assert sam_inspect("inspect", good, "--recipe", recipe, "--out", tmp_path / "own").status == 0
    own = results(tmp_path / "own")
    for name, row in results(tmp_path / "out").items():
        assert row["verdict"] == own[name]["verdict"]
        assert row["score"] == pytest.approx(own[name]["score"], rel=0.05)
