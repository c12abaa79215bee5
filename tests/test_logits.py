"""The mean of several masks lies between them, and the mean of probabilities is what most of them hold."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from sam_inspect.logits import mean_logit, mean_probability, probability

masks = arrays(np.float32, (3, 4, 4), elements=st.floats(-12, 12, width=32))
weights = st.lists(st.floats(0.1, 1), min_size=3, max_size=3).map(lambda given: np.array(given) / sum(given))


@given(masks, weights)
def test_a_mean_lies_between_the_masks(masks: NDArray[np.float32], weights: NDArray[np.float64]) -> None:
    for mean in (mean_logit, mean_probability):
        found = mean(masks, weights)
        assert found.dtype == np.float32
        assert (found >= masks.min(0) - 0.02).all()
        assert (found <= masks.max(0) + 0.02).all()


@given(masks, weights)
def test_the_mean_of_probabilities_is_theirs(masks: NDArray[np.float32], weights: NDArray[np.float64]) -> None:
    expected = sum(weight / (1 + np.exp(-mask.astype(np.float64))) for weight, mask in zip(weights, masks, strict=True))
    np.testing.assert_allclose(probability(mean_probability(masks, weights)), expected, atol=1e-5)


def test_one_mask_that_is_sure_does_not_outvote_two_that_are_not() -> None:
    masks = np.array([12, -2, -2], np.float32)[:, None, None]
    alike = np.full(3, 1 / 3)
    assert mean_logit(masks, alike)[0, 0] > 0
    assert mean_probability(masks, alike)[0, 0] < 0
