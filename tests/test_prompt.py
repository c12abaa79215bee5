"""From a map to regions and views: every peak is asked about once, in a view that lies inside the image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sam_inspect.config import PromptConfig
from sam_inspect.masks import intersection_px, resize_map, resize_window
from sam_inspect.prompt import find_regions, plan_views
from sam_inspect.records import Region

HW = (200, 320)
CONFIG = PromptConfig()


def bumps(*centres_xy: tuple[int, int], height: float = 4.0, width: float = 10.0) -> np.ndarray:
    """A map of 25 x 40 cells over a 200 x 320 image, with a soft bump at each place; `width` is its deviation."""
    full = np.zeros(HW, np.float32)
    for x, y in centres_xy:
        rows, columns = np.mgrid[: HW[0], : HW[1]]
        full = np.maximum(full, height * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2)))
    return cv2.resize(full, (40, 25), interpolation=cv2.INTER_AREA).astype(np.float32)


def test_a_good_part_has_no_regions_and_no_views() -> None:
    assert find_regions(bumps(height=1.0), HW, 2.0, CONFIG) == ()
    assert plan_views((), HW, CONFIG) == []


@pytest.mark.parametrize("place", [(12, 12), (307, 12), (12, 187), (307, 187), (160, 100)])
def test_a_bump_is_one_region_at_its_place(place: tuple[int, int]) -> None:
    (region,) = find_regions(bumps(place), HW, 2.0, CONFIG)
    assert np.hypot(region.peak_xy[0] - place[0], region.peak_xy[1] - place[1]) < 8
    assert region.mask is not None
    assert 150 < region.mask.area_px < 900


@pytest.mark.parametrize("place", [(160, 0), (160, 199), (0, 100), (319, 100)])
def test_a_defect_near_a_border_lies_in_its_box_though_the_peak_sticks_to_the_border(place: tuple[int, int]) -> None:
    """A blowhole of ten pixels that begins three from a tile's edge is shown so."""
    (region,) = find_regions(bumps(place, width=15.0), HW, 2.0, CONFIG)
    x0, y0, x1, y1 = region.box_xyxy
    x, y = (8 if at == 0 else at - 8 if at in (199, 319) else at for at in place)
    assert x0 <= x < x1
    assert y0 <= y < y1
    assert max(x1 - x0, y1 - y0) < 30, "and it is drawn in as anywhere"


def test_each_bump_is_a_region_of_its_own_and_none_overlap() -> None:
    regions = find_regions(bumps((40, 40), (250, 60), (160, 150)), HW, 2.0, CONFIG)
    assert len(regions) == 3
    assert [region.score for region in regions] == sorted((region.score for region in regions), reverse=True)
    masks = [region.mask for region in regions if region.mask is not None]
    assert all(intersection_px(a, b) == 0 for i, a in enumerate(masks) for b in masks[:i])


def test_a_long_scratch_is_one_region_that_is_asked_about_part_by_part_in_closer_views() -> None:
    places = [(x, 20 + x // 2) for x in range(30, 290)]
    (region,) = find_regions(bumps(*places[::8], width=8.0), HW, 2.0, PromptConfig(blur_cells=4.0))
    assert region.thin
    assert len(region.parts) >= 3
    views = plan_views([region], HW, CONFIG)
    prompts = [prompt for view in views for prompt in view.prompts]
    assert sorted((prompt.region, prompt.part) for prompt in prompts) == [(0, i) for i in range(len(region.parts))]
    whole = region.box_xyxy[2] - region.box_xyxy[0]
    assert all(max(view.crop_hw) < whole for view in views)
    boxes = [part.box_xyxy for part in region.parts]
    beside = [min(max(x0 - x, x - x1, y0 - y, y - y1) for x0, y0, x1, y1 in boxes) for x, y in places[10:-10]]
    assert max(beside) <= 3, "pixels; the parts' boxes hold the line from end to end"
    (view,) = plan_views([region], HW, PromptConfig(view="image"))
    assert [(prompt.region, prompt.part) for prompt in view.prompts] == [(0, None)]


def test_regions_of_a_huge_image_lie_where_the_map_is_high() -> None:
    hw = (6_000, 9_600)
    regions = find_regions(bumps((40, 40), (250, 60), (160, 150)), hw, 2.0, CONFIG)
    peaks = sorted((x / 30, y / 30) for x, y in (region.peak_xy for region in regions))
    np.testing.assert_allclose(peaks, [(40, 40), (160, 150), (250, 60)], atol=8)
    joined = find_regions(np.full((25, 40), 4.0, np.float32), hw, 2.0, CONFIG)
    assert [region.mask.area_px for region in joined if region.mask] == [6_000 * 9_600]


def test_the_slope_about_a_high_peak_is_no_further_defect() -> None:
    """At ten times the threshold, the slope outside the outline is still far above it."""
    assert len(find_regions(bumps((160, 100), height=40.0), HW, 2.0, CONFIG)) == 1


def test_what_a_network_lifts_about_a_strong_defect_is_no_further_one_but_a_weak_one_elsewhere_is() -> None:
    """SAM's trunk attends in windows: on a fine, regular cloth all of one is lifted by the defect in it."""
    found = bumps((160, 100), height=10.0)
    found[4:21, 12:30] += np.random.default_rng(0).uniform(2.5, 4, (17, 18)).astype(np.float32)
    (strong,) = find_regions(found, HW, 2.0, CONFIG)
    assert np.hypot(strong.peak_xy[0] - 160, strong.peak_xy[1] - 100) < 12
    both = find_regions(np.maximum(found, bumps((40, 40), height=3.0)), HW, 2.0, CONFIG)
    assert [region.score > 10 for region in both] == [True, False]


def test_only_what_is_high_and_wide_has_a_core_that_the_map_can_outline() -> None:
    disc = [(x, y) for x in range(130, 191, 10) for y in range(70, 131, 10) if np.hypot(x - 160, y - 100) <= 30]
    (wide,) = find_regions(bumps(*disc, height=6.0), HW, 2.0, CONFIG)
    assert wide.core is not None
    assert wide.mask is not None
    assert 0.6 < wide.core.area_px / (np.pi * 35**2) < 1.2
    assert intersection_px(wide.core, wide.mask) == wide.core.area_px < wide.mask.area_px
    (low,) = find_regions(bumps(*disc, height=3.9), HW, 2.0, CONFIG)
    (narrow,) = find_regions(bumps((160, 100), height=6.0), HW, 2.0, CONFIG)
    assert low.core is narrow.core is None


@given(st.tuples(st.integers(1, 700), st.integers(1, 700)), st.tuples(st.integers(1, 80), st.integers(1, 80)))
@example((232, 602), (56, 152))
def test_no_region_leaves_the_image(hw: tuple[int, int], cells: tuple[int, int]) -> None:
    regions = find_regions(np.ones(cells, np.float32), hw, 0.5, CONFIG)
    assert regions
    for region in regions:
        assert region.mask is not None
        assert region.mask.box_xyxy == (0, 0, hw[1], hw[0])
        x0, y0, x1, y1 = region.box_xyxy
        assert 0 <= x0 < x1 <= hw[1]
        assert 0 <= y0 < y1 <= hw[0]


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 1.5), st.sampled_from([1e-3, 1.0, 50.0, 255.0, 1e5]))
@example(0, 0.99, 255.0)
def test_every_peak_above_the_threshold_lies_in_a_region(seed: int, share: float, unit: float) -> None:
    """Whatever the map's unit: other models' scores are distances, or 0..255."""
    noise = np.random.default_rng(seed).normal(0, unit, (9, 13)).astype(np.float32)
    threshold = share * float(noise.max())
    regions = find_regions(noise, HW, threshold, CONFIG)
    assert bool(regions) == bool(noise.max() > threshold)
    assert all(region.score > threshold for region in regions)
    full = resize_map(noise, HW)
    if full.max() > threshold:
        y, x = np.unravel_index(int(full.argmax()), HW)
        x0, y0, x1, y1 = regions[0].box_xyxy
        assert x0 <= x < x1
        assert y0 <= y < y1


@given(st.tuples(st.integers(0, 255), st.integers(0, 255)))
def test_a_peak_of_a_map_that_is_finer_than_its_image_is_found(place: tuple[int, int]) -> None:
    found = np.zeros((256, 256), np.float32)
    found[place] = 1.5
    (region,) = find_regions(found, (100, 100), 1.0, CONFIG)
    assert region.mask is not None
    x0, y0, x1, y1 = region.mask.box_xyxy
    assert x0 - 1 <= place[1] * 100 / 256 < x1 + 1
    assert y0 - 1 <= place[0] * 100 / 256 < y1 + 1


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.data(),
)
def test_a_window_is_what_the_whole_map_would_hold(cells: tuple[int, int], hw: tuple[int, int], data) -> None:
    found = np.random.default_rng(0).normal(0, 1, cells).astype(np.float32)
    x0, y0 = data.draw(st.integers(0, hw[1] - 1)), data.draw(st.integers(0, hw[0] - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, hw[1])), data.draw(st.integers(y0 + 1, hw[0]))
    whole = resize_map(found, hw)[y0:y1, x0:x1]
    np.testing.assert_allclose(resize_window(found, (x0, y0, x1, y1), hw), whole, atol=1e-4)


boxes = st.tuples(st.integers(0, 310), st.integers(0, 190), st.integers(1, 320), st.integers(1, 200)).map(
    lambda b: (b[0], b[1], min(320, b[0] + b[2]), min(200, b[1] + b[3]))
)


@given(st.lists(boxes, min_size=1, max_size=12))
def test_views_lie_inside_the_image_and_show_each_box_once(given_boxes: list[tuple[int, int, int, int]]) -> None:
    regions = [Region(box, (0.0, 0.0), 1.0) for box in given_boxes]
    views = plan_views(regions, HW, CONFIG)
    asked = sorted(prompt.region for view in views for prompt in view.prompts if prompt.region is not None)
    assert asked == list(range(len(regions)))
    for view in views:
        x0, y0, x1, y1 = view.crop_xyxy
        assert 0 <= x0 < x1 <= HW[1]
        assert 0 <= y0 < y1 <= HW[0]
        for prompt in view.prompts:
            assert prompt.box_xyxy is not None
            assert x0 <= prompt.box_xyxy[0]
            assert prompt.box_xyxy[2] <= x1
            assert y0 <= prompt.box_xyxy[1]
            assert prompt.box_xyxy[3] <= y1


def scattered(count: int) -> list[Region]:
    places = np.random.default_rng(0).integers(20, 860, (count, 2))
    return [Region((int(x), int(y), int(x) + 20, int(y) + 20), (0.0, 0.0), 1.0) for x, y in places]


def test_ten_scattered_regions_cost_hardly_more_pixels_than_three() -> None:
    views = plan_views(scattered(10), (900, 900), CONFIG)
    assert len(views) == 10
    assert sum(view.input_px**2 for view in views) < 4 * CONFIG.input_px**2
    assert len(plan_views(scattered(10), (900, 900), PromptConfig(view="image"))) == 1


def test_a_hundred_regions_share_a_few_views_that_show_the_image_unscaled() -> None:
    assert len(plan_views(scattered(100), (900, 900), CONFIG)) <= 9


def test_neighbours_share_a_view_and_a_small_one_keeps_its_zoom_beside_a_large_one() -> None:
    near = [Region((100, 100, 120, 120), (0.0, 0.0), 1.0), Region((125, 110, 140, 125), (0.0, 0.0), 1.0)]
    far = [Region((100, 100, 500, 500), (0.0, 0.0), 1.0), Region((520, 300, 540, 320), (0.0, 0.0), 1.0)]
    assert [len(view.prompts) for view in plan_views(near, (900, 900), CONFIG)] == [2]
    assert [len(view.prompts) for view in plan_views(far, (900, 900), CONFIG)] == [1, 1]
