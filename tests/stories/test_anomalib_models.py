"""A recipe whose heatmap is anomalib's, through the same commands."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from sam_inspect.localize.anomalib_engine import build, train
from sam_inspect.progress import silent

DOCS = Path(__file__).resolve().parents[2] / "docs" / "anomalib.md"
PADIM: dict[str, Any] = {
    "model": "padim",
    "args": {"backbone": "resnet18", "pre_trained": False, "layers": ["layer1"], "n_features": 30},
}


@pytest.fixture(autouse=True)
def sam(weights: Callable[[str], Any]) -> None:
    weights("mobile_sam")


def intersection_over_union(line: dict[str, Any], plates: Path) -> float:
    """Of the most striking defect of a picture and its ground truth."""
    truth = np.array(Image.open(plates / "ground_truth/hole" / f"{Path(line['image']).stem}_mask.png")) > 0
    found = rle.decode(line["defects"][0]["mask"]).astype(bool)
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.slow
def test_the_docs_command_trains_and_tests_through_anomalibs_own_cli(plates: Path, tmp_path: Path) -> None:
    (tmp_path / "bottle").symlink_to(plates)
    (command,) = re.findall(r"^(anomalib train .*SamRefined.*)$", DOCS.read_text(encoding="utf-8"), re.M)
    small = [
        "--model.detector_args",
        json.dumps(PADIM["args"]),
        "--data.root",
        str(tmp_path),
        "--data.num_workers",
        "0",
    ]
    words = [*shlex.split(command), *small, "--trainer.accelerator", "cpu"]
    words[0] = str(Path(sys.executable).with_name("anomalib"))
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"full_RegionF1\s*│\s*1\.0", done.stdout), done.stdout
    pictures = list((tmp_path / "results").rglob("images/**/*.png"))
    assert pictures


def test_an_anomalib_model_is_trained_inspects_is_scored_and_its_masks_are_tuned(
    plates: Path, good_plates: list[Path], tmp_path: Path, sam_inspect: Callable[..., Any]
) -> None:
    recipe, out = tmp_path / "recipe", tmp_path / "out"
    config = tmp_path / "mine.yaml"
    localizer = {"name": "anomalib", "args": {**PADIM, "size_px": 64}}
    config.write_text(json.dumps({"localizer": localizer, "segmenter": {"name": "mobile_sam"}}))

    trained = sam_inspect("train", plates, "--recipe", recipe, "--config", config)
    assert trained.status == 0, trained.err
    assert not any(word in trained.err for word in ("GPU available", "Warning", "Traceback"))
    found = sam_inspect("inspect", good_plates[2], plates / "test/hole", "--recipe", recipe, "--out", out)
    assert found.status == 0, found.err
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["pass"] + ["fail"] * 4
    for line in lines[1:]:
        assert intersection_over_union(line, plates) > 0.8

    scored = sam_inspect("evaluate", plates, "--recipe", recipe, "--json", tmp_path / "figures.json")
    assert scored.status == 0, scored.err
    assert json.loads((tmp_path / "figures.json").read_text())["pixel"]["auroc"] > 0.9
    tuned = sam_inspect("finetune", plates, "--recipe", recipe, "--preset", "study", "--epochs", "1")
    assert tuned.status == 0, tuned.err
    assert (recipe / "finetune/compare.html").is_file()

    wrong = sam_inspect("train", plates, "--recipe", tmp_path / "other", "--from-anomalib", "model.ckpt")
    assert wrong.status == 2
    assert "name a config of that model" in wrong.err


def test_an_export_of_anomalib_inspects(
    plates: Path, good_plates: list[Path], tmp_path: Path, sam_inspect: Callable[..., Any]
) -> None:
    model = build("padim", PADIM["args"], 64, {})
    train(model, good_plates, {}, 0, "cpu", silent)
    file = model.to_onnx(tmp_path)
    trained = sam_inspect("train", plates, "--recipe", tmp_path / "recipe", "--from-anomalib", file)
    assert trained.status == 0, trained.err
    shutil.rmtree(file.parent)
    parts, out = plates / "test/hole", tmp_path / "out"
    found = sam_inspect("inspect", parts, "--recipe", tmp_path / "recipe", "--out", out)
    assert found.status == 0, found.err
    for line in (out / "results.jsonl").read_text().splitlines():
        assert intersection_over_union(json.loads(line), plates) > 0.8
    cut = sam_inspect("train", plates, "--recipe", tmp_path / "other", "--from-anomalib", tmp_path / "gone.onnx")
    assert cut.status == 1
    assert "gone.onnx: No such file" in cut.error()
