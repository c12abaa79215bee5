"""Good images to a recipe: which of them count, what the recipe says about itself, and that it is the same again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from sam_inspect.config import RecipeConfig, StageConfig
from sam_inspect.errors import DatasetError, SamInspectError, WeightsError
from sam_inspect.images import read_size
from sam_inspect.localize import memory_bank
from sam_inspect.pipeline import Inspector
from sam_inspect.progress import silent
from sam_inspect.recipe import Recipe, load_recipe, save_recipe
from sam_inspect.training import train_recipe
from sam_inspect.weights import LoadedWeights

SMALL = {"bank_patches": 500, "backbones": [{"name": "mobile_sam", "layers": [1, 2], "size_px": 128}]}
CONFIG = RecipeConfig(localizer=StageConfig(name="memory_bank", args=SMALL))


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain folder of eight good parts."""
    folder = tmp_path_factory.mktemp("plates")
    draw = np.random.default_rng(0)
    for number in range(8):
        cv2.imwrite(str(folder / f"{number}.png"), draw.normal(130, 6, (128, 160, 3)).clip(0, 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def recipe(plates: Path, tmp_path_factory: pytest.TempPathFactory, weights: Callable[[str], LoadedWeights]) -> Recipe:
    weights("mobile_sam")
    return train(plates, tmp_path_factory.mktemp("recipe"))


def train(data: Path, folder: Path, rate: float | None = None) -> Recipe:
    return train_recipe(data, folder, CONFIG, false_reject_rate=rate, device="cpu", progress=silent)


def same(one: Recipe, other: Recipe) -> bool:
    tensors = all((one.tensors[name] == other.tensors[name]).all() for name in {*one.tensors, *other.tensors})
    return tensors and np.array_equal(one.calibration_scores, other.calibration_scores)


def test_what_was_written_is_what_was_learned(recipe: Recipe, plates: Path) -> None:
    assert same(load_recipe(recipe.folder), recipe)
    assert load_recipe(recipe.folder).image_hw == read_size(plates / "0.png")
    assert len(recipe.calibration_scores) == recipe.metrics["good_images"] == 8


def test_the_same_images_give_the_same_recipe_in_mvtec_layout_too(recipe: Recipe, plates: Path, tmp_path: Path) -> None:
    shutil.copytree(plates, tmp_path / "part" / "train" / "good")
    (tmp_path / "part" / "test" / "scratch").mkdir(parents=True)
    shutil.copy(plates / "0.png", tmp_path / "part" / "test" / "scratch" / "bad.png")
    again = train(tmp_path / "part", tmp_path / "recipe")
    assert same(again, recipe)
    assert again.provenance["data_sha256"] == recipe.provenance["data_sha256"]


def test_a_broken_picture_is_named_and_left_out(
    recipe: Recipe, plates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shutil.copytree(plates, tmp_path / "data")
    (data / "4half.png").write_bytes((plates / "4.png").read_bytes()[:2000])
    assert same(train(data, tmp_path / "recipe"), recipe)
    assert ["4half.png" in record.message for record in caplog.records if record.levelname == "WARNING"] == [True]


def test_the_threshold_keeps_the_stated_false_reject_rate_on_parts_the_fit_has_not_seen(
    recipe: Recipe, plates: Path, tmp_path: Path
) -> None:
    assert recipe.metrics["held_out_rejected"] == 0
    loose = train(plates, tmp_path / "recipe", rate=0.25)
    assert loose.metrics["held_out_rejected"] == pytest.approx(0.25, abs=1 / 8)
    assert loose.metrics["threshold"] < recipe.metrics["threshold"]


def test_the_recipe_says_from_what_and_with_what_it_was_made(recipe: Recipe, plates: Path) -> None:
    told = json.loads((recipe.folder / "provenance.json").read_text())
    digest = hashlib.sha256()
    for image in sorted(plates.iterdir()):
        digest.update(image.name.encode() + b"\0" + image.read_bytes())
    assert told["data_sha256"] == digest.hexdigest()
    assert set(told["weights"]["mobile_sam"]) == {"name", "sha256", "source"}
    assert told["segmenter_weights"] == told["weights"]["mobile_sam"], "which both use here"
    assert {"torch", "timm", "sam-inspect"} <= set(told["packages"])


def test_a_training_that_fails_leaves_the_recipe_that_was_there(
    recipe: Recipe, plates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(recipe.folder, tmp_path / "recipe")

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(memory_bank, "_gather", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(plates, folder)
    assert same(load_recipe(folder), recipe)


@pytest.mark.parametrize(
    ("segmenter", "says"),
    [
        (StageConfig(name="mobile_smm"), "did you mean mobile_sam"),
        (StageConfig(name="mobile_sam", args={"weigths": "x"}), "did you mean 'weights'"),
    ],
)
def test_a_segmenter_that_cannot_be_is_refused_before_minutes_of_work(
    segmenter: StageConfig, says: str, plates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_bank, "_gather", None)
    with pytest.raises(SamInspectError, match=says):
        train_recipe(plates, tmp_path / "r", RecipeConfig(segmenter=segmenter), progress=silent)


def test_a_recipe_is_refused_with_another_sam_than_it_was_trained_for(recipe: Recipe, tmp_path: Path) -> None:
    folder = shutil.copytree(recipe.folder, tmp_path / "recipe")
    told = recipe.provenance | {"segmenter_weights": recipe.provenance["segmenter_weights"] | {"sha256": "0" * 64}}
    save_recipe(replace(recipe, folder=folder, provenance=told))
    with pytest.raises(WeightsError, match="train again"):
        Inspector.from_recipe(folder, "cpu", runtime="torch")


def test_a_test_set_beside_loose_good_images_is_not_learned(plates: Path, tmp_path: Path) -> None:
    data = shutil.copytree(plates, tmp_path / "data")
    (data / "test" / "scratch").mkdir(parents=True)
    shutil.copy(plates / "0.png", data / "test" / "scratch" / "bad.png")
    with pytest.raises(DatasetError, match="train/good"):
        train(data, tmp_path / "recipe")
