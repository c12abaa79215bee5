"""What ten regions cost against one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Literal

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
from sam_inspect.records import Box, CropMask
from sam_inspect.segment import Segmenter
from sam_inspect.synth import DEFECTS, draw_part

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SIDE_PX, CELL_HW, REGIONS = 900, (225, 300), 10
View = Literal["zoom", "image"]
GOALS: dict[View, float] = {"zoom": 4.0, "image": 1.5}


@app.command()
def main(
    config: Annotated[str, typer.Option(metavar="NAME|FILE", help="Whose prompt, segmenter and choice.")] = "default",
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Timed runs of each; run N is about defect N of ten, then all ten.")
    ] = 10,
    runtime: Annotated[str, typer.Option(help="What runs SAM: auto, torch, openvino or onnx.")] = "auto",
    json_file: JsonFile = None,
) -> None:
    """Times SAM's outlines of one region and of ten in one image of 900 x 900, and their ratio.

    Ten drawn parts lie on the image, each with a defect, spread over all of it; boxes are their ground truth, so that
    there is no heatmap's time in the ratio. Views are zoomed (an encode a view, several regions may share one) or the
    whole image at 1024 (one encode). Beside the seconds stands the mean IoU with the drawn defects.
    """
    with session(quiet=False, json_logs=False) as progress:
        chosen, rows = find_config(config), list[Row]()
        image, truth = drawn_image()
        segmenter = segmenter_of(chosen, runtime)
        for view in GOALS:
            rows.append(measured(view, chosen, segmenter, image, truth, repeats, progress))
        machine = hardware()
        columns = {
            "views": "views",
            "one: best s": "one.seconds.best:.3f",
            "median s": "one.seconds.median:.3f",
            "mean IoU": "one.mean_iou:.3f",
            "ten: best s": "ten.seconds.best:.3f",
            "median s ": "ten.seconds.median:.3f",
            "mean IoU ": "ten.mean_iou:.3f",
            "encodes": "ten.encodes",
            "ratio of bests": "ratio.best:.2f",
            "of medians": "ratio.median:.2f",
            "goal": "goal:.1f",
            "versions": "versions",
        }
        show(f"Ten regions against one, {SIDE_PX} x {SIDE_PX}, {repeats} runs, {runtime}", machine, rows, columns)
        write_rows(json_file, machine, rows, config=config)


def drawn_image() -> tuple[NDArray[np.uint8], list[CropMask]]:
    """(900, 900, 3) uint8 RGB of twelve drawn parts, and the defects that ten of them have."""
    image, truth = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8), []
    kinds = list(DEFECTS)
    for number in range(12):
        kind = kinds[number % len(kinds)] if number < REGIONS else None
        part = draw_part(0, number, kind)
        defect = from_full(part.mask)
        left, top = _window(defect.box_xyxy if defect else (200, 160, 200, 160), part.mask.shape)
        y, x = (number // 3) * CELL_HW[0], (number % 3) * CELL_HW[1]
        window = np.s_[top : top + CELL_HW[0], left : left + CELL_HW[1]]
        image[y : y + CELL_HW[0], x : x + CELL_HW[1]] = part.image[window]
        seen = np.zeros((SIDE_PX, SIDE_PX), bool)
        seen[y : y + CELL_HW[0], x : x + CELL_HW[1]] = part.mask[window]
        mask = from_full(seen)
        truth += [mask] if mask else []
    return image, truth


def _window(box: Box, shape: tuple[int, ...]) -> tuple[int, int]:
    """Left and top of a cell's window into a drawn part, about the middle of a box."""
    left = (box[0] + box[2] - CELL_HW[1]) // 2
    top = (box[1] + box[3] - CELL_HW[0]) // 2
    return min(max(left, 0), shape[1] - CELL_HW[1]), min(max(top, 0), shape[0] - CELL_HW[0])


def segmenter_of(config: RecipeConfig, runtime: str) -> Segmenter:
    """Its SAM, with graphs made at once."""
    segmenter_class = load_plugin("segmenters", config.segmenter.name)
    assert issubclass(segmenter_class, Segmenter)
    with running_on(replace(pick_runtime_for(config, "cpu", runtime), patient=False)):
        return segmenter_class.from_config(config.segmenter.args, device="cpu")


def measured(
    view: View,
    config: RecipeConfig,
    segmenter: Segmenter,
    image: NDArray[np.uint8],
    truth: Sequence[CropMask],
    repeats: int,
    progress: Progress,
) -> Row:
    """One against ten for one kind of view."""
    prompt = config.prompt.model_copy(update={"view": view})
    inspector = Inspector(config.model_copy(update={"prompt": prompt}), segmenter, boxes={})
    every = list(range(len(truth)))

    def outlines(which: Callable[[int], list[int]]) -> Callable[[int], float]:
        def run(number: int) -> float:
            wanted = [truth[index] for index in which(number)]
            found = inspector.outline(image, [mask.box_xyxy for mask in wanted])
            return float(best_ious(wanted, [defect.mask for defect in found]).mean())

        return run

    ways = {"one": outlines(lambda number: [number % len(truth)]), "ten": outlines(lambda number: every)}
    timed = side_by_side(ways, repeats, progress, f"{view} views")
    one, ten = timed["one"], timed["ten"]
    localization = GivenBoxes([GivenBox(mask.box_xyxy, None) for mask in truth]).localize(image)
    views = plan_views(localization.regions, localization.original_hw, prompt)
    return {
        "views": view,
        "one": figures(one) | {"encodes": 1},
        "ten": figures(ten) | {"encodes": len(views)},
        "ratio": {"best": ten.best / one.best, "median": ten.median / one.median},
        "goal": GOALS[view],
        "versions": versions("torch", "segment-anything"),
    }


def figures(timed: Timed[float]) -> Row:
    """Seconds and mean IoU over the runs."""
    return {"seconds": timed.as_json(), "mean_iou": float(np.mean(timed.answers))}


if __name__ == "__main__":
    app()
