"""An export with its image encoder in int8: NNCF measures ranges on good parts, masks of defective ones decide.

Only the encoder's products of matrices are taken down: in its convolutions, where single channels are many times larger
than the others, int8 moves masks too far. The heatmap stays as it is: good parts lie so near to what is remembered that
every rounding tells.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_inspect.datasets import GOOD, evenly, good_images, test_samples
from sam_inspect.errors import DatasetError, ImageError, UsageError
from sam_inspect.export import Format, export, openvino_files
from sam_inspect.exports import FACTS, Export, load_export
from sam_inspect.files import write_bytes, write_text
from sam_inspect.images import read_image
from sam_inspect.masks import union
from sam_inspect.metrics import mask_iou
from sam_inspect.pipeline import Inspector
from sam_inspect.plugins import EXTRA_OF, not_installed
from sam_inspect.progress import Progress
from sam_inspect.recipe import load_recipe
from sam_inspect.records import Rgb, View
from sam_inspect.segment.views import shown

LEAST_GOOD, MOST_GOOD, VIEWS_EACH = 8, 32, 2
SIDES = (0.1, 0.8)
LEAST_IOU, MOST_DEFECTIVE = 0.97, 32
CONVOLUTIONS = ["Convolution", "GroupConvolution"]
OUTLIERS = r".*stages\.3/blocks/blocks\.0/mlp.*"
"""MobileSAM's only linear layers that int8 throws off: by 8 % of the features, all others together by 3 %."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Int8:
    """How an encoder came to int8, and what that did to the masks.

    Attributes:
        nncf: the version that did it.
        good_images: that its ranges were measured on.
        defective_images: whose masks were compared with those in f32.
        mask_iou_mean, mask_iou_least: of all that is outlined in an image.
    """

    nncf: str
    good_images: int
    defective_images: int
    mask_iou_mean: float
    mask_iou_least: float

    def __str__(self) -> str:
        kept = f"{self.mask_iou_mean:.3f} on average, {self.mask_iou_least:.3f} at least"
        return f"masks overlap with those in f32 by {kept} ({self.defective_images} defective images)"


def export_int8(recipe: Path, out: Path, form: Format, original_hw: tuple[int, int] | None, progress: Progress) -> Int8:
    """An export as OpenVINO graphs, its encoder in int8 if that keeps masks to a mean IoU of 0.97 with f32.

    Verdicts and scores are the heatmap's, which stays in f32.

    Args:
        recipe: its folder; the data that it was trained on must be here, with defective test images.
        out: folder of the export.
        form: `openvino`.
        original_hw: as in `export`.
        progress: shows how far it is.

    Raises:
        ExtraMissing: NNCF is not installed.
        DatasetError: too few good images, or no defective ones.
        UsageError: another form is asked for; or masks change too much or none was compared: the export in f32 stays.
        RecipeError, WeightsError, OutputError.
    """
    if form != "openvino":
        raise UsageError(f"--int8: is written for OpenVINO, not as {form}", "give --format openvino")
    if find_spec("nncf") is None:
        raise not_installed("--int8: NNCF", EXTRA_OF["nncf"])
    good, defective = _pictures(load_recipe(recipe).data)
    export(recipe, out, form, original_hw)
    whole = load_export(out)
    files = _quantised(whole, _views(good, whole.side_px), progress)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(shutil.copytree(out, Path(folder) / "export"))
        _put(trial, files, {})
        ious = _ious(out, trial, defective, progress)
    found = Int8(version("nncf"), len(good), len(ious), float(np.mean(ious)), min(ious))
    if found.mask_iou_mean < LEAST_IOU:
        raise UsageError(f"{out}: in int8 {found}, and {LEAST_IOU} is asked for", "the export in f32 lies there now")
    _put(out, files, asdict(found))
    return found


def _pictures(data: Path) -> tuple[list[Path], list[Path]]:
    """Good parts to measure on, and defective ones to compare. Raises DatasetError."""
    good = good_images(data)
    if len(good) < LEAST_GOOD:
        problem = f"{data}: holds {len(good)} good images, too few to measure the ranges of int8 on"
        raise DatasetError(problem, f"bring {LEAST_GOOD} or more")
    defective = [sample.image for sample in test_samples(data) if sample.defect_type != GOOD]
    return evenly(good, MOST_GOOD), evenly(defective, MOST_DEFECTIVE)


def _views(good: Sequence[Path], side_px: int) -> list[NDArray[np.float32]]:
    """(1, 3, s, s) float32 each, in 0..255: random squares of good parts as the encoder of an export sees them."""
    rng, views = np.random.default_rng(0), []
    for path in good:
        try:
            image = read_image(path)
        except ImageError as error:
            log.warning("%s", error)
            continue
        views += [_view(image, side_px, rng) for _ in range(VIEWS_EACH)]
    return views


def _view(image: Rgb, side_px: int, rng: np.random.Generator) -> NDArray[np.float32]:
    height, width = image.shape[:2]
    side = max(1, round(min(height, width) * rng.uniform(*SIDES)))
    x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    pixels = shown(image, View((x, y, x + side, y + side), side_px, ()))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)


@dataclass(frozen=True, slots=True)
class _Shown:
    """Views that NNCF passes over several times, each time with a bar."""

    views: Sequence[NDArray[np.float32]]
    progress: Progress

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return self.progress(self.views, "measure the ranges of int8", len(self.views))


def _quantised(whole: Export, views: Sequence[NDArray[np.float32]], progress: Progress) -> dict[str, bytes]:
    """The files of the encoder in int8, by name."""
    import openvino

    os.environ.setdefault("NNCF_CI", "1")  # else it reports its use to its makers
    import nncf

    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(StringIO()):  # its own bars
        model = nncf.quantize(
            openvino.Core().read_model(whole.encoder),
            nncf.Dataset(_Shown(views, progress)),
            subset_size=len(views),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(types=CONVOLUTIONS, patterns=[OUTLIERS], validate=False),
        )
    return openvino_files(whole.encoder.stem, model)


def _put(folder: Path, files: dict[str, bytes], int8: dict[str, Any]) -> None:
    """Puts an encoder into an export; one that is interrupted here is refused by its hashes."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    for name, content in files.items():
        write_bytes(folder / name, content)
        facts["sha256"][name] = hashlib.sha256(content).hexdigest()
    facts["encoder"]["int8"] = int8
    write_text(folder / FACTS, json.dumps(facts, indent=2) + "\n")


def _ious(before: Path, after: Path, images: Sequence[Path], progress: Progress) -> list[float]:
    """The IoU of all that two exports outline in each image that fails. Raises UsageError where none does."""
    ways = (Inspector.from_recipe(folder, runtime="openvino", precision="f32") for folder in (before, after))
    pairs = zip(*(way.inspect_many(images) for way in ways), strict=True)
    ious = []
    for pair in progress(pairs, "compare masks in f32 and int8", len(images)):
        if pair[0].verdict == "fail" and pair[0].original_hw is not None:
            f32, int8 = (union([defect.mask for defect in each.defects], pair[0].original_hw) for each in pair)
            ious.append(float(mask_iou(int8, f32)))
    if not ious:
        raise UsageError(f"{before}: no test image fails, so that no mask was compared", "use the export as it is")
    return ious
