"""The memory bank for images of one size as a single network, so that it can be exported: scaled images to the map."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_inspect.errors import ConfigError
from sam_inspect.localize.looks import SURE, high_as_powers, score_of
from sam_inspect.localize.memory import on_grid
from sam_inspect.localize.memory_bank import Bank, MemoryBank
from sam_inspect.localize.nearest import block_of, highest
from sam_inspect.networks.runtime import Sizable
from sam_inspect.records import Map
from sam_inspect.tiles import TilePlan


class HeatmapGraph(nn.Module):
    """All looks of a memory bank at an image, and their map.

    Input: for each look the image scaled to `sizes_hw`, (1, 3, h, w) float32 RGB in 0..255.
    Output: the anomaly map, (h, w) float32; its peak is the score.

    Raises:
        ConfigError: images of that size are cut into tiles.
    """

    kernel: Tensor
    rare: Tensor
    grid_hw: tuple[int, int]

    def __init__(self, memory_bank: MemoryBank, original_hw: tuple[int, int]) -> None:
        super().__init__()
        plans = [bank.grid.plan(original_hw) for bank in memory_bank.banks]
        if any(len(plan.origins_yx) > 1 for plan in plans):
            raise ConfigError(
                f"images of {original_hw[1]} x {original_hw[0]} pixels are cut into tiles",
                "an export is for images that are seen whole",
            )
        self.original_hw = original_hw
        self.sizes_hw = [plan.scaled_hw for plan in plans]
        looks = [_Look(bank, plan) for bank, plan in zip(memory_bank.banks, plans, strict=True)]
        self.looks, self.draws = nn.ModuleList(looks), [bank.grid.config.draws for bank in memory_bank.banks]
        drawn = [look.grid_hw for look, draws in zip(looks, self.draws, strict=True) if draws]
        self.grid_hw = max(drawn, key=lambda hw: hw[0] * hw[1])
        sigma = memory_bank.args.smooth * memory_bank.tile_cells(self.grid_hw, original_hw)
        self.register_buffer("kernel", _gaussian(sigma))
        self.register_buffer("rare", torch.tensor([bank.rare for bank in memory_bank.banks]))

    def forward(self, *images: Tensor) -> Tensor:
        """See the class."""
        return high_as_powers(self._scaled(images))

    def _scaled(self, images: tuple[Tensor, ...]) -> Tensor:
        """`MemoryBank._scaled`."""
        maps = [look(image) for look, image in zip(self.looks, images, strict=True)]
        drawing = [_resized(found, self.grid_hw) for found, draws in zip(maps, self.draws, strict=True) if draws]
        anomaly_map = self._smooth(torch.stack(drawing).mean(0))
        if all(self.draws):
            return anomaly_map
        score, peak = score_of(torch.stack([found.max() for found in maps]), self.rare), anomaly_map.max()
        return anomaly_map * (score.clamp(max=SURE) / peak.clamp(1e-6, SURE))

    def _smooth(self, found: Tensor) -> Tensor:
        """`memory.smooth`."""
        reach = len(self.kernel) // 2
        if not reach:
            return found
        padded = F.pad(found[None, None], (reach, reach, reach, reach), mode="replicate")
        rows = F.conv2d(padded, self.kernel.view(1, 1, -1, 1))
        return F.conv2d(rows, self.kernel.view(1, 1, 1, -1))[0, 0]


class _Look(nn.Module):
    """One network of the bank: the mean of its layers' deviations on the finest of their grids."""

    def __init__(self, bank: Bank, plan: TilePlan) -> None:
        super().__init__()
        network = bank.grid.backbone.network
        self.network = network.for_size(*plan.tile_hw) if isinstance(network, Sizable) else network
        self.on_cells = bank.grid.on_cells
        self.tile_hw = plan.tile_hw
        with torch.no_grad():
            features = self.network(torch.zeros(1, 3, *plan.tile_hw))
            shapes = [self.on_cells(layer, plan.tile_hw).shape for layer in features]
        cells = [(shape[1], shape[2]) for shape in shapes]
        self.layers = nn.ModuleList([_Layer(bank, place, hw, plan) for place, hw in enumerate(cells)])
        self.grid_hw = max(cells, key=lambda hw: hw[0] * hw[1])

    def forward(self, image: Tensor) -> Tensor:
        found = zip(self.layers, self.network(image), strict=True)
        maps = [layer(self.on_cells(features, self.tile_hw)[0]) for layer, features in found]
        return torch.stack([_resized(each, self.grid_hw) for each in maps]).mean(0)


class _Layer(nn.Module):
    """One memory: features to deviations, put where they belong."""

    mean: Tensor
    std: Tensor
    columns: Tensor
    half_squares: Tensor
    usual: Tensor
    scale: Tensor

    def __init__(self, bank: Bank, place: int, grid_hw: tuple[int, int], plan: TilePlan) -> None:
        super().__init__()
        memory, normal = bank.memories[place], bank.normals[place]
        cell_px = plan.tile_hw[1] // grid_hw[1]
        self.offset_yx = tuple(offset / cell_px for offset in bank.offsets_yx[place])
        rows = memory.nearest.bank
        self.block = block_of(len(rows))
        filled = (0, -len(rows) % self.block)
        constants = {"mean": memory.mean, "std": memory.std, "columns": F.pad(rows.T, filled).contiguous()}
        constants["half_squares"] = F.pad(rows.square().sum(1) / 2, filled, value=torch.inf)
        constants |= {"usual": _constant(normal.mean, grid_hw), "scale": _constant(normal.scale, grid_hw)}
        for name, values in constants.items():
            self.register_buffer(name, values.cpu())

    def forward(self, features: Tensor) -> Tensor:
        """(h, w, C) -> (h, w)."""
        height, width, channels = features.shape
        flat = (features.reshape(height * width, channels) - self.mean) / self.std
        nearest = highest(flat @ self.columns - self.half_squares, self.block)  # runtimes sort for an argmax
        distances = (self.columns.index_select(1, nearest).T - flat).square().sum(1).sqrt().view(height, width)
        return torch.log1p(((_shifted(distances, self.offset_yx) - self.usual) / self.scale).clamp(min=0))


def _constant(values: Map, grid_hw: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(on_grid(values, grid_hw)))


def _resized(found: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """`memory.on_grid`, which here never shrinks."""
    if tuple(found.shape) == grid_hw:
        return found
    return F.interpolate(found[None, None], grid_hw, mode="bilinear", align_corners=False)[0, 0]


def _shifted(found: Tensor, offset_yx: tuple[float, ...]) -> Tensor:
    """The map up and left by so many cells, its border repeated: `cv2.warpAffine` with a translation."""
    for axis, offset in enumerate(offset_yx):
        whole, part = int(np.floor(offset)), float(offset - np.floor(offset))
        before, length = max(0, -whole), int(found.shape[axis])
        after = max(0, whole + 1)
        sides = (0, 0, before, after) if axis == 0 else (before, after, 0, 0)
        padded = F.pad(found[None, None], sides, mode="replicate")[0, 0]
        start = whole + before
        first, second = padded.narrow(axis, start, length), padded.narrow(axis, start + 1, length)
        found = first * (1 - part) + second * part if part else first
    return found


def _gaussian(sigma: float) -> Tensor:
    """OpenCV's kernel of a float32 image."""
    length = (round(sigma * 8 + 1) | 1) if sigma else 1
    return torch.from_numpy(cv2.getGaussianKernel(length, sigma, cv2.CV_32F)[:, 0].copy())
