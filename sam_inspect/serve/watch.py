"""A line without HTTP: new files of a drop folder, or the frames of a camera, inspected as they come."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from sam_inspect.errors import Conflict, ImageError, OutputError, ServiceError, UsageError
from sam_inspect.files import absolute
from sam_inspect.images import IMAGE_SUFFIXES
from sam_inspect.pipeline import Inspector
from sam_inspect.records import Inspection
from sam_inspect.report.pictures import PNG, encode
from sam_inspect.serve.outputs import Outbox, without_user
from sam_inspect.serve.shelf import Loaded
from sam_inspect.serve.store import Arrival, Store

LOOK_S = 0.3
MOST_BYTES = 1 << 30
AWAY_S = 5.0
LONGEST_PAUSE_S = 30.0
STALE_S = 10.0
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shot:
    """One image as it came.

    Attributes:
        name: of the file, or of the camera with the time.
        image: the bytes of an image file.
        suffix: of its kind.
        key: the same for the same file, so that none is inspected twice over a restart; None for a frame.
        captured_at: when it was there.
    """

    name: str
    image: bytes
    suffix: str
    key: str | None
    captured_at: datetime


def folder_shots(folder: Path, stop: threading.Event) -> Iterator[Shot]:
    """Each picture that lies in the folder or comes into it, once it is whole: its size and time no longer change.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: is not a folder", "name an existing one, a stream's address or a camera's number")
    before: dict[Path, tuple[int, int]] = {}
    taken: dict[Path, tuple[int, int]] = {}
    while not stop.is_set():
        now = _pictures(folder)
        if now is None:
            stop.wait(AWAY_S)
            continue
        for path, mark in sorted(now.items(), key=lambda entry: (entry[1][1], entry[0])):
            if before.get(path) != mark or taken.get(path) == mark or stop.is_set():
                continue
            if mark[0] > MOST_BYTES:
                log.warning("%s: %d bytes are no picture of a line; passed over", path, mark[0])
                taken[path] = mark
                continue
            try:
                image = path.read_bytes()
            except OSError as error:
                log.warning("%s: cannot be read (%s); tried again", path, error.strerror)
                continue
            taken[path] = mark
            key = hashlib.sha256(f"{absolute(path)} {mark}".encode(errors="surrogateescape")).hexdigest()
            yield Shot(path.name, image, path.suffix.lower(), key, datetime.now(UTC))
        before = now
        taken = {path: mark for path, mark in taken.items() if path in now}
        stop.wait(LOOK_S)


def _pictures(folder: Path) -> dict[Path, tuple[int, int]] | None:
    """(bytes, nanoseconds of change) by path; None while the folder cannot be listed, as of a share that is away."""
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        log.warning("%s: cannot be listed (%s); again in %.0f s", folder, error.strerror, AWAY_S)
        return None
    found = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # it was moved away meanwhile
            continue
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and status.st_size:
            found[path] = (status.st_size, status.st_mtime_ns)
    return found


def camera_shots(source: str, every_s: float, stop: threading.Event) -> Iterator[Shot]:
    """A frame of the stream every so many seconds, always the newest; connected again whenever it breaks.

    Args:
        source: an address that OpenCV opens (`rtsp://`, `http://`, …), or a camera's number.
        every_s: at least so many seconds between two frames.
        stop: ends it.
    """
    camera, pause, due = _Camera(source), 0.5, time.monotonic()
    try:
        while not stop.is_set():
            frame = camera.newest(stop)
            if frame is None:
                log.warning("camera %s: gives no picture; again in %.0f s", without_user(source), pause)
                stop.wait(pause)
                pause = min(LONGEST_PAUSE_S, 2 * pause)
                camera.close()
                camera = _Camera(source)
                continue
            pause = 0.5
            moment = datetime.now(UTC)
            name = f"camera {moment.isoformat(timespec='milliseconds')}"
            yield Shot(name, encode(".png", frame, PNG), ".png", None, moment)
            due = max(due + every_s, time.monotonic() - every_s)
            stop.wait(max(0.0, due - time.monotonic()))
    finally:
        camera.close()


class _Camera:
    """Reads all the time in a thread of its own, so that what waits in the driver's buffer is never an old frame."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._frame: NDArray[np.uint8] | None = None
        self._news, self._closed, self._lost = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def newest(self, stop: threading.Event) -> NDArray[np.uint8] | None:
        """A (H, W, 3) BGR frame that nobody has had; None where the stream has broken."""
        until = time.monotonic() + STALE_S
        while not stop.is_set() and time.monotonic() < until:
            if self._news.wait(0.1):
                self._news.clear()
                return self._frame
            if self._lost.is_set():
                return None
        return None

    def close(self) -> None:
        self._closed.set()
        self._thread.join(2)

    def _run(self) -> None:
        capture = cv2.VideoCapture(int(self._source) if self._source.isdecimal() else self._source)
        try:
            while not self._closed.is_set():
                there, frame = capture.read()
                if not there:
                    break
                self._frame = np.asarray(frame, np.uint8)
                self._news.set()
        finally:
            capture.release()
            self._lost.set()


def inspect_shots(
    shots: Iterator[Shot], loaded: Loaded, store: Store, outbox: Outbox, camera: str | None, stop: threading.Event
) -> int:
    """Inspects each, keeps it with its image, and has the outputs told. How many it kept.

    What cannot be read is kept with the verdict `error`. While the disk is full or the store does not answer, it waits.

    Raises:
        OutputError, ServiceError: so it was when it was told to stop.
    """
    kept = 0
    for shot in shots:
        if shot.key is not None and _patiently(partial(store.answered, loaded.name, shot.key), stop) is not None:
            continue
        inspection = _inspected(loaded.inspector, shot)
        arrival = Arrival(
            recipe=loaded.name,
            version=loaded.version,
            captured_at=shot.captured_at,
            sha256=hashlib.sha256(shot.image).hexdigest(),
            camera=camera,
            idempotency_key=shot.key,
        )
        try:
            _patiently(partial(store.save, inspection, shot.image, shot.suffix, arrival, outbox.names), stop)
        except Conflict:
            continue  # kept already: by another process, or by a commit whose answer was lost
        outbox.wake()
        kept += 1
        score = "" if inspection.score is None else f", score {inspection.score:.3f}"
        log.info("%s: %s%s", shot.name, inspection.verdict, score)
    return kept


def _inspected(inspector: Inspector, shot: Shot) -> Inspection:
    try:
        return inspector.inspect(shot.image, shot.name)
    except ImageError as error:
        log.warning("%s", error)
        return Inspection(shot.name, "error", error=str(error))


def _patiently(work: Callable[[], T], stop: threading.Event) -> T:
    """What the store answers, however long it does not. Raises Conflict, which no waiting mends."""
    pause = 0.5
    while True:
        try:
            return work()
        except Conflict:
            raise
        except (OutputError, ServiceError) as error:
            if stop.is_set():
                raise
            log.warning("%s; again in %.0f s", error, pause)
            stop.wait(pause)
            pause = min(LONGEST_PAUSE_S, 2 * pause)
