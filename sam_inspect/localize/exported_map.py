"""The heatmap of an export: its graph on images of the size that it was made for, and on tiles of larger ones."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from sam_inspect.errors import ImageError
from sam_inspect.exports import Export
from sam_inspect.images import scaled
from sam_inspect.networks.graphs import Graph
from sam_inspect.records import Localization, Map
from sam_inspect.tiles import TilePlan, blend_tiles, spread

SLACK, OVERLAP = 0.02, 0.125


class ExportedMap:
    """A `Localizer`."""

    def __init__(self, export: Export, graph: Graph) -> None:
        self.original_hw, self.looks_hw, self.graph = export.original_hw, export.looks_hw, graph

    def localize(self, image: NDArray[np.uint8]) -> Localization:
        """See `Localizer.localize`. Raises ImageError for an image smaller than those of the export."""
        anomaly_map = self._map(image) if self._is_whole(image) else self._of_tiles(image)
        return Localization(image.shape[:2], float(anomaly_map.max()), anomaly_map=anomaly_map)

    def _is_whole(self, image: NDArray[np.uint8]) -> bool:
        ratios = [side / made_for for side, made_for in zip(image.shape, self.original_hw, strict=False)]
        if min(ratios) < 1 - SLACK:
            (height, width), (rows, columns) = image.shape[:2], self.original_hw
            problem = f"an image of {width} x {height} pixels, but the export is for {columns} x {rows}"
            raise ImageError(problem, f"export the recipe with --size {width}x{height}")
        return bool(max(ratios) <= 1 + SLACK)

    def _map(self, image: NDArray[np.uint8]) -> Map:
        looks = [scaled(image, look_hw).transpose(2, 0, 1)[None].astype(np.float32) for look_hw in self.looks_hw]
        return self.graph(looks)[0]

    def _of_tiles(self, image: NDArray[np.uint8]) -> Map:
        """Of tiles of the export's size, which share an eighth at least."""
        (height, width), (own_h, own_w) = image.shape[:2], self.original_hw
        first = self._map(image[:own_h, :own_w])
        rows, columns = first.shape
        down = max(rows, -(-height * rows // own_h))
        across = max(columns, -(-width * columns // own_w))
        ys, xs = (spread(whole, tile, 1.0, OVERLAP)[1] for whole, tile in ((down, rows), (across, columns)))
        plan = TilePlan((down, across), (rows, columns), tuple(product(ys, xs)))
        rest = [
            self._map(self._tile(image, y / max(1, down - rows), x / max(1, across - columns)))
            for y, x in plan.origins_yx[1:]
        ]
        return blend_tiles(plan, [first, *rest], 1)

    def _tile(self, image: NDArray[np.uint8], down: float, across: float) -> NDArray[np.uint8]:
        """The part that begins at those shares of what the image is larger than a tile."""
        height, width = self.original_hw
        y, x = round(down * max(0, image.shape[0] - height)), round(across * max(0, image.shape[1] - width))
        return image[y : y + height, x : x + width]
