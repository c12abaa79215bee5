"""API keys: shown once, kept as hashes in a file that `sam-inspect keys` writes and the service reads."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from sam_inspect.errors import UsageError
from sam_inspect.files import make_folder, write_text

PREFIX = "sik_"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key.

    Attributes:
        name: whose it is.
        sha256: of the key, which has 256 random bits, so that no slow hash is needed.
        made_at: when.
    """

    name: str
    sha256: str
    made_at: str


def read_keys(file: Path) -> list[Key]:
    """Those in the file; none where there is no file.

    Raises:
        UsageError: it is no file of keys.
    """
    try:
        return [Key(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))["keys"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{file}: holds no keys ({reason})", "name one of `sam-inspect keys add`") from None


def add_key(file: Path, name: str) -> str:
    """A new key for that name, which nobody can read again.

    Raises:
        UsageError: that name has one.
        OutputError: the file cannot be written.
    """
    keys = read_keys(file)
    if any(key.name == name for key in keys):
        raise UsageError(f"{name}: has a key", f"remove it first: sam-inspect keys remove {name}")
    secret = PREFIX + secrets.token_urlsafe(32)
    _write(file, [*keys, Key(name, _hash(secret), datetime.now(UTC).isoformat(timespec="seconds"))])
    return secret


def remove_key(file: Path, name: str) -> None:
    """Takes the key of that name away. Raises UsageError: it has none."""
    keys = read_keys(file)
    if all(key.name != name for key in keys):
        known = ", ".join(key.name for key in keys) or "none"
        raise UsageError(f"{name}: has no key in {file}", f"there are {known}")
    _write(file, [key for key in keys if key.name != name])


class KeyRing:
    """The keys of a file, read again whenever it changed."""

    def __init__(self, file: Path) -> None:
        self.file, self._stamp, self._keys = file, (-1, -1), list[Key]()

    def owner(self, secret: str) -> str | None:
        """Whose key that is; None for nobody's."""
        digest = _hash(secret)
        found = [key.name for key in self._read() if secrets.compare_digest(key.sha256, digest)]
        return found[0] if found else None

    def _read(self) -> list[Key]:
        try:
            status = self.file.stat()
        except OSError:
            return []
        if (stamp := (status.st_mtime_ns, status.st_ino)) != self._stamp:
            try:
                self._keys, self._stamp = read_keys(self.file), stamp
            except UsageError as error:
                log.error("%s", error)  # to whoever runs it, and not to whoever asks
                return []
        return self._keys


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _write(file: Path, keys: list[Key]) -> None:
    make_folder(file.parent)
    write_text(file, json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n")
    file.chmod(0o600)
