"""Any anomalib image model as a localizer: fitted by anomalib's own engine, or read from its checkpoint.

What it learned is kept as tensors; the recipe needs no checkpoint later, only anomalib's code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from sklearn.model_selection import KFold
from torch import Tensor

from sam_inspect.config import Section, validated
from sam_inspect.errors import ConfigError, RecipeError, WeightsError
from sam_inspect.localize import Fit
from sam_inspect.localize.anomalib_engine import Weights, build, read_checkpoint, train
from sam_inspect.localize.drawn_maps import UNPLACED, Place, fit_of, located, maps_of, measured
from sam_inspect.progress import Progress
from sam_inspect.records import Localization, Map

FEW, FOLDS = 30, 3
HELD_SHARE, MOST_HELD = 5, 60


class AnomalibArgs(Section):
    """Arguments of the localizer `anomalib`."""

    model: str
    """As anomalib lists it: padim, patchcore, anomaly_dino, efficient_ad, ..."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Of the model's class, plain data."""
    size_px: int | None = Field(None, ge=32, le=2048)
    """Side of the square to which images are scaled; the model's own where it is not said."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Of Lightning's trainer, such as max_epochs or max_steps; the model's own where it is not said."""
    checkpoint: str | None = None
    """A model.ckpt that anomalib wrote, or its torch export model.pt, instead of a fit."""
    trust: bool = False
    """Load the checkpoint even if that can run code that is in it."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """What a model sees of an image.

    Attributes:
        scaled_hw: (h, w) to which the whole image is scaled.
        crop_xyxy: what of that is left.
    """

    scaled_hw: tuple[int, int]
    crop_xyxy: tuple[int, int, int, int]

    def whole(self, anomaly_map: Map) -> Map:
        """A map of the crop as one of the whole image, its lowest value where the model does not look."""
        x0, y0, x1, y1 = self.crop_xyxy
        if (y1 - y0, x1 - x0) == self.scaled_hw:
            return anomaly_map
        whole = np.full(self.scaled_hw, anomaly_map.min(), np.float32)
        whole[y0:y1, x0:x1] = cv2.resize(anomaly_map, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        return whole


class AnomalibModel:
    """See the module. A `Trainable`."""

    def __init__(self, args: AnomalibArgs, model: Any, device: str, place: Place = UNPLACED) -> None:
        self.args, self.device, self.place = args, device, place
        self.transform = model.pre_processor.transform
        self.network = model.model.to(device).eval()

    def localize(self, image: NDArray[np.uint8]) -> Localization:
        """See `Localizer.localize`."""
        return located(self.distances(image)[0], image.shape[:2], self.place)

    @torch.inference_mode()
    def distances(self, image: NDArray[np.uint8]) -> list[Map]:
        """The map as the model draws it, over the whole image."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
        answer = self.network(self.transform(pixels).to(self.device))
        anomaly_map = answer.anomaly_map.float().cpu().numpy().squeeze()
        return [frame_of(self.transform, image.shape[:2]).whole(anomaly_map)]

    @classmethod
    def fit(
        cls, images: Sequence[Path], args: Mapping[str, Any], *, device: str, progress: Progress
    ) -> tuple[Self, Fit]:
        """See `Trainable.fit`. A checkpoint's model is not fitted: `images` are good parts that it has not seen."""
        parsed = validated(AnomalibArgs, dict(args), "localizer.args")
        weights: Weights = {}
        if parsed.checkpoint is not None:
            localizer = cls._read(parsed, Path(parsed.checkpoint), device)
            held, maps = images, maps_of(localizer, images, progress)
        else:
            localizer, held, maps = cls._cross_fitted(parsed, images, weights, device, progress)
        localizer.place = measured(localizer, images, maps)
        return localizer, fit_of(maps, localizer.place.base, weights, held)

    @classmethod
    def _read(cls, args: AnomalibArgs, file: Path, device: str) -> Self:
        """The model of a checkpoint."""
        own, tensors = read_checkpoint(args.model, file, args.trust)
        args = args.model_copy(update={"args": own | args.args})
        return cls(args, _loaded(args, tensors, str(file)), device)

    @classmethod
    def _cross_fitted(
        cls, args: AnomalibArgs, images: Sequence[Path], weights: Weights, device: str, progress: Progress
    ) -> tuple[Self, list[Path], list[Map]]:
        """A fitted model, and good parts with their maps by a fit that had not seen them."""
        maps: list[Map] = []
        splits = held_out(images, args.seed)
        for learned, held in splits:
            localizer = cls._fitted(args, learned, weights, device, progress)
            maps += maps_of(localizer, held, progress)
        whole = localizer if len(splits) == 1 else cls._fitted(args, images, weights, device, progress)
        return whole, [image for _, held in splits for image in held], maps

    @classmethod
    def _fitted(
        cls, args: AnomalibArgs, images: Sequence[Path], weights: Weights, device: str, progress: Progress
    ) -> Self:
        model = build(args.model, args.args, args.size_px, weights, args.seed)
        frame_of(model.pre_processor.transform, (64, 64))  # says what cannot be brought back before an hour of work
        train(model, images, args.trainer, args.seed, device, progress)
        return cls(args, model, device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Trainable.state`."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        return tensors, {"model_args": self.args.args} | self.place.facts()

    @classmethod
    def from_state(
        cls, args: Mapping[str, Any], tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, device: str
    ) -> Self:
        """See `Trainable.from_state`."""
        parsed = validated(AnomalibArgs, dict(args), "localizer.args")
        place = Place.from_facts(facts)
        if "model_args" not in facts:
            raise RecipeError("its model of anomalib lacks 'model_args'", "train it again")
        parsed = parsed.model_copy(update={"args": facts["model_args"]})
        return cls(parsed, _loaded(parsed, tensors, "the recipe"), device, place)


def held_out(images: Sequence[Path], seed: int) -> list[tuple[list[Path], list[Path]]]:
    """(learned, held): of many images a fifth is held out once, few are held out in turn."""
    if len(images) < FEW:
        folds = KFold(min(FOLDS, len(images)), shuffle=True, random_state=seed).split(images)
        return [([images[i] for i in learned], [images[i] for i in held]) for learned, held in folds]
    order = np.random.default_rng(seed).permutation(len(images))
    held = set(order[: min(MOST_HELD, len(images) // HELD_SHARE)].tolist())
    return [([p for i, p in enumerate(images) if i not in held], [p for i, p in enumerate(images) if i in held])]


def frame_of(transform: Any, original_hw: tuple[int, ...]) -> Frame:
    """What a pre-processor's transform leaves of an image.

    Raises:
        ConfigError: it does more than scale, crop in the middle and normalise: its map cannot be brought back.
    """
    from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize, ToDtype

    height, width = original_hw[:2]
    scaled, crop = (height, width), (0, 0, width, height)
    for step in transform.transforms if isinstance(transform, Compose) else [transform]:
        if isinstance(step, Resize):
            h, w = step(torch.empty(1, crop[3] - crop[1], crop[2] - crop[0])).shape[-2:]
            if crop != (0, 0, scaled[1], scaled[0]):
                raise ConfigError("the anomalib model scales after it crops", "let it scale first")
            scaled, crop = (h, w), (0, 0, w, h)
        elif isinstance(step, CenterCrop):
            h, w = step.size
            left, top = round((scaled[1] - w) / 2), round((scaled[0] - h) / 2)
            if left < 0 or top < 0:
                raise ConfigError(f"the anomalib model's crop of {h} x {w} is larger than its image", "scale to more")
            crop = (left, top, left + w, top + h)
        elif not isinstance(step, Normalize | ToDtype):
            name = type(step).__name__
            raise ConfigError(f"the anomalib model's {name} cannot be undone in its map", "leave it out")
    return Frame(scaled, crop)


def _loaded(args: AnomalibArgs, tensors: Mapping[str, Tensor], source: str) -> Any:
    """The model with these tensors in it."""
    model = build(args.model, args.args, args.size_px, None)
    try:
        model.model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{source}: its tensors do not fit anomalib's {args.model} ({reason})", "train it again"
        ) from None
    return model
