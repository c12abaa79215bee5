"""From an anomaly map to regions, and from regions to what SAM is asked: views of the image with boxes in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sam_inspect.config import PromptConfig
from sam_inspect.lines import Ribbon, parts_of
from sam_inspect.masks import box_on_image, components, hull, on_image, resize_window, work_hw
from sam_inspect.records import Box, CropMask, Map, Prompt, Region, View

IMAGE_INPUT_PX = 1024
SUMMIT_CELLS = 1.5
STRONG, EDGE = 2.0, 0.77  # thresholds; of a peak as high as that, the share at which the map shows the defect's edge
NEIGHBOURS_ZOOM = 1.5
MOST_ZOOMED = 10


def find_regions(
    anomaly_map: Map, original_hw: tuple[int, int], threshold: float, config: PromptConfig
) -> tuple[Region, ...]:
    """Connected parts of the map that rise above the threshold, each with its own outline; highest first.

    A region begins at its peak and reaches down to `grow` of that peak, but not below `floor` of the threshold
    (hysteresis). Every further peak above the threshold that no region holds yet begins another one, but for those on a
    higher one's slope: joined to it and below its reach. (A network with attention in windows, as SAM's trunk has,
    lifts all of a window about a strong defect.) The map is brought to the image's resolution only around what rises.

    Args:
        anomaly_map: (h, w) float32 on any even grid over the image.
        original_hw: (H, W) of the image, pixels.
        threshold: in the map's units.
        config: `grow`, `floor` and `blur_cells`.
    """
    low = min(threshold, config.floor * threshold)
    cell = max(original_hw[0] / anomaly_map.shape[0], original_hw[1] / anomaly_map.shape[1])
    regions = []
    for window, rise, highest in _windows(anomaly_map, original_hw, low, threshold):
        for part in _parts(rise, low, threshold, config.grow, SUMMIT_CELLS * cell / _scale_yx(rise, window)[0]):
            region = _region(rise, window, part, config.blur_cells * cell, original_hw, STRONG * threshold)
            # Between cells a lone peak is shaved: what rises above the threshold says so.
            regions.append(region if region.score > threshold else replace(region, score=highest))
    return tuple(sorted(regions, key=lambda region: -region.score))


def _windows(
    anomaly_map: Map, original_hw: tuple[int, int], low: float, threshold: float
) -> Iterator[tuple[Box, Map, float]]:
    """Parts of the image around what rises above `threshold`, each with the map there, as fine as is worth it.

    And the highest value of its cells.
    """
    # Between cells the map is interpolated: a pixel above `low` has such a cell among its four nearest.
    above = cv2.dilate((anomaly_map > low).view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
    for cells in components(above):
        x0, y0, x1, y1 = cells.box_xyxy
        highest = float(anomaly_map[y0:y1, x0:x1][cells.pixels].max())
        if highest <= threshold:
            continue
        alone = anomaly_map.copy()
        alone[y0:y1, x0:x1][~cells.pixels] = low
        window = box_on_image(cells.box_xyxy, (0, 0, original_hw[1], original_hw[0]), anomaly_map.shape)
        grid_hw = work_hw((window[3] - window[1], window[2] - window[0]))
        yield window, resize_window(alone, window, original_hw, grid_hw), highest


def _scale_yx(rise: Map, window: Box) -> tuple[float, float]:
    """Pixels of the image per pixel of a window's grid."""
    return (window[3] - window[1]) / rise.shape[0], (window[2] - window[0]) / rise.shape[1]


def _parts(rise: Map, low: float, threshold: float, grow: float, summit_px: float) -> Iterator[CropMask]:
    """The outlines of the regions of one window, the highest first."""
    # Resampling may shave a lone cell's peak; the window was cut for what rises, so its highest pixel always counts.
    highest = float(rise.max())
    low = min(low, np.nextafter(highest, -np.inf))
    least = min(max(threshold, grow * highest), np.nextafter(highest, -np.inf))
    # A region begins where the map has a peak of its own: the slope about another region's peak begins none.
    reach = 2 * math.ceil(summit_px) + 1
    summits = (rise > least) & (rise >= cv2.dilate(rise, np.ones((reach, reach), np.uint8)))
    left = rise > low
    while (summits & left).any():
        peak = float(rise[summits & left].max())
        level = max(low, grow * peak)
        parts = components(left & (rise > min(level, np.nextafter(peak, -np.inf))))
        part = next(part for part in parts if _touches(part, summits & left & (rise == peak)))
        yield part
        x0, y0, x1, y1 = part.box_xyxy
        left[y0:y1, x0:x1] &= ~_grown(part.pixels)


def _touches(part: CropMask, pixels: NDArray[np.bool_]) -> bool:
    x0, y0, x1, y1 = part.box_xyxy
    return bool((pixels[y0:y1, x0:x1] & part.pixels).any())


def _grown(pixels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return cv2.dilate(pixels.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)


def _peak(rise: Map, part: CropMask) -> tuple[float, tuple[int, int]]:
    """The highest value in a part, and (x, y) of it in the window."""
    x0, y0, x1, y1 = part.box_xyxy
    values = np.where(part.pixels, rise[y0:y1, x0:x1], -np.inf)
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return float(values[row, column]), (x0 + int(column), y0 + int(row))


def _region(
    rise: Map, window: Box, part: CropMask, blur_px: float, original_hw: tuple[int, int], strong: float
) -> Region:
    """A part of a window as a region of the image: a long line with its parts, a high and wide one with its core."""
    point_px = blur_px / math.sqrt(math.prod(_scale_yx(rise, window)))
    ribbon = Ribbon.of(part, rise.shape)
    region, *parts = (
        replace(_alone(rise, window, each, blur_px, original_hw), thin=sizes.is_thin(point_px))
        for each, sizes in [(part, ribbon), *parts_of(part, ribbon, point_px, rise.shape)]
    )
    sharp = region.score > max(strong, 0) and not region.thin and not parts
    return replace(region, parts=tuple(parts), core=_core(rise, window, part, region) if sharp else None)


def _core(rise: Map, window: Box, part: CropMask, region: Region) -> CropMask | None:
    """What the map itself can outline of a high part: what lies about its peak, where that is wider than a point."""
    x0, y0, x1, y1 = part.box_xyxy
    inside = rise[y0:y1, x0:x1]
    highs = components(part.pixels & (inside >= EDGE * region.score))
    high = next(each for each in highs if _touches(each, inside == region.score))
    left, top, right, bottom = high.box_xyxy
    core = on_image(CropMask((x0 + left, y0 + top, x0 + right, y0 + bottom), high.pixels), window, rise.shape)
    x0, y0, x1, y1 = core.box_xyxy
    return core if min(x1 - x0, y1 - y0) > region.blur_px else None


def _alone(rise: Map, window: Box, part: CropMask, blur_px: float, original_hw: tuple[int, int]) -> Region:
    """The same whatever its shape."""
    (left, top), (scale_y, scale_x) = window[:2], _scale_yx(rise, window)
    score, (x, y) = _peak(rise, part)
    peak = left + int((x + 0.5) * scale_x), top + int((y + 0.5) * scale_y)
    mask = on_image(part, window, rise.shape)
    box = _drawn_in(mask.box_xyxy, peak, blur_px, original_hw)
    return Region(box, (peak[0] + 0.5, peak[1] + 0.5), score, mask, blur_px=blur_px)


def _drawn_in(box: Box, peak: tuple[int, int], blur_px: float, original_hw: tuple[int, int]) -> Box:
    """The box of what, blurred so wide, fills a box and has its peak there: the squares of widths add up."""
    axes = zip(box[:2], box[2:], peak, original_hw[::-1], strict=True)
    (x0, x1), (y0, y1) = (_span(start, end, highest, whole, blur_px) for start, end, highest, whole in axes)
    return x0, y0, x1, y1


def _span(start: int, end: int, highest: int, whole: int, blur_px: float) -> tuple[int, int]:
    """The same along one axis; what ends at a border of the image is half of itself and its mirror image.

    A map's peak sticks to a border that it is near, so that it does not say how far from there the defect is.
    """
    at_start, at_end = start == 0, end == whole
    if at_start and at_end:
        return start, end
    halves = 2 if at_start or at_end else 1
    blurred = halves * (end - start)
    narrowed = max(math.sqrt(max(blurred**2 - blur_px**2, 0)), blur_px / 8, 1)
    side = min(end - start, math.ceil(narrowed / halves))
    first = start if at_start else end - side if at_end else start + (end - start - side) // 2
    first = min(max(first, highest + 1 - side), highest)
    return first, first + side


def plan_views(regions: Sequence[Region], original_hw: tuple[int, int], config: PromptConfig) -> list[View]:
    """The views that SAM is shown, with a box prompt for each region; [] for a good part.

    A zoomed view is a square of `context` times its box's longer side, moved inside the image (never mirrored at its
    border); a long line has one for each of its parts. Neighbours share one that is hardly larger than their own. Three
    views are shown at `input_px`; up to ten share the pixels of three; where there would be more, regions share what
    fits in `input_px` unscaled.
    """
    if not regions:
        return []
    height, width = original_hw
    if config.view == "image":
        whole = [_prompt(region, index) for index, region in enumerate(regions)]
        return [View((0, 0, width, height), IMAGE_INPUT_PX, tuple(whole))]
    asked = [(part, prompt) for index, region in enumerate(regions) for part, prompt in _by_parts(region, index)]
    crops = [square_view(part.box_xyxy, original_hw, config.context, config.least_view_px) for part, _ in asked]
    groups = _shared(crops, original_hw)
    input_px = max(_share_of_three(config.input_px, len(groups)), config.least_input_px)
    if len(groups) > MOST_ZOOMED:
        groups, input_px = _shared(crops, original_hw, config.input_px), config.input_px
    return [View(crop, input_px, tuple(asked[index][1] for index in indices)) for crop, indices in groups]


def _share_of_three(input_px: int, views: int) -> int:
    """Side of so many views that have the pixels of three between them, a multiple of 64."""
    return input_px if views <= 3 else int(input_px * math.sqrt(3 / views)) // 64 * 64


def _by_parts(region: Region, index: int) -> list[tuple[Region, Prompt]]:
    parts = [(part, _prompt(part, index, number)) for number, part in enumerate(region.parts)]
    return parts or [(region, _prompt(region, index))]


def _prompt(region: Region, index: int, part: int | None = None) -> Prompt:
    x0, y0, x1, y1 = region.box_xyxy
    return Prompt(box_xyxy=(float(x0), float(y0), float(x1), float(y1)), region=index, part=part)


def square_view(box: Box, original_hw: tuple[int, int], context: float, least_px: int) -> Box:
    """A square about the box, moved inside the image; cut where the image is smaller than it."""
    x0, y0, x1, y1 = box
    side = max(context * max(x1 - x0, y1 - y0), least_px)
    return square_about((x0 + x1) / 2, (y0 + y1) / 2, side, original_hw)


def square_about(x: float, y: float, side: float, original_hw: Sequence[int]) -> Box:
    """The same about a point."""
    height, width = original_hw
    w, h = min(round(side), width), min(round(side), height)
    left, top = min(max(0, round(x - w / 2)), width - w), min(max(0, round(y - h / 2)), height - h)
    return left, top, left + w, top + h


def _shared(
    crops: Sequence[Box], original_hw: tuple[int, int], unscaled_px: int | None = None
) -> list[tuple[Box, list[int]]]:
    """Crops, each with the indices of the regions that it shows.

    Two are joined where that costs the smaller little of its zoom; with `unscaled_px`, where that costs no resolution.
    """
    groups: list[tuple[Box, list[int]]] = []
    for index, crop in sorted(enumerate(crops), key=lambda item: _side(item[1]), reverse=True):
        for place, (other, indices) in enumerate(groups):
            joined = square_view(hull([other, crop]), original_hw, 1.0, 1)
            most = max(_side(other), unscaled_px) if unscaled_px else NEIGHBOURS_ZOOM * _side(crop)
            if _side(joined) <= most:
                groups[place] = (joined, [*indices, index])
                break
        else:
            groups.append((crop, [index]))
    return groups


def _side(box: Box) -> int:
    return max(box[2] - box[0], box[3] - box[1])
