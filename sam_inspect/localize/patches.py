"""From an image to a grid of patch features: one scale for all images of a product, tiles where it is large or long."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from sam_inspect.config import Section
from sam_inspect.images import TilePlan, plan_tiles
from sam_inspect.networks.backbone import Backbone

LONGEST_SHRUNK_PX = 1024
MOST_ENLARGED = 2.0
TILES_AT_ONCE = 4


class BackboneConfig(Section):
    """One network whose features make a heatmap."""

    name: str = "mobile_sam"
    """`mobile_sam`, `dinov2_vits14`, `mobilenet_v2`, or any timm model."""
    layers: tuple[int, ...] = (1, 2, 3)
    """Stages of a convolutional network, blocks of a ViT, from 0."""
    size_px: int = Field(512, ge=64, le=2048)
    """To what the short side of an image is scaled; the side of a tile where there are several."""
    cell_px: int = Field(16, ge=4, le=64)
    """Side of one cell of the map, pixels of the scaled image."""
    weights: str | None = None
    """A weights file instead of the known weights of that name."""
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Further arguments of `timm.create_model`."""


@dataclass(frozen=True, slots=True, eq=False)
class PatchGrid:
    """Cuts images of one product into scaled tiles and answers with their patch features.

    Attributes:
        backbone: the network.
        config: its size and cell.
        scale: scaled pixels per pixel of the original, the same for all images of the product.
    """

    backbone: Backbone
    config: BackboneConfig
    scale: float

    def plan(self, original_hw: tuple[int, int]) -> TilePlan:
        """How an image of that size is tiled."""
        stride = math.lcm(self.backbone.multiple_px, self.config.cell_px)
        return plan_tiles(
            original_hw, tile_px=self.config.size_px, stride=stride, min_scale=self.scale, max_scale=self.scale
        )

    def features(self, image: NDArray[np.uint8], plan: TilePlan) -> Iterator[Tensor]:
        """For each tile of the plan, in order, its (h, w, C) float32 features, averaged over 3 x 3 cells."""
        height, width = plan.scaled_hw
        shrinks = height < image.shape[0]
        scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        tile_h, tile_w = plan.tile_hw
        tiles = [scaled[y : y + tile_h, x : x + tile_w] for y, x in plan.origins_yx]
        for start in range(0, len(tiles), TILES_AT_ONCE):
            pixels = torch.from_numpy(np.stack(tiles[start : start + TILES_AT_ONCE])).permute(0, 3, 1, 2).float()
            yield from self._on_grid(self.backbone.features(pixels), plan.tile_hw)

    def _on_grid(self, layers: list[Tensor], tile_hw: tuple[int, int]) -> Tensor:
        """Layers of any stride on the cells' grid, (B, h, w, C)."""
        grid = (tile_hw[0] // self.config.cell_px, tile_hw[1] // self.config.cell_px)
        return torch.cat([_resample(_smooth(layer.float()), grid) for layer in layers], 1).permute(0, 2, 3, 1)


def product_scale(sizes_hw: list[tuple[int, int]], config: BackboneConfig) -> float:
    """One scale for a product, from the median short side of its images.

    Short sides up to 1024 pixels are scaled to `size_px`, but enlarged at most twofold. Larger images keep their
    resolution and are cut into tiles: a scratch ten pixels wide stays ten pixels wide.
    """
    short = float(np.median([min(size) for size in sizes_hw]))
    if short > max(LONGEST_SHRUNK_PX, config.size_px):
        return min(1.0, config.size_px / 512)
    return min(MOST_ENLARGED, config.size_px / short)


def _smooth(features: Tensor) -> Tensor:
    """Each cell averaged with its eight neighbours, those beyond the border left out (PatchCore's local awareness)."""
    return F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)


def _resample(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """To the grid: finer layers are averaged, coarser ones interpolated."""
    if features.shape[-1] > grid[1]:
        return F.adaptive_avg_pool2d(features, grid)
    if features.shape[-2:] != grid:
        return F.interpolate(features, size=grid, mode="bilinear", align_corners=False)
    return features
