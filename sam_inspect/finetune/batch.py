"""Views of one training step as tensors: what is asked about, and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam_inspect.finetune.views import Rng, TrainingView, jittered


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Views of one step as tensors.

    Attributes:
        input_px: side of the network's input.
        boxes: (B, 4), asked about; of a defect, moved by one of the localizer's errors.
        truth: (B, 1, l, l) in 0 to 1, what lies mostly inside the box.
        valid: (B, 1, l, l), 1 on the view and 0 on its padding.
    """

    input_px: int
    boxes: Tensor
    truth: Tensor
    valid: Tensor

    @classmethod
    def of(
        cls,
        views: Sequence[TrainingView],
        errors: NDArray[np.float32],
        jitter: float,
        rng: Rng,
        device: torch.device,
    ) -> Batch:
        """The boxes are drawn anew every time."""
        input_px, low = views[0].input_px, views[0].input_px // 4
        boxes = np.stack([_box(view, errors, jitter, rng) for view in views])
        truth = np.stack([_truth_in(view, box) for view, box in zip(views, boxes, strict=True)])[:, None]
        valid = np.zeros((len(views), 1, low, low), np.float32)
        for mask, view in zip(valid, views, strict=True):
            mask[0, : -(-view.valid_hw[0] // 4), : -(-view.valid_hw[1] // 4)] = 1
        tensors = (torch.from_numpy(array).to(device) for array in (boxes, truth, valid))
        return cls(input_px, *tensors)

    def clicks(self, where: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """One random point a view where `where` is set, positive on the defect; beside the defect where it is empty."""
        points, labels = [], []
        for wanted, truth, valid in zip(where[:, 0], self.truth[:, 0], self.valid[:, 0], strict=True):
            places = torch.nonzero(wanted > 0.5 if bool((wanted > 0.5).any()) else valid > 0)
            row, column = places[int(rng.integers(len(places)))].tolist()
            points.append([[4 * column + 2.0, 4 * row + 2.0]])
            labels.append([int(truth[row, column] > 0.5)])
        device = self.boxes.device
        return torch.tensor(points, device=device), torch.tensor(labels, device=device)


def _box(view: TrainingView, errors: NDArray[np.float32], jitter: float, rng: Rng) -> NDArray[np.float32]:
    if view.own is None:
        return view.random_box
    height, width = view.valid_hw
    box = jittered(view.boxes[view.own], errors, jitter, rng)
    return np.asarray(np.clip(box, 0, np.array([width, height] * 2)), np.float32)


def _truth_in(view: TrainingView, box: NDArray[np.float32]) -> NDArray[np.float32]:
    """(l, l): every defect that lies at least half in the box, and the one that the view was drawn for."""
    low = view.input_px // 4
    truth = np.zeros((low, low), np.float32)
    x0, y0 = np.floor(box[:2] / 4).astype(int)
    x1, y1 = np.ceil(box[2:] / 4).astype(int)
    for index, part in enumerate(view.truths.astype(np.float32)):
        if index == view.own or part[y0:y1, x0:x1].sum() >= part.sum() / 2:
            truth = np.maximum(truth, part)
    return truth
