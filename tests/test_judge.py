"""Mask and verdict agree."""

from __future__ import annotations

import pytest

from sam_inspect.config import JudgeConfig
from sam_inspect.judge import judge
from sam_inspect.masks import filled_box
from sam_inspect.records import Localization, Outline, Region

BOX = (10, 20, 40, 30)
OUTLINE = Outline(filled_box(BOX), Region(BOX, (25.0, 25.0), 5.0, label="crack"), "sam")
FAULTY = Localization((100, 200), 5.0)


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
