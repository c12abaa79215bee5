"""Losses of predicted masks, each (B, M, l, l) logits against (B, 1, l, l) truth; one value for each mask.

Truth is the share of a low resolution pixel that is defect, 0 to 1. `valid` (B, 1, l, l) is 0 on the padding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FOCAL_GAMMA, FOCAL_ALPHA = 2.0, 0.25
FOCAL_TO_DICE = 20.0
BOUNDARY_WEIGHT = 4.0
LEAST = 1e-6
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def mse(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """(B, M): mean squared error of probabilities."""
    return _mean((logits.sigmoid() - truth) ** 2, valid)


def dice(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """(B, M): 1 - 2 |A B| / (|A| + |B|) of probabilities (Milletari et al., 2016); 0 where the truth is empty."""
    mask = logits.sigmoid() * valid
    shared, total = (mask * truth).sum((2, 3)), mask.sum((2, 3)) + (truth * valid).sum((2, 3))
    return (1 - (2 * shared + 1) / (total + 1)) * (truth.sum((2, 3)) > 0)


def focal(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """(B, M): the focal loss (Lin et al., ICCV 2017) with SAM's alpha 0.25 and gamma 2."""
    wrong = torch.where(truth > 0.5, 1 - logits.sigmoid(), logits.sigmoid())
    weight = torch.where(truth > 0.5, FOCAL_ALPHA, 1 - FOCAL_ALPHA) * wrong**FOCAL_GAMMA
    return _mean(weight * _bce(logits, truth), valid)


def focal_dice(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """(B, M): SAM's own, focal and dice 20 to 1 (Kirillov et al., ICCV 2023)."""
    return FOCAL_TO_DICE * focal(logits, truth, valid) + dice(logits, truth, valid)


def balanced_bce(logits: Tensor, truth: Tensor, valid: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """(B, M): cross-entropy, defect and good surface half each; good surface alone where there is no defect."""
    loss = weight * _bce(logits, truth)
    on, off = _mean(loss, valid * truth), _mean(loss, valid * (1 - truth))
    return torch.where(truth.sum((2, 3)) > 0, (on + off) / 2, off)


def bce_dice(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """(B, M): balanced cross-entropy and dice."""
    return balanced_bce(logits, truth, valid) + dice(logits, truth, valid)


def boundary(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """(B, M): the same, pixels within two of the truth's edge weighing five times."""
    edge = F.max_pool2d(truth, 5, 1, 2) - (1 - F.max_pool2d(1 - truth, 5, 1, 2))
    return balanced_bce(logits, truth, valid, 1 + BOUNDARY_WEIGHT * edge) + dice(logits, truth, valid)


def forgotten(logits: Tensor, before: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """(B, M): how far the probability lies from the untuned network's, squared, where that one was right.

    What pretraining knows of edges is worth more than a few labels (Li & Hoiem, Learning without Forgetting, 2016).
    Defect and good surface weigh the same.
    """
    right = valid * ((before > 0) == (truth > 0.5))
    loss = (torch.sigmoid(logits) - torch.sigmoid(before)) ** 2
    return _mean(loss, right * truth) + _mean(loss, right * (1 - truth))


LOSSES: dict[str, Loss] = {"mse": mse, "focal_dice": focal_dice, "bce_dice": bce_dice, "boundary": boundary}


def true_iou(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """(B, M): the IoU of the masks themselves, what SAM's IoU head is to predict; 0 where the truth is empty."""
    mask, true = (logits > 0) & (valid > 0), (truth > 0.5) & (valid > 0)
    return (mask & true).sum((2, 3)) / (mask | true).sum((2, 3)).clamp(min=1)


def _bce(logits: Tensor, truth: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, truth.expand_as(logits), reduction="none")


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=LEAST)
