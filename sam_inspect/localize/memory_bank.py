"""The default localizer: distances to a memory of good patches, over the features of one frozen network or several.

PatchCore (Roth et al., CVPR 2022) with three differences, each measured in `docs/choices.md`: channels are standardised by
good parts; what good parts show at a place on the average (at their borders, say) is subtracted there; several networks'
maps, each in units of its own spread on good parts, are averaged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from sam_inspect.config import Section, validated
from sam_inspect.errors import DatasetError, RecipeError, WeightsError
from sam_inspect.images import blend_tiles, read_image, read_size
from sam_inspect.localize import Fit
from sam_inspect.localize.nearest import NearestPatches
from sam_inspect.localize.patches import BackboneConfig, PatchGrid, product_scale
from sam_inspect.localize.planted import measure_offset
from sam_inspect.networks import load_backbone
from sam_inspect.progress import Progress
from sam_inspect.records import Localization

log = logging.getLogger(__name__)

POOL_PATCHES = 60_000
HELD_BYTES = 1 << 30
FOLDS = 5
PRIOR_CELLS = 32
Map = NDArray[np.float32]


class MemoryBankArgs(Section):
    """Arguments of the localizer `memory_bank`."""

    backbones: tuple[BackboneConfig, ...] = Field((BackboneConfig(),), min_length=1)
    bank_patches: int = Field(15_000, ge=100, le=1_000_000)
    """Good patches that are remembered."""
    smooth_cells: float = Field(1.0, ge=0, le=10)
    """Standard deviation of the Gaussian that smooths the map, in cells of the first backbone."""
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """What one network remembers of good parts.

    Attributes:
        grid: cuts images and answers with features.
        mean, std: (C,) float32 of good patches.
        nearest: the memory, standardised.
        offset_yx: where the network's map lies off the image, pixels of the scaled image.
        prior: (32, 32) float32, the distances of good parts by place, relative to the image.
        spread: standard deviation of good parts' distances about `prior`.
        weights: name, sha256 and source of the pretrained weights.
    """

    grid: PatchGrid
    mean: Tensor
    std: Tensor
    nearest: NearestPatches
    weights: dict[str, str]
    offset_yx: tuple[float, float] = (0.0, 0.0)
    prior: Map | None = None
    spread: float = 1.0

    def distances(self, image: NDArray[np.uint8]) -> Map:
        """(h, w) float32: each cell's distance to the nearest good patch, put where it belongs in the image."""
        plan = self.grid.plan(image.shape[:2])
        maps = [self.tile_distances(features) for features in self.grid.features(image, plan)]
        cell_px = self.grid.config.cell_px
        return shifted(blend_tiles(plan, maps, cell_px), self.offset_yx, cell_px)

    def tile_distances(self, features: Tensor) -> Map:
        """(h, w, C) features of one tile -> (h, w) float32 distances."""
        flat = (features.flatten(0, 1) - self.mean) / self.std
        found: Map = self.nearest.distances(flat).reshape(features.shape[:2]).cpu().numpy()
        return found

    def deviations(self, distances: Map) -> Map:
        """Distances beyond what good parts show at that place, in units of their spread."""
        prior = 0.0 if self.prior is None else _resized(self.prior, distances.shape)
        return ((distances - prior) / self.spread).astype(np.float32)


class MemoryBank:
    """See the module. A `Trainable`."""

    def __init__(self, args: MemoryBankArgs, banks: Sequence[Bank]) -> None:
        self.args, self.banks = args, tuple(banks)

    def localize(self, image: NDArray[np.uint8]) -> Localization:
        """See `Localizer.localize`; the map's unit is the spread of good parts."""
        anomaly_map = self._combined([bank.deviations(bank.distances(image)) for bank in self.banks])
        return Localization(image.shape[:2], float(anomaly_map.max()), anomaly_map=anomaly_map)

    def _combined(self, maps: Sequence[Map]) -> Map:
        """The mean of the networks' maps on the finest grid among them, smoothed."""
        finest = max(maps, key=lambda found: found.size).shape
        mean = np.mean([_resized(found, finest) for found in maps], axis=0, dtype=np.float32)
        sigma = self.args.smooth_cells
        return cv2.GaussianBlur(mean, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE) if sigma else mean

    @classmethod
    def fit(cls, images: Sequence[Path], args: Mapping[str, Any], *, device: str, progress: Progress) -> tuple[Self, Fit]:
        """See `Trainable.fit`."""
        parsed = validated(MemoryBankArgs, dict(args), "localizer.args")
        if len(images) < 2:
            raise DatasetError(f"{images[0].parent}: only one good image", "give at least two, better twenty or more")
        fitted = [_fit_bank(images, config, parsed, device, progress) for config in parsed.backbones]
        localizer = cls(parsed, [bank for bank, _ in fitted])
        held = [localizer._combined(maps) for maps in zip(*(maps for _, maps in fitted), strict=True)]
        scores = np.array([found.max() for found in held], np.float32)
        pixels = np.quantile(np.concatenate([found.ravel() for found in held]), np.linspace(0, 1, 1001))
        return localizer, Fit(scores, pixels.astype(np.float32), {b.weights["name"]: b.weights for b in localizer.banks})

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Trainable.state`."""
        tensors: dict[str, Tensor] = {}
        for index, bank in enumerate(self.banks):
            tensors[f"{index}.bank"] = bank.nearest.bank.half().cpu()
            tensors[f"{index}.mean"], tensors[f"{index}.std"] = bank.mean.cpu(), bank.std.cpu()
            tensors[f"{index}.prior"] = torch.from_numpy(np.array(bank.prior))
        return tensors, {"banks": [_facts(bank) for bank in self.banks]}

    @classmethod
    def from_state(
        cls, args: Mapping[str, Any], tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, device: str
    ) -> Self:
        """See `Trainable.from_state`."""
        parsed = validated(MemoryBankArgs, dict(args), "localizer.args")
        try:
            parts = [{key: tensors[f"{i}.{key}"] for key in ("bank", "mean", "std", "prior")} for i in range(len(parsed.backbones))]
            known = list(facts["banks"])
        except KeyError as error:
            raise RecipeError(f"the recipe's memory bank lacks {error}", "train it again") from None
        banks = [_restored(*each, device) for each in zip(parsed.backbones, parts, known, strict=True)]
        return cls(parsed, banks)


def _facts(bank: Bank) -> dict[str, Any]:
    return {
        "scale": bank.grid.scale,
        "offset_yx": list(bank.offset_yx),
        "spread": bank.spread,
        "weights": bank.weights,
    }


def _restored(config: BackboneConfig, parts: Mapping[str, Tensor], facts: Mapping[str, Any], device: str) -> Bank:
    backbone, weights = load_backbone(config, device)
    if weights["sha256"] != facts["weights"]["sha256"]:
        raise WeightsError(
            f"weights {weights['name']}: sha256 {weights['sha256'][:12]} but the recipe was made with "
            f"{facts['weights']['sha256'][:12]}",
            "bring the same weights or train again",
        )
    return Bank(
        grid=PatchGrid(backbone, config, float(facts["scale"])),
        mean=parts["mean"].to(device),
        std=parts["std"].to(device),
        nearest=NearestPatches(parts["bank"].float().to(device)),
        weights=weights,
        offset_yx=(float(facts["offset_yx"][0]), float(facts["offset_yx"][1])),
        prior=parts["prior"].numpy(),
        spread=float(facts["spread"]),
    )


def _fit_bank(
    images: Sequence[Path], config: BackboneConfig, args: MemoryBankArgs, device: str, progress: Progress
) -> tuple[Bank, list[Map]]:
    """One network's memory, and the deviations of held-out good images.

    Every image's patches are seen once. A bounded sample of them, the pool, becomes the memory; of as many images as fit
    into `HELD_BYTES` all patches are kept, and each of these is scored by a memory without its own fold.
    """
    backbone, weights = load_backbone(config, device)
    grid = PatchGrid(backbone, config, product_scale([read_size(path) for path in images], config))
    pool, folds, held = _gather(images, grid, args, progress)
    std, mean = torch.std_mean(pool, 0)
    std = std.clamp_min(1e-6)
    blank = Bank(grid, mean, std, NearestPatches(_chosen((pool - mean) / std, args)), weights)
    blank = replace(blank, offset_yx=measure_offset(blank, [read_image(path) for path in images[:3]], grid.scale, config.cell_px))
    maps = _cross_fitted(blank, pool, folds, held, args, progress)
    priors = np.stack([_resized(found, (PRIOR_CELLS, PRIOR_CELLS)) for found in maps])
    deviations = [found - _resized(_blurred(_mean_without(priors, i)), found.shape) for i, found in enumerate(maps)]
    spread = float(np.std(np.concatenate([found.ravel() for found in deviations])))
    bank = replace(blank, prior=_blurred(priors.mean(0)), spread=max(spread, 1e-6))
    return bank, [(found / bank.spread).astype(np.float32) for found in deviations]


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A good image whose patches are all kept (float16), to be scored by a memory that never saw it."""

    index: int
    original_hw: tuple[int, int]
    tiles: list[Tensor]


def _gather(
    images: Sequence[Path], grid: PatchGrid, args: MemoryBankArgs, progress: Progress
) -> tuple[Tensor, Tensor, list[_Held]]:
    """The pool (n, C), the image's index of each of its rows, and the held images."""
    generator = torch.Generator().manual_seed(args.seed)
    quota = -(-max(POOL_PATCHES, args.bank_patches) // len(images))
    rows, owners, held, step = [], [], [], 1
    for index, path in enumerate(progress(images, f"good parts through {grid.config.name}", len(images))):
        image = read_image(path)
        plan = grid.plan(image.shape[:2])
        tiles = [features.cpu() for features in grid.features(image, plan)]
        flat = torch.cat([features.flatten(0, 1) for features in tiles])
        if index == 0:
            step = _announce(len(images), flat, quota)
        chosen = flat[torch.randperm(len(flat), generator=generator)[:quota]]
        rows.append(chosen)
        owners.append(torch.full((len(chosen),), index))
        if index % step == 0:
            held.append(_Held(index, image.shape[:2], [features.half() for features in tiles]))
    return torch.cat(rows), torch.cat(owners), held


def _announce(n_images: int, patches: Tensor, quota: int) -> int:
    """Says how much memory fitting takes; answers with every how-many-eth image is held."""
    held_bytes = patches.numel() * 2
    step = max(1, -(-n_images * held_bytes // HELD_BYTES))
    step = min(step, max(1, n_images // 2))
    pool_bytes = n_images * min(quota, len(patches)) * patches.shape[1] * 4
    total = 3 * pool_bytes + held_bytes * -(-n_images // step)
    log.info("fitting on %d images takes up to %.1f GB of memory beside the network", n_images, total / 1e9)
    return step


def _cross_fitted(
    bank: Bank, pool: Tensor, owners: Tensor, held: list[_Held], args: MemoryBankArgs, progress: Progress
) -> list[Map]:
    """For each held image the distances to a memory without the images of its fold."""
    n_folds = min(FOLDS, len(held))
    places = {image.index: place % n_folds for place, image in enumerate(held)}
    fold_of = torch.tensor([places.get(int(owner), -1) for owner in owners])
    found: dict[int, Map] = {}
    in_folds = sorted(held, key=lambda image: places[image.index])
    current, memory = -1, bank
    for image in progress(in_folds, "thresholds on held-out good parts", len(held)):
        if places[image.index] != current:
            current = places[image.index]
            rest = (pool[fold_of != current] - bank.mean) / bank.std
            memory = replace(bank, nearest=NearestPatches(_chosen(rest, args)))
        cell_px = bank.grid.config.cell_px
        tiles = [memory.tile_distances(tile.float()) for tile in image.tiles]
        blended = blend_tiles(bank.grid.plan(image.original_hw), tiles, cell_px)
        found[image.index] = shifted(blended, bank.offset_yx, cell_px)
    return [found[image.index] for image in held]


def _chosen(patches: Tensor, args: MemoryBankArgs) -> Tensor:
    """A sample of (n, C) patches as the memory, in the precision in which it is stored."""
    generator = torch.Generator().manual_seed(args.seed)
    return patches[torch.randperm(len(patches), generator=generator)[: args.bank_patches]].half().float()


def shifted(distances: Map, offset_yx: tuple[float, float], cell_px: int) -> Map:
    """The map moved back by the network's own offset, pixels of the scaled image."""
    dy, dx = (offset / cell_px for offset in offset_yx)
    move = np.array([[1, 0, -dx], [0, 1, -dy]], np.float32)
    size = distances.shape[::-1]
    return cv2.warpAffine(distances, move, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _mean_without(stack: Map, index: int) -> Map:
    """Mean over all but one, so that an image is not corrected by itself."""
    return np.delete(stack, index, axis=0).mean(0) if len(stack) > 1 else stack[0] * 0


def _blurred(prior: Map) -> Map:
    return cv2.GaussianBlur(prior.astype(np.float32), (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE)


def _resized(found: Map, shape: tuple[int, ...]) -> Map:
    """A map on another grid over the same image."""
    if found.shape == shape:
        return found
    shrinks = shape[0] < found.shape[0]
    return cv2.resize(found, (shape[1], shape[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
