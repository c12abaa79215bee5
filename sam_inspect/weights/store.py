"""The user's cache of weights: each as safetensors beside a small JSON that says what it was made from."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam_inspect.errors import OutputError, WeightsError, WeightsMissing
from sam_inspect.files import make_folder, write_atomically, write_text
from sam_inspect.progress import Progress, silent
from sam_inspect.weights.convert import SUFFIXES, read_safetensors, read_tensors
from sam_inspect.weights.known import KNOWN

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LoadedWeights:
    """Weights in memory, mapped from disk where possible.

    Attributes:
        tensors: under the key names that `sam_inspect.networks` loads.
        sha256: of the file that they came from, before conversion; a recipe records it.
        source: a URL, a package file and its member, or the path of the user's own file.
    """

    tensors: dict[str, Tensor]
    sha256: str
    source: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What the JSON in the cache says.

    Attributes:
        name: known weights, or the architecture that a user named.
        sha256: of the original file.
        source: where that came from.
        terms: its licence; empty where nobody said.
        converted_sha256: of the safetensors in the cache.
        size_bytes: of the same.
        mtime_ns: of the same, so that it need not be hashed again at every start.
    """

    name: str
    sha256: str
    source: str
    terms: str
    converted_sha256: str
    size_bytes: int
    mtime_ns: int

    @property
    def path(self) -> Path:
        """The safetensors."""
        return _paths(self.name)[0]


@dataclass(frozen=True, slots=True)
class WeightsState:
    """One name in the cache: what is stored under it, and what is wrong with that."""

    name: str
    stored: Stored | None
    error: WeightsError | None


def cache_folder() -> Path:
    """`$SAM_INSPECT_CACHE`, else the platform's cache folder of the user. Raises OutputError: there is a file."""
    from platformdirs import user_cache_path

    given = os.environ.get("SAM_INSPECT_CACHE")
    folder = Path(given).expanduser() if given else user_cache_path("sam_inspect", appauthor=False)
    if folder.is_file():
        raise OutputError(f"{folder}: is a file where the cache should be", "set SAM_INSPECT_CACHE to a folder")
    return folder


def weights_folder() -> Path:
    """Where converted weights lie; may not exist yet."""
    return cache_folder() / "weights"


def load_weights(name_or_path: str) -> LoadedWeights:
    """Weights from the cache by name, or from a user's own `.safetensors`, `.pt` or `.pth`; nothing in them is run.

    A file of the cache is hashed again only where its size or time is not the recorded one; a user's own file at every
    call, since nothing is known of it.

    Raises:
        WeightsMissing: known weights that are not here; the remedy is the command that brings them.
        WeightsError: no such name or file, or a file that is cut, replaced or unsafe.
    """
    path = Path(name_or_path)
    if path.suffix.lower() in SUFFIXES or len(path.parts) > 1:
        tensors = read_tensors(path)
        return LoadedWeights(tensors, file_sha256(path), str(path))
    stored = find_stored(name_or_path)
    if stored is None:
        raise missing(name_or_path)
    check_stored(stored)
    return LoadedWeights(read_safetensors(stored.path), stored.sha256, stored.source)


def states(names: Sequence[str] = (), *, in_full: bool = False, progress: Progress = silent) -> list[WeightsState]:
    """How the cache stands, a row a name; what is damaged is a row with its error, never an error.

    Args:
        names: which; all that are in the cache where empty.
        in_full: hash each whole file, as `weights verify` does.
        progress: shows the names.
    """
    wanted = names or sorted(path.stem for path in weights_folder().glob("*.json"))
    return [_state(name, in_full) for name in progress(wanted, "checking weights", len(wanted))]


def _state(name: str, in_full: bool) -> WeightsState:
    stored = None
    try:
        stored = find_stored(name)
        if stored is None:
            return WeightsState(name, None, missing(name))
        check_stored(stored, in_full=in_full)
    except WeightsError as error:
        return WeightsState(name, stored, error)
    return WeightsState(name, stored, None)


def find_stored(name: str) -> Stored | None:
    """What the cache says about `name`; None where it is not there. Raises WeightsError."""
    tensors, record = _paths(name)
    try:
        stored = Stored(**json.loads(record.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{record}: cannot be read ({error})", remedy_for(name)) from error
    return stored if tensors.is_file() else None


def check_stored(stored: Stored, *, in_full: bool = False) -> None:
    """Compares a file of the cache with what was written there: its size and time, and its hash if those differ.

    Args:
        stored: what the cache says.
        in_full: hash it in any case.

    Raises:
        WeightsError: it is cut or replaced; the remedy is the command that brings it again.
    """
    path, facts = stored.path, stored.path.stat()
    if facts.st_size != stored.size_bytes:
        problem = f"{path}: is {facts.st_size} bytes instead of {stored.size_bytes}, cut or replaced"
        raise WeightsError(problem, remedy_for(stored.name))
    touched = facts.st_mtime_ns != stored.mtime_ns
    if (touched or in_full) and file_sha256(path) != stored.converted_sha256:
        problem = f"{path}: its SHA-256 is not the one recorded, damaged or replaced"
        raise WeightsError(problem, remedy_for(stored.name))
    if touched:
        _remember(replace(stored, mtime_ns=facts.st_mtime_ns))


def store_weights(name: str, tensors: Mapping[str, Tensor], *, sha256: str, source: str, terms: str) -> Stored:
    """Writes tensors into the cache under `name`, with where they came from. Raises OutputError."""
    make_folder(weights_folder())
    path, _ = _paths(name)
    write_atomically(path, lambda part: _write_safetensors(part, tensors))
    facts = path.stat()
    stored = Stored(name, sha256, source, terms, file_sha256(path), facts.st_size, facts.st_mtime_ns)
    _write_record(stored)
    return stored


def missing(name: str) -> WeightsMissing:
    """The error that says that `name` is not here, and what brings it."""
    names = [row.name for row in KNOWN]
    if name in names:
        return WeightsMissing(f"{name}: these weights are not on this machine", remedy_for(name))
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {nearest[0]}? Else " if nearest else ""
    return WeightsMissing(f"{name}: no weights of that name are on this machine", hint + remedy_for(name))


def remedy_for(name: str) -> str:
    """The one command that brings the weights `name`."""
    if any(row.name == name for row in KNOWN):
        return f"run: sam-inspect weights fetch {name}"
    return f"run: sam-inspect weights add FILE --name {name}"


def file_sha256(path: Path) -> str:
    """Of the whole file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _paths(name: str) -> tuple[Path, Path]:
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):  # a name out of a recipe must not lead anywhere else
        raise WeightsError(f"{name!r}: not a name for weights", "use letters, digits, dots, dashes and underscores")
    return weights_folder() / f"{name}.safetensors", weights_folder() / f"{name}.json"


def _remember(stored: Stored) -> None:
    """The new time of an unchanged file; a cache that is read-only is hashed at every start instead."""
    try:
        _write_record(stored)
    except OutputError:
        return


def _write_record(stored: Stored) -> None:
    write_text(_paths(stored.name)[1], json.dumps(asdict(stored), indent=2) + "\n")


def _write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    copies = {key: value.contiguous().clone() for key, value in tensors.items()}
    try:
        save_file(copies, path)
    except SafetensorError as error:  # a full disk, in its words
        raise OSError(str(error)) from error
