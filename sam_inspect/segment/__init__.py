"""Segmenters: from views with prompts to candidate masks, and the arithmetic from SAM's logits back to the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from sam_inspect.records import Candidates, View


class Segmenter(Protocol):
    """Answers prompts with candidate masks."""

    def segment(self, image: NDArray[np.uint8], views: Sequence[View]) -> list[Candidates]:
        """One `Candidates` for each prompt, views in order and each view's prompts in order.

        Args:
            image: (H, W, 3) uint8 RGB.
            views: each is encoded once, whatever the number of its prompts.
        """
        ...


def crop_logits(candidates: Candidates, index: int) -> NDArray[np.float32]:
    """Mask `index` as (h, w) float32 logits on the view's crop at the image's own resolution; above 0 is mask.

    This is the one way back from SAM's frame to the image's: up to the square input, the padding cut off, then to the
    crop's size, both bilinear, as `Sam.postprocess_masks` of segment_anything does.
    """
    view = candidates.view
    square = (view.input_px, view.input_px)
    logits = cv2.resize(candidates.low_res_logits[index], square, interpolation=cv2.INTER_LINEAR)
    height, width = view.input_hw
    crop_h, crop_w = view.crop_hw
    return cv2.resize(logits[:height, :width], (crop_w, crop_h), interpolation=cv2.INTER_LINEAR)
