"""Writes docs/cli.md from the commands' own `--help`, so that the page cannot say anything else.

`python tools/cli_docs.py` writes it; `--check` exits with 1 where it is out of date.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
COMMANDS = (
    "",
    "train",
    "inspect",
    "evaluate",
    "finetune",
    "compare",
    "synth",
    "demo",
    "weights",
    "weights list",
    "weights fetch",
    "weights add",
    "weights verify",
    "doctor",
)
HEAD = """\
# Commands

Written from `--help` by `tools/cli_docs.py`; a test holds it to that. Names, flags and JSON keys are a contract.

Messages and progress go to stderr, results to stdout. `--quiet` silences all messages but warnings and errors;
`--json-logs` says each as one JSON object a line.
"""


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
    for command in COMMANDS:
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
