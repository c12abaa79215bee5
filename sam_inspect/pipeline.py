"""The whole way of an image: localize, prompt, segment, choose, judge."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_inspect.assemble import Asked, Stages, stages_of_boxes, stages_of_recipe
from sam_inspect.choose import choose
from sam_inspect.config import ChooseConfig, RecipeConfig
from sam_inspect.errors import ImageError
from sam_inspect.files import absolute
from sam_inspect.images import read_image
from sam_inspect.judge import judge, measure
from sam_inspect.localize import Localizer
from sam_inspect.localize.boxes import GivenBox, GivenBoxes
from sam_inspect.networks.graphs import TORCH, Runtime
from sam_inspect.prompt import find_regions, plan_views
from sam_inspect.recipe import Recipe
from sam_inspect.records import Defect, Inspection, Localization, Outline
from sam_inspect.segment import Segmenter

Source = str | Path | bytes | NDArray[Any]
READ_AHEAD = 4


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
            runtime: what runs the networks: `torch`, `openvino`, `onnx`, or `auto` for the fastest here.
            precision: `f32` or `bf16`; `auto` is f32. Both `auto`: those that `bench --check` put into the recipe.

        Raises:
            RecipeError, WeightsError, PluginError, ConfigError: what was asked for cannot be.
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
        """
        image, read_ms = _timed_read(source, name)
        label = str(source) if isinstance(source, str | Path) else name
        return self._inspect(image, label, read_ms, None if boxes is None else [GivenBox(box, None) for box in boxes])

    def inspect_many(self, paths: Iterable[str | Path]) -> Iterator[Inspection]:
        """An inspection of each file, in order; files are read ahead while the networks work.

        One that cannot be read gives an Inspection with the verdict `error`, which says why.
        """
        for label, read in _read_ahead(paths):
            try:
                image, read_ms = read.result()
                yield self._inspect(image, label, read_ms)
            except ImageError as error:
                yield Inspection(label, "error", error=str(error))

    def outline(self, image: NDArray[np.uint8], boxes: Sequence[tuple[float, float, float, float]]) -> list[Defect]:
        """SAM's mask of each given box, largest first; none for a box that lies outside or in which SAM sees nothing.

        Args:
            image: (H, W, 3) uint8 RGB.
            boxes: x0, y0, x1, y1 in pixels.
        """
        localization = GivenBoxes([GivenBox(box, None) for box in boxes]).localize(image)
        every_box = self.config.choose.model_copy(update={"duplicate_iou": 1.0})
        outlines = self._outlines(image, localization, every_box)
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
        outlines = self._outlines(image, localization, self.config.choose)
        return judge(outlines, localization, threshold, self.config.judge)

    def _outlines(self, image: NDArray[np.uint8], localization: Localization, config: ChooseConfig) -> list[Outline]:
        """SAM's outline of each region; it does not run where there is none."""
        views = plan_views(localization.regions, localization.original_hw, self.config.prompt)
        return choose(self.segmenter.segment(image, views) if views else [], localization, config)

    def _inspect(
        self, image: NDArray[np.uint8], name: str, read_ms: float, boxes: Sequence[GivenBox] | None = None
    ) -> Inspection:
        """The whole of it."""
        clock = _Clock(read_ms)
        boxes = self.boxes_of(name) if boxes is None and self.boxes is not None else boxes
        localization = self._localize(image, name) if boxes is None else GivenBoxes(boxes).localize(image)
        clock.ends("localize")
        views = plan_views(localization.regions, localization.original_hw, self.config.prompt)
        clock.ends("prompt")
        candidates = self.segmenter.segment(image, views) if views else []
        clock.ends("segment")
        outlines = choose(candidates, localization, self.config.choose)
        clock.ends("choose")
        threshold = self.threshold if boxes is None else None
        inspection = judge(outlines, localization, threshold, self.config.judge)
        clock.ends("judge")
        return replace(inspection, image=name, timings_ms=clock.timings_ms)

    def boxes_of(self, name: str) -> Sequence[GivenBox]:
        """The boxes given for an image, by its path; () where none are."""
        return (self.boxes or {}).get(absolute(name), ())

    def _localize(self, image: NDArray[np.uint8], name: str) -> Localization:
        """The map with its regions."""
        assert self.localizer is not None
        assert self.threshold is not None
        try:
            found = self.localizer.localize(image)
        except ImageError as error:
            raise ImageError(f"{name}: {error.problem}", error.remedy) from None
        if found.anomaly_map is None:
            return found
        regions = find_regions(found.anomaly_map, found.original_hw, self.threshold, self.config.prompt)
        return replace(found, regions=regions)


class _Clock:
    """Milliseconds of each stage."""

    def __init__(self, read_ms: float) -> None:
        self.timings_ms = {"read": read_ms}
        self._last = time.perf_counter()

    def ends(self, stage: str) -> None:
        now = time.perf_counter()
        self.timings_ms[stage] = 1000 * (now - self._last)
        self._last = now


def _read_ahead(paths: Iterable[str | Path]) -> Iterator[tuple[str, Future[tuple[NDArray[np.uint8], float]]]]:
    """Each path with its image, read in a thread; no more than a few wait."""
    remaining = iter(paths)
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        waiting = [(str(path), pool.submit(_timed_read, path)) for path in islice(remaining, READ_AHEAD)]
        try:
            for following in chain(remaining, [None] * len(waiting)):
                yield waiting.pop(0)
                if following is not None:
                    waiting.append((str(following), pool.submit(_timed_read, following)))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _timed_read(source: Source, name: str = "image") -> tuple[NDArray[np.uint8], float]:
    """(H, W, 3) uint8 RGB, and the milliseconds that it took."""
    start = time.perf_counter()
    return read_image(source, name=name), 1000 * (time.perf_counter() - start)
