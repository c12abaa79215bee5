"""Masks as somebody clicks: a view around the clicks is encoded once, each further click costs one decode.

Where a mask reaches the border of its view, the view grows until it holds the whole of it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_inspect.config import PromptConfig
from sam_inspect.errors import ConfigError
from sam_inspect.masks import from_full, on_crop, on_image, work_hw
from sam_inspect.prompt import square_about
from sam_inspect.records import Box, Candidates, CropMask, Prompt, View
from sam_inspect.segment import Interactive, Segmenter

MOST_EMBEDDINGS = 32
WIDEST = 3.0
SHARE_OF_IMAGE = 0.35


@dataclass(frozen=True, slots=True)
class Clicks:
    """What somebody pointed at, pixels of the image.

    Attributes:
        on: (x, y) that belong to the defect.
        off: those that do not.
        box: around it.
    """

    on: tuple[tuple[float, float], ...] = ()
    off: tuple[tuple[float, float], ...] = ()
    box: tuple[float, float, float, float] | None = None


class Clicker:
    """SAM, asked about images by key; the last views stay encoded."""

    def __init__(self) -> None:
        self._views: OrderedDict[tuple[str, str, Box], Any] = OrderedDict()
        self._lock = threading.Lock()

    def mask(
        self, segmenter: Segmenter, image: NDArray[np.uint8], key: tuple[str, str], clicks: Clicks, config: PromptConfig
    ) -> tuple[CropMask | None, float]:
        """The mask that the clicks mean, None where SAM sees nothing, and SAM's own estimate of its IoU.

        Args:
            segmenter: an `Interactive`.
            image: (H, W, 3) uint8 RGB.
            key: of recipe and image, under which its views are kept.
            clicks: at least one point on it, or a box.
            config: how views are cut.

        Raises:
            ConfigError: the segmenter cannot be asked again and again.
        """
        if not isinstance(segmenter, Interactive):
            raise ConfigError("this recipe's segmenter takes no clicks", "use one with `encode` and `decode`")
        wanted = _view(clicks, image.shape[:2], config)
        while True:
            embedding = self._embedding(segmenter, image, key, clicks, wanted, config.input_px)
            (answer,) = segmenter.decode(embedding, [_prompt(clicks)])
            place, crop = _best(answer, clicks), answer.view.crop_xyxy
            grid_hw = work_hw(answer.view.crop_hw)
            shape = from_full(on_crop(answer.view, answer.low_res_logits[place], grid_hw) > 0)
            mask = on_image(shape, crop, grid_hw) if shape else None
            if mask is None or not _is_cut(mask.box_xyxy, crop, image.shape[:2]):
                return mask, float(answer.predicted_iou[place])
            wanted = _wider(crop, image.shape[:2])

    def _embedding(
        self,
        segmenter: Interactive,
        image: NDArray[np.uint8],
        key: tuple[str, str],
        clicks: Clicks,
        wanted: Box,
        input_px: int,
    ) -> Any:
        """A kept view that shows at least what is wanted of it and not much more, else a new one."""
        with self._lock:
            for (*of, crop), kept in reversed(self._views.items()):
                if tuple(of) == key and _shows(crop, wanted, clicks):
                    self._views.move_to_end((key[0], key[1], crop))
                    return kept
        (embedding,) = segmenter.encode(image, [View(wanted, input_px, ())])
        with self._lock:
            self._views[(key[0], key[1], wanted)] = embedding
            while len(self._views) > MOST_EMBEDDINGS:
                self._views.popitem(last=False)
        return embedding


def _points(clicks: Clicks) -> NDArray[np.float32]:
    corners = [] if clicks.box is None else [clicks.box[:2], clicks.box[2:]]
    return np.array([*clicks.on, *clicks.off, *corners], np.float32)


def _view(clicks: Clicks, original_hw: Sequence[int], config: PromptConfig) -> Box:
    """A square around them with as much context as a region gets; around a single point a share of the image."""
    points = _points(clicks)
    span = float((points.max(0) - points.min(0)).max())
    around_a_point = SHARE_OF_IMAGE * min(original_hw) if clicks.box is None else 0.0
    x, y = (points.max(0) + points.min(0)) / 2
    side = max(config.context * span, config.least_view_px, around_a_point)
    return square_about(float(x), float(y), side, original_hw)


def _is_cut(box: Box, crop: Box, original_hw: Sequence[int]) -> bool:
    """Whether a mask reaches the border of its view where the image goes on: SAM sees only a part of it."""
    height, width = original_hw
    before = any(side <= edge and edge > 0 for side, edge in zip(box[:2], crop[:2], strict=True))
    return before or any(
        side >= edge and edge < end for side, edge, end in zip(box[2:], crop[2:], (width, height), strict=True)
    )


def _wider(crop: Box, original_hw: Sequence[int]) -> Box:
    """The view with twice the side."""
    x0, y0, x1, y1 = crop
    return square_about((x0 + x1) / 2, (y0 + y1) / 2, 2 * max(x1 - x0, y1 - y0), original_hw)


def _shows(crop: Box, wanted: Box, clicks: Clicks) -> bool:
    """Whether that view is as large as is wanted, shows all clicks, and is not so wide that SAM sees them small."""
    points, side = _points(clicks), max(crop[2] - crop[0], crop[3] - crop[1])
    inside = bool((points >= np.array(crop[:2])).all() and (points <= np.array(crop[2:])).all())
    least = max(wanted[2] - wanted[0], wanted[3] - wanted[1])
    return inside and least <= side <= WIDEST * least


def _prompt(clicks: Clicks) -> Prompt:
    points = np.array([*clicks.on, *clicks.off], np.float32).reshape(-1, 2)
    labels = np.array([1] * len(clicks.on) + [0] * len(clicks.off), np.int64)
    return Prompt(box_xyxy=clicks.box, points_xy=points, point_labels=labels)


def _best(answer: Candidates, clicks: Clicks) -> int:
    """One click may mean a part or the whole: the best of three by SAM's estimate. More say which: the single mask."""
    several = clicks.box is not None or len(clicks.on) + len(clicks.off) > 1
    return 0 if several or len(answer.predicted_iou) == 1 else 1 + int(answer.predicted_iou[1:].argmax())
