"""Data sets in MVTec AD's layout (Bergmann et al., CVPR 2019), and plain folders of good images.

train/good/*          good parts to learn from
test/good/*           good parts to test on
test/TYPE/*           parts with a defect of that type
ground_truth/TYPE/*   for STEM.png there, STEM_mask.png or STEM.png, the defect above 127
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sam_inspect.errors import DatasetError, ImageError, UsageError
from sam_inspect.images import IMAGE_SUFFIXES, find_images, read_image, read_size

log = logging.getLogger(__name__)
GOOD = "good"
GROUPS = "groups.csv"
ABOVE = 127
LAYOUT = "the layout is test/good, test/TYPE and ground_truth/TYPE"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample:
    """One test image.

    Attributes:
        image: its file.
        defect_type: name of its folder under `test`; `good` for a good part.
        mask_path: its ground truth; None for a good part.
    """

    image: Path
    defect_type: str
    mask_path: Path | None


def good_images(data: Path) -> list[Path]:
    """The good parts to learn from: `train/good` where there is one, else all pictures of a plain folder.

    Raises:
        DatasetError: the folder is missing or holds no picture, or it holds a test set besides.
    """
    good = data / "train" / GOOD
    if good.is_dir():
        return _pictures(good)
    if data.is_file():
        raise DatasetError(f"{data}: is a file", "name the folder of the good images")
    found = _pictures(data)
    for image in found:
        if {"test", "ground_truth"} & set(image.relative_to(data).parts[:-1]):
            raise DatasetError(
                f"{data}: holds {image.relative_to(data)}, but no train/good",
                "put the good images into train/good, or name a folder with nothing but good images",
            )
    if len(folders := sorted({str(image.relative_to(data).parent) for image in found})) > 1:
        log.warning("%s: all images of its folders count as good: %s", data, ", ".join(folders))
    return found


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly over all of them."""
    return [items[place] for place in np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)]


def test_samples(data: Path) -> list[Sample]:
    """Every image under `test`, by type, each with its ground truth.

    Raises:
        DatasetError: no test set, no defective image in it, or one without ground truth.
    """
    if not (data / "test").is_dir():
        raise DatasetError(f"{data / 'test'}: is not there", LAYOUT)
    folders = sorted(path for path in (data / "test").iterdir() if path.is_dir() and not path.name.startswith("."))
    samples = [sample for folder in folders for sample in _samples_of(data, folder)]
    if all(sample.mask_path is None for sample in samples):
        raise DatasetError(f"{data / 'test'}: holds no folder of defective images", LAYOUT)
    return samples


def check_ground_truth(samples: Sequence[Sample]) -> None:
    """Compares each ground truth's size with its image's, from the files' headers: before minutes of work.

    Raises:
        DatasetError: a ground truth that cannot be read, or is of another size than its image.
    """
    for sample in samples:
        if sample.mask_path is None:
            continue
        try:
            mask_hw = read_size(sample.mask_path)
        except ImageError as error:
            raise DatasetError(error.problem, error.remedy) from error
        try:
            image_hw = read_size(sample.image)
        except ImageError:
            continue  # Its inspection will say so.
        _check_size(sample, mask_hw, image_hw)


def read_gt_mask(sample: Sample, original_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool: where the defect is, every pixel with a channel above 127; nothing set for a good part.

    Raises:
        DatasetError: the file cannot be read, or is not `original_hw` in size.
    """
    if sample.mask_path is None:
        return np.zeros(original_hw, bool)
    try:
        pixels = read_image(sample.mask_path)
    except ImageError as error:
        raise DatasetError(error.problem, error.remedy) from error
    _check_size(sample, (pixels.shape[0], pixels.shape[1]), original_hw)
    return np.asarray((pixels > ABOVE).any(axis=2), bool)


def read_groups(file: Path) -> dict[str, str]:
    """Group by image from a CSV with the columns `image` (path from the data folder, `/` between) and `group`.

    Pictures of one group show the same part; whoever draws or splits images goes by group.

    Raises:
        DatasetError: the file cannot be read, lacks a column or a value, or names an image twice.
    """
    groups: dict[str, str] = {}
    for line, row in csv_rows(file, "image", "group"):
        _add_group(groups, row["image"], row["group"], f"{file}: line {line}")
    return groups


def csv_rows(file: Path, *wanted: str) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Each row of a CSV by its columns' names, with the number of its line.

    Raises:
        DatasetError: the file cannot be read, or lacks a wanted column.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            columns = list(rows.fieldnames or [])
            if not set(wanted) <= set(columns):
                raise DatasetError(f"{file}: its columns are {columns}", f"begin it with the line {','.join(wanted)}")
            for row in rows:
                yield rows.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            f"{file}: cannot be read ({error})", f"give a CSV file of {','.join(wanted)}, in UTF-8"
        ) from error


def groups_of(data: Path, groups: Path | None, names: Sequence[str]) -> dict[str, str] | None:
    """Group of each image that has one, by its path from the data folder; None where no groups are known.

    Args:
        data: the data folder.
        groups: the CSV; by default groups.csv in `data` where there is one.
        names: the images, `/` between.

    Raises:
        DatasetError: as `read_groups`, or it names none of the images.
    """
    file = groups or data / GROUPS
    if groups is None and not file.exists():
        return None
    known = read_groups(file)
    found = {name: known[name] for name in names if name in known}
    if not found:
        raise DatasetError(f"{file}: names none of the test images", f"name them as {names[0]}")
    if left := [name for name in names if name not in known]:
        log.warning("%s: does not name %d of %d images, such as %s", file, len(left), len(names), left[0])
    return found


def _add_group(groups: dict[str, str], image: str | None, group: str | None, where: str) -> None:
    name, group = as_name(image or ""), (group or "").strip()
    if not name or not group:
        raise DatasetError(f"{where} lacks its image or its group", "give both, with a comma between")
    if groups.setdefault(name, group) != group:
        raise DatasetError(f"{where} puts {name} into a second group, {group}", "name each image once")


def as_name(text: str) -> str:
    """An image as a CSV file of a user's names it: its path from the data folder, `/` between; empty for nothing."""
    return Path(text.strip().replace("\\", "/")).as_posix() if text.strip() else ""


def _pictures(folder: Path) -> list[Path]:
    try:
        return find_images([folder])
    except UsageError as error:
        raise DatasetError(error.problem, error.remedy) from error


def _samples_of(data: Path, folder: Path) -> list[Sample]:
    images = _pictures(folder)
    if folder.name == GOOD:
        return [Sample(image, GOOD, None) for image in images]
    truth = data / "ground_truth" / folder.name
    for path in (truth.parent, truth):
        if not path.is_dir():
            raise DatasetError(f"{path}: is not there, but {folder} holds {len(images)} images", LAYOUT)
    masks = {(mask.parent.relative_to(truth), mask.stem): mask for mask in sorted(truth.rglob("*")) if _is_mask(mask)}
    samples = []
    for image in images:
        place = image.parent.relative_to(folder)
        mask = masks.get((place, f"{image.stem}_mask")) or masks.get((place, image.stem))
        if mask is None:
            remedy = f"add {image.stem}_mask.png, or move the image to test/good where it is good"
            raise DatasetError(f"{truth / place}: holds no ground truth of {image}", remedy)
        samples.append(Sample(image, folder.name, mask))
    return samples


def _is_mask(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _check_size(sample: Sample, mask_hw: tuple[int, int], image_hw: tuple[int, int]) -> None:
    if mask_hw != image_hw:
        (mask_height, mask_width), (height, width) = mask_hw, image_hw
        raise DatasetError(
            f"{sample.mask_path}: is {mask_width} x {mask_height} pixels, its image {sample.image} {width} x {height}",
            "draw the ground truth on the image as it is",
        )
