"""The plain records that one stage hands to the next.

Frame and format stand in the name: `_xyxy` boxes are (x0, y0, x1, y1) in pixels of the original image, x1 and y1
exclusive; `_hw` is (height, width). Arrays are checked at birth and set read-only, so a record can be shared freely.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
Rgb = NDArray[np.uint8]
"""(H, W, 3)."""
Mask = NDArray[np.bool_]
"""(H, W)."""
Map = NDArray[np.float32]
"""(h, w): how much each place deviates, on any even grid over an image."""
Verdict = Literal["pass", "fail", "error"]
Source = Literal["sam", "heatmap"]


def _checked(name: str, array: Any, dtype: type, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """`array` read-only, after checking dtype and shape (`None` matches any size of that axis)."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected a numpy array, got {type(array).__name__}")
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected {np.dtype(dtype)} ({wanted}), got {array.dtype} {array.shape}")
    view = array.view()
    view.flags.writeable = False
    return view


def _check_box(name: str, box: Box) -> None:
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"{name}: expected x0 < x1 and y0 < y1, got {box}")


@dataclass(frozen=True, slots=True, eq=False)
class CropMask:
    """A mask as its box and the pixels inside it, so that 50 masks of a large image are not 50 full frames.

    Attributes:
        box_xyxy: the box, in whole pixels of the original image; inside the image.
        pixels: (y1 - y0, x1 - x0) bool.
    """

    box_xyxy: Box
    pixels: NDArray[np.bool_]

    def __post_init__(self) -> None:
        _check_box("CropMask.box_xyxy", self.box_xyxy)
        x0, y0, x1, y1 = self.box_xyxy
        object.__setattr__(self, "pixels", _checked("CropMask.pixels", self.pixels, np.bool_, (y1 - y0, x1 - x0)))

    @property
    def area_px(self) -> int:
        """Number of pixels that are set."""
        return int(np.count_nonzero(self.pixels))


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A candidate defect: where the anomaly map (or a given box) says that something is.

    Attributes:
        box_xyxy: the defect's box: that of `mask`, narrowed by the blur of the map; or the given box.
        peak_xy: (x, y) of its highest value, pixels.
        score: the anomaly map's highest value in it; 1.0 for a given box.
        mask: the heatmap's own mask; None for a given box, which has no pixels.
        label: the defect type where the boxes file names one.
        core: of a high and wide region, the map's outline of the defect; None where the map cannot tell.
        blur_px: how wide the map shows a point there, pixels; 0 for a given box.
        thin: whether it is a line, of which the map cannot tell the width.
        parts: of a long line, each a region of its own: what SAM is asked about one by one; () for all others.
    """

    box_xyxy: Box
    peak_xy: tuple[float, float]
    score: float
    mask: CropMask | None = None
    label: str | None = None
    core: CropMask | None = None
    blur_px: float = 0.0
    thin: bool = False
    parts: tuple[Region, ...] = ()

    def __post_init__(self) -> None:
        _check_box("Region.box_xyxy", self.box_xyxy)


@dataclass(frozen=True, slots=True, eq=False)
class Localization:
    """What a localizer answers for one image.

    Attributes:
        original_hw: (H, W) of the image, pixels.
        pred_score: the image's anomaly score, higher is worse; the highest value of `anomaly_map` where there is one.
        regions: candidate defects, highest score first; empty for a good part.
        anomaly_map: (h, w) float32 on any grid that covers the whole image evenly (cell (i, j) is centred at
            ((j + 0.5) * W / w, (i + 0.5) * H / h)), so that a good part never pays for a full-size map;
            `sam_inspect.masks.resize_map` brings it to (H, W). None where boxes were given.
    """

    original_hw: tuple[int, int]
    pred_score: float
    regions: tuple[Region, ...] = ()
    anomaly_map: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.anomaly_map is not None:
            checked = _checked("Localization.anomaly_map", self.anomaly_map, np.float32, (None, None))
            object.__setattr__(self, "anomaly_map", checked)

    def asked(self, prompt: Prompt) -> Region:
        """What a prompt for a region asks about: the region, or a part of it."""
        assert prompt.region is not None
        region = self.regions[prompt.region]
        return region if prompt.part is None else region.parts[prompt.part]


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What SAM is asked, in pixels of the original image.

    Attributes:
        box_xyxy: (x0, y0, x1, y1) floats, or None.
        points_xy: (N, 2) float32.
        point_labels: (N,) int64; 1 is on the object, 0 beside it.
        mask_logits: (l, l) float32 low-res logits of an earlier round, in the view's frame, or None.
        region: index into `Localization.regions` of what it asks about; None for a free prompt.
        part: index into that region's `parts`; None for all of it.
    """

    box_xyxy: tuple[float, float, float, float] | None = None
    points_xy: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    point_labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    mask_logits: NDArray[np.float32] | None = None
    region: int | None = None
    part: int | None = None

    def __post_init__(self) -> None:
        points = _checked("Prompt.points_xy", self.points_xy, np.float32, (None, 2))
        object.__setattr__(self, "points_xy", points)
        labels = _checked("Prompt.point_labels", self.point_labels, np.int64, (len(points),))
        object.__setattr__(self, "point_labels", labels)
        if self.mask_logits is not None:
            logits = _checked("Prompt.mask_logits", self.mask_logits, np.float32, (None, None))
            object.__setattr__(self, "mask_logits", logits)
        if self.box_xyxy is None and not len(points) and self.mask_logits is None:
            raise ValueError("Prompt: expected a box, points or mask_logits, got none of them")


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A crop of the image, shown to SAM at a scale, with the prompts that it is to answer.

    Attributes:
        crop_xyxy: the crop, whole pixels, inside the image.
        input_px: side of the network's square input; the crop's longer side is scaled to it.
        prompts: asked of this view, all decoded from one encoding.
    """

    crop_xyxy: Box
    input_px: int
    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        _check_box("View.crop_xyxy", self.crop_xyxy)

    @property
    def crop_hw(self) -> tuple[int, int]:
        """(height, width) of the crop, pixels."""
        x0, y0, x1, y1 = self.crop_xyxy
        return y1 - y0, x1 - x0

    @property
    def input_hw(self) -> tuple[int, int]:
        """(height, width) of the scaled crop inside the square input: SAM's `get_preprocess_shape`."""
        height, width = self.crop_hw
        scale = self.input_px / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """SAM's answer to one prompt.

    Attributes:
        view: the view it was asked in.
        prompt: the prompt.
        low_res_logits: (M, l, l) float32, l a quarter of `view.input_px`, over the square input; above 0 is mask.
        predicted_iou: (M,) float32, SAM's own estimate of each mask's IoU.
    """

    view: View
    prompt: Prompt
    low_res_logits: NDArray[np.float32]
    predicted_iou: NDArray[np.float32]

    def __post_init__(self) -> None:
        logits = _checked("Candidates.low_res_logits", self.low_res_logits, np.float32, (None, None, None))
        object.__setattr__(self, "low_res_logits", logits)
        iou = _checked("Candidates.predicted_iou", self.predicted_iou, np.float32, (len(logits),))
        object.__setattr__(self, "predicted_iou", iou)


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """The one mask that was chosen for a region, before it is measured.

    Attributes:
        mask: its pixels, tight, at least one.
        region: what it outlines.
        source: `sam`, or `heatmap` where no mask of SAM's agreed with the map.
    """

    mask: CropMask
    region: Region
    source: Source


@dataclass(frozen=True, slots=True, eq=False)
class Defect:
    """One defect that stands in the answer.

    Attributes:
        mask: its pixels.
        score: the anomaly map's highest value in its region; 1.0 for a given box.
        source: `sam`, or `heatmap` where no mask of SAM's agreed with the map.
        area_px: pixels of the mask.
        length_px: its longest extent, pixels: the longer side of the rotated box of least area.
        area_mm2: area in square millimetres where the recipe knows the pixel size.
        label: the defect type where it is known.
    """

    mask: CropMask
    score: float
    source: Source
    area_px: int
    length_px: float
    area_mm2: float | None = None
    label: str | None = None

    @property
    def box_xyxy(self) -> Box:
        """Tight box around the mask, pixels."""
        return self.mask.box_xyxy


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """The verdict on one image. A `fail` has at least one defect, a `pass` has none.

    Attributes:
        image: the image's path as it was given, or its name.
        verdict: `pass`, `fail`, or `error` for an image that could not be read.
        score: the image's anomaly score; None for an error.
        threshold: scores above it fail, unless all defects are smaller than `min_area_px`; None for an error, and
            where boxes were given.
        defects: highest score first.
        original_hw: (H, W) pixels; None for an error.
        error: what is wrong and the remedy, one line, for an error.
        timings_ms: milliseconds of each stage: read, localize, prompt, segment, choose, judge.
        anomaly_map: the localizer's map on its own grid (see `Localization`), for pictures; not part of the JSON.
    """

    image: str
    verdict: Verdict
    score: float | None = None
    threshold: float | None = None
    defects: tuple[Defect, ...] = ()
    original_hw: tuple[int, int] | None = None
    error: str | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    anomaly_map: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if (self.verdict == "fail") != bool(self.defects):
            raise ValueError(f"Inspection: verdict {self.verdict!r} with {len(self.defects)} defects")
        if (self.verdict == "error") != (self.error is not None):
            raise ValueError(f"Inspection: verdict {self.verdict!r} with error {self.error!r}")
        if self.anomaly_map is not None:
            checked = _checked("Inspection.anomaly_map", self.anomaly_map, np.float32, (None, None))
            object.__setattr__(self, "anomaly_map", checked)
