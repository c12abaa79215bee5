"""A view and its mirror image: what SAM is asked there, and the mean of what it answers in both.

SAM's encoder does not see a thing and its mirror image alike, and the mean of both answers errs less than either
(test-time augmentation). Upside down, because photographs, which it learned from, look much the same left to right.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sam_inspect.records import Candidates, Prompt, View


def mirrored_view(view: View, height: int) -> View:
    """The same crop in an image so many pixels high that is turned upside down, nothing asked of it."""
    x0, y0, x1, y1 = view.crop_xyxy
    return replace(view, crop_xyxy=(x0, height - y1, x1, height - y0), prompts=())


def mirrored_prompt(prompt: Prompt, height: int) -> Prompt:
    """The same box and points there; `mask_logits` have no place there."""
    assert prompt.mask_logits is None
    points = np.stack([prompt.points_xy[:, 0], height - prompt.points_xy[:, 1]], 1)
    if prompt.box_xyxy is None:
        return replace(prompt, points_xy=points)
    x0, y0, x1, y1 = prompt.box_xyxy
    return replace(prompt, points_xy=points, box_xyxy=(x0, height - y1, x1, height - y0))


def mean_of_both(answer: Candidates, mirrored: Candidates) -> Candidates:
    """The answer with the mean of its masks and those of the same question in the mirror image."""
    rows = -(-answer.view.input_hw[0] // 4)  # Beyond is padding, below both.
    logits = answer.low_res_logits.copy()
    logits[:, :rows] = (logits[:, :rows] + mirrored.low_res_logits[:, :rows][:, ::-1]) / 2
    estimates = answer.predicted_iou + mirrored.predicted_iou
    return replace(answer, low_res_logits=logits, predicted_iou=np.asarray(estimates / 2, np.float32))
