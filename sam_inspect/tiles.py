"""Large and long images on overlapping tiles: how they are cut, and how the tiles' maps become one again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TilePlan:
    """How an image is scaled and cut.

    Attributes:
        scaled_hw: (height, width) of the scaled image, multiples of the stride.
        tile_hw: (height, width) of every tile, pixels of the scaled image.
        origins_yx: (y, x) of each tile's first pixel in the scaled image, row by row.
    """

    scaled_hw: tuple[int, int]
    tile_hw: tuple[int, int]
    origins_yx: tuple[tuple[int, int], ...]


def plan_tiles(
    original_hw: tuple[int, int],
    *,
    tile_px: int,
    stride: int,
    min_scale: float,
    max_scale: float,
    max_aspect: float = 1.5,
    overlap: float = 0.125,
) -> TilePlan:
    """How an image of a size is scaled, by one factor for both axes, and cut into equal tiles.

    The factor brings the short side to `tile_px`, within the two limits; then each side is rounded to a multiple of
    `stride` (at least one), which is the only distortion. An axis of up to `max_aspect` tiles stays whole. A longer
    one is cut into tiles of `tile_px` (rounded to the stride), spread evenly from border to border.

    Args:
        original_hw: (H, W) of the image, pixels.
        tile_px: side of a tile, pixels of the scaled image.
        stride: of the network; scaled sides, tiles and origins are multiples of it.
        min_scale: least factor, scaled pixels per pixel of the original.
        max_scale: highest factor.
        max_aspect: the longest axis that stays whole, in tiles; at least 1.
        overlap: least share of a tile that it has in common with the next, 0 to below 1.
    """
    scale = min(max(tile_px / min(original_hw), min_scale), max_scale)
    tile = max(1, round(tile_px / stride))
    rows, columns = (max(1, round(side * scale / stride)) for side in original_hw)
    height, ys = spread(rows, tile, max_aspect, overlap)
    width, xs = spread(columns, tile, max_aspect, overlap)
    return TilePlan(
        scaled_hw=(rows * stride, columns * stride),
        tile_hw=(height * stride, width * stride),
        origins_yx=tuple((y * stride, x * stride) for y in ys for x in xs),
    )


def spread(length: int, tile: int, max_aspect: float, overlap: float) -> tuple[int, list[int]]:
    """Side and origins of the tiles along one axis, all in strides."""
    if length <= tile * max_aspect:
        return length, [0]
    step = max(1, tile - int(np.ceil(tile * overlap)))
    steps = -(-(length - tile) // step)
    return tile, [i * (length - tile) // steps for i in range(steps + 1)]


def blend_tiles(plan: TilePlan, tile_maps: Sequence[NDArray[np.float32]], cell_px: int) -> NDArray[np.float32]:
    """The tiles' maps as one map of the whole scaled image.

    Where tiles overlap, each counts less the nearer its own border is, since a network sees least there.

    Args:
        plan: the tiles.
        tile_maps: one (h, w) float32 a tile, in the plan's order.
        cell_px: side of one cell of a map, pixels of the scaled image; a divisor of the plan's stride.

    Returns:
        (H', W') float32, the scaled image's size in cells.
    """
    height, width = (side // cell_px for side in plan.tile_hw)
    if any(tile_map.shape != (height, width) for tile_map in tile_maps) or len(tile_maps) != len(plan.origins_yx):
        got = f"{len(tile_maps)} of {sorted({tile_map.shape for tile_map in tile_maps})}"
        raise ValueError(f"tile_maps: expected {len(plan.origins_yx)} of {(height, width)}, got {got}")
    if len(tile_maps) == 1:
        return tile_maps[0]
    rows = _feathers(sorted({y // cell_px for y, _ in plan.origins_yx}), height)
    columns = _feathers(sorted({x // cell_px for _, x in plan.origins_yx}), width)
    total = np.zeros([side // cell_px for side in plan.scaled_hw], np.float32)
    weight = np.zeros_like(total)
    for (y, x), tile_map in zip(plan.origins_yx, tile_maps, strict=True):
        y, x = y // cell_px, x // cell_px
        feather = np.outer(rows[y], columns[x])
        total[y : y + height, x : x + width] += feather * tile_map
        weight[y : y + height, x : x + width] += feather
    return total / weight


def _feathers(origins: list[int], length: int) -> dict[int, NDArray[np.float32]]:
    """Weights along one axis, by origin: 1, falling to nearly 0 over what a tile shares with its neighbours."""
    feathers = {origin: np.ones(length, np.float32) for origin in origins}
    for before, after in pairwise(origins):
        shared = before + length - after
        rise = (np.arange(shared, dtype=np.float32) + 0.5) / max(shared, 1)
        feathers[after][:shared] *= rise
        feathers[before][length - shared :] *= rise[::-1]
    return feathers
