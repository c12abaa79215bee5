"""What one layer of a network remembers of good parts, and how far off a patch is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import cv2
import numpy as np
import torch
from torch import Tensor

from sam_inspect.localize.nearest import NearestPatches
from sam_inspect.records import Map

ROUNDS = 10
TINY = 1e-12


class LayerMemory:
    """Good patches of one layer: standardised by channel, a sample of them kept.

    Args:
        mean, std: (C,) float32 of good patches.
        rows: (n, C) standardised good patches, in the precision in which they are stored.
    """

    def __init__(self, mean: Tensor, std: Tensor, rows: Tensor) -> None:
        self.mean, self.std, self.nearest = mean, std, NearestPatches(rows)

    @classmethod
    def of(cls, patches: Tensor, count: int, generator: torch.Generator, device: str) -> Self:
        """`count` of (n, C) float32 patches that stand for all of them, on a device: see `spread_out`."""
        std, mean = torch.std_mean(patches, 0)
        std = std.clamp_min(1e-6)
        rows = ((patches - mean) / std).half().float().to(device)
        return cls(mean.to(device), std.to(device), rows[spread_out(rows, count, generator)])

    def distances(self, features: Tensor) -> Map:
        """(h, w, C) float32 features -> (h, w) float32 distances to the nearest good patch."""
        flat = (features.flatten(0, 1).to(self.mean.device) - self.mean) / self.std
        found: Map = self.nearest.distances(flat).reshape(features.shape[:2]).cpu().numpy()
        return found

    def tensors(self) -> dict[str, Tensor]:
        """What `from_tensors` takes."""
        return {"mean": self.mean.cpu(), "std": self.std.cpu(), "rows": self.nearest.bank.half().cpu()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], device: str) -> Self:
        """The same memory again. Raises KeyError where a tensor is absent."""
        mean, std, rows = (tensors[name].to(device).float() for name in ("mean", "std", "rows"))
        return cls(mean, std, rows)


def spread_out(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of `count` of (n, C) rows: what is rare among good parts is among them, and still counts as good.

    k-means++'s sampling in rounds (Arthur & Vassilvitskii, SODA 2007; Bahmani et al., VLDB 2012): a tenth at random,
    then nine times a tenth, each row as likely as its squared distance from those that were chosen before. PatchCore's
    greedy coreset passes over all rows as often as it chooses one.
    """
    if count >= len(rows):
        return torch.arange(len(rows), device=rows.device)
    sizes = [count * (part + 1) // ROUNDS - count * part // ROUNDS for part in range(ROUNDS)]
    first, *later = [size for size in sizes if size]
    chosen = fresh = torch.randperm(len(rows), generator=generator)[:first].to(rows.device)
    distances = torch.full((len(rows),), torch.inf, device=rows.device)
    for size in later:
        distances = torch.minimum(distances, NearestPatches(rows[fresh]).distances(rows))
        # The highest of these are a draw by weight without replacement (Efraimidis & Spirakis, 2006).
        keys = torch.rand(len(rows), generator=generator).log().to(rows.device) / distances.square().clamp_min(TINY)
        keys[chosen] = -torch.inf
        fresh = keys.topk(size).indices
        chosen = torch.cat([chosen, fresh])
    return chosen


def on_grid(found: Map, shape: tuple[int, ...]) -> Map:
    """A map on another grid over the same image."""
    if found.shape == shape:
        return found
    shrinks = shape[0] < found.shape[0]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(found, (shape[1], shape[0]), interpolation=interpolation), np.float32)


def smooth(found: Map, sigma: float) -> Map:
    """A map after a Gaussian of `sigma` cells, its border repeated; the same map for 0."""
    if not sigma:
        return found
    blurred = cv2.GaussianBlur(found.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.float32)
