"""Maps that a model of another library draws: put where they belong, and what they say of good parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from sam_inspect.images import read_image
from sam_inspect.localize import Fit
from sam_inspect.localize.planted import measure_offsets
from sam_inspect.progress import Progress
from sam_inspect.records import Localization

PLANTED_IMAGES, PLANTED_CELLS = 3, 60
Map = NDArray[np.float32]
Offset = tuple[float, float]


class Drawing(Protocol):
    """A model that draws one map of an image."""

    def distances(self, image: NDArray[np.uint8]) -> list[Map]:
        """The one map as the model draws it, over the whole (H, W, 3) uint8 RGB image."""
        ...


def located(anomaly_map: Map, original_hw: tuple[int, int], offset_yx: Offset) -> Localization:
    """The map where it belongs, in the model's own unit, neither scaled nor cut. Its peak is the score."""
    anomaly_map = _moved(anomaly_map, offset_yx)
    return Localization(original_hw, float(anomaly_map.max()), anomaly_map=anomaly_map)


def _moved(anomaly_map: Map, offset_yx: Offset) -> Map:
    """Up and left by shares of its sides."""
    dy, dx = (offset * side for offset, side in zip(offset_yx, anomaly_map.shape, strict=True))
    if not dy and not dx:
        return anomaly_map
    move, size = np.array([[1, 0, -dx], [0, 1, -dy]], np.float64), anomaly_map.shape[::-1]
    placed = cv2.warpAffine(anomaly_map, move, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(placed, np.float32)


def measured_offset(model: Drawing, images: Sequence[Path]) -> Offset:
    """Where its map lies off an image, as shares of the image's sides: the median over a few, of any sizes."""
    shares = []
    for image in map(read_image, images[:PLANTED_IMAGES]):
        height, width = image.shape[:2]
        ((dy, dx),) = measure_offsets(model, [image], 1.0, min(height, width) // PLANTED_CELLS)
        shares.append((dy / height, dx / width))
    dy, dx = np.median(shares, axis=0)
    return float(dy), float(dx)


def maps_of(model: Drawing, images: Sequence[Path], progress: Progress) -> list[Map]:
    """The map of each good part."""
    return [model.distances(read_image(path))[0] for path in progress(images, "held-out good parts", len(images))]


def fit_of(maps: Sequence[Map], weights: dict[str, dict[str, str]]) -> Fit:
    """What maps of held-out good parts say."""
    scores = np.array([found.max() for found in maps], np.float32)
    pixels = np.quantile(np.concatenate([found.ravel() for found in maps]), np.linspace(0, 1, 1001))
    return Fit(scores, pixels.astype(np.float32), weights)
