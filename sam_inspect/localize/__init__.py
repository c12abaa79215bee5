"""Localizers: from an image to an anomaly map or to given regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sam_inspect.progress import Progress
from sam_inspect.records import Localization

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Localizer(Protocol):
    """Says where an image deviates."""

    def localize(self, image: NDArray[np.uint8]) -> Localization:
        """The anomaly map of `image`, (H, W, 3) uint8 RGB; regions are found in it later, unless they are given."""
        ...


@runtime_checkable
class Batching(Localizer, Protocol):
    """A localizer for which several images in one batch cost less than each alone."""

    def at_once(self, original_hw: tuple[int, int]) -> int:
        """How many images of that size are worth a batch; 1 for none."""
        ...

    def localize_many(self, images: Sequence[NDArray[np.uint8]]) -> list[Localization]:
        """What `localize` says of each; all (H, W, 3) uint8 RGB of one size."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What fitting found out about good parts.

    Attributes:
        calibration_scores: (n,) float32 `pred_score` of good images, each scored by a fit that had not seen it.
        calibration_pixels: (1001,) float32, the 0, 0.1, ... 100 % quantiles of their anomaly maps' values.
        weights: name -> {"sha256", "source"} of the pretrained weights in use.
        images: those of the scores, in their order; none where a localizer does not say.
    """

    calibration_scores: NDArray[np.float32]
    calibration_pixels: NDArray[np.float32]
    weights: dict[str, dict[str, str]]
    images: Sequence[Path] = ()

    @classmethod
    def of(cls, maps: Sequence[NDArray[np.float32]], weights: dict[str, dict[str, str]], images: Sequence[Path]) -> Fit:
        """What the maps of held-out good parts say, those of `images`; a map's peak is its score."""
        scores = np.array([found.max() for found in maps], np.float32)
        pixels = np.quantile(np.concatenate([found.ravel() for found in maps]), np.linspace(0, 1, 1001))
        return cls(scores, pixels.astype(np.float32), weights, images)


@runtime_checkable
class Trainable(Localizer, Protocol):
    """A localizer that learns from good images and keeps what it learned as tensors and plain data."""

    @classmethod
    def fit(
        cls, images: Sequence[Path], args: Mapping[str, Any], *, device: str, progress: Progress
    ) -> tuple[Self, Fit]:
        """Learns good parts from `images`.

        Args:
            images: files of good parts, at least two.
            args: the recipe's `localizer.args`.
            device: `cpu` or `cuda`.
            progress: shows how far it is.

        Raises:
            ConfigError, DatasetError, WeightsError.
        """
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was learned: tensors, and plain data that JSON can hold."""
        ...

    @classmethod
    def from_state(
        cls, args: Mapping[str, Any], tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, device: str
    ) -> Self:
        """The same localizer again. Raises WeightsError, RecipeError."""
        ...
