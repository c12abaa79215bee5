"""What every benchmark shares: repeated timing side by side, the machine and the versions, a table and JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Generic, TypeVar

import typer

from sam_inspect.console import table
from sam_inspect.files import make_folder, write_text
from sam_inspect.progress import Progress

T = TypeVar("T")
Row = dict[str, Any]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows there as JSON.")]
Repeats = Annotated[int, typer.Option(metavar="N", min=1, help="Timed runs of each; a warm-up run goes before them.")]


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """What a way answered, and how long it took.

    Attributes:
        answers: one a timed run.
        seconds: of each timed run, wall clock.
        warm_up: seconds of the run before them.
    """

    answers: tuple[T, ...]
    seconds: tuple[float, ...]
    warm_up: float

    @property
    def best(self) -> float:
        """Seconds of the fastest run: what other work on the machine disturbed least."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """Median seconds of the timed runs."""
        return median(self.seconds)

    def as_json(self) -> Row:
        """Seconds for a row."""
        return {"best": self.best, "median": self.median, "runs": list(self.seconds), "warm_up": self.warm_up}


def side_by_side(
    ways: Mapping[str, Callable[[int], T]], repeats: int, progress: Progress, what: str
) -> dict[str, Timed[T]]:
    """Runs all ways in turn, again and again, so that what disturbs the machine disturbs them alike.

    Args:
        ways: each is called with the number of the run, from 0; the warm-up is a run 0 of its own.
        repeats: timed runs of each.
        progress: shows how far it is.
        what: the work's name for it.
    """
    warm_up = {name: _clocked(way, 0)[1] for name, way in ways.items()}
    found: dict[str, list[tuple[T, float]]] = {name: [] for name in ways}
    for run in progress(range(repeats), what, repeats):
        for name, way in ways.items():
            found[name].append(_clocked(way, run))
    return {
        name: Timed(tuple(answer for answer, _ in runs), tuple(seconds for _, seconds in runs), warm_up[name])
        for name, runs in found.items()
    }


def _clocked(way: Callable[[int], T], run: int) -> tuple[T, float]:
    start = time.perf_counter()
    answer = way(run)
    return answer, time.perf_counter() - start


def hardware() -> str:
    """Processor, cores that this process may use, torch's threads, memory."""
    import psutil
    import torch

    from sam_inspect.bench import processor

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 1e9
    return f"{processor()}, {cores} cores, {torch.get_num_threads()} threads, {memory:.0f} GB"


def peak_mb() -> float | None:
    """Megabytes that this process held at most; None where the system does not say.

    Not `getrusage`: its figure begins with what the parent held when it started this process.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def versions(*distributions: str) -> dict[str, str]:
    """Version by distribution, Python's own first."""
    return {"python": platform.python_version()} | {name: version(name) for name in distributions}


def spelled(found: Mapping[str, str]) -> str:
    """Versions in one line, without Python's."""
    return ", ".join(f"{name} {number}" for name, number in found.items() if name != "python")


def show(title: str, machine: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """A table on stdout.

    Args:
        title: what was measured.
        machine: from `hardware`.
        rows: dicts, nested or not.
        columns: for each title the place of its value and how to format it: `quality.mean_iou:.3f`, `versions`.
    """
    cells = [[_cell(row, place) for place in columns.values()] for row in rows]
    table(f"{title}\n{machine}", list(columns), cells)


def _cell(row: Row, place: str) -> str:
    path, _, form = place.partition(":")
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        return "-"
    return spelled(value) if isinstance(value, dict) else format(value, form)


def write_rows(file: Path | None, machine: str, rows: Sequence[Row], **facts: Any) -> None:
    """The rows as JSON, each with the machine in it; `facts` (data, command line) beside them.

    Raises:
        OutputError: the file cannot be written.
    """
    if file is None:
        return
    make_folder(file.parent)
    document = facts | {"rows": [{"hardware": machine} | row for row in rows]}
    write_text(file, json.dumps(document, indent=2) + "\n")


def in_turn(lists: Sequence[Sequence[T]]) -> Iterator[T]:
    """The first of each list, then the second of each, and so on."""
    for place in range(max(map(len, lists), default=0)):
        for items in lists:
            if place < len(items):
                yield items[place]
