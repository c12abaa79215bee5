"""A station: an environment without torch or anomalib, which inspects with an export as the office does."""

from __future__ import annotations

import os
import re
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ("torch", "torchvision", "timm", "anomalib", "sklearn", "scipy", "onnx", "segment_anything")
MOST_MB = 600


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with `sam-inspect[station]`, from the package index that pip knows."""
    folder = tmp_path_factory.mktemp("station") / "env"
    venv.create(folder, with_pip=True)
    line = ["-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), f"{ROOT}[station]"]
    subprocess.run([str(folder / "bin" / "python"), *line], check=True, timeout=500)
    return folder


def at(station: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """The command there."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = [str(station / "bin" / "sam-inspect"), *map(str, words)]
    return subprocess.run(line, cwd=station, env=env, capture_output=True, text=True, timeout=300)


def masks(row: dict[str, Any]) -> Any:
    return np.any([rle.decode(defect["mask"]) for defect in row["defects"]], 0)


def test_a_station_is_small_and_knows_what_it_lacks(plant: Any, station: Path) -> None:
    size = sum(file.stat().st_blocks * 512 for file in station.rglob("*") if file.is_file() and not file.is_symlink())
    assert size < MOST_MB * 1e6
    look = "import importlib.util as u, sys; print([m for m in sys.argv[1:] if u.find_spec(m)])"
    found = subprocess.run([str(station / "bin" / "python"), "-c", look, *TRAINING], capture_output=True, text=True)
    assert found.stdout.strip() == "[]"

    doctor = at(station, "doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "needs an extra" in doctor.stdout
    trained = at(station, "train", plant.product, "--recipe", station / "recipe")
    assert (trained.returncode, trained.stderr) == (
        2,
        "error: torch is not installed; pip install 'sam-inspect[torch]'\n",
    )
    inspected = at(station, "inspect", plant.product, "--recipe", plant.recipe, "--out", station / "out")
    assert inspected.returncode == 2
    assert "torch, in which recipes run (exports run without), is not installed" in inspected.stderr


def test_a_station_gives_the_verdicts_and_masks_of_the_office(
    plant: Any,
    good: Path,
    export: Path,
    station: Path,
    tmp_path: Path,
    sam_inspect: Callable[..., Any],
    results: Callable[[Path], Any],
) -> None:
    parts = sorted(good.iterdir())[1:3]
    answer = at(station, "inspect", *parts, "--recipe", export, "--out", tmp_path / "station")
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "station" / "index.html").is_file()
    assert sam_inspect("inspect", *parts, "--recipe", plant.recipe, "--out", tmp_path / "office").status == 0
    there, here = results(tmp_path / "station"), results(tmp_path / "office")
    assert {name: row["verdict"] for name, row in there.items()} == {n: row["verdict"] for n, row in here.items()}
    assert {row["verdict"] for row in here.values()} == {"pass", "fail"}
    for name, row in here.items():
        if row["defects"]:
            ours, theirs = masks(row), masks(there[name])
            assert (ours & theirs).sum() >= 0.97 * (ours | theirs).sum()
    again = at(station, "inspect", *parts, "--recipe", export, "--out", tmp_path / "station")
    assert "inspected" in again.stdout
    assert re.search(r"│ 0 +│ +2 │", again.stdout), "none inspected, both resumed"


def test_a_station_serves(export: Path, station: Path, serving: Callable[..., Any], good: Path, tmp_path: Path) -> None:
    words = ("--recipe", export, "--data", tmp_path)
    with serving(*words, python=station / "bin" / "python") as service:
        for image in good.iterdir():
            verdict = service.send(image).json()["verdict"]
            assert verdict == ("pass" if image.name.startswith("good") else "fail")
        assert "sam_inspect" in service.get("/").text


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_an_export_runs_in_both_runtimes_and_with_given_boxes(
    runtime: str,
    good: Path,
    export: Path,
    tmp_path: Path,
    sam_inspect: Callable[..., Any],
    results: Callable[[Path], Any],
) -> None:
    picture = next(path for path in sorted(good.iterdir()) if not path.name.startswith("good"))
    (tmp_path / "boxes.csv").write_text(f"image,x0,y0,x1,y1\n{picture.name},40,40,120,120\n")
    options = ["--recipe", export, "--runtime", runtime, "--save", "results"]
    assert sam_inspect("inspect", picture, *options, "--out", tmp_path / "a").status == 0
    boxed = sam_inspect("inspect", picture, *options, "--boxes", tmp_path / "boxes.csv", "--out", tmp_path / "b")
    assert boxed.status == 0, boxed.err
    assert results(tmp_path / "a")[picture.name]["verdict"] == "fail"
    (defect,) = results(tmp_path / "b")[picture.name]["defects"]
    assert defect["source"] == "sam"
    torch = sam_inspect("inspect", picture, "--recipe", export, "--runtime", "torch", "--out", tmp_path / "c")
    assert torch.status == 2
    assert "--runtime torch: an export as onnx runs in openvino or onnx" in torch.error()
