"""Good images to a recipe: fit the localizer, calibrate the threshold on parts it has not seen, write the folder."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from sam_inspect.assemble import adjusted, build_segmenter, pick_device, sam_of
from sam_inspect.config import RecipeConfig, StageConfig
from sam_inspect.datasets import good_images
from sam_inspect.errors import ConfigError, DatasetError, ImageError, UsageError
from sam_inspect.exports import is_export
from sam_inspect.files import make_folder
from sam_inspect.images import read_image, read_size
from sam_inspect.judge import calibrated_threshold
from sam_inspect.localize import Fit, Localizer, Trainable
from sam_inspect.localize.anomalib_exported import GRAPHS
from sam_inspect.plugins import broken_contract, load_plugin
from sam_inspect.progress import Progress
from sam_inspect.recipe import Recipe, save_recipe

STRIKING = 5  # good images that are named, for somebody to look at
PACKAGES = ("sam-inspect", "torch", "timm", "numpy", "opencv-python-headless", "segment-anything")
log = logging.getLogger(__name__)


def train_recipe(
    data: Path,
    folder: Path,
    config: RecipeConfig,
    *,
    false_reject_rate: float | None = None,
    device: str = "auto",
    progress: Progress,
) -> Recipe:
    """Learns good parts and writes the recipe.

    Args:
        data: MVTec layout (only train/good is read), or a plain folder of good images.
        folder: of the recipe; an older one there is replaced.
        config: every choice.
        false_reject_rate: share of good parts that may fail, instead of the config's; above 0, below 1.
        device: `auto`, `cpu` or `cuda`.
        progress: shows how far it is.

    Raises:
        DatasetError: too few good images, or none that can be read.
        ConfigError, WeightsError, PluginError, OutputError.
    """
    config = adjusted(config, false_reject_rate, None)
    localizer_class = load_plugin("localizers", config.localizer.name)
    if not issubclass(localizer_class, Localizer):
        raise broken_contract(config.localizer.name, localizer_class, Localizer)
    if not issubclass(localizer_class, Trainable):
        raise ConfigError(f"localizer {config.localizer.name}: learns nothing from good images", "name another one")
    if is_export(folder):
        raise UsageError(f"{folder}: holds an export", "give another --recipe")
    images = _readable(good_images(data), data, progress)
    place = pick_device(device)
    build_segmenter(config, place)  # what is wrong with it is said now
    sam = sam_of(config, place)
    make_folder(folder)  # before minutes of work, not after them
    start = time.monotonic()
    localizer, fit = localizer_class.fit(images, config.localizer.args, device=place, progress=progress)
    tensors, facts = localizer.state()
    recipe = Recipe(
        folder=folder,
        config=config,
        tensors=tensors,
        facts=facts,
        calibration_scores=fit.calibration_scores,
        calibration_pixels=fit.calibration_pixels,
        metrics=_metrics(fit, config, len(images), time.monotonic() - start),
        provenance=_provenance(data, images, fit) | {"segmenter_weights": sam[1] if sam else {}},
    )
    save_recipe(recipe)
    _say_what_to_look_at(recipe.metrics)
    return recipe


def from_anomalib(config: RecipeConfig, file: Path, trust: bool = False) -> RecipeConfig:
    """The config with a model that anomalib wrote instead of a fitted one.

    Args:
        config: of that model where `file` is its checkpoint or torch export; other exports say all themselves.
        file: model.ckpt, or the export model.pt, model.onnx or model.xml.
        trust: load what could run code.

    Raises:
        ConfigError: the config's localizer is not anomalib's.
    """
    if file.suffix in GRAPHS:
        localizer = StageConfig(name="anomalib_exported", args={"file": str(file.absolute())})
    elif config.localizer.name == "anomalib":
        args = config.localizer.args | {"checkpoint": str(file.absolute()), "trust": trust}
        localizer = config.localizer.model_copy(update={"args": args})
    else:
        problem = f"--from-anomalib {file}: the config's localizer is {config.localizer.name}"
        raise ConfigError(problem, "name a config of that model, such as --config patchcore")
    return config.model_copy(update={"localizer": localizer})


def _readable(images: Sequence[Path], data: Path, progress: Progress) -> list[Path]:
    """Those that can be decoded; each other one is a warning."""
    good: list[Path] = []
    broken: list[ImageError] = []
    for image in progress(images, "reading good parts", len(images)):
        try:
            read_image(image)
            good.append(image)
        except ImageError as error:
            log.warning("%s; left out", error)
            broken.append(error)
    if not good:
        raise DatasetError(f"{data}: none of {len(images)} images can be read: {broken[0].problem}", broken[0].remedy)
    if len(good) < 2:
        raise DatasetError(f"{data}: only one good image", "give at least two, better twenty or more")
    return good


def _metrics(fit: Fit, config: RecipeConfig, count: int, seconds: float) -> dict[str, Any]:
    """What training found: how good parts score, and where the threshold lies among them."""
    rate = config.judge.false_reject_rate
    threshold = calibrated_threshold(fit.calibration_scores, rate)
    scores = fit.calibration_scores
    return {
        "good_images": count,
        "held_out_images": len(scores),
        "false_reject_rate": rate,
        "threshold": threshold,
        "held_out_rejected": float(np.mean(scores > threshold)),
        "held_out_scores": {"median": float(np.median(scores)), "highest": float(scores.max())},
        "held_out_highest": _most_striking(fit),
        "seconds": round(seconds, 1),
    }


def _most_striking(fit: Fit) -> list[dict[str, Any]]:
    """The good images that look most like defects to a fit which has not seen them, where it says which these are."""
    by_score = sorted(zip(fit.images, fit.calibration_scores.tolist(), strict=False), key=lambda each: -each[1])
    return [{"image": str(image), "score": score} for image, score in by_score[:STRIKING]]


def _say_what_to_look_at(metrics: Mapping[str, Any]) -> None:
    """A defect among the good images hides its likes and raises the threshold; held out, it looks like what it is."""
    if striking := metrics["held_out_highest"]:
        folder = os.path.commonpath([Path(each["image"]).parent for each in striking])
        named = ", ".join(f"{Path(each['image']).relative_to(folder)} {each['score']:.2f}" for each in striking)
        log.info(
            "threshold %.2f; these good images look most like defects: %s; look at them, "
            "and train without those that show one",
            metrics["threshold"],
            named,
        )


def _provenance(data: Path, images: Sequence[Path], fit: Fit) -> dict[str, Any]:
    """Everything an auditor asks: from what, with what, when."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.name.encode("utf-8", "surrogateescape") + b"\0" + image.read_bytes())
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "data": str(data.absolute()),
        "data_sha256": digest.hexdigest(),
        "image_size": [*reversed(read_size(images[0]))],
        "weights": fit.weights,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
