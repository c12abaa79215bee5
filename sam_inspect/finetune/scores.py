"""Held-out labels scored: classical methods and SAM, untuned and tuned, in their boxes; and SAM end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam_inspect.config import ChooseConfig
from sam_inspect.evaluate.columns import classical_masks
from sam_inspect.evaluate.figures import Figures, mask_means
from sam_inspect.evaluate.tables import Table, text_of
from sam_inspect.finetune.labels import Label
from sam_inspect.finetune.probes import Probe
from sam_inspect.images import read_image
from sam_inspect.masks import union
from sam_inspect.metrics import MaskScore, mean_interval, resample_groups, score_masks
from sam_inspect.records import CropMask
from sam_inspect.segment.sam import Sam

COLUMNS = (
    "gt_boxes_filled",
    "gt_boxes_otsu",
    "gt_boxes_grabcut",
    "gt_boxes_untuned",
    "gt_boxes_tuned",
    "refined_untuned",
    "refined_tuned",
)
GAINS = {"gt_boxes": ("gt_boxes_untuned", "gt_boxes_tuned"), "refined": ("refined_untuned", "refined_tuned")}


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """One held-out image.

    Attributes:
        label: its ground truth.
        fold: in which it was held out.
        masks: what each column outlines.
        scores: how good that is.
        pixels: (3,) of `refined_tuned`: pixels right, pixels too many, pixels missed.
    """

    label: Label
    fold: int
    masks: Mapping[str, Sequence[CropMask]]
    scores: Mapping[str, MaskScore]
    pixels: NDArray[np.int64]


def score_label(
    probe: Probe, fold: int, untuned: Sam, tuned: Sam, choose: ChooseConfig, tuned_choose: ChooseConfig
) -> Scored:
    """All columns of one image; an image that passes has no `refined` mask, as it ships."""
    boxes = [defect.box_xyxy for defect in probe.label.defects]
    masks = classical_masks(read_image(probe.label.sample.image), boxes)
    masks["gt_boxes_untuned"] = probe.box_masks(untuned, choose)
    masks["gt_boxes_tuned"] = probe.box_masks(tuned, tuned_choose)
    masks["refined_untuned"] = probe.shipped_masks(untuned, choose)
    masks["refined_tuned"] = probe.shipped_masks(tuned, tuned_choose)
    return scored_masks(probe.label, fold, masks)


def scored_masks(label: Label, fold: int, masks: Mapping[str, Sequence[CropMask]]) -> Scored:
    """The measures of every column's masks of one image."""
    truth = union(label.defects, label.original_hw)
    scores = {column: score_masks(masks[column], truth) for column in COLUMNS}
    return Scored(label, fold, masks, scores, pixel_counts(masks["refined_tuned"], truth))


def figures_of(scored: Sequence[Scored]) -> Figures:
    """`masks`, `gain` and `count` over all, and under `per_defect` for each type.

    `gain` is the mean difference of tuned and untuned IoU with the central 95 % of a bootstrap over groups, the images
    paired; no interval for images of one group.
    """
    kinds = sorted({each.label.sample.defect_type for each in scored})
    parts = {kind: [each for each in scored if each.label.sample.defect_type == kind] for kind in kinds}
    return _part(scored) | {"per_defect": {kind: _part(part) for kind, part in parts.items()}}


def _part(scored: Sequence[Scored]) -> Figures:
    return {
        "count": {
            "images": len(scored),
            "defects": sum(len(each.label.defects) for each in scored),
            "groups": len({each.label.group for each in scored}),
        },
        "masks": {column: means_of([each.scores[column] for each in scored]) for column in COLUMNS},
        "gain": {name: _gain(scored, *columns) for name, columns in GAINS.items()},
        "pixel_f1": pixel_f1([each.pixels for each in scored]) if scored else None,
    }


def pixel_counts(masks: Sequence[CropMask], truth: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(3,): pixels right, pixels too many, pixels missed."""
    found = union(masks, (truth.shape[0], truth.shape[1]))
    return np.array([np.count_nonzero(part) for part in (found & truth, found & ~truth, truth & ~found)], np.int64)


def pixel_f1(counts: Sequence[NDArray[np.int64]]) -> float:
    """F1 of all pixels of several images."""
    right, many, missed = np.sum(counts, axis=0)
    return float(2 * right / (2 * right + many + missed))


def means_of(scores: Sequence[MaskScore]) -> Figures:
    """`mask_means` of images all of whose masks are among the scores."""
    return mask_means(scores, sum(score.predicted for score in scores))


def _gain(scored: Sequence[Scored], before: str, after: str) -> Figures:
    gains = np.array([each.scores[after].iou - each.scores[before].iou for each in scored])
    if not len(gains):
        return {"mean": None, "from": None, "to": None}
    weights = resample_groups([each.label.group for each in scored], np.ones(len(gains), bool))
    low, high = mean_interval(weights, gains) or (None, None)
    return {"mean": float(gains.mean()), "from": low, "to": high}


def as_tables(figures: Figures, names: tuple[str, str] = ("untuned", "tuned")) -> list[Table]:
    """(title, columns, rows) for a terminal: all columns of masks, then the two, called `names`, for each type."""
    count = figures["count"]
    if not count["images"]:
        return []
    measures = list(figures["masks"][COLUMNS[0]])
    title = f"Masks of {count['images']} images with {count['defects']} defects of {count['groups']} parts"
    masks = [
        [named(column, names), *(text_of(figures["masks"][column][name]) for name in measures)] for column in COLUMNS
    ]
    head = ["", "images", *(f"{name} {part}" for name in GAINS for part in (*names, "gain", "from", "to"))]
    kinds = {"all": figures, **figures["per_defect"]}
    gains = [[kind, str(part["count"]["images"]), *_gain_cells(part)] for kind, part in kinds.items()]
    return [(title, ["", *measures], masks), ("Mean IoU by type; gain with its 95 % interval", head, gains)]


def named(column: str, names: tuple[str, str]) -> str:
    """A column's name, what ends in untuned or tuned by the names of the two."""
    for ending, name in zip(("_untuned", "_tuned"), names, strict=True):
        if column.endswith(ending):
            return f"{column.removesuffix(ending)} {name}"
    return column


def _gain_cells(part: Figures) -> list[str]:
    cells = []
    for name, columns in GAINS.items():
        cells += [text_of(part["masks"][column]["mean_iou"]) for column in columns]
        cells += [text_of(part["gain"][name][key], sign=True) for key in ("mean", "from", "to")]
    return cells
