"""Masks, boxes and maps: between a crop and its image, and to RLE and polygons at the edges. Geometry only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from sam_inspect.records import Box, CropMask, Mask, View

MOST_GRID_PX = 2048


def from_full(mask: Mask) -> CropMask | None:
    """The tight `CropMask` of a (H, W) bool mask (a view, not a copy); None where nothing is set."""
    return tight(CropMask((0, 0, mask.shape[1], mask.shape[0]), mask))


def cut_out(mask: Mask) -> CropMask | None:
    """The same with pixels of its own: a view would keep the whole frame in memory."""
    found = from_full(mask)
    return CropMask(found.box_xyxy, found.pixels.copy()) if found else None


def tight(mask: CropMask) -> CropMask | None:
    """The same mask in the least box that holds its pixels; None where nothing is set."""
    x, y, width, height = cv2.boundingRect(mask.pixels.view(np.uint8))
    if width == 0:
        return None
    x0, y0 = mask.box_xyxy[:2]
    return CropMask((x0 + x, y0 + y, x0 + x + width, y0 + y + height), mask.pixels[y : y + height, x : x + width])


def union(masks: Iterable[CropMask], original_hw: tuple[int, int]) -> Mask:
    """(H, W) bool: the pixels that any of the masks has."""
    full = np.zeros(original_hw, bool)
    for mask in masks:
        x0, y0, x1, y1 = mask.box_xyxy
        full[y0:y1, x0:x1] |= mask.pixels
    return full


def intersection_px(a: CropMask, b: CropMask) -> int:
    """Number of pixels that both masks have, touching only where their boxes overlap."""
    x0, y0 = max(a.box_xyxy[0], b.box_xyxy[0]), max(a.box_xyxy[1], b.box_xyxy[1])
    x1, y1 = min(a.box_xyxy[2], b.box_xyxy[2]), min(a.box_xyxy[3], b.box_xyxy[3])
    if x1 <= x0 or y1 <= y0:
        return 0
    return int(np.count_nonzero(window(a, (x0, y0, x1, y1)) & window(b, (x0, y0, x1, y1))))


def window(mask: CropMask, box_xyxy: Box) -> Mask:
    """(y1 - y0, x1 - x0) bool: what of `mask` lies in the box; a view where the box lies inside the mask's."""
    x0, y0, x1, y1 = box_xyxy
    mx0, my0, mx1, my1 = mask.box_xyxy
    if mx0 <= x0 and my0 <= y0 and x1 <= mx1 and y1 <= my1:
        return mask.pixels[y0 - my0 : y1 - my0, x0 - mx0 : x1 - mx0]
    out = np.zeros((y1 - y0, x1 - x0), bool)
    left, top, right, bottom = max(x0, mx0), max(y0, my0), min(x1, mx1), min(y1, my1)
    if left < right and top < bottom:
        shared = mask.pixels[top - my0 : bottom - my0, left - mx0 : right - mx0]
        out[top - y0 : bottom - y0, left - x0 : right - x0] = shared
    return out


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def hull(boxes: Sequence[Box]) -> Box:
    """The least box that holds all of them."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def filled_box(box_xyxy: Box) -> CropMask:
    """The box itself as a mask."""
    x0, y0, x1, y1 = box_xyxy
    return CropMask(box_xyxy, np.ones((y1 - y0, x1 - x0), bool))


def components(mask: Mask, connectivity: int = 8) -> list[CropMask]:
    """The connected components of a (H, W) bool mask, each tight, in scan order."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=connectivity
    )
    found = []
    for label in range(1, count):
        x, y, width, height = (int(value) for value in stats[label, :4])
        pixels = labels[y : y + height, x : x + width] == label
        found.append(CropMask((x, y, x + width, y + height), pixels))
    return found


def clip_box(box: tuple[float, float, float, float], original_hw: tuple[int, int]) -> Box | None:
    """The box in whole pixels (grown outwards) cut to the image; None where nothing of it lies inside."""
    x0, y0 = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    x1, y1 = min(original_hw[1], int(np.ceil(box[2]))), min(original_hw[0], int(np.ceil(box[3])))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def length_px(mask: CropMask) -> float:
    """Longest extent of the mask, pixels: the longer side of its rotated box of least area, pixels counted whole."""
    outlines = _outlines(mask, cv2.CHAIN_APPROX_SIMPLE)
    return float(max(cv2.minAreaRect(np.concatenate(outlines))[1]) + 1.0) if outlines else 0.0


def to_rle(mask: CropMask, original_hw: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed RLE at the image's size, `{"size": [H, W], "counts": str}`.

    Only the mask's own columns are expanded: the empty ones left and right of it are one run each.
    """
    height, width = original_hw
    x0, y0, x1, y1 = mask.box_xyxy
    strip = np.zeros((height, x1 - x0), np.uint8, order="F")
    strip[y0:y1] = mask.pixels
    edges = np.flatnonzero(np.diff(strip.ravel(order="F"), prepend=0, append=0)) + x0 * height
    counts = np.diff(np.concatenate(([0], edges, [height * width])))
    counts = counts[:-1] if counts[-1] == 0 else counts
    rle = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def from_rle(rle: dict[str, Any]) -> CropMask | None:
    """The tight mask of a COCO RLE (compressed or not); None where nothing is set."""
    height, width = rle["size"]
    if isinstance(rle["counts"], list):
        rle = coco.frPyObjects(rle, height, width)
    return cut_out(coco.decode(rle).astype(bool))


def without_specks(mask: CropMask, least_share: float) -> CropMask:
    """The mask without parts, and with holes filled, that are smaller than this share of it; its box stays."""
    least = least_share * mask.area_px
    kept = mask.pixels & ~_small(mask.pixels, least, connectivity=8)
    outside = np.pad(~kept, 1, constant_values=True)
    holes = _small(outside, least, connectivity=4, but=(0, 0))
    return CropMask(mask.box_xyxy, kept | holes[1:-1, 1:-1])


def _small(pixels: Mask, least_px: float, connectivity: int, but: tuple[int, int] | None = None) -> Mask:
    """Those pixels that lie in a component of fewer than so many, unless it holds the pixel `but`."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(pixels).view(np.uint8), connectivity=connectivity
    )
    small = stats[:, cv2.CC_STAT_AREA] < least_px
    small[0] = False
    if but is not None:
        small[labels[but]] = False
    return np.asarray(small[labels], np.bool_)


def polygons(mask: CropMask) -> list[NDArray[np.int32]]:
    """Outer outlines in pixels of the image, each (N, 2) int32 (x, y), N >= 1."""
    return [outline[:, 0, :] for outline in _outlines(mask, cv2.CHAIN_APPROX_NONE)]


def _outlines(mask: CropMask, approximation: int) -> list[NDArray[np.int32]]:
    """OpenCV's outer contours, each (N, 1, 2) (x, y) in pixels of the image."""
    pixels, offset = mask.pixels.view(np.uint8), mask.box_xyxy[:2]
    contours, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, approximation, offset=offset)
    return [np.asarray(contour, np.int32) for contour in contours]


def resize_map(anomaly_map: NDArray[np.float32], original_hw: tuple[int, int]) -> NDArray[np.float32]:
    """(h, w) float32 map on its grid to (H, W), bilinear, cell centres kept where they are."""
    height, width = original_hw
    return np.asarray(cv2.resize(anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def work_hw(hw: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of a grid over so many pixels: the pixels themselves up to 2048 a side, else coarser, both sides alike.

    A map's cells and SAM's masks hardly know more (of a window that is very long and narrow they do), and 100 million
    pixels would cost gigabytes and minutes.
    """
    shrink = max(1.0, max(hw) / MOST_GRID_PX)
    return max(1, round(hw[0] / shrink)), max(1, round(hw[1] / shrink))


def box_on_image(box_xyxy: Box, window: Box, grid_hw: tuple[int, ...]) -> Box:
    """The pixels of the image that a box touches which is given on a grid over a window of it."""
    (x0, y0, x1, y1), (left, top, right, bottom), (rows, columns) = box_xyxy, window, grid_hw
    width, height = right - left, bottom - top
    return (
        left + x0 * width // columns,
        top + y0 * height // rows,
        left - (-x1 * width // columns),
        top - (-y1 * height // rows),
    )


def on_image(mask: CropMask, window: Box, grid_hw: tuple[int, ...]) -> CropMask:
    """A mask on a grid over a window of the image, as pixels of the image; no view, so that the grid can go."""
    box = box_on_image(mask.box_xyxy, window, grid_hw)
    size = box[2] - box[0], box[3] - box[1]
    return CropMask(box, cv2.resize(mask.pixels.view(np.uint8), size, interpolation=cv2.INTER_NEAREST).view(bool))


def resize_window(
    anomaly_map: NDArray[np.float32],
    box_xyxy: Box,
    original_hw: tuple[int, int],
    grid_hw: tuple[int, int] | None = None,
) -> NDArray[np.float32]:
    """What `resize_map` would hold inside the box, float32 on (y1 - y0, x1 - x0) pixels or on another grid over it."""
    x0, y0, x1, y1 = box_xyxy
    x, y = cell_centres(box_xyxy, grid_hw or (y1 - y0, x1 - x0))
    scale_x, scale_y = anomaly_map.shape[1] / original_hw[1], anomaly_map.shape[0] / original_hw[0]
    columns, rows = np.asarray(x * scale_x - 0.5, np.float32), np.asarray(y * scale_y - 0.5, np.float32)
    return _interpolated(_interpolated(anomaly_map, rows).T, columns).T


def cell_centres(
    box_xyxy: Box, grid_hw: tuple[int, int]
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """x (w,) and y (h,) of the middles of a grid's columns and rows over a box, pixels of the image."""
    (x0, y0, x1, y1), (rows, columns) = box_xyxy, grid_hw
    x = x0 + (np.arange(columns) + 0.5) * ((x1 - x0) / columns)
    y = y0 + (np.arange(rows) + 0.5) * ((y1 - y0) / rows)
    return x, y


def _interpolated(values: NDArray[np.float32], places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of `values` at fractional places, linear, the border repeated."""
    places = np.clip(places, 0, len(values) - 1)
    lower = np.minimum(places.astype(np.intp), max(0, len(values) - 2))
    share = (places - lower)[:, None]
    return np.asarray(values[lower] * (1 - share) + values[np.minimum(lower + 1, len(values) - 1)] * share, np.float32)


def on_crop(
    view: View, low_res_logits: NDArray[np.float32], grid_hw: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """SAM's (l, l) float32 logits on the view's crop, at the image's own resolution or another grid; above 0 is mask.

    This is the one way back from SAM's frame to the image's: up to the square input, the padding cut off, then to the
    crop's size, both bilinear, as `Sam.postprocess_masks` of segment_anything does.
    """
    square = (view.input_px, view.input_px)
    logits = cv2.resize(low_res_logits, square, interpolation=cv2.INTER_LINEAR)
    height, width = view.input_hw
    crop_h, crop_w = grid_hw or view.crop_hw
    cut = logits[:height, :width]
    return np.asarray(cv2.resize(cut, (crop_w, crop_h), interpolation=cv2.INTER_LINEAR), np.float32)
