"""Where a network's map lies off its image, measured with planted patches.

Padding and strides shift a network's map, by up to a cell or more. A bright and dark checker planted at a known place
must come back there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

PLACES = (0.25, 0.5, 0.75)
PATCH_CELLS = 4


class Measurable(Protocol):
    """What is measured."""

    def distances(self, image: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """A (h, w) float32 map a layer, over the whole (H, W, 3) uint8 image."""
        ...


def measure_offsets(
    bank: Measurable, images: Sequence[NDArray[np.uint8]], scale: float, cell_px: int
) -> tuple[tuple[float, float], ...]:
    """For each layer the median (dy, dx) by which planted patches come back too low and too far right.

    Pixels of the scaled image; 0 where the images are too small to tell.

    Args:
        bank: gives the maps; not yet corrected.
        images: (H, W, 3) uint8 good parts.
        scale: scaled pixels per pixel of the original.
        cell_px: side of a map's finest cell, scaled pixels.
    """
    side = max(2, round(PATCH_CELLS * cell_px / scale))
    layers = zip(*(_offsets(bank, image, side) for image in images), strict=True)
    found = [[offset for offsets in layer for offset in offsets] for layer in layers]
    return tuple(_median(offsets, scale) for offsets in found)


def moved_back(found: NDArray[np.float32], offset_yx: tuple[float, float]) -> NDArray[np.float32]:
    """A map up and left by so many of its cells, its border repeated."""
    dy, dx = offset_yx
    if not dy and not dx:
        return found
    move, size = np.array([[1, 0, -dx], [0, 1, -dy]], np.float64), found.shape[::-1]
    placed = cv2.warpAffine(found, move, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(placed, np.float32)


def _median(offsets: Sequence[tuple[float, float]], scale: float) -> tuple[float, float]:
    if not offsets:
        return 0.0, 0.0
    dy, dx = np.median(np.array(offsets), axis=0) * scale
    return float(dy), float(dx)


def _offsets(bank: Measurable, image: NDArray[np.uint8], side: int) -> list[list[tuple[float, float]]]:
    """For each layer (dy, dx) in pixels of the image of each planted patch that shows."""
    height, width = image.shape[:2]
    before = bank.distances(image)
    if min(height, width) < 8 * side:
        return [[] for _ in before]
    corners = [(round(height * v - side / 2), round(width * u - side / 2)) for v in PLACES for u in PLACES]
    planted = image.copy()
    checker = np.kron([[255, 0], [0, 255]], np.ones((-(-side // 2), -(-side // 2))))[:side, :side, None]
    for y, x in corners:
        planted[y : y + side, x : x + side] = checker
    rises = [np.maximum(after - good, 0) for after, good in zip(bank.distances(planted), before, strict=True)]
    centres = [(y + side / 2, x + side / 2) for y, x in corners]
    return [
        [offset for centre in centres if (offset := _offset(rise, image.shape[:2], centre)) is not None]
        for rise in rises
    ]


def _offset(
    rise: NDArray[np.float32], original_hw: tuple[int, int], centre_yx: tuple[float, float]
) -> tuple[float, float] | None:
    """Centroid of the upper half of the rise near a planted patch, less the patch's centre; None where none shows."""
    cell_h, cell_w = original_hw[0] / rise.shape[0], original_hw[1] / rise.shape[1]
    rows = (np.arange(rise.shape[0]) + 0.5) * cell_h - centre_yx[0]
    columns = (np.arange(rise.shape[1]) + 0.5) * cell_w - centre_yx[1]
    near_y, near_x = np.abs(rows) < original_hw[0] / 8, np.abs(columns) < original_hw[1] / 8
    window = rise[np.ix_(near_y, near_x)]
    weight = np.maximum(window - window.max(initial=0) / 2, 0)
    if weight.sum() <= 0:
        return None
    dy = float((weight.sum(1) * rows[near_y]).sum() / weight.sum())
    dx = float((weight.sum(0) * columns[near_x]).sum() / weight.sum())
    return dy, dx
