"""index.html: the report page, one file that needs no network, with its pictures beside it under report/.

Style and scripts stand beside this module and are put into the page. All that is known of the images is one JSON
script tag; outlines are vectors in it, so that they stay crisp at any zoom.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sam_inspect import files
from sam_inspect.records import CropMask, Defect, Inspection
from sam_inspect.report.names import output_names
from sam_inspect.report.overlays import HEAT_RGB, outlines
from sam_inspect.report.pictures import SUFFIXES, picture_path
from sam_inspect.report.writers import COCO, RESULTS, SUMMARY

PAGE = "index.html"
SCRIPTS = ("page.js", "histogram.js", "detail.js")
OUTLINE_POINTS_ACROSS, OUTLINE_POINTS_OF_SMALL = 1200, 30
MOST_CALIBRATION_SCORES = 5000


def write_page(
    out: Path,
    inspections: Sequence[Inspection],
    *,
    calibration_scores: NDArray[np.float32] | None = None,
    title: str = "Inspection report",
    recipe_name: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> Path:
    """index.html in `out`, showing every inspection and the pictures of it that a `PictureWriter` left there.

    Args:
        out: the out folder.
        inspections: in any order; the page sorts.
        calibration_scores: (n,) scores of the good parts that the threshold was calibrated on, for the histogram.
        title: of the page.
        recipe_name: shown in the head.
        metrics: what `evaluate` found (its JSON), shown as tables.
        names: output name by image, the one that the `PictureWriter` had.

    Returns:
        the page's path.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    names = names or output_names([inspection.image for inspection in inspections])
    data = {
        "images": [_image(out, inspection, names[inspection.image]) for inspection in inspections],
        "calibration": _calibration(calibration_scores),
        "calibrated_on": 0 if calibration_scores is None else len(calibration_scores),
        "files": [name for name in (RESULTS, SUMMARY, COCO) if (out / name).is_file()],
    }
    text = template(Path(__file__).parent / "page.html.jinja").render(
        title=title,
        recipe_name=recipe_name,
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        metrics=metrics,
        heat_scale=Markup(_heat_scale()),
        style=Markup(_beside("page.css")),
        script=Markup("\n".join(_beside(name) for name in SCRIPTS)),
        nonce=secrets.token_urlsafe(16),
        data=Markup(script_json(data)),
    )
    files.write_bytes(out / PAGE, text.encode("utf-8", "backslashreplace"))
    return out / PAGE


def script_json(value: Any) -> str:
    """JSON that can stand inside a script tag whatever its strings say: `<`, `>` and `&` are escaped."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def template(file: Path) -> jinja2.Template:
    """A page's template, which escapes what it is given."""
    loader = jinja2.FileSystemLoader(file.parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(file.name)


def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _heat_scale() -> str:
    """The heatmap's colours as stops of a CSS gradient."""
    return ", ".join(f"rgb({r} {g} {b})" for r, g, b in HEAT_RGB[:: 255 // 10].tolist())


def _calibration(scores: NDArray[np.float32] | None) -> list[float]:
    if scores is None or not len(scores):
        return []
    if len(scores) > MOST_CALIBRATION_SCORES:
        scores = np.quantile(scores, np.linspace(0, 1, MOST_CALIBRATION_SCORES)).astype(np.float32)
    return [float(f"{score:.6g}") for score in np.sort(scores) if np.isfinite(score)]


def _image(out: Path, inspection: Inspection, name: str) -> dict[str, Any]:
    """What the page's script knows of one image."""
    path = Path(inspection.image)
    return {
        "image": inspection.image,
        "file": path.name,
        "folder": path.parent.name,
        "verdict": inspection.verdict,
        "score": inspection.score,
        "threshold": inspection.threshold,
        "size": inspection.original_hw,
        "error": inspection.error,
        "ms": {stage: round(ms, 1) for stage, ms in inspection.timings_ms.items()},
        "pictures": {} if inspection.verdict == "error" else _pictures(out, name),
        "defects": [_defect(defect, inspection.original_hw) for defect in inspection.defects],
    }


def _pictures(out: Path, name: str) -> dict[str, str]:
    """Address, relative to the page, of each picture on disk, by folder and (for maps) suffix."""
    found = ((kind, suffix) for parts in SUFFIXES.values() for kind, suffix in parts)
    return {
        kind.removeprefix("report/") + (suffix if kind == "maps" else ""): quote(f"{kind}/{name}{suffix}")
        for kind, suffix in found
        if picture_path(out, kind, name, suffix).is_file()
    }


def _defect(defect: Defect, original_hw: tuple[int, int] | None) -> dict[str, Any]:
    return {
        "box": defect.box_xyxy,
        "area": defect.area_px,
        "mm2": defect.area_mm2,
        "length": round(defect.length_px, 1),
        "score": float(f"{defect.score:.6g}"),
        "source": defect.source,
        "label": defect.label,
        "outline": svg_path(defect.mask, max(original_hw or (0, 0))),
    }


def svg_path(mask: CropMask, long_side_px: int) -> str:
    """The mask's outlines as an SVG path in pixels of the image, holes included (fill rule evenodd).

    Points that move the outline by less than a 1,200th of the image's longer side are left out, or, of a small mask,
    than a 30th of its own.
    """
    x0, y0, x1, y1 = mask.box_xyxy
    tolerance = max(0.5, min(long_side_px / OUTLINE_POINTS_ACROSS, max(x1 - x0, y1 - y0) / OUTLINE_POINTS_OF_SMALL))
    lines = (cv2.approxPolyDP(line[:, None], tolerance, True)[:, 0].tolist() for line in outlines(mask))
    return "".join("M" + "L".join(f"{x} {y}" for x, y in line) + "Z" for line in lines)
