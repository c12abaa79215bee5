"""anomalib's models with their own masks and with SAM's, through anomalib's own engine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.metrics import AUPRO, AUROC, Evaluator, F1Score
from anomalib.models import get_model
from lightning import seed_everything
from measuring import JsonFile, Row, hardware, show, versions, write_rows
from sam_inspect_anomalib import MaskIoU, RegionF1, SamPostProcessor

from sam_inspect.console import session
from sam_inspect.datasets import test_samples
from sam_inspect.localize.anomalib_engine import known_weights

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
CNN = {"backbone": "mobilenetv2_100"}
MODELS: dict[str, dict[str, Any]] = {
    "patchcore": CNN | {"layers": ["blocks.2", "blocks.4"], "coreset_sampling_ratio": 0.01},
    "padim": CNN | {"layers": ["blocks.1", "blocks.2", "blocks.4"], "n_features": 100},
    "stfpm": CNN | {"layers": ["blocks.1", "blocks.2", "blocks.4"]},
    "dfm": CNN | {"layer": "blocks.4"},
    "anomaly_dino": {"encoder_name": "vit_small_patch14_dinov2"},
}


@app.command()
def main(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="In MVTec layout.")],
    model: Annotated[list[str] | None, typer.Option(help="One of the models; all by default.")] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="DIR", help="Its choices and decoder for SAM.")] = None,
    epochs: Annotated[int, typer.Option(metavar="N", help="Of models that train by epochs.")] = 5,
    json_file: JsonFile = None,
) -> None:
    """Fits each model once and tests it twice, its map cut at its own threshold and refined by SAM.

    Thresholds are anomalib's: best F1 over the test images themselves, for both. All at the model's size.
    """
    with session(quiet=False, json_logs=False):
        rows: list[Row] = []
        for name in model or MODELS:
            rows += measured(name, data, recipe, epochs)
            write_rows(json_file, hardware(), rows, data=str(data))
        means = ("image_AUROC", "pixel_AUROC", "pixel_AUPRO", "pixel_F1Score", "pixel_MaskIoU", "pixel_RegionF1")
        columns = {"model": "model", "masks": "masks"} | {mean: f"{mean}:.3f" for mean in means}
        title = f"{data.name}, {', '.join(f'{key} {value}' for key, value in versions('anomalib', 'torch').items())}"
        show(title, hardware(), rows, columns | {"ms an image": "ms:.0f"})


def measured(name: str, data: Path, recipe: Path | None, epochs: int) -> list[Row]:
    """Its own masks' row, then SAM's."""
    seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder, known_weights({}):
        model = get_model(name, **MODELS[name], evaluator=evaluator(), visualizer=False)
        images, steps = (
            folder_of(data),
            {} if model.trainer_arguments.get("max_epochs") == 1 else {"max_epochs": epochs},
        )
        engine = Engine(default_root_dir=folder, logger=False, accelerator="cpu", devices=1, **steps)
        engine.fit(model, datamodule=images)
        own = tested(engine, model, images)
        refined = SamPostProcessor(recipe=str(recipe) if recipe else None)
        refined.load_state_dict(model.post_processor.state_dict())
        model.post_processor = refined
        sams = tested(engine, model, images)
    return [{"model": name, "masks": masks} | dict(found) for masks, found in (("anomalib", own), ("SAM", sams))]


def evaluator() -> Evaluator:
    """The measures of both rows."""
    maps, masks = ["anomaly_map", "gt_mask"], ["pred_mask", "gt_mask"]
    image = AUROC(fields=["pred_score", "gt_label"], prefix="image_")
    of_maps = [metric(fields=maps, prefix="pixel_", strict=False) for metric in (AUROC, AUPRO)]
    of_masks = [metric(fields=masks, prefix="pixel_", strict=False) for metric in (F1Score, MaskIoU, RegionF1)]
    return Evaluator(test_metrics=[image, *of_maps, *of_masks])


def folder_of(data: Path) -> Folder:
    """The data as anomalib takes it, whatever the pictures' format."""
    kinds = sorted({sample.defect_type for sample in test_samples(data) if sample.mask_path is not None})
    return Folder(
        name=data.name,
        root=data,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{kind}" for kind in kinds],
        mask_dir=[f"ground_truth/{kind}" for kind in kinds],
        val_split_mode="same_as_test",
        train_batch_size=8,
        eval_batch_size=8,
        num_workers=0,
    )


def tested(engine: Engine, model: Any, images: Folder) -> Mapping[str, float]:
    """The test's results, and milliseconds an image."""
    start = time.perf_counter()
    found = engine.test(model, datamodule=images, verbose=False)[0]
    return dict(found) | {"ms": 1000 * (time.perf_counter() - start) / len(images.test_data)}


if __name__ == "__main__":
    app()
