"""Flags that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the networks run.")]
Runtime = Annotated[
    Literal["auto", "torch", "openvino", "onnx", "compiled"],
    typer.Option(
        help="What runs the networks; auto: the recipe's checked one, else the fastest here; compiled: on a GPU."
    ),
]
Precision = Annotated[
    Literal["auto", "f32", "bf16"],
    typer.Option(
        help="Of the networks' products; with f32, which is auto unless the recipe says, masks do not change."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no messages but warnings and errors.")]
JsonLogs = Annotated[bool, typer.Option("--json-logs", help="Messages on stderr as one JSON object a line.")]
Data = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the images and, without --store, of the database.")]
StoreUrl = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", show_default="SQLite in --data", help="Database: postgresql+psycopg://..."),
]
