"""Pictures of an inspection: the image with its defects outlined, and with its heatmap.

Colours of a heatmap are tied to the threshold, so that two pictures can be compared: the threshold always has the
colour at `THRESHOLD_AT` of the scale, and what is far below it stays clear.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from sam_inspect.masks import resize_map
from sam_inspect.records import Box, CropMask, Defect, Inspection, Map, Rgb

Colour = tuple[int, int, int]

OVERLAY_LONG_SIDE_PX = 2000
THUMBNAIL_LONG_SIDE_PX = 320
THRESHOLD_AT = 0.5
CLEAR_BELOW = 0.32
HEAT_OPACITY = 0.7

SAM_COLOUR: Colour = (255, 59, 107)
HEATMAP_COLOUR: Colour = (255, 176, 32)
HALO: Colour = (16, 18, 22)
FILL_OPACITY = 0.16
SUBPIXEL_BITS = 4
LABEL_SPARES = 0.02
MOST_SCORES = 12

_SCALE_BGR = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)
HEAT_RGB: NDArray[np.uint8] = np.array(_SCALE_BGR[:, 0, ::-1], np.uint8)


def thumbnail(image: Rgb, long_side_px: int = THUMBNAIL_LONG_SIDE_PX) -> Rgb:
    """(h, w, 3) uint8 RGB no longer than `long_side_px`; the image itself where it is small enough."""
    height, width = fitted_hw((image.shape[0], image.shape[1]), long_side_px)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def fitted_hw(original_hw: tuple[int, int], long_side_px: int) -> tuple[int, int]:
    """(height, width) scaled down so that the longer side is at most `long_side_px`; each at least 1."""
    scale = min(1.0, long_side_px / max(original_hw))
    return max(1, round(original_hw[0] * scale)), max(1, round(original_hw[1] * scale))


def draw_overlay(image: Rgb, inspection: Inspection, long_side_px: int = OVERLAY_LONG_SIDE_PX) -> Rgb:
    """The image with each defect's outline, a thin fill, its number and its score.

    Work is done on the defects' crops alone. SAM's masks and the heatmap's own have different colours.

    Args:
        image: (H, W, 3) uint8 RGB.
        inspection: its defects, in pixels of `image`.
        long_side_px: larger images are drawn at this size.

    Returns:
        (h, w, 3) uint8 RGB, a new array; `image`'s own size unless it is longer than `long_side_px`.
    """
    canvas = thumbnail(image, long_side_px)
    if canvas is image:
        canvas = image.copy()
    scale_xy = (canvas.shape[1] / image.shape[1], canvas.shape[0] / image.shape[0])
    thickness = max(1, round(max(canvas.shape[:2]) / 600))
    for defect in inspection.defects:
        _draw_defect(canvas, defect, scale_xy, thickness)
    _draw_labels(canvas, inspection.defects, scale_xy)
    return canvas


def draw_heatmap(image: Rgb, inspection: Inspection, long_side_px: int = OVERLAY_LONG_SIDE_PX) -> Rgb:
    """The image with its anomaly map over it; the image alone where the inspection has no map.

    Args:
        image: (H, W, 3) uint8 RGB.
        inspection: gives `anomaly_map` and `threshold`.
        long_side_px: larger images are drawn at this size.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    canvas = thumbnail(image, long_side_px)
    if inspection.anomaly_map is None:
        return canvas.copy()
    grid = _as_large_as(inspection.anomaly_map, (canvas.shape[0], canvas.shape[1]))
    index = heat_index(grid, inspection.threshold)
    heat = np.asarray(cv2.applyColorMap(index, HEAT_RGB[:, None, :]))
    opacity = cv2.LUT(index, heat_opacity())
    return np.asarray(cv2.blendLinear(heat, canvas, opacity, 1 - opacity), np.uint8)


def heat_layer(inspection: Inspection, long_side_px: int = THUMBNAIL_LONG_SIDE_PX) -> NDArray[np.uint8] | None:
    """(h, w, 4) uint8 RGBA: the heatmap alone, clear where the part looks good; None where there is no map."""
    if inspection.anomaly_map is None or inspection.original_hw is None:
        return None
    grid = _as_large_as(inspection.anomaly_map, fitted_hw(inspection.original_hw, long_side_px))
    index = heat_index(grid, inspection.threshold)
    alpha = np.round(heat_opacity() * 255).astype(np.uint8)
    table = np.dstack([HEAT_RGB[None], alpha[None]])[0]
    table[alpha == 0] = 0
    return np.asarray(table[index])


def _as_large_as(anomaly_map: Map, hw: tuple[int, int]) -> Map:
    """The map at a picture's size; where it shrinks, of what falls together the highest, so that no peak is lost."""
    shrunk = math.ceil(max(cells / pixels for cells, pixels in zip(anomaly_map.shape, hw, strict=True)))
    highest = cv2.dilate(anomaly_map, np.ones((shrunk, shrunk), np.uint8)) if shrunk > 1 else anomaly_map
    return resize_map(np.asarray(highest, np.float32), hw)


def heat_index(anomaly_map: NDArray[np.float32], threshold: float | None) -> NDArray[np.uint8]:
    """(h, w) uint8 places on the colour scale: 0 for 0, `THRESHOLD_AT` x 255 for the threshold, 255 and above cut.

    Without a positive threshold the map's own range is spread over the scale.
    """
    if threshold is not None and threshold > 0:
        return _to_uint8(anomaly_map, 255 * THRESHOLD_AT / threshold, 0.0)
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    gain = 255 / (high - low) if high > low else 0.0
    return _to_uint8(anomaly_map, gain, -low * gain)


def _to_uint8(values: NDArray[np.float32], gain: float, offset: float) -> NDArray[np.uint8]:
    scaled = values * np.float32(gain) + np.float32(offset)
    return np.asarray(np.clip(np.nan_to_num(scaled), 0, 255).round(), np.uint8)


def heat_opacity() -> NDArray[np.float32]:
    """(256,) float32 in [0, `HEAT_OPACITY`]: clear up to `CLEAR_BELOW` of the scale, full from the threshold on."""
    place = np.arange(256, dtype=np.float32) / 255
    ramp = np.clip((place - CLEAR_BELOW) / (THRESHOLD_AT - CLEAR_BELOW), 0, 1)
    return np.asarray(ramp * HEAT_OPACITY, np.float32)


def outlines(mask: CropMask) -> list[NDArray[np.int32]]:
    """Closed outlines of the mask and of the holes in it, each (N, 2) int32 (x, y), pixels of the image."""
    pixels = np.ascontiguousarray(mask.pixels).view(np.uint8)
    contours, _ = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=mask.box_xyxy[:2])
    return [np.asarray(contour[:, 0, :], np.int32) for contour in contours]


def colour_of(defect: Defect) -> Colour:
    """RGB of the defect's outline: where its mask came from."""
    return SAM_COLOUR if defect.source == "sam" else HEATMAP_COLOUR


def _draw_defect(canvas: Rgb, defect: Defect, scale_xy: tuple[float, float], thickness: int) -> None:
    """Fill and outline, on the part of the canvas that they touch."""
    scale = np.array(scale_xy)
    x0, y0, x1, y1 = (np.array(defect.box_xyxy).reshape(2, 2) * scale).ravel()
    margin = thickness + 4
    left, top = max(0, int(x0) - margin), max(0, int(y0) - margin)
    crop = canvas[top : int(y1) + margin + 1, left : int(x1) + margin + 1]
    unit = 1 << SUBPIXEL_BITS
    lines = [
        np.round(((line + 0.5) * scale - 0.5 - (left, top)) * unit).astype(np.int32) for line in outlines(defect.mask)
    ]
    patch = np.ascontiguousarray(crop)
    layer = patch.copy()
    colour = colour_of(defect)
    cv2.fillPoly(layer, lines, colour, cv2.LINE_AA, SUBPIXEL_BITS)
    cv2.addWeighted(layer, FILL_OPACITY, patch, 1 - FILL_OPACITY, 0, dst=patch)
    cv2.polylines(patch, lines, True, HALO, thickness + 2, cv2.LINE_AA, SUBPIXEL_BITS)
    cv2.polylines(patch, lines, True, colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
    crop[:] = patch


def _draw_labels(canvas: Rgb, defects: tuple[Defect, ...], scale_xy: tuple[float, float]) -> None:
    """Number and score of each defect on a dark plate that avoids the other plates and small defects.

    Where there are many, the number alone: the scores stand in the results.
    """
    font_scale = float(np.clip(max(canvas.shape[:2]) / 1600, 0.35, 1.0))
    boxes = [_on_canvas(defect, scale_xy) for defect in defects]
    small = LABEL_SPARES * canvas.shape[0] * canvas.shape[1]
    placed = [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes if (x1 - x0) * (y1 - y0) < small]
    for number, (defect, box) in enumerate(zip(defects, boxes, strict=True), start=1):
        score = f"{defect.score:.0f}" if abs(defect.score) >= 100 else f"{defect.score:.3g}"
        text = f"{number}  {score}" if len(defects) <= MOST_SCORES else str(number)
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, font_scale, 1)
        pad = max(2, height // 2)
        plate = _place((width + 2 * pad, height + 2 * pad), box, canvas, placed)
        placed.append(plate)
        x0, y0, x1, y1 = plate
        cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), HALO, cv2.FILLED)
        cv2.rectangle(canvas, (x0, y0), (x0 + max(1, pad // 2), y1 - 1), colour_of(defect), cv2.FILLED)
        origin = (x0 + pad + 1, y1 - pad)
        cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_DUPLEX, font_scale, (255, 255, 255), 1, cv2.LINE_AA)


def _on_canvas(defect: Defect, scale_xy: tuple[float, float]) -> Box:
    x0, y0, x1, y1 = (round(value * scale_xy[i % 2]) for i, value in enumerate(defect.box_xyxy))
    return x0, y0, x1, y1


def _place(size_wh: tuple[int, int], box: Box, canvas: Rgb, placed: list[Box]) -> Box:
    """The first of: above, below, right of, left of the box, farther off, that is inside the canvas and free."""
    width, height = size_wh
    x0, y0, x1, y1 = box
    gap = 6
    above, below = y0 - height - gap, y1 + gap
    corners = [(x0, above), (x0, below), (x1 + gap, y0), (x0 - width - gap, y0)]
    farther = [corner for i in range(1, 4) for corner in ((x0, above - i * height), (x0, below + i * height))]
    for x, y in corners + farther:
        inside = x >= 0 and y >= 0 and x + width <= canvas.shape[1] and y + height <= canvas.shape[0]
        if inside and not any(
            x < right and x + width > left and y < bottom and y + height > top for left, top, right, bottom in placed
        ):
            return x, y, x + width, y + height
    x = int(np.clip(x0, 0, max(0, canvas.shape[1] - width)))
    y = int(np.clip(y0 - height - gap, 0, max(0, canvas.shape[0] - height)))
    return x, y, x + width, y + height
