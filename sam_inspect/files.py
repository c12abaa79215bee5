"""Files by their path from the root, and written so that nobody reads half of one; a full disk is one clear line."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sam_inspect.errors import OutputError


def absolute(path: str | Path) -> str:
    """The path from the root, links kept as they are: what tells one image from another."""
    return os.path.abspath(path)  # noqa: PTH100 (Path.resolve would follow links, Path.absolute keeps `..`)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of the block (full disk, no permission, a file in the way) into an OutputError about `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path}: cannot be written ({reason})", "free space or choose another folder") from error


def make_folder(path: Path) -> Path:
    """`path` as an existing folder. Raises OutputError."""
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def make_room_for(path: Path) -> None:
    """The folder of a file that minutes of work will end in. Raises OutputError: there can be no such file."""
    make_folder(path.parent)
    with output_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "Is a directory")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary path beside `path`, then moves the result there in one step.

    Raises:
        OutputError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    with output_errors(path):
        handle, name = tempfile.mkstemp(prefix=".part-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        try:
            write(Path(name))
            Path(name).chmod(0o644)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, durable: bool = False) -> None:
    """`data` to `path`, whole or not at all; `durable`: also where the power goes right after. Raises OutputError."""

    def write(part: Path) -> None:
        _write(part, data)
        if durable:
            _sync(part)

    write_atomically(path, write)
    if durable and os.name == "posix":
        with output_errors(path):
            _sync(path.parent)  # its new name


def write_text(path: Path, text: str) -> None:
    """`text` to `path` as UTF-8, whole or not at all. Raises OutputError."""
    write_bytes(path, text.encode())


def drop_oldest(files: Iterable[Path], most_bytes: int) -> None:
    """Keeps the newest of them that fit into so many bytes; one that somebody else has removed meanwhile is none."""
    facts = []
    for path in files:
        with suppress(OSError):
            facts.append((path.stat(), path))
    total = 0
    for stat, path in sorted(facts, key=lambda item: -item[0].st_mtime):
        total += stat.st_size
        if total > most_bytes:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _sync(path: Path) -> None:
    """A file's bytes, or the names in a folder, onto the disk itself."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
