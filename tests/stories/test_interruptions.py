"""Power cuts, full disks, Ctrl-C: what is done stays done, and the same command goes on."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest


@pytest.fixture
def many(plant, tmp_path: Path) -> Path:
    """Ten pictures."""
    folder = tmp_path / "images"
    folder.mkdir()
    for part in sorted(plant.product.glob("test/*/*"))[-10:]:
        shutil.copy(part, folder / f"{part.parent.name}_{part.name}")
    return folder


def lines(out: Path) -> list[str]:
    file = out / "results.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def test_ctrl_c_in_the_middle_and_the_same_command_goes_on(
    plant, sam_inspect, launch, results, many: Path, tmp_path: Path
) -> None:
    line = ["inspect", many, "--recipe", plant.recipe, "--out", tmp_path / "out"]
    process = launch(*line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while len(lines(tmp_path / "out")) < 3 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err
    assert "same command" in err
    before = lines(tmp_path / "out")
    assert 3 <= len(before) < 10

    answer = sam_inspect(*line)
    assert answer.status == 0, answer.err
    assert len(results(tmp_path / "out")) == 10
    assert set(before) <= set(lines(tmp_path / "out"))  # kept to the letter, not done again
    assert not list((tmp_path / "out").rglob(".part-*"))


IMPORTED_IN_C = """
import os, signal, time

try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt as pressed:
    raise ImportError("initialization failed") from pressed
"""


@pytest.mark.slow
def test_ctrl_c_while_a_runtime_is_imported_is_still_ctrl_c(plant, sam_inspect, good: Path, tmp_path: Path) -> None:
    line = ["inspect", sorted(good.iterdir())[0], "--recipe", plant.recipe, "--runtime", "openvino", "--out"]
    assert sam_inspect(*line, tmp_path / "its graphs are made").status == 0
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino/__init__.py").write_text(IMPORTED_IN_C)
    answer = sam_inspect(*line, tmp_path / "out", env={"PYTHONPATH": str(tmp_path)}, stdin=subprocess.DEVNULL)
    assert answer.status == 130, answer.err
    assert "interrupted; run the same command again to go on" in answer.err


def test_a_second_run_inspects_only_what_is_missing_or_changed(
    plant, sam_inspect, results, good: Path, tmp_path: Path
) -> None:
    line = ["inspect", good, "--recipe", plant.recipe, "--out", tmp_path / "out", "--save", "results,masks"]
    parts = sorted(path.name for path in good.iterdir())
    assert sam_inspect(*line).status == 0
    first = results(tmp_path / "out")
    assert counts(sam_inspect(*line).out)["inspected"] == 0
    assert results(tmp_path / "out") == first

    os.utime(good / parts[0])
    shutil.copy(good / parts[1], good / "new.png")
    next((tmp_path / "out" / "masks").glob(f"*/{Path(parts[2]).stem}.png")).unlink()
    found = counts(sam_inspect(*line).out)
    assert (found["inspected"], found["resumed"]) == (3, 2)
    second = results(tmp_path / "out")
    assert sorted(second) == sorted([*parts, "new.png"])
    assert second[parts[3]] == first[parts[3]]

    found = counts(sam_inspect(*line, "--threshold", "1e9").out)
    assert (found["inspected"], found["pass"]) == (5, 5)


def counts(out: str) -> dict[str, int]:
    """The table's one row by its columns."""
    rows = [[cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")] for line in out.splitlines()]
    names = next(row for row in rows if "inspected" in row)
    values = next(row for row in rows if len(row) == len(names) and row[0].isdigit())
    return {name: int(value) for name, value in zip(names, values, strict=True) if value.isdigit()}


def test_a_full_disk_is_one_line_and_what_was_written_stays_whole(
    plant, sam_inspect, results, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "disk"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", out], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root alone")
    try:
        line = ["inspect", many, "--recipe", plant.recipe, "--out", out]
        answer = sam_inspect(*line)
        assert answer.status == 1
        assert "cannot be written (No space left on device); free space" in answer.error()
        assert all(row["verdict"] in ("pass", "fail") for row in results(out).values())
        subprocess.run(["mount", "-o", "remount,size=200m", out], check=True)
        assert sam_inspect(*line).status == 0
        assert len(results(out)) == 10
        assert not list(out.rglob(".part-*"))
    finally:
        subprocess.run(["umount", out], check=True)


def test_a_file_that_may_not_grow_is_one_line_when_a_recipe_is_written(
    plates: Path, sam_inspect, tmp_path: Path
) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    recipe = tmp_path / "recipe"
    answer = sam_inspect("train", plates, "--recipe", recipe, preexec_fn=small_files)
    assert answer.status == 1
    assert "cannot be written (File too large)" in answer.error()
    assert sam_inspect("inspect", plates, "--recipe", recipe, "--out", tmp_path / "out").status == 2
