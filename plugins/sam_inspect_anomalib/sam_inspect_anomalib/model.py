"""An anomalib model that wraps another one: detects as it does, outlines by SAM."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from anomalib import LearningType
from anomalib.metrics import AUPRO, AUROC, Evaluator, F1Score
from anomalib.models import get_model
from anomalib.models.components import AnomalibModule
from torch import nn

from sam_inspect.localize.anomalib_engine import known_weights
from sam_inspect_anomalib.metrics import BoundaryIoU, MaskIoU, MasksOver75, MasksOver90, RegionF1
from sam_inspect_anomalib.post_processor import SamPostProcessor

PIXELS, OWN_SIZE = ["pred_mask", "gt_mask"], ["full_pred_mask", "full_gt_mask"]
FORWARDED = (
    "training_step",
    "validation_step",
    "configure_optimizers",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_before_zero_grad",
    "optimizer_step",
    "lr_scheduler_step",
)
EXPORTS = ("to_torch", "to_onnx", "to_openvino")
log = logging.getLogger(__name__)


class SamRefined(AnomalibModule):
    """Any one-class anomalib model with SAM's masks. Every argument is plain data, so that checkpoints stay safe.

    Args:
        detector: as anomalib lists it: `padim`, `patchcore`, ...
        detector_args: of its class.
        recipe: see `SamPostProcessor`.
        pre_processor, post_processor, evaluator, visualizer: as of every anomalib model.
    """

    def __init__(
        self,
        detector: str = "patchcore",
        detector_args: dict[str, Any] | None = None,
        recipe: str | None = None,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Any = True,
    ) -> None:
        # The base class saves this frame's arguments: none of their names may stand for anything else here.
        args = dict(detector_args or {})
        with known_weights({}):
            inner = get_model(detector, **args, evaluator=False, visualizer=False, post_processor=False)
        before = inner.pre_processor if pre_processor is True and inner.pre_processor is not None else pre_processor
        after = SamPostProcessor(recipe=recipe) if post_processor is True else post_processor
        super().__init__(pre_processor=before, post_processor=after, evaluator=evaluator, visualizer=visualizer)
        inner.pre_processor = None  # a callback too: it may have one owner
        self.detector: AnomalibModule = inner

    @property
    def model(self) -> nn.Module:
        """The detector's network: what is tested, predicted with and exported."""
        return self.detector.model

    @property
    def name(self) -> str:
        """Of the results folder."""
        return f"{type(self).__name__}_{type(self.detector).__name__}"

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """The detector's."""
        return self.detector.trainer_arguments

    @property
    def learning_type(self) -> LearningType:
        """The detector's."""
        return self.detector.learning_type

    @property
    def automatic_optimization(self) -> bool:
        """The detector's."""
        return self.detector.automatic_optimization if "detector" in self._modules else True

    @automatic_optimization.setter
    def automatic_optimization(self, value: bool) -> None:
        """Lightning sets it before there is a detector."""

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """anomalib's measures, and of the masks at the model's size and at the image's own."""
        return Evaluator(
            test_metrics=[
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
                AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
                AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
                F1Score(fields=PIXELS, prefix="pixel_", strict=False),
                MaskIoU(fields=PIXELS, prefix="pixel_", strict=False),
                *(
                    metric(fields=OWN_SIZE, prefix="full_", strict=False)
                    for metric in (MaskIoU, BoundaryIoU, MasksOver75, MasksOver90, RegionF1)
                ),
            ]
        )

    @classmethod
    def checkpoint_safe_globals(cls) -> list[Any]:
        """What any detector's checkpoint may hold beside tensors."""
        others = (model for model in AnomalibModule.__subclasses__() if model is not cls)
        return [allowed for model in others for allowed in model.checkpoint_safe_globals()]


def _forwarded(name: str) -> Callable[..., Any]:
    def method(self: SamRefined, *args: Any, **kwargs: Any) -> Any:
        self.detector._current_fx_name = self._current_fx_name  # without it the detector's own log() refuses
        return getattr(self.detector, name)(*args, **kwargs)

    method.__name__ = name
    return method


def _exported(name: str) -> Callable[..., Any]:
    def method(self: SamRefined, *args: Any, **kwargs: Any) -> Any:
        log.warning("an export holds the detector and its plain threshold; SAM stays here")
        return getattr(super(SamRefined, self), name)(*args, **kwargs)

    method.__name__ = name
    return method


for _name in FORWARDED:
    setattr(SamRefined, _name, _forwarded(_name))
for _name in EXPORTS:
    setattr(SamRefined, _name, _exported(_name))
