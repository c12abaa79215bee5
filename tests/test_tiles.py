"""Large and long pictures are cut into tiles and put together again, and nothing is lost or squeezed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sam_inspect.tiles import TilePlan, blend_tiles, plan_tiles

SIDES = st.integers(1, 6000)


@st.composite
def plans(draw: st.DrawFn) -> tuple[TilePlan, int, int]:
    """A plan, its stride and its tile's side."""
    stride = draw(st.sampled_from([8, 14, 16, 32]))
    tile_px = stride * draw(st.integers(4, 40))
    low = draw(st.floats(0.02, 1))
    plan = plan_tiles(
        (draw(SIDES), draw(SIDES)), tile_px=tile_px, stride=stride, min_scale=low, max_scale=draw(st.floats(low, 2))
    )
    assume(len(plan.origins_yx) < 300)
    return plan, stride, tile_px


@given(plans())
def test_every_pixel_is_in_a_tile_and_every_tile_in_the_image(case: tuple[TilePlan, int, int]) -> None:
    plan, stride, tile_px = case
    tile_h, tile_w = plan.tile_hw
    covered = np.zeros([side // stride for side in plan.scaled_hw], int)
    for y, x in plan.origins_yx:
        assert y % stride == x % stride == 0
        assert 0 <= y <= plan.scaled_hw[0] - tile_h
        assert 0 <= x <= plan.scaled_hw[1] - tile_w
        covered[y // stride : (y + tile_h) // stride, x // stride : (x + tile_w) // stride] += 1
    assert covered.min() >= 1
    assert len(set(plan.origins_yx)) == len(plan.origins_yx)
    assert max(plan.tile_hw) <= 1.5 * tile_px
    assert [side % stride for side in (*plan.scaled_hw, *plan.tile_hw)] == [0, 0, 0, 0]


@given(plans())
def test_neighbouring_tiles_share_at_least_an_eighth(case: tuple[TilePlan, int, int]) -> None:
    plan, _, tile_px = case
    for axis in (0, 1):
        origins = sorted({origin[axis] for origin in plan.origins_yx})
        for before, after in pairwise(origins):
            assert before + tile_px - after >= tile_px / 8
        assert origins[0] == 0
        assert origins[-1] + plan.tile_hw[axis] == plan.scaled_hw[axis]


@given(SIDES, SIDES, st.sampled_from([8, 14, 16]), st.floats(0.1, 1), st.floats(1, 4))
def test_both_axes_are_scaled_by_one_factor(height: int, width: int, stride: int, low: float, high: float) -> None:
    plan = plan_tiles((height, width), tile_px=512, stride=stride, min_scale=low, max_scale=high)
    scale = min(max(512 / min(height, width), low), high)
    for scaled, side in zip(plan.scaled_hw, (height, width), strict=True):
        assert abs(scaled - side * scale) <= stride / 2 or scaled == stride


def test_an_ordinary_picture_is_one_tile_of_its_own_shape() -> None:
    assert plan_tiles((900, 900), tile_px=512, stride=16, min_scale=0.1, max_scale=2) == TilePlan(
        (512, 512), (512, 512), ((0, 0),)
    )
    plan = plan_tiles((900, 1300), tile_px=512, stride=16, min_scale=0.1, max_scale=2)
    assert plan == TilePlan((512, 736), (512, 736), ((0, 0),))


def test_a_picture_twenty_times_as_long_as_wide_is_tiled_and_not_squeezed() -> None:
    plan = plan_tiles((200, 4000), tile_px=512, stride=16, min_scale=0.1, max_scale=4)
    assert plan.scaled_hw == (512, 10240)
    assert plan.tile_hw == (512, 512)
    assert len(plan.origins_yx) == 23
    assert {y for y, _ in plan.origins_yx} == {0}


def test_a_scratch_in_a_hundred_megapixels_keeps_its_width() -> None:
    plan = plan_tiles((9000, 12000), tile_px=512, stride=16, min_scale=1, max_scale=1)
    assert plan.scaled_hw == (8992, 12000)
    assert plan.tile_hw == (512, 512)
    assert len(plan.origins_yx) == 20 * 27


def test_a_tile_that_is_no_multiple_of_the_stride_is_rounded() -> None:
    plan = plan_tiles((2000, 448), tile_px=448, stride=112, min_scale=1, max_scale=1)
    assert plan.tile_hw == (448, 448)
    assert plan_tiles((2000, 500), tile_px=500, stride=112, min_scale=1, max_scale=1).tile_hw == (448, 448)


@given(plans(), st.floats(-100, 100, width=32, allow_subnormal=False))
def test_a_constant_map_stays_constant(case: tuple[TilePlan, int, int], value: float) -> None:
    plan, stride, _ = case
    tile = np.full([side // stride for side in plan.tile_hw], value, np.float32)
    blended = blend_tiles(plan, [tile] * len(plan.origins_yx), stride)
    assert blended.shape == tuple(side // stride for side in plan.scaled_hw)
    assert blended.dtype == np.float32
    np.testing.assert_allclose(blended, value, rtol=1e-5)


@given(plans(), st.integers(0, 2**32 - 1))
def test_tiles_that_agree_give_back_the_map_they_were_cut_from(case: tuple[TilePlan, int, int], seed: int) -> None:
    plan, stride, _ = case
    rows, columns = (side // stride for side in plan.tile_hw)
    whole = np.random.default_rng(seed).random([side // stride for side in plan.scaled_hw], np.float32)
    cut = [whole[y // stride :, x // stride :][:rows, :columns] for y, x in plan.origins_yx]
    np.testing.assert_allclose(blend_tiles(plan, cut, stride), whole, rtol=1e-5, atol=1e-6)


@given(plans(), st.integers(0, 2**32 - 1))
def test_the_blend_lies_between_what_the_tiles_say(case: tuple[TilePlan, int, int], seed: int) -> None:
    plan, stride, _ = case
    size = [side // stride for side in plan.tile_hw]
    tiles = list(np.random.default_rng(seed).random((len(plan.origins_yx), *size), np.float32))
    low, high = np.full(plan.scaled_hw, np.inf)[::stride, ::stride], np.zeros(plan.scaled_hw)[::stride, ::stride]
    for (y, x), tile in zip(plan.origins_yx, tiles, strict=True):
        part = np.s_[y // stride : y // stride + size[0], x // stride : x // stride + size[1]]
        low[part], high[part] = np.minimum(low[part], tile), np.maximum(high[part], tile)
    blended = blend_tiles(plan, tiles, stride)
    assert (blended >= low - 1e-5).all()
    assert (blended <= high + 1e-5).all()


def test_a_tile_counts_least_at_its_inner_border_and_fully_at_the_images_own() -> None:
    plan = plan_tiles((64, 1024), tile_px=64, stride=4, min_scale=1, max_scale=1, overlap=0.5)
    first = [np.full((16, 16), float(i == 0), np.float32) for i in range(len(plan.origins_yx))]
    row = blend_tiles(plan, first, 4)[0]
    shared = (64 - plan.origins_yx[1][1]) // 4
    assert (row[: 16 - shared] == 1).all()
    assert (np.diff(row[16 - shared : 16]) < 0).all()
    assert row[15] < 0.1
    assert (row[16:] == 0).all()


def test_a_seam_between_two_tiles_is_a_ramp_and_not_a_step() -> None:
    plan = plan_tiles((512, 1000), tile_px=512, stride=8, min_scale=1, max_scale=1)
    assert len(plan.origins_yx) == 3
    maps = [np.full((64, 64), value, np.float32) for value in (0, 1, 0)]
    assert np.abs(np.diff(blend_tiles(plan, maps, 8)[0])).max() < 0.15


def test_maps_of_the_wrong_number_or_size_are_refused() -> None:
    plan = plan_tiles((512, 1024), tile_px=512, stride=16, min_scale=1, max_scale=1)
    good = np.zeros((32, 32), np.float32)
    with pytest.raises(ValueError, match=r"expected 3 of \(32, 32\), got 2 of \[\(32, 32\)\]"):
        blend_tiles(plan, [good, good], 16)
    with pytest.raises(ValueError, match=r"got 3 of \[\(16, 32\), \(32, 32\)\]"):
        blend_tiles(plan, [good, good, good[:16]], 16)
