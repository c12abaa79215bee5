"""Masks as somebody clicks: a view around the clicks is encoded once, each further click costs one decode."""

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
        embedding = self._embedding(segmenter, image, key, clicks, config)
        (answer,) = segmenter.decode(embedding, [_prompt(clicks)])
        place = _best(answer, clicks)
        grid_hw = work_hw(answer.view.crop_hw)
        shape = on_crop(answer.view, answer.low_res_logits[place], grid_hw) > 0
        mask = from_full(shape)
        return (on_image(mask, answer.view.crop_xyxy, grid_hw) if mask else None), float(answer.predicted_iou[place])

    def _embedding(
        self,
        segmenter: Interactive,
        image: NDArray[np.uint8],
        key: tuple[str, str],
        clicks: Clicks,
        config: PromptConfig,
    ) -> Any:
        """A kept view that shows all the clicks and not much more, else a new one."""
        wanted = _view(clicks, image.shape[:2], config)
        with self._lock:
            for (*of, crop), kept in reversed(self._views.items()):
                if tuple(of) == key and _shows(crop, wanted, clicks):
                    self._views.move_to_end((key[0], key[1], crop))
                    return kept
        (embedding,) = segmenter.encode(image, [View(wanted, config.input_px, ())])
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
    points, (height, width) = _points(clicks), original_hw
    span = float((points.max(0) - points.min(0)).max())
    least = (
        config.least_view_px
        if clicks.box is not None
        else max(config.least_view_px, SHARE_OF_IMAGE * min(height, width))
    )
    side = max(config.context * span, least)
    w, h = min(round(side), width), min(round(side), height)
    middle = (points.max(0) + points.min(0)) / 2
    x0 = min(max(0, round(float(middle[0]) - w / 2)), width - w)
    y0 = min(max(0, round(float(middle[1]) - h / 2)), height - h)
    return x0, y0, x0 + w, y0 + h


def _shows(crop: Box, wanted: Box, clicks: Clicks) -> bool:
    """Whether that view shows all of them, and none so wide that SAM sees them small."""
    points = _points(clicks)
    inside = bool((points >= np.array(crop[:2])).all() and (points <= np.array(crop[2:])).all())
    return inside and crop[2] - crop[0] <= WIDEST * (wanted[2] - wanted[0])


def _prompt(clicks: Clicks) -> Prompt:
    points = np.array([*clicks.on, *clicks.off], np.float32).reshape(-1, 2)
    labels = np.array([1] * len(clicks.on) + [0] * len(clicks.off), np.int64)
    return Prompt(box_xyxy=clicks.box, points_xy=points, point_labels=labels)


def _best(answer: Candidates, clicks: Clicks) -> int:
    """One click may mean a part or the whole: the best of three by SAM's estimate. More say which: the single mask."""
    several = clicks.box is not None or len(clicks.on) + len(clicks.off) > 1
    return 0 if several or len(answer.predicted_iou) == 1 else 1 + int(answer.predicted_iou[1:].argmax())
