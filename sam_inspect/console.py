"""What the command says: messages on stderr, as text or as JSON lines, and results as tables on stdout."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import typer

from sam_inspect.errors import SamInspectError, ctrl_c_as_such
from sam_inspect.plugins import missing_extra
from sam_inspect.progress import Progress, bar, silent, spoken

log = logging.getLogger(__name__)
AGAIN = "run the same command again to start over"
RESUME = "run the same command again to go on from here"


@contextmanager
def session(quiet: bool, json_logs: bool, *, interrupted: str = AGAIN) -> Iterator[Progress]:
    """A command's body: yields the progress to show, and turns every error into one line and an exit status.

    Args:
        quiet: say nothing but warnings and errors.
        json_logs: say everything as one JSON object a line, on stderr.
        interrupted: what to do after Ctrl-C.

    Raises:
        typer.Exit: with the error's own code; 130 after Ctrl-C; 1 for what nobody foresaw.
    """
    _listen(quiet, json_logs)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that this terminal cannot show is no failure
    try:
        with ctrl_c_as_such():
            yield _progress(quiet, json_logs)
    except SamInspectError as error:
        _fail(str(error), error.exit_code, error)
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        _fail(str(missing or _unforeseen(error)), missing.exit_code if missing else 1, error)
    except KeyboardInterrupt as error:
        _fail(f"interrupted; {interrupted}", 130, error)
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:  # the last line of defence: a station's log wants one line, not a traceback
        _fail(_unforeseen(error), 1, error)


def say(message: str) -> None:
    """One message on stderr; nothing with `--quiet`."""
    log.info(message)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A result on stdout: the first column is words, the others are numbers or short words."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left", title_style="bold", header_style="")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    # In a pipe nobody's window limits the width, and a cut number would be a wrong one.
    Console(width=None if sys.stdout.isatty() else 240, highlight=False, markup=False).print(shown)


def _unforeseen(error: Exception) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{reason}; set SAM_INSPECT_DEBUG=1 to see where it comes from"


def _fail(message: str, code: int, error: BaseException) -> None:
    log.error(message, extra={"facts": {"error": type(error).__name__, "exit_status": code}})
    if os.environ.get("SAM_INSPECT_DEBUG"):
        raise error
    raise typer.Exit(code)


def _progress(quiet: bool, json_logs: bool) -> Progress:
    if quiet:
        return silent
    is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return bar if is_terminal and not json_logs else spoken


def _listen(quiet: bool, json_logs: bool) -> None:
    """Sends all log records and warnings of the process to stderr in one form."""
    handler = _Stderr()
    handler.setFormatter(_Json() if json_logs else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("sam_inspect").setLevel(logging.WARNING if quiet else logging.INFO)
    logging.captureWarnings(True)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


class _Stderr(logging.Handler):
    """Writes to whatever `sys.stderr` is at the time: a bar that is on the screen puts itself there."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # A full disk behind stderr is no reason to end what the message is about.
            print(self.format(record), file=sys.stderr, flush=True)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = " ".join(record.getMessage().split())
        return line if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {line}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {"time": moment, "level": record.levelname.lower(), "message": " ".join(record.getMessage().split())}
        return json.dumps(head | getattr(record, "facts", {}), ensure_ascii=False, default=str)
