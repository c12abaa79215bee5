"""Memory of `inspect` over thousands of images."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import psutil
import typer
from measuring import JsonFile, Row, hardware, show, versions, write_rows

from sam_inspect.console import session
from sam_inspect.images import find_images
from sam_inspect.progress import Progress

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
POLL_S = 0.2


@app.command()
def main(
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Folders, files or globs; over and over.")],
    recipe: Annotated[Path, typer.Option(metavar="DIR", help="Recipe or export.")],
    count: Annotated[int, typer.Option(metavar="N", min=10, help="Images of the run.")] = 2000,
    runtime: Annotated[str, typer.Option(help="auto, torch, openvino or onnx.")] = "auto",
    json_file: JsonFile = None,
) -> None:
    """Runs `sam-inspect inspect` over N images, saving all that it can, and looks at its memory after each tenth.

    The resident memory of the command and what it starts; the images are links to those given.
    """
    with session(quiet=False, json_logs=False) as progress, tempfile.TemporaryDirectory() as folder:
        links = linked(find_images(images), count, Path(folder, "images"))
        out = Path(folder, "out")
        options = ["--recipe", str(recipe), "--out", str(out), "--runtime", runtime, "--quiet"]
        command = [sys.executable, "-m", "sam_inspect", "inspect", str(links), *options]
        rows = watched(command, out / "results.jsonl", count, progress)
    machine = hardware()
    columns = {"images": "images", "seconds": "seconds:.0f", "MB": "mb:.0f", "versions": "versions"}
    show(f"{count} images, {recipe.name}, {runtime}", machine, rows, columns)
    write_rows(json_file, machine, rows, images=images, recipe=str(recipe), runtime=runtime)


def linked(paths: Sequence[Path], count: int, folder: Path) -> Path:
    """A folder with so many links to the images, in turn."""
    folder.mkdir()
    for number, path in zip(range(count), itertools.cycle(paths)):
        (folder / f"{number:06}{path.suffix}").symlink_to(path.resolve())
    return folder


def watched(command: Sequence[str], results: Path, count: int, progress: Progress) -> list[Row]:
    """A row each time that another tenth of the images is done. Raises CalledProcessError where the command fails."""
    start, rows = time.perf_counter(), []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        for done in progress(tenths(process, results, count), "inspecting", 10):
            mb = resident_mb(psutil.Process(process.pid))
            seconds = time.perf_counter() - start
            rows.append({"images": done, "seconds": seconds, "mb": mb, "versions": versions("torch", "openvino")})
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return rows


def tenths(process: subprocess.Popen[bytes], results: Path, count: int) -> Iterator[int]:
    """Lines of the results, whenever they pass another tenth of the count, while the process runs."""
    wanted = count // 10
    while process.poll() is None:
        done = results.read_bytes().count(b"\n") if results.exists() else 0
        if done >= wanted:
            yield done
            wanted = (done * 10 // count + 1) * count // 10
        time.sleep(POLL_S)


def resident_mb(process: psutil.Process) -> float:
    """Of it and the processes that it started, millions of bytes."""
    return float(sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))) / 1e6


if __name__ == "__main__":
    app()
