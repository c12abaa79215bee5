"""Contract tests for plugins: one call in your own tests; an AssertionError says what is not as promised."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load, save

from sam_inspect.config import PromptConfig
from sam_inspect.images import read_image
from sam_inspect.localize import Localizer, Trainable
from sam_inspect.progress import silent
from sam_inspect.prompt import plan_views
from sam_inspect.records import Localization, Region
from sam_inspect.segment import Segmenter

__all__ = ["check_localizer", "check_segmenter"]


def check_localizer(localizer_class: type, images: Sequence[Path], args: Mapping[str, Any] | None = None) -> Localizer:
    """Checks a localizer as a recipe uses it, and returns it.

    It must answer for every image with a finite map that covers it and a score that is the map's peak; twice the same;
    leave the image alone; and, where it learns, be the same again after its state went through safetensors and JSON.

    Args:
        localizer_class: a `Localizer`, a `Trainable` where it learns.
        images: files of good parts, at least four, of any sizes.
        args: what a recipe gives it.
    """
    assert issubclass(localizer_class, Localizer), f"{localizer_class.__name__} has no method localize"
    if not issubclass(localizer_class, Trainable):
        localizer: Localizer = localizer_class(**(args or {}))
        for path in images:
            _check_answers(localizer, read_image(path), path)
        return localizer
    learned, fit = localizer_class.fit(images, args or {}, device="cpu", progress=silent)
    scores = fit.calibration_scores
    assert scores.dtype == np.float32, f"calibration_scores are {scores.dtype}, not float32"
    assert len(scores), "calibration_scores: no good part was scored, so that there is no threshold"
    assert np.isfinite(scores).all(), "calibration_scores are not all numbers"
    assert len(fit.images) in (0, len(scores)), f"images: {len(fit.images)} where {len(scores)} were scored"
    tensors, facts = learned.state()
    again = localizer_class.from_state(args or {}, load(save(tensors)), json.loads(json.dumps(facts)), device="cpu")
    for path in images:
        image = read_image(path)
        found, kept = _check_answers(learned, image, path), _check_answers(again, image, path)
        same = np.allclose(_map(found), _map(kept), rtol=1e-4, atol=1e-6)
        assert same, f"{path}: after state and from_state the map is another one"
    return learned


def check_segmenter(segmenter: Segmenter) -> None:
    """Checks that every prompt is answered, in order, with finite logits of a quarter of the input's size."""
    image = np.full((120, 200, 3), 200, np.uint8)
    image[30:60, 40:90], image[80:100, 120:180] = 60, 90
    boxes = [(40, 30, 90, 60), (120, 80, 180, 100)]
    regions = tuple(Region(box, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), 1.0) for box in boxes)
    views = plan_views(regions, (120, 200), PromptConfig(least_view_px=16))
    before = image.copy()
    answers = segmenter.segment(image, views)
    prompts = [prompt for view in views for prompt in view.prompts]
    assert np.array_equal(image, before), "segment changed the image"
    assert [answer.prompt.region for answer in answers] == [prompt.region for prompt in prompts], (
        "segment must answer every prompt once, views in order and each view's prompts in order"
    )
    for answer in answers:
        side = answer.view.input_px // 4
        assert answer.low_res_logits.shape[1:] == (side, side), f"logits are {answer.low_res_logits.shape[1:]}"
        assert np.isfinite(answer.low_res_logits).all(), "logits are not all numbers"
        assert np.isfinite(answer.predicted_iou).all(), "predicted_iou are not all numbers"


def _check_answers(localizer: Localizer, image: NDArray[np.uint8], path: Path) -> Localization:
    """One image's answer, twice the same."""
    before = image.copy()
    found, again = localizer.localize(image), localizer.localize(image)
    assert np.array_equal(image, before), f"{path}: localize changed the image"
    assert found.original_hw == image.shape[:2], f"{path}: original_hw is {found.original_hw}, not {image.shape[:2]}"
    if found.anomaly_map is None:
        return found
    assert np.isfinite(found.anomaly_map).all(), f"{path}: the map is not all numbers"
    assert np.isclose(found.pred_score, found.anomaly_map.max(), rtol=1e-4), (
        f"{path}: pred_score is {found.pred_score:g}, the map's peak {found.anomaly_map.max():g}: "
        "a threshold on the one must hold for the other"
    )
    assert np.allclose(_map(found), _map(again), rtol=1e-4, atol=1e-6), f"{path}: twice the same image, two maps"
    return found


def _map(found: Localization) -> NDArray[np.float32]:
    return found.anomaly_map if found.anomaly_map is not None else np.zeros((0, 0), np.float32)
