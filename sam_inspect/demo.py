"""The main job on drawn parts: draw a product, train on its good parts, inspect its test images, score the result."""

from __future__ import annotations

import logging
from pathlib import Path

from sam_inspect.config import RecipeConfig
from sam_inspect.errors import UsageError
from sam_inspect.evaluate import evaluate
from sam_inspect.evaluate.figures import Figures
from sam_inspect.pipeline import Inspector
from sam_inspect.progress import Progress
from sam_inspect.synth import FLANGE, MARKER, write_product
from sam_inspect.training import train_recipe

log = logging.getLogger(__name__)


def run_demo(out: Path, config: RecipeConfig, *, device: str, progress: Progress) -> tuple[Figures, Path]:
    """Writes `product`, `recipe` and `results` into `out`.

    Run again, it draws what is missing or spoilt of the product, and trains and inspects anew.

    Args:
        out: made where it is missing.
        config: of the recipe.
        device: `auto`, `cpu` or `cuda`.
        progress: shows how far it is.

    Returns:
        the figures of `sam_inspect.evaluate.evaluate`, and the report's page.

    Raises:
        UsageError: `out` holds a product, recipe or results that are not a demo's.
        WeightsMissing: the default weights are not here yet.
        OutputError: `out` cannot be written, or the disk is full.
    """
    _refuse_others_work(out)
    product = write_product(out / "product", FLANGE, progress=progress)
    log.info(f"{product}: drawn; training on its good parts")
    recipe = train_recipe(product, out / "recipe", config, device=device, progress=progress)
    log.info(f"{recipe.folder}: trained; inspecting the test images")
    inspector = Inspector.from_recipe(recipe.folder, device)
    results = out / "results"
    figures = evaluate(inspector, product, progress=progress, out=results)
    return figures, results / "index.html"


def _refuse_others_work(out: Path) -> None:
    """A user's own recipe or results in `out` must not be written over."""
    if (out / "product" / MARKER).is_file():
        return
    for folder in (out / "recipe", out / "results"):
        if folder.exists():
            raise UsageError(f"{folder}: is there already, and not from a demo", "choose another folder for --out")
