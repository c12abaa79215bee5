"""Measures of images, pixels and masks, each with its definition and source. All figures are float64.

A measure that is not defined (no good image to reject, no defect to find) is None, never NaN.

Pixel measures over a whole test set depend only on how each defective pixel ranks among the good ones. `PixelRanks`
holds those ranks, found by sorting the good pixels in pieces: exact, ties included, and no more memory than the
defective pixels need.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from sam_inspect.masks import components, intersection_px, union
from sam_inspect.records import CropMask, Mask

Floats = NDArray[np.float32] | NDArray[np.float64]

PIXELS_AT_ONCE = 1 << 24
BOUNDARY_SHARE = 0.02
REGION_FOUND = 0.6
RESAMPLES = 2000
CONFIDENCE = 0.95


# Images: one score each


def image_auroc(scores: Floats, defective: Mask) -> float | None:
    """Area under the ROC curve: how often a defective image scores above a good one, ties half (`roc_auc_score`).

    Args:
        scores: (n,), higher is worse.
        defective: (n,) bool.
    """
    return float(roc_auc_score(defective, scores)) if defective.any() and not defective.all() else None


def image_ap(scores: Floats, defective: Mask) -> float | None:
    """Average precision, the step-wise area under precision and recall (`average_precision_score`)."""
    return float(average_precision_score(defective, scores)) if defective.any() else None


def image_f1_max(scores: Floats, defective: Mask) -> float | None:
    """The best F1 = 2PR / (P + R) of the class defective over all thresholds (anomalib's F1Max)."""
    if not defective.any():
        return None
    precision, recall, _ = precision_recall_curve(defective, scores)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)))


def false_reject_rate(failed: Mask, defective: Mask) -> float | None:
    """Share of good images with the verdict fail (overkill; the false positive rate at the recipe's threshold)."""
    return None if defective.all() else float(np.mean(failed[~defective]))


def miss_rate(failed: Mask, defective: Mask) -> float | None:
    """Share of defective images without the verdict fail (escapes; the false negative rate)."""
    return float(np.mean(~failed[defective])) if defective.any() else None


# Pixels: pooled over all test images


@dataclass(frozen=True, slots=True, eq=False)
class GoodCounts:
    """For each of n values, how many good pixels lie above it and how many equal it.

    Attributes:
        above: (n,) int64.
        equal: (n,) int64.
        total: all good pixels.
    """

    above: NDArray[np.int64]
    equal: NDArray[np.int64]
    total: int

    def __add__(self, other: GoodCounts) -> GoodCounts:
        """The counts over both sets of good pixels."""
        return GoodCounts(self.above + other.above, self.equal + other.equal, self.total + other.total)

    def of(self, chosen: Mask) -> GoodCounts:
        """The counts of some of the values, (n,) bool."""
        return GoodCounts(self.above[chosen], self.equal[chosen], self.total)


@dataclass(frozen=True, slots=True, eq=False)
class PixelRanks:
    """Every defective pixel of a test set, ranked among the good ones.

    Attributes:
        values: (n,) float32, the map's values there, ascending.
        region_shares: (n,) float64, 1 / pixels of the ground-truth region that each belongs to.
        good: the counts of good pixels above and at each value.
    """

    values: NDArray[np.float32]
    region_shares: NDArray[np.float64]
    good: GoodCounts


def count_good(values: NDArray[np.float32], good_pixels: Iterable[NDArray[np.float32]]) -> GoodCounts:
    """Counts the good pixels above and at each value; no more than `PIXELS_AT_ONCE` (or one image) are held at a time.

    Args:
        values: (n,) float32 ascending.
        good_pixels: values of the map on good pixels, (m,) float32 each.
    """
    above, equal, total = np.zeros(len(values), np.int64), np.zeros(len(values), np.int64), 0
    for piece in _pieces(good_pixels):
        piece.sort()
        after = np.searchsorted(piece, values, "right")
        above += len(piece) - after
        equal += after - np.searchsorted(piece, values, "left")
        total += len(piece)
    return GoodCounts(above, equal, total)


def _pieces(arrays: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    waiting: list[NDArray[np.float32]] = []
    for array in arrays:
        if waiting and sum(map(len, waiting)) + len(array) > PIXELS_AT_ONCE:
            yield np.concatenate(waiting)
            waiting = []
        waiting.append(array)
    if waiting:
        yield np.concatenate(waiting)


def region_shares(truth: Mask) -> NDArray[np.float64]:
    """For each set pixel of a (H, W) mask, in scan order, 1 / pixels of its 8-connected component."""
    _, labels = cv2.connectedComponents(np.ascontiguousarray(truth).view(np.uint8), connectivity=8)
    label = labels[truth]
    return np.asarray(1.0 / np.bincount(label)[label], np.float64)


def pixel_auroc(ranks: PixelRanks) -> float | None:
    """Area under the pixels' ROC curve, as Mann and Whitney's U: good pixels below each defective one, ties half."""
    if not len(ranks.values) or not ranks.good.total:
        return None
    return float(1 - np.mean(ranks.good.above + ranks.good.equal / 2) / ranks.good.total)


def pixel_ap(ranks: PixelRanks) -> float | None:
    """Average precision over pixels: sum of precision times step of recall (`average_precision_score`)."""
    if not len(ranks.values):
        return None
    true, false = _positives(ranks)
    steps = -np.diff(true, append=0)
    return float(np.sum(steps * (true / (true + false))) / len(ranks.values))


def pixel_f1_max(ranks: PixelRanks) -> float | None:
    """The best F1 = 2TP / (2TP + FP + FN) over all thresholds, pixels pooled over the images (anomalib's F1Max)."""
    if not len(ranks.values):
        return None
    true, false = _positives(ranks)
    return float(np.max(2 * true / (true + false + len(ranks.values))))


def pixel_iou_max(ranks: PixelRanks) -> float | None:
    """The best IoU = TP / (TP + FP + FN) over all thresholds, pixels pooled over the images; equals F1 / (2 - F1)."""
    if not len(ranks.values):
        return None
    true, false = _positives(ranks)
    return float(np.max(true / (false + len(ranks.values))))


def _positives(ranks: PixelRanks) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and false positives at every threshold that is a defective pixel's value, lowest first.

    At any other threshold there are more false positives for the same true ones: no measure here depends on it.
    """
    first = np.flatnonzero(np.append(True, ranks.values[1:] != ranks.values[:-1]))
    return len(ranks.values) - first, (ranks.good.above + ranks.good.equal)[first]


def au_pro(ranks: PixelRanks, limit: float) -> float | None:
    """Area under the per-region-overlap curve up to a false positive rate of `limit`, divided by `limit`.

    PRO is the mean over ground-truth regions (8-connected) of the share of the region that is found, drawn over the
    false positive rate of all good pixels (Bergmann et al., MVTec AD, IJCV 2021: `limit` 0.3; later work: 0.05).
    Exact: each defective pixel raises the curve by its region's share where the good pixels above it end, in a straight
    line over those that tie with it, so its area up to the limit is known from these two counts alone.
    """
    regions, most = float(ranks.region_shares.sum()), limit * ranks.good.total
    if not regions or not most:
        return None
    above, equal = ranks.good.above, ranks.good.equal
    whole = most - above - equal / 2
    cut = np.maximum(most - above, 0.0) ** 2 / (2 * np.maximum(equal, 1))
    area = np.where(above + equal <= most, whole, cut * (equal > 0))
    return float(np.dot(ranks.region_shares, area) / (regions * most))


# Masks: at the image's own resolution


@dataclass(frozen=True, slots=True, eq=False)
class MaskScore:
    """One image's predicted masks against its ground truth.

    Attributes:
        iou, dice, boundary_iou: of the union of the masks.
        best_ious: (g,) float64, see `best_ious`.
        predicted: how many masks there are.
    """

    iou: float
    dice: float
    boundary_iou: float
    best_ious: NDArray[np.float64]
    predicted: int


def score_masks(predicted: Sequence[CropMask], truth: Mask) -> MaskScore:
    """All mask measures of one image.

    Args:
        predicted: its predicted defects.
        truth: (H, W) bool.
    """
    found = union(predicted, (truth.shape[0], truth.shape[1]))
    best = best_ious(components(truth), predicted)
    return MaskScore(mask_iou(found, truth), dice(found, truth), boundary_iou(found, truth), best, len(predicted))


def mask_iou(a: Mask, b: Mask) -> float:
    """Intersection over union (Jaccard) of two (H, W) masks; 1 where both are empty."""
    either = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / either if either else 1.0


def dice(a: Mask, b: Mask) -> float:
    """Twice the intersection over the sum of areas (Dice, Sørensen) of two (H, W) masks; 1 where both are empty."""
    areas = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / areas if areas else 1.0


def boundary_iou(a: Mask, b: Mask) -> float:
    """IoU of two masks' inner borders, as wide as 2 % of the image's diagonal (Cheng et al., Boundary IoU, CVPR 2021).

    Says how well the outline fits also where the mask is large. 1 where both are empty.
    """
    return mask_iou(inner_border(a), inner_border(b))


def inner_border(mask: Mask) -> Mask:
    """The pixels of a (H, W) mask within 2 % of the image's diagonal (rounded, at least 1 pixel) of its outline.

    As in the paper's code: the distance is the chessboard's, and the image's own edge is an outline.
    """
    border = mask.copy()
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    if width:
        reach = max(1, round(BOUNDARY_SHARE * float(np.hypot(*mask.shape))))
        crop = np.pad(mask[y : y + height, x : x + width].astype(np.uint8), 1)
        inside = cv2.erode(crop, np.ones((3, 3), np.uint8), iterations=reach)[1:-1, 1:-1]
        border[y : y + height, x : x + width] &= inside == 0
    return border


def best_ious(truth: Sequence[CropMask], predicted: Sequence[CropMask]) -> NDArray[np.float64]:
    """For each ground-truth defect the IoU with the predicted defect that fits it best; 0 where none touches it.

    One mask against one mask, as SA-1B's automatic masks were compared with those that annotators had corrected: what
    is found in pieces, or together with its neighbour, is not outlined.

    Args:
        truth: g masks that do not overlap.
        predicted: masks that may overlap.

    Returns:
        (g,) float64.
    """
    best = np.zeros(len(truth))
    if not truth or not predicted:
        return best
    areas = [mask.area_px for mask in predicted]
    a, b = (np.array([mask.box_xyxy for mask in some]) for some in (truth, predicted))
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    for i, j in np.argwhere((low < high).all(axis=2)).tolist():
        both = intersection_px(truth[i], predicted[j])
        best[i] = max(best[i], both / (truth[i].area_px + areas[j] - both))
    return best


def share_over(best: NDArray[np.float64], limit: float) -> float | None:
    """Share of ground-truth defects that are outlined with an IoU above `limit`.

    SA-1B's own measure of mask quality: 94 % of its automatic masks lie above 0.9, 97 % above 0.75 (Kirillov et al.,
    Segment Anything, ICCV 2023, section 5).

    Args:
        best: (g,) of `best_ious`, over all images.
        limit: 0.75 or 0.9.
    """
    return float(np.mean(best > limit)) if len(best) else None


def region_f1(best: NDArray[np.float64], predicted: int) -> float | None:
    """F1 over defects as wholes: 2 found / (ground-truth defects + predicted defects).

    A defect is found where a predicted one overlaps it with an IoU above 0.6 (Cao et al., Segment Any Anomaly, 2023;
    there at the threshold best for the test set, here at the one in use). Above 0.5 no predicted defect can find two.

    Args:
        best: (g,) of `best_ious`, over all images.
        predicted: how many defects are predicted on all images, the good ones too.
    """
    count = len(best) + predicted
    return float(2 * np.count_nonzero(best > REGION_FOUND) / count) if count else None


def threshold_ious(anomaly_map: NDArray[np.float32], truth: Mask, thresholds: Floats) -> NDArray[np.float64]:
    """IoU of `anomaly_map > threshold` with `truth`, both (H, W), for each threshold: (n,) float64."""
    inside, outside = anomaly_map[truth], anomaly_map[~truth]
    inside.sort()
    outside.sort()
    true = len(inside) - np.searchsorted(inside, thresholds.astype(np.float32), "right")
    false = len(outside) - np.searchsorted(outside, thresholds.astype(np.float32), "right")
    return np.asarray(true / np.maximum(len(inside) + false, 1), np.float64)


# Intervals: how far a figure would move with other parts of the same kind


def resample_groups(groups: Sequence[str], defective: Mask, seed: int = 0) -> NDArray[np.float64]:
    """Bootstrap by group: how often each image is drawn, (RESAMPLES, n) float64.

    Whole groups are drawn with replacement, since pictures of one part are alike (Field and Welsh, Bootstrapping
    clustered data, 2007); groups with a defective image and those without apart, so that hardly a draw lacks either.

    Args:
        groups: (n,) group of each image.
        defective: (n,) bool.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    names, group = np.unique(np.asarray(groups, str), return_inverse=True)
    has_defect = np.bincount(group, defective, minlength=len(names)) > 0
    drawn = np.zeros((RESAMPLES, len(names)))
    for stratum in (np.flatnonzero(has_defect), np.flatnonzero(~has_defect)):
        if len(stratum):
            even = np.full(len(stratum), 1 / len(stratum))
            drawn[:, stratum] = rng.multinomial(len(stratum), even, size=RESAMPLES)
    return drawn[:, group]


def mean_interval(weights: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float] | None:
    """The central 95 % of the mean of `values` (n,) over draws `weights` (RESAMPLES, n) of `resample_groups`.

    None where all values are of one group: every draw then has the same mean, which says nothing of its error.
    """
    if not len(values) or (weights == weights[:, :1]).all():
        return None
    return _interval(weights @ values, weights.sum(axis=1))


def auroc_interval(weights: NDArray[np.float64], scores: Floats, defective: Mask) -> tuple[float, float] | None:
    """The central 95 % of `image_auroc` over draws `weights` (RESAMPLES, n) of `resample_groups`.

    None where there are no good or no defective images, or all draws weigh all images alike (see `mean_interval`).
    """
    if defective.all() or not defective.any() or (weights == weights[:, :1]).all():
        return None
    bad, good = weights[:, defective], weights[:, ~defective]
    order = np.argsort(scores[~defective])
    below = np.pad(np.cumsum(good[:, order], axis=1), ((0, 0), (1, 0)))
    left, right = (np.searchsorted(scores[~defective][order], scores[defective], side) for side in ("left", "right"))
    won = np.sum(bad * (below[:, left] + below[:, right]) / 2, axis=1)
    return _interval(won, bad.sum(axis=1) * good.sum(axis=1))


def _interval(above: NDArray[np.float64], below: NDArray[np.float64]) -> tuple[float, float] | None:
    """Percentiles of above / below; draws in which nothing counts are left out."""
    figures = above[below > 0] / below[below > 0]
    if not len(figures):
        return None
    low, high = np.quantile(figures, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
