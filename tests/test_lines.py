"""What is thin and long: told from points and areas whatever its direction, and cut into parts that hold all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sam_inspect.ask import ask
from sam_inspect.choose import choose
from sam_inspect.config import ChooseConfig, PromptConfig
from sam_inspect.lines import Ribbon, parts_of
from sam_inspect.masks import from_full, intersection_px, union
from sam_inspect.metrics import mask_iou
from sam_inspect.prompt import find_regions, plan_views
from sam_inspect.records import CropMask, Localization, Region
from sam_inspect.segment.sam import MobileSam

HW = (400, 400)
POINT_PX = 20.0


def drawn(*places_xy: tuple[float, float], width: int = 20) -> CropMask:
    """What a map shows of a line through these places; of a single one, a point."""
    full = np.zeros(HW, np.uint8)
    cv2.polylines(full, [np.array([*places_xy, places_xy[-1]], np.int32)], isClosed=False, color=1, thickness=width)
    mask = from_full(full > 0)
    assert mask is not None
    return mask


def along(angle: float, length: float, centre: tuple[float, float] = (200, 200)) -> list[tuple[float, float]]:
    dx, dy = length / 2 * np.cos(angle), length / 2 * np.sin(angle)
    return [(centre[0] - dx, centre[1] - dy), (centre[0] + dx, centre[1] + dy)]


@given(st.floats(0, np.pi), st.floats(30, 300))
def test_a_line_is_thin_in_every_direction_and_a_point_or_an_area_is_not(angle: float, length: float) -> None:
    assert Ribbon.of(drawn(*along(angle, length)), HW).is_thin(POINT_PX)
    assert not Ribbon.of(drawn((200, 200)), HW).is_thin(POINT_PX)
    assert not Ribbon.of(drawn(*along(angle, length), width=34), HW).is_thin(POINT_PX), "it has a width of its own"


def test_half_of_a_point_at_the_border_is_no_line_and_a_line_that_leaves_the_image_is_one() -> None:
    assert not Ribbon.of(drawn((0, 200)), HW).is_thin(POINT_PX)
    assert Ribbon.of(drawn((0, 200), (60, 200)), HW).is_thin(POINT_PX)
    everything = CropMask((0, 0, *HW), np.ones(HW, bool))
    assert not Ribbon.of(everything, HW).is_thin(POINT_PX)


@given(st.floats(0, np.pi), st.floats(100, 360), st.floats(-80, 80))
def test_the_parts_of_a_long_line_lie_in_it_and_hold_all_of_it(angle: float, length: float, bend: float) -> None:
    start, end = along(angle, length)
    line = drawn(start, (200 - bend * np.sin(angle), 200 + bend * np.cos(angle)), end)
    ribbon = Ribbon.of(line, HW)
    parts = list(parts_of(line, ribbon, POINT_PX, HW))
    assert len(parts) >= 2
    assert np.array_equal(union((part for part, _ in parts), HW), union([line], HW))
    assert all(intersection_px(part, line) == part.area_px for part, _ in parts)
    assert all(max(np.ptp(np.reshape(part.box_xyxy, (2, 2)), 0)) < 4.5 * POINT_PX for part, _ in parts)
    again = list(parts_of(line, ribbon, POINT_PX, HW))
    assert [part.box_xyxy for part, _ in again] == [part.box_xyxy for part, _ in parts]


def test_a_short_line_and_a_broad_band_are_asked_about_whole() -> None:
    for mask in (drawn(*along(0.5, 40)), drawn(*along(0.5, 300), width=60), drawn((200, 200))):
        assert list(parts_of(mask, Ribbon.of(mask, HW), POINT_PX, HW)) == []


def test_sam_outlines_a_long_crack_nearly_as_thin_as_it_is() -> None:
    """On mottled ground, 1000 pixels across; its map knows the place of the crack, and nothing of its width."""
    hw = (500, 1240)
    image, crack = cracked(hw)
    cells = cv2.resize(crack.astype(np.float32), (hw[1] // 16, hw[0] // 16), interpolation=cv2.INTER_AREA)
    anomaly_map = np.asarray(cv2.GaussianBlur((cells > 0).astype(np.float32), (0, 0), 1.0), np.float32)
    (region,) = find_regions(anomaly_map, hw, 0.3, PromptConfig())
    assert len(region.parts) > 3
    assert outlined(image, crack, anomaly_map, [region]) > 0.6
    assert outlined(image, crack, anomaly_map, [replace(region, thin=False, parts=())]) < 0.4, "asked about whole"


def cracked(hw: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture of mottled ground with a crack three pixels wide, and where that is."""
    rng = np.random.default_rng(3)
    mottled = sum(cv2.GaussianBlur(rng.normal(0, 9 * size, hw).astype(np.float32), (0, 0), size) for size in (1, 3, 12))
    x = np.arange(120, 1120, 8)
    y = 250 + 90 * np.sin(x / 170) + rng.normal(0, 2, len(x)).cumsum()
    crack = np.zeros(hw, np.uint8)
    cv2.polylines(crack, [np.stack([x, y], 1).astype(np.int32)], isClosed=False, color=1, thickness=3)
    grey = np.clip(140 + mottled - 45 * crack, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2), crack > 0


def outlined(
    image: NDArray[np.uint8], crack: NDArray[np.bool_], anomaly_map: NDArray[np.float32], regions: Sequence[Region]
) -> float:
    """The IoU of what MobileSAM outlines."""
    found = Localization(crack.shape, float(anomaly_map.max()), tuple(regions), anomaly_map)
    views = plan_views(regions, crack.shape, PromptConfig())
    sam = MobileSam.from_config({}, device="cpu")
    outlines = choose(ask(sam, image, views, found, ChooseConfig()), found, ChooseConfig())
    return mask_iou(union([outline.mask for outline in outlines], crack.shape), crack)
