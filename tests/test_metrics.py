"""Every measure against an independent one: scikit-learn's, or its definition written out in plain loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, roc_auc_score

from sam_inspect import metrics
from sam_inspect.masks import components, from_full
from sam_inspect.metrics import GoodCounts, PixelRanks
from sam_inspect.records import CropMask

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]
EIGHT = np.ones((3, 3), int)


@st.composite
def scored_images(draw: st.DrawFn) -> list[tuple[Map, Mask]]:
    """A few maps, full of ties, with their ground truth, each of its own size."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=7))
        found.append((draw(arrays(np.float32, shape, elements=st.integers(-3, 3))), draw(arrays(bool, shape))))
    return found


def ranks_of(images: Sequence[tuple[Map, Mask]]) -> PixelRanks:
    values = np.concatenate([anomaly_map[truth] for anomaly_map, truth in images])
    shares = np.concatenate([metrics.region_shares(truth) for _, truth in images])
    order = np.argsort(values)
    good = metrics.count_good(values[order], (anomaly_map[~truth] for anomaly_map, truth in images))
    return PixelRanks(values[order], shares[order], good)


def pooled(images: Sequence[tuple[Map, Mask]]) -> tuple[Map, Mask]:
    maps, truths = zip(*images, strict=True)
    return np.concatenate([m.ravel() for m in maps]), np.concatenate([t.ravel() for t in truths])


def pro_by_definition(images: Sequence[tuple[Map, Mask]], limit: float) -> float:
    """The curve drawn threshold by threshold over all values, then integrated up to the limit, in float64."""
    scores, truth = pooled(images)
    regions = [
        (anomaly_map, labels == label)
        for anomaly_map, truth in images
        for labels, count in [ndimage.label(truth, EIGHT)]
        for label in range(1, count + 1)
    ]
    curve = [(0.0, 0.0)]
    for threshold in np.unique(scores)[::-1]:
        rate = np.mean(scores[~truth] >= threshold)
        curve.append((rate, np.mean([np.mean(anomaly_map[region] >= threshold) for anomaly_map, region in regions])))
    rates, overlaps = np.array(curve, np.float64).T
    area = 0.0
    for x0, x1, y0, y1 in zip(rates, rates[1:], overlaps, overlaps[1:], strict=False):
        if x1 > x0 and x0 < limit:
            end = min(x1, limit)
            area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit


def best_over_thresholds(images: Sequence[tuple[Map, Mask]], score: object) -> float:
    scores, truth = pooled(images)
    return max(score(truth, scores >= threshold, zero_division=0) for threshold in np.unique(scores))


@given(scored_images())
def test_pixel_measures_are_those_of_scikit_learn(images: list[tuple[Map, Mask]]) -> None:
    scores, truth = pooled(images)
    ranks = ranks_of(images)
    if not truth.any():
        assert metrics.pixel_ap(ranks) is metrics.pixel_f1_max(ranks) is metrics.pixel_iou_max(ranks) is None
        assert metrics.pixel_auroc(ranks) is None
        return
    assert metrics.pixel_ap(ranks) == pytest.approx(average_precision_score(truth, scores))
    assert metrics.pixel_f1_max(ranks) == pytest.approx(best_over_thresholds(images, f1_score))
    assert metrics.pixel_iou_max(ranks) == pytest.approx(best_over_thresholds(images, jaccard_score))
    if truth.all():
        assert metrics.pixel_auroc(ranks) is None
    else:
        assert metrics.pixel_auroc(ranks) == pytest.approx(roc_auc_score(truth, scores))


@given(scored_images(), st.sampled_from([0.05, 0.3, 0.77, 1.0]))
def test_au_pro_is_exact_with_any_ties(images: list[tuple[Map, Mask]], limit: float) -> None:
    _, truth = pooled(images)
    found = metrics.au_pro(ranks_of(images), limit)
    if truth.all() or not truth.any():
        assert found is None
    else:
        assert found == pytest.approx(pro_by_definition(images, limit), abs=1e-12)


def test_au_pro_of_smooth_maps(limit: float = 0.3) -> None:
    rng = np.random.default_rng(3)
    images = []
    for _ in range(3):
        anomaly_map = ndimage.gaussian_filter(rng.random((40, 50)), 3)
        truth = ndimage.gaussian_filter(rng.random((40, 50)), 3) + 0.5 * anomaly_map > 0.77
        images.append((anomaly_map.astype(np.float32), truth))
    assert metrics.au_pro(ranks_of(images), limit) == pytest.approx(pro_by_definition(images, limit), abs=1e-12)


def test_a_perfect_map_and_one_that_says_nothing() -> None:
    truth = np.zeros((20, 20), bool)
    truth[3:9, 4:7] = True
    perfect, flat = ranks_of([(truth.astype(np.float32), truth)]), ranks_of([(np.zeros((20, 20), np.float32), truth)])
    for measure in (metrics.pixel_auroc, metrics.pixel_ap, metrics.pixel_f1_max, metrics.pixel_iou_max):
        assert measure(perfect) == 1
    assert [metrics.au_pro(perfect, limit) for limit in (0.3, 0.05)] == pytest.approx([1, 1])
    assert metrics.pixel_auroc(flat) == 0.5
    assert metrics.pixel_ap(flat) == truth.mean()
    assert metrics.au_pro(flat, 0.3) == pytest.approx(0.15)


def test_small_regions_count_as_much_as_large_ones() -> None:
    truth = np.zeros((10, 30), bool)
    truth[:, :10] = True
    truth[0, 29] = True
    found = np.zeros((10, 30), np.float32)
    found[:, :10] = 1
    assert metrics.au_pro(ranks_of([(found, truth)]), 0.3) == pytest.approx(0.5 + 0.5 * 0.15)


@given(scored_images())
def test_counting_in_pieces_gives_the_same(images: list[tuple[Map, Mask]]) -> None:
    whole = ranks_of(images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "PIXELS_AT_ONCE", 5)
        pieces = ranks_of(images)
    assert np.array_equal(whole.good.above, pieces.good.above)
    assert np.array_equal(whole.good.equal, pieces.good.equal)
    assert whole.good.total == pieces.good.total


def test_counts_add_up_and_are_taken_apart() -> None:
    values = np.array([1, 2, 2, 3], np.float32)
    a = metrics.count_good(values, [np.array([2, 5], np.float32)])
    b = metrics.count_good(values, iter([np.array([1], np.float32), np.array([3, 0], np.float32)]))
    both = a + b
    assert (both.above.tolist(), both.equal.tolist(), both.total) == ([3, 2, 2, 1], [1, 1, 1, 1], 5)
    some = both.of(values > 1)
    assert isinstance(some, GoodCounts)
    assert (some.above.tolist(), some.total) == ([2, 2, 1], 5)


def test_image_measures_of_a_small_line() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.3, 0.9])
    defective = np.array([False, False, False, True, True])
    failed = scores > 0.25
    assert metrics.image_auroc(scores, defective) == pytest.approx(5.5 / 6)
    assert metrics.image_ap(scores, defective) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics.image_f1_max(scores, defective) == pytest.approx(0.8)
    assert metrics.false_reject_rate(failed, defective) == pytest.approx(1 / 3)
    assert metrics.miss_rate(failed, defective) == 0
    assert metrics.miss_rate(scores > 0.5, defective) == 0.5


def test_what_is_not_defined_is_none_and_never_nan() -> None:
    scores, none, every = np.array([0.1, 0.2]), np.zeros(2, bool), np.ones(2, bool)
    assert metrics.image_auroc(scores, none) is metrics.image_auroc(scores, every) is None
    assert metrics.image_ap(scores, none) is metrics.image_f1_max(scores, none) is None
    assert metrics.false_reject_rate(none, every) is metrics.miss_rate(none, none) is None
    assert metrics.share_over(np.zeros(0), 0.75) is metrics.region_f1(np.zeros(0), 0) is None


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[Mask, Mask]:
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=14))
    return draw(arrays(bool, shape)), draw(arrays(bool, shape))


@given(mask_pairs())
def test_iou_and_dice_are_those_of_scikit_learn(pair: tuple[Mask, Mask]) -> None:
    a, b = pair
    assert metrics.mask_iou(a, b) == pytest.approx(jaccard_score(b.ravel(), a.ravel(), zero_division=1))
    assert metrics.dice(a, b) == pytest.approx(f1_score(b.ravel(), a.ravel(), zero_division=1))


@given(mask_pairs(), st.integers(1, 4))
def test_a_border_is_what_lies_near_the_outline(pair: tuple[Mask, Mask], reach: int) -> None:
    mask = pair[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BOUNDARY_SHARE", reach / np.hypot(*mask.shape))
        border = metrics.inner_border(mask)
    # Outside the image counts as outside the mask, as in the paper's code.
    distance = ndimage.distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1]
    assert np.array_equal(border, mask & (distance <= reach))


def test_the_border_is_two_percent_of_the_diagonal_wide() -> None:
    mask = np.zeros((600, 800), bool)
    mask[100:500, 100:700] = True
    inner = mask & ~metrics.inner_border(mask)
    assert np.argwhere(inner).min(axis=0).tolist() == [120, 120]
    assert np.argwhere(inner).max(axis=0).tolist() == [479, 679]


def test_boundary_iou_sees_a_shift_that_iou_hardly_does() -> None:
    a, b = np.zeros((600, 800), bool), np.zeros((600, 800), bool)
    a[50:550, 50:750] = True
    b[60:560, 60:760] = True
    assert metrics.mask_iou(a, b) > 0.92
    assert metrics.boundary_iou(a, b) < 0.45
    assert metrics.boundary_iou(a, a) == metrics.boundary_iou(~a & a, ~a & a) == 1


@given(mask_pairs())
def test_each_defect_has_the_iou_of_the_mask_that_fits_it_best(pair: tuple[Mask, Mask]) -> None:
    truth, predicted = components(pair[0]), [*components(pair[1]), *components(pair[1][:1])]
    expected = [
        max((metrics.mask_iou(framed(t, pair[0].shape), framed(p, pair[0].shape)) for p in predicted), default=0)
        for t in truth
    ]
    assert metrics.best_ious(truth, predicted) == pytest.approx(expected)


def framed(mask: CropMask, shape: tuple[int, ...]) -> Mask:
    frame = np.zeros(shape, bool)
    x0, y0, x1, y1 = mask.box_xyxy
    frame[y0:y1, x0:x1] = mask.pixels
    return frame


def test_a_defect_found_in_two_pieces_is_not_outlined_but_its_pixels_are_found() -> None:
    truth = np.zeros((20, 40), bool)
    truth[5:15, 5:35] = True
    left, right = truth.copy(), truth.copy()
    left[:, 20:] = right[:, :20] = False
    found = [mask for mask in map(from_full, (left, right)) if mask is not None]
    score = metrics.score_masks(found, truth)
    assert (score.iou, score.dice, score.boundary_iou, score.predicted) == (1, 1, 1, 2)
    assert score.best_ious.tolist() == [0.5]
    assert metrics.region_f1(score.best_ious, score.predicted) == 0


def test_defects_as_wholes() -> None:
    best = np.array([0.95, 0.8, 0.6, 0.0])
    assert metrics.share_over(best, 0.75) == 0.5
    assert metrics.share_over(best, 0.9) == 0.25
    assert metrics.region_f1(best, 5) == pytest.approx(2 * 2 / (4 + 5))
    assert metrics.region_f1(np.zeros(0), 3) == 0


@given(scored_images(), st.lists(st.floats(-4, 4), min_size=1, max_size=5))
def test_iou_at_many_thresholds_at_once(images: list[tuple[Map, Mask]], limits: list[float]) -> None:
    thresholds = np.array(limits, np.float32)
    for anomaly_map, truth in images:
        expected = [jaccard_score(truth.ravel(), (anomaly_map > t).ravel(), zero_division=0) for t in thresholds]
        assert metrics.threshold_ious(anomaly_map, truth, thresholds) == pytest.approx(expected)


def test_intervals_of_single_images_are_those_of_the_textbook() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(10, 2, 400)
    weights = metrics.resample_groups([str(i) for i in range(400)], np.ones(400, bool))
    interval = metrics.mean_interval(weights, values)
    assert interval == pytest.approx(values.mean() + np.array([-1, 1]) * 1.96 * values.std() / 20, abs=0.03)


def test_pictures_of_one_part_do_not_make_a_figure_surer() -> None:
    values = np.random.default_rng(1).normal(10, 2, 40)
    alone = metrics.mean_interval(metrics.resample_groups([str(i) for i in range(40)], np.ones(40, bool)), values)
    groups = [str(i // 6) for i in range(240)]
    six_each = np.repeat(values, 6)
    grouped = metrics.mean_interval(metrics.resample_groups(groups, np.ones(240, bool)), six_each)
    ungrouped = metrics.mean_interval(
        metrics.resample_groups([str(i) for i in range(240)], np.ones(240, bool)), six_each
    )
    assert grouped == pytest.approx(alone, abs=0.05)
    assert np.ptp(ungrouped) < 0.5 * np.ptp(grouped)


def test_intervals_of_auroc_are_scikit_learns_on_each_draw() -> None:
    rng = np.random.default_rng(2)
    defective = np.arange(60) % 3 > 0
    scores = np.round(rng.normal(0, 1, 60) + defective, 1)
    weights = metrics.resample_groups([str(i // 2) for i in range(60)], defective)
    drawn = [roc_auc_score(defective, scores, sample_weight=weight) for weight in weights]
    assert metrics.auroc_interval(weights, scores, defective) == pytest.approx(np.quantile(drawn, [0.025, 0.975]))


def test_every_draw_has_good_and_defective_images() -> None:
    defective = np.array([True] + 30 * [False])
    weights = metrics.resample_groups([str(i) for i in range(31)], defective)
    assert (weights[:, 0] == 1).all()
    assert (weights[:, 1:].sum(axis=1) == 30).all()
    assert metrics.auroc_interval(weights[:, 1:], np.zeros(30), defective[1:]) is None
    assert metrics.mean_interval(weights[:, :0], np.zeros(0)) is None
    one = metrics.resample_groups(["part"] * 3, np.ones(3, bool))
    assert metrics.mean_interval(one, np.arange(3.0)) is None, "one part says nothing of its error"
    defective = np.array([True, False, False])
    alone = metrics.resample_groups(["a", "b", "b"], defective)
    assert metrics.auroc_interval(alone, np.array([1.0, 0.5, 2.0]), defective) is None
