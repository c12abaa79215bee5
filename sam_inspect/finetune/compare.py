"""Two recipes on the same labelled images, side by side."""

from __future__ import annotations

import json
from pathlib import Path

from sam_inspect.errors import UsageError
from sam_inspect.evaluate.columns import classical_masks
from sam_inspect.evaluate.figures import Figures
from sam_inspect.files import make_folder, write_text
from sam_inspect.finetune import FIGURES, first_good
from sam_inspect.finetune.labels import Label, read_labels
from sam_inspect.finetune.page import write_compare
from sam_inspect.finetune.scores import Scored, figures_of, scored_masks
from sam_inspect.images import read_image
from sam_inspect.pipeline import Inspector
from sam_inspect.progress import Progress


def compare(
    recipe_a: Path,
    recipe_b: Path,
    data: Path,
    out: Path,
    *,
    groups: Path | None = None,
    device: str = "auto",
    progress: Progress,
) -> tuple[Figures, Path]:
    """Inspects every labelled image with both recipes, and outlines its ground-truth boxes with both.

    Args:
        recipe_a: the first; its columns are called `untuned` in the figures.
        recipe_b: the second; its columns are called `tuned`.
        data: in MVTec layout.
        out: where compare.html, its pictures and figures.json go.
        groups: CSV of image,group; by default groups.csv in `data` where there is one.
        device: `auto`, `cpu` or `cuda`.
        progress: shows how far it is.

    Returns:
        the figures of `scores.figures_of`, and the page.

    Raises:
        UsageError: both are one recipe.
        DatasetError, RecipeError, WeightsError, OutputError.
    """
    if recipe_a.resolve() == recipe_b.resolve():
        raise UsageError(f"{recipe_a}: compared with itself", "give two recipes")
    labels = read_labels(data, groups)
    inspectors = Inspector.from_recipe(recipe_a, device), Inspector.from_recipe(recipe_b, device)
    make_folder(out)
    scored = [_scored(label, *inspectors) for label in progress(labels, "inspect with both", len(labels))]
    figures = figures_of(scored)
    write_text(out / FIGURES, json.dumps(figures, indent=2) + "\n")
    names = names_of(recipe_a, recipe_b)
    title = f"{names[0]} against {names[1]}"
    good = first_good(data)
    return figures, write_compare(out, scored, figures, [], good, names=names, title=title, what="labelled images")


def names_of(a: Path, b: Path) -> tuple[str, str]:
    """What two recipes are called: their folders, with as many of those above as tell them apart."""
    parts_a, parts_b = a.resolve().parts, b.resolve().parts
    last = next(n for n in range(1, max(len(parts_a), len(parts_b)) + 1) if parts_a[-n:] != parts_b[-n:])
    return "/".join(parts_a[-last:]), "/".join(parts_b[-last:])


def _scored(label: Label, a: Inspector, b: Inspector) -> Scored:
    image = read_image(label.sample.image)
    boxes = [defect.box_xyxy for defect in label.defects]
    masks = classical_masks(image, boxes)
    for name, inspector in (("untuned", a), ("tuned", b)):
        masks[f"gt_boxes_{name}"] = [defect.mask for defect in inspector.outline(image, boxes)]
        masks[f"refined_{name}"] = [defect.mask for defect in inspector.inspect(image).defects]
    return scored_masks(label, 0, masks)
