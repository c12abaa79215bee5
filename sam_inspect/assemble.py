"""The stages of a recipe or of an export, built: weights, runtime, plugins. torch is imported for a recipe only."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sam_inspect.config import RecipeConfig
from sam_inspect.errors import ConfigError, ExtraMissing, RecipeError, UsageError, WeightsError
from sam_inspect.exports import Export, is_export, load_export
from sam_inspect.judge import calibrated_threshold
from sam_inspect.localize import Localizer, Trainable
from sam_inspect.localize.exported_map import ExportedMap
from sam_inspect.networks.graphs import Graph, Runtime, RuntimeName, check, graph, installed, openvino_has_bf16
from sam_inspect.plugins import broken_contract, load_plugin
from sam_inspect.recipe import AGAIN, BASE, Recipe, load_recipe
from sam_inspect.segment import Segmenter, Tunable
from sam_inspect.segment.exported_sam import ExportedSam

if TYPE_CHECKING:
    from sam_inspect.networks.sam import SamNetwork

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """What an `Inspector` is made of: see there."""

    config: RecipeConfig
    segmenter: Segmenter
    localizer: Localizer | None
    threshold: float | None
    recipe: Recipe | None
    runtime: Runtime


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller wants otherwise than the recipe says: see `Inspector.from_recipe`."""

    device: str = "auto"
    threshold: float | None = None
    false_reject_rate: float | None = None
    min_area_px: int | None = None
    tuned: bool = True
    runtime: str = "auto"
    precision: str = "auto"


def stages_of_recipe(folder: Path, asked: Asked) -> Stages:
    """The stages of a recipe, or of an export.

    Raises:
        RecipeError, WeightsError, PluginError, ConfigError, UsageError: what was asked for cannot be.
    """
    if is_export(folder):
        return _stages_of_export(folder, asked)
    _check_torch()
    loaded = load_recipe(folder)
    recipe = loaded if asked.tuned else loaded.untuned()
    config = adjusted(recipe.config, asked.false_reject_rate, asked.min_area_px)
    place = pick_device(asked.device)
    localizer_class = load_plugin("localizers", config.localizer.name)
    if not issubclass(localizer_class, Trainable):
        raise broken_contract(config.localizer.name, localizer_class, Trainable)
    chosen = _runtime(recipe, config, place, asked)
    from sam_inspect.networks.runtime import running_on

    with running_on(chosen):
        localizer = _localizer(localizer_class, recipe, place)
        segmenter = _as_trained(build_segmenter(config, place), recipe)
    threshold = _threshold(recipe, config) if asked.threshold is None else asked.threshold
    return Stages(config, segmenter, localizer, threshold, recipe, chosen)


def _localizer(kind: type[Trainable], recipe: Recipe, device: str) -> Trainable:
    try:
        return kind.from_state(recipe.config.localizer.args, recipe.tensors, recipe.facts, device=device)
    except RecipeError as error:
        raise RecipeError(f"{recipe.folder}: {error.problem}", error.remedy) from None
    except (TypeError, ValueError, LookupError) as error:  # recipe.yaml is a file that people edit
        problem = f"{recipe.folder}: its localizer_facts cannot be used ({' '.join(str(error).split())})"
        raise RecipeError(problem, AGAIN) from error


def stages_of_boxes(recipe: Recipe | None, asked: Asked) -> Stages:
    """The stages behind given boxes: no heatmap. Raises as `stages_of_recipe` does."""
    if recipe is not None and is_export(recipe.folder):
        return _stages_of_export(recipe.folder, asked, with_map=False)
    _check_torch()
    from sam_inspect.networks.runtime import running_on

    config = adjusted(recipe.config if recipe else RecipeConfig(), None, asked.min_area_px)
    place = pick_device(asked.device)
    chosen = _runtime(recipe, config, place, asked)
    with running_on(chosen):
        segmenter = build_segmenter(config, place)
        segmenter = _as_trained(segmenter, recipe) if recipe else segmenter
    return Stages(config, segmenter, None, None, recipe, chosen)


def _stages_of_export(folder: Path, asked: Asked, with_map: bool = True) -> Stages:
    """Without torch, on the CPU; behind given boxes without the map."""
    if asked.device == "cuda":
        raise UsageError(f"{folder}: an export runs on the CPU", "give --device cpu, or the recipe itself")
    if not asked.tuned:
        raise UsageError(f"{folder}: an export has one decoder", "give the recipe itself")
    export = load_export(folder)
    config = adjusted(export.recipe.config, asked.false_reject_rate, asked.min_area_px)
    chosen = _graph_runtime(export, asked)
    segmenter = ExportedSam(export, _graph(export.encoder, chosen), _graph(export.decoder, chosen))
    if not with_map:
        return Stages(config, segmenter, None, None, export.recipe, chosen)
    threshold = export.threshold if asked.false_reject_rate is None else _threshold(export.recipe, config)
    threshold = threshold if asked.threshold is None else asked.threshold
    localizer = ExportedMap(export, _graph(export.heatmap, chosen))
    return Stages(config, segmenter, localizer, threshold, export.recipe, chosen)


def _graph_runtime(export: Export, asked: Asked) -> Runtime:
    """OpenVINO, which runs both forms, where it is installed and nothing else is asked for."""
    known: tuple[RuntimeName, ...] = ("openvino", "onnx") if export.form == "onnx" else ("openvino",)
    if asked.runtime not in ("auto", *known):
        named = " or ".join(known)
        raise UsageError(f"--runtime {asked.runtime}: an export as {export.form} runs in {named}", f"name {named}")
    first = next((name for name in known if installed(name)), known[0])
    runtime = Runtime(first if asked.runtime == "auto" else cast(RuntimeName, asked.runtime), "f32")
    check(runtime)
    if asked.precision != "bf16":
        return runtime
    check(replace(runtime, precision="bf16"))
    if openvino_has_bf16():
        return replace(runtime, precision="bf16")
    log.warning("--precision bf16: this processor computes none; f32 is used")
    return runtime


def _graph(file: Path, runtime: Runtime) -> Graph:
    try:
        return graph(file, runtime)
    except Exception as error:  # whatever a runtime raises for a graph that it does not know
        raise RecipeError(f"{file}: {runtime} does not run it ({type(error).__name__})", "export it again") from error


def _check_torch() -> None:
    if not installed("torch"):
        raise ExtraMissing(
            "torch, in which recipes run (exports run without), is not installed", "pip install 'sam-inspect[torch]'"
        )


def _threshold(recipe: Recipe, config: RecipeConfig) -> float:
    return calibrated_threshold(recipe.calibration_scores, config.judge.false_reject_rate)


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
    import torch

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
    from sam_inspect.networks.fastest import pick_runtime

    if (sam := sam_of(config, device)) is None:
        return pick_runtime(name, precision, device, None)
    network, facts = sam
    return pick_runtime(name, precision, device, network.image_encoder, facts["sha256"])


def sam_of(config: RecipeConfig, device: str) -> tuple[SamNetwork, dict[str, str]] | None:
    """The SAM of a recipe, and name, sha256 and source of its weights; None where its segmenter is a plugin's.

    Raises:
        WeightsMissing, WeightsError.
    """
    from sam_inspect.networks.loaded import load_sam
    from sam_inspect.networks.sam import NAMES

    if config.segmenter.name not in NAMES:
        return None
    return load_sam(config.segmenter.name, config.segmenter.args.get("weights"), device)


def _runtime(recipe: Recipe | None, config: RecipeConfig, device: str, asked: Asked) -> Runtime:
    """What was asked for; where nothing was, what the recipe was checked with, or what is fastest here."""
    chosen = _checked_runtime(recipe, device) if recipe and asked.runtime == asked.precision == "auto" else None
    return chosen or pick_runtime_for(config, device, asked.runtime, asked.precision)


def _checked_runtime(recipe: Recipe, device: str) -> Runtime | None:
    """What `bench --check` put into the recipe, where it was checked on such a device and runs here."""
    if device != recipe.runtime.get("device", "cpu") or not installed(recipe.runtime.get("runtime", "")):
        return None
    from sam_inspect.networks.fastest import pick_runtime

    checked = pick_runtime(recipe.runtime["runtime"], recipe.runtime.get("precision", "auto"), device, None)
    return replace(checked, patient=True)


def build_segmenter(config: RecipeConfig, device: str) -> Segmenter:
    """The segmenter that a recipe names. Raises PluginError, ConfigError, WeightsMissing, WeightsError."""
    segmenter_class = load_plugin("segmenters", config.segmenter.name)
    if not issubclass(segmenter_class, Segmenter):
        raise broken_contract(config.segmenter.name, segmenter_class, Segmenter)
    return segmenter_class.from_config(config.segmenter.args, device=device)


def _as_trained(segmenter: Segmenter, recipe: Recipe) -> Segmenter:
    """The segmenter with the recipe's tuned decoder, where it has one.

    Raises:
        WeightsError: its weights are not those that the recipe was trained for.
    """
    known = recipe.provenance.get("segmenter_weights", {}).get("sha256")  # Recipes of before November 2026 have none.
    found = getattr(segmenter, "sha256", known)
    if known and known != found:
        problem = f"{recipe.folder}: trained for SAM weights {known[:12]}, {recipe.config.segmenter.name} here has"
        raise WeightsError(f"{problem} {found[:12]}", "bring the same weights or train again")
    if not recipe.decoder:
        return segmenter
    if not isinstance(segmenter, Tunable):
        raise broken_contract(recipe.config.segmenter.name, type(segmenter), Tunable)
    return segmenter.with_tuned(recipe.decoder, str(recipe.decoder_facts.get(BASE)))
