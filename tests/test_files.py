"""A file is there whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sam_inspect.errors import OutputError
from sam_inspect.files import drop_oldest, make_folder, write_atomically, write_bytes, write_text


def test_text_and_bytes_arrive_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Öl\nµm\n")
    assert (tmp_path / "a.txt").read_bytes() == "Öl\nµm\n".encode()
    write_bytes(tmp_path / "b.bin", b"\0\xff")
    assert (tmp_path / "b.bin").read_bytes() == b"\0\xff"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.bin"]


def test_other_users_may_read_what_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    versions = [bytes([65 + i]) * 300_000 for i in range(20)]
    write_bytes(file, versions[0])
    writer = threading.Thread(target=lambda: [write_bytes(file, version) for version in versions * 5])
    writer.start()
    seen = {file.read_bytes()}
    while writer.is_alive():
        seen.add(file.read_bytes())
    assert seen <= set(versions)


def test_the_old_file_stays_when_the_writer_fails(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    write_text(file, "good")

    def half(part: Path) -> None:
        part.write_text("ha")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(file, half)
    assert file.read_text() == "good"
    assert list(tmp_path.iterdir()) == [file]


def test_ctrl_c_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted(part: Path) -> None:
        part.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "map.npz", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_chooses_its_format_by_the_suffix_finds_it(tmp_path: Path) -> None:
    seen = []
    write_atomically(tmp_path / "overlay.webp", lambda part: seen.append(part.suffix))
    assert seen == [".webp"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB; where none can be mounted, a limit of that size on every file of this process."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode == 0:
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_the_old_file_stays(small_disk: Path) -> None:
    file = small_disk / "results.jsonl"
    write_bytes(file, b"old")
    with pytest.raises(OutputError) as caught:
        write_bytes(file, bytes(200_000))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno in (errno.ENOSPC, errno.EFBIG)
    assert caught.value.problem.startswith(f"{file}: cannot be written (")
    assert "free space" in caught.value.remedy
    assert file.read_bytes() == b"old"
    assert list(small_disk.iterdir()) == [file]


@pytest.mark.parametrize("place", ["file/out", "/proc/sam_inspect_out", "/dev/null/out"])
def test_a_place_where_no_folder_can_be_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / place
    with pytest.raises(OutputError, match="cannot be written") as caught:
        make_folder(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    with pytest.raises(OutputError, match="choose another folder"):
        write_text(folder / "a.txt", "x")


def test_a_folder_in_place_of_the_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OutputError, match=r"a\.json: cannot be written"):
        write_text(tmp_path / "a.json", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_this_user_may_not_write_to_is_one_line(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            write_text(locked / "a.txt", "x")
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_is_made_with_those_above_it_and_may_exist(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(tmp_path / "a" / "b").is_dir()


def test_of_a_cache_the_newest_stay(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("old", "older", "new", "removed meanwhile")]
    for age, file in zip((3, 4, 1), files, strict=False):
        file.write_bytes(bytes(100))
        os.utime(file, (1000 - age, 1000 - age))
    drop_oldest(files, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
