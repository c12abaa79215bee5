"""anomalib's models as localizers: fitted by its own engine, kept as tensors, their maps where the image is."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import CenterCrop, Compose, GaussianBlur, Normalize, Resize

from sam_inspect.errors import ConfigError, WeightsError
from sam_inspect.localize.anomalib_engine import build, read_checkpoint, train
from sam_inspect.localize.anomalib_model import AnomalibArgs, AnomalibModel, frame_of, held_out
from sam_inspect.progress import silent
from sam_inspect.testing import check_localizer
from sam_inspect.weights import LoadedWeights

PADIM = {
    "model": "padim",
    "args": {"backbone": "resnet18", "pre_trained": False, "layers": ["layer1"], "n_features": 30},
    "size_px": 64,
}


@pytest.fixture(scope="module")
def fitted(good_plates: list[Path]) -> Iterator[tuple[AnomalibModel, Any]]:
    yield AnomalibModel.fit(good_plates, PADIM, device="cpu", progress=silent)


def with_hole(image: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    pixels = np.array(Image.open(image))
    pixels[60:75, 90:110] = 20
    return pixels


def test_a_padim_marks_the_hole_and_scores_it_above_good_parts(
    fitted: tuple[AnomalibModel, Any], good_plates: Any
) -> None:
    localizer, fit = fitted
    found = localizer.localize(with_hole(good_plates[0]))
    assert len(fit.calibration_scores) == len(good_plates)
    assert sorted(fit.images) == good_plates
    assert found.pred_score > 2 * fit.calibration_scores.max()
    assert found.anomaly_map is not None
    rows, columns = found.anomaly_map.shape
    y, x = np.unravel_index(found.anomaly_map.argmax(), found.anomaly_map.shape)
    assert 60 <= (y + 0.5) * 96 / rows <= 75
    assert 90 <= (x + 0.5) * 128 / columns <= 110


MOBILE = {"backbone": "mobilenetv2_100", "layers": ["blocks.2"]}
UNTRAINED = {"backbone": "resnet18", "layers": ["layer1"], "pre_trained": False}
CORESET = {"coreset_sampling_ratio": 0.05}


@pytest.mark.parametrize(
    ("model", "args"),
    [("patchcore", MOBILE | CORESET), ("padim", MOBILE | {"n_features": 30}), ("patchcore", UNTRAINED | CORESET)],
    ids=["patchcore", "padim", "patchcore-untrained"],
)
def test_models_find_the_hole_with_the_weights_known_here_and_without(
    good_plates: list[Path], weights: Callable[[str], LoadedWeights], model: str, args: dict[str, Any]
) -> None:
    known = weights("mobilenet_v2")
    whole = {"model": model, "args": args, "size_px": 128}
    localizer, fit = AnomalibModel.fit(good_plates, whole, device="cpu", progress=silent)
    found = {name: facts["sha256"] for name, facts in fit.weights.items()}
    assert found == ({} if "pre_trained" in args else {"mobilenet_v2": known.sha256})
    assert localizer.localize(with_hole(good_plates[0])).pred_score > 1.5 * fit.calibration_scores.max()


def test_it_keeps_the_contract_of_localizers(good_plates: list[Path]) -> None:
    check_localizer(AnomalibModel, good_plates, PADIM)


def test_the_same_seed_gives_the_same_model(fitted: tuple[AnomalibModel, Any], good_plates: list[Path]) -> None:
    again, _ = AnomalibModel.fit(good_plates, PADIM, device="cpu", progress=silent)
    image = with_hole(good_plates[0])
    np.testing.assert_array_equal(again.localize(image).anomaly_map, fitted[0].localize(image).anomaly_map)


def test_what_it_learned_is_kept_as_tensors(fitted: tuple[AnomalibModel, Any], good_plates: Any) -> None:
    localizer, _ = fitted
    tensors, facts = localizer.state()
    again = AnomalibModel.from_state(PADIM, tensors, facts, device="cpu")
    image = with_hole(good_plates[1])
    np.testing.assert_allclose(again.localize(image).anomaly_map, localizer.localize(image).anomaly_map, atol=1e-6)
    with pytest.raises(WeightsError, match="do not fit anomalib's padim"):
        AnomalibModel.from_state(PADIM, dict(list(tensors.items())[1:]), facts, device="cpu")


def test_a_checkpoint_of_anomalib_gives_the_same_map(good_plates: list[Path], tmp_path: Path) -> None:
    model = build("Padim", PADIM["args"], None, {})
    train(model, good_plates, {}, 0, "cpu", silent)
    model.trainer.save_checkpoint(tmp_path / "model.ckpt")
    own = AnomalibModel(AnomalibArgs(model="padim"), model, "cpu")
    args = {"model": "padim", "checkpoint": str(tmp_path / "model.ckpt")}
    read, fit = AnomalibModel.fit(good_plates, args, device="cpu", progress=silent)
    image = with_hole(good_plates[0])
    np.testing.assert_allclose(read.distances(image)[0], own.distances(image)[0], rtol=1e-5)
    assert len(fit.calibration_scores) == len(good_plates)
    tensors, facts = read.state()
    again = AnomalibModel.from_state(args, tensors, facts, device="cpu")
    np.testing.assert_allclose(again.localize(image).anomaly_map, read.localize(image).anomaly_map, atol=1e-6)


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, ("harm",))


def test_a_checkpoint_that_could_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"hyper_parameters": Harmful(), "state_dict": {}}, tmp_path / "model.ckpt")
    with pytest.raises(WeightsError, match="can run code"):
        read_checkpoint("padim", tmp_path / "model.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(pickle.dumps({})[:3])
    with pytest.raises(WeightsError, match=r"cut\.ckpt"):
        read_checkpoint("padim", tmp_path / "cut.ckpt")
    assert not (tmp_path / "harm").exists()


def test_what_anomalib_does_not_know_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no model 'patchcor'.*name one of patchcore"):
        build("patchcor", {}, None, {})
    with pytest.raises(ConfigError, match="bakbone"):
        build("padim", {"bakbone": "resnet18"}, None, {})


def test_a_stated_size_shows_the_model_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalib.models import Dinomaly

    def see(self: Any, pre_processor: Any, **_: Any) -> None:
        object.__setattr__(self, "seen", pre_processor)

    monkeypatch.setattr(Dinomaly, "__init__", see)
    model = build("dinomaly", {}, 280, None)
    assert frame_of(model.seen.transform, (100, 200)).crop_xyxy == (0, 0, 280, 280)


def test_weights_out_of_reach_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"resnet18.*cannot be fetched.*mobilenetv2_100"):
        build("padim", {"backbone": "resnet18"}, None, {})


class Dark(nn.Module):
    """A network that draws how dark each pixel is."""

    def forward(self, images: torch.Tensor) -> Any:
        return SimpleNamespace(anomaly_map=1 - images.mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("steps", "cropped_share"), [([Resize((64, 64))], 0.0), ([Resize((80, 80)), CenterCrop((64, 64))], 0.1)]
)
def test_a_defect_in_each_corner_comes_back_to_its_corner(steps: list[Any], cropped_share: float) -> None:
    height, width, side = 253, 585, 24
    transform = Compose([*steps, Normalize([0.0] * 3, [1.0] * 3)])
    model = SimpleNamespace(pre_processor=SimpleNamespace(transform=transform), model=Dark())
    localizer = AnomalibModel(AnomalibArgs(model="dark"), model, "cpu")
    top, left = (round(cropped_share * full) + 8 for full in (height, width))
    for y, x in (
        (top, left),
        (top, width - left - side),
        (height - top - side, left),
        (height - top - side, width - left - side),
    ):
        image = np.full((height, width, 3), 255, np.uint8)
        image[y : y + side, x : x + side] = 0
        anomaly_map = localizer.localize(image).anomaly_map
        assert anomaly_map is not None
        weight = anomaly_map - anomaly_map.min()
        rows = (np.arange(weight.shape[0]) + 0.5) * height / weight.shape[0]
        columns = (np.arange(weight.shape[1]) + 0.5) * width / weight.shape[1]
        centre = (weight.sum(1) @ rows / weight.sum(), weight.sum(0) @ columns / weight.sum())
        assert centre == pytest.approx((y + side / 2, x + side / 2), abs=1.0)


def test_a_transform_that_cannot_be_undone_is_refused() -> None:
    with pytest.raises(ConfigError, match="GaussianBlur"):
        frame_of(Compose([Resize((64, 64)), GaussianBlur(3)]), (100, 100))
    with pytest.raises(ConfigError, match="scales after it crops"):
        frame_of(Compose([CenterCrop(50), Resize((64, 64))]), (100, 100))


@pytest.mark.parametrize("count", [2, 5, 29, 30, 500])
def test_the_threshold_is_from_parts_that_the_model_did_not_learn(count: int) -> None:
    images = [Path(f"{number}.png") for number in range(count)]
    splits = held_out(images, 0)
    for learned, held in splits:
        assert sorted([*learned, *held]) == sorted(images)
        assert learned
        assert held
    held_images = [image for _, held in splits for image in held]
    assert len(held_images) == len(set(held_images)) == (count if count < 30 else min(60, count // 5))
