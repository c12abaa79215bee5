"""Everything that was answered: rows in a database, images in a folder by date, both there before the answer goes out.

SQLite in WAL mode, or PostgreSQL by URL. An image is written first, whole or not at all, then its row and what is to be
delivered of it in one transaction: whenever the process dies, a row has its image. What was written without a row is
swept at the next start.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from numpy.typing import NDArray
from sqlalchemy import URL, Engine, Select, create_engine, delete, event, exists, func, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from sam_inspect.errors import Conflict, NotFound, OutputError, ServiceError
from sam_inspect.files import make_folder, output_errors, write_bytes
from sam_inspect.plugins import missing_extra
from sam_inspect.records import Inspection
from sam_inspect.report.writers import from_json, to_json
from sam_inspect.serve.tables import DeliveryRow, InspectionRow

LOCKED_S = 5.0
MAP_SUFFIX = ".map.npy"
SWEPT_DAYS = 2
OPEN = ".open"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came with an image.

    Attributes:
        recipe, version: which judged it.
        captured_at: when it arrived.
        part, serial, camera: what the line calls them.
        triggered_at: when the line says that it was taken.
        idempotency_key: of the client.
        sha256: of what is inspected: the image, and boxes that were given with it.
    """

    recipe: str
    version: str
    captured_at: datetime
    sha256: str
    part: str | None = None
    serial: str | None = None
    camera: str | None = None
    triggered_at: datetime | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which inspections: each that is not None must fit; `before` is the id after which the page begins."""

    recipe: str | None = None
    verdict: str | None = None
    part: str | None = None
    serial: str | None = None
    camera: str | None = None
    reviewed: bool | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: str | None = None


class Store:
    """See the module.

    Args:
        folder: of the images, and of the database where no URL is given.
        url: SQLAlchemy's, such as `postgresql+psycopg://user@host/name`.

    Raises:
        OutputError: the folder cannot be written.
        ServiceError: the database does not answer, or is of a newer revision.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = make_folder(folder)
        self.engine = _engine(url or URL.create("sqlite", database=str(folder / "inspections.db")))
        self._id_lock = threading.Lock()
        with self._answers():
            with self.engine.begin() as connection:
                if connection.dialect.name == "sqlite":  # which begins nothing of its own accord for a table
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                config = Config()
                config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
                config.attributes["connection"] = connection
                _upgrade(config)
            with Session(self.engine) as session:
                newest = session.scalar(select(func.max(InspectionRow.id)))
        self._last_ms = int(newest[:12], 16) if newest else 0
        with output_errors(self.folder):
            self._open = (self.folder / OPEN).open("a")
        if _locked(self._open, alone=True):
            self._sweep()
        _locked(self._open, alone=False)
        self._owned: dict[str, TextIO] = {}

    def close(self) -> None:
        """Gives the connections back."""
        self.engine.dispose()
        self._open.close()
        for output in list(self._owned):
            self.disowns(output)

    def owns(self, output: str) -> bool:
        """Whether it is this process that tells the output: the first that asked, until it ends. Raises OutputError.

        Two would tell each record twice, and in any order.
        """
        if output not in self._owned:
            path = self.folder / f".output-{hashlib.sha256(output.encode()).hexdigest()[:16]}"
            with output_errors(path):
                file = path.open("a")
            if not _locked(file, alone=True, unknown=True):
                file.close()
                return False
            self._owned[output] = file
        return True

    def disowns(self, output: str) -> None:
        """Another process may tell it."""
        if (file := self._owned.pop(output, None)) is not None:
            file.close()

    def save(
        self, inspection: Inspection, image: bytes, suffix: str, arrival: Arrival, outputs: Sequence[str]
    ) -> InspectionRow:
        """Keeps an answered inspection, its image as it came, its map, and what each output is to be told.

        Args:
            inspection: whole, with its map.
            image: the file's bytes.
            suffix: of its kind, such as `.png`.
            arrival: what came with it.
            outputs: names of those that are to be told.

        Raises:
            OutputError: the disk is full.
            Conflict: another image was answered under that idempotency key meanwhile.
            ServiceError: the database does not answer; nothing is kept.
        """
        done_at = datetime.now(UTC)
        row_id = self._next_id()
        relative = Path(done_at.strftime("%Y/%m/%d")) / f"{row_id}{suffix}"
        path = self.folder / relative
        row = InspectionRow(
            id=row_id,
            recipe=arrival.recipe,
            recipe_version=arrival.version,
            verdict=inspection.verdict,
            score=inspection.score,
            threshold=inspection.threshold,
            part=arrival.part,
            serial=arrival.serial,
            camera=arrival.camera,
            triggered_at=arrival.triggered_at,
            captured_at=arrival.captured_at,
            done_at=done_at,
            image=relative.as_posix(),
            image_bytes=len(image),
            request_sha256=arrival.sha256,
            idempotency_key=arrival.idempotency_key,
            result=to_json(inspection),
        )
        make_folder(path.parent)
        try:
            write_bytes(path, image, durable=True)
            if inspection.anomaly_map is not None:
                write_bytes(_map_of(path), _npy(inspection.anomaly_map))
            with self._session() as session:
                session.add(row)
                session.flush()
                for output in outputs:
                    due = DeliveryRow(inspection_id=row_id, output=output, record=record(row), due_at=done_at)
                    session.add(due)
        except (OutputError, ServiceError):
            _remove(path)
            _remove(_map_of(path))
            raise
        return row

    def find(self, row_id: str) -> InspectionRow:
        """The inspection of that id. Raises NotFound, ServiceError."""
        with self._session() as session:
            row = session.get(InspectionRow, row_id)
        if row is None:
            raise NotFound(f"inspection {row_id[:40]!r}: is not in the store", "it may have been pruned")
        return row

    def answered(self, recipe: str, key: str) -> InspectionRow | None:
        """What was answered under that idempotency key. Raises ServiceError."""
        query = select(InspectionRow).where(InspectionRow.recipe == recipe, InspectionRow.idempotency_key == key)
        with self._session() as session:
            return session.scalar(query)

    def page(self, which: Filter, most: int) -> list[InspectionRow]:
        """The newest that fit, newest first. Raises ServiceError."""
        query = _filtered(select(InspectionRow), which).order_by(InspectionRow.id.desc()).limit(most)
        with self._session() as session:
            return list(session.scalars(query))

    def after(self, row_id: str, most: int) -> list[InspectionRow]:
        """Those answered after that one, oldest first. Raises ServiceError."""
        query = select(InspectionRow).where(InspectionRow.id > row_id).order_by(InspectionRow.id).limit(most)
        with self._session() as session:
            return list(session.scalars(query))

    def newest_id(self) -> str:
        """Of the last answered; empty where there is none. Raises ServiceError."""
        with self._session() as session:
            return session.scalar(select(func.max(InspectionRow.id))) or ""

    def review(self, row_id: str, review: Mapping[str, Any]) -> InspectionRow:
        """Puts what a person says of an inspection to it. Raises NotFound, ServiceError."""
        self.find(row_id)
        with self._session() as session:
            session.execute(update(InspectionRow).where(InspectionRow.id == row_id).values(review=dict(review)))
        return self.find(row_id)

    def image(self, row: InspectionRow) -> Path:
        """The file of its image."""
        return self.folder / row.image

    def inspection(self, row: InspectionRow) -> Inspection:
        """The inspection again, with its map where that is kept."""
        found = from_json(row.result)
        try:
            anomaly_map = np.load(_map_of(self.image(row)), allow_pickle=False).astype(np.float32)
        except (OSError, ValueError):
            return found
        return replace(found, anomaly_map=anomaly_map)

    def due(self, output: str, most: int) -> list[DeliveryRow]:
        """What an output is to be told, oldest first; nothing while the oldest has to wait, so that order is kept."""
        waits = (DeliveryRow.output == output) & ~DeliveryRow.refused
        query = select(DeliveryRow).where(waits).order_by(DeliveryRow.id).limit(most)
        with self._session() as session:
            rows = list(session.scalars(query))
        return rows if rows and rows[0].due_at <= datetime.now(UTC) else []

    def delivered(self, delivery_id: int) -> None:
        """Forgets a delivery that the other side took. Raises ServiceError."""
        with self._session() as session:
            session.execute(delete(DeliveryRow).where(DeliveryRow.id == delivery_id))

    def refused(self, delivery: DeliveryRow, error: str) -> None:
        """Sets a delivery aside that the other side does not want. Raises ServiceError."""
        values = {"attempts": delivery.attempts + 1, "error": error, "refused": True}
        with self._session() as session:
            session.execute(update(DeliveryRow).where(DeliveryRow.id == delivery.id).values(values))

    def readmit(self) -> None:
        """What was set aside is to be delivered again. Raises ServiceError."""
        with self._session() as session:
            session.execute(update(DeliveryRow).where(DeliveryRow.refused).values(refused=False))

    def postpone(self, delivery: DeliveryRow, seconds: float, error: str) -> None:
        """Puts a delivery off that the other side did not take. Raises ServiceError."""
        values = {
            "attempts": delivery.attempts + 1,
            "due_at": datetime.now(UTC) + timedelta(seconds=seconds),
            "error": error,
        }
        with self._session() as session:
            session.execute(update(DeliveryRow).where(DeliveryRow.id == delivery.id).values(values))

    def waiting(self, *, refused: bool = False) -> dict[str, int]:
        """Deliveries that wait, or that were refused, by output. Raises ServiceError."""
        asked = DeliveryRow.refused.is_(refused)
        query = select(DeliveryRow.output, func.count()).where(asked).group_by(DeliveryRow.output)
        with self._session() as session:
            return dict(session.execute(query).all())

    def prune(self, keep_days: float | None, keep_bytes: int | None) -> int:
        """Forgets what is too old or too much, oldest first; nothing that is still to be delivered.

        Returns:
            how many it forgot.

        Raises:
            ServiceError.
        """
        forgotten = 0
        while batch := self._too_old(keep_days) or self._too_much(keep_bytes):
            with self._session() as session:
                session.execute(delete(InspectionRow).where(InspectionRow.id.in_([row.id for row in batch])))
            for row in batch:
                _remove(self.image(row))
                _remove(_map_of(self.image(row)))
            forgotten += len(batch)
        return forgotten

    def _prunable(self) -> Select[InspectionRow]:
        waits = exists().where(DeliveryRow.inspection_id == InspectionRow.id, ~DeliveryRow.refused)
        return select(InspectionRow).where(~waits).order_by(InspectionRow.id).limit(200)

    def _too_old(self, keep_days: float | None) -> list[InspectionRow]:
        if keep_days is None:
            return []
        query = self._prunable().where(InspectionRow.done_at < datetime.now(UTC) - timedelta(days=keep_days))
        with self._session() as session:
            return list(session.scalars(query))

    def _too_much(self, keep_bytes: int | None) -> list[InspectionRow]:
        if keep_bytes is None:
            return []
        with self._session() as session:
            excess = (session.scalar(select(func.sum(InspectionRow.image_bytes))) or 0) - keep_bytes
            rows = list(session.scalars(self._prunable())) if excess > 0 else []
        chosen: list[InspectionRow] = []
        for row in rows:
            if excess <= 0:
                break
            chosen.append(row)
            excess -= row.image_bytes
        return chosen

    def _next_id(self) -> str:
        """Ids sort by the time of the answer."""
        with self._id_lock:
            self._last_ms = max(self._last_ms + 1, time.time_ns() // 1_000_000)
            return f"{self._last_ms:012x}{secrets.token_hex(8)}"

    def _sweep(self) -> None:
        """Takes away what a process that died wrote without a row: parts of files, and images of the last days.

        Only while no other process has the folder open: what that one is writing has no row yet either.
        """
        days = [datetime.now(UTC) - timedelta(days=back) for back in range(SWEPT_DAYS)]
        with self._session() as session:
            rows = session.scalars(
                select(InspectionRow.image).where(InspectionRow.done_at >= days[-1] - timedelta(days=1))
            )
            known = {Path(image).stem for image in rows}
        for path in [path for day in days for path in (self.folder / day.strftime("%Y/%m/%d")).glob("*")]:
            if path.name.startswith(".part-") or path.name.partition(".")[0] not in known:
                log.warning("%s: was written by a process that died; removed", path)
                _remove(path)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with self._answers(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Turns what the database raises into a ServiceError."""
        try:
            yield
        except IntegrityError as error:
            if "one_answer_a_key" in str(error) or "idempotency_key" in str(error):
                raise Conflict("that Idempotency-Key was answered meanwhile", "send it again") from error
            raise ServiceError(f"the store refused a row ({type(error).__name__})", "see the service's log") from error
        except SQLAlchemyError as error:
            log.error("store: %s", " ".join(str(error).split()))
            raise ServiceError("the store does not answer", "send it again; see the service's log") from error


def _upgrade(config: Config) -> None:
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        problem = f"the store is of a newer sam-inspect ({' '.join(str(error).split())})"
        raise ServiceError(problem, "update sam-inspect") from error


def record(row: InspectionRow) -> dict[str, Any]:
    """What outputs are told of an inspection."""
    moments = {"trigger": row.triggered_at, "captured": row.captured_at, "done": row.done_at}
    return {
        "id": row.id,
        "part": row.part,
        "serial": row.serial,
        "camera": row.camera,
        "recipe": {"name": row.recipe, "version": row.recipe_version, "threshold": row.threshold},
        "times": {name: moment.isoformat() if moment else None for name, moment in moments.items()},
        "verdict": row.verdict,
        "score": row.score,
        "regions": [
            {key: defect[key] for key in ("box", "area_px", "area_mm2", "score")} for defect in row.result["defects"]
        ],
        "files": {"image": row.image},
        "latency_ms": row.result["timings_ms"],
        "error": row.result["error"],
    }


def _filtered(query: Select[InspectionRow], which: Filter) -> Select[InspectionRow]:
    for name in ("recipe", "verdict", "part", "serial", "camera"):
        if (value := getattr(which, name)) is not None:
            query = query.where(getattr(InspectionRow, name) == value)
    if which.reviewed is not None:
        query = query.where(InspectionRow.review.is_not(None) if which.reviewed else InspectionRow.review.is_(None))
    if which.since is not None:
        query = query.where(InspectionRow.done_at >= which.since)
    if which.until is not None:
        query = query.where(InspectionRow.done_at < which.until)
    if which.before is not None:
        query = query.where(InspectionRow.id < which.before)
    return query


def _engine(url: str | URL) -> Engine:
    try:
        if not str(url).startswith("sqlite"):
            return create_engine(url, pool_pre_ping=True, json_serializer=_json)
        engine = create_engine(url, connect_args={"timeout": LOCKED_S}, json_serializer=_json)
    except ModuleNotFoundError as error:
        raise missing_extra(error) or ServiceError(f"--store: {error}", "install it") from error
    except SQLAlchemyError as error:
        problem = f"--store: cannot be used ({' '.join(str(error).split())})"
        raise ServiceError(problem, "give SQLAlchemy's URL, such as postgresql+psycopg://user@host/name") from error

    @event.listens_for(engine, "connect")
    def _(connection: Any, _: Any) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _locked(file: TextIO, alone: bool, *, unknown: bool = False) -> bool:
    """Whether the file could be locked, for this process alone or beside others; the lock goes with the process."""
    try:
        import fcntl
    except ImportError:  # Windows, where nobody can tell who else is there
        return unknown
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(path: Path) -> None:
    """A file that cannot go is said, and stays: what is to be done after it must not wait for it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: cannot be removed (%s)", path, error.strerror)


def _map_of(image: Path) -> Path:
    return image.with_suffix(MAP_SUFFIX)


def _npy(anomaly_map: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, anomaly_map.astype(np.float16), allow_pickle=False)
    return buffer.getvalue()
