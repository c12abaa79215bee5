"""A small plant for the stories: the command, and what `sam-inspect demo` leaves, made once for all of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests
from filelock import FileLock
from forks import Forks

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


def start(
    *arguments: str | Path, env: Mapping[str, str] | None = None, python: str | Path = sys.executable, **pipes: Any
) -> subprocess.Popen[str]:
    """The command, started; of another environment where its `python` is given."""
    line = [str(python), "-m", "sam_inspect", *map(str, arguments)]
    return subprocess.Popen(line, env=environment(env), text=True, **pipes)


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of every command."""
    return os.environ | {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"} | dict(more or {})


@cache
def forks() -> Forks:
    """Of this worker, with its first command."""
    return Forks()


def run(*arguments: str | Path, env: Mapping[str, str] | None = None, **options: Any) -> Answer:
    """The command, run to its end as a user would; with options for its process from cold."""
    with tempfile.NamedTemporaryFile("w+") as out, tempfile.NamedTemporaryFile("w+") as err:
        if options:
            process = start(*arguments, env=env, stdout=out, stderr=err, **options)
            _, waited, usage = os.wait4(process.pid, 0)
            status = process.returncode = os.waitstatus_to_exitcode(waited)
            peak_bytes = usage.ru_maxrss * 1024
        else:
            status, peak_bytes = forks().run([*map(str, arguments)], environment(env), out.name, err.name)
        return Answer(status, Path(out.name).read_text(), Path(err.name).read_text(), peak_bytes)


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
    """What the demo left in its folder: a drawn product in MVTec layout, a recipe trained on it; and what it said."""

    demo: Path
    said: Answer

    @property
    def product(self) -> Path:
        return self.demo / "product"

    @property
    def recipe(self) -> Path:
        return self.demo / "recipe"


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Answer]) -> tuple[Path, Answer]:
    """A path that the first test makes that asks, and what was said; other workers of pytest-xdist wait for it."""
    base = factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    said = path.with_suffix(".json")
    path.parent.mkdir(exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not said.exists():
            answer = make(path)
            assert answer.status == 0, answer.err
            said.write_text(json.dumps(vars(answer)))
    return path, Answer(**json.loads(said.read_text()))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config that looks at a part twice as the default does three times, remembers half as much, and is quick.

    It tells less from 24 good parts than the default does, so that one in twenty of them may fail.
    """
    looks = [
        {"name": "mobile_sam", "layers": [1, 2, 3], "size_px": 384, "cell_px": 8},
        {"name": "mobile_sam", "layers": [1, 2, 3], "size_px": 160, "cell_px": 8, "draws": False},
    ]
    args = {"bank_patches": 5000, "backbones": looks}
    config = tmp_path_factory.mktemp("config") / "small.yaml"
    stages = {"localizer": {"name": "memory_bank", "args": args}, "judge": {"false_reject_rate": 0.05}}
    config.write_text(json.dumps(stages))
    return config


@pytest.fixture(scope="session")
def plant(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """The demo of the small recipe: the stories are of any."""
    line = ["demo", "--config", small, "--out"]
    return Plant(*once(tmp_path_factory, "plant", lambda folder: run(*line, folder)))


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


@pytest.fixture
def labelled(plant: Plant, tmp_path: Path) -> Path:
    """Two labelled images each of chips, dents and good parts of the drawn product, and a recipe beside them."""
    data = tmp_path / "data"
    for kind in ("chip", "dent", "good"):
        for image in sorted((plant.product / "test" / kind).iterdir())[:2]:
            for part in (image, *(plant.product / "ground_truth" / kind).glob(f"{image.stem}*")):
                target = data / part.relative_to(plant.product)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(part, target)
    good = data / "train" / "good"
    good.mkdir(parents=True)
    for image in sorted((plant.product / "train" / "good").iterdir())[:2]:
        shutil.copy(image, good)
    shutil.copytree(plant.recipe, tmp_path / "recipe")
    return data


@dataclass
class Service:
    """A running `sam-inspect serve`."""

    process: subprocess.Popen[str]
    url: str
    said: list[str]

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=60, **options)

    def send(self, image: Path, recipe: str = "export", **options: Any) -> requests.Response:
        return requests.post(f"{self.url}/v1/recipes/{recipe}/inspect", image.read_bytes(), timeout=120, **options)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def running(*words: str | Path, ready: bool = True, python: str | Path = sys.executable) -> Iterator[Service]:
    """A service on a free port, ready; killed at the end where it still runs."""
    process = start("serve", "--port", "0", *words, python=python, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"serving on (http://\S+)", line):
            break
    else:
        raise AssertionError("".join(said))
    threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True).start()
    service = Service(process, found[1], said)
    try:
        until = time.monotonic() + 60
        while ready and service.get("/readyz").status_code != 200:
            assert time.monotonic() < until, "".join(said)
            time.sleep(0.1)
        yield service
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def serving() -> Callable[..., Any]:
    return running


@pytest.fixture(scope="session")
def export(plant: Plant, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the demo's recipe."""
    path, answer = once(tmp_path_factory, "export", lambda out: run("export", plant.recipe, "--out", out))
    assert answer.out.strip() == str(path / "recipe.json")
    return path
