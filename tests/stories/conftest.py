"""A small plant for the stories: the command, a drawn product, and a recipe trained on it once for all of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

Rows = dict[str, dict[str, Any]]
# A shell's background job ignores Ctrl-C, and so would every command that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Answer:
    """What a command said; `peak_bytes` is its largest resident size."""

    status: int
    out: str
    err: str
    peak_bytes: int

    def error(self) -> str:
        """Its one line of error, after checking that there is no more than that."""
        assert "Traceback" not in self.err + self.out
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.err
        return errors[0]


def start(*arguments: str | Path, env: Mapping[str, str] | None = None, **pipes: Any) -> subprocess.Popen[str]:
    """The command, started."""
    environment = os.environ | {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"} | dict(env or {})
    line = [sys.executable, "-m", "sam_inspect", *map(str, arguments)]
    return subprocess.Popen(line, env=environment, text=True, **pipes)


def run(*arguments: str | Path, env: Mapping[str, str] | None = None, **options: Any) -> Answer:
    """The command, run to its end as a user would."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = start(*arguments, env=env, stdout=out, stderr=err, **options)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Answer(process.returncode, out.read(), err.read(), usage.ru_maxrss * 1024)


def rows_of(out: Path) -> Rows:
    """results.jsonl by file name."""
    lines = (json.loads(line) for line in (out / "results.jsonl").read_text().splitlines())
    return {Path(line["image"]).name: line for line in lines}


@pytest.fixture(scope="session")
def sam_inspect() -> Callable[..., Answer]:
    return run


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.Popen[str]]:
    return start


@pytest.fixture(scope="session")
def results() -> Callable[[Path], Rows]:
    return rows_of


@dataclass(frozen=True)
class Plant:
    """A drawn product in MVTec layout, and a recipe trained on it by the command, with what that said."""

    product: Path
    recipe: Path
    trained: Answer


@pytest.fixture(scope="session")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """Drawn and trained by the first test that asks; other workers of pytest-xdist wait for it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "plant"
    with FileLock(f"{folder}.lock"):
        said = folder / "trained.json"
        if not said.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            said.write_text(json.dumps(_found(folder)))
    return Plant(folder / "product", folder / "recipe", Answer(**json.loads(said.read_text())))


def _found(folder: Path) -> dict[str, Any]:
    from sam_inspect.synth import write_product

    write_product(folder / "product")
    answer = run("train", folder / "product", "--recipe", folder / "recipe")
    assert answer.status == 0, answer.err
    return vars(answer)


@pytest.fixture
def good(plant: Plant, tmp_path: Path) -> Path:
    """A folder with two good parts and two defective ones, to be added to."""
    folder = tmp_path / "images"
    folder.mkdir()
    parts = [*sorted(plant.product.glob("test/good/*"))[:2]]
    parts += [sorted(kind.iterdir())[0] for kind in sorted(plant.product.glob("test/*")) if kind.name != "good"][:2]
    for part in parts:
        shutil.copy(part, folder / f"{part.parent.name}_{part.name}")
    return folder
