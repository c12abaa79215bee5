"""Boxes from elsewhere instead of a heatmap: whose they are, and a localizer that answers with them."""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from sam_inspect.errors import BoxesError, ImageError
from sam_inspect.files import absolute
from sam_inspect.images import read_size
from sam_inspect.localize.box_files import FORMATS, BoxRow, Xyxy, read_rows
from sam_inspect.masks import clip_box
from sam_inspect.records import Localization, Region

Parts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GivenBox:
    """A box that somebody else drew.

    Attributes:
        box_xyxy: (x0, y0, x1, y1) pixels of the image, x0 < x1 and y0 < y1; may reach over the image's border.
        label: the defect type, where the file names one.
    """

    box_xyxy: Xyxy
    label: str | None


def checked_box(box: Sequence[float], original_hw: tuple[int, int], image: str) -> GivenBox:
    """A box of an image called so. Raises BoxesError: it is no four numbers, has no area, or lies outside."""
    shown, (height, width) = ", ".join(f"{side:g}" for side in box), original_hw
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
        raise BoxesError(f"{image}: box {shown} has no area", "give x0, y0, x1, y1 with x0 < x1 and y0 < y1")
    x0, y0, x1, y1 = box
    if clip_box((x0, y0, x1, y1), original_hw) is None:
        raise BoxesError(f"{image}: box {shown} lies outside the image, {width} x {height}", "boxes are in its pixels")
    return GivenBox((x0, y0, x1, y1), None)


@dataclass(frozen=True, slots=True)
class GivenBoxes:
    """A `Localizer` for one image, of which the boxes are known.

    Attributes:
        boxes: of this image, in pixels.
    """

    boxes: Sequence[GivenBox]

    def localize(self, image: NDArray[np.uint8]) -> Localization:
        """The boxes as regions of `image`, (H, W, 3) uint8 RGB, in their order, cut to the image; no anomaly map."""
        height, width = image.shape[:2]
        regions = []
        for given in self.boxes:
            box = clip_box(given.box_xyxy, (height, width))
            if box is not None:
                centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
                regions.append(Region(box, centre, 1.0, label=given.label))
        return Localization((height, width), 1.0 if regions else 0.0, tuple(regions))


def read_boxes(file: Path, images: Sequence[Path]) -> dict[str, tuple[GivenBox, ...]]:
    """The boxes of `images` that `file` gives, by each image's absolute path (`files.absolute`).

    A relative name in the file belongs to the image whose path ends with it; of an absolute one, which may come from
    another machine, the part below the folder that all names share must agree. Of several images the one that agrees
    in most folders is meant. Names of other images are passed over. Boxes that reach over an image's border stay as
    they are; pictures that cannot be read are no error here.

    Args:
        file: COCO json, a json mapping image -> [[x0, y0, x1, y1], ...], a CSV with or without a header, or a folder
            of YOLO txt files (boxes or polygons; class names from `classes.txt` or `data.yaml` in it or beside it).
        images: the pictures that are to be inspected.

    Returns:
        boxes in the file's order for each image; none where the file has none.

    Raises:
        BoxesError: the file is missing, too large or broken; a box has no area, is no number, or lies outside its
            image; a name fits several images; no name fits any.
    """
    found: dict[str, list[GivenBox]] = {absolute(image): [] for image in images}
    rows = list(read_rows(file, images))
    matches = _match(file, dict.fromkeys(row.image for row in rows), list(found), by_stem=file.is_dir())
    sizes: dict[str, tuple[int, int] | None] = {}
    for row in rows:
        image = matches.get(row.image)
        if image is None or row.box_xyxy is None:
            continue
        if image not in sizes:
            sizes[image] = _size(image)
        size = sizes[image]
        if size is not None:
            found[image].append(GivenBox(_placed(file, row, size), row.label))
    return {image: tuple(boxes) for image, boxes in found.items()}


def _size(image: str) -> tuple[int, int] | None:
    """(H, W); None for a picture that cannot be read, which is reported when its turn comes."""
    try:
        return read_size(image)
    except ImageError:
        return None


def _placed(file: Path, row: BoxRow, original_hw: tuple[int, int]) -> Xyxy:
    """The row's box in pixels, some of which lie in the image."""
    assert row.box_xyxy is not None
    height, width = original_hw
    if row.size not in (None, (width, height)):
        problem = f"{row.image} is {width} x {height}, and {row.size[0]} x {row.size[1]} in the file"
        raise BoxesError(f"{file}: {row.where}: {problem}", "give the boxes of these very pictures")
    x0, y0, x1, y1 = row.box_xyxy
    box = row.box_xyxy
    if row.shares:  # of six digits, by which a whole pixel comes out a little more or less
        box = (round(x0 * width, 1), round(y0 * height, 1), round(x1 * width, 1), round(y1 * height, 1))
    if clip_box(box, original_hw) is None:
        text = ", ".join(f"{value:g}" for value in box)
        problem = f"box {text} lies outside the image {row.image}, {width} x {height}"
        unit = "YOLO's numbers are shares of the image's size, 0 to 1" if row.shares else "boxes are in its pixels"
        raise BoxesError(f"{file}: {row.where}: {problem}", unit)
    return box


# Whose boxes they are


def _match(file: Path, names: Iterable[str], images: Sequence[str], by_stem: bool) -> dict[str, str]:
    """For each name in the file the image that is meant; names of no image are left out."""
    parts = {name: split for name in names if (split := _parts(name))}
    root = _shared_root([split for name, split in parts.items() if _is_absolute(name)])
    by_last: dict[str, list[tuple[Parts, str]]] = defaultdict(list)
    for image in images:
        split = _parts(str(Path(image).with_suffix("")) if by_stem else image)
        by_last[split[-1]].append((split, image))
    fits: dict[str, dict[str, int]] = {}
    longest: dict[str, int] = defaultdict(int)
    for name, split in parts.items():
        fits[name] = _fitting(split, len(split) - root if _is_absolute(name) else len(split), by_last[split[-1]])
        for image, count in fits[name].items():
            longest[image] = max(longest[image], count)
    if not longest:
        shown = f", such as {next(iter(parts))}" if parts else ""
        remedy = f"a name is the end of an image's path, as of {images[0]}" if images else FORMATS
        raise BoxesError(f"{file}: names none of the given images ({len(parts)} names{shown})", remedy)
    # Of two names that fit one image the longer is meant: 000.png beside good/000.png lies in the folder above.
    meant = {name: [image for image, count in some.items() if count == longest[image]] for name, some in fits.items()}
    for name, several in meant.items():
        if len(several) > 1:
            shown = f"{name} could be {several[0]} or {several[1]}"
            raise BoxesError(f"{file}: {shown}", "name the images with the folders they lie in")
    return {name: some[0] for name, some in meant.items() if some}


def _fitting(name: Parts, least: int, images: Sequence[tuple[Parts, str]]) -> dict[str, int]:
    """The images that agree with `name` in most of its last parts, `least` of them or more, with their number."""
    counts = {image: _shared_end(name, split) for split, image in images if not _are_siblings(name, split)}
    most = max(counts.values(), default=0)
    return {image: count for image, count in counts.items() if count == most >= least}


def _shared_end(a: Parts, b: Parts) -> int:
    """How many last parts are the same."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return next((count for count, (one, other) in enumerate(pairs) if one != other), min(len(a), len(b)))


def _are_siblings(a: Parts, b: Parts) -> bool:
    """Like-named files in two folders of one folder, as `test/broken_large/000.png` and `test/good/000.png`."""
    return len(a) > 2 and len(b) > 2 and a[-2] != b[-2] and a[-3] == b[-3]


def _shared_root(paths: Sequence[Parts]) -> int:
    """How many first parts, short of the last, all paths share."""
    if not paths:
        return 0
    low, high = min(paths), max(paths)
    longest = min(len(path) for path in paths) - 1
    return next((count for count in range(longest) if low[count] != high[count]), longest)


def _parts(name: str) -> Parts:
    """Its folders and file name, whatever system wrote it."""
    path = PureWindowsPath(unicodedata.normalize("NFC", name.strip()))
    parts = [part for part in path.parts if part != path.anchor and part != "."]
    while parts and parts[0] == "..":
        del parts[0]
    return tuple(parts)


def _is_absolute(name: str) -> bool:
    return bool(PureWindowsPath(name.strip()).anchor)
