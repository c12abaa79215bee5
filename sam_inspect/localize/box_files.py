"""Boxes files that other programs write, as rows: COCO json, a plain json mapping, CSV, a folder of YOLO txt files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sam_inspect.errors import BoxesError

MAX_BYTES = 200_000_000
LARGEST = 1e9
FORMATS = "give a COCO .json, a .csv of image,x0,y0,x1,y1, or a folder of YOLO .txt files"
CORNERS = (("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"))
SIZES = (("x", "y", "width", "height"), ("x", "y", "w", "h"))
IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "path", "image_path", "name")
LABEL_COLUMNS = ("label", "class", "category", "type", "defect")
CLASS_FILES = ("data.yaml", "dataset.yaml", "classes.txt")

Xyxy = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class BoxRow:
    """One entry of a file; without a box it says that the image is known and has none.

    Attributes:
        image: its name as the file has it.
        where: line or entry, for messages.
        box_xyxy: pixels, or shares of the image's size where `shares` is set.
        size: width and height of the image, where the file says them.
    """

    image: str
    where: str
    box_xyxy: Xyxy | None
    label: str | None = None
    shares: bool = False
    size: tuple[int, int] | None = None


def read_rows(file: Path, images: Sequence[Path]) -> Iterator[BoxRow]:
    """The entries of `file`, checked as far as they can be without the images.

    Args:
        file: a `.json`, a `.csv`, or a folder of `.txt` files.
        images: of a folder only the files are read that are named as one of them.

    Raises:
        BoxesError: the file is missing, larger than `MAX_BYTES` or broken; a box has no area or is no number.
    """
    if file.is_dir():
        return _from_folder(file, {image.stem for image in images})
    text = _read_text(file)
    readers = {".json": _from_json, ".csv": _from_csv}
    if file.suffix.lower() not in readers:
        raise BoxesError(f"{file}: is not a kind of boxes file that is read", FORMATS)
    return readers[file.suffix.lower()](file, text)


def _read_text(file: Path, most_bytes: int = MAX_BYTES) -> str:
    try:
        if file.stat().st_size > most_bytes:
            raise BoxesError(f"{file}: is larger than {MAX_BYTES // 1_000_000} MB", "cut it into several runs")
        return file.read_text("utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
        raise BoxesError(f"{file}: cannot be read ({reason})", "check the path") from error
    except UnicodeDecodeError as error:
        raise BoxesError(f"{file}: is not UTF-8 text ({error.reason})", "save it as UTF-8") from error


def _from_json(file: Path, text: str) -> Iterator[BoxRow]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BoxesError(f"{file}: is not valid JSON ({error})", "export it again") from error
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        try:
            yield from _from_coco(file, content)
        except (AttributeError, KeyError, TypeError) as error:
            raise BoxesError(f"{file}: is not valid COCO ({error!r})", "export it again") from error
    elif isinstance(content, dict) and all(isinstance(boxes, list) for boxes in content.values()):
        yield from _from_mapping(file, content)
    else:
        raise BoxesError(f"{file}: has neither COCO's images and annotations nor boxes by image", FORMATS)


def _from_coco(file: Path, content: Mapping[str, Any]) -> Iterator[BoxRow]:
    """COCO's boxes are x, y, width, height."""
    names = {image["id"]: str(image["file_name"]) for image in content["images"]}
    sizes = {image["id"]: _size(image) for image in content["images"]}
    labels = {category["id"]: _label(category.get("name")) for category in content.get("categories", [])}
    yield from (BoxRow(name, "", None) for name in names.values())
    for index, annotation in enumerate(content["annotations"]):
        where = f"annotation {annotation.get('id', index)}"
        if annotation.get("image_id") not in names:
            raise _refused(file, where, f"no image has the id {annotation.get('image_id')!r}", "export it again")
        box = _corners(file, where, _four(file, where, annotation.get("bbox")))
        image, label = annotation["image_id"], labels.get(annotation.get("category_id"))
        yield BoxRow(names[image], where, box, label, size=sizes[image])


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height; None where they are left out, or 0 for that."""
    width, height = image.get("width"), image.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) and width and height else None


def _from_mapping(file: Path, content: Mapping[str, list[Any]]) -> Iterator[BoxRow]:
    for image, boxes in content.items():
        yield BoxRow(image, "", None)
        for index, box in enumerate(boxes):
            where = f"box {index + 1} of {image}"
            yield BoxRow(image, where, _checked(file, where, _four(file, where, box)))


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where a CSV has what."""

    image: int = 0
    box: tuple[int, ...] = (1, 2, 3, 4)
    label: int = 5
    sizes: bool = False


def _from_csv(file: Path, text: str) -> Iterator[BoxRow]:
    first = text.lstrip().partition("\n")[0]
    delimiter = ";" if first.count(";") > first.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns: _Columns | None = None
    try:
        for line in reader:
            cells = [cell.strip() for cell in line]
            if any(cells) and columns is None:
                header = _header(file, cells)
                columns = header or _Columns()
                if header is not None:
                    continue
            if any(cells) and columns is not None:
                yield _from_cells(file, f"line {reader.line_num}", cells, columns, delimiter)
    except csv.Error as error:
        raise _refused(file, f"line {reader.line_num}", f"is not CSV ({error})", "export it again") from error


def _header(file: Path, cells: Sequence[str]) -> _Columns | None:
    """The columns that a header names; None where the first line is a box already."""
    at = {cell.casefold(): index for index, cell in reversed(list(enumerate(cells)))}
    image = next((at[name] for name in IMAGE_COLUMNS if name in at), None)
    names = next((names for names in CORNERS + SIZES if at.keys() >= set(names)), None)
    if image is not None and names is not None:
        label = next((at[name] for name in LABEL_COLUMNS if name in at), len(cells))
        return _Columns(image, tuple(at[name] for name in names), label, names in SIZES)
    if len(cells) >= 5 and sum(_is_number(cell) for cell in cells[1:5]) >= 2:
        return None
    problem = f"names no columns of a box ({', '.join(cells)[:80]})"
    raise _refused(file, "line 1", problem, "begin the file with the line image,x0,y0,x1,y1,label")


def _from_cells(file: Path, where: str, cells: Sequence[str], columns: _Columns, delimiter: str) -> BoxRow:
    if len(cells) <= max(columns.image, *columns.box):
        raise _refused(file, where, f"has {len(cells)} columns where a box needs more", "give image,x0,y0,x1,y1")
    image = cells[columns.image]
    label = _label(cells[columns.label]) if columns.label < len(cells) else None
    given = [cells[index] for index in columns.box]
    if not any(given):
        return BoxRow(image, where, None)
    if delimiter == ";":  # where it separates columns, the comma is often the decimal point
        given = [cell.replace(",", ".") for cell in given]
    values = _four(file, where, given)
    return BoxRow(image, where, (_corners if columns.sizes else _checked)(file, where, values), label)


def _from_folder(folder: Path, stems: set[str]) -> Iterator[BoxRow]:
    """YOLO's txt files, of which one belongs to the image of the same name; its relative path or its name alone."""
    labels = _class_names(folder)
    left = MAX_BYTES
    for file in sorted(folder.rglob("*.txt")):
        if file.stem not in stems or file.name in CLASS_FILES:
            continue
        parts = file.relative_to(folder).with_suffix("").parts
        image = "/".join(parts[parts.index("labels") + 1 :] if "labels" in parts else parts)
        text = _read_text(file, left)
        left -= len(text)
        yield BoxRow(image, "", None)
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield _from_yolo(file, image, number, line.split(), labels)


def _from_yolo(file: Path, image: str, number: int, cells: Sequence[str], labels: Mapping[int, str]) -> BoxRow:
    """`class cx cy w h [confidence]`, or `class x y x y x y ...`; all but the class are shares of the image's size."""
    where = f"{file.name}, line {number}"
    values = [_number(file.parent, where, cell) for cell in cells]
    if len(values) in (5, 6):
        cx, cy, width, height = values[1:5]
        box = _corners(file.parent, where, (cx - width / 2, cy - height / 2, width, height))
    elif len(values) >= 7 and len(values) % 2:
        xs, ys = values[1::2], values[2::2]
        box = _checked(file.parent, where, (min(xs), min(ys), max(xs), max(ys)))
    else:
        problem = f"has {len(values)} columns"
        raise _refused(file.parent, where, problem, "give class, cx, cy, w, h, or class and a polygon")
    kind = int(values[0])
    return BoxRow(image, where, box, labels.get(kind, str(kind)), shares=True)


def _class_names(folder: Path) -> dict[int, str]:
    """The names that the data set's own file gives its classes."""
    for file in (place / name for place in (folder, folder.parent) for name in CLASS_FILES):
        if not file.is_file():
            continue
        text = _read_text(file)
        if file.suffix == ".txt":
            return dict(enumerate(line.strip() for line in text.splitlines()))
        try:
            names = yaml.safe_load(text)["names"]
            numbered = names.items() if isinstance(names, dict) else enumerate(names)
            return {int(number): str(name) for number, name in numbered}
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise BoxesError(f"{file}: has no list of class names ({error!r})", "give `names:` there") from error
    return {}


# Numbers


def _four(file: Path, where: str, values: Any) -> Xyxy:
    """`values` as four finite floats."""
    if not isinstance(values, list | tuple) or len(values) != 4:
        raise _refused(file, where, f"{values!r} is not a box", "give its four numbers")
    first, second, third, fourth = (_number(file, where, value) for value in values)
    return first, second, third, fourth


def _number(file: Path, where: str, value: Any) -> float:
    if isinstance(value, bool) or not _is_number(value):
        raise _refused(file, where, f"{value!r} is not a number", "give the box in plain numbers")
    return float(value)


def _is_number(value: Any) -> bool:
    """Finite, and of a size that a picture can have."""
    try:
        return abs(float(value)) < LARGEST
    except (TypeError, ValueError, OverflowError):
        return False


def _corners(file: Path, where: str, box: Xyxy) -> Xyxy:
    """x, y, width, height as corners."""
    x, y, width, height = box
    if width <= 0 or height <= 0:
        problem = f"box x {x:g}, y {y:g}, width {width:g}, height {height:g} has no area"
        raise _refused(file, where, problem, "give its width and height")
    return x, y, x + width, y + height


def _checked(file: Path, where: str, box: Xyxy) -> Xyxy:
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        text = f"box ends before it begins, x {x0:g} to {x1:g}, y {y0:g} to {y1:g}"
        raise _refused(file, where, text, "give its upper left corner, then its lower right one")
    return box


def _label(text: Any) -> str | None:
    return str(text).strip() or None if text is not None else None


def _refused(file: Path, where: str, problem: str, remedy: str) -> BoxesError:
    return BoxesError(f"{file}: {where}: {problem}", remedy)
