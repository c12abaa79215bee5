"""A view and its mirror image: what SAM is asked there, and the mean of what it answers in both.

SAM's encoder does not see a thing and its mirror image alike; the mean of both answers errs less than either
(test-time augmentation).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sam_inspect.records import Candidates, Prompt, View


def mirrored_view(view: View, width: int) -> View:
    """The same crop in the mirror image of an image so many pixels wide, nothing asked of it."""
    x0, y0, x1, y1 = view.crop_xyxy
    return replace(view, crop_xyxy=(width - x1, y0, width - x0, y1), prompts=())


def mirrored_prompt(prompt: Prompt, width: int) -> Prompt:
    """The same box and points there; `mask_logits` have no place there."""
    assert prompt.mask_logits is None
    points = np.stack([width - prompt.points_xy[:, 0], prompt.points_xy[:, 1]], 1)
    if prompt.box_xyxy is None:
        return replace(prompt, points_xy=points)
    x0, y0, x1, y1 = prompt.box_xyxy
    return replace(prompt, points_xy=points, box_xyxy=(width - x1, y0, width - x0, y1))


def mean_of_both(answer: Candidates, mirrored: Candidates) -> Candidates:
    """The answer with the mean of its masks and those of the same question in the mirror image."""
    columns = -(-answer.view.input_hw[1] // 4)  # Beyond is padding, right of both.
    logits = answer.low_res_logits.copy()
    logits[..., :columns] = (logits[..., :columns] + mirrored.low_res_logits[..., :columns][..., ::-1]) / 2
    estimates = answer.predicted_iou + mirrored.predicted_iou
    return replace(answer, low_res_logits=logits, predicted_iou=np.asarray(estimates / 2, np.float32))
