"""What each choice of tuning is worth: decoders tuned one way after another, scored on labels they did not see."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml
from measuring import JsonFile, Row, hardware, show, write_rows

from sam_inspect.config import ChooseConfig
from sam_inspect.console import session
from sam_inspect.evaluate.columns import classical_masks
from sam_inspect.finetune import PRESETS, Plan, Workbench, settings_of, whole_folds
from sam_inspect.finetune.labels import Fold, read_labels
from sam_inspect.finetune.scores import means_of, pixel_counts, pixel_f1
from sam_inspect.finetune.tuner import Tuner
from sam_inspect.finetune.views import low_res
from sam_inspect.images import read_image
from sam_inspect.masks import window
from sam_inspect.metrics import MaskScore, score_masks
from sam_inspect.pipeline import Inspector
from sam_inspect.progress import Progress
from sam_inspect.records import Candidates, CropMask, Prompt, View
from sam_inspect.segment.sam import Sam

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Masks = Mapping[str, Sequence[CropMask]]
MEASURES = ("mean_iou", "mean_dice", "boundary_iou", "iou_over_75", "iou_over_90", "region_f1")


@app.command()
def main(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="In MVTec layout.")],
    variants: Annotated[
        list[str], typer.Argument(metavar="VARIANT...", help="PRESET[,KEY=VALUE...], the keys of finetune's settings.")
    ],
    recipe: Annotated[Path, typer.Option(metavar="DIR", help="Whose localizer, views and choice.")],
    shots: Annotated[
        list[int] | None, typer.Option(metavar="K", min=0, help="Labelled images of each fold, 0 for all; repeatable.")
    ] = None,
    folds: Annotated[int, typer.Option(metavar="N", min=1)] = 2,
    share: Annotated[list[float] | None, typer.Option(help="Of the tuned decoder in the mean of both.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    fits: Annotated[Path | None, typer.Option(metavar="DIR", help="Keeps the fits; run again, it goes on.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Tunes without a guard, so that every way is seen as it is; the recipe is not changed.

    The masks of every held-out image in ground-truth boxes and end to end; and how far SAM's own estimate of their IoU
    lies off.
    """
    with session(quiet=False, json_logs=False) as progress, tempfile.TemporaryDirectory() as folder:
        inspector = Inspector.from_recipe(recipe, "auto", tuned=False, runtime="torch")
        every = read_labels(data)
        whole = whole_folds(every, Plan(folds=folds), seed)
        bench = Workbench.of(inspector, every, progress)
        rows: list[Row] = untuned_rows(bench, whole)
        for labels in shots or [10]:
            parts = [bench.drawn(fold, labels or None, seed) for fold in whole]
            for variant in variants:
                preset, choices = parsed(variant)
                settings = settings_of(preset, {"seed": seed} | choices | {"guard": False})
                tuner = bench.tuner(settings, fits or Path(folder), data)
                tuned = measured(bench, tuner, parts, variant, share or [0.5, 1.0], progress)
                rows += [{"labels": labels or "all"} | row for row in tuned]
                write_rows(json_file, hardware(), rows, data=str(data), folds=folds, seed=seed)
        show(f"{data.name}, {folds} folds: mean IoU", hardware(), rows, columns_by_type(bench))
        show(f"{data.name}, {folds} folds: all types", hardware(), rows, columns_of_all())


def columns_by_type(bench: Workbench) -> dict[str, str]:
    """The mean IoU of all images, then of each type."""
    kinds = ["all", *sorted({label.sample.defect_type for label in bench.labels})]
    means = {f"{kind}, {name}": f"{kind}.{name}.mean_iou:.3f" for kind in kinds for name in ("boxes", "found")}
    return _ways() | means | {"error of IoU": "iou_error:.3f", "s": "seconds:.0f"}


def columns_of_all() -> dict[str, str]:
    """Every measure over all images."""
    means = {f"{measure}, {name}": f"all.{name}.{measure}:.3f" for measure in MEASURES for name in ("boxes", "found")}
    return _ways() | means | {"pixel F1, found": "pixel_f1:.3f"}


def _ways() -> dict[str, str]:
    return {"way": "way", "labels": "labels", "share": "share:.0%"}


def parsed(variant: str) -> tuple[str, dict[str, object]]:
    """`sam,lr=1e-3` as its preset and the choices beside it."""
    preset, *pairs = variant.split(",")
    if preset not in PRESETS or not all("=" in pair for pair in pairs):
        raise typer.BadParameter(f"{variant}: give PRESET or PRESET,KEY=VALUE with one of {', '.join(PRESETS)}")
    return preset, {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in pairs)}


def untuned_rows(bench: Workbench, folds: Sequence[Fold]) -> list[Row]:
    """What no decoder can be better than, what one would try before SAM, and SAM untuned, on all held-out images."""
    held_out = [index for fold in folds for index in fold.test]
    config = bench.inspector.config.choose
    by_way: dict[str, list[Masks]] = {}
    for index in held_out:
        label = bench.labels[index]
        boxes = [defect.box_xyxy for defect in label.defects]
        drawn = {"the truth itself on the decoder's grid": truth_masks(bench, index, config)}
        for way, masks in (drawn | classical_masks(read_image(label.sample.image), boxes)).items():
            by_way.setdefault(way, []).append({"boxes": masks})
    rows = [figures(bench, held_out, masks) | {"way": way} for way, masks in by_way.items()]
    return [*rows, scored(bench, [(fold, bench.sam) for fold in folds], config) | {"way": "untuned"}]


def measured(
    bench: Workbench, tuner: Tuner, parts: Sequence[Fold], way: str, shares: Sequence[float], progress: Progress
) -> list[Row]:
    """A row for each share of one way's decoders."""
    start = time.perf_counter()
    fits = []
    for number, fold in enumerate(parts):
        name = f"{way}, {len(fold.train)} labels, fold {number + 1}"
        fits.append(tuner.fit(fold.train, name, tuner.sized(fold.train), None, progress))
    seconds = time.perf_counter() - start
    rows = []
    for share in shares:
        decoders = [tuner.mixed(fit.snapshots[max(fit.snapshots)], share) if fit.snapshots else {} for fit in fits]
        sams = [(fold, tuner.sam_with(decoder)) for fold, decoder in zip(parts, decoders, strict=True)]
        rows.append(scored(bench, sams, tuner.choose) | {"way": way, "share": share, "seconds": seconds})
    return rows


def scored(bench: Workbench, sams: Sequence[tuple[Fold, Sam]], choose: ChooseConfig) -> Row:
    """What the decoder of each fold draws on the images held out from it."""
    places = [(index, sam) for fold, sam in sams for index in fold.test]
    masks = [masks_of(bench, index, sam, choose) for index, sam in places]
    errors = [error for index, sam in places for error in iou_errors(bench, index, sam)]
    return figures(bench, [index for index, _ in places], masks) | {"iou_error": float(np.mean(errors))}


def masks_of(bench: Workbench, index: int, sam: Sam, choose: ChooseConfig) -> Masks:
    """In the ground-truth boxes of an image, and end to end: none where it passes."""
    probe = bench.probes[index]
    return {"boxes": probe.box_masks(sam, choose), "found": probe.shipped_masks(sam, choose)}


def figures(bench: Workbench, indices: Sequence[int], masks: Sequence[Masks]) -> Row:
    """The measures over all images and by type, and the F1 of all pixels end to end."""
    by_kind: dict[str, dict[str, list[MaskScore]]] = {}
    pixels = []
    for index, drawn in zip(indices, masks, strict=True):
        truth = bench.probes[index].truth()
        for name, each in drawn.items():
            score = score_masks(each, truth)
            for kind in ("all", bench.labels[index].sample.defect_type):
                by_kind.setdefault(kind, {}).setdefault(name, []).append(score)
        if "found" in drawn:
            pixels.append(pixel_counts(drawn["found"], truth))
    means = {kind: {name: means_of(scores) for name, scores in ways.items()} for kind, ways in by_kind.items()}
    return means | ({"pixel_f1": pixel_f1(pixels)} if pixels else {})


def truth_masks(bench: Workbench, index: int, config: ChooseConfig) -> list[CropMask]:
    """Ground truth that went through a quarter of the input's size, as SAM's masks do."""
    asked = bench.probes[index].boxes
    drawn = [drawn_truth(bench, index, view, prompt) for view in asked.views for prompt in view.prompts]
    return asked.chosen(drawn, config.model_copy(update={"duplicate_iou": 1.0}))


def drawn_truth(bench: Workbench, index: int, view: View, prompt: Prompt) -> Candidates:
    """What a decoder that knows the truth would answer."""
    assert prompt.region is not None
    share = low_res(window(bench.labels[index].defects[prompt.region], view.crop_xyxy), view)
    logits = np.repeat(8 * (share - 0.5)[None], 4, 0).astype(np.float32)
    return Candidates(view, prompt, logits, np.ones(4, np.float32))


def iou_errors(bench: Workbench, index: int, sam: Sam) -> list[float]:
    """How far each mask's predicted IoU lies off the true one, in the ground-truth boxes of one image."""
    errors: list[float] = []
    for answer in bench.probes[index].boxes.candidates(sam, bench.inspector.config.choose):
        assert answer.prompt.region is not None
        defect = bench.labels[index].defects[answer.prompt.region]
        truth = low_res(window(defect, answer.view.crop_xyxy), answer.view) > 0.5
        masks = answer.low_res_logits[:, : truth.shape[0], : truth.shape[1]] > 0
        true = (masks & truth).sum((1, 2)) / np.maximum((masks | truth).sum((1, 2)), 1)
        errors += np.abs(answer.predicted_iou - true).tolist()
    return errors


if __name__ == "__main__":
    app()
