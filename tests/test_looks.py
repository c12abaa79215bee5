"""What several looks at one part say together: about as bad as the one finds it that sees it worst."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam_inspect.localize.looks import HIGH, high_as_powers, rare_peak, score_of

UNITS = torch.tensor([1.1, 0.9, 1.0])
peaks = st.lists(st.floats(0.05, 8), min_size=3, max_size=3).map(torch.tensor)


def test_a_spot_that_coarse_looks_do_not_see_is_no_good_part() -> None:
    """A spot on a sweet: seen at 512 pixels and lost at 256 and 160, where it shows what a typical good part does."""
    good, spot = (float(score_of(UNITS * torch.tensor(shares), UNITS)) for shares in ([0.6] * 3, [1.3, 0.6, 0.6]))
    assert good == pytest.approx(0.6, rel=1e-5)
    assert spot > 1.1, "the mean would be 0.83, as many a good part has it"


@given(st.floats(0.05, 8))
def test_where_all_looks_agree_it_is_what_they_say(share: float) -> None:
    assert float(score_of(share * UNITS, UNITS)) == pytest.approx(share * float(UNITS.mean()), rel=1e-5)


@given(peaks, st.integers(0, 2), st.floats(0.01, 3))
def test_what_looks_worse_scores_higher_and_never_beyond_the_worst_look(
    found: torch.Tensor, look: int, more: float
) -> None:
    worse = found.clone()
    worse[look] += more
    score, highest = float(score_of(found, UNITS)), float((found / UNITS).max() * UNITS.mean())
    assert float(score_of(worse, UNITS)) >= score
    assert highest * 3 ** (-1 / 8) * 0.9999 <= score <= highest * 1.0001


@given(st.permutations([0, 1, 2]), peaks)
def test_the_order_of_looks_does_not_matter(order: list[int], found: torch.Tensor) -> None:
    again = score_of(found[order], UNITS[order])
    assert float(again) == pytest.approx(float(score_of(found, UNITS)), rel=1e-5)


def test_a_looks_unit_is_what_a_rare_good_part_shows_it() -> None:
    highest = np.random.default_rng(0).normal(0.6, 0.05, 400)
    maps = [np.array([[0.1, peak], [0.3, 0]], np.float32) for peak in highest]
    assert np.mean(highest > rare_peak(maps)) == pytest.approx(0.023, abs=0.015)
    assert rare_peak([np.zeros((4, 4), np.float32)]) > 0


def test_a_share_of_a_high_peak_is_a_share_of_its_distance_whatever_its_height() -> None:
    distances = np.geomspace(0.01, 1e4, 2000)
    found = high_as_powers(torch.from_numpy(np.log1p(distances).astype(np.float32))).numpy()
    assert (np.diff(found) > 0).all(), "so that no ranking changes"
    low = distances < np.expm1(HIGH)
    np.testing.assert_allclose(found[low], np.log1p(distances[low]), rtol=1e-6)
    reach = [np.interp(0.6 * np.interp(peak, distances, found), found, distances) / peak for peak in (30, 300, 3000)]
    assert reach == pytest.approx([0.35] * 3, abs=0.025)
