"""A recipe whose heatmap is anomalib's, through the same commands."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "docs" / "anomalib.md"
PADIM = {
    "model": "padim",
    "args": {"backbone": "resnet18", "pre_trained": False, "layers": ["layer1"], "n_features": 30},
}


def plate(number: int, hole: bool = False) -> Image.Image:
    """96 x 128 pixels of even grain, with a dark hole or without."""
    pixels = np.random.default_rng(number).normal(140, 6, (96, 128, 3))
    if hole:
        pixels[60:75, 90:110] = 20
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def test_the_docs_command_trains_and_tests_through_anomalibs_own_cli(
    tmp_path: Path, weights: Callable[[str], Any]
) -> None:
    weights("mobile_sam")
    for number in range(9):
        part = "train/good" if number < 4 else "test/good" if number < 6 else "test/hole"
        (tmp_path / "bottle" / part).mkdir(parents=True, exist_ok=True)
        plate(number, hole=number >= 6).save(tmp_path / "bottle" / part / f"{number:03d}.png")
    truth = np.zeros((96, 128), np.uint8)
    truth[60:75, 90:110] = 255
    (tmp_path / "bottle/ground_truth/hole").mkdir(parents=True)
    for number in (6, 7, 8):
        Image.fromarray(truth).save(tmp_path / f"bottle/ground_truth/hole/{number:03d}_mask.png")
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


def test_an_anomalib_model_is_trained_and_inspects(
    tmp_path: Path, sam_inspect: Callable[..., Any], weights: Callable[[str], Any]
) -> None:
    weights("mobile_sam")
    good, parts, recipe, out = (tmp_path / name for name in ("good", "parts", "recipe", "out"))
    good.mkdir()
    parts.mkdir()
    for number in range(6):
        plate(number).save(good / f"{number}.png")
    plate(7, hole=True).save(parts / "hole.png")
    plate(2).save(parts / "fine.png")
    config = tmp_path / "mine.yaml"
    localizer = {"name": "anomalib", "args": {**PADIM, "size_px": 64}}
    config.write_text(json.dumps({"localizer": localizer, "segmenter": {"name": "mobile_sam"}}))

    trained = sam_inspect("train", good, "--recipe", recipe, "--config", config)
    assert trained.status == 0, trained.err
    assert not any(word in trained.err for word in ("GPU available", "Warning", "Traceback"))
    found = sam_inspect("inspect", parts, "--recipe", recipe, "--out", out)
    assert found.status == 0, found.err
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {Path(line["image"]).name: line["verdict"] for line in lines} == {"hole.png": "fail", "fine.png": "pass"}
    (hole,) = (line for line in lines if line["verdict"] == "fail")
    x0, y0, x1, y1 = hole["defects"][0]["box"]
    assert abs(x0 - 90) + abs(y0 - 60) + abs(x1 - 110) + abs(y1 - 75) < 20

    wrong = sam_inspect("train", good, "--recipe", tmp_path / "other", "--from-anomalib", "model.ckpt")
    assert wrong.status == 2
    assert "name a config of that model" in wrong.err
