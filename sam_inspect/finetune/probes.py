"""Labelled images with everything but the decoder done, so that many decoders are scored for little.

Each is asked twice: about its ground-truth boxes, and about what the recipe's localizer finds on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from sam_inspect.ask import ask, ask_view, seen_in
from sam_inspect.choose import choose
from sam_inspect.config import ChooseConfig
from sam_inspect.errors import RecipeError
from sam_inspect.finetune.embeddings import CachedEncoder, Kept
from sam_inspect.finetune.labels import Label
from sam_inspect.images import read_image
from sam_inspect.localize.boxes import GivenBox, GivenBoxes
from sam_inspect.masks import box_iou, union
from sam_inspect.mirror import AS_IT_IS, Mirror
from sam_inspect.pipeline import Inspector
from sam_inspect.prompt import find_regions, plan_views
from sam_inspect.records import Box, Candidates, CropMask, Localization, Rgb, View
from sam_inspect.segment.sam import Embedding, Sam

NEARLY = 0.95
SAME_IOU = 0.3
Errors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """Regions of an image and the views in which they are asked about.

    Attributes:
        file: the image.
        localization: its regions, and the map that they were found in.
        views: what SAM is shown, each with its prompts.
        encoder: encodes each view once.
        kept: the embeddings of all views, in each mirror image that has been asked for.
    """

    file: Path
    localization: Localization
    views: tuple[View, ...]
    encoder: CachedEncoder
    kept: dict[Mirror, list[Kept]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, file: Path, image: Rgb, localization: Localization, views: Sequence[View], encoder: CachedEncoder
    ) -> Self:
        """What is asked about an image in these views. Raises OutputError where an embedding cannot be kept."""
        question = cls(file, localization, tuple(views), encoder)
        question._embed([AS_IT_IS], image)
        return question

    def candidates(self, sam: Sam, config: ChooseConfig) -> list[Candidates]:
        """A network's answers; what is kept serves where its encoder is the untuned one. Raises OutputError."""
        if sam.encoder_tuned:
            return ask(sam, read_image(self.file), self.views, self.localization, config)
        mirrors = seen_in(config)
        if missing := [mirror for mirror in mirrors if mirror not in self.kept]:
            self._embed(missing, read_image(self.file))
        seen = zip(*(self._encoded(sam, mirror) for mirror in mirrors), strict=True)
        return [answer for sides in seen for answer in ask_view(sam, sides, self.localization, config)]

    def _encoded(self, sam: Sam, mirror: Mirror) -> Iterator[Embedding]:
        """Every view in a mirror image, as it is kept."""
        for view, kept in zip(self._there(mirror), self.kept[mirror], strict=True):
            yield Embedding(view, torch.from_numpy(kept.load().astype(np.float32))[None].to(sam.device))

    def _embed(self, mirrors: Sequence[Mirror], image: Rgb) -> None:
        for mirror in mirrors:
            crops = [(view.input_px, view.crop_xyxy) for view in self._there(mirror)]
            seen = mirror.image(image)
            self.kept[mirror] = [self.encoder.embed(seen[y0:y1, x0:x1], px) for px, (x0, y0, x1, y1) in crops]

    def _there(self, mirror: Mirror) -> list[View]:
        return [mirror.view(view, self.localization.original_hw) for view in self.views]

    def chosen(self, candidates: Sequence[Candidates], config: ChooseConfig) -> list[CropMask]:
        """The masks that are chosen from them."""
        return [outline.mask for outline in choose(candidates, self.localization, config)]


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A labelled image.

    Attributes:
        label: its ground truth.
        boxes: asked about the box of each of its defects.
        found: asked about the localizer's regions; where the image passes, about its highest one.
        detected: whether it fails the recipe's threshold, so that `found` is what ships.
    """

    label: Label
    boxes: Question
    found: Question
    detected: bool

    def truth(self) -> NDArray[np.bool_]:
        """(H, W) bool."""
        return union(self.label.defects, self.label.original_hw)

    def box_masks(self, sam: Sam, config: ChooseConfig) -> list[CropMask]:
        """What a decoder outlines in the ground-truth boxes."""
        return self.boxes.chosen(self.boxes.candidates(sam, config), config)

    def found_masks(self, sam: Sam, config: ChooseConfig) -> list[CropMask]:
        """What a decoder outlines in the localizer's regions."""
        return self.found.chosen(self.found.candidates(sam, config), config)

    def shipped_masks(self, sam: Sam, config: ChooseConfig) -> list[CropMask]:
        """The same; none of an image that passes."""
        return self.found_masks(sam, config) if self.detected else []


def probe(label: Label, inspector: Inspector, encoder: CachedEncoder) -> Probe:
    """The label's image, localized and encoded.

    Raises:
        RecipeError: the recipe's localizer draws no map.
    """
    image = read_image(label.sample.image)
    assert inspector.localizer is not None
    assert inspector.threshold is not None
    found = inspector.localizer.localize(image)
    if found.anomaly_map is None:
        raise RecipeError(f"{label.name}: the recipe drew no anomaly map of it", "tune a recipe that has one")
    threshold = min(inspector.threshold, NEARLY * found.pred_score)
    regions = find_regions(found.anomaly_map, found.original_hw, threshold, inspector.config.prompt)
    given = GivenBoxes([GivenBox(defect.box_xyxy, None) for defect in label.defects]).localize(image)
    return Probe(
        label=label,
        boxes=_question(label, image, given, inspector, encoder),
        found=_question(label, image, replace(found, regions=regions), inspector, encoder),
        detected=found.pred_score > inspector.threshold,
    )


def _question(
    label: Label, image: Rgb, localization: Localization, inspector: Inspector, encoder: CachedEncoder
) -> Question:
    views = plan_views(localization.regions, localization.original_hw, inspector.config.prompt)
    fixed = encoder.sam.fixed_input_px
    shown = [view if fixed is None else replace(view, input_px=fixed) for view in views]
    return Question.of(label.sample.image, image, localization, shown, encoder)


def box_errors(probes: Sequence[Probe]) -> Errors:
    """(n, 4) float32: how far the localizer's boxes lie off, left, top, right, bottom, as shares of the true sides.

    Of every region that is about one defect, not of those on a part of it; cut at a whole side.
    """
    errors = [
        _error(region.box_xyxy, defect.box_xyxy)
        for each in probes
        for region in each.found.localization.regions
        for defect in each.label.defects
        if box_iou(region.box_xyxy, defect.box_xyxy) > SAME_IOU
    ]
    return np.clip(np.array(errors, np.float32).reshape(-1, 4), -1, 1)


def _error(box: Box, true: Box) -> list[float]:
    sides = (true[2] - true[0], true[3] - true[1]) * 2
    return [(a - b) / side for a, b, side in zip(box, true, sides, strict=True)]
