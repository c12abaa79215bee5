"""Thresholds, measures and the verdict. Mask and verdict always agree: a `fail` has a defect, a `pass` has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sam_inspect.config import JudgeConfig
from sam_inspect.masks import length_px
from sam_inspect.records import Defect, Inspection, Localization, Outline

MOST_TAIL = 0.2


def calibrated_threshold(scores: NDArray[np.float32], false_reject_rate: float) -> float:
    """The score that good parts exceed at the stated rate.

    The highest scores, `tail_share` of them, are taken for an exponential tail (peaks over threshold with shape 0;
    Coles, *An Introduction to Statistical Modeling of Extreme Values*, 2001, ch. 4), so that 1 % can be asked of 30
    good images, and one odd image does not set the threshold. Rates of that share and more are an empirical quantile.
    The tail of few images is known badly: asked for 1 %, on average 1.1 % fail with 360, 1.5 % with 70, 2.5 % with 24
    and 4.7 % with 10 (of an exponential one).

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


def judge(
    outlines: Sequence[Outline], localization: Localization, threshold: float | None, config: JudgeConfig
) -> Inspection:
    """Measures each outline, drops what is too small, and says pass or fail.

    Args:
        outlines: one mask a defect.
        localization: gives score, size and map.
        threshold: the one in force; None where boxes were given.
        config: least area and the size of a pixel.

    Returns:
        an Inspection without a name or timings.
    """
    measured = (measure(outline, config.pixel_size_mm) for outline in outlines)
    defects = sorted((d for d in measured if d.area_px >= max(1, config.min_area_px)), key=lambda d: -d.score)
    return Inspection(
        image="",
        verdict="fail" if defects else "pass",
        score=localization.pred_score,
        threshold=threshold,
        defects=tuple(defects),
        original_hw=localization.original_hw,
        anomaly_map=localization.anomaly_map,
    )


def measure(outline: Outline, pixel_size_mm: float | None) -> Defect:
    """A mask with its area and length, in pixels and, where the size of a pixel is known, mm²."""
    defect = Defect(
        mask=outline.mask,
        score=outline.region.score,
        source=outline.source,
        area_px=outline.mask.area_px,
        length_px=length_px(outline.mask),
        label=outline.region.label,
    )
    return replace(defect, area_mm2=defect.area_px * pixel_size_mm**2) if pixel_size_mm else defect
