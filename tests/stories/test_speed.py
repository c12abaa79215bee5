"""The runtimes of a station: the same verdicts and masks from each, and a bench that says which is the fastest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.mark.slow
def test_every_runtime_gives_the_same_verdicts_and_masks(
    plant: Any, good: Path, tmp_path: Path, sam_inspect: Callable[..., Any], results: Callable[[Path], Any]
) -> None:
    found = {}
    for runtime in ("torch", "openvino", "onnx"):
        out = tmp_path / runtime
        options = ["--recipe", plant.recipe, "--out", out, "--save", "results", "--runtime", runtime]
        answer = sam_inspect("inspect", good, *options)
        assert answer.status == 0, answer.err
        found[runtime] = {
            name: (line["verdict"], [defect["mask"] for defect in line["defects"]])
            for name, line in results(out).items()
        }
    assert found["torch"] == found["openvino"] == found["onnx"]
    refused = sam_inspect("inspect", good, *options[:-1], "onnx", "--precision", "bf16")
    assert refused.status == 2
    assert "knows no bf16" in refused.error()


@pytest.mark.slow
def test_the_bench_records_the_fastest_that_keeps_every_mask(
    plant: Any, good: Path, tmp_path: Path, sam_inspect: Callable[..., Any]
) -> None:
    recipe = Path(shutil.copytree(plant.recipe, tmp_path / "recipe"))
    rows_file = tmp_path / "rows.json"
    answer = sam_inspect("bench", good, "--recipe", recipe, "--threads", "1", "--json", rows_file, "--check")
    assert answer.status == 0, answer.err
    found = json.loads(rows_file.read_text())
    assert {"processor", "cores", "torch", "openvino", "onnx"} <= found["machine"].keys()
    for row in found["networks"]:
        assert 0 < row["encode_1"]["p50"] <= row["encode_8"]["p95"]
        assert row["encode_gflops"] > 0
        assert row["product_gflops"] > 0
        assert 0 < row["decode_1"]["p50"] <= row["decode_8"]["p95"]
        assert row["off"] < (1e-4 if row["precision"] == "f32" else 0.1)
    rows = found["inspect"]
    assert [row["runtime"] for row in rows] == [row["runtime"] for row in found["networks"]]
    assert [row["runtime"] for row in rows] == ["torch", "torch", "openvino", "openvino", "onnx"]
    for row in rows:
        assert 0 < row["segment"] < row["defective"]["p50"]
        if row["precision"] == "f32":
            assert row["verdicts_kept"] == 4
            assert row["mask_iou"]["least"] > 0.99
    recorded = yaml.safe_load((recipe / "recipe.yaml").read_text())["runtime"]
    assert recorded["mask_iou"]["least"] >= 0.99
    assert f"runs on {recorded['runtime']} {recorded['precision']}" in answer.err
    again = sam_inspect("inspect", good, "--recipe", recipe, "--out", tmp_path / "out")
    assert again.status == 0, again.err
    homeless = sam_inspect("bench", "--check")
    assert homeless.status == 2
    assert "--check: there is no recipe to put it into" in homeless.error()
    nothing = sam_inspect("bench", "--recipe", recipe, "--threads", "x")
    assert nothing.status == 2
    assert "--threads x" in nothing.error()
