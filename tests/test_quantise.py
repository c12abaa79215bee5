"""An export in int8: which of its encoder's numbers become smaller, and when it is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_exports import facts
from torch import nn

from sam_inspect import quantise
from sam_inspect.errors import DatasetError, ExtraMissing, UsageError
from sam_inspect.exports import Export, load_export
from sam_inspect.networks.graphs import Runtime, graph
from sam_inspect.networks.runtime import exported
from sam_inspect.progress import silent
from sam_inspect.quantise import export_int8

NAMES = ("heatmap", "encoder", "decoder")


class Encoder(nn.Module):
    """A convolution and a linear layer, as in a SAM's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 64)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(images / 255).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.fixture
def whole(tmp_path: Path) -> Export:
    """An export whose encoder is a real graph."""
    torch.manual_seed(0)
    folder = write_export(tmp_path / "export")
    export = replace(load_export(folder), encoder=folder / "encoder.onnx", side_px=32)
    export.encoder.write_bytes(exported(Encoder().eval(), [torch.zeros(1, 3, 32, 32)]))
    return export


def write_export(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / f"{name}.onnx").write_bytes(b"graph")
    (folder / "recipe.json").write_text(json.dumps(facts()))
    return folder


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """Good parts and a broken one."""
    rng = np.random.default_rng(0)
    names = ["test/broken/0.png", "ground_truth/broken/0_mask.png", *(f"train/good/{place}.png" for place in range(8))]
    for name in names:
        file = tmp_path / "product" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(file)
    return tmp_path / "product"


@pytest.fixture
def recipe(tmp_path: Path, product: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that says what it was trained on, and is exported in no time."""

    def copied(recipe: Path, out: Path, *_: Any) -> Path:
        return write_export(out)

    monkeypatch.setattr(quantise, "load_recipe", lambda folder: SimpleNamespace(data=product))
    monkeypatch.setattr(quantise, "export", copied)
    monkeypatch.setattr(quantise, "_quantised", lambda *_: {"encoder.onnx": b"smaller"})
    return tmp_path / "recipe"


def overlaps(monkeypatch: pytest.MonkeyPatch, ious: Sequence[float]) -> None:
    monkeypatch.setattr(quantise, "_ious", lambda *_: list(ious))


def test_linear_layers_become_int8_and_convolutions_stay(whole: Export, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    views = [rng.uniform(0, 255, (1, 3, 32, 32)).astype(np.float32) for _ in range(4)]
    seen: list[str] = []

    def said(items: Any, description: str, total: int) -> Any:
        seen.append(description)
        return iter(items)

    files = quantise._quantised(whole, views, said)
    assert set(files) == {"encoder.xml", "encoder.bin"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    import openvino

    model = openvino.Core().read_model(tmp_path / "encoder.xml")
    weights = {op.get_element_type().get_type_name(): op.get_data().size for op in model.get_ops() if constant(op)}
    assert weights == {"i8": 16 * 64, "f32": 16 * 3 * 4 * 4}
    (before,), (after,) = (
        graph(file, Runtime("openvino"))([views[0]]) for file in (whole.encoder, tmp_path / "encoder.xml")
    )
    assert 0 < np.abs(after - before).mean() < 0.02 * np.abs(before).mean()
    assert "measure the ranges of int8" in seen


def constant(op: Any) -> bool:
    """Whether it holds a layer's weights."""
    return op.get_type_name() == "Constant" and op.get_data().size > 64


def test_masks_decide(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlaps(monkeypatch, [0.99, 0.96])
    found = export_int8(recipe, tmp_path / "kept", "openvino", None, silent)
    assert (found.mask_iou_mean, found.mask_iou_least, found.good_images) == (pytest.approx(0.975), 0.96, 8)
    assert (tmp_path / "kept/encoder.onnx").read_bytes() == b"smaller"
    load_export(tmp_path / "kept")  # its hashes are the new ones
    said = json.loads((tmp_path / "kept/recipe.json").read_text())["encoder"]["int8"]
    assert (said["defective_images"], said["mask_iou_least"]) == (2, 0.96)

    overlaps(monkeypatch, [0.99, 0.9])
    with pytest.raises(UsageError, match=r"by 0.945 on average, 0.900 at least .* 0.97 is asked for"):
        export_int8(recipe, tmp_path / "f32", "openvino", None, silent)
    assert (tmp_path / "f32/encoder.onnx").read_bytes() == b"graph"
    load_export(tmp_path / "f32")


def test_what_int8_needs_is_said_before_any_work(
    recipe: Path, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(problem: str, error: type[Exception], form: Any = "openvino") -> None:
        with pytest.raises(error, match=problem):
            export_int8(recipe, tmp_path / "out", form, None, silent)
        assert not (tmp_path / "out").exists()

    refused("--int8: is written for OpenVINO, not as onnx; give --format openvino", UsageError, "onnx")
    (product / "train/good/0.png").unlink()
    refused("holds 7 good images, too few to measure the ranges of int8 on; bring 8 or more", DatasetError)
    Image.new("RGB", (60, 40)).save(product / "train/good/0.png")
    (product / "test").rename(product / "elsewhere")
    refused("test: is not there", DatasetError)
    monkeypatch.setattr(quantise, "find_spec", lambda name: None)
    refused(r"--int8: NNCF is not installed; pip install 'sam-inspect\[int8\]'", ExtraMissing)


def test_a_broken_good_image_is_said_and_left_out(product: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = sorted((product / "train/good").iterdir())
    good[3].write_bytes(b"no picture")
    views = quantise._views(good, 64)
    assert len(views) == 2 * 7
    assert all(view.shape == (1, 3, 64, 64) and view.max() > 200 for view in views)
    assert "3.png" in caplog.text
