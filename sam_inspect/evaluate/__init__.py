"""A recipe scored on test images with ground truth.

`columns.py` scores one image, `figures.py` sums up, `tables.py` shows, `metrics.py` (beside this folder) defines.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sam_inspect.batch import DEFAULT_SAVE, conclude
from sam_inspect.datasets import Sample, check_ground_truth, groups_of, test_samples
from sam_inspect.errors import DatasetError, UsageError
from sam_inspect.evaluate.columns import COLUMNS, Case, case_of, score_boxes, score_heatmap, score_inspection
from sam_inspect.evaluate.figures import Figures, figures_of, intervals_of, oracle_threshold, seconds_of
from sam_inspect.evaluate.tables import as_tables
from sam_inspect.files import write_text
from sam_inspect.images import read_image
from sam_inspect.progress import Progress, silent
from sam_inspect.records import Inspection, Rgb
from sam_inspect.report.pictures import PictureWriter
from sam_inspect.report.writers import ResultsLog, fingerprint

if TYPE_CHECKING:
    from sam_inspect.pipeline import Inspector

__all__ = ["COLUMNS", "as_tables", "evaluate"]

FIGURES = "figures.json"
log = logging.getLogger(__name__)


def evaluate(
    inspector: Inspector,
    data: Path,
    *,
    progress: Progress = silent,
    out: Path | None = None,
    groups: Path | None = None,
) -> Figures:
    """Inspects every test image once and scores the answers by image, pixel and mask, overall and per defect type.

    Figures that are not defined (no good image, say) are None. All mask figures but `region_f1`, which counts false
    defects on good images too, are about the images with a defect; so are the seconds of each column, which leave out
    reading the file.

    Args:
        inspector: from a recipe.
        data: folder in MVTec layout, with test and ground_truth.
        progress: shows how far it is.
        out: where results, pictures, figures.json and the report go; None for nowhere.
        groups: CSV of image,group; by default groups.csv in `data` where there is one. With groups there are intervals.

    Returns:
        `{"image": {auroc, ap, f1_max, false_reject_rate, miss_rate}, "pixel": {auroc, ap, f1_max, iou_max, au_pro_30,
        au_pro_05}, "masks": {COLUMN: {mean_iou, mean_dice, boundary_iou, iou_over_75, iou_over_90, region_f1,
        seconds}}, "count": {images, good, defective, defects, errors}, "per_defect": {TYPE: the same}, "thresholds":
        {recipe, heatmap_oracle}, "seconds": {total, image, STAGE}, "intervals": {confidence, groups, image, masks}}`.

    Raises:
        DatasetError: the folder, a ground truth or the groups are not as expected.
        UsageError: an inspector without threshold, as for given boxes.
        OutputError: `out` cannot be written, or the disk is full.
    """
    start = time.monotonic()
    threshold = inspector.threshold
    if threshold is None:
        raise UsageError(f"{data}: cannot be scored without a threshold", "give an inspector that has a recipe")
    samples = test_samples(data)
    check_ground_truth(samples)
    group_of = _groups(data, groups, samples)
    with _opened(out, samples) as folder:
        cases = _inspected(inspector, threshold, samples, folder, progress)
        if not cases:
            raise DatasetError(f"{data / 'test'}: none of its {len(samples)} images could be inspected", "see above")
        oracle = oracle_threshold(cases, threshold)
        for case in cases:
            score_heatmap(case, "heatmap_oracle", oracle)
        figures = figures_of(cases, progress)
        figures["count"]["errors"] = len(samples) - len(cases)
        figures["thresholds"] = {"recipe": threshold, "heatmap_oracle": oracle}
        if group_of is not None:
            figures["intervals"] = intervals_of(cases, group_of)
        figures["seconds"] = {"total": time.monotonic() - start} | seconds_of(cases)
        if folder is not None:
            folder.conclude(figures, inspector)
    return figures


def _inspected(
    inspector: Inspector, threshold: float, samples: Sequence[Sample], folder: _OutFolder | None, progress: Progress
) -> list[Case]:
    """Every image that could be inspected, in order, with all columns but the oracle's."""
    by_name = {str(sample.image): sample for sample in samples}
    cases = []
    for inspection in progress(inspector.inspect_many([sample.image for sample in samples]), "inspect", len(samples)):
        sample = by_name[inspection.image]
        image = None
        if inspection.error is not None:
            log.warning(inspection.error)
        else:
            needed = folder is not None or sample.mask_path is not None
            image = read_image(sample.image) if needed else None
            cases.append(_scored(inspector, threshold, sample, inspection, image))
        if folder is not None:
            folder.keep(image, inspection)
    return cases


def _scored(inspector: Inspector, threshold: float, sample: Sample, inspection: Inspection, image: Rgb | None) -> Case:
    """The image's case; `image` is needed where it has ground truth."""
    case = case_of(sample, inspection)
    score_inspection(case, inspection, threshold)
    if case.is_outlined and image is not None:
        score_boxes(case, image, inspector)
    elif case.is_defective:
        log.warning(
            f"{sample.mask_path}: marks no pixel above 127; its image counts as defective, "
            "and is left out of the figures of pixels and masks"
        )
    return case


def _groups(data: Path, groups: Path | None, samples: Sequence[Sample]) -> dict[str, str] | None:
    """Group by the path of each test image that has one; None where no groups are known."""
    names = {sample.image.relative_to(data).as_posix(): str(sample.image) for sample in samples}
    found = groups_of(data, groups, list(names))
    return None if found is None else {names[name]: group for name, group in found.items()}


@contextmanager
def _opened(out: Path | None, samples: Sequence[Sample]) -> Iterator[_OutFolder | None]:
    if out is None:
        yield None
        return
    with ResultsLog(out) as results:
        yield _OutFolder(out, results, [str(sample.image) for sample in samples])


class _OutFolder:
    """What `inspect` writes, and the figures besides. Every image is inspected anew: a map is needed of each."""

    def __init__(self, out: Path, results: ResultsLog, images: Sequence[str]) -> None:
        self.out = out
        self.results = results
        self.images = images
        self.pictures = PictureWriter(out, DEFAULT_SAVE, results.names(images))

    def keep(self, image: Rgb | None, inspection: Inspection) -> None:
        """Results and pictures of one image; None for one that could not be read."""
        self.pictures.write(image, inspection)
        self.results.append(inspection, fingerprint(inspection.image, "evaluate"))

    def conclude(self, figures: Figures, inspector: Inspector) -> None:
        """The files that are about all images together."""
        inspections = self.results.finish(self.images)
        write_text(self.out / FIGURES, json.dumps(figures, indent=2) + "\n")
        conclude(inspector, inspections, self.pictures, DEFAULT_SAVE, title="Evaluation report", metrics=figures)
