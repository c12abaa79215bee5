"""What ten regions cost against one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import cv2
import numpy as np
import typer
from measuring import JsonFile, Row, Timed, hardware, show, side_by_side, versions, write_rows
from numpy.typing import NDArray

from sam_inspect.assemble import pick_runtime_for
from sam_inspect.config import RecipeConfig, find_config
from sam_inspect.console import session
from sam_inspect.localize.boxes import GivenBox, GivenBoxes
from sam_inspect.masks import from_full
from sam_inspect.metrics import best_ious
from sam_inspect.networks.runtime import running_on
from sam_inspect.pipeline import Inspector
from sam_inspect.plugins import load_plugin
from sam_inspect.progress import Progress
from sam_inspect.prompt import plan_views
from sam_inspect.records import CropMask, Defect
from sam_inspect.segment import Segmenter
from sam_inspect.synth import DEFECTS, IMAGE_HW, draw_part
from sam_inspect.training import train_recipe

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SIDE_PX, CELL_HW, REGIONS, GOOD = 900, (225, 300), 10, 24
CELLS = [
    np.s_[y : y + CELL_HW[0], x : x + CELL_HW[1]]
    for y in range(0, SIDE_PX, CELL_HW[0])
    for x in range(0, SIDE_PX, CELL_HW[1])
]
View = Literal["zoom", "image"]
Rgb = NDArray[np.uint8]
GOALS: dict[View, float] = {"zoom": 4.0, "image": 1.5}
INSPECTION_GOAL = 2.0
THRESHOLD = 0.9  # Low enough that every defect is a region; the image without them scores 0.4.


@app.command()
def main(
    config: Annotated[str, typer.Option(metavar="NAME|FILE", help="Whose prompt, segmenter and choice.")] = "default",
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Timed runs of each; run N is about defect N of ten, then all ten.")
    ] = 10,
    runtime: Annotated[str, typer.Option(help="What runs SAM: auto, torch, openvino or onnx.")] = "auto",
    json_file: JsonFile = None,
) -> None:
    """Times one region and ten in one image of 900 x 900, and their ratio.

    Twelve drawn parts lie on the image, and one or ten have a defect, spread over all of it. First SAM's outlines
    alone, in the boxes of the ground truth, so that there is no heatmap's time in the ratio: in zoomed views (an encode
    a view, several regions may share one), then in the whole image at 1024 (one encode). Last the whole inspection,
    with a recipe of good images. Beside the seconds stands the mean IoU with the drawn defects.
    """
    with session(quiet=False, json_logs=False) as progress:
        chosen = find_config(config)
        segmenter = segmenter_of(chosen, runtime)
        rows = [outlined(view, chosen, segmenter, repeats, progress) for view in GOALS]
        rows.append(inspected(chosen, runtime, repeats, progress))
        machine = hardware()
        columns = {
            "what": "what",
            "one: best s": "one.seconds.best:.3f",
            "median s": "one.seconds.median:.3f",
            "mean IoU": "one.mean_iou:.3f",
            "ten: best s": "ten.seconds.best:.3f",
            "median s ": "ten.seconds.median:.3f",
            "mean IoU ": "ten.mean_iou:.3f",
            "encodes": "encodes",
            "ratio of bests": "ratio.best:.2f",
            "of medians": "ratio.median:.2f",
            "goal": "goal:.1f",
            "versions": "versions",
        }
        show(f"Ten regions against one, {SIDE_PX} x {SIDE_PX}, {repeats} runs, {runtime}", machine, rows, columns)
        write_rows(json_file, machine, rows, config=config)


def drawn_image(shown: Collection[int] = range(REGIONS)) -> tuple[Rgb, list[CropMask]]:
    """(900, 900, 3) uint8 RGB of twelve drawn parts, and the defects of those that are `shown`; two have none."""
    image, truth = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8), []
    for number, (place, window) in enumerate(zip(CELLS, windows(), strict=True)):
        part = draw_part(0, number, kind_of(number) if number in shown else None)
        image[place] = part.image[window]
        seen = np.zeros((SIDE_PX, SIDE_PX), bool)
        seen[place] = part.mask[window]
        mask = from_full(seen)
        truth += [mask] if mask else []
    return image, truth


def kind_of(number: int) -> str | None:
    """The defect that a part has where it is shown."""
    return list(DEFECTS)[number % len(DEFECTS)] if number < REGIONS else None


@cache
def windows() -> list[tuple[slice, slice]]:
    """What each cell shows of its part: its defect in the middle, and of parts without one their own middle."""
    return [_window(from_full(draw_part(0, number, kind_of(number)).mask)) for number in range(len(CELLS))]


def _window(defect: CropMask | None) -> tuple[slice, slice]:
    x0, y0, x1, y1 = defect.box_xyxy if defect else (0, 0, IMAGE_HW[1], IMAGE_HW[0])
    left = min(max((x0 + x1 - CELL_HW[1]) // 2, 0), IMAGE_HW[1] - CELL_HW[1])
    top = min(max((y0 + y1 - CELL_HW[0]) // 2, 0), IMAGE_HW[0] - CELL_HW[0])
    return np.s_[top : top + CELL_HW[0], left : left + CELL_HW[1]]


def inspector_of(config: RecipeConfig, runtime: str, progress: Progress) -> Inspector:
    """Of a recipe of the image without defects, as a camera takes it again and again: shaken a little, with noise."""
    rng, (good, _) = np.random.default_rng(0), drawn_image(())
    with TemporaryDirectory() as folder:
        for number in range(GOOD):
            taken = np.roll(good, rng.integers(-2, 3, 2), (0, 1)) + rng.normal(0, 2, good.shape)
            cv2.imwrite(f"{folder}/{number}.png", taken.clip(0, 255).astype(np.uint8)[..., ::-1])
        train_recipe(Path(folder), Path(folder, "recipe"), config, device="cpu", progress=progress)
        return Inspector.from_recipe(Path(folder, "recipe"), "cpu", threshold=THRESHOLD, runtime=runtime)


def segmenter_of(config: RecipeConfig, runtime: str) -> Segmenter:
    """Its SAM, with graphs made at once."""
    segmenter_class = load_plugin("segmenters", config.segmenter.name)
    assert issubclass(segmenter_class, Segmenter)
    with running_on(replace(pick_runtime_for(config, "cpu", runtime), patient=False)):
        return segmenter_class.from_config(config.segmenter.args, device="cpu")


def outlined(view: View, config: RecipeConfig, segmenter: Segmenter, repeats: int, progress: Progress) -> Row:
    """SAM's outlines in given boxes, for one kind of view."""
    image, truth = drawn_image()
    prompt = config.prompt.model_copy(update={"view": view})
    inspector = Inspector(config.model_copy(update={"prompt": prompt}), segmenter, boxes={})

    def outlines(wanted: Sequence[CropMask]) -> float:
        return mean_iou(wanted, inspector.outline(image, [mask.box_xyxy for mask in wanted]))

    ways = {"one": lambda number: outlines([truth[number % REGIONS]]), "ten": lambda number: outlines(truth)}
    row = compared(f"{view} views", ways, repeats, progress)
    localization = GivenBoxes([GivenBox(mask.box_xyxy, None) for mask in truth]).localize(image)
    encodes = len(plan_views(localization.regions, localization.original_hw, prompt))
    return row | {"encodes": encodes, "goal": GOALS[view]}


def inspected(config: RecipeConfig, runtime: str, repeats: int, progress: Progress) -> Row:
    """The whole inspection: the heatmap, the regions that it shows, SAM asked twice about each."""
    inspector = inspector_of(config, runtime, progress)
    ones, ten = [drawn_image([number]) for number in range(REGIONS)], drawn_image()

    def inspect(image: Rgb, truth: Sequence[CropMask]) -> float:
        return mean_iou(truth, inspector.inspect(image).defects)

    ways = {"one": lambda number: inspect(*ones[number % REGIONS]), "ten": lambda number: inspect(*ten)}
    return compared("inspections", ways, repeats, progress) | {"goal": INSPECTION_GOAL}


def compared(what: str, ways: Mapping[str, Callable[[int], float]], repeats: int, progress: Progress) -> Row:
    """One against ten, in turn."""
    timed = side_by_side(ways, repeats, progress, what)
    one, ten = timed["one"], timed["ten"]
    ratio = {"best": ten.best / one.best, "median": ten.median / one.median}
    made_with = versions("torch", "segment-anything")
    return {"what": what, "one": figures(one), "ten": figures(ten), "ratio": ratio, "versions": made_with}


def mean_iou(truth: Sequence[CropMask], found: Sequence[Defect]) -> float:
    """Of each drawn defect and the mask that overlaps it most."""
    return float(best_ious(truth, [defect.mask for defect in found]).mean())


def figures(timed: Timed[float]) -> Row:
    """Seconds and mean IoU over the runs."""
    return {"seconds": timed.as_json(), "mean_iou": float(np.mean(timed.answers))}


if __name__ == "__main__":
    app()
