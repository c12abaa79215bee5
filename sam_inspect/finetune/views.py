"""What the decoder learns from: augmented views of labelled defects, encoded, and of good parts, where nothing is.

A view is drawn as in use (a square about the prompted box, moved inside the image), then flipped, turned and relit.
The prompts are drawn anew at every step: an encoded view serves many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from sam_inspect.config import PromptConfig
from sam_inspect.finetune.embeddings import CachedEncoder, Kept
from sam_inspect.finetune.labels import Label
from sam_inspect.images import read_image
from sam_inspect.masks import window
from sam_inspect.prompt import square_view
from sam_inspect.records import Box, CropMask, Rgb, View
from sam_inspect.segment.sam import Sam

CONTEXTS, SHIFT = (1.2, 2.2), 0.2
GOOD_SIDES = (0.03, 0.5)
GAINS = (0.8, 1.25)
GAMMAS = (0.85, 1.2)
Rng = np.random.Generator
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingView:
    """An encoded view.

    Attributes:
        kept: what the untuned encoder answered.
        pixels: what it was shown; None where it stays as it is.
        input_px: side of the network's input.
        valid_hw: (h, w) of the view inside the input, pixels; the rest is padding.
        truths: (D, l, l) float16, for each defect that the view shows its share of each low resolution pixel.
        boxes: (D, 4) float32, theirs, x0, y0, x1, y1 in pixels of the input.
        own: the defect that the view was drawn for; None for a good part.
        random_box: (4,) float32, the box that is asked about on a good part.
    """

    kept: Kept
    pixels: Kept | None
    input_px: int
    valid_hw: tuple[int, int]
    truths: NDArray[np.float16]
    boxes: NDArray[np.float32]
    own: int | None
    random_box: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How views are cut: the recipe's `prompt` section, without the rest of it."""

    context: float
    least_view_px: int
    input_px: int

    @classmethod
    def of(cls, config: PromptConfig, sam: Sam) -> Sizes:
        """Those that the recipe inspects with."""
        return cls(config.context, config.least_view_px, sam.fixed_input_px or config.input_px)


class ViewMaker:
    """Draws, encodes and keeps views of one network; their pixels too where its encoder is not frozen."""

    def __init__(self, encoder: CachedEncoder, sizes: Sizes, frozen: bool = True) -> None:
        self.encoder, self.sizes, self.frozen = encoder, sizes, frozen

    def labelled(self, label: Label, views: int) -> list[TrainingView]:
        """`views` of each defect of a labelled image; the first one as it is in use, unaugmented.

        They are the same for every fit, whatever else is learned from, so that each is encoded once for all of them.
        """
        image = read_image(label.sample.image)
        return [
            self._of(image, label.defects, place, _rng(label.name, place, number), number > 0)
            for place in range(len(label.defects))
            for number in range(views)
        ]

    def good(self, image: Rgb, name: str, views: int) -> list[TrainingView]:
        """Views of random boxes on a good part, a thirtieth to half of its short side large."""
        return [self._of_good(image, _rng(name, 0, number)) for number in range(views)]

    def _of(self, image: Rgb, defects: Sequence[CropMask], place: int, rng: Rng, augmented: bool) -> TrainingView:
        box: Sequence[float] = defects[place].box_xyxy
        context = self.sizes.context
        if augmented:
            box = (np.array(box) + rng.uniform(-SHIFT, SHIFT, 4) * _sides(box)).tolist()
            context = float(rng.uniform(*CONTEXTS))
        crop = square_view(_whole(box, image.shape[:2]), image.shape[:2], context, self.sizes.least_view_px)
        parts = [(index, window(defect, crop)) for index, defect in enumerate(defects)]
        seen = [(index, part) for index, part in parts if part.any()]
        turn = Turn.drawn(rng) if augmented else Turn()
        return self._encoded(
            turn.relit(_cut(image, crop)), [turn.turned(part) for _, part in seen], [index for index, _ in seen], place
        )

    def _of_good(self, image: Rgb, rng: Rng) -> TrainingView:
        height, width = image.shape[:2]
        side = max(1.0, min(height, width) * float(np.exp(rng.uniform(*np.log(GOOD_SIDES)))))
        w, h = (min(v, side * float(np.exp(rng.uniform(-0.7, 0.0)))) for v in (width, height))
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        box = (x, y, x + w, y + h)
        crop = square_view(_whole(box, (height, width)), (height, width), self.sizes.context, self.sizes.least_view_px)
        return self._encoded(_cut(image, crop), [], [], None, np.array(box, np.float32) - np.tile(crop[:2], 2))

    def _encoded(
        self,
        pixels: Rgb,
        parts: Sequence[NDArray[np.bool_]],
        indices: Sequence[int],
        own: int | None,
        box: NDArray[np.float32] | None = None,
    ) -> TrainingView:
        pixels = np.ascontiguousarray(pixels)
        height, width = pixels.shape[:2]
        view = View((0, 0, width, height), self.sizes.input_px, ())
        kept = self.encoder.embed(pixels, view.input_px)
        seen = None if self.frozen else self.encoder.show(pixels, view.input_px)
        scale = np.tile(np.array(view.input_hw[::-1], np.float32) / (width, height), 2)
        low = view.input_px // 4
        truths = np.zeros((len(parts), low, low), np.float16)
        for truth, part in zip(truths, parts, strict=True):
            truth[:] = low_res(part, view)
        boxes = np.asarray(np.array([_bounds(part) for part in parts]).reshape(-1, 4) * scale, np.float32)
        random_box = np.zeros(4, np.float32) if box is None else np.asarray(box * scale, np.float32)
        place = None if own is None else list(indices).index(own)
        return TrainingView(kept, seen, view.input_px, view.input_hw, truths, boxes, place, random_box)


@dataclass(frozen=True, slots=True)
class Turn:
    """One of the eight ways to lay a square, and a light."""

    quarter_turns: int = 0
    mirrored: bool = False
    gain: float = 1.0
    gamma: float = 1.0

    @classmethod
    def drawn(cls, rng: Rng) -> Turn:
        """A random one."""
        return cls(int(rng.integers(4)), bool(rng.integers(2)), rng.uniform(*GAINS), rng.uniform(*GAMMAS))

    def turned(self, pixels: NDArray[T]) -> NDArray[T]:
        """(H, W) or (H, W, C), laid so."""
        laid = np.rot90(pixels, self.quarter_turns)
        return laid[:, ::-1] if self.mirrored else laid

    def relit(self, pixels: Rgb) -> Rgb:
        """The same, in that light."""
        table = 255 * (np.arange(256) / 255) ** self.gamma * self.gain
        return np.asarray(np.clip(table + 0.5, 0, 255).astype(np.uint8)[self.turned(pixels)])


def jittered(box: NDArray[np.float32], errors: NDArray[np.float32], jitter: float, rng: Rng) -> NDArray[np.float32]:
    """A box with one of the localizer's errors (n, 4), as shares of its sides, up to its full size; mirrored at will.

    Its sides stay at least a quarter of what they were.
    """
    if not len(errors) or not jitter:
        return box
    error = errors[rng.integers(len(errors))] * rng.uniform(0, jitter)
    x0, y0, x1, y1 = error
    if rng.integers(2):
        x0, x1 = -x1, -x0
    if rng.integers(2):
        y0, y1 = -y1, -y0
    width, height = box[2] - box[0], box[3] - box[1]
    moved = box + np.array([x0 * width, y0 * height, x1 * width, y1 * height], np.float32)
    for low, high, side in ((0, 2, width), (1, 3, height)):
        if moved[high] - moved[low] < side / 4:
            middle = (moved[low] + moved[high]) / 2
            moved[low], moved[high] = middle - side / 8, middle + side / 8
    return moved


def _rng(name: str, place: int, number: int) -> Rng:
    """By what is drawn alone: the views of a label are the same in every run, and found in the cache again."""
    return np.random.default_rng([*name.encode(), place, number])


def _sides(box: Sequence[float]) -> NDArray[np.float64]:
    return np.tile([box[2] - box[0], box[3] - box[1]], 2)


def _whole(box: Sequence[float], original_hw: tuple[int, ...]) -> Box:
    """In whole pixels inside the image, at least one a side."""
    x0, x1 = _span(box[0], box[2], original_hw[1])
    y0, y1 = _span(box[1], box[3], original_hw[0])
    return x0, y0, x1, y1


def _span(start: float, end: float, size: int) -> tuple[int, int]:
    first = min(max(0, int(start)), size - 1)
    return first, min(size, max(first + 1, int(np.ceil(end))))


def _cut(image: Rgb, crop: Box) -> Rgb:
    x0, y0, x1, y1 = crop
    return image[y0:y1, x0:x1]


def _bounds(part: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(part).view(np.uint8))
    return x, y, x + width, y + height


def low_res(part: NDArray[np.bool_], view: View) -> NDArray[np.float32]:
    """(l, l): how much of each of SAM's low resolution pixels is set."""
    height, width = view.input_hw
    low = view.input_px // 4
    size = (max(1, round(width / 4)), max(1, round(height / 4)))
    shrinks = part.shape[1] > size[0] or part.shape[0] > size[1]
    small = cv2.resize(
        np.ascontiguousarray(part).astype(np.float32),
        size,
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    out = np.zeros((low, low), np.float32)
    out[: size[1], : size[0]] = small
    return out
