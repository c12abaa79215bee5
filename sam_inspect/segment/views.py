"""What every SAM does around its networks, in NumPy: crops to pixels, prompts into a view's frame and into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sam_inspect.records import Prompt, View


def shown(image: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """The view's crop at the network's scale, (h, w, 3): by Pillow's bilinear filter, the one SAM's weights know."""
    x0, y0, x1, y1 = view.crop_xyxy
    height, width = view.input_hw
    crop = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1]))
    return np.asarray(crop.resize((width, height), Image.Resampling.BILINEAR))


def batches(prompts: Sequence[Prompt], most: int) -> Iterator[list[int]]:
    """Indices of at most so many prompts that can be decoded together: the same number of points, the same kinds."""

    def shape(index: int) -> tuple[bool, int, bool]:
        prompt = prompts[index]
        return prompt.box_xyxy is not None, len(prompt.points_xy), prompt.mask_logits is not None

    for _, group in groupby(sorted(range(len(prompts)), key=shape), key=shape):
        indices = list(group)
        for start in range(0, len(indices), most):
            yield indices[start : start + most]


def to_input(xy: NDArray[np.float32], view: View) -> NDArray[np.float32]:
    """Pixels (..., 2) of the image in the view's scaled input frame: `ResizeLongestSide.apply_coords`."""
    crop_h, crop_w = view.crop_hw
    height, width = view.input_hw
    scale = np.array([width / crop_w, height / crop_h], np.float32)
    return np.asarray((xy - np.array(view.crop_xyxy[:2], np.float32)) * scale, np.float32)
