"""How far it counts where a patch lies: wholly on parts that lie alike, not at all on parts that lie anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sam_inspect.localize.places import GoodParts, place_share

Maps = list[NDArray[np.float32]]
SIDE = 48


def bordered(count: int, seed: int) -> Maps:
    """Parts that lie alike: what they show differs a lot along a border of theirs, and hardly anywhere else."""
    rng = np.random.default_rng(seed)
    spread = np.full((SIDE, SIDE), 0.05)
    spread[:6], spread[:, -6:] = 1, 1
    return [np.abs(1 + spread * rng.normal(size=spread.shape)).astype(np.float32) for _ in range(count)]


def scattered(count: int, seed: int) -> Maps:
    """Parts that lie anywhere: each has a rim somewhere, of which the memory knows the likes less well."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    maps = []
    for _ in range(count):
        y, x = rng.uniform(8, SIDE - 8, 2)
        rim = np.abs(np.hypot(rows - y, columns - x) - 6) < 1.5
        maps.append((1 + 0.1 * rng.random((SIDE, SIDE)) + rim * rng.uniform(0.5, 1, rim.shape)).astype(np.float32))
    return maps


@pytest.mark.parametrize("count", [8, 24, 60])
@pytest.mark.parametrize("seed", range(3))
def test_the_place_counts_where_parts_lie_alike_and_not_where_they_lie_anywhere(count: int, seed: int) -> None:
    assert place_share([bordered(count, seed), bordered(count, seed + 10)]) == 1
    assert place_share([scattered(count, seed), scattered(count, seed + 10)]) == 0


def test_what_counts_lets_a_smaller_defect_fail() -> None:
    """The same spot on a sweet is farther beyond the worst of other good ones where the place does not count."""
    known, others = scattered(40, seed=1), scattered(40, seed=2)
    spot = others[0].copy()
    spot[20:22, 20:22] += 1.2
    by_share = {}
    for share in (0.0, 1.0):
        normal = GoodParts(known, share).normal()
        worst = [float(normal.deviations(other).max()) for other in others[1:]]
        by_share[share] = float(normal.deviations(spot).max()) - max(worst)
    assert by_share[0.0] > by_share[1.0]


@given(st.floats(1e-3, 1e3), st.integers(0, 5))
def test_the_unit_of_the_distances_does_not_matter(unit: float, seed: int) -> None:
    for maps in (bordered(8, seed), scattered(8, seed)):
        assert place_share([[np.float32(unit) * found for found in maps]]) == place_share([maps])


def test_of_three_parts_nothing_can_be_told() -> None:
    assert place_share([scattered(3, 0)]) == 1


def test_where_the_place_does_not_count_every_place_is_alike() -> None:
    normal = GoodParts(bordered(10, 0), share=0).normal()
    assert np.ptp(normal.scale) == 0
    assert np.ptp(normal.mean) < 1e-6


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_good_parts_that_are_copies_of_one_have_a_unit_too(share: float) -> None:
    copies = [np.zeros((5, 7), np.float32)] * 6
    normal = GoodParts(copies, share).normal()
    assert np.isfinite(normal.scale).all() and (normal.scale > 0).all()
    assert np.isfinite(normal.deviations(np.ones((5, 7), np.float32))).all()
    assert place_share([copies]) in (0, 0.5, 1)


@given(st.integers(2, 9), st.sampled_from([0.0, 0.5, 1.0]), st.data())
def test_a_part_is_seen_as_if_it_had_not_been_among_the_good_ones(
    count: int, share: float, data: st.DataObject
) -> None:
    maps = bordered(count, data.draw(st.integers(0, 9)))
    part = data.draw(st.integers(0, count - 1))
    alone, others = GoodParts(maps, share).normal(without=part), GoodParts([*maps[:part], *maps[part + 1 :]] * 2, share)
    np.testing.assert_allclose(alone.mean, others.normal().mean, atol=1e-4)
    ratio = alone.scale / others.normal().scale
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-2)


def stained(count: int, seed: int) -> Maps:
    """Parts that lie alike, each with a speck where the others have none."""
    rng = np.random.default_rng(seed)
    maps = bordered(count, seed)
    for found in maps:
        row, column = rng.integers(8, SIDE - 12, 2)
        found[row : row + 4, column : column + 4] += 0.8
    return maps


def test_good_parts_look_no_better_than_new_ones() -> None:
    """Which the threshold is for: in units that it had a share in, a part's own speck would be what is usual there."""
    maps, new = stained(24, 1), stained(60, 2)
    known = GoodParts(maps, share=1)
    normal = known.normal()
    peak = float(np.mean([normal.deviations(found).max() for found in new]))
    assert np.mean([found.max() for found in known.deviations()]) == pytest.approx(peak, rel=0.03)
    assert np.mean([normal.deviations(found).max() for found in maps]) < 0.94 * peak
