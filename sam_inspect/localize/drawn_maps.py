"""Maps that a model of another library draws: put where they belong, and what they say of good parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sam_inspect.errors import RecipeError
from sam_inspect.images import read_image
from sam_inspect.localize import Fit
from sam_inspect.localize.planted import measure_offsets, moved_back
from sam_inspect.progress import Progress
from sam_inspect.records import Localization, Map

PLANTED_IMAGES, PLANTED_CELLS = 3, 60


@dataclass(frozen=True, slots=True)
class Place:
    """How a drawn map becomes one of the image.

    Attributes:
        offset_yx: where it lies off the image, as shares of the image's sides.
        base: what it shows on an ordinary pixel of a good part, in its own unit.
    """

    offset_yx: tuple[float, float] = (0.0, 0.0)
    base: float = 0.0

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Place:
        """Out of a recipe. Raises RecipeError."""
        try:
            dy, dx = facts["offset_yx"]
            return cls((float(dy), float(dx)), float(facts["base"]))
        except (KeyError, ValueError) as error:
            raise RecipeError(f"its model of anomalib lacks {error}", "train it again") from None

    def facts(self) -> dict[str, Any]:
        """For a recipe."""
        return {"offset_yx": list(self.offset_yx), "base": self.base}


UNPLACED = Place()


class Drawing(Protocol):
    """A model that draws one map of an image."""

    def distances(self, image: NDArray[np.uint8]) -> list[Map]:
        """The one map as the model draws it, over the whole (H, W, 3) uint8 RGB image."""
        ...


def located(anomaly_map: Map, original_hw: tuple[int, int], place: Place) -> Localization:
    """The map where it belongs, 0 on an ordinary pixel of a good part, else in its own unit. Its peak is the score.

    Regions reach down to a share of their peak: over a map that is never near 0 they would be the whole image.
    """
    (dy, dx), (height, width) = place.offset_yx, anomaly_map.shape
    anomaly_map = moved_back(anomaly_map, (dy * height, dx * width)) - np.float32(place.base)
    return Localization(original_hw, float(anomaly_map.max()), anomaly_map=anomaly_map)


def measured(model: Drawing, images: Sequence[Path], maps: Sequence[Map]) -> Place:
    """The place of a model's maps, from a few good parts and the maps of held-out ones."""
    shares = []
    for image in map(read_image, images[:PLANTED_IMAGES]):
        height, width = image.shape[:2]
        ((dy, dx),) = measure_offsets(model, [image], 1.0, min(height, width) // PLANTED_CELLS)
        shares.append((dy / height, dx / width))
    dy, dx = np.median(shares, axis=0)
    return Place((float(dy), float(dx)), float(np.median(np.concatenate([found.ravel() for found in maps]))))


def maps_of(model: Drawing, images: Sequence[Path], progress: Progress) -> list[Map]:
    """The map of each good part."""
    return [model.distances(read_image(path))[0] for path in progress(images, "held-out good parts", len(images))]


def fit_of(maps: Sequence[Map], base: float, weights: dict[str, dict[str, str]], images: Sequence[Path]) -> Fit:
    """What maps of held-out good parts say, less the base."""
    return Fit.of([found - np.float32(base) for found in maps], weights, images)
