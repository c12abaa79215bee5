"""What an inspection run leaves for other programs: results.jsonl, summary.csv, coco.json, and how a run resumes.

`ResultsLog` keeps results.jsonl: one line an image, written as soon as the image is inspected. Beside it lies
`.resume.jsonl`, which knows what each line was made from.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sam_inspect import files, masks
from sam_inspect.files import absolute
from sam_inspect.records import Defect, Inspection
from sam_inspect.report.names import output_names

RESULTS = "results.jsonl"
RESUME = ".resume.jsonl"
SUMMARY = "summary.csv"
COCO = "coco.json"
Row = dict[str, Any]


def to_json(inspection: Inspection) -> Row:
    """The inspection as one line of results.jsonl says it: masks as COCO RLE of the original image's size.

    Keys: image, verdict, score, threshold, defects, error, timings_ms, size ([H, W] pixels). A defect's: box
    ([x0, y0, x1, y1] pixels, x1 and y1 exclusive), area_px, area_mm2, length_px, score, mask, source, and label where
    it is known. What is unknown is None. The anomaly map is left out.
    """
    size = inspection.original_hw
    return {
        "image": inspection.image,
        "verdict": inspection.verdict,
        "score": _number(inspection.score),
        "threshold": _number(inspection.threshold),
        "defects": [_defect_to_json(defect, size) for defect in inspection.defects if size],
        "error": inspection.error,
        "timings_ms": {stage: round(float(ms), 3) for stage, ms in inspection.timings_ms.items()},
        "size": list(size) if size else None,
    }


def _defect_to_json(defect: Defect, original_hw: tuple[int, int]) -> Row:
    row: Row = {
        "box": [int(value) for value in defect.box_xyxy],
        "area_px": int(defect.area_px),
        "area_mm2": _number(defect.area_mm2),
        "length_px": round(float(defect.length_px), 2),
        "score": float(defect.score),
        "mask": masks.to_rle(defect.mask, original_hw),
        "source": defect.source,
    }
    return row if defect.label is None else {**row, "label": defect.label}


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def from_json(row: Mapping[str, Any]) -> Inspection:
    """The Inspection that `to_json` wrote; it has no anomaly map.

    Raises:
        KeyError, TypeError, ValueError: `row` is not what `to_json` writes.
    """
    size = row["size"]
    return Inspection(
        image=row["image"],
        verdict=row["verdict"],
        score=row["score"],
        threshold=row["threshold"],
        defects=tuple(_defect_from_json(defect) for defect in row["defects"]),
        original_hw=(size[0], size[1]) if size else None,
        error=row["error"],
        timings_ms=dict(row["timings_ms"]),
    )


def _defect_from_json(row: Mapping[str, Any]) -> Defect:
    mask = masks.from_rle(row["mask"])
    if mask is None:
        raise ValueError(f"defect at {row['box']}: its mask is empty")
    return Defect(
        mask=mask,
        score=row["score"],
        source=row["source"],
        area_px=row["area_px"],
        length_px=row["length_px"],
        area_mm2=row["area_mm2"],
        label=row.get("label"),
    )


def fingerprint(image: str | Path, settings: str) -> str:
    """What a result depends on, in one short text: the file's size and time of change, and `settings`.

    Args:
        image: path of the picture; one that cannot be seen has the fingerprint of a missing file.
        settings: any text that changes whenever results may (recipe's hash, threshold, least area).
    """
    digest = hashlib.sha256(settings.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    try:
        stat = Path(image).stat()
    except (OSError, ValueError):
        return f"missing-{digest}"
    return f"{stat.st_size}-{stat.st_mtime_ns}-{digest}"


@dataclass(frozen=True, slots=True)
class _Known:
    """One line of .resume.jsonl: `checksum` ties it to the line of results.jsonl that it is about."""

    path: str
    image: str
    name: str
    fingerprint: str
    checksum: int


class ResultsLog:
    """results.jsonl of one out folder: knows what is done, takes new results, puts them in order at the end.

    Safe to call from several threads. A killed run loses at most the line that was being written.

    Attributes:
        problems: one line of text for what was in the folder and could not be read (and is thus inspected again).

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.problems: list[str] = []
        self._lock = threading.Lock()
        self._results = files.make_folder(out) / RESULTS
        self._resume = out / RESUME
        self._lines: dict[str, str] = {}
        self._known: dict[str, _Known] = {}
        self._read()
        self._names = {known.path: known.name for known in self._known.values()}
        with files.output_errors(self._results):
            self._results_file = self._results.open("ab", buffering=0)
        with files.output_errors(self._resume):
            self._resume_file = self._resume.open("ab", buffering=0)

    def __enter__(self) -> ResultsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the files; what was appended stays."""
        self._results_file.close()
        self._resume_file.close()

    def names(self, images: Sequence[str]) -> dict[str, str]:
        """`output_names` of the images; one that had a name in this folder before keeps it."""
        names = output_names(images, self._names)
        self._names.update({absolute(image): name for image, name in names.items()})
        return names

    def is_done(self, image: str, fingerprint: str) -> bool:
        """Whether an earlier run inspected this very image with these settings, without error."""
        known = self._known.get(absolute(image))
        if known is None or known.fingerprint != fingerprint:
            return False
        line = self._lines.get(known.path)
        return line is not None and json.loads(line)["verdict"] != "error"

    def append(self, inspection: Inspection, fingerprint: str) -> None:
        """Writes one result, at once.

        Args:
            inspection: the result.
            fingerprint: what it was made from, see the function `fingerprint`.

        Raises:
            OutputError: the disk is full; the lines before this one are whole.
        """
        line = json.dumps(to_json(inspection), allow_nan=False)
        path = absolute(inspection.image)
        with self._lock:
            name = self.names([inspection.image])[inspection.image]
            known = _Known(path, inspection.image, name, fingerprint, _checksum(line))
            _append_line(self._results_file, self._results, line)
            _append_line(self._resume_file, self._resume, _resume_line(known))
            self._lines[path], self._known[path] = line, known

    def finish(self, images: Sequence[str]) -> list[Inspection]:
        """Rewrites results.jsonl with the results of `images` in their order; those of other images are set aside.

        A later run that asks for an image set aside finds it done. Images without a result are left out. The log is
        closed.

        Returns:
            the inspections in the order of `images`, without anomaly maps.

        Raises:
            OutputError: the disk is full; the file is as it was before.
        """
        with self._lock:
            self.close()
            found = list(self._asked(images))
            files.write_text(self._results, "".join(line + "\n" for line, _ in found))
            asked = {inspection.image: _checksum(line) for line, inspection in found}
            files.write_text(self._resume, "".join(line + "\n" for line in self._resume_lines(asked)))
        return [inspection for _, inspection in found]

    def _asked(self, images: Sequence[str]) -> Iterator[tuple[str, Inspection]]:
        for image in dict.fromkeys(images):
            line = self._lines.get(absolute(image))
            if line is None:
                continue
            try:
                row = {**json.loads(line), "image": image}
                yield json.dumps(row), from_json(row)
            except (KeyError, TypeError, ValueError) as error:
                self.problems.append(f"{self._results}: the result of {image} cannot be used ({error})")

    def _resume_lines(self, asked: Mapping[str, int]) -> Iterator[str]:
        spelling = {absolute(image): image for image in asked}
        for path, known in self._known.items():
            image = spelling.get(path)
            if image is not None:
                yield _resume_line(_Known(path, image, known.name, known.fingerprint, asked[image]))
            elif path in self._lines:
                yield _resume_line(known, self._lines[path])

    def _read(self) -> None:
        """Each image's own line: two images may be spelled alike, from two working folders."""
        written = {(_image_of(line), _checksum(line)): line for line in _whole_lines(self._results)}
        for line in _whole_lines(self._resume):
            try:
                row = json.loads(line)
                result = row.pop("result", None)
                known = _Known(**row)
            except (ValueError, TypeError, AttributeError):
                continue  # Without it the image is inspected again: nothing is lost.
            self._known[known.path] = known
            self._lines[known.path] = result or written.get((known.image, known.checksum), "")
        self._lines = {
            path: line for path, line in self._lines.items() if _checksum(line) == self._known[path].checksum
        }
        if lost := [known.image for path, known in self._known.items() if path not in self._lines]:
            some = f"{len(lost)} results cannot be read or were changed, such as that of {lost[0]}"
            self.problems.append(f"{self._results}: {some}; inspected again where asked for")


def _resume_line(known: _Known, result: str | None = None) -> str:
    row = {name: getattr(known, name) for name in _Known.__slots__}
    return json.dumps(row if result is None else {**row, "result": result})


def _image_of(line: str) -> str | None:
    try:
        return str(json.loads(line)["image"])
    except (ValueError, TypeError, KeyError):
        return None


def _checksum(line: str) -> int:
    return zlib.crc32(line.encode())


def _whole_lines(path: Path) -> list[str]:
    """Each line that has its end; what a killed run left of the last one is cut off.

    Raises:
        OutputError: the file cannot be read.
    """
    with files.output_errors(path):
        data = path.read_bytes() if path.exists() else b""
        whole, _, cut = data.rpartition(b"\n")
        if cut:
            os.truncate(path, len(data) - len(cut))
    text = whole.decode("utf-8", "replace")
    return [line for line in text.split("\n") if line.strip()]


def _append_line(file: io.FileIO, path: Path, line: str) -> None:
    """One line, whole or not at all."""
    data = line.encode() + b"\n"
    with files.output_errors(path):
        end = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(end)
            raise


SUMMARY_COLUMNS = (
    "image",
    "verdict",
    "score",
    "threshold",
    "defects",
    "largest_area_px",
    "total_area_px",
    "total_area_mm2",
    "max_length_px",
    "error",
    "ms",
)


def write_summary(out: Path, inspections: Iterable[Inspection]) -> Path:
    """summary.csv: one row an image; a cell is empty where nothing is known. Raises OutputError."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(SUMMARY_COLUMNS)
    table.writerows(_summary_row(inspection) for inspection in inspections)
    files.write_bytes(out / SUMMARY, text.getvalue().encode("utf-8", "backslashreplace"))
    return out / SUMMARY


def _summary_row(inspection: Inspection) -> list[Any]:
    defects = inspection.defects
    readable = inspection.verdict != "error"
    areas = [defect.area_px for defect in defects]
    areas_mm2 = [defect.area_mm2 for defect in defects if defect.area_mm2 is not None]
    return [
        inspection.image,
        inspection.verdict,
        inspection.score,
        inspection.threshold,
        len(defects) if readable else None,
        max(areas, default=0) if readable else None,
        sum(areas) if readable else None,
        float(f"{sum(areas_mm2):.6g}") if areas_mm2 else None,
        round(max((defect.length_px for defect in defects), default=0.0), 2) if readable else None,
        inspection.error,
        round(sum(inspection.timings_ms.values()), 3) if inspection.timings_ms else None,
    ]


def write_coco(out: Path, inspections: Iterable[Inspection]) -> Path:
    """coco.json: COCO's detection format, masks as compressed RLE, boxes as x, y, width, height.

    A defect's category is its label, or "defect". Images that could not be read are left out. Raises OutputError.
    """
    readable = [inspection for inspection in inspections if inspection.original_hw is not None]
    labels = sorted({_label(defect) for inspection in readable for defect in inspection.defects} | {"defect"})
    category = {label: number for number, label in enumerate(labels, start=1)}
    annotations: list[Row] = []
    images: list[Row] = []
    for image_id, inspection in enumerate(readable, start=1):
        height, width = inspection.original_hw or (0, 0)
        images.append({"id": image_id, "file_name": inspection.image, "height": height, "width": width})
        for defect in inspection.defects:
            row = _annotation(defect, (height, width), category[_label(defect)])
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **row})
    document = {
        "info": {"description": "sam-inspect", "version": "1.0"},
        "licenses": [],
        "categories": [{"id": number, "name": label, "supercategory": "defect"} for label, number in category.items()],
        "images": images,
        "annotations": annotations,
    }
    files.write_text(out / COCO, json.dumps(document, allow_nan=False))
    return out / COCO


def _label(defect: Defect) -> str:
    return defect.label or "defect"


def _annotation(defect: Defect, original_hw: tuple[int, int], category_id: int) -> Row:
    x0, y0, x1, y1 = defect.box_xyxy
    return {
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": defect.area_px,
        "segmentation": masks.to_rle(defect.mask, original_hw),
        "iscrowd": 0,
        "score": float(defect.score),
        "source": defect.source,
    }
