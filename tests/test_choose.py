"""Which mask is the defect: the one that the map agrees with, or the map's own outline where SAM saw the whole part."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from sam_inspect.choose import choose
from sam_inspect.config import ChooseConfig
from sam_inspect.masks import filled_box
from sam_inspect.records import Box, Candidates, Localization, Prompt, Region, View

HW = (128, 128)
DEFECT: Box = (40, 48, 72, 64)
PART: Box = (0, 0, 128, 128)
VIEW = View((0, 0, 128, 128), 512, ())


def a_map(box: Box = DEFECT) -> np.ndarray:
    found = np.zeros(HW, np.float32)
    found[box[1] : box[3], box[0] : box[2]] = 5.0
    return found


def answer(*boxes: Box, iou: tuple[float, ...] | None = None, region: int = 0) -> Candidates:
    """SAM's logits for filled boxes."""
    logits = np.full((len(boxes), *HW), -8.0, np.float32)
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        logits[index, y0:y1, x0:x1] = 8.0
    estimates = np.array(iou or [0.9] * len(boxes), np.float32)
    return Candidates(VIEW, Prompt(box_xyxy=(40, 48, 72, 64), region=region), logits, estimates)


def localization(*boxes: Box) -> Localization:
    regions = tuple(Region(box, (0.0, 0.0), 5.0 - i, filled_box(box)) for i, box in enumerate(boxes))
    return Localization(HW, 5.0, regions, a_map())


def test_the_mask_that_agrees_with_the_map_wins_over_the_one_that_sam_likes_best() -> None:
    (outline,) = choose([answer(PART, DEFECT, iou=(0.99, 0.7))], localization(DEFECT), ChooseConfig())
    assert outline.source == "sam"
    assert outline.mask.box_xyxy == DEFECT


def test_a_mask_that_runs_on_into_the_part_is_cut_where_the_map_says_nothing() -> None:
    (outline,) = choose([answer((40, 40, 110, 72))], localization(DEFECT), ChooseConfig())
    assert outline.source == "sam"
    assert outline.mask.box_xyxy == DEFECT


def test_a_scratch_is_not_outvoted_by_what_fills_its_blur() -> None:
    """The map shows a line of two pixels as a stripe of twenty; so would the line, and not so the stripe."""
    line: Box = (20, 62, 100, 64)
    blurred = cv2.GaussianBlur(a_map(line), (0, 0), 7.0)
    stripe = filled_box((16, 53, 104, 73))
    region = Region(stripe.box_xyxy, (60.0, 63.0), float(blurred.max()), stripe, blur_px=10.0)
    found = Localization(HW, region.score, (region,), blurred)
    asked = [answer(line, stripe.box_xyxy)]
    (outline,) = choose(asked, found, ChooseConfig(predicted_iou=0))
    assert outline.mask.box_xyxy == line
    sharp = replace(found, regions=(replace(region, blur_px=0.0),))
    (other,) = choose(asked, sharp, ChooseConfig(predicted_iou=0))
    assert other.mask.area_px > 5 * outline.mask.area_px


@pytest.mark.parametrize(("right", "outlined"), [(71, (40, 48, 71, 64)), (69, DEFECT)])
def test_three_masks_outvote_one_only_if_it_fills_the_given_box_hardly_better(right: int, outlined: Box) -> None:
    given = Localization(HW, 1.0, (Region(DEFECT, (0.0, 0.0), 1.0),))
    smaller: Box = (40, 48, right, 64)
    (outline,) = choose([answer(smaller, smaller, smaller, DEFECT)], given, ChooseConfig())
    assert outline.mask.box_xyxy == outlined


def test_where_sam_sees_only_the_whole_part_the_heatmaps_outline_stays_and_says_so() -> None:
    (outline,) = choose([answer(PART, PART)], localization(DEFECT), ChooseConfig())
    assert outline.source == "heatmap"
    assert outline.mask.box_xyxy == DEFECT


def test_where_sam_sees_nothing_the_heatmaps_outline_stays() -> None:
    (outline,) = choose([answer((0, 0, 0, 0))], localization(DEFECT), ChooseConfig())
    assert outline.source == "heatmap"


def test_where_sam_fills_its_box_and_is_unsure_a_strong_map_draws_and_a_rectangle_with_clear_edges_is_sams() -> None:
    """A stain on cloth has no edge that SAM sees; a label that is stuck on it has."""
    core = filled_box((46, 50, 66, 62))
    found = localization(DEFECT)
    strong = replace(found, regions=(replace(found.regions[0], core=core),))
    rectangle = answer(DEFECT)
    stain = replace(rectangle, low_res_logits=rectangle.low_res_logits * np.float32(0.1))
    ((on_cloth,), (label,)) = (choose([each], strong, ChooseConfig()) for each in (stain, rectangle))
    assert (on_cloth.source, on_cloth.mask.box_xyxy) == ("heatmap", core.box_xyxy)
    assert (label.source, label.mask.box_xyxy) == ("sam", DEFECT)
    (weak,) = choose([stain], found, ChooseConfig())
    assert (weak.source, weak.mask.box_xyxy) == ("sam", DEFECT)


def test_what_was_asked_about_part_by_part_is_one_defect() -> None:
    halves: tuple[Box, Box] = ((40, 48, 58, 64), (54, 48, 72, 64))
    parts = tuple(Region(half, (0.0, 0.0), 5.0, filled_box(half)) for half in halves)
    found = replace(localization(DEFECT), regions=(Region(DEFECT, (0.0, 0.0), 5.0, filled_box(DEFECT), parts=parts),))
    answers = [answer(half) for half in halves]
    asked = [replace(each, prompt=replace(each.prompt, part=part)) for part, each in enumerate(answers)]
    (outline,) = choose(asked, found, ChooseConfig())
    assert outline.mask.box_xyxy == DEFECT
    assert outline.mask.pixels.all()
    assert outline.region is found.regions[0]
    assert outline.source == "sam"


def test_two_regions_of_one_defect_are_one_defect() -> None:
    answers = [answer(DEFECT, region=0), answer(DEFECT, region=1)]
    found = choose(answers, localization(DEFECT, (44, 48, 72, 64)), ChooseConfig())
    assert len(found) == 1
    assert found[0].region.score == 5.0


def test_a_given_box_takes_the_mask_that_fills_it_and_none_where_sam_sees_nothing() -> None:
    given = Localization(HW, 1.0, (Region(DEFECT, (0.0, 0.0), 1.0, label="chip"),))
    (outline,) = choose([answer(PART, DEFECT)], given, ChooseConfig())
    assert (outline.mask.box_xyxy, outline.region.label) == (DEFECT, "chip")
    assert choose([answer((0, 0, 0, 0))], given, ChooseConfig()) == []
    twice = Localization(HW, 1.0, (*given.regions, replace(given.regions[0], label="dent")))
    both = choose([answer(PART, DEFECT, region=1), answer(PART, DEFECT)], twice, ChooseConfig())
    assert [outline.region.label for outline in both] == ["chip", "dent"], "every box is outlined"


def test_beyond_a_given_box_sam_must_be_surer_the_farther_the_more() -> None:
    """Half sure, it stays in the box; sure, it may run on a little, since boxes are drawn a little wrong."""
    given = Localization(HW, 1.0, (Region(DEFECT, (0.0, 0.0), 1.0),))
    runs_on = answer((40, 48, 104, 64))
    wrong = replace(runs_on, low_res_logits=runs_on.low_res_logits * np.float32(0.1))
    (half_sure,) = choose([wrong], given, ChooseConfig())
    assert half_sure.mask.box_xyxy == DEFECT
    (sure,) = choose([runs_on], given, ChooseConfig())
    x0, y0, x1, y1 = sure.mask.box_xyxy
    assert (x0, y0, y1) == (40, 48, 64)
    assert 72 < x1 < 72 + 0.2 * 32
