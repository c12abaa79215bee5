"""What people said of inspections as a data set in MVTec layout, from which `sam-inspect finetune` learns."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sam_inspect.datasets import GROUPS
from sam_inspect.errors import OutputError
from sam_inspect.masks import from_rle, union
from sam_inspect.records import CropMask
from sam_inspect.report.pictures import PNG, encode
from sam_inspect.serve.store import Store
from sam_inspect.serve.tables import InspectionRow

UNNAMED = "defect"


def write_labels(store: Store, rows: Iterable[InspectionRow], file: Path) -> int:
    """A zip of `test/good`, `test/TYPE`, `ground_truth/TYPE` and groups.csv; images as they came. How many it holds.

    Pictures of one serial number show one part, and so do those of the same bytes: groups.csv says so, since tuning
    must not be scored on what it learned from.

    A part goes to the type of its largest mask. One that was confirmed without corrected masks keeps SAM's, as
    `defect`; one that passed and was overruled without any is left out: nothing says where its defects are.

    Raises:
        OutputError: the disk is full; whatever goes wrong, nothing of it stays.
    """
    try:
        return _write(store, rows, file)
    except BaseException as error:
        file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"labels: {error.strerror}", "make room for a copy of the reviewed images") from error
        raise


def _write(store: Store, rows: Iterable[InspectionRow], file: Path) -> int:
    groups = io.StringIO(newline="")
    known = csv.writer(groups)
    known.writerow(("image", "group"))
    count = 0
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for row in rows:
            path, label = store.image(row), _label(row)
            if label is None or not path.is_file():
                continue
            kind, masks = label
            archive.write(path, f"test/{kind}/{path.name}")
            known.writerow((f"test/{kind}/{path.name}", _part(row, path)))
            if masks:
                drawn = union(masks, (row.result["size"][0], row.result["size"][1]))
                png = encode(".png", drawn.view(np.uint8) * np.uint8(255), PNG)
                archive.writestr(f"ground_truth/{kind}/{path.stem}_mask.png", png)
            count += 1
        archive.writestr(GROUPS, groups.getvalue())
    return count


def _part(row: InspectionRow, path: Path) -> str:
    """What an image shows, by its serial number; by its bytes where nobody said one."""
    if row.serial is not None:
        return f"{row.part or row.recipe} {row.serial}"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _label(row: InspectionRow) -> tuple[str, list[CropMask]] | None:
    """Type and masks; `good` has none. None where the review does not say."""
    review = row.review
    if review is None:
        return None
    given: list[dict[str, Any]] | None = review.get("masks")
    if given is None and review["decision"] == "confirm":
        given = [{"mask": each["mask"], "defect_type": UNNAMED} for each in row.result["defects"]]
    if given is None:
        return ("good", []) if row.verdict == "fail" else None
    masks = [(mask, each["defect_type"]) for each in given if (mask := from_rle(each["mask"])) is not None]
    if not masks:
        return "good", []
    largest = max(masks, key=lambda entry: entry[0].area_px)[1]
    return _folder(largest), [mask for mask, _ in masks]


def _folder(kind: str) -> str:
    """A type as the name of a folder; `good` means something else there."""
    name = re.sub(r"[^\w-]+", "_", kind).strip("_")[:60] or UNNAMED
    return f"{name}_" if name.lower() == "good" else name
