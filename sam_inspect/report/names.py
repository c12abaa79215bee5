"""Names of output files: readable, unique, the same in every run, and never outside the out folder."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sam_inspect.files import absolute

MOST_CHARACTERS = 60
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def output_names(images: Sequence[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """For each image a relative name without suffix: its folder and its own name, as in `broken_large/000`.

    The name comes from the image's absolute path alone, so that more images beside it do not change it. Where two
    images would share a name (`train/good/000.png` and `test/good/000.png`, or `000.png` and `000.jpg`), those after
    the first get six hex digits of their path's SHA-256 besides. Odd characters become `_`.

    Args:
        images: paths as they were given, or plain names.
        known: names given in earlier runs, by absolute path; they are kept.

    Returns:
        name by image, always of two parts with `/` between; names differ even where case does not count.
    """
    given = dict(known or {})
    taken = {name.casefold() for name in given.values()}
    for path in map(absolute, images):
        if path not in given:
            given[path] = next(name for name in _candidates(path) if name.casefold() not in taken)
            taken.add(given[path].casefold())
    return {image: given[absolute(image)] for image in images}


def _candidates(path: str) -> Iterator[str]:
    """The readable name, then the same with six digits of the path's hash, then (never yet needed) with all of them."""
    name = _readable(path)
    digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
    yield from (name, f"{name}-{digest[:6]}", f"{name}-{digest}")


def _readable(path: str) -> str:
    file = Path(path)
    return f"{_clean(file.parent.name) or 'root'}/{_clean(file.stem) or 'image'}"


def _clean(part: str) -> str:
    """One part of a path that every file system takes: letters of any script, digits, `-`, `_` and inner dots."""
    text = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", part)).strip(". ")[:MOST_CHARACTERS].rstrip(". ")
    return f"_{text}" if text.split(".")[0].casefold() in RESERVED else text
