"""The whole way of an image: localize, prompt, segment, choose, judge."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_inspect.ask import ask
from sam_inspect.assemble import Asked, Stages, stages_of_boxes, stages_of_recipe
from sam_inspect.choose import choose
from sam_inspect.config import RecipeConfig
from sam_inspect.errors import ImageError
from sam_inspect.files import absolute
from sam_inspect.images import MAX_PIXELS, read_image
from sam_inspect.judge import judge, measure
from sam_inspect.localize import Batching, Localizer
from sam_inspect.localize.boxes import GivenBox, GivenBoxes, checked_box
from sam_inspect.networks.graphs import TORCH, Runtime
from sam_inspect.prompt import find_regions, plan_views
from sam_inspect.recipe import Recipe
from sam_inspect.records import Defect, Inspection, Localization, Outline
from sam_inspect.segment import Segmenter

Source = str | Path | bytes | NDArray[Any]
READERS = max(1, min(4, (os.cpu_count() or 1) // 2))
LEAST_AHEAD, MOST_AHEAD, BYTES_AHEAD = 4, 16, 48 << 20
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """An image that was read.

    Attributes:
        name: what its inspection calls it.
        image: (H, W, 3) uint8 RGB.
        read_ms: how long reading took.
        boxes: to be outlined instead of what the heatmap finds; None for the heatmap.
    """

    name: str
    image: NDArray[np.uint8]
    read_ms: float = 0.0
    boxes: Sequence[GivenBox] | None = None

    @classmethod
    def read(
        cls,
        source: Source,
        name: str = "image",
        boxes: Sequence[tuple[float, float, float, float]] | None = None,
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> Part:
        """A path, which is its name too; the bytes of a file; or an array. Raises ImageError, BoxesError."""
        start = time.perf_counter()
        image = read_image(source, name=name, max_pixels=max_pixels)
        label = str(source) if isinstance(source, str | Path) else name
        given = None if boxes is None else [checked_box(box, image.shape[:2], label) for box in boxes]
        return cls(label, image, 1000 * (time.perf_counter() - start), given)


class Inspector:
    """The stages of one recipe, ready to run.

    Attributes:
        config: every choice.
        localizer: says where an image deviates; None where boxes are given.
        segmenter: outlines.
        threshold: scores above it fail; None where boxes are given.
        recipe: what it was made from; None where boxes are given without one.
        runtime: what runs its networks.
    """

    def __init__(
        self,
        config: RecipeConfig,
        segmenter: Segmenter,
        *,
        localizer: Localizer | None = None,
        threshold: float | None = None,
        recipe: Recipe | None = None,
        boxes: Mapping[str, Sequence[GivenBox]] | None = None,
        runtime: Runtime = TORCH,
    ) -> None:
        self.config, self.segmenter, self.localizer = config, segmenter, localizer
        self.threshold, self.recipe, self.boxes, self.runtime = threshold, recipe, boxes, runtime

    @classmethod
    def from_recipe(
        cls,
        folder: str | Path,
        device: str = "auto",
        *,
        threshold: float | None = None,
        false_reject_rate: float | None = None,
        min_area_px: int | None = None,
        tuned: bool = True,
        runtime: str = "auto",
        precision: str = "auto",
    ) -> Inspector:
        """The recipe's inspector.

        Args:
            folder: the recipe, or an export of it, which runs without torch.
            device: `auto`, `cpu` or `cuda`.
            threshold: instead of the calibrated one.
            false_reject_rate: calibrates to this share of good parts instead of the recipe's, above 0 and below 1.
            min_area_px: instead of the recipe's.
            tuned: False for the recipe as it was before its decoder was tuned.
            runtime: what runs the networks: `torch`, `openvino`, `onnx`, `compiled` (on a GPU) or `auto`, the fastest.
            precision: `f32` or `bf16`; `auto` is f32. Both `auto`: those that `bench --check` put into the recipe.

        Raises:
            RecipeError, WeightsError, PluginError, ConfigError, UsageError: what was asked for cannot be.
        """
        asked = Asked(device, threshold, false_reject_rate, min_area_px, tuned, runtime, precision)
        return cls._of(stages_of_recipe(Path(folder), asked))

    @classmethod
    def from_boxes(
        cls,
        boxes: Mapping[str, Sequence[GivenBox]],
        device: str = "auto",
        *,
        recipe: Recipe | None = None,
        min_area_px: int | None = None,
        runtime: str = "auto",
        precision: str = "auto",
    ) -> Inspector:
        """An inspector of given boxes: no heatmap.

        Args:
            boxes: by absolute path of the image, from `sam_inspect.localize.boxes.read_boxes`.
            device: `auto`, `cpu` or `cuda`.
            recipe: gives its choices and its tuned decoder; the defaults where it is None.
            min_area_px: defects of fewer pixels are dropped.
            runtime, precision: as in `from_recipe`.

        Raises:
            WeightsError, PluginError, ConfigError: the segmenter cannot be built.
        """
        asked = Asked(device, min_area_px=min_area_px, runtime=runtime, precision=precision)
        return cls._of(stages_of_boxes(recipe, asked), boxes)

    @classmethod
    def _of(cls, stages: Stages, boxes: Mapping[str, Sequence[GivenBox]] | None = None) -> Inspector:
        return cls(
            stages.config,
            stages.segmenter,
            localizer=stages.localizer,
            threshold=stages.threshold,
            recipe=stages.recipe,
            boxes=boxes,
            runtime=stages.runtime,
        )

    def inspect(
        self, source: Source, name: str = "image", boxes: Sequence[tuple[float, float, float, float]] | None = None
    ) -> Inspection:
        """One image's inspection.

        Args:
            source: a path, the bytes of a file, or an array as `sam_inspect.images.read_image` takes it.
            name: what the inspection calls bytes and arrays.
            boxes: x0, y0, x1, y1 in pixels, to be outlined instead of what the heatmap finds.

        Raises:
            ImageError: it cannot be read. (In `inspect_many` that is an Inspection with the verdict `error`.)
            BoxesError: a box has no area or lies outside the image.
        """
        return next(self.inspect_together([Part.read(source, name, boxes)]))

    def inspect_many(self, paths: Iterable[str | Path]) -> Iterator[Inspection]:
        """An inspection of each file, in order; files are read ahead while the networks work.

        One that cannot be read gives an Inspection with the verdict `error`, which says why.
        """
        for found in self._groups(_read_ahead(paths)):
            if isinstance(found, Inspection):
                yield found
                continue
            yield from self._inspected(found)

    def _inspected(self, parts: Sequence[Part]) -> Iterator[Inspection]:
        """An inspection of each; what cannot be taken together is taken one by one."""
        answered = 0
        try:
            for inspection in self.inspect_together(parts):
                answered += 1
                yield inspection
        except ImageError as error:
            if len(parts) == 1:
                yield unread(parts[0].name, error)
                return
            for part in parts[answered:]:
                yield from self._inspected([part])

    def at_once(self, part: Part) -> int:
        """How many parts like this one `inspect_together` is worth being asked about at once."""
        if part.boxes is not None or self.boxes is not None or not isinstance(self.localizer, Batching):
            return 1
        return self.localizer.at_once(_hw(part.image))

    def inspect_together(self, parts: Sequence[Part]) -> Iterator[Inspection]:
        """An inspection of each, in order; their heatmaps share batches.

        Args:
            parts: of one size, and no more than `at_once`.

        Raises:
            ImageError: the localizer cannot take them.
        """
        start = time.perf_counter()
        found = self._localize(parts)
        localize_ms = 1000 * (time.perf_counter() - start) / len(parts)
        for part, localization in zip(parts, found, strict=True):
            yield self._inspect(part, localization, localize_ms)

    def outline(self, image: NDArray[np.uint8], boxes: Sequence[tuple[float, float, float, float]]) -> list[Defect]:
        """SAM's mask of each given box; none for a box that lies outside or in which SAM sees nothing.

        Args:
            image: (H, W, 3) uint8 RGB.
            boxes: x0, y0, x1, y1 in pixels.
        """
        localization = GivenBoxes([GivenBox(box, None) for box in boxes]).localize(image)
        outlines = self._outlines(image, localization, _Clock({}))
        return [measure(outline, self.config.judge.pixel_size_mm) for outline in outlines]

    def refine(self, image: NDArray[np.uint8], found: Localization, threshold: float) -> Inspection:
        """SAM's outlines of what a map shows, whoever drew it; SAM does not run where nothing exceeds the threshold.

        Args:
            image: (H, W, 3) uint8 RGB.
            found: with a map of the whole image.
            threshold: in the map's unit.
        """
        if found.anomaly_map is None:
            raise ValueError("Inspector.refine: there is no map to refine")
        regions = find_regions(found.anomaly_map, found.original_hw, threshold, self.config.prompt)
        localization = replace(found, regions=regions)
        outlines = self._outlines(image, localization, _Clock({}))
        return judge(outlines, localization, threshold, self.config.judge)

    def _inspect(self, part: Part, localization: Localization, localize_ms: float) -> Inspection:
        """What comes after the heatmap."""
        clock = _Clock({"read": part.read_ms, "localize": localize_ms})
        outlines = self._outlines(part.image, localization, clock)
        if localization.anomaly_map is None and (empty := len(localization.regions) - len(outlines)):
            log.warning("%s: SAM sees nothing in %d of %d boxes", part.name, empty, len(localization.regions))
        threshold = self.threshold if self._given(part) is None else None
        inspection = judge(outlines, localization, threshold, self.config.judge)
        clock.ends("judge")
        return replace(inspection, image=part.name, timings_ms=clock.timings_ms)

    def _outlines(self, image: NDArray[np.uint8], localization: Localization, clock: _Clock) -> list[Outline]:
        """SAM's outline of each region; it does not run where there is none."""
        views = plan_views(localization.regions, localization.original_hw, self.config.prompt)
        clock.ends("prompt")
        candidates = ask(self.segmenter, image, views, localization, self.config.choose)
        clock.ends("segment")
        outlines = choose(candidates, localization, self.config.choose)
        clock.ends("choose")
        return outlines

    def _given(self, part: Part) -> Sequence[GivenBox] | None:
        """The boxes that stand instead of a heatmap; None for a heatmap."""
        return self.boxes_of(part.name) if part.boxes is None and self.boxes is not None else part.boxes

    def boxes_of(self, name: str) -> Sequence[GivenBox]:
        """The boxes given for an image, by its path; () where none are."""
        return (self.boxes or {}).get(absolute(name), ())

    def _localize(self, parts: Sequence[Part]) -> list[Localization]:
        """The map with its regions, or the given boxes, of each."""
        if len(parts) > 1:
            assert isinstance(self.localizer, Batching)
            return [self._with_regions(found) for found in self.localizer.localize_many([part.image for part in parts])]
        return [self._localize_one(part) for part in parts]

    def _localize_one(self, part: Part) -> Localization:
        if (boxes := self._given(part)) is not None:
            return GivenBoxes(boxes).localize(part.image)
        assert self.localizer is not None
        try:
            return self._with_regions(self.localizer.localize(part.image))
        except ImageError as error:
            raise ImageError(f"{part.name}: {error.problem}", error.remedy) from None

    def _with_regions(self, found: Localization) -> Localization:
        if found.anomaly_map is None:
            return found
        assert self.threshold is not None
        regions = find_regions(found.anomaly_map, found.original_hw, self.threshold, self.config.prompt)
        return replace(found, regions=regions)

    def _groups(self, reads: Iterable[Part | Inspection]) -> Iterator[list[Part] | Inspection]:
        """Parts that can be inspected together, in order, as soon as there are enough; errors between them."""
        group: list[Part] = []
        for read in reads:
            if group and (isinstance(read, Inspection) or read.image.shape != group[0].image.shape):
                yield group
                group = []
            if isinstance(read, Inspection):
                yield read
                continue
            group.append(read)
            if len(group) >= self.at_once(read):
                yield group
                group = []
        if group:
            yield group


class _Clock:
    """Milliseconds of each stage."""

    def __init__(self, before: Mapping[str, float]) -> None:
        self.timings_ms = dict(before)
        self._last = time.perf_counter()

    def ends(self, stage: str) -> None:
        now = time.perf_counter()
        self.timings_ms[stage] = 1000 * (now - self._last)
        self._last = now


def _read_ahead(paths: Iterable[str | Path]) -> Iterator[Part | Inspection]:
    """Each path, in order, read in threads; a batch's worth of small ones waits, of large ones a few."""
    remaining, ahead = iter(paths), LEAST_AHEAD
    waiting: deque[Future[Part | Inspection]] = deque()
    with ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool:
        try:
            while True:
                waiting.extend(pool.submit(_part, path) for path in islice(remaining, max(0, ahead - len(waiting))))
                if not waiting:
                    return
                read = waiting.popleft().result()
                if isinstance(read, Part):
                    ahead = max(LEAST_AHEAD, min(MOST_AHEAD, BYTES_AHEAD // read.image.nbytes))
                yield read
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _part(path: str | Path) -> Part | Inspection:
    try:
        return Part.read(path)
    except ImageError as error:
        return unread(str(path), error)


def unread(name: str, error: ImageError) -> Inspection:
    """The inspection of an image that cannot be read, or that the localizer cannot take."""
    return Inspection(name, "error", error=str(error))


def _hw(image: NDArray[Any]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
