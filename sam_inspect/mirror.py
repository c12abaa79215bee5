"""A view and its mirror images: what SAM is asked there, and the mean of what it answers in all of them.

SAM's encoder does not see a thing and its mirror image alike, and the mean of the answers errs less than any of them
(test-time augmentation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sam_inspect.records import Candidates, Prompt, View

Side = TypeVar("Side", int, float)


@dataclass(frozen=True, slots=True)
class Mirror:
    """An image as it is, upside down, left to right, or both.

    Attributes:
        down, across: the step of rows and columns; -1 where they run backwards.
    """

    down: int
    across: int

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) of the same pixels."""
        return image[:: self.down, :: self.across]

    def view(self, view: View, original_hw: tuple[int, int]) -> View:
        """The same crop there, of which nothing is asked."""
        if self == AS_IT_IS:
            return view
        return replace(view, crop_xyxy=self._box(view.crop_xyxy, original_hw), prompts=())

    def prompt(self, prompt: Prompt, original_hw: tuple[int, int]) -> Prompt:
        """The same box and points there; `mask_logits` have no place in a mirror image."""
        if self == AS_IT_IS:
            return prompt
        assert prompt.mask_logits is None
        height, width = original_hw
        x, y = prompt.points_xy.T
        points = np.stack([width - x if self.across < 0 else x, height - y if self.down < 0 else y], 1)
        box = self._box(prompt.box_xyxy, original_hw) if prompt.box_xyxy is not None else None
        return replace(prompt, points_xy=points, box_xyxy=box)

    def _box(self, box: tuple[Side, Side, Side, Side], original_hw: tuple[int, int]) -> tuple[Side, Side, Side, Side]:
        (x0, y0, x1, y1), (height, width) = box, original_hw
        if self.across < 0:
            x0, x1 = width - x1, width - x0
        if self.down < 0:
            y0, y1 = height - y1, height - y0
        return x0, y0, x1, y1


AS_IT_IS = Mirror(1, 1)
MIRRORS = (AS_IT_IS, Mirror(-1, 1), Mirror(1, -1), Mirror(-1, -1))


def mean_of(answers: Sequence[Candidates]) -> Candidates:
    """The first answer, with the mean of all masks.

    Args:
        answers: to the same question in the first so many of `MIRRORS`.
    """
    first, *others = answers
    if not others:
        return first
    height, width = first.view.input_hw
    rows, columns = -(-height // 4), -(-width // 4)  # Beyond is padding, below and to the right.
    logits = first.low_res_logits.copy()
    for mirror, answer in zip(MIRRORS[1:], others, strict=False):
        turned = answer.low_res_logits[:, :rows, :columns]
        turned = _flipped(turned, 1, height) if mirror.down < 0 else turned
        logits[:, :rows, :columns] += _flipped(turned, 2, width) if mirror.across < 0 else turned
    logits[:, :rows, :columns] /= len(answers)
    estimates = np.mean([answer.predicted_iou for answer in answers], axis=0)
    return replace(first, low_res_logits=logits, predicted_iou=np.asarray(estimates, np.float32))


def _flipped(logits: NDArray[np.float32], axis: int, side: int) -> NDArray[np.float32]:
    """Backwards along an axis of cells of four pixels, of which so many pixels show the view: about their middle."""
    flipped = np.flip(logits, axis)
    beyond = np.float32(flipped.shape[axis] - side / 4)  # of the last cell, by which all lie too far on
    if not beyond:
        return flipped
    following = np.take(flipped, np.arange(1, flipped.shape[axis] + 1), axis, mode="clip")
    return np.asarray(flipped + beyond * (following - flipped), np.float32)
