"""Prints how long files and functions are: a mirror for `make check`, not a limit."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "sam_inspect"


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """(lines without the docstring, `file:line name`) of each function of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            documented = len((ast.get_docstring(node, clean=False) or "").splitlines())
            yield lines - documented, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def main() -> None:
    """The table: lines a file, the longest functions, the medians."""
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    lengths = {path: len(path.read_text().splitlines()) for path in files}
    for path, lines in sorted(lengths.items(), key=lambda item: -item[1]):
        print(f"{lines:5d}  {path.relative_to(ROOT)}")
    found = sorted((item for path in files for item in functions(path)), reverse=True)
    print(f"\nlongest of {len(found)} functions, median {median(lines for lines, _ in found):.0f} lines:")
    for lines, where in found[:10]:
        print(f"{lines:5d}  {where}")
    tests = sum(len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py"))
    total = sum(lengths.values())
    print(f"\n{len(files)} files, {total} lines; tests {tests} lines, {tests / total:.1f} to 1")
    print(f"over 400 lines: {sum(lines > 400 for lines in lengths.values())} files")
    print(f"over 60 lines: {sum(lines > 60 for lines, _ in found)} functions")


if __name__ == "__main__":
    main()
