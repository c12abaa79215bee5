"""The pictures of an out folder, written image by image while the run goes on, so that a resumed run has them all.

What stands where, for an image whose output name is `folder/stem`:

- `overlays/folder/stem.jpg`: the image with its defects outlined, at most 2,000 pixels long.
- `masks/folder/stem.png`: the union of the defects, 8 bit, 0 or 255, the image's own size; black for a good part.
- `maps/folder/stem.jpg`: the image with its heatmap; `maps/folder/stem.tiff`: the anomaly map itself, float32 in the
  units of the score, the image's own size, as MVTec's evaluation scripts read it. Neither where boxes were given.
- `report/images/folder/stem.jpg`, `report/thumbs/folder/stem.jpg`, `report/heat/folder/stem.png`: what index.html
  shows: the image at most 1,600 pixels long, at most 320, and the heatmap alone, clear where the part looks good.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sam_inspect import files
from sam_inspect.errors import OutputError
from sam_inspect.masks import resize_map, union
from sam_inspect.records import Inspection, Rgb
from sam_inspect.report.overlays import draw_heatmap, draw_overlay, heat_layer, thumbnail

JPEG = [cv2.IMWRITE_JPEG_QUALITY, 90]
REPORT_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 84]
TIFF = [cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_TIFF_COMPRESSION_NONE]
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]
REPORT_LONG_SIDE_PX = 1600

SUFFIXES = {
    "overlays": (("overlays", ".jpg"),),
    "masks": (("masks", ".png"),),
    "maps": (("maps", ".jpg"), ("maps", ".tiff")),
    "report": (("report/images", ".jpg"), ("report/thumbs", ".jpg"), ("report/heat", ".png")),
}
OF_THE_MAP = {("maps", ".jpg"), ("maps", ".tiff"), ("report/heat", ".png")}


class PictureWriter:
    """Writes the pictures of each inspection under an out folder. Safe to call from several threads.

    Args:
        out: the out folder.
        save: which of `overlays`, `masks`, `maps` and `report`; other words are for other writers.
        names: output name by image, from `output_names` or `ResultsLog.names`.
    """

    def __init__(self, out: Path, save: Collection[str], names: Mapping[str, str]) -> None:
        self.out = out
        self.save = [kind for kind in SUFFIXES if kind in save]
        self.names = names

    def write(self, image: Rgb | None, inspection: Inspection) -> None:
        """Every picture of one image that is wanted.

        Args:
            image: (H, W, 3) uint8 RGB, the one that was inspected.
            inspection: its result, with the anomaly map where there is one. An error has no pictures: what an earlier
                run drew of it is removed, and `image` is not looked at.

        Raises:
            OutputError: the folder cannot be written or the disk is full.
        """
        if inspection.anomaly_map is None:
            self._remove_stale(inspection)
        if inspection.verdict == "error" or not self.save:
            return
        if image is None:
            raise ValueError(f"PictureWriter: no picture of {inspection.image}, whose verdict is {inspection.verdict}")
        if "overlays" in self.save:
            self._put(inspection, "overlays", ".jpg", encode_rgb(".jpg", draw_overlay(image, inspection), JPEG))
        if "masks" in self.save:
            mask = union((defect.mask for defect in inspection.defects), (image.shape[0], image.shape[1]))
            self._put(inspection, "masks", ".png", encode(".png", mask.view(np.uint8) * np.uint8(255), PNG))
        if "maps" in self.save and inspection.anomaly_map is not None:
            self._put(inspection, "maps", ".jpg", encode_rgb(".jpg", draw_heatmap(image, inspection), JPEG))
            full = resize_map(inspection.anomaly_map, (image.shape[0], image.shape[1]))
            self._put(inspection, "maps", ".tiff", encode(".tiff", full, TIFF))
        if "report" in self.save:
            self._write_report(image, inspection)

    def _write_report(self, image: Rgb, inspection: Inspection) -> None:
        large = thumbnail(image, REPORT_LONG_SIDE_PX)
        self._put(inspection, "report/images", ".jpg", encode_rgb(".jpg", large, REPORT_JPEG))
        self._put(inspection, "report/thumbs", ".jpg", encode_rgb(".jpg", thumbnail(large), REPORT_JPEG))
        heat = heat_layer(inspection)
        if heat is not None:
            heat_bgra = cv2.cvtColor(heat, cv2.COLOR_RGBA2BGRA)
            self._put(inspection, "report/heat", ".png", encode(".png", heat_bgra, PNG))

    def _put(self, inspection: Inspection, kind: str, suffix: str, data: bytes) -> None:
        path = picture_path(self.out, kind, self.names[inspection.image], suffix)
        files.make_folder(path.parent)
        files.write_bytes(path, data)

    def _remove_stale(self, inspection: Inspection) -> None:
        """What an earlier run drew and this result does not have: its maps, or everything where it is an error."""
        name = self.names[inspection.image]
        for kind, suffix in (part for parts in SUFFIXES.values() for part in parts):
            if inspection.verdict == "error" or (kind, suffix) in OF_THE_MAP:
                path = picture_path(self.out, kind, name, suffix)
                with files.output_errors(path):
                    path.unlink(missing_ok=True)

    def is_complete(self, image: str, *, with_map: bool = True) -> bool:
        """Whether every wanted picture of `image` is on disk; `with_map=False` where the localizer has no map."""
        name = self.names[image]
        wanted = (part for kind in self.save for part in SUFFIXES[kind] if with_map or part not in OF_THE_MAP)
        return all(picture_path(self.out, kind, name, suffix).is_file() for kind, suffix in wanted)


def picture_path(out: Path, kind: str, name: str, suffix: str) -> Path:
    """Where one picture of the image with this output name lies."""
    return out / kind / f"{name}{suffix}"


def encode_rgb(suffix: str, image: Rgb, options: list[int]) -> bytes:
    """A picture file's bytes, from (H, W, 3) uint8 RGB; see `encode`."""
    return encode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)


def encode(suffix: str, pixels: NDArray[Any], options: list[int]) -> bytes:
    """A picture file's bytes, by cv2. Raises OutputError where the format does not take the picture (its size)."""
    try:
        done, data = cv2.imencode(suffix, pixels, options)
    except cv2.error as error:
        raise OutputError(f"a picture of {pixels.shape}: {suffix} does not take it ({error.err})") from error
    if not done:
        raise OutputError(f"a picture of {pixels.shape}: {suffix} does not take it")
    return bytes(data.tobytes())
