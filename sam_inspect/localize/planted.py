"""Where a network's map lies off its image, measured with planted patches.

Padding and strides shift a network's map, by up to a cell or more. A bright and dark checker planted at a known place
must come back there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PLACES = (0.25, 0.5, 0.75)
PATCH_CELLS = 2


class Measurable(Protocol):
    """What is measured: distances of an image, and the scaled size of its cells."""

    def distances(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(h, w) float32 map over the whole (H, W, 3) uint8 image."""
        ...


def measure_offset(
    bank: Measurable, images: Sequence[NDArray[np.uint8]], scale: float, cell_px: int
) -> tuple[float, float]:
    """Median (dy, dx) by which planted patches come back too low and too far right, pixels of the scaled image.

    Args:
        bank: gives the map; not yet corrected.
        images: (H, W, 3) uint8 good parts.
        scale: scaled pixels per pixel of the original.
        cell_px: side of a map's cell, scaled pixels.
    """
    side = max(2, round(PATCH_CELLS * cell_px / scale))
    found = [offset for image in images for offset in _offsets(bank, image, side)]
    if not found:
        return 0.0, 0.0
    dy, dx = np.median(np.array(found), axis=0) * scale
    return float(dy), float(dx)


def _offsets(bank: Measurable, image: NDArray[np.uint8], side: int) -> list[tuple[float, float]]:
    """(dy, dx) in pixels of the image for each planted patch that shows."""
    height, width = image.shape[:2]
    if min(height, width) < 8 * side:
        return []
    corners = [(round(height * v - side / 2), round(width * u - side / 2)) for v in PLACES for u in PLACES]
    planted = image.copy()
    checker = np.kron([[255, 0], [0, 255]], np.ones((-(-side // 2), -(-side // 2))))[:side, :side, None]
    for y, x in corners:
        planted[y : y + side, x : x + side] = checker
    rise = np.maximum(bank.distances(planted) - bank.distances(image), 0)
    centres = [(y + side / 2, x + side / 2) for y, x in corners]
    return [offset for centre in centres if (offset := _offset(rise, image.shape[:2], centre)) is not None]


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
