"""The unit of a distance: what good parts show at that place, as far as the place tells anything.

Of parts that all lie alike, a border or a print differs from part to part where elsewhere next to nothing may. Where
parts lie anywhere, a place tells nothing, and what good ones showed there is noise. Which it is, the good parts say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from sam_inspect.localize.looks import rare_peak
from sam_inspect.localize.memory import Map, on_grid, smooth

PLACES = 64
PLACE_SIGMA = 1.0
LEAST_SPREAD = 0.5
SPREAD_POWER = 0.75
SHARES = (1.0, 0.5, 0.0)
FEWEST = 4


@dataclass(frozen=True, slots=True, eq=False)
class Normal:
    """How far good patches lie from the memory, by place.

    Attributes:
        mean: (64, 64) float32 mean distance, over the image; drawn to that of all places, as far as these do not count.
        scale: (64, 64) float32, what a distance beyond it is divided by: how far the worst place of a typical good
            part lies beyond it, times the spread of good parts there, damped, so that a place where they differ much
            (a border, a print) counts less but never nothing; the same everywhere where places do not count.
    """

    mean: Map
    scale: Map

    @classmethod
    def of(cls, maps: Sequence[Map], share: float) -> Self:
        """Measured on maps of good parts that the memory has not seen.

        Args:
            maps: of one layer, each (h, w) float32.
            share: 0..1, how far the place counts; see `place_share`.
        """
        stack = np.stack([on_grid(found, (PLACES, PLACES)) for found in maps])
        mean, spread = smooth(stack.mean(0), PLACE_SIGMA), smooth(stack.std(0), PLACE_SIGMA)
        mean += (1 - share) * (stack.mean() - mean)
        typical = max(float(spread.mean()), 1e-6)
        damped = np.hypot(spread, LEAST_SPREAD * typical)
        scale = (damped / damped.mean()) ** (SPREAD_POWER * share)
        peaks = [smooth(beyond, PLACE_SIGMA).max() for beyond in (stack - mean) / scale]
        return cls(mean, np.asarray(scale * max(float(np.median(peaks)), 1e-6), np.float32))

    def deviations(self, distances: Map) -> Map:
        """Distances beyond what good parts show at that place, as log(1 + d); d = 1 is a typical good part's peak.

        The logarithm, because layers vote: one that is a hundredfold off must not outvote three that see nothing.
        """
        return np.asarray(np.log1p(np.maximum(self.beyond(distances), 0)), np.float32)

    def beyond(self, distances: Map) -> Map:
        """Distances beyond the good parts' at that place, in its unit; below 0 where they are less."""
        shape = distances.shape
        return np.asarray((distances - on_grid(self.mean, shape)) / on_grid(self.scale, shape), np.float32)


def place_share(layers: Sequence[Sequence[Map]]) -> float:
    """How far a distance's place counts in its unit, for one product: 1 wholly, 0.5 half, 0 not at all.

    The share with which the smallest defects fail: units learned on half of the good parts, and on the other half
    the peak of a rare one, say how far from the memory a patch must lie to be as bad as that; on average over places
    and layers, that distance is the least.

    Args:
        layers: of each layer its maps of good parts that the memory has not seen, each (h, w) float32; of fewer than
            four parts nothing can be told, and the share is 1.
    """
    if len(layers[0]) < FEWEST:
        return SHARES[0]
    stacks = [[on_grid(found, (PLACES, PLACES)) for found in maps] for maps in layers]
    return min(SHARES, key=lambda share: float(np.mean([_least_that_fails(maps, share) for maps in stacks])))


def _least_that_fails(maps: Sequence[Map], share: float) -> float:
    """The mean logarithm over places of the least distance that fails there; each half learns, the other one tells."""
    half = len(maps) // 2
    found = []
    for known, others in ((maps[:half], maps[half:]), (maps[half:], maps[:half])):
        normal = Normal.of(known, share)
        rare = rare_peak([normal.beyond(other) for other in others])
        found.append(np.log(normal.mean + rare * normal.scale).mean())
    return float(np.mean(found))
