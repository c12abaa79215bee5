"""How several looks at one image become one score, and the unit of the map that is scaled to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sam_inspect.localize.memory import on_grid
from sam_inspect.records import Map

SURE = float(np.log1p(3))
HIGH = 2.05
POWER = 8


def rare_peak(looks: Sequence[Map]) -> float:
    """How high the highest cell of a look is on a rare good part: two standard deviations above the mean; above 0.

    No quantile of the tail: the threshold is one, of the same few parts, and would be too low for others.

    Args:
        looks: one look's maps of good parts that it has not seen, each (h, w) float32; at least one.
    """
    peaks = np.array([found.max() for found in looks])
    return max(float(peaks.mean() + 2 * peaks.std()), 1e-6)


def score_of(peaks: Tensor, rare: Tensor) -> Tensor:
    """How bad a part is, from the highest cell of each look at it: about as bad as the look says that sees it worst.

    A look may be blind to what another one sees: a coarse one to a small defect. So each counts in units of its own
    rare peak, and the score is the power mean of these with exponent 8, in the looks' mean unit.

    Args:
        peaks: (n,) float32, one a look.
        rare: (n,) float32, what `rare_peak` says of each.
    """
    return rare.mean() * (peaks / rare).pow(POWER).mean().pow(1 / POWER)


def high_as_powers(found: Tensor) -> Tensor:
    """Logarithms up to `HIGH`; beyond, a power of the distance that begins there with the same value and slope.

    A blurred defect ends where its distance has fallen to a share of the highest. A region reaches down to a share of
    the map's peak, and of a high logarithm that is far out: at 4, 0.6 of it is a fifth of the distance; so it is 0.35.
    """
    return torch.where(found > HIGH, HIGH * torch.exp(found / HIGH - 1), found)


def mean_of(maps: Sequence[Map]) -> Map:
    """The mean of maps on the finest grid among them."""
    finest = max((found.shape for found in maps), key=lambda shape: shape[0] * shape[1])
    return np.asarray(np.mean([on_grid(found, finest) for found in maps], axis=0), np.float32)
