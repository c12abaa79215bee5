"""The figures as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sam_inspect.evaluate.columns import COLUMNS

Table = tuple[str, list[str], list[list[str]]]
Row = Mapping[str, Any]


def as_tables(figures: Row) -> list[Table]:
    """(title, columns, rows) of each table: images, pixels, masks, masks by type, seconds; intervals where there are.

    Args:
        figures: what `evaluate` returned.
    """
    parts = {"all": figures, **figures["per_defect"]}
    count, seconds = figures["count"], figures["seconds"]
    title = f"{count['defective']} defective images with {count['defects']} defects, {count['good']} good ones"
    by_type = {kind: {c: part["masks"][c]["mean_iou"] for c in COLUMNS} for kind, part in parts.items()}
    tables = [
        _table(title, {kind: _images(part) for kind, part in parts.items()}),
        _table("Pixels", {kind: part["pixel"] for kind, part in parts.items()}),
        _table("Masks", {column: figures["masks"][column] for column in COLUMNS}),
        _table("Mean IoU of the masks", by_type),
        _table("Seconds an image", {"inspection": {k: v for k, v in seconds.items() if k != "total"}}),
    ]
    return [*tables, _intervals(figures)] if "intervals" in figures else tables


def _images(part: Row) -> Row:
    return {"images": part["count"]["images"], **part["image"]}


def _intervals(figures: Row) -> Table:
    found = figures["intervals"]
    rows = {"image auroc": (figures["image"]["auroc"], found["image"]["auroc"])}
    for column in COLUMNS:
        rows[f"mean_iou {column}"] = (figures["masks"][column]["mean_iou"], found["masks"][column]["mean_iou"])
    title = f"{100 * found['confidence']:.0f} % intervals, {found['groups']} groups"
    shown = {name: _bounds(figure, ends) for name, (figure, ends) in rows.items()}
    return _table(title, shown)


def _bounds(figure: float | None, ends: Sequence[float] | None) -> Row:
    low, high = ends or (None, None)
    return {"figure": figure, "from": low, "to": high}


def _table(title: str, rows: Mapping[str, Row]) -> Table:
    columns = list(next(iter(rows.values())))
    return (
        title,
        ["", *columns],
        [[name, *(text_of(row.get(column)) for column in columns)] for name, row in rows.items()],
    )


def text_of(value: float | int | None, sign: bool = False) -> str:
    """A cell: three decimals, with its sign where asked for; counts as they are, `-` for what is not defined."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:{'+' if sign else ''}.3f}"
