"""Distances to the nearest good patch: ours against faiss, scikit-learn and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import faiss
import numpy as np
import torch
import typer
from measuring import JsonFile, Repeats, Row, Timed, hardware, show, side_by_side, versions, write_rows
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from sam_inspect.console import session
from sam_inspect.localize.nearest import NearestPatches
from sam_inspect.localize.patches import BackboneConfig
from sam_inspect.networks.loaded import load_backbone
from sam_inspect.progress import Progress
from sam_inspect.synth import draw_part

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
STAGES = {64: 0, 128: 1, 320: 3}  # Channels of the trunk's stages.
SIDE_PX = 512
OURS = "sam_inspect"
Distances = NDArray[np.float32]


@app.command()
def main(
    queries: Annotated[int, typer.Option(metavar="N", min=1, help="Patches to look up.")] = 4096,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Good patches in the memory.")] = 10_000,
    repeats: Repeats = 7,
    json_file: JsonFile = None,
) -> None:
    """Times the distance to the nearest of many patches, with its error beside it.

    The patches are those of MobileSAM's trunk on drawn parts, standardised by channel, as a recipe holds them: 64, 128
    and 320 channels. Each way has its index built before the clock starts; errors are relative to float64.
    """
    with session(quiet=False, json_logs=False) as progress:
        found: list[Row] = []
        for channels, stage in STAGES.items():
            memory, asked = patches(stage, rows, queries, progress)
            found += measured(channels, memory, asked, repeats, progress)
        machine = hardware()
        columns = {
            "way": "way",
            "channels": "channels",
            "best ms": "ms.best:.1f",
            "median ms": "ms.median:.1f",
            "x ours": "ratio_to_ours:.1f",
            "error, mean": "relative_error.mean:.1e",
            "error, max": "relative_error.max:.1e",
            "versions": "versions",
        }
        show(f"{queries:,} queries x {rows:,} rows, {repeats} runs", machine, found, columns)
        write_rows(json_file, machine, found, queries=queries, rows_in_memory=rows)


def patches(stage: int, rows: int, queries: int, progress: Progress) -> tuple[Tensor, Tensor]:
    """Standardised features of one stage: (rows, C) of good parts, and (queries, C) of others, some defective."""
    backbone, _ = load_backbone(BackboneConfig(name="mobile_sam", layers=(stage,)), "cpu")
    per_part = (SIDE_PX // 16) ** 2  # Of the coarsest stage; as many are taken of the others.
    n_good, n_asked = -(-rows // per_part), -(-queries // per_part)
    generator = torch.Generator().manual_seed(0)
    drawn: list[Tensor] = []
    for number in progress(range(n_good + n_asked), f"drawn parts through stage {stage}", n_good + n_asked):
        image = draw_part(0, number, "scratch" if number > n_good else None).image[:, 40:360]
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
        scaled = torch.nn.functional.interpolate(pixels, (SIDE_PX, SIDE_PX), mode="bilinear")
        flat = backbone.features(scaled)[0][0].flatten(1).T
        drawn.append(flat[torch.randperm(len(flat), generator=generator)[:per_part]])
    std, mean = torch.std_mean(torch.cat(drawn[:n_good]), 0)
    standard = [((part - mean) / std).contiguous() for part in drawn]
    return torch.cat(standard[:n_good])[:rows].contiguous(), torch.cat(standard[n_good:])[:queries].contiguous()


def measured(channels: int, memory: Tensor, asked: Tensor, repeats: int, progress: Progress) -> list[Row]:
    """A row a way."""
    exact = exact_distances(memory, asked)
    timed = side_by_side(ways(memory, asked), repeats, progress, f"{channels} channels")
    libraries = {OURS: "torch", "faiss": "faiss-cpu", "scikit-learn": "scikit-learn", "torch.cdist": "torch"}
    return [row(name, channels, found, exact, timed[OURS], libraries[name]) for name, found in timed.items()]


def ways(memory: Tensor, asked: Tensor) -> dict[str, Callable[[int], Distances]]:
    """Each answers with the (queries,) Euclidean distances; its index is built here."""
    ours = NearestPatches(memory)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(memory.shape[1])
    index.add(memory.numpy())
    neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(memory.numpy())
    return {
        OURS: lambda run: ours.distances(asked).numpy(),
        "faiss": lambda run: np.sqrt(index.search(asked.numpy(), 1)[0][:, 0]),
        "scikit-learn": lambda run: neighbours.kneighbors(asked.numpy())[0][:, 0],
        "torch.cdist": lambda run: torch.cdist(asked, memory).amin(1).numpy(),
    }


def exact_distances(memory: Tensor, asked: Tensor) -> NDArray[np.float64]:
    """(queries,) float64, from differences: no cancellation as in the expanded square."""
    wide = memory.double()
    nearest = torch.cat(
        [torch.cdist(part, wide).topk(5, largest=False).indices for part in torch.split(asked.double(), 512)]
    )
    differences = asked.double()[:, None] - wide[nearest]
    return differences.square().sum(2).amin(1).sqrt().numpy()


def row(
    name: str,
    channels: int,
    found: Timed[Distances],
    exact: NDArray[np.float64],
    ours: Timed[Distances],
    library: str,
) -> Row:
    """One way's figures."""
    error = np.abs(found.answers[-1] - exact) / np.maximum(exact, 1e-12)
    return {
        "way": name,
        "channels": channels,
        "ms": {"best": 1000 * found.best, "median": 1000 * found.median, "warm_up": 1000 * found.warm_up},
        "ratio_to_ours": found.best / ours.best,
        "relative_error": {"mean": float(error.mean()), "max": float(error.max())},
        "versions": versions(library),
    }


if __name__ == "__main__":
    app()
