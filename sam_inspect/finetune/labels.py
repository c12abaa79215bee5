"""Labelled images: what there is to learn from, and which of them may be learned from where others are scored."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

from sam_inspect.datasets import Sample, as_name, check_ground_truth, csv_rows, groups_of, read_gt_mask, test_samples
from sam_inspect.errors import DatasetError, ImageError
from sam_inspect.files import write_text
from sam_inspect.images import read_image, read_size
from sam_inspect.masks import components, from_full
from sam_inspect.records import CropMask

PARTS = ("train", "test", "unused")
SPLIT_COLUMNS = ("image", "group", "type", "fold", "part")
HELD_SHARE = 3
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """One labelled image.

    Attributes:
        sample: the image, its defect type and its ground truth.
        name: its path from the data folder, `/` between.
        group: of pictures that show one part; its own name where no groups are known.
        original_hw: (H, W) pixels.
        defects: the connected parts of its ground truth, tight; at least one.
    """

    sample: Sample
    name: str
    group: str
    original_hw: tuple[int, int]
    defects: tuple[CropMask, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """Places of labels in their list; no group is in both.

    Attributes:
        train: may be learned from.
        test: are scored.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]


def read_labels(data: Path, groups: Path | None = None) -> list[Label]:
    """Every defective image under `test` whose ground truth marks a pixel; each other one is a warning.

    Args:
        data: in MVTec layout.
        groups: CSV of image,group; by default groups.csv in `data` where there is one.

    Raises:
        DatasetError: the layout, a ground truth's size or the groups are not as expected, or nothing is labelled.
    """
    samples = [sample for sample in test_samples(data) if sample.mask_path is not None]
    check_ground_truth(samples)
    known = groups_of(data, groups, [sample.image.relative_to(data).as_posix() for sample in samples]) or {}
    labels = [label for sample in samples if (label := _label(sample, data, known)) is not None]
    if not labels:
        raise DatasetError(f"{data}: none of its {len(samples)} labelled images can be used", "see the warnings above")
    return _copies_together(labels)


def _label(sample: Sample, data: Path, groups: dict[str, str]) -> Label | None:
    name = sample.image.relative_to(data).as_posix()
    if not name.isprintable():
        log.warning(f"{name!a}: cannot be written to the split and the page; rename it. It is left out")
        return None
    try:
        original_hw = read_size(sample.image)
        read_image(sample.image)
    except ImageError as error:
        log.warning("%s; left out", error)
        return None
    truth = from_full(read_gt_mask(sample, original_hw))
    if truth is None:
        log.warning(f"{sample.mask_path}: marks no pixel above 127; {name} is left out")
        return None
    x0, y0, _, _ = truth.box_xyxy
    parts = (_moved(part, x0, y0) for part in components(truth.pixels))
    return Label(sample, name, groups.get(name, name), original_hw, tuple(parts))


def _copies_together(labels: Sequence[Label]) -> list[Label]:
    """The same; pictures of the same bytes, as one that stands under two types, are of one group."""
    first: dict[bytes, Label] = {}
    same: dict[str, str] = {}
    for label in labels:
        twin = first.setdefault(hashlib.sha256(label.sample.image.read_bytes()).digest(), label)
        ours, theirs = same.get(label.group, label.group), same.get(twin.group, twin.group)
        if ours != theirs:
            log.warning(f"{label.name}: is the same picture as {twin.name}; both count as one part")
            same |= {group: theirs for group, now in [*same.items(), (ours, ours)] if now == ours}
    return [replace(label, group=same.get(label.group, label.group)) for label in labels]


def _moved(mask: CropMask, dx: int, dy: int) -> CropMask:
    x0, y0, x1, y1 = mask.box_xyxy
    return CropMask((x0 + dx, y0 + dy, x1 + dx, y1 + dy), mask.pixels)


def split(labels: Sequence[Label], n_folds: int, seed: int) -> list[Fold]:
    """`n_folds` folds by type and group; with 1, a single split that holds out about a third.

    A type with too few groups for a part in every fold is scored in some folds only. Where a single image, or a single
    group, is all there is, it is learned from and nothing is scored.
    """
    everything = tuple(range(len(labels)))
    groups = len({label.group for label in labels})
    if groups < 2:
        return [Fold(everything, ())]
    found = parted(labels, everything, min(groups, max(n_folds, HELD_SHARE if n_folds == 1 else 2)), seed)
    return found[:1] if n_folds == 1 else found


def parted(labels: Sequence[Label], among: Sequence[int], n_parts: int, seed: int) -> list[Fold]:
    """Folds over some labels, by type and group (scikit-learn's `StratifiedGroupKFold`)."""
    kinds = [labels[index].sample.defect_type for index in among]
    groups = [labels[index].group for index in among]
    counts = [kinds.count(kind) for kind in set(kinds)]
    folder: StratifiedKFold | StratifiedGroupKFold | GroupKFold
    if len(set(groups)) == len(groups) and min(counts) >= n_parts:
        folder = StratifiedKFold(n_parts, shuffle=True, random_state=seed)  # better balanced where groups are single
    elif max(counts) >= n_parts:
        folder = StratifiedGroupKFold(n_parts, shuffle=True, random_state=seed)
    else:
        folder = GroupKFold(n_parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a type with fewer images than folds
        parts = list(folder.split(kinds, kinds, groups))
    take = [tuple(among[place] for place in test) for _, test in parts]
    return [Fold(tuple(i for i in among if i not in set(test)), test) for test in take if test]


def draw_shots(labels: Sequence[Label], among: Sequence[int], count: int | None, seed: int) -> tuple[int, ...]:
    """`count` of the labels, types in turn and each group once before any twice; all of them for None."""
    if count is None or count >= len(among):
        return tuple(among)
    order = [among[place] for place in np.random.default_rng(seed).permutation(len(among))]
    kinds = sorted({labels[index].sample.defect_type for index in order})
    chosen: list[int] = []
    groups: set[str] = set()
    while len(chosen) < count:
        for kind in kinds:
            left = [i for i in order if labels[i].sample.defect_type == kind and i not in chosen]
            if left and len(chosen) < count:
                chosen.append(next((i for i in left if labels[i].group not in groups), left[0]))
                groups.add(labels[chosen[-1]].group)
    return tuple(chosen)


def read_split(file: Path, labels: Sequence[Label]) -> list[Fold]:
    """The split that a CSV of image,part (`train`, `test` or `unused`) says; images that it does not name are unused.

    Raises:
        DatasetError: it cannot be read, names an image twice or one that is not labelled, or has a group in both parts.
    """
    places = {label.name: place for place, label in enumerate(labels)}
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for line, row in csv_rows(file, "image", "part"):
        name, part = as_name(row["image"] or ""), (row["part"] or "").strip()
        where = f"{file}: line {line}"
        if name not in places:
            raise DatasetError(f"{where}: {name} is not a labelled image", "give paths from the data folder")
        if any(places[name] in named for named in parts.values()):
            raise DatasetError(f"{where}: {name} stands there a second time", "name each image once")
        if part not in parts:
            raise DatasetError(f"{where}: its part is {part!r}", f"give one of {', '.join(PARTS)}")
        parts[part].append(places[name])
    both = {labels[i].group for i in parts["train"]} & {labels[i].group for i in parts["test"]}
    if both or not parts["train"]:
        problem = f"group {min(both)} is in train and in test" if both else "nothing is in train"
        raise DatasetError(f"{file}: {problem}", "put every picture of one part into the same part")
    return [Fold(tuple(parts["train"]), tuple(parts["test"]))]


def write_split(file: Path, labels: Sequence[Label], folds: Sequence[Fold]) -> None:
    """Says of every label and fold whether it was learned from, scored or unused. Raises OutputError."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(SPLIT_COLUMNS)
    for number, fold in enumerate(folds):
        train, test = set(fold.train), set(fold.test)
        for place, label in enumerate(labels):
            part = "train" if place in train else "test" if place in test else "unused"
            table.writerow([label.name, label.group, label.sample.defect_type, number, part])
    write_text(file, text.getvalue())
