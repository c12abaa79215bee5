"""From scored images to the figures: overall and per defect type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_inspect import metrics
from sam_inspect.datasets import GOOD
from sam_inspect.evaluate.columns import COLUMNS, Case
from sam_inspect.metrics import MaskScore, PixelRanks, count_good, region_shares
from sam_inspect.progress import Progress

Figures = dict[str, Any]
CANDIDATES = 200
RAREST = 1e-5


def figures_of(cases: Sequence[Case], progress: Progress) -> Figures:
    """`image`, `pixel`, `masks`, `count` over all cases, and under `per_defect` the same for each type.

    A type's figures are about its own images and all good ones.
    """
    pixels = _pixel_figures(cases, progress)
    per_defect = {}
    for kind in pixels:
        if kind != GOOD:
            per_defect[kind] = _part([case for case in cases if case.sample.defect_type in (kind, GOOD)], pixels[kind])
    return _part(cases, pixels[GOOD]) | {"per_defect": per_defect}


def _part(cases: Sequence[Case], pixel: Figures) -> Figures:
    return {
        "image": _image_figures(cases),
        "pixel": pixel,
        "masks": {column: _mask_figures(cases, column) for column in COLUMNS},
        "count": _counts(cases),
    }


def _counts(cases: Sequence[Case]) -> Figures:
    defective = sum(case.is_defective for case in cases)
    defects = sum(len(case.columns["refined"].masks.best_ious) for case in cases)
    return {"images": len(cases), "good": len(cases) - defective, "defective": defective, "defects": defects}


def _image_figures(cases: Sequence[Case]) -> Figures:
    scores, defective, failed = _scores(cases)
    return {
        "auroc": metrics.image_auroc(scores, defective),
        "ap": metrics.image_ap(scores, defective),
        "f1_max": metrics.image_f1_max(scores, defective),
        "false_reject_rate": metrics.false_reject_rate(failed, defective),
        "miss_rate": metrics.miss_rate(failed, defective),
    }


def _scores(cases: Sequence[Case]) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """(n,) each: score, whether defective, whether failed."""
    defective = np.array([case.is_defective for case in cases], bool)
    return np.array([case.score for case in cases]), defective, np.array([case.failed for case in cases], bool)


def _pixel_figures(cases: Sequence[Case], progress: Progress) -> dict[str, Figures]:
    """Pixel measures by defect type; under `good` those over all types.

    The good pixels of each type are sorted once, for its own figures and for the overall ones. Defective images
    without ground truth are left out: nobody knows which of their pixels are good.
    """
    known = [case for case in cases if case.is_outlined or not case.is_defective]
    kinds = sorted({case.sample.defect_type for case in cases if case.is_defective})
    values, shares, codes = _defective_pixels(known, kinds)

    def good_pixels_of(kind: str) -> Iterator[NDArray[np.float32]]:
        for case in known:
            if case.sample.defect_type == kind:
                yield case.full_map()[~case.full_truth()]

    on_good = overall = count_good(values, good_pixels_of(GOOD))
    figures = {}
    for code, kind in progress(enumerate(kinds), "measure", len(kinds)):
        own = count_good(values, good_pixels_of(kind))
        chosen = codes == code
        figures[kind] = _measures(PixelRanks(values[chosen], shares[chosen], (on_good + own).of(chosen)))
        overall = overall + own
    return figures | {GOOD: _measures(PixelRanks(values, shares, overall))}


def _defective_pixels(
    cases: Sequence[Case], kinds: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int16]]:
    """(n,) each, by ascending value: the map on every defective pixel, its region's share, its type's index."""
    values: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    shares: list[NDArray[np.float64]] = [np.zeros(0)]
    codes: list[NDArray[np.int16]] = [np.zeros(0, np.int16)]
    for case in cases:
        if case.is_outlined:
            truth = case.full_truth()
            values.append(case.full_map()[truth])
            shares.append(region_shares(truth))
            codes.append(np.full(len(values[-1]), kinds.index(case.sample.defect_type), np.int16))
    value = np.concatenate(values)
    order = np.argsort(value)
    return value[order], np.concatenate(shares)[order], np.concatenate(codes)[order]


def _measures(ranks: PixelRanks) -> Figures:
    return {
        "auroc": metrics.pixel_auroc(ranks),
        "ap": metrics.pixel_ap(ranks),
        "f1_max": metrics.pixel_f1_max(ranks),
        "iou_max": metrics.pixel_iou_max(ranks),
        "au_pro_30": metrics.au_pro(ranks, 0.3),
        "au_pro_05": metrics.au_pro(ranks, 0.05),
    }


def _mask_figures(cases: Sequence[Case], column: str) -> Figures:
    """Means over the images with ground truth, shares over their defects; false defects count on good images too."""
    scored = [case.columns[column] for case in cases if column in case.columns and case.is_outlined]
    predicted = sum(case.columns[column].masks.predicted for case in cases if column in case.columns)
    means = mask_means([score.masks for score in scored], predicted)
    return means | {"seconds": _mean([score.seconds for score in scored])}


def mask_means(scores: Sequence[MaskScore], predicted: int) -> Figures:
    """Means over images, shares over their defects.

    Args:
        scores: of the images with ground truth.
        predicted: masks on all images, good ones too.
    """
    best = np.concatenate([np.zeros(0), *(score.best_ious for score in scores)])
    return {
        "mean_iou": _mean([score.iou for score in scores]),
        "mean_dice": _mean([score.dice for score in scores]),
        "boundary_iou": _mean([score.boundary_iou for score in scores]),
        "iou_over_75": metrics.share_over(best, 0.75),
        "iou_over_90": metrics.share_over(best, 0.9),
        "region_f1": metrics.region_f1(best, predicted) if scores else None,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def oracle_threshold(cases: Sequence[Case], threshold: float) -> float:
    """The threshold of the map that gives the best mean IoU on these images: what no station can know.

    200 candidates that leave from all to a hundred-thousandth of the map above them, and 200 more between the
    neighbours of the best; the recipe's own threshold is among them, so that the oracle is never worse than it.

    Args:
        cases: the test set; only images with ground truth count.
        threshold: the recipe's.
    """
    outlined = [case for case in cases if case.is_outlined]
    if not outlined:
        return threshold
    values = np.concatenate([case.anomaly_map.ravel() for case in outlined])
    coarse = np.unique(np.quantile(values, 1 - np.geomspace(RAREST, 1, CANDIDATES)).astype(np.float32))
    best = int(np.argmax(_mean_ious(outlined, coarse)))
    low, high = coarse[max(best - 1, 0)], coarse[min(best + 1, len(coarse) - 1)]
    fine = np.append(
        np.linspace(low, high, CANDIDATES, dtype=np.float32), np.array([coarse[best], threshold], np.float32)
    )
    return float(fine[np.argmax(_mean_ious(outlined, fine))])


def _mean_ious(cases: Sequence[Case], thresholds: NDArray[np.float32]) -> NDArray[np.float64]:
    ious = [metrics.threshold_ious(case.full_map(), case.full_truth(), thresholds) for case in cases]
    return np.asarray(np.mean(ious, axis=0), np.float64)


def seconds_of(cases: Sequence[Case]) -> Figures:
    """Mean seconds an image of the inspection, in all (`image`) and by stage."""
    stages = dict.fromkeys(stage for case in cases for stage in case.timings_ms)
    means = {stage: sum(case.timings_ms.get(stage, 0.0) for case in cases) / len(cases) / 1000 for stage in stages}
    return {"image": sum(means.values())} | means


def intervals_of(cases: Sequence[Case], group_of: Mapping[str, str]) -> Figures:
    """95 % intervals of image AUROC and of each column's mean IoU, by bootstrap over groups.

    Args:
        cases: the test set.
        group_of: group by the image's path; an image without one is a group of its own.
    """
    scores, defective, _ = _scores(cases)
    paths = [str(case.sample.image) for case in cases]
    groups = [group_of.get(path, path) for path in paths]
    weights = metrics.resample_groups(groups, defective)
    masks = {}
    for column in COLUMNS:
        scored = [i for i, case in enumerate(cases) if case.is_outlined and column in case.columns]
        ious = np.array([cases[i].columns[column].masks.iou for i in scored])
        masks[column] = {"mean_iou": metrics.mean_interval(weights[:, scored], ious)}
    return {
        "confidence": metrics.CONFIDENCE,
        "groups": len(set(groups)),
        "image": {"auroc": metrics.auroc_interval(weights, scores, defective)},
        "masks": masks,
    }
