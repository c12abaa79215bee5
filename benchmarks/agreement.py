"""How well ground truth agrees with itself: outlines of one part, drawn anew on each of several pictures of it.

No decoder can overlap with such ground truth much better than its own outlines overlap with each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from measuring import JsonFile, Row, hardware, show, write_rows
from numpy.typing import NDArray

from sam_inspect.datasets import GOOD, Sample, groups_of, read_gt_mask, test_samples
from sam_inspect.images import read_image
from sam_inspect.metrics import mask_iou

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
MARGIN_PX, NUDGE_PX = 60, 3
LEAST_MATCH = 0.5
FINE_PX, COARSE_PX = 1.0, 15.0
Ious = NDArray[np.float64]
MEASURES = {"laid": "mean IoU", "best": "at best", "boxed": "and in its boxes"}


@app.command()
def main(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="In MVTec layout, several pictures of each part.")],
    groups: Annotated[Path | None, typer.Option(metavar="FILE", help="CSV of image,group; DATA/groups.csv.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Mean IoU of the masks of every two pictures of one part, after laying the pictures over each other.

    As the pictures lie; as the masks fit best within 3 pixels, so that no error of laying counts; and the same with the
    other mask cut to the boxes of the one, which a decoder is told. `all` weighs each type by its pictures.
    """
    samples = [sample for sample in test_samples(data) if sample.defect_type != GOOD]
    by_kind: dict[str, list[Ious]] = {}
    for sample, other in pairs(data, groups, samples):
        found = agreement(sample, other)
        if found is not None:
            by_kind.setdefault(sample.defect_type, []).append(found)
    counts = {kind: sum(sample.defect_type == kind for sample in samples) for kind in by_kind}
    rows: list[Row] = [row(kind, counts[kind], found) for kind, found in sorted(by_kind.items())]
    weights = np.array([row["images"] for row in rows])
    means = {key: float(np.average([row[key] for row in rows], weights=weights)) for key in MEASURES}
    rows.append({"type": "all", "images": int(weights.sum()), "pairs": sum(row["pairs"] for row in rows)} | means)
    columns = {"type": "type", "images": "images", "pairs": "pairs"}
    columns |= {title: f"{key}:.3f" for key, title in MEASURES.items()}
    show(f"{data.name}: ground truth against ground truth", hardware(), rows, columns)
    write_rows(json_file, hardware(), rows, data=str(data))


def row(kind: str, images: int, found: Sequence[Ious]) -> Row:
    """Of one defect type."""
    means = zip(MEASURES, np.mean(found, 0).tolist(), strict=True)
    return {"type": kind, "images": images, "pairs": len(found)} | dict(means)


def pairs(data: Path, groups: Path | None, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Sample]]:
    """Every two pictures of one part that show the same type of defect."""
    names = [sample.image.relative_to(data).as_posix() for sample in samples]
    known = groups_of(data, groups, names) or {}
    for (name, sample), (other_name, other) in combinations(zip(names, samples, strict=True), 2):
        same = name in known and known[name] == known.get(other_name)
        if same and sample.defect_type == other.defect_type:
            yield sample, other


def agreement(sample: Sample, other: Sample) -> Ious | None:
    """(3,) IoU of two pictures' masks where both look, see MEASURES; None where they do not fit on each other."""
    images = [read_image(each.image) for each in (sample, other)]
    mask, mask_of_other = (
        read_gt_mask(each, image.shape[:2]) for each, image in zip((sample, other), images, strict=True)
    )
    found = offset(*(relief(image) for image in images))
    if found is None:
        return None
    nudges = range(-NUDGE_PX, NUDGE_PX + 1)
    ious = {(dy, dx): ious_at(mask, mask_of_other, found[0] + dy, found[1] + dx) for dy in nudges for dx in nudges}
    return np.array([ious[0, 0][0], *np.max(list(ious.values()), 0)])


def relief(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What stands out of its surroundings, whatever the light."""
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), FINE_PX)
    return np.asarray(grey / np.maximum(cv2.GaussianBlur(grey, (0, 0), COARSE_PX), 1), np.float32)


def offset(one: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[int, int] | None:
    """How far down and right the middle of one picture lies in the other, pixels; None where it is not found."""
    top, left = one.shape[0] // 4, one.shape[1] // 4
    middle = one[top : top + one.shape[0] // 2, left : left + one.shape[1] // 2]
    around = cv2.copyMakeBorder(other, MARGIN_PX, MARGIN_PX, MARGIN_PX, MARGIN_PX, cv2.BORDER_REPLICATE)
    if around.shape[0] < middle.shape[0] or around.shape[1] < middle.shape[1]:
        return None
    _, match, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(around, middle, cv2.TM_CCOEFF_NORMED))
    return (y - MARGIN_PX - top, x - MARGIN_PX - left) if match >= LEAST_MATCH else None


def ious_at(one: NDArray[np.bool_], other: NDArray[np.bool_], down: int, right: int) -> tuple[float, float]:
    """IoU with (y, x) of one at (y + down, x + right) of the other, where both are, and in boxes, each way.

    0 where neither shows anything.
    """
    y0, x0 = max(0, -down), max(0, -right)
    y1, x1 = min(one.shape[0], other.shape[0] - down), min(one.shape[1], other.shape[1] - right)
    here, there = one[y0:y1, x0:x1], other[y0 + down : y1 + down, x0 + right : x1 + right]
    if not (here.any() or there.any()):
        return 0.0, 0.0
    boxed = (mask_iou(here, there & boxes(here)) + mask_iou(there, here & boxes(there))) / 2
    return float(mask_iou(here, there)), float(boxed)


def boxes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The boxes of its connected parts, filled."""
    filled = np.zeros_like(mask)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    for x, y, width, height, _ in stats[1:]:
        filled[y : y + height, x : x + width] = True
    return filled


if __name__ == "__main__":
    app()
