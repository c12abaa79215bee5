"""Measures and the verdict. Mask and verdict always agree: a `fail` has a defect, a `pass` has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sam_inspect.config import JudgeConfig
from sam_inspect.masks import length_px
from sam_inspect.records import Defect, Inspection, Localization, Outline


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
