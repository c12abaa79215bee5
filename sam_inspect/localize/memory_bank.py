"""The default localizer: distances to memories of good patches, over the layers of one frozen network or several.

PatchCore (Roth et al., CVPR 2022) with five differences, each measured in `docs/choices.md`: every layer has a memory
and a map of its own, at its own resolution; channels are standardised by good parts; distances are taken in units of
what good parts show at that place, and their logarithms averaged; the same network looks at the image three times, at
512 pixels to say where, at 256 and 160 to help say whether (`looks.py`); the memory is a sample spread out in rounds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from sam_inspect.config import Section, validated
from sam_inspect.errors import DatasetError, RecipeError, WeightsError
from sam_inspect.images import read_image, read_size
from sam_inspect.localize import Fit
from sam_inspect.localize.looks import SURE, high_as_powers, mean_of, rare_peak, score_of
from sam_inspect.localize.memory import LayerMemory, smooth
from sam_inspect.localize.patches import BackboneConfig, PatchGrid, product_scale
from sam_inspect.localize.places import GoodParts, Normal, place_share
from sam_inspect.localize.planted import measure_offsets, moved_back
from sam_inspect.networks.loaded import load_backbone
from sam_inspect.progress import Progress
from sam_inspect.records import Localization, Map
from sam_inspect.tiles import TilePlan, blend_tiles

log = logging.getLogger(__name__)

POOL_PATCHES = 60_000
HELD_BYTES = 1 << 30
FOLDS = 5
PLANTED_IMAGES = 3
LOOKS = (BackboneConfig(), *(BackboneConfig(size_px=size, cell_px=8, draws=False) for size in (256, 160)))


class MemoryBankArgs(Section):
    """Arguments of the localizer `memory_bank`."""

    backbones: tuple[BackboneConfig, ...] = Field(LOOKS, min_length=1)
    """Networks, each at one size; of the same network several sizes are several looks at the image."""
    bank_patches: int = Field(10_000, ge=100, le=1_000_000)
    """Good patches that each layer remembers."""
    smooth: float = Field(0.03, ge=0, le=0.2)
    """Standard deviation of the Gaussian that smooths the map, in short sides of a tile."""
    seed: int = 0

    @field_validator("backbones")
    @classmethod
    def _one_draws(cls, backbones: tuple[BackboneConfig, ...]) -> tuple[BackboneConfig, ...]:
        if not any(backbone.draws for backbone in backbones):
            raise ValueError("none of them draws the map")
        return backbones


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """What the layers of one network remember of good parts.

    Attributes:
        grid: cuts images and answers with features.
        memories: one a layer.
        weights: name, sha256 and source of the pretrained weights.
        offsets_yx: where each layer's map lies off the image, pixels of the scaled image.
        normals: what good parts show, one a layer; () before it is known.
        rare: how high the look's highest cell is on a rare good part; 1 before it is known.
    """

    grid: PatchGrid
    memories: tuple[LayerMemory, ...]
    weights: dict[str, str]
    offsets_yx: tuple[tuple[float, float], ...]
    normals: tuple[Normal, ...] = ()
    rare: float = 1.0

    def distances(self, image: NDArray[np.uint8]) -> list[Map]:
        """A (h, w) float32 map a layer: each cell's distance to the nearest good patch, put where it belongs."""
        return next(self.distances_of([image]))

    def distances_of(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[list[Map]]:
        """The same of each of several images of one size, which share batches."""
        plan = self.grid.plan(images[0].shape[:2])
        tiles = self.grid.features(images, plan)
        return (self.placed(plan, islice(tiles, len(plan.origins_yx))) for _ in images)

    def placed(self, plan: TilePlan, tiles: Iterator[list[Tensor]]) -> list[Map]:
        """The same from the features of each tile."""
        stacks: list[Map] = []
        for index, tile in zip(range(len(plan.origins_yx)), tiles, strict=True):
            found = [memory.distances(layer) for memory, layer in zip(self.memories, tile, strict=True)]
            # Kept one by one, thousands of small maps would pin the heap between the network's large blocks.
            stacks = stacks or [np.empty((len(plan.origins_yx), *one.shape), np.float32) for one in found]
            for stack, one in zip(stacks, found, strict=True):
                stack[index] = one
        return [_moved(plan, stack, offset) for stack, offset in zip(stacks, self.offsets_yx, strict=True)]

    def deviations(self, distances: Sequence[Map]) -> list[Map]:
        """Distances in units of what good parts show at that place."""
        return [normal.deviations(found) for normal, found in zip(self.normals, distances, strict=True)]

    def in_units(self, held: Sequence[Sequence[Map]], share: float) -> tuple[Self, list[list[Map]]]:
        """The bank that knows what good parts show, and how far each of these deviates from the others.

        Args:
            held: `distances` of good parts that it has not seen.
            share: how far the place counts; see `place_share`.
        """
        layers = [GoodParts(maps, share) for maps in zip(*held, strict=True)]
        deviations = [list(maps) for maps in zip(*(layer.deviations() for layer in layers), strict=True)]
        rare = rare_peak([mean_of(maps) for maps in deviations])
        return replace(self, normals=tuple(layer.normal() for layer in layers), rare=rare), deviations


class MemoryBank:
    """See the module. A `Trainable`."""

    def __init__(self, args: MemoryBankArgs, banks: Sequence[Bank]) -> None:
        self.args, self.banks = args, tuple(banks)

    def localize(self, image: NDArray[np.uint8]) -> Localization:
        """See `Localizer.localize`; the map is a mean of logarithms, about 0.69 where a good part is worst.

        See `high_as_powers` for what lies far beyond.
        """
        return self.localize_many([image])[0]

    def at_once(self, original_hw: tuple[int, int]) -> int:
        """See `Batching.at_once`; what is cut into tiles comes alone, its tiles share batches."""
        plans = [(bank.grid, bank.grid.plan(original_hw)) for bank in self.banks]
        if any(len(plan.origins_yx) > 1 for _, plan in plans):
            return 1
        return max(grid.at_once(plan) for grid, plan in plans)

    def localize_many(self, images: Sequence[NDArray[np.uint8]]) -> list[Localization]:
        """See `Batching.localize_many`."""
        original_hw = images[0].shape[:2]
        looks = [[bank.deviations(found) for found in bank.distances_of(images)] for bank in self.banks]
        maps = [self._combined(found, original_hw) for found in zip(*looks, strict=True)]
        return [Localization(original_hw, float(found.max()), anomaly_map=found) for found in maps]

    def _combined(self, maps: Sequence[Sequence[Map]], original_hw: tuple[int, int]) -> Map:
        """The map of each look's deviations, one a layer; see `_scaled` and `high_as_powers`."""
        return high_as_powers(torch.from_numpy(self._scaled(maps, original_hw))).numpy()

    def _scaled(self, maps: Sequence[Sequence[Map]], original_hw: tuple[int, int]) -> Map:
        """What those that draw see on average, smoothed; its peak is the score.

        Where others do not draw, it is scaled so that its peak is what `score_of` makes of all their peaks, wherever
        each has its own. Up to `SURE`, three times a typical good part's peak: beyond, whatever is seen is a defect,
        and the map stays as it was drawn.
        """
        looks = [mean_of(layers) for layers in maps]
        drawing = [look for look, bank in zip(looks, self.banks, strict=True) if bank.grid.config.draws]
        drawn = mean_of(drawing)
        anomaly_map = smooth(drawn, self.args.smooth * self.tile_cells(drawn.shape, original_hw))
        if len(drawing) == len(looks):
            return anomaly_map
        peaks = torch.tensor([float(look.max()) for look in looks])
        rare = torch.tensor([bank.rare for bank in self.banks])
        score, peak = float(score_of(peaks, rare)), float(anomaly_map.max())
        return anomaly_map * np.float32(min(score, SURE) / max(min(peak, SURE), 1e-6))

    def tile_cells(self, shape: tuple[int, ...], original_hw: tuple[int, int]) -> float:
        """Cells of a map along the short side of one tile."""
        plan = self.banks[0].grid.plan(original_hw)
        return shape[0] / plan.scaled_hw[0] * min(plan.tile_hw)

    @classmethod
    def fit(
        cls, images: Sequence[Path], args: Mapping[str, Any], *, device: str, progress: Progress
    ) -> tuple[Self, Fit]:
        """See `Trainable.fit`."""
        parsed = validated(MemoryBankArgs, dict(args), "localizer.args")
        if len(images) < 2:
            raise DatasetError(f"{images[0].parent}: only one good image", "give at least two, better twenty or more")
        sizes_hw = [read_size(path) for path in images]
        looks = [_look(sizes_hw, config, device) for config in parsed.backbones]
        held_every = _held_every(images, [grid for grid, _ in looks], parsed)
        fitted = [_fit_bank(images, grid, weights, parsed, held_every, progress) for grid, weights in looks]
        share = place_share([layer for _, found in fitted for layer in zip(*found, strict=True)])
        log.info("where a patch lies on the part counts %.0f %% in the unit of its distance", 100 * share)
        known = [bank.in_units(found, share) for bank, found in fitted]
        localizer = cls(parsed, [bank for bank, _ in known])
        seen = zip(*(deviations for _, deviations in known), sizes_hw[::held_every], strict=True)
        held = [localizer._combined(maps, hw) for *maps, hw in seen]
        weights = {bank.weights["name"]: bank.weights for bank in localizer.banks}
        return localizer, Fit.of(held, weights, images[::held_every])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Trainable.state`."""
        tensors: dict[str, Tensor] = {}
        for index, bank in enumerate(self.banks):
            for layer, memory, normal in zip(bank.grid.config.layers, bank.memories, bank.normals, strict=True):
                place = {"place_mean": torch.from_numpy(normal.mean), "place_scale": torch.from_numpy(normal.scale)}
                parts = memory.tensors() | place
                tensors |= {f"{index}.{layer}.{name}": tensor for name, tensor in parts.items()}
        return tensors, {"banks": [_facts(bank) for bank in self.banks]}

    @classmethod
    def from_state(
        cls, args: Mapping[str, Any], tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, device: str
    ) -> Self:
        """See `Trainable.from_state`."""
        parsed = validated(MemoryBankArgs, dict(args), "localizer.args")
        try:
            known = [(config, facts["banks"][index]) for index, config in enumerate(parsed.backbones)]
            banks = [_restored(f"{i}.", config, tensors, fact, device) for i, (config, fact) in enumerate(known)]
        except (KeyError, IndexError) as error:
            raise RecipeError(f"its memory bank lacks {error}", "train it again") from None
        return cls(parsed, banks)


def _facts(bank: Bank) -> dict[str, Any]:
    offsets = [list(offset) for offset in bank.offsets_yx]
    return {"scale": bank.grid.scale, "offsets_yx": offsets, "rare": bank.rare, "weights": bank.weights}


def _restored(
    prefix: str, config: BackboneConfig, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], device: str
) -> Bank:
    backbone, weights = load_backbone(config, device)
    if weights["sha256"] != facts["weights"]["sha256"]:
        raise WeightsError(
            f"weights {weights['name']}: sha256 {weights['sha256'][:12]} but the recipe was made with "
            f"{facts['weights']['sha256'][:12]}",
            "bring the same weights or train again",
        )
    names = ("mean", "std", "rows", "place_mean", "place_scale")
    layers = [{name: tensors[f"{prefix}{layer}.{name}"] for name in names} for layer in config.layers]
    return Bank(
        grid=PatchGrid(backbone, config, float(facts["scale"])),
        memories=tuple(LayerMemory.from_tensors(parts, device) for parts in layers),
        weights=weights,
        offsets_yx=tuple((float(dy), float(dx)) for dy, dx in facts["offsets_yx"]),
        normals=tuple(Normal(parts["place_mean"].numpy(), parts["place_scale"].numpy()) for parts in layers),
        rare=float(facts["rare"]),
    )


def _look(sizes_hw: list[tuple[int, int]], config: BackboneConfig, device: str) -> tuple[PatchGrid, dict[str, str]]:
    """What cuts images of these sizes and answers with features, and its weights' facts."""
    backbone, weights = load_backbone(config, device)
    return PatchGrid(backbone, config, product_scale(sizes_hw, config)), weights


def _held_every(images: Sequence[Path], grids: Sequence[PatchGrid], args: MemoryBankArgs) -> int:
    """The step n with which all patches of every n-th image fit into memory for every look; at least two images do.

    Says how much memory fitting takes.
    """
    image, count = read_image(images[0]), len(images)
    firsts = [list(grid.features([image], grid.plan(image.shape[:2]))) for grid in grids]
    held_bytes = [2 * sum(layer.numel() for tile in tiles for layer in tile) for tiles in firsts]
    every = min(max(1, -(-count * max(held_bytes) // HELD_BYTES)), max(1, count // 2))
    for grid, tiles, held in zip(grids, firsts, held_bytes, strict=True):
        pool_bytes = 4 * count * _quota(args, count) * sum(layer.shape[-1] for layer in tiles[0])
        total = 3 * pool_bytes + held * -(-count // every)
        log.info("%s: fitting %d images takes up to %.1f GB beside the network", _name(grid), count, total / 1e9)
    return every


def _quota(args: MemoryBankArgs, count: int) -> int:
    """Patches of each of so many images in the pool."""
    return -(-max(POOL_PATCHES, args.bank_patches) // count)


def _fit_bank(
    images: Sequence[Path],
    grid: PatchGrid,
    weights: dict[str, str],
    args: MemoryBankArgs,
    held_every: int,
    progress: Progress,
) -> tuple[Bank, list[list[Map]]]:
    """One network's bank, and for each held image its layers' distances to a memory without the image's own fold."""
    pools, owners, held = _gather(images, grid, args, held_every, progress)
    memories = _memories(pools, args, str(grid.backbone.device))
    bank = Bank(grid, memories, weights, tuple((0.0, 0.0) for _ in pools))
    planted = [read_image(path) for path in images[:PLANTED_IMAGES]]
    bank = replace(bank, offsets_yx=measure_offsets(bank, planted, grid.scale, grid.config.cell_px))
    return bank, _cross_fitted(bank, pools, owners, held, args, progress)


def _memories(pools: Sequence[Tensor], args: MemoryBankArgs, device: str) -> tuple[LayerMemory, ...]:
    generator = torch.Generator().manual_seed(args.seed)
    return tuple(LayerMemory.of(pool, args.bank_patches, generator, device) for pool in pools)


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A good image whose patches are all kept (float16), to be scored by a memory that never saw it."""

    index: int
    original_hw: tuple[int, int]
    tiles: list[list[Tensor]]


def _gather(
    images: Sequence[Path], grid: PatchGrid, args: MemoryBankArgs, held_every: int, progress: Progress
) -> tuple[list[Tensor], list[Tensor], list[_Held]]:
    """For each layer the pool (n, C) and the image's index of each of its rows; and the held images."""
    generator = torch.Generator().manual_seed(args.seed)
    quota = _quota(args, len(images))
    rows: list[list[Tensor]] = [[] for _ in grid.config.layers]
    held = []
    for index, path in enumerate(progress(images, f"good parts through {_name(grid)}", len(images))):
        image = read_image(path)
        tiles = [[layer.cpu() for layer in tile] for tile in grid.features([image], grid.plan(image.shape[:2]))]
        for layer, parts in zip(rows, zip(*tiles, strict=True), strict=True):
            flat = torch.cat([part.flatten(0, 1) for part in parts])
            layer.append(flat[torch.randperm(len(flat), generator=generator)[:quota]])
        if index % held_every == 0:
            held.append(_Held(index, image.shape[:2], [[layer.half() for layer in tile] for tile in tiles]))
    owners = [torch.cat([torch.full((len(part),), i) for i, part in enumerate(layer)]) for layer in rows]
    return [torch.cat(layer) for layer in rows], owners, held


def _name(grid: PatchGrid) -> str:
    return f"{grid.config.name} at {grid.config.size_px} pixels"


def _cross_fitted(
    bank: Bank,
    pools: Sequence[Tensor],
    owners: Sequence[Tensor],
    held: Sequence[_Held],
    args: MemoryBankArgs,
    progress: Progress,
) -> list[list[Map]]:
    """For each held image, in order, its layers' distances to memories without the images of its fold."""
    n_folds = min(FOLDS, len(held))
    places = {image.index: place % n_folds for place, image in enumerate(held)}
    found: dict[int, list[Map]] = {}
    current, memory = -1, bank
    for image in progress(sorted(held, key=lambda i: places[i.index]), "thresholds on held-out good parts", len(held)):
        if places[image.index] != current:
            current = places[image.index]
            out = torch.tensor([index for index, place in places.items() if place == current])
            rest = [pool[~torch.isin(owner, out)] for pool, owner in zip(pools, owners, strict=True)]
            memory = replace(bank, memories=_memories(rest, args, str(bank.memories[0].mean.device)))
        tiles = ([layer.float() for layer in tile] for tile in image.tiles)
        found[image.index] = memory.placed(bank.grid.plan(image.original_hw), tiles)
    return [found[image.index] for image in held]


def _moved(plan: TilePlan, tile_maps: Map, offset_yx: tuple[float, float]) -> Map:
    """The tiles' maps (n, h, w) as one, moved back by the layer's own offset, pixels of the scaled image."""
    cell_px = plan.tile_hw[1] // tile_maps.shape[2]
    blended = blend_tiles(plan, list(tile_maps), cell_px)
    return moved_back(blended, (offset_yx[0] / cell_px, offset_yx[1] / cell_px))
