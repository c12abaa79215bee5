"""The unit of a distance: what good parts show at that place, as far as the place tells anything.

Of parts that all lie alike, a border or a print differs from part to part where elsewhere next to nothing may. Where
parts lie anywhere, a place tells nothing, and what good ones showed there is noise. Which it is, the good parts say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sam_inspect.localize.looks import rare_peak
from sam_inspect.localize.memory import on_grid, smooth
from sam_inspect.records import Map

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

    def deviations(self, distances: Map) -> Map:
        """Distances beyond what good parts show at that place, as log(1 + d); d = 1 is a typical good part's peak.

        The logarithm, because layers vote: one that is a hundredfold off must not outvote three that see nothing.
        """
        return np.asarray(np.log1p(np.maximum(self.beyond(distances), 0)), np.float32)

    def beyond(self, distances: Map) -> Map:
        """Distances beyond the good parts' at that place, in its unit; below 0 where they are less."""
        shape = distances.shape
        return np.asarray((distances - on_grid(self.mean, shape)) / on_grid(self.scale, shape), np.float32)


class GoodParts:
    """What good parts show in one layer: all of them, or all but one, which is then seen as a new part would be.

    A part is no measure of itself: with 24 of them, each seen in units that it had a share in, the threshold for 1 %
    rejected 4 to 17 % of others.

    Args:
        maps: distances to a memory that has not seen the part, each (h, w) float32; at least two.
        share: 0..1, how far the place counts; see `place_share`.
    """

    def __init__(self, maps: Sequence[Map], share: float) -> None:
        self.maps = maps
        stack = np.stack([on_grid(found, (PLACES, PLACES)) for found in maps]).astype(np.float64)
        total, squares, others = stack.sum(0), np.square(stack).sum(0), len(maps) - 1
        self._every = _of_moments(total / len(maps), squares / len(maps), share)
        self._others = [_of_moments((total - one) / others, (squares - one**2) / others, share) for one in stack]
        peaks = [smooth(seen.beyond(one), PLACE_SIGMA).max() for seen, one in zip(self._others, stack, strict=True)]
        self._unit = np.float32(max(float(np.median(peaks)), 1e-6))

    def normal(self, without: int | None = None) -> Normal:
        """What they show, all or all but one; in both the unit is the peak of a typical part beyond all others."""
        shown = self._every if without is None else self._others[without]
        return replace(shown, scale=shown.scale * self._unit)

    def deviations(self) -> list[Map]:
        """Of each part from all others."""
        return [self.normal(part).deviations(found) for part, found in enumerate(self.maps)]


def _of_moments(mean: NDArray[np.float64], square: NDArray[np.float64], share: float) -> Normal:
    """From the means of distances and of their squares, by place."""
    means, spreads = mean.astype(np.float32), np.sqrt(np.maximum(square - mean**2, 0)).astype(np.float32)
    spread = smooth(spreads, PLACE_SIGMA)
    damped = np.hypot(spread, LEAST_SPREAD * max(float(spread.mean()), 1e-6))
    scale = np.asarray((damped / damped.mean()) ** (SPREAD_POWER * share), np.float32)
    return Normal(np.asarray(share * smooth(means, PLACE_SIGMA) + (1 - share) * means.mean(), np.float32), scale)


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
    stacks = [np.stack([on_grid(found, (PLACES, PLACES)) for found in maps]).astype(np.float64) for maps in layers]
    return min(SHARES, key=lambda share: float(np.mean([_least_that_fails(maps, share) for maps in stacks])))


def _least_that_fails(maps: NDArray[np.float64], share: float) -> float:
    """The mean logarithm over places of the least distance that fails there; each half learns, the other one tells."""
    half = len(maps) // 2
    found = []
    for known, others in ((maps[:half], maps[half:]), (maps[half:], maps[:half])):
        normal = _of_moments(known.mean(0), np.square(known).mean(0), share)
        rare = rare_peak([normal.beyond(other) for other in others])
        found.append(np.log(normal.mean + rare * normal.scale).mean())
    return float(np.mean(found))
