"""What of SAM's masks is the defect, and when the heatmap's own outline stays.

SAM tends to outline the whole part, and its own estimate of a mask's IoU does not tell: the mask that it likes best is
often the part. So its masks vote, each with the weight of its agreement with the anomaly map: how like the map is to
what it would show of the mask, blurred as it is. And a pixel is defect where the vote and the map together say so: SAM
draws the edge, the map says where to stop. Where SAM sees no edge, as of a stain on cloth, it fills the box that it was
given; there a strong map draws alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sam_inspect.config import ChooseConfig
from sam_inspect.logits import mean_logit, mean_probability, probability
from sam_inspect.masks import (
    box_iou,
    cell_centres,
    hull,
    intersection_px,
    on_crop,
    on_image,
    resize_window,
    tight,
    window,
    without_specks,
    work_hw,
)
from sam_inspect.records import Box, Candidates, CropMask, Localization, Map, Outline, Region, View

VOTE_TEMPERATURE, IN_BOX_TEMPERATURE = 0.1, 0.05  # How a mask fits a given box says more than how it agrees with a map.
RANKED_PX = 64
SIGMAS = 0.7  # of the Gaussian that the map's blur is taken for, in widths of a point on the map
LEAST_PROBABILITY = 0.01
SPECK_SHARE = 0.02
FILLED = 0.8  # of its own box
STABLE, DOUBTED = 0.85, 0.65  # stability scores
OUTSIDE, PER_SIDE = 1.0, 40.0  # logits that SAM's vote must have more beyond a given box: at its edge, and a side away


def choose(candidates: Sequence[Candidates], localization: Localization, config: ChooseConfig) -> list[Outline]:
    """One outline a region, the highest first; of what a map shows without duplicates.

    Args:
        candidates: SAM's answers, each to the prompt of one region.
        localization: the regions, and the map that they were found in (None where boxes were given).
        config: weights and limits.
    """
    by_region: dict[int, list[Outline]] = {}
    for answer in candidates:
        if answer.prompt.region is not None and (found := outline(answer, localization, config)):
            by_region.setdefault(answer.prompt.region, []).append(found)
    outlines = [_joined(parts, localization.regions[index]) for index, parts in sorted(by_region.items())]
    outlines.sort(key=lambda each: -each.region.score)
    return outlines if localization.anomaly_map is None else _without_duplicates(outlines, config.duplicate_iou)


def outline(candidates: Candidates, localization: Localization, config: ChooseConfig) -> Outline | None:
    """What is the defect in one answer: SAM's mask, or the map's own; None for a given box in which SAM sees nothing.

    Args:
        candidates: SAM's answer to the prompt of a region.
        localization, config: see `choose`.
    """
    region, view = localization.asked(candidates.prompt), candidates.view
    grid_hw = work_hw(view.crop_hw)
    evidence = _evidence(localization, view.crop_xyxy, grid_hw, region, config.from_peak)
    agreements = _agreements(candidates, region, evidence, config.from_peak)
    if agreements.max() >= config.least_agreement:
        vote = on_crop(view, _vote(candidates, agreements, config, in_box=evidence is None), grid_hw)
        if evidence is None:
            rise = vote - _doubt(region.box_xyxy, view.crop_xyxy, grid_hw)
        else:
            rise = _defect(probability(vote), evidence, config.least_share)
        mask = tight(CropMask((0, 0, grid_hw[1], grid_hw[0]), rise > 0))
        mask = tight(without_specks(mask, SPECK_SHARE)) if mask else None
        if mask is not None and region.core is not None and _is_echo(mask, vote):
            return Outline(region.core, region, "heatmap")
        if mask is not None:
            return Outline(on_image(mask, view.crop_xyxy, grid_hw), region, "sam")
    return Outline(region.mask, region, "heatmap") if region.mask is not None else None


def is_doubted(candidates: Candidates, localization: Localization, config: ChooseConfig) -> bool:
    """Whether SAM's masks of what a map shows outvote each other: what they vote for has no edge, or several.

    Args:
        candidates: SAM's answer to the prompt of a region.
        localization, config: see `choose`.
    """
    region, view = localization.asked(candidates.prompt), candidates.view
    evidence = _evidence(localization, view.crop_xyxy, work_hw(view.crop_hw), region, config.from_peak)
    agreements = _agreements(candidates, region, evidence, config.from_peak)
    rows, columns = _low_res_hw(view)
    return _stability(_vote(candidates, agreements, config, in_box=False)[:rows, :columns]) < DOUBTED


def _is_echo(mask: CropMask, vote: Map) -> bool:
    """Whether SAM fills a box and is not sure of its edge."""
    return mask.area_px > FILLED * mask.pixels.size and _stability(vote) < STABLE


def _stability(logits: Map) -> float:
    """How much of a mask stays between a logit of -1 and of 1: the stability score of SA-1B (Kirillov et al. 2023)."""
    return int(np.count_nonzero(logits > 1)) / max(1, int(np.count_nonzero(logits > -1)))


def _joined(parts: Sequence[Outline], region: Region) -> Outline:
    """One outline of a region that was asked about in parts, or whole."""
    if len(parts) == 1:
        return replace(parts[0], region=region)
    box = hull([part.mask.box_xyxy for part in parts])
    pixels = np.logical_or.reduce([window(part.mask, box) for part in parts])
    sam = any(part.source == "sam" for part in parts)
    return Outline(CropMask(box, pixels), region, "sam" if sam else "heatmap")


def _defect(probability: Map, evidence: Map, least_share: float) -> Map:
    """Above 0 where the mean of both is above the share, but not where SAM is sure that there is another thing.

    Neighbours in one view are evidence of each other; SAM was asked for one of them.
    """
    both = probability + evidence - 2 * least_share
    return np.asarray(np.where(probability > LEAST_PROBABILITY, both, -1), np.float32)


def _doubt(box: Box, crop: Box, grid_hw: tuple[int, int]) -> Map:
    """On a grid over a crop, 0 in a given box; beyond it what lies there must be surer, the farther the more.

    Whoever drew the box meant all of the defect, and drew it a few hundredths of its sides wrong.
    """
    (x0, y0, x1, y1), (x, y) = box, cell_centres(crop, grid_hw)
    beside = np.maximum(x0 - x, x - x1) / (x1 - x0)
    above_or_below = np.maximum(y0 - y, y - y1) / (y1 - y0)
    farthest = np.maximum(beside, above_or_below[:, None])
    return np.asarray(np.where(farthest > 0, OUTSIDE + PER_SIDE * farthest, 0), np.float32)


def _evidence(
    localization: Localization, crop: Box, grid_hw: tuple[int, int], region: Region, from_peak: float
) -> Map | None:
    """The map in a crop, float32 on a grid over it, from 0 at `from_peak` of the region's peak to 1 at the peak."""
    if localization.anomaly_map is None:
        return None
    rise = resize_window(localization.anomaly_map, crop, localization.original_hw, grid_hw)
    return _risen(rise, region.score, from_peak)


def _risen(values: Map, peak: float, from_peak: float) -> Map:
    low = from_peak * peak
    return np.asarray(np.clip((values - low) / max(peak - low, 1e-6), 0, 1), np.float32)


def _agreements(candidates: Candidates, region: Region, evidence: Map | None, from_peak: float) -> NDArray[np.float64]:
    """(M,) how well each mask agrees with the map, or with the given box; -1 for an empty mask.

    With the map: the soft intersection over union of its evidence and what it would show of the mask, on a grid of 64
    cells, which is fine enough to rank masks. With a box: the IoU of the mask's own box and the given one.
    """
    view, (rows, columns) = candidates.view, _low_res_hw(candidates.view)
    masks = candidates.low_res_logits[:, :rows, :columns] > 0
    if evidence is None:
        return np.array([box_iou(_box(mask, view), region.box_xyxy) if mask.any() else -1 for mask in masks])
    scale = min(1.0, RANKED_PX / max(rows, columns))
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    expected = np.asarray(cv2.resize(evidence, size, interpolation=cv2.INTER_AREA), np.float32)
    sigma = SIGMAS * region.blur_px * size[0] / view.crop_hw[1]
    return np.array([_soft_iou(_shown(mask, size, sigma, from_peak), expected) if mask.any() else -1 for mask in masks])


def _shown(mask: NDArray[np.bool_], size: tuple[int, int], sigma: float, from_peak: float) -> Map:
    """The evidence that a map blurred so wide, in cells of the size, would give if the mask were the defect."""
    cells = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(cells, (0, 0), sigma) if sigma else cells
    return _risen(np.asarray(blurred), float(blurred.max()), from_peak)


def _soft_iou(one: Map, other: Map) -> float:
    return float(np.minimum(one, other).sum() / max(np.maximum(one, other).sum(), 1e-6))


def _low_res_hw(view: View) -> tuple[int, int]:
    """Rows and columns of SAM's low resolution masks that show the view and not its padding."""
    height, width = view.input_hw
    return -(-height // 4), -(-width // 4)


def _vote(candidates: Candidates, agreements: NDArray[np.float64], config: ChooseConfig, *, in_box: bool) -> Map:
    """(l, l) logits of the masks' mean, weighted by the softmax of their ranks: agreement and SAM's own estimate.

    In a given box it is the mean of probabilities; beside a map, which has the last word, that of logits.
    """
    temperature, mean = (IN_BOX_TEMPERATURE, mean_probability) if in_box else (VOTE_TEMPERATURE, mean_logit)
    ranks = (agreements + config.predicted_iou * candidates.predicted_iou) / temperature
    weights = np.exp(ranks - ranks.max())
    return mean(candidates.low_res_logits, weights / weights.sum())


def _box(mask: NDArray[np.bool_], view: View) -> tuple[float, float, float, float]:
    """The box of a mask on SAM's own grid, in pixels of the image."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    x_px, y_px = (4 * crop / shown for crop, shown in zip(view.crop_hw[::-1], view.input_hw[::-1], strict=True))
    x0, y0 = view.crop_xyxy[:2]
    return x0 + left * x_px, y0 + top * y_px, x0 + (left + width) * x_px, y0 + (top + height) * y_px


def _without_duplicates(outlines: Sequence[Outline], most_iou: float) -> list[Outline]:
    """Those that overlap no earlier (higher) one by more; defects of one place are one defect."""
    kept: list[Outline] = []
    for each in outlines:
        if all(_iou(each.mask, other.mask) <= most_iou for other in kept):
            kept.append(each)
    return kept


def _iou(a: CropMask, b: CropMask) -> float:
    shared = intersection_px(a, b)
    return shared / (a.area_px + b.area_px - shared)
