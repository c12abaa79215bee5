"""The rooms of sam_inspect, by floor: a module imports from floors below its own, so that it can be read alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "sam_inspect"
PLAN = [
    "errors records config logits",
    "images tiles masks recipe exports weights plugins files progress",
    "networks lines",
    "localize prompt segment mirror choose judge",
    "ask assemble",
    "pipeline",
    "datasets synth synth_bottle training finetune evaluate metrics report batch bench export quantise",
    "serve",
    "cli cli_serve options __main__ __init__ console testing demo doctor",
]
FLOORS = {room: floor for floor, rooms in enumerate(PLAN) for room in rooms.split()}
SIDEWAYS = {0, 1, 6, 8}  # Floors whose rooms may use each other. The stages, floor 3, never do.
BANNED = {"utils", "helpers", "common", "manager", "select", "types"}  # say nothing, or shadow the standard library


def rooms() -> dict[str, str]:
    """Each file of the package with the room it is in: its first folder, or its own name."""
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return {str(file): file.parts[0].removesuffix(".py") for file in files}


def imported(file: str) -> Iterator[str]:
    """The rooms that a file imports, inside functions too."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}, line {node.lineno}: a relative import hides which floor it is from"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        parts = (name.split(".") for name in names)
        yield from (part[1] for part in parts if part[0] == "sam_inspect" and len(part) > 1 and part[1] in FLOORS)


def test_every_room_has_a_floor() -> None:
    unknown = sorted(set(rooms().values()) - FLOORS.keys())
    assert not unknown, f"{unknown}: add it to PLAN in {Path(__file__).name}, on the floor above all that it imports"


def test_imports_go_down_only() -> None:
    wrong = []
    for file, room in rooms().items():
        floor = FLOORS.get(room, len(PLAN))
        for other in sorted(set(imported(file)) - {room}):
            if FLOORS[other] > floor or (FLOORS[other] == floor and floor not in SIDEWAYS):
                wrong.append(f"sam_inspect/{file} (floor {floor}) imports {other} (floor {FLOORS[other]})")
    assert not wrong, "\n".join(wrong)


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert not [file for file in rooms() if {Path(part).stem for part in Path(file).parts} & BANNED]
