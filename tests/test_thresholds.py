"""The threshold keeps its promise: so many good parts exceed it, and hardly more."""

from __future__ import annotations

import numpy as np
import pytest

from sam_inspect.thresholds import calibrated_threshold, tail_share


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
