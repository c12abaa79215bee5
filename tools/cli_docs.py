"""Writes docs/cli.md from the commands' own `--help`, so that the page cannot say anything else.

`python tools/cli_docs.py` writes it; `--check` exits with 1 where it is out of date.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from typer.core import TyperGroup
from typer.main import get_group

from sam_inspect.cli import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """\
# Commands

Written from `--help` by `tools/cli_docs.py`; a test holds it to that. Names, flags and JSON keys are a contract.

Messages and progress go to stderr, results to stdout. `--quiet` silences all messages but warnings and errors;
`--json-logs` says each as one JSON object a line.
"""


def commands(group: TyperGroup, name: str = "") -> Iterator[str]:
    """The group's name and those of all its commands, each after what it stands under, in the order of `--help`."""
    yield name
    for word, command in group.commands.items():
        full = f"{name} {word}".strip()
        if isinstance(command, TyperGroup):
            yield from commands(command, full)
        else:
            yield full


def help_of(command: str) -> str:
    """What `sam-inspect COMMAND --help` prints, in 100 columns without colour."""
    plain = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "TYPER_USE_RICH": "0", "NO_COLOR": "1", "TERM": "dumb"}
    line = [sys.executable, "-m", "sam_inspect", *command.split(), "--help"]
    answer = subprocess.run(line, env=os.environ | plain, capture_output=True, text=True, check=True)
    text = answer.stdout.replace("python -m sam_inspect", "sam-inspect")
    return "\n".join(row.rstrip() for row in text.strip().splitlines())


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for command in commands(get_group(app)):
        title = f"sam-inspect {command}".strip()
        parts.append(f"{'##' if ' ' not in command else '###'} {title}\n\n```text\n{help_of(command)}\n```\n")
    return "\n".join(parts)


def main() -> int:
    """Writes the page, or with `--check` compares."""
    wanted = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(wanted)
        return 0
    if PAGE.read_text() == wanted:
        return 0
    print(f"{PAGE} is out of date; run python tools/cli_docs.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
