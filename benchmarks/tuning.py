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
from numpy.typing import NDArray

from sam_inspect.config import ChooseConfig
from sam_inspect.console import session
from sam_inspect.finetune import PRESETS, Bench, Plan, settings_of
from sam_inspect.finetune.labels import Fold
from sam_inspect.finetune.tuner import Tuner
from sam_inspect.finetune.views import low_res
from sam_inspect.masks import union, window
from sam_inspect.metrics import mask_iou
from sam_inspect.pipeline import Inspector
from sam_inspect.progress import Progress
from sam_inspect.records import Candidates, Prompt, View
from sam_inspect.segment.sam import Sam

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Array = NDArray[np.float64]


@app.command()
def main(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="In MVTec layout.")],
    variants: Annotated[
        list[str], typer.Argument(metavar="VARIANT...", help="PRESET[,KEY=VALUE...], the keys of finetune's settings.")
    ],
    recipe: Annotated[Path, typer.Option(metavar="DIR", help="Whose localizer, views and choice.")],
    shots: Annotated[int, typer.Option(metavar="K", min=0, help="Labelled images of each fold; 0 for all.")] = 10,
    folds: Annotated[int, typer.Option(metavar="N", min=1)] = 2,
    share: Annotated[list[float] | None, typer.Option(help="Of the tuned decoder in the mean of both.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    json_file: JsonFile = None,
) -> None:
    """Tunes without a guard, so that every way is seen as it is; the recipe is not changed.

    Mean IoU of every held-out image in ground-truth boxes and end to end; and how far SAM's own estimate of the masks'
    IoU lies off.
    """
    with session(quiet=False, json_logs=False) as progress, tempfile.TemporaryDirectory() as folder:
        inspector = Inspector.from_recipe(recipe, "auto", tuned=False, runtime="torch")
        plan = Plan(shots=shots or None, folds=folds)
        bench = Bench.of(inspector, data, plan, progress)
        parts = [bench.drawn(fold, plan.shots, seed) for fold in bench.whole_folds(plan, seed)]
        columns = columns_of(bench)
        rows: list[Row] = []
        for variant in variants:
            preset, choices = parsed(variant)
            settings = settings_of(preset, {"seed": seed} | choices | {"guard": False})
            tuner = bench.tuner(settings, Path(folder), data)
            if not rows:
                rows.append(limits(bench, parts) | {"way": "the truth itself on the decoder's grid"})
                rows.append(scored(bench, tuner, [(fold, bench.sam) for fold in parts], tuner.untuned_choose))
                rows[-1]["way"] = "untuned"
            rows += measured(bench, tuner, parts, variant, share or [0.5, 1.0], progress)
            write_rows(json_file, hardware(), rows, data=str(data), shots=shots, folds=folds, seed=seed)
        show(f"{data.name}: {shots or 'all'} labels, {folds} folds", hardware(), rows, columns)


def columns_of(bench: Bench) -> dict[str, str]:
    """The columns of the table: all images, then each type."""
    kinds = ["all", *sorted({label.sample.defect_type for label in bench.labels})]
    means = {f"{kind}, {name}": f"{kind}.{name}:.3f" for kind in kinds for name in ("boxes", "found")}
    return {"way": "way", "share": "share:.0%"} | means | {"error of IoU": "iou_error:.3f", "s": "seconds:.0f"}


def parsed(variant: str) -> tuple[str, dict[str, object]]:
    """`sam,lr=1e-3` as its preset and the choices beside it."""
    preset, *pairs = variant.split(",")
    if preset not in PRESETS or not all("=" in pair for pair in pairs):
        raise typer.BadParameter(f"{variant}: give PRESET or PRESET,KEY=VALUE with one of {', '.join(PRESETS)}")
    return preset, {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in pairs)}


def measured(
    bench: Bench, tuner: Tuner, parts: Sequence[Fold], way: str, shares: Sequence[float], progress: Progress
) -> list[Row]:
    """A row for each share of one way's decoders."""
    start = time.perf_counter()
    fits = []
    for number, fold in enumerate(parts):
        name = f"{way}, fold {number + 1}"
        fits.append(tuner.fit(fold.train, name, tuner.sized(fold.train), None, progress))
    seconds = time.perf_counter() - start
    rows = []
    for share in shares:
        decoders = [tuner.mixed(fit.snapshots[max(fit.snapshots)], share) if fit.snapshots else {} for fit in fits]
        sams = [(fold, tuner.sam_with(decoder)) for fold, decoder in zip(parts, decoders, strict=True)]
        rows.append(scored(bench, tuner, sams, tuner.choose) | {"way": way, "share": share, "seconds": seconds})
    return rows


def scored(bench: Bench, tuner: Tuner, sams: Sequence[tuple[Fold, Sam]], choose: ChooseConfig) -> Row:
    """Mean IoU over all held-out images and by type."""
    by_kind: dict[str, list[Array]] = {"all": []}
    errors: list[float] = []
    for fold, sam in sams:
        for index in fold.test:
            iou = tuner.ious(index, sam, choose) * (1, bench.probes[index].detected)
            for kind in ("all", bench.labels[index].sample.defect_type):
                by_kind.setdefault(kind, []).append(iou)
            errors += iou_errors(bench, index, sam)
    return {kind: _means(ious) for kind, ious in by_kind.items()} | {"iou_error": float(np.mean(errors))}


def limits(bench: Bench, parts: Sequence[Fold]) -> Row:
    """The IoU of ground truth that went through a quarter of the input's size, as SAM's masks do: no mask is better."""
    by_kind: dict[str, list[float]] = {"all": []}
    for index in (index for fold in parts for index in fold.test):
        probe = bench.probes[index]
        drawn = [drawn_truth(bench, index, view, prompt) for view, _ in probe.boxes.views for prompt in view.prompts]
        config = bench.inspector.config.choose.model_copy(update={"duplicate_iou": 1.0})
        found = union(probe.boxes.chosen(drawn, config), probe.label.original_hw)
        for kind in ("all", probe.label.sample.defect_type):
            by_kind.setdefault(kind, []).append(mask_iou(found, probe.truth()))
    return {kind: {"boxes": float(np.mean(ious))} for kind, ious in by_kind.items()}


def drawn_truth(bench: Bench, index: int, view: View, prompt: Prompt) -> Candidates:
    """What a decoder that knows the truth would answer."""
    assert prompt.region is not None
    share = low_res(window(bench.labels[index].defects[prompt.region], view.crop_xyxy), view)
    logits = np.repeat(8 * (share - 0.5)[None], 4, 0).astype(np.float32)
    return Candidates(view, prompt, logits, np.ones(4, np.float32))


def iou_errors(bench: Bench, index: int, sam: Sam) -> list[float]:
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


def _means(ious: Sequence[Array]) -> Mapping[str, float]:
    boxes, found = np.mean(ious, axis=0).tolist()
    return {"boxes": boxes, "found": found}


if __name__ == "__main__":
    app()
