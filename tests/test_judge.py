"""The threshold keeps its promise, and mask and verdict agree."""

from __future__ import annotations

import numpy as np
import pytest

from sam_inspect.config import JudgeConfig
from sam_inspect.judge import calibrated_threshold, judge, tail_share
from sam_inspect.masks import filled_box
from sam_inspect.records import Localization, Outline, Region

BOX = (10, 20, 40, 30)
OUTLINE = Outline(filled_box(BOX), Region(BOX, (25.0, 25.0), 5.0, label="crack"), "sam")
FAULTY = Localization((100, 200), 5.0)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("sample", ["exponential", "normal"])
@pytest.mark.parametrize("count", [100, 400])
def test_good_parts_are_rejected_at_about_the_stated_rate(rate: float, sample: str, count: int) -> None:
    draw = getattr(np.random.default_rng(0), sample)
    thresholds = [calibrated_threshold(draw(size=count).astype(np.float32), rate) for _ in range(50)]
    rejected = np.mean([np.mean(draw(size=10_000) > threshold) for threshold in thresholds])
    assert rate / 3 < rejected < rate * 1.5


def test_a_lower_rate_is_a_higher_threshold() -> None:
    scores = np.random.default_rng(1).normal(size=60).astype(np.float32)
    thresholds = [calibrated_threshold(scores, rate) for rate in (0.5, 0.21, 0.2, 0.19, 0.1, 0.01, 0.001)]
    assert thresholds == sorted(thresholds)
    assert thresholds[-2] > scores.max() * 0.7


@pytest.mark.parametrize(("count", "tail"), [(2, 0.4), (30, 6), (100, 14), (360, 29), (5000, 136.5)])
def test_the_tail_of_more_scores_begins_farther_out_and_holds_more_of_them(count: int, tail: float) -> None:
    assert count * tail_share(count) == pytest.approx(tail, abs=0.5)


def test_two_good_images_are_enough_for_a_threshold() -> None:
    assert calibrated_threshold(np.array([1.0, 2.0], np.float32), 0.01) >= 2.0


def test_a_part_with_a_defect_fails_and_is_measured() -> None:
    inspection = judge([OUTLINE], FAULTY, 3.0, JudgeConfig(pixel_size_mm=0.1))
    (defect,) = inspection.defects
    assert inspection.verdict == "fail"
    assert (defect.area_px, defect.label, defect.score) == (300, "crack", 5.0)
    assert defect.area_mm2 == pytest.approx(3.0)
    assert defect.length_px == pytest.approx(30, abs=1)


def test_a_part_whose_defects_are_all_too_small_passes() -> None:
    inspection = judge([OUTLINE], FAULTY, 3.0, JudgeConfig(min_area_px=301))
    assert (inspection.verdict, inspection.defects) == ("pass", ())
