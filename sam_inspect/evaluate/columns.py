"""One test image, scored: its defects by every column of the mask table, at the image's own resolution.

`heatmap`, `heatmap_oracle` and `refined` find the defects themselves; the `gt_boxes` columns are given the box of each
ground-truth defect, as from a user's mouse. GrabCut and Otsu's threshold are what one would try in it before SAM.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sam_inspect.datasets import GOOD, Sample, read_gt_mask
from sam_inspect.errors import RecipeError
from sam_inspect.masks import components, filled_box, from_full, from_rle, resize_map, tight, to_rle, union
from sam_inspect.metrics import MaskScore, score_masks
from sam_inspect.records import Box, CropMask, Inspection, Mask, Rgb

if TYPE_CHECKING:
    from sam_inspect.pipeline import Inspector

COLUMNS = (
    "heatmap",
    "heatmap_oracle",
    "refined",
    "gt_boxes",
    "gt_boxes_filled",
    "gt_boxes_otsu",
    "gt_boxes_grabcut",
)
GRABCUT_ROUNDS = 5
GRABCUT_LONG_SIDE_PX = 256  # At 900 pixels GrabCut takes ten seconds a defect, and finds no more (mean IoU +0.01).

Outliner = Callable[[Rgb, Sequence[Box]], list[CropMask]]


@dataclass(frozen=True, slots=True, eq=False)
class ColumnScore:
    """What one column came to on one image; `seconds` is what its masks took."""

    masks: MaskScore
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One test image after its inspection, small enough to keep all of them: no full frame is among it.

    Attributes:
        sample: the image and where its ground truth is.
        original_hw: (H, W) pixels.
        score: its anomaly score.
        failed: whether its verdict is fail.
        anomaly_map: (h, w) float32 on the localizer's own grid.
        truth: its ground truth as COCO RLE; None where nothing is set.
        timings_ms: milliseconds of each stage of its inspection.
        columns: score by column; filled as they are found.
    """

    sample: Sample
    original_hw: tuple[int, int]
    score: float
    failed: bool
    anomaly_map: NDArray[np.float32]
    truth: dict[str, Any] | None
    timings_ms: dict[str, float]
    columns: dict[str, ColumnScore] = field(default_factory=dict)

    @property
    def is_defective(self) -> bool:
        """Whether it lies in the folder of a defect type."""
        return self.sample.defect_type != GOOD

    @property
    def is_outlined(self) -> bool:
        """Whether it has a defect with ground truth: what mask measures are about."""
        return self.truth is not None

    def full_map(self) -> NDArray[np.float32]:
        """(H, W) float32: the anomaly map at the image's own size."""
        return resize_map(self.anomaly_map, self.original_hw)

    def full_truth(self) -> Mask:
        """(H, W) bool: the ground truth."""
        mask = from_rle(self.truth) if self.truth else None
        return union([] if mask is None else [mask], self.original_hw)


def case_of(sample: Sample, inspection: Inspection) -> Case:
    """The record of an inspection without error.

    Raises:
        DatasetError: its ground truth cannot be read, or is of another size.
        RecipeError: the recipe's localizer draws no anomaly map.
    """
    if inspection.anomaly_map is None or inspection.score is None or inspection.original_hw is None:
        raise RecipeError(f"{sample.image}: the recipe drew no anomaly map of it", "evaluate a recipe that has one")
    truth = from_full(read_gt_mask(sample, inspection.original_hw))
    return Case(
        sample=sample,
        original_hw=inspection.original_hw,
        score=inspection.score,
        failed=inspection.verdict == "fail",
        anomaly_map=inspection.anomaly_map,
        truth=None if truth is None else to_rle(truth, inspection.original_hw),
        timings_ms=dict(inspection.timings_ms),
    )


def score_inspection(case: Case, inspection: Inspection, threshold: float) -> None:
    """Fills the columns `heatmap` and `refined`."""
    score_heatmap(case, "heatmap", threshold)
    seconds = sum(ms for stage, ms in case.timings_ms.items() if stage != "read") / 1000
    found = [defect.mask for defect in inspection.defects]
    case.columns["refined"] = ColumnScore(score_masks(found, case.full_truth()), seconds)


def score_heatmap(case: Case, column: str, threshold: float) -> None:
    """Fills a column with what of the map lies above the threshold, each connected part a defect."""
    start = time.perf_counter()
    found = components(case.full_map() > threshold)
    seconds = time.perf_counter() - start + case.timings_ms.get("localize", 0.0) / 1000
    case.columns[column] = ColumnScore(score_masks(found, case.full_truth()), seconds)


def score_boxes(case: Case, image: Rgb, inspector: Inspector) -> None:
    """Fills the `gt_boxes` columns: each method in the box of each ground-truth defect.

    Args:
        case: an image with ground truth.
        image: (H, W, 3) uint8 RGB.
        inspector: whose SAM outlines the boxes.
    """
    truth = case.full_truth()
    boxes = [mask.box_xyxy for mask in components(truth)]
    for column, outline in _box_methods(inspector).items():
        start = time.perf_counter()
        found = outline(image, boxes)
        seconds = time.perf_counter() - start
        case.columns[column] = ColumnScore(score_masks(found, truth), seconds)


def _box_methods(inspector: Inspector) -> dict[str, Outliner]:
    return {"gt_boxes": lambda image, boxes: [defect.mask for defect in inspector.outline(image, boxes)], **CLASSICAL}


def classical_masks(image: Rgb, boxes: Sequence[Box]) -> dict[str, list[CropMask]]:
    """By column, what one would try before SAM in each box.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: of the defects.
    """
    return {column: outline(image, boxes) for column, outline in CLASSICAL.items()}


def _not_empty(found: Any) -> list[CropMask]:
    return [mask for mask in found if mask is not None]


def otsu(image: Rgb, box_xyxy: Box) -> CropMask | None:
    """Otsu's threshold (1979, `cv2.threshold`) on the grey values in the box.

    The defect is the class that is rarer on the box's outermost pixels: a box is drawn around its defect, so that its
    rim is mostly good surface.

    Returns:
        the tight mask; None where the box is of one grey value.
    """
    x0, y0, x1, y1 = box_xyxy
    grey = cv2.cvtColor(image[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY)
    _, bright = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    rim = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
    defect = bright == (rim.mean() < 0.5)
    return tight(CropMask(box_xyxy, defect)) if bright.min() != bright.max() else None


def grabcut(image: Rgb, box_xyxy: Box) -> CropMask | None:
    """GrabCut (Rother et al., SIGGRAPH 2004, `cv2.grabCut`), five rounds, started with the box.

    It sees the box with half its size more on each side, scaled to at most 256 pixels. A box that leaves it no
    background to learn from, such as one over the whole image, is taken as it is.

    Returns:
        the tight mask; None where it found the box to be all background.
    """
    crop_xyxy = _padded(box_xyxy, (image.shape[0], image.shape[1]))
    left, top, right, bottom = crop_xyxy
    crop = image[top:bottom, left:right]
    scale = min(1.0, GRABCUT_LONG_SIDE_PX / max(crop.shape[:2]))
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    classes = np.full(crop.shape[:2], cv2.GC_BGD, np.uint8)
    x0, y0, x1, y1 = box_xyxy
    classes[y0 - top : y1 - top, x0 - left : x1 - left] = cv2.GC_PR_FGD
    classes = np.asarray(cv2.resize(classes, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    if classes.min() == classes.max():
        return filled_box(box_xyxy)
    cv2.setRNGSeed(0)  # its first clusters are drawn
    small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, classes, (0, 0, 0, 0), background, foreground, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    is_defect = (classes == cv2.GC_PR_FGD).astype(np.uint8)
    full = cv2.resize(is_defect, (right - left, bottom - top), interpolation=cv2.INTER_NEAREST)
    return tight(CropMask(crop_xyxy, full.astype(bool)))


CLASSICAL: dict[str, Outliner] = {
    "gt_boxes_filled": lambda image, boxes: [filled_box(box) for box in boxes],
    "gt_boxes_otsu": lambda image, boxes: _not_empty(otsu(image, box) for box in boxes),
    "gt_boxes_grabcut": lambda image, boxes: _not_empty(grabcut(image, box) for box in boxes),
}


def _padded(box_xyxy: Box, original_hw: tuple[int, int]) -> Box:
    """The box with half its size more on each side, cut to the image."""
    x0, y0, x1, y1 = box_xyxy
    dx, dy = (x1 - x0 + 1) // 2, (y1 - y0 + 1) // 2
    return max(0, x0 - dx), max(0, y0 - dy), min(original_hw[1], x1 + dx), min(original_hw[0], y1 + dy)
