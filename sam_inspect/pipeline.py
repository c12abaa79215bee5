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
import torch
from numpy.typing import NDArray

from sam_inspect.choose import choose
from sam_inspect.config import ChooseConfig, RecipeConfig
from sam_inspect.errors import ConfigError, ImageError, UsageError
from sam_inspect.files import absolute
from sam_inspect.images import read_image
from sam_inspect.judge import calibrated_threshold, judge, measure
from sam_inspect.localize import Localizer, Trainable
from sam_inspect.localize.boxes import GivenBox, GivenBoxes
from sam_inspect.networks import load_sam
from sam_inspect.networks.fastest import pick_runtime
from sam_inspect.networks.runtime import TORCH, Runtime, installed, running_on
from sam_inspect.networks.sam import NAMES as SAMS
from sam_inspect.plugins import broken_contract, load_plugin
from sam_inspect.prompt import find_regions, plan_views
from sam_inspect.recipe import BASE, Recipe, load_recipe
from sam_inspect.records import Defect, Inspection, Localization, Outline
from sam_inspect.segment import Segmenter, Tunable

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
            folder: the recipe.
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
        loaded = load_recipe(Path(folder))
        recipe = loaded if tuned else loaded.untuned()
        config = adjusted(recipe.config, false_reject_rate, min_area_px)
        if threshold is None:
            threshold = calibrated_threshold(recipe.calibration_scores, config.judge.false_reject_rate)
        place = pick_device(device)
        localizer_class = load_plugin("localizers", config.localizer.name)
        if not issubclass(localizer_class, Trainable):
            raise broken_contract(config.localizer.name, localizer_class, Trainable)
        chosen = _checked_runtime(recipe, place) if runtime == precision == "auto" else None
        chosen = chosen or pick_runtime_for(config, place, runtime, precision)
        with running_on(chosen):
            localizer = localizer_class.from_state(config.localizer.args, recipe.tensors, recipe.facts, device=place)
            segmenter = _tuned(_segmenter(config, place), recipe)
        return cls(config, segmenter, localizer=localizer, threshold=threshold, recipe=recipe, runtime=chosen)

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
        config = adjusted(recipe.config if recipe else RecipeConfig(), None, min_area_px)
        place = pick_device(device)
        chosen = pick_runtime_for(config, place, runtime, precision)
        with running_on(chosen):
            segmenter = _segmenter(config, place)
            segmenter = _tuned(segmenter, recipe) if recipe else segmenter
        return cls(config, segmenter, recipe=recipe, boxes=boxes, runtime=chosen)

    def inspect(self, source: Source, name: str = "image") -> Inspection:
        """One image's inspection.

        Args:
            source: a path, the bytes of a file, or an array as `sam_inspect.images.read_image` takes it.
            name: what the inspection calls bytes and arrays.

        Raises:
            ImageError: it cannot be read. (In `inspect_many` that is an Inspection with the verdict `error`.)
        """
        image, read_ms = _timed_read(source, name)
        label = str(source) if isinstance(source, str | Path) else name
        return self._inspect(image, label, read_ms)

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

    def _inspect(self, image: NDArray[np.uint8], name: str, read_ms: float) -> Inspection:
        """The whole of it."""
        clock = _Clock(read_ms)
        localization = self._localize(image, name)
        clock.ends("localize")
        views = plan_views(localization.regions, localization.original_hw, self.config.prompt)
        clock.ends("prompt")
        candidates = self.segmenter.segment(image, views) if views else []
        clock.ends("segment")
        outlines = choose(candidates, localization, self.config.choose)
        clock.ends("choose")
        inspection = judge(outlines, localization, self.threshold, self.config.judge)
        clock.ends("judge")
        return replace(inspection, image=name, timings_ms=clock.timings_ms)

    def boxes_of(self, name: str) -> Sequence[GivenBox]:
        """The boxes given for an image, by its path; () where none are."""
        return (self.boxes or {}).get(absolute(name), ())

    def _localize(self, image: NDArray[np.uint8], name: str) -> Localization:
        """The map with its regions, or the given boxes."""
        if self.boxes is not None:
            return GivenBoxes(self.boxes_of(name)).localize(image)
        assert self.localizer is not None
        assert self.threshold is not None
        found = self.localizer.localize(image)
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


def adjusted(config: RecipeConfig, false_reject_rate: float | None, min_area_px: int | None) -> RecipeConfig:
    """The config with what a command line says instead. Raises ConfigError for a rate of 0 or 1."""
    changes: dict[str, Any] = {}
    if false_reject_rate is not None:
        if not 0 < false_reject_rate < 1:
            raise ConfigError(
                f"false reject rate {false_reject_rate:g}: cannot be kept", "give one above 0 and below 1"
            )
        changes["false_reject_rate"] = false_reject_rate
    if min_area_px is not None:
        changes["min_area_px"] = min_area_px
    return config.model_copy(update={"judge": config.judge.model_copy(update=changes)})


def pick_device(device: str) -> str:
    """`cpu` or `cuda`. Raises UsageError where CUDA is asked for and there is none."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UsageError("--device cuda: this machine has no CUDA device", "give --device cpu, or auto")
    return "cuda" if available and device != "cpu" else "cpu"


def pick_runtime_for(config: RecipeConfig, device: str, name: str = "auto", precision: str = "auto") -> Runtime:
    """What runs the networks of a recipe; measured on its SAM where that is not known yet, torch where it has none.

    Raises:
        ConfigError, UsageError: what is named cannot run here.
        WeightsMissing, WeightsError: of its SAM.
    """
    if config.segmenter.name not in SAMS:
        return pick_runtime(name, precision, device, None)
    network, facts = load_sam(config.segmenter.name, config.segmenter.args.get("weights"), device)
    return pick_runtime(name, precision, device, network.image_encoder, facts["sha256"])


def _checked_runtime(recipe: Recipe, device: str) -> Runtime | None:
    """What `bench --check` put into the recipe, where it runs here."""
    if device != "cpu" or not installed(recipe.runtime.get("runtime", "")):
        return None
    checked = pick_runtime(recipe.runtime["runtime"], recipe.runtime["precision"], device, None)
    return replace(checked, patient=True)


def _segmenter(config: RecipeConfig, device: str) -> Segmenter:
    segmenter_class = load_plugin("segmenters", config.segmenter.name)
    if not issubclass(segmenter_class, Segmenter):
        raise broken_contract(config.segmenter.name, segmenter_class, Segmenter)
    return segmenter_class.from_config(config.segmenter.args, device=device)


def _tuned(segmenter: Segmenter, recipe: Recipe) -> Segmenter:
    """The segmenter with the recipe's tuned decoder, where it has one."""
    if not recipe.decoder:
        return segmenter
    if not isinstance(segmenter, Tunable):
        raise broken_contract(recipe.config.segmenter.name, type(segmenter), Tunable)
    return segmenter.with_tuned(recipe.decoder, str(recipe.decoder_facts.get(BASE)))
