"""SAM's masks before they are cut: their logits, and the mean of several."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sam_inspect.records import Map

SUREST = 20.0


def probability(logits: Map) -> Map:
    """Of the same shape, float32 from 0 to 1."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -SUREST, SUREST))), np.float32)


def mean_logit(masks: Map, weights: NDArray[np.floating]) -> Map:
    """The weighted mean of logits: a mask that is sure outvotes several that are not.

    Args:
        masks: (n, ...) float32 logits.
        weights: (n,), together 1.
    """
    return np.asarray(np.tensordot(weights.astype(np.float32), masks, 1), np.float32)


def mean_probability(masks: Map, weights: NDArray[np.floating]) -> Map:
    """The logit of the weighted mean of probabilities: what most of the masks hold for the defect is above 0.

    Args:
        masks, weights: see `mean_logit`.
    """
    mean = np.clip(mean_logit(probability(masks), weights), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(mean / (1 - mean)), np.float32)
