"""A post-processor for any one-class anomalib model: scores and maps as anomalib's, masks refined by SAM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import Batch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, resize
from torchvision.tv_tensors import Mask

from sam_inspect.datasets import Sample, read_gt_mask
from sam_inspect.errors import ConfigError
from sam_inspect.images import read_image
from sam_inspect.judge import calibrated_threshold
from sam_inspect.localize.anomalib_engine import one_spelling
from sam_inspect.localize.anomalib_model import Frame, frame_of
from sam_inspect.localize.drawn_maps import Place, located
from sam_inspect.masks import union
from sam_inspect.pipeline import Inspector
from sam_inspect.recipe import load_recipe


class SamPostProcessor(PostProcessor):
    """Normalises and thresholds as anomalib does; at test and predict time `pred_mask` is then SAM's.

    `pred_score`, `pred_label` and `anomaly_map` are anomalib's own. The batch also gets `full_pred_mask`, a list of
    (H, W) bool masks at each image's own size, and at test time `full_gt_mask`.

    Args:
        recipe: folder of a sam_inspect recipe, whose choices and tuned decoder are used; the defaults where it is None.
            Where the recipe's own heatmap is this anomalib model, its threshold counts too, so that the masks are those
            of `sam-inspect inspect`.
        threshold: of the map, in its own unit before normalisation; anomalib's pixel threshold where it is None.
        options: of anomalib's `PostProcessor`.
    """

    def __init__(self, recipe: str | None = None, threshold: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.recipe, self.threshold = recipe, threshold
        self._inspector: Inspector | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without SAM: an exported model is pickled whole, and cannot run it."""
        return self.__dict__ | {"_inspector": None}

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "recipe", "threshold")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Refines a batch of test images, and reads their ground truth at its own size."""
        self._refined(outputs, pl_module)
        samples = trainer.test_dataloaders.dataset.samples if outputs.image_path else None
        # batch.mask_path is None for the whole batch whenever its first image is good; the table knows.
        if samples is not None and hasattr(outputs, "full_pred_mask"):
            known = dict(zip(samples.image_path, samples.mask_path, strict=True))
            pairs = zip(outputs.image_path, outputs.full_pred_mask, strict=True)
            outputs.full_gt_mask = [_truth(path, known.get(path), found.shape) for path, found in pairs]

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Refines a batch of new images."""
        self._refined(outputs, pl_module)

    def _refined(self, batch: Batch, pl_module: LightningModule) -> None:
        raw = None if batch.anomaly_map is None else batch.anomaly_map.detach().float().cpu().numpy()
        self.post_process_batch(batch)
        if raw is None or not batch.image_path:
            return
        masks, small = [], []
        for path, values in zip(batch.image_path, raw.reshape(-1, *raw.shape[-2:]), strict=True):
            image = read_image(path)
            frame = frame_of(pl_module.pre_processor.transform, image.shape[:2])
            masks.append(self._mask(image, frame.whole(values), pl_module))
            small.append(_as_model_sees(masks[-1], frame, values.shape))
        batch.pred_mask = torch.stack(small).to(batch.anomaly_map.device)
        batch.full_pred_mask = masks

    def _mask(self, image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], pl_module: Any) -> NDArray[np.bool_]:
        """(H, W) bool."""
        inspector = self._inspector or self._made(pl_module)
        threshold, place = self._of_recipe(inspector, pl_module, anomaly_map)
        found = located(anomaly_map, image.shape[:2], place)
        refined = inspector.refine(image, found, threshold - place.base)
        return union((defect.mask for defect in refined.defects), image.shape[:2])

    def _made(self, pl_module: LightningModule) -> Inspector:
        device = "cuda" if pl_module.device.type == "cuda" else "cpu"
        recipe = load_recipe(Path(self.recipe)) if self.recipe else None
        self._inspector = Inspector.from_boxes({}, device, recipe=recipe)
        return self._inspector

    def _of_recipe(self, inspector: Inspector, pl_module: Any, anomaly_map: NDArray[np.float32]) -> tuple[float, Place]:
        """Threshold of the map in its own unit, and its place: the recipe's for its own model, else anomalib's."""
        recipe = inspector.recipe
        name = type(getattr(pl_module, "detector", pl_module)).__name__
        config = recipe.config.localizer if recipe else None
        own = config is not None and config.name == "anomalib" and one_spelling(config.args["model"]) == name.lower()
        if recipe is not None and own:
            place = Place.from_facts(recipe.facts)
            calibrated = calibrated_threshold(recipe.calibration_scores, recipe.config.judge.false_reject_rate)
            return calibrated + place.base if self.threshold is None else self.threshold, place
        threshold = self.threshold if self.threshold is not None else self._anomalibs_threshold()
        # Nobody measured good parts: the image's own median is an ordinary pixel's, unless most of it is a defect.
        median = float(np.median(anomaly_map))
        return threshold, Place(base=median if median < threshold else float(anomaly_map.min()))

    def _anomalibs_threshold(self) -> float:
        if self.pixel_threshold.isnan():
            raise ConfigError(
                "SamPostProcessor: anomalib has no threshold yet", "fit with validation images, or give threshold="
            )
        return float(self.pixel_threshold + self._beyond())

    def _beyond(self) -> Tensor | float:
        """What another sensitivity than a half adds, in the map's own unit."""
        if self.pixel_sensitivity is None or not self.enable_normalization:
            return 0.0
        return (0.5 - self.pixel_sensitivity) * (self.pixel_max - self.pixel_min)


def _as_model_sees(mask: NDArray[np.bool_], frame: Frame, shape: tuple[int, ...]) -> Tensor:
    """(h, w) bool: as anomalib scales a `gt_mask`, nearest neighbours, and crops it."""
    whole = resize(Mask(torch.from_numpy(mask.astype(np.uint8))[None]), list(frame.scaled_hw))
    return center_crop(whole, list(shape))[0].bool()


def _truth(image: str, mask: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if not isinstance(mask, str) or mask in {"", "None", "nan"}:
        return np.zeros(shape, bool)
    return read_gt_mask(Sample(Path(image), "defect", Path(mask)), (shape[0], shape[1]))
