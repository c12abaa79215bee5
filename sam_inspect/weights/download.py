"""A file over HTTP: never more bytes than expected, resumed where it was cut, checked by SHA-256 at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import requests

from sam_inspect.errors import FetchError
from sam_inspect.files import make_folder, output_errors
from sam_inspect.progress import Progress
from sam_inspect.weights.store import file_sha256

BLOCK_BYTES = 1 << 20
CONNECT_SECONDS = 4.0  # an official source that a plant's network drops must not be waited for
READ_SECONDS = 30.0
ATTEMPTS = 5
log = logging.getLogger(__name__)


def download(
    session: requests.Session, url: str, target: Path, *, sha256: str, size_bytes: int, progress: Progress
) -> None:
    """Brings a file whose bytes are known. What came before a cut stays beside `target` as `.part`, for the next try.

    Raises:
        FetchError: no answer, cut again and again, or other bytes; the message is about the source.
        OutputError: the disk is full, or the folder cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    make_folder(target.parent)
    for _ in range(ATTEMPTS):
        had = _size(part)
        if had >= size_bytes:
            break
        try:
            _append(session, url, part, size_bytes, progress, exactly=True)
        except requests.RequestException as error:
            if _size(part) == had:
                raise FetchError(f"{reason_of(error)}{_so_far(had, size_bytes)}") from error
            log.info("%s: cut after %.1f MB, goes on from there", target.name, _size(part) / 1e6)
    if _size(part) < size_bytes:
        raise FetchError(f"was cut again and again{_so_far(_size(part), size_bytes)}")
    if _size(part) != size_bytes or file_sha256(part) != sha256:
        part.unlink()
        raise FetchError("gave other bytes than the known ones (SHA-256 differs)")
    with output_errors(target):
        part.replace(target)


def download_unknown(
    session: requests.Session, url: str, target: Path, *, limit_bytes: int, progress: Progress
) -> None:
    """Brings a file of which nothing is known, up to `limit_bytes`.

    Raises:
        FetchError: no answer, cut, or larger than the limit; the message is about the source.
        OutputError: the disk is full, or the folder cannot be written.
    """
    try:
        _append(session, url, target, limit_bytes, progress, exactly=False)
    except requests.RequestException as error:
        raise FetchError(reason_of(error)) from error


def reason_of(error: requests.RequestException) -> str:
    """Why a source failed, in a few words: requests' own text is a page of nested objects."""
    if error.response is not None:
        return f"answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.exceptions.SSLError):
        return "has no certificate that this machine trusts"
    if isinstance(error, requests.Timeout):
        return "did not answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "was cut"
    return "cannot be reached"


def _append(
    session: requests.Session, url: str, part: Path, size_bytes: int, progress: Progress, *, exactly: bool
) -> None:
    """Writes what is missing of `part`, or all of it where the server knows no ranges; never beyond `size_bytes`."""
    had = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={had}-"} if had else {})
    with session.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            had = 0
        left = size_bytes - had
        announced = int(response.headers.get("Content-Length", left))
        if announced > left or (exactly and announced < left):
            wanted = f"instead of {size_bytes}" if exactly else f"where {size_bytes} are the limit"
            raise FetchError(f"offers {had + announced} bytes {wanted}")
        blocks = response.iter_content(BLOCK_BYTES)
        shown = progress(blocks, f"fetching {part.name.removesuffix('.part')}, MiB", -(-announced // BLOCK_BYTES))
        _write(part, shown, left, keep=had > 0)


def _write(part: Path, blocks: Iterator[bytes], left: int, *, keep: bool) -> None:
    # Errors of the network are OSErrors too: only the disk's may be called the disk's.
    with output_errors(part):
        file = part.open("ab" if keep else "wb")
    with file:
        for block in blocks:
            left -= len(block)
            if left < 0:
                part.unlink()
                raise FetchError("sent more bytes than it should")
            with output_errors(part):
                file.write(block)
                file.flush()


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _so_far(had: int, size_bytes: int) -> str:
    return f" after {had / 1e6:.1f} of {size_bytes / 1e6:.1f} MB" if had else ""
