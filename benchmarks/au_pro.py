"""AU-PRO: ours against anomalib's."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np
import torch
import typer
from anomalib.metrics.aupro import _AUPRO
from measuring import JsonFile, Repeats, Row, hardware, show, side_by_side, versions, write_rows
from numpy.typing import NDArray

from sam_inspect.console import session
from sam_inspect.metrics import PixelRanks, au_pro, count_good, region_shares

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
OURS, ANOMALIB = "sam_inspect", "anomalib"
Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]


@app.command()
def main(
    maps: Annotated[int, typer.Option(metavar="N", min=1, help="Number of maps.")] = 50,
    size: Annotated[int, typer.Option(metavar="PX", min=32, help="Side of a map.")] = 1024,
    limit: Annotated[float, typer.Option(metavar="FPR", min=0.001, max=1.0, help="Highest false positive rate.")] = 0.3,
    repeats: Repeats = 3,
    json_file: JsonFile = None,
) -> None:
    """Times the area under the per-region-overlap curve over a test set of drawn maps, its value beside it.

    A map is smooth noise that rises on its defects, one to three blots; every fifth map is a good part's.
    """
    with session(quiet=False, json_logs=False) as progress:
        values, masks = drawn(maps, size)
        ways = {OURS: lambda run: ours(values, masks, limit), ANOMALIB: lambda run: anomalibs(values, masks, limit)}
        timed = side_by_side(ways, repeats, progress, "AU-PRO")
        libraries = {OURS: "numpy", ANOMALIB: "anomalib"}
        rows: list[Row] = [
            {
                "way": name,
                "seconds": found.as_json(),
                "ratio_to_ours": found.best / timed[OURS].best,
                "au_pro": found.answers[-1],
                "difference": abs(found.answers[-1] - timed[OURS].answers[-1]),
                "versions": versions(libraries[name]),
            }
            for name, found in timed.items()
        ]
        machine = hardware()
        columns = {
            "way": "way",
            "best s": "seconds.best:.2f",
            "median s": "seconds.median:.2f",
            "x ours": "ratio_to_ours:.1f",
            "AU-PRO": "au_pro:.9f",
            "difference": "difference:.1e",
            "versions": "versions",
        }
        show(f"AU-PRO up to {limit:g}, {maps} maps of {size} x {size}, {repeats} runs", machine, rows, columns)
        write_rows(json_file, machine, rows, maps=maps, size_px=size, limit=limit)


def drawn(count: int, side: int) -> tuple[Maps, Masks]:
    """(N, S, S) float32 maps and bool ground truth."""
    rng = np.random.default_rng(0)
    values, masks = np.empty((count, side, side), np.float32), np.zeros((count, side, side), bool)
    for index in range(count):
        for _ in range(rng.integers(1, 4) if index % 5 else 0):
            centre = tuple(int(value) for value in rng.integers(side // 8, side - side // 8, 2))
            axes = tuple(int(value) for value in rng.integers(max(2, side // 100), side // 10, 2))
            cv2.ellipse(masks[index].view(np.uint8), centre, axes, float(rng.uniform(0, 180)), 0, 360, (1,), -1)
        noise = cv2.GaussianBlur(rng.standard_normal((side, side), np.float32), (0, 0), side / 64)
        rise = cv2.GaussianBlur(masks[index].astype(np.float32), (0, 0), side / 64)
        values[index] = noise / noise.std() + rng.uniform(1, 4) * rise
    return values, masks


def ours(values: Maps, masks: Masks, limit: float) -> float:
    """As `sam-inspect evaluate` does it."""
    defective = values[masks]
    shares = np.concatenate([region_shares(mask) for mask in masks])
    order = np.argsort(defective)
    good = count_good(defective[order], (value[~mask] for value, mask in zip(values, masks, strict=True)))
    area = au_pro(PixelRanks(defective[order], shares[order], good), limit)
    assert area is not None
    return area


def anomalibs(values: Maps, masks: Masks, limit: float) -> float:
    """anomalib's AUPRO without the wrapper that takes fields from a batch."""
    metric = _AUPRO(fpr_limit=limit)
    metric.update(torch.from_numpy(values), torch.from_numpy(masks).int())
    return float(metric.compute())


if __name__ == "__main__":
    app()
