"""The parts of the service, each alone: queue, store on both databases, outputs, masks from outside, figures."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pwd
import shutil
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pydantic import ValidationError
from scipy.stats import ks_2samp
from sqlalchemy import update
from sqlalchemy.orm import Session
from starlette.datastructures import Headers

from sam_inspect import files
from sam_inspect.config import PromptConfig, RecipeConfig
from sam_inspect.datasets import read_groups
from sam_inspect.errors import (
    ConfigError,
    Conflict,
    Draining,
    NotFound,
    OutputError,
    QueueFull,
    Refused,
    ServiceError,
    TooLate,
    UsageError,
)
from sam_inspect.masks import from_full, from_rle
from sam_inspect.pipeline import Inspector
from sam_inspect.recipe import Recipe
from sam_inspect.records import Candidates, Defect, Inspection, Prompt, View
from sam_inspect.serve import outputs as outputs_module
from sam_inspect.serve import store as store_module
from sam_inspect.serve import watch
from sam_inspect.serve.clicks import Clicker, Clicks
from sam_inspect.serve.figures import Telemetry, distance
from sam_inspect.serve.guard import Guard, is_loopback
from sam_inspect.serve.keys import KeyRing, add_key, read_keys, remove_key
from sam_inspect.serve.labels import write_labels
from sam_inspect.serve.messages import ClickMessage, Fields, Rle
from sam_inspect.serve.outputs import JsonLines, Mqtt, Outbox, Webhook, output_of, read_outputs, without_user
from sam_inspect.serve.service import _check_agree
from sam_inspect.serve.shelf import Loaded
from sam_inspect.serve.store import Arrival, Filter, Store, record
from sam_inspect.serve.tables import Base, InspectionRow
from sam_inspect.serve.watch import Shot, folder_shots, inspect_shots
from sam_inspect.serve.work import Kind, Task, WorkQueue

HW = (20, 30)


# The queue


def task(read: Callable[[], Any], work: Callable[[Any], Any], kind: Kind | None = None) -> Task[Any, Any]:
    return Task(read, lambda founds: map(work, founds), lambda _: kind)


async def all_read(queue: WorkQueue) -> None:
    while queue._waiting:
        await asyncio.sleep(0.01)


def test_jobs_are_done_in_order_and_their_errors_told() -> None:
    async def story() -> None:
        queue = WorkQueue(8)
        jobs = [queue.submit(task(lambda n=n: n, lambda n: n * 2)) for n in range(5)]
        assert [await job.answer for job in jobs] == [0, 2, 4, 6, 8]
        broken = queue.submit(task(lambda: 1, lambda n: n / 0))
        unread = queue.submit(task(lambda: 1 / 0, lambda n: n))
        for job in (broken, unread):
            with pytest.raises(ZeroDivisionError):
                await job.answer
        assert await queue.submit(task(lambda: 1, lambda n: n)).answer == 1
        queue.close()
        queue.join(5)
        assert queue.depth == 0
        with pytest.raises(Draining):
            queue.submit(task(lambda: 1, lambda n: n))

    asyncio.run(story())


def test_what_is_too_much_or_too_late_is_refused_and_who_goes_frees_a_place() -> None:
    async def story() -> None:
        queue, go = WorkQueue(2), threading.Event()
        taken = []
        for work in (lambda _: go.wait(10), lambda _: None):  # worked on, read ahead
            taken.append(queue.submit(task(lambda: None, work)))
            await all_read(queue)
        waiting = queue.submit(task(lambda: "seen", lambda word: word))
        late = queue.submit(task(lambda: None, lambda _: None), deadline=time.monotonic())
        with pytest.raises(QueueFull) as full:
            queue.submit(task(lambda: None, lambda _: None))
        assert full.value.retry_after_s >= 1
        assert queue.forget(waiting)
        assert not queue.forget(taken[0])
        last = queue.submit(task(lambda: None, lambda _: "last"))
        go.set()
        assert await last.answer == "last"
        with pytest.raises(TooLate):
            await late.answer
        assert all(job.answer.done() for job in taken)
        assert not waiting.answer.done()
        queue.close()

    asyncio.run(story())


def test_what_comes_together_is_worked_on_together_and_one_that_fails_spoils_no_other() -> None:
    async def story() -> None:
        queue, go, asked = WorkQueue(20), threading.Event(), list[list[float]]()

        def halves(founds: Any) -> Iterator[float]:
            asked.append(list(founds))
            for found in founds:
                yield 1 / found

        kinds = {"a": Kind("a", 3), "b": Kind("b", 3)}
        first = queue.submit(task(lambda: None, lambda _: go.wait(10), kinds["a"]))
        while queue._read or queue._waiting:
            await asyncio.sleep(0.01)
        wanted = [(1, "a"), (2, "a"), (4, "a"), (5, "a"), (8, "b"), (0, "b"), (10, "b"), (16, "a")]
        jobs = [
            queue.submit(Task(lambda found=found: found, halves, lambda _, kind=kind: kinds[kind]))
            for found, kind in wanted
        ]
        while len(queue._read) < 3:
            await asyncio.sleep(0.01)
        go.set()
        await first.answer
        answers = await asyncio.gather(*(job.answer for job in jobs), return_exceptions=True)
        assert isinstance(answers.pop(5), ZeroDivisionError)
        assert answers == [1, 0.5, 0.25, 0.2, 0.125, 0.1, 1 / 16]
        assert asked[0] == [1, 2, 4]
        assert all(len(each) <= 3 and len({dict(wanted)[found] for found in each}) == 1 for each in asked)
        queue.close()
        queue.join(5)
        assert queue.depth == 0

    asyncio.run(story())


def test_who_shares_a_batch_with_what_fails_before_the_first_answer_is_answered_all_the_same() -> None:
    """As heatmaps, which are all drawn before the first verdict."""

    async def story() -> None:
        queue, go, kind = WorkQueue(9), threading.Event(), Kind("a", 3)
        halves = lambda founds: iter([1 / found for found in founds])  # noqa: E731
        first = queue.submit(task(lambda: None, lambda _: go.wait(10)))
        jobs = [queue.submit(Task(lambda found=found: found, halves, lambda _: kind)) for found in (1, 2, 0)]
        while len(queue._read) < 3:
            await asyncio.sleep(0.01)
        go.set()
        await first.answer
        *answers, failed = await asyncio.gather(*(job.answer for job in jobs), return_exceptions=True)
        assert answers == [1, 0.5]
        assert isinstance(failed, ZeroDivisionError)
        queue.close()

    asyncio.run(story())


def test_work_that_goes_wrong_after_its_last_answer_does_not_end_the_thread() -> None:
    """As a plugin's, which answers one too many."""

    async def story() -> None:
        queue = WorkQueue(9)
        first = queue.submit(Task(lambda: "a", lambda founds: iter([*founds, "more"]), lambda _: None))
        assert await first.answer == "a"
        assert await queue.submit(task(lambda: "b", lambda word: word)).answer == "b"
        queue.close()

    asyncio.run(story())


# The store


def inspection(verdict: str = "fail", score: float = 1.5) -> Inspection:
    full = np.zeros(HW, bool)
    full[3:9, 4:12] = True
    mask = from_full(full)
    assert mask is not None
    defects = (Defect(mask, score, "sam", mask.area_px, 8.0, 1.2),) if verdict == "fail" else ()
    anomaly_map = np.linspace(0, score, 24, dtype=np.float32).reshape(4, 6)
    return Inspection(
        "a.png",
        verdict,
        score,
        1.0,
        defects,
        HW,
        None,
        {"read": 1.0},
        anomaly_map,  # type: ignore[arg-type]
    )


def arrival(**changes: Any) -> Arrival:
    return replace(Arrival("part", "v1", datetime.now(UTC), "0" * 64), **changes)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL, begun for this."""
    tools = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)
    if tools is None:
        pytest.skip("no PostgreSQL on this machine (Debian's package postgresql)")
    folder = Path(f"/tmp/sam_inspect_pg_{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        options |= {"user": user.pw_uid, "group": user.pw_gid}
    subprocess.run([tools / "initdb", "-D", folder / "data", "-U", "me", "-A", "trust"], check=True, **options)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
    process = subprocess.Popen([tools / "postgres", *words], **options)
    until = time.monotonic() + 30
    while subprocess.run([tools / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], **options).returncode:
        assert time.monotonic() < until
        time.sleep(0.1)
    yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"
    process.terminate()
    process.wait(30)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = request.getfixturevalue("postgres") if request.param == "postgres" else None
    opened = Store(tmp_path / "station", url)
    yield opened
    with opened.engine.begin() as connection:
        Base.metadata.drop_all(connection)
        connection.exec_driver_sql("drop table alembic_version")
    opened.close()


def test_what_is_kept_comes_back_whole(store: Store) -> None:
    asked = arrival(part="flange", serial="A", camera="top", triggered_at=datetime(2026, 11, 26, 7, tzinfo=UTC))
    row = store.save(inspection(), b"the image", ".png", asked, ())
    found = store.find(row.id)
    assert store.image(found).read_bytes() == b"the image"
    assert found.triggered_at == asked.triggered_at
    assert found.captured_at == asked.captured_at
    assert found.done_at.tzinfo is not None
    again = store.inspection(found)
    assert (again.verdict, again.score, len(again.defects)) == ("fail", 1.5, 1)
    np.testing.assert_allclose(again.anomaly_map, inspection().anomaly_map, atol=1e-3)
    assert record(found)["regions"] == [{"box": [4, 3, 12, 9], "area_px": 48, "area_mm2": 1.2, "score": 1.5}]
    with pytest.raises(NotFound):
        store.find("0" * 28)
    assert store.review(row.id, {"decision": "confirm"}).review == {"decision": "confirm"}


def test_pages_filters_and_what_came_after(store: Store) -> None:
    rows = [
        store.save(
            inspection("pass" if number % 2 else "fail"),
            b"x",
            ".png",
            arrival(part=f"p{number % 3}", recipe="a" if number < 3 else "b"),
            (),
        )
        for number in range(6)
    ]
    ids = [row.id for row in rows]
    assert ids == sorted(ids)
    assert [row.id for row in store.page(Filter(), 4)] == ids[::-1][:4]
    assert [row.id for row in store.page(Filter(before=ids[3]), 4)] == ids[2::-1]
    assert [row.id for row in store.page(Filter(verdict="pass"), 9)] == [ids[5], ids[3], ids[1]]
    assert [row.id for row in store.page(Filter(recipe="b", part="p0"), 9)] == [ids[3]]
    assert [row.id for row in store.after(ids[3], 9)] == ids[4:]
    assert store.newest_id() == ids[-1]
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert store.page(Filter(since=tomorrow), 9) == []
    assert len(store.page(Filter(until=tomorrow), 9)) == 6
    store.review(ids[2], {"decision": "overrule"})
    assert [row.id for row in store.page(Filter(reviewed=True), 9)] == [ids[2]]
    assert len(store.page(Filter(reviewed=False), 9)) == 5


def test_a_key_has_one_answer(store: Store) -> None:
    kept = store.save(inspection(), b"x", ".png", arrival(idempotency_key="k"), ())
    found = store.answered("part", "k")
    assert found is not None
    assert found.id == kept.id
    assert store.answered("other", "k") is None
    with pytest.raises(Conflict):
        store.save(inspection(), b"y", ".png", arrival(idempotency_key="k"), ())
    assert len(list(store.folder.glob("2*/*/*/*.png"))) == 1
    store.save(inspection(), b"y", ".png", arrival(idempotency_key="k", recipe="other"), ())


def test_the_migrations_make_the_tables(store: Store) -> None:
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_the_oldest_go_first_and_nothing_that_is_to_be_delivered(store: Store) -> None:
    rows = [store.save(inspection(), b"x" * 100, ".png", arrival(), ["mqtt"] if n == 0 else ()) for n in range(6)]
    assert store.prune(None, None) == 0
    assert store.prune(None, 400) == 2
    assert [row.id for row in store.page(Filter(), 9)] == [rows[n].id for n in (5, 4, 3, 0)]
    assert len(list(store.folder.glob("2*/*/*/*"))) == 8
    old = datetime.now(UTC) - timedelta(days=9)
    with Session(store.engine) as session, session.begin():
        session.execute(update(InspectionRow).values(done_at=old))
    assert store.prune(8, None) == 3
    assert [row.id for row in store.page(Filter(), 9)] == [rows[0].id]


def test_deliveries_wait_in_order_until_they_are_taken(store: Store) -> None:
    rows = [store.save(inspection(), b"x", ".png", arrival(serial=str(n)), ["a", "b"]) for n in range(3)]
    assert [due.record["id"] for due in store.due("a", 9)] == [row.id for row in rows]
    assert store.waiting() == {"a": 3, "b": 3}
    first = store.due("a", 9)[0]
    store.postpone(first, 60, "away")
    assert store.due("a", 9) == []
    assert len(store.due("b", 2)) == 2
    store.delivered(first.id)
    assert [due.record["id"] for due in store.due("a", 9)] == [row.id for row in rows[1:]]


@pytest.mark.parametrize("begins", [b"", b"\x93NUMPY"], ids=["the image", "the map"])
def test_a_full_disk_keeps_nothing(store: Store, monkeypatch: pytest.MonkeyPatch, begins: bytes) -> None:
    def full(part: Path, data: bytes) -> None:
        part.write_bytes(data[:3] if data.startswith(begins) else data)
        if data.startswith(begins):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(OutputError, match="No space left"):
        store.save(inspection(), b"the image", ".png", arrival(), ["a"])
    assert store.page(Filter(), 9) == []
    assert list(store.folder.glob("2*/*/*/*")) == []
    assert store.waiting() == {}


def test_what_another_process_is_writing_is_not_taken_for_a_dead_ones(tmp_path: Path) -> None:
    """`serve` and `watch` may share a store."""
    serve = Store(tmp_path)
    day = tmp_path / datetime.now(UTC).strftime("%Y/%m/%d")
    day.mkdir(parents=True)
    for name in ("a.png", ".part-b.png"):
        (day / name).write_bytes(b"x")
    Store(tmp_path).close()
    assert len(list(day.iterdir())) == 2
    serve.close()
    Store(tmp_path).close()
    assert list(day.iterdir()) == []


def test_a_file_that_cannot_go_does_not_end_the_retention(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [store.save(inspection(), b"x", ".png", arrival(), ()) for _ in range(3)]
    unlink, locked = Path.unlink, store.image(rows[0])

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == locked:
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert store.prune(None, 0) == 3
    assert list(store.folder.glob("2*/*/*/*")) == [locked]


def test_a_store_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="the store does not answer"):
        Store(tmp_path, "postgresql+psycopg://me@127.0.0.1:1/postgres")
    newer = Store(tmp_path)
    with newer.engine.begin() as connection:
        connection.exec_driver_sql("update alembic_version set version_num = '9999'")
    newer.close()
    with pytest.raises(ServiceError, match="of a newer sam-inspect"):
        Store(tmp_path)


# Outputs


class Flaky:
    """An output that is away for a while."""

    def __init__(self, failures: int) -> None:
        self.failures, self.heard = failures, list[str]()

    def send(self, record: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise ServiceError("away", "")
        self.heard.append(record["id"])


def test_an_output_that_was_away_is_told_all_in_order(tmp_path: Path) -> None:
    store, flaky, other = Store(tmp_path), Flaky(2), Flaky(0)
    outbox = Outbox(store, {"flaky": flaky, "other": other})  # type: ignore[dict-item]
    outbox.start()
    ids = [store.save(inspection(), b"x", ".png", arrival(), outbox.names).id for _ in range(4)]
    outbox.wake()
    until = time.monotonic() + 20
    while store.waiting() and time.monotonic() < until:
        time.sleep(0.05)
    outbox.close()
    assert flaky.heard == ids
    assert other.heard == ids
    store.close()


class Buggy(Flaky):
    """A plugin's output, with an error of its own."""

    def send(self, record: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise KeyError("shift")
        super().send(record)


def test_an_outputs_own_error_does_not_end_what_it_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, buggy = Store(tmp_path), Buggy(1)
    store.save(inspection(), b"x", ".png", arrival(), ["gone"])
    outbox = Outbox(store, {"buggy": buggy})  # type: ignore[dict-item]
    outbox.start()
    kept = store.save(inspection(), b"x", ".png", arrival(), outbox.names)
    outbox.wake()
    until = time.monotonic() + 20
    while store.waiting() != {"gone": 1} and time.monotonic() < until:
        time.sleep(0.05)
    outbox.close()
    store.close()
    assert buggy.heard == [kept.id]
    assert "KeyError: 'shift'" in caplog.text
    assert "1 records wait for output gone" in caplog.text


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("https://user:s3cret@mes/hook", "webhook mes/hook"),
        ("https://mes:8443/hook", "webhook mes:8443/hook"),
        ("mqtt://user:s3cret@broker/line/1", "mqtt broker:1883/line/1"),
        ("/data/results.jsonl", "jsonl /data/results.jsonl"),
    ],
)
def test_an_outputs_name_tells_where_and_no_password(word: str, name: str) -> None:
    assert output_of(word)[0] == name


@pytest.mark.parametrize("word", ["mqqt://user:s3cret@broker/x", "ftp://mes/x"])
def test_a_scheme_that_nothing_is_sent_by_is_no_file(word: str) -> None:
    with pytest.raises(ConfigError, match="nothing is sent by") as refused:
        output_of(word)
    assert "s3cret" not in str(refused.value)


def test_a_file_that_cannot_be_there_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "results.jsonl", tmp_path):
        with pytest.raises(ConfigError, match="cannot be a file there"):
            output_of(str(path))


def test_a_brokers_password_may_hold_what_an_address_may_not() -> None:
    _, output = output_of("mqtt://line%201:p%40ss%2Fword@broker/x")
    assert isinstance(output, Mqtt)
    assert (output.args.username, output.args.password) == ("line 1", "p@ss/word")


def test_two_outputs_have_two_names() -> None:
    long = "/" + "very-long-" * 12
    words = [
        "https://mes/hook",
        "https://mes/hook?line=1",
        "https://mes/hook?line=2",
        f"{long}/a.jsonl",
        f"{long}/b.jsonl",
    ]
    names = [output_of(word)[0] for word in words]
    assert len(set(names)) == len(words)
    assert max(map(len, names)) <= 100
    assert "line=" not in " ".join(names), "a query may hold a token"


@pytest.mark.parametrize("topic", ["", "a/#", "x/{recipe}/+"])
def test_a_topic_that_no_broker_takes_is_refused_at_once(topic: str) -> None:
    with pytest.raises(ConfigError, match="not a topic that can be published"):
        Mqtt.from_config({"host": "broker", "topic": topic})


@pytest.mark.parametrize("topic", ["line/{shift}", "line/{0}", "line/{", "{recipe.name}"])
def test_a_topic_that_cannot_be_filled_in_is_refused_at_once(topic: str) -> None:
    with pytest.raises(ConfigError, match=r"only \{recipe\}, \{verdict\}, \{camera\} and \{part\}"):
        Mqtt.from_config({"host": "broker", "topic": topic})


def test_a_missing_key_does_not_show_its_neighbours() -> None:
    with pytest.raises(ConfigError) as refused:
        Mqtt.from_config({"username": "u", "password": "hunter2"})
    assert "host" in str(refused.value)
    assert "hunter2" not in str(refused.value)


class Choosy(Flaky):
    """An output that does not want every second record, until it is mended."""

    def __init__(self) -> None:
        super().__init__(0)
        self.seen, self.mended = list[str](), False

    def send(self, record: Any) -> None:
        self.seen.append(record["id"])
        if len(self.seen) % 2 == 0 and not self.mended:
            raise Refused("422", "")
        super().send(record)


def test_what_an_output_refuses_holds_up_nothing_and_is_tried_at_the_next_start(tmp_path: Path) -> None:
    store, choosy = Store(tmp_path), Choosy()

    def run() -> None:
        outbox = Outbox(store, {"mes": choosy})  # type: ignore[dict-item]
        outbox.start()
        until = time.monotonic() + 20
        while store.waiting() and time.monotonic() < until:
            time.sleep(0.05)
        outbox.close()

    ids = [store.save(inspection(), b"x", ".png", arrival(), ["mes"]).id for _ in range(4)]
    run()
    assert choosy.heard == [ids[0], ids[2]]
    assert store.waiting(refused=True) == {"mes": 2}
    choosy.mended = True
    run()
    assert choosy.heard == [ids[0], ids[2], ids[1], ids[3]]
    assert store.waiting(refused=True) == {}
    store.close()


def test_what_was_refused_may_be_forgotten_with_its_inspection(store: Store) -> None:
    store.save(inspection(), b"x", ".png", arrival(), ["mes"])
    (delivery,) = store.due("mes", 9)
    assert store.prune(None, 0) == 0
    store.refused(delivery, "422")
    assert store.due("mes", 9) == []
    assert store.prune(None, 0) == 1
    assert store.waiting(refused=True) == {}


def scored(score: float, threshold: float | None) -> Inspection:
    return Inspection("x", "pass", score=score, threshold=threshold, original_hw=(9, 9))


def test_drift_is_of_the_version_that_judges_and_of_its_heatmap() -> None:
    recipe = Recipe(Path(), RecipeConfig(), {}, {}, np.linspace(0, 1, 50, dtype=np.float32), np.ones(1, np.float32))
    inspector = Inspector(recipe.config, cast(Any, None), recipe=recipe, boxes={})
    telemetry, versions = Telemetry(), [Loaded("part", v, inspector, datetime.now(UTC)) for v in ("v1", "v2")]

    def page() -> bytes:
        return telemetry.page(0, {}, {})

    for _ in range(30):
        telemetry.answered(versions[0], scored(0.0, None), 0.1)
    assert b"sam_inspect_score_drift{" not in page(), "boxes were given"
    for _ in range(30):
        telemetry.answered(versions[0], scored(0.9, 1.5), 0.1)
    assert b'sam_inspect_score_drift{recipe="part"}' in page()
    telemetry.answered(versions[1], scored(0.9, 1.5), 0.1)
    assert b"sam_inspect_score_drift{" not in page(), "nothing is known of another version yet"


def test_one_of_two_processes_tells_an_output_and_the_other_takes_over(tmp_path: Path) -> None:
    stores, heard = [Store(tmp_path), Store(tmp_path)], [Flaky(0), Flaky(0)]
    boxes = [Outbox(store, {"mes": output}) for store, output in zip(stores, heard, strict=True)]  # type: ignore[dict-item]
    boxes[0].start()

    def told(*counts: int) -> None:
        until = time.monotonic() + 20
        while [len(output.heard) for output in heard] != list(counts) and time.monotonic() < until:
            time.sleep(0.02)
        assert [len(output.heard) for output in heard] == list(counts)

    stores[0].save(inspection(), b"x", ".png", arrival(), ["mes"])
    boxes[0].wake()
    told(1, 0)
    boxes[1].start()
    for _ in range(5):
        stores[1].save(inspection(), b"x", ".png", arrival(), ["mes"])
        boxes[1].wake()
    told(6, 0)
    boxes[0].close()
    stores[1].save(inspection(), b"x", ".png", arrival(), ["mes"])
    boxes[1].wake()
    told(6, 1)
    boxes[1].close()


def test_tables_are_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = store_module._upgrade

    def interrupted(config: Any) -> None:
        whole(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "_upgrade", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path)
    monkeypatch.setattr(store_module, "_upgrade", whole)
    Store(tmp_path / "a?b%20c").save(inspection(), b"x", ".png", arrival(), ())
    assert (tmp_path / "a?b%20c" / "inspections.db").is_file()
    Store(tmp_path).save(inspection(), b"x", ".png", arrival(), ())


@pytest.mark.parametrize(
    ("verdict", "decision", "has_masks", "agrees"),
    [
        ("fail", "confirm", True, True),
        ("fail", "confirm", False, False),
        ("fail", "overrule", True, False),
        ("fail", "overrule", False, True),
        ("pass", "confirm", True, False),
        ("pass", "overrule", True, True),
        ("error", "confirm", True, True),
    ],
)
def test_masks_and_decision_agree(verdict: str, decision: str, has_masks: bool, agrees: bool) -> None:
    with nullcontext() if agrees else pytest.raises(ValueError, match="says otherwise"):
        _check_agree(verdict, decision, has_masks)


def test_times_are_utc_and_of_the_calendar(store: Store) -> None:
    fields = Fields.model_validate({"triggered_at": "2026-11-26T08:55:13.25+02:00"})
    row = store.save(inspection(), b"x", ".png", arrival(triggered_at=fields.triggered_at), ())
    assert record(row)["times"]["trigger"] == "2026-11-26T06:55:13.250000+00:00"
    for edge in ("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-05:00"):
        with pytest.raises(ValidationError, match="outside the calendar"):
            Fields.model_validate({"triggered_at": edge})


def test_pictures_of_two_folders_are_two_pictures(tmp_path: Path) -> None:
    """As of two cameras that count alike, and write files of one size in the same second."""
    stop, keys = threading.Event(), set()
    for folder in ("cam1", "cam2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0001.bmp").write_bytes(b"x")
        os.utime(tmp_path / folder / "0001.bmp", ns=(1, 1))
        keys.add(next(folder_shots(tmp_path / folder, stop)).key)
    assert len(keys) == 2


def test_a_file_that_is_no_picture_for_its_size_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "MOST_BYTES", 5)
    (tmp_path / "a.png").write_bytes(b"123456")
    (tmp_path / "b.png").write_bytes(b"1")
    assert next(folder_shots(tmp_path, threading.Event())).name == "b.png"
    assert "a.png: 6 bytes" in caplog.text


def test_an_output_that_has_caught_up_waits_for_nothing() -> None:
    figures = Telemetry()
    assert b'deliveries_waiting{output="mes"} 3.0' in figures.page(0, {"mes": 3}, {"mes": 0})
    assert b'deliveries_waiting{output="mes"} 0.0' in figures.page(0, {"mes": 0}, {"mes": 1})


@pytest.mark.parametrize(
    ("status", "kind"), [(422, Refused), (401, ServiceError), (503, ServiceError), (302, ServiceError)]
)
def test_a_webhook_tells_what_it_will_never_want_from_what_it_cannot_take_now(
    status: int, kind: type[Exception]
) -> None:
    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ServiceError) as problem:
            Webhook.from_config({"url": f"http://127.0.0.1:{server.server_port}/"}).send({"id": "1"})
        server.shutdown()
    assert type(problem.value) is kind


def test_lines_are_whole_and_not_doubled(tmp_path: Path) -> None:
    output = JsonLines.from_config({"file": str(tmp_path / "deep" / "results.jsonl")})
    output.send({"id": "1", "part": "ä"})
    output.send({"id": "1", "part": "ä"})
    with output.path.open("ab") as file:
        file.write(b'{"id": "2", "pa')
    output.send({"id": "2", "part": None})
    assert [json.loads(line)["id"] for line in output.path.read_text().splitlines()] == ["1", "2"]


def test_a_line_that_somebody_else_left_without_its_end_is_kept(tmp_path: Path) -> None:
    output = JsonLines.from_config({"file": str(tmp_path / "results.jsonl")})
    whole = '{"id": "a line from elsewhere, whole but for its newline"}'
    output.path.write_text(whole)
    output.send({"id": "1"})
    output.send({"id": "1"})
    assert output.path.read_text().splitlines() == [whole, '{"id": "1"}']


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Begins a real mosquitto, which keeps nothing; again on the same port."""
    tool = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    if tool is None:
        pytest.skip("no mosquitto on this machine (Debian's package mosquitto)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "broker.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    begun: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        words = [tool, "-c", str(tmp_path / "broker.conf")]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begun.append(process)
        until = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return process
            assert time.monotonic() < until
            time.sleep(0.05)

    begin.port = port  # type: ignore[attr-defined]
    yield begin
    for process in begun:
        process.kill()
        process.wait()


def test_mqtt_survives_its_broker(broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    monkeypatch.setattr(outputs_module, "LONGEST_PAUSE_S", 0.3)
    heard: list[tuple[str, dict[str, Any]]] = []

    def listener() -> Client:
        client = Client(CallbackAPIVersion.VERSION2, "listener")
        client.on_message = lambda _c, _u, message: heard.append((message.topic, json.loads(message.payload)))
        client.connect("127.0.0.1", broker.port)
        client.subscribe("#", qos=1)
        client.loop_start()
        time.sleep(0.3)
        return client

    process = broker()
    first = listener()
    store = Store(tmp_path / "station")
    args = {"host": "127.0.0.1", "port": broker.port, "topic": "line/{camera}/{verdict}"}
    outbox = Outbox(store, {"mqtt": Mqtt.from_config(args)})
    outbox.start()

    def answered(count: int) -> list[str]:
        ids = [store.save(inspection(), b"x", ".png", arrival(camera="a/b#"), ["mqtt"]).id for _ in range(count)]
        outbox.wake()
        return ids

    ids = answered(3)
    until = time.monotonic() + 20
    while len(heard) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    first.loop_stop()
    process.kill()
    process.wait()
    ids += answered(3)
    time.sleep(1)
    assert len(heard) == 3
    broker()
    second = listener()
    until = time.monotonic() + 30
    while len(heard) < 6 and time.monotonic() < until:
        time.sleep(0.05)
    outbox.close()
    second.loop_stop()
    assert [body["id"] for _, body in heard] == ids
    assert {topic for topic, _ in heard} == {"line/a_b_/fail"}
    store.close()


def test_a_file_of_outputs(tmp_path: Path) -> None:
    file = tmp_path / "outputs.yaml"
    file.write_text(
        "outputs:\n  - {name: jsonl, args: {file: a.jsonl}}\n"
        "  - {name: webhook, as: erp, args: {url: 'https://erp.example/x'}}\n"
    )
    assert list(read_outputs(file)) == ["jsonl", "erp"]
    for text, problem in (
        ("outputs: [{name: jsonl, args: {file: a, fil: x}}]", "did you mean 'file'"),
        ("outputs: [{name: webhook, args: {url: 'ftp://x'}}]", "url"),
        ("outputs: [{name: jsonl, args: {file: a}}, {name: jsonl, args: {file: b}}]", "two outputs are called jsonl"),
        ("output: []", "did you mean 'outputs'"),
        (f"outputs: [{{name: jsonl, as: {101 * 'x'}, args: {{file: a}}}}]", "at most 100 characters"),
        ("outputs: [{name: jsonl, ass: b, args: {file: a}}]", "did you mean 'as'"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=problem):
            read_outputs(file)


# What comes from outside


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_a_mask_from_outside_is_what_pycocotools_reads(height: int, width: int, data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits, np.uint8).reshape(height, width)
    coded = rle.encode(np.asfortranarray(mask))
    found = Rle(size=(height, width), counts=coded["counts"].decode()).mask((height, width))
    drawn = np.zeros((height, width), bool)
    if found is not None:
        x0, y0, x1, y1 = found.box_xyxy
        drawn[y0:y1, x0:x1] = found.pixels
    np.testing.assert_array_equal(drawn, mask.astype(bool))


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_counts_that_are_none_are_refused(text: str) -> None:
    try:
        found = Rle(size=(7, 9), counts=text).mask((7, 9))
    except ValueError:
        return
    assert found is None or found.area_px <= 63


def test_fields_that_cannot_be_kept() -> None:
    for wrong in (
        {"part": "a\n"},
        {"part": ""},
        {"serial": "x" * 201},
        {"camera": "\ud800"},
        {"triggered_at": "2026-11-26T07:00:00"},
        {"boxes": [[1, 2, 3]]},
        {"boxes": [[0, 0, float("nan"), 4]]},
        {"boxes": [[0, 0, 1, 1]] * 201},
        {"colour": "red"},
    ):
        with pytest.raises(ValidationError):
            Fields.model_validate(wrong)
    with pytest.raises(ValidationError):
        ClickMessage.model_validate({"inspection": "0" * 28, "off": [[1, 2]]})


def test_keys_are_hashes_and_a_removed_one_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "keys.json"
    ring = KeyRing(file)
    assert ring.owner("x") is None
    secrets = [add_key(file, name) for name in ("a", "b")]
    assert [ring.owner(secret) for secret in secrets] == ["a", "b"]
    assert ring.owner("\ud800") is None
    remove_key(file, "a")
    assert [ring.owner(secret) for secret in secrets] == [None, "b"]
    with pytest.raises(UsageError, match="has no key"):
        remove_key(file, "a")
    file.write_text("[]")
    with pytest.raises(UsageError, match="holds no keys"):
        read_keys(file)
    assert ring.owner(secrets[1]) is None, "whoever asks is told nothing of the file"


def test_which_addresses_nobody_else_reaches() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.8.0.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.7", "example.org", "")))


def test_a_service_on_loopback_answers_to_its_own_names_alone() -> None:
    guard = Guard(FastAPI(), only_here=True, most_bytes=100, count=lambda *_: None)
    for host in ("localhost:8000", "127.0.0.1:8000", "127.0.0.2:8000", "[::1]:8000"):
        assert guard._refused(Headers({"host": host})) is None
    for host in ("evil.example:8000", "192.168.0.7", ""):
        assert guard._refused(Headers({"host": host}))
    assert guard._refused(Headers({"host": "localhost", "content-length": "101"})) is not None
    assert guard._refused(Headers({"host": "localhost", "content-length": "100"})) is None


# Clicks, labels, figures


class Counting:
    """A segmenter that counts what it is asked, and answers with a disc around the last point."""

    def __init__(self) -> None:
        self.encoded = list[View]()
        self.asked = list[Prompt]()

    @classmethod
    def from_config(cls, args: Any, *, device: str) -> Counting:
        return cls()

    def segment(self, image: Any, views: Any) -> list[Candidates]:
        return []

    def encode(self, image: Any, views: Any) -> Iterator[Any]:
        for view in views:
            self.encoded.append(view)
            yield view

    def decode(self, embedding: Any, prompts: Any) -> list[Candidates]:
        self.asked += prompts
        logits = np.full((4, 128, 128), -1, np.float32)
        logits[:, 50:60, 50:60] = 1
        return [Candidates(embedding, prompts[0], logits, np.array([0.9, 0.1, 0.8, 0.3], np.float32))]


def test_a_further_click_costs_no_encoding() -> None:
    sam, clicker, image = Counting(), Clicker(), np.zeros((600, 800, 3), np.uint8)

    def ask(clicks: Clicks, key: str = "one") -> Any:
        return clicker.mask(sam, image, ("recipe", key), clicks, PromptConfig())

    mask, iou = ask(Clicks(on=((300.0, 200.0),)))
    assert iou == pytest.approx(0.8)  # the best of three for a single click
    x0, y0, x1, y1 = mask.box_xyxy
    assert sam.encoded[0].crop_xyxy[0] < x0 < x1 < sam.encoded[0].crop_xyxy[2]
    assert y0 < y1
    _, iou = ask(Clicks(on=((300.0, 200.0), (310.0, 220.0)), off=((340.0, 240.0),)))
    assert iou == pytest.approx(0.9)  # the single mask for several
    assert len(sam.encoded) == 1
    assert sam.asked[1].point_labels.tolist() == [1, 1, 0]
    ask(Clicks(on=((790.0, 590.0),)))
    ask(Clicks(on=((300.0, 200.0),)), key="two")
    assert len(sam.encoded) == 3
    ask(Clicks(box=(100.0, 100.0, 700.0, 500.0)))  # larger than any view that is kept
    assert len(sam.encoded) == 4
    for view in sam.encoded:
        x0, y0, x1, y1 = view.crop_xyxy
        assert (0 <= x0 < x1 <= 800, 0 <= y0 < y1 <= 600) == (True, True)
    with pytest.raises(ConfigError, match="takes no clicks"):
        clicker.mask(object(), image, ("r", "k"), Clicks(on=((1.0, 1.0),)), PromptConfig())  # type: ignore[arg-type]


class Large(Counting):
    """Sees a defect of 500 x 300 pixels from (100, 100)."""

    def decode(self, embedding: Any, prompts: Any) -> list[Candidates]:
        x0, y0, x1, y1 = embedding.crop_xyxy
        full = np.full((600, 800), -1, np.float32)
        full[100:400, 100:600] = 1
        square = np.full((4, 128, 128), -1, np.float32)
        height, width = embedding.input_hw
        square[:, : height // 4, : width // 4] = cv2.resize(full[y0:y1, x0:x1], (width // 4, height // 4))
        return [Candidates(embedding, prompts[0], square, np.full(4, 0.9, np.float32))]


def test_a_view_grows_until_it_holds_the_whole_defect() -> None:
    sam, image = Large(), np.zeros((600, 800, 3), np.uint8)
    mask, _ = Clicker().mask(sam, image, ("recipe", "one"), Clicks(on=((350.0, 250.0),)), PromptConfig())
    assert mask is not None
    np.testing.assert_allclose(mask.box_xyxy, (100, 100, 600, 400), atol=8)
    assert len(sam.encoded) > 1


def test_masks_from_outside_do_not_hold_the_whole_frame() -> None:
    full = np.zeros((3000, 4000), bool)
    full[10:30, 20:40] = True
    counts = rle.encode(np.asfortranarray(full.view(np.uint8)))["counts"].decode()
    for mask in (
        Rle(size=(3000, 4000), counts=counts).mask((3000, 4000)),
        from_rle({"size": [3000, 4000], "counts": counts}),
    ):
        assert mask is not None
        assert (mask.pixels.base if mask.pixels.base is not None else mask.pixels).size == 400


def test_what_another_watcher_has_kept_meanwhile_is_passed_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them on one folder."""
    looked = []

    def answered(recipe: str, key: str) -> InspectionRow | None:
        looked.append(key)
        return None

    store.save(inspection(), b"a", ".png", arrival(idempotency_key="a"), ())
    monkeypatch.setattr(store, "answered", answered)
    monkeypatch.setattr(watch, "_inspected", lambda *_: inspection())
    loaded = Loaded("part", "v", cast(Inspector, None), datetime.now(UTC))
    shots = [Shot(f"{key}.png", key.encode(), ".png", key, datetime.now(UTC)) for key in ("a", "b")]
    assert inspect_shots(iter(shots), loaded, store, Outbox(store, {}), None, threading.Event()) == 1
    assert looked == ["a", "b"]
    assert len(store.page(Filter(), 9)) == 2


def test_a_share_that_is_away_for_a_while_is_watched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.02)
    monkeypatch.setattr(watch, "AWAY_S", 0.02)
    folder, stop = tmp_path / "share", threading.Event()
    folder.mkdir()
    (folder / "a.png").write_bytes(b"a")
    shots = folder_shots(folder, stop)
    assert next(shots).name == "a.png"
    folder.rename(tmp_path / "away")

    def back() -> None:
        time.sleep(0.2)
        (tmp_path / "away" / "b.png").write_bytes(b"b")
        (tmp_path / "away").rename(folder)

    threading.Thread(target=back).start()
    assert next(shots).name == "b.png"
    stop.set()


def test_a_cameras_password_is_not_shown() -> None:
    assert without_user("rtsp://user:s3cret@10.0.0.7:554/live") == "rtsp://10.0.0.7:554/live"
    assert without_user("rtsp://user:s3@cret@10.0.0.7/live") == "rtsp://10.0.0.7/live"
    assert without_user("rtsp://10.0.0.7/live@2") == "rtsp://10.0.0.7/live@2"
    assert without_user("https://mes?to=a@b") == "https://mes?to=a@b"
    assert without_user("0") == "0"


def test_labels_are_what_people_said(tmp_path: Path) -> None:
    store = Store(tmp_path / "station")
    mask = rle.encode(np.asfortranarray(np.pad(np.ones((4, 4), np.uint8), ((0, 16), (0, 26)))))
    drawn = {"mask": {"size": list(HW), "counts": mask["counts"].decode()}, "defect_type": "../../good"}

    def said(verdict: str, review: dict[str, Any] | None) -> str:
        row = store.save(inspection(verdict), b"x", ".png", arrival(), ())
        if review is not None:
            store.review(row.id, review)
        return row.id

    confirmed = said("fail", {"decision": "confirm"})
    good = said("fail", {"decision": "overrule"})
    fine = said("pass", {"decision": "confirm"})
    missed = said("pass", {"decision": "overrule", "masks": [drawn]})
    nowhere = said("pass", {"decision": "overrule"})
    unsaid = said("fail", None)
    emptied = said("fail", {"decision": "overrule", "masks": []})
    assert write_labels(store, store.page(Filter(), 20), tmp_path / "labels.zip") == 5
    names = zipfile.ZipFile(tmp_path / "labels.zip").namelist()
    assert sorted(names) == sorted(
        [
            f"test/defect/{confirmed}.png",
            f"ground_truth/defect/{confirmed}_mask.png",
            f"test/good/{good}.png",
            f"test/good/{fine}.png",
            f"test/good/{emptied}.png",
            f"test/good_/{missed}.png",
            f"ground_truth/good_/{missed}_mask.png",
            "groups.csv",
        ]
    )
    assert not {nowhere, unsaid} & {Path(name).stem for name in names}
    store.close()


def test_labels_say_which_pictures_show_one_part(tmp_path: Path) -> None:
    """Else a decoder would be scored on the part that it learned from."""
    store = Store(tmp_path / "station")
    shots = [(b"1", "A, 7"), (b"2", "A, 7"), (b"3", "B"), (b"4", None), (b"4", None), (b"5", None)]
    for image, serial in shots:
        row = store.save(inspection(), image, ".png", arrival(part="flange", serial=serial), ())
        store.review(row.id, {"decision": "confirm"})
    write_labels(store, store.after("", 9), tmp_path / "labels.zip")
    store.close()
    data = tmp_path / "labels"
    zipfile.ZipFile(tmp_path / "labels.zip").extractall(data)
    groups = read_groups(data / "groups.csv")
    assert sorted(groups) == sorted(path.relative_to(data).as_posix() for path in data.glob("test/*/*"))
    first, second, third, fourth, fifth, sixth = (groups[name] for name in sorted(groups))
    assert first == second
    assert fourth == fifth
    assert len({first, third, fourth, sixth}) == 4


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 5), min_size=1, max_size=40), st.lists(st.floats(0, 5), min_size=1, max_size=40))
def test_the_drift_is_kolmogorovs_and_smirnovs(a: list[float], b: list[float]) -> None:
    assert distance(np.array(a), np.array(b)) == pytest.approx(ks_2samp(a, b).statistic)
