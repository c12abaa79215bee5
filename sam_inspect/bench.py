"""How fast this machine is in every runtime: the networks alone; a recipe, each row of it `inspect` in a process."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from sam_inspect.datasets import evenly
from sam_inspect.errors import SamInspectError, UsageError
from sam_inspect.images import find_images
from sam_inspect.masks import from_rle, union
from sam_inspect.metrics import mask_iou
from sam_inspect.networks.graphs import ON, PACKAGES, Runtime, cores, installed, usable
from sam_inspect.networks.loaded import load_sam
from sam_inspect.networks.runtime import Running, run, running_on
from sam_inspect.progress import Progress
from sam_inspect.recipe import load_recipe, save_runtime
from sam_inspect.records import Prompt, View
from sam_inspect.segment.sam import Embedding, MobileSam, Sam

MOST_IMAGES = 16
# A GPU's networks are recorded, and compiled, on the second batch of a size; the time of those before does not count.
IMAGES_IN_ALL = {"cpu": 0, "cuda": 4 * MOST_IMAGES}
UNTIMED = {"cpu": 1, "cuda": 3 * MOST_IMAGES}
LEAST_IOU = 0.99
VIEW_PX, ROUNDS, MANY, PRODUCT = 512, 16, 8, 2048
Row = dict[str, Any]
COLUMNS = {
    "runtime": "{runtime} {precision}",
    "threads": "{threads}",
    "good ms p50 / p95": "{good[p50]:.0f} / {good[p95]:.0f}",
    "defective ms": "{defective[p50]:.0f} / {defective[p95]:.0f}",
    "localize / segment": "{localize:.0f} / {segment:.0f}",
    "first verdict s": "{first_s:.1f}",
    "peak MB": "{peak_mb:.0f}",
    "verdicts kept": "{verdicts_kept} of {images}",
    "mask IoU mean / least": "{mask_iou[mean]:.4f} / {mask_iou[least]:.4f}",
}
NETWORK_COLUMNS = {
    "runtime": "{runtime} {precision}",
    "threads": "{threads}",
    "encode 1 view ms p50 / p95": "{encode_1[p50]:.0f} / {encode_1[p95]:.0f}",
    "8 views": "{encode_8[p50]:.0f} / {encode_8[p95]:.0f}",
    "GFLOP/s: encoder / matrix product": "{encode_gflops:.0f} / {product_gflops:.0f}",
    "decode 1 box": "{decode_1[p50]:.1f} / {decode_1[p95]:.1f}",
    "8 boxes": "{decode_8[p50]:.1f} / {decode_8[p95]:.1f}",
    "off by %": "{off:.2%}",
}


@dataclass(frozen=True, slots=True)
class Run:
    """One process.

    Attributes:
        results: an Inspection as JSON for each image, in order.
        seconds: from its start to its end.
        peak_mb: megabytes that it held at most.
    """

    results: list[Row]
    seconds: float
    peak_mb: float


def bench(recipe: Path, images: Sequence[str], device: str, threads: Sequence[int], progress: Progress) -> list[Row]:
    """A row for each installed runtime, precision and number of threads; the first, torch in f32, is the reference.

    Args:
        recipe: its folder.
        images: folders, files or globs; the test images that it was trained beside where there are none.
        device: `cpu` or `cuda`.
        threads: how many for the networks.
        progress: shows how far it is.

    Returns:
        rows of device, runtime, precision, threads; milliseconds of good and defective parts without the first images,
        and of them to localize and (defective) segment; seconds to the first verdict; quality against the reference.

    Raises:
        UsageError: no images are named, and those of the recipe are not here.
        SamInspectError: a run failed; its own message.
    """
    ways = [(runtime, count) for count in threads for runtime in usable(device)]
    reference: Run | None = None
    rows = []
    with tempfile.TemporaryDirectory() as copies:
        chosen = _repeated(_chosen(recipe, images), IMAGES_IN_ALL[device], Path(copies))
        for runtime in usable(device):  # makes the graphs that the timed runs then find
            _run(recipe, chosen, device, runtime, max(threads))
        for runtime, count in progress(ways, "bench", len(ways)):
            found = _run(recipe, chosen, device, runtime, count)
            reference = reference or found
            rows.append({"device": device} | _row(runtime, count, found, reference, UNTIMED[device]))
    return rows


def bench_networks(device: str, threads: Sequence[int], progress: Progress) -> list[Row]:
    """MobileSAM's encoder on views of 512 pixels and its decoder, a row for each runtime, precision and threads.

    `off` is the mean difference of the features from torch's in f32, over their mean size. The encoder's operations a
    second stand beside those of torch's product of two large matrices, which is about what the machine can do.

    Raises:
        WeightsMissing: they are not here.
    """
    network, facts = load_sam("mobile_sam", None, device)
    usual, ways = torch.get_num_threads(), [(runtime, count) for runtime in usable(device) for count in threads]
    gflop = _gflop(network.image_encoder, device)
    reference: NDArray[np.float32] | None = None
    rows = []
    try:
        for runtime, count in progress(ways, "networks", len(ways)):
            torch.set_num_threads(count)
            with running_on(runtime):
                sam = MobileSam(network, facts["sha256"])
                encode = run(network.image_encoder, sam.device)
            row, features = _network_row(sam, encode)
            reference = features if reference is None else reference
            off = float(np.abs(features - reference).mean() / np.abs(reference).mean())
            names = {"device": device, "runtime": runtime.name, "precision": runtime.precision, "threads": count}
            speeds = {
                "encode_gflops": 1000 * gflop / row["encode_1"]["p50"],
                "product_gflops": _product_gflops(runtime, device),
            }
            rows.append(names | row | speeds | {"off": off})
    finally:
        torch.set_num_threads(usual)
    return rows


def _network_row(sam: Sam, encode: Running) -> tuple[Row, NDArray[np.float32]]:
    noise = np.random.default_rng(0).normal(size=(MANY, 3, VIEW_PX, VIEW_PX)).astype(np.float32)
    pixels = torch.from_numpy(noise).to(sam.device)
    view = View((0, 0, VIEW_PX, VIEW_PX), VIEW_PX, ())
    boxes = [Prompt(box_xyxy=(10.0 * place, 40.0, 10.0 * place + 90, 120.0)) for place in range(MANY)]
    embedding = Embedding(view, encode(pixels[:1])[0])
    row = {f"encode_{count}": _timed(partial(encode, pixels[:count]), ROUNDS // count) for count in (1, MANY)}
    row |= {f"decode_{count}": _timed(partial(sam.decode, embedding, boxes[:count]), ROUNDS) for count in (1, MANY)}
    return row, embedding.features.cpu().numpy()


def _gflop(encoder: torch.nn.Module, device: str) -> float:
    """Of one view, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encoder(torch.zeros(1, 3, VIEW_PX, VIEW_PX, device=device))
    return float(counter.get_total_flops()) / 1e9


def _product_gflops(runtime: Runtime, device: str) -> float:
    dtype = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
    one, other = torch.randn(2, PRODUCT, PRODUCT, dtype=dtype, device=device)
    return 2 * PRODUCT**3 / 1e6 / _timed(partial(torch.matmul, one, other), ROUNDS)["p50"]


def _timed(work: Callable[[], object], rounds: int) -> dict[str, float]:
    """Quantiles of its milliseconds, after two more runs."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
    for _ in range(2):
        work()
    times = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(1000 * (time.perf_counter() - start))
    return _quantiles(times)


def _nothing() -> None:
    """A processor's work is done when it comes back."""


def machine(device: str) -> dict[str, str]:
    """What the rows were measured on and with."""
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    packages = {name: version(PACKAGES[name]) for name in ON["cpu"] if installed(name)}
    return (
        gpu | {"processor": processor(), "cores": str(os.cpu_count()), "python": platform.python_version()} | packages
    )


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def parse_threads(text: str) -> list[int]:
    """`1,2` as numbers; all cores that this process may use for an empty text. Raises UsageError."""
    try:
        counts = [int(part) for part in text.split(",")] if text else [cores()]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise UsageError(f"--threads {text}: is not a list of numbers above 0", "give for example 1,2")
    return counts


def record(recipe: Path, rows: Sequence[Row]) -> Row:
    """Puts the fastest runtime that keeps every verdict and every mask (IoU 0.99) into the recipe, for `auto`.

    Raises:
        UsageError: no image of the bench shows a defect, so that no mask was compared.
        RecipeError, OutputError.
    """
    if rows[0]["mask_iou"]["masks"] == 0:
        raise UsageError("--check: none of the images shows a defect", "name some that do")
    most = max(row["threads"] for row in rows)
    same = [row for row in rows if row["threads"] == most and _keeps(row)]
    best = min(same, key=lambda row: float(np.nansum([row["good"]["p50"], row["defective"]["p50"]])))
    save_runtime(recipe, best)
    return best


def _keeps(row: Row) -> bool:
    return bool(row["verdicts_kept"] == row["images"] and row["mask_iou"]["least"] >= LEAST_IOU)


def as_tables(
    networks: Sequence[Row], inspections: Sequence[Row], measured_on: Mapping[str, str]
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and cells of each that has rows."""
    described = ", ".join(f"{name} {value}" for name, value in measured_on.items())
    tables = [(f"Networks ({described})", NETWORK_COLUMNS, networks)]
    tables.append(("Milliseconds an image", COLUMNS, inspections))
    return [
        (title, list(columns), [[form.format(**row) for form in columns.values()] for row in rows])
        for title, columns, rows in tables
        if rows
    ]


def as_json(networks: Sequence[Row], inspections: Sequence[Row], measured_on: Mapping[str, str]) -> str:
    """All of it as one document; null where nothing was timed."""
    found = {"machine": measured_on, "networks": networks, "inspect": inspections}
    return json.dumps(_without_nan(found), indent=2, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _chosen(recipe: Path, images: Sequence[str]) -> list[str]:
    """At most so many, evenly over what is named."""
    trained_on = load_recipe(recipe).data / "test"
    if not images and not trained_on.is_dir():
        raise UsageError(f"{trained_on}: the recipe's test images are not here", "name images, good and defective ones")
    return [str(path) for path in evenly(find_images(images or [str(trained_on)]), MOST_IMAGES)]


def _repeated(images: Sequence[str], in_all: int, folder: Path) -> list[str]:
    """The images, and copies of them there until there are so many: `inspect` takes a file once."""
    more = enumerate(islice(cycle(images), max(0, in_all - len(images))))
    return [*images, *(str(shutil.copy(image, folder / f"{place:03}{Path(image).suffix}")) for place, image in more)]


def _run(recipe: Path, images: Sequence[str], device: str, runtime: Runtime, threads: int) -> Run:
    with tempfile.TemporaryDirectory() as out:
        options = ["--runtime", runtime.name, "--precision", runtime.precision, "--device", device, "--quiet"]
        where = ["--recipe", str(recipe), "--out", out, "--save", "results"]
        command = [sys.executable, "-m", "sam_inspect", "inspect", *images, *where, *options]
        start = time.monotonic()
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, env=environment, text=True, **pipes)
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        results = Path(out) / "results.jsonl"
        if process.returncode not in (0, 1) or not results.is_file():
            raise SamInspectError(f"bench with {runtime}: {said.strip() or process.returncode}", "see there")
        lines = results.read_text(encoding="utf-8").splitlines()
        return Run([json.loads(line) for line in lines], time.monotonic() - start, usage.ru_maxrss / 1024)


def _row(runtime: Runtime, threads: int, run: Run, reference: Run, untimed: int = 1) -> Row:
    pairs = list(zip(run.results, reference.results, strict=True))
    warm = pairs[untimed:]
    good = [found for found, before in warm if before["verdict"] == "pass"]
    defective = [found for found, before in warm if before["verdict"] == "fail"]
    ious = [_iou(found, before) for found, before in pairs if before["verdict"] == "fail"]
    total = sum(_milliseconds(found) for found, _ in warm)
    return {
        "runtime": runtime.name,
        "precision": runtime.precision,
        "threads": threads,
        "good": _quantiles([_milliseconds(found) for found in good]),
        "defective": _quantiles([_milliseconds(found) for found in defective]),
        "localize": _quantiles([_milliseconds(found, "localize") for found in good + defective])["p50"],
        "segment": _quantiles([_milliseconds(found, "segment") for found in defective])["p50"],
        "first_s": run.seconds - total / 1000,
        "peak_mb": run.peak_mb,
        "images": len(pairs),
        "verdicts_kept": sum(found["verdict"] == before["verdict"] for found, before in pairs),
        "mask_iou": {
            "mean": float(np.mean(ious)) if ious else float("nan"),
            "least": min(ious, default=float("nan")),
            "masks": len(ious),
        },
    }


def _milliseconds(found: Row, stage: str | None = None) -> float:
    timings = found["timings_ms"] or {}
    return float(timings.get(stage, 0.0) if stage else sum(timings.values()))


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    """nan where there are none."""
    p50, p95 = np.quantile(values, [0.5, 0.95]) if values else (np.nan, np.nan)
    return {"p50": float(p50), "p95": float(p95)}


def _iou(found: Row, before: Row) -> float:
    """Of all that two runs outlined in an image."""
    return float(mask_iou(_mask(found), _mask(before)))


def _mask(found: Row) -> NDArray[np.bool_]:
    masks = [mask for defect in found["defects"] if (mask := from_rle(defect["mask"])) is not None]
    height, width = found["size"]
    return union(masks, (height, width))
