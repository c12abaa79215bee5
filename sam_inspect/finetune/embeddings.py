"""Views on disk, read back memory-mapped: encoded once by the untuned encoder, and as pixels where it moves.

A file's name is the hash of the network's weights, of the pixels that were encoded and of the size at which, so that a
stale one is never found. float16: a decoder's answers then differ by a thousandth of a logit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_inspect.errors import OutputError
from sam_inspect.files import drop_oldest, make_folder, write_atomically
from sam_inspect.records import Rgb, View
from sam_inspect.segment.sam import Sam
from sam_inspect.segment.views import shown
from sam_inspect.weights import cache_folder

MOST_BYTES = 8 << 30
VERSION = b"1"


@dataclass(frozen=True, slots=True)
class Kept:
    """A view on disk; thousands of them hold neither memory nor open files."""

    path: Path

    def load(self) -> NDArray[Any]:
        """(256, s, s) float16 of an encoded one, (h, w, 3) uint8 of pixels; memory-mapped.

        Raises:
            OutputError: somebody has removed or cut it since.
        """
        try:
            return np.asarray(np.load(self.path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise OutputError(f"{self.path}: cannot be read ({error})", "run the same command again") from None


class CachedEncoder:
    """A SAM's image encoder with a folder of what it has encoded.

    Attributes:
        sam: the network.
        folder: where encoded views lie; made where it is missing.
        found: views that were read so far.
        encoded: views that had to be encoded so far.
        seconds: what encoding them took.
    """

    def __init__(self, sam: Sam, folder: Path | None = None) -> None:
        self.sam = sam
        self.folder = make_folder(folder or cache_folder() / "embeddings")
        self.found = self.encoded = 0
        self.seconds = 0.0
        drop_oldest(self.folder.glob("*.npy"), MOST_BYTES)

    def embed(self, pixels: Rgb, input_px: int) -> Kept:
        """The embedding of `pixels` shown whole at `input_px`, from the folder or by the network.

        Raises:
            OutputError: it cannot be written, or the disk is full.
        """
        return self._kept(
            pixels, f"{self.sam.sha256} {pixels.shape} {input_px}", lambda: self._encode(pixels, input_px)
        )

    def show(self, pixels: Rgb, input_px: int) -> Kept:
        """`pixels` as they are shown to an encoder at `input_px`, from the folder or scaled. Raises OutputError."""
        return self._kept(pixels, f"pixels {pixels.shape} {input_px}", lambda: shown(pixels, _whole(pixels, input_px)))

    def _kept(self, pixels: Rgb, facts: str, make: Callable[[], NDArray[Any]]) -> Kept:
        content = VERSION + facts.encode() + np.ascontiguousarray(pixels).tobytes()
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.npy"
        with suppress(OSError, ValueError):  # not there, or cut: made anew
            np.load(path, mmap_mode="r", allow_pickle=False)
            self.found += 1
            return Kept(path)
        fresh = make()
        write_atomically(path, lambda part: _save(part, fresh))
        return Kept(path)

    def _encode(self, pixels: Rgb, input_px: int) -> NDArray[np.float16]:
        start = time.perf_counter()
        (embedding,) = self.sam.encode(pixels, [_whole(pixels, input_px)])
        self.encoded += 1
        self.seconds += time.perf_counter() - start
        return np.asarray(embedding.features[0].float().cpu().numpy(), np.float16)


def _whole(pixels: Rgb, input_px: int) -> View:
    height, width = pixels.shape[:2]
    return View((0, 0, width, height), input_px, ())


def _save(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as file:  # np.save would add .npy to a name without it
        np.save(file, array, allow_pickle=False)
