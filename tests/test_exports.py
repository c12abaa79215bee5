"""An export's folder: what is read of it, what is refused, and images of other sizes than it was made for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam_inspect.errors import ImageError, RecipeError, UsageError
from sam_inspect.exports import Export, is_export, load_export
from sam_inspect.localize.exported_map import ExportedMap
from sam_inspect.pipeline import Inspector
from sam_inspect.records import Prompt, View
from sam_inspect.segment.exported_sam import ExportedSam

HW, MAP_HW = (120, 160), (30, 40)


def facts(**changes: Any) -> dict[str, Any]:
    graph = hashlib.sha256(b"graph").hexdigest()
    return {
        "schema_version": 2,
        "format": "onnx",
        "heatmap": {
            "file": "heatmap.onnx",
            "original": {"width": HW[1], "height": HW[0]},
            "inputs": [{"name": "input_0", "width": 80, "height": 60}],
        },
        "threshold": 0.7,
        "calibration_scores": [0.1, 0.2, 0.4],
        "encoder": {"file": "encoder.onnx", "side_px": 64, "pad_with": [1.0, 2.0, 3.0]},
        "decoder": {"file": "decoder.onnx"},
        "prompt": {"grow": 0.5},
        "choose": {},
        "judge": {"min_area_px": 3},
        "weights": {},
        "sha256": {f"{name}.onnx": graph for name in ("heatmap", "encoder", "decoder")},
    } | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("heatmap", "encoder", "decoder"):
        (tmp_path / f"{name}.onnx").write_bytes(b"graph")
    write(tmp_path, facts())
    return tmp_path


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "recipe.json").write_text(json.dumps(content))


def test_an_export_is_read_back(folder: Path) -> None:
    assert is_export(folder)
    export = load_export(folder)
    assert (export.threshold, export.original_hw, export.looks_hw) == (0.7, HW, ((60, 80),))
    assert export.recipe.config.prompt.grow == 0.5
    assert export.recipe.config.judge.min_area_px == 3
    assert export.encoder == folder / "encoder.onnx"
    np.testing.assert_allclose(export.recipe.calibration_scores, [0.1, 0.2, 0.4])
    (folder / "recipe.yaml").write_text("")
    assert not is_export(folder)


def test_what_is_no_whole_export_is_refused(folder: Path) -> None:
    for content, problem in (
        (facts(schema_version=3), "its schema is 3, this program's is 2; update sam-inspect"),
        (facts(schema_version=1), "its schema is 1, this program's is 2; export it again"),
        ({"format": "onnx"}, "has no schema_version"),
        ({name: value for name, value in facts().items() if name != "heatmap"}, "'heatmap' is missing or malformed"),
        (facts(sha256={"../recipe.yaml": "0"}), "recipe.yaml: cannot be read"),
    ):
        write(folder, content)
        with pytest.raises(RecipeError, match=problem):
            load_export(folder)
    (folder / "recipe.json").write_text("{")
    with pytest.raises(RecipeError, match=r"recipe.json: cannot be read"):
        load_export(folder)
    write(folder, facts())
    (folder / "encoder.onnx").write_bytes(b"gra")
    with pytest.raises(RecipeError, match=r"encoder.onnx: is cut or was changed"):
        load_export(folder)


def test_a_graph_that_no_runtime_knows_and_what_an_export_cannot_do(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"encoder.onnx: openvino f32 does not run it .*; export it again"):
        Inspector.from_recipe(folder)
    with pytest.raises(UsageError, match="an export runs on the CPU"):
        Inspector.from_recipe(folder, "cuda")
    with pytest.raises(UsageError, match="an export has one decoder"):
        Inspector.from_recipe(folder, tuned=False)
    write(folder, facts(format="openvino"))
    with pytest.raises(UsageError, match="--runtime onnx: an export as openvino runs in openvino"):
        Inspector.from_recipe(folder, runtime="onnx")


@pytest.fixture
def export(folder: Path) -> Export:
    return load_export(folder)


def brightness(looks: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """A heatmap graph whose map is the image's red, a quarter of its size."""
    (look,) = looks
    assert look.shape == (1, 3, 60, 80)
    return [look[0, 0].reshape(30, 2, 40, 2).mean((1, 3))]


def test_a_larger_image_is_seen_in_tiles_of_the_exports_size(export: Export) -> None:
    localizer = ExportedMap(export, brightness)
    image = np.zeros((200, 400, 3), np.uint8)
    image[150:170, 330:360] = 240
    found = localizer.localize(image)
    assert found.anomaly_map is not None
    assert found.anomaly_map.shape == (50, 100)
    ys, xs = np.nonzero(found.anomaly_map > 120)
    assert (ys.min() * 4, (ys.max() + 1) * 4) == (pytest.approx(150, abs=4), pytest.approx(170, abs=4))
    assert (xs.min() * 4, (xs.max() + 1) * 4) == (pytest.approx(330, abs=4), pytest.approx(360, abs=4))
    assert found.pred_score == found.anomaly_map.max()
    assert localizer.localize(np.zeros((121, 158, 3), np.uint8)).anomaly_map.shape == MAP_HW  # type: ignore[union-attr]
    assert localizer.localize(np.zeros((120, 300, 3), np.uint8)).anomaly_map.shape == (30, 75)  # type: ignore[union-attr]


def test_an_image_that_is_hardly_larger_than_the_exports_is_seen_to_its_edge(export: Export) -> None:
    coarse = ExportedMap(export, lambda looks: [brightness(looks)[0].reshape(6, 5, 8, 5).mean((1, 3))])
    image = np.zeros((120, 164, 3), np.uint8)
    image[:, 162:] = 240
    assert coarse.localize(image).pred_score > 0


def test_a_smaller_image_is_refused_by_name(export: Export) -> None:
    inspector = Inspector(
        export.recipe.config,
        ExportedSam(export, brightness, brightness),
        localizer=ExportedMap(export, brightness),
        threshold=1.0,
    )
    refused = r"line 3: an image of 160 x 100 pixels, but the export is for 160 x 120; .* --size 160x100"
    with pytest.raises(ImageError, match=refused):
        inspector.inspect(np.zeros((100, 160, 3), np.uint8), "line 3")


def test_prompts_reach_the_decoder_in_the_views_frame(export: Export) -> None:
    asked = []

    def encoder(views: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        (view,) = views
        np.testing.assert_array_equal(view[0, :, 0, 0], [7, 7, 7])
        np.testing.assert_array_equal(view[0, :, 63, 0], [1, 2, 3])
        return [np.zeros((1, 256, 4, 4), np.float32)]

    def decoder(inputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        asked.append(inputs[1:])
        n = len(inputs[1])
        return [np.zeros((n, 4, 16, 16), np.float32), np.arange(n * 4, dtype=np.float32).reshape(n, 4)]

    click = Prompt(points_xy=np.array([[30, 20]], np.float32), point_labels=np.array([1]))
    boxes = [Prompt(box_xyxy=(10.0 + place, 10.0, 50.0, 30.0)) for place in range(9)]
    view = View((10, 10, 138, 74), 512, (boxes[0], click, *boxes[1:]))
    answers = ExportedSam(export, encoder, decoder).segment(np.full((*HW, 3), 7, np.uint8), [view])
    assert [answer.prompt for answer in answers] == list(view.prompts)
    assert answers[0].view.input_px == 64
    (points, labels), *_ = [(p, n) for p, n in asked if n.shape == (1, 2) and n[0, 0] == 1]
    np.testing.assert_allclose(points, [[[10, 5], [0, 0]]])
    np.testing.assert_allclose(labels, [[1, -1]])
    boxed = [p for p, n in asked if n[0, 0] == 2]
    assert [len(points) for points in boxed] == [8, 1]
    np.testing.assert_allclose(boxed[0][1], [[0.5, 0], [20, 10]])
