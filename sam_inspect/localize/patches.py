"""From an image to a grid of patch features: one scale for all images of a product, tiles where it is large or long."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from sam_inspect.config import Section
from sam_inspect.images import scaled
from sam_inspect.networks.backbone import Backbone
from sam_inspect.networks.runtime import at_once, batches_of
from sam_inspect.tiles import TilePlan, plan_tiles

LONGEST_SHRUNK_PX = 1024
MOST_ENLARGED = 2.0


class BackboneConfig(Section):
    """One network whose features make a heatmap."""

    name: str = "mobile_sam"
    """`mobile_sam`, `dinov2_vits14`, `mobilenet_v2`, or any timm model."""
    layers: tuple[int, ...] = Field((0, 1, 2, 3), min_length=1)
    """Stages of a convolutional network, blocks of a ViT, from 0; each gets a memory and a map of its own."""
    size_px: int = Field(512, ge=64, le=2048)
    """To what the short side of an image is scaled; the side of a tile where there are several."""
    cell_px: int = Field(16, ge=4, le=64)
    """Least side of a map's cell, pixels of the scaled image; a layer of coarser stride has that as its cell."""
    draws: bool = True
    """Whether it draws the map; one that does not says only how far off the whole image is."""
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

    def at_once(self, plan: TilePlan) -> int:
        """Tiles that share a batch."""
        return at_once(math.prod(plan.tile_hw), self.backbone.device)

    def features(self, images: Sequence[NDArray[np.uint8]], plan: TilePlan) -> Iterator[list[Tensor]]:
        """For each tile of each image, in order, one (h, w, C) float32 a layer, averaged over 3 x 3 cells."""
        tiles = list(self._tiles(images, plan))
        for batch in batches_of(len(tiles), math.prod(plan.tile_hw), self.backbone.device):
            pixels = torch.from_numpy(np.stack(tiles[batch])).to(self.backbone.device).permute(0, 3, 1, 2).float()
            layers = [self.on_cells(layer.float(), plan.tile_hw) for layer in self.backbone.features(pixels)]
            yield from ([layer[i] for layer in layers] for i in range(len(pixels)))

    @staticmethod
    def _tiles(images: Sequence[NDArray[np.uint8]], plan: TilePlan) -> Iterator[NDArray[np.uint8]]:
        tile_h, tile_w = plan.tile_hw
        for image in images:
            whole = scaled(image, plan.scaled_hw)
            yield from (whole[y : y + tile_h, x : x + tile_w] for y, x in plan.origins_yx)

    def on_cells(self, layer: Tensor, tile_hw: tuple[int, int]) -> Tensor:
        """(B, C, h, w) of any stride as (B, h', w', C) on cells no finer than `cell_px`, then averaged over 3 x 3.

        In that order, so that a patch is three cells wide in every layer: PatchCore's local awareness.
        """
        grid = (tile_hw[0] // self.config.cell_px, tile_hw[1] // self.config.cell_px)
        cells = F.adaptive_avg_pool2d(layer, grid) if layer.shape[-1] > grid[1] else layer
        cells = cells.contiguous(memory_format=torch.channels_last)  # twice as fast, and it is what comes out
        return F.avg_pool2d(cells, 3, stride=1, padding=1, count_include_pad=False).permute(0, 2, 3, 1)


def product_scale(sizes_hw: list[tuple[int, int]], config: BackboneConfig) -> float:
    """One scale for a product, from the median short side of its images.

    Short sides up to 1024 pixels are scaled to `size_px`, but enlarged at most twofold; threefold where a size of 768
    asks for it, and so on. Larger images keep their resolution and are cut into tiles: a scratch ten pixels wide stays
    ten pixels wide.
    """
    short = float(np.median([min(size) for size in sizes_hw]))
    finer = config.size_px / 512
    if short > max(LONGEST_SHRUNK_PX, config.size_px):
        return min(1.0, finer)
    return min(MOST_ENLARGED * max(1.0, finer), config.size_px / short)
