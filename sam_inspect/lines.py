"""What is thin and long on a map: scratches, cracks, hairs.

A map shows a line as wide as it shows a point, and so cannot tell which of SAM's masks is as thin as the line. And in a
view that holds all of a long one, the line is thinner than a pixel of SAM's masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from sam_inspect.masks import tight
from sam_inspect.records import CropMask

THIN, THIN_AREA = math.sqrt(2), 1.4  # At most so many points wide at its widest; at least so many squares of that.
LONG, LONG_AREA = 1.35, 4  # The same of the mean width.
PART_AREA = 1.7
SEED = 0


@dataclass(frozen=True, slots=True)
class Ribbon:
    """The sizes of a region, taken for a bent ribbon, in pixels of its mask.

    Attributes:
        widest: the diameter of the largest disc in it.
        width: four times the mean distance of its pixels from its edge: a long ribbon's width, two thirds of a disc's.
        area: number of its pixels.
    """

    widest: float
    width: float
    area: int

    @classmethod
    def of(cls, mask: CropMask, within_hw: tuple[int, int]) -> Self:
        """Of a tight mask; what ends at the border of the picture (H, W) that it lies in goes on there: no edge."""
        (x0, y0, x1, y1), (height, width) = mask.box_xyxy, within_hw
        edges = ((int(y0 > 0), int(y1 < height)), (int(x0 > 0), int(x1 < width)))
        distance = cv2.distanceTransform(np.pad(mask.pixels.view(np.uint8), edges), cv2.DIST_L2, 5)
        inside = distance[distance > 0].clip(max=max(within_hw))  # of a picture without an edge it has no end
        return cls(2 * float(inside.max()), 4 * float(inside.mean() - 0.5), len(inside))

    def is_thin(self, point_px: float) -> bool:
        """Nowhere wider than a point that the map shows so wide, and longer: of no width that the map can tell."""
        return self.widest < THIN * point_px and self.area > THIN_AREA * self.widest**2

    def is_long(self, point_px: float) -> bool:
        """Hardly wider than a point, and so long that one view shows too little of it."""
        return self.width < LONG * point_px and self.area > LONG_AREA * self.width**2


def parts_of(
    mask: CropMask, ribbon: Ribbon, point_px: float, within_hw: tuple[int, int]
) -> Iterator[tuple[CropMask, Ribbon]]:
    """A long line cut across into parts of like size, each reaching half a point into its neighbours; none of others.

    Args:
        mask: of the region, tight.
        ribbon: its sizes.
        point_px: how wide the map shows a point.
        within_hw: see `Ribbon.of`.
    """
    if not ribbon.is_long(point_px):
        return
    count = round(ribbon.area / ribbon.width**2 / PART_AREA)
    rows, columns = np.nonzero(mask.pixels)
    nearest = _nearest_of(np.stack([columns, rows], 1).astype(np.float32), count)
    for part in range(count):
        beside = np.ones(mask.pixels.shape, np.uint8)
        beside[rows[nearest == part], columns[nearest == part]] = 0
        reached = cv2.distanceTransform(beside, cv2.DIST_L2, 5) <= point_px / 2
        found = tight(CropMask(mask.box_xyxy, reached & mask.pixels))
        if found is not None:
            yield found, Ribbon.of(found, within_hw)


def _nearest_of(places: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """(n,) for each place the nearest of so many centres that k-means spreads over all, always the same."""
    cv2.setRNGSeed(SEED)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 0.5)
    _, labels, _ = cv2.kmeans(places, count, np.empty(0, np.int32), stop, 3, cv2.KMEANS_PP_CENTERS)
    return np.asarray(labels[:, 0], np.int32)
