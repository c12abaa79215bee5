"""Our refinement in anomalib's world: its Engine, its metrics, its checkpoints, SAM's masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from PIL import Image
from sklearn.metrics import jaccard_score

from sam_inspect.config import RecipeConfig, validated
from sam_inspect.masks import union
from sam_inspect.metrics import mask_iou
from sam_inspect.pipeline import Inspector
from sam_inspect.progress import silent
from sam_inspect.training import from_anomalib, train_recipe

PADIM = {"backbone": "resnet18", "pre_trained": False, "layers": ["layer1"], "n_features": 30}


def data_of(root: Path) -> Any:
    from anomalib.data import Folder

    return Folder(
        "plates",
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir="test/hole",
        mask_dir="ground_truth/hole",
        val_split_mode="same_as_test",
        num_workers=0,
        train_batch_size=3,
        eval_batch_size=3,
    )


def engine(folder: Path) -> Any:
    from anomalib.engine import Engine

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Engine(default_root_dir=folder, accelerator="cpu", devices=1, **quiet)


def fitted(model: Any, root: Path, folder: Path) -> tuple[Any, dict[str, float]]:
    from lightning import seed_everything

    seed_everything(0, verbose=False)
    runner = engine(folder)
    runner.fit(model, datamodule=data_of(root))
    return runner, runner.test(model, datamodule=data_of(root), verbose=False)[0]


@pytest.fixture(scope="module")
def refined(plates: Path, tmp_path_factory: pytest.TempPathFactory, weights: Callable[[str], Any]) -> tuple[Any, ...]:
    """The wrapped model after fit and test, its engine and its results."""
    import sam_inspect_anomalib  # noqa: F401  makes the model known
    from anomalib.models import get_model
    from lightning import seed_everything

    weights("mobile_sam")
    seed_everything(0, verbose=False)
    model = get_model("sam_refined", detector="padim", detector_args=PADIM, visualizer=False)
    return model, *fitted(model, plates, tmp_path_factory.mktemp("refined"))


@pytest.fixture(scope="module")
def plain(plates: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The same model as anomalib has it."""
    from anomalib.models import Padim
    from lightning import seed_everything

    seed_everything(0, verbose=False)
    model = Padim(**PADIM, visualizer=False)
    return model, *fitted(model, plates, tmp_path_factory.mktemp("plain"))


def test_masks_are_sams_and_scores_and_maps_are_anomalibs(refined: tuple[Any, ...], plain: tuple[Any, ...]) -> None:
    ours, theirs = refined[2], plain[2]
    for name in ("image_AUROC", "pixel_AUROC", "image_F1Score"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name
    assert ours["pixel_F1Score"] > theirs["pixel_F1Score"]
    assert ours["full_MaskIoU"] > 0.9
    assert ours["full_RegionF1"] == 1.0


def test_the_model_is_listed_by_anomalib(refined: tuple[Any, ...]) -> None:
    from anomalib.models import list_models

    assert "sam_refined" in list_models()
    assert refined[0].name == "SamRefined_Padim"


def test_predictions_carry_masks_at_both_sizes(refined: tuple[Any, ...], plates: Path) -> None:
    from anomalib.data import PredictDataset

    model, runner, _ = refined
    batches = runner.predict(model, dataset=PredictDataset(plates / "test/hole"))
    pairs = [pair for batch in batches for pair in zip(batch.image_path, batch.full_pred_mask, strict=True)]
    found = {Path(path).stem: mask for path, mask in pairs}
    assert len(found) == 4
    for name, mask in found.items():
        truth = np.array(Image.open(plates / "ground_truth/hole" / f"{name}_mask.png")) > 0
        assert mask_iou(mask, truth) > 0.9
    assert batches[0].pred_mask.shape[-2:] == (256, 256)
    assert batches[0].pred_mask.dtype == torch.bool


def test_a_checkpoint_gives_the_same_results(refined: tuple[Any, ...], plates: Path, tmp_path: Path) -> None:
    from sam_inspect_anomalib import SamRefined

    _, runner, results = refined
    runner.trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = SamRefined.load_from_checkpoint(tmp_path / "model.ckpt")
    found = engine(tmp_path).test(again, datamodule=data_of(plates), verbose=False)[0]
    assert found == pytest.approx(results, abs=1e-4)


def test_an_export_is_the_detector_with_its_threshold(
    refined: tuple[Any, ...], plates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from anomalib.deploy import ExportType

    model, runner, _ = refined
    pixels = torch.from_numpy(np.array(Image.open(plates / "test/hole/008.png"))).permute(2, 0, 1)[None] / 255
    file = runner.export(model, ExportType.TORCH, export_root=tmp_path)
    assert "SAM stays here" in caplog.text
    assert file.stat().st_size < 80e6  # SAM alone is 40 MB; the detector's covariances are the rest
    answer = torch.load(file, weights_only=False)["model"].eval()(pixels)  # our own file
    assert answer.pred_mask.any()
    assert answer.pred_label.item()
    session = InferenceSession(runner.export(model, ExportType.ONNX, export_root=tmp_path))
    mask, label = session.run(["pred_mask", "pred_label"], {"input": pixels.numpy()})
    assert label.item()
    assert mask_iou(mask > 0, answer.pred_mask.numpy()) > 0.99


def test_one_recipe_gives_the_same_masks_here_and_there(
    plain: tuple[Any, ...], plates: Path, tmp_path: Path, weights: Callable[[str], Any]
) -> None:
    from anomalib.data import PredictDataset
    from anomalib.models import Padim
    from sam_inspect_anomalib import SamPostProcessor

    weights("mobile_sam")
    plain[1].trainer.save_checkpoint(tmp_path / "model.ckpt")
    config = validated(RecipeConfig, {"localizer": {"name": "anomalib", "args": {"model": "padim"}}}, "test")
    recipe = tmp_path / "recipe"
    train_recipe(plates, recipe, from_anomalib(config, tmp_path / "model.ckpt"), progress=silent)
    post = SamPostProcessor(recipe=str(recipe))
    model = Padim.load_from_checkpoint(tmp_path / "model.ckpt", post_processor=post)
    model.visualizer = None
    (batch,) = engine(tmp_path).predict(model, dataset=PredictDataset(plates / "test/hole"))[:1]
    found = Inspector.from_recipe(recipe).inspect(batch.image_path[0])
    assert found.defects
    own = union((defect.mask for defect in found.defects), (96, 128))
    assert mask_iou(batch.full_pred_mask[0], own) == 1.0


def test_metrics_equal_independent_ones() -> None:
    from anomalib.metrics.aupro import _AUPRO
    from sam_inspect_anomalib.metrics import _ExactAUPRO, _MeanIoU, _Over75, _RegionF1

    rng = np.random.default_rng(0)
    truth = np.zeros((4, 40, 50), bool)
    truth[0, 5:15, 5:20], truth[0, 25:35, 30:45], truth[2, 10:30, 10:12] = True, True, True
    predicted = truth.copy()
    predicted[0, 5:15, 5:8] = False
    predicted[0, 30:35, 30:45] = False
    predicted[1, 0:4, 0:4] = True
    mean, over, regions = _MeanIoU(), _Over75(), _RegionF1()
    for metric in (mean, over, regions):
        for part in (slice(0, 2), slice(2, 4)):
            metric.update(torch.from_numpy(predicted[part]), torch.from_numpy(truth[part]))
    ious = [jaccard_score(truth[i].ravel(), predicted[i].ravel()) for i in (0, 2)]
    assert float(mean.compute()) == pytest.approx(np.mean(ious), abs=1e-6)
    assert float(over.compute()) == pytest.approx(2 / 3)  # 0.8, 0.5 and 1
    assert float(regions.compute()) == pytest.approx(2 * 2 / (3 + 4))
    maps = rng.random((4, 40, 50)).astype(np.float32) + 0.3 * truth
    ours, theirs = _ExactAUPRO(), _AUPRO()
    ours.update(torch.from_numpy(maps), torch.from_numpy(truth))
    theirs.update(torch.from_numpy(maps), torch.from_numpy(truth).int())
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), abs=1e-5)


def test_metrics_of_several_gpus_are_those_of_one_and_of_nothing_are_zero() -> None:
    """A sync leaves one tensor of a list of them."""
    from sam_inspect_anomalib.metrics import _ExactAUPRO, _RegionF1

    rng = np.random.default_rng(0)
    maps, truth = rng.random((4, 20, 30)).astype(np.float32), np.zeros((4, 20, 30), bool)
    truth[:3, 5:15, 5:20] = True
    together = {"dist_sync_fn": lambda value, group: [value], "distributed_available_fn": lambda: True}
    for kind, predicted in ((_ExactAUPRO, maps), (_RegionF1, truth)):
        assert float(kind().compute()) == 0
        alone, synced = kind(), kind(**together)
        for metric in (alone, synced):
            metric.update(torch.from_numpy(predicted), torch.from_numpy(truth))
        assert float(synced.compute()) == pytest.approx(float(alone.compute()))
        assert float(alone.compute()) > 0
