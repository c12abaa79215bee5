"""compare.html: six pictures of each held-out image, curves and the table of two decoders side by side.

One file that needs no network, its photographs beside it under pictures/; masks and boxes are vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sam_inspect.evaluate.figures import Figures
from sam_inspect.files import make_folder, write_bytes, write_text
from sam_inspect.finetune.scores import COLUMNS, GAINS, Scored, named
from sam_inspect.finetune.tuner import Tuned
from sam_inspect.images import read_image
from sam_inspect.masks import filled_box
from sam_inspect.records import CropMask, Rgb
from sam_inspect.report.names import output_names
from sam_inspect.report.overlays import thumbnail
from sam_inspect.report.page import svg_path, template
from sam_inspect.report.pictures import encode_rgb

HERE = Path(__file__).parent
PAGE, PICTURES = "compare.html", "pictures"
LONG_SIDE_PX = 480
JPEG_QUALITY = 88
PLOT_W, PLOT_H = 320.0, 150.0
Series = Mapping[str, Sequence[tuple[float, float]]]


def write_compare(
    out: Path,
    scored: Sequence[Scored],
    figures: Figures,
    curves: Sequence[tuple[str, Series]],
    good: Rgb | None,
    *,
    names: tuple[str, str] = ("untuned", "tuned"),
    title: str = "Tuned against untuned",
    what: str = "held-out images",
) -> Path:
    """compare.html in `out`, worst gain first.

    Args:
        out: made where it is missing.
        scored: the images, each scored by both.
        figures: of `scores.figures_of`, and what was `chosen` besides.
        curves: plots by title: lines of (x, y) by name.
        good: a good part to show beside; None for none.
        names: what the two are called, first and second.
        title: of the page.
        what: what the images are called.

    Raises:
        OutputError: it cannot be written, or the disk is full.
    """
    make_folder(out / PICTURES)
    if good is not None:
        _write_picture(out / PICTURES / "good.jpg", good)
    files = output_names([each.label.name for each in scored])
    rows = [_row(out, each, files[each.label.name]) for each in scored]
    text = template(HERE / "compare.html.jinja").render(
        title=title,
        names=names,
        rows=sorted(rows, key=lambda row: row["gain"]),
        good=f"{PICTURES}/good.jpg" if good is not None else None,
        figures=figures,
        parts={"all": figures, **figures["per_defect"]},
        what=what,
        columns=COLUMNS,
        labels={column: named(column, names) for column in COLUMNS},
        gains=GAINS,
        plots=[_plot(title, lines) for title, lines in curves if any(len(line) > 1 for line in lines.values())],
        style=Markup((HERE / "compare.css").read_text(encoding="utf-8")),
    )
    write_text(out / PAGE, text)
    return out / PAGE


def curve_data(runs: Sequence[Tuned]) -> list[tuple[str, Series]]:
    """Plots of the fits: mean IoU on held-out labels over the steps, and over the tuned share; the loss."""
    validated = [run for run in runs if run.points]
    plots: list[tuple[str, Series]] = []
    if validated:
        plots.append(("Held-out IoU over steps", _mean_lines(validated, "steps")))
        plots.append(("Held-out IoU over the tuned share", _mean_lines(validated, "share")))
    losses = [run.losses for run in runs if run.losses]
    if losses:
        longest = max(len(loss) for loss in losses)
        plots.append(("Loss", {f"fit {i + 1}": _thinned(_smooth(loss), longest) for i, loss in enumerate(losses)}))
    return plots


def shots_plot(curve: Sequence[Mapping[str, Any]]) -> tuple[str, Series]:
    """The IoU over the number of labelled images."""
    lines = {name: [(float(point["shots"]), float(point[name])) for point in curve] for name in GAINS}
    return "IoU over labelled images", lines


def _mean_lines(runs: Sequence[Tuned], axis: str) -> Series:
    """Means over fits of the points along one axis, the other at its end; the untuned decoder first.

    Fits are scored at steps of their own: between them their lines are straight, and the mean ends with the shortest.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    for name in ("boxes", "found"):
        fits = [_line(run, axis, name) for run in runs]
        end = min(max(line) for line in fits)
        places = sorted({x for line in fits for x in line if x <= end})
        values = [np.interp(places, sorted(line), [line[x] for x in sorted(line)]) for line in fits]
        lines[name] = [(x, float(y)) for x, y in zip(places, np.mean(values, axis=0), strict=True)]
    return lines


def _line(run: Tuned, axis: str, name: str) -> dict[float, float]:
    """One fit's points along an axis, the other at its end."""
    last = max(point.steps for point in run.points)
    return {
        float(getattr(point, axis)): float(getattr(point, name))
        for point in run.points
        if point.share == 0 or (point.share == 1 if axis == "steps" else point.steps == last)
    }


def _smooth(loss: Sequence[float]) -> NDArray[np.float64]:
    """Means of nine steps."""
    width = min(9, len(loss))
    return np.convolve(loss, np.ones(width) / width, mode="valid")


def _thinned(line: NDArray[np.float64], longest: int) -> list[tuple[float, float]]:
    step = max(1, longest // 200)
    return [(float(x), float(line[x])) for x in range(0, len(line), step)]


def _plot(title: str, lines: Series) -> dict[str, Any]:
    """Polylines in a box of `PLOT_W` x `PLOT_H`, and the ends of its axes."""
    xs = [x for line in lines.values() for x, _ in line]
    ys = [y for line in lines.values() for _, y in line]
    (left, right), (low, high) = (min(xs), max(xs)), (min(ys), max(ys))
    across, up = (right - left) or 1.0, (high - low) or 1.0
    paths = {
        name: " ".join(f"{PLOT_W * (x - left) / across:.1f},{PLOT_H * (1 - (y - low) / up):.1f}" for x, y in line)
        for name, line in lines.items()
    }
    return {"title": title, "paths": paths, "x": (left, right), "y": (low, high), "size": (PLOT_W, PLOT_H)}


def _row(out: Path, scored: Scored, name: str) -> dict[str, Any]:
    """What the page shows of one image."""
    label, ious = scored.label, {column: scored.scores[column].iou for column in COLUMNS}
    file = out / PICTURES / f"{name}.jpg"
    make_folder(file.parent)
    _write_picture(file, read_image(label.sample.image))
    height, width = label.original_hw
    paths = {column: _path(scored.masks[column], (height, width)) for column in COLUMNS}
    return {
        "name": label.name,
        "type": label.sample.defect_type,
        "group": label.group,
        "picture": quote(f"{PICTURES}/{name}.jpg"),
        "size": (width, height),
        "truth": _path(label.defects, (height, width)),
        "boxes": _path([filled_box(defect.box_xyxy) for defect in label.defects], (height, width)),
        "paths": paths,
        "ious": ious,
        "gain": ious["gt_boxes_tuned"] - ious["gt_boxes_untuned"],
        "found_gain": ious["refined_tuned"] - ious["refined_untuned"],
    }


def _path(masks: Sequence[CropMask], original_hw: tuple[int, int]) -> str:
    return "".join(svg_path(mask, max(original_hw)) for mask in masks)


def _write_picture(path: Path, image: Rgb) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    write_bytes(path, encode_rgb(".jpg", thumbnail(image, LONG_SIDE_PX), options))
