"""From the scores of good parts to the threshold that a stated share of them exceeds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_TAIL = 0.2


def calibrated_threshold(scores: NDArray[np.float32], false_reject_rate: float) -> float:
    """The score that good parts exceed at the stated rate.

    The highest scores, `tail_share` of them, are taken for an exponential tail (peaks over threshold with shape 0;
    Coles, *An Introduction to Statistical Modeling of Extreme Values*, 2001, ch. 4), so that 1 % can be asked of 30
    good images, and one odd image does not set the threshold. Rates of that share and more are an empirical quantile.

    Args:
        scores: (n,) scores of good images, each by a fit that had not seen it; n >= 1.
        false_reject_rate: above 0, below 1.
    """
    values = np.asarray(scores, np.float64)
    tail = max(tail_share(len(values)), false_reject_rate)
    start = float(np.quantile(values, 1 - tail))
    excess = values[values > start] - start
    return start + float(excess.mean()) * float(np.log(tail / false_reject_rate)) if len(excess) else start


def tail_share(count: int) -> float:
    """What share of so many scores is their tail: n^(2/3) / log log n of them, a fifth at most.

    The rule of Loretan and Phillips, *Testing the covariance stationarity of heavy-tailed time series*, Journal of
    Empirical Finance 1, 1994: the more scores there are, the farther out their tail begins, and the more is in it.
    """
    return min(MOST_TAIL, float(count ** (-1 / 3) / np.log(np.log(max(count, 16)))))
