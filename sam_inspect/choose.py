"""Which of SAM's masks is the defect, and when the heatmap's own outline stays.

SAM tends to outline the whole part, and its own estimate of a mask's IoU does not tell: the mask that it likes best is
often the part. So candidates are ranked by how well they agree with the anomaly map, with SAM's estimate beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sam_inspect.config import ChooseConfig
from sam_inspect.masks import crop_logits, intersection_px, resize_window, tight
from sam_inspect.records import Box, Candidates, CropMask, Localization, Outline, Region


def choose(candidates: Sequence[Candidates], localization: Localization, config: ChooseConfig) -> list[Outline]:
    """One outline a region, without duplicates; the highest region first.

    Args:
        candidates: SAM's answers, each to the prompt of one region.
        localization: the regions, and the map that they were found in (None where boxes were given).
        config: weights and limits.
    """
    outlines = [_best(answer, localization, config) for answer in candidates if answer.prompt.region is not None]
    found = sorted((outline for outline in outlines if outline), key=lambda outline: -outline.region.score)
    return _without_duplicates(found, config.duplicate_iou)


def _best(candidates: Candidates, localization: Localization, config: ChooseConfig) -> Outline | None:
    """The candidate of highest rank, or the map's own outline; None for a given box in which SAM sees nothing."""
    index = candidates.prompt.region
    assert index is not None
    region = localization.regions[index]
    masks = [_mask(candidates, i) for i in range(len(candidates.predicted_iou))]
    agreements = _agreements(masks, candidates.view.crop_xyxy, region, localization, config)
    ranks = agreements + config.predicted_iou * candidates.predicted_iou
    best = int(np.argmax(ranks))
    mask = masks[best]
    if mask is not None and (region.mask is None or agreements[best] >= config.least_agreement):
        return Outline(mask, region, "sam")
    return Outline(region.mask, region, "heatmap") if region.mask is not None else None


def _mask(candidates: Candidates, index: int) -> CropMask | None:
    """One of SAM's masks in the image's frame, tight."""
    return tight(CropMask(candidates.view.crop_xyxy, crop_logits(candidates, index) > 0))


def _agreements(
    masks: Sequence[CropMask | None], crop: Box, region: Region, localization: Localization, config: ChooseConfig
) -> NDArray[np.float64]:
    """(M,) how well each mask agrees with the map in its view, or with the given box; -1 for an empty mask.

    With the map: the soft intersection over union of the mask and the map, which counts from 0 at `from_peak` of the
    region's peak to 1 at the peak. With a box: the IoU of the mask's own box and the given one.
    """
    if localization.anomaly_map is None:
        return np.array([_box_iou(mask.box_xyxy, region.box_xyxy) if mask else -1.0 for mask in masks])
    rise = resize_window(localization.anomaly_map, crop, localization.original_hw)
    low = config.from_peak * region.score
    weight = np.clip((rise - low) / max(region.score - low, 1e-6), 0, 1)
    total = float(weight.sum())
    return np.array([_soft_iou(weight, total, crop, mask) if mask else -1.0 for mask in masks])


def _soft_iou(weight: NDArray[np.float32], total: float, crop: Box, mask: CropMask) -> float:
    x0, y0, x1, y1 = mask.box_xyxy
    inside = weight[y0 - crop[1] : y1 - crop[1], x0 - crop[0] : x1 - crop[0]]
    shared = float(inside[mask.pixels].sum())
    return shared / (total + mask.area_px - shared)


def _box_iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _without_duplicates(outlines: Sequence[Outline], most_iou: float) -> list[Outline]:
    """Those that overlap no earlier (higher) one by more; defects of one place are one defect."""
    kept: list[Outline] = []
    for outline in outlines:
        if all(_iou(outline.mask, other.mask) <= most_iou for other in kept):
            kept.append(outline)
    return kept


def _iou(a: CropMask, b: CropMask) -> float:
    shared = intersection_px(a, b)
    return shared / (a.area_px + b.area_px - shared)
