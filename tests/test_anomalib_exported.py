"""Models that anomalib exported, as localizers: the maps are the model's own, and no code of a file runs."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from sam_inspect.config import find_config
from sam_inspect.errors import SamInspectError, WeightsError
from sam_inspect.localize.anomalib_engine import build, train
from sam_inspect.localize.anomalib_exported import ExportedModel, read_files
from sam_inspect.localize.anomalib_model import AnomalibArgs, AnomalibModel
from sam_inspect.progress import silent
from sam_inspect.testing import check_localizer
from sam_inspect.training import from_anomalib

PADIM = {"backbone": "resnet18", "pre_trained": False, "layers": ["layer1"], "n_features": 30}


@dataclass(frozen=True)
class Exports:
    """One model in each form that anomalib writes."""

    model: Any
    onnx: Path
    fixed_onnx: Path
    openvino: Path
    torch: Path


@pytest.fixture(scope="module")
def exports(good_plates: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exports]:
    from anomalib.post_processing import PostProcessor

    root = tmp_path_factory.mktemp("exports")
    model = build("padim", PADIM, 64, {})
    train(model, good_plates, {}, 0, "cpu", silent)
    model.post_processor = PostProcessor(enable_normalization=False)
    yield Exports(
        model,
        model.to_onnx(root / "any"),
        model.to_onnx(root / "fixed", input_size=(64, 64)),
        model.to_openvino(root / "any"),
        model.to_torch(root / "any"),
    )


def a_hole(plates: Path) -> NDArray[np.uint8]:
    return np.array(Image.open(sorted((plates / "test/hole").iterdir())[0]))


@pytest.mark.parametrize("form", ["onnx", "fixed_onnx", "openvino"])
def test_an_export_draws_the_map_of_its_model(
    exports: Exports, form: str, plates: Path, good_plates: list[Path]
) -> None:
    own = AnomalibModel(AnomalibArgs(model="padim"), exports.model, "cpu").distances(a_hole(plates))[0]
    args = {"file": str(getattr(exports, form))}
    localizer, fit = ExportedModel.fit(good_plates, args, device="cpu", progress=silent)
    np.testing.assert_allclose(localizer.distances(a_hole(plates))[0], own, rtol=1e-3, atol=1e-3 * own.max())
    assert localizer.localize(a_hole(plates)).pred_score > 2 * fit.calibration_scores.max()


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_it_keeps_the_contract_of_localizers_without_its_file(
    exports: Exports, form: str, good_plates: list[Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(getattr(exports, form).parent, tmp_path / "moved")
    args = {"file": str(folder / getattr(exports, form).name)}
    check_localizer(ExportedModel, good_plates, args)
    tensors, facts = ExportedModel.fit(good_plates, args, device="cpu", progress=silent)[0].state()
    shutil.rmtree(folder)
    assert ExportedModel.from_state(args, tensors, facts, device="cpu").size_hw == (64, 64)


def test_a_torch_export_is_refused_until_it_is_trusted(exports: Exports, plates: Path, good_plates: list[Path]) -> None:
    config = find_config("padim").model_copy(deep=True)
    config.localizer.args.update(args=PADIM, size_px=64)
    refused = from_anomalib(config, exports.torch).localizer.args
    with pytest.raises(WeightsError, match=r"model\.pt: holds objects that can run code.*Padim.*--trust"):
        AnomalibModel.fit(good_plates, refused, device="cpu", progress=silent)
    trusted = from_anomalib(config, exports.torch, trust=True).localizer.args
    localizer, _ = AnomalibModel.fit(good_plates, trusted, device="cpu", progress=silent)
    own = AnomalibModel(AnomalibArgs(model="padim"), exports.model, "cpu")
    np.testing.assert_allclose(localizer.distances(a_hole(plates))[0], own.distances(a_hole(plates))[0], rtol=1e-5)


def written(folder: Path, output: str = "anomaly_map", sides: tuple[Any, Any] = (32, 32), crop: int = 0) -> Path:
    """A graph that answers with the darkness of its image, cropped or whole."""
    bounds = [
        helper.make_tensor(name, TensorProto.INT64, [2], values)
        for name, values in (("starts", [crop, crop]), ("ends", [32 - crop, 32 - crop]), ("axes", [2, 3]))
    ]
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["grey"], axes=[1]),
        helper.make_node("Neg", ["grey"], ["dark"]),
        helper.make_node("Slice", ["dark", "starts", "ends", "axes"], [output]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, *sides])
    drawn = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 1, None, None])
    graph = helper.make_graph(nodes, "dark", [image], [drawn], bounds)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def refusal(good_plates: list[Path], file: Path, **args: Any) -> str:
    with pytest.raises(SamInspectError) as caught:
        ExportedModel.fit(good_plates, {"file": str(file), **args}, device="cpu", progress=silent)
    assert str(file) in str(caught.value)
    return str(caught.value)


def test_what_an_export_does_not_say_is_asked_for(good_plates: list[Path], tmp_path: Path) -> None:
    assert "has no 'anomaly_map'" in refusal(good_plates, written(tmp_path, output="scores"))
    anything = written(tmp_path, sides=("height", "width"))
    assert "does not say the size" in refusal(good_plates, anything)
    args = {"file": str(anything), "size_px": 32}
    assert ExportedModel.fit(good_plates, args, device="cpu", progress=silent)[0].size_hw == (32, 32)


def test_an_export_that_crops_is_refused(good_plates: list[Path], tmp_path: Path) -> None:
    assert "it crops" in refusal(good_plates, written(tmp_path, crop=2))


def test_damaged_and_foreign_files_are_named(
    exports: Exports, good_plates: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "No such file" in refusal(good_plates, tmp_path / "none.onnx")
    (tmp_path / "cut.onnx").write_bytes(exports.onnx.read_bytes()[:1000])
    assert "is not an ONNX model" in refusal(good_plates, tmp_path / "cut.onnx")
    xml = shutil.copy(exports.openvino, tmp_path / "model.xml")
    with pytest.raises(WeightsError, match=r"model\.bin: No such file"):
        read_files(Path(xml))
    (tmp_path / "model.bin").write_bytes(b"")
    assert "openvino cannot run it" in refusal(good_plates, Path(xml))
    assert "is not an exported model" in refusal(good_plates, tmp_path / "model.pt")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'sam-inspect[onnx]'" in refusal(good_plates, exports.onnx)


def test_maps_that_anomalib_cut_are_a_warning(
    exports: Exports, good_plates: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from anomalib.post_processing import PostProcessor

    cutting = PostProcessor()
    for name in ("image", "pixel"):
        getattr(cutting, f"_{name}_threshold").fill_(5)
        getattr(cutting, f"{name}_max").fill_(5)
        getattr(cutting, f"{name}_min").fill_(0)
    exports.model.post_processor = cutting
    file = exports.model.to_onnx(tmp_path, input_size=(64, 64))
    with caplog.at_level(logging.WARNING, "sam_inspect"):
        ExportedModel.fit(good_plates, {"file": str(file)}, device="cpu", progress=silent)
    assert "cuts 100 % of good parts' maps" in caplog.text
