"""The service under load, beside the same recipe in a process of its own: throughput, latency, memory, overload."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import requests
import typer
from measuring import JsonFile, Row, hardware, show, write_rows

from sam_inspect.console import session
from sam_inspect.images import find_images
from sam_inspect.pipeline import Inspector
from sam_inspect.progress import Progress

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
CLIENTS = (1, 4, 16, 64)


@app.command()
def main(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe or export.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Folders, files or globs; sent in turn.")],
    requests_each: Annotated[int, typer.Option("--requests", metavar="N", help="For each number of clients.")] = 64,
    soak: Annotated[int, typer.Option(metavar="N", help="Requests of four clients, for the memory.")] = 200,
    queue: Annotated[int, typer.Option(metavar="N", help="Images that may wait; 64 clients then meet 429.")] = 16,
    json_file: JsonFile = None,
) -> None:
    """Sends images with 1, 4, 16 and 64 clients; a client that is told 429 waits as long as it is told and repeats.

    `share` is the throughput against `Inspector.inspect_many` over the same images in this process, measured before and
    after. Every request has a key of its own, so that in the end the store must hold each exactly once.
    """
    with session(quiet=False, json_logs=False) as progress, tempfile.TemporaryDirectory() as data:
        paths = find_images(images)
        alone = in_process(recipe, paths, requests_each, progress)
        with running(recipe, Path(data), queue) as station:
            rows = [loaded(station, paths, clients, requests_each, progress) for clients in CLIENTS]
            rows.append(loaded(station, paths, 4, soak, progress) | {"clients": f"4, {soak} in a row"})
            kept = station.count()
        alone = max(alone, in_process(recipe, paths, requests_each, progress))
        for row in rows:
            row |= {"alone": alone, "share": row["rate"] / alone}
        machine, sent = hardware(), requests_each * len(CLIENTS) + soak
        columns = {
            "clients": "clients",
            "images/s": "rate:.2f",
            "of in-process": "share:.0%",
            "p50 ms": "p50:.0f",
            "p95 ms": "p95:.0f",
            "p99 ms": "p99:.0f",
            "429": "full",
            "MB before": "before_mb:.0f",
            "MB after": "after_mb:.0f",
        }
        show(f"in-process {alone:.2f} images/s; {sent} requests, {kept} in the store", machine, rows, columns)
        write_rows(json_file, machine, rows, kept=kept, sent=sent)


@dataclass
class Station:
    """A running service; `numbers` give each request a key of its own."""

    url: str
    recipe: str
    process: psutil.Process
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def count(self) -> int:
        """Inspections in its store."""
        total, before = 0, None
        while True:
            page = requests.get(f"{self.url}/v1/inspections", {"limit": "500", "before": before}, timeout=60).json()
            total += len(page["inspections"])
            before = page["next"]
            if before is None:
                return total


@contextmanager
def running(recipe: Path, data: Path, queue: int) -> Iterator[Station]:
    words = ["serve", "--recipe", str(recipe), "--data", str(data), "--port", "0", "--queue", str(queue)]
    process = subprocess.Popen([sys.executable, "-m", "sam_inspect", *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = next(match for line in process.stderr if (match := re.search(r"serving on (\S+)", line)))
    drain = ThreadPoolExecutor(1)
    drain.submit(lambda: [None for _ in process.stderr or ()])
    while requests.get(f"{found[1]}/readyz", timeout=60).status_code != 200:
        time.sleep(0.2)
    try:
        yield Station(found[1], recipe.resolve().name, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()
        drain.shutdown()


def in_process(recipe: Path, paths: Sequence[Path], count: int, progress: Progress) -> float:
    """Images a second, after the first."""
    inspector = Inspector.from_recipe(recipe)
    inspector.inspect(paths[0])
    chosen = list(itertools.islice(itertools.cycle(paths), count))
    start = time.perf_counter()
    for _ in progress(inspector.inspect_many(chosen), "in-process", count):
        pass
    return count / (time.perf_counter() - start)


def loaded(station: Station, paths: Sequence[Path], clients: int, count: int, progress: Progress) -> Row:
    images = [path.read_bytes() for path in paths]
    before, full = station.process.memory_info().rss / 1e6, 0

    def send(number: int) -> tuple[float, int]:
        refused = 0
        while True:
            start = time.perf_counter()
            answer = requests.post(
                f"{station.url}/v1/recipes/{station.recipe}/inspect",
                images[number % len(images)],
                headers={"Idempotency-Key": str(number)},
                timeout=600,
            )
            if answer.status_code != 429:
                answer.raise_for_status()
                return time.perf_counter() - start, refused
            refused += 1
            time.sleep(float(answer.headers["Retry-After"]))

    numbers = [next(station.numbers) for _ in range(count)]
    start, times = time.perf_counter(), []
    with ThreadPoolExecutor(clients) as pool:
        for seconds, refused in progress(pool.map(send, numbers), f"{clients} clients", count):
            times.append(1000 * seconds)
            full += refused
    rate = count / (time.perf_counter() - start)
    p50, p95, p99 = np.quantile(times, [0.5, 0.95, 0.99])
    after = station.process.memory_info().rss / 1e6
    row = {"clients": str(clients), "rate": rate, "p50": p50, "p95": p95, "p99": p99, "full": full}
    return row | {"before_mb": before, "after_mb": after}


if __name__ == "__main__":
    app()
