"""Lines without HTTP: files dropped into a folder, and a camera's stream that breaks and comes back."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

Launch = Callable[..., subprocess.Popen[str]]


@contextmanager
def watching(launch: Launch, *words: str | Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`sam-inspect watch`, and what it says; told to stop at the end, with 0."""
    process = launch("watch", *words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said: list[str] = []
    assert process.stderr is not None
    threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True).start()
    try:
        wait_for(lambda: any("watching" in line for line in said), said)
        yield process, said
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, "".join(said)
    finally:
        process.kill()
        process.wait()


def wait_for(true: Callable[[], bool], said: list[str]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until, "".join(said)
        time.sleep(0.05)


def told(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_drop_folder(export: Path, launch: Launch, good: Path, tmp_path: Path) -> None:
    images = sorted(good.iterdir())
    drop, lines = tmp_path / "drop", tmp_path / "results.jsonl"
    drop.mkdir()
    shutil.copy(images[0], drop)
    words = (drop, "--recipe", export, "--data", tmp_path / "station", "--to", lines, "--camera", "line 3")
    with watching(launch, *words) as (_, said):
        wait_for(lambda: len(told(lines)) == 1, said)
        content = images[1].read_bytes()
        with (drop / images[1].name).open("wb", buffering=0) as half:
            for part in range(0, len(content), len(content) // 6 + 1):
                half.write(content[part : part + len(content) // 6 + 1])
                time.sleep(0.15)
        (drop / "broken.png").write_bytes(content[: len(content) // 2])
        (drop / "notes.txt").write_text("no picture")
        shutil.copy(images[2], drop)
        wait_for(lambda: len(told(lines)) == 4, said)
    records = {record["files"]["image"]: record for record in told(lines)}
    assert len(records) == 4
    verdicts = [record["verdict"] for record in told(lines)]
    assert verdicts.count("error") == 1
    (broken,) = [record for record in records.values() if record["verdict"] == "error"]
    assert "is cut" in broken["error"]
    assert {record["camera"] for record in records.values()} == {"line 3"}
    for image in records:
        assert (tmp_path / "station" / image).is_file()

    shutil.copy(images[3], drop)
    with watching(launch, *words) as (_, said):
        wait_for(lambda: len(told(lines)) == 5, said)
        time.sleep(1)
    assert len(told(lines)) == 5


class _Mjpeg(BaseHTTPRequestHandler):
    """A camera: JPEG after JPEG, until its server is told to cut the line."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        server: Any = self.server
        try:
            while not server.cut.is_set():
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(server.frame)}\r\n\r\n"
                self.wfile.write(head.encode() + server.frame + b"\r\n")
                time.sleep(0.05)
        except OSError:
            return

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def camera(port: int, frame: bytes) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", port), _Mjpeg)
    server.frame, server.cut = frame, threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.cut.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_a_camera_that_is_cut_off_and_back(
    export: Path, launch: Launch, good: Path, tmp_path: Path, sam_inspect: Callable[..., Any]
) -> None:
    image = cv2.imread(str(next(path for path in sorted(good.iterdir()) if not path.name.startswith("good"))))
    _, encoded = cv2.imencode(".jpg", np.asarray(image), [cv2.IMWRITE_JPEG_QUALITY, 98])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lines = tmp_path / "results.jsonl"
    url = f"http://127.0.0.1:{port}/stream.mjpg"
    words = (url, "--recipe", export, "--data", tmp_path / "station", "--to", lines, "--every", "0.2")
    with watching(launch, *words) as (_, said):
        with camera(port, encoded.tobytes()):
            wait_for(lambda: len(told(lines)) >= 2, said)
        wait_for(lambda: any("gives no picture" in line for line in said), said)
        before = len(told(lines))
        with camera(port, encoded.tobytes()):
            wait_for(lambda: len(told(lines)) >= before + 2, said)
    assert {record["verdict"] for record in told(lines)} == {"fail"}


def test_what_cannot_be_watched(export: Path, tmp_path: Path, sam_inspect: Callable[..., Any]) -> None:
    nothing = sam_inspect("watch", tmp_path / "nowhere", "--recipe", export, "--data", tmp_path / "station")
    assert nothing.status == 2
    assert "nowhere: is not a folder" in nothing.error()
    words = ("watch", tmp_path, "--recipe", export, "--data", tmp_path / "station", "--to", "mqtt://host:port/x")
    assert "--to mqtt://host:port/x" in sam_inspect(*words).error()


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "-8")
