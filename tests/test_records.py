"""Records are checked at birth: a wrong array is named with what was expected, and nothing is changed afterwards."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sam_inspect.records import Candidates, CropMask, Defect, Inspection, Localization, Prompt, Region, View

MASK = CropMask((10, 20, 14, 23), np.ones((3, 4), bool))
PROMPT = Prompt(box_xyxy=(1, 2, 3, 4))
VIEW = View((0, 0, 100, 50), 512, (PROMPT,))
DEFECT = Defect(MASK, 0.9, "sam", 12, 5.0)


def points(n: int) -> np.ndarray[Any, Any]:
    return np.zeros((n, 2), np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CropMask((0, 0, 4, 3), np.ones((4, 3), bool)), "expected bool (3, 4), got bool (4, 3)"),
        (lambda: CropMask((0, 0, 4, 3), np.ones((3, 4), np.uint8)), "expected bool (3, 4), got uint8 (3, 4)"),
        (lambda: CropMask((5, 0, 5, 3), np.ones((3, 0), bool)), "expected x0 < x1 and y0 < y1, got (5, 0, 5, 3)"),
        (lambda: Region((3, 3, 1, 9), (2, 2), 0.5), "Region.box_xyxy: expected x0 < x1"),
        (lambda: View((3, 9, 5, 9), 512, ()), "View.crop_xyxy: expected x0 < x1"),
        (
            lambda: Localization((9, 9), 1.0, anomaly_map=np.zeros((3, 3))),
            "Localization.anomaly_map: expected float32 (any, any), got float64 (3, 3)",
        ),
        (
            lambda: Localization((9, 9), 1.0, anomaly_map=np.zeros((1, 3, 3), np.float32)),
            "expected float32 (any, any), got float32 (1, 3, 3)",
        ),
        (lambda: Prompt(points_xy=np.zeros((2, 3), np.float32)), "expected float32 (any, 2), got float32 (2, 3)"),
        (
            lambda: Prompt(points_xy=points(2), point_labels=np.ones(1, np.int64)),
            "Prompt.point_labels: expected int64 (2), got int64 (1,)",
        ),
        (
            lambda: Prompt(mask_logits=np.zeros((1, 8, 8), np.float32)),
            "Prompt.mask_logits: expected float32 (any, any), got float32 (1, 8, 8)",
        ),
        (
            lambda: Inspection("a.png", "pass", anomaly_map=np.zeros((3, 3))),
            "Inspection.anomaly_map: expected float32 (any, any), got float64 (3, 3)",
        ),
        (lambda: Prompt(), "expected a box, points or mask_logits, got none of them"),
        (
            lambda: Candidates(VIEW, PROMPT, np.zeros((3, 8, 8), np.float32), np.zeros(4, np.float32)),
            "Candidates.predicted_iou: expected float32 (3), got float32 (4,)",
        ),
        (
            lambda: Candidates(VIEW, PROMPT, np.zeros((8, 8), np.float32), np.zeros(8, np.float32)),
            "expected float32 (any, any, any), got float32 (8, 8)",
        ),
    ],
)
def test_a_wrong_record_says_what_was_expected_and_what_came(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_list_is_not_taken_for_an_array() -> None:
    with pytest.raises(TypeError, match=r"CropMask\.pixels: expected a numpy array, got list"):
        CropMask((0, 0, 1, 1), [[True]])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (MASK, "pixels"),
        (Localization((9, 9), 1.0, anomaly_map=np.zeros((3, 3), np.float32)), "anomaly_map"),
        (Prompt(points_xy=points(1), point_labels=np.ones(1, np.int64)), "points_xy"),
        (Prompt(points_xy=points(1), point_labels=np.ones(1, np.int64)), "point_labels"),
        (Prompt(mask_logits=np.zeros((8, 8), np.float32)), "mask_logits"),
        (Inspection("a.png", "pass", anomaly_map=np.zeros((3, 3), np.float32)), "anomaly_map"),
        (Candidates(VIEW, PROMPT, np.zeros((3, 8, 8), np.float32), np.zeros(3, np.float32)), "low_res_logits"),
        (Candidates(VIEW, PROMPT, np.zeros((3, 8, 8), np.float32), np.zeros(3, np.float32)), "predicted_iou"),
    ],
)
def test_a_record_cannot_be_changed(record: Any, name: str) -> None:
    with pytest.raises(ValueError, match="read-only"):
        getattr(record, name)[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, None)
    with pytest.raises((AttributeError, TypeError)):
        record.note = "slots keep a misspelt field out"


def test_the_callers_own_array_stays_writable() -> None:
    pixels = np.ones((3, 4), bool)
    CropMask((0, 0, 4, 3), pixels)
    pixels[0, 0] = False


@pytest.mark.parametrize(
    ("verdict", "defects", "error"),
    [
        ("fail", (), None),
        ("pass", (DEFECT,), None),
        ("error", (DEFECT,), "cut"),
        ("error", (), None),
        ("pass", (), "cut"),
    ],
)
def test_mask_verdict_and_error_always_agree(verdict: Any, defects: tuple[Defect, ...], error: str | None) -> None:
    with pytest.raises(ValueError, match=f"verdict '{verdict}' with"):
        Inspection("a.png", verdict, defects=defects, error=error)


def test_each_verdict_has_its_own_shape() -> None:
    assert Inspection("a.png", "pass").defects == ()
    assert Inspection("a.png", "fail", defects=(DEFECT,)).defects[0].box_xyxy == (10, 20, 14, 23)
    assert Inspection("a.png", "error", error="a.png: is cut; copy it again").score is None


def test_a_mask_knows_its_area_and_a_view_its_sizes() -> None:
    pixels = np.zeros((3, 4), bool)
    pixels[1, 1:] = True
    assert CropMask((10, 20, 14, 23), pixels).area_px == 3
    assert VIEW.crop_hw == (50, 100)
    assert VIEW.input_hw == (256, 512)


@pytest.mark.parametrize("crop", [(0, 0, 100, 50), (0, 0, 900, 900), (0, 0, 4000, 3), (0, 0, 333, 777)])
@pytest.mark.parametrize("side", [512, 1024])
def test_a_view_is_scaled_as_sam_scales(crop: tuple[int, int, int, int], side: int) -> None:
    from segment_anything.utils.transforms import ResizeLongestSide

    view = View(crop, side, ())
    expected = ResizeLongestSide.get_preprocess_shape(*view.crop_hw, side)
    assert view.input_hw == tuple(max(1, length) for length in expected)
