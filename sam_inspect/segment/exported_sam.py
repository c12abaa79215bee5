"""SAM of an export as a segmenter: its two graphs, everything around them in NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sam_inspect.errors import ConfigError
from sam_inspect.exports import Export
from sam_inspect.networks.graphs import Graph
from sam_inspect.records import Candidates, Prompt, View
from sam_inspect.segment.views import batches, shown, to_input

PROMPTS_AT_ONCE = 8
BOX, NOTHING = (2.0, 3.0), -1.0


@dataclass(frozen=True, slots=True, eq=False)
class ViewFeatures:
    """A view, encoded.

    Attributes:
        view: what was encoded.
        features: (1, 256, side / 16, side / 16) float32.
    """

    view: View
    features: NDArray[np.float32]


class ExportedSam:
    """An `Interactive` segmenter of boxes and points; every view is seen at the export's size."""

    def __init__(self, export: Export, encoder: Graph, decoder: Graph) -> None:
        self.side_px, self.pad_with = export.side_px, np.array(export.pad_with, np.float32)
        self.encoder, self.decoder = encoder, decoder

    @classmethod
    def from_config(cls, args: Mapping[str, Any], *, device: str) -> Self:
        """Never: it comes with an export. Raises ConfigError."""
        raise ConfigError("segmenter exported_sam: comes with an export", "give the export as --recipe")

    def segment(self, image: NDArray[np.uint8], views: Sequence[View]) -> list[Candidates]:
        """See `Segmenter.segment`."""
        embeddings = self.encode(image, views)
        return [answer for each in embeddings for answer in self.decode(each, each.view.prompts)]

    def encode(self, image: NDArray[np.uint8], views: Sequence[View]) -> Iterator[ViewFeatures]:
        """See `Interactive.encode`."""
        for view in views:
            seen = replace(view, input_px=self.side_px)
            yield ViewFeatures(seen, self.encoder([self._square(shown(image, seen))])[0])

    def decode(self, embedding: ViewFeatures, prompts: Sequence[Prompt]) -> list[Candidates]:
        """See `Interactive.decode`."""
        view, answers = embedding.view, {}
        for indices in batches(prompts, PROMPTS_AT_ONCE):
            asked = [_tokens(prompts[index], view) for index in indices]
            points, labels = (np.stack(parts) for parts in zip(*asked, strict=True))
            logits, iou = self.decoder([embedding.features, points, labels])
            for row, index in enumerate(indices):
                answers[index] = Candidates(view, prompts[index], logits[row], iou[row])
        return [answers[index] for index in range(len(prompts))]

    def _square(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(h, w, 3) -> (1, 3, side, side), filled right and below."""
        square = np.empty((1, 3, self.side_px, self.side_px), np.float32)
        square[:] = self.pad_with[:, None, None]
        square[0, :, : pixels.shape[0], : pixels.shape[1]] = pixels.transpose(2, 0, 1)
        return square


def _tokens(prompt: Prompt, view: View) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Points (P, 2) in the view's frame and their labels (P,): clicks, then the box's corners or a point of nothing."""
    if prompt.mask_logits is not None:
        raise ConfigError("the export's decoder takes no mask prompt", "use the recipe itself")
    ends = np.zeros((1, 2), np.float32)
    if prompt.box_xyxy is not None:
        ends = to_input(np.array(prompt.box_xyxy, np.float32).reshape(2, 2), view)
    labels = BOX if prompt.box_xyxy is not None else (NOTHING,)
    points = np.concatenate([to_input(prompt.points_xy, view), ends])
    return points, np.concatenate([prompt.point_labels, labels]).astype(np.float32)
